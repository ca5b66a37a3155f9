"""Which versions a bisect searches among, and their environments."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from harness.bisect.commands import source_of
from harness.bisect.found import Release, differing
from harness.bisect.judging import reproduce
from harness.bisect.versions import Installed, Source, between, near
from harness.errors import EnvironmentFailed, UnavailableError, UsageError
from harness.plan import parse_variants
from tests.support import PLUGINS


class Shelf:
    """Releases that are there without an index."""

    distribution = "shelf"

    def __init__(self, *names: str, broken: tuple[str, ...] = (), silent: bool = False) -> None:
        self.names = names
        self.broken = broken
        self.silent = silent
        self.installed: list[str] = []

    def listed(self) -> list[Release]:
        if self.silent:
            raise EnvironmentFailed("the index does not answer")
        return [Release(version=name, released=f"2026-01-{day:02}") for day, name in enumerate(self.names, 1)]

    def install(self, version: str) -> Mapping[str, str]:
        self.installed.append(version)
        if version in self.broken:
            raise EnvironmentFailed("no wheel")
        return {"shelf": version}

    def text(self, version: str) -> str:
        return f"shelf@{version}"


SHELF = Shelf("1.0", "1.2", "1.10", "2.0", "2.1")


def names(source: Source = SHELF, **given: Any) -> list[str]:
    asked = {"good": None, "bad": None, "versions": None, **given}
    return [one.version for one in between(source, asked)]


def test_releases_between_two() -> None:
    assert names(good="1.2", bad="2.0") == ["1.2", "1.10", "2.0"]


def test_the_bad_end_may_be_the_older_one() -> None:
    assert names(good="2.0", bad="1.2") == ["2.0", "1.10", "1.2"]


def test_a_version_in_another_spelling() -> None:
    assert names(good="v1.2", bad="2.0")[0] == "1.2"


def test_a_list_of_ones_own() -> None:
    assert names(versions="2.1, 1.0,2.0") == ["2.1", "1.0", "2.0"]
    assert names(versions="2.1,1.0,2.0", bad="1.0") == ["2.1", "1.0"]
    assert between(SHELF, {"good": None, "bad": None, "versions": "1.2,3.3"}) == [
        Release(version="1.2", released="2026-01-02"),
        Release(version="3.3"),
    ]


def test_a_list_of_ones_own_needs_no_index() -> None:
    assert names(Shelf(silent=True), versions="1.0,2.0") == ["1.0", "2.0"]
    with pytest.raises(UnavailableError, match="does not answer"):
        names(Shelf(silent=True), good="1.0", bad="2.0")


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"good": "1.0"}, "--bad is missing", "--versions"),
        ({"good": "1.0", "bad": "1.0"}, "both 1.0", ""),
        ({"good": "1.1", "bad": "2.0"}, "--good 1.1 is no release", "1.0, 1.2, 1.10, 2.0"),
        ({"good": "2.1rc1", "bad": "2.0"}, "--good 2.1rc1 is no release", "--previews"),
        ({"good": "1.0", "bad": "later"}, "'later' is not a version", "1.24.4"),
        ({"versions": "1.0"}, "at least two versions", ""),
        ({"versions": ""}, "at least two versions", ""),
        ({"versions": "1.0,1.0,2.0"}, "each once", ""),
        ({"versions": "1.0,2.0", "good": "1.2"}, "--good 1.2 is not in --versions", "1.0, 2.0"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        names(**given)
    assert hint in (caught.value.hint or "")


def test_near() -> None:
    assert near("1.5", ["1.0", "1.2", "1.10", "2.0"]) == ["1.0", "1.2", "1.10", "2.0"]
    assert near("9", ["1", "2", "3", "4", "5"]) == ["3", "4", "5"]


def test_an_environment_is_made_once_and_a_failure_is_kept() -> None:
    shelf = Shelf("1.0", "1.2", broken=("1.2",))
    installed = Installed(shelf)
    assert installed.packages("1.0") == installed.packages("1.0") == {"shelf": "1.0"}
    for _ in range(2):
        with pytest.raises(EnvironmentFailed, match="no wheel"):
            installed.packages("1.2")
    assert shelf.installed == ["1.0", "1.2"]
    assert installed.failure("1.2") is not None


def test_environments_are_made_at_the_same_time_as_something_else() -> None:
    shelf, begun, go_on = Shelf("1.0", "1.2"), threading.Barrier(3), threading.Event()
    plain = shelf.install

    def slow(version: str) -> Mapping[str, str]:
        begun.wait(timeout=30)
        assert go_on.wait(timeout=30)
        return plain(version)

    shelf.install = slow  # type: ignore[method-assign]
    installed = Installed(shelf)
    with installed.ahead(["1.0", "1.2"]):
        begun.wait(timeout=30)  # both are being made while we are here
        assert not installed.is_known("1.0")
        go_on.set()
    assert installed.is_known("1.0")
    assert installed.is_known("1.2")


def test_a_failure_ahead_is_told_when_its_turn_comes() -> None:
    installed = Installed(Shelf("1.0", broken=("1.0",)))
    with installed.ahead(["1.0"]):
        pass
    with pytest.raises(EnvironmentFailed):
        installed.packages("1.0")


def test_what_else_differs_between_two_environments() -> None:
    before, after = (
        {"shelf": "1.0", "numpy": "1.26.4", "flatbuffers": "24"},
        {"shelf": "2.0", "numpy": "2.1", "sympy": "1"},
    )
    assert differing(before, after, own="shelf") == {
        "flatbuffers": ("24", None),
        "numpy": ("1.26.4", "2.1"),
        "sympy": (None, "1"),
    }


def test_the_command_that_compares_two() -> None:
    command = "harness compare --model tiny --backends onnxruntime@1.0:level=all --threads 2"
    wanted = "harness compare --model tiny --backends a@1,a@2 --threads 2 --baseline a@1"
    assert reproduce(command, "a@1", "a@2") == wanted
    assert reproduce(reproduce(command, "a@3", "a@4"), "a@1", "a@2") == wanted


def test_releases_are_asked_for_with_the_options_of_the_backend() -> None:
    (variant,) = parse_variants(["onnxruntime:level=basic,threads=1"])
    source = source_of(variant, "cpu", previews=False)
    assert source.distribution == "onnxruntime"
    assert source.text("1.24.4") == "onnxruntime@1.24.4:level=basic,threads=1"


def test_a_backend_without_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUGINS)
    (variant,) = parse_variants(["fake-ok"])
    with pytest.raises(UsageError):
        source_of(variant, "cpu", previews=False)
