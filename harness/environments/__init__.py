"""Environments: several releases of one backend, or conflicting backends, side by side in one run."""

from __future__ import annotations

from harness.environments.building import check_release, distribution_of, ensure
from harness.environments.index import Release, releases
from harness.errors import EnvironmentFailed
from harness.interpreter import Interpreter

__all__ = ["EnvironmentFailed", "Interpreter", "Release", "check_release", "distribution_of", "ensure", "releases"]
