"""Progress on stderr: one live line on a terminal, plain lines elsewhere, nothing with `--quiet`.

The line is drawn only when something is reported. A spinner that redraws itself would take CPU time from what
is being measured.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from harness.protocol import Progress


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

    def detail(self, progress: Progress) -> None:
        """Show a sign of life from within the step."""
        count = f" {progress.done}/{progress.total}" if progress.total else ""
        self._show(f"{self._doing}: {progress.text}{count}")

    def done(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(Text(line))

    def _show(self, text: str) -> None:
        if self._live.is_started:
            self._live.update(Text(text, style="dim", no_wrap=True, overflow="ellipsis"), refresh=True)
