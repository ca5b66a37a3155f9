"""The run in the making: what is finished goes to the disk at once, so that nothing is lost to an interruption."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from harness.measure import now_ns
from harness.records import Case, Run, Workload
from harness.store import RunFolder


class Ledger:
    """Holds the run. It is always complete up to the last finished step, in memory and on the disk."""

    def __init__(self, run: Run, folder: RunFolder) -> None:
        self.run = run
        self._folder = folder
        self._lock = threading.RLock()
        self._stopped = False
        self._started_ns = now_ns()
        self._wall_before = run.wall_s

    def update(self, **changes: object) -> None:
        """Change the run and save it.

        Raises:
            StoreError: The disk is full or the folder is gone; the run in memory has the change.
        """
        wall_s = self._wall_before + (now_ns() - self._started_ns) / 1e9
        with self.changing():
            self.run = msgspec.structs.replace(self.run, wall_s=wall_s, **changes)
            self._folder.save(self.run)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the run while it is read, changed and put back: several devices may be measured at the same time.

        Raises:
            KeyboardInterrupt: The run was stopped. What its threads see fail after that is nobody's failure.
        """
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            yield

    def stop(self) -> None:
        """Take no more changes, until `go_on()`."""
        with self._lock:
            self._stopped = True

    def go_on(self) -> None:
        """Take changes again."""
        with self._lock:
            self._stopped = False

    def page(self, index: int) -> Page:
        """Return access to one workload."""
        return Page(self, index)


class Page:
    """One workload of the run in the making."""

    def __init__(self, ledger: Ledger, index: int) -> None:
        self._ledger = ledger
        self._index = index

    @property
    def workload(self) -> Workload:
        """Return the workload as it stands."""
        return self._ledger.run.workloads[self._index]

    def change(self, **changes: object) -> None:
        """Change the workload in memory; the next `update()` saves it."""
        with self._ledger.changing():
            workloads = list(self._ledger.run.workloads)
            workloads[self._index] = msgspec.structs.replace(workloads[self._index], **changes)
            self._ledger.run = msgspec.structs.replace(self._ledger.run, workloads=workloads)

    def update(self, **changes: object) -> None:
        """Change the workload and save the run.

        Raises:
            StoreError: The disk is full or the folder is gone; the run in memory has the change.
        """
        self.change(**changes)
        self._ledger.update()

    def note(self, sentence: str) -> None:
        """Add a sentence that the report must print, once."""
        if sentence not in self.workload.notes:
            self.change(notes=[*self.workload.notes, sentence])

    def replace_case(self, case: Case, order: list[str]) -> None:
        """Put a case in the place of its predecessor, cases in the given order, and save the run."""
        places = {id_: place for place, id_ in enumerate(order)}
        cases = [*(known for known in self.workload.cases if known.id != case.id), case]
        self.update(cases=sorted(cases, key=lambda each: places.get(each.id, len(order))))
