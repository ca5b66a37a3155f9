"""The record of a case before anything has happened to it, and the command that runs it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from harness import environment, registry
from harness.conversion import Calibration
from harness.export import DEFAULT_OPSET, INPUT_SETS
from harness.modelspec import BATCH
from harness.plan import FP32, Variant, chosen_for
from harness.records import Case, Settings, Workload

DEFAULT_TIMEOUT_S = 900.0
"""Of one step of one case: longer than any compiler here takes for a model of ordinary size."""

DEFAULT_SAMPLES = 1000


def blank_case(settings: Settings, workload: Workload, variant: Variant) -> Case:
    """Return the record of a case that nothing has happened to yet."""
    supported = registry.backend(variant.backend).capabilities.devices
    # Where the user named no device, a backend that knows another kind only runs there, and a note says so.
    own = workload.device if settings.device_chosen else _device(supported, workload.device)
    chosen = variant.parsed()
    return Case(
        id=variant.id,
        backend=variant.backend,
        release=variant.release,
        options=variant.options,
        device=own,
        target=workload.target,
        precision=chosen.precision or FP32,
        batch=workload.batch,
        threads=chosen.threads or settings.threads,
        status="interrupted",
        reproduce=reproduce(settings, workload, variant),
    )


def reproduce(settings: Settings, workload: Workload, variant: Variant) -> str:
    """Return the command that runs one case again."""
    words = ["harness", "compare", "--model", workload.model.text, "--backends", variant.id.partition("#")[0]]
    defaults: Mapping[str, int] = {BATCH: 1}
    if workload.model.kind == "reference":
        defaults = registry.model_class(workload.model.name).dims
    sizes = {name: [size] for name, size in workload.asked.items()}
    if variant.options.get("dynamic"):  # its engine is for the whole sweep
        sizes |= {name: several for name, several in settings.dims.items() if name in sizes}
    for name, several in sizes.items():
        if several != [defaults.get(name)]:
            text = ",".join(map(str, several))
            words += ["--batch", text] if name == BATCH else ["--dim", f"{name}={text}"]
    if workload.model.kind != "reference":
        for name, shape in settings.shapes.items():
            words += ["--shape", f"{name}={'x'.join(map(str, shape))}"]
    words += ["--weights", settings.weights] if settings.weights else []
    words += ["--inputs", settings.inputs] if settings.inputs else []
    words += ["--cpus", settings.cpus] if settings.cpus else []
    if (python := chosen_for(variant, settings.pythons)) is not None:
        words += ["--python", f"{variant.item}={python}"]
    words += ["--calibration", settings.calibration] if settings.calibration else []
    words += ["--dataset", settings.dataset] if settings.dataset else []
    if settings.dataset and settings.max_samples != DEFAULT_SAMPLES:
        words += ["--max-samples", str(settings.max_samples)]
    if settings.calibration_method != Calibration().method:
        words += ["--calibration-method", settings.calibration_method]
    if workload.target:
        words += ["--target", workload.target]
    elif settings.device_chosen:
        words += ["--device", workload.device]
    for flag, value, default in (
        ("--calibration-samples", settings.calibration_samples, Calibration().samples),
        ("--builds", settings.builds, 1),
        ("--input-sets", settings.input_sets, INPUT_SETS),
        ("--seed", settings.seed, 0),
        # While pinned workers run, this process is elsewhere, and what it may use says nothing of them.
        ("--threads", settings.threads, None if settings.cpus else environment.default_threads()),
        ("--opset", settings.opset, DEFAULT_OPSET),
        ("--timeout", settings.timeout_s, DEFAULT_TIMEOUT_S),
        ("--memory-limit", settings.memory_limit_bytes / 2**30, environment.default_memory_limit() / 2**30),
    ):
        if value != default:
            words += [flag, str(int(value) if float(value).is_integer() else value)]
    return shlex.join(words)


def _device(supported: tuple[str, ...], wanted: str) -> str:
    if wanted.partition(":")[0] in supported:
        return wanted
    return supported[0] if supported[0] == "cpu" else f"{supported[0]}:0"
