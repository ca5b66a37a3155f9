"""From records of GPUs to figures: energy and device memory of a case, the state of a card. Pure functions."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from harness import ratios
from harness.measure import Boundary
from harness.records import CONTROL, DeviceMemory, Sitting, Window, Workload
from harness.summary import Energy, GpuSummary


def energy(sittings: Iterable[Sitting]) -> Energy | None:
    """Return the energy of one inference: the median over the windows that tell it best.

    By the energy counter where a window was long enough for it, else by readings of the power. Of windows of the same
    kind those in which the card was disturbed only count where there are no others.
    """
    windows = [window for sitting in sittings for window in [*sitting.energy, *_of_compute(sitting)] if window.gpu]
    known = [(window, window.gpu) for window in windows if window.gpu and window.gpu.energy_mj is not None]
    for by in ("counter", "power"):
        of_kind = [(window, gpu) for window, gpu in known if gpu.energy_by == by]
        calm = [pair for pair in of_kind if not pair[1].marks] or of_kind
        if calm:
            return Energy(
                mj=statistics.median((gpu.energy_mj or 0.0) / len(window.samples_ns) for window, gpu in calm),
                by="counter" if by == "counter" else "power",
            )
    return None


def device_memory(sittings: Iterable[Sitting]) -> DeviceMemory | None:
    """Return the most that any worker of a case took, phase by phase; by the list of processes where one was in it."""
    found = [sitting.device_memory for sitting in sittings if sitting.device_memory is not None]
    best = [one for one in found if one.by == "process"] or found
    if not best:
        return None
    return DeviceMemory(
        by=best[0].by,
        before_load_bytes=max(one.before_load_bytes for one in best),
        loaded_bytes=max(one.loaded_bytes for one in best),
        ran_bytes=max(one.ran_bytes for one in best),
        peak_bytes=max(one.peak_bytes for one in best),
    )


def gpus(workload: Workload) -> list[GpuSummary]:
    """Return what each card did over the windows of all cases that ran on it."""
    cases: dict[str, list[str]] = {}
    for case in workload.cases:
        cases.setdefault(case.device, []).extend([case.id, case.id + CONTROL])
    found = [_gpu(workload, device, ids) for device, ids in sorted(cases.items())]
    return [one for one in found if one.windows]


def added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of several counts."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _gpu(workload: Workload, device: str, cases: list[str]) -> GpuSummary:
    sittings = [sitting for launch in workload.launches for sitting in launch.sittings if sitting.case in cases]
    every = [window.gpu for sitting in sittings for window in sitting.windows if window.gpu is not None]
    visits = [ratios.visits(workload.launches, case, kind) for case in cases for kind in get_args(Boundary)]
    power = [gpu.power_w for gpu in every if gpu.power_w is not None]
    memory = [gpu.memory_mhz for gpu in every if gpu.memory_mhz is not None]
    return GpuSummary(
        device=device,
        sm_mhz_low=min((gpu.sm_mhz_low for gpu in every if gpu.sm_mhz_low is not None), default=None),
        sm_mhz_high=max((gpu.sm_mhz_high for gpu in every if gpu.sm_mhz_high is not None), default=None),
        memory_mhz=statistics.median(memory) if memory else None,
        temperature_c=max((gpu.temperature_c for gpu in every if gpu.temperature_c is not None), default=None),
        power_w=statistics.fmean(power) if power else None,
        p_state=max((gpu.p_state for gpu in every if gpu.p_state is not None), default=None),
        pcie_generation=min((gpu.pcie_generation for gpu in every if gpu.pcie_generation is not None), default=None),
        pcie_width=min((gpu.pcie_width for gpu in every if gpu.pcie_width is not None), default=None),
        windows=len(every),
        dropped_windows=sum(one.dropped_windows for one in visits),
        dropped=added([one.dropped for one in visits]),
    )


def _of_compute(sitting: Sitting) -> list[Window]:
    return [window for window in sitting.windows if window.boundary == "compute"]
