"""What a GPU can do at most: every precision that it is asked for by default is really measured on it."""

from __future__ import annotations

import pytest

from harness import protocol, rates
from harness.ceilings import MEASURED
from tests.gpu.conftest import DEVICE

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
        reason="no NVIDIA GPU with TF32 and bfloat16 answers torch",
    ),
]


def test_every_precision_has_a_rate_and_integers_are_faster_than_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MATRIX_SIZES", {"cuda": (4096,)})
    monkeypatch.setattr(rates, "MEMORY_SIZES", {"cuda": (1 << 28,)})
    rated = rates.measure(protocol.Rates(device=DEVICE, precisions=list(MEASURED["cuda"]), threads=1))
    assert rated.refused == {} and set(rated.matrix) == set(MEASURED["cuda"])
    assert rated.matrix["int8"] > 2 * rated.matrix["fp32"]
