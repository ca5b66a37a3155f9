"""Run the session checks of a backend on the fake GPU: arguments and answer are those of `session_checks.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.conformance import session_checks
from tests.fake_gpu import bindings

bindings.use()
session_checks.main()
