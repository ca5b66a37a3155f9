"""Hold the clocks of GPUs at a fixed rate for as long as the parent lives: a script, started by `harness/clocks.py`.

    python guardian.py MHZ|base UUID...

It locks the clocks, says `locked` or why not on stdout, waits for the end of stdin and resets them. Whatever ends the
parent, SIGKILL included, closes that pipe; signals for the parent's group and for programs in general do not end it.
It imports nothing of this project, so that nothing can fail between a lock and its end.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def main(rate: str, uuids: list[str]) -> int:
    """Lock, wait, reset; return the exit code: 0 where all clocks are reset, 1 where some may not be."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    import pynvml

    locked = []
    clean = True
    try:
        pynvml.nvmlInit()
        mhz = pynvml.NVML_CLOCK_LIMIT_ID_TDP if rate == "base" else int(rate)
        for uuid in uuids:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            locked.append(handle)  # before: a call that fails may have changed something
            pynvml.nvmlDeviceSetGpuLockedClocks(handle, mhz, mhz)
        _answer("locked")
        sys.stdin.buffer.read()
    except pynvml.NVMLError as exc:
        _answer(f"{exc.value} {exc}")
    except OSError:
        pass  # the parent is gone already
    finally:
        for handle in locked:
            try:
                pynvml.nvmlDeviceResetGpuLockedClocks(handle)
            except pynvml.NVMLError:
                clean = False
    return 0 if clean else 1


def _answer(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # Python put this file's folder first: the modules beside it have everyday names.
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]
    sys.exit(main(sys.argv[1], sys.argv[2:]))
