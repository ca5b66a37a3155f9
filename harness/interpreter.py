"""A Python that workers run in, where it is another one than that of harness."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """An interpreter and all that is installed for it."""

    executable: str
    version: str
    """Of Python."""
    packages: dict[str, str]
    """Distribution -> version."""
    until: str | None = None
    """When it was made for a release: no dependency is newer than this. None: they may be of any date."""

    @property
    def python(self) -> Path:
        """The path of the interpreter."""
        return Path(self.executable)
