"""Launches and rounds: who is sampled when, by real workers that hold fake engines."""

from __future__ import annotations

import dataclasses
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any, cast

import psutil
import pytest

from harness import protocol, rapl, rounds, topology
from harness.artifact import Artifact, read_tensors
from harness.launcher import Launcher, Worker
from harness.records import CONTROL, Sitting
from harness.rounds import OTHERS_EVERY, Conducted, Schedule, Seat, conduct
from tests.support import PLUGINS

ROUNDS = 6
SCHEDULE = Schedule(rounds=ROUNDS, slice_s=0.01, input_sets=2)
SLOW = "slow"
FAST = ["base", "base" + CONTROL, "other", "third"]
CASES = [*FAST, SLOW]


def seat(case: str, artifact: Artifact, folder: Path, *, backend: str = "fake-ok", ms: float = 1.0) -> Seat:
    spec = protocol.CaseSpec(
        backend=backend,
        options={"ms": ms},
        artifact=str(artifact.folder),
        device="cpu",
        precision="fp32",
        threads=1,
        engine_dir=str(folder),
        cache_dir=str(folder),
    )
    slug = case.removesuffix(CONTROL)
    return Seat(case=case, spec=spec, environment={"PYTHONPATH": str(PLUGINS)}, slug=slug, provider="fake")


def play(seats: list[Seat], launcher: Launcher, outputs: Path, **given: Any) -> Conducted:
    settings: dict[str, Any] = {"index": 0, "group": 0, "seed": 0, "say": lambda _: None} | given
    return conduct(seats, SCHEDULE, launcher, outputs=outputs, **settings)


def order(conducted: Conducted) -> list[list[str]]:
    """Return the cases in the order in which each round visited them."""
    visits = {
        (window.round, window.position): sitting.case
        for sitting in conducted.launch.sittings
        for window in sitting.windows
        if window.boundary == "compute"
    }
    return [
        [visits[key] for key in sorted(visits) if key[0] == round_]
        for round_ in range(1 + max(key[0] for key in visits))
    ]


def sittings(conducted: Conducted) -> dict[str, Sitting]:
    return {sitting.case: sitting for sitting in conducted.launch.sittings}


@pytest.fixture(scope="module")
def stopped_others() -> list[set[str]]:
    """What the workers that were not sampled did at each slice; filled by the launch below."""
    return []


@pytest.fixture(scope="module")
def conducted(
    tiny: Artifact, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory, stopped_others: list[set[str]]
) -> Conducted:
    """Conduct one launch: four fast cases, a slow one, and one that dies when it loads."""
    folder = tmp_path_factory.mktemp("rounds")
    seats = [*(seat(case, tiny, folder) for case in FAST), seat(SLOW, tiny, folder, ms=60.0)]
    seats.append(seat("dead", tiny, folder, backend="fake-exit-at-load"))
    call = Worker.call

    def watched_call(self: Worker, request: protocol.AnyRequest, *args: Any, **kwargs: Any) -> Any:
        if isinstance(request, protocol.Sample):
            others = [known for known in launcher._workers if known is not self and not known.closed]
            stopped_others.append({_settled_status(known) for known in others})
        return call(self, request, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "SLOW_ITERATION_SECONDS", 0.05)  # so that this test need not wait for seconds
        patch.setattr(Worker, "call", watched_call)
        patch.setattr(rapl.Meter, "joules", lambda _: 2.5)  # few machines let everybody read theirs
        return play(seats, launcher, folder)


def _settled_status(worker: Worker) -> str:
    # A signal takes a moment to arrive; a worker that was not stopped at all is asleep, waiting for a request.
    process = psutil.Process(worker._process.pid)
    deadline = time.monotonic() + 60
    while process.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
        time.sleep(0.001)
    return process.status()


def test_every_case_is_visited_once_a_round(conducted: Conducted) -> None:
    visited = order(conducted)
    assert len(visited) == ROUNDS
    for index, cases in enumerate(visited):
        assert sorted(cases) == sorted(CASES if index in (0, ROUNDS // 2) else FAST)


def test_slow_case_is_visited_in_two_rounds(conducted: Conducted) -> None:
    windows = [window for window in sittings(conducted)[SLOW].windows if window.boundary == "compute"]
    assert [window.round for window in windows] == [0, ROUNDS // 2]


def test_positions_of_a_round_are_its_order(conducted: Conducted) -> None:
    starts = {
        (window.round, window.position): window.start_ns
        for sitting in conducted.launch.sittings
        for window in sitting.windows
        if window.boundary == "compute"
    }
    in_order = [starts[key] for key in sorted(starts)]
    assert in_order == sorted(in_order), "a window that comes later in the order starts later"
    for round_ in range(ROUNDS):
        positions = sorted(position for of, position in starts if of == round_)
        assert positions == list(range(len(positions)))


def test_order_changes_from_round_to_round(conducted: Conducted) -> None:
    fast = [tuple(case for case in cases if case != SLOW) for cases in order(conducted)]
    assert len(set(fast)) > 1


def test_second_boundary_is_sampled_in_every_fifth_round(conducted: Conducted) -> None:
    for case in FAST:
        windows = [window for window in sittings(conducted)[case].windows if window.boundary == "host-to-host"]
        assert [window.round for window in windows] == list(range(0, ROUNDS, OTHERS_EVERY))


def test_slices_are_as_long_as_asked_for(conducted: Conducted) -> None:
    for sitting in conducted.launch.sittings:
        for window in sitting.windows:
            assert sum(window.samples_ns) >= 0.5 * SCHEDULE.slice_s * 1e9
            assert window.samples_ns


def test_every_window_has_its_energy(conducted: Conducted) -> None:
    energies = [window.package_energy_j for sitting in conducted.launch.sittings for window in sitting.windows]
    assert energies
    assert set(energies) == {2.5}


Times = namedtuple("Times", "user nice system idle iowait guest guest_nice")


@pytest.mark.parametrize(
    ("cpus", "others"),
    [
        # In one second CPU 0 worked for 0.6 s, CPU 2 for 0.9 s, CPU 3 for 0.1 s; the worker took 0.5 s of that.
        (frozenset[int](), (1.6 - 0.5) / 3),
        (frozenset({0}), (0.6 - 0.5) / 1),
        (frozenset({0, 2}), (1.5 - 0.5) / 2),
    ],
)
def test_others_are_those_on_the_workers_cpus(
    cpus: frozenset[int], others: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = {0: 0.6, 2: 0.9, 3: 0.1}  # CPU 1 is off
    seconds = iter([0.0, 1.0])

    def cpu_times(percpu: bool = False) -> Any:
        passed = next(seconds)
        each = [Times(passed * share, 0, 0, passed * (1 - share), 0, 0, 0) for share in busy.values()]
        return each if percpu else Times(*map(sum, zip(*each, strict=True)))

    class Used:
        used = iter([2.0, 2.5])

        def cpu_seconds(self) -> float:
            return next(self.used)

    monkeypatch.setattr(psutil, "cpu_times", cpu_times)
    monkeypatch.setattr(topology, "online", lambda: frozenset(busy))
    watch = rounds._OthersWatch(cast(Worker, Used()), cpus)
    assert watch.share() == pytest.approx(others, abs=1e-3)


def test_who_is_not_sampled_is_stopped(conducted: Conducted, stopped_others: list[set[str]]) -> None:
    assert len(stopped_others) >= ROUNDS * len(FAST)
    assert set().union(*stopped_others) == {psutil.STATUS_STOPPED}


def test_case_that_fails_leaves_and_the_others_go_on(conducted: Conducted) -> None:
    dead = sittings(conducted)["dead"]
    assert dead.failure is not None
    assert (dead.failure.stage, dead.windows) == ("warm load", [])
    assert "exit code 3" in dead.failure.message
    assert conducted.errors.keys() == {"dead"}
    assert all(sitting.failure is None for case, sitting in sittings(conducted).items() if case != "dead")


def test_outputs_come_from_every_measured_case_but_the_control(conducted: Conducted, tiny: Artifact) -> None:
    for case in [*FAST, SLOW]:
        files = conducted.outputs[case]
        assert sorted(files) == ([] if case.endswith(CONTROL) else [0, 1])
        for index, path in files.items():
            expected = tiny.reference(index)
            assert {name: array.tolist() for name, array in read_tensors(path).items()} == {
                name: array.tolist() for name, array in expected.items()
            }


def test_no_worker_outlives_the_launch(conducted: Conducted, launcher: Launcher) -> None:
    assert conducted.launch.complete
    assert all(worker.closed for worker in launcher._workers)


def quick_order(tiny: Artifact, launcher: Launcher, folder: Path, **given: Any) -> list[list[str]]:
    return order(play([seat(case, tiny, folder, ms=0.1) for case in FAST], launcher, folder, **given))


def test_windows_in_which_a_session_compiled_are_marked(tiny: Artifact, launcher: Launcher, tmp_path: Path) -> None:
    seats = [seat("late", tiny, tmp_path, backend="fake-compiles-late"), seat("base", tiny, tmp_path)]
    found = sittings(play(seats, launcher, tmp_path))
    marked = [rounds.COMPILED in window.marks for window in found["late"].windows]
    assert marked == [index % 2 == 0 for index in range(len(marked))]
    assert not any(rounds.COMPILED in window.marks for window in found["base"].windows)


def test_order_is_random_but_reproducible(tiny: Artifact, launcher: Launcher, tmp_path: Path) -> None:
    # Index 1 also takes the way on which workers load side by side.
    first = quick_order(tiny, launcher, tmp_path, seed=3, index=1)
    assert quick_order(tiny, launcher, tmp_path, seed=3, index=1) == first
    assert quick_order(tiny, launcher, tmp_path, seed=3, index=2) != first, "each launch has an order of its own"


def test_load_that_an_interruption_left_behind_is_no_crash(
    tiny: Artifact, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Thread] = []

    class Interrupted(ThreadPoolExecutor):
        def submit(self, function: Any, /, *given: Any, **named: Any) -> Any:
            # As a signal that comes while a thread is being started: the pool does not know it, and waits for none.
            left.append(Thread(target=function, args=given, kwargs=named))
            left[-1].start()
            raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "ThreadPoolExecutor", Interrupted)
    conducted = play([seat(case, tiny, tmp_path) for case in FAST[:2]], launcher, tmp_path, index=1)
    for thread in left:
        thread.join()
    assert conducted.interrupted and len(left) == 1
    assert not conducted.errors


def test_interruption_keeps_what_was_sampled(tiny: Artifact, launcher: Launcher, tmp_path: Path) -> None:
    def say(text: str) -> None:
        if "round 3/" in text:
            raise KeyboardInterrupt

    conducted = play([seat(case, tiny, tmp_path) for case in FAST[:2]], launcher, tmp_path, say=say)
    assert conducted.interrupted
    assert not conducted.launch.complete
    assert [len(cases) for cases in order(conducted)] == [2, 2]
    assert all(worker.closed for worker in launcher._workers)


@pytest.mark.parametrize(
    ("count", "iteration_s", "expected"),
    [
        (10, 0.9, set(range(10))),
        (10, 1.1, {0, 5}),
        (5, 1.1, {0, 2}),
        (1, 1.1, {0}),
        (2, 1.1, {0, 1}),
        (10, 5.1, {0}),
    ],
)
def test_visits(count: int, iteration_s: float, expected: set[int]) -> None:
    assert Schedule(rounds=count, slice_s=0.1, input_sets=1).visits(iteration_s) == expected


def test_a_loaded_engine_that_runs_elsewhere_is_a_fallback(tiny: Artifact, launcher: Launcher, tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(seat("fake-ok", tiny, tmp_path), provider="another")
    conducted = play([elsewhere], launcher, tmp_path)
    failure = conducted.launch.sittings[0].failure
    assert failure is not None
    assert "compiled for another, but the loaded engine runs on fake" in failure.message
    assert conducted.errors["fake-ok"].status == "fallback"
