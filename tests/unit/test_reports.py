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
import subprocess
import sys
from pathlib import Path
from typing import Any  # parsed JSON, and field values outside their declared type

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reports.json
from harness import registry
from harness.records import Failure
from harness.summary import Comparison, Estimate, RunSummary
from reports.blocks import FOLDED, Banners, Failures, Heading, Legend, Plot, Section, Sentence
from reports.formatting import (
    clean,
    clean_lines,
    columns,
    counted,
    duration,
    listed,
    percent,
    ratio,
    shorten,
    significant,
    time_unit,
)
from reports.markdown import escape, fence
from reports.page import draw
from reports.plot import HEIGHT, MARKS, draw_plot
from reports.table import COST, SPEED, WHERE_APPLICABLE, Table
from reports.terminal import split
from reports.values import values
from tests.example_accuracy import accuracy
from tests.example_gpu import gpu
from tests.example_limits import limits
from tests.example_runs import (
    NASTY,
    case,
    cuda,
    drift,
    examples,
    full,
    interrupted,
    model_info,
    nasty,
    no_export,
    quick,
    row,
    single,
    stages,
    summary_of,
    workload,
)
from tests.example_suites import composed, price, suite, suites, sweep

GOLDEN_FORMATS = ("csv", "json", "junit", "latex", "markdown", "terminal")
"""Not `html`, whose pictures differ from one version of matplotlib to the next: it has tests of its own."""
GOLDEN = Path(__file__).parents[1] / "golden"
SEVERAL = suites()
RUNS = examples() | SEVERAL | {"gpu": gpu(), "accuracy": accuracy(), "limits": limits()}
SETTINGS: dict[str, dict[str, Any]] = {
    "full.terminal-100": {"width": 100},
    "full.terminal-140": {"width": 140},
    "full.terminal-color": {"color": True},
    "suite.terminal-80": {"width": 80},
    "suite.terminal-120": {"width": 120},
    "suite.terminal-color": {"color": True},
    "sweep.terminal-80": {"width": 80},
}


def render(name: str, of: RunSummary, **settings: Any) -> str:
    return registry.report(name).render(of, **settings)


def compare_with_golden(file: str, text: str) -> None:
    path = GOLDEN / file
    if os.environ.get("HARNESS_UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{path} is missing; write it with HARNESS_UPDATE_GOLDEN=1"
    assert text == path.read_text(encoding="utf-8"), f"differs from {path}; if that is right, HARNESS_UPDATE_GOLDEN=1"


@pytest.mark.parametrize("format_name", GOLDEN_FORMATS)
@pytest.mark.parametrize("name", sorted(RUNS))
def test_golden(name: str, format_name: str) -> None:
    text = render(format_name, RUNS[name])
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    compare_with_golden(f"{name}.{format_name}.txt", text)


@pytest.mark.parametrize("file", sorted(SETTINGS))
def test_golden_terminal_settings(file: str) -> None:
    compare_with_golden(f"{file}.txt", render("terminal", RUNS[file.partition(".")[0]], **SETTINGS[file]))


def test_no_golden_file_is_left_over() -> None:
    expected = {f"{name}.{kind}.txt" for name in RUNS for kind in GOLDEN_FORMATS}
    expected |= {f"{file}.txt" for file in SETTINGS}
    assert {path.name for path in GOLDEN.iterdir()} == expected


class TestCsv:
    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_parses_back_to_full_precision(self, name: str) -> None:
        summary = RUNS[name]
        rows = list(csv.DictReader(io.StringIO(render("csv", summary)), strict=True))
        shown = [(one.workload.key, row_) for one in summary.workloads for row_ in one.rows]
        assert len(rows) == len(shown)
        for parsed, (key, row_) in zip(rows, shown, strict=True):
            assert None not in parsed
            assert parsed["workload"] == clean(key)
            assert parsed["case"] == clean(row_.case.id)
            assert parsed["p50_ns"] == ("" if row_.compute is None else repr(row_.compute.p50.value))
            if row_.comparison:
                bounds = [float(parsed[key]) for key in ("ratio", "ratio_low", "ratio_high")]
                assert bounds == [getattr(row_.comparison.ratio, key) for key in ("value", "low", "high")]

    def test_one_line_a_case_whatever_the_texts(self) -> None:
        assert len(render("csv", nasty()).splitlines()) == 1 + len(nasty().workloads[0].rows)

    def test_columns_are_the_same_for_every_run(self) -> None:
        assert len({render("csv", summary).split("\n", 1)[0] for summary in RUNS.values()}) == 1

    def test_every_case_says_what_it_was_measured_on(self) -> None:
        parsed = list(csv.DictReader(io.StringIO(render("csv", suite()))))
        found = {one["workload"]: (one["model"], one["weights"], one["batch"], one["dims"]) for one in parsed}
        assert found == {
            "resnet50": ("resnet50", "seeded", "1", ""),
            "detectors.yolo:nano": ("detectors.yolo:nano", "own of detectors.yolo:nano", "1", ""),
            "bert-base sequence=512": ("bert-base", "", "1", "sequence=512"),
        }
        assert len({(one["workload"], one["case"]) for one in parsed}) == len(parsed)

    def test_what_is_not_a_finite_number_is_empty(self) -> None:
        parsed = list(csv.DictReader(io.StringIO(render("csv", nasty()))))[1]
        assert (parsed["drift_cosine"], parsed["drift_max_abs"], parsed["drift_nan_count"]) == ("", "", "3")


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


class TestJson:
    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_is_strict(self, name: str) -> None:
        parsed = json.loads(render("json", RUNS[name]), parse_constant=refuse)
        assert [[one["id"] for one in each["rows"]] for each in parsed["workloads"]] == [
            [one.case.id for one in each.rows] for each in RUNS[name].workloads
        ]

    def test_keeps_full_precision_and_intervals(self) -> None:
        parsed = json.loads(render("json", full()))["workloads"][0]["rows"][0]
        first = full().workloads[0].rows[0]
        assert first.compute is not None
        assert first.comparison is not None
        assert parsed["compute"]["p50_ns"] == msgspec.to_builtins(first.compute.p50)
        assert parsed["comparison"]["ratio"] == msgspec.to_builtins(first.comparison.ratio)

    @pytest.mark.parametrize("name", sorted(SEVERAL))
    def test_what_workloads_say_together_is_kept_whole(self, name: str) -> None:
        parsed = json.loads(render("json", SEVERAL[name]))
        for key in ("suite", "composed", "sweeps", "prices"):
            assert parsed[key] == json.loads(msgspec.json.encode(getattr(SEVERAL[name], key)))

    def test_keeps_foreign_text_as_it_was(self) -> None:
        assert json.loads(render("json", nasty()))["workloads"][0]["rows"][2]["failure"]["hint"] == NASTY

    def test_every_key_is_documented(self) -> None:
        parsed = json.loads(render("json", full()))
        one = parsed["workloads"][0]
        known = set(msgspec.structs.asdict(case("eager")))
        keys = set(parsed) | set(parsed["run"]) | set(one) | set(one["rows"][0]["compute"])
        keys |= set(one["rows"][0]) - known
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
        lines = [line for line in outside_fences(render("markdown", RUNS[name])) if line.startswith("|")]
        tables = draw(RUNS[name]).tables
        expected = [len(table.columns) for table in tables for _ in range(len(table.rows) + 2)]
        assert [markdown_cells(line) for line in lines] == expected

    @given(st.text())
    def test_any_name_stays_one_cell(self, name: str) -> None:
        summary = full_with(case(name))
        table = [line for line in outside_fences(render("markdown", summary)) if line.startswith("|")]
        assert [markdown_cells(line) for line in table] == [len(cases_table(summary).columns)] * 3

    def test_no_foreign_html_outside_code(self) -> None:
        tags = re.findall(r"</?\w+", "\n".join(outside_fences(render("markdown", nasty()))))
        assert set(tags) == {"<details", "</details", "<summary", "</summary"}
        folded = [one for one in draw(nasty()).blocks if isinstance(one, Section) and one.title in FOLDED]
        assert tags.count("<details") == tags.count("</details") == len(draw(nasty()).problems) + len(folded)

    @pytest.mark.parametrize("name", sorted(SEVERAL))
    def test_headings_nest(self, name: str) -> None:
        lines = outside_fences(render("markdown", SEVERAL[name]))
        levels = [len(line.partition(" ")[0]) for line in lines if line.startswith("#")]
        assert levels[0] == 2
        assert levels[1] == 3
        assert 2 not in levels[1:]

    @pytest.mark.parametrize("text", ["plain", "``` three", "a ````` five"])
    def test_fence_is_longer_than_what_it_holds(self, text: str) -> None:
        first, *_, last = fence([text]).split("\n")
        assert first == last + "text"
        assert last not in text

    def test_escape(self) -> None:
        assert escape("a|b\\|c_d <i> $x") == r"a&#124;b\\&#124;c\_d &lt;i&gt; \$x"


def full_with(*cases: Any) -> RunSummary:
    """Return a run of these cases, none of them measured."""
    return single([row(one) for one in cases], baseline=None)


def cases_table(summary: RunSummary) -> Table:
    """Return the table of the only workload."""
    (table,) = draw(summary).tables
    return table


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
    @pytest.mark.parametrize("name", ["full", *sorted(SEVERAL)])
    def test_tables_fit(self, name: str, width: int) -> None:
        assert max(map(columns, table_lines(render("terminal", RUNS[name], width=width)))) <= width

    @pytest.mark.parametrize("width", [60, 100, 140])
    @pytest.mark.parametrize("name", ["full", *sorted(SEVERAL)])
    def test_prose_fits(self, name: str, width: int) -> None:
        text = render("terminal", RUNS[name], width=width)
        too_long = [line for line in text.split("\n") if columns(line) > width]
        assert [line for line in too_long if not re.match(r" +(\||log:|reproduce:)", line)] == []

    def test_splits_by_theme(self) -> None:
        parts = split(cases_table(full()), 140)
        assert [[column.key for column in part.columns] for part in parts] == [
            ["case", *(key for key in SPEED if key not in WHERE_APPLICABLE)],
            ["case", *(key for key in COST if key not in WHERE_APPLICABLE)],
        ]
        runs = (cuda(), gpu(), accuracy(), limits())
        seen = {column.key for run in runs for column in cases_table(run).columns}
        assert seen == {"case", *SPEED, *COST}

    @pytest.mark.parametrize("width", [None, 1, 60, 100, 140])
    @pytest.mark.parametrize("name", ["full", *sorted(SEVERAL)])
    def test_no_column_is_lost(self, name: str, width: int | None) -> None:
        for table in draw(RUNS[name]).tables:
            first, *others = [column.key for column in table.columns]
            parts = [[column.key for column in part.columns] for part in split(table, width)]
            assert {part[0] for part in parts} == {first}
            assert sorted(key for part in parts for key in part[1:]) == sorted(others)

    def test_wide_characters_take_two_columns(self) -> None:
        lines = table_lines(render("terminal", full_with(case("eager"), case("猫猫"), case("e\u0301"))))
        starts = {columns(line[: line.index(" fp32")]) for line in lines if " fp32" in line}
        assert len(starts) == 1
        assert columns("猫猫") == 4

    def test_numbers_keep_their_units(self) -> None:
        prose = render("terminal", full(), width=70).split("\n\nmeasurement\n")[1]
        assert not re.search(r"\d\n +(s|ms|µs|MB|GB|%)[ ,;:)\n]", prose)


class TestPage:
    def test_rows_keep_the_order_of_the_summary(self) -> None:
        rows = full().workloads[0].rows
        assert [cells[0].text for cells in cases_table(full()).rows] == [one.case.id for one in rows]

    def test_every_column_is_a_key_of_values(self) -> None:
        first = full().workloads[0]
        known = values(first.rows[0], first, full())
        assert {column.key for column in cases_table(full()).columns} <= set(known)

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

    def test_energy_is_a_fact_where_it_was_measured(self) -> None:
        measured = row(case("onnxruntime", facts={"level": "all"}), p50=41.0)
        measured = msgspec.structs.replace(measured, package_energy_per_inference_j=0.41264)
        text = render("terminal", single([measured, row(case("eager"), p50=95.0)]))
        assert "onnxruntime  level all, energy of the whole processor 413 mJ an inference" in text
        assert text.count("energy of the whole processor") == 1
        assert json.loads(render("json", single([measured])))["workloads"][0]["rows"][0][
            "package_energy_per_inference_j"
        ] == pytest.approx(0.41264)

    def test_cpus_are_a_setting_where_they_were_chosen(self) -> None:
        for cpus, said in (
            ("physical:2", "threads 2, cpus 0,2 (physical:2), batch 1"),
            ("0,2", "threads 2, cpus 0,2, "),
        ):
            chosen = msgspec.structs.replace(full().run.settings, cpus=cpus, cpu_set=[0, 2])
            summary = msgspec.structs.replace(full(), run=msgspec.structs.replace(full().run, settings=chosen))
            assert said in render("terminal", summary)

    def test_the_processors_state_as_far_as_it_is_known(self) -> None:
        known = msgspec.structs.replace(
            full().run.environment, governor="performance", numa_nodes=2, smt=True, turbo=False, min_mhz=800.0,
            max_mhz=3400.4, microcode="0xa0011d5",
        )  # fmt: skip
        summary = msgspec.structs.replace(full(), run=msgspec.structs.replace(full().run, environment=known))
        assert (
            "4 logical, governor performance, 2 NUMA nodes, SMT on, turbo off, 800 to 3400 MHz, microcode 0xa0011d5\n"
        ) in render("terminal", summary)

    def test_a_launch_that_failed_is_a_problem_of_an_ok_case(self) -> None:
        lost = draw(interrupted()).problems[-1]
        assert (lost.subject, lost.status) == ("onnxruntime", "failed in launch 2")
        assert lost.reproduce.endswith("--backends onnxruntime")

    def test_a_drifted_case_that_is_faster_is_not_praised(self) -> None:
        table = cases_table(full()).select(["case", "verdict"])
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
        cells = cases_table(summary).select(["drift_relative_l2", "drift_cosine", "drift_passed"]).rows[0]
        assert [cell.text for cell in cells] == ["-", "-", "FAIL"]
        for name in registry.report_names():
            assert "None" not in render(name, summary)

    def test_compilations_are_in_seconds_and_latencies_choose_their_unit(self) -> None:
        slow = full_with(case("tvm", stages=stages(300.0, 2e-5, 0.5)))
        units = {column.key: column.unit for column in cases_table(slow).columns}
        assert (units["compile_s"], units["warm_load_s"], units["first_run_s"]) == ("s", "s", "ms")


class TestDistance:
    """Random weights measure whether the arithmetic is right, not drift."""

    @pytest.mark.parametrize("format_name", ["markdown", "terminal"])
    def test_seeded_weights_are_said_to_agree(self, format_name: str) -> None:
        text = render(format_name, full())
        assert "numerical agreement" in text
        assert "Agreement is the distance" in text
        assert "drift" not in re.sub(r"drifted", "", text)

    @pytest.mark.parametrize("format_name", ["markdown", "terminal"])
    def test_trained_weights_drift(self, format_name: str) -> None:
        text = render(format_name, interrupted())
        assert "Drift is of the output farthest" in text
        assert "agreement at least" in text  # top-1, which is a word of its own
        assert "numerical agreement" not in text

    def test_a_run_of_both_explains_both(self) -> None:
        legend = " ".join(text for block in draw(suite()).blocks if isinstance(block, Legend) for text in block.texts)
        assert "Agreement is" in legend
        assert "Drift is" in legend


class TestControl:
    @pytest.mark.parametrize(
        ("suspicious", "rounds_only", "words"),
        [
            (False, False, "no difference, as it should be"),
            (True, False, "SUSPICIOUS, identical workers differ"),
            (False, True, "one launch cannot judge it"),
        ],
    )
    def test_is_judged_where_it_can_be(self, suspicious: bool, rounds_only: bool, words: str) -> None:
        control = Comparison(
            ratio=Estimate(value=0.5, low=0.4, high=0.6), verdict="UNDECIDED", noisy=True, rounds_only=rounds_only
        )
        summary = single([row(case("eager"), p50=1.0)], control=control, suspicious=suspicious)
        assert f"eager against itself 0.50x [0.40, 0.60] (noisy): {words}\n" in render("terminal", summary)


class TestHeadings:
    def test_one_workload_is_the_title(self) -> None:
        assert draw(full()).title == "resnet50 on cpu: fp32, batch 1, 2 threads, seeded weights"
        assert draw(interrupted()).title.endswith(", pretrained weights")

    def test_several_are_counted_and_each_has_its_heading(self) -> None:
        page = draw(suite())
        assert page.title == "suite vision on cpu: 3 workloads, fp32, 2 threads"
        assert [block.text for block in page.blocks if isinstance(block, Heading)] == [
            "summary of 2 workloads",
            "resnet50 on cpu: fp32, batch 1, 2 threads, seeded weights",
            "detectors.yolo:nano on cpu: fp32, batch 1, 2 threads, own weights",
            "bert-base on cpu: fp32, batch 1, sequence 512, 2 threads, seeded weights",
            "all workloads",
        ]

    @pytest.mark.parametrize(
        ("asked", "known", "words"),
        [
            (None, "seeded", "seeded weights"),
            ("pretrained", "microsoft/resnet-50 model.safetensors", "pretrained weights"),
            ("/home/ada/mine.safetensors", "mine.safetensors", "weights mine.safetensors"),
        ],
    )
    def test_weights_are_named(self, asked: str | None, known: str, words: str) -> None:
        summary = single([row(case("eager"))], weights=asked, info=model_info(weights=known))
        assert draw(summary).title == f"resnet50 on cpu: fp32, batch 1, 2 threads, {words}"

    def test_models_are_named_or_counted(self) -> None:
        def run_of(*models: str) -> RunSummary:
            return summary_of([workload([], model=model) for model in models], closing="")

        assert draw(run_of("a", "b")).title.startswith("a and b on cpu: 2 workloads")
        assert draw(run_of(*"abcd")).title.startswith("4 models on cpu: 4 workloads")


class TestSeveral:
    @pytest.mark.parametrize("format_name", ["markdown", "terminal"])
    def test_what_they_say_together_comes_first(self, format_name: str) -> None:
        text = render(format_name, sweep())
        marks = ["summary of 3", "throughput of resnet50 by batch", "price of dynamic shapes", "resnet50 on cpu: fp32"]
        places = [text.index(mark) for mark in marks]
        assert places == sorted(places)

    def test_common_things_are_said_once(self) -> None:
        for name in ("markdown", "terminal"):
            text = render(name, suite())
            for once in ("machine advice", "p50, p95, p99, throughput", "AMD EPYC", "A win ="):
                assert text.count(once) == 1

    def test_a_failure_of_a_whole_workload_is_said_once(self) -> None:
        page = draw(suite())
        about = [problem for problem in page.problems if problem.stage == "export"]
        assert [problem.subject for problem in about] == ["all 4 cases"]
        assert render("terminal", suite()).count("torch.export cannot trace 'bert-base'\n") == 1
        assert [(one.subject, one.status) for one in draw(no_export()).problems] == [("all 3 cases", "export_failed")]

    def test_a_workload_without_any_number_has_no_table(self) -> None:
        assert draw(no_export()).tables == ()
        assert len(draw(suite()).tables) == 3

    def test_what_fails_everywhere_in_the_same_way_is_said_once(self) -> None:
        subjects = [problem.subject for problem in draw(suite()).problems]
        assert subjects == ["tvm:trials=64", "torch-compile", "all 4 cases", "tensorrt, in 2 workloads"]

    def test_what_fails_in_different_ways_is_kept_apart(self) -> None:
        rows = [row(case("tvm", status="crashed", failure=Failure(stage="import", message=text))) for text in "ab"]
        page = draw(
            summary_of([workload([one], model=model) for one, model in zip(rows, "xy", strict=True)], closing="")
        )
        assert [problem.subject for problem in page.problems] == ["tvm", "tvm"]

    def test_means_over_fewer_workloads_are_marked(self) -> None:
        table = draw(suite()).tables[0].select(["case", "over"])
        assert {cells[0].text: cells[1].text for cells in table.rows} == {
            "onnxruntime": "2 of 2",
            "eager": "2 of 2",
            "torch-compile": "1 of 2*",
            "tvm:trials=64": "1 of 2*",
            "tensorrt": "-",
        }
        assert "* = a mean over fewer than all 2" in render("terminal", suite())
        assert "* = a mean" not in render("terminal", sweep())

    def test_one_launch_wins_nothing(self) -> None:
        found = suite().suite
        assert found is not None
        hasty = msgspec.structs.replace(suite(), suite=msgspec.structs.replace(found, rounds_only=True, contested=0))
        text = render("terminal", hasty)
        assert "neither wins nor ties" in text
        assert "of 0" not in text
        assert "A win =" not in text

    @pytest.mark.parametrize("format_name", ["markdown", "terminal"])
    def test_a_composed_figure_is_said_to_be_composed(self, format_name: str) -> None:
        text = render(format_name, composed())
        assert "sd15-image: composed, not measured" in text
        assert "2 x sd15-text-encoder + 100 x sd15-unet + 1 x sd15-vae-decoder" in text
        assert "sd15-unet drifted" in text

    def test_reused_exports_and_engines_are_said(self) -> None:
        text = render("terminal", sweep())
        assert text.count("the export is that of an earlier run") == 3
        assert text.count("onnxruntime (compiled 2026-03-01T09:00:00Z) and onnxruntime:dynamic=true (compiled") == 3
        assert "engine compiled at" not in text
        assert "earlier run" not in render("terminal", suite())

    def test_a_point_that_is_not_ok_is_no_part_of_the_plot(self) -> None:
        (plot,) = [block for block in draw(sweep()).blocks if isinstance(block, Plot)]
        assert [name for name, _ in plot.series] == ["onnxruntime", "onnxruntime:dynamic=true", "eager"]
        of = sweep().sweeps[0]
        first = of.series[0]
        points = [one and msgspec.structs.replace(one, status="drifted") for one in first.points[:1]]
        changed = msgspec.structs.replace(first, points=[*points, *first.points[1:]])
        drifted = msgspec.structs.replace(of, series=[changed, *of.series[1:]])
        page = draw(msgspec.structs.replace(sweep(), sweeps=[drifted]))
        (plot,) = [block for block in page.blocks if isinstance(block, Plot)]
        assert plot.series[0] == ("onnxruntime", (None, 61.0, 80.25))
        table = next(table for table in page.tables if table.columns[1].key == "1")
        assert table.rows[0][1].text == "24.20 drifted"

    def test_a_price_without_numbers_says_why(self) -> None:
        table = next(table for table in draw(sweep()).tables if table.columns[-1].key == "status")
        assert [cell.text for cell in table.rows[-1]] == ["tvm", "resnet50", "-", "-", "timeout, compile_failed"]
        assert {row_[2].emphasis for row_ in table.rows[:2]} == {"bad"}

    def test_twenty_workloads_with_nasty_names_stay_readable(self) -> None:
        many = [
            workload(
                [row(case(f"eager:{NASTY}"), p50=2.0), row(case("tvm", status="crashed", drift=[]))],
                model=f"{NASTY} {number}",
                kind="factory",
                suspicious=True,
                closing=NASTY,
            )
            for number in range(20)
        ]
        found = suite().suite
        assert found is not None
        together = msgspec.structs.replace(found, left_out=[one.workload.key for one in many])
        dear = [price(one.workload.key, NASTY, (1.0, 0.99, 1.01, "SAME")) for one in many]
        summary = summary_of(many, suite=together, prices=dear, closing=NASTY)
        text = render("terminal", summary, width=120)
        assert [char for char in text if char != "\n" and not char.isprintable()] == []
        assert "and 15 more: two identical workers" in " ".join(text.split())
        assert text.count("crashed in stage -") == 1
        assert "in 20 workloads: crashed" in text
        lines = [line for line in outside_fences(render("markdown", summary)) if line.startswith("|")]
        expected = [len(table.columns) for table in draw(summary).tables for _ in range(len(table.rows) + 2)]
        assert [markdown_cells(line) for line in lines] == expected
        assert len(list(csv.DictReader(io.StringIO(render("csv", summary)), strict=True))) == 40

    def test_every_kind_of_block_is_drawn_by_every_format(self) -> None:
        seen = {type(block) for summary in RUNS.values() for block in draw(summary).blocks}
        assert seen == {Banners, Failures, Heading, Legend, Plot, Section, Sentence, Table}


class TestPlot:
    PLOT = Plot(
        title="",
        dim="batch",
        sizes=(1, 4, 32),
        series=(("onnxruntime", (10.0, 20.0, 40.0)), ("eager", (5.0, None, 10.0))),
    )

    def test_is_ascii_and_fits(self) -> None:
        for width in (40, 60, 80, 200, None):
            lines = draw_plot(self.PLOT, width)
            assert all(line.isascii() for line in lines)
            assert max(map(len, lines)) <= (width or 72)

    def test_marks_stand_where_the_numbers_are(self) -> None:
        lines = draw_plot(self.PLOT, 72)
        rows = {mark: [index for index, line in enumerate(lines[2 : HEIGHT - 1]) if mark in line] for mark in "ox"}
        # 40 of 44 is the highest point, then 20, then the two tens; eager's 5 is the lowest.
        assert len(rows["o"]) == 3
        assert rows["o"] == sorted(rows["o"])
        assert len(rows["x"]) == 2
        assert max(rows["x"]) > max(rows["o"])
        columns_ = [line.rindex("o") for line in lines[2 : HEIGHT - 1] if "o" in line]
        assert columns_ == sorted(columns_, reverse=True), "more throughput at the larger sizes"
        assert lines[-1] == "    o onnxruntime   x eager"

    def test_says_where_marks_cover_each_other(self) -> None:
        alike = (("static", (10.0, 20.0, 40.0)), ("dynamic", (10.0, 19.99, 40.0)))
        lines = draw_plot(Plot(title="", dim="batch", sizes=(1, 4, 32), series=alike), 72)
        assert lines[-2:] == ["    o static   x dynamic", "    where marks meet, the first of these is shown"]
        canvas = "".join(lines[1 : HEIGHT - 1])
        assert (canvas.count("o"), canvas.count("x")) == (3, 0)

    def test_is_drawn_anew_each_time(self) -> None:
        first = draw_plot(self.PLOT, 72)
        draw_plot(Plot(title="", dim="sequence", sizes=(128, 512), series=(("tvm", (1e4, 2e4)),)), 50)
        assert draw_plot(self.PLOT, 72) == first

    @pytest.mark.parametrize("highest", [0.7, 9.99, 10.0, 10.1, 80.25, 117420.0, 1e6])
    def test_heights_are_round_numbers(self, highest: float) -> None:
        lines = draw_plot(Plot(title="", dim="batch", sizes=(1, 2), series=(("a", (highest / 2, highest)),)), 72)
        labels = [float(found[1]) for line in lines[1:HEIGHT] if (found := re.match(r" *([\d.]+)\+", line))]
        assert labels == sorted(labels, reverse=True)
        assert labels[-1] == 0
        assert highest <= labels[0] <= 2 * highest
        assert 3 <= len(labels) <= 6
        assert all(len(f"{label:f}".replace(".", "").strip("0")) <= 2 for label in labels)

    def test_keeps_to_the_width_asked_for_whatever_the_terminal_is(self) -> None:
        script = (
            "from reports.blocks import Plot; from reports.plot import draw_plot; "
            "print(len(draw_plot(Plot(title='', dim='x', sizes=(1, 2), series=(('a', (1.0, 2.0)),)), 72)[1]))"
        )
        small = dict(os.environ, COLUMNS="20", LINES="5")
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=root, env=small, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "72"

    @pytest.mark.parametrize("width", [0, 20, 39])
    def test_no_room_no_plot(self, width: int) -> None:
        assert draw_plot(self.PLOT, width or 1) == []

    def test_nothing_to_draw(self) -> None:
        assert draw_plot(Plot(title="", dim="batch", sizes=(1, 2), series=()), 80) == []
        assert draw_plot(Plot(title="", dim="batch", sizes=(1, 2), series=(("a", (0.0, 0.0)),)), 80) == []

    def test_more_cases_than_marks(self) -> None:
        many = tuple((f"case{number}", (1.0, 2.0 + number)) for number in range(len(MARKS) + 3))
        lines = draw_plot(Plot(title="", dim="batch", sizes=(1, 2), series=many), 80)
        assert any(f"{MARKS[-1]} case{len(MARKS) - 1}" in line for line in lines)

    def test_a_system_without_the_library_shows_the_table_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "plotext", None)
        assert draw_plot(self.PLOT, 80) == []
        assert "throughput of resnet50 by batch" in render("terminal", sweep())


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
            (0.0003, 0.003, 0.04, "0.003x [0.000, 0.040]"),
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

    def test_listed_and_counted(self) -> None:
        assert [listed(["a"]), listed(["a", "b"]), listed(list("abc"))] == ["a", "a and b", "a, b and c"]
        assert listed(list("abcde"), most=3) == "a, b and 3 more"
        assert listed(list("abc"), most=3) == "a, b and c"
        assert [counted(1, "case", "cases"), counted(2, "case", "cases")] == ["1 case", "2 cases"]

    def test_shorten(self) -> None:
        assert (shorten("abcdef", 4), shorten("abcd", 4)) == ("abc…", "abcd")
