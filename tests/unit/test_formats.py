"""Several reports at once, and the formats for machines and papers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest

from harness import formats, registry
from harness.errors import StoreError, UsageError
from harness.formats import Formats, Wanted, parse_formats
from reports import latex
from tests.example_runs import examples, full, nasty, no_export
from tests.example_suites import suite, suites

RUNS = examples() | suites()


class TestGrammar:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("terminal", [("terminal", None)]),
            (
                "terminal,html=report.html,markdown=pr.md",
                [("terminal", None), ("html", "report.html"), ("markdown", "pr.md")],
            ),
            ("html=a,b.html,json", [("html", "a,b.html"), ("json", None)]),
            (" json = x.json ", [("json", "x.json")]),
            ("csv=a=b.csv", [("csv", "a=b.csv")]),
        ],
    )
    def test_is_read(self, text: str, wanted: list[tuple[str, str | None]]) -> None:
        assert parse_formats(text) == wanted

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "unknown report format ''"),
            ("htm", "did you mean 'html'"),
            ("terminal,report.html", "unknown report format 'report.html'"),
            ("html=", "write html=FILE"),
            ("terminal,json", "terminal and json cannot both go to standard output; give a file: json=FILE"),
            ("html=x,json=./x", "html and json cannot both go to /"),
        ],
    )
    def test_nonsense_is_refused(self, text: str, says: str) -> None:
        with pytest.raises(UsageError, match=re.escape(says)):
            parse_formats(text)

    def test_a_file_of_defaults_may_hold_a_list(self) -> None:
        assert Formats().convert(["terminal", "html=r.html"], None, None) == [("terminal", None), ("html", "r.html")]
        with pytest.raises(click.BadParameter, match="unknown report format"):
            Formats().convert("x", None, None)


class TestEmit:
    def test_writes_files_and_prints_the_one_without(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        wanted = [
            Wanted("csv", str(tmp_path / "a.csv")),
            Wanted("terminal", None),
            Wanted("json", str(tmp_path / "a.json")),
        ]
        formats.emit(full(), wanted)
        assert (tmp_path / "a.csv").read_text(encoding="utf-8") == registry.report("csv").render(full())
        assert (tmp_path / "a.json").read_text(encoding="utf-8") == registry.report("json").render(full())
        printed = capsys.readouterr()
        assert printed.out == registry.report("terminal").render(full())
        assert printed.err.splitlines() == [f"wrote {tmp_path / 'a.csv'}", f"wrote {tmp_path / 'a.json'}"]

    def test_one_that_cannot_be_written_does_not_keep_the_others(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").mkdir()
        wanted = [Wanted("csv", str(tmp_path / "a.csv")), Wanted("json", str(tmp_path / "a.json"))]
        with pytest.raises(StoreError, match=r"a\.csv cannot be written"):
            formats.emit(full(), wanted)
        assert (tmp_path / "a.json").is_file()

    @pytest.mark.parametrize(("file", "says"), [("", "is a folder"), ("nosuch/x.html", "there is no folder")])
    def test_what_could_not_be_written_is_refused_before_anything_is_measured(
        self, tmp_path: Path, file: str, says: str
    ) -> None:
        with pytest.raises(UsageError, match=says):
            formats.check([Wanted("html", str(tmp_path / file))])
        formats.check([Wanted("html", str(tmp_path / "x.html")), Wanted("terminal", None)])


def junit(name: str) -> ElementTree.Element:
    return ElementTree.fromstring(registry.report("junit").render(RUNS[name]).encode())


class TestJunit:
    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_counts_are_those_of_the_cases(self, name: str) -> None:
        root = junit(name)
        found = list(root.iter("testsuite"))
        assert [len(one.findall("testcase")) for one in found] == [len(one.rows) for one in RUNS[name].workloads]
        for one in found:
            for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
                assert int(one.attrib[attribute]) == len(one.findall(f"testcase/{tag}"))
            assert int(one.attrib["tests"]) == len(one.findall("testcase"))

    def test_what_failed_says_why_and_how_to_see_it_again(self) -> None:
        cases = {one.attrib["name"]: one for one in junit("full").iter("testcase")}
        (drifted,) = cases["tvm:trials=64"].findall("failure")
        assert "too far from golden" in drifted.attrib["message"]
        assert drifted.text is not None
        assert "reproduce: harness compare" in drifted.text
        assert cases["tensorrt"].find("skipped") is not None
        assert cases["tvm:trials=20000"].find("error") is not None
        assert cases["eager"].find("error") is None

    def test_what_ended_a_whole_workload_is_said_of_each_case(self) -> None:
        root = ElementTree.fromstring(registry.report("junit").render(no_export()).encode())
        assert {one.attrib["message"] for one in root.iter("error")} == {"torch.export cannot trace 'resnet50'"}


class TestLatex:
    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_every_row_has_as_many_cells_as_there_are_columns(self, name: str) -> None:
        text = registry.report("latex").render(RUNS[name])
        found = re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL)
        assert len(found) == sum(bool(one.rows) for one in RUNS[name].workloads)
        for columns, body in found:
            for line in body.splitlines():
                if line.endswith("\\\\"):
                    assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
        assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")

    @pytest.mark.skipif(
        not (shutil.which("pdflatex") and shutil.which("kpsewhich")), reason="pdflatex is not installed"
    )
    def test_it_compiles_and_fits_the_page(self, tmp_path: Path) -> None:
        # Letters of other scripts take xelatex: the head of the file says so.
        texts = [registry.report("latex").render(run).replace("猫", "") for run in RUNS.values()]
        body = "\n\\clearpage\n".join(texts)
        head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
        (tmp_path / "all.tex").write_text(f"{head}\n{body}\n\\end{{document}}\n", encoding="utf-8")
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
        )
        said = done.stdout.decode(errors="replace")
        assert done.returncode == 0, said[-2000:]
        assert "Overfull" not in said

    def test_foreign_text_is_set_as_it_is(self) -> None:
        assert latex.escape("a_b & 50% of $x^2 {~\\}") == (
            r"a\_b \& 50\% of \$x\textasciicircum{}2 \{\textasciitilde{}\textbackslash{}\}"
        )
        outside = [line for line in registry.report("latex").render(nasty()).splitlines() if not line.startswith("%")]
        assert not re.search(r"(?<!\\)_", "\n".join(line for line in outside if not line.strip().startswith("%")))

    def test_a_suite_has_a_table_for_each_workload(self) -> None:
        text: Any = registry.report("latex").render(suite())
        assert text.count(r"\begin{table}") == 3
        assert text.count(r"\caption{") == 3
