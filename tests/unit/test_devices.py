"""The grammar of --device, --target and --for."""

from __future__ import annotations

import pytest

from harness.devices import parse_devices, parse_targets
from harness.errors import UsageError

TWO = ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3090"]


@pytest.mark.parametrize(
    ("text", "gpus", "expected"),
    [
        ("auto", [], ["cpu"]),
        ("auto", TWO, ["cuda:0"]),
        ("cpu", TWO, ["cpu"]),
        ("cuda", TWO, ["cuda:0"]),
        ("CUDA:1, cuda:0", TWO, ["cuda:1", "cuda:0"]),
        ("cuda,cuda:0,auto", TWO, ["cuda:0"]),
        ("cpu,cuda:1", TWO, ["cpu", "cuda:1"]),
        ("cuda:7", [], ["cuda:7"]),  # no driver answers: every case says for itself what it misses
    ],
)
def test_devices(text: str, gpus: list[str], expected: list[str]) -> None:
    assert parse_devices(text, gpus) == expected


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "cpu,,cuda", "cuda:0:1"])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        parse_devices(text, TWO)


def test_a_gpu_beyond_those_that_there_are_is_refused_with_their_names() -> None:
    with pytest.raises(UsageError, match="this machine has no cuda:2") as caught:
        parse_devices("cuda:2", TWO)
    assert caught.value.hint == "it has cuda:0 (NVIDIA GeForce RTX 4090), cuda:1 (NVIDIA GeForce RTX 3090)"


@pytest.mark.parametrize(
    ("target", "card", "expected"),
    [
        (None, None, []),
        ("sm_89", None, ["sm_89"]),
        ("SM_120, sm_89,sm_120", None, ["sm_120", "sm_89"]),
        ("sm_90a", None, ["sm_90a"]),
        (None, "RTX 4090", ["sm_89"]),
        (None, "NVIDIA GeForce rtx4090,H100", ["sm_89", "sm_90"]),
        ("sm_89", "L4,A100", ["sm_89", "sm_80"]),
    ],
)
def test_targets(target: str | None, card: str | None, expected: list[str]) -> None:
    assert parse_targets(target, card) == expected


def test_what_is_no_target_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--target 8\.9 is no compute capability"):
        parse_targets("8.9", None)
    with pytest.raises(UsageError, match="unknown card 'RTX 4091'; did you mean 'RTX 4090'"):
        parse_targets(None, "RTX 4091")
