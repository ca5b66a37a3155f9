"""The environment variables of a worker: the user's own, and what must not be left to chance."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping

MARK = "HARNESS_WORKER"
"""Environment variable that every process below a worker inherits: what escapes the tree is found by it."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def variables(
    extra: Mapping[str, str], *, threads: int, scratch: str, mark: str, without: Container[str] = ()
) -> dict[str, str]:
    """Return what a worker's process starts with. `without` names variables of the user's that do not get there."""
    return {
        **{name: value for name, value in os.environ.items() if name not in without},
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as the driver's tools count: `cuda:0` is the card that is watched
        "TMPDIR": scratch,  # what a compiler leaves behind goes away with the worker
        MARK: mark,
        **extra,
    }
