"""Which database `--store` means."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.history.location import Location, locate


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert locate(None) == locate("") == Location(path=tmp_path / "data" / "harness" / "history.sqlite")
    assert locate("a b.sqlite") == locate("sqlite:///a b.sqlite") == Location(path=tmp_path / "a b.sqlite")
    assert locate("sqlite:////abs/x.db") == locate("/abs/x.db") == Location(path=Path("/abs/x.db"))
    assert locate("none") is None


def test_servers_are_shown_without_a_password() -> None:
    found = locate("postgresql://me:s3cret@db.example.org:5432/ci?sslmode=require&password=s3cret")
    assert found is not None
    assert found.url == "postgresql+psycopg://me:s3cret@db.example.org:5432/ci?sslmode=require&password=s3cret"
    assert found.shown == "postgresql://me@db.example.org:5432/ci?sslmode=require"
    other = locate("postgres://me:other@db.example.org:5432/ci?sslmode=require")
    assert other is not None
    assert (other.shown, other.slug) == (found.shown, found.slug)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mysql://h/db", "'mysql' is no kind of database"),
        ("https://h/db", "'https' is no kind of database"),
        ("postgresql://host", "names no database"),
        ("postgresql://host/", "names no database"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        (".", "is a folder"),
    ],
)
def test_what_cannot_be(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        locate(text)
    assert caught.value.hint


def test_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs psycopg, not installed") as caught:
        locate("postgresql://h/db")
    assert "harness[postgres]" in (caught.value.hint or "")
