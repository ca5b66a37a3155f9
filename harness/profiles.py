"""Profiles side by side: which operators stand in one row, what is fused, what is left over. Pure functions.

A fused operator's time cannot be parted among its nodes. It stands in the row of its *leading* node, the one with the
most arithmetic, and the others say where their time is: never a zero for work that is done elsewhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from harness.operators import Node, OperatorTime, Profile
from harness.records import Failure, Status

PROFILE_SCHEMA = 1
By = Literal["node", "op", "group"]
HEAVY = (
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "MatMul", "Gemm", "MatMulInteger", "QLinearMatMul",
    "Einsum", "Attention", "LSTM", "GRU", "RNN",
)  # fmt: skip
"""Operators that lead a fused group, before all others."""
MIDDLE = (
    "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization",
    "Softmax", "LogSoftmax", "MaxPool", "AveragePool", "GlobalAveragePool", "Erf", "Gelu", "Resize",
)  # fmt: skip
"""Those that lead one before what only goes over its elements."""
LIGHT = (
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Constant", "Shape", "Slice",
    "Concat", "Split", "Expand", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip
"""Those that lead one only where there is nothing else."""


class CaseProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What one backend's profiler said of it, or why it said nothing."""

    id: str
    backend: str
    status: Status
    failure: Failure | None = None
    version: str | None = None
    provider: str | None = None
    device: str
    precision: str
    threads: int
    engine_reused: bool = False
    """Whether the engine was there already."""
    plain_ns: list[int] = []
    """Iterations without the profiler, in the same process before it was turned on, by the harness' clock."""
    profiled_ns: list[int] = []
    """Iterations with it, by the harness' clock."""
    profile: Profile | None = None
    nodes: list[Node] = []
    """Of the graph that this case was compiled from."""

    @property
    def iterations(self) -> int:
        """How often it ran under the profiler."""
        return len(self.profiled_ns)

    def per_iteration(self, operator: OperatorTime) -> float:
        """Return the nanoseconds that an operator takes in one iteration."""
        return operator.total_ns / max(1, self.iterations)

    @property
    def iteration_ns(self) -> float:
        """Mean of one iteration under the profiler, by the harness' clock."""
        return statistics.fmean(self.profiled_ns) if self.profiled_ns else 0.0

    @property
    def plain_median_ns(self) -> float | None:
        """Median of one iteration without the profiler."""
        return statistics.median(self.plain_ns) if self.plain_ns else None

    @property
    def explained_ns(self) -> float:
        """What all operators take in one iteration."""
        return sum(self.per_iteration(one) for one in self.profile.operators) if self.profile else 0.0

    @property
    def unexplained(self) -> float | None:
        """Share of a profiled iteration that no operator took; below 0 where they add up to more than there was."""
        return 1 - self.explained_ns / self.iteration_ns if self.profile and self.iteration_ns else None

    @property
    def overhead(self) -> float | None:
        """By how much an iteration under the profiler takes longer, as a share of one without."""
        plain = self.plain_median_ns
        return statistics.median(self.profiled_ns) / plain - 1 if plain and self.profiled_ns else None


class WorkloadProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One model at one shape on one device."""

    key: str
    model: str
    device: str
    dims: dict[str, int] = {}
    cases: list[CaseProfile] = []
    failure: Failure | None = None
    notes: list[str] = []


class ProfileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `profile.json` holds."""

    schema: int = PROFILE_SCHEMA
    id: str
    created: str
    harness: str
    command: str
    run: str | None = None
    """The comparison whose cases were profiled."""
    cpu: str
    iterations: int
    state: Literal["running", "finished", "interrupted"]
    workloads: list[WorkloadProfile] = []


# ---- what becomes of each node


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a node in one backend."""

    kind: Literal["own", "leads", "fused", "eliminated", "unseen"]
    """`own`: operators do it and nothing else. `leads`: it stands for a fused group. `fused`: it is in another's."""
    ns: float | None = None
    """Of one iteration, of all operators that this node leads."""
    other: str = ""
    """The leading node of the group that it is in, or why nothing runs for it."""
    others: int = 0
    """Nodes that it leads besides itself."""


def leading(nodes: Sequence[str], ops: dict[str, str]) -> str:
    """Return the node that stands for a group."""

    def rank(name: str) -> int:
        op = ops.get(name, "")
        return 0 if op in HEAVY else 1 if op in MIDDLE else 3 if op in LIGHT else 2

    return min(nodes, key=rank)  # the first of equals


def operators_of(case: CaseProfile) -> list[OperatorTime]:
    """Return the operators of a case, none where it has no profile."""
    return case.profile.operators if case.profile else []


def ops_of(workload: WorkloadProfile) -> dict[str, str]:
    """Return node -> operator over all cases: those of the graph as it was exported first."""
    found: dict[str, str] = {}
    for case in sorted(workload.cases, key=lambda one: len(one.nodes)):
        for node in case.nodes:
            found.setdefault(node.name, node.op)
    return found


def fates(case: CaseProfile, ops: dict[str, str]) -> dict[str, Fate]:
    """Return what became of each node of the graph that a case was compiled from."""
    if case.profile is None:
        return {}
    led: dict[str, float] = {}
    members: dict[str, set[str]] = {}
    leader: dict[str, str] = {}
    for operator in case.profile.operators:
        if not operator.nodes:
            continue
        head = leading(operator.nodes, ops)
        led[head] = led.get(head, 0.0) + case.per_iteration(operator)
        members.setdefault(head, set()).update(operator.nodes)
        for name in operator.nodes:
            leader.setdefault(name, head)
    out: dict[str, Fate] = {}
    for name in [node.name for node in case.nodes] or list(leader):
        if name in led:
            others = len(members[name]) - 1
            out[name] = Fate(kind="leads" if others else "own", ns=led[name], others=others)
        elif name in leader:
            out[name] = Fate(kind="fused", other=leader[name])
        elif name in case.profile.eliminated:
            out[name] = Fate(kind="eliminated", other=case.profile.eliminated[name])
        else:
            out[name] = Fate(kind="unseen")
    return out


# ---- rows


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A case in a row."""

    ns: float | None = None
    share: float | None = None
    """Of the profiled iteration."""
    said: str = ""
    """What to show in place of a time, or beside it."""


class ProfileRow(msgspec.Struct, frozen=True, kw_only=True):
    """One node, operator type or common group over all cases."""

    name: str
    op: str
    nodes: list[str] = []
    entries: dict[str, Entry] = {}
    """Case -> what it took there."""

    @property
    def weight(self) -> float:
        """The largest share that it has in any case."""
        return max((entry.share or 0.0 for entry in self.entries.values()), default=0.0)


def rows(workload: WorkloadProfile, by: By) -> list[ProfileRow]:
    """Return all rows, those that take the largest share in some case first."""
    makers: dict[By, Callable[[WorkloadProfile], Iterable[ProfileRow]]] = {
        "node": _by_node,
        "op": _by_op,
        "group": _by_group,
    }
    return sorted(makers[by](workload), key=lambda row: -row.weight)


def _by_node(workload: WorkloadProfile) -> Iterable[ProfileRow]:
    ops = ops_of(workload)
    known = {case.id: fates(case, ops) for case in workload.cases if case.profile}
    for name, op in ops.items():
        entries = {case.id: _entry(case, known[case.id].get(name)) for case in workload.cases if case.id in known}
        yield ProfileRow(name=name, op=op, nodes=[name], entries=entries)


def _entry(case: CaseProfile, fate: Fate | None) -> Entry:
    if fate is None:
        return Entry(said="not in its graph")
    if fate.ns is not None:
        said = f"+{fate.others}" if fate.others else ""
        return Entry(ns=fate.ns, share=fate.ns / case.iteration_ns, said=said)
    if fate.kind == "fused":
        return Entry(said=f"in {fate.other}")
    return Entry(said=fate.other or "not seen")


def _by_op(workload: WorkloadProfile) -> Iterable[ProfileRow]:
    ops = ops_of(workload)
    names: dict[str, None] = {}
    found: dict[tuple[str, str], list[float]] = {}
    for case in workload.cases:
        for operator in operators_of(case):
            op = ops.get(leading(operator.nodes, ops), "?") if operator.nodes else f"({operator.kind})"
            names[op] = None
            found.setdefault((op, case.id), []).append(case.per_iteration(operator))
    for op in names:
        entries = {}
        for case in workload.cases:
            if case.profile:
                took = found.get((op, case.id), [])
                entries[case.id] = _summed(took, case) if took else Entry(said=_whereabouts(op, case, ops))
        yield ProfileRow(name=op, op=op, entries=entries)


def _whereabouts(op: str, case: CaseProfile, ops: dict[str, str]) -> str:
    """Return what became of all nodes of an operator that leads no group."""
    if any(ops.get(name) == op for operator in operators_of(case) for name in operator.nodes):
        return "fused"
    gone = case.profile.eliminated if case.profile else {}
    return next((reason for name, reason in gone.items() if ops.get(name) == op), "none")


def _summed(took: Sequence[float], case: CaseProfile) -> Entry:
    if not took:
        return Entry(said="none")
    return Entry(ns=sum(took), share=sum(took) / case.iteration_ns, said=f"{len(took)}x")


def _by_group(workload: WorkloadProfile) -> Iterable[ProfileRow]:
    """Yield the smallest groups of nodes that no backend's operator reaches out of: only these compare one to one."""
    ops = ops_of(workload)
    parent = {name: name for name in ops}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for case in workload.cases:
        for operator in operators_of(case):
            for name in operator.nodes[1:]:
                parent[root(name)] = root(operator.nodes[0])
    groups: dict[str, list[str]] = {}
    for name in ops:
        groups.setdefault(root(name), []).append(name)
    for key, members in groups.items():
        entries = {}
        for case in workload.cases:
            if case.profile:
                own = [one for one in case.profile.operators if one.nodes and root(one.nodes[0]) == key]
                entries[case.id] = _summed([case.per_iteration(one) for one in own], case)
        head = leading(members, ops)
        yield ProfileRow(name=head, op=kinds(members, ops), nodes=members, entries=entries)


def kinds(nodes: Sequence[str], ops: dict[str, str]) -> str:
    """Return the operators of a group in the order of the graph, each once: `Conv+Add+Relu`."""
    return "+".join(dict.fromkeys(ops.get(name, "?") for name in nodes))
