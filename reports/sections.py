"""The text around the table: what the run was, how to read it, how far to trust it, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.records import CONTROL, Case, Failure, OutputDrift, Run
from harness.summary import CaseSummary, RunSummary
from reports.formatting import (
    clean,
    clean_lines,
    duration,
    percent,
    ratio,
    scientific,
    shorten,
    significant,
    size,
    word,
)
from reports.table import NAME_CHARACTERS, OF_STATUS, Emphasis
from reports.values import worst

LOG_LINES = 8
REASON_CHARACTERS = 600


@dataclass(frozen=True, kw_only=True)
class Line:
    """One statement, with the name of what it is about."""

    label: str = ""
    text: str
    emphasis: Emphasis = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Statements that belong together."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A case, or a whole run, that went wrong and how to see it again."""

    subject: str
    status: str
    stage: str
    reason: str
    emphasis: Emphasis = "bad"
    hint: str = ""
    log: str = ""
    log_tail: tuple[str, ...] = ()
    reproduce: str = ""


def title(summary: RunSummary) -> str:
    """Return what was compared, on what, under which settings."""
    settings = summary.run.settings
    threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    return clean(f"{settings.model} on {settings.device}: {settings.precision}, batch {settings.batch}, {threads}")


def banners(summary: RunSummary) -> Iterator[Line]:
    """Yield what the reader must know before any number."""
    run = summary.run
    if run.state != "finished":
        what = "was interrupted" if run.state == "interrupted" else "has not finished"
        yield Line(label="INTERRUPTED", text=f"this run {what}; what follows is what it got to", emphasis="bad")
    if run.settings.quick:
        yield Line(
            label="QUICK",
            text="a quick run takes few samples: good for seeing that things work, not for choosing a backend",
            emphasis="bad",
        )
    if run.model and not run.model.deterministic:
        yield Line(
            label="NOT DETERMINISTIC",
            text="the reference gave different outputs when run twice; drift below includes its own difference",
            emphasis="bad",
        )
    if summary.suspicious:
        yield Line(
            label="SUSPICIOUS",
            text="two identical workers of the baseline differ; repeat on a quieter machine before believing this",
            emphasis="bad",
        )


def legend(summary: RunSummary) -> Iterator[str]:
    """Yield how to read the columns."""
    if not any(row.compute for row in summary.rows):
        return
    baseline = shorten(clean(summary.baseline or "the baseline"), NAME_CHARACTERS)
    yield (
        f"vs {baseline} = time over {baseline}'s time, below 1 is faster; [low, high] is its 99 % interval. FASTER and "
        "SLOWER need the interval clear of 1 and at least 1 % of effect, SAME needs it within 1 %, else UNDECIDED; "
        "(noisy) = the interval is wider than asked for."
    )
    yield (
        "p50, p95, p99, throughput and the ratio are of the boundary compute: inputs bound, execute and synchronize. "
        "host-to-host adds copying inputs in and outputs out."
    )
    yield (
        "compile is the whole way from the exported model to a session that can run, cold unless a note says "
        "otherwise; warm load is the same from the saved engine in a fresh process. engine = all that the backend "
        "saved, with the weights or without. Drift is of the output farthest from the reference. A dash = not "
        "measured, or too few samples for that percentile."
    )


def closing(summary: RunSummary) -> str:
    """Return the sentence that a person would say."""
    return clean(summary.closing)


def sections(summary: RunSummary) -> Iterator[Section]:
    """Yield the sections under the table; some may be empty."""
    run = summary.run
    cases = [row.case for row in summary.rows]
    yield Section(title="measurement", lines=tuple(_measurement(summary)))
    yield Section(title="reference", lines=tuple(_reference(run)))
    yield Section(title="environment", lines=tuple(_environment(run)))
    yield Section(title="machine advice", lines=tuple(Line(text=clean(text)) for text in run.environment.advice))
    yield Section(title="stages", lines=tuple(_stages(case) for case in cases if case.stages))
    yield Section(title="drift", lines=tuple(_drift(row.case, far) for row in summary.rows if (far := worst(row))))
    yield Section(title="facts", lines=tuple(line for case in cases for line in _facts(case, run)))
    yield Section(title="notes", lines=tuple(_notes(summary)))


def problems(summary: RunSummary) -> Iterator[Problem]:
    """Yield every failure: of the run, of its cases, and of single launches of a case."""
    run = summary.run
    if run.failure:
        yield _problem("the whole run", "failed", run.failure, run.command)
    for row in summary.rows:
        case = row.case
        if case.failure or case.status not in ("ok", "compiled"):
            yield _problem(case.id, case.status, case.failure or _unexplained(row), case.reproduce)
    commands = {row.case.id: row.case.reproduce for row in summary.rows}
    known = [row.case.failure for row in summary.rows]
    for launch in run.launches:
        for sitting in launch.sittings:
            if sitting.failure and sitting.failure not in known:
                reproduce = commands.get(sitting.case.removesuffix(CONTROL), "")
                yield _problem(sitting.case, f"failed in launch {launch.index + 1}", sitting.failure, reproduce)


def _problem(subject: str, status: str, failure: Failure, reproduce: str) -> Problem:
    return Problem(
        subject=clean(subject),
        status=clean(status),
        stage=clean(failure.stage),
        reason=shorten(clean(failure.message), REASON_CHARACTERS),
        emphasis=OF_STATUS.get(status, "bad"),
        hint=clean(failure.hint or ""),
        log=clean(failure.log or ""),
        log_tail=tuple(clean_lines(failure.log_tail, last=LOG_LINES)),
        reproduce=clean(reproduce),
    )


def _unexplained(row: CaseSummary) -> Failure:
    drift = worst(row)
    if row.case.status == "drifted" and drift:
        return Failure(stage="judge", message=f"{drift.output}, input set {drift.input_set}: {drift.reason}")
    return Failure(stage="-", message="no reason was recorded")


def _measurement(summary: RunSummary) -> Iterator[Line]:
    run, settings = summary.run, summary.run.settings
    if summary.noise_floor is not None:
        text = f"{percent(summary.noise_floor)}: the smallest difference that this run could have called"
        yield Line(label="noise floor", text=text)
    if summary.control:
        found = f"{clean(summary.baseline or 'baseline')} against itself {ratio(summary.control.ratio)}"
        found += " (noisy)" if summary.control.noisy else ""
        judged = "SUSPICIOUS, identical workers differ" if summary.suspicious else "no difference, as it should be"
        yield Line(label="A/A control", text=f"{found}: {judged}", emphasis="bad" if summary.suspicious else "")
    yield Line(label="sampling", text=_sampling(summary))
    sets = f", {_count(run.model.input_sets, 'input set', 'input sets')}" if run.model else ""
    yield Line(label="settings", text=f"threads {settings.threads}, batch {settings.batch}{sets}, boundary compute")
    yield Line(label="took", text=f"{duration(run.wall_s)}, of which measuring {duration(run.measure_s)}")


def _sampling(summary: RunSummary) -> str:
    run = summary.run
    if not any(row.compute for row in summary.rows):
        return "nothing was measured"
    launches: dict[int, set[int]] = {}
    for launch in run.launches:
        rounds = {window.round for sitting in launch.sittings for window in sitting.windows}
        launches.setdefault(launch.index, set()).update(rounds)
    taken = _span([len(rounds) for rounds in launches.values()])
    samples = _span([row.compute.samples for row in summary.rows if row.compute])
    cut = len({launch.index for launch in run.launches if not launch.complete})
    times = f"{_count(len(launches), 'launch', 'launches')}{f' ({cut} cut short)' if cut else ''} x {taken} rounds"
    return f"{times}, slices of {duration(run.settings.slice_s)}, {samples} samples a case"


def _reference(run: Run) -> Iterator[Line]:
    model = run.model
    if model is None:
        return
    exported = "from cache" if model.export_cached else f"in {duration(model.export_s)}"
    yield Line(
        label="model",
        text=clean(
            f"{model.name}, {significant(model.parameters / 1e6)} M parameters, {', '.join(model.inputs)}; "
            f"exported {exported}, opset {model.opset}, artifact {model.artifact[:12]}"
        ),
    )
    if model.weights == "seeded":
        text = f"seeded (seed {model.seed}), not trained: drift is numerical agreement with eager, not accuracy"
    else:
        text = f"{clean(model.weights)}: drift is distance from eager; accuracy needs labels"
    yield Line(label="weights", text=text)
    same = "bit-identical" if model.deterministic else "NOT identical"
    golden = "a float64 run is the golden value" if model.golden else "no float64 run, so float32 is the golden value"
    yield Line(
        label="determinism",
        text=f"eager run twice: {same}; {golden}",
        emphasis="" if model.deterministic else "bad",
    )


def _environment(run: Run) -> Iterator[Line]:
    machine = run.environment
    cores = f"{_count(machine.cores, 'core', 'cores')}, {machine.logical_cores} logical"
    yield Line(label="cpu", text=clean(f"{machine.cpu}, {cores}, governor {machine.governor or 'unknown'}"))
    load = significant(machine.load_average, 2)
    yield Line(label="memory", text=f"{size(machine.memory_bytes)}, load average {load}")
    for gpu in machine.gpus:
        yield Line(label="gpu", text=clean(", ".join(f"{key} {value}" for key, value in gpu.items())))
    container = f", in {machine.container}" if machine.container else ""
    yield Line(label="system", text=clean(f"{machine.os}, kernel {machine.kernel}, Python {machine.python}{container}"))
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(machine.libraries.items()))
    if libraries:
        yield Line(label="libraries", text=clean(libraries))
    commit = f", commit {machine.git_commit[:12]}" if machine.git_commit else ""
    yield Line(label="harness", text=clean(f"{run.harness}{commit}, run {run.id}, {run.created}"))
    yield Line(label="command", text=clean(run.command))


def _stages(case: Case) -> Line:
    times = {name: duration(seconds) for name, seconds in case.stages.items()}
    parts = [f"{name} {times.pop(name)}" for name in ("load", "tune", "build") if name in times]
    made = [f"{name.replace('_', ' ')} {times.pop(name)}" for name in ("import",) if name in times]
    if "compile" in times:
        made.append(f"compile {times.pop('compile')}" + (f" ({', '.join(parts)})" if parts else ""))
    fresh = [f"{name[5:].replace('_', ' ')} {times.pop(name)}" for name in list(times) if name.startswith("warm_")]
    made += [f"{name.replace('_', ' ')} {text}" for name, text in times.items()]
    text = ", ".join(made) + (f"; in a fresh process: {', '.join(fresh)}" if fresh else "")
    if case.peak_compile_bytes:
        text += f"; peak while compiling {size(case.peak_compile_bytes)}"
    return Line(label=clean(case.id), text=clean(text))


def _facts(case: Case, run: Run) -> Iterator[Line]:
    facts = [f"{name.replace('_', ' ')} {word(value)}" for name, value in case.facts.items()]
    if case.threads != run.settings.threads:
        facts.append(f"threads {case.threads}")
    if facts:
        yield Line(label=clean(case.id), text=clean(", ".join(facts)))


def _drift(case: Case, drift: OutputDrift) -> Line:
    passed = sum(one.passed for one in case.drift)
    parts = [f"{passed} of {len(case.drift)} outputs pass", f"worst {drift.output} of input set {drift.input_set}"]
    numbers: dict[str, float | None] = {
        "max abs": drift.max_abs,
        "RMSE": drift.rmse,
        "to golden": drift.rmse_golden,
        "limit": drift.rmse_limit,
    }
    parts += [f"{name} {scientific(value)}" for name, value in numbers.items() if value is not None]
    if drift.nan_count or drift.inf_count:
        parts.append(f"{drift.nan_count} NaN, {drift.inf_count} Inf of {drift.elements}")
    agreement = [one.top1_agreement for one in case.drift if one.top1_agreement is not None]
    if agreement:
        parts.append(f"top-1 agreement at least {percent(min(agreement))}")
    emphasis: Emphasis = "" if passed == len(case.drift) else "bad"
    return Line(label=clean(case.id), text=clean(", ".join(parts)), emphasis=emphasis)


def _notes(summary: RunSummary) -> Iterator[Line]:
    for note in summary.run.notes:
        yield Line(text=clean(note))
    for row in summary.rows:
        for note in row.case.notes:
            yield Line(label=clean(row.case.id), text=clean(note))
        if row.marked_windows:
            yield Line(label=clean(row.case.id), text=_disturbed(row, summary.run))


def _disturbed(row: CaseSummary, run: Run) -> str:
    marks = {
        mark
        for launch in run.launches
        for sitting in launch.sittings
        if sitting.case.removesuffix(CONTROL) == row.case.id
        for window in sitting.windows
        for mark in window.marks
    }
    why = f" ({', '.join(sorted(clean(mark) for mark in marks))})" if marks else ""
    return f"{row.marked_windows} of {row.windows} windows were disturbed{why}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _span(numbers: list[int]) -> str:
    if not numbers:
        return "0"
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"
