"""The rules of every session, on a GPU."""

from __future__ import annotations

import pytest

from tests.conformance.running import Results, hold
from tests.conformance.session_checks import CHECKS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_keeps_the_rule(gpu_results: Results, check: str) -> None:
    hold(gpu_results, check)
