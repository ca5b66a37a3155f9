"""What `harness recommend` does, behind `harness/choosing.py`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from harness import deploying, registry
from harness.advice import COST, Advice, Limit, Wish
from harness.choosing import LIMITS
from harness.engines import where_now
from harness.errors import HarnessError, UsageError
from harness.recommend import advise
from harness.records import Run
from harness.store import find_run, load_run
from harness.summarize import summarize
from harness.summary import RunSummary

OK, NOTHING_FITS, NOTHING_MEASURED = 0, 1, 3


def run_recommend(name: str, out: Path, given: dict[str, Any], *, save: Path | None, as_json: bool) -> int:
    """Carry out `harness recommend` and return the exit code."""
    wish = wish_of(given)
    summary = summarize(load_run(find_run(name, out)))
    advice = with_snippets(advise(summary, wish), summary.run)
    if as_json:
        # Encoding turns infinities into null, which the standard library's encoder cannot.
        click.echo(msgspec.json.format(msgspec.json.encode(advice), indent=2).decode())
    else:
        _print(advice, summary)
    code = exit_code(advice)
    if save is not None:
        for folder in save_engines(save, advice, summary.run):
            click.echo(f"saved {folder}", err=True)
    return code


def with_snippets(advice: Advice, run: Run) -> Advice:
    """Return an advice with the lines that load each recommended engine, or the reason why there are none."""
    each = []
    for found, workload in zip(advice.recommendations, run.workloads, strict=True):
        case = next((one for one in workload.cases if one.id == found.case), None)
        if case is None:
            each.append(found)
            continue
        try:
            lines = deploying.snippet(case, workload)
        except HarnessError as exc:  # also a backend whose package is not installed here
            hint = f" ({exc.hint})" if exc.hint else ""
            each.append(msgspec.structs.replace(found, no_snippet=f"{exc.message}{hint}"))
            continue
        if (engine := where_now(case)) is None:
            gone = f"the engine is gone: a later run built it anew, or the cache was cleared ({case.reproduce})"
            each.append(msgspec.structs.replace(found, no_snippet=gone))
        else:
            lines = deploying.located(lines, engine)
            each.append(msgspec.structs.replace(found, snippet=lines, engine=str(engine)))
    return msgspec.structs.replace(advice, recommendations=each)


def save_engines(target: Path, advice: Advice, run: Run) -> list[Path]:
    """Save what is recommended: of one workload into the folder itself, of several each into a folder below it."""
    pairs = list(zip(advice.recommendations, run.workloads, strict=True))
    chosen = [(found, workload) for found, workload in pairs if found.case is not None]
    return [
        deploying.save(
            target if len(pairs) == 1 else target / deploying.folder_name(workload.key), found, workload, run
        )
        for found, workload in chosen
    ]


def wish_of(given: dict[str, Any]) -> Wish:
    """Return what the options ask for.

    Raises:
        UsageError: A cost is limited or aimed for, and there is no price.
    """
    limits = [
        Limit(metric=metric, value=value)
        for option, metric, _, _ in LIMITS
        if (value := given[option[2:].replace("-", "_")]) is not None
    ]
    wish = Wish(
        objective=given["objective"], limits=limits, max_drift=given["max_drift"], price_per_hour=given["price"]
    )
    if wish.price_per_hour is None and COST in (wish.objective, *(limit.metric for limit in limits)):
        raise UsageError("a cost needs the price of the machine", hint="--price 0.60: what an hour of it costs")
    return wish


def exit_code(advice: Advice) -> int:
    """Return 0 where every workload that was measured has a case to deploy."""
    measured = [one for one in advice.recommendations if any(each.fate != "no result" for each in one.candidates)]
    if not measured:
        return NOTHING_MEASURED
    return OK if all(one.case is not None for one in measured) else NOTHING_FITS


def _print(advice: Advice, summary: RunSummary) -> None:
    terminal = sys.stdout is not None and sys.stdout.isatty()
    color = terminal and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size().columns if terminal else None
    click.echo(registry.advice_report()(advice, summary, color=color, width=width), nl=False, color=color)
