"""The pytest plug-in: budgets on a user's own model, measured by `harness compare` and `harness check`.

    @pytest.mark.harness(model="nets:detector", backends=["eager", "onnxruntime"], max_latency_ms=20, max_drift=1e-3)
    def test_detector(): ...

    def test_faster_than_eager(harness_compare):
        table = harness_compare(MyModule(), inputs=(torch.zeros(1, 3, 32, 32),), backends=["eager", "onnxruntime"])
        assert table["onnxruntime"].ratio < 0.9

harness runs in a process of its own: this module imports nothing of it, and the four everyday names of its packages
stay the user's. It is a module beside them so that a folder called `harness` in the user's project cannot shadow it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast  # a model is whatever torch calls a module; JSON is not known by type

import pytest

ROOT = Path(__file__).resolve().parent
START = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import _harness_boot; del sys.path[0]; _harness_boot.main()"
MARK = "harness"
FIXTURE = "harness_compare"
CHECKED = ("max_slowdown", "max_compile", "max_memory", "max_size")
"""Budgets against earlier runs: options of `harness check` of the same name."""
FAILED, NO_RESULT = 1, 3
SECONDS = 3600.0
DRIFTED = (0, FAILED, NO_RESULT)
"""Exit codes of a comparison that has a table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One case. A number is None where it does not exist."""

    case: str
    status: str
    is_baseline: bool
    latency_ms: float | None
    """Median of `compute`."""
    ratio: float | None
    """Its time over the baseline's; None for the baseline."""
    verdict: str | None
    """FASTER, SLOWER, SAME or UNDECIDED against the baseline."""
    drift: float | None
    """Largest relative L2 distance of an output from the reference."""
    compile_s: float | None
    memory_mb: float | None
    engine_mb: float | None
    reason: str = ""
    """Why it has no result."""
    reproduce: str = ""


class Table(Mapping[str, Row]):
    """What was measured: case id -> row, in the order of the printed table."""

    def __init__(self, rows: Sequence[Row], text: str, run: str, command: str) -> None:
        self._rows = {row.case: row for row in rows}
        self.text = text
        """The whole report as `harness compare` prints it."""
        self.run = run
        """Folder of the run."""
        self.command = command
        """What measures it again."""

    def __getitem__(self, case: str) -> Row:
        if case not in self._rows:
            raise KeyError(f"no case '{case}'; there are: {', '.join(self._rows)}")
        return self._rows[case]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class Comparing:
    """Runs comparisons for one test, and holds them to budgets."""

    def __init__(self, folder: Path, invoked: Path) -> None:
        """Take a folder of the test's own, and the one that commands run in, where `module:callable` is looked for."""
        self._folder = folder
        self._invoked = invoked
        self._count = 0

    def __call__(
        self,
        model: Any,
        *,
        inputs: Sequence[Any] | None = None,
        backends: Sequence[str] = ("eager", "onnxruntime"),
        baseline: str | None = None,
        quick: bool | None = None,
        max_latency_ms: float | None = None,
        max_drift: float | None = None,
        against: str = "baseline",
        store: str | None = None,
        args: Sequence[str] = (),
        **growths: str | float,
    ) -> Table:
        """Compare a model, and fail the test where a budget is exceeded or a backend has no result.

        Args:
            model: What `--model` takes, or a torch module; then `inputs` are the example inputs it is exported with.
            backends: As `--backends` has them.
            baseline: The case that others are compared with.
            quick: One launch, and no verdicts. None: unless there is a budget against earlier runs, which needs them.
            max_latency_ms: Most that the median of each case but the baseline may take.
            max_drift: Largest relative L2 distance of each case's outputs from the reference.
            against: What `max_slowdown`, `max_compile`, `max_memory` and `max_size`, such as `"5%"` or 0.05, are held
                against, as in `harness check`; then the run goes into the history and is judged there.
            store: The history; None: the user's own.
            args: Further options of `harness compare`.
        """
        if unknown := sorted(set(growths) - set(CHECKED)):
            known = ", ".join(("max_latency_ms", "max_drift", *CHECKED))
            pytest.fail(f"harness knows no budget {', '.join(unknown)}; it knows {known}", pytrace=False)
        fast = not growths if quick is None else quick
        words = ["compare", "--model", self._spelled(model, inputs), "--backends", ",".join(backends), "--quiet"]
        words += ["--baseline", baseline] if baseline else []
        words += ["--quick"] if fast else []
        words += [*(["--store", store] if store else [] if growths else ["--store", "none"]), *args]
        table = self._compared(words)
        problems = [*_failing(table), *_over(table, max_latency_ms, max_drift)]
        if problems:
            pytest.fail(_message(problems, table), pytrace=False)
        if growths:
            self._check(table, against, store, growths)
        return table

    def _compared(self, words: list[str]) -> Table:
        self._count += 1
        out, report = self._folder / "results", self._folder / f"table-{self._count}.json"
        done = self._run([*words, "--out", str(out), "--format", f"terminal,json={report}"])
        command = f"harness {shlex.join(word for word in words if word != '--quiet')}"
        if done.returncode not in DRIFTED or not report.is_file():
            pytest.fail(f"{done.stderr.strip() or done.stdout}\nreproduce: {command}", pytrace=False)
        content = json.loads(report.read_text(encoding="utf-8"))
        several = len(content["workloads"]) > 1
        rows = [
            _row(row, f"{workload['key']}, {row['id']}" if several else row["id"])
            for workload in content["workloads"]
            for row in workload["rows"]
        ]
        return Table(rows, done.stdout, str(out / content["run"]["id"]), command)

    def _check(self, table: Table, against: str, store: str | None, growths: Mapping[str, str | float]) -> None:
        words = ["check", table.run, "--against", against, "--quiet", "--out", str(self._folder / "results")]
        # What a test did not set is none of its budgets.
        for name in CHECKED:
            growth = growths.get(name, "any")
            words += [f"--{name.replace('_', '-')}", growth if isinstance(growth, str) else f"{100 * growth:g}%"]
        words += ["--max-drift", "pass", *(["--store", store] if store else [])]
        done = self._run(words)
        if done.returncode:
            said = f"{done.stdout}\n{done.stderr}".strip()
            pytest.fail(f"{said}\nreproduce: {table.command}\n           harness {shlex.join(words)}", pytrace=False)

    def _run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", START, *words],
            cwd=self._invoked,
            env={**os.environ, "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def _spelled(self, model: Any, inputs: Sequence[Any] | None) -> str:
        """Return a model as `--model` takes it; a module becomes a file of the test."""
        if isinstance(model, (str, Path)):
            if inputs is not None:
                pytest.fail("harness: inputs belong to a torch module, not to the name of a model", pytrace=False)
            return str(model)
        if inputs is None:
            message = "harness: a torch module needs inputs=(...): the tensors that it is exported with"
            pytest.fail(message, pytrace=False)
        import torch

        path = self._folder / f"{type(model).__name__}.pt2"
        torch.export.save(torch.export.export(model.eval(), tuple(inputs)), path)
        return str(path)


def _row(row: Mapping[str, Any], case: str) -> Row:
    compute, comparison, failure = row["compute"], row["comparison"], row["failure"]
    drifts = [one["relative_l2"] for one in row["drift"] if one["relative_l2"] is not None]
    return Row(
        case=case,
        status=row["status"],
        is_baseline=row["is_baseline"],
        latency_ms=compute["p50_ns"]["value"] * 1e-6 if compute else None,
        ratio=comparison["ratio"]["value"] if comparison else None,
        verdict=comparison["verdict"] if comparison else None,
        drift=max(drifts, default=None),
        compile_s=row["stages"].get("compile"),
        memory_mb=_mega(row["peak_bytes"]),
        engine_mb=_mega(row["engine_bytes"]),
        reason=f"{failure['stage']}: {failure['message']}" if failure else "",
        reproduce=row["reproduce"],
    )


def _mega(count: int | None) -> float | None:
    return None if count is None else count * 1e-6


def _failing(table: Table) -> Iterator[str]:
    for row in table.values():
        if row.status != "ok":
            yield f"{row.case}: {row.status}{f', {row.reason}' if row.reason else ''}"


def _over(table: Table, max_latency_ms: float | None, max_drift: float | None) -> Iterator[str]:
    for row in table.values():
        only_compared_with = row.is_baseline and len(table) > 1
        if max_latency_ms is not None and not only_compared_with and (row.latency_ms or 0) > max_latency_ms:
            yield f"{row.case}: {row.latency_ms:.4g} ms, and at most {max_latency_ms:g} ms are allowed"
        if max_drift is not None and row.drift is not None and row.drift > max_drift:
            yield f"{row.case}: drift {row.drift:.1e}, and at most {max_drift:.1e} is allowed"


def _message(problems: Sequence[str], table: Table) -> str:
    from tabulate import tabulate  # here, since this module is imported by every pytest in this environment

    rows = [
        (row.case, row.status, row.latency_ms, row.ratio, row.verdict, row.drift, row.compile_s, row.memory_mb)
        for row in table.values()
    ]
    headers = ("case", "status", "p50 ms", "time ratio", "verdict", "drift", "compile s", "peak MB")
    drawn = tabulate(rows, headers=headers, floatfmt=".4g", missingval="-")
    said = [f"  {one}" for one in problems]
    return "\n".join(["harness: over budget", *said, "", drawn, "", f"reproduce: {table.command}"])


# ---- pytest's side


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARK}(model, *, inputs, backends, max_latency_ms, max_drift, max_slowdown, ...): compare a model before the "
        "test, which fails where a budget is exceeded; arguments as of the fixture harness_compare",
    )


@pytest.fixture
def harness_compare(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Table]:
    """Compare a model and return the table; budgets may be given, and a test may assert on its rows."""
    return Comparing(tmp_path, request.config.invocation_params.dir)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a marked test what measures it, whether it asks for that or not."""
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker(MARK) and FIXTURE not in item.fixturenames:
            item.fixturenames.append(FIXTURE)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Measure what a test is marked with, within the test, so that a budget that is exceeded is a failure of it."""
    for mark in pyfuncitem.iter_markers(MARK):
        compare = cast("Callable[..., Table]", pyfuncitem.funcargs[FIXTURE])
        compare(*mark.args, **mark.kwargs)
