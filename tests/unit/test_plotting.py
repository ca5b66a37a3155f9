"""`harness plot` and the roofline: which charts a run has, where they go, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from harness import ceilings
from harness.cli import main
from harness.modelspec import ModelSpec
from harness.plotting_command import KINDS
from harness.records import Ceiling, Run
from harness.roofline import spot
from harness.store import RunFolder
from harness.summarize import summarize
from reports import charts, pictures
from reports.charting import Chart
from reports.drawings import drawings
from tests.example_limits import limits
from tests.example_runs import NASTY, case, model_info, row, single
from tests.example_suites import sweep
from tests.unit.test_html import axes_of_figure, real
from tests.unit.test_summarize import measured, run_of

GIGA = 1e9
MAGIC = {"png": b"\x89PNG", "pdf": b"%PDF-", "svg": b"<?xml"}


def roofline_of_limits() -> Chart:
    (workload,) = limits().workloads
    (chart,) = (one for one in charts.of_workload(workload, limits().run.ceilings) if one.key == "roofline")
    return chart


class TestRoofline:
    def test_a_case_lies_at_its_intensity_and_its_rate(self) -> None:
        one = row(case("eager"), p50=20.0)
        workload = single([one], info=model_info(gflop=4.0, least_bytes=2 * 10**8)).workloads[0]
        known = Ceiling(
            device="cpu", name="", threads=2, matrix={"fp32": 500 * GIGA}, memory=[(1000, 25 * GIGA)], source="s"
        )
        at = spot(one, workload, [known])
        assert at is not None
        assert (at.intensity, at.rate, at.peak, at.bandwidth) == (20.0, 200 * GIGA, 500 * GIGA, 25 * GIGA)
        assert at.share == pytest.approx(0.4)  # 8 ms of 20: moving memory takes as long as the operations
        assert spot(one, workload, []) is None
        assert spot(row(case("eager")), workload, [known]) is None

    def test_marks_the_line_and_what_is_above_it(self) -> None:
        axes = axes_of_figure()
        roofline_of_limits().draw(axes)
        line, *marks = axes.get_lines()
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert max(line.get_ydata()) == pytest.approx(178.9)
        found = {mark.get_label(): mark for mark in marks}
        assert set(found) == {
            "tvm: 147 % of its compute limit, above the line",
            "onnxruntime: 78.5 % of its compute limit",
            "eager: 47.9 % of its compute limit",
        }
        (above,) = (mark for name, mark in found.items() if "above" in name)
        assert above.get_marker() == "X"
        assert above.get_ydata()[0] > 178.9
        assert all(mark.get_ydata()[0] < 178.9 for name, mark in found.items() if "above" not in name)
        assert "Something is wrong, a case lies above it" in roofline_of_limits().caption

    def test_the_caption_says_where_the_line_comes_from(self) -> None:
        assert "measured with torch 2.13.0 at 2026-03-01" in roofline_of_limits().caption
        sheet = ceilings.datasheet("NVIDIA GeForce RTX 4090")
        assert sheet is not None
        card = ceilings.published("cpu", "x", sheet)
        (workload,) = limits().workloads
        (chart,) = (one for one in charts.of_workload(workload, [card]) if one.key == "roofline")
        assert "the datasheet of the RTX 4090" in chart.caption

    def test_ceilings_that_became_known_later_are_used_on_this_machine_only(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = msgspec.structs.replace(limits().run, ceilings=[])
        monkeypatch.setattr(ceilings, "stored", lambda: limits().run.ceilings)
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        assert ceilings.with_ceilings(run) is run
        monkeypatch.setattr("socket.gethostname", lambda: run.environment.hostname)
        assert ceilings.with_ceilings(run).ceilings == limits().run.ceilings


def saved(folder: Path, run: Run) -> Path:
    (folder / run.id).mkdir(parents=True)
    RunFolder(folder / run.id).save(run)
    return folder


def harness(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(one) for one in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return saved(tmp_path / "runs", real().run)


class TestPlot:
    @pytest.mark.parametrize("format_", ["png", "svg", "pdf"])
    def test_one_chart_into_one_file(
        self, runs: Path, tmp_path: Path, format_: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / f"latency.{format_}"
        assert harness("plot", "last", "--runs", runs, "--kind", "latency", "--out", file) == 0
        assert file.read_bytes().startswith(MAGIC[format_])
        assert capsys.readouterr().out == f"{file}\n"

    def test_all_that_there_is_into_a_folder(
        self, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert harness("plot", "last", "--runs", runs, "--out", tmp_path / "plots") == 0
        written = sorted(path.name for path in (tmp_path / "plots").iterdir())
        assert written == ["compile.svg", "drift.svg", "latency.svg", "memory.svg", "rounds.svg"]
        assert len(capsys.readouterr().out.splitlines()) == 5
        text = (tmp_path / "plots" / "latency.svg").read_text()
        assert "var(--" not in text
        assert not re.search(r"#0101[01]\w", text), "a placeholder colour is left"
        assert {"Distribution of latency", "fast", "slow"} <= set(re.findall(r">([^<>]+)</text>", text))

    def test_the_same_chart_is_the_same_file(self, runs: Path, tmp_path: Path) -> None:
        for kind in MAGIC:
            files = [tmp_path / f"{name}.{kind}" for name in "ab"]
            for file in files:
                assert harness("plot", "last", "--runs", runs, "--kind", "drift", "--out", file) == 0
            assert files[0].read_bytes() == files[1].read_bytes()

    def test_a_run_of_several_workloads(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        one = measured({"eager": 1.0, "fast": 0.5})
        several = [msgspec.structs.replace(one, key=key) for key in ("a/b", "c")]
        runs = saved(tmp_path / "runs", run_of(*several))
        assert harness("plot", "last", "--runs", runs, "--out", tmp_path / "x", "--kind", "latency") == 0
        assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [
            "01-a-b-latency.svg",
            "02-c-latency.svg",
        ]
        file = tmp_path / "c.svg"
        given = ("plot", "last", "--runs", runs, "--kind", "latency", "--out", file)
        assert harness(*given, "--workload", "c") == 0
        assert file.is_file()
        capsys.readouterr()
        assert harness(*given) == 2
        assert "is one file, and there are 2 charts: 01-a-b-latency, 02-c-latency" in capsys.readouterr().err
        assert harness(*given, "--workload", "d") == 2
        assert "unknown workload of this run 'd'" in capsys.readouterr().err

    def test_throughput_is_of_a_sweep(self) -> None:
        (chart,) = (one for one in drawings(sweep()) if one.kind == "throughput")
        assert len(chart.workloads) > 1
        assert b"by batch" in chart.content("svg")

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            (["--kind", "throughput"], "has no data for a chart of throughput"),
            (["--kind", "roofline"], "harness ceilings"),
            (["--kind", "ecdf"], "unknown kind of chart 'ecdf'"),
            (["--out", "x.jpg"], "'.jpg' is no kind of picture"),
            (["--out", "nosuch/x.svg"], "there is no folder"),
            (["--out", "x.svg", "--format", "png"], "contradict"),
            (["--out", "x.svg"], "is one file, and there are 5 charts"),
            (["--runs", "nosuch"], "no run 'last'"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self,
        runs: Path,
        tmp_path: Path,
        given: list[str],
        says: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(ceilings, "stored", list)
        assert harness("plot", "last", "--runs", runs, *given) == 2
        assert says in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    def test_without_the_extra_it_says_what_to_install(
        self, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pictures, "is_available", lambda: False)
        assert harness("plot", "last", "--runs", runs, "--out", tmp_path / "plots") == 2
        assert "pip install 'harness[plots]'" in capsys.readouterr().err
        assert not (tmp_path / "plots").exists()

    def test_markup_in_names_stays_text(self) -> None:
        workload = msgspec.structs.replace(
            measured({"eager": 1.0, "fast": 0.5}), key=NASTY, model=ModelSpec(name=f"{NASTY} $x_1$")
        )
        for drawing in drawings(summarize(run_of(workload))):
            text = drawing.content("svg").decode()
            assert "<script" not in text
            assert "\x1b" not in text
            assert drawing.content("png").startswith(MAGIC["png"])

    def test_every_kind_that_is_offered_is_drawn_and_no_other(self) -> None:
        found = {one.kind for run in (real(), limits(), sweep()) for one in drawings(run)}
        assert found == set(KINDS)

    def test_a_file_looks_like_a_light_page(self) -> None:
        colors = pictures.light()
        assert (colors["--ink"], colors["--back"]) == ("#1a1a1a", "#ffffff")
        assert len(colors) == len(pictures.PLACEHOLDERS)
