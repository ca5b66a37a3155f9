"""What does the harness itself cost? Two ratios, each measured in one run on this machine.

    python benchmarks/overhead.py

1. Latency: the harness' compute p50 over that of a bare loop, a program of its own that uses nothing but the library
   (`bare_loop.py`). Both are fresh processes, visited in turn round by round; whoever is not visited is stopped. At
   most 2 % apart for ONNX Runtime and eager PyTorch.
2. Wall time of a whole comparison over the sum of its unavoidable parts: imports, compilations, loads, warm-up and
   samples. At most 1.15.

Exit code 1 when a requirement is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import scipy.stats
from tabulate import tabulate

# The checkout comes before an installed harness.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from harness import protocol, registry
from harness.artifact import Artifact
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher, Worker
from harness.measure import timed
from harness.modelspec import ModelSpec
from harness.records import Run
from harness.store import RunFolder, load_run

MOST_LATENCY = 0.02
MOST_WALL = 1.15
SLICE_S = 0.3


class Bare:
    """A bare loop in a process of its own: answers a number of seconds with its samples in nanoseconds."""

    def __init__(self, backend: str, artifact: Artifact, threads: int) -> None:
        script = str(Path(__file__).with_name("bare_loop.py"))
        self.process = subprocess.Popen(
            [sys.executable, script, backend, str(artifact.folder), artifact.manifest.model.name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )

    def sample(self, seconds: float) -> list[int]:
        """Run the loop for some seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        samples: list[int] = json.loads(self.process.stdout.readline())
        self.process.send_signal(signal.SIGSTOP)
        return samples

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def harness_sample(worker: Worker, seconds: float) -> list[int]:
    """Ask a worker for a slice as a comparison does."""
    worker.resume()
    request = protocol.Sample(boundary="compute", min_iterations=1, min_seconds=seconds)
    samples = worker.call(request, protocol.Samples, timeout_s=600, watch=False).durations_ns
    worker.stop()
    return samples


def open_worker(backend: str, artifact: Artifact, launcher: Launcher, folder: Path) -> Worker:
    """Start a worker with a compiled session, warmed up."""
    kind = registry.backend(backend)
    worker = launcher.start(backend, kind.environment(kind.Options(), folder, launcher.threads))
    case = protocol.CaseSpec(
        backend=backend,
        options={},
        artifact=str(artifact.folder),
        device="cpu",
        precision="fp32",
        threads=launcher.threads,
        engine_dir=str(folder),
        cache_dir=str(folder),
    )
    worker.call(protocol.Import(backend=backend), protocol.Imported, timeout_s=600)
    worker.call(protocol.Compile(case=case), protocol.Opened, timeout_s=600)
    worker.call(protocol.RunOnce(), protocol.Took, timeout_s=600)
    worker.call(protocol.WarmUp(), protocol.Samples, timeout_s=600)
    worker.stop()
    return worker


def latency(backend: str, artifact: Artifact, launcher: Launcher, launches: int, rounds: int) -> tuple[float, float]:
    """Return the log ratio of harness to bare, and its 95 % half-width over launches."""
    ratios = []
    for launch in range(launches):
        with tempfile.TemporaryDirectory() as folder:
            worker = open_worker(backend, artifact, launcher, Path(folder))
            bare = Bare(backend, artifact, launcher.threads)
            try:
                bare.sample(1.0)
                differences = []
                for round_ in range(rounds):
                    pair = {}
                    for who in ("bare", "harness") if (launch + round_) % 2 else ("harness", "bare"):
                        slice_ = bare.sample(SLICE_S) if who == "bare" else harness_sample(worker, SLICE_S)
                        pair[who] = statistics.median(slice_)
                    differences.append(np.log(pair["harness"] / pair["bare"]))
            finally:
                bare.close()
                worker.close()
        ratios.append(statistics.median(differences))
        print(f"{backend}: launch {launch + 1}/{launches}: {np.exp(ratios[-1]):.4f}", file=sys.stderr)
    half = scipy.stats.t.ppf(0.975, launches - 1) * statistics.stdev(ratios) / launches**0.5
    return statistics.mean(ratios), float(half)


def unavoidable_s(run: Run) -> float:
    """Return the seconds of a run that no harness could save: what its workers spent in the libraries."""
    workload = run.workloads[0]
    total = 0.0 if workload.info is None or workload.info.export_cached else workload.info.export_s
    for case in workload.cases:
        total += sum(case.stages.get(stage, 0.0) for stage in ("import", "compile", "first_run", "second_run", "save"))
    for launch in workload.launches:
        for sitting in launch.sittings:
            # What loads side by side is counted as if the cores shared it evenly.
            share = 1.0 if sitting.loaded_alone else 1 / run.environment.logical_cores
            total += share * (sitting.import_s + sitting.load_s + sitting.first_run_s)
            total += sum(sitting.warm_up_ns) / 1e9
            total += sum(sum(window.samples_ns) for window in sitting.windows) / 1e9
    return total


def wall(model: str, threads: int) -> float:
    """Return a whole comparison's wall time over its unavoidable parts."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "harness", "compare", "--model", model, "--backends", "eager,onnxruntime"]
        command += ["--threads", str(threads), "--out", out, "--quiet", "--cold"]
        _, seconds = timed(lambda: subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True))
        run = load_run(RunFolder(next(Path(out).iterdir())))
    return seconds / unavoidable_s(run)


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="reference model (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--launches", type=int, default=5, help="pairs of fresh processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="visits of each process (default: %(default)s)")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as logs:
        launcher = Launcher(logs=Path(logs), threads=options.threads, memory_limit_bytes=1 << 40, timeout_s=600)
        with launcher:
            spec = ModelSpec(name=options.model)
            recipe = Recipe(model=spec, dims=dict(registry.model_class(options.model).dims))
            artifact, _ = ensure_artifact(recipe, launcher, on_progress=lambda _: None)
            for backend in ("onnxruntime", "eager"):
                ratio, half = latency(backend, artifact, launcher, options.launches, options.rounds)
                figure = f"{np.exp(ratio):.4f} [{np.exp(ratio - half):.4f}, {np.exp(ratio + half):.4f}]"
                good = abs(np.exp(ratio) - 1) <= MOST_LATENCY
                rows.append((f"{backend}: compute p50, harness / bare loop", figure, "within 2 %", good))
    share = wall(options.model, options.threads)
    rows.append(("wall time / unavoidable parts", f"{share:.3f}", f"at most {MOST_WALL}", share <= MOST_WALL))
    table = [(name, figure, limit, "ok" if good else "MISSED") for name, figure, limit, good in rows]
    print(tabulate(table, headers=["what", "measured [95 %]", "required", ""]))
    return 0 if all(row[-1] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
