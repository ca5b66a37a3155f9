"""One suite over every backend. The rules are the functions of `session_checks.py`; here is who cannot keep which.

| check                | eager | onnxruntime | torch-compile | tvm | tensorrt-rtx without a GPU           |
|----------------------|-------|-------------|---------------|-----|--------------------------------------|
| compiles, refuses    | yes   | yes         | yes           | yes | yes                                  |
| everything that runs | yes   | yes         | yes           | yes | never: nothing here can run its code |
"""

from __future__ import annotations

import pytest

from harness import errors, protocol, registry
from tests.conformance import session_checks
from tests.conformance.running import Results, hold

nothing_to_run_on = pytest.mark.never(
    "tensorrt-rtx",
    raises=errors.UnsupportedError,
    reason="built for a device that this machine lacks",
    without_device=True,
)
nothing_to_load_on = pytest.mark.never(
    "tensorrt-rtx", raises=errors.RunError, reason="an engine needs its device to be loaded", without_device=True
)


def test_compiles_and_marks_stages(results: Results) -> None:
    hold(results, "compiles_and_marks_stages")


@nothing_to_run_on
def test_agrees_with_the_reference(results: Results) -> None:
    hold(results, "agrees_with_the_reference")


@nothing_to_load_on
def test_loads_what_it_saved(results: Results) -> None:
    hold(results, "loads_what_it_saved")


def test_refuses_a_missing_engine(results: Results) -> None:
    hold(results, "refuses_a_missing_engine")


@nothing_to_run_on
def test_outputs_are_owned(results: Results) -> None:
    hold(results, "outputs_are_owned")


@nothing_to_run_on
def test_inputs_are_copied(results: Results) -> None:
    hold(results, "inputs_are_copied")


@nothing_to_run_on
def test_refuses_a_wrong_shape(results: Results) -> None:
    hold(results, "refuses_a_wrong_shape")


@nothing_to_run_on
def test_refuses_a_wrong_dtype(results: Results) -> None:
    hold(results, "refuses_a_wrong_dtype")


@nothing_to_run_on
def test_refuses_a_missing_input(results: Results) -> None:
    hold(results, "refuses_a_missing_input")


@nothing_to_run_on
def test_runs_a_batch_of_two(results: Results) -> None:
    hold(results, "runs_a_batch_of_two")


@nothing_to_run_on
def test_survives_peculiar_tensors(results: Results) -> None:
    hold(results, "survives_peculiar_tensors")


@nothing_to_load_on
def test_accounts_for_its_iterations(results: Results) -> None:
    hold(results, "accounts_for_its_iterations")


@nothing_to_run_on
def test_keeps_to_one_thread(results: Results) -> None:
    hold(results, "keeps_to_one_thread")


def test_every_check_has_a_test() -> None:
    assert {f"test_{check.__name__}" for check in session_checks.CHECKS} <= set(globals())


def test_probe_says_what_or_why(backend: str, probed: protocol.Probed) -> None:
    if probed.available:
        assert probed.versions
    else:
        assert probed.reason
        assert probed.hint


def test_backend_is_described(backend: str) -> None:
    kind = registry.backend(backend)
    assert kind.name == backend
    assert kind.summary
    assert kind.modules
    assert "pip install" in registry.install_hint(backend)


def test_every_option_is_described(backend: str) -> None:
    from harness.listing import option_rows

    for name, type_, _, what in option_rows(registry.backend(backend).Options):
        assert type_, name
        assert len(what) > 5, name
