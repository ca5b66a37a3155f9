"""What every session must do, run in one process: `session_checks.py BACKEND DEVICE ARTIFACT BATCH2 PECULIAR FOLDER`.

Prints one JSON object: check -> null, or [kind of exception, message]. Each check is a function below whose docstring
is the rule it holds the backend to.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import msgspec
import numpy as np

from harness import drift, registry
from harness.api import CompileRequest, Session
from harness.artifact import Artifact
from harness.errors import RunError, UnsupportedError
from harness.graph_nodes import read_graph
from harness.measure import profile

QUICK_OPTIONS = {"tvm": {"tuner": "none"}}
"""Options that keep the suite short; tuning has tests of its own."""


class Subject:
    """A backend under test and the sessions that checks share."""

    def __init__(self, name: str, device: str, artifact: Path, batch2: Path, peculiar: Path, folder: Path) -> None:
        self.kind = registry.backend(name)
        self.device = device
        self.options = msgspec.convert(QUICK_OPTIONS.get(name, {}), type=self.kind.Options)
        self.artifact = Artifact.open(artifact)
        self.batch2 = Artifact.open(batch2)
        self.peculiar = Artifact.open(peculiar)
        self.folder = folder
        self.stages: list[str] = []
        self._sessions: dict[str, Session] = {}

    def request(self, artifact: Artifact, engine: str, threads: int = 1) -> CompileRequest:
        @contextlib.contextmanager
        def stage(name: str):  # type: ignore[no-untyped-def]  # a generator that only marks
            self.stages.append(name)
            yield

        folder = self.folder / engine
        folder.mkdir(parents=True, exist_ok=True)
        return CompileRequest(
            artifact=artifact,
            options=self.options,
            device=self.device,
            threads=threads,
            engine_dir=folder,
            cache_dir=self.folder / "cache",
            stage=stage,
            progress=lambda text, done, total: None,
        )

    def compiled(self) -> Session:
        if "compiled" not in self._sessions:
            self._sessions["compiled"] = self.kind().compile(self.request(self.artifact, "engine"))
        return self._sessions["compiled"]

    def loaded(self) -> Session:
        if "loaded" not in self._sessions:
            folder = self.folder / "engine"
            self.compiled().save(folder)
            self._sessions["loaded"] = self.kind().load(folder, self.request(self.artifact, "engine"))
        return self._sessions["loaded"]


def run(session: Session, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Do one whole inference."""
    session.bind(inputs)
    session.execute()
    session.synchronize()
    return session.outputs()


def agree(outputs: dict[str, np.ndarray], artifact: Artifact, index: int) -> None:
    """Hold outputs against the reference, with the harness' own judge."""
    rows = drift.judge(outputs, reference=artifact.reference(index), golden=artifact.golden(index), input_set=index)
    assert all(row.passed for row in rows), [row.reason for row in rows]


def compiles_and_marks_stages(subject: Subject) -> None:
    """compile() marks at least one stage and names a provider."""
    session = subject.compiled()
    assert subject.stages
    assert session.provider
    json.dumps([session.facts(), session.notes()])


def agrees_with_the_reference(subject: Subject) -> None:
    """A compiled session's outputs pass the drift limits on every input set, under the artifact's names."""
    session = subject.compiled()
    for index in range(subject.artifact.manifest.input_sets):
        outputs = run(session, subject.artifact.input_set(index))
        assert list(outputs) == [spec.name for spec in subject.artifact.outputs]
        agree(outputs, subject.artifact, index)


def loads_what_it_saved(subject: Subject) -> None:
    """load() starts from what save() wrote and agrees with the reference too."""
    for index in range(subject.artifact.manifest.input_sets):
        agree(run(subject.loaded(), subject.artifact.input_set(index)), subject.artifact, index)


def refuses_a_missing_engine(subject: Subject) -> None:
    """load() of an empty folder is a RunError, for backends that save engines."""
    if not subject.kind.capabilities.saves_engines:
        return
    empty = subject.folder / "empty"
    empty.mkdir()
    expect_run_error(lambda: subject.kind().load(empty, subject.request(subject.artifact, "empty")))


def outputs_are_owned(subject: Subject) -> None:
    """Arrays from outputs() stay as they are when the session runs again."""
    session = subject.compiled()
    first = run(session, subject.artifact.input_set(0))
    kept = {name: array.copy() for name, array in first.items()}
    run(session, subject.artifact.input_set(1))
    for name, array in first.items():
        assert np.array_equal(array, kept[name])
        assert array.flags.owndata or array.base is not None


def inputs_are_copied(subject: Subject) -> None:
    """bind() copies: changing the caller's array afterwards changes nothing."""
    session = subject.compiled()
    inputs = {name: array.copy() for name, array in subject.artifact.input_set(0).items()}
    session.bind(inputs)
    for array in inputs.values():
        array.fill(7)
    session.execute()
    session.synchronize()
    agree(session.outputs(), subject.artifact, 0)


def refuses_a_wrong_shape(subject: Subject) -> None:
    """bind() of a wrong shape is a RunError, and the session still works afterwards."""
    session = subject.compiled()
    wrong = {name: array[:, :, :-1] for name, array in subject.artifact.input_set(0).items()}
    expect_run_error(lambda: session.bind(wrong))
    agree(run(session, subject.artifact.input_set(0)), subject.artifact, 0)


def refuses_a_wrong_dtype(subject: Subject) -> None:
    """bind() of a wrong dtype is a RunError."""
    wrong = {name: array.astype(np.float64) for name, array in subject.artifact.input_set(0).items()}
    expect_run_error(lambda: subject.compiled().bind(wrong))


def refuses_a_missing_input(subject: Subject) -> None:
    """bind() without an input is a RunError."""
    expect_run_error(lambda: subject.compiled().bind({}))


def runs_a_batch_of_two(subject: Subject) -> None:
    """An artifact of batch 2 gives two rows, each right."""
    session = subject.kind().compile(subject.request(subject.batch2, "batch2"))
    outputs = run(session, subject.batch2.input_set(0))
    assert {array.shape[0] for array in outputs.values()} == {2}
    agree(outputs, subject.batch2, 0)


def accounts_for_its_iterations(subject: Subject) -> None:
    """profile() gives operators that take no longer than their iterations, and says what became of every node."""
    session = subject.loaded()
    session.bind(subject.artifact.input_set(0))
    try:
        found, durations_ns = profile(session, iterations=3)
    except UnsupportedError as exc:
        if subject.device == "cpu" or not exc.hint:
            raise
        return  # on a GPU not every framework tells how long its kernels ran
    assert len(durations_ns) == 3
    assert found.operators and found.clock
    assert 0 < sum(one.total_ns for one in found.operators) <= 1.02 * sum(durations_ns)
    done = {name for one in found.operators for name in one.nodes} | set(found.eliminated)
    assert done == {node.name for node in read_graph(subject.artifact.onnx_path).nodes}, found.notes
    agree(run(session, subject.artifact.input_set(1)), subject.artifact, 1)


def survives_peculiar_tensors(subject: Subject) -> None:
    """Integers, booleans, a scalar, an output that is a view and one that is an input: each keeps shape and dtype."""
    session = subject.kind().compile(subject.request(subject.peculiar, "peculiar"))
    for index in range(subject.peculiar.manifest.input_sets):
        outputs = run(session, subject.peculiar.input_set(index))
        for spec in subject.peculiar.outputs:
            assert (str(outputs[spec.name].dtype), outputs[spec.name].shape) == (spec.dtype, spec.shape), spec
        agree(outputs, subject.peculiar, index)


def keeps_to_one_thread(subject: Subject) -> None:
    """With threads=1 an inference loop takes no more CPU time than one core has."""
    session = subject.compiled()
    session.bind(subject.artifact.input_set(0))
    for _ in range(20):
        session.execute()
        session.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    while time.perf_counter() - wall < 0.5:
        session.execute()
        session.synchronize()
    used = (time.process_time() - cpu) / (time.perf_counter() - wall)
    assert used < 1.2, f"{used:.2f} cores"


def expect_run_error(action: Callable[[], object]) -> None:
    try:
        action()
    except RunError as exc:
        assert str(exc), "the error says nothing"
        return
    raise AssertionError("no RunError was raised")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    compiles_and_marks_stages,
    agrees_with_the_reference,
    loads_what_it_saved,
    refuses_a_missing_engine,
    outputs_are_owned,
    inputs_are_copied,
    refuses_a_wrong_shape,
    refuses_a_wrong_dtype,
    refuses_a_missing_input,
    runs_a_batch_of_two,
    survives_peculiar_tensors,
    accounts_for_its_iterations,
    keeps_to_one_thread,
)


def main() -> None:
    replies = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not part of the answer
    name, device, *paths = sys.argv[1:]
    subject = Subject(name, device, *map(Path, paths))
    results: dict[str, list[str] | None] = {}
    for check in CHECKS:
        try:
            check(subject)
            results[check.__name__] = None
        except Exception as exc:  # every check reports, whatever a backend raises
            results[check.__name__] = [type(exc).__name__, str(exc)[:2000]]
    os.write(replies, json.dumps(results).encode())


if __name__ == "__main__":
    main()
