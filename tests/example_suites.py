"""Example runs of several workloads, written by hand like those of `tests.example_runs`."""

from __future__ import annotations

from harness.records import Case, Failure
from harness.summary import (
    CaseSummary,
    Comparison,
    Composed,
    ComposedRow,
    Estimate,
    Part,
    Point,
    Price,
    RunSummary,
    Series,
    Standing,
    Suite,
    Sweep,
    Verdict,
    WorkloadSummary,
)
from tests.example_runs import case, drift, launches, model_info, row, stages, summary_of, workload

ORT = {"version": "1.31.0", "provider": "CPUExecutionProvider"}
EAGER = {"version": "2.13.0", "provider": "aten", "stages": stages(0.001, 0.9, 0.1)}
BROKEN = Point(status="compile_failed", throughput=None)
MISSING = Failure(stage="probe", message="tensorrt is not installed", hint="pip install 'harness[tensorrt]'")


def suites() -> dict[str, RunSummary]:
    """Return every example of several workloads by the name of its golden files."""
    return {"suite": suite(), "sweep": sweep(), "composed": composed()}


def suite() -> RunSummary:
    """Return three models by five backends: one export failed, one engine's outputs differ, one backend is missing."""
    return summary_of(
        [_resnet(), _yolo(), _bert()],
        suite_name="vision",
        command="harness compare --suite vision --model detectors.yolo:nano --backends all",
        suite=Suite(
            baseline="eager",
            workloads=["resnet50", "detectors.yolo:nano"],
            left_out=["bert-base sequence=512"],
            rows=[
                standing("onnxruntime", (0.484, 0.478, 0.49), over=2, wins=2, ok=2, failed=1),
                standing("eager", (1.0, 1.0, 1.0), over=2, ok=2, failed=1),
                standing("torch-compile", (0.52, 0.511, 0.529), over=1, ok=1, failed=2),
                standing("tvm:trials=64", (0.561, 0.549, 0.573), over=1, ok=1, drifted=1, failed=1),
                standing("tensorrt", None, failed=3),
            ],
            contested=2,
            rounds_only=False,
        ),
        notes=["the machine went to sleep for 3 s while measuring"],
        closing="Over the 2 workloads that can be compared, onnxruntime ran 2.07x faster than eager on geometric mean.",
    )


def sweep() -> RunSummary:
    """Return one model at three batches, static and dynamic engines side by side, all of them reused."""
    static = {1: 24.2, 4: 61.0, 32: 80.25}
    dynamic = {1: 22.9, 4: 58.1, 32: 79.7}
    eager = {1: 10.46, 4: 12.5, 32: 14.03}
    reused = {"engine_compiled_at": "2026-03-01T09:00:00Z", "threads_used": 2}

    def at(batch: int) -> WorkloadSummary:
        rows = [
            row(
                case("onnxruntime", **ORT, stages=stages(0.412, 0.098, 0.021), facts=reused),
                p50=1000 * batch / static[batch],
                compared=(eager[batch] / static[batch], 0.99 * eager[batch] / static[batch], 0.6, "FASTER"),
            ),
            row(
                case("onnxruntime:dynamic=true", **ORT, stages=stages(0.502, 0.098, 0.021), facts=reused),
                p50=1000 * batch / dynamic[batch],
                compared=(eager[batch] / dynamic[batch], 0.99 * eager[batch] / dynamic[batch], 0.6, "FASTER"),
            ),
            row(case("eager", **EAGER), p50=1000 * batch / eager[batch]),
        ]
        if batch < 32:
            rows.append(row(_no_dynamic(batch)))
        return workload(
            rows,
            dims={"batch": batch} if batch > 1 else None,
            info=model_info(inputs=[f"input float32[{batch},3,224,224]"], gflop=8.2 * batch, export_cached=True),
            launches=launches(["onnxruntime", "onnxruntime:dynamic=true", "eager"], 5, 10),
            noise_floor=0.0134,
            closing=f"onnxruntime was the fastest at batch {batch}.",
        )

    keys = ["resnet50", "resnet50 batch=4", "resnet50 batch=32"]
    return summary_of(
        [at(1), at(4), at(32)],
        command="harness compare --model resnet50 --batch 1,4,32 --backends onnxruntime,tvm --dynamic",
        suite=Suite(
            baseline="eager",
            workloads=keys,
            left_out=[],
            rows=[
                standing("onnxruntime", (0.258, 0.255, 0.261), over=3, wins=2, ties=1, ok=3),
                standing("onnxruntime:dynamic=true", (0.266, 0.263, 0.269), over=3, ties=1, ok=3),
                standing("eager", (1.0, 1.0, 1.0), over=3, ok=3),
                standing("tvm:dynamic=true", None, failed=2),
            ],
            contested=3,
            rounds_only=False,
        ),
        sweeps=[
            Sweep(
                model="resnet50",
                dim="batch",
                fixed={},
                sizes=[1, 4, 32],
                workloads=keys,
                series=[
                    series("onnxruntime", list(static.values())),
                    series("onnxruntime:dynamic=true", list(dynamic.values())),
                    series("eager", list(eager.values())),
                    Series(case="tvm:dynamic=true", points=[BROKEN, BROKEN, None]),
                ],
            )
        ],
        prices=[
            price(keys[0], "onnxruntime", (1.0568, 1.0461, 1.0676, "SLOWER")),
            price(keys[1], "onnxruntime", (1.0499, 1.0391, 1.0608, "SLOWER")),
            price(keys[2], "onnxruntime", (1.0069, 0.9971, 1.0168, "UNDECIDED")),
            *(
                Price(
                    workload=key,
                    static="tvm",
                    dynamic="tvm:dynamic=true",
                    comparison=None,
                    statuses=("timeout", "compile_failed"),
                )
                for key in keys[:1]
            ),
        ],
        closing="Over all 3 workloads, onnxruntime ran 3.88x faster than eager on geometric mean.",
    )


def composed() -> RunSummary:
    """Return the parts of an image generator and the figure that is put together from them."""
    parts = {"sd15-text-encoder": (118.0, 61.0), "sd15-unet": (4213.0, 2891.0), "sd15-vae-decoder": (9120.0, 7011.0)}

    def part(model: str) -> WorkloadSummary:
        eager, onnxruntime = parts[model]
        ratio = onnxruntime / eager
        rows = [
            row(case("onnxruntime", **ORT), p50=onnxruntime, compared=(ratio, 0.98 * ratio, 1.02 * ratio, "FASTER")),
            row(case("eager", **EAGER), p50=eager),
            row(_tvm(model), p50=2 * eager, compared=(2.0, 1.97, 2.03, "SLOWER")),
        ]
        closing = f"onnxruntime ran {1 / ratio:.2f}x faster than eager."
        return workload(rows, model=model, info=model_info(gflop=None), closing=closing)

    return summary_of(
        [part(model) for model in parts],
        command="harness compare --suite diffusion --backends onnxruntime,tvm",
        composed=[
            Composed(
                name="sd15-image",
                what="one 512x512 image in 50 steps with classifier-free guidance, as two calls a step",
                parts=[
                    Part(model="sd15-text-encoder", workload="sd15-text-encoder", calls=2),
                    Part(model="sd15-unet", workload="sd15-unet", calls=100),
                    Part(model="sd15-vae-decoder", workload="sd15-vae-decoder", calls=1),
                ],
                rows=[
                    ComposedRow(case="onnxruntime", seconds=Estimate(value=296.2, low=293.3, high=302.2), lacks={}),
                    ComposedRow(case="eager", seconds=Estimate(value=430.7, low=426.4, high=439.3), lacks={}),
                    ComposedRow(case="tvm", seconds=None, lacks={"sd15-unet": "drifted"}),
                ],
            )
        ],
        closing="Over all 3 workloads, onnxruntime ran 1.50x faster than eager on geometric mean.",
    )


def standing(
    name: str,
    ratio: tuple[float, float, float] | None,
    *,
    over: int = 0,
    wins: int = 0,
    ties: int = 0,
    ok: int = 0,
    drifted: int = 0,
    failed: int = 0,
) -> Standing:
    """Return how a case stands over a suite."""
    return Standing(
        case=name,
        is_baseline=name == "eager",
        ratio=None if ratio is None else Estimate(value=ratio[0], low=ratio[1], high=ratio[2]),
        over=over,
        wins=wins,
        ties=ties,
        ok=ok,
        drifted=drifted,
        compiled=0,
        failed=failed,
    )


def series(name: str, throughputs: list[float]) -> Series:
    """Return a case that is ok at every size."""
    estimates = [Estimate(value=one, low=0.98 * one, high=1.01 * one) for one in throughputs]
    return Series(case=name, points=[Point(status="ok", throughput=one) for one in estimates])


def price(key: str, static: str, found: tuple[float, float, float, Verdict]) -> Price:
    """Return the price of one dynamic engine at one workload."""
    value, low, high, verdict = found
    return Price(
        workload=key,
        static=static,
        dynamic=f"{static}:dynamic=true",
        comparison=Comparison(
            ratio=Estimate(value=value, low=low, high=high), verdict=verdict, noisy=verdict == "UNDECIDED"
        ),
        statuses=("ok", "ok"),
    )


def _resnet() -> WorkloadSummary:
    rows = [
        row(
            case("onnxruntime", **ORT, stages=stages(0.41, 0.098, 0.021)),
            p50=41.2,
            compared=(0.431, 0.425, 0.437, "FASTER"),
        ),
        row(case("torch-compile", version="2.13.0"), p50=49.7, compared=(0.52, 0.511, 0.529, "FASTER")),
        row(case("tvm:trials=64", version="0.27.0"), p50=53.6, compared=(0.561, 0.549, 0.573, "FASTER")),
        row(case("eager", **EAGER), p50=95.6),
        _unavailable(),
    ]
    return workload(
        rows,
        launches=launches(["onnxruntime", "torch-compile", "tvm:trials=64", "eager"], 5, 10),
        control=Comparison(ratio=Estimate(value=1.0021, low=0.9923, high=1.012), verdict="UNDECIDED", noisy=False),
        noise_floor=0.0134,
        closing="onnxruntime ran 2.32x faster than eager (99 % interval 2.29 to 2.35).",
    )


def _yolo() -> WorkloadSummary:
    broken = Failure(stage="compile", message="no lowering for 'aten::upsample'", log="logs/torch-compile.log")
    rows = [
        row(
            case("tvm:trials=64", status="drifted", drift=[drift(0, relative_l2=0.2, cosine=0.981, passed=False)]),
            p50=31.0,
            compared=(0.41, 0.401, 0.419, "FASTER"),
        ),
        row(case("onnxruntime", **ORT), p50=41.0, compared=(0.543, 0.535, 0.551, "FASTER")),
        row(case("eager", **EAGER), p50=75.5),
        row(case("torch-compile", status="compile_failed", failure=broken, drift=[])),
        _unavailable(),
    ]
    return workload(
        rows,
        model="detectors.yolo:nano",
        kind="factory",
        info=model_info(weights="own of detectors.yolo:nano", weights_sha256=None, parameters=3_157_200, gflop=None),
        launches=launches(["onnxruntime", "tvm:trials=64", "eager"], 5, 10),
        control=Comparison(ratio=Estimate(value=1.031, low=1.012, high=1.05), verdict="SLOWER", noisy=True),
        suspicious=True,
        noise_floor=0.02,
        closing="onnxruntime ran 1.84x faster than eager (99 % interval 1.81 to 1.87).",
    )


def _bert() -> WorkloadSummary:
    failure = Failure(stage="export", message="torch.export cannot trace 'bert-base'", log="logs/export-bert-base.log")
    names = ("onnxruntime", "torch-compile", "tvm:trials=64", "eager")
    rows = [row(case(name, status="export_failed", failure=failure, drift=[])) for name in names]
    return workload(
        rows,
        model="bert-base",
        dims={"sequence": 512},
        info=None,
        failure=failure,
        baseline=None,
        closing="Nothing can be compared: torch.export cannot trace 'bert-base'.",
    )


def _unavailable() -> CaseSummary:
    return row(case("tensorrt", status="unavailable", failure=MISSING, drift=[]))


def _no_dynamic(batch: int) -> Case:
    failure = Failure(stage="compile", message=f"no schedule for a free dimension at batch {batch}")
    return case("tvm:dynamic=true", status="compile_failed", failure=failure, drift=[])


def _tvm(model: str) -> Case:
    if model != "sd15-unet":
        return case("tvm", version="0.27.0")
    return case("tvm", status="drifted", drift=[drift(0, relative_l2=0.3, cosine=0.97, passed=False)])
