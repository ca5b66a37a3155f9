"""Run the conformance suite of a backend on the fake GPU: arguments and answer are those of `session_checks.py`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from harness import registry
from tests.conformance import session_checks
from tests.fake_cuda import bindings

bindings.use()
kind = registry.backend(sys.argv[1])
kind.capabilities = dataclasses.replace(kind.capabilities, devices=("cuda",))
session_checks.main()
