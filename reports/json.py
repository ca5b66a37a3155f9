"""JSON: a run with its derived statistics, for other programs. Strict: no NaN, no Infinity; those become null.

| key | holds |
|---|---|
| `schema` | version of this layout, a number that grows when a key changes its meaning or goes |
| `run` | `id`, `created` (UTC), `state`, `harness` (version), `command`, `wall_s`, `measure_s` |
| `settings`, `environment` | as in `run.json` |
| `ceilings` | what the run's devices can do at most, with how that is known; empty where it is not |
| `raw_samples` | the file in the run's folder that holds every sample: `run.json` |
| `workloads` | one object a model and shape, described below |
| `suite` | cases over all workloads; null where fewer than two can be taken together |
| `overall` | which case to deploy where one is to serve all workloads, and what makes that less sure; or null |
| `composed` | figures put together from parts, never measured as a whole |
| `sweeps` | workloads that differ in the size of one free dimension |
| `prices` | dynamic engines over static ones; `suite` to `prices` have the fields of `harness.summary` |
| `notes`, `closing` | the run's own notes; the last sentence |

A workload has:

| key | holds |
|---|---|
| `key` | its name, unique in the run |
| `model`, `dims`, `batch` | what was compared on; `dims` are all free dimensions, the batch too |
| `device`, `target` | where, or the compute capability it was compiled for |
| `info` | the export, with parameters, weights and their digest; null where it failed |
| `seeded` | whether the weights are random, so that drift is numerical agreement only |
| `baseline` | id of the case that others are compared against, or null |
| `control` | the baseline's second worker over the first: `ratio`, `verdict`, `noisy`; null where it did not run |
| `suspicious` | whether the control lies outside its interval |
| `noise_floor` | smallest relative difference that could have been called, such as 0.013 |
| `gpus` | what each card did while it was measured on: clocks, power, temperature, dropped windows |
| `rows` | one object a case, from fastest to slowest, then those without a number |
| `measure_s`, `notes`, `failure`, `closing` | time spent measuring; its notes; what ended all of it; its sentence |

A row has the fields of a case in `run.json`, of which `drift` lists every output of every input set and `agreement`
the figures of the model's task (a value of null is infinite: nothing differs), `accuracy` what it got right on the
labelled data set (`paired` is its difference to the baseline on the same samples) or null, and:
`is_baseline`; `compute`, `on_device` and `host_to_host` (`samples`, `cv`, `window_p50_ns`, which is the median over
windows of each one's median, and `p50_ns`, `p90_ns`, `p95_ns`, `p99_ns`, each null or `value`, `low`, `high` in
nanoseconds); `enqueue_p50_ns`, how long `execute()` kept the host;
`off_device`, how many nodes run elsewhere; `cautions`, what a reader must know, in figures; `comparison` (`ratio` is
time over the baseline's time with its 99 % interval, `verdict`, `noisy`, `build_sd`); `throughput_per_s`;
`gflop_per_s`; `bound_by` (`compute` or `memory`) and `limit_share` (the least time that the device needs over p50),
null without ceilings; `energy` of one inference (`mj`, and `by` which of a GPU's sensors) or null; `peak_bytes`;
`device_memory` (bytes by phase) or null; `launches`; `windows`, of which `marked_windows` were disturbed on the host
and counted, `dropped_windows` on the GPU and left out; `dropped`, what disturbed those -> windows; `disturbed`, the
same where all had to be kept; `worst_drift` (an index into `drift`); `package_energy_per_inference_j` (of all
processor packages, on a CPU).
"""

from __future__ import annotations

from typing import Any  # a JSON document: what lies in it is not known by type

import msgspec

from harness.api import Report
from harness.summary import CaseSummary, Latency, RunSummary, WorkloadSummary

SCHEMA = 2
RAW_SAMPLES = "run.json"


class Json(Report):
    """For programs."""

    name = "json"
    summary = "derived statistics with settings, environment and failures; strict JSON with a schema version"

    def render(self, run: RunSummary, *, color: bool = False, width: int | None = None) -> str:
        """Return one JSON object; `color` and `width` change nothing."""
        # Encoding turns NaN and infinities into null, which the standard library's encoder cannot.
        encoded = msgspec.json.encode(document(run))
        return msgspec.json.format(encoded, indent=2).decode() + "\n"


def document(summary: RunSummary) -> dict[str, Any]:
    """Return the object that the file holds, described above."""
    run = summary.run
    return {
        "schema": SCHEMA,
        "run": {
            "id": run.id,
            "created": run.created,
            "state": run.state,
            "harness": run.harness,
            "command": run.command,
            "wall_s": run.wall_s,
            "measure_s": sum(one.workload.measure_s for one in summary.workloads),
        },
        "settings": run.settings,
        "environment": run.environment,
        "ceilings": run.ceilings,
        "raw_samples": RAW_SAMPLES,
        "workloads": [_workload(one) for one in summary.workloads],
        "suite": summary.suite,
        "overall": summary.overall,
        "composed": summary.composed,
        "sweeps": summary.sweeps,
        "prices": summary.prices,
        "notes": run.notes,
        "closing": summary.closing,
    }


def _workload(summary: WorkloadSummary) -> dict[str, Any]:
    workload = summary.workload
    return {
        "key": workload.key,
        "model": workload.model,
        "dims": workload.dims,
        "batch": workload.batch,
        "device": workload.device,
        "target": workload.target,
        "info": workload.info,
        "seeded": summary.seeded,
        "baseline": summary.baseline,
        "control": summary.control,
        "suspicious": summary.suspicious,
        "noise_floor": summary.noise_floor,
        "gpus": summary.gpus,
        "rows": [_row(row) for row in summary.rows],
        "measure_s": workload.measure_s,
        "notes": workload.notes,
        "failure": workload.failure,
        "closing": summary.closing,
    }


def _row(row: CaseSummary) -> dict[str, Any]:
    case: dict[str, Any] = msgspec.structs.asdict(row.case)
    return case | {
        "is_baseline": row.is_baseline,
        "compute": _latency(row.compute),
        "on_device": _latency(row.on_device),
        "enqueue_p50_ns": row.enqueue_p50_ns,
        "off_device": row.off_device,
        "cautions": row.cautions,
        "host_to_host": _latency(row.host_to_host),
        "comparison": row.comparison,
        "throughput_per_s": row.throughput,
        "gflop_per_s": row.gflop_per_s,
        "bound_by": row.bound_by,
        "limit_share": row.limit_share,
        "energy": row.energy,
        "peak_bytes": row.peak_bytes,
        "device_memory": row.device_memory,
        "launches": row.launches,
        "windows": row.windows,
        "marked_windows": row.marked_windows,
        "dropped_windows": row.dropped_windows,
        "dropped": row.dropped,
        "disturbed": row.disturbed,
        "worst_drift": row.worst_drift,
        "package_energy_per_inference_j": row.package_energy_per_inference_j,
    }


def _latency(latency: Latency | None) -> dict[str, Any] | None:
    if latency is None:
        return None
    return {
        "samples": latency.samples,
        "cv": latency.cv,
        "window_p50_ns": latency.window_p50_ns,
        "p50_ns": latency.p50,
        "p90_ns": latency.p90,
        "p95_ns": latency.p95,
        "p99_ns": latency.p99,
    }
