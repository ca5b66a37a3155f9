"""What a reader of a number must know: figures that say it is not what it seems. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from harness import devices
from harness.records import Case
from harness.summary import Latency

HOST_BOUND = 0.8
"""Share of the device's time that enqueuing may take before the host decides how fast the device is."""
GRAPHS = ("cuda_graph", "cuda_graphs")
"""Facts by which backends say that CUDA graphs run. The device then waits for no launches of the host's: a replay that
keeps the host as long as the device works waits for it to be done, as some runtimes do."""
UNSTEADY = 0.025
"""Coefficient of variation above which a GPU's samples are not those of a card that runs steadily."""

TORN = 1.5
"""Factor between the p50 of all samples and the median over windows from which on they tell different stories."""


def torn(latency: Latency | None) -> bool:
    """Say whether a p50 is not what most windows saw, because the windows differ so much."""
    if latency is None or latency.window_p50_ns is None or min(latency.window_p50_ns, latency.p50.value) <= 0:
        return False
    high, low = max(latency.window_p50_ns, latency.p50.value), min(latency.window_p50_ns, latency.p50.value)
    return high >= TORN * low


def off_device(case: Case) -> int | None:
    """Return how many nodes run elsewhere than on the case's own device; None where nobody can say."""
    if case.placement is None:
        return None
    kind = devices.kind(case.device)
    return sum(count for place, count in case.placement.items() if place != kind)


def cautions(
    case: Case, *, compute: Latency | None, device: Latency | None, outside: Latency | None, enqueue_ns: float | None
) -> Iterator[str]:
    """Yield sentences with figures; most are for a case that runs on a GPU.

    Args:
        compute, device, outside: What was measured at the three boundaries.
        enqueue_ns: Median time that `execute()` kept the host.
    """
    if torn(compute) and compute is not None and compute.window_p50_ns is not None:
        yield (
            f"unsteady: p50 is {compute.p50.value / 1e6:.3g} ms over all samples, of which quick windows hold more, "
            f"but {compute.window_p50_ns / 1e6:.3g} ms is the median over windows; ratios count every window alike"
        )
    if devices.kind(case.device) == devices.CPU:
        return  # a CPU enqueues nothing and copies little, and its noise is what intervals are for
    if away := off_device(case):
        total = sum((case.placement or {}).values())
        yield f"{away} of {total} nodes do not run on {case.device}"
    if device is not None and enqueue_ns is not None and enqueue_ns > HOST_BOUND * device.p50.value:
        took = f"enqueuing takes {enqueue_ns / 1e6:.3g} ms of the {device.p50.value / 1e6:.3g} ms that the device works"
        if not any(case.facts.get(name) for name in GRAPHS):
            yield f"host bound: {took}, so the device waits for the host; CUDA graphs take most of that away"
        elif case.facts.get("graph_breaks"):
            yield f"host bound: {took}, though parts of it are CUDA graphs: what runs between them waits for the host"
    if compute is not None and outside is not None:
        copies_ns = outside.p50.value - compute.p50.value
        if copies_ns > compute.p50.value:
            yield (
                f"copies in and out take {copies_ns / 1e6:.3g} ms, more than computing ({compute.p50.value / 1e6:.3g} "
                "ms): what counts in deployment is whether data is on the device already"
            )
    if compute is not None and compute.cv > UNSTEADY:
        yield (
            f"the coefficient of variation is {compute.cv:.1%}: a card that runs steadily stays below {UNSTEADY:.1%}; "
            "clocks, heat or other work on it may be why"
        )
