"""Progress on stderr: one live line on a terminal, plain lines elsewhere, nothing with `--quiet`.

The line is drawn only when something is reported. A spinner that redraws itself would take CPU time from what
is being measured.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.protocol import Progress

BAR_CHARACTERS = 16
REASON_CHARACTERS = 160


def brief(message: str) -> str:
    """Return the first line of a message, cut to what a line of progress has room for."""
    line = message.partition("\n")[0]
    if len(line) <= REASON_CHARACTERS:
        return line
    return line[: REASON_CHARACTERS - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


class Narrator:
    """Tells a person what is going on. A context manager, so that the live line is gone at the end."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._doing = ""

    def __enter__(self) -> Narrator:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def doing(self, what: str) -> None:
        """Name the step that begins."""
        self._doing = what
        self._show(what)

    def step(self, what: str) -> None:
        """Name the step that begins, with a line that stays where there is no live one: a log of a long search."""
        self.doing(what)
        if not self._live.is_started:
            self.done(what)

    def detail(self, progress: Progress) -> None:
        """Show a sign of life from within the step: with a bar where it is known how much there is to do."""
        self._show(f"{self._doing}: {progress.text}", progress.done or 0, progress.total or 0)

    def done(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(Text(line))

    def _show(self, text: str, done: int = 0, total: int = 0) -> None:
        if not self._live.is_started:
            return
        line = Text(text, style="dim", no_wrap=True, overflow="ellipsis")
        self._live.update(_with_bar(line, done, total) if total else line, refresh=True)


def _with_bar(line: Text, done: int, total: int) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_column()
    row.add_column(no_wrap=True, width=BAR_CHARACTERS)
    row.add_column(no_wrap=True)
    row.add_row(line, ProgressBar(total=total, completed=done, width=BAR_CHARACTERS), Text(f"{done}/{total}"))
    return row
