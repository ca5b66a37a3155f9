"""Figures of GPUs from records: which windows carry a verdict, energy, device memory, and what the report says."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from harness.gpu import STRANGER
from harness.gpu_figures import device_memory, energy, gpus
from harness.records import CONTROL, DeviceMemory, EnergySource, GpuWindow, Launch, MemorySource, Sitting, Window
from harness.summarize import of_workload
from harness.summary import WorkloadSummary
from tests.unit.test_summarize import case, launch, settings_of, workload_of

SPEEDS = {"eager": 1.0, "fast": 0.8}
HOT = "GPU slowed to stay cool"


def spoiled(one: Launch, rounds: dict[str, set[int]], *, slower: float, mark: str = HOT) -> Launch:
    """Return a launch on a GPU that slowed the given cases down in the given rounds."""

    def window(of: Sitting, was: Window) -> Window:
        hit = was.round in rounds.get(of.case, set())
        samples = [int(ns * (slower if hit else 1)) for ns in was.samples_ns]
        gpu = GpuWindow(readings=4, sm_mhz_low=2490, sm_mhz_high=2520, marks=[mark] if hit else [])
        return msgspec.structs.replace(was, samples_ns=samples, gpu=gpu)

    sittings = [msgspec.structs.replace(of, windows=[window(of, was) for was in of.windows]) for of in one.sittings]
    return msgspec.structs.replace(one, sittings=sittings)


def summary(rounds: dict[str, set[int]], *, slower: float = 1.5, mark: str = HOT) -> WorkloadSummary:
    rng = np.random.default_rng(0)
    launches = [spoiled(launch(index, SPEEDS, rng), rounds, slower=slower, mark=mark) for index in range(5)]
    cases = [msgspec.structs.replace(case(name), device="cuda:0") for name in SPEEDS]
    return of_workload(workload_of(cases, launches), settings_of("eager", "fast"))


def rows(found: WorkloadSummary) -> dict[str, float]:
    return {row.case.id: row.comparison.ratio.value for row in found.rows if row.comparison}


def test_dropped_windows_change_no_ratio() -> None:
    # Six of ten rounds: more than a fit that only bounds outliers could bear.
    slowed = summary({"fast": set(range(6))})
    assert rows(slowed)["fast"] == pytest.approx(rows(summary({}))["fast"], rel=0.01)
    fast = next(row for row in slowed.rows if row.case.id == "fast")
    assert (fast.windows, fast.dropped_windows, fast.dropped, fast.disturbed) == (50, 30, {HOT: 30}, {})
    assert fast.comparison is not None and fast.comparison.verdict == "FASTER"
    assert fast.compute is not None and fast.compute.samples == 20 * 9


def test_a_missing_cell_moves_nobody() -> None:
    # The rounds that are left to `fast` are slower ones for everybody: as by themselves, its windows would look slow.
    rng = np.random.default_rng(1)
    launches = [launch(index, SPEEDS, rng) for index in range(5)]

    def drifted(one: Launch) -> Launch:
        sittings = [
            msgspec.structs.replace(
                of,
                windows=[
                    msgspec.structs.replace(was, samples_ns=[int(ns * (1 + was.round / 10)) for ns in was.samples_ns])
                    for was in of.windows
                ],
            )
            for of in one.sittings
        ]
        return msgspec.structs.replace(one, sittings=sittings)

    marked = [spoiled(drifted(one), {"fast": {0, 1, 2, 3, 4}}, slower=1.5) for one in launches]
    cases = [msgspec.structs.replace(case(name), device="cuda:0") for name in SPEEDS]
    found = of_workload(workload_of(cases, marked), settings_of("eager", "fast"))
    assert rows(found)["fast"] == pytest.approx(0.8, rel=0.01)


def test_windows_are_kept_where_none_would_be_left() -> None:
    found = summary({"fast": set(range(10))}, mark=STRANGER)
    fast = next(row for row in found.rows if row.case.id == "fast")
    assert (fast.dropped_windows, fast.dropped, fast.disturbed) == (0, {}, {STRANGER: 50})
    assert rows(found)["fast"] == pytest.approx(1.2, rel=0.01)
    assert "disturbed in every window of fast" in found.closing


def test_a_host_that_was_busy_drops_nothing() -> None:
    rng = np.random.default_rng(0)
    one = launch(0, SPEEDS, rng)
    busy = [
        msgspec.structs.replace(
            of, windows=[msgspec.structs.replace(was, marks=["busy machine"]) for was in of.windows[:1]]
        )
        for of in one.sittings
    ]
    found = of_workload(
        workload_of([case("eager"), case("fast")], [msgspec.structs.replace(one, sittings=busy)]), settings_of("eager")
    )
    assert {row.case.id: (row.marked_windows, row.dropped_windows) for row in found.rows} == {
        "eager": (1, 0),
        "fast": (1, 0),
    }
    assert found.gpus == []


def test_a_cards_state_counts_the_control_too() -> None:
    (gpu,) = summary({"eager": {1}, "eager" + CONTROL: {1, 2}, "fast": {3}}).gpus
    assert (gpu.device, gpu.windows, gpu.dropped_windows, gpu.dropped) == ("cuda:0", 150, 20, {HOT: 20})
    assert (gpu.sm_mhz_low, gpu.sm_mhz_high, gpu.power_w) == (2490, 2520, None)


def window(mj: float, by: EnergySource, *, marks: list[str] | None = None, iterations: int = 2) -> Window:
    gpu = GpuWindow(readings=4, energy_mj=mj, energy_by=by, marks=marks or [])
    return Window(round=0, position=0, start_ns=0, samples_ns=[5] * iterations, gpu=gpu)


def sitting(*windows: Window, longer: list[Window] | None = None, memory: DeviceMemory | None = None) -> Sitting:
    return Sitting(
        case="fast",
        import_s=0.0,
        load_s=0.0,
        first_run_s=0.0,
        warm_up_ns=[],
        windows=list(windows),
        energy=longer or [],
        peak_bytes=0,
        device_memory=memory,
    )


@pytest.mark.parametrize(
    ("one", "mj", "by"),
    [
        (sitting(window(10, "power"), window(30, "power"), window(90, "power")), 15, "power"),
        (sitting(window(10, "power"), longer=[window(80, "counter", iterations=4)]), 20, "counter"),
        (sitting(window(10, "power", marks=[HOT]), window(40, "power")), 20, "power"),
        (sitting(longer=[window(60, "counter", marks=[HOT])]), 30, "counter"),
    ],
)
def test_energy_comes_from_the_windows_that_tell_it_best(one: Sitting, mj: float, by: EnergySource) -> None:
    found = energy([one])
    assert found is not None
    assert (found.mj, found.by) == (mj, by)


def test_energy_that_no_card_tells_is_none() -> None:
    assert energy([sitting(msgspec.structs.replace(window(1, "power"), gpu=GpuWindow(readings=0)))]) is None
    assert energy([sitting(msgspec.structs.replace(window(1, "power"), gpu=None))]) is None


def memory(by: MemorySource, *sizes: int) -> DeviceMemory:
    before, loaded, ran, peak = sizes
    return DeviceMemory(by=by, before_load_bytes=before, loaded_bytes=loaded, ran_bytes=ran, peak_bytes=peak)


def test_memory_is_the_most_of_any_launch_by_the_better_source() -> None:
    found = device_memory(
        [
            sitting(memory=memory("device", 9, 99, 99, 999)),
            sitting(memory=memory("process", 1, 5, 8, 9)),
            sitting(memory=memory("process", 2, 4, 7, 10)),
            sitting(),
        ]
    )
    assert found == memory("process", 2, 5, 8, 10)
    assert device_memory([sitting(memory=memory("device", 1, 2, 3, 4))]) == memory("device", 1, 2, 3, 4)
    assert device_memory([sitting()]) is None


def test_gpus_of_a_workload_without_windows_are_none() -> None:
    assert gpus(workload_of([case("eager")], [])) == []
