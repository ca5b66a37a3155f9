"""Saved engines: what they are found again by, which are complete, and that those of living runs stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from harness.engines import (
    FILES,
    MANIFEST,
    Engine,
    EngineStore,
    backend_cache,
    delete_unless_in_use,
    engines_root,
    in_use,
    where_now,
)
from harness.errors import StoreError
from harness.protocol import CaseSpec, Opened
from harness.records import Case
from tests.example_runs import case
from tests.support import ROOT, Cli

SPEC = CaseSpec(
    backend="x", options={"a": 1, "b": 2}, artifact="/a", device="cpu", precision="fp32", threads=1, engine_dir="",
    cache_dir="",
)  # fmt: skip
ENGINE = Engine(
    versions={"x": "1"}, version="1", stages={"compile": 1.0},
    opened=Opened(seconds={}, provider="p", runnable=True, facts={"n": None}, notes=["note"]), engine_bytes=3,
    peak_compile_bytes=1, resident_bytes=1, created="2026-01-01T00:00:00+00:00",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(store: EngineStore, spec: CaseSpec = SPEC, *, created: str = ENGINE.created) -> Path:
    folder = store.folder(spec, "x", "hash", "machine")
    folder.mkdir(parents=True)
    (folder / "engine.bin").write_bytes(b"abc")
    store.write(folder, msgspec.structs.replace(ENGINE, created=created))
    return folder


@contextmanager
def another_run() -> Iterator[Path]:
    """Hold an engine of a run that lives in another process; the value is its folder."""
    code = (
        "import sys; from harness.engines import EngineStore; from tests.unit.test_engines import put\n"
        "with EngineStore('living') as store:\n"
        "    print(put(store), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    yield Path(process.stdout.readline().strip())
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


@pytest.fixture
def living() -> Iterator[Path]:
    """The folder of an engine whose run lives in another process."""
    with another_run() as folder:
        yield folder


def test_engine_comes_back_as_it_was_written() -> None:
    with EngineStore("one") as store:
        folder = put(store)
        assert store.read(folder) == ENGINE
        assert folder.is_relative_to(engines_root())


@pytest.mark.parametrize("content", [None, b"", b'{"versions": {}}', b"\xff"])
def test_engine_without_a_sound_manifest_is_not_complete(content: bytes | None) -> None:
    store = EngineStore("one")
    folder = put(store)
    (folder / MANIFEST).unlink()
    if content is not None:
        (folder / MANIFEST).write_bytes(content)
    assert store.read(folder) is None
    assert list(store.earlier(store.folder(SPEC, "x", "hash", "machine"))) == []


@pytest.mark.parametrize(
    "change",
    [{"backend": "y"}, {"options": {"a": 1, "b": 3}}, {"options": {}}, {"device": "cuda:0"}, {"precision": "fp16"},
     {"threads": 2}],
    ids=str,
)  # fmt: skip
def test_key_depends_on_what_an_engine_is_built_from(change: dict[str, object]) -> None:
    store = EngineStore("one")
    other = msgspec.structs.replace(SPEC, **change)
    assert store.folder(other, "x", "hash", "machine").parent != store.folder(SPEC, "x", "hash", "machine").parent


def test_key_depends_on_artifact_machine_and_case_but_not_on_the_order_of_options() -> None:
    store = EngineStore("one")
    known = store.folder(SPEC, "x", "hash", "machine")
    assert store.folder(SPEC, "x", "other", "machine").parent != known.parent
    assert store.folder(SPEC, "x", "hash", "other").parent != known.parent
    assert store.folder(SPEC, "x#2", "hash", "machine").parent != known.parent
    turned = msgspec.structs.replace(SPEC, options={"b": 2, "a": 1}, artifact="/elsewhere", cache_dir="/c")
    assert store.folder(turned, "x", "hash", "machine") == known
    assert EngineStore("two").folder(SPEC, "x", "hash", "machine").parent == known.parent


def test_earlier_engines_come_newest_first() -> None:
    folders = [put(EngineStore(run), created=f"2026-01-0{day}") for run, day in (("a", 2), ("b", 3), ("c", 1))]
    found = EngineStore("now").earlier(EngineStore("now").folder(SPEC, "x", "hash", "machine"))
    assert [path for path, _ in found] == [folders[1], folders[0], folders[2]]


def test_prune_deletes_engines_of_runs_that_are_over_and_keeps_those_of_living_ones(living: Path) -> None:
    over = put(EngineStore("over"))
    with EngineStore("mine") as store:
        mine = put(store)
        store.prune(mine)
        assert mine.is_dir()
        assert living.is_dir()
        assert not over.exists()
        assert store.read(living) == ENGINE


def test_an_engine_is_found_again_in_the_run_that_took_it_over() -> None:
    def of(store: EngineStore, created: str) -> Case:
        folder = put(store, created=created)
        (folder / FILES).mkdir()
        return case("x", engine=str(folder / FILES), engine_created=created, versions=ENGINE.versions)

    first = of(EngineStore("first"), ENGINE.created)
    assert where_now(first) == Path(first.engine or "")
    with EngineStore("again") as store:
        again = of(store, ENGINE.created)
        store.prune(Path(again.engine or "").parent)
    assert where_now(first) == where_now(again) == Path(again.engine or ""), "the same engine under another name"
    with EngineStore("anew") as store:
        anew = of(store, "2026-02-02T00:00:00+00:00")
        store.prune(Path(anew.engine or "").parent)
    assert where_now(first) is None, "this one was compiled anew: it is not the one that was measured"
    assert where_now(anew) is not None
    assert where_now(case("x", engine=None)) is None


def test_engine_can_be_deleted_once_its_run_is_over() -> None:
    with another_run() as folder:
        assert in_use("living")
        assert not delete_unless_in_use(folder)
        assert folder.is_dir()
    assert not in_use("living")
    assert delete_unless_in_use(folder)
    assert not folder.exists()


def test_engine_of_a_killed_run_is_not_kept_for_ever() -> None:
    code = (
        "import os; from harness.engines import EngineStore; from tests.unit.test_engines import put\n"
        "store = EngineStore('killed').__enter__(); print(put(store), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    folder = Path(done.stdout.strip())
    assert folder.is_dir()
    assert not in_use("killed")
    assert delete_unless_in_use(folder)
    assert not folder.exists()


def test_one_process_a_run(living: Path) -> None:
    with pytest.raises(StoreError, match="run living is being measured by another process"), EngineStore("living"):
        pass


def test_in_use_leaves_no_trace() -> None:
    assert not in_use("never")
    assert not (engines_root() / "never.lock").exists()
    with EngineStore("now"):
        assert in_use("now")
    assert not in_use("now")


def test_cache_that_cannot_be_written(own_cache: Path) -> None:
    own_cache.write_text("a file")
    with pytest.raises(StoreError, match=r"the cache folder .* cannot be written: Not a directory"), EngineStore("one"):
        pass


def test_cache_clear_keeps_engines_of_living_runs(living: Path, own_cache: Path, cli: Cli) -> None:
    over = put(EngineStore("over"), msgspec.structs.replace(SPEC, threads=3))
    backend_cache("x").mkdir(parents=True)
    (backend_cache("x") / "tuning.db").write_bytes(b"123")
    shown = cli("cache")
    assert shown.returncode == 0
    shown_parts = [line.split()[0] for line in shown.stdout.splitlines()[2:]]
    assert shown_parts == ["exports", "engines", "backends", "environments", "bisects"]
    done = cli("cache", "clear", "--engines")
    assert done.returncode == 0
    assert "cleared engines in" in done.stdout
    assert "kept 1 engine(s) in use" in done.stdout
    assert living.is_dir()
    assert not over.parent.exists()
    assert (backend_cache("x") / "tuning.db").exists(), "only what was asked for"
    refused = cli("cache", "clear")
    assert refused.returncode == 2
    assert "a comparison is running" in refused.stderr
    assert (backend_cache("x") / "tuning.db").exists()
    assert living.is_dir()


def test_cache_clear_clears_everything(own_cache: Path, cli: Cli) -> None:
    put(EngineStore("over"), SPEC)
    backend_cache("x").mkdir(parents=True)
    assert cli("cache", "clear").returncode == 0
    assert not (own_cache / "backends").exists()
    assert not list((own_cache / "engines").glob("*/*"))
