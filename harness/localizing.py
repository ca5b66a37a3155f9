"""`harness localize` from a backend's engine to a finding: probes, the search over them, and a model of the node alone.

A probe is an engine of the same graph with a few of its tensors as extra outputs. Where these make the drift vanish,
they kept the compiler from fusing, and the fusion is to blame: the graph is then cut short at one tensor a probe, so
that whatever lies above it can fuse as before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from harness import drift, protocol
from harness.artifact import Artifact
from harness.errors import HarnessError
from harness.localization import Alone, Localization, Overflow, Tensor
from harness.localize import HALF, HALF_MAX, Found, Look, first_overflow, judge_tensor, search
from harness.records import Failure, OutputDrift

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[np.generic]]

WIDENINGS = 5
"""How often the model of the node alone is made larger until it shows the drift: 1, 2, 4, 8, 16 tensors deep."""


class Lab(Protocol):
    """What builds engines and cuts graphs; `harness.probing` has the real one."""

    source: Artifact
    precision: str

    def base(self) -> list[Tensors]:
        """Return the outputs of the model as it is, a set of inputs each."""

    def survey(self, input_set: int) -> protocol.Surveyed:
        """Describe the tensors that can be looked at."""

    def reference(self, names: Sequence[str], input_set: int) -> Tensors:
        """Return what tensors should hold."""

    def probe(self, names: Sequence[str], input_set: int, *, whole: bool) -> tuple[Tensors, Tensors]:
        """Return what an engine with these outputs gives, and what it should: beside the model's own or in their place.

        Raises:
            HarnessError: The backend gave no result.
        """

    def alone(self, inputs: Sequence[str], output: str, input_set: int) -> Alone:
        """Write the float32 graph between tensors as a model with inputs, and say whether it drifts by itself."""


class Localizing:
    """One search for the place where drift begins."""

    def __init__(self, lab: Lab, blank: Localization, say: Callable[[str], None]) -> None:
        self._lab = lab
        self._blank = blank
        self._say = say
        self._engines = 0
        self._rows: dict[str, OutputDrift] = {}
        self._lost: dict[str, int] = {}
        self._input_set = 0
        self._failing: list[str] = []
        self._outputs: list[OutputDrift] = []
        self._surveyed: protocol.Surveyed | None = None
        self._seen: dict[str, bool] = {}
        """What the search has looked at: tensor -> whether it drifted."""
        self._found: Found | None = None

    def run(self) -> Localization:
        """Search. What the backend cannot do is part of the finding, and so is where Ctrl-C ended the search.

        Raises:
            KeyboardInterrupt: It was pressed before anything was known.
        """
        try:
            return self._run()
        except KeyboardInterrupt:
            if self._surveyed is None or not self._failing:
                raise
            # Without an engine more: what was seen says how far the search had come.
            found = self._found or search(
                self._surveyed.tensors, self._failing, self._with_extra_outputs, known=self._seen, looks_at_most=0
            )
            at = next(tensor for tensor in self._surveyed.tensors if tensor.name == found.tensor)
            return self._located(found, at, interrupted=True)

    def _run(self) -> Localization:
        self._say("compiling the model as it is")
        try:
            self._engines += 1
            outputs = self._lab.base()
        except HarnessError as exc:
            stage = exc.status.replace("_", " ")
            failure = Failure(stage=stage, message=exc.message, hint=exc.hint, log=exc.log)
            return self._finding("no_result", failure=failure)
        self._outputs = rows = self._judged(outputs)
        if drift.passed(rows):
            return self._finding("clean", outputs=rows, notes=_unsure(self._lab.source.manifest.deterministic))
        self._input_set = rows[drift.worst(rows) or 0].input_set
        self._surveyed = surveyed = self._lab.survey(self._input_set)
        mine = outputs[self._input_set]
        reference = self._lab.reference(surveyed.outputs, self._input_set)
        self._failing = [
            name for name in surveyed.outputs if name not in mine or not self._clean(name, mine, reference)
        ]
        if not self._failing:
            return self._finding("export", outputs=rows, notes=self._notes(), input_set=self._input_set)
        self._found = found = self._search(surveyed)
        return self._explained(found, surveyed)

    def _judged(self, outputs: list[Tensors]) -> list[OutputDrift]:
        source = self._lab.source
        return [
            row
            for index, one in enumerate(outputs)
            for row in drift.judge(
                one,
                source.reference(index),
                source.golden(index),
                precision=self._lab.precision,
                input_set=index,
                task=source.manifest.task,
            )
        ]

    def _clean(self, name: str, candidate: Tensors, reference: Tensors) -> bool:
        row = judge_tensor(name, candidate[name], reference[name], self._lab.precision, self._input_set)
        self._rows[name] = row
        values = candidate[name]
        if np.issubdtype(values.dtype, np.floating):
            with np.errstate(invalid="ignore"):
                self._lost[name] = int((~(np.abs(values.astype(np.float64)) < HALF_MAX)).sum())
        return row.passed

    # ---- the search

    def _search(self, surveyed: protocol.Surveyed) -> Found:
        found = search(surveyed.tensors, self._failing, self._with_extra_outputs)
        if not found.vanished:
            return found
        self._say("extra outputs make the drift vanish: cutting the graph short instead")
        vanished = found.vanished
        self._seen = {}
        found = search(surveyed.tensors, self._failing, self._cut_short, width=1)
        return Found(
            tensor=found.tensor,
            unseen=found.unseen,
            vanished=vanished,
            looks=found.looks,
            failures=found.failures,
        )

    def _with_extra_outputs(self, names: Sequence[str]) -> Look:
        got, reference = self._probe(names, whole=True)
        still = any(name not in got or not self._clean(name, got, reference) for name in self._failing)
        return self._look(names, got, reference, still=still)

    def _cut_short(self, names: Sequence[str]) -> Look:
        got, reference = self._probe(names, whole=False)
        return self._look(names, got, reference, still=True)

    def _look(self, names: Sequence[str], got: Tensors, reference: Tensors, *, still: bool) -> Look:
        drifted = {name: not self._clean(name, got, reference) for name in names}
        if still:
            self._seen |= drifted
        return Look(drifted=drifted, still=still)

    def _probe(self, names: Sequence[str], *, whole: bool) -> tuple[Tensors, Tensors]:
        self._engines += 1
        self._say(f"engine {self._engines}: looking at {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
        return self._lab.probe(names, self._input_set, whole=whole)

    # ---- what was found

    def _explained(self, found: Found, surveyed: protocol.Surveyed) -> Localization:
        tensors = {tensor.name: tensor for tensor in surveyed.tensors}
        overflow = self._overflow(found, tensors)
        at = tensors[overflow.tensor if overflow else found.tensor]
        return self._located(found, at, overflow=overflow, alone=self._alone(at, tensors))

    def _located(self, found: Found, at: protocol.SharedTensor, **more: object) -> Localization:
        assert self._surveyed is not None
        tensors = {tensor.name: tensor for tensor in self._surveyed.tensors}
        return self._finding(
            "narrowed" if found.unseen else "located",
            outputs=self._outputs,
            input_set=self._input_set,
            node=at.node,
            op=at.op,
            position=at.position,
            nodes=self._surveyed.nodes,
            tensor=self._tensor(at.name, tensors),
            before=[self._tensor(name, tensors) for name in at.parents],
            fused=list(found.vanished),
            unseen=list(found.unseen),
            notes=[*self._notes(), *(f"A probe failed {failure}" for failure in found.failures)],
            **more,
        )

    def _notes(self) -> list[str]:
        assert self._surveyed is not None
        return _notes(self._surveyed, self._lab.source.manifest.deterministic)

    def _overflow(self, found: Found, tensors: Mapping[str, protocol.SharedTensor]) -> Overflow | None:
        origin = first_overflow(tensors, found.tensor, self._lab.precision)
        row = self._rows.get(found.tensor)
        if origin is None and self._lab.precision == HALF and row is not None and row.inf_count + row.nan_count:
            origin = found.tensor  # within the reference's range, but not inside the node
        if origin is None:
            return None
        if origin not in self._lost:
            try:
                self._with_extra_outputs([origin])
            except HarnessError:
                return None
        if not self._lost.get(origin):
            return None  # the backend kept it in a wider type after all
        tensor = tensors[origin]
        return Overflow(
            tensor=origin,
            reference_max=max(abs(tensor.low or 0.0), abs(tensor.high or 0.0)),
            lost=self._lost[origin],
            elements=int(np.prod(tensor.shape)),
            seen_at=found.tensor,
        )

    def _alone(self, at: protocol.SharedTensor, tensors: Mapping[str, protocol.SharedTensor]) -> Alone | None:
        best = None
        inputs = list(at.parents)
        for depth in (2**power for power in range(WIDENINGS)):
            wider = _above(at.name, tensors, depth)
            if best is not None and wider == inputs:
                break
            inputs = wider
            self._say(f"a model of what lies between {', '.join(inputs[:3]) or 'constants'} and {at.name}")
            self._engines += 1
            best = self._lab.alone(inputs, at.name, self._input_set)
            if best.shows is not False:
                break
        return best

    def _tensor(self, name: str, tensors: Mapping[str, protocol.SharedTensor]) -> Tensor:
        if (known := tensors.get(name)) is not None:
            return Tensor(
                name=name,
                shape=known.shape,
                low=known.low,
                high=known.high,
                nan_count=known.nan_count,
                inf_count=known.inf_count,
                drift=self._rows.get(name),
            )
        array = self._lab.source.input_set(self._input_set)[name]
        low, high = (float(array.min()), float(array.max())) if array.size else (None, None)
        return Tensor(name=name, shape=list(array.shape), low=low, high=high)

    def _finding(self, outcome: str, **more: object) -> Localization:
        return msgspec.structs.replace(self._blank, outcome=outcome, engines=self._engines, **more)


def _above(name: str, tensors: Mapping[str, protocol.SharedTensor], depth: int) -> list[str]:
    """Return the tensors and inputs of the graph from which a tensor is computed in `depth` steps."""
    edge = [name]
    for _ in range(depth):
        edge = list(dict.fromkeys(up for one in edge for up in (tensors[one].parents if one in tensors else [one])))
    return edge


def _unsure(deterministic: bool) -> list[str]:
    if deterministic:
        return []
    return ["The reference is not deterministic: two runs of it differ, so what follows may be its own doing."]


def _notes(surveyed: protocol.Surveyed, eager: bool) -> list[str]:
    notes = _unsure(surveyed.deterministic and eager)
    if surveyed.closed:
        shown = ", ".join(surveyed.closed[:4]) + (", ..." if len(surveyed.closed) > 4 else "")
        notes.append(f"Not looked into: {shown}. What lies inside a loop or a branch counts as one node.")
    odd = next((tensor for tensor in surveyed.tensors if tensor.nan_count), None)
    if odd is not None:
        notes.append(
            f"The reference itself holds {odd.nan_count} NaN first at '{odd.name}' ({odd.op} '{odd.node}'); a "
            "candidate is asked to have them in the same places."
        )
    return notes
