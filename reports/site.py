"""The pages of a published history: see `harness.history.site` for which there are. Entry point: `registry.site`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.history import site
from harness.history.site import IndexPage, ListPage, ModelPage, RunsPage, Setting
from harness.history.trends import Trends, find_trends
from harness.summary import RunSummary
from reports import charting, html, pictures, site_tables, steps, trend_charts
from reports.blocks import Block, Legend, Section, Sentence
from reports.formatting import clean, counted
from reports.html import Group
from reports.table import Table

HOME = "../" + site.INDEX
TOLD = 4
"""Steps that are told one by one; of more there is a table only."""
MOST_CHARTS = 48
"""A page of a model holds so many; the settings that were measured last have theirs."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A page above this one."""

    text: str
    link: str


class Site:
    """Draws the pages."""

    def run(self, summary: RunSummary) -> str:
        """Return the report of a run."""
        return html.page_of(summary, home="index.html")

    def index(self, page: IndexPage) -> str:
        """Return the first page."""
        points = [point for case in page.cases for point in case.points]
        listed = f"the newest {len(page.runs)} of {page.total}" if page.total > len(page.runs) else "all of them"
        parts = [
            _part("models", "Models", [site_tables.models(page.cases)]),
            *_moved(page),
            _part("backends", "Backends", [site_tables.backends(page.cases)]),
            _part("machines", "Machines", [site_tables.machines(page.cases)]),
            _part("runs", f"Runs, {listed}", [site_tables.runs(page.runs, points, root="")]),
        ]
        newest = f", newest {page.runs[0].created[:10]}" if page.runs else ""
        return _page(
            "Compiler backends over time",
            parts,
            said=f"{counted(page.total, 'run', 'runs')}{newest}",
            further=Step(text="All runs", link=site.ALL_RUNS),
        )

    def runs(self, page: RunsPage) -> str:
        """Return the list of all runs."""
        table = site_tables.runs(page.runs, page.points, root="../")
        said = f"{counted(len(page.runs), 'run', 'runs')}, newest first"
        return _page("All runs", [_part("runs", "", [table])], above=_above(), said=said)

    def model(self, page: ModelPage) -> str:
        """Return the page of a model: a table and charts for each setting."""
        drawn = html.Gallery(MOST_CHARTS) if pictures.is_available() else None
        parts = [_setting(number, one, drawn) for number, one in enumerate(page.settings, 1)]
        notice = ""
        if drawn is None:
            notice = f"There are no charts here, because matplotlib is not installed: {charting.INSTALL}."
        elif drawn.refused:
            notice = f"Charts of {drawn.refused} older settings are left out, to keep this page small."
        runs = {point.run for setting in page.settings for case in setting.cases for point in case.points}
        said = f"{counted(len(runs), 'run', 'runs')} in {counted(len(page.settings), 'setting', 'settings')}"
        return _page(clean(page.model), parts, above=_above(), said=said, notice=notice)

    def backend(self, page: ListPage) -> str:
        """Return the page of a backend."""
        parts = [
            _part("cases", "Where it stands", [site_tables.standings(page.cases)]),
            _part("versions", "Versions", [site_tables.versions(page.cases)]),
        ]
        return _page(clean(page.name), parts, above=_above(), said="Each case as its newest run found it.")

    def machine(self, page: ListPage) -> str:
        """Return the page of a class of machines."""
        table = site_tables.standings(page.cases, shows=("model", "setting"))
        said = "Each case as its newest run on such a machine found it."
        return _page(clean(page.name), [_part("cases", "", [table])], above=_above(), said=said)


SITE = Site()


def _above() -> list[Step]:
    return [Step(text="Overview", link=HOME), Step(text="All runs", link="../" + site.ALL_RUNS)]


def _moved(page: IndexPage) -> list[Group]:
    """Return what moved since the oldest run that the first page lists."""
    since = page.runs[-1].created
    found = find_trends([case.points for case in page.cases], tuple(trend_charts.WHAT), since=since)
    blocks = _steps(found)
    return [_part("moved", f"What moved since {since[:10]}", blocks)] if blocks else []


def _steps(found: Trends) -> list[Block]:
    """Return what `harness trends` says, less what only a terminal needs; nothing where no figure moved."""
    count = sum(len(trend.steps) for trend in found.trends)
    if not count:
        return []
    page = steps.draw_trends(found)
    kept = [block for block in page.blocks if isinstance(block, (Table, Legend, Section)) and not _is_rest(block)]
    said = page.closing if count <= TOLD else f"{count} steps; what got worse by most comes first."
    return [Sentence(text=said), *kept]


def _is_rest(block: Block) -> bool:
    return isinstance(block, Section) and block.title != "what changed"


def _setting(number: int, setting: Setting, drawn: html.Gallery | None) -> Group:
    newest = max((case.last for case in setting.cases), key=lambda point: point.created)
    found = find_trends([case.points for case in setting.cases], tuple(trend_charts.WHAT))
    wanted = trend_charts.of_setting(setting, found) if drawn and drawn.left else []
    alone = all(len(case.points) < 2 for case in setting.cases)
    blocks: list[Block] = [site_tables.standings(setting.cases, shows=("machine",)), *_steps(found)]
    if alone:
        blocks.append(Sentence(text="Measured once so far: a second run makes a trend."))
    return _part(
        f"setting-{number}",
        site_tables.setting_name(newest),
        blocks,
        pictures_=tuple(drawn.draw(wanted, some=not alone)) if drawn else (),
    )


def _part(anchor: str, title: str, blocks: Sequence[Block], pictures_: tuple[html.Picture, ...] = ()) -> Group:
    return Group(anchor=anchor, title=title, blocks=tuple(blocks), pictures=pictures_)


def _page(
    title: str,
    parts: Sequence[Group],
    *,
    above: Sequence[Step] = (),
    said: str,
    notice: str = "",
    further: Step | None = None,
) -> str:
    return html.filled(
        "site.html", title=title, groups=parts, above=above, said=said, notice=notice, further=further, folded=()
    )
