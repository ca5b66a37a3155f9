"""What the libraries of a worker printed."""

from __future__ import annotations

import os
from pathlib import Path

LOG_TAIL_BYTES = 4000


def log_tail(path: Path) -> str:
    """Return the last lines of a log file, at most 4 kB."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace").strip()
    except OSError:
        return ""
