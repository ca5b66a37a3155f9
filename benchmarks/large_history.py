"""How long the history's commands take once it is large: `python benchmarks/large_history.py [--cases 100000]`.

Makes a SQLite history of invented runs, a hundred cases each, by bulk inserts, with the figures and samples of each
case as a real run leaves them; then runs `harness history` and `harness check` on it and on a history of two such runs.
Own work is the difference: what a command takes beyond starting up and printing the same table. Exit code 1 where that
is over a second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np
import sqlalchemy as sa
from tabulate import tabulate

from harness.history import schema
from harness.history.deriving import points_of
from harness.history.location import Location
from harness.history.points import Point
from harness.history.store import History
from tests.example_history import a_run
from tests.support import RUN_CLI

WORKLOADS, CASES = 5, 20
"""Of a run."""
LEAST_S = 1.0
COMMANDS = (
    "history",
    "history --model model0 --backend onnxruntime --limit 100 --format json",
    "history --label nightly --limit 100 --format json",
    "check --against last:10 --no-remeasure",
    "check --against baseline --no-remeasure",
    "check --against last~1 --no-remeasure",
)


def template() -> list[Point]:
    """Return the cases of one run."""
    cases = {"eager": 10.0, **{f"onnxruntime:threads={number}": 5.0 + number / 10 for number in range(1, CASES)}}
    return [
        point
        for number in range(WORKLOADS)
        for point in points_of(a_run(cases=cases, model=f"model{number}", seed=number))
    ]


def fill(path: Path, cases: int) -> None:
    """Write a history of that many cases."""
    history = History(Location(path=path), create=True)
    points = template()
    random = np.random.default_rng(0)
    document, samples = random.bytes(4_000), random.bytes(50_000)
    start = datetime(2020, 1, 1, tzinfo=timezone.utc)
    with history.database.write() as connection:
        series = {
            point.series: {"id": point.series, "model": point.key.model, "backend": "onnxruntime", "device": "cpu"}
            for point in points
        }
        connection.execute(sa.insert(schema.series), list(series.values()))
        for number in range(max(2, cases // len(points))):
            name = f"run-{number:06}"
            created = (start + timedelta(hours=number)).isoformat(timespec="seconds")
            row = {"state": "finished", "harness": "0.1.0", "command": "harness compare", "hostname": "bench-1"}
            rest = {"commit": "", "branch": "", "wall_s": 1.0}
            connection.execute(sa.insert(schema.runs).values(id=name, created=created, **row, **rest))
            if number % 7 == 0:
                connection.execute(sa.insert(schema.labels).values(run=name, label="nightly"))
            connection.execute(
                sa.insert(schema.cases), [_row(each, point, name, created) for each, point in enumerate(points)]
            )
            connection.execute(sa.insert(schema.documents).values(run=name, data=document))
            connection.execute(
                sa.insert(schema.samples),
                [{"run": name, "workload": each, "data": samples} for each in range(WORKLOADS)],
            )
        first = [{"series": point.series, "run": "run-000000", "set_at": start.isoformat()} for point in points]
        connection.execute(sa.insert(schema.baselines), first)


def _row(number: int, point: Point, run: str, created: str) -> dict[str, object]:
    placed = msgspec.structs.replace(point, run=run, created=created)
    return {
        "run": run,
        "number": number,
        "series": point.series,
        "created": created,
        "backend": point.key.backend,
        "version": point.circumstances.version,
        "status": point.status,
        "latency_ns": point.latency_ns,
        "detail": msgspec.json.encode(placed).decode(),
    }


def took(command: str, store: Path, times: int) -> float:
    """Return the median duration of a command as a user runs it."""
    durations = []
    for _ in range(times):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(RUN_CLI), *command.split()],
            env={**os.environ, "HARNESS_STORE": str(store)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        durations.append(time.perf_counter() - start)
        assert done.returncode in (0, 1), f"{command}\n{done.stderr}"
    return statistics.median(durations)


def main() -> int:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    rows, late = [], False
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large.sqlite", Path(folder) / "small.sqlite"
        start = time.perf_counter()
        fill(large, given.cases)
        size, built = large.stat().st_size / 1e6, time.perf_counter() - start
        print(f"{given.cases:,} cases, {size:.0f} MB, built in {built:.0f} s\n")
        fill(small, 2 * WORKLOADS * CASES)
        for command in COMMANDS:
            whole, least = took(command, large, given.times), took(command, small, given.times)
            late |= whole - least > LEAST_S
            rows.append((f"harness {command}", whole, least, whole - least))
    print(tabulate(rows, headers=["command", "s", "s with two runs", "own work s"], floatfmt=".2f"))
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
