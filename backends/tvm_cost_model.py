"""Which candidates are worth measuring: a linear model over tile sizes, shared by all kernels of a model.

MetaSchedule's own gradient-boosted model took half of a two-minute budget to train. What makes a CPU
schedule bad is coarse and the same for every kernel (vectors too short, accumulators that spill, too few
parallel chunks), so a ridge regression over binned tile sizes ranks unseen kernels usefully after a few
dozen trials, and refits in a millisecond. For a GPU the questions are other ones of the same kind; what they are
worth there has not been measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# TVM objects are `Any` below: the package carries no types and must not be imported at the top of a backend.

RIDGE = 3.0
"""Pull towards no preference, in units of observations."""

VECTOR = (2, 8, 16, 32, 64, 128)
ACCUMULATORS = (32, 64, 128, 256, 512, 1024)
CHUNKS = (2, 8, 64, 512)
INNER_REDUCTION = (2, 8, 32)
INNER_OTHER = (2, 8)
CHOICES = (1, 2, 3)

BLOCK = (32, 64, 128, 256, 512)
INTERLEAVED = (2, 4, 8)
PER_THREAD = (2, 4, 8, 16, 32, 64)
GRID = (16, 64, 256, 1024)
STEP = (2, 4, 8, 16, 32)
NEIGHBOURS = (2, 4, 8, 16, 32)
UNROLL = (1, 2, 3, 4)

Features = Callable[[list[Any]], np.ndarray]


class TileModel:
    """Ridge regression of log2 speed within a kernel on the tile sizes of its schedule."""

    def __init__(self, features: Features | None = None) -> None:
        self._features = features or cpu_features
        size = len(self._features([]))
        self._rows: dict[str, list[np.ndarray]] = {}
        self._speeds: dict[str, list[float]] = {}
        self._weights = np.zeros(size)

    def learn(self, kernel: str, decisions: list[Any], seconds: float) -> None:
        """Add one observation; `refit()` makes it count."""
        self._rows.setdefault(kernel, []).append(self._features(decisions))
        self._speeds.setdefault(kernel, []).append(-float(np.log2(max(seconds, 1e-9))))

    def refit(self) -> None:
        """Solve for the weights, each kernel's speeds and features taken around their own mean."""
        kernels = [kernel for kernel, rows in self._rows.items() if len(rows) > 1]
        if not kernels:
            return
        rows = np.concatenate([np.array(self._rows[k]) - np.mean(self._rows[k], axis=0) for k in kernels])
        speeds = np.concatenate([np.array(self._speeds[k]) - np.mean(self._speeds[k]) for k in kernels])
        gram = rows.T @ rows + RIDGE * np.eye(rows.shape[1])
        self._weights = np.linalg.solve(gram, rows.T @ speeds)

    def score(self, decisions: list[Any]) -> float:
        """Return the expected speed relative to the kernel's average; above 0, as the search samples by it."""
        return float(2.0 ** np.clip(self._features(decisions) @ self._weights, -8, 8))


def cpu_features(decisions: list[Any]) -> np.ndarray:
    """Bin the tile sizes of a schedule for a CPU into zeros and ones.

    Args:
        decisions: What MetaSchedule sampled: four factors for a spatial loop of its SSRSRS tiling (outermost
            first), two for a reduction, a number for a choice.
    """
    spatial = [factors for factors in decisions if isinstance(factors, list) and len(factors) == 4]
    reductions = [factors for factors in decisions if isinstance(factors, list) and len(factors) == 2]
    choices = [choice for choice in decisions if isinstance(choice, int)]
    innermost = spatial[-1] if spatial else [1, 1, 1, 1]
    other = int(np.prod([factors[3] for factors in spatial[:-1]]))
    # With nothing else inside, LLVM makes vectors of the next loop out.
    vector = innermost[3] if innermost[3] > 1 or other > 1 else innermost[2]
    accumulators = int(np.prod([factors[2] * factors[3] for factors in spatial]))
    binned = [
        _bin(vector, VECTOR),
        _bin(accumulators, ACCUMULATORS),
        _bin(int(np.prod([factors[0] for factors in spatial])), CHUNKS),
        _bin(int(np.prod([factors[1] for factors in reductions])), INNER_REDUCTION),
        _bin(other, INNER_OTHER),
        _bin(other * innermost[3], VECTOR),
        _bin(choices[0] if choices else 0, CHOICES),
    ]
    return np.concatenate(binned)


def gpu_features(decisions: list[Any]) -> np.ndarray:
    """Bin the tile sizes of a schedule for a GPU into zeros and ones.

    Args:
        decisions: What MetaSchedule sampled: five factors for a spatial loop of its SSSRRSRS tiling (blocks, virtual
            threads, threads, and two loops in a thread), three for a reduction, a number for a choice, of which the
            last says how far loops are unrolled.
    """
    spatial = np.array([factors for factors in decisions if isinstance(factors, list) and len(factors) == 5])
    reductions = [factors for factors in decisions if isinstance(factors, list) and len(factors) == 3]
    choices = [choice for choice in decisions if isinstance(choice, int)]
    blocks, interleaved, threads, outer, inner = spatial.prod(axis=0) if spatial.size else [1] * 5
    binned = [
        _bin(int(threads), BLOCK),
        _bin(int(interleaved), INTERLEAVED),
        _bin(int(outer * inner), PER_THREAD),
        _bin(int(blocks), GRID),
        _bin(int(np.prod([factors[1] * factors[2] for factors in reductions])), STEP),
        # Neighbours in the innermost loop read neighbours in memory.
        _bin(int(spatial[-1][2]) if spatial.size else 1, NEIGHBOURS),
        _bin(choices[-1] if choices else 0, UNROLL),
    ]
    return np.concatenate(binned)


def decisions_of(trace: Any) -> list[Any]:
    """Return what a schedule's trace decided, as plain lists and numbers."""
    return [
        [int(factor) for factor in decision] if hasattr(decision, "__len__") else int(decision)
        for decision in trace.decisions.values()
    ]


def cost_model(model: TileModel) -> Any:
    """Wrap a model so that MetaSchedule's search asks it. What it learns is fed in by the tuner."""
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.cost_model import PyCostModel

    @derived_object
    class Asked(PyCostModel):  # type: ignore[misc]
        def load(self, path: str) -> None:
            raise NotImplementedError

        def save(self, path: str) -> None:
            raise NotImplementedError

        def update(self, context: Any, candidates: Any, results: Any) -> None:
            pass

        def predict(self, context: Any, candidates: Any) -> np.ndarray:
            return np.array([model.score(decisions_of(candidate.sch.trace)) for candidate in candidates])

    return Asked()


def _bin(value: int, edges: tuple[int, ...]) -> np.ndarray:
    hot = np.zeros(len(edges) + 1)
    hot[sum(value >= edge for edge in edges)] = 1.0
    return hot
