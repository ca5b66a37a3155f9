"""Which detector finds steps in the history of a figure, how late, and how often where there is none?

    python benchmarks/trends.py
    python benchmarks/trends.py --series 100

Every detector proposes places in the same invented series, a value a run; `harness.history.steps` then asks for the
same proof, so that the rows differ by the search alone; in one row there is no proof. Noise is 2 %, and one run in
twenty, never two in a row, is a spike of up to twice the level.

hit        share of series of 30 runs, then 30 a step higher or lower, in which one is found within 3 runs of the place
seen       share in which any step of that direction is found
delay      runs after the step until it is found, looking after every run; the median over those found
false      share of series of 40 runs without a step in which one is found
false, 12  the same for 12 runs
ever       share of those of 40 in which a step was found after any run: forty looks at each
covered    share of the steps of 1.25 that were hit, whose 99 % interval holds the true ratio

Exit code 1 where the default misses a requirement.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ruptures
from tabulate import tabulate

# The checkout comes before an installed harness.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.history import steps
from harness.history.steps import HOLD, Floats, Search, Shift, find_steps

NOISE, SPIKES = 0.02, 0.05
LEAST = 0.02
NEAR = 3
STEPS = (2.7, 1.25, 1.05, 1 / 1.05)
SEED = 5
MOST_FALSE, LEAST_SEEN = 0.01, 0.98
DEFAULT = "kernel rbf"
Find = Callable[[list[float]], list[Shift]]


def series(random: np.random.Generator, runs: int, *, step: float = 1.0, at: int | None = None) -> list[float]:
    """Return the logs of a figure, a run each."""
    values = random.normal(0, NOISE, runs)
    spiked = random.random(runs) < SPIKES
    spiked[1:] &= ~spiked[:-1]
    values += spiked * np.log1p(random.uniform(0.05, 1.0, runs))
    if at is not None:
        values[at:] += math.log(step)
    return [float(value) for value in values]


def by_threshold(scaled: Floats) -> list[int]:
    """Return where `HOLD` runs in a row are two deviations off the median of all runs since the last such place."""
    found: list[int] = []
    for at in range(HOLD, len(scaled) - HOLD + 1):
        since = found[-1] if found else 0
        if at - since < HOLD:
            continue
        off = scaled[at : at + HOLD] - np.median(scaled[since:at])
        if np.all(off > 2) or np.all(off < -2):
            found.append(at)
    return found


def _by(algorithm: Callable[[], object], penalty: Callable[[int], float]) -> Search:
    def search(scaled: Floats) -> list[int]:
        fitted = algorithm()
        places = fitted.fit_predict(scaled.reshape(-1, 1), pen=penalty(len(scaled)))  # type: ignore[attr-defined]
        return [int(at) for at in places[:-1]]

    return search


def searches() -> dict[str, Search]:
    """Return what is compared. Penalties of the likelihoods grow with the log of the runs, as usual."""

    def log(factor: float) -> Callable[[int], float]:
        return lambda runs: factor * math.log(runs)

    def rbf() -> object:
        return ruptures.costs.CostRbf(gamma=steps.WIDTH)

    exact = {"min_size": HOLD, "jump": 1}
    width = {"width": 2 * HOLD} | exact
    return {
        DEFAULT: steps.by_kernel,
        "kernel l2": _by(lambda: ruptures.KernelCPD(kernel="linear", min_size=HOLD), log(3)),
        "Pelt l1": _by(lambda: ruptures.Pelt(model="l1", **exact), log(1.5)),
        "Pelt l2": _by(lambda: ruptures.Pelt(model="l2", **exact), log(3)),
        "Pelt rbf": _by(lambda: ruptures.Pelt(custom_cost=rbf(), **exact), lambda _: steps.PENALTY),
        "Binseg l1": _by(lambda: ruptures.Binseg(model="l1", **exact), log(1.5)),
        "Binseg l1, twice the penalty": _by(lambda: ruptures.Binseg(model="l1", **exact), log(3)),
        "Binseg rbf": _by(lambda: ruptures.Binseg(custom_cost=rbf(), **exact), lambda _: steps.PENALTY),
        "Window l1": _by(lambda: ruptures.Window(model="l1", **width), log(1.5)),
        "Window rbf": _by(lambda: ruptures.Window(custom_cost=rbf(), **width), lambda _: steps.PENALTY),
        "threshold": by_threshold,
    }


def finders() -> dict[str, Find]:
    """Return all searches with the proof, and the default without it."""

    def proven(search: Search) -> Find:
        return lambda logs: find_steps(logs, least=LEAST, search=search)

    def unproven(logs: list[float]) -> list[Shift]:
        values = np.asarray(logs)
        places = steps.by_kernel((values - np.median(values)) / steps.noise(values))
        return steps.shifts(values, [0, *places, len(values)])

    return {name: proven(search) for name, search in searches().items()} | {f"{DEFAULT}, no proof": unproven}


def hits(find: Find, step: float, count: int) -> tuple[float, float, float | None, float]:
    """Return share hit, share seen, median delay and coverage for one height of step."""
    random = np.random.default_rng(SEED)
    hit = seen = covered = 0
    delays = []
    for _ in range(count):
        logs = series(random, 60, step=step, at=30)
        found = find(logs)
        near = [shift for shift in found if abs(shift.at - 30) <= NEAR]
        hit += bool(near)
        seen += any((shift.after > shift.before) == (step > 1) for shift in found)
        covered += any(abs(s.after - s.before - math.log(step)) <= s.half_width for s in near[:1])
        late = (after for after in range(HOLD, 31) if any(abs(s.at - 30) <= NEAR for s in find(logs[: 30 + after])))
        if (delay := next(late, None)) is not None:
            delays.append(delay)
    return hit / count, seen / count, statistics.median(delays) if delays else None, covered / max(hit, 1)


def false_alarms(find: Find, runs: int, count: int) -> float:
    """Return the share of series without a step in which one is found."""
    random = np.random.default_rng(SEED + 1)
    return sum(bool(find(series(random, runs))) for _ in range(count)) / count


def ever(find: Find, runs: int, count: int) -> float:
    """Return the share of series without a step in which one was found after any run."""
    random = np.random.default_rng(SEED + 2)
    found = 0
    for _ in range(count):
        logs = series(random, runs)
        found += any(find(logs[:end]) for end in range(steps.LEAST_RUNS, runs + 1))
    return found / count


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--series", type=int, default=400, help="series a figure [400]")
    count = parser.parse_args().series
    rows, missed = [], []
    for name, find in finders().items():
        begun = time.perf_counter()
        few = count if name.startswith(("kernel", "threshold")) else max(20, count // 4)  # the others are slow
        of_steps = [hits(find, step, few) for step in STEPS]
        false, false_12, at_any = false_alarms(find, 40, 4 * few), false_alarms(find, 12, 4 * few), ever(find, 40, few)
        logs = series(np.random.default_rng(SEED), 60)
        start = time.perf_counter()
        for _ in range(10):
            find(logs)
        each_ms = (time.perf_counter() - start) * 100
        shown = [f"{hit:.3f} {seen:.3f} {delay or 0:.0f}" for hit, seen, delay, _ in of_steps]
        rows.append((name, few, *shown, f"{of_steps[1][3]:.3f}", false, false_12, at_any, f"{each_ms:.2f}"))
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        if name == DEFAULT:
            missed += [
                f"{step:.3g}" for step, (_, seen, _, _) in zip(STEPS, of_steps, strict=True) if seen < LEAST_SEEN
            ]
            missed += ["false"] * (false > MOST_FALSE) + ["false, 12"] * (false_12 > MOST_FALSE)
    titles = [f"{step:.3g}x: hit seen delay" for step in STEPS]
    headers = ["search", "series", *titles, "covered", "false", "false, 12", "ever", "ms a series"]
    print(tabulate(rows, headers=headers, floatfmt=".4f", disable_numparse=[2, 3, 4, 5]))
    if missed:
        print(f"{DEFAULT} misses: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
