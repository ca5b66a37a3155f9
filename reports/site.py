"""The pages of a published history: see `harness.history.site` for which there are. Entry point: `registry.site`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.history import site
from harness.history.site import IndexPage, ListPage, ModelPage, RunsPage, Setting
from harness.summary import RunSummary
from reports import charting, html, pictures, site_tables, trend_charts
from reports.blocks import Block, Sentence
from reports.formatting import clean, counted
from reports.html import Group

HOME = "../" + site.INDEX
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
        points = [point for trend in page.trends for point in trend.points]
        listed = f"the newest {len(page.runs)} of {page.total}" if page.total > len(page.runs) else "all of them"
        parts = [
            _part("models", "Models", [site_tables.models(page.trends)]),
            _part("backends", "Backends", [site_tables.backends(page.trends)]),
            _part("machines", "Machines", [site_tables.machines(page.trends)]),
            _part("runs", f"Runs, {listed}", [site_tables.runs(page.runs, points, root="")]),
        ]
        newest = f", newest {page.runs[0].created[:10]}" if page.runs else ""
        return _page(
            "Compiler backends over time",
            parts,
            said=f"{counted(page.total, 'run', 'runs')}{newest}",
            further=Step(text=f"All {page.total} runs", link=site.ALL_RUNS),
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
        runs = {point.run for setting in page.settings for trend in setting.trends for point in trend.points}
        said = f"{counted(len(runs), 'run', 'runs')} in {counted(len(page.settings), 'setting', 'settings')}"
        return _page(clean(page.model), parts, above=_above(), said=said, notice=notice)

    def backend(self, page: ListPage) -> str:
        """Return the page of a backend."""
        parts = [
            _part("cases", "Where it stands", [site_tables.standings(page.trends)]),
            _part("versions", "Versions", [site_tables.versions(page.trends)]),
        ]
        return _page(clean(page.name), parts, above=_above(), said="Each case as its newest run found it.")

    def machine(self, page: ListPage) -> str:
        """Return the page of a class of machines."""
        table = site_tables.standings(page.trends, shows=("model", "setting"))
        said = "Each case as its newest run on such a machine found it."
        return _page(clean(page.name), [_part("cases", "", [table])], above=_above(), said=said)


SITE = Site()


def _above() -> list[Step]:
    return [Step(text="Overview", link=HOME), Step(text="All runs", link="../" + site.ALL_RUNS)]


def _setting(number: int, setting: Setting, drawn: html.Gallery | None) -> Group:
    newest = max((trend.last for trend in setting.trends), key=lambda point: point.created)
    wanted = trend_charts.of_setting(setting) if drawn and drawn.left else []
    alone = all(len(trend.points) < 2 for trend in setting.trends)
    blocks: list[Block] = [site_tables.standings(setting.trends, shows=("machine",))]
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
