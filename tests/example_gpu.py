"""An example run on a GPU, written by hand: what the reports say of the card. Numbers are invented but plausible."""

from __future__ import annotations

from typing import Any  # overrides of a record's fields

import msgspec

from harness.records import DeviceMemory, MemorySource
from harness.summary import CaseSummary, Energy, GpuSummary, RunSummary
from tests.example_runs import case, launches, row, single, stages

HOT = "GPU slowed to stay cool"
STRANGER = "another process on the GPU"
SHAKEN = "GPU clock not steady"


def gpu() -> RunSummary:
    """Return a run on two cards' worth of trouble: dropped windows, a case without others, memory of both kinds."""
    rows = [
        on_gpu(
            "tensorrt", 1.21, memory("process", 0, 512, 684, 731), Energy(mj=431.6, by="counter"), {HOT: 29, SHAKEN: 2}
        ),
        on_gpu("onnxruntime", 2.04, memory("device", 214, 602, 811, 811), Energy(mj=702.1, by="power"), {}),
        on_gpu("eager", 4.87, None, None, {HOT: 3, STRANGER: 1}),
        msgspec.structs.replace(on_gpu("torch-compile", 5.02, None, None, {}), disturbed={STRANGER: 50}),
    ]
    summary = single(
        rows,
        launches=launches([one.case.id for one in rows], 5, 10),
        baseline="eager",
        noise_floor=0.011,
        device="cuda:0",
        closing="tensorrt ran 4.02x faster than eager (99 % interval 3.99 to 4.05).",
    )
    card = GpuSummary(
        device="cuda:0",
        sm_mhz_low=2475,
        sm_mhz_high=2520,
        memory_mhz=10501.0,
        temperature_c=71,
        power_w=318.4,
        p_state=2,
        pcie_generation=4,
        pcie_width=16,
        windows=250,
        dropped_windows=35,
        dropped={HOT: 32, SHAKEN: 2, STRANGER: 1},
    )
    run = msgspec.structs.replace(
        summary.run, settings=msgspec.structs.replace(summary.run.settings, lock_clocks="base")
    )
    workloads = [msgspec.structs.replace(summary.workloads[0], gpus=[card, silent()])]
    return msgspec.structs.replace(summary, run=run, workloads=workloads)


def on_gpu(
    name: str, p50: float, device_memory: DeviceMemory | None, energy: Energy | None, dropped: dict[str, int]
) -> CaseSummary:
    """Return a row of a case that was measured on a card."""
    made: dict[str, Any] = {"version": "1.0", "provider": name, "stages": stages(12.1, 0.4, 0.02), "device": "cuda:0"}
    return msgspec.structs.replace(
        row(case(name, **made), p50=p50, compared=None if name == "eager" else (0.25, 0.24, 0.26, "FASTER")),
        device_memory=device_memory,
        energy=energy,
        dropped=dropped,
        dropped_windows=sum(dropped.values()),
    )


def memory(by: MemorySource, *megabytes: int) -> DeviceMemory:
    """Return device memory: before loading, loaded, after the first run, peak."""
    before, loaded, ran, peak = (size * 1_000_000 for size in megabytes)
    return DeviceMemory(by=by, before_load_bytes=before, loaded_bytes=loaded, ran_bytes=ran, peak_bytes=peak)


def silent() -> GpuSummary:
    """Return a card whose driver says nothing."""
    return GpuSummary(
        device="cuda:1",
        sm_mhz_low=None,
        sm_mhz_high=None,
        memory_mhz=None,
        temperature_c=None,
        power_w=None,
        p_state=None,
        pcie_generation=None,
        pcie_width=None,
        windows=10,
        dropped_windows=0,
        dropped={},
    )
