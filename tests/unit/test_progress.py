"""What a person sees while work goes on: one line that is drawn over, with a bar where a step counts."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from harness import progress
from harness.progress import REASON_CHARACTERS, Narrator, brief
from harness.protocol import Progress


def drawn(monkeypatch: pytest.MonkeyPatch, *steps: Progress, width: int = 100, quiet: bool = False) -> list[str]:
    """Return every line that a terminal of this width shows for these steps."""
    out = io.StringIO()

    def console(**given: object) -> Console:
        return Console(file=out, force_terminal=True, width=width, color_system=None, soft_wrap=True, quiet=quiet)

    monkeypatch.setattr(progress, "Console", console)
    with Narrator(quiet=quiet) as narrator:
        narrator.doing("compiling x")
        for step in steps:
            narrator.detail(step)
        narrator.done("done")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]", plain) if line.strip()]


def test_a_step_that_counts_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(monkeypatch, Progress(text="Timing", done=0, total=4), Progress(text="Timing", done=2, total=4))
    bars = [line.count("━") for line in lines if line.startswith("compiling x: Timing")]
    assert bars[0] == 0 and bars[-1] == progress.BAR_CHARACTERS // 2
    assert [line.split()[-1] for line in lines if "Timing" in line][-1] == "2/4"


@pytest.mark.parametrize(
    "step", [Progress(text="Tuning"), Progress(text="Tuning", done=3), Progress(text="Tuning", total=0)]
)
def test_a_step_that_does_not_know_how_much_there_is_has_none(step: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "compiling x: Tuning" in drawn(monkeypatch, step)


def test_a_narrow_terminal_cuts_the_text_and_keeps_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(monkeypatch, Progress(text="a long name of a phase", done=2, total=4), width=40)
    (line,) = {line for line in lines if "━" in line}
    assert len(line) <= 40 and "…" in line and line.endswith("2/4")


def test_quiet_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, Progress(text="Timing", done=2, total=4), quiet=True) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_of_a_search_leaves_a_line_in_a_log(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    out = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=out, force_terminal=terminal, width=80, color_system=None)
    )
    with Narrator() as narrator:
        narrator.step("trial 1")
        narrator.step("trial 2")
    assert (out.getvalue() == "trial 1\ntrial 2\n") is not terminal


def test_a_reason_is_cut_where_one_sees_it() -> None:
    assert brief("no such file\nand a second line") == "no such file"
    assert brief("") == ""
    long = brief("word " * 100)
    assert len(long) <= REASON_CHARACTERS
    assert long.endswith("word…")
