"""Published figures: that the table is complete, what a measurement says of one, and the command for real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any  # parsed JSON, and fields of records

import msgspec
import pytest

from harness import registry
from harness.advice import METRICS
from harness.api import Composition
from harness.claiming import Checking, arguments, place
from harness.claims import (
    OWN,
    RATIO,
    UNMEASURED,
    Claim,
    Figure,
    Report,
    Table,
    checked,
    measurable,
    read,
    refused,
    verdict,
)
from harness.cli import compare
from harness.devices import CARDS
from harness.errors import UsageError
from harness.modelspec import parse_models
from harness.plan import FP32, parse_variants
from harness.records import Launch
from harness.summarize import summarize
from harness.summary import Composed, ComposedRow, Estimate
from reports.claims import draw_findings, findings, listing
from tests import fake_nvml
from tests.example_runs import NASTY
from tests.support import PLUGINS, Cli
from tests.unit.test_summarize import measured, run_of

CLAIMS = {claim.id: claim for claim in read().claims}
PUBLISHED = {
    "Y1": [0.0482, 20.7, 0.568],
    "Y2": [0.0194, 51.5, 0.566],
    "Y3": [0.0141, 70.9, 0.562],
    "Y4": [0.0231, 43.3],
    "Y5": [0.0326, 122.8],
    "Y6": [280, 11.2e9],
    "R1": [0.0018, 0.0013, 0.722, 0.89],
    "R2": [0.59],
    "S1": [8.2],
    "S2": [5.4],
    "S3": [3.1],
    "S4": [2.3],
    "S5": [4.7, 15.6e9],
    "A1": [0.0082, 0.0297, 0.1125, 0.0031, 0.0068, 0.0143, 0.378, 0.229, 0.127],
    "W1": [0.5, 9.8e9],
    "B1": [0.12],
    "L1": [0.73],
}
"""What the source states, in seconds, items a second, bytes, shares and ratios."""


class TestTable:
    def test_has_every_row_and_figure_of_its_source(self) -> None:
        assert {key: [figure.value for figure in claim.figures] for key, claim in CLAIMS.items()} == PUBLISHED

    @pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
    def test_a_row_is_complete_and_can_be_asked_for(self, claim: Claim) -> None:
        assert claim.subject
        assert claim.conditions
        assert claim.device in CARDS
        assert all(figure.why for figure in claim.figures)
        command = compare.make_context("compare", arguments(claim, "cuda:0"))  # raises for what compare does not know
        assert command.params["baseline"] in (None, *claim.backends)
        specs = parse_models(claim.models, Path())
        for spec in specs:
            kind = registry.model_class(spec.name)
            assert {*claim.dims, *(name for figure in claim.figures for name in figure.at)} <= {*kind.dims}
        variants = parse_variants(claim.backends)
        assert [variant.id for variant in variants] == claim.backends, "a figure names its case as the report does"
        for variant in variants:
            offered = registry.backend(variant.backend).capabilities
            assert "cuda" in offered.devices
            assert (variant.parsed().precision or FP32) in offered.precisions_on("cuda")

    @pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
    def test_its_figures_fit_together(self, claim: Claim) -> None:
        named: dict[str, Composition] = {one.name: one for one in registry.compositions()}
        for figure in claim.figures:
            assert figure.metric in {*METRICS, *OWN}
            if figure.composition is not None:
                assert set(named[figure.composition].calls) == set(claim.models)
            elif len(claim.models) > 1 and not figure.lacks:
                assert figure.model in claim.models
            if figure.metric == "throughput" and claim.figures[0].metric == "latency":
                assert figure.value == pytest.approx(claim.batch / claim.figures[0].value, rel=0.01)

    def test_ratios_follow_from_the_published_times(self) -> None:
        times = CLAIMS["A1"].figures[:6]
        for figure, standard, flash in zip(CLAIMS["A1"].figures[6:], times[:3], times[3:], strict=True):
            assert figure.value == pytest.approx(flash.value / standard.value, rel=0.01)
            assert figure.model == standard.model == flash.model
        before, after, ratio, _ = CLAIMS["R1"].figures
        assert ratio.value == pytest.approx(after.value / before.value, rel=0.01)

    def test_only_ratios_are_run_on_another_device_and_only_where_the_row_says_what_they_show(self) -> None:
        for claim in CLAIMS.values():
            assert all(figure.metric == RATIO for figure in measurable(claim, elsewhere=True))
            assert bool(measurable(claim, elsewhere=True)) == bool(claim.elsewhere)
        assert [key for key, claim in CLAIMS.items() if claim.elsewhere] == ["R2", "A1", "L1"]
        assert not measurable(CLAIMS["B1"], elsewhere=False)


def figure(**fields: Any) -> Figure:
    ordinary: dict[str, Any] = {"metric": "latency", "case": "fast", "value": 10.0, "tolerance": 0.1, "why": "so"}
    return Figure(**(ordinary | fields))


def claim(*figures: Figure, **fields: Any) -> Claim:
    ordinary: dict[str, Any] = {
        "id": "C1",
        "subject": "tiny",
        "device": "RTX 4090",
        "models": ["tiny"],
        "backends": ["eager", "fast", "slow"],
        "conditions": "none",
    }
    return Claim(figures=list(figures), **(ordinary | fields))


class TestVerdict:
    @pytest.mark.parametrize(
        ("sense", "low", "high", "expected"),
        [
            ("about", 9.0, 11.0, "holds"),  # the ends belong to it
            ("about", 10.0, 10.0, "holds"),
            ("about", 8.9, 9.5, "undecided"),
            ("about", 10.5, 11.1, "undecided"),
            ("about", 1.0, 100.0, "undecided"),
            ("about", 11.1, 12.0, "does not hold"),
            ("about", 1.0, 8.9, "does not hold"),
            ("at most", 0.001, 0.002, "holds"),
            ("at most", 10.9, 11.1, "undecided"),
            ("at most", 11.1, 99.0, "does not hold"),
            ("at least", 1e9, 1e9, "holds"),
            ("at least", 8.9, 9.1, "undecided"),
            ("at least", 1.0, 8.9, "does not hold"),
        ],
    )
    def test_where_the_interval_lies(self, sense: str, low: float, high: float, expected: str) -> None:
        found = Estimate(value=(low + high) / 2, low=low, high=high)
        assert verdict(figure(sense=sense), found) == expected

    def test_no_tolerance_is_the_limit_itself(self) -> None:
        exact = figure(sense="at most", tolerance=0.0)
        assert verdict(exact, Estimate(value=10.0, low=10.0, high=10.0)) == "holds"
        assert verdict(exact, Estimate(value=10.1, low=10.01, high=10.2)) == "does not hold"


class TestChecked:
    def test_against_a_run(self) -> None:
        summary = summarize(run_of(measured({"eager": 1.0, "fast": 0.5, "slow": 2.0})))  # 10, 5 and 20 ms at batch 4
        of = claim(
            figure(value=0.005),
            figure(value=0.004),
            figure(metric=RATIO, over="eager", value=0.5),
            figure(metric=RATIO, case="slow", over="fast", value=2.0),
            figure(metric="throughput", value=800.0),
            figure(metric="rate", value=200.0),
            figure(metric="accuracy", value=0.5, lacks="labels"),
        )
        found = checked(of, summary, device="cuda:0", elsewhere=False)
        verdicts = [one.verdict for one in found.figures]
        assert verdicts == ["holds", "does not hold", "holds", "does not hold", "holds", "holds", "not measured"]
        assert found.figures[1].ratio == pytest.approx(1.25, rel=0.02)
        assert found.figures[3].measured is not None
        assert found.figures[3].measured.value == pytest.approx(4.0, rel=0.02)
        assert found.figures[6].reason == "labels"
        assert not any(one.reason for one in found.figures[:6])

    def test_on_another_device_only_the_ratio_is_judged(self) -> None:
        summary = summarize(run_of(measured({"eager": 1.0, "fast": 0.5})))
        of = claim(figure(value=0.005), figure(metric=RATIO, over="eager", value=0.5), elsewhere="something")
        time, ratio = checked(of, summary, device="cpu", elsewhere=True).figures
        assert (time.verdict, time.measured) == ("not runnable", None)
        assert time.reason == "a figure of the RTX 4090 says nothing of another device"
        assert ratio.verdict == "holds"
        page = findings(
            Report(source="s", checked=[checked(of, summary, device="cpu", elsewhere=True)]), format_="terminal"
        )
        assert "holds (on another device)" in page
        assert "measured on another device\n  C1  something" in page

    @pytest.mark.parametrize(
        ("status", "says"), [("drifted", "the outputs of fast drifted"), ("crashed", "fast: crashed")]
    )
    def test_what_did_not_end_well_bears_nothing_out(self, status: Any, says: str) -> None:
        summary = summarize(run_of(measured({"eager": 1.0, "fast": 0.5}, {"fast": status})))
        for one in (figure(value=0.005), figure(case="eager", metric=RATIO, over="fast", value=2.0)):
            (found,) = checked(claim(one), summary, device="cuda:0", elsewhere=False).figures
            assert (found.verdict, found.measured) == ("not measured", None)
            assert says in found.reason

    def test_what_the_run_does_not_hold(self) -> None:
        workload = measured({"eager": 1.0, "fast": 0.5})
        summary = summarize(run_of(workload))
        for one, says in (
            (figure(case="slow"), "slow has no row"),
            (figure(metric="device-memory"), "this run has no device memory"),
            (figure(model="resnet50"), "no such workload"),
            (figure(at={"batch": 8}), "no such workload"),
            (figure(metric="composed", composition="sd15-image"), "cannot be put together"),
        ):
            of = claim(one, models=["tiny", "resnet50"])
            (found,) = checked(of, summary, device="cuda:0", elsewhere=False).figures
            assert found.verdict == "not measured"
            assert says in found.reason

    def test_a_composed_figure(self) -> None:
        summary = summarize(run_of(measured({"eager": 1.0, "fast": 0.5})))
        rows = [
            ComposedRow(case="fast", seconds=Estimate(value=8.0, low=7.9, high=8.1), lacks={}),
            ComposedRow(case="slow", seconds=None, lacks={"sd15-unet": "timeout"}),
        ]
        whole = [Composed(name="sd15-image", what="an image", parts=[], rows=rows)]
        summary = msgspec.structs.replace(summary, composed=whole)
        of = claim(*(figure(metric="composed", composition="sd15-image", case=row.case, value=8.2) for row in rows))
        holds, gone = checked(of, summary, device="cuda:0", elsewhere=False).figures
        assert holds.verdict == "holds"
        assert gone.reason == "it cannot be put together: sd15-unet: timeout"

    def test_one_launch_decides_nothing(self) -> None:
        summary = summarize(run_of(measured({"eager": 1.0, "fast": 0.5}, launches=1)))
        of = claim(figure(value=0.005), figure(value=99.0), figure(metric=RATIO, over="eager", value=0.5))
        for one in checked(of, summary, device="cuda:0", elsewhere=False).figures:
            assert one.verdict == "undecided"
            assert one.measured is not None
            assert "one launch cannot show how processes differ" in one.reason

    def test_nothing_was_measured(self) -> None:
        workload = msgspec.structs.replace(measured({"eager": 1.0, "fast": 0.5}), launches=list[Launch]())
        (found,) = checked(claim(figure()), summarize(run_of(workload)), device="cuda:0", elsewhere=False).figures
        assert (found.verdict, found.reason) == ("not measured", "fast has no samples")


class TestPlace:
    @pytest.mark.parametrize(
        ("key", "gpus", "expected"),
        [
            ("Y1", [], (None, True)),
            ("L1", [], ("cpu", True)),
            ("Y1", ["NVIDIA GeForce RTX 4090"], ("cuda:0", False)),
            ("L1", ["NVIDIA L4", "NVIDIA GeForce RTX 4090"], ("cuda:1", False)),
            ("Y1", ["NVIDIA GeForce RTX 4090 Laptop GPU"], (None, True)),
            ("L1", ["NVIDIA GeForce RTX 4090 D"], ("cuda:0", True)),
            ("B1", ["NVIDIA GeForce RTX 4090"], (None, False)),
        ],
    )
    def test_is_the_claims_own_device_or_another_one(self, key: str, gpus: list[str], expected: Any) -> None:
        assert place(CLAIMS[key], gpus) == expected


class TestTables:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"metric": "speed"}, "there is no such metric"),
            ({"metric": "accuracy"}, "must say what it lacks"),
            ({"over": "eager"}, "belongs to a ratio"),
            ({"metric": RATIO}, "a ratio needs it"),
            ({"composition": "sd15-image"}, "belongs to a composed figure"),
            ({"tolerance": 1.5}, "a tolerance from 0"),
            ({"value": 0.0}, "a value above zero"),
            ({"case": "tvm"}, "tvm is not among the claim's backends"),
            ({"model": "resnet50"}, "resnet50 is not among the claim's models"),
            ({"sense": "roughly"}, "is no table of claims"),
            ({"typo": 1}, "unknown field `typo`"),
        ],
    )
    def test_of_ones_own_are_refused_with_the_reason(self, change: dict[str, Any], says: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.json"
        content: dict[str, Any] = msgspec.to_builtins(claim(figure()))
        content["figures"][0] |= change
        path.write_text(json.dumps({"source": "mine", "claims": [content]}))
        with pytest.raises(UsageError, match=says):
            read(path)

    @pytest.mark.parametrize(
        ("text", "says"),
        [("{", "is no table"), ('{"source": "s"}', "claims"), (None, "cannot be read"), ("\xff", "is no")],
    )
    def test_that_are_none(self, text: str | None, says: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.json"
        if text is not None:
            path.write_bytes(text.encode("latin-1"))
        with pytest.raises(UsageError, match=says):
            read(path)

    @pytest.mark.parametrize(("ids", "says"), [(["A", "A"], "has A twice"), (["../A"], "is no id")])
    def test_ids(self, ids: list[str], says: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.json"
        claims = [msgspec.to_builtins(claim(figure(), id=one)) for one in ids]
        path.write_text(json.dumps({"source": "mine", "claims": claims}))
        with pytest.raises(UsageError, match=says):
            read(path)


class TestWords:
    def test_every_metric_has_words_and_every_unmeasured_one_is_known(self) -> None:
        assert set(OWN) >= UNMEASURED

    def test_foreign_text_breaks_no_format(self) -> None:
        of = claim(figure(lacks=NASTY), subject=NASTY, device=NASTY, conditions=NASTY)
        report = Report(source=NASTY, checked=[refused(of, NASTY)])
        for format_ in ("terminal", "markdown"):
            text = findings(report, format_=format_)
            assert "\x1b" not in text
            assert "\u202e" not in text
            assert "<script>" not in text or format_ == "terminal"
        listed = listing(Table(source=NASTY, claims=[of]), places={of.id: (None, False)}, format_="markdown")
        assert "\x1b" not in listed
        assert "<script>" not in listed

    @pytest.mark.parametrize("width", [80, 100, 140])
    def test_a_listed_figure_stays_with_its_claim_however_narrow_the_terminal(self, width: int) -> None:
        places: dict[str, tuple[str | None, bool]] = dict.fromkeys(CLAIMS, (None, True))
        text = listing(Table(source="s", claims=list(CLAIMS.values())), places=places, format_="terminal", width=width)
        assert max(map(len, text.splitlines())) <= width
        parts = [" ".join(part.split()) for part in text.split("\n\n")]
        for one in CLAIMS.values():
            (own,) = [part for part in parts if part.startswith(f"{one.id}: ")]
            assert one.subject in own
            assert all(f"of {each.composition or each.case}" in own for each in one.figures)

    def test_an_empty_table_says_so(self) -> None:
        assert draw_findings(Report(source="s", checked=[])).closing == "There is no claim in the table."


class TestInterrupted:
    def test_what_was_finished_is_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from harness.progress import Narrator

        done: list[str] = []

        def check(self: Checking, one: Claim) -> Any:
            if done:
                raise KeyboardInterrupt
            done.append(one.id)
            return refused(one, "there is no such card")

        monkeypatch.setattr(Checking, "_check", check)
        report = Checking({}, [], None, Narrator(quiet=True)).report("s", [CLAIMS["Y1"], CLAIMS["L1"]])
        assert report.interrupted
        assert [one.figures[0].reason for one in report.checked] == [
            "there is no such card",
            "interrupted before it was measured",
        ]
        assert draw_findings(report).closing.startswith("Interrupted; what was finished is kept.")


def verdicts(document: dict[str, Any]) -> dict[str, list[str]]:
    return {one["claim"]["id"]: [figure["verdict"] for figure in one["figures"]] for one in document["checked"]}


class TestCommand:
    def test_on_this_machine_for_real(self, cli: Cli, tmp_path: Path) -> None:
        done = cli("claims", "L1", "Y1", "y2", "B1", "--quick", "--json", environment={"CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        found = verdicts(document)
        assert list(found) == ["Y1", "Y2", "B1", "L1"], "in the table's order"
        assert found["Y1"] == found["Y2"] == ["not runnable", "not runnable", "not measured"]
        assert found["B1"] == ["not measured"]
        (fused,) = document["checked"][-1]["figures"]
        assert fused["verdict"] == "undecided", "one launch has no verdict"
        assert fused["measured"]["low"] <= fused["measured"]["value"] <= fused["measured"]["high"]
        assert fused["ratio"] == pytest.approx(fused["measured"]["value"] / 0.73)
        last = document["checked"][-1]
        assert (last["device"], last["elsewhere"]) == ("cpu", True)
        assert (tmp_path / last["run"] / "run.json").is_file()
        reason = document["checked"][0]["figures"][0]["reason"]
        assert reason == "it is of the RTX 4090, and this machine has no GPU, only a CPU"
        shown = cli("show", "last", environment={"CUDA_VISIBLE_DEVICES": ""})
        assert "layernorm-sigmoid on cpu" in shown.stdout, "it is a comparison like any other"

    def test_asked_for_by_name_and_nothing_to_show_for_it(self, cli: Cli) -> None:
        done = cli("claims", "Y1", environment={"CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 3
        assert "not runnable" in done.stdout

    def test_listed(self, cli: Cli) -> None:
        done = cli("claims", "--list", "--format", "markdown", environment={"CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, done.stderr
        assert "PyTorch (layernorm-sigmoid, RTX 4090)" in done.stdout
        assert "- **0.73x**: time ratio of torch-compile over eager, tolerance 10 %: on cpu instead" in done.stdout
        assert "3 of 17 claims can be run on this machine" in done.stdout

    def test_a_name_that_nobody_knows(self, cli: Cli) -> None:
        done = cli("claims", "Y9")
        assert done.returncode == 2
        assert "error: unknown claim 'Y9'; did you mean 'Y" in done.stderr

    def test_on_the_claims_own_card(self, cli: Cli, tmp_path: Path) -> None:
        library = tmp_path / "library"
        library.mkdir()
        shutil.copy(fake_nvml.__file__, library / "pynvml.py")
        (library / "cards.json").write_text(json.dumps([{"name": "NVIDIA L4"}, {}]))
        card = {"PYTHONPATH": f"{library}:{PLUGINS}", "FAKE_NVML": str(library / "cards.json")}
        table = tmp_path / "mine.json"
        backends = ["fake-device:ms=4.0", "fake-device:ms=1.0"]
        slow, fast = backends
        figures = [
            figure(case=fast, value=0.001, sense="at least", tolerance=0.01),
            figure(case=slow, value=0.0004, sense="at most"),
            figure(metric=RATIO, case=slow, over=fast, value=1.0, sense="at least", tolerance=0.5),
        ]
        mine = claim(*figures, backends=backends, baseline=fast)
        other = claim(figure(case="tensorrt"), id="C2", backends=["tensorrt"])
        document = {"source": "mine", "claims": [msgspec.to_builtins(mine), msgspec.to_builtins(other)]}
        table.write_text(json.dumps(document))
        first = cli("claims", "--table", str(table), "--quick", "--json", environment=card)
        assert first.returncode == 0, first.stderr
        found = json.loads(first.stdout)
        assert found["checked"][0]["device"] == "cuda:1", "the second card is the one"
        assert not found["checked"][0]["elsewhere"]
        assert verdicts(found)["C1"] == ["undecided"] * 3, "one launch has no verdict"
        quick, long, ratio = (one["measured"] for one in found["checked"][0]["figures"])
        assert quick["value"] >= 0.001, "it takes so much of the CPU's time"
        assert long["value"] >= 0.004
        assert ratio["value"] > 0
        assert verdicts(found)["C2"] == ["not runnable"], "tensorrt needs a real one"
        assert found["checked"][1]["figures"][0]["reason"].startswith("tensorrt: ")
        again = cli("claims", "c1", "--table", str(table), "--quick", environment=card)
        assert again.returncode == 0, again.stderr
        assert "measured before" in again.stderr
        assert f"{Path(found['checked'][0]['run']).name}, measured before" in again.stdout
        assert "cuda:1 (RTX 4090)" in again.stdout
        assert len(list((tmp_path / "results").glob("*-claim-C1-*"))) == 1
        path = tmp_path / found["checked"][0]["run"] / "run.json"
        cut = json.loads(path.read_text())
        cut["state"] = "interrupted"
        cut["workloads"][0]["launches"] = []
        path.write_text(json.dumps(cut))
        resumed = json.loads(cli("claims", "C1", "--table", str(table), "--quick", "--json", environment=card).stdout)[
            "checked"
        ][0]
        assert (resumed["run"], resumed["cached"]) == (found["checked"][0]["run"], False)
        assert resumed["figures"][0]["measured"]["value"] >= 0.001
        assert json.loads(path.read_text())["state"] == "finished"
        fresh = cli("claims", "C1", "--table", str(table), "--quick", "--refresh", "--json", environment=card)
        assert json.loads(fresh.stdout)["checked"][0]["run"] != found["checked"][0]["run"]
