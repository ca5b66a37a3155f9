"""What one reading of a GPU is, what can slow it down, who gives readings, and which card of a machine is `cuda:N`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Slowdown = Literal["power_cap", "heat", "overheated", "power_brake", "hardware"]

SLOWDOWNS: Mapping[Slowdown, str] = {
    "power_cap": "GPU held at its power limit",
    "heat": "GPU slowed to stay cool",
    "overheated": "GPU overheated",
    "power_brake": "GPU braked by its power supply",
    "hardware": "GPU slowed by its hardware protection",
}
"""What lowers a GPU's clocks against its will -> what a report calls it. An idle GPU's low clocks are not among them,
nor are clocks that the user set."""
STRANGER = "another process on the GPU"
UNSTEADY = "GPU clock not steady"
DEVICE = "device"
"""Key among the facts of a GPU in a machine's fingerprint: the `cuda:N` that it is to workers. A card that
CUDA_VISIBLE_DEVICES hides from them lacks it."""


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One look at a GPU. None where the card or its driver does not say, never 0."""

    at_ns: int
    """By the harness' clock."""
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    """Of the whole board: now where the card can say so, else its own mean over the last second."""
    energy_mj: int | None = None
    """Counter since the driver was loaded; it moves on in steps of tens of milliseconds."""
    slowdowns: frozenset[Slowdown] | None = None
    """Those in force at this moment."""
    slowed_ns: Mapping[Slowdown, int] | None = None
    """Counters since the driver was loaded, of those slowdowns that this card counts. In a full reading only, as all
    below."""
    p_state: int | None = None
    """0 is the fastest."""
    pcie_generation: int | None = None
    pcie_width: int | None = None
    used_bytes: int | None = None
    """Device memory in use, by whomever."""
    processes: Mapping[int, int | None] | None = None
    """Processes that compute on the card: id as the driver knows it -> device memory in bytes."""


class GpuSource(Protocol):
    """Where readings of one GPU come from."""

    def read(self, *, full: bool) -> GpuReading:
        """Look once. Quick, so that it can be done tens of times a second; `full` may take a few milliseconds."""


def name_of(device: str, gpus: Sequence[Mapping[str, str]]) -> str | None:
    """Return the name of the card of a fingerprint that is `cuda` or `cuda:N`; None where it is not known."""
    known = {gpu[DEVICE]: gpu for gpu in gpus if DEVICE in gpu}
    # Of earlier runs only the order is known, which is the same where no card was hidden.
    known = known or {f"cuda:{index}": gpu for index, gpu in enumerate(gpus)}
    return known.get("cuda:0" if device == "cuda" else device, {}).get("name")
