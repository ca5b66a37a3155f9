"""Names that several tests need."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = ROOT / "tests" / "plugins"
"""Put on PYTHONPATH, this folder registers the fake backends through their entry points."""
RUN_CLI = ROOT / "tests" / "run_cli.py"

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
