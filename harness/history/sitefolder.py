"""The folder of a site: which files in it are ours, and what each was made from.

A manifest in it lists them. It names a page before that page is written and forgets it after it is gone, so that a
publish which is killed leaves no file that the next one would not know. Pages are replaced one by one, each in one
step; whoever writes them writes the pages that are linked to first and removes others last, so that the site can be
read all the while.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from harness.errors import StoreError, UsageError
from harness.paths import make_folder, write_atomically
from harness.records import Record

MANIFEST = ".harness-site.json"
FORMAT = 1
NAMED = 5
"""Foreign files that a message names."""


class Entry(Record, frozen=True, kw_only=True):
    """One page."""

    made_from: str
    """Digest of what it shows and of the code that draws it; empty: it was about to be written."""
    sha256: str
    """Of its content."""


class Manifest(Record, frozen=True, kw_only=True):
    """All pages by their paths below the folder."""

    format: int = FORMAT
    pages: dict[str, Entry]


class SiteFolder:
    """A folder that holds a site, or is to hold one."""

    def __init__(self, path: Path) -> None:
        """Look at a folder.

        Raises:
            UsageError: It holds files that are not ours, or is a file.
            StoreError: Its manifest cannot be read.
        """
        self.path = path
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file", hint="name a folder for the site")
        self.pages = self._manifest()
        self._refuse_foreign()

    def is_current(self, page: str, made_from: str) -> bool:
        """Say whether a page lies there as it would be made now."""
        entry = self.pages.get(page)
        return entry is not None and entry.made_from == made_from and self._digest(page) == entry.sha256

    def announce(self, pages: Iterable[str]) -> None:
        """Say which pages are about to be written."""
        make_folder(self.path, "the folder of the site", hint="choose another folder")
        new = {page: Entry(made_from="", sha256="") for page in pages if page not in self.pages}
        if new:
            self.pages |= new
            self.save()

    def write(self, page: str, made_from: str, content: bytes) -> bool:
        """Replace a page; return whether it had another content."""
        digest = hashlib.sha256(content).hexdigest()
        changed = self._digest(page) != digest
        if changed:
            target = self.path / page
            target.parent.mkdir(exist_ok=True)
            write_atomically(target, content)
        self.pages[page] = Entry(made_from=made_from, sha256=digest)
        return changed

    def remove(self, page: str) -> None:
        """Remove a page, and its folder where it was the last one there."""
        target = self.path / page
        with suppress(FileNotFoundError):
            target.unlink()
        with suppress(OSError):  # other pages are in it
            target.parent.rmdir()
        del self.pages[page]

    def save(self) -> None:
        """Write the manifest."""
        manifest = Manifest(pages=dict(sorted(self.pages.items())))
        write_atomically(self.path / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))

    def _manifest(self) -> dict[str, Entry]:
        file = self.path / MANIFEST
        try:
            found = msgspec.json.decode(file.read_bytes(), type=Manifest)
        except FileNotFoundError:
            return {}
        except OSError as exc:
            raise StoreError(f"{file} cannot be read: {exc.strerror}") from exc
        except msgspec.DecodeError as exc:
            raise StoreError(
                f"{file} is damaged: {exc}", hint="remove that folder, or publish into another one"
            ) from exc
        if found.format != FORMAT:
            raise StoreError(f"{file} is of another version of harness", hint="publish into another folder")
        return dict(found.pages)

    def _refuse_foreign(self) -> None:
        """Refuse a folder with files of others; hidden ones, such as those of git, are left alone."""
        found = []
        for path in sorted(self.path.rglob("*")) if self.path.is_dir() else []:
            name = path.relative_to(self.path)
            hidden = any(part.startswith(".") for part in name.parts)
            if not hidden and (path.is_symlink() or not path.is_dir()) and name.as_posix() not in self.pages:
                found.append(name.as_posix())
        if found:
            names = ", ".join(found[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
            raise UsageError(
                f"{self.path} holds files that harness publish did not make: {names}",
                hint="name a new or an empty folder",
            )

    def _digest(self, page: str) -> str | None:
        try:
            return hashlib.sha256((self.path / page).read_bytes()).hexdigest()
        except OSError:
            return None
