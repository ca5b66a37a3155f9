"""Where the versions of a bisect come from: the releases of a backend, each in an environment of its own.

Environments are made between measurements, never during one: an installer takes the processor, the disk and the page
cache from what is being timed. Those that are sure to be needed, of both ends and of the first version to try, are made
at the same time, while the model is exported; from then on one by one, as soon as a verdict says which is next. Making
both possible next ones ahead would take time between the same two measurements, and one of them would be for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

from packaging.version import InvalidVersion, Version

from harness.bisect.found import Release
from harness.environments import distribution_of, ensure, releases
from harness.errors import UnavailableError, UsageError
from harness.plan import Variant

AT_ONCE = 3
NEAR = 3


class Source(Protocol):
    """Versions that can be measured."""

    distribution: str

    def listed(self) -> list[Release]:
        """Return the releases that there are, oldest first.

        Raises:
            UnavailableError: Nobody says which there are.
        """

    def install(self, version: str) -> Mapping[str, str]:
        """Make sure that a version can be run; return what is installed in its environment.

        Raises:
            UnavailableError: It cannot be installed.
        """

    def text(self, version: str) -> str:
        """Return what asks for it, in the grammar of `--backends`."""


class Released:
    """The releases of a backend on the package index."""

    def __init__(self, variant: Variant, kind: str, *, previews: bool) -> None:
        """Take a backend with its options, on a kind of device.

        Raises:
            UsageError: The backend has no releases that could be chosen.
        """
        self.distribution = distribution_of(variant.backend, variant.parsed(), kind)
        self._variant = variant
        self._kind = kind
        self._previews = previews

    def listed(self) -> list[Release]:
        """Return the releases that fit this Python, oldest first."""
        return [
            Release(version=one.version, released=one.date.date().isoformat() if one.date else None)
            for one in releases(self.distribution, previews=self._previews)
        ]

    def install(self, version: str) -> Mapping[str, str]:
        """Make the environment of a version, or find it."""
        return ensure(self._variant.backend, version, options=self._variant.parsed(), kind=self._kind).packages

    def text(self, version: str) -> str:
        """Return `NAME@VERSION` with the options."""
        return self._variant.id.replace(self._variant.backend, f"{self._variant.backend}@{version}", 1)


class Installed:
    """What has been installed so far. Safe to be used from several threads."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._packages: dict[str, Mapping[str, str]] = {}
        self._failed: dict[str, UnavailableError] = {}
        self._lock = threading.Lock()

    def packages(self, version: str) -> Mapping[str, str]:
        """Return what is in the environment of a version, after making it if need be. It is tried once.

        Raises:
            UnavailableError: It cannot be made.
        """
        self._install(version)
        if version in self._failed:
            raise self._failed[version]
        return self._packages[version]

    def is_known(self, version: str) -> bool:
        """Say whether it was tried, or noted, already."""
        return version in self._packages or version in self._failed

    def failure(self, version: str) -> UnavailableError | None:
        """Return why a version cannot be installed, if that is so."""
        return self._failed.get(version)

    def note(self, version: str, packages: Mapping[str, str]) -> None:
        """Take what an earlier bisect found in an environment, which may be gone by now."""
        self._packages.setdefault(version, packages)

    @contextmanager
    def ahead(self, versions: Sequence[str]) -> Iterator[None]:
        """Make environments at the same time, while something else is done that nobody times."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            made = [pool.submit(self._install, version) for version in versions]
            try:
                yield
            except BaseException:  # Ctrl-C above all: no more of them is begun
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            for one in made:
                one.result()

    def _install(self, version: str) -> None:
        if self.is_known(version):
            return
        try:
            packages = self.source.install(version)
        except UnavailableError as exc:
            with self._lock:
                self._failed[version] = exc
        else:
            with self._lock:
                self._packages[version] = packages


def between(source: Source, given: Mapping[str, Any]) -> list[Release]:
    """Return the versions to search among, from the good end to the bad one, which may be the older one.

    Raises:
        UsageError: An end is missing, the same as the other, or not among the versions.
        UnavailableError: Nobody says which releases there are.
    """
    listed = [part.strip() for part in (given["versions"] or "").split(",") if part.strip()]
    if given["versions"] is not None and len(set(listed)) < max(2, len(listed)):
        raise UsageError(f"--versions {given['versions']}: at least two versions are wanted, each once")
    try:
        known = source.listed()
    except UnavailableError:
        if not listed:
            raise
        known = []  # a list of one's own needs no index; that the dates are missing shows
    dates = {one.version: one.released for one in known}
    if listed:
        known = [Release(version=name, released=dates.get(name)) for name in map(_canonical, listed)]
    names = [one.version for one in known]
    good, bad = (_end(given, names, which, own_list=bool(listed)) for which in ("good", "bad"))
    if good == bad:
        raise UsageError(f"--good and --bad are both {good}: there is nothing between them")
    first, last = names.index(good), names.index(bad)
    return known[first : last + 1] if first < last else known[last : first + 1][::-1]


def _end(given: Mapping[str, Any], names: Sequence[str], which: str, *, own_list: bool) -> str:
    asked = given[which]
    if asked is None:
        if not own_list:
            raise UsageError(f"--{which} is missing", hint="--good VERSION --bad VERSION, or --versions A,B,C")
        return names[0] if which == "good" else names[-1]
    version = _canonical(asked)
    if version not in names:
        where = "is not in --versions" if own_list else "is no release that fits this Python"
        preview = "; --previews for what is not final" if Version(version).is_prerelease and not own_list else ""
        nearest = ", ".join(near(version, names)) or "none"
        raise UsageError(f"--{which} {asked} {where}", hint=f"nearest: {nearest}{preview}")
    return version


def near(version: str, names: Sequence[str]) -> list[str]:
    """Return the versions around one, oldest first."""
    ordered = sorted(names, key=Version)
    below = [name for name in ordered if Version(name) < Version(version)]
    return [*below[-NEAR:], *ordered[len(below) : len(below) + NEAR]]


def _canonical(version: str) -> str:
    try:
        return str(Version(version))
    except InvalidVersion as exc:
        raise UsageError(f"'{version}' is not a version", hint="such as 1.24.4") from exc
