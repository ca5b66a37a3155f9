"""Which engines are held together: all that fit, on the host and on the card where they run on one. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory that an engine takes, or that there is for engines."""

    host_bytes: int
    device_bytes: int = 0
    """0 for an engine that takes none, or of which nobody can say."""

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            host_bytes=self.host_bytes + other.host_bytes, device_bytes=self.device_bytes + other.device_bytes
        )

    def fits(self, room: Memory) -> bool:
        """Say whether there is room for it, on the host and on the card."""
        return self.host_bytes <= room.host_bytes and self.device_bytes <= room.device_bytes


NONE = Memory(host_bytes=0)


def plan_groups(baseline: str, needs: Mapping[str, Memory], capacity: Memory, *, copies: int = 2) -> list[list[str]]:
    """Split cases into groups whose engines fit in memory together, the baseline in every group.

    `needs` holds what each case takes; the baseline counts `copies` times, two with its control. A case that does not
    fit beside the baseline at all gets a group of its own: measuring it is worth the risk, and a failure is a row.
    """
    always = sum([needs.get(baseline, NONE)] * copies, start=NONE)
    groups: list[list[str]] = []
    taken = always
    for case, need in needs.items():
        if case == baseline:
            continue
        if not groups or not (taken + need).fits(capacity):
            groups.append([])
            taken = always
        groups[-1].append(case)
        taken += need
    return groups or [[]]


def control_is_the_trouble(baseline: str, needs: Mapping[str, Memory], capacity: Memory) -> bool:
    """Say whether some candidate fits beside one worker of the baseline, but not beside two."""
    own = needs[baseline]
    others = [need for case, need in needs.items() if case != baseline] or [NONE]
    return any((own + other).fits(capacity) and not (own + own + other).fits(capacity) for other in others)
