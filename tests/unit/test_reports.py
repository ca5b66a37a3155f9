"""The reports: golden texts of hand-written runs, and what must hold for any run.

`HARNESS_UPDATE_GOLDEN=1 pytest tests/unit/test_reports.py` writes the golden texts anew; read the difference
before committing it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any  # parsed JSON, and field values outside their declared type

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reports.json
from harness import registry
from harness.summary import Estimate, RunSummary
from reports.formatting import clean, clean_lines, duration, percent, ratio, shorten, significant, time_unit
from reports.markdown import escape, fence
from reports.page import draw
from reports.table import draw_table
from reports.terminal import COST, NAME, SPEED, split
from reports.values import values
from tests.example_runs import NASTY, case, drift, examples, full, interrupted, nasty, quick, row, run, stages

GOLDEN = Path(__file__).parents[1] / "golden"
RUNS = examples()
SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    "-100": {"width": 100},
    "-140": {"width": 140},
    "-color": {"color": True},
}


def render(name: str, of: RunSummary, **settings: Any) -> str:
    return registry.report(name).render(of, **settings)


def compare_with_golden(file: str, text: str) -> None:
    path = GOLDEN / file
    if os.environ.get("HARNESS_UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{path} is missing; write it with HARNESS_UPDATE_GOLDEN=1"
    assert text == path.read_text(encoding="utf-8"), f"differs from {path}; if that is right, HARNESS_UPDATE_GOLDEN=1"


@pytest.mark.parametrize("format_name", ["csv", "json", "markdown", "terminal"])
@pytest.mark.parametrize("name", sorted(RUNS))
def test_golden(name: str, format_name: str) -> None:
    text = render(format_name, RUNS[name])
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    compare_with_golden(f"{name}.{format_name}.txt", text)


@pytest.mark.parametrize("suffix", [suffix for suffix in SETTINGS if suffix])
def test_golden_terminal_settings(suffix: str) -> None:
    compare_with_golden(f"full.terminal{suffix}.txt", render("terminal", full(), **SETTINGS[suffix]))


def test_no_golden_file_is_left_over() -> None:
    expected = {f"{name}.{kind}.txt" for name in RUNS for kind in ("csv", "json", "markdown", "terminal")}
    expected |= {f"full.terminal{suffix}.txt" for suffix in SETTINGS}
    assert {path.name for path in GOLDEN.iterdir()} == expected


class TestCsv:
    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_parses_back_to_full_precision(self, name: str) -> None:
        summary = RUNS[name]
        rows = list(csv.DictReader(io.StringIO(render("csv", summary)), strict=True))
        assert len(rows) == len(summary.rows)
        for parsed, row_ in zip(rows, summary.rows, strict=True):
            assert None not in parsed
            assert parsed["case"] == clean(row_.case.id)
            assert parsed["p50_ns"] == ("" if row_.compute is None else repr(row_.compute.p50.value))
            if row_.comparison:
                bounds = [float(parsed[key]) for key in ("ratio", "ratio_low", "ratio_high")]
                assert bounds == [getattr(row_.comparison.ratio, key) for key in ("value", "low", "high")]

    def test_one_line_a_case_whatever_the_texts(self) -> None:
        assert len(render("csv", nasty()).splitlines()) == 1 + len(nasty().rows)

    def test_columns_are_the_same_for_every_run(self) -> None:
        assert len({render("csv", summary).split("\n", 1)[0] for summary in RUNS.values()}) == 1

    def test_what_is_not_a_finite_number_is_empty(self) -> None:
        parsed = list(csv.DictReader(io.StringIO(render("csv", nasty()))))[1]
        assert (parsed["drift_cosine"], parsed["drift_max_abs"], parsed["drift_nan_count"]) == ("", "", "3")


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


class TestJson:
    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_is_strict(self, name: str) -> None:
        parsed = json.loads(render("json", RUNS[name]), parse_constant=refuse)
        assert [one["id"] for one in parsed["rows"]] == [one.case.id for one in RUNS[name].rows]

    def test_keeps_full_precision_and_intervals(self) -> None:
        parsed = json.loads(render("json", full()))
        first = full().rows[0]
        assert first.compute is not None
        assert first.comparison is not None
        assert parsed["rows"][0]["compute"]["p50_ns"] == msgspec.to_builtins(first.compute.p50)
        assert parsed["rows"][0]["comparison"]["ratio"] == msgspec.to_builtins(first.comparison.ratio)

    def test_keeps_foreign_text_as_it_was(self) -> None:
        assert json.loads(render("json", nasty()))["rows"][2]["failure"]["hint"] == NASTY

    def test_every_key_is_documented(self) -> None:
        parsed = json.loads(render("json", full()))
        known = set(msgspec.structs.asdict(case("eager")))
        keys = set(parsed) | (set(parsed["rows"][0]) - known) | set(parsed["rows"][0]["compute"]) | set(parsed["run"])
        assert reports.json.__doc__ is not None
        assert {key for key in keys if f"`{key}`" not in reports.json.__doc__} == set()


def outside_fences(text: str) -> list[str]:
    """Return the lines of a Markdown text that are not in a code block."""
    lines, fence_ = [], ""
    for line in text.split("\n"):
        ticks = re.match(r"`{3,}", line)
        if fence_:
            fence_ = "" if line == fence_ else fence_
        elif ticks:
            fence_ = ticks.group()
        else:
            lines.append(line)
    assert not fence_, "a code block is not closed"
    return lines


def markdown_cells(line: str) -> int:
    """Count cells as GitHub does: split at every pipe without a backslash before it."""
    return len(re.split(r"(?<!\\)\|", line)) - 2


class TestMarkdown:
    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_rows_have_as_many_cells_as_the_header(self, name: str) -> None:
        table = [line for line in outside_fences(render("markdown", RUNS[name])) if line.startswith("|")]
        assert len(table) == (len(RUNS[name].rows) + 2 if RUNS[name].rows else 0)
        assert {markdown_cells(line) for line in table} <= {len(draw_table(RUNS[name]).columns)}

    @given(st.text())
    def test_any_name_stays_one_cell(self, name: str) -> None:
        summary = full_with(case(name))
        table = [line for line in outside_fences(render("markdown", summary)) if line.startswith("|")]
        assert [markdown_cells(line) for line in table] == [len(draw_table(summary).columns)] * 3

    def test_no_foreign_html_outside_code(self) -> None:
        tags = re.findall(r"</?\w+", "\n".join(outside_fences(render("markdown", nasty()))))
        assert set(tags) == {"<details", "</details", "<summary", "</summary"}
        assert tags.count("<details") == tags.count("</details") == len(draw(nasty()).problems)

    @pytest.mark.parametrize("text", ["plain", "``` three", "a ````` five"])
    def test_fence_is_longer_than_what_it_holds(self, text: str) -> None:
        first, *_, last = fence([text]).split("\n")
        assert first == last + "text"
        assert last not in text

    def test_escape(self) -> None:
        assert escape("a|b\\|c_d <i> $x") == r"a&#124;b\\&#124;c\_d &lt;i&gt; \$x"


def full_with(*cases: Any) -> RunSummary:
    """Return the full example with other cases, none of them measured."""
    rows = [row(one) for one in cases]
    return msgspec.structs.replace(full(), rows=rows, run=run(rows, launches=[]), baseline=None, control=None)


def table_lines(text: str) -> list[str]:
    """Return the lines of a terminal report's tables, without title, banners and prose."""
    return [line for block in text.split("\n\n") if "\n---" in block for line in block.split("\n")]


class TestTerminal:
    @pytest.mark.parametrize("width", [None, 80, 100, 140, 300])
    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_no_control_characters_without_color(self, name: str, width: int | None) -> None:
        text = render("terminal", RUNS[name], width=width)
        assert [char for char in text if char != "\n" and not char.isprintable()] == []

    @pytest.mark.parametrize("width", [None, 100])
    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_color_adds_colors_only(self, name: str, width: int | None) -> None:
        colored = render("terminal", RUNS[name], color=True, width=width)
        assert "\x1b[" in colored
        assert click.unstyle(colored) == render("terminal", RUNS[name], width=width)
        for line in colored.split("\n"):
            assert line.count("\x1b[") == 2 * line.count("\x1b[0m"), "a colour runs over the end of its line"

    @pytest.mark.parametrize("width", [80, 100, 120, 140, 200])
    def test_tables_fit(self, width: int) -> None:
        assert max(map(len, table_lines(render("terminal", full(), width=width)))) <= width

    @pytest.mark.parametrize("width", [60, 100, 140])
    def test_prose_fits(self, width: int) -> None:
        text = render("terminal", full(), width=width)
        too_long = [line for line in text.split("\n") if len(line) > width]
        assert [line for line in too_long if not re.match(r" +(\||log:|reproduce:)", line)] == []

    def test_splits_by_theme(self) -> None:
        parts = split(draw_table(full()), 140)
        assert [[column.key for column in part.columns] for part in parts] == [[NAME, *SPEED], [NAME, *COST]]

    @pytest.mark.parametrize("width", [None, 1, 60, 100, 140])
    def test_no_column_is_lost(self, width: int | None) -> None:
        table = draw_table(full())
        shown = [column.key for part in split(table, width) for column in part.columns if column.key != NAME]
        assert sorted(shown) == sorted(column.key for column in table.columns if column.key != NAME)

    def test_numbers_keep_their_units(self) -> None:
        prose = render("terminal", full(), width=70).split("\n\nmeasurement\n")[1]
        assert not re.search(r"\d\n +(s|ms|µs|MB|GB|%)[ ,;:)\n]", prose)


class TestPage:
    def test_rows_keep_the_order_of_the_summary(self) -> None:
        assert [cells[0].text for cells in draw_table(full()).rows] == [one.case.id for one in full().rows]

    def test_every_column_is_a_key_of_values(self) -> None:
        known = values(full().rows[0], full())
        assert {column.key for column in draw_table(full()).columns} <= set(known)

    @pytest.mark.parametrize("format_name", ["markdown", "terminal"])
    @pytest.mark.parametrize(("summary", "mark"), [(quick(), "QUICK"), (interrupted(), "INTERRUPTED")])
    def test_what_limits_trust_comes_before_the_table(self, summary: RunSummary, mark: str, format_name: str) -> None:
        text = render(format_name, summary)
        assert -1 < text.index(mark) < text.index("backend ")

    @pytest.mark.parametrize("format_name", ["markdown", "terminal"])
    @pytest.mark.parametrize("name", sorted(set(RUNS) - {"nasty"}))
    def test_the_closing_sentence_is_last(self, name: str, format_name: str) -> None:
        last = render(format_name, RUNS[name]).rstrip("\n").split("\n")[-1]
        assert last.strip("*").replace("\\", "") == RUNS[name].closing

    def test_every_case_without_a_number_is_a_problem(self) -> None:
        subjects = [problem.subject for problem in draw(full()).problems]
        assert subjects == ["tvm:trials=64", "tensorrt", "tvm:trials=20000"]

    def test_a_launch_that_failed_is_a_problem_of_an_ok_case(self) -> None:
        lost = draw(interrupted()).problems[-1]
        assert (lost.subject, lost.status) == ("onnxruntime", "failed in launch 2")
        assert lost.reproduce.endswith("--backends onnxruntime")

    def test_a_drifted_case_that_is_faster_is_not_praised(self) -> None:
        table = draw_table(full()).select(["case", "verdict"])
        found = {cells[0].text: (cells[1].text, cells[1].emphasis) for cells in table.rows}
        assert found["onnxruntime"] == ("FASTER", "good")
        assert found["tvm:trials=64"] == ("FASTER", "muted")

    def test_a_drift_without_a_number_is_a_dash(self) -> None:
        nothing: dict[str, Any] = {
            "relative_l2": None,
            "cosine": None,
            "rmse": None,
            "max_abs": None,
            "rmse_limit": None,
        }
        summary = full_with(case("tvm", drift=[msgspec.structs.replace(drift(0, passed=False), **nothing)]))
        cells = draw_table(summary).select(["drift_relative_l2", "drift_cosine", "drift_passed"]).rows[0]
        assert [cell.text for cell in cells] == ["-", "-", "FAIL"]
        for name in registry.report_names():
            assert "None" not in render(name, summary)

    def test_compilations_are_in_seconds_and_latencies_choose_their_unit(self) -> None:
        slow = full_with(case("tvm", stages=stages(300.0, 2e-5, 0.5)))
        units = {column.key: column.unit for column in draw_table(slow).columns}
        assert (units["compile_s"], units["warm_load_s"], units["first_run_s"]) == ("s", "s", "ms")


class TestFormatting:
    @pytest.mark.parametrize(
        ("value", "digits", "text"),
        [
            (0.0, 3, "0"),
            (41.237, 4, "41.24"),
            (9.9996, 4, "10.00"),
            (0.4, 3, "0.400"),
            (1234.5, 3, "1234"),
            (0.00041, 2, "0.00041"),
            (1.2e-7, 3, "1.20e-07"),
            (float("nan"), 3, "NaN"),
            (float("-inf"), 3, "-inf"),
        ],
    )
    def test_significant(self, value: float, digits: int, text: str) -> None:
        assert significant(value, digits) == text

    @pytest.mark.parametrize(
        ("durations", "name"),
        [([], "ms"), ([5e-5], "µs"), ([1e-4], "ms"), ([0.9, 300.0], "ms"), ([0.001, 2.0, 300.0], "s")],
    )
    def test_time_unit(self, durations: list[float], name: str) -> None:
        assert time_unit(durations).name == name

    @pytest.mark.parametrize(
        ("low", "value", "high", "text"),
        [
            (0.4251, 0.4312, 0.4374, "0.431x [0.425, 0.437]"),
            (0.9, 1.0, 1.1, "1.00x [0.90, 1.10]"),
            (0.99991, 1.0, 1.00009, "1.0000x [0.9999, 1.0001]"),
            (1.0, 1.0, 1.0, "1.000x [1.000, 1.000]"),
        ],
    )
    def test_ratio_shows_no_more_than_its_interval_carries(
        self, low: float, value: float, high: float, text: str
    ) -> None:
        assert ratio(Estimate(value=value, low=low, high=high)) == text

    def test_duration_and_percent(self) -> None:
        assert [duration(0.412), duration(2.61), percent(0.0134), percent(1.0)] == [
            "412 ms",
            "2.61 s",
            "1.3 %",
            "100 %",
        ]

    @pytest.mark.parametrize(
        ("text", "cleaned"),
        [
            ("\x1b[1;31mred\x1b[0m", "red"),
            ("\x1b]0;title\x07shown", "shown"),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x9b31mred", "red"),
            ("a\r\n\tb\u2028c", "a b c"),
            ("\u202eevil\u2066", "evil"),
            ("bad \ud800 surrogate", "bad surrogate"),
            ("\x1b", ""),
        ],
    )
    def test_clean(self, text: str, cleaned: str) -> None:
        assert clean(text) == cleaned

    @given(st.text())
    def test_clean_leaves_one_printable_line(self, text: str) -> None:
        cleaned = clean(text)
        assert clean(cleaned) == cleaned
        assert len(cleaned.splitlines()) <= 1
        assert "\x1b" not in cleaned

    def test_clean_lines_keeps_the_end_its_indentation_and_the_last_state_of_a_progress_bar(self) -> None:
        assert clean_lines("first\n\n1 %\r50 %\r99 %\r\n  \x1b[2Kin\n", last=2) == ["99 %", "  in"]

    def test_shorten(self) -> None:
        assert (shorten("abcdef", 4), shorten("abcd", 4)) == ("abc…", "abcd")
