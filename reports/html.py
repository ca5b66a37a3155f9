"""HTML: one file that holds all of it, for a browser without a network or an e-mail.

Tables sort and filter; charts are SVG in the page. The page forbids itself every request by its content security
policy, and runs only the one script whose digest that policy names, whatever a name or a log may hold.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from harness.advice import Wish
from harness.api import Report
from harness.recommend import recommend
from harness.summary import RunSummary, WorkloadSummary
from reports import charting, charts, details, pictures, recommendation
from reports.blocks import FOLDED, Block, Heading, Plot
from reports.page import Page, draw
from reports.table import Table

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).with_name("templates")
NO_ROOFLINE = (
    "There is no roofline, because it is not known what this device can do at most: harness ceilings measures it once, "
    "and harness show draws it then."
)
MOST_CHARTS = 30
"""A page holds so many; the workloads that come first have theirs."""


class Html(Report):
    """For colleagues, who look at it in a browser."""

    name = "html"
    summary = "one page that works offline: sortable tables, charts, failures with logs"

    def render(self, run: RunSummary, *, color: bool = False, width: int | None = None) -> str:
        """Return the page; `color` and `width` change nothing."""
        return page_of(run)


def page_of(run: RunSummary, *, home: str = "") -> str:
    """Return the page of a run; `home` is a link to what it is a part of."""
    page = draw(run)
    drawn = Gallery(MOST_CHARTS) if pictures.is_available() else None
    groups = list(_groups(page, run, drawn))
    return filled(
        "report.html",
        title=page.title,
        page=page,
        groups=groups,
        run=run.run,
        folded=FOLDED,
        notice=_notice(run, drawn),
        several=len(run.workloads) > 1,
        home=home,
    )


def filled(template: str, **given: object) -> str:
    """Return a page from a template that extends `page.html`: with the style, and the only script that may run."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template(template)
        .render(style=style, script=script, digest=digest, generator=__version__, **given)
    )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A chart, drawn."""

    chart: charting.Chart
    svg: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """What stands under one heading."""

    anchor: str
    title: str
    """Empty for what belongs to the page itself."""
    blocks: tuple[Block, ...]
    advice: tuple[Block, ...] = ()
    """What to deploy."""
    lacks: str = ""
    """Which chart there could be, and what it takes."""
    pictures: tuple[Picture, ...] = ()
    """Shown below the first table."""


class Gallery:
    """Draws charts until there are enough."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.refused = 0

    def draw(self, wanted: Sequence[charting.Chart], *, some: bool) -> Iterator[Picture]:
        """Yield the charts of one part: all of them or none. `some` tells that there would be charts of it."""
        if len(wanted) > self.left or (some and not self.left):
            self.left, self.refused = 0, self.refused + 1
            return
        for chart in wanted:
            self.left -= 1
            yield Picture(chart=chart, svg=pictures.svg(chart, f"{self.left} {chart.key}"))


def _groups(page: Page, run: RunSummary, drawn: Gallery | None) -> Iterator[Group]:
    if len(run.workloads) == 1:
        yield _group("run", "", page.blocks, run.workloads[0], run, drawn)
        return
    owners = {details.heading(one, run): one for one in run.workloads}
    for index, (title, blocks) in enumerate(_split(page.blocks)):
        yield _group(f"part-{index}", title, blocks, owners.get(title), run, drawn)


def _split(blocks: Sequence[Block]) -> Iterator[tuple[str, tuple[Block, ...]]]:
    """Yield what stands under each heading; what comes before the first one has none."""
    title, held = "", list[Block]()
    for block in blocks:
        if isinstance(block, Heading):
            if held or title:
                yield title, tuple(held)
            title, held = block.text, []
        else:
            held.append(block)
    if held or title:
        yield title, tuple(held)


def _group(
    anchor: str,
    title: str,
    blocks: tuple[Block, ...],
    workload: WorkloadSummary | None,
    run: RunSummary,
    drawn: Gallery | None,
) -> Group:
    wanted = charts.of_workload(workload, run.run.ceilings) if workload and drawn and drawn.left else []
    wanted += [charts.of_plot(block) for block in blocks if isinstance(block, Plot) and block.series]
    return Group(
        anchor=anchor,
        title=title,
        blocks=tuple(_answer_first(block) for block in blocks if not isinstance(block, Plot)),
        advice=tuple(_advice(workload)) if workload else (),
        lacks=NO_ROOFLINE if workload and wanted and charts.could_have_roofline(workload) else "",
        pictures=tuple(drawn.draw(wanted, some=workload is not None)) if drawn else (),
    )


def _answer_first(block: Block) -> Block:
    """Return a table with the columns of its first theme before the others: a page may be too narrow for all."""
    if not isinstance(block, Table) or len(block.themes) < 2:
        return block
    return block.select([block.columns[0].key, *chain.from_iterable(block.themes)])


def _advice(workload: WorkloadSummary) -> Iterator[Block]:
    """Yield what to deploy, where there is something to choose from."""
    if sum(row.compute is not None for row in workload.rows) > 1:
        wish = Wish()
        yield from recommendation.draw_one(recommend(workload, wish), workload, wish)


def _notice(run: RunSummary, drawn: Gallery | None) -> str:
    if drawn is None:
        return (
            f"There are no charts here, because matplotlib is not installed: {charting.INSTALL}, then harness show "
            f"{run.run.id} --format html draws them."
        )
    if drawn.refused:
        return (
            f"Charts of {drawn.refused} parts of this page are left out, to keep it small: a report of fewer workloads "
            "has them all."
        )
    return ""


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["number"] = _number
    environment.tests["of_cases"] = _is_of_cases
    return environment


def _number(value: object) -> str:
    """Return what a cell is sorted by, or nothing where it is text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return ""
    return repr(float(value))


def _is_of_cases(table: Table) -> bool:
    return {"case", "status"} <= {column.key for column in table.columns}
