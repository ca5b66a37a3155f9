"""What a workflow of GitHub Actions is told: a summary of the step, and annotations.

The runner reads workflow commands from both streams of a step. They go to stderr, so that a report on stdout stays
whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

SUMMARY = "GITHUB_STEP_SUMMARY"
ACTIONS = "GITHUB_ACTIONS"
SUMMARY_BYTES = 1 << 20
"""Of all summaries of a step; one that is larger is not shown at all."""
CUT = "\n\nCut: the whole report is longer than a summary may be.\n"


def summarize(render: Callable[[], str]) -> None:
    """Append a Markdown report to the summary of the step, where there is one. That it cannot be is a warning."""
    place = os.environ.get(SUMMARY)
    if not place:
        return
    path = Path(place)
    try:
        room = SUMMARY_BYTES - (path.stat().st_size if path.exists() else 0)
        with path.open("ab") as file:
            file.write(fitting(render() + "\n", room))
    except OSError as exc:
        click.echo(f"warning: {SUMMARY}: {place} cannot be written: {exc.strerror}", err=True)


def fitting(text: str, room: int) -> bytes:
    """Return a text as UTF-8 in so many bytes, cut at the end of a line and saying so where it does not fit."""
    whole = text.encode()
    if len(whole) <= room:
        return whole
    end = CUT.encode()
    kept = whole[: max(0, room - len(end))]
    return kept[: kept.rfind(b"\n") + 1] + end if room >= len(end) else b""


def workflow_commands(render: Callable[[], list[tuple[str, str, str]]]) -> list[str]:
    """Return the workflow commands for (level, title, message) each; none outside of a workflow."""
    if os.environ.get(ACTIONS) != "true":
        return []
    return [command(*one) for one in render()]


def command(level: str, title: str, message: str) -> str:
    """Return a workflow command: percent signs and line ends escaped, in a property colons and commas too."""
    return f"::{level} title={_escaped(title).replace(':', '%3A').replace(',', '%2C')}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
