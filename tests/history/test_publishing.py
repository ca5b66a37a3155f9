"""`harness publish`: a site that is whole, links to what is there, and is written no further than it must."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # playwright's objects, what a command prints as JSON

import msgspec
import psutil
import pytest

from harness.cli import main
from harness.history import publishing, queries, site
from harness.history.deriving import points_of
from harness.history.location import Location
from harness.history.sitefolder import MANIFEST, SiteFolder
from harness.history.store import History
from harness.history.trends import find_trends
from harness.modelspec import ModelSpec
from harness.records import Run
from reports import pictures, trend_charts
from tests.browsing import Visitor, chromium, reached_by_keyboard
from tests.example_history import a_run
from tests.example_runs import NASTY
from tests.support import ROOT
from tests.unit.test_html import Reader, axes_of_figure

SMALL: dict[str, Any] = {"launches": 2, "rounds": 2, "process_sd": 0.001, "noise": 0.002}


def run(number: int, cases: dict[str, float] | None = None, *, model: str = "resnet50", **changes: Any) -> Run:
    """Return the run of one day."""
    created = f"2026-03-{number + 1:02d}T10:11:12+00:00"
    name = f"2026-03-{number + 1:02d}T10-11-12-{model}-{number:04x}"
    return a_run(name, cases, created=created, model=model, seed=number, **(SMALL | changes))


@pytest.fixture
def history(sqlite_file: Location) -> History:
    """Three runs of one model and one of another."""
    made = History(sqlite_file, create=True)
    for each in (run(0), run(1), run(2), run(3, model="tiny")):
        made.add(each)
    return made


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw pages in no time, in this process."""
    monkeypatch.setattr(pictures, "is_available", lambda: False)
    monkeypatch.setattr(publishing, "PROCESSES", 1)


def publish(history: History, folder: Path, *arguments: object) -> int:
    store = str(history.database.location.path)
    with pytest.raises(SystemExit) as left:
        main([str(one) for one in ("publish", folder, "--store", store, *arguments)])
    return int(left.value.code or 0)


def published(history: History, folder: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert publish(history, folder, "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def pages(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.suffix == ".html"
    }


def dead_links(folder: Path) -> list[tuple[str, str]]:
    """Return links that lead nowhere, or out of the folder."""
    found = []
    for page in pages(folder):
        reader = Reader((folder / page).read_text())
        for link in reader.links:
            path, _, anchor = link.partition("#")
            target = (folder / page).parent / path if path else folder / page
            inside = folder.resolve() in target.resolve().parents
            if link != "data:," and not (inside and target.is_file() and (path or anchor in reader.ids)):
                found.append((page, link))
    return found


class TestSite:
    def test_has_a_page_for_everything_and_all_links_lead_somewhere(
        self, history: History, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "site"
        done = published(history, folder, capsys)
        assert set(done["written"]) == set(pages(folder))
        names = {name for name in pages(folder) if not name.startswith("machines/")}
        assert names == {
            "index.html",
            "runs/index.html",
            *(f"runs/2026-03-0{day}T10-11-12-resnet50-000{day - 1}.html" for day in (1, 2, 3)),
            "runs/2026-03-04T10-11-12-tiny-0003.html",
            "models/resnet50.html",
            "models/tiny.html",
            "backends/eager.html",
            "backends/onnxruntime.html",
        }
        assert dead_links(folder) == []
        for text in pages(folder).values():
            reader = Reader(text.decode())
            assert reader.open == []
            assert max(Counter(reader.ids).values()) == 1
            assert reader.tags["script"] == 1
        index = "".join(Reader((folder / "index.html").read_text()).text)
        assert "4 runs, newest 2026-03-04" in index
        model = (folder / "models/resnet50.html").read_text()
        assert {f'data-chart="{metric}-over-time"' for metric in trend_charts.WHAT} <= {
            word.rstrip(">") for word in model.split()
        }
        assert "Measured once so far" in (folder / "models/tiny.html").read_text()
        assert "onnxruntime ran" in (folder / "runs/2026-03-04T10-11-12-tiny-0003.html").read_text()

    def test_without_the_plotting_extra_it_has_its_tables_and_says_so(
        self, history: History, tmp_path: Path, no_charts: None
    ) -> None:
        assert publish(history, tmp_path / "site") == 0
        text = (tmp_path / "site/models/resnet50.html").read_text()
        assert "pip install &#39;harness[plots]&#39;" in text
        assert "<figure" not in text
        assert "onnxruntime" in text

    def test_foreign_names_stay_text_and_stay_inside(self, history: History, tmp_path: Path, no_charts: None) -> None:
        evil = run(4, {"eager": 10.0, f"onnxruntime:x={NASTY}": 5.0}, labels=[NASTY])
        workload = msgspec.structs.replace(evil.workloads[0], model=ModelSpec(name=f"../../{NASTY}"), key=NASTY)
        history.add(msgspec.structs.replace(evil, id="../../../evil", workloads=[workload]))
        folder = tmp_path / "a" / "b" / "site"
        folder.parent.mkdir(parents=True)
        assert publish(history, folder) == 0
        assert dead_links(folder) == []
        for name, text in pages(folder).items():
            assert b"<script>alert" not in text, name
            assert b"\x1b" not in text, name
        assert [path.name for path in (tmp_path / "a").rglob("*evil*")] == [
            path.name for path in folder.rglob("*evil*")
        ]

    def test_a_step_is_told_and_marked(self, sqlite_file: Location, tmp_path: Path, no_charts: None) -> None:
        history = History(sqlite_file, create=True)
        runs = [
            run(day, {"eager": 10.0, "onnxruntime": 5.0 if day < 5 else 7.0}, versions={"onnxruntime": f"1.{day // 5}"})
            for day in range(10)
        ]
        for each in runs:
            history.add(each)
        assert publish(history, tmp_path / "site") == 0
        for page in ("index.html", "models/resnet50.html"):
            text = (tmp_path / "site" / page).read_text()
            assert "latency 1.40x slower since 2026-03-06" in text
            assert "onnxruntime 1.0 &gt; 1.1" in text

        cases = site.cases(point for each in runs for point in points_of(each))
        (setting,) = site.models(cases)[0].settings
        found = find_trends([case.points for case in setting.cases], ("latency",))
        (latency, *_) = trend_charts.of_setting(setting, found)
        axes = axes_of_figure()
        latency.draw(axes)
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert [len(lines[name].get_xdata()) for name in ("eager", "onnxruntime")] == [10, 10]
        assert lines["onnxruntime"].get_ydata()[-1] == pytest.approx(7.0, rel=0.02)
        assert [text.get_text() for text in axes.texts] == ["1.40x"]
        assert len(axes.collections) == 2  # a band a case

    def test_the_band_is_that_of_the_launches(self) -> None:
        (point, *_) = points_of(run(0, launches=3))
        assert point.evidence is not None
        levels = [math.log(1e7) + off for off in (-0.01, 0.0, 0.01)]
        known = msgspec.structs.replace(
            point, latency_ns=1e7, evidence=msgspec.structs.replace(point.evidence, levels=levels)
        )
        found = site.interval(known)
        assert found is not None
        # sd 0.01, standard error 0.01 / sqrt 3, t(0.995, 2) = 9.925
        assert found.value == 1e7
        assert math.log(found.high / found.value) == pytest.approx(9.925 * 0.01 / 3**0.5, rel=1e-3)
        one = msgspec.structs.replace(point, evidence=msgspec.structs.replace(point.evidence, levels=levels[:1]))
        assert site.interval(one) is None

    def test_names_of_files(self) -> None:
        assert site.slug("2026-03-01T02-11-12-resnet50-ab12") == "2026-03-01T02-11-12-resnet50-ab12"
        assert site.slug("resnet50") == "resnet50"
        names = ["..", "../../x", "index", "A", "a", "a.", "", "x" * 300, "x" * 301, "猫", "犬", "a/b", "a-b"]
        slugs = [site.slug(name) for name in names]
        assert len({one.lower() for one in slugs}) == len(names)
        assert all(one and len(one) < 150 and one.isascii() and "/" not in one and one[0] != "." for one in slugs)
        assert "index" not in slugs


class TestIncremental:
    def test_nothing_new_writes_nothing_and_says_so(
        self, history: History, tmp_path: Path, no_charts: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "site"
        assert publish(history, folder) == 0
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        capsys.readouterr()
        assert publish(history, folder) == 0
        assert capsys.readouterr().out.startswith("nothing new: all 11 pages are as they were")
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    def test_a_new_run_touches_only_what_it_is_in(
        self, history: History, tmp_path: Path, no_charts: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "site"
        published(history, folder, capsys)
        history.add(run(5, {"eager": 3.0}, model="tiny"))
        done = published(history, folder, capsys)
        machine = site.machine_path(points_of(run(0))[0].key.machine)
        assert set(done["written"]) == {
            "index.html",
            "runs/index.html",
            "runs/2026-03-06T10-11-12-tiny-0005.html",
            "models/tiny.html",
            "backends/eager.html",
            machine,
        }
        assert (done["removed"], done["unchanged"]) == ([], 6)

    def test_a_run_that_is_gone_takes_its_pages_along(
        self, history: History, tmp_path: Path, no_charts: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "site"
        published(history, folder, capsys)
        history.remove(run(3, model="tiny").id)
        done = published(history, folder, capsys)
        assert sorted(done["removed"]) == ["models/tiny.html", "runs/2026-03-04T10-11-12-tiny-0003.html"]
        assert dead_links(folder) == []
        assert "tiny" not in (folder / "index.html").read_text()

    def test_since_leaves_out_what_is_older(
        self, history: History, tmp_path: Path, no_charts: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "site"
        published(history, folder, capsys, "--since", "2026-03-03")
        assert len(list((folder / "runs").iterdir())) == 3  # two runs and their list
        assert dead_links(folder) == []

    def test_a_label_a_lost_page_and_a_page_changed_by_hand(
        self, history: History, tmp_path: Path, no_charts: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "site"
        published(history, folder, capsys)
        whole = pages(folder)
        (folder / "backends/eager.html").unlink()
        (folder / "models/tiny.html").write_text("mine")
        assert sorted(published(history, folder, capsys)["written"]) == ["backends/eager.html", "models/tiny.html"]
        assert pages(folder) == whole
        history.label(run(3, model="tiny").id, ["v2"])
        assert "runs/2026-03-04T10-11-12-tiny-0003.html" not in published(history, folder, capsys)["written"]

    def test_another_code_draws_anew_but_writes_only_what_differs(
        self,
        history: History,
        tmp_path: Path,
        no_charts: None,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = tmp_path / "site"
        published(history, folder, capsys)
        monkeypatch.setattr(publishing, "_code", lambda: "newer")
        done = published(history, folder, capsys)
        assert (done["written"], done["unchanged"]) == ([], 11)


def test_the_state_of_runs_is_the_same_from_every_database(location: Location) -> None:
    history = History(location, create=True)
    for number in (0, 1):
        history.add(run(number))
    history.label(run(1).id, ["v2"])
    with history.database.read() as connection:
        newest, oldest = queries.run_states(connection)
        assert queries.run_states(connection, newest.row.created) == [newest]
    assert (newest.row.id, newest.labels, oldest.labels) == (run(1).id, ["v2"], [])
    assert type(newest.bytes) is int
    assert newest.bytes > 1000


class TestKilled:
    def test_the_old_site_can_be_read_and_the_next_publish_completes_it(
        self, history: History, tmp_path: Path, no_charts: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, other = tmp_path / "site", tmp_path / "other"
        assert publish(history, folder) == 0
        history.add(run(5))
        history.remove(run(0).id)
        write, save = SiteFolder.write, SiteFolder.save
        for count in (1, 3, 6):
            left = iter(range(count))

            def dying(self: SiteFolder, *given: Any, left: Iterator[int] = left) -> bool:
                if next(left, None) is None:
                    monkeypatch.setattr(SiteFolder, "save", lambda _: None)  # nobody tidies up after SIGKILL
                    raise KeyboardInterrupt
                return write(self, *given)

            monkeypatch.setattr(SiteFolder, "write", dying)
            assert publish(history, folder) == 130
            monkeypatch.setattr(SiteFolder, "save", save)
            assert dead_links(folder) == []
        monkeypatch.setattr(SiteFolder, "write", write)
        assert publish(history, folder) == 0
        assert publish(history, other) == 0
        assert pages(folder) == pages(other)
        assert dead_links(folder) == []

    def test_what_was_drawn_before_ctrl_c_is_not_drawn_again(
        self, history: History, tmp_path: Path, no_charts: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "site"
        monkeypatch.setattr(site, "models", _interrupt)
        assert publish(history, folder) == 130
        assert not folder.exists()
        monkeypatch.undo()
        monkeypatch.setattr(pictures, "is_available", lambda: False)
        monkeypatch.setattr("reports.site.Site.backend", _interrupt)
        assert publish(history, folder) == 130
        kept = pages(folder)
        assert {"runs/index.html", "models/resnet50.html"} <= set(kept)
        assert "index.html" not in kept
        monkeypatch.undo()
        monkeypatch.setattr("reports.site.Site.run", _interrupt)  # no run is drawn again
        monkeypatch.setattr(pictures, "is_available", lambda: False)
        assert publish(history, folder) == 0

    def test_processes_that_draw_end_with_the_one_that_is_killed(self) -> None:
        code = "\n".join(
            [
                "import functools, os, time",
                "from harness.history import publishing",
                "publishing.WORTH_ANOTHER = 1",
                "os.sched_getaffinity = lambda _: {0, 1}",
                'draw = functools.partial(eval, \'__import__("time").sleep(0.2) or str(__import__("os").getpid())\')',
                "plan = publishing.Plan(path='', made_from='', draw=draw)",
                "for _, pid in publishing._drawn([plan] * 6): print(pid, flush=True)",
                "time.sleep(60)",
            ]
        )
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        workers = {int(process.stdout.readline())}
        process.kill()
        process.wait()
        deadline = 400
        while any(_is_alive(pid) for pid in workers) and (deadline := deadline - 1):
            time.sleep(0.05)
        assert deadline


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _interrupt(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


class TestRefusals:
    def test_a_folder_with_files_of_others(
        self, history: History, tmp_path: Path, no_charts: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
        assert publish(history, folder) == 2
        assert "holds files that harness publish did not make: thesis.txt" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
        (folder / "thesis.txt").rename(folder / ".thesis")
        assert publish(history, folder) == 0
        (folder / "models/mine.html").write_text("mine")
        whole = pages(folder)
        history.remove(run(0).id)
        assert publish(history, folder) == 2
        assert "models/mine.html" in capsys.readouterr().err
        assert pages(folder) == whole
        assert (folder / ".thesis").read_text() == "mine"

    def test_what_cannot_be(self, history: History, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_text("")
        assert publish(history, tmp_path / "file") == 2
        assert "is a file" in capsys.readouterr().err
        assert publish(history, tmp_path / "site", "--since", "2030-01-01") == 2
        assert "there are no runs since 2030-01-01" in capsys.readouterr().err
        with pytest.raises(SystemExit) as left:
            main(["publish", str(tmp_path / "site"), "--store", str(tmp_path / "nosuch.sqlite")])
        assert left.value.code == 2
        assert "there is no history" in capsys.readouterr().err
        assert not (tmp_path / "site").exists()

    def test_a_damaged_manifest(
        self, history: History, tmp_path: Path, no_charts: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert publish(history, tmp_path / "site") == 0
        (tmp_path / "site" / MANIFEST).write_text("{")
        assert publish(history, tmp_path / "site") == 2
        assert "is damaged" in capsys.readouterr().err

    def test_two_at_once(
        self, history: History, tmp_path: Path, no_charts: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with publishing._alone(tmp_path / "site"):
            assert publish(history, tmp_path / "site") == 2
        assert "another harness publish is writing" in capsys.readouterr().err


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a site with charts, drawn by two processes."""
    root = tmp_path_factory.mktemp("large")
    history = History(Location(path=root / "history.sqlite"), create=True)
    for day in range(10):
        history.add(run(day, {"eager": 10.0, "onnxruntime": 5.0 if day < 5 else 7.0}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.sched_getaffinity", lambda _: {0, 1})
        patch.setattr(publishing, "WORTH_ANOTHER", 5)
        assert publish(history, root / "site") == 0
    return root / "site"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def visitor(browser: Any) -> Iterator[Visitor]:
    made = Visitor(browser)
    yield made
    made.leave()


def test_pages_of_other_processes_are_the_same(large: Path) -> None:
    assert dead_links(large) == []
    assert len(pages(large)) == 16
    assert all(b"<svg" in text for name, text in pages(large).items() if name.startswith(("models/", "runs/2")))


class TestInABrowser:
    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("page", ["index.html", "models/resnet50.html", "backends/onnxruntime.html"])
    def test_opens_quietly_and_fits(self, visitor: Visitor, large: Path, page: str, width: int) -> None:
        tab = visitor.open(large / page, width=width, scheme="dark")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("h1").is_visible()
        assert tab.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(21, 23, 28)"

    def test_leads_from_the_first_page_to_a_run_and_back(self, visitor: Visitor, large: Path) -> None:
        tab = visitor.open(large / "index.html")
        tab.own |= {(large / page).as_uri() for page in pages(large)}
        tab.get_by_role("link", name="resnet50", exact=True).first.click()
        assert tab.locator("h1").inner_text() == "resnet50"
        tab.locator("tbody a").first.click()
        assert "onnxruntime ran" in tab.locator(".closing").inner_text()
        tab.get_by_role("link", name="All runs").click()
        assert tab.locator("tbody tr").count() == 10
        tab.get_by_role("link", name="Overview").click()
        assert tab.locator("h1").inner_text() == "Compiler backends over time"

    def test_sorts_filters_and_is_reached_by_keyboard(self, visitor: Visitor, large: Path) -> None:
        tab = visitor.open(large / "runs/index.html")
        first = tab.locator("tbody tr").first
        assert "2026-03-10" in first.inner_text()
        tab.locator("thead button", has_text="began").click()
        assert "2026-03-01" in first.inner_text()
        tab.fill("#filter", "2026-03-07")
        assert tab.locator("#shown").inner_text() == "1 of 10 rows"
        tab.press("#filter", "Escape")
        tab.evaluate("document.activeElement.blur()")
        reached, wanted = reached_by_keyboard(tab)
        assert reached == wanted > 20

    def test_charts_over_time_have_marks(self, visitor: Visitor, large: Path) -> None:
        tab = visitor.open(large / "models/resnet50.html")
        for metric in trend_charts.WHAT:
            chart = tab.locator(f"[data-chart={metric}-over-time] svg")
            chart.scroll_into_view_if_needed()
            assert chart.locator("use").count() > 10, metric
        assert "1.4" in tab.locator("[data-chart=latency-over-time] svg").text_content()
