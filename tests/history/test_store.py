"""The history's database, on SQLite and on PostgreSQL: what goes in comes out, and what goes wrong says so."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from harness.errors import StoreError
from harness.history import database, deriving, queries, schema
from harness.history.database import Database, UnreachableError
from harness.history.location import Location, locate
from harness.history.points import Point
from harness.history.store import PRUNED, History
from harness.records import Project, Run
from tests.example_history import a_run, failed
from tests.history.conftest import Server

IMPORTED_ONCE = (command, deriving)
"""Here, for all the processes that are forked from one that has imported this module."""
WRITERS = 8
RUNS_EACH = 6


def points_in(history: History, filter_: queries.Filter | None = None, most: int | None = None) -> list[Point]:
    with history.database.read() as connection:
        return queries.points(connection, filter_ or queries.Filter(), most)


def tables_of(location: Location) -> list[str]:
    with Database(location).read() as connection:
        return sa.inspect(connection).get_table_names()


def state_revision(location: Location, revision: str) -> None:
    with Database(location).write() as connection:
        connection.execute(sa.text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{revision}'"))


# ---- in and out


def test_run_comes_back_as_it_was(location: Location) -> None:
    run = a_run(labels=["b", "a"], project=Project(commit="c0ffee", branch="main", dirty=True), notes=["µ±"])
    history = History(location, create=True)
    assert history.add(run) == "added"
    assert history.load(run.id) == msgspec.structs.replace(run, labels=["a", "b"])
    assert History(location).load(run.id).workloads == run.workloads


def test_same_run_again_changes_nothing_and_a_later_state_replaces_it(location: Location) -> None:
    history = History(location, create=True)
    early = a_run(state="interrupted", wall_s=50.0, launches=2)
    late = a_run(wall_s=100.0, labels=["done"])
    assert [history.add(run) for run in (early, early, late, early, late)] == [
        "added", "unchanged", "updated", "unchanged", "unchanged",
    ]  # fmt: skip
    assert history.load(late.id) == late
    assert len(points_in(history)) == 2


def test_labels_of_a_run_that_is_there_are_added(location: Location) -> None:
    history = History(location, create=True)
    history.add(a_run(labels=["one"]))
    assert history.add(a_run(labels=["two"])) == "unchanged"
    assert points_in(history)[0].labels == ["one", "two"]
    history.label(a_run().id, ["three", "one"])
    history.label(a_run().id, ["two", "never"], remove=True)
    assert points_in(history)[0].labels == ["one", "three"]


def test_points_hold_what_the_table_shows(location: Location) -> None:
    fields: dict[str, dict[str, Any]] = {
        "onnxruntime": {"facts": {"engine_compiled_at": "2026-03-01"}},
        "tvm": {"status": "crashed", "failure": failed("import", "SIGSEGV\nmore")},
    }
    history = History(location, create=True)
    history.add(a_run(cases={"eager": 10.0, "onnxruntime": 5.0, "tvm": 7.0}, fields=fields))
    eager, ort, tvm = points_in(history)
    assert eager.latency_ns == pytest.approx(10e6, rel=0.02)
    assert (eager.compile_s, eager.memory_bytes, eager.engine_bytes) == (2.0, 600_000_000, 100_000_000)
    assert ort.evidence is not None and len(ort.evidence.levels) == 5
    (relative,) = ort.evidence.relatives
    assert relative.difference == pytest.approx(-0.693, abs=0.02)
    assert (relative.series, relative.version, relative.case) == (eager.series, "2.13.0", "eager")
    assert eager.evidence is not None
    (other,) = eager.evidence.relatives
    assert (other.case, other.difference, other.error) == ("onnxruntime", -relative.difference, relative.error)
    assert (ort.value("compile"), ort.compile_s) == (None, 2.0), "the engine was not compiled by this run"
    assert (tvm.status, tvm.failure, tvm.latency_ns, tvm.evidence) == ("crashed", "import: SIGSEGV", None, None)


def test_one_launch_is_no_evidence_against_a_baseline(location: Location) -> None:
    history = History(location, create=True)
    history.add(a_run(launches=1))
    assert all(point.evidence is not None and not point.evidence.relatives for point in points_in(history))


# ---- finding


def filled(location: Location) -> History:
    history = History(location, create=True)
    for day in range(1, 6):
        name = f"2026-03-0{day}T00-00-00-resnet50"
        run = a_run(
            name,
            created=f"2026-03-0{day}T00:00:00+00:00",
            model="resnet50" if day < 5 else "bert-base",
            versions={"onnxruntime": "1.30.0" if day < 3 else "1.31.0"},
            labels=["nightly"] if day % 2 else [],
        )
        history.add(run)
    return history


@pytest.mark.parametrize(
    ("filter_", "days"),
    [
        (queries.Filter(backend="onnxruntime"), [1, 2, 3, 4, 5]),
        (queries.Filter(backend="onnxruntime", model="resnet50"), [1, 2, 3, 4]),
        (queries.Filter(backend="onnxruntime", model="b*t-base"), [5]),
        (queries.Filter(backend="onnxruntime", model="resnet_0"), []),
        (queries.Filter(backend="onnxruntime", version="1.30.0"), [1, 2]),
        (queries.Filter(backend="onnxruntime", label="nightly"), [1, 3, 5]),
        (queries.Filter(backend="onnxruntime", since="2026-03-04"), [4, 5]),
        (queries.Filter(backend="onnxruntime", device="cuda"), []),
        (queries.Filter(backend="onnxruntime", device="cpu", measured=True, label="nightly"), [1, 3, 5]),
    ],
    ids=str,
)
def test_filters(location: Location, filter_: queries.Filter, days: list[int]) -> None:
    history = filled(location)
    assert [int(point.created[8:10]) for point in points_in(history, filter_)] == days
    assert [int(point.created[8:10]) for point in points_in(history, filter_, 2)] == days[-2:]
    with history.database.read() as connection:
        assert queries.count(connection, filter_) == len(days)


def test_runs_are_found_by_id_by_its_start_and_as_the_last(location: Location) -> None:
    history = filled(location)
    with history.database.read() as connection:

        def found(name: str) -> str | None:
            run = queries.find_run(connection, name)
            return run.id if run else None

        assert found("last") == found("2026-03-05") == "2026-03-05T00-00-00-resnet50"
        assert found("2026-03-01T00-00-00-resnet50") == "2026-03-01T00-00-00-resnet50"
        assert found("2026_03") is None
        with pytest.raises(StoreError, match="several runs match '2026-03'") as caught:
            found("2026-03")
        assert "2026-03-05T00-00-00-resnet50, 2026-03-04" in (caught.value.hint or "")
        assert queries.versions(connection, "onnxruntime") == ["1.30.0", "1.31.0"]
        assert queries.labels(connection) == ["nightly"]


def test_series_go_through_versions_and_stop_at_other_keys(location: Location) -> None:
    history = filled(location)
    newest = points_in(history, queries.Filter(backend="onnxruntime", model="resnet50"))[-1]
    history.add(a_run("other-threads", fields={"onnxruntime": {"threads": 4}}))
    history.add(a_run("broken", fields={"onnxruntime": {"status": "crashed", "failure": failed()}}))
    with history.database.read() as connection:
        found = queries.newest_of_series(connection, newest.series, 99)
        first, *_ = queries.earlier(connection, [newest.series], most=3, before=newest.created)[newest.series]
        usable = queries.earlier(connection, [newest.series], most=99, before="2027")[newest.series]
    assert first.created < newest.created and first.circumstances.version != newest.circumstances.version
    assert "other-threads" not in [point.run for point in found]
    assert "broken" in [point.run for point in found] and "broken" not in [point.run for point in usable]


def test_baselines_are_one_a_series(location: Location) -> None:
    history = filled(location)
    days = points_in(history, queries.Filter(backend="onnxruntime"))
    history.set_baseline([days[0]])
    history.set_baseline([days[2], days[4]])
    with history.database.read() as connection:
        found = queries.baselines(connection)
        assert {point.run for point in found.values()} == {days[2].run, days[4].run}
        assert queries.baselines(connection, [days[0].series, "unknown"]) == {days[2].series: days[2]}
    history.remove(days[2].run)
    assert history.clear_baselines(found) == 1


# ---- what is kept


def test_policy_removes_old_samples_but_no_figures(location: Location) -> None:
    history = filled(location)
    before = points_in(history)
    history.set_baseline([point for point in before if point.created.startswith("2026-03-02")])
    recent = a_run("recent", created="2999-01-01T00:00:00+00:00")
    history.add(recent)
    assert history.kept_samples() is None
    assert history.keep_samples(30) == 1, "all but labelled runs, the baseline and the recent one"
    assert history.kept_samples() == 30
    thinned = history.load("2026-03-04T00-00-00-resnet50")
    assert PRUNED in thinned.notes and thinned.workloads[0].launches == []
    assert [point for point in points_in(history) if point.run != "recent"] == before
    assert history.load("recent") == recent
    for kept in ("2026-03-01T00-00-00-resnet50", "2026-03-02T00-00-00-resnet50"):
        assert history.load(kept).workloads[0].launches
    history.add(a_run("old", created="2020-01-01T00:00:00+00:00"))
    assert PRUNED in history.load("old").notes, "the policy holds for whatever is added"
    assert history.keep_samples(None) == 0
    assert history.kept_samples() is None


def test_removed_run_leaves_nothing(location: Location) -> None:
    history = filled(location)
    history.remove("2026-03-05T00-00-00-resnet50")
    assert len(points_in(history)) == 8
    with pytest.raises(StoreError, match="there is no run 2026-03-05"):
        history.load("2026-03-05T00-00-00-resnet50")
    with history.database.read() as connection:
        for table in (schema.samples, schema.documents, schema.labels):
            gone = table.c.run == "2026-03-05T00-00-00-resnet50"
            assert connection.execute(sa.select(sa.func.count()).where(gone)).scalar() == 0


# ---- the schema


def test_tables_are_those_of_the_migrations(location: Location) -> None:
    History(location, create=True)
    with Database(location).read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
        assert context.get_current_revision() == schema.REVISION
        assert compare_metadata(context, schema.metadata) == []


def test_history_of_a_newer_harness_is_refused_and_stays_as_it_is(location: Location) -> None:
    History(location, create=True).add(a_run())
    state_revision(location, "9999")
    for create in (False, True):
        with pytest.raises(StoreError, match="was written by a newer harness: its schema is 9999") as caught:
            History(location, create=create)
        assert "update harness" in (caught.value.hint or "")


def test_creation_that_was_cut_off_is_made_good(location: Location) -> None:
    database = Database(location, create=True)
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            table.drop(connection)
        raise ZeroDivisionError
    assert "harness_runs" in tables_of(location), "tables go and come whole or not at all"


def test_reading_makes_nothing(sqlite_file: Location) -> None:
    with pytest.raises(StoreError, match="there is no history in") as caught:
        History(sqlite_file)
    assert "harness compare" in (caught.value.hint or "")
    assert sqlite_file.path is not None and not sqlite_file.path.parent.exists()


def test_many_writers_lose_nothing(location: Location) -> None:
    # All at once, on a history that none of them has made yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # what takes long is imported once
    writers = [context.Process(target=_write, args=(location, number)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    history = History(location)
    assert len(points_in(history)) == WRITERS * RUNS_EACH * 2 + 2
    for number in range(WRITERS):
        for index in range(RUNS_EACH):
            assert history.load(f"run-{number}-{index}") == _run(number, index)


def _run(number: int, index: int) -> Run:
    return a_run(f"run-{number}-{index}", seed=100 * number + index, model=f"model{index}", launches=2)


def _write(location: Location, number: int) -> None:
    history = History(location, create=True)
    for index in range(RUNS_EACH):
        assert history.add(_run(number, index)) == "added"
    history.add(a_run("the-same-for-all"))


def test_sqlite_readers_go_on_while_somebody_writes(sqlite_file: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.2)
    history = History(sqlite_file, create=True)
    history.add(a_run("first"))
    with history.database.write() as connection:
        connection.execute(sa.delete(schema.runs))
        assert len(points_in(history)) == 2
        with pytest.raises(StoreError, match="is locked: another process kept it busy") as caught:
            history.add(a_run("second"))
        assert "try again" in (caught.value.hint or "")
    assert points_in(history) == []


# ---- what is no history


def test_files_that_are_no_history_are_refused_and_not_touched(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("my notes, longer than a header of a database would be: " * 50)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = text.read_bytes(), other.read_bytes()
    with pytest.raises(StoreError, match="is damaged or no history: file is not a database") as caught:
        History(Location(path=text), create=True)
    assert "harness import" in (caught.value.hint or "")
    with pytest.raises(StoreError, match="is a database of something else"):
        History(Location(path=other), create=True)
    assert (text.read_bytes(), other.read_bytes()) == before


def test_empty_file_becomes_a_history(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"")
    with pytest.raises(StoreError, match="there is no history"):
        History(Location(path=tmp_path / "new"))
    assert History(Location(path=tmp_path / "new"), create=True).add(a_run()) == "added"


def test_damaged_run_says_how_to_bring_it_back(location: Location) -> None:
    history = History(location, create=True)
    history.add(a_run())
    with history.database.write() as connection:
        connection.execute(sa.update(schema.samples).values(data=b"half"))
    with pytest.raises(StoreError, match="is damaged") as caught:
        history.load(a_run().id)
    assert "harness import" in (caught.value.hint or "")


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "h.sqlite", Path("/proc/none/h.sqlite")):
        with pytest.raises(StoreError, match=r"cannot be written|is a file") as caught:
            History(Location(path=path), create=True)
        assert "--store" in (caught.value.hint or "")


def test_server_that_is_not_there(tmp_path: Path) -> None:
    for url in (f"postgresql://me:secret@/db?host={tmp_path}", "postgresql://me:secret@127.0.0.1:1/db"):
        location = locate(url)
        assert location is not None
        with pytest.raises(UnreachableError, match="cannot be reached") as caught:
            History(location, create=True)
        assert "secret" not in "\n".join(caught.value.lines())


def test_user_without_rights_is_told_so(postgres: Server) -> None:
    location = postgres.database()
    with Database(location, create=True).write() as connection:
        connection.execute(sa.text("DROP ROLE IF EXISTS guest"))
        connection.execute(sa.text("CREATE ROLE guest LOGIN"))
        connection.execute(sa.text("GRANT USAGE ON SCHEMA public TO guest"))
    guest = Location(url=location.url.replace("harness@", "guest@"))
    with pytest.raises(StoreError, match="refuses: permission denied") as caught:
        History(guest, create=True).add(a_run())
    assert not isinstance(caught.value, UnreachableError)
