"""What `harness check` does, behind `harness/history/cli_check.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from harness import formats, registry
from harness.cli import GATE_FAILED, OK, WRONG_USAGE
from harness.errors import UsageError
from harness.formats import Wanted
from harness.history import github
from harness.history.against import Match, match
from harness.history.gate import Again, Check, judge, settle
from harness.history.limits import Limits
from harness.history.location import locate
from harness.records import Run
from harness.store import RUN_FILE, RunFolder, find_run, load_run


def run_check(given: dict[str, Any], explicit: set[str]) -> int:
    """Carry out `harness check` and return the exit code."""
    _refuse_conflicts(explicit)
    wanted: list[Wanted] = [Wanted("json", None)] if given["as_json"] else list(given["format_"])
    if given["junit"] is not None:
        wanted.append(Wanted("junit", given["junit"]))
    formats.check(wanted)
    limits = Limits(
        slowdown=given["max_slowdown"],
        compile=given["max_compile"],
        memory=given["max_memory"],
        size=given["max_size"],
        drift=given["max_drift"],
        undecided=given["undecided"],
    )
    found = match(_run_name(given), given["against"], given["store"])
    checked = judge(found.before, found.after, found.earlier, limits, asked=found.asked, whole=found.whole)
    times = 0 if given["no_remeasure"] else given["remeasure"]
    again = Again()
    if checked.suspects and times:
        again = _measured_again(checked, found, given, times)
    checked = settle(checked, again, found.earlier)
    _report(checked, wanted)
    return {"passed": OK, "failed": GATE_FAILED, "nothing compared": WRONG_USAGE}[checked.outcome]


def _refuse_conflicts(explicit: set[str]) -> None:
    names = {"as_json": "--json", "format_": "--format", "no_remeasure": "--no-remeasure"}
    for one, other in (("remeasure", "no_remeasure"), ("as_json", "format_"), ("verbose", "quiet")):
        if {one, other} <= explicit:
            first, second = (names.get(name, f"--{name}") for name in (one, other))
            raise UsageError(f"{first} and {second} contradict each other; give one")


def _run_name(given: dict[str, Any]) -> str:
    """Return what the run is found by: without a history it is a file below --out."""
    name = str(given["run"])
    return str(find_run(name, given["out"]).path) if locate(given["store"]) is None else name


def _measured_again(checked: Check, found: Match, given: dict[str, Any], times: int) -> Again:
    # Here, for it brings all that measures: a check that finds nothing suspicious needs none of it.
    from harness.history.again import Remeasuring
    from harness.progress import Narrator

    with Narrator(quiet=given["quiet"]) as narrator:
        narrator.done(f"suspicious cases: {len(checked.suspects)} of {len(checked.judged)}")
        remeasuring = Remeasuring(_loader(given), given["out"], locate(given["store"]), narrator)
        return remeasuring.measure(checked, found.again, times)


def _loader(given: dict[str, Any]) -> Callable[[str], Run]:
    def load(run: str) -> Run:
        for name in (given["run"], given["against"], given["out"] / run):
            path = Path(name)
            folder = path.parent if path.name == RUN_FILE else path
            if (folder / RUN_FILE).is_file() and (loaded := load_run(RunFolder(folder))).id == run:
                return loaded
        from harness.history.managing import opened

        return opened(given["store"]).load(run)

    return load


def _report(checked: Check, wanted: list[Wanted]) -> None:
    def rendered(format_: str, *, color: bool, width: int | None) -> str:
        if format_ == "json":
            # Encoding turns NaN and infinities into null, which the standard library's encoder cannot.
            return msgspec.json.format(msgspec.json.encode(checked), indent=2).decode() + "\n"
        return str(registry.view("check")(checked, format_=format_, color=color, width=width))

    github.summarize(lambda: rendered("markdown", color=False, width=None))
    for line in github.workflow_commands(lambda: registry.view("remarks")(checked)):
        click.echo(line, err=True)
    formats.emit_all(rendered, wanted)
