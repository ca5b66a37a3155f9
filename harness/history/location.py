"""Which database holds the history: `--store`, `HARNESS_STORE`, `[store]` in harness.toml, or a file of the user's.

none                                     no history
path/to/history.sqlite                   a SQLite file, made where there is none
sqlite:///path/to/history.sqlite         the same
postgresql://user:password@host/name     a PostgreSQL database
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from harness.errors import UsageError
from harness.paths import users_path

VARIABLE = "HARNESS_STORE"
NONE = "none"
FILE = "history.sqlite"
FORMS = "a path, postgresql://user:password@host/name, or: none"


@dataclass(frozen=True)
class Location:
    """Where a history is: a file or a server. Made by `locate()`."""

    path: Path | None = None
    url: str = ""
    """Of a server, as SQLAlchemy wants it."""

    @property
    def shown(self) -> str:
        """Return what may be printed: without a password."""
        if self.path is not None:
            return str(self.path)
        parts = urlsplit(self.url)
        user, server = parts.username, parts.netloc.rpartition("@")[2]
        query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name != "password"], safe="/")
        where = f"{user}@{server}" if user else server
        return f"postgresql://{where}{parts.path}{'?' if query else ''}{query}"

    @property
    def slug(self) -> str:
        """Return a name for a folder of its own; the same whatever the password."""
        return hashlib.sha256(self.shown.encode()).hexdigest()[:16]


def data_root() -> Path:
    """Return the folder of what the user wants to keep, unlike a cache."""
    from platformdirs import user_data_path

    return user_data_path("harness")


def locate(text: str | None) -> Location | None:
    """Return where the history is; None where the user wants none.

    Raises:
        UsageError: A kind of database that cannot be used, or a driver that is not installed.
    """
    given = (text or "").strip()
    if given.lower() == NONE:
        return None
    if not given:
        return _file(data_root() / FILE)
    scheme, separator, rest = given.partition("://")
    if not separator:
        return _file(users_path(given))
    if scheme == "sqlite":
        if not rest.removeprefix("/") or rest.endswith(":memory:"):
            raise UsageError(f"--store {given} names no file", hint="--store path/to/history.sqlite")
        return _file(users_path(rest.removeprefix("/")))
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise UsageError(f"--store: '{scheme}' is no kind of database that harness can use", hint=f"give {FORMS}")
    if not re.fullmatch(r"[^/]*/[^/?]+(\?.*)?", rest):
        raise UsageError(f"--store {scheme}://... names no database", hint=f"give {FORMS}")
    if importlib.util.find_spec("psycopg") is None:
        raise UsageError(
            "a store on a PostgreSQL server needs psycopg, not installed", hint="pip install 'harness[postgres]'"
        )
    return Location(url=f"postgresql+psycopg://{rest}")


def _file(path: Path) -> Location:
    if path.is_dir():
        raise UsageError(f"--store {path} is a folder", hint=f"name the file in it: --store {path / FILE}")
    return Location(path=path)
