"""What the gate asks the history, on both kinds of database, and that it never reads all cases for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from harness.history import queries
from harness.history.location import Location
from harness.history.points import Point
from harness.history.store import History
from tests.example_history import a_run, failed

ORT = "onnxruntime"


@pytest.fixture
def history(location: Location) -> History:
    """Return a history of four days; on the last one, a case of the third was measured again."""
    made = History(location, create=True)
    for day in range(1, 4):
        bad: dict[str, Any] = {"status": "crashed", "failure": failed()} if day == 2 else {}
        made.add(a_run(f"day-{day}", created=f"2026-03-{day:02}T00:00:00Z", seed=day, fields={ORT: bad}))
    again: dict[str, Any] = {"created": "2026-03-04T00:00:00Z", "command": "harness check day-3"}
    made.add(a_run("again", **again))
    made.add(a_run("stopped", **(again | {"state": "interrupted"})))
    return made


def series_of(history: History) -> dict[str, str]:
    with history.database.read() as connection:
        return {point.case: point.series for point in queries.points_of_run(connection, "day-3")}


def test_earlier_runs_have_a_result_and_were_not_chosen_by_it(history: History) -> None:
    series = series_of(history)
    with history.database.read() as connection:

        def runs(before: str, most: int) -> dict[str, list[str]]:
            found = queries.earlier(connection, series.values(), most=most, before=before)
            return {case: [point.run for point in found.get(name, [])] for case, name in series.items()}

        assert runs("2026-03-03T00:00:00+00:00", 9) == {"eager": ["day-1", "day-2"], ORT: ["day-1"]}
        assert runs("2026-03-09T00:00:00+00:00", 9) == {"eager": ["day-1", "day-2", "day-3"], ORT: ["day-1", "day-3"]}
        assert runs("2026-03-09T00:00:00+00:00", 1) == {"eager": ["day-3"], ORT: ["day-3"]}
        assert runs("2026-03-01T00:00:00+00:00", 9) == {"eager": [], ORT: []}


def test_what_was_measured_again_is_found_by_its_run_and_is_never_the_last(history: History) -> None:
    with history.database.read() as connection:
        assert [point.run for point in queries.measured_again(connection, "day-3")] == ["again", "again"]
        assert queries.measured_again(connection, "day-1") == []
        found = [queries.find_run(connection, name) for name in ("last", "last~2", "last~3")]
        assert [run.id if run else None for run in found] == ["day-3", "day-1", None]
        by_name = queries.find_run(connection, "again")
        assert by_name is not None and by_name.id == "again"


def test_baselines_of_a_model(history: History) -> None:
    with history.database.read() as connection:
        points = queries.points_of_run(connection, "day-1")
    history.set_baseline(points)
    history.add(a_run("other", model="bert-base"))
    with history.database.read() as connection:
        history_of_other = queries.points_of_run(connection, "other")
    history.set_baseline(history_of_other)
    with history.database.read() as connection:

        def held(*models: str) -> set[tuple[str, str]]:
            return {(point.run, point.case) for point in queries.baselines_of_models(connection, models)}

        assert held("resnet50") == {("day-1", "eager"), ("day-1", ORT)}
        assert held("bert-base") == {("other", "eager"), ("other", ORT)}
        assert held("yolov8n") == set()


Question = Callable[[sa.Connection, dict[str, str]], Any]
QUESTIONS: dict[str, Question] = {
    "earlier": lambda connection, series: queries.earlier(connection, series.values(), most=30, before="2027"),
    "again": lambda connection, _: queries.measured_again(connection, "day-3"),
    "baselines": lambda connection, _: queries.baselines_of_models(connection, ["resnet50"]),
    "run": lambda connection, _: queries.points_of_run(connection, "day-3"),
    "series": lambda connection, series: queries.newest_of_series(connection, series[ORT], 5),
    "newest": lambda connection, _: queries.points(connection, queries.Filter(), 20),
    "label": lambda connection, _: queries.points(connection, queries.Filter(backend=ORT, version="1.31.0"), 20),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_question_reads_all_cases(name: str, sqlite_file: Location) -> None:
    history = History(sqlite_file, create=True)
    history.add(a_run("day-3"))
    series = series_of(history)
    asked: list[tuple[str, Any]] = []
    with history.database.read() as connection:

        def note(_: object, __: object, statement: str, values: Any, *___: object) -> None:
            asked.append((statement, values))

        sa.event.listen(connection, "before_cursor_execute", note)
        QUESTIONS[name](connection, series)
        statements = [one for one in asked if one[0].startswith("SELECT")]
        assert statements
        for statement, values in statements:
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
            reads_all = [step for step in plan if step.startswith("SCAN harness_cases") and "USING INDEX" not in step]
            assert not reads_all, f"{statement}\n{plan}"


def test_points_are_whole(history: History) -> None:
    with history.database.read() as connection:
        (found,) = queries.earlier(connection, [series_of(history)[ORT]], most=1, before="2027").values()
    assert isinstance(found[0], Point) and found[0].evidence is not None
