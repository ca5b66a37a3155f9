"""Errors that people read: what went wrong, where, how to fix it, how to see it again."""

from __future__ import annotations

from typing import ClassVar


class HarnessError(Exception):
    """Base of every error that the harness raises on purpose.

    `status` is the outcome a case gets when this error ends it; `exit_code` is what the command returns
    when it ends the whole run.
    """

    status: ClassVar[str] = "run_failed"
    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, hint: str | None = None, log: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log
        self.worker_traceback = ""
        """Where in the worker it was raised, for errors that crossed the process border."""

    def lines(self) -> list[str]:
        """Return the error as the lines that a terminal shows."""
        out = [f"error: {self.message}"]
        if self.hint:
            out.append(f"  hint: {self.hint}")
        if self.log:
            out.append(f"  log: {self.log}")
        return out


class UsageError(HarnessError):
    """The user asked for something that cannot be: unknown names, bad values, conflicting options."""

    exit_code = 2


class StoreError(HarnessError):
    """A file of ours cannot be read or written: damaged, from a newer version, no permission, disk full."""

    exit_code = 2


class UnavailableError(HarnessError):
    """The backend is not installed, or this machine lacks what it needs."""

    status = "unavailable"


class EnvironmentFailed(UnavailableError):
    """An environment for one release of a backend cannot be made. `log` holds what the installer said."""

    @property
    def log_tail(self) -> str:
        """The last lines of the log."""
        from pathlib import Path

        from harness.logs import log_tail

        return log_tail(Path(self.log)) if self.log else ""


class UnsupportedError(HarnessError):
    """The backend works here but cannot do what the case asks."""

    status = "unsupported"


class ExportError(HarnessError):
    """The reference model could not be exported, or its export does not equal eager."""

    status = "export_failed"


class CompileError(HarnessError):
    """The backend failed to build an engine."""

    status = "compile_failed"


class RunError(HarnessError):
    """An engine was built or loaded but failed to run."""

    status = "run_failed"


class FallbackError(HarnessError):
    """What runs is not what was asked for."""

    status = "fallback"


class OutOfMemory(HarnessError):
    """Host or device memory ran out."""

    status = "out_of_memory"


class StepTimeout(HarnessError):
    """A step took longer than its limit."""

    status = "timeout"


class WorkerCrashed(HarnessError):
    """A worker died, or sent something that is not the protocol."""

    status = "crashed"


BY_STATUS: dict[str, type[HarnessError]] = {
    kind.status: kind
    for kind in (
        UnavailableError,
        UnsupportedError,
        ExportError,
        CompileError,
        RunError,
        FallbackError,
        OutOfMemory,
        StepTimeout,
        WorkerCrashed,
    )
}
