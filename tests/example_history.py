"""Runs with raw samples for the history's tests: invented durations with a known spread, the rest as usual."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any  # keyword overrides of records, checked by msgspec's constructors

import msgspec
import numpy as np

from harness.modelspec import ModelSpec
from harness.records import (
    CONTROL,
    Case,
    Environment,
    Failure,
    Launch,
    ModelInfo,
    OutputDrift,
    Project,
    Run,
    Settings,
    Sitting,
    Window,
    Workload,
)

MS = 1_000_000
BOTH = {"eager": 10.0, "onnxruntime": 5.0}


def a_run(
    name: str = "2026-03-02T10-11-12-resnet50-ab12",
    cases: Mapping[str, float] | None = None,
    *,
    created: str = "2026-03-02T10:11:12+00:00",
    model: str = "resnet50",
    dims: Mapping[str, int] | None = None,
    baseline: str = "eager",
    versions: Mapping[str, str] | None = None,
    fields: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, Any] | None = None,
    peak_bytes: int = 600_000_000,
    machine: float = 1.0,
    launches: int = 5,
    rounds: int = 4,
    process_sd: float = 0.003,
    noise: float = 0.01,
    seed: int = 0,
    labels: list[str] | None = None,
    project: Project | None = None,
    **changes: Any,
) -> Run:
    """Return a run of one workload.

    Args:
        cases: Case id -> its true latency in milliseconds; `fields` overrides what an ordinary case record holds. A
            case with a failure is not measured.
        machine: Factor on all durations: the mood of the machine.
        process_sd: Relative spread between processes; `noise` that between windows of one.
        changes: Fields of the run itself.
    """
    random = np.random.default_rng(seed)
    asked = dict(dims or {"batch": 1})
    durations = BOTH if cases is None else cases
    known = {"eager": "2.13.0", "onnxruntime": "1.31.0"} | dict(versions or {})
    records = [_case(id_, known, dict((fields or {}).get(id_, {}))) for id_ in durations]
    measured = {one.id: durations[one.id] for one in records if one.failure is None or one.status == "drifted"}
    if baseline in measured:
        measured[baseline + CONTROL] = measured[baseline]
    workload = Workload(
        key=" ".join([model, *(f"{key}={size}" for key, size in asked.items() if (key, size) != ("batch", 1))]),
        model=ModelSpec(name=model),
        asked=asked,
        dims=asked,
        batch=asked.get("batch", 1),
        baseline=baseline,
        info=_info(),
        cases=records,
        launches=[
            _launch(random, index, measured, machine, rounds, process_sd, noise, peak_bytes)
            for index in range(launches)
        ],
    )
    run = Run(
        id=name,
        created=created,
        harness="0.2.0",
        state="finished",
        command=f"harness compare --model {model}",
        settings=_settings(model, list(durations), launches, rounds),
        environment=_environment(dict(environment or {})),
        workloads=[workload],
        wall_s=100.0,
        labels=labels or [],
        project=project,
    )
    return msgspec.structs.replace(run, **changes)


def failed(stage: str = "compile", message: str = "no converter for 'NonZero'") -> Failure:
    """Return a failure."""
    return Failure(stage=stage, message=message)


def _case(id_: str, versions: Mapping[str, str], fields: dict[str, Any]) -> Case:
    backend, _, options = id_.partition("#")[0].partition(":")
    pairs = (token.partition("=") for token in options.split(",") if token)
    version = versions.get(backend, "1.0")
    ordinary: dict[str, Any] = {
        "id": id_,
        "backend": backend,
        "options": {key: value for key, _, value in pairs},
        "device": "cpu",
        "precision": "fp32",
        "batch": 1,
        "threads": 2,
        "status": "ok",
        "version": version,
        "versions": {backend: version},
        "stages": {"import": 0.5, "compile": 2.0, "save": 0.1},
        "engine_bytes": 100_000_000,
        "peak_compile_bytes": 700_000_000,
        "drift": [_drift(1.2e-6)],
    }
    relative_l2 = fields.pop("relative_l2", None)
    if relative_l2 is not None:
        ordinary["drift"] = [_drift(relative_l2)]
    if "compile_s" in fields:
        ordinary["stages"] = ordinary["stages"] | {"compile": fields.pop("compile_s")}
    return Case(**(ordinary | fields))


def _drift(relative_l2: float) -> OutputDrift:
    return OutputDrift(output="y", input_set=0, elements=1000, relative_l2=relative_l2, cosine=1.0, passed=True)


def _launch(
    random: np.random.Generator,
    index: int,
    measured: Mapping[str, float],
    machine: float,
    rounds: int,
    process_sd: float,
    noise: float,
    peak_bytes: int,
) -> Launch:
    common = random.normal(0, noise, rounds)
    sittings = []
    for case, latency_ms in measured.items():
        level = math.log(latency_ms * MS * machine) + random.normal(0, process_sd)
        windows = [
            Window(
                round=number,
                position=0,
                start_ns=number * 1000 * MS,
                samples_ns=[int(math.exp(level + common[number] + random.normal(0, noise))) for _ in range(5)],
            )
            for number in range(rounds)
        ]
        sittings.append(
            Sitting(
                case=case,
                import_s=0.5,
                load_s=0.1,
                first_run_s=0.02,
                warm_up_ns=[],
                windows=windows,
                peak_bytes=peak_bytes,
            )
        )
    return Launch(index=index, wall_s=10.0, sittings=sittings)


def _info() -> ModelInfo:
    return ModelInfo(
        weights="seeded", weights_sha256="c0ffee", parameters=25_557_032, gflop=8.2, task="classification",
        artifact="9f2c4e6a8b0d1f3e5a7c", opset=18, inputs=["input float32[1,3,224,224]"], input_sets=4,
        deterministic=True, golden=True, export_s=4.3, export_cached=False,
    )  # fmt: skip


def _settings(model: str, cases: list[str], launches: int, rounds: int) -> Settings:
    return Settings(
        models=[model], cases=cases, asked=cases, seed=0, threads=2, launches=launches, rounds=rounds, slice_s=0.1,
        budget_s=180.0, timeout_s=900.0, memory_limit_bytes=16_000_000_000, quick=launches == 1,
    )  # fmt: skip


def _environment(fields: dict[str, Any]) -> Environment:
    ordinary: dict[str, Any] = {
        "cpu": "AMD EPYC 7543 32-Core Processor",
        "cores": 2,
        "logical_cores": 4,
        "memory_bytes": 16_700_000_000,
        "kernel": "Linux 6.1.0-18-amd64",
        "os": "Debian GNU/Linux 12",
        "python": "3.11.7",
        "governor": None,
        "load_average": 0.4,
        "gpus": [],
        "libraries": {"torch": "2.13.0", "onnxruntime": "1.31.0", "numpy": "2.4.1"},
        "git_commit": None,
        "hostname": "bench-1",
        "container": None,
        "advice": [],
    }
    return Environment(**(ordinary | fields))
