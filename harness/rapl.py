"""Energy of the processor's packages, from the counters that Intel and AMD processors keep (RAPL), by Linux' powercap.

A counter is of a whole package: of all of its cores, whoever uses them, of its caches and its idle power. It counts
microjoules, wraps around at a range of its own, and by default only root may read it: what it counts gives away what
others compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path("/")
FOLDERS = "sys/class/powercap/intel-rapl:[0-9]*"
"""Domains of the processor's registers, on AMD too. `intel-rapl-mmio` shows the same package once more."""
PACKAGE = "package-"
"""How a package's domain is named. Others are parts of one (`core`, `dram`), or the whole board (`psys`)."""

State = Literal["absent", "locked", "readable"]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The counter of one package."""

    energy: Path
    range_uj: int
    """It starts again from 0 after this."""

    def read_uj(self) -> int | None:
        """Return the counter in microjoules, or None where we may not read it."""
        try:
            return int(self.energy.read_text())
        except (OSError, ValueError):
            return None


class Meter:
    """The packages' energy from its creation on."""

    def __init__(self, root: Path = ROOT) -> None:
        self._domains = domains(root)
        self._before = _read(self._domains)

    def joules(self) -> float | None:
        """Return what all packages took since then; None where one of the counters cannot be read.

        Right for less than one turn of a counter, which is minutes at full power.
        """
        return spent_j(self._before, _read(self._domains), {each.energy: each.range_uj for each in self._domains})


def spent_j(
    before: Mapping[Path, int] | None, after: Mapping[Path, int] | None, ranges_uj: Mapping[Path, int]
) -> float | None:
    """Return the joules between two readings of the same counters; one that fell has started again from 0."""
    if not before or not after:
        return None
    spent_uj = 0
    for path, start in before.items():
        spent_uj += after[path] - start + (ranges_uj[path] if after[path] < start else 0)
    return spent_uj / 1e6


def domains(root: Path = ROOT) -> list[Domain]:
    """Return the packages that the kernel shows, readable or not."""
    found = []
    for folder in sorted(root.glob(FOLDERS)):
        try:
            if folder.name.count(":") == 1 and (folder / "name").read_text().startswith(PACKAGE):
                range_uj = int((folder / "max_energy_range_uj").read_text())
                found.append(Domain(energy=folder / "energy_uj", range_uj=range_uj))
        except (OSError, ValueError):
            continue  # not a domain that counts
    return found


def state(root: Path = ROOT) -> State:
    """Return whether this machine has such counters, and whether we may read them."""
    known = domains(root)
    if not known:
        return "absent"
    return "locked" if _read(known) is None else "readable"


def _read(known: list[Domain]) -> dict[Path, int] | None:
    values: dict[Path, int] = {}
    for each in known:
        value = each.read_uj()
        if value is None:
            return None
        values[each.energy] = value
    return values
