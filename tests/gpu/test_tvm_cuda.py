"""TVM on a GPU: default schedules, CUDA graphs, tuning on the device, and engines that load without a compiler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends import tvm_cubin, tvm_cuda, tvm_measure
from backends.cuda_device import Gpu
from backends.tvm import TVM, Options
from harness import drift
from harness.api import CompileRequest, Session
from harness.artifact import Artifact
from tests.fake_gpu.tvm_checks import kernel
from tests.gpu.conftest import DEVICE

pytestmark = pytest.mark.gpu

Ask = Callable[..., CompileRequest]


@pytest.fixture
def ask(gpu: Gpu, tiny: Artifact, tmp_path: Path) -> Ask:
    """Return requests for the tiny model, untuned unless told otherwise."""
    pytest.importorskip("tvm")
    if DEVICE not in (answer := TVM.probe()).devices:
        pytest.skip(str(answer.reason))

    def request(**options: Any) -> CompileRequest:
        return CompileRequest(
            artifact=tiny,
            options=Options(**{"tuner": "none"} | options),
            device=DEVICE,
            threads=4,
            engine_dir=tmp_path / "engine",
            cache_dir=tmp_path / "cache",
            stage=lambda _: contextlib.nullcontext(),
            progress=lambda *_: None,
        )

    return request


def check_outputs(session: Session, artifact: Artifact) -> None:
    """Hold every input set against the reference, twice: a CUDA graph is replayed from the second run on."""
    for index in (0, *range(artifact.manifest.input_sets)):
        session.bind(artifact.input_set(index))
        session.execute()
        session.synchronize()
        rows = drift.judge(
            session.outputs(), reference=artifact.reference(index), golden=artifact.golden(index), input_set=index
        )
        assert all(row.passed for row in rows), [row.reason for row in rows]


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_default_schedules_agree(cuda_graph: bool, ask: Ask, gpu: Gpu) -> None:
    request = ask(cuda_graph=cuda_graph)
    with TVM().compile(request) as session:
        assert session.provider == f"cuda {gpu.target}, dlight" + (", CUDA graph" if cuda_graph else "")
        placement = session.placement()
        assert placement and set(placement) == {"cuda"}
        assert session.stream
        check_outputs(session, request.artifact)


def test_a_saved_engine_needs_no_compiler(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ask()
    with TVM().compile(request) as session:
        session.save(request.engine_dir)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(tvm_cubin.Assembler, "cubin", lambda self, source: pytest.fail("it was compiled again"))
    with TVM().load(request.engine_dir, request) as loaded:
        check_outputs(loaded, request.artifact)


def test_tuned_kernels_agree(ask: Ask) -> None:
    request = ask(tuner="meta-schedule", trials=24, tuning_seconds=300.0)
    with TVM().compile(request) as session:
        facts = session.facts()
        assert facts["trials"] == 24 and int(str(facts["failed_trials"])) < 24, session.notes()
        check_outputs(session, request.artifact)
    with TVM().compile(request) as again:
        assert again.facts()["trials"] == 24, "a budget that is spent is not spent again"
        check_outputs(again, request.artifact)


def test_a_kernel_that_does_not_fit_is_a_failed_trial(ask: Ask) -> None:
    import tvm

    request = ask()
    target = tvm_cuda.target_of(tvm.cuda(0))
    workers = tvm_measure.Workers(1, request.device)
    try:
        first, large, last = workers.measure([kernel(64, target), kernel(2048, target), kernel(64, target)])
    finally:
        workers.close()
    assert isinstance(large, str), "no GPU has blocks of 2048 threads"
    assert isinstance(first, list) and isinstance(last, list), (first, last)
    assert 0 < first[0] < 1
