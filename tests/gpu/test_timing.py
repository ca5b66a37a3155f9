"""The three boundaries on a GPU: their order, and a kernel whose length is known."""

from __future__ import annotations

import importlib
import json
import statistics
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.api import Session
from harness.measure import DeviceTimer, sample, sample_device
from tests.gpu.conftest import DEVICE
from tests.support import Cli

pytestmark = pytest.mark.gpu

KERNEL_MS = 5.0


class Sleeper(Session):
    """Enqueues one kernel that spins until the GPU's own nanosecond timer has advanced by a given time."""

    provider = "triton"

    def __init__(self, ms: float) -> None:
        torch: Any = importlib.import_module("torch")
        self._torch = torch
        self._kernel = _spin()
        self._ns = int(ms * 1e6)
        self._queue = torch.cuda.Stream(DEVICE)
        self._sink = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        self.stream = self._queue.cuda_stream

    def save(self, engine_dir: Path) -> None:
        raise AssertionError("not while measuring")

    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        pass

    def execute(self) -> None:
        with self._torch.cuda.stream(self._queue):
            self._kernel[(1,)](self._sink, self._ns)

    def synchronize(self) -> None:
        self._queue.synchronize()

    def outputs(self) -> dict[str, np.ndarray]:
        return {}


def _spin() -> Any:
    triton: Any = pytest.importorskip("triton", reason="the kernel of known length is written in Triton")
    language: Any = importlib.import_module("triton.language")
    extra: Any = importlib.import_module("triton.language.extra.cuda")

    def spin(sink: Any, ns: Any) -> None:
        begin = extra.globaltimer()
        now = begin
        while now - begin < ns:
            now = extra.globaltimer()
        language.store(sink, now - begin)

    # Triton looks names up where the function was defined.
    spin.__globals__.update(extra=extra, language=language)
    return triton.jit(spin)


@pytest.fixture(scope="module")
def sleeper() -> Iterator[Sleeper]:
    session = Sleeper(KERNEL_MS)
    for _ in range(3):  # compiled at its first call
        session.execute()
    session.synchronize()
    yield session


def test_a_kernel_of_known_length_is_timed_to_three_percent(sleeper: Sleeper) -> None:
    assert sleeper.stream is not None
    durations, enqueued = sample_device(sleeper, DeviceTimer(sleeper.stream, 0), min_iterations=40, min_seconds=0.2)
    assert statistics.median(durations) / 1e6 == pytest.approx(KERNEL_MS, rel=0.03)
    assert statistics.median(enqueued) < 0.5 * statistics.median(durations), "the host does not wait for the kernel"


def test_the_host_sees_at_least_what_the_device_takes(sleeper: Sleeper) -> None:
    assert sleeper.stream is not None
    on_device, _ = sample_device(sleeper, DeviceTimer(sleeper.stream, 0), min_iterations=40, min_seconds=0.2)
    by_host = sample(sleeper, {}, boundary="compute", min_iterations=40, min_seconds=0.2)
    # Half a microsecond is what two events resolve.
    assert statistics.median(on_device) <= statistics.median(by_host) + 500


def test_the_boundaries_are_in_order_for_every_backend(cli: Cli) -> None:
    done = cli(
        "compare", "--model", "resnet50", "--device", "cuda", "--backends", "all", "--quick", "--json", timeout=1500
    )
    rows = [row for row in json.loads(done.stdout)["workloads"][0]["rows"] if row["status"] == "ok"]
    assert rows, done.stderr
    for row in rows:
        boundaries = [row[name]["p50_ns"]["value"] for name in ("on_device", "compute", "host_to_host") if row[name]]
        slack = [1.03 * later + 2000 - earlier for earlier, later in pairwise(boundaries)]
        assert all(value >= 0 for value in slack), (row["id"], boundaries)
        assert row["device"] == DEVICE
