"""The whole report without a format: which block follows which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from harness.summary import RunSummary, WorkloadSummary
from reports import details, sections
from reports.blocks import Banners, Block, Failures, Heading, Legend, Line, Problem, Section, Sentence
from reports.formatting import clean
from reports.overview import overview
from reports.table import Table, draw_table


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a format for people shows, from top to bottom: the title, the blocks, and one last sentence."""

    title: str
    blocks: tuple[Block, ...]
    closing: str

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Return all failures."""
        return tuple(problem for block in self.blocks if isinstance(block, Failures) for problem in block.problems)

    @property
    def tables(self) -> tuple[Table, ...]:
        """Return all tables."""
        return tuple(block for block in self.blocks if isinstance(block, Table))


def draw(summary: RunSummary) -> Page:
    """Return the report of a run: of a single workload all in one, of several first what they say together."""
    blocks = _one(summary.workloads[0], summary) if len(summary.workloads) == 1 else _several(summary)
    return Page(
        title=sections.title(summary),
        blocks=tuple(block for block in blocks if not _empty(block)),
        closing=sections.closing(summary),
    )


def _one(workload: WorkloadSummary, summary: RunSummary) -> Iterator[Block]:
    run = summary.run
    yield Banners(lines=tuple(sections.banners(summary)))
    yield from _table(workload, summary)
    yield Legend(texts=tuple(sections.legend(summary)))
    yield from overview(summary)
    yield _section("measurement", [*details.measured(workload, summary), *sections.settings(summary)])
    yield _section("reference", details.reference(workload, run.settings))
    yield _section("environment", sections.environment(run))
    yield _section("machine advice", sections.advice(run))
    yield from details.sections(workload, run.settings, level=3)
    yield _section("notes", [*sections.notes(run), *details.notes(workload)])
    yield Failures(problems=tuple(details.problems(workload, summary)))


def _several(summary: RunSummary) -> Iterator[Block]:
    run = summary.run
    failures = {one.workload.key: tuple(details.problems(one, summary)) for one in summary.workloads}
    shared = _shared(failures)
    yield Banners(lines=tuple(sections.banners(summary)))
    yield from overview(summary)
    for workload in summary.workloads:
        own = tuple(problem for problem in failures[workload.workload.key] if _what(problem) not in shared)
        yield Heading(text=details.heading(workload, summary))
        yield Banners(lines=tuple(details.banners(workload)))
        yield from _table(workload, summary)
        if workload.closing:
            yield Sentence(text=clean(workload.closing))
        yield Failures(problems=own, level=4)
        yield _section("notes", details.notes(workload), level=4)
        yield _section("measurement", details.measured(workload, summary), level=4)
        yield _section("reference", details.reference(workload, run.settings), level=4)
        yield from details.sections(workload, run.settings, level=4)
    yield Heading(text="all workloads")
    yield Legend(texts=tuple(sections.legend(summary)))
    yield Failures(problems=tuple(shared.values()), level=4)
    yield _section("notes", sections.notes(run), level=4)
    yield _section("measurement", sections.settings(summary), level=4)
    yield _section("environment", sections.environment(run), level=4)
    yield _section("machine advice", sections.advice(run), level=4)


def _shared(failures: Mapping[str, tuple[Problem, ...]]) -> dict[tuple[str, ...], Problem]:
    """Return what went wrong in the same way in several workloads, such as a backend that is not installed, once."""
    found: dict[tuple[str, ...], list[Problem]] = {}
    for problem in (problem for problems in failures.values() for problem in problems):
        found.setdefault(_what(problem), []).append(problem)
    return {
        what: replace(alike[0], subject=f"{alike[0].subject}, in {len(alike)} workloads")
        for what, alike in found.items()
        if len(alike) > 1
    }


def _what(problem: Problem) -> tuple[str, ...]:
    return problem.subject, problem.status, problem.stage, problem.reason


def _table(workload: WorkloadSummary, summary: RunSummary) -> Iterator[Block]:
    """Yield the table, unless one failure of all is all that there is to say."""
    if workload.rows and not (workload.workload.failure and not any(row.compute for row in workload.rows)):
        yield draw_table(workload, summary)


def _section(title: str, lines: Iterable[Line], level: int = 3) -> Section:
    return Section(title=title, lines=tuple(lines), level=level)


def _empty(block: Block) -> bool:
    match block:
        case Banners() | Section():
            return not block.lines
        case Legend():
            return not block.texts
        case Failures():
            return not block.problems
        case _:
            return False
