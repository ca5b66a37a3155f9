"""What `harness localize` found, as a record, and how a terminal shows it."""

from __future__ import annotations

from typing import Literal

import msgspec
from tabulate import tabulate

from harness.records import Failure, OutputDrift

Outcome = Literal["clean", "located", "narrowed", "export", "no_result"]
"""Nothing drifted; drift begins at the node; it begins at the node or at one of `unseen`; the exported graph itself is
as far from eager; the backend gave no result."""


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor beside the place where drift begins. Ranges are the reference's; None where nothing is finite."""

    name: str
    shape: list[int]
    low: float | None
    high: float | None
    nan_count: int = 0
    inf_count: int = 0
    drift: OutputDrift | None = None
    """None for an input of the graph, and where it was not looked at."""


class Overflow(msgspec.Struct, frozen=True, kw_only=True):
    """Values that float16 cannot hold."""

    tensor: str
    """The first that holds such."""
    reference_max: float
    """Largest finite |value| in the float32 reference."""
    lost: int
    """Elements of the candidate that are infinite, or NaN, or at the end of the range."""
    elements: int
    seen_at: str
    """The tensor at which it was out of tolerance first."""


class Alone(msgspec.Struct, frozen=True, kw_only=True):
    """The node, or a few around it, as a model of its own that is fed by the reference."""

    folder: str
    nodes: int
    shows: bool | None
    """Whether it drifts by itself; None where that could not be tried."""
    drift: OutputDrift | None = None
    reproduce: str
    note: str = ""


class Localization(msgspec.Struct, frozen=True, kw_only=True):
    """Where drift begins."""

    model: str
    backend: str
    version: str | None = None
    precision: str
    device: str
    outcome: Outcome
    outputs: list[OutputDrift] = []
    """Of the model as it is, all input sets."""
    input_set: int | None = None
    """Which one was looked into: the one that drifted most."""
    node: str = ""
    op: str = ""
    position: int | None = None
    nodes: int = 0
    tensor: Tensor | None = None
    before: list[Tensor] = []
    overflow: Overflow | None = None
    fused: list[str] = []
    """Extra outputs that make the drift vanish: it is a fusion's doing."""
    unseen: list[str] = []
    alone: Alone | None = None
    engines: int = 0
    """How many were built."""
    notes: list[str] = []
    failure: Failure | None = None
    interrupted: bool = False
    """Whether the search was cut short: `unseen` is what was left of it, and there is no model of the node alone."""


def text(found: Localization) -> str:
    """Return what a terminal shows, ending in a newline."""
    head = f"{found.model} on {found.backend}: {found.precision}, {found.device}"
    stopped = "INTERRUPTED: this is how far the search had come." if found.interrupted else ""
    parts = [head, stopped, *found.notes, _verdict(found)]
    if found.overflow is not None:
        parts.append(_overflow(found.overflow))
    if found.tensor is not None:
        parts.append(_table(found))
    if found.alone is not None:
        parts.append(_alone(found.alone))
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(found: Localization) -> str:
    engines = f"{found.engines} engine{'s' if found.engines != 1 else ''} built"
    worst = max((row.relative_l2 or 0.0 for row in found.outputs), default=0.0)
    if found.outcome == "clean":
        return f"Nothing drifts: all outputs are within tolerance, relative L2 at most {worst:.2g} ({engines})."
    if found.outcome == "export":
        return (
            "The outputs drift from eager, but not from the exported graph run as it stands: the export is as far from "
            "eager, and this backend is not the cause."
        )
    if found.outcome == "no_result":
        assert found.failure is not None
        return f"No result: {found.failure.stage}: {found.failure.message}"
    place = f"node {found.position} of {found.nodes}, {found.op} '{found.node}'"
    where = "Drift begins at" if found.outcome == "located" else "Drift begins at or above"
    lines = [f"{where} {place} (input set {found.input_set}, {engines})."]
    if found.unseen:
        lines.append(f"Not looked at: {_few(found.unseen)}.")
    if found.fused:
        lines.append(
            f"It vanishes when {_few(found.fused)} become outputs too: it is the doing of a fusion that ends here."
        )
    return "\n".join(lines)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _overflow(found: Overflow) -> str:
    seen = "" if found.seen_at == found.tensor else f"; out of tolerance first at '{found.seen_at}'"
    reach = (
        f"the reference reaches {found.reference_max:.4g}, and float16 ends at 65504"
        if found.reference_max > 65504
        else f"the reference stays within {found.reference_max:.4g}: a sum inside the node overflows"
    )
    return f"Overflow of float16 at '{found.tensor}': {reach}; {found.lost} of {found.elements} elements lost{seen}."


def _table(found: Localization) -> str:
    assert found.tensor is not None
    rows = [_row("in", one) for one in found.before] + [_row("out", found.tensor)]
    headers = ["", "tensor", "shape", "reference low", "high", "NaN, Inf", "rel. L2", "max rel.", "check"]
    return tabulate(rows, headers=headers, disable_numparse=True)


def _row(side: str, one: Tensor) -> list[str]:
    row = one.drift
    odd = f"{one.nan_count}, {one.inf_count}" if one.nan_count or one.inf_count else "-"
    if row is None:
        numbers = ["-", "-", "given" if side == "in" else "not seen"]
    else:
        numbers = [_number(row.relative_l2), _number(row.max_rel), "pass" if row.passed else "drifted"]
    return [
        side,
        one.name,
        "x".join(map(str, one.shape)) or "scalar",
        _number(one.low),
        _number(one.high),
        odd,
        *numbers,
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _alone(alone: Alone) -> str:
    count = "that node" if alone.nodes == 1 else f"{alone.nodes} nodes"
    shows = {True: "drifts by itself", False: "does not drift by itself", None: "was not tried"}[alone.shows]
    lines = [f"A model of {count} alone {shows}: {alone.folder}", *([alone.note] if alone.note else [])]
    return "\n".join([*lines, f"  reproduce: {alone.reproduce}"])
