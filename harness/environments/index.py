"""Which releases of a distribution there are, when each came out, and which of them fit an interpreter.

Read from the index that the user's own configuration leads to: uv says which one that is. An index says when a file
was uploaded only where it speaks the JSON form of the simple repository API.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from harness.environments.installer import run_uv
from harness.errors import EnvironmentFailed

ANSWER_WITHIN_S = 30.0
_JSON, _HTML = "application/vnd.pypi.simple.v1+json", "text/html"
_FROM = "# from "


class Release(NamedTuple):
    """One version of a distribution that can be installed, and when its wheel came out."""

    version: str
    date: datetime | None
    """UTC; None where the index does not say."""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel on an index."""

    version: Version
    tags: frozenset[Tag]
    requires: SpecifierSet
    """Python versions."""
    uploaded: datetime | None
    yanked: bool

    def fits(self, python: tuple[int, int]) -> bool:
        """Say whether an interpreter of this machine can have it."""
        return not self.tags.isdisjoint(_tags(python)) and f"{python[0]}.{python[1]}.99" in self.requires


class _File(msgspec.Struct, rename="kebab"):
    filename: str
    requires_python: str | None = None
    upload_time: str | None = None
    yanked: bool | str = False


class _Page(msgspec.Struct):
    files: list[_File]


def releases(distribution: str, python: tuple[int, int] | None = None, *, previews: bool = False) -> list[Release]:
    """Return the releases that an interpreter can have, oldest first: nothing withdrawn, previews only if asked for.

    `python` is its version; left out, that of the running one.

    Raises:
        EnvironmentFailed: The index does not answer, or does not have the distribution.
    """
    python = python or sys.version_info[:2]
    dates: dict[Version, datetime | None] = {}
    for wheel in wheels(distribution):
        if wheel.yanked or (wheel.version.is_prerelease and not previews) or not wheel.fits(python):
            continue
        known = dates.get(wheel.version)
        dates[wheel.version] = min(known, wheel.uploaded) if known and wheel.uploaded else known or wheel.uploaded
    return [Release(str(version), dates[version]) for version in sorted(dates)]


@functools.cache
def wheels(distribution: str) -> tuple[Wheel, ...]:
    """Return all wheels that the index has of a distribution.

    Raises:
        EnvironmentFailed: The index does not answer, or does not have it.
    """
    url = f"{_index_of(distribution).rstrip('/')}/{canonicalize_name(distribution)}/"
    try:
        request = Request(url, headers={"Accept": f"{_JSON}, {_HTML};q=0.1"})
        with urlopen(request, timeout=ANSWER_WITHIN_S) as answer:
            kind, content = answer.headers.get_content_type(), answer.read()
        files = msgspec.json.decode(content, type=_Page).files if kind == _JSON else _listed(content.decode())
    except (URLError, OSError, ValueError, msgspec.DecodeError) as exc:
        raise EnvironmentFailed(
            f"the package index does not say which releases of {distribution} there are: {exc}"
        ) from exc
    return tuple(_wheels(files))


def _index_of(distribution: str) -> str:
    """Return the address of the index that the user's configuration leads to."""
    arguments = ["pip", "compile", "-", "--no-deps", "--no-header", "--emit-index-annotation", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="harness-index-") as scratch:
        try:
            said = run_uv(arguments, log=Path(scratch) / "uv.log", stdin=distribution)
        except EnvironmentFailed as exc:
            exc.log = None  # it is gone with its folder
            raise
    found = [line.strip().removeprefix(_FROM) for line in said.splitlines() if line.strip().startswith(_FROM)]
    if not found:
        raise EnvironmentFailed(f"uv does not say from which index {distribution} comes")
    return found[0]


def _wheels(files: Iterable[_File]) -> Iterable[Wheel]:
    for file in files:
        try:
            _, version, _, tags = parse_wheel_filename(file.filename)
            requires = SpecifierSet(file.requires_python or "")
        except (InvalidWheelFilename, InvalidSpecifier, ValueError):
            continue  # a source archive, or of before the names were ruled
        withdrawn = file.yanked is not False
        yield Wheel(version=version, tags=tags, requires=requires, uploaded=_when(file.upload_time), yanked=withdrawn)


def _when(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None
    except ValueError:
        return None


@functools.cache
def _tags(python: tuple[int, int]) -> frozenset[Tag]:
    return frozenset([*cpython_tags(python), *compatible_tags(python, f"cp{python[0]}{python[1]}")])


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.files: list[_File] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "a" and (target := told.get("href")):
            name = unquote(urlsplit(target).path.rpartition("/")[2])
            requires = told.get("data-requires-python")
            self.files.append(_File(filename=name, requires_python=requires, yanked="data-yanked" in told))


def _listed(page: str) -> list[_File]:
    links = _Links()
    links.feed(page)
    return links.files
