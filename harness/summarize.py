"""From a run to its numbers: `summarize` derives all that the reports draw. Pure functions of the records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import msgspec
import numpy as np

from harness import drift, stats
from harness.records import CONTROL, Case, Launch, Run, Window
from harness.summary import CaseSummary, Comparison, Estimate, Latency, RunSummary, Verdict

if TYPE_CHECKING:
    from harness.stats import Contrasts, Floats

Boundary = Literal["compute", "host-to-host"]

_EXPECTED_GAPS = ("unavailable", "unsupported", "compiled")
"""Statuses without a number that are no news where all backends were asked for."""


@dataclass(frozen=True, kw_only=True)
class _Visits:
    """The windows of one case that its numbers rest on, by index of the launch."""

    windows: list[tuple[int, Window]]
    marked: int
    """Disturbed windows among all."""
    total: int


def summarize(run: Run) -> RunSummary:
    """Derive latencies, comparisons, verdicts and the closing sentence from a run's raw samples.

    Works on a run in any state: what has no samples has no numbers. Windows that something disturbed are counted, not
    left out: which ones are marked differs from case to case, so leaving them out would favour one over another.
    """
    cases, contrasts = estimates(run)
    comparisons = _comparisons(cases, contrasts)
    rows = [_row(case, run, comparisons.get(case.id)) for case in run.cases if not case.id.endswith(CONTROL)]
    baseline = next((row for row in rows if row.is_baseline and row.compute), None)
    summary = RunSummary(
        run=run,
        rows=_ordered(rows, baseline, run.settings.cases),
        baseline=baseline.case.id if baseline else None,
        control=comparisons.get(cases[1]),
        suspicious=bool(stats.suspicious(contrasts)),
        noise_floor=stats.noise_floor(contrasts),
        closing="",
    )
    return msgspec.structs.replace(summary, closing=closing(summary))


def precise(run: Run) -> bool:
    """Say whether every ratio to the baseline is known to +-1 %, so that more launches are not needed.

    Looks at the widths of intervals only; see `stats.precise`. A case that failed is not waited for.
    """
    gone = {case.id for case in run.cases if case.failure is not None and case.status != "drifted"}
    launches = [
        msgspec.structs.replace(launch, sittings=[one for one in launch.sittings if one.case not in gone])
        for launch in run.launches
    ]
    return bool(stats.precise(estimates(msgspec.structs.replace(run, launches=launches))[1]))


def estimates(run: Run) -> tuple[list[str], Contrasts]:
    """Return the baseline, its control and the candidates, and what is known of all but the first.

    Groups that were measured one after another need no care: a candidate is only ever compared with the baseline's
    workers of the same launch, and how much identical processes differ is learnt from all groups together.
    """
    workers = [run.settings.baseline, run.settings.baseline + CONTROL]
    seen = dict.fromkeys(sitting.case for launch in run.launches for sitting in launch.sittings)
    # The control of an earlier baseline is no candidate.
    cases = workers + [case for case in seen if case not in workers and not case.endswith(CONTROL)]
    return cases, stats.contrast(_tables(run.launches, cases))


def _tables(launches: list[Launch], cases: list[str]) -> Floats:
    """Return log medians of windows in log ns, shape (launches, cases, rounds); NaN where a case was not visited."""
    rounds = [sorted({window.round for sitting in one.sittings for window in sitting.windows}) for one in launches]
    # A run without samples is one launch of one round in which nobody was visited.
    shape = max(len(launches), 1), len(cases), max((1, *map(len, rounds)))
    tables = np.full(shape, np.nan)
    for row, case in enumerate(cases):
        for index, window in _visits(launches, case, "compute").windows:
            column = rounds[index].index(window.round)
            tables[index, row, column] = math.log(max(float(np.median(window.samples_ns)), 1.0))
    return tables


def _visits(launches: list[Launch], case: str, boundary: Boundary) -> _Visits:
    every = [
        (index, window)
        for index, launch in enumerate(launches)
        for sitting in launch.sittings
        if sitting.case == case
        for window in sitting.windows
        if window.boundary == boundary and window.samples_ns
    ]
    return _Visits(windows=every, marked=sum(bool(window.marks) for _, window in every), total=len(every))


def _latency(visits: _Visits) -> Latency | None:
    if not visits.windows:
        return None
    samples = np.sort(np.concatenate([np.asarray(window.samples_ns, dtype=np.float64) for _, window in visits.windows]))
    # Too few for an interval at 95 %: the range is all that can be said, and the count beside it says how little.
    middle = stats.percentile(samples, 0.5) or Estimate(
        value=float(np.median(samples)), low=float(samples[0]), high=float(samples[-1])
    )
    return Latency(
        samples=len(samples),
        p50=middle,
        p90=stats.percentile(samples, 0.9),
        p95=stats.percentile(samples, 0.95),
        p99=stats.percentile(samples, 0.99),
        cv=stats.variation(samples),
    )


def _row(case: Case, run: Run, comparison: Comparison | None) -> CaseSummary:
    compute = _visits(run.launches, case.id, "compute")
    outside = _visits(run.launches, case.id, "host-to-host")
    latency = _latency(compute)
    sittings = [sitting for launch in run.launches for sitting in launch.sittings if sitting.case == case.id]
    is_baseline = case.id == run.settings.baseline
    return CaseSummary(
        case=case,
        is_baseline=is_baseline,
        compute=latency,
        host_to_host=_latency(outside),
        comparison=None if is_baseline else comparison,
        throughput=case.batch * 1e9 / latency.p50.value if latency and latency.p50.value > 0 else None,
        peak_bytes=max((sitting.peak_bytes for sitting in sittings), default=0) or None,
        launches=len({run.launches[index].index for index, _ in compute.windows}),
        worst_drift=drift.worst(case.drift),
        marked_windows=compute.marked + outside.marked,
        windows=compute.total + outside.total,
    )


def _comparisons(cases: list[str], contrasts: Contrasts) -> dict[str, Comparison]:
    """Return what can be said of the control and the candidates; a case without an interval is left out."""
    ratio, low, high = stats.ratios(contrasts)
    verdicts, noisy = stats.verdicts(contrasts), stats.noisy(contrasts)
    return {
        case: Comparison(
            ratio=Estimate(value=float(ratio[index]), low=float(low[index]), high=float(high[index])),
            verdict=cast("Verdict", str(verdicts[index])),
            noisy=bool(noisy[index]),
            rounds_only=bool(contrasts.rounds_only),
        )
        for index, case in enumerate(cases[1:])
        if math.isfinite(high[index])
    }


def _ordered(rows: list[CaseSummary], baseline: CaseSummary | None, asked: list[str]) -> list[CaseSummary]:
    """Return measured rows from fastest to slowest, then the others in the order asked for.

    Speed is the ratio to the baseline, which drift of the machine does not touch; without one it is the median.
    """
    unit = baseline.compute.p50.value if baseline and baseline.compute else 1.0

    def duration(row: CaseSummary) -> float:
        if row.comparison and baseline:
            return row.comparison.ratio.value
        return row.compute.p50.value / unit if row.compute else math.inf

    places = {case: place for place, case in enumerate(asked)}
    measured = sorted((row for row in rows if row.compute), key=duration)
    others = sorted((row for row in rows if not row.compute), key=lambda row: places.get(row.case.id, len(places)))
    return measured + others


def closing(summary: RunSummary) -> str:
    """Return what a person would say of the run, in a few sentences.

    Two candidates count as tied when their intervals against the baseline overlap: intervals that do not overlap at
    99 % differ for sure, those that do may still differ. A case whose outputs drifted is never the recommendation.
    """
    run = summary.run
    measured = [row for row in summary.rows if row.compute]
    said = ["The run was interrupted; this is what had been measured by then."] if run.state == "interrupted" else []
    if run.failure:
        said.append(f"Nothing can be compared: {run.failure.message.rstrip('.')}.")
    elif not measured:
        reasons = [f"{row.case.id} ({_words(row.case.status)})" for row in summary.rows]
        said.append(f"No case was measured: {_listed(reasons)}." if reasons else "No case was measured.")
    elif summary.baseline is None:
        said.append(f"The baseline {run.settings.baseline} has no samples, so nothing is compared.")
    elif len(measured) == 1:
        said.append(f"Only the baseline, {summary.baseline}, was measured; there is nothing to compare it with.")
    else:
        sound = all(row.case.status == "ok" for row in measured if row.is_baseline)
        pairs = [(row.case, row.comparison) for row in measured if row.comparison]
        said += _compared(summary.baseline, sound, pairs)
    if measured:
        said += [*_agreement(summary.rows), *_missing(summary), *_doubt(summary)]
    return " ".join(said)


def _compared(baseline: str, sound: bool, pairs: list[tuple[Case, Comparison]]) -> list[str]:
    if not pairs:
        return [f"Too little was measured to compare anything with the baseline, {baseline}."]
    passed = [(case, one) for case, one in pairs if case.status == "ok"]
    winner = next((pair for pair in passed if pair[1].verdict == "FASTER"), None)
    tied: list[str] = []
    said = []
    if any(one.rounds_only for _, one in pairs):
        winner = None
        said.append("One launch cannot show how processes differ, so there is no verdict.")
    elif winner:
        tied = [case.id for case, one in passed if case is not winner[0] and _overlap(one.ratio, winner[1].ratio)]
        rivals = f", in a tie within noise with {_listed(tied)}" if tied else ""
        said.append(f"{winner[0].id} ran {_against(winner[1], baseline)}{rivals}.")
    elif not passed:
        said.append(f"Nothing that was measured beside the baseline, {baseline}, passed.")
    elif all(one.verdict == "SLOWER" for _, one in passed):
        but = "" if sound else f", but it did not pass; the fastest that passed was {passed[0][0].id}"
        said.append(f"The baseline, {baseline}, was the fastest{but}.")
    else:
        said.append(f"No backend was found to be faster than {baseline}.")
    others = [(case, one) for case, one in passed if case.id not in tied and not (winner and case is winner[0])]
    if others:
        said.append(f"{'; '.join(f'{case.id} ran {_against(one, baseline)}' for case, one in others)}.")
    ahead = winner[1].ratio.value if winner else 1.0
    for case, one in pairs:
        if case.status != "ok" and one.ratio.value < ahead:
            why = "its outputs drifted" if case.status == "drifted" else f"it ended as {_words(case.status)}"
            said.append(f"{case.id} ran {_against(one, baseline)}, but {why}: do not deploy it.")
    return said


def _against(comparison: Comparison, baseline: str) -> str:
    """Return how a case's speed relates to the baseline's, as the end of a sentence."""
    ratio = comparison.ratio
    if comparison.verdict == "SAME":
        return f"as fast as {baseline} to within 1 %"
    if ratio.value < 1:
        times = f"{1 / ratio.value:.2f}x faster than {baseline}"
        interval = f"{1 / ratio.high:.2f} to {1 / ratio.low:.2f}"
    else:
        times = f"{ratio.value:.2f}x slower than {baseline}"
        interval = f"{ratio.low:.2f} to {ratio.high:.2f}"
    if comparison.rounds_only:
        return f"{times}, undecided"
    doubt = ", undecided" if comparison.verdict == "UNDECIDED" else ""
    return f"{times} (99 % interval {interval}{doubt})"


def _agreement(rows: list[CaseSummary]) -> list[str]:
    drifted = [row.case.id for row in rows if row.case.status == "drifted"]
    judged = [row for row in rows if row.compute and row.case.drift]
    if drifted:
        return [f"The outputs of {_listed(drifted)} drifted from the reference."]
    if judged and all(drift.passed(row.case.drift) for row in judged):
        return ["All outputs agree with the reference."]
    return []


def _missing(summary: RunSummary) -> list[str]:
    asked = {part.strip() for text in summary.run.settings.asked for part in text.split(",")}
    quiet = _EXPECTED_GAPS if "all" in asked else ()
    gaps = [row.case for row in summary.rows if not row.compute and row.case.status not in quiet]
    named = [f"{case.id} ({_words(case.status)})" for case in gaps]
    return [f"Without a result: {_listed(named)}."] if named else []


def _doubt(summary: RunSummary) -> list[str]:
    if not (summary.suspicious and summary.control):
        return []
    ratio = summary.control.ratio
    return [
        f"Do not trust this run: two identical workers of {summary.baseline} differ, ratio {ratio.value:.3f} "
        f"(99 % interval {ratio.low:.3f} to {ratio.high:.3f}). Measure again on a quieter machine."
    ]


def _overlap(one: Estimate, other: Estimate) -> bool:
    return one.low <= other.high and other.low <= one.high


def _words(status: str) -> str:
    return status.replace("_", " ")


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
