"""Where a series of figures moves from one level to another, and stays there. Pure functions of numbers.

`find_steps()` takes the logs of one figure a run and returns its steps, in three parts:

noise     The median absolute difference from one run to the next. A spike is in two of these, a step in one.
search    Where the distribution changes: ruptures' `KernelCPD` with a Gaussian kernel of the values over their noise.
          By that kernel a spike is as far off as any other value far off is, however high it is.
proof     Each place is then held to three limits; the weakest that fails one is struck out and its sides are joined,
          until none fails. The levels differ by `least`, and by `CLEAR` standard errors; and on either side `HOLD` runs
          are nearer to their own level than to the other. Less than that is a spike.

A level is the mean of its runs, each no farther from their median than two deviations: nearly as precise as a mean, and
as safe from spikes as a median (P. J. Huber 1964, doi:10.1214/aoms/1177703732, one step). The deviation is that of all
runs from the medians of their levels.

What `python benchmarks/trends.py` printed, for noise of 2 % in which one run in twenty is a spike of up to twice the
level: hit within 3 runs of its place for steps of 1.25x and 1.05x in the middle of 60 runs and the median of runs until
then; alarms in 40 runs without a step, at the end of them and after any of the runs; time for 60 runs. 400 series, 100
where the search is slow.

| search                       | 1.25x    | 1.05x     | false  | ever   | time   |
|------------------------------|----------|-----------|--------|--------|--------|
| `KernelCPD`, Gaussian        | 100 %, 3 | 98.8 %, 5 | 0.1 %  | 3.5 %  | 0.1 ms |
| the same without the proof   | 100 %, 3 | 98.8 %, 5 | 0.3 %  | 5.8 %  | 0.1 ms |
| `Pelt`, Gaussian             | 100 %, 3 | 97 %, 5   | 0.5 %  | 5 %    | 13 ms  |
| `Binseg`, Gaussian           | 100 %, 3 | 97 %, 5   | 0.5 %  | 5 %    | 0.5 ms |
| `Window`, Gaussian           | 100 %, 3 | 77 %, 5   | 0.0 %  | 1 %    | 1.5 ms |
| `Pelt`, absolute differences | 100 %, 3 | 93 %, 4   | 2.5 %  | 20 %   | 21 ms  |
| `Binseg`, the same           | 100 %, 3 | 95 %, 4   | 2.0 %  | 20 %   | 1.9 ms |
| twice its penalty            | 100 %, 3 | 93 %, 9   | 0.0 %  | 4 %    | 1.5 ms |
| `KernelCPD`, squares         | 99.5 %, 3| 85.5 %, 4 | 3.9 %  | 22 %   | 0.3 ms |
| three runs beyond 2 sd       | 100 %, 3 | 37.8 %, 5 | 0.6 %  | 7 %    | 0.8 ms |

Every search finds all steps of 2.7x after 3 runs. 99 % of the default's intervals of a step of 1.25x hold it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special
from numpy.typing import NDArray

from harness.history.changes import CONFIDENCE, TO_DEVIATION, deviation

HOLD = 3
"""Runs for which a step must hold before it is one."""
LEAST_RUNS = 2 * HOLD
"""Of a series, before anything can be said of it."""
CLEAR = 4.0
"""Standard errors by which levels must differ. Many places of many series are looked at: two or three are no news."""
STEADY = 0.005
"""The least noise that is reckoned with, in log units: figures such as sizes have none, and move by a byte."""
CUT_OFF = 2.0
"""Deviations from which on a value counts as if it were that far off."""
WIDTH = 0.1
"""Gamma of the kernel: two values that differ by three deviations are alike by exp(-0.9)."""
PENALTY = 2.0
"""What a further step must explain, as the sum over runs of how little alike they are."""

Floats = NDArray[np.float64]
Search = Callable[[Floats], list[int]]
"""Values over their noise -> the index of the first value of each level but the first, ascending."""


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A move from one level to another. Levels are logs."""

    at: int
    """Index of the first value on the new level."""
    start: int
    """Index of the first value on the old level."""
    end: int
    """Index behind the last value on the new level."""
    before: float
    after: float
    error: float
    """Standard error of the difference."""
    freedom: float

    @property
    def half_width(self) -> float:
        """Return half the width of the interval of the difference."""
        return self.error * float(scipy.special.stdtrit(self.freedom, (1 + CONFIDENCE) / 2))


def find_steps(logs: Sequence[float], *, least: float, search: Search | None = None) -> list[Shift]:
    """Return the steps of a series, the oldest first; none where there are fewer than `LEAST_RUNS` values.

    Args:
        logs: Natural logs of a figure, one a run, the oldest first.
        least: The smallest relative change that counts, such as 0.02.
        search: Another way to look for candidates; `benchmarks/trends.py` compares several.
    """
    if len(logs) < LEAST_RUNS:
        return []
    values = np.asarray(logs, dtype=np.float64)
    places = (search or by_kernel)((values - np.median(values)) / noise(values))
    limits = [0, *places, len(values)]
    while True:
        found = shifts(values, limits)
        failing = [shift for shift in found if not _proven(values, shift, least)]
        if not failing:
            return found
        weakest = min(failing, key=lambda shift: abs(shift.after - shift.before) / shift.error)
        limits.remove(weakest.at)


def by_kernel(scaled: Floats) -> list[int]:
    """Return where the distribution of values changes: the search of `find_steps()`."""
    import ruptures  # takes a second, and scipy's statistics with it

    algorithm = ruptures.KernelCPD(kernel="rbf", min_size=HOLD, params={"gamma": WIDTH})
    return [int(at) for at in algorithm.fit_predict(scaled.reshape(-1, 1), pen=PENALTY)[:-1]]


def noise(values: Floats | Sequence[float]) -> float:
    """Return the standard deviation of values around their levels, wherever these are."""
    differences = np.diff(np.asarray(values))
    spread = np.median(np.abs(differences - np.median(differences)))
    return max(TO_DEVIATION * float(spread) / math.sqrt(2), STEADY)


def shifts(values: Floats, limits: Sequence[int]) -> list[Shift]:
    """Return the moves between neighbouring levels, whose limits include 0 and the number of values."""
    parts = [values[start:end] for start, end in itertools.pairwise(limits)]
    spread = max(deviation(np.concatenate([part - np.median(part) for part in parts]).tolist()), STEADY)
    levels = [_level(part, spread) for part in parts]
    return [
        Shift(
            at=limits[index],
            start=limits[index - 1],
            end=limits[index + 1],
            before=levels[index - 1],
            after=levels[index],
            error=spread * math.sqrt(1 / len(parts[index - 1]) + 1 / len(parts[index])),
            # Half of the usual: a median absolute deviation uses values about half as well as a standard deviation.
            freedom=(len(values) - len(parts)) / 2,
        )
        for index in range(1, len(parts))
    ]


def _level(part: Floats, spread: float) -> float:
    middle = statistics.median(part.tolist())
    return float(np.mean(np.clip(part, middle - CUT_OFF * spread, middle + CUT_OFF * spread)))


def _proven(values: Floats, shift: Shift, least: float) -> bool:
    height, middle = shift.after - shift.before, (shift.before + shift.after) / 2
    up = math.copysign(1.0, height)
    below = int(np.sum(up * (values[shift.start : shift.at] - middle) < 0))
    above = int(np.sum(up * (values[shift.at : shift.end] - middle) > 0))
    return abs(height) >= max(math.log1p(least), CLEAR * shift.error) and min(below, above) >= HOLD
