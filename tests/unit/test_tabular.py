"""Tables of commands: what fits the terminal, and what a pipe gets."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from harness import tabular

HEADS = ["name", "inputs", "what"]
ROWS = [("a", "x float32[batch,64,80,80], mask int64[batch,sequence]", "words " * 20), ("b", "y", "few words")]


def printed(
    monkeypatch: pytest.MonkeyPatch, columns: int, *, terminal: bool = True, spare: tuple[str, ...] = ()
) -> str:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))
    return tabular.fitted(ROWS, HEADS, prose=["inputs", "what"], spare=spare)


@pytest.mark.parametrize("columns", [50, 80, 100])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    text = printed(monkeypatch, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert text.count("words") == 21


def test_a_wide_terminal_and_a_pipe_get_a_line_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = printed(monkeypatch, 400)
    assert len(wide.splitlines()) == 2 + len(ROWS)
    assert printed(monkeypatch, 50, terminal=False) == wide


def test_a_spare_column_goes_only_where_wrapping_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "inputs" in printed(monkeypatch, 60, spare=("inputs",))
    narrow = printed(monkeypatch, 25, spare=("inputs",))
    assert "inputs" not in narrow
    assert "what" in narrow
