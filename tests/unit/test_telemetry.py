"""From readings to a window's record and its marks; who is a stranger; whose memory is whose. By hand-made readings."""

from __future__ import annotations

import time
from typing import Any  # fields of a reading

import pytest

from harness.errors import UnavailableError
from harness.gpu import STRANGER, UNSTEADY, GpuReading
from harness.records import DeviceMemory
from harness.telemetry import MemoryWatch, Recording, Telemetry, Watch, summarise

MB = 1 << 20


def reading(at_ms: float = 0.0, **values: Any) -> GpuReading:
    return GpuReading(at_ns=int(at_ms * 1e6), **values)


def marks(during: list[GpuReading], **values: Any) -> list[str]:
    before, after = values.pop("before", reading()), values.pop("after", reading(100))
    return summarise(before, during, after, **values).marks


class Source:
    """Gives the same reading until it is changed."""

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.asked: list[bool] = []

    def read(self, *, full: bool) -> GpuReading:
        self.asked.append(full)
        return GpuReading(at_ns=time.perf_counter_ns(), **self.values)


# ---- slowdowns


def test_a_counter_that_moved_marks_what_no_reading_saw() -> None:
    still = {"power_cap": 500, "heat": 9}
    found = summarise(
        reading(slowed_ns=still), [reading(20, slowdowns=frozenset())], reading(100, slowed_ns={**still, "heat": 10})
    )
    assert found.marks == ["GPU slowed to stay cool"]
    assert found.slowed_ns == {"heat": 1, "power_cap": 0}
    assert found.slowdowns == ["heat"]


@pytest.mark.parametrize(
    ("slowdowns", "words"),
    [
        ({"power_cap"}, ["GPU held at its power limit"]),
        ({"heat"}, ["GPU slowed to stay cool"]),
        ({"hardware"}, ["GPU slowed by its hardware protection"]),
        ({"hardware", "overheated"}, ["GPU overheated"]),
        ({"hardware", "power_brake"}, ["GPU braked by its power supply"]),
        (set(), []),
    ],
)
def test_a_reading_marks_where_there_is_no_counter(slowdowns: set[Any], words: list[str]) -> None:
    assert marks([reading(20), reading(40, slowdowns=frozenset(slowdowns))]) == words


def test_readings_at_the_ends_are_not_the_windows() -> None:
    # What the bits say before the first iteration is about whoever ran before.
    hot = reading(slowdowns=frozenset({"heat"}), sm_mhz=210)
    calm = [reading(20 * n, slowdowns=frozenset(), sm_mhz=2520) for n in range(1, 4)]
    assert marks(calm, before=hot, after=hot) == []


def test_a_counter_that_started_anew_says_nothing() -> None:
    found = summarise(reading(slowed_ns={"heat": 99}), [], reading(100, slowed_ns={"heat": 0}))
    assert (found.slowed_ns, found.marks) == ({"heat": 0}, [])


def test_what_is_not_known_is_none_and_marks_nothing() -> None:
    found = summarise(reading(), [reading(20), reading(40)], reading(100), samples_ns=[1, 2])
    assert found.marks == []
    for name in found.__struct_fields__:
        if name not in ("readings", "marks"):
            assert getattr(found, name) is None, name


# ---- clocks, strangers


@pytest.mark.parametrize(
    ("clocks", "unsteady"),
    [
        ((2520, 2505, 2520), False),
        ((2000, 1900, 2000), False),
        ((2000, 1899, 2000), True),
        ((1899,), False),
        ((), False),
    ],
)
def test_clock_spread_above_five_percent_is_marked(clocks: tuple[int, ...], unsteady: bool) -> None:
    assert (UNSTEADY in marks([reading(sm_mhz=mhz) for mhz in clocks])) == unsteady


def test_clocks_of_a_window_too_short_for_a_reading_are_those_of_its_ends() -> None:
    found = summarise(reading(sm_mhz=2000), [], reading(5, sm_mhz=1000))
    assert (found.sm_mhz_low, found.sm_mhz_high, found.marks) == (1000, 2000, [])


def test_a_stranger_is_marked_and_kept() -> None:
    found = summarise(reading(), [], reading(), strangers={77: 5 * MB})
    assert (found.marks, found.strangers) == ([STRANGER], {77: 5 * MB})
    assert summarise(reading(), [], reading(), strangers={}).strangers == {}


def watch(source: Source, notes: list[str], *, ours: set[int]) -> Watch:
    return Watch("cuda:0", source, ours.__contains__, notes.append)


def test_a_process_that_is_not_ours_is_a_stranger_where_ours_are_listed() -> None:
    notes: list[str] = []
    here = watch(Source(processes={}), notes, ours={10, 11})
    here.residents |= {10}
    assert here.strangers({10: MB, 11: MB, 99: 2 * MB}) == {99: 2 * MB}
    assert notes == []


def test_in_a_container_our_own_workers_are_no_strangers() -> None:
    # The driver counts as its host: 4010 and 4011 are our 10 and 11, and 3000 was there before we came.
    notes: list[str] = []
    here = watch(Source(processes={3000: MB}), notes, ours={10, 11})
    here.residents |= {10, 11}
    assert here.strangers({4010: MB, 4011: MB}) == {}
    assert here.strangers({3000: MB, 4010: MB, 4011: MB}) == {3000: MB}
    assert "would not be noticed" in notes[0]


def test_one_number_that_fits_by_chance_is_not_believed() -> None:
    here = watch(Source(processes={}), [], ours={10, 11})
    here.residents |= {10, 11}
    assert here.strangers({10: MB, 4011: MB}) == {}


def test_telemetry_says_once_why_a_card_cannot_be_watched() -> None:
    def closed(device: str) -> Source:
        raise UnavailableError("no driver")

    telemetry = Telemetry(owns=lambda pid: True, source=closed)
    assert telemetry.watch("cpu") is None
    assert telemetry.notes == []
    assert telemetry.watch("cuda:0") is None
    assert telemetry.watch("cuda:0") is None
    assert len(telemetry.notes) == 1
    assert "no driver" in telemetry.notes[0]


def test_notes_of_a_watch_are_said_once() -> None:
    telemetry = Telemetry(owns=lambda pid: True, source=lambda _: Source(processes={}))
    for _ in range(2):
        here = telemetry.watch("cuda:0")
        assert here is not None
        here.strangers({})
        here.strangers({})
    assert len(telemetry.notes) == 1


# ---- energy


def test_energy_comes_from_the_counter_where_its_steps_span_enough() -> None:
    # 300 W, a step every 100 ms, read every 20 ms; the first step holds what was drawn before, at another power.
    first = {at: 90_000 if at >= 100 else 0 for at in range(0, 1001, 20)}
    readings = [reading(at, energy_mj=more + at // 100 * 30_000, power_w=999.0) for at, more in first.items()]
    found = summarise(readings[0], readings[1:-1], readings[-1], samples_ns=[10_000_000] * 100)
    assert found.energy_by == "counter"
    assert found.power_w == pytest.approx(300, rel=0.03)
    assert found.energy_mj == pytest.approx(300_000, rel=0.03)


def test_energy_comes_from_power_where_the_counter_is_too_coarse() -> None:
    readings = [reading(at, energy_mj=30_000 * (at > 50), power_w=200.0 + at) for at in range(0, 101, 20)]
    found = summarise(readings[0], readings[1:-1], readings[-1], samples_ns=[50_000_000, 50_000_000])
    assert (found.energy_by, found.power_w) == ("power", 250.0)
    assert found.energy_mj == pytest.approx(25_000)


# ---- the thread


def test_a_recording_reads_before_during_and_after() -> None:
    source = Source(sm_mhz=1)
    with Recording(source, every_s=0.005, full=False) as recording:
        deadline = time.monotonic() + 20
        while len(recording.during) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert source.asked[0] and source.asked[-1] and not any(source.asked[1:-1])
    assert len(recording.readings) == len(source.asked) >= 5
    times = [one.at_ns for one in recording.readings]
    assert times == sorted(times)
    count = len(source.asked)
    time.sleep(0.02)
    assert len(source.asked) == count, "the thread has ended"


def test_a_recording_ends_with_an_exception() -> None:
    source = Source()
    with pytest.raises(KeyboardInterrupt), Recording(source, every_s=0.001, full=False):
        raise KeyboardInterrupt
    count = len(source.asked)
    time.sleep(0.01)
    assert len(source.asked) == count


# ---- memory


def memory(source: Source, phases: list[dict[str, Any]], *, alone: bool = True) -> DeviceMemory | None:
    one = MemoryWatch(watch(source, [], ours={10}), 10, alone=alone)
    with one:
        for name, values in zip(("before_load", "loaded", "ran"), phases, strict=False):
            source.values = values
            one.phase(name)  # type: ignore[arg-type]  # the three literals
    source.values = {"processes": {10: 900 * MB}, "used_bytes": 5000 * MB}
    with Recording(source, every_s=1, full=False) as later:
        pass
    one.add(later)
    return one.memory()


def test_memory_of_a_listed_process_by_phase() -> None:
    phases: list[dict[str, Any]] = [
        {"processes": {}, "used_bytes": MB},
        {"processes": {10: 500 * MB}},
        {"processes": {10: 700 * MB, 99: 4000 * MB}},
    ]
    assert memory(Source(processes={}), phases) == DeviceMemory(
        by="process", before_load_bytes=0, loaded_bytes=500 * MB, ran_bytes=700 * MB, peak_bytes=900 * MB
    )
    assert memory(Source(processes={}), phases, alone=False) is not None


CONTAINER: list[dict[str, Any]] = [
    {"processes": {4010: None}, "used_bytes": 1000 * MB},
    {"processes": {4010: None}, "used_bytes": 1600 * MB},
    {"processes": {4010: None}, "used_bytes": 1500 * MB},
]


def test_memory_of_an_unlisted_process_is_what_the_card_has_in_use_more() -> None:
    source = Source(processes={}, used_bytes=900 * MB)
    assert memory(source, CONTAINER) == DeviceMemory(
        by="device", before_load_bytes=100 * MB, loaded_bytes=700 * MB, ran_bytes=600 * MB, peak_bytes=700 * MB
    )


def test_memory_of_a_listed_process_without_figures_is_what_the_card_has_in_use_more() -> None:
    named = [{**phase, "processes": {10: None}} for phase in CONTAINER]
    found = memory(Source(processes={}, used_bytes=900 * MB), named)
    assert found is not None and found.by == "device"


def test_memory_is_unknown_where_several_load_at_once_and_none_is_listed() -> None:
    assert memory(Source(processes={}, used_bytes=900 * MB), CONTAINER, alone=False) is None


def test_memory_of_a_number_that_was_there_before_is_somebody_elses() -> None:
    source = Source(processes={10: 300 * MB}, used_bytes=900 * MB)
    phases = [{**phase, "processes": {10: 300 * MB}} for phase in CONTAINER]
    found = memory(source, phases)
    assert found is not None and found.by == "device"


def test_memory_of_a_worker_that_never_ran_is_unknown() -> None:
    assert memory(Source(processes={}, used_bytes=0), CONTAINER[:2]) is None
