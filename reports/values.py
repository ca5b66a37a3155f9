"""One case as a flat mapping of typed values: full precision, units in the names, None where there is nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from harness.api import Scalar
from harness.modelspec import BATCH
from harness.records import Agreement, OutputDrift
from harness.summary import CaseSummary, Estimate, Latency, RunSummary, WorkloadSummary
from reports.formatting import clean

Values = Mapping[str, Scalar]

STAGES = (
    "import",
    "compile",
    "load",
    "tune",
    "build",
    "first_run",
    "second_run",
    "save",
    "warm_import",
    "warm_load",
    "warm_first_run",
)


def values(row: CaseSummary, of: WorkloadSummary, summary: RunSummary) -> dict[str, Scalar]:
    """Return all that is known about a case as scalars, in the order in which a file shows them.

    Names end in their unit: `_s`, `_ns`, `_bytes`, `_per_s`. Ratios are time over the time of the workload's baseline.
    Every row has the same keys. Text is one line without control characters.
    """
    case, workload = row.case, of.workload
    flat: dict[str, Scalar] = {
        "run": summary.run.id,
        "created": summary.run.created,
        "workload": workload.key,
        "model": workload.model.text,
        "weights": workload.info.weights if workload.info else None,
        "weights_sha256": workload.info.weights_sha256 if workload.info else None,
        "case": case.id,
        "backend": case.backend,
        "version": case.version,
        "provider": case.provider,
        "device": case.device,
        "target": case.target,
        "precision": case.precision,
        "batch": workload.batch,
        "dims": ",".join(f"{name}={size}" for name, size in workload.dims.items() if name != BATCH) or None,
        "threads": case.threads,
        "status": case.status,
        "is_baseline": row.is_baseline,
    }
    flat |= {f"{stage}_s": case.stages.get(stage) for stage in STAGES}
    flat["samples"] = row.compute.samples if row.compute else None
    flat |= _latency("", row.compute)
    flat["cv"] = row.compute.cv if row.compute else None
    flat["device_samples"] = row.on_device.samples if row.on_device else None
    flat |= _latency("device_", row.on_device)
    flat["enqueue_p50_ns"] = row.enqueue_p50_ns
    flat["nodes_off_device"] = row.off_device
    flat["host_to_host_samples"] = row.host_to_host.samples if row.host_to_host else None
    flat |= _latency("host_to_host_", row.host_to_host)
    flat["throughput_per_s"] = row.throughput
    flat["gflop_per_s"] = row.gflop_per_s
    flat["bound_by"] = row.bound_by
    flat["limit_share"] = row.limit_share
    flat["energy_mj"] = row.energy.mj if row.energy else None
    flat["energy_by"] = row.energy.by if row.energy else None
    flat["baseline"] = of.baseline
    flat |= _comparison(row)
    flat |= _drift(row)
    flat |= _task(row)
    flat |= {
        "engine_bytes": case.engine_bytes,
        "peak_bytes": row.peak_bytes,
        "peak_compile_bytes": case.peak_compile_bytes,
        **_device_memory(row),
        "launches": row.launches,
        "windows": row.windows,
        "marked_windows": row.marked_windows,
        "dropped_windows": row.dropped_windows,
        "package_energy_j": row.package_energy_per_inference_j,
    }
    flat |= _failure(row)
    return {key: clean(value) if isinstance(value, str) else value for key, value in flat.items()}


def worst(row: CaseSummary) -> OutputDrift | None:
    """Return the drift of the output that is farthest from the reference."""
    return None if row.worst_drift is None else row.case.drift[row.worst_drift]


def least_agreement(agreement: Sequence[Agreement]) -> Agreement | None:
    """Return the most telling figure of the output that agrees least with the reference; None where there is none."""
    if not agreement:
        return None
    leading = [one for one in agreement if one.figure == agreement[0].figure]
    return min(leading, key=lambda one: math.inf if one.value is None else one.value)


def _latency(prefix: str, latency: Latency | None) -> dict[str, Scalar]:
    out: dict[str, Scalar] = {}
    for name in ("p50", "p90", "p95", "p99"):
        estimate: Estimate | None = getattr(latency, name) if latency else None
        out[f"{prefix}{name}_ns"] = estimate.value if estimate else None
        out[f"{prefix}{name}_low_ns"] = estimate.low if estimate else None
        out[f"{prefix}{name}_high_ns"] = estimate.high if estimate else None
    return out


def _comparison(row: CaseSummary) -> dict[str, Scalar]:
    found = row.comparison
    return {
        "ratio": found.ratio.value if found else None,
        "ratio_low": found.ratio.low if found else None,
        "ratio_high": found.ratio.high if found else None,
        "verdict": found.verdict if found else None,
        "noisy": found.noisy if found else None,
        "build_sd": found.build_sd if found else None,
    }


def _drift(row: CaseSummary) -> dict[str, Scalar]:
    drift = worst(row)
    return {
        "drift_passed": all(one.passed for one in row.case.drift) if row.case.drift else None,
        "drift_output": drift.output if drift else None,
        "drift_input_set": drift.input_set if drift else None,
        "drift_relative_l2": drift.relative_l2 if drift else None,
        "drift_cosine": drift.cosine if drift else None,
        "drift_max_abs": drift.max_abs if drift else None,
        "drift_max_rel": drift.max_rel if drift else None,
        "drift_rmse": drift.rmse if drift else None,
        "drift_rmse_golden": drift.rmse_golden if drift else None,
        "drift_rmse_limit": drift.rmse_limit if drift else None,
        "drift_snr_db": drift.snr_db if drift else None,
        "drift_nan_count": drift.nan_count if drift else None,
        "drift_inf_count": drift.inf_count if drift else None,
        "drift_top1_agreement": drift.top1_agreement if drift else None,
        "drift_top5_agreement": drift.top5_agreement if drift else None,
    }


def _task(row: CaseSummary) -> dict[str, Scalar]:
    least, found = least_agreement(row.case.agreement), row.case.accuracy
    metric, value = next(iter(found.metrics.items()), (None, None)) if found else (None, None)
    paired = found.paired if found else None
    return {
        "agreement_figure": least.figure if least else None,
        "agreement": least.value if least else None,
        "dataset": found.dataset if found else None,
        "dataset_samples": found.samples if found else None,
        "accuracy_metric": metric,
        "accuracy": value,
        "accuracy_difference": paired.difference if paired else None,
        "accuracy_difference_low": paired.low if paired else None,
        "accuracy_difference_high": paired.high if paired else None,
        "accuracy_p": paired.p if paired else None,
    }


def _device_memory(row: CaseSummary) -> dict[str, Scalar]:
    memory = row.device_memory
    return {
        "device_before_load_bytes": memory.before_load_bytes if memory else None,
        "device_loaded_bytes": memory.loaded_bytes if memory else None,
        "device_ran_bytes": memory.ran_bytes if memory else None,
        "device_peak_bytes": memory.peak_bytes if memory else None,
        "device_memory_by": memory.by if memory else None,
    }


def _failure(row: CaseSummary) -> dict[str, Scalar]:
    failure = row.case.failure
    return {
        "failure_stage": failure.stage if failure else None,
        "failure_message": failure.message if failure else None,
        "failure_hint": failure.hint if failure else None,
        "failure_log": failure.log if failure else None,
        "reproduce": row.case.reproduce or None,
    }
