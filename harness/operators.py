"""What a backend's own profiler says of its operators. The one place where durations are not of the harness' clock.

They are a backend's own account of itself: for seeing where its time goes, never for comparing latencies.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

Iterate = Callable[[Callable[[], None]], None]
"""Calls what it is given once an iteration, and times each call by the harness' own clock."""
Clock = Callable[[], int]
"""The harness' clock in nanoseconds, for a framework that says when an operator begins and ends but not how long it
took."""


class OperatorTime(msgspec.Struct, frozen=True, kw_only=True):
    """One operator as a backend runs it: a kernel, a fused group, a layer. Operators do not overlap in time."""

    name: str
    """In the backend."""
    kind: str
    """The backend's word for what it does: `Conv`, `aten::conv2d`, `fused_conv2d_relu`."""
    nodes: tuple[str, ...] = ()
    """Nodes of the ONNX graph that it does the work of; several where it fuses them, none where it belongs to none,
    such as a change of layout. Several operators may do the work of one node together."""
    calls: int
    """In all profiled iterations."""
    total_ns: int
    """In all of them, without what other operators took meanwhile."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A session's operators in the order in which they run."""

    clock: str
    """Whose clock the durations are of: `ONNX Runtime's profiler`."""
    operators: list[OperatorTime]
    eliminated: dict[str, str] = {}
    """ONNX node -> why nothing runs for it: `computed while compiling`."""
    notes: list[str] = []
    """What a reader must know about how operators were told apart, or mapped to nodes."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the ONNX graph."""

    name: str
    op: str


FOLDED = "computed while compiling"
REMOVED = "removed: no output needs it"
NO_KERNEL = "no kernel of its own"
