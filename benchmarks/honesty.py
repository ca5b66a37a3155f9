"""Is a verdict to be believed? False calls and power of `harness.stats` on runs whose truth is known.

    python benchmarks/honesty.py --simulated
    python benchmarks/honesty.py --real

`--simulated` draws runs from a model of a noisy machine, judges them with the code that judges real runs, and prints
how often each verdict came out. `--real` runs `harness compare` again and again on this machine: ONNX Runtime against
itself under a second name, and against itself with every iteration lengthened by 5 %. Exit code 1 when a requirement
is missed.

A simulated run: every process has its own constant offset; all processes of a launch share drift (independent per
round, plus a random walk, plus a shift of the whole launch); every window adds its own noise, and one in ten is
lengthened by a spike of 8 % on average.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

# The checkout comes before an installed harness.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import stats

Floats = NDArray[np.float64]

SPIKE_SHARE, SPIKE_SIZE = 0.1, 0.08
DRIFT, WALK, LAUNCH_SHIFT = 0.03, 0.01, 0.02
MOST_FALSE = 0.015
"""Share of FASTER or SLOWER where there is no effect."""
MOST_WRONG_SAME = 0.01
"""Share of SAME where the effect is 1.5 % or 2 %."""
LEAST_FOUND = 0.95
"""Share of the right one of FASTER and SLOWER where the effect is 5 %."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A machine, a truth, and whether the verdicts are held to the limits or only shown."""

    name: str
    candidates: int = 3
    effect: float = 0.0
    """True relative difference of all candidates."""
    process: float = 0.005
    """Standard deviation between identical processes."""
    noise: float = 0.03
    """Standard deviation of a window around its process."""
    first_process: float | None = None
    """The first candidate's own, where it differs."""
    first_noise: float | None = None
    first_visits: int | None = None
    """Rounds of a launch in which the first candidate is visited, where not all."""
    judged: Literal["all", "first", "others"] = "all"
    """Which candidates are counted."""
    launches: int = 5
    most_launches: int | None = None
    """Where set, launches are added until every interval is within +-1 %, up to this many."""
    rounds: int = 10
    required: bool = True


def scenarios() -> list[Scenario]:
    """Return what the verdict rule promises, then how it does beyond its promises."""
    rows = []
    for process in (0.005, 0.01):
        for candidates in (1, 2, 8):
            for effect in (0.0, 0.05, -0.05):
                name = f"processes {100 * process:g} %, candidates: {candidates}"
                rows.append(Scenario(name=name, candidates=candidates, effect=effect, process=process))
    for effect in (0.0, 0.015, -0.015, 0.02):
        rows.append(
            Scenario(name="quiet machine, 1 % noise, 40 rounds", effect=effect, process=0.003, noise=0.01, rounds=40)
        )
        rows.append(Scenario(name="processes 0.5 %, 40 rounds", effect=effect, rounds=40))
    rows += [
        Scenario(name="launches added until precise, 5 to 12", effect=effect, noise=0.01, rounds=20, most_launches=12)
        for effect in (0.0, 0.015)
    ]
    rows.append(Scenario(name="one candidate in 2 of 10 rounds: it", first_visits=2, judged="first"))
    rows.append(Scenario(name="one candidate in 2 of 10 rounds: others", first_visits=2, judged="others"))
    beyond = [
        Scenario(name="the same: it", effect=0.05, first_visits=2, judged="first", required=False),
        Scenario(name="one with 3 % process spread: it", first_process=0.03, judged="first", required=False),
        Scenario(name="one with 3 % process spread: others", first_process=0.03, judged="others", required=False),
        Scenario(
            name="one with 6 % noise, others 1 %: it", noise=0.01, first_noise=0.06, judged="first", required=False
        ),
        Scenario(name="the same: others", noise=0.01, first_noise=0.06, judged="others", required=False),
        Scenario(name="processes 1.5 %", process=0.015, required=False),
        Scenario(name="processes 1.5 %", process=0.015, effect=0.05, required=False),
        Scenario(name="3 launches", launches=3, required=False),
        Scenario(name="3 launches", launches=3, effect=0.05, required=False),
        Scenario(name="10 launches", launches=10, effect=0.02, required=False),
    ]
    return rows + beyond


def draw(scenario: Scenario, runs: int, rng: np.random.Generator) -> Floats:
    """Return log medians of simulated runs, shape (runs, launches, cases, rounds); NaN where not visited."""
    launches = scenario.most_launches or scenario.launches
    cases, rounds = scenario.candidates + 2, scenario.rounds
    process, noise = np.full(cases, scenario.process), np.full(cases, scenario.noise)
    process[2] = scenario.process if scenario.first_process is None else scenario.first_process
    noise[2] = scenario.noise if scenario.first_noise is None else scenario.first_noise
    truth = np.where(np.arange(cases) < 2, 0.0, math.log1p(scenario.effect))
    shared = rng.normal(0, DRIFT, (runs, launches, 1, rounds)) + rng.normal(0, LAUNCH_SHIFT, (runs, launches, 1, 1))
    shared += np.cumsum(rng.normal(0, WALK, shared.shape), axis=-1)
    offsets = rng.normal(0, 1, (runs, launches, cases, 1)) * process[:, None]
    windows = rng.normal(0, 1, (runs, launches, cases, rounds)) * noise[:, None]
    spiked = rng.random(windows.shape) < SPIKE_SHARE
    tables = truth[:, None] + shared + offsets + windows + spiked * rng.exponential(SPIKE_SIZE, windows.shape)
    if scenario.first_visits is not None:
        order = rng.random((runs, launches, rounds)).argsort(axis=-1)
        tables[:, :, 2][order >= scenario.first_visits] = np.nan
    return np.asarray(tables)


def judge(scenario: Scenario, tables: Floats) -> NDArray[np.str_]:
    """Return the verdicts on the judged candidates, shape (runs, candidates judged)."""
    found = stats.verdicts(stats.contrast(tables[:, : scenario.launches]))
    if scenario.most_launches:
        stopped = stats.precise(stats.contrast(tables[:, : scenario.launches]))
        for launches in range(scenario.launches + 1, scenario.most_launches + 1):
            known = stats.contrast(tables[:, :launches])
            found = np.where(stopped[:, None], found, stats.verdicts(known))
            stopped = stopped | stats.precise(known)
    counted = {"all": slice(1, None), "first": slice(1, 2), "others": slice(2, None)}[scenario.judged]
    return np.asarray(found[:, counted])


def requirement(scenario: Scenario, share: dict[str, float]) -> tuple[str, bool]:
    """Return the requirement in words and whether the shares of verdicts meet it."""
    if scenario.effect == 0:
        return f"false <= {MOST_FALSE:.1%}", share["FASTER"] + share["SLOWER"] <= MOST_FALSE
    if abs(scenario.effect) <= 0.02:
        return f"SAME <= {MOST_WRONG_SAME:.0%}", share["SAME"] <= MOST_WRONG_SAME
    right = "SLOWER" if scenario.effect > 0 else "FASTER"
    return f"{right} >= {LEAST_FOUND:.0%}", share[right] >= LEAST_FOUND


def simulated(runs: int, seed: int) -> bool:
    """Print the table of all scenarios and return whether every requirement is met."""
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    rows, met = [], True
    for scenario in scenarios():
        found = judge(scenario, draw(scenario, runs, rng))
        share = {name: float((found == name).mean()) for name in ("FASTER", "SLOWER", "SAME", "UNDECIDED")}
        words, passed = requirement(scenario, share)
        outcome = ("pass" if passed else "FAIL") if scenario.required else "shown"
        met = met and (passed or not scenario.required)
        cells = [f"{value:.1%}" for value in share.values()]
        rows.append([scenario.name, f"{scenario.effect:+.1%}", *cells, words if scenario.required else "", outcome])
    headers = ["scenario", "effect", "FASTER", "SLOWER", "SAME", "UNDECIDED", "requirement", ""]
    print(tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", *["right"] * 5, "left", "left")))
    error = math.sqrt(MOST_FALSE * (1 - MOST_FALSE) / runs)
    print(
        f"\n{runs} runs a scenario, seed {seed}, {time.perf_counter() - started:.0f} s.\n"
        "Unless said otherwise: 5 launches of 10 rounds, 3 % noise, 3 candidates, 0.5 % between processes.\n"
        f"Standard error of a share of {MOST_FALSE:.1%}: at most {error:.1%}.\n"
        "Each interval holds in 99 % of runs by itself; all of a run's intervals together hold less often."
    )
    return met


def real(runs: int, pairs: int, model: str, threads: int, budget_s: float) -> bool:
    """Compare ONNX Runtime with itself and with itself slowed by 5 %; return whether the limits hold.

    Each run measures `pairs` candidates of either kind beside the baseline, in processes of their own.
    """
    kinds = {"onnxruntime": Counter[str](), "onnxruntime-slowed": Counter[str]()}
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    backends = ",".join(["onnxruntime", *["onnxruntime"] * pairs, *["onnxruntime-slowed"] * pairs])
    with tempfile.TemporaryDirectory() as out:
        for run in range(runs):
            table = _compare(backends, model, threads, budget_s, Path(out))
            for row in table["workloads"][0]["rows"]:
                if row["comparison"] is not None:
                    kinds[row["backend"]][row["comparison"]["verdict"]] += 1
                    ratios[row["backend"]].append(row["comparison"]["ratio"]["value"])
            print(f"run {run + 1}/{runs}: {', '.join(f'{k} {dict(c)}' for k, c in kinds.items())}", file=sys.stderr)
    same, slowed = kinds.values()
    total = runs * pairs
    allowed = total // 20
    rows = [
        ("the same backend under another name", "FASTER or SLOWER", same["FASTER"] + same["SLOWER"], "onnxruntime"),
        ("slowed by 5 %", "not SLOWER", total - slowed["SLOWER"], "onnxruntime-slowed"),
    ]
    shown = [
        (name, what, f"{count} of {total}", f"{min(ratios[kind]):.3f}-{max(ratios[kind]):.3f}", count <= allowed)
        for name, what, count, kind in rows
    ]
    print(tabulate(shown, headers=["case", "wrong verdict", "how often", "ratios", f"at most {allowed}"]))
    return all(row[-1] for row in shown)


def _compare(backends: str, model: str, threads: int, budget_s: float, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "harness", "compare", "--model", model, "--backends", backends, "--json"]
    command += ["--baseline", "onnxruntime", "--threads", str(threads), "--budget", str(budget_s)]
    command += ["--out", str(out), "--quiet"]
    plugins = Path(__file__).resolve().parent / "plugins"
    done = subprocess.run(
        command,
        cwd=plugins.parent.parent,
        env={**os.environ, "PYTHONPATH": str(plugins)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    table: dict[str, Any] = json.loads(done.stdout)
    return table


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", action="store_true", help="judge simulated runs")
    parser.add_argument("--real", action="store_true", help="run real comparisons on this machine")
    parser.add_argument("--runs", type=int, help="runs (default: 2000 a simulated scenario, 5 real ones)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: %(default)s)")
    parser.add_argument("--model", default="resnet50", help="of the real runs (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=4, help="candidates of either kind a run (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=180.0, help="seconds of measuring a run (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the real runs (default: %(default)s)")
    options = parser.parse_args()
    if not (options.simulated or options.real):
        parser.error("nothing to do: pass --simulated or --real")
    if options.runs is not None and options.runs < 1:
        parser.error(f"--runs must be at least 1, got {options.runs}")
    good = True
    if options.simulated:
        good &= simulated(options.runs or 2000, options.seed)
    if options.real:
        good &= real(options.runs or 5, options.pairs, options.model, options.threads, options.budget)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
