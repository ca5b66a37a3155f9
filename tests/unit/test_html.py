"""The HTML report: what is in the page, and that a browser shows, sorts and filters it without asking anybody.

Tests in a browser want Debian's chromium and skip without it, unless HARNESS_REQUIRE names `chromium`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness import registry
from harness.summarize import summarize
from harness.summary import RunSummary
from reports import charting, charts, html, pictures
from reports.blocks import Plot
from reports.formatting import clean
from reports.page import draw
from tests.browsing import Visitor, chromium, reached_by_keyboard
from tests.example_limits import limits
from tests.example_runs import NASTY, examples, nasty
from tests.example_suites import suites, sweep
from tests.unit.test_summarize import measured, run_of, with_samples

RUNS = examples() | suites() | {"limits": limits()}
VOID = {"meta", "link", "input", "br", "path", "use", "rect", "circle"}


def real() -> RunSummary:
    """Return a run with raw samples of four cases."""
    workload = measured({"eager": 1.0, "fast": 0.5, "slow": 2.0, "wrong": 0.4}, {"wrong": "drifted"})
    cases = [
        msgspec.structs.replace(one, stages={"import": 1.0, "compile": 3.0 + took, "build": 2.0})
        for one, took in zip(workload.cases, (3, 1, 2, 4), strict=True)  # eager, fast, slow, wrong
    ]
    return summarize(run_of(msgspec.structs.replace(workload, cases=cases)))


@functools.cache
def page_of(name: str) -> str:
    return html.Html().render(real() if name == "real" else RUNS[name])


class Reader(HTMLParser):
    """Reads a page: its elements, its text, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        self.links += [str(found[name]) for name in ("href", "src", "xlink:href", "action") if found.get(name)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


ALL = ["real", *sorted(RUNS)]


@pytest.mark.parametrize("name", ALL)
class TestEveryPage:
    def test_is_well_formed_and_no_id_comes_twice(self, name: str) -> None:
        reader = Reader(page_of(name))
        assert reader.open == []
        assert [one for one, count in Counter(reader.ids).items() if count > 1] == []

    def test_asks_nobody(self, name: str) -> None:
        reader = Reader(page_of(name))
        assert reader.links
        assert all(link.startswith(("#", "data:,")) for link in reader.links)
        assert not re.search(r"@import|url\((?!#)", page_of(name))
        ids = set(reader.ids)
        assert all(link[1:] in ids for link in reader.links if link.startswith("#"))

    def test_names_every_case_and_says_the_closing(self, name: str) -> None:
        summary = real() if name == "real" else RUNS[name]
        text = " ".join("".join(Reader(page_of(name)).text).split())
        assert clean(summary.closing) in text
        for workload in summary.workloads:
            if any(row.compute for row in workload.rows):
                assert all(clean(row.case.id) in text for row in workload.rows)

    def test_its_policy_names_its_only_script(self, name: str) -> None:
        (script,) = re.findall(r"<script>(.*?)</script>", page_of(name), flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src &#39;sha256-{digest}&#39;" in page_of(name) or f"'sha256-{digest}'" in page_of(name)
        assert Reader(page_of(name)).tags["script"] == 1


class TestContent:
    def test_foreign_text_is_text(self) -> None:
        assert "<script>alert" not in page_of("nasty")
        assert "<i>" not in page_of("nasty")
        assert "&lt;script&gt;alert" in page_of("nasty")
        assert NASTY not in page_of("nasty")

    def test_charts_have_marks_and_are_described(self) -> None:
        drawn = {chart.key: chart for chart in charts.of_workload(real().workloads[0])}
        assert list(drawn) == ["latency", "rounds", "drift", "compile", "memory"]
        for chart in drawn.values():
            text = pictures.svg(chart, chart.key)
            assert text.count("<path") + text.count("<use") > 5
            assert "var(--s1)" in text
            assert not re.search(r"#0[12]0[01]", text), "a placeholder colour is left"
            assert "fast" in chart.summary

    def test_a_chart_draws_what_was_measured(self) -> None:
        axes = axes_of_figure()
        (latency,) = (one for one in charts.of_workload(real().workloads[0]) if one.key == "latency")
        latency.draw(axes)
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert set(lines) == {"wrong", "fast", "eager", "slow"}
        x, y = lines["slow"].get_xdata(), lines["slow"].get_ydata()
        assert list(y) == sorted(y)
        assert (y[0], y[-1]) == (0, 1)
        assert x[len(x) // 2] == pytest.approx(20, rel=0.02)  # milliseconds

    def test_rounds_that_wander_far_leave_room_for_their_axis(self) -> None:
        calm = real().workloads[0]
        wild = with_samples(
            calm.workload,
            lambda of, window: (
                [ns * 3000 for ns in window.samples_ns] if of.case == "slow" and window.round % 3 == 0 else None
            ),
        )
        wilder = msgspec.structs.replace(calm, workload=wild)
        quiet, far = (
            next(one for one in charts.of_workload(workload) if one.key == "rounds") for workload in (calm, wilder)
        )
        axes = axes_of_figure()
        far.draw(axes)
        low, high = axes.get_ylim()
        assert low == -100
        assert high > 10_000
        assert far.beside > quiet.beside

    def test_the_pareto_line_leaves_out_what_drifted(self) -> None:
        axes = axes_of_figure()
        (drift,) = (one for one in charts.of_workload(real().workloads[0]) if one.key == "drift")
        drift.draw(axes)
        line, *points = axes.get_lines()
        assert list(line.get_xdata()) == pytest.approx([5], rel=0.02)  # `fast`, and all are as far from the reference
        assert {point.get_label() for point in points} == {"wrong (drifted)", "fast", "eager", "slow"}

    def test_throughput_over_a_sweep(self) -> None:
        (plot,) = (block for block in draw(sweep()).blocks if isinstance(block, Plot))
        assert "onnxruntime 80.2 items/s at most" in charts.of_plot(plot).summary
        assert 'data-chart="throughput"' in page_of("sweep")

    def test_names_with_dollars_and_foreign_letters_are_drawn_as_they_are(self) -> None:
        name = "a$b$_c <猫>"
        plot = Plot(title="t", dim="batch", sizes=(1, 2), series=((name, (1.0, 2.0)),))
        text = pictures.svg(charts.of_plot(plot), "x")
        assert "a$b$_c &lt;猫&gt;" in text

    def test_without_the_plotting_extra_the_page_says_so_and_has_its_tables(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pictures, "is_available", lambda: False)
        reader = Reader(html.Html().render(real()))
        text = "".join(reader.text)
        assert "pip install 'harness[plots]'" in text
        assert reader.tags["figure"] == 0
        assert reader.tags["table"] >= 1
        assert "fast" in text

    def test_beyond_the_limit_charts_are_left_out_and_that_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(html, "MOST_CHARTS", 6)
        one = measured({"eager": 1.0, "fast": 0.5})
        several = [msgspec.structs.replace(one, key=f"m{index}") for index in range(3)]
        reader = Reader(html.Html().render(summarize(run_of(*several))))
        assert 0 < reader.tags["figure"] <= 6
        assert "Charts of 2 parts of this page are left out" in "".join(reader.text)

    def test_what_to_deploy_is_said(self) -> None:
        text = "".join(Reader(page_of("real")).text)
        assert "Deploy fast (p50 latency" in text
        assert "whose outputs agree" in text
        assert "slower: 4.0" in text  # `slow` against `fast`

    def test_is_registered_with_what_to_install(self) -> None:
        assert "html" in registry.report_names()


def axes_of_figure() -> Any:
    """Return matplotlib's axes to draw on."""
    from matplotlib.figure import Figure

    return Figure().subplots()


def luminance(color: str) -> float:
    """Return the relative luminance of WCAG 2.1."""
    parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast_in_every_scheme() -> None:
    style = (html.TEMPLATES / "report.css").read_text()
    schemes = [
        dict(re.findall(r"(--\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes:
        assert set(charting.VARIABLES) <= set(scheme)
        for ground in ("--back", "--raised"):
            for name in set(scheme) - {"--back", "--raised", "--grid"}:
                light, dark = sorted((luminance(scheme[name]), luminance(scheme[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


ROWS = "[...document.querySelectorAll('table.cases tbody tr')]"
SEEN_MARKS = """svg => [...svg.querySelectorAll('path, use')].filter(mark => {
  const style = getComputedStyle(mark);
  return mark.getBoundingClientRect().width > 0 && (style.stroke + style.fill).includes('rgb(11, 92, 173)');
}).length"""
"""Marks in the first series' colour, as it is in the light."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Any]:
    visitor = Visitor(browser)

    def open_(name: str, **given: Any) -> Any:
        path = tmp_path / f"{name}.html"
        path.write_text(page_of(name), encoding="utf-8")
        return visitor.open(path, **given)

    yield open_
    visitor.leave()


class TestInABrowser:
    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("name", ["real", "nasty", "suite", "nothing"])
    def test_opens_quietly_and_fits(self, visit: Any, name: str, width: int) -> None:
        tab = visit(name, width=width)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("h1").is_visible()

    def test_sorts_by_number_both_ways_and_by_text(self, visit: Any) -> None:
        tab = visit("real")
        rows = tab.locator("table.cases tbody th")
        assert rows.all_inner_texts() == ["wrong", "fast", "eager", "slow"]
        compile_ = tab.locator("table.cases thead button", has_text="compile").first
        compile_.click()
        assert rows.all_inner_texts() == ["fast", "slow", "eager", "wrong"]
        compile_.click()
        assert rows.all_inner_texts() == ["wrong", "eager", "slow", "fast"]
        assert tab.locator("table.cases thead th", has_text="compile").first.get_attribute("aria-sort") == "descending"
        tab.locator("table.cases thead button", has_text="backend").first.click()
        assert rows.all_inner_texts() == ["eager", "fast", "slow", "wrong"]

    def test_what_is_missing_sorts_last_in_either_direction(self, visit: Any) -> None:
        tab = visit("full")
        button = tab.locator("table.cases thead button", has_text="p50").first
        cells = f"{ROWS}.map(row => row.cells[1].textContent)"
        for _ in range(2):
            button.click()
            found = tab.evaluate(cells)
            assert found[-3:] == ["-", "-", "-"]
            assert "-" not in found[:-3]

    def test_filters_by_word_and_by_status(self, visit: Any) -> None:
        tab = visit("real")
        shown = f"{ROWS}.filter(row => !row.hidden).map(row => row.cells[0].textContent)"
        tab.fill("#filter", "slow")
        assert tab.evaluate(shown) == ["slow"]
        assert tab.locator("#shown").inner_text() == "1 of 4 cases"
        tab.press("#filter", "Escape")
        assert len(tab.evaluate(shown)) == 4
        tab.check("#only-ok")
        assert tab.evaluate(shown) == ["fast", "eager", "slow"]

    def test_the_keyboard_reaches_everything(self, visit: Any) -> None:
        tab = visit("real")
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        tab.evaluate("document.activeElement.blur()")
        reached, wanted = reached_by_keyboard(tab)
        assert reached == wanted > 20
        for selector in ("#filter", "#only-ok", "div.scroll", "thead button", "summary"):
            assert tab.locator(f"{selector}[data-reached]").count() > 0, selector
        tab.locator("table.cases thead button", has_text="p50").first.focus()
        tab.keyboard.press("Enter")
        tab.keyboard.press("Enter")
        assert tab.locator("table.cases tbody th").first.inner_text() == "slow"

    def test_charts_have_marks_that_are_seen(self, visit: Any) -> None:
        tab = visit("real")
        for key in ("latency", "rounds", "drift", "compile", "memory"):
            chart = tab.locator(f"[data-chart={key}] svg")
            chart.scroll_into_view_if_needed()
            marks = chart.evaluate(SEEN_MARKS)
            assert marks >= 1, key
        roofline = visit("limits").locator("[data-chart=roofline] svg")
        roofline.scroll_into_view_if_needed()
        assert roofline.evaluate(SEEN_MARKS) >= 1

    def test_dark_and_light_differ(self, visit: Any) -> None:
        found = {
            scheme: visit("real", scheme=scheme).evaluate("getComputedStyle(document.documentElement).backgroundColor")
            for scheme in ("light", "dark")
        }
        assert found == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 28)"}

    def test_prints_what_was_folded(self, visit: Any) -> None:
        tab = visit("full")
        assert tab.locator("details:not([open])").count() > 0
        tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert tab.locator("details:not([open])").count() == 0
        assert len(tab.pdf()) > 10_000

    def test_a_script_that_is_smuggled_in_does_not_run(self, browser: Any, tmp_path: Path) -> None:
        path = tmp_path / "smuggled.html"
        path.write_text(page_of("real").replace("</main>", "<script>document.title = 'owned'</script></main>"))
        tab = browser.new_page()
        tab.goto(path.as_uri())
        assert tab.title() != "owned"
        tab.close()


def test_a_nasty_run_draws_its_charts() -> None:
    for workload in nasty().workloads:
        for chart in charts.of_workload(workload):
            assert pictures.svg(chart, "x").startswith("<svg")
