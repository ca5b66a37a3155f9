"""A launch on a GPU that is not there: real workers and rounds, readings from a script.

The workers hold fake engines whose device is called `cuda:0`; the card that is read slows down, is shared and runs
unsteadily in rounds that the test chooses, and every window must know.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any  # arguments of a patched method

import pytest

from harness import protocol, ratios, rounds, telemetry
from harness.artifact import Artifact
from harness.errors import UnavailableError
from harness.gpu import STRANGER, UNSTEADY, GpuReading
from harness.gpu_figures import device_memory, energy
from harness.launcher import Launcher, Worker
from harness.measure import now_ns
from harness.records import CONTROL, Launch, Sitting
from harness.rounds import Conducted, Schedule, conduct
from harness.telemetry import Telemetry
from tests.unit.test_rounds import seat

ROUNDS = 6
HEAT, GUEST, SHAKE = 1, 2, 3
"""Rounds in which the card slows `other` down, has a guest, and runs unsteadily while `base` is sampled."""
CASES = ["base", "base" + CONTROL, "other"]
WATTS = 250
ENGINE_BYTES = 300 << 20


class Card:
    """An undisturbed card, but in the rounds above."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self.round = -1
        self.sampled = ""
        self.slowed_ns = 0
        self.readings = 0

    def read(self, *, full: bool) -> GpuReading:
        self.readings += 1
        now = now_ns()
        shaking = self.round == SHAKE and self.sampled == "base"
        if self.round == HEAT and self.sampled == "other":
            self.slowed_ns += 1000
        living = [worker.pid for worker in self._launcher._workers if not worker.closed]
        guests = {1: 64 << 20} if self.round == GUEST else {}  # process 1 is nobody's of ours
        return GpuReading(
            at_ns=now,
            sm_mhz=1500 if shaking and self.readings % 2 else 2500,
            power_w=999.0,
            energy_mj=now // 1_000_000 * WATTS,  # a step every millisecond
            slowdowns=frozenset(),
            slowed_ns={"heat": self.slowed_ns},
            processes={**dict.fromkeys(living, ENGINE_BYTES), **guests},
            used_bytes=(len(living) + len(guests)) * ENGINE_BYTES,
        )


def play(tiny: Artifact, launcher: Launcher, folder: Path, telemetry_: Telemetry, card: Card | None) -> Conducted:
    seats = [seat(case, tiny, folder) for case in CASES]
    on_gpu = [
        dataclasses.replace(one, spec=protocol.CaseSpec(**{**_fields(one.spec), "device": "cuda:0"})) for one in seats
    ]
    call = Worker.call

    def watched_call(self: Worker, request: protocol.AnyRequest, *args: Any, **kwargs: Any) -> Any:
        if card is not None and isinstance(request, protocol.Sample):
            card.sampled = next(case for case in ("other", "base") if self.log.name.startswith(case))
        return call(self, request, *args, **kwargs)

    def say(text: str) -> None:
        if card is not None:
            card.round = int(text.split("round ")[1].split("/")[0]) - 1 if "round " in text else -1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "call", watched_call)
        patch.setattr(telemetry, "READ_EVERY_S", 0.005)
        patch.setattr(telemetry, "COUNTER_SPAN_S", 0.05)
        patch.setattr(rounds, "ENERGY_SLICE_S", 0.2)
        return conduct(
            on_gpu,
            Schedule(rounds=ROUNDS, slice_s=0.03, input_sets=1),
            launcher,
            index=0,
            group=0,
            outputs=folder,
            seed=0,
            say=say,
            telemetry=telemetry_,
        )


def _fields(spec: protocol.CaseSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


@pytest.fixture(scope="module")
def launch(tiny: Artifact, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    card = Card(launcher)
    watching = Telemetry(owns=launcher.owns, source=lambda _: card)
    conducted = play(tiny, launcher, tmp_path_factory.mktemp("gpu"), watching, card)
    assert conducted.errors == {}
    assert watching.notes == []
    return conducted.launch


def sitting(launch: Launch, case: str) -> Sitting:
    return next(one for one in launch.sittings if one.case == case)


def test_every_window_says_what_the_card_did(launch: Launch) -> None:
    for one in launch.sittings:
        for window in one.windows:
            assert window.gpu is not None
            assert window.gpu.readings >= 2
            assert window.gpu.sm_mhz_high == 2500


def test_exactly_the_disturbed_windows_are_marked(launch: Launch) -> None:
    found = {
        (one.case, window.round): window.gpu.marks
        for one in launch.sittings
        for window in one.windows
        if window.boundary == "compute" and window.gpu is not None and window.gpu.marks
    }
    shaken = {(case, SHAKE): [UNSTEADY] for case in CASES if case.startswith("base")}
    guested = {(case, GUEST): [STRANGER] for case in CASES}
    assert found == {("other", HEAT): ["GPU slowed to stay cool"], **guested, **shaken}


def test_marked_windows_are_dropped_and_counted(launch: Launch) -> None:
    expected = {"base": {GUEST, SHAKE}, "base" + CONTROL: {GUEST, SHAKE}, "other": {HEAT, GUEST}}
    for case, rounds_ in expected.items():
        seen = ratios.visits([launch], case, "compute")
        assert {window.round for _, window in seen.windows} == set(range(ROUNDS)) - rounds_
        assert (seen.total, seen.dropped_windows, seen.disturbed) == (ROUNDS, 2, {})
    assert ratios.visits([launch], "other", "compute").dropped == {"GPU slowed to stay cool": 1, STRANGER: 1}


def test_energy_of_an_inference_comes_from_the_longer_window(launch: Launch) -> None:
    one = sitting(launch, "other")
    (window,) = one.energy
    assert window.gpu is not None and window.gpu.energy_by == "counter"
    assert window.gpu.power_w == pytest.approx(WATTS, rel=0.1), "and not from the readings of the power"
    found = energy([one])
    assert found is not None and found.by == "counter"
    mean_s = sum(window.samples_ns) / len(window.samples_ns) / 1e9
    assert found.mj == pytest.approx(WATTS * mean_s * 1000, rel=0.1)
    assert sitting(launch, "base" + CONTROL).energy == [], "the control is the baseline once more"


def test_windows_for_energy_are_not_windows_of_latency(launch: Launch) -> None:
    assert {window.round for window in sitting(launch, "other").windows} == set(range(ROUNDS))


def test_device_memory_is_the_workers_own(launch: Launch) -> None:
    for one in launch.sittings:
        memory = device_memory([one])
        assert memory is not None
        assert (memory.by, memory.ran_bytes, memory.peak_bytes) == ("process", ENGINE_BYTES, ENGINE_BYTES)


def test_a_card_that_cannot_be_read_is_measured_on_all_the_same(
    tiny: Artifact, launcher: Launcher, tmp_path: Path
) -> None:
    def closed(device: str) -> Card:
        raise UnavailableError("no driver")

    watching = Telemetry(owns=launcher.owns, source=closed)
    conducted = play(tiny, launcher, tmp_path, watching, None)
    assert conducted.errors == {}
    assert len(watching.notes) == 1
    for one in conducted.launch.sittings:
        assert (len(one.energy), one.device_memory) == (0, None)
        assert all(window.gpu is None for window in one.windows)


def test_on_a_gpu_one_engine_is_loaded_at_a_time(
    tiny: Artifact, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading: set[str] = set()
    together: list[set[str]] = []
    call = Worker.call

    def watched_call(self: Worker, request: protocol.AnyRequest, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(request, (protocol.Load, protocol.RunOnce)):
            return call(self, request, *args, **kwargs)
        loading.add(self.log.name)
        together.append(set(loading))
        time.sleep(0.3)  # as an engine does that chooses its kernels
        try:
            return call(self, request, *args, **kwargs)
        finally:
            loading.discard(self.log.name)

    monkeypatch.setattr(Worker, "call", watched_call)
    monkeypatch.setattr(rounds, "usable_cores", lambda: len(CASES))
    seats = [seat(case, tiny, tmp_path) for case in CASES]
    seats = [
        dataclasses.replace(one, spec=protocol.CaseSpec(**{**_fields(one.spec), "device": "cuda:0"})) for one in seats
    ]
    schedule = Schedule(rounds=1, slice_s=0.01, input_sets=1)
    done = conduct(seats, schedule, launcher, index=1, group=0, outputs=tmp_path, seed=0, say=lambda _: None)
    assert done.errors == {}
    assert [len(each) for each in together] == [1] * 2 * len(CASES)
