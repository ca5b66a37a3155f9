"""What TensorRT says while it builds: errors sorted and shortened, and its progress."""

from __future__ import annotations

from typing import Any

import pytest

from backends.tensorrt_build import build_failure, monitor, parse_failure
from harness.errors import CompileError, OutOfMemory, UnsupportedError
from tests.fake_tensorrt import FakeParserError, FakeTensorRT


def test_unsupported_operators_are_named_with_their_nodes_and_go_first() -> None:
    errors = [
        FakeParserError("INVALID_NODE", "bad shapes", 1, "/fc", "MatMul"),
        FakeParserError("UNSUPPORTED_NODE", "false", 2, "/a/det", "Det"),
        FakeParserError("UNSUPPORTED_NODE_ATTR", "mode must be linear. In f at /_src/a.cpp:1", 3, "/up", "Resize"),
        FakeParserError("INVALID_NODE", 'creator && "Plugin not found, ..."', 4, "", "Frobnicate"),
    ]
    failure = parse_failure("case", errors)
    assert isinstance(failure, UnsupportedError)
    assert failure.message == (
        "case: no converter for 'Det' at /a/det, 'Resize' at /up (mode must be linear), 'Frobnicate' at node 4"
    )
    assert isinstance(parse_failure("case", errors[:1]), CompileError)


def test_a_long_list_of_operators_is_cut() -> None:
    errors = [FakeParserError("UNSUPPORTED_NODE", "false", index, f"/n{index}", "Det") for index in range(8)]
    assert parse_failure("case", errors).message.endswith("'Det' at /n4 and 3 more")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Error Code 2: OutOfMemory (no further information)", OutOfMemory),
        ("Could not find any implementation for node /fc; Device memory is insufficient to use tactic.", OutOfMemory),
        ("Could not find any implementation for node /fc", CompileError),
        ("Internal error; Device memory is insufficient to use tactic.", CompileError),
        ("Tactic Selection: no tactics to implement the operation within workspace limit.", CompileError),
        ("Cannot compile operation 'x' for Turing (SM75): FP32 GEMM is not supported", UnsupportedError),
        ("Internal error", CompileError),
    ],
)
def test_build_failures_are_sorted_by_what_was_logged(text: str, kind: type[Exception]) -> None:
    assert type(build_failure("case", [text])) is kind
    assert build_failure("case", []).message == "case: TensorRT gave no reason"


def test_progress_counts_the_outermost_phase_and_names_the_innermost() -> None:
    told: list[Any] = []
    watch = monitor(FakeTensorRT, lambda *step: told.append(step))
    watch.phase_start("Building engine", None, 3)
    watch.step_complete("Building engine", 0)
    watch.phase_start("Computing costs", "Building engine", 2)
    watch.phase_start("Timing nodes", "Computing costs", 40)
    assert watch.step_complete("Timing nodes", 6)
    watch.phase_finish("Timing nodes")
    watch.step_complete("Computing costs", 0)
    watch.phase_finish("Computing costs")
    watch.step_complete("Building engine", 2)
    watch.step_complete("of a phase that never began", 2)
    watch.phase_finish("Building engine")
    watch.step_complete("Building engine", 3)
    assert told == [
        ("Building engine", 0, 3),
        ("Building engine", 1, 3),
        ("Computing costs 0/2", 1, 3),
        ("Timing nodes 0/40", 1, 3),
        ("Timing nodes 7/40", 1, 3),
        ("Computing costs 1/2", 1, 3),
        ("Building engine", 3, 3),
        ("Building engine", 3, 3),
    ]
