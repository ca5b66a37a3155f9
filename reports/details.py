"""The text under one workload's table: how far to trust it, what the model was, what its cases did, what went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from harness.modelspec import BATCH
from harness.records import (
    CONTROL,
    REUSED,
    Accuracy,
    Build,
    Case,
    Ceiling,
    DeviceMemory,
    Failure,
    ModelInfo,
    OutputDrift,
    Settings,
    Workload,
)
from harness.summary import CaseSummary, GpuSummary, RunSummary, WorkloadSummary
from reports.blocks import Line, Problem, Section
from reports.formatting import (
    agreed,
    clean,
    clean_lines,
    counted,
    duration,
    listed,
    percent,
    points,
    ratio,
    scientific,
    shorten,
    significant,
    size,
    word,
)
from reports.table import OF_STATUS, Emphasis, distance_word
from reports.values import worst

LOG_LINES = 8
REASON_CHARACTERS = 600
TYPICAL_AT_LEAST = 3
"""Input sets from which on their median says more than the worst of them."""
HASH_CHARACTERS = 12
WEIGHTS_CHARACTERS = 40


def heading(workload: WorkloadSummary, summary: RunSummary) -> str:
    """Return what was compared, on what, under which settings."""
    settings, of = summary.run.settings, workload.workload
    dims = {BATCH: of.batch} | of.dims
    shape = [f"{name} {extent}" for name, extent in dims.items()]
    threads = counted(settings.threads, "thread", "threads")
    weights = _weights(workload, settings)
    precisions = list(dict.fromkeys(case.precision for case in of.cases)) or list(settings.precisions)
    parts = [*precisions, *shape, threads, *([weights] if weights else [])]
    return clean(f"{of.model.label} {place(of)}: {', '.join(parts)}")


def place(workload: Workload) -> str:
    """Return where a workload was measured, or what it was compiled for."""
    return f"for {workload.target}" if workload.target else f"on {workload.device}"


def banners(workload: WorkloadSummary) -> Iterator[Line]:
    """Yield what the reader must know before any number of this workload."""
    info = workload.workload.info
    if info and not info.deterministic:
        yield Line(
            label="NOT DETERMINISTIC",
            text=f"the reference gave different outputs when run twice; {_distance(workload)} below includes its own "
            "difference",
            emphasis="bad",
        )
    if workload.suspicious:
        yield Line(
            label="SUSPICIOUS",
            text="two identical workers of the baseline differ; repeat on a quieter machine before believing this",
            emphasis="bad",
        )


def measured(workload: WorkloadSummary, summary: RunSummary) -> Iterator[Line]:
    """Yield how well this workload was measured."""
    if workload.noise_floor is not None:
        text = f"{percent(workload.noise_floor)}: the smallest difference that this run could have called"
        yield Line(label="noise floor", text=text)
    if workload.control:
        found = f"{clean(workload.baseline or 'baseline')} against itself {ratio(workload.control.ratio)}"
        found += " (noisy)" if workload.control.noisy else ""
        judged = "no difference, as it should be"
        if workload.suspicious:
            judged = "SUSPICIOUS, identical workers differ"
        elif workload.control.rounds_only:
            judged = "one launch cannot judge it"
        yield Line(label="A/A control", text=f"{found}: {judged}", emphasis="bad" if workload.suspicious else "")
    yield Line(label="sampling", text=_sampling(workload, summary.run.settings))
    yield from _limits(workload, summary.run.ceilings)
    for gpu in workload.gpus:
        yield Line(label=clean(gpu.device), text=_gpu(gpu))
        if gpu.dropped_windows:
            text = f"{gpu.dropped_windows} of {gpu.windows} windows on {gpu.device}: {_counts(gpu.dropped)}"
            yield Line(label="dropped", text=clean(text), emphasis="bad")


def _limits(workload: WorkloadSummary, ceilings: Sequence[Ceiling]) -> Iterator[Line]:
    """Yield what the devices can do at most, where a case is held against it."""
    held = {row.case.device for row in workload.rows if row.limit_share is not None}
    for one in ceilings:
        if one.device in held:
            rates = [f"{precision} {significant(rate / 1e9)} GFLOP/s" for precision, rate in one.matrix.items()]
            far = f"{significant(one.memory[-1][1] / 1e9)} GB/s from memory"
            where = f"{one.device}, {counted(one.threads, 'thread', 'threads')}" if one.threads else one.device
            yield Line(label="limits", text=clean(f"{where}: {', '.join(rates)}, {far}; {one.source}"))


def reference(workload: WorkloadSummary, settings: Settings) -> Iterator[Line]:
    """Yield what was compared on, once it is known."""
    info, spec = workload.workload.info, workload.workload.model
    if info is None:
        return
    exported = "from cache" if info.export_cached else f"in {duration(info.export_s)}"
    work = f", {significant(info.gflop)} GFLOP" if info.gflop is not None else ""
    text = f"{spec.label}, {significant(info.parameters / 1e6)} M parameters{work}, {', '.join(info.inputs)}; "
    text += f"exported {exported}, opset {info.opset}, artifact {info.artifact[:HASH_CHARACTERS]}"
    yield Line(label="model", text=clean(text))
    if spec.text != spec.label:
        yield Line(label="from", text=clean(spec.text))
    yield Line(label="weights", text=_provenance(workload, info, settings))
    same = "bit-identical" if info.deterministic else "NOT identical"
    golden = "a float64 run is the golden value" if info.golden else "no float64 run, so float32 is the golden value"
    yield Line(
        label="determinism",
        text=clean(f"{info.reference} run twice: {same}; {golden}"),
        emphasis="" if info.deterministic else "bad",
    )


def sections(workload: WorkloadSummary, settings: Settings, level: int) -> Iterator[Section]:
    """Yield what the cases of a workload did; some may be empty."""
    cases = [row.case for row in workload.rows]
    drifts = tuple(_drift(row.case, far) for row in workload.rows if (far := worst(row)))
    yield Section(title="stages", lines=tuple(_stages(case) for case in cases if case.stages), level=level)
    yield Section(title=_distance(workload), lines=drifts, level=level)
    accuracies = tuple(_accuracy(case, case.accuracy) for case in cases if case.accuracy)
    yield Section(title="accuracy", lines=accuracies, level=level)
    memory = tuple(_device_memory(row.case, row.device_memory) for row in workload.rows if row.device_memory)
    yield Section(title="device memory", lines=memory, level=level)
    facts = tuple(line for row in workload.rows for line in _facts(row, settings))
    yield Section(title="facts", lines=facts, level=level)


def notes(workload: WorkloadSummary) -> Iterator[Line]:
    """Yield what is worth knowing about a workload and its cases."""
    of = workload.workload
    if of.info and of.info.export_cached:
        yield Line(text="the export is that of an earlier run: same model, weights, shape and opset")
    if reused := [row.case for row in workload.rows if REUSED in row.case.facts]:
        engines = listed([f"{clean(case.id)} (compiled {word(case.facts[REUSED])})" for case in reused])
        yield Line(
            text=f"compile times are of an earlier run, whose engines were reused: {engines}; --cold compiles anew"
        )
    for note in of.notes:
        yield Line(text=clean(note))
    for row in workload.rows:
        for caution in row.cautions:
            yield Line(label=clean(row.case.id), text=clean(caution))
        for note in row.case.notes:
            yield Line(label=clean(row.case.id), text=clean(note))
        if row.marked_windows:
            yield Line(label=clean(row.case.id), text=_disturbed(row, workload))
        if row.disturbed or row.dropped_windows:
            yield Line(label=clean(row.case.id), text=_dropped(row), emphasis="bad")


def problems(workload: WorkloadSummary, summary: RunSummary) -> Iterator[Problem]:
    """Yield every failure: of the workload, once for all of its cases; of its cases; of single launches of a case."""
    of = workload.workload
    if of.failure:
        statuses = {row.case.status for row in workload.rows if _same(row.case.failure, of.failure)}
        subject = f"all {len(workload.rows)} cases" if len(workload.rows) > 1 else of.key
        status = statuses.pop() if len(statuses) == 1 else "failed"
        yield _problem(subject, status, of.failure, summary.run.command)
    for row in workload.rows:
        case = row.case
        if of.failure and _same(case.failure, of.failure):
            continue
        if case.failure or case.status not in ("ok", "compiled"):
            yield _problem(case.id, case.status, case.failure or _unexplained(row), case.reproduce)
    commands = {row.case.id: row.case.reproduce for row in workload.rows}
    known = [row.case.failure for row in workload.rows]
    for launch in of.launches:
        for sitting in launch.sittings:
            if sitting.failure and sitting.failure not in known:
                reproduce = commands.get(sitting.case.removesuffix(CONTROL), "")
                yield _problem(sitting.case, f"failed in launch {launch.index + 1}", sitting.failure, reproduce)


def _weights(workload: WorkloadSummary, settings: Settings) -> str:
    if workload.seeded:
        return "seeded weights"
    of = workload.workload
    asked = settings.weights or ("own" if of.model.kind != "reference" else "")
    if asked in ("pretrained", "own"):
        return f"{asked} weights"
    where = of.info.weights if of.info else asked.rpartition("/")[2]
    return f"weights {shorten(where, WEIGHTS_CHARACTERS)}" if where else ""


def _distance(workload: WorkloadSummary) -> str:
    word_ = distance_word(workload)
    return f"numerical {word_}" if workload.seeded else word_


def _provenance(workload: WorkloadSummary, info: ModelInfo, settings: Settings) -> str:
    digest = f", sha256 {info.weights_sha256[:HASH_CHARACTERS]}" if info.weights_sha256 else ""
    if workload.seeded:
        agreement = f"not trained: numerical agreement with {info.reference}, not accuracy"
        text = f"seeded (seed {settings.seed}){digest}, {agreement}"
    else:
        label = "the model's own" if info.weights == "own" else info.weights
        text = f"{label}{digest}: drift is distance from {info.reference}; accuracy needs labels"
    return clean(text)


def _same(one: Failure | None, other: Failure) -> bool:
    return one is not None and (one.stage, one.message) == (other.stage, other.message)


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


def _sampling(workload: WorkloadSummary, settings: Settings) -> str:
    of = workload.workload
    if not any(row.compute for row in workload.rows):
        return "nothing was measured"
    launches: dict[int, set[int]] = {}
    for launch in of.launches:
        rounds = {window.round for sitting in launch.sittings for window in sitting.windows}
        launches.setdefault(launch.index, set()).update(rounds)
    taken = _range([len(rounds) for rounds in launches.values()])
    samples = _range([row.compute.samples for row in workload.rows if row.compute])
    cut = len({launch.index for launch in of.launches if not launch.complete})
    times = f"{counted(len(launches), 'launch', 'launches')}{f' ({cut} cut short)' if cut else ''} x {taken} rounds"
    return f"{times}, slices of {duration(settings.slice_s)}, {samples} samples a case"


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


def _facts(row: CaseSummary, settings: Settings) -> Iterator[Line]:
    case = row.case
    facts = [f"{name.replace('_', ' ')} {word(value)}" for name, value in case.facts.items() if name != REUSED]
    if case.threads != settings.threads:
        facts.append(f"threads {case.threads}")
    if case.placement is not None and set(case.placement) != {"cpu"}:
        facts.append("nodes " + ", ".join(f"{count} on {where}" for where, count in case.placement.items()))
    if case.builds:
        facts.append(_builds(case.builds))
    if row.package_energy_per_inference_j is not None:
        energy = significant(row.package_energy_per_inference_j * 1e3)
        facts.append(f"energy of the whole processor {energy} mJ an inference")
    if facts:
        yield Line(label=clean(case.id), text=clean(", ".join(facts)))


def _builds(builds: list[Build]) -> str:
    took = [build.stages["compile"] for build in builds]
    text = f"{len(builds)} builds, compiled in {duration(min(took))} to {duration(max(took))}"
    sizes = {build.engine_bytes for build in builds if build.engine_bytes is not None}
    if len(sizes) > 1:
        text += f", engines of {size(min(sizes))} to {size(max(sizes))}"
    return text


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
    parts += _typical(case, drift)
    parts += [f"{agreed(one)} over {one.items}" for one in case.agreement]
    agreement = [one.top1_agreement for one in case.drift if one.top1_agreement is not None]
    if agreement and not case.agreement:
        parts.append(f"top-1 agreement at least {percent(min(agreement))}")
    emphasis: Emphasis = "" if passed == len(case.drift) else "bad"
    return Line(label=clean(case.id), text=clean(", ".join(parts)), emphasis=emphasis)


def _typical(case: Case, drift: OutputDrift) -> list[str]:
    """Return the median over input sets beside the worst of them, where there are enough to have a middle."""
    same = [one.relative_l2 for one in case.drift if one.output == drift.output and one.relative_l2 is not None]
    if len(same) < TYPICAL_AT_LEAST or drift.relative_l2 is None:
        return []
    return [f"rel. L2 {scientific(drift.relative_l2)}, typically {scientific(median(same))}"]


def _accuracy(case: Case, accuracy: Accuracy) -> Line:
    if accuracy.failure:
        text = f"no answers on {accuracy.dataset}: {accuracy.failure.message.splitlines()[0]}"
        return Line(label=clean(case.id), text=clean(shorten(text, REASON_CHARACTERS)), emphasis="bad")
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in accuracy.metrics.items())
    of = f" of {accuracy.of}" if accuracy.of != accuracy.samples else ""
    text = f"{accuracy.dataset}: {metrics} over {accuracy.samples}{of} samples"
    paired = accuracy.paired
    if paired is None:
        return Line(label=clean(case.id), text=clean(text))
    test = f", p {significant(paired.p, 2)}" if paired.p is not None else ""
    judged = "more than noise" if paired.decided else "within noise"
    text += f"; {paired.metric} against {paired.against} {points(paired)} points{test}: {judged} ({paired.method})"
    return Line(label=clean(case.id), text=clean(text), emphasis="bad" if paired.decided and paired.low < 0 else "")


def _disturbed(row: CaseSummary, workload: WorkloadSummary) -> str:
    marks = {
        mark
        for launch in workload.workload.launches
        for sitting in launch.sittings
        if sitting.case.removesuffix(CONTROL) == row.case.id
        for window in sitting.windows
        for mark in window.marks
    }
    why = f" ({', '.join(sorted(clean(mark) for mark in marks))})" if marks else ""
    return f"{row.marked_windows} of {row.windows} windows were disturbed{why}"


def _gpu(gpu: GpuSummary) -> str:
    parts = [
        f"SM {_range([gpu.sm_mhz_low, gpu.sm_mhz_high])} MHz" if gpu.sm_mhz_low and gpu.sm_mhz_high else "",
        f"memory {gpu.memory_mhz:.0f} MHz" if gpu.memory_mhz else "",
        f"at most {gpu.temperature_c} °C" if gpu.temperature_c is not None else "",
        f"{significant(gpu.power_w)} W on average" if gpu.power_w is not None else "",
        f"P{gpu.p_state}" if gpu.p_state is not None else "",
        f"PCIe {gpu.pcie_generation}.0 x{gpu.pcie_width}" if gpu.pcie_generation and gpu.pcie_width else "",
    ]
    return ", ".join(part for part in parts if part) or "the driver says nothing of it"


def _dropped(row: CaseSummary) -> str:
    if row.disturbed:
        return f"no window was left without a disturbance of the GPU, so all count: {_counts(row.disturbed)}"
    text = f"{row.dropped_windows} of {row.windows} windows were dropped: {_counts(row.dropped)}"
    # Which windows are left is then no accident: they are those in which the card happened to be cool, or alone.
    return f"{text}; it may be slower under lasting load" if 2 * row.dropped_windows > row.windows else text


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{clean(reason)} ({count})" for reason, count in sorted(reasons.items()))


def _device_memory(case: Case, memory: DeviceMemory) -> Line:
    parts = [f"{size(memory.before_load_bytes)} before loading"] if memory.before_load_bytes else []
    parts.append(f"{size(memory.loaded_bytes)} when loaded")
    parts.append(f"{size(memory.ran_bytes)} after the first run")
    parts.append(f"peak {size(memory.peak_bytes)}")
    how = "" if memory.by == "process" else " (by what was in use on the card: its driver does not list this process)"
    return Line(label=clean(case.id), text=", ".join(parts) + how)


def _range(numbers: list[int]) -> str:
    if not numbers:
        return "0"
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"
