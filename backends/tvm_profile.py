"""What TVM's kernels take, and which nodes of the ONNX graph each of them does the work of.

TVM has no profiler of its own any more: its virtual machine calls back before and after each call, and the harness'
clock is read there. No name of the graph survives compilation, and a kernel may work in another layout. So a kernel is
found again by its result: in one run beside the timed ones it is held against every tensor of the graph as ONNX Runtime
computes it, by figures that do not depend on the order of elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.api import Artifact
from harness.errors import HarnessError
from harness.graph_nodes import NodeGraph, adopt, cover, read_graph
from harness.operators import Clock, Iterate, OperatorTime, Profile

if TYPE_CHECKING:
    import numpy as np

CLOCK = "the harness' clock at TVM's callbacks"
CLOCK_ON_DEVICE = "the harness' clock at TVM's callbacks, waiting for the device after each kernel"
BUILTIN = "vm.builtin"
TOLERANCE = 1e-3
"""By which a kernel's figures may differ from those of the tensor that it computes, relative to its size."""

Figures = tuple[float, ...]


@dataclass
class Watch:
    """Durations of the virtual machine's calls: a call that makes others counts without them."""

    clock: Clock
    wait: Callable[[], None]
    iterations: list[list[tuple[str, int]]] = field(default_factory=list)
    _open: list[list[int]] = field(default_factory=list)

    def begin(self) -> None:
        """Start an iteration."""
        self.iterations.append([])

    def __call__(self, function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
        """Hear from the virtual machine; 0 means that it goes on."""
        if before:
            self._open.append([self.clock(), 0])
            return 0
        self.wait()
        start, inside = self._open.pop()
        took = self.clock() - start
        if self._open:
            self._open[-1][1] += took
        self.iterations[-1].append((str(name), took - inside))
        return 0


@dataclass
class Look:
    """One run's kernels: names, figures of their results, and which later one reads each result."""

    wait: Callable[[], None]
    names: list[str] = field(default_factory=list)
    results: list[Figures] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    readers: list[int | None] = field(default_factory=list)
    _writers: dict[int, int] = field(default_factory=dict)

    def __call__(self, function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
        """Hear from the virtual machine: a kernel's last tensor is its result."""
        tensors = [one for one in arguments if hasattr(one, "data_ptr")]
        if before or str(name).startswith(BUILTIN) or not tensors:
            return 0
        index = len(self.names)
        for tensor in tensors[:-1]:
            writer = self._writers.get(tensor.data_ptr())
            if writer is not None and self.readers[writer] is None:
                self.readers[writer] = index
        self._writers[tensors[-1].data_ptr()] = index
        self.wait()  # TVM copies on the default stream, which does not wait for the one that kernels are on
        value = tensors[-1].numpy()
        self.names.append(str(name))
        self.results.append(figures(value))
        self.shapes.append(tuple(value.shape))
        self.readers.append(None)
        return 0


def profile(
    machine: Any,  # a virtual machine of its own: instruments stay
    run: Callable[[], object],
    iterate: Iterate,
    clock: Clock,
    artifact: Artifact,
    *,
    wait: Callable[[], None] | None = None,
) -> Profile:
    """Return what the calls of a virtual machine take. `wait` waits for its device; None: there is none."""
    finished = wait or (lambda: None)
    watch = Watch(clock, finished)

    def once() -> None:
        watch.begin()
        run()

    run()
    machine.set_instrument(watch)
    iterate(once)
    operators = totals(watch.iterations)
    look = Look(finished)
    machine.set_instrument(look)
    run()
    kernels = [one.name for one in operators if one.kind != BUILTIN]
    notes: list[str] = []
    eliminated: dict[str, str] = {}
    try:
        if kernels != look.names:
            raise HarnessError("its kernels differ from run to run")
        graph = read_graph(artifact.onnx_path)
        found = anchors(look, graph, artifact)
        covered, eliminated = cover(graph, [own or () for own in found])
        covered = adopt(covered, look.readers, {index for index, own in enumerate(found) if own is None})
        operators = _with(operators, covered)
    except (HarnessError, ImportError) as exc:
        notes.append(f"kernels were not mapped to nodes of the graph: {exc}")
    return Profile(
        clock=CLOCK if wait is None else CLOCK_ON_DEVICE, operators=operators, eliminated=eliminated, notes=notes
    )


def totals(iterations: Sequence[Sequence[tuple[str, int]]]) -> list[OperatorTime]:
    """Return each kernel by its place in the run, or by its name where runs differ, and all built-in calls as one."""
    kernels = [[call for call in calls if not call[0].startswith(BUILTIN)] for calls in iterations]
    same = len({tuple(name for name, _ in calls) for calls in kernels}) == 1
    found: dict[tuple[int, str], list[int]] = {}
    for calls in kernels:
        for place, (name, took) in enumerate(calls):
            found.setdefault((place if same else 0, name), []).append(took)
    out = [
        OperatorTime(name=name, kind=name.rstrip("0123456789"), calls=len(took), total_ns=sum(took))
        for (_, name), took in found.items()
    ]
    builtin = [took for calls in iterations for name, took in calls if name.startswith(BUILTIN)]
    if builtin:
        out.append(OperatorTime(name=f"{BUILTIN}.*", kind=BUILTIN, calls=len(builtin), total_ns=sum(builtin)))
    return out


def _with(operators: Sequence[OperatorTime], covered: Sequence[tuple[str, ...]]) -> list[OperatorTime]:
    import msgspec

    kernels = iter(covered)
    return [one if one.kind == BUILTIN else msgspec.structs.replace(one, nodes=next(kernels)) for one in operators]


def anchors(look: Look, graph: NodeGraph, artifact: Artifact) -> list[set[int] | None]:
    """Return for each kernel the node whose result it computes, as `matched()` does.

    Raises:
        HarnessError: ONNX Runtime, which says what each node computes, is missing or cannot run the graph.
    """
    from harness.graph_cuts import Reference, batches

    reference = Reference(artifact)
    inputs = artifact.input_set(0)
    known: dict[str, tuple[Figures, tuple[int, ...]]] = {}
    for names in batches(reference.watched, reference):
        for name, value in reference.run(names, inputs).items():
            known[name] = figures(value), tuple(value.shape)
    maker = graph.maker()
    candidates = sorted((maker[name], *of) for name, of in known.items() if name in maker)
    given = [figures(value) for value in inputs.values()]
    return matched(look.results, look.shapes, candidates, given)


def matched(
    results: Sequence[Figures],
    shapes: Sequence[tuple[int, ...]],
    candidates: Sequence[tuple[int, Figures, tuple[int, ...]]],
    given: Sequence[Figures],
) -> list[set[int] | None]:
    """Return for each result the position of the node that computes the same, or an empty set where none does.

    None: it is what there was already, in another layout.

    Args:
        results: In order of execution.
        shapes: Theirs.
        candidates: Position, figures and shape of each tensor of the graph, by position.
        given: Figures of the graph's inputs.
    """
    taken: set[int] = set()
    out: list[set[int] | None] = []
    kernels = list(zip(results, shapes, strict=True))
    for index, (result, shape) in enumerate(kernels):
        alike = [(position, of) for position, wanted, of in candidates if close(result, wanted)]
        free = [(position, of) for position, of in alike if position not in taken]
        if not free:
            out.append(None if alike or any(close(result, one) for one in given) else set())
            continue
        # A tensor and its views are alike, and the shape tells them apart; so are those before and after a bias of
        # zeros. Of these the last kernel computes the last one.
        fitting = [position for position, of in free if of == shape] or [position for position, _ in free]
        later = sum(of == shape and close(one, result) for one, of in kernels[index + 1 :])
        chosen = fitting[max(0, len(fitting) - 1 - later)]
        taken.add(chosen)
        out.append({chosen})
    return out


def figures(value: np.ndarray) -> Figures:
    """Return what does not change when elements change places: how many, and of the finite ones mean, rms and range."""
    import numpy as np

    if not np.issubdtype(value.dtype, np.floating):
        return ()
    finite = value[np.isfinite(value)].astype(np.float64)
    if not finite.size:
        return (float(value.size), 0.0)
    return (
        float(value.size),
        float(finite.size),
        float(finite.mean()),
        float(np.abs(finite).mean()),
        float(np.sqrt(np.square(finite).mean())),
        float(finite.min()),
        float(finite.max()),
    )


def close(one: Figures, other: Figures) -> bool:
    """Say whether two tensors hold the same values as far as their figures tell."""
    if len(one) != len(other) or not one or one[:2] != other[:2]:
        return False
    scale = max(map(abs, (*one[2:], *other[2:])), default=0.0)
    rms = max(one[4], other[4]) if len(one) > 4 else 0.0
    sizes = (rms, rms, rms, scale, scale)
    return all(abs(a - b) <= TOLERANCE * size for a, b, size in zip(one[2:], other[2:], sizes, strict=len(one) > 2))
