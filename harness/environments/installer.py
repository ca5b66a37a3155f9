"""Running uv: its output in a log, a time limit, and nothing left running whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from harness.environments import settings
from harness.errors import EnvironmentFailed, StoreError
from harness.paths import FREE_SPACE

VARIABLE = "HARNESS_UV"
"""Environment variable: another uv than the one that came with harness."""
TIMEOUT_S = 900.0
_FULL = "No space left on device"


def find_uv() -> str:
    """Return the path of uv.

    Raises:
        EnvironmentFailed: It is not installed.
    """
    if chosen := os.environ.get(VARIABLE):
        return chosen
    try:
        import uv

        return str(uv.find_uv_bin())
    except (ImportError, FileNotFoundError) as exc:
        raise EnvironmentFailed(f"uv, which makes environments, is missing: {exc}", hint="pip install uv") from exc


def run_uv(
    arguments: Sequence[str],
    *,
    log: Path,
    stdin: str = "",
    timeout_s: float = TIMEOUT_S,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Run uv and return what it printed to stdout. What it says on stderr goes to the end of the log.

    `variables` overrule the environment and the user's settings.

    Raises:
        EnvironmentFailed: It failed, hung or is missing; the message says why in uv's own words.
        StoreError: The disk is full.
    """
    uv = find_uv()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        sink.write(f"$ uv {' '.join(arguments)}\n".encode())
        sink.flush()
        before = sink.tell()
        try:
            process = subprocess.Popen(
                [uv, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env={**os.environ, **settings.variables(), **variables},
                start_new_session=True,  # Ctrl-C reaches us only, and one signal reaches all that uv started
            )
        except OSError as exc:
            raise EnvironmentFailed(f"{uv} cannot be started: {exc.strerror}", hint="pip install uv") from exc
        try:
            answer, _ = process.communicate(stdin.encode(), timeout=timeout_s)
        except BaseException as exc:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(exc, subprocess.TimeoutExpired):
                raise EnvironmentFailed(f"uv did not end within {timeout_s:g} s", log=str(log)) from exc
            raise
    if process.returncode:
        raise _failed(process.returncode, log, before)
    return answer.decode()


def _failed(code: int, log: Path, before: int) -> EnvironmentFailed | StoreError:
    said = log.read_bytes()[before:].decode(errors="replace")
    if _FULL in said:
        return StoreError(f"uv cannot write: {_FULL}", hint=FREE_SPACE)
    why, hint = reason(said)
    silent = f"uv was ended by signal {-code}" if code < 0 else f"uv ended with exit code {code}"
    return EnvironmentFailed(why or silent, hint=hint, log=str(log))


def reason(said: str) -> tuple[str, str | None]:
    """Return why uv failed, in its own words, and its hint; an empty text where it did not say."""
    causes: list[str] = []
    hints: list[str] = []
    into: list[str] | None = None
    for line in (raw.strip(" │├╰─▶×") for raw in said.splitlines()):
        head, colon, rest = line.partition(":")
        if colon and head.lower() in ("error", "cause", "caused by", "hint"):
            into = hints if head.lower() == "hint" else causes
            into.append(rest.strip())
        elif not line:
            into = None
        elif into:
            into[-1] += f" {line}"
    # The first of several only says that there is no solution; the last one says why.
    return (causes[-1] if causes else ""), " ".join(hints) or None
