"""Which releases of a distribution there are, when each came out, and which of them fit an interpreter.

Read from the index that the user's own configuration leads to: uv says which one that is. An index says when a file
was uploaded only where it speaks the JSON form of the simple repository API.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from harness.environments import settings
from harness.environments.installer import run_uv
from harness.errors import EnvironmentFailed

ANSWER_WITHIN_S = 30.0
_JSON, _HTML = "application/vnd.pypi.simple.v1+json", "text/html"
_FROM = "# from "
_NAME = re.compile(r"^[\w.-]+=(?=\w+:)")
"""uv lets an index have a name: `ours=https://...`."""
EXTRA = ("UV_INDEX", "UV_EXTRA_INDEX_URL")
"""uv's variables that name indexes beside the default one."""
NOT_FOUND = 404


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


def wheels(distribution: str) -> tuple[Wheel, ...]:
    """Return all wheels that the user's indexes have of a distribution.

    Raises:
        EnvironmentFailed: No index answers, or none has it.
    """
    return _offer(distribution)[0]


def knows_all(distribution: str) -> bool:
    """Say whether every index of the user's answered, so that what is not among `wheels()` does not exist."""
    return _offer(distribution)[1]


@functools.cache
def _offer(distribution: str) -> tuple[tuple[Wheel, ...], bool]:
    found: list[Wheel] = []
    failure: Exception | None = None
    for index in _indexes_of(distribution):
        try:
            found += _wheels(_files(index, distribution))
        except (URLError, OSError, ValueError, msgspec.DecodeError) as exc:
            if not _absent(exc):  # an index need not have all that others have
                failure = exc
    if not found:
        why = f": {failure}" if failure else ""
        raise EnvironmentFailed(f"the package index does not say which releases of {distribution} there are{why}")
    return tuple(found), failure is None


def _absent(exc: Exception) -> bool:
    if isinstance(exc, HTTPError):
        return exc.code == NOT_FOUND
    return isinstance(exc, URLError) and isinstance(exc.reason, FileNotFoundError)


def _indexes_of(distribution: str) -> list[str]:
    """Return the addresses of the indexes that the user's configuration leads to: uv says which they are."""
    told = {**os.environ, **settings.variables()}
    extra = [_NAME.sub("", text) for variable in EXTRA for text in told.get(variable, "").split()]
    found = [_index_of(distribution, {})]
    if extra:
        with suppress(EnvironmentFailed):  # the default index may lack what another one has
            found.append(_index_of(distribution, dict.fromkeys(EXTRA, "")))
    return list(dict.fromkeys(address.rstrip("/") for address in [*found, *extra]))


def _index_of(distribution: str, changed: Mapping[str, str]) -> str:
    arguments = ["pip", "compile", "-", "--no-deps", "--no-header", "--emit-index-annotation", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="harness-index-") as scratch:
        try:
            said = run_uv(arguments, log=Path(scratch) / "uv.log", stdin=distribution, variables=changed)
        except EnvironmentFailed as exc:
            exc.log = None  # it is gone with its folder
            raise
    found = [line.strip().removeprefix(_FROM) for line in said.splitlines() if line.strip().startswith(_FROM)]
    if not found:
        raise EnvironmentFailed(f"uv does not say from which index {distribution} comes")
    return found[0]


def _files(index: str, distribution: str) -> list[_File]:
    page = f"{index}/{canonicalize_name(distribution)}/"
    if page.startswith("file:"):
        page += "index.html"
    request = Request(page, headers={"Accept": f"{_JSON}, {_HTML};q=0.1"})
    with urlopen(request, timeout=ANSWER_WITHIN_S) as answer:
        kind, content = answer.headers.get_content_type(), answer.read()
    return msgspec.json.decode(content, type=_Page).files if kind == _JSON else _listed(content.decode())


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
