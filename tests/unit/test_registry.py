"""The registry: sorted tables, names that fit their classes, suggestions, and other people's broken packages."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from harness import registry
from harness.api import Backend, ReferenceModel, Report
from harness.errors import UsageError

TABLES: list[tuple[dict[str, registry.Entry], type[Any]]] = [
    (registry.BACKENDS, Backend),
    (registry.MODELS, ReferenceModel),
    (registry.REPORTS, Report),
]
ENTRIES = [pytest.param(name, table[name], base, id=name) for table, base in TABLES for name in table]


@pytest.mark.parametrize("table", [table for table, _ in TABLES], ids=["backends", "models", "reports"])
def test_table_is_sorted(table: dict[str, registry.Entry]) -> None:
    assert list(table) == sorted(table)


@pytest.mark.parametrize(("name", "entry", "base"), ENTRIES)
def test_entry_leads_to_a_class_of_that_name(name: str, entry: registry.Entry, base: type[Any]) -> None:
    module, _, attribute = entry.where.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert issubclass(found, base)
    assert found.name == name
    assert found.summary


@pytest.mark.parametrize("name", registry.BACKENDS)
def test_backend_says_how_to_install_it(name: str) -> None:
    assert registry.install_hint(name).startswith("pip install 'harness[")


def test_default_baseline_is_registered() -> None:
    assert registry.BASELINE in registry.BACKENDS


@pytest.mark.parametrize(
    ("find", "wrong", "meant"),
    [
        (registry.backend, "tensort", "tensorrt"),
        (registry.backend, "torchcompile", "torch-compile"),
        (registry.model_class, "resnet-50", "resnet50"),
        (registry.report, "markdwn", "markdown"),
    ],
)
def test_unknown_name_suggests_the_nearest(find: Any, wrong: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"unknown .* '{wrong}'; did you mean '{meant}'\\? Known: "):
        find(wrong)


def test_nothing_near_nothing_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        registry.backend("zzz")
    assert "did you mean" not in caught.value.message
    assert "Known: eager, " in caught.value.message


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Register entry points of other people's packages."""

    def register(**where: str) -> None:
        points = [EntryPoint(name, value, "harness.backends") for name, value in where.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "harness.backends" else [])
        registry._registered.cache_clear()

    yield register
    registry._registered.cache_clear()


def test_entry_points_join_the_table(foreign: Any) -> None:
    foreign(theirs="backends.eager:Eager")
    assert registry.backend_names() == sorted([*registry.BACKENDS, "theirs"])
    assert registry.backend("theirs").name == "eager"


def test_entry_point_cannot_replace_one_of_ours(foreign: Any) -> None:
    foreign(eager="nowhere:Nothing")
    assert registry.backend("eager").name == "eager"


@pytest.mark.parametrize("where", ["no_such_module:Class", "backends.eager:NoSuchClass"])
def test_broken_entry_point_is_the_users_to_repair(foreign: Any, where: str) -> None:
    foreign(theirs=where)
    with pytest.raises(UsageError, match=f"the backend 'theirs' cannot be imported from {where}: ") as caught:
        registry.backend("theirs")
    assert caught.value.hint == "repair or uninstall the package that registers it"
