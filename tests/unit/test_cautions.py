"""What a reader of numbers is told, most of it of a GPU's only."""

from __future__ import annotations

import msgspec
import pytest

from harness.cautions import cautions, off_device
from harness.records import Case
from harness.summary import Latency
from tests.example_runs import case, latency

GPU: Case = msgspec.structs.replace(case("eager"), device="cuda:0")


def of(ms: float, cv: float = 0.01) -> Latency:
    return msgspec.structs.replace(latency(ms * 1e6), cv=cv)


def said(case_: Case = GPU, *, outside_ms: float = 12.0, cv: float = 0.01, enqueue_ms: float = 1.0) -> str:
    return "\n".join(
        cautions(case_, compute=of(10.5, cv), device=of(10), outside=of(outside_ms), enqueue_ns=enqueue_ms * 1e6)
    )


def test_a_sound_case_gets_none() -> None:
    assert said() == ""


def test_a_host_that_enqueues_as_long_as_the_device_works_is_named_with_figures() -> None:
    assert "enqueuing takes 8.1 ms of the 10 ms" in said(enqueue_ms=8.1)
    assert said(enqueue_ms=7.9) == ""


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"cuda_graph": True}, ""),  # its replay waits for the device, or is all there is to enqueue
        ({"cuda_graphs": 1, "graph_breaks": 0}, ""),
        ({"cuda_graphs": 3, "graph_breaks": 2}, "though parts of it are CUDA graphs"),
        ({"cuda_graph": False}, "CUDA graphs take most of that away"),
        ({"cuda_graphs": 0}, "CUDA graphs take most of that away"),
    ],
)
def test_cuda_graphs_are_not_advised_where_they_run(facts: dict[str, bool | int], says: str) -> None:
    text = said(msgspec.structs.replace(GPU, facts=facts), enqueue_ms=9.9)
    assert says in text and bool(says) == bool(text)


def test_copies_that_take_longer_than_computing_are_named_with_figures() -> None:
    assert "copies in and out take 10.6 ms, more than computing (10.5 ms)" in said(outside_ms=21.1)
    assert said(outside_ms=20.9) == ""


def test_an_unsteady_card_is_named_with_its_coefficient() -> None:
    assert "coefficient of variation is 2.6%" in said(cv=0.026)
    assert said(cv=0.024) == ""


def test_nodes_off_the_device_are_counted() -> None:
    away = msgspec.structs.replace(GPU, placement={"cuda": 120, "cpu": 3})
    assert off_device(away) == 3
    assert "3 of 123 nodes do not run on cuda:0" in said(away)
    assert off_device(msgspec.structs.replace(GPU, placement={"cuda": 120})) == 0
    assert off_device(GPU) is None


@pytest.mark.parametrize(("windows_ms", "says"), [(21.0, True), (15.0, False), (6.0, True), (None, False)])
def test_a_p50_far_from_the_median_window_is_named_on_any_device(windows_ms: float | None, says: bool) -> None:
    latency_ = msgspec.structs.replace(of(10.5), window_p50_ns=windows_ms and windows_ms * 1e6)
    for one in (GPU, case("eager")):
        found = list(cautions(one, compute=latency_, device=None, outside=None, enqueue_ns=None))
        assert [text.startswith("unsteady: p50 is 10.5 ms over all samples") for text in found] == [True] * says


@pytest.mark.parametrize("worst", [{"enqueue_ms": 99.0}, {"outside_ms": 99.0}, {"cv": 0.5}])
def test_a_cpu_gets_no_caution_of_a_gpu(worst: dict[str, float]) -> None:
    assert said(case("eager"), **worst) == ""
