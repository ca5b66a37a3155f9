"""What a person would say of a workload and of a run: the last sentences of a report. Pure functions of summaries."""

from __future__ import annotations

from collections.abc import Sequence

from harness import drift
from harness.advice import Wish
from harness.recommend import recommend
from harness.records import Case
from harness.summary import CaseSummary, Comparison, Estimate, RunSummary, Standing, Suite, WorkloadSummary
from harness.tradeoffs import break_even, inverse

_EXPECTED_GAPS = ("unavailable", "unsupported", "compiled")
"""Statuses without a number that are no news where all backends were asked for."""


def of_run(summary: RunSummary) -> str:
    """Return what can be said of all workloads together; of a single one, what is said of it."""
    workloads = summary.workloads
    measured = [one for one in workloads if _measured(one)]
    interrupted = summary.run.state == "interrupted"
    said = ["The run was interrupted; this is what had been measured by then."] if interrupted else []
    if not workloads:
        said.append("No case was measured.")
    elif len(workloads) == 1:
        said.append(workloads[0].closing)
    elif all(one.workload.target for one in workloads):
        return " ".join([*said, *(f"{one.workload.model.label}: {one.closing}" for one in workloads)])
    elif summary.suite:
        said += _of_suite(summary.suite, len(workloads))
        said += _all_outputs(measured)
        said += _one_for_all(summary)
    elif len(measured) == 1:
        said += [f"Only {measured[0].workload.key} of {len(workloads)} workloads was measured.", measured[0].closing]
    else:
        said.append("The workloads have no baseline in common." if measured else "No case was measured.")
    if len(workloads) > 1:
        gone = [_gone(one) for one in workloads if not _measured(one)]
        said += [f"Without a result: {listed(gone)}."] if gone else []
        if doubtful := [one.workload.key for one in measured if one.suspicious and len(measured) > 1]:
            said.append(f"Do not trust {listed(doubtful)}: two identical workers of the baseline differ there.")
    return " ".join(said)


def of_workload(summary: WorkloadSummary, asked: Sequence[str]) -> str:
    """Return what a person would say of one workload, in a few sentences.

    Two candidates count as tied when their intervals against the baseline overlap: intervals that do not overlap at
    99 % differ for sure, those that do may still differ. A case whose outputs drifted is never the recommendation.

    Args:
        summary: Of the workload, its own closing still empty.
        asked: The values of `--backends`.
    """
    workload = summary.workload
    measured = [row for row in summary.rows if row.compute]
    said: list[str] = []
    if workload.target and not workload.failure:
        said += _built(workload.target, summary.rows)
    elif workload.failure and not measured:
        said.append(f"Nothing can be compared: {workload.failure.message.rstrip('.')}.")
    elif not measured:
        reasons = [f"{row.case.id} ({words(row.case.status)})" for row in summary.rows]
        said.append(f"No case was measured: {listed(reasons)}." if reasons else "No case was measured.")
    elif summary.baseline is None:
        said.append(f"The baseline {workload.baseline} has no samples, so nothing is compared.")
    elif len(measured) == 1:
        said.append(f"Only the baseline, {summary.baseline}, was measured; there is nothing to compare it with.")
    else:
        sound = all(row.case.status == "ok" for row in measured if row.is_baseline)
        pairs = [(row.case, row.comparison) for row in measured if row.comparison]
        said += [*_compared(summary.baseline, sound, pairs), *_payback(summary), *_deploy(summary)]
    if measured:
        said += [*_outputs(summary.rows, summary.seeded), *_missing(summary, asked), *_doubt(summary)]
    return " ".join(said)


def _built(target: str, rows: Sequence[CaseSummary]) -> list[str]:
    """Return what was compiled for a device that is not there, and what could not be."""
    built = [row.case for row in rows if row.case.status == "compiled"]
    others = [row.case for row in rows if row.case.status != "compiled"]
    said = [
        f"For {target}, {case.id} took {case.stages['compile']:.1f} s"
        + (f" and made {case.engine_bytes / 1e6:.1f} MB." if case.engine_bytes else ".")
        for case in built
    ] or [f"Nothing was compiled for {target}."]
    left = [f"{case.id} ({words(case.status)})" for case in others]
    return [*said, f"Not compiled: {listed(left)}."] if left else said


def words(status: str) -> str:
    """Return a status as words of running text."""
    return status.replace("_", " ")


def listed(items: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _measured(summary: WorkloadSummary) -> bool:
    return any(row.compute for row in summary.rows)


def _gone(summary: WorkloadSummary) -> str:
    key, failure = summary.workload.key, summary.workload.failure
    if failure:
        statuses = {row.case.status for row in summary.rows}
        return f"{key} ({words(statuses.pop()) if len(statuses) == 1 else 'failed'})"
    return f"{key} (no case was measured)"


def _of_suite(suite: Suite, workloads: int) -> list[str]:
    count = len(suite.workloads)
    over = f"all {count} workloads" if count == workloads else f"the {count} workloads that can be compared"
    complete = [(row, row.ratio) for row in suite.rows if row.ratio and row.over == count and not row.is_baseline]
    said = []
    if not complete:
        said.append(f"No case but {suite.baseline} is ok in {over}, so no means can be compared.")
    elif suite.rounds_only:
        said.append("One launch cannot show how processes differ, so there is no verdict.")
        said.append(f"Over {over}, on geometric mean: {'; '.join(_mean(row, one, suite) for row, one in complete)}.")
    else:
        said += _ranked(complete, suite, over)
    partial = [row for row in suite.rows if row.ok < count and row.ok and not row.is_baseline]
    if partial:
        named = [f"{row.case} ({row.ok} of {count})" for row in partial]
        said.append(f"Not ok in all of them: {listed(named)}; their means are over fewer workloads.")
    return said


def _ranked(complete: list[tuple[Standing, Estimate]], suite: Suite, over: str) -> list[str]:
    (head, ratio), *others = complete
    if ratio.high < 1:
        tied = [row.case for row, other in others if _overlap(other, ratio)]
        rivals = f", in a tie within noise with {listed(tied)}" if tied else ""
        won = f", and was the fastest for sure in {head.wins}" if head.wins else ""
        said = [f"Over {over}, {_mean(head, ratio, suite)} on geometric mean{rivals}{won}."]
    else:
        said = [f"Over {over}, nothing was found to be faster than {suite.baseline} on geometric mean."]
        others = complete
    if others:
        said.append(f"{'; '.join(_mean(row, other, suite) for row, other in others)}.")
    return said


def _mean(row: Standing, ratio: Estimate, suite: Suite) -> str:
    return f"{row.case} ran {_times(ratio, suite.baseline)}{'' if suite.rounds_only else f' ({_interval(ratio)})'}"


def _one_for_all(summary: RunSummary) -> list[str]:
    """Return which one to deploy for all workloads, as `harness recommend` would say without a wish.

    With one launch or after an interruption there are no verdicts, so there is nothing to recommend.
    """
    found = summary.overall
    disturbed = any(row.disturbed for one in summary.workloads for row in one.rows)
    if found is None or disturbed or not {"one launch", "interrupted"}.isdisjoint(found.doubts):
        return []
    every = found.workloads == len(summary.workloads)
    everywhere = f"all {found.workloads} workloads" if every else f"the {found.workloads} workloads that were measured"
    if found.case is None:
        return [f"No backend is ok in {everywhere}, so there is none to deploy for all of them."]
    rivals = sum(count == found.workloads for count in found.meets.values())
    if rivals == 1:
        why = "no other is ok in all of them"
    elif found.tied:
        why = f"on geometric mean it ties within noise with {listed(found.tied)}, and it compiles fastest"
    else:
        why = f"on geometric mean the fastest of the {rivals} that are ok in all of them"
    sure = "" if not found.doubts else " By estimates only, since some workloads are in doubt."
    return [f"For {everywhere} together, deploy {found.case}: {why}.{sure}"]


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
        rivals = f", in a tie within noise with {listed(tied)}" if tied else ""
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
            why = "its outputs drifted" if case.status == "drifted" else f"it ended as {words(case.status)}"
            said.append(f"{case.id} ran {_against(one, baseline)}, but {why}: do not deploy it.")
    return said


def _payback(summary: WorkloadSummary) -> list[str]:
    """Return how many inferences it takes until the winner has made up for compiling longer than the baseline."""
    winner = next((row for row in summary.rows if row.case.status == "ok" and _is_faster(row.comparison)), None)
    baseline = next((row for row in summary.rows if row.is_baseline), None)
    if winner is None or winner.comparison is None or baseline is None:
        return []
    found = break_even(winner, baseline, inverse(winner.comparison))
    if found is None or found.kind != "after" or found.high is None:
        return []
    return [
        f"What {winner.case.id} takes longer to compile than {summary.baseline} pays for itself after "
        f"{found.inferences:,} inferences ({found.low:,} to {found.high:,})."
    ]


def _deploy(summary: WorkloadSummary) -> list[str]:
    """Return what `harness recommend` would say without a wish, where the run is sure enough of it."""
    found = recommend(summary, Wish())
    if found.case is None or not found.sure or any(row.disturbed for row in summary.rows):
        return []
    chosen = next(row.case for row in summary.rows if row.case.id == found.case)
    fastest = ", of those that tie the one that compiles fastest" if found.tied and "compile" in chosen.stages else ""
    return [f"Deploy {found.case}{fastest}."]


def _is_faster(comparison: Comparison | None) -> bool:
    return comparison is not None and comparison.verdict == "FASTER" and not comparison.rounds_only


def _against(comparison: Comparison, baseline: str) -> str:
    """Return how a case's speed relates to the baseline's, as the end of a sentence."""
    ratio = comparison.ratio
    if comparison.verdict == "SAME":
        return f"as fast as {baseline} to within 1 %"
    times = _times(ratio, baseline)
    if comparison.rounds_only:
        return f"{times}, undecided"
    doubt = ", undecided" if comparison.verdict == "UNDECIDED" else ""
    return f"{times} ({_interval(ratio)}{doubt})"


def _times(ratio: Estimate, baseline: str) -> str:
    if ratio.value < 1:
        return f"{1 / ratio.value:.2f}x faster than {baseline}"
    return f"{ratio.value:.2f}x slower than {baseline}"


def _interval(ratio: Estimate) -> str:
    if ratio.value < 1:
        return f"99 % interval {1 / ratio.high:.2f} to {1 / ratio.low:.2f}"
    return f"99 % interval {ratio.low:.2f} to {ratio.high:.2f}"


def _outputs(rows: list[CaseSummary], seeded: bool) -> list[str]:
    drifted = list(dict.fromkeys(row.case.id for row in rows if row.case.status == "drifted"))
    judged = [row for row in rows if row.compute and row.case.drift]
    if drifted:
        return [f"The outputs of {listed(drifted)} {_differ(seeded)} the reference."]
    if judged and all(drift.passed(row.case.drift) for row in judged):
        return ["All outputs agree with the reference."]
    return []


def _all_outputs(measured: Sequence[WorkloadSummary]) -> list[str]:
    where: dict[str, list[str]] = {}
    for one in measured:
        for row in one.rows:
            if row.case.status == "drifted":
                where.setdefault(row.case.id, []).append(one.workload.key)
    if where:
        named = [f"{case} ({', '.join(keys)})" for case, keys in where.items()]
        return [f"Outputs {_differ(all(one.seeded for one in measured))} the reference: {'; '.join(named)}."]
    return _outputs([row for one in measured for row in one.rows], seeded=True)


def _differ(seeded: bool) -> str:
    return "do not agree with" if seeded else "drifted from"


def _missing(summary: WorkloadSummary, asked: Sequence[str]) -> list[str]:
    names = {part.strip() for text in asked for part in text.split(",")}
    quiet = _EXPECTED_GAPS if "all" in names else ()
    gaps = [row.case for row in summary.rows if not row.compute and row.case.status not in quiet]
    named = [f"{case.id} ({words(case.status)})" for case in gaps]
    return [f"Without a result: {listed(named)}."] if named else []


def _doubt(summary: WorkloadSummary) -> list[str]:
    said = []
    if disturbed := [row.case.id for row in summary.rows if row.disturbed]:
        said.append(
            f"Do not trust this run: the GPU was disturbed in every window of {listed(disturbed)}, by what the notes "
            "say. Measure again on a GPU that is left alone and can hold its clocks."
        )
    if summary.suspicious and summary.control:
        ratio = summary.control.ratio
        said.append(
            f"Do not trust this run: two identical workers of {summary.baseline} differ, ratio {ratio.value:.3f} "
            f"(99 % interval {ratio.low:.3f} to {ratio.high:.3f}). Measure again on a quieter machine."
        )
    return said


def _overlap(one: Estimate, other: Estimate) -> bool:
    return one.low <= other.high and other.low <= one.high
