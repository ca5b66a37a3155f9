"""What a bisect says in the end, in words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.bisect.found import Bisected, Guilty, Release, Trial, ratio_text, said
from harness.bisect.pairs import BEYOND, Change
from reports.bisected import render

VERSIONS = [Release(version=f"1.{index}", released=f"2026-0{index + 1}-01") for index in range(5)]


def change(ratio: float = 1.12, half: float | None = 0.01, **more: Any) -> Change:
    fields: dict[str, Any] = {
        "figure": "latency",
        "statuses": ("ok", "ok"),
        "before": 2e6,
        "after": 2e6 * ratio,
        "change": math.log(ratio),
        "half_width": half,
        "values": 5,
    }
    return Change(**(fields | more))


def trial(before: str, after: str, kind: Any = "changed", **more: Any) -> Trial:
    fields: dict[str, Any] = {"change": change(), "runs": ["/data/results/2026-03-02T10-11-12-tiny-ab12"]}
    return Trial(before=before, after=after, kind=kind, **(fields | more))


def guilty(**more: Any) -> Guilty:
    fields: dict[str, Any] = {
        "before": VERSIONS[2],
        "after": VERSIONS[3],
        "kind": "changed",
        "trial": trial("1.2", "1.3"),
        "change": math.log(1.12),
        "half_width": 0.01,
        "unknown": {},
        "packages": {"numpy": ("1.26.4", "2.1.0"), "sympy": ("1.13", None)},
        "reproduce": "harness compare --model tiny --backends onnxruntime@1.2,onnxruntime@1.3",
    }
    return Guilty(**(fields | more))


def bisected(**more: Any) -> Bisected:
    ends = trial("1.0", "1.4")
    fields: dict[str, Any] = {
        "model": "tiny",
        "backend": "onnxruntime",
        "device": "cpu",
        "precision": "fp32",
        "figure": "latency",
        "threshold": 0.05,
        "good": "1.0",
        "bad": "1.4",
        "versions": VERSIONS,
        "outcome": "found",
        "ends": ends,
        "steps": [guilty()],
        "skipped": {},
        "trials": [ends, trial("1.2", "1.3")],
        "measurements": 4,
    }
    return Bisected(**(fields | more))


def test_the_guilty_release_with_figures_dates_and_what_else_changed() -> None:
    text = render(bisected())
    assert "latency of tiny on onnxruntime, 1.0 to 1.4: fp32, cpu, 5 versions" in text
    assert "the step: 1.2, then 1.3" in text
    assert "2026-03-01 > 2026-04-01" in text
    assert "2.00 ms, then 2.24 ms: 1.120x [1.109, 1.131]" in text
    assert "numpy 1.26.4 > 2.1.0" in text
    assert "sympy 1.13 > none" in text
    assert "harness compare --model tiny --backends onnxruntime@1.2,onnxruntime@1.3" in text
    assert text.endswith("1.3 did it: its latency is 1.120x [1.109, 1.131] that of 1.2. 4 measurements.\n")


def test_a_range() -> None:
    step = guilty(before=VERSIONS[1], unknown={"1.2": "1.2 cannot be installed: no wheel"})
    text = render(bisected(steps=[step], skipped={"1.2": "1.2 cannot be installed: no wheel"}))
    assert (
        "Latency changed between 1.1 and 1.3 (1.120x [1.109, 1.131]); which of 1.2 and 1.3 did it is not known." in text
    )
    assert text.count("1.2 cannot be installed: no wheel") == 2


def test_two_steps() -> None:
    text = render(bisected(steps=[guilty(), guilty(before=VERSIONS[3], after=VERSIONS[4])]))
    assert "step 1: 1.2, then 1.3" in text
    assert "step 2: 1.3, then 1.4" in text
    assert "1.3 did it" in text
    assert "1.4 did it" in text


def test_a_change_that_adds_up() -> None:
    text = render(bisected(steps=[guilty(kind="like", change=math.log(1.02))]))
    assert (
        "No single release did it: latency has added up to the threshold by 1.3, which alone changed it by less" in text
    )


def test_a_pair_that_is_not_decided() -> None:
    text = render(bisected(steps=[guilty(kind="undecided")]))
    assert "It came with 1.3, but against 1.2 itself that is undecided" in text


def test_a_rest_that_is_not_decided() -> None:
    rest = trial("1.3", "1.4", "undecided", change=change(1.05, 0.06))
    text = render(bisected(rest=rest))
    assert "Whether more changed between 1.3 and 1.4 is not decided (1.050x" in text


def test_a_step_whose_figures_follow_from_others() -> None:
    step = guilty(trial=None, half_width=0.0)
    text = render(
        bisected(figure="engine", steps=[step], trials=[], ends=trial("1.0", "1.4", change=change(figure="engine")))
    )
    assert "1.120x, from what both are against 1.0" in text
    assert "its engine size is 1.120x that of 1.2" in text


def test_the_first_that_does_not_work() -> None:
    broken = change(figure="status", statuses=("ok", "crashed"), failures=("", "compile: it died"), change=BEYOND)
    step = guilty(trial=trial("1.2", "1.3", change=broken), change=BEYOND, half_width=0.0)
    text = render(bisected(figure="status", steps=[step], trials=[trial("1.2", "1.3", change=broken)]))
    assert "works, then crashed: compile: it died" in text
    assert "1.3 is the first that does not work; 1.2 does." in text


@pytest.mark.parametrize(
    ("outcome", "kind", "ratio", "says"),
    [
        ("no_change", "like", 1.01, "There is no step: 1.4 has 1.010x [1.000, 1.020] the latency of 1.0"),
        ("undecided", "undecided", 1.04, "The ends cannot be told apart: 1.4 has 1.040x [1.030, 1.050]"),
        ("interrupted", "changed", 1.4, "INTERRUPTED. What was measured is remembered: the same command goes on"),
    ],
)
def test_ends_without_a_step(outcome: Any, kind: Any, ratio: float, says: str) -> None:
    ends = trial("1.0", "1.4", kind, change=change(ratio))
    assert says in render(bisected(outcome=outcome, ends=ends, steps=[], trials=[ends]))


@pytest.mark.parametrize(("status", "says"), [("ok", "Both ends work"), ("crashed", "Neither end works")])
def test_status_of_both_ends_is_the_same(status: Any, says: str) -> None:
    ends = trial("1.0", "1.4", "like", change=change(figure="status", statuses=(status, status), change=0.0))
    assert says in render(bisected(figure="status", outcome="no_change", ends=ends, steps=[], trials=[ends]))


def test_figures_with_their_units() -> None:
    for figure, shown in (("memory", "2.00 MB"), ("drift", "2.0e+06"), ("compile", "2.0"), ("latency", "2.00 ms")):
        one = trial("1.0", "1.4", change=change(figure=figure))
        assert shown in render(bisected(figure=figure, trials=[one]))


def test_a_pair_in_half_a_sentence() -> None:
    assert said(trial("1.0", "1.4")) == "1.4 against 1.0: latency 1.120x [1.109, 1.131]: changed"
    skipped = trial("1.0", "1.4", "untestable", change=None, reason="1.4 cannot be installed: no wheel")
    assert said(skipped) == "1.4 against 1.0: skipped: 1.4 cannot be installed: no wheel"
    status = trial("1.0", "1.4", change=change(figure="status", statuses=("ok", "crashed")))
    assert said(status) == "1.4 against 1.0: crashed against works"


def test_ratios_in_words() -> None:
    assert ratio_text(None, None) == "-"
    assert ratio_text(0.0, 0.0) == "1.000x"
    assert ratio_text(BEYOND, 0.0) == "from nothing to something"
    assert ratio_text(-BEYOND, 0.0) == "from something to nothing"
