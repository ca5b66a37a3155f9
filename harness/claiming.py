"""What `harness claims` does, behind `harness/claims_command.py`: a comparison for each claim that can be run here."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any  # what click parsed

import click
import msgspec

from harness import environment, protocol, registry
from harness.claims import TABLE, Checked, Claim, Report, Table, checked, measurable, read, refused
from harness.cli import INTERRUPTED, NO_RESULT, OK, compare
from harness.commands import begun, machine_of, planned
from harness.compare import Comparison
from harness.devices import AUTO, CPU, CUDA, kind, parse_devices
from harness.engines import in_use
from harness.errors import StoreError, UsageError
from harness.history.keeping import keep
from harness.history.location import Location, locate
from harness.launcher import Launcher
from harness.listing import PROBE_TIMEOUT_S, probe
from harness.plan import asked_variants, parse_variants
from harness.progress import Narrator
from harness.records import Run
from harness.store import RUN_FILE, RunFolder, load_run
from harness.summarize import summarize


def run_claims(given: Mapping[str, Any]) -> int:
    """Carry out `harness claims` and return the exit code."""
    table = read(given["table"] or TABLE)
    chosen = _chosen(table, given["ids"])
    gpus = environment.visible_gpus()
    format_ = "json" if given["as_json"] else given["format_"]
    if given["list_only"]:
        listed = {claim.id: place(claim, gpus) for claim in chosen}
        _print("claims-list", format_, msgspec.structs.replace(table, claims=chosen), places=listed)
        return OK
    location = locate(given["store"])
    with Narrator(quiet=given["quiet"]) as narrator:
        report = Checking(given, gpus, location, narrator).report(table.source, chosen)
    _print("claims", format_, report)
    if report.interrupted:
        return INTERRUPTED
    found = any(one.measured for claim in report.checked for one in claim.figures)
    return NO_RESULT if given["ids"] and not found else OK


def place(claim: Claim, gpus: Sequence[str]) -> tuple[str | None, bool]:
    """Return the device that a claim would be run on here, if any, and whether it is another one than its own."""
    own = next((index for index, name in enumerate(gpus) if _is(claim.device, name)), None)
    if own is not None:
        return (f"{CUDA}:{own}" if measurable(claim, elsewhere=False) else None), False
    other = parse_devices(AUTO, gpus)[0]
    return (other if measurable(claim, elsewhere=True) else None), True


def _is(device: str, name: str) -> bool:
    from harness.ceilings import datasheet

    sheet = datasheet(name)
    return sheet.name == device if sheet else device == name


def _chosen(table: Table, ids: Sequence[str]) -> list[Claim]:
    known = {claim.id.upper(): claim for claim in table.claims}
    for one in ids:
        if one.upper() not in known:
            raise registry.unknown("claim", one, [claim.id for claim in table.claims])
    wanted = {one.upper() for one in ids} or set(known)
    return [claim for key, claim in known.items() if key in wanted]


class Checking:
    """One command: all claims that were asked for, one after another."""

    def __init__(
        self, given: Mapping[str, Any], gpus: Sequence[str], location: Location | None, narrator: Narrator
    ) -> None:
        self._given = given
        self._gpus = gpus
        self._location = location
        self._say = narrator
        self._probed: dict[str, protocol.Probed] = {}

    def report(self, source: str, claims: Sequence[Claim]) -> Report:
        """Return all claims with what was found; of an interrupted command those that were done."""
        done: list[Checked] = []
        for number, claim in enumerate(claims, 1):
            self._say.doing(f"claim {claim.id} ({number}/{len(claims)})")
            try:
                done.append(self._check(claim))
            except KeyboardInterrupt:
                left = [refused(one, "interrupted before it was measured") for one in claims[number - 1 :]]
                return Report(source=source, checked=[*done, *left], interrupted=True)
        return Report(source=source, checked=done)

    def _check(self, claim: Claim) -> Checked:
        device, elsewhere = place(claim, self._gpus)
        if device is None:
            return refused(claim, f"it is of the {claim.device}, and this machine has {_named(self._gpus)}")
        if reason := self._lacking(claim, device):
            return refused(claim, reason)
        run, folder, cached = self._measured(claim, device)
        found = checked(claim, summarize(run), device=device, elsewhere=elsewhere)
        return msgspec.structs.replace(found, run=str(folder.path), cached=cached)

    def _lacking(self, claim: Claim, device: str) -> str:
        """Return which backend cannot run on this machine and why, if one of them cannot."""
        for name in dict.fromkeys(variant.backend for variant in parse_variants(claim.backends)):
            if name not in self._probed:
                self._say.doing(f"looking for {name}")
                self._probed[name] = _probe(name)
            found = self._probed[name]
            if not found.available:
                hint = f" ({found.hint})" if found.hint else ""
                return f"{name}: {(found.reason or 'not usable').partition(chr(10))[0]}{hint}"
            if kind(device) not in {kind(one) for one in found.devices}:
                return f"{name} cannot run on {device} here"
        return ""

    def _measured(self, claim: Claim, device: str) -> tuple[Run, RunFolder, bool]:
        """Return the comparison for a claim: an earlier one, the rest of an interrupted one, or a new one."""
        words = arguments(claim, device)
        options = [*words, "--budget", str(self._given["budget"]), "--timeout", str(self._given["timeout"])]
        options += ["--threads", str(self._given["threads"])] if self._given["threads"] else []
        options += ["--quick"] if self._given["quick"] else []
        run, _ = planned(compare.make_context("compare", [*options, "--label", f"claim {claim.id}"]).params)
        run = msgspec.structs.replace(run, command=shlex.join(["harness", "compare", *options]))
        earlier = None if self._given["refresh"] else self._earlier(claim, run)
        if earlier is None:
            folder, run = begun(run, self._given["out"], name_of(claim))
        else:
            folder, run = earlier
            if run.state == "finished":
                self._say.done(f"claim {claim.id}: measured before, {folder.path}")
                return run, folder, True
        self._say.done(f"claim {claim.id}: {run.command}")
        return self._executed(folder, run), folder, False

    def _earlier(self, claim: Claim, run: Run) -> tuple[RunFolder, Run] | None:
        """Return the newest comparison of the same kind, made here with the same versions; others pass unread."""
        paths = sorted(self._given["out"].glob(f"*-{name_of(claim)}-*/{RUN_FILE}"), reverse=True)
        for path in paths:
            folder = RunFolder(path.parent)
            with suppress(StoreError):  # damaged, or of another version of harness
                before = load_run(folder)
                if _alike(before, run) and (before.state == "finished" or not in_use(before.id)):
                    return folder, before
        return None

    def _executed(self, folder: RunFolder, run: Run) -> Run:
        comparison = Comparison(run, asked_variants(run.settings), folder, self._say)
        try:
            return comparison.execute()
        except UsageError:
            shutil.rmtree(folder.path, ignore_errors=True)  # nothing was done: nothing is left behind
            raise
        finally:
            if folder.path.exists():
                keep(comparison.run, folder, self._location)


def arguments(claim: Claim, device: str) -> list[str]:
    """Return the arguments of `harness compare` that measure a claim."""
    words = ["--model", ",".join(claim.models), "--backends", ",".join(claim.backends), "--device", device]
    words += ["--baseline", claim.baseline] if claim.baseline else []
    words += ["--batch", str(claim.batch)] if claim.batch != 1 else []
    for name, sizes in claim.dims.items():
        words += ["--dim", f"{name}={','.join(map(str, sizes))}"]
    return words


def name_of(claim: Claim) -> str:
    """Return what a claim's run folders are called after."""
    return f"claim-{claim.id}"


def _alike(before: Run, run: Run) -> bool:
    def asked(of: Run) -> object:
        # How much memory a worker may take is the machine's state, and no part of what was asked for.
        return msgspec.structs.replace(of.settings, memory_limit_bytes=0, timeout_s=0.0)

    same = machine_of(before.environment) == machine_of(run.environment)
    return same and before.harness == run.harness and asked(before) == asked(run)


def _named(gpus: Sequence[str]) -> str:
    return " and ".join(gpus) if gpus else f"no GPU, only a {CPU.upper()}"


def _probe(name: str) -> protocol.Probed:
    with tempfile.TemporaryDirectory(prefix="harness-probe-") as logs:
        launcher = Launcher(
            logs=Path(logs), threads=1, memory_limit_bytes=environment.memory_bytes(), timeout_s=PROBE_TIMEOUT_S
        )
        with launcher:
            return probe(name, launcher)


def _print(view: str, format_: str, content: Report | Table, **given: Any) -> None:
    if format_ == "json":
        # Encoding turns infinities into null, which the standard library's encoder cannot.
        document = msgspec.to_builtins(content)
        if "places" in given:
            for one in document["claims"]:
                device, elsewhere = given["places"][one["id"]]
                one |= {"runs_on": device, "elsewhere": elsewhere}
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    terminal = sys.stdout is not None and sys.stdout.isatty()
    color = terminal and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size().columns if terminal else None
    text = registry.view(view)(content, format_=format_, color=color, width=width, **given)
    click.echo(text, nl=False, color=color)
