"""The pytest plug-in: budgets on a user's model, in a user's test suite. Loaded by name, as an entry point would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.artifact import Artifact
from tests.support import PLUGINS, ROOT

pytest_plugins = "pytester"

HEAVY = {"harness", "torch", "numpy", "onnxruntime", "click", "msgspec", "sqlalchemy"}


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, cache: Path) -> pytest.Pytester:
    """Return a user's test suite, beside folders that are called like ours."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    monkeypatch.setenv("XDG_DATA_HOME", str(pytester.path / "data"))
    monkeypatch.delenv("HARNESS_STORE")
    for name in ("harness", "models", "reports", "backends"):
        (pytester.path / name).mkdir()
        (pytester.path / name / "__init__.py").write_text("raise ImportError('the rival was imported')")
    return pytester


def run(suite: pytest.Pytester) -> pytest.RunResult:
    return suite.runpytest_inprocess("-p", "_harness_pytest", "--strict-markers", "-p", "no:cacheprovider")


def test_budgets_that_are_exceeded_fail_the_test(suite: pytest.Pytester, tiny: Artifact) -> None:
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.harness("tiny", backends=["fake-ok:ms=3", "fake-nan"], baseline="fake-nan", max_latency_ms=2)
        def test_marked():
            raise AssertionError("a budget is looked at before")
        """
    )
    result = run(suite)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "harness: over budget",
            "  fake-nan: drifted, *",
            "  fake-ok:ms=3.0: * ms, and at most 2 ms are allowed",
            "case * status * p50 ms *",
            "fake-ok:ms=3.0 * ok *",
            "reproduce: harness compare --model tiny --backends fake-ok:ms=3,fake-nan --baseline fake-nan --quick *",
        ]
    )
    assert "a budget is looked at before" not in result.stdout.str()


def test_module_of_the_user_on_real_backends(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import torch

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(8, 4)

            def forward(self, x):
                return self.layer(x).relu()

        def test_net(harness_compare):
            table = harness_compare(
                Net(), inputs=(torch.ones(2, 8),), backends=["eager", "onnxruntime"], max_drift=1e-3,
                max_latency_ms=1000, args=["--input-sets", "1"],
            )
            row = table["onnxruntime"]
            assert list(table) == ["onnxruntime", "eager"] or list(table) == ["eager", "onnxruntime"]
            assert table["eager"].is_baseline and row.status == "ok"
            assert row.latency_ms > 0 and row.ratio > 0 and row.drift < 1e-5 and row.compile_s > 0
        """
    )
    run(suite).assert_outcomes(passed=1)
    assert not (suite.path / "data").exists(), "what is not held against earlier runs is not kept"


def test_earlier_runs_are_what_growth_is_held_against(suite: pytest.Pytester, tiny: Artifact) -> None:
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("time", [1, 2])
        @pytest.mark.harness("tiny", backends=["fake-ok"], quick=True, max_memory="60%", against="last:1")
        def test_marked(time):
            assert time == 2
        """
    )
    result = run(suite)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["error: there is no run before *", "reproduce: harness compare --model tiny *"])


def test_wrong_budgets_are_refused_before_anything_is_measured(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        def test_unknown(harness_compare):
            harness_compare("tiny", max_slowness="5%")

        def test_no_inputs(harness_compare):
            harness_compare(object())

        def test_no_backend(harness_compare):
            harness_compare("tiny", backends=["onnxrumtime"])
        """
    )
    result = run(suite)
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "*harness knows no budget max_slowness; it knows max_latency_ms, max_drift, max_slowdown, *",
            "*a torch module needs inputs=*",
            "error: unknown backend 'onnxrumtime'; did you mean 'onnxruntime'?*",
        ]
    )
    result.stdout.no_fnmatch_line("*_harness_pytest.py:*")


def test_plugin_is_light() -> None:
    code = "import sys, pytest; before = set(sys.modules); import _harness_pytest; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "_harness_pytest" in done.stdout.split()
    assert not {name.partition(".")[0] for name in done.stdout.split()} & HEAVY
