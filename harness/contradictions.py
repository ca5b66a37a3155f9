"""Options of a comparison that exclude one another, and which of them gives way."""

from __future__ import annotations

from typing import Any

from harness.errors import UsageError

RESUMABLE = {
    "resume", "out", "budget", "launches", "timeout", "memory_limit", "format_", "as_json", "verbose", "quiet",
    "labels", "store",
}  # fmt: skip
"""What may be given beside `--resume`; everything else is part of what was asked for the first time."""


def refuse_conflicts(given: dict[str, Any], explicit: set[str]) -> None:
    """Refuse options that were given beside others which they contradict.

    Raises:
        UsageError: It names two of them.
    """
    conflicts = [("quick", "launches"), ("as_json", "format_"), ("verbose", "quiet")]
    conflicts += [(one, other) for one in ("target", "card") for other in ("devices", "parallel", "baseline")]
    for one, other in conflicts:
        if {one, other} <= explicit:
            names = {"as_json": "--json", "format_": "--format", "devices": "--device", "card": "--for"}
            raise UsageError(
                f"{names.get(one, '--' + one)} and {names.get(other, '--' + other)} contradict each other; give one"
            )
    if given["resume"] and (extra := sorted(explicit - RESUMABLE)):
        singular = {
            "models": "model",
            "dims": "dim",
            "shapes": "shape",
            "devices": "device",
            "card": "for",
            "precisions": "precision",
        }
        flags = ", ".join("--" + singular.get(name, name).replace("_", "-") for name in extra)
        raise UsageError(f"--resume takes everything from the run; leave out {flags}")


def settled(given: dict[str, Any], explicit: set[str]) -> dict[str, Any]:
    """Return what was given, without what the command line overrides in a file of defaults."""
    changes: dict[str, Any] = {}
    if "suite" in explicit and "models" not in explicit:
        changes["models"] = ()
    if "models" in explicit and "suite" not in explicit:
        changes["suite"] = None
    if "devices" in explicit:
        changes["target"] = changes["card"] = None
    if "launches" in explicit and "quick" not in explicit:
        changes["quick"] = False
    return {**given, **changes}
