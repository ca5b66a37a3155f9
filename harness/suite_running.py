"""What `harness run` does: suites of harness.toml, in as few comparisons as they can be, and their gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import msgspec
from tabulate import tabulate

from harness import registry
from harness.cli import INTERRUPTED, OK, cli
from harness.commands import DEFAULT_MODEL, compared, refuse_conflicts
from harness.config import FILE
from harness.errors import HarnessError, StoreError, UsageError
from harness.formats import Wanted
from harness.plan import parse_variants
from harness.precisions import parse_precisions
from harness.store import RunFolder, load_run
from harness.suite_tables import CHECK, Suite, read_suites
from harness.workloads import asked_models

MEANS = {0: "ok", 1: "failed", 2: "could not be done", 3: "a case has no result", INTERRUPTED: "interrupted"}
"""Exit code -> word of the summary."""


FOR_PEOPLE = ("terminal", "markdown")
"""Formats on stdout after which the gate's report may follow."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Suites that are one comparison."""

    suites: tuple[str, ...]
    suite: Suite
    """All of them as one."""
    given: dict[str, Any]
    """For `harness compare`."""


def list_suites(config: Path | None, *, as_json: bool) -> None:
    """Carry out `harness run --list`."""
    suites = known_suites(config)
    if as_json:
        shown = {name: {"compare": suite.of_compare(), CHECK: suite.check} for name, suite in suites.items()}
        click.echo(msgspec.json.format(msgspec.json.encode(shown, enc_hook=str), indent=2).decode())
        return
    rows = []
    for name, suite in suites.items():
        given = _given(suite, {})
        models = ", ".join(given["models"]) or (f"suite {given['suite']}" if given["suite"] else DEFAULT_MODEL)
        gates = " ".join(f"{key.removeprefix('max_')}={value}" for key, value in (suite.check or {}).items())
        rows.append(
            (
                name,
                models,
                ", ".join(given["backends"]),
                given["precisions"],
                given["devices"],
                "quick" if given["quick"] else given["launches"],
                gates or ("no gate" if suite.check is None else "as harness check"),
            )
        )
    click.echo(tabulate(rows, headers=["suite", "models", "backends", "precision", "device", "launches", "gates"]))


def known_suites(config: Path | None) -> dict[str, Suite]:
    """Return the suites of a file, of harness.toml unless another was named.

    Raises:
        UsageError: There is no file, or it has no suites.
    """
    path = config or FILE
    if config is None and not path.is_file():
        raise UsageError(f"there is no {FILE} here", hint="harness init writes one; or name one: harness --config FILE")
    suites = read_suites(path, cli.commands)
    if not suites:
        raise UsageError(f"{path} has no suite", hint='[suite.default], and below it: models = ["resnet50"]')
    return suites


def run_suites(names: Sequence[str], config: Path | None, overrules: dict[str, Any]) -> int:
    """Carry out `harness run SUITE...` and return the exit code: the gravest of all.

    Args:
        overrules: Parameters of `harness compare` that the command line gave.

    Raises:
        UsageError: A suite that there is not, or one that says what cannot be; before anything is measured.
    """
    suites = known_suites(config)
    for name in names:
        if name not in suites:
            raise registry.unknown("suite", name, suites)
    wanted = [suites[name] for name in dict.fromkeys(names)]
    for suite in wanted:
        _refuse_early(suite, overrules)
    parts = [Part(suites=suite_names, suite=one, given=_given(one, overrules)) for suite_names, one in joined(wanted)]
    _refuse_several(parts, overrules)
    codes: dict[tuple[str, ...], int] = {}
    for part in parts:
        if len(parts) > 1:
            click.echo(f"suite {', '.join(part.suites)}", err=True)
        codes[part.suites] = _run(part, set(overrules), alone=len(parts) == 1)
        if codes[part.suites] == INTERRUPTED:
            break
    if len(parts) > 1:
        _summarize(parts, codes)
    return max(codes.values())


def joined(suites: Sequence[Suite]) -> list[tuple[tuple[str, ...], Suite]]:
    """Return suites that differ in nothing but their models as one, in the order in which they were asked for."""
    out: list[tuple[tuple[str, ...], Suite]] = []
    for suite in suites:
        at = next((index for index, (_, other) in enumerate(out) if _alike(suite, other)), None)
        if at is None:
            out.append(((suite.name,), suite))
            continue
        names, other = out[at]
        models = list(dict.fromkeys([*other.compare["models"], *suite.compare["models"]]))
        out[at] = (*names, suite.name), replace(other, compare=other.compare | {"models": models})
    return out


def _alike(one: Suite, other: Suite) -> bool:
    if "models" not in one.compare or "models" not in other.compare or one.check != other.check:
        return False
    return one.compare | {"models": ()} == other.compare | {"models": ()}


def _given(suite: Suite, overrules: dict[str, Any]) -> dict[str, Any]:
    """Return what `harness compare` takes."""
    context = cli.commands["compare"].make_context("compare", [], default_map=suite.of_compare())
    return context.params | overrules


def _refuse_early(suite: Suite, overrules: dict[str, Any]) -> None:
    """Find mistakes before the first comparison starts; the comparison itself would find them, maybe hours later."""
    given = _given(suite, overrules)
    try:
        refuse_conflicts(given | {"resume": None}, set(suite.compare))
        parse_variants(list(given["backends"]))
        parse_precisions(given["precisions"])
        asked_models(list(given["models"]), given["suite"], Path.cwd())
    except UsageError as exc:
        raise UsageError(f"{suite.where} {exc.message}", hint=exc.hint) from exc


def _refuse_several(parts: Sequence[Part], overrules: dict[str, Any]) -> None:
    if len(parts) == 1:
        return
    several = f"these suites are {len(parts)} comparisons, for they differ in more than their models"
    if overrules.get("resume"):
        raise UsageError(f"--resume goes on with one, and {several}", hint="harness run SUITE --resume RUN")
    for name in ("format_", "as_json"):
        wanted = overrules.get(name)
        if wanted is True or (wanted and any(one.file or one.format == "json" for one in wanted)):
            raise UsageError(f"{several}: one report of all cannot be made", hint="harness run them one by one")


def _run(part: Part, explicit: set[str], *, alone: bool) -> int:
    """Return the exit code of one comparison and its gate."""
    try:
        code, folder = compared(part.given, explicit)
        if code == INTERRUPTED:
            click.echo(f"or: harness run {' '.join(part.suites)} --resume {folder.path}", err=True)
        if code == INTERRUPTED or part.suite.check is None:
            return code
        return max(code, _gate(part, folder))
    except HarnessError as exc:
        if alone:
            raise
        for line in exc.lines():
            click.echo(line, err=True)
        return exc.exit_code


def _gate(part: Part, folder: RunFolder) -> int:
    """Return the exit code of `harness check`; OK where there is nothing to hold the run against yet."""
    from harness.history.checking import run_check

    given = part.given
    check = cli.commands[CHECK].make_context(CHECK, [str(folder.path)], default_map=part.suite.of_check()).params
    if lacks := _lacks(check["against"], folder, given["store"]):
        click.echo(f"no gate: {lacks}", err=True)
        return OK
    to_stdout = "json" if given["as_json"] else next((one.format for one in given["format_"] if one.file is None), None)
    shown = [Wanted(to_stdout, None)] if to_stdout in FOR_PEOPLE else []  # one document for a machine, not two
    same = {name: given[name] for name in ("store", "out", "verbose", "quiet")}
    code = run_check(check | same | {"format_": shown}, set())
    if not shown:
        outcome = "passed" if code == OK else "failed"
        click.echo(f"the gate {outcome}; see it with: harness check {folder.path}", err=True)
    return code


def _lacks(against: str, folder: RunFolder, store: str | None) -> str | None:
    """Return why a run cannot be held against its baseline or earlier runs yet; None where it can.

    Raises:
        StoreError: The history cannot be read.
    """
    from harness.history import queries
    from harness.history.against import BASELINE
    from harness.history.deriving import points_of
    from harness.history.location import locate
    from harness.history.store import History

    location = locate(store)
    if location is None:
        return "the history is switched off with 'none'"
    points = points_of(load_run(folder))
    series = dict.fromkeys(point.series for point in points)
    name = folder.path.name
    try:
        with History(location).database.read() as connection:
            if against == BASELINE:
                found = list(queries.baselines(connection, series).values())
            elif against.startswith(f"{queries.LAST}:") and points:
                earlier = queries.earlier(connection, series, most=1, before=points[0].created)
                found = [point for each in earlier.values() for point in each]
            else:
                return None
    except StoreError as exc:
        raise StoreError(f"the run cannot be checked: {exc.message}", hint=exc.hint) from exc
    if not found and against == BASELINE:
        return f"no case has a baseline; set one: harness baseline set {name}"
    if not found:
        return "no case has an earlier run"
    return "the run is the baseline" if all(point.run == name for point in found) else None


def _summarize(parts: Sequence[Part], codes: dict[tuple[str, ...], int]) -> None:
    rows = [
        (", ".join(part.suites), MEANS.get(codes[part.suites], "failed") if part.suites in codes else "not run")
        for part in parts
    ]
    click.echo(f"\n{tabulate(rows, headers=['suite', 'outcome'])}", err=True)
    left = [name for part in parts if codes.get(part.suites, INTERRUPTED) == INTERRUPTED for name in part.suites]
    if left:
        click.echo(f"what is left: harness run {' '.join(left)}", err=True)
