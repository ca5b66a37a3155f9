"""What `harness doctor` and its parts say: one thing that was looked at, in figures, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["good", "note", "warn"]
"""`warn` makes numbers noisier than they need be; `note` only withholds something."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at: what was found, in figures, and what to do about it where it is not good."""

    what: str
    level: Level
    figure: str
    advice: str = ""
