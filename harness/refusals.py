"""What is refused before a backend is asked, or because of what it answered: never a silent fallback."""

from __future__ import annotations

from harness import devices, registry
from harness.errors import FallbackError, UnavailableError, UnsupportedError
from harness.protocol import CaseSpec, Opened, Probed


def refuse_unsupported(spec: CaseSpec, chosen: bool) -> None:
    """Refuse a case that its backend's capabilities exclude, before a worker is started for it.

    `chosen` says whether the user named the device.

    Raises:
        UnsupportedError: The target, the device, the precision or the dynamic shapes are beyond the backend.
    """
    capabilities = registry.backend(spec.backend).capabilities
    if spec.target is not None:
        if spec.target not in capabilities.compile_targets:
            able = ", ".join(capabilities.compile_targets)
            raise UnsupportedError(
                f"{spec.backend} cannot build for {spec.target} without the device"
                + (f"; it builds for {able}" if able else "")
            )
    elif chosen and devices.kind(spec.device) not in capabilities.devices:
        raise UnsupportedError(
            f"{spec.backend} runs on {' and '.join(capabilities.devices)} only, not on {devices.kind(spec.device)}"
        )
    if spec.options.get("dynamic") and not capabilities.dynamic_shapes:
        raise UnsupportedError(f"{spec.backend} builds engines for one shape only", hint="leave out dynamic=true")
    kind = devices.kind(spec.device)
    if spec.precision not in capabilities.precisions_on(kind):
        able = ", ".join(capabilities.precisions_on(kind))
        why = capabilities.lacks.get(kind, {}).get(spec.precision)
        raise UnsupportedError(
            f"{spec.backend} has no {spec.precision} on {kind}"
            + (f", because {why}" if why else "")
            + (f"; it has {able}" if not why else ""),
            hint=_who_has(spec.precision, kind),
        )


def _who_has(precision: str, kind: str) -> str | None:
    able = [
        name
        for name in registry.backend_names()
        if kind in registry.backend(name).capabilities.devices
        and precision in registry.backend(name).capabilities.precisions_on(kind)
    ]
    return f"backends that have it there: {', '.join(able)}" if able else None


def refuse_unseen(spec: CaseSpec, probed: Probed) -> None:
    """Refuse a case whose backend sees no device of the kind that was asked for.

    Raises:
        UnavailableError: The message is the backend's own reason where it gave one.
    """
    capabilities = registry.backend(spec.backend).capabilities
    wanted = devices.kind(spec.device)
    if spec.target is not None or capabilities.compile_targets or wanted == devices.CPU:
        return  # what can be built without the device says for itself whether it can also run
    if wanted not in {devices.kind(device) for device in probed.devices}:
        raise UnavailableError(
            probed.reason
            or f"{spec.backend} sees no {wanted} device here; it sees {', '.join(probed.devices) or 'none'}",
            hint=probed.hint or registry.install_hint(spec.backend),
        )


def refuse_elsewhere(spec: CaseSpec, opened: Opened) -> None:
    """Refuse a session that has nothing on the device that was asked for.

    Raises:
        FallbackError: All of its nodes run elsewhere; the message says where.
    """
    kind = devices.kind(spec.device)
    if opened.runnable and opened.placement and not opened.placement.get(kind):
        where = ", ".join(f"{count} on {place}" for place, count in opened.placement.items())
        raise FallbackError(f"asked for {kind}, but none of its nodes run there: {where}")
