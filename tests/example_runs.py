"""Example runs written by hand: what the golden texts of the reports are drawn from.

Numbers are invented but of plausible size. Nothing here is computed by the code under test.
"""

from __future__ import annotations

from typing import Any  # keyword overrides of records, checked by msgspec's constructors

import msgspec

from harness.modelspec import ModelSpec
from harness.records import (
    CONTROL,
    Build,
    Case,
    Environment,
    Failure,
    Launch,
    ModelInfo,
    OutputDrift,
    Run,
    Settings,
    Sitting,
    Window,
    Workload,
)
from harness.summary import CaseSummary, Comparison, Estimate, Latency, RunSummary, Verdict, WorkloadSummary

MS = 1_000_000
NASTY = "a|b\n\x1b[31mred\x1b[0m\x07 <script>alert('x')</script> `code` **bold** ünïcödé 猫 \u202eevil\r\n\ttab"


def examples() -> dict[str, RunSummary]:
    """Return every example run by the name of its golden files."""
    return {
        "full": full(),
        "quick": quick(),
        "nothing": nothing(),
        "no-export": no_export(),
        "interrupted": interrupted(),
        "nasty": nasty(),
        "cuda": cuda(),
        "target": target(),
    }


def full() -> RunSummary:
    """Return a run of six backends with every kind of outcome that a machine without a GPU sees."""
    rows = [
        row(
            case("onnxruntime", version="1.31.0", provider="CPUExecutionProvider", stages=stages(0.412, 0.098, 0.021)),
            p50=41.237,
            compared=(0.4312, 0.4251, 0.4374, "FASTER"),
        ),
        row(
            case(
                "tvm:trials=64",
                status="drifted",
                version="0.27.0",
                provider="llvm -mcpu=znver3",
                stages={"import": 1.9, "compile": 812.4, "load": 2.31, "tune": 760.2, "build": 48.7}
                | {"first_run": 0.0712, "second_run": 0.0644, "save": 0.204, "warm_load": 0.187},
                facts={"trials": 64, "tuned_tasks": 22, "database_hits": 0},
                drift=[drift(0), drift(1, relative_l2=3.1e-2, cosine=0.99952, passed=False)],
                failure=Failure(
                    stage="judge",
                    message="output 'logits' of input set 1 is too far from golden: RMSE 3.4e-02, allowed 2.1e-05",
                    hint="run it with --backends tvm:trials=0 to see whether tuning is to blame",
                ),
            ),
            p50=63.912,
            worst=1,
            compared=(0.6683, 0.6541, 0.6828, "FASTER"),
        ),
        row(case("eager", version="2.13.0", provider="aten", stages=stages(0.0009, 0.9, 0.101)), p50=95.634),
        row(
            case(
                "torch-compile",
                version="2.13.0",
                provider="inductor",
                stages=stages(38.61, 9.44, 0.0971) | {"load": 0.9, "build": 37.7},
                facts={"graph_breaks": 0, "graphs": 1, "cudagraphs": False, "hit_rate": 0.98765},
                notes=["compiled lazily: the first call is part of compile"],
            ),
            p50=96.113,
            compared=(1.0046, 0.9812, 1.0287, "UNDECIDED"),
            noisy=True,
            marked=3,
        ),
        row(
            case(
                "tensorrt-rtx",
                status="compiled",
                version="1.7.1",
                provider="TensorRT-RTX for sm_89",
                stages={"import": 0.31, "compile": 21.7, "load": 1.2, "build": 20.5, "save": 0.09},
                engine_bytes=51_300_000,
                notes=["built for sm_89, which this machine does not have: nothing was run"],
                drift=[],
            )
        ),
        row(
            case(
                "tensorrt",
                status="unavailable",
                failure=Failure(
                    stage="probe", message="tensorrt is not installed", hint="pip install 'harness[tensorrt]'"
                ),
                drift=[],
            )
        ),
        row(
            case(
                "tvm:trials=20000",
                status="timeout",
                version="0.27.0",
                provider="llvm -mcpu=znver3",
                stages={"import": 1.9},
                failure=Failure(
                    stage="compile",
                    message="compiling took longer than 1800 s (step limit)",
                    hint="raise --timeout, or tune less: --backends tvm:trials=2000",
                    log="logs/tvm-trials=20000.log",
                    log_tail="tuning 1/22\rtuning 9/22\rtuning 17/22\n\x1b[32m[info]\x1b[0m task 17: 812 trials\n\n"
                    "    best 0.412 ms\nworker ended by the harness\n",
                ),
                drift=[],
            )
        ),
    ]
    return single(
        rows,
        launches=launches(["onnxruntime", "tvm:trials=64", "eager", "torch-compile"], 5, 10),
        baseline="eager",
        control=Comparison(ratio=Estimate(value=1.0021, low=0.9923, high=1.012), verdict="UNDECIDED", noisy=False),
        noise_floor=0.0134,
        closing="onnxruntime ran resnet50 2.32x as fast as eager [2.29, 2.35] and is the fastest whose outputs agree.",
    )


def quick() -> RunSummary:
    """Return a quick run of one small model by the baseline alone, too short for tails."""
    rows = [
        row(
            case("eager", version="2.13.0", provider="aten", stages=stages(0.0002, 0.0113, 0.00031)),
            p50=0.04871,
            tails=False,
            launches=1,
        )
    ]
    return single(
        rows,
        launches=launches(["eager"], 1, 2),
        quick=True,
        model="tiny",
        advice=[],
        baseline="eager",
        control=Comparison(ratio=Estimate(value=1.0312, low=1.0021, high=1.0612), verdict="SLOWER", noisy=True),
        suspicious=True,
        noise_floor=0.031,
        closing="Only eager was measured: there is nothing to compare it with.",
    )


def nothing() -> RunSummary:
    """Return a run in which no case got a number."""
    broken = Failure(
        stage="compile",
        message="no converter for 'NonZero' at /decoder/mask",
        hint="export static shapes",
        log="logs/onnxruntime.log",
        log_tail="line 1\nline 2",
    )
    rows = [
        row(case("onnxruntime", status="compile_failed", version="1.31.0", failure=broken, drift=[])),
        row(case("tvm", status="crashed", failure=Failure(stage="import", message="ended by SIGSEGV"), drift=[])),
        row(case("eager", status="out_of_memory", drift=[])),
    ]
    return single(
        rows,
        baseline=None,
        closing="No backend got a number: 3 of 3 cases failed.",
    )


def no_export() -> RunSummary:
    """Return a run whose model could not be exported, so that all of its cases failed at once."""
    failure = Failure(stage="export", message="torch.export cannot trace 'resnet50'", hint="try --opset 18")
    names = ("onnxruntime", "tvm", "eager")
    return single(
        [row(case(name, status="export_failed", failure=failure, drift=[])) for name in names],
        info=None,
        failure=failure,
        baseline=None,
        closing="resnet50 could not be exported, so nothing was compared.",
    )


def interrupted() -> RunSummary:
    """Return a run that the user stopped: one case measured, one cut off, one lost a launch."""
    rows = [
        row(case("onnxruntime", version="1.31.0", provider="CPUExecutionProvider", stages=stages(0.4, 0.1, 0.02))),
        row(case("eager", version="2.13.0", provider="aten", stages=stages(0.001, 0.9, 0.1)), p50=95.6, launches=2),
        row(
            case(
                "tvm",
                status="interrupted",
                failure=Failure(stage="compile", message="interrupted by the user"),
                drift=[],
            )
        ),
    ]
    made = launches(["eager"], 2, 10)
    lost = made[1].sittings[0]
    crash = Failure(stage="warm load", message="the worker ended with exit code 3", log="logs/onnxruntime-2.log")
    made[1].sittings.append(
        Sitting(
            case="onnxruntime",
            import_s=lost.import_s,
            load_s=0.0,
            first_run_s=0.0,
            warm_up_ns=[],
            windows=[],
            peak_bytes=0,
            failure=crash,
        )
    )
    made[1] = Launch(index=1, wall_s=20.1, sittings=made[1].sittings, complete=False)
    return single(
        rows,
        launches=made,
        state="interrupted",
        weights="pretrained",
        info=model_info(
            weights="microsoft/resnet-50 model.safetensors", weights_sha256="3f1d" * 16, deterministic=False
        ),
        baseline="eager",
        closing="The run was interrupted before anything could be compared.",
    )


def cuda() -> RunSummary:
    """Return a run on a GPU whose cases were built three times each, with everything that only a GPU shows."""

    def on_gpu(of: Case, p50: float, device: float, **fields: Any) -> CaseSummary:
        found = row(of, p50=p50, **fields)
        comparison = found.comparison and msgspec.structs.replace(found.comparison, build_sd=0.0123)
        return msgspec.structs.replace(
            found, on_device=latency(device * MS, samples=90), enqueue_p50_ns=0.31 * MS, comparison=comparison
        )

    builds = [
        Build(
            engine=f"engines/{number}",
            engine_created="2026-03-02T10:12:00+00:00",
            engine_bytes=51_300_000 + 900_000 * number,
            stages={"compile": 21.7 + number},
            peak_compile_bytes=2_100_000_000,
        )
        for number in range(3)
    ]
    rows = [
        on_gpu(
            case(
                "tensorrt", device="cuda:0", version="11.4.0", provider="TensorRT sm_89", placement={"cuda": 58},
                builds=builds, stages=stages(21.7, 0.31, 0.002),
            ),
            0.912,
            0.871,
            compared=(0.3012, 0.2951, 0.3074, "FASTER"),
        ),
        msgspec.structs.replace(
            on_gpu(
                case(
                    "onnxruntime", device="cuda:0", version="1.29.0", provider="CUDAExecutionProvider",
                    placement={"cuda": 120, "cpu": 3}, stages=stages(0.9, 0.4, 0.002),
                ),
                1.237,
                1.101,
                compared=(0.4085, 0.4021, 0.4150, "FASTER"),
            ),
            off_device=3,
            cautions=("3 of 123 nodes do not run on cuda:0",),
        ),
        msgspec.structs.replace(
            on_gpu(case("eager", device="cuda:0", version="2.13.0", provider="torch cuda:0"), 3.028, 0.993),
            enqueue_p50_ns=2.61 * MS,
            cautions=("host bound: enqueuing takes 2.61 ms of the 0.993 ms that the device works",),
        ),
    ]  # fmt: skip
    return single(
        rows,
        launches=launches(["tensorrt", "onnxruntime", "eager"], 6, 10),
        device="cuda:0",
        baseline="eager",
        control=Comparison(ratio=Estimate(value=1.0007, low=0.9971, high=1.0043), verdict="SAME", noisy=False),
        noise_floor=0.0214,
        closing="tensorrt ran 3.32x faster than eager.",
    )


def target() -> RunSummary:
    """Return a run that only compiled, for a GPU that is not there."""
    rows = [
        row(
            case(
                "tensorrt-rtx", status="compiled", device="cuda:0", target="sm_89", version="1.7.1",
                provider="TensorRT-RTX sm_89", stages={"import": 0.3, "compile": 21.7, "build": 20.5, "save": 0.1},
                engine_bytes=51_300_000, drift=[],
            )
        ),
        row(
            case(
                "eager", status="unsupported", device="cuda:0", target="sm_89", drift=[],
                failure=Failure(stage="plan", message="eager cannot build for sm_89 without the device"),
            )
        ),
    ]  # fmt: skip
    return single(rows, device="cuda:0", target="sm_89", baseline=None, closing="Nothing was measured.")


def nasty() -> RunSummary:
    """Return a run whose every outside text tries to break the format that shows it."""
    bad = OutputDrift(
        output=NASTY,
        input_set=0,
        elements=10,
        max_abs=float("inf"),
        max_rel=float("nan"),
        rmse=float("nan"),
        relative_l2=float("nan"),
        cosine=float("nan"),
        snr_db=float("-inf"),
        nan_count=3,
        inf_count=1,
        within_tolerance=False,
        rmse_limit=1e-5,
        rmse_golden=float("nan"),
        passed=False,
        reason=NASTY,
    )
    failure = Failure(
        stage=NASTY,
        message=NASTY * 20,
        hint=NASTY,
        log="logs/a|b.log",
        log_tail=f"```\n</details>\n{NASTY}\n````\n",
        traceback=NASTY,
    )
    rows = [
        row(case(f"eager:{NASTY}", version=NASTY, provider=NASTY, facts={NASTY: NASTY, "none": None}, notes=[NASTY])),
        row(case("tvm", status="drifted", version="=1+1", drift=[bad], stages={"odd": 1.0}), p50=2e6, worst=0),
        row(case("tensorrt", status="crashed", failure=failure, drift=[], reproduce=f"harness {NASTY}")),
    ]
    return single(
        rows,
        notes=[NASTY],
        advice=[NASTY],
        model=f"/models/{NASTY}.onnx",
        kind="onnx",
        info=model_info(weights=NASTY, reference=NASTY, inputs=[NASTY]),
        command=NASTY,
        baseline=f"eager:{NASTY}",
        closing=NASTY,
    )


def stages(compile_s: float, warm_load_s: float, first_run_s: float) -> dict[str, float]:
    """Return the stages of a backend that compiles in one piece."""
    return {
        "import": 1.21,
        "compile": compile_s,
        "first_run": first_run_s,
        "second_run": first_run_s * 0.9,
        "save": 0.0612,
        "warm_import": 1.19,
        "warm_load": warm_load_s,
        "warm_first_run": first_run_s * 0.95,
    }


def drift(input_set: int, *, relative_l2: float = 1.24e-6, cosine: float = 1.0, passed: bool = True) -> OutputDrift:
    """Return the drift of one output of a classifier."""
    return OutputDrift(
        output="logits",
        input_set=input_set,
        elements=1000,
        max_abs=relative_l2 * 4,
        max_rel=relative_l2 * 90,
        rmse=relative_l2 * 1.1,
        relative_l2=relative_l2,
        cosine=cosine,
        snr_db=118.1,
        nan_count=0,
        inf_count=0,
        within_tolerance=passed,
        rmse_limit=2.1e-5,
        rmse_golden=relative_l2 * 1.1,
        passed=passed,
        reason="" if passed else "RMSE 3.4e-02 to golden, allowed 2.1e-05",
        top1_agreement=1.0 if passed else 0.75,
        top5_agreement=1.0,
    )


def case(name: str, **fields: Any) -> Case:
    """Return a case named like its backend and options; `fields` override what an ordinary case holds."""
    backend, _, option = name.partition(":")
    key, _, value = option.partition("=")
    ordinary: dict[str, Any] = {
        "id": name,
        "backend": backend,
        "options": {key: value} if option else {},
        "device": "cpu",
        "precision": "fp32",
        "batch": 1,
        "threads": 2,
        "status": "ok",
        "engine_bytes": 102_413_877 if "save" in fields.get("stages", {}) else None,
        "peak_compile_bytes": 731_000_000 if fields.get("stages") else None,
        "drift": [drift(0), drift(1)],
        "reproduce": f"harness compare --model resnet50 --backends {name}",
    }
    return Case(**(ordinary | fields))


def latency(p50_ns: float, *, samples: int = 5200, tails: bool = True) -> Latency:
    """Return order statistics around a median; `tails` false leaves out what few samples cannot support."""

    def around(factor: float) -> Estimate:
        return Estimate(value=p50_ns * factor, low=p50_ns * factor * 0.99, high=p50_ns * factor * 1.02)

    return Latency(
        samples=samples,
        p50=around(1.0),
        p90=around(1.04) if tails else None,
        p95=around(1.07) if tails else None,
        p99=around(1.21) if tails else None,
        cv=0.034,
    )


def row(
    of: Case,
    *,
    p50: float | None = None,
    compared: tuple[float, float, float, Verdict] | None = None,
    noisy: bool = False,
    marked: int = 0,
    worst: int | None = None,
    tails: bool = True,
    launches: int = 5,
) -> CaseSummary:
    """Return the summary of a case whose compute p50 is so many milliseconds, or that was not measured."""
    comparison = None
    if compared:
        value, low, high, verdict = compared
        comparison = Comparison(ratio=Estimate(value=value, low=low, high=high), verdict=verdict, noisy=noisy)
    return CaseSummary(
        case=of,
        is_baseline=of.backend == "eager",
        compute=None if p50 is None else latency(p50 * MS, tails=tails),
        host_to_host=None if p50 is None else latency(p50 * MS * 1.013, samples=50, tails=False),
        comparison=comparison,
        throughput=None if p50 is None else of.batch * 1000 / p50,
        gflop_per_s=None if p50 is None else 8.2 * 1000 / p50,
        peak_bytes=None if p50 is None else 612_500_000,
        launches=0 if p50 is None else launches,
        worst_drift=worst if worst is not None else (0 if of.drift else None),
        marked_windows=marked,
        windows=0 if p50 is None else 50,
    )


def launches(names: list[str], count: int, rounds: int) -> list[Launch]:
    """Return launches with one short window a round; the last window of torch-compile is disturbed."""
    made = []
    for index in range(count):
        sittings = [
            Sitting(
                case=name,
                import_s=1.2,
                load_s=0.1,
                first_run_s=0.05,
                warm_up_ns=[50 * MS] * 10,
                windows=[
                    Window(
                        round=number,
                        position=0,
                        start_ns=number * 1000 * MS,
                        samples_ns=[41 * MS, 42 * MS],
                        marks=["busy machine"] if name == "torch-compile" and number == rounds - 1 else [],
                    )
                    for number in range(rounds)
                ],
                peak_bytes=612_500_000,
            )
            for name in [*names, f"eager{CONTROL}"]
        ]
        made.append(Launch(index=index, wall_s=61.2, sittings=sittings))
    return made


UNSET = object()


def single(rows: list[CaseSummary], **fields: Any) -> RunSummary:
    """Return the summary of a run of one workload; `fields` are those of `workload` and of `run`."""
    own = {key: fields.pop(key) for key in WORKLOAD_FIELDS if key in fields}
    return summary_of([workload(rows, **own)], **fields)


def summary_of(workloads: list[WorkloadSummary], *, closing: str | None = None, **fields: Any) -> RunSummary:
    """Return the summary of a run; `fields` are those of `run`, and what is said of all workloads together."""
    together = {key: fields.pop(key, []) for key in ("composed", "sweeps", "prices")}
    return RunSummary(
        workloads=workloads,
        suite=fields.pop("suite", None),
        closing=workloads[0].closing if closing is None else closing,
        run=run(workloads, **fields),
        **together,
    )


WORKLOAD_FIELDS = (
    "baseline",
    "closing",
    "control",
    "device",
    "dims",
    "failure",
    "info",
    "kind",
    "launches",
    "model",
    "noise_floor",
    "suspicious",
    "target",
    "workload_notes",
)


def workload(
    rows: list[CaseSummary],
    *,
    model: str = "resnet50",
    kind: Any = "reference",
    dims: dict[str, int] | None = None,
    info: Any = UNSET,
    launches: list[Launch] | None = None,
    failure: Failure | None = None,
    workload_notes: list[str] | None = None,
    baseline: str | None = "eager",
    control: Comparison | None = None,
    suspicious: bool = False,
    noise_floor: float | None = None,
    closing: str = "",
    device: str = "cpu",
    target: str | None = None,
) -> WorkloadSummary:
    """Return one workload; `info=None` leaves out what an export tells, as when it failed."""
    sizes = {"batch": 1} | (dims or {})
    known = model_info() if info is UNSET else info
    return WorkloadSummary(
        workload=Workload(
            key=" ".join(
                [ModelSpec(kind=kind, name=model).label, *(f"{name}={size}" for name, size in (dims or {}).items())]
            ),
            model=ModelSpec(kind=kind, name=model),
            dims=sizes,
            batch=sizes["batch"],
            device=device,
            target=target,
            baseline=baseline or "eager",
            info=known,
            cases=[one.case for one in rows],
            launches=launches or [],
            measure_s=306.4,
            notes=workload_notes or [],
            failure=failure,
        ),
        seeded=known is None or known.weights == "seeded",
        rows=rows,
        baseline=baseline,
        control=control,
        suspicious=suspicious,
        noise_floor=noise_floor,
        closing=closing,
    )


def run(
    workloads: list[WorkloadSummary],
    *,
    state: Any = "finished",
    quick: bool = False,
    weights: str | None = None,
    suite_name: str | None = None,
    notes: list[str] | None = None,
    advice: list[str] | None = None,
    command: str | None = None,
) -> Run:
    """Return a run on an ordinary small machine."""
    models = list(dict.fromkeys(one.workload.model.name for one in workloads))
    cases = list(dict.fromkeys(row.case.id for one in workloads for row in one.rows))
    return Run(
        id="2026-03-02T10-11-12",
        created="2026-03-02T10:11:12Z",
        harness="0.1.0",
        state=state,
        command=command or f"harness compare --model {','.join(models)} --backends all",
        settings=Settings(
            models=models,
            suite=suite_name,
            cases=cases,
            weights=weights,
            seed=0,
            threads=2,
            launches=1 if quick else 5,
            rounds=2 if quick else 10,
            slice_s=0.1,
            budget_s=600.0,
            timeout_s=1800.0,
            memory_limit_bytes=16_000_000_000,
            quick=quick,
        ),
        environment=environment(advice),
        workloads=[one.workload for one in workloads],
        wall_s=1342.7,
        notes=notes or [],
    )


def environment(advice: list[str] | None) -> Environment:
    """Return a machine that is not tuned for measuring."""
    return Environment(
        cpu="AMD EPYC 7543 32-Core Processor",
        cores=2,
        logical_cores=4,
        memory_bytes=16_700_000_000,
        kernel="6.1.0-18-amd64",
        os="Debian GNU/Linux 12",
        python="3.11.7",
        governor=None,
        load_average=0.42,
        gpus=[],
        libraries={"torch": "2.13.0", "onnxruntime": "1.31.0", "numpy": "2.4.1", "apache-tvm": "0.27.0"},
        git_commit="855eebe0c0ffee00000000000000000000000000",
        hostname="bench-1",
        container="docker",
        advice=["the CPU governor cannot be read: clocks may change while measuring", "2 cores: leave one idle"]
        if advice is None
        else advice,
    )


def model_info(**fields: Any) -> ModelInfo:
    """Return what an export of a classifier leaves behind; `fields` override it."""
    ordinary: dict[str, Any] = {
        "weights": "seeded",
        "weights_sha256": "c0ffee" * 10 + "beef",
        "parameters": 25_557_032,
        "gflop": 8.2,
        "task": "classification",
        "artifact": "9f2c4e6a8b0d1f3e5a7c",
        "opset": 20,
        "inputs": ["input float32[1,3,224,224]"],
        "input_sets": 4,
        "deterministic": True,
        "golden": True,
        "export_s": 4.31,
        "export_cached": False,
    }
    return ModelInfo(**(ordinary | fields))
