"""Accuracy on labelled data, the parent's half: every measured engine answers the same samples, and is scored."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from harness import protocol
from harness.artifact import Artifact, read_tensors, write_tensors
from harness.compiling import Compiled
from harness.datasets import Dataset, open_dataset
from harness.errors import HarnessError, StoreError, UsageError
from harness.launcher import Launcher, Worker
from harness.ledger import Page
from harness.paths import FREE_SPACE, make_folder
from harness.progress import Narrator, brief
from harness.records import Accuracy, Case, Settings
from harness.refusals import refuse_elsewhere
from harness.rounds import Seat, describe
from harness.scoring import Scored, score
from harness.sources import refuse_model

BROKEN_AT_MOST = 0.01
"""Share of the samples that may be unreadable."""
STEP = 256
"""Samples that a worker is asked for at a time: the time limit is for so many."""
ANSWERS, SAMPLES = "answers", "samples"
SHOWN = 3


class Evaluation:
    """The data set of a run against the cases of one workload."""

    def __init__(
        self, page: Page, artifact: Artifact, settings: Settings, launcher: Launcher, narrator: Narrator, folder: Path
    ) -> None:
        """Read the samples once, before anything is compiled.

        `folder` is where the answers are kept.

        Raises:
            UsageError: The data set does not fit the model, or too many of its samples cannot be read.
            StoreError: The answers cannot be written.
        """
        assert settings.dataset is not None
        self._page, self._artifact, self._settings = page, artifact, settings
        self._launcher, self._say, self._folder = launcher, narrator, folder
        self._dataset: Dataset = open_dataset(settings.dataset)
        refuse_model(self._dataset, artifact.manifest.model)
        self._dataset.refuse_artifact(artifact.manifest)
        self._samples = self._screen()

    def _screen(self) -> list[int]:
        request = protocol.Screen(
            dataset=self._dataset.text, artifact=str(self._artifact.folder), most=self._settings.max_samples
        )
        self._say.doing(f"reading {self._dataset.label}")
        with self._launcher.start("dataset") as worker:
            found = worker.call(
                request, protocol.Screened, timeout_s=self._launcher.timeout_s, on_progress=self._say.detail
            )
        if found.broken:
            whole = len(found.broken) + len(found.sound)
            named = "; ".join(list(found.broken.values())[:SHOWN])
            text = f"{len(found.broken)} of {whole} samples of {self._dataset.label} cannot be read: {named}"
            if not found.sound or len(found.broken) > BROKEN_AT_MOST * whole:
                raise UsageError(text, hint=f"at most {BROKEN_AT_MOST:.0%} may be left out; mend or remove them")
            self._page.note(f"{text}; they were left out")
        return found.sound

    def run(self, compiled: dict[str, Compiled]) -> None:
        """Let every measured case answer, score it, and hold it against the baseline. What is done is not done again.

        Raises:
            KeyboardInterrupt: The user stopped it. What was finished is saved.
            StoreError: The answers cannot be written.
        """
        order = [case.id for case in self._page.workload.cases]
        scored: dict[str, Scored] = {}
        # The baseline first: the others are held against it.
        for id_ in sorted(order, key=lambda each: each != self._page.workload.baseline):
            case = next(one for one in self._page.workload.cases if one.id == id_)
            seats = compiled[id_].seats if id_ in compiled else ()
            if case.status not in ("ok", "drifted") or not seats:
                continue
            file = self._folder / f"{seats[0].slug}.safetensors"
            done, accuracy = self._known(case, file), None
            if done is None:
                done, accuracy = self._answered(case, seats[0], file)
            if done is not None:
                scored[id_] = score(self._dataset, done, self._samples, self._artifact.manifest)
                accuracy = self._accuracy(case, scored[id_], scored.get(self._page.workload.baseline), file)
                self._say.done(f"{id_} on {self._dataset.label}: {_text(accuracy)}")
            self._page.replace_case(msgspec.structs.replace(case, accuracy=accuracy), order)

    def _known(self, case: Case, file: Path) -> np.ndarray | None:
        """Return the answers that an interrupted run has kept of this very engine to these very samples."""
        if case.accuracy is None or case.accuracy.engine_created != case.engine_created:
            return None
        try:
            kept = read_tensors(file)
        except StoreError:
            return None
        return kept[ANSWERS] if kept[SAMPLES].tolist() == self._samples else None

    def _answered(self, case: Case, seat: Seat, file: Path) -> tuple[np.ndarray | None, Accuracy | None]:
        worker: Worker | None = None
        try:
            with self._launcher.start(
                f"{seat.slug}-accuracy", seat.environment, threads=seat.spec.threads, python=seat.python
            ) as worker:
                answers = self._ask(worker, seat, case.id)
        except StoreError:
            raise
        except HarnessError as exc:  # its numbers stand; a row says why there is no accuracy
            failure = describe(exc, "accuracy", worker.log if worker else None)
            self._say.done(f"{case.id} on {self._dataset.label}: {brief(exc.message)}")
            return None, self._blank(case, failure=failure)
        make_folder(self._folder, "the folder of answers")
        try:
            write_tensors(file, {ANSWERS: answers, SAMPLES: np.array(self._samples, dtype=np.int64)})
        except OSError as exc:
            raise StoreError(f"{file} cannot be written: {exc.strerror}", hint=FREE_SPACE) from exc
        return answers, None

    def _ask(self, worker: Worker, seat: Seat, name: str) -> np.ndarray:
        limit = self._launcher.timeout_s
        worker.call(protocol.Import(backend=seat.spec.backend), protocol.Imported, timeout_s=limit)
        opened = worker.call(protocol.Load(case=seat.spec), protocol.Opened, timeout_s=limit)
        refuse_elsewhere(seat.spec, opened)
        parts = []
        with tempfile.TemporaryDirectory(prefix="harness-answers-") as scratch:
            for start in range(0, len(self._samples), STEP):
                chosen = self._samples[start : start + STEP]
                self._say.doing(f"{name} on {self._dataset.label}: {start} of {len(self._samples)} samples")
                path = Path(scratch) / f"{start}.safetensors"
                request = protocol.Evaluate(dataset=self._dataset.text, samples=chosen, path=str(path))
                worker.call(request, protocol.Written, timeout_s=limit)
                parts.append(read_tensors(path)[ANSWERS])
        return np.concatenate(parts)

    def _accuracy(self, case: Case, scored: Scored, baseline: Scored | None, file: Path) -> Accuracy:
        name = self._page.workload.baseline
        paired = scored.against(baseline, name) if baseline is not None and case.id != name else None
        return self._blank(
            case,
            metrics=scored.metrics(),
            paired=paired,
            answers=f"{file.parent.parent.name}/{file.parent.name}/{file.name}",
        )

    def _blank(self, case: Case, **fields: object) -> Accuracy:
        whole = len(self._dataset)
        made = Accuracy(
            dataset=self._dataset.label, samples=len(self._samples), of=whole, engine_created=case.engine_created
        )
        return msgspec.structs.replace(made, **fields)


def answers_folder(run: Path, workload: str) -> Path:
    """Return where the answers of a workload's cases are kept."""
    return run / "answers" / re.sub(r"[^A-Za-z0-9._=-]+", "-", workload)


def _text(accuracy: Accuracy) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in accuracy.metrics.items())
