"""Profiles side by side: rows, fates of nodes, shares, and the report of them."""

from __future__ import annotations

import csv
import io

import msgspec
import pytest

from harness.operators import FOLDED, Node, OperatorTime, Profile
from harness.profiles import CaseProfile, ProfileRecord, WorkloadProfile, fates, leading, ops_of, rows
from harness.records import Failure
from reports.profile import profile as rendered

NODES = {"c0": "Conv", "r0": "Relu", "c1": "Conv", "a1": "Add", "v": "Reshape", "k": "Shape", "m": "MatMul"}


def operator(name: str, nodes: tuple[str, ...], ms: float, kind: str = "Kind") -> OperatorTime:
    return OperatorTime(name=name, kind=kind, nodes=nodes, calls=2, total_ns=round(2 * ms * 1e6))


def case(id_: str, operators: list[OperatorTime], *, iteration_ms: float = 10.0, **more: object) -> CaseProfile:
    made = CaseProfile(
        id=id_,
        backend=id_,
        status="ok",
        version="1.0",
        provider="p",
        device="cpu",
        precision="fp32",
        threads=1,
        plain_ns=[8_000_000, 8_000_000, 9_000_000],
        profiled_ns=[round(iteration_ms * 1e6)] * 2,
        profile=Profile(clock=f"{id_}'s clock", operators=operators, eliminated={"k": FOLDED}),
        nodes=[Node(name=name, op=op) for name, op in NODES.items()],
    )
    return msgspec.structs.replace(made, **more)


APART = case(
    "apart",
    [
        operator("conv", ("c0",), 3.0),
        operator("relu", ("r0",), 0.5),
        operator("conv again", ("c1",), 2.0),
        operator("norm", ("c1",), 1.0),
        operator("add", ("a1",), 0.25),
        operator("view", ("v",), 0.25),
        operator("matmul", ("m",), 1.0),
    ],
)
FUSED = case(
    "fused",
    [
        operator("conv_relu", ("c0", "r0"), 1.0),
        operator("conv_add", ("c1", "a1"), 2.0),
        operator("reorder", (), 1.0, kind="Reorder"),
        operator("matmul", ("v", "m"), 4.0),
    ],
)
GONE = CaseProfile(
    id="gone",
    backend="gone",
    status="unsupported",
    failure=Failure(stage="profile", message="it has | no <profiler>\x1b[31m"),
    device="cpu",
    precision="fp32",
    threads=1,
)
WORKLOAD = WorkloadProfile(key="toy", model="toy", device="cpu", cases=[APART, FUSED, GONE])


def record(workload: WorkloadProfile = WORKLOAD, **more: object) -> ProfileRecord:
    made = ProfileRecord(
        id="r",
        created="2026-01-01T00:00:00+00:00",
        harness="1",
        command="harness profile",
        cpu="a CPU",
        iterations=2,
        state="finished",
        workloads=[workload],
    )
    return msgspec.structs.replace(made, **more)


def test_the_node_with_most_arithmetic_leads() -> None:
    assert leading(["r0", "c0"], NODES) == "c0"
    assert leading(["v", "a1"], NODES) == "a1"
    assert leading(["a1", "n"], {**NODES, "n": "LayerNormalization"}) == "n"
    assert leading(["c0", "m"], NODES) == "c0", "of equals the first"


def test_shares_add_up() -> None:
    assert APART.explained_ns == 8e6
    assert APART.unexplained == pytest.approx(0.2)
    assert APART.overhead == pytest.approx(0.25)
    assert GONE.unexplained is None
    assert sum(row.entries["apart"].share or 0 for row in rows(WORKLOAD, "node")) == pytest.approx(0.8)
    own = 0.1
    assert sum(row.entries["fused"].share or 0 for row in rows(WORKLOAD, "node")) == pytest.approx(0.8 - own)
    assert sum(row.entries["fused"].share or 0 for row in rows(WORKLOAD, "op")) == pytest.approx(0.8)


def test_every_node_has_a_fate() -> None:
    found = fates(FUSED, ops_of(WORKLOAD))
    assert {name: one.kind for name, one in found.items()} == {
        "c0": "leads",
        "r0": "fused",
        "c1": "leads",
        "a1": "fused",
        "v": "fused",
        "k": "eliminated",
        "m": "leads",
    }
    assert found["r0"].other == "c0"
    assert fates(APART, ops_of(WORKLOAD))["c1"].ns == 3e6, "of both of its operators"
    nobody = msgspec.structs.replace(FUSED, profile=Profile(clock="", operators=[]))
    assert {one.kind for one in fates(nobody, ops_of(WORKLOAD)).values()} == {"unseen"}


def test_rows_by_node_say_where_a_time_is_and_never_zero() -> None:
    found = {row.name: row for row in rows(WORKLOAD, "node")}
    assert next(row.name for row in rows(WORKLOAD, "node")) == "m", "40 % of one backend"
    assert found["r0"].entries["fused"].ns is None
    assert found["r0"].entries["fused"].said == "in c0"
    assert found["k"].entries["apart"].said == FOLDED
    assert found["c0"].entries["fused"].said == "+1"
    assert "gone" not in found["c0"].entries
    assert all(entry.ns is None or entry.ns > 0 for row in found.values() for entry in row.entries.values())


def test_rows_by_operator_count_a_group_where_it_leads() -> None:
    found = {row.name: row for row in rows(WORKLOAD, "op")}
    assert found["Conv"].entries["fused"].ns == 3e6
    assert found["Conv"].entries["apart"].said == "3x"
    assert found["(Reorder)"].entries["fused"].ns == 1e6
    assert found["(Reorder)"].entries["apart"].said == "none"
    assert found["Relu"].entries["fused"].said == "fused"


def test_rows_by_group_are_the_same_work_in_every_backend() -> None:
    found = {row.name: row for row in rows(WORKLOAD, "group")}
    assert found["c0"].nodes == ["c0", "r0"]
    assert (found["c0"].entries["apart"].ns, found["c0"].entries["fused"].ns) == (3.5e6, 1e6)
    assert (found["m"].op, found["m"].entries["apart"].ns) == ("Reshape+MatMul", 1.25e6)


@pytest.mark.parametrize("by", ["node", "op", "group"])
@pytest.mark.parametrize("format_", ["terminal", "markdown"])
def test_the_report_says_whose_clock_what_is_unexplained_and_why_a_backend_is_missing(by: str, format_: str) -> None:
    text = rendered(record(), by=by, top=3, format_=format_)  # type: ignore[arg-type]  # one of the three
    assert "no latencies" in text
    assert "apart's clock" in text
    assert "20 %" in text
    assert "unsupported" in text
    assert "\x1b" not in text
    assert "1x Reorder" in text
    assert f"{FOLDED}: 1 Shape" in text
    assert "0.000" not in text


def test_fused_groups_are_listed_with_their_nodes() -> None:
    text = rendered(record(), by="node", top=7, format_="terminal")
    assert "Conv+Relu: c0, r0" in text
    assert "Reshape+MatMul: v, m" in text


def test_operators_that_overlap_are_said_to() -> None:
    over = case("over", [operator("all", ("c0",), 12.0)])
    text = rendered(
        record(WorkloadProfile(key="t", model="t", device="cpu", cases=[over])), by="node", top=1, format_="terminal"
    )
    assert "operators overlap" in text


def test_no_profile_at_all_is_a_table_of_reasons() -> None:
    text = rendered(
        record(WorkloadProfile(key="t", model="t", device="cpu", cases=[GONE])), by="op", top=5, format_="terminal"
    )
    assert "it has | no <profiler>" in text
    assert "Rows are ordered" not in text


def test_an_interrupted_profile_says_so() -> None:
    assert "INTERRUPTED" in rendered(record(state="interrupted"), by="op", top=5, format_="terminal")


def test_csv_has_one_line_an_operator() -> None:
    lines = list(csv.DictReader(io.StringIO(rendered(record(), by="node", top=1, format_="csv"))))
    assert len(lines) == 11
    assert lines[7]["nodes"] == "c0 r0"
    assert lines[7]["ops"] == "Conv+Relu"
    assert float(lines[7]["iteration_ns"]) == 1e6
    assert float(lines[7]["share"]) == pytest.approx(0.1)
