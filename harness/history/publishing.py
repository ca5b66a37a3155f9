"""What `harness publish` does, behind `publish_command`: pages that changed are drawn and written."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import click
import msgspec
from filelock import FileLock, Timeout

import harness
from harness import registry
from harness.errors import StoreError, UsageError
from harness.history import queries, site
from harness.history.location import Location
from harness.history.managing import wanted
from harness.history.points import Point
from harness.history.queries import RunState
from harness.history.site import IndexPage, ListPage, ModelPage, RunsPage
from harness.history.sitefolder import SiteFolder
from harness.history.store import History
from harness.paths import cache_root, make_folder, users_path
from harness.progress import Narrator
from harness.protocol import Progress
from harness.records import Record
from harness.summarize import summarize
from harness.summary import RunSummary

SAVE_EVERY = 20
"""Pages after which the manifest is written anew: what is drawn until an interruption is not drawn again."""
PROCESSES = 4
"""That draw pages at the same time, at most."""
WORTH_ANOTHER = 8
"""Pages that it takes for another process to pay."""
DRAWS = ("harness", "reports")
"""Packages whose code decides how a page looks."""


class SiteReport(Protocol):
    """Draws pages; see `registry.site`."""

    def run(self, summary: RunSummary) -> str:
        """Return the report of a run."""

    def index(self, page: IndexPage) -> str:
        """Return the first page."""

    def runs(self, page: RunsPage) -> str:
        """Return the list of all runs."""

    def model(self, page: ModelPage) -> str:
        """Return the page of a model."""

    def backend(self, page: ListPage) -> str:
        """Return the page of a backend."""

    def machine(self, page: ListPage) -> str:
        """Return the page of a class of machines."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A page, before it is drawn."""

    path: str
    made_from: str
    draw: Callable[[], str]
    """Can be sent to another process."""


class Published(Record, frozen=True, kw_only=True):
    """What a publish did."""

    index: str
    """Path of the first page."""
    written: list[str]
    removed: list[str]
    unchanged: int
    """Pages that lay there already as they are now."""


def run_publish(folder: Path, store: str | None, since: str | None, *, as_json: bool, quiet: bool) -> None:
    """Carry out `harness publish`.

    Raises:
        UsageError: The folder holds files of others, or there is nothing to publish.
        StoreError: The history cannot be read, or the folder cannot be written.
    """
    target = users_path(str(folder))
    with _alone(target), Narrator(quiet=quiet) as narrator:
        found = SiteFolder(target)
        narrator.doing("reading the history")
        plans = planned(wanted(store), since)
        done = publish(found, plans, narrator)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(done), indent=2).decode())
        return
    if not done.written and not done.removed:
        click.echo(f"nothing new: all {done.unchanged} pages are as they were")
    else:
        gone = f", {len(done.removed)} removed" if done.removed else ""
        click.echo(f"{len(done.written)} pages written, {done.unchanged} unchanged{gone}")
    click.echo(done.index)


def planned(location: Location, since: str | None) -> list[Plan]:
    """Return all pages, in an order in which no page is written before those that it links to.

    Raises:
        UsageError: There are no runs.
    """
    history = History(location)
    with history.database.read() as connection:
        states = queries.run_states(connection, since)
        points = queries.points(connection, queries.Filter(since=since))
    if not states:
        when = f" since {since}" if since else ""
        raise UsageError(
            f"there are no runs{when} in the history {location.shown}", hint="harness compare, or harness import RUN"
        )
    return [*_of_runs(location, states, points), *_of_cases(states, points)]


def publish(folder: SiteFolder, plans: Sequence[Plan], narrator: Narrator) -> Published:
    """Bring a folder up to date with what was planned."""
    due = [plan for plan in plans if not folder.is_current(plan.path, plan.made_from)]
    gone = [page for page in folder.pages if page not in {plan.path for plan in plans}]
    written: list[str] = []
    if due or gone:
        narrator.done(f"{len(due)} of {len(plans)} pages to draw")
        folder.announce(plan.path for plan in due)
        try:
            for number, (plan, content) in enumerate(_drawn(due), 1):
                if folder.write(plan.path, plan.made_from, content.encode()):
                    written.append(plan.path)
                narrator.doing("drawing pages")
                narrator.detail(Progress(text=plan.path, done=number, total=len(due)))
                if number % SAVE_EVERY == 0:
                    folder.save()
            for page in gone:
                folder.remove(page)
        finally:
            folder.save()
    return Published(
        index=str(folder.path / site.INDEX),
        written=written,
        removed=gone,
        unchanged=len(plans) - len(written),
    )


def _of_runs(location: Location, states: Sequence[RunState], points: Sequence[Point]) -> Iterator[Plan]:
    rows = [state.row for state in states]
    for state in states:
        yield Plan(
            path=site.run_path(state.row.id),
            made_from=_made_from("run", state),
            draw=functools.partial(_run_page, location, state.row.id),
        )
    yield _plan(site.ALL_RUNS, "runs", RunsPage(runs=rows, points=list(points)))


def _of_cases(states: Sequence[RunState], points: Sequence[Point]) -> Iterator[Plan]:
    found = site.cases(points)
    for model in site.models(found):
        yield _plan(site.model_path(model.model), "model", model)
    for backend in site.backends(found):
        yield _plan(site.backend_path(backend.name), "backend", backend)
    for machine in site.machines(found):
        yield _plan(site.machine_path(machine.name), "machine", machine)
    newest = [state.row for state in states[: site.NEWEST]]
    yield _plan(site.INDEX, "index", IndexPage(cases=found, runs=newest, total=len(states)))


def _plan(path: str, kind: str, page: Record) -> Plan:
    return Plan(path=path, made_from=_made_from(kind, page), draw=functools.partial(_page, kind, page))


def _page(kind: str, page: Record) -> str:
    text: str = getattr(registry.site(), kind)(page)
    return text


def _run_page(location: Location, run: str) -> str:
    return registry.site().run(summarize(History(location).load(run)))


def _made_from(kind: str, page: Record) -> str:
    return hashlib.sha256(b"\0".join([_code().encode(), kind.encode(), msgspec.json.encode(page)])).hexdigest()


@functools.cache
def _code() -> str:
    """Return the digest of all that decides how a page looks, beside what it shows."""
    digest = hashlib.sha256()
    root = Path(harness.__file__).parent.parent
    for package in DRAWS:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.read_bytes())
    if importlib.util.find_spec("matplotlib") is not None:
        digest.update(version("matplotlib").encode())
    return digest.hexdigest()


def _drawn(plans: Sequence[Plan]) -> Iterator[tuple[Plan, str]]:
    """Yield pages with their content in the order given, drawn by several processes where there are many."""
    processes = min(PROCESSES, len(os.sched_getaffinity(0)), len(plans) // WORTH_ANOTHER)
    if processes < 2:
        yield from ((plan, plan.draw()) for plan in plans)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_serve) as pool:
        futures: list[Future[str]] = [pool.submit(plan.draw) for plan in plans]
        try:
            for plan, future in zip(plans, futures, strict=True):
                yield plan, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _serve() -> None:
    """Make this process one that ends with the one that it draws for, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: it is the other's to answer
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keep a second publish out of the folder.

    Raises:
        StoreError: Another one is writing there.
    """
    locks = make_folder(cache_root() / "publish", "the cache folder")
    lock = FileLock(locks / f"{hashlib.sha256(str(target.resolve()).encode()).hexdigest()[:16]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as exc:
        raise StoreError(f"another harness publish is writing {target}", hint="try again when it has ended") from exc
    try:
        yield
    finally:
        lock.release()
