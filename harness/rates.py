"""How fast a device multiplies matrices and moves memory: the worker's half of `harness ceilings`. Imports torch.

The best of several sizes counts, and of each size the fastest of its repetitions: a ceiling is what no program goes
beyond, not what one sees on average. A CPU multiplies by two libraries, since the one behind `torch.mm` may be made for
another maker's processors. Sizes are gone through again and again until that finds nothing faster, so that a busy spell
of the machine does not pass for its limit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from harness import protocol
from harness.errors import UnavailableError
from harness.measure import now_ns

if TYPE_CHECKING:
    import torch

MATRIX_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
MEMORY_SIZES = {"cpu": tuple(1 << n for n in range(20, 29, 2)), "cuda": tuple(1 << n for n in range(20, 31, 2))}
"""Bytes that are worked on, from what lies in caches to what does not."""
PIECES, LEAST_PIECE = 16, 1 << 20
"""Into how many a working set is cut at most, and the bytes that each has at least."""
LEAST_S = 0.1
"""Time that one size is repeated for in a pass."""
STALE, PASSES_AT_MOST = 5, 20
"""Passes in a row that find nothing faster, and are then enough."""
RISE = 1.01
"""Faster is what is faster by more than this."""
LEAST_REPETITIONS = 5
DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
"""Precision -> torch's element type. What a device does not multiply in is left out with the reason."""


def measure(request: protocol.Rates) -> protocol.Rated:
    """Return the rates of a device in the precisions asked for.

    Raises:
        UnavailableError: torch cannot use the device.
    """
    import torch

    torch.set_num_threads(request.threads)
    device = torch.device(request.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            f"torch {torch.__version__} cannot use {request.device}",
            hint="harness backends eager says why; torch's CUDA build is needed, and a driver that serves it",
        )
    matrix, refused = {}, {}
    with torch.inference_mode():
        for precision in request.precisions:
            try:
                matrix[precision] = _matrix(precision, device)
            except (RuntimeError, NotImplementedError, KeyError) as exc:
                refused[precision] = f"{type(exc).__name__}: {exc}".splitlines()[0]
        sizes = MEMORY_SIZES[device.type] if request.memory else ()
        memory = [(size, _settled(partial(_memory, size, device))) for size in sizes]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return protocol.Rated(
        matrix=matrix, memory=memory, refused=refused, device_name=name, version=str(torch.__version__)
    )


def _matrix(precision: str, device: torch.device) -> float:
    """Return operations a second, a multiply-add counted as two."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    # GeForce cards add products of float16 twice as fast in float16, and an engine may let them.
    torch.backends.cuda.matmul.allow_fp16_accumulation = precision == "fp16"
    dtype = getattr(torch, DTYPES[precision])
    if precision == "tf32" and device.type == "cpu":
        raise RuntimeError("a CPU has no TensorFloat-32")
    work = [(2 * size**3, product) for size in MATRIX_SIZES[device.type] for product in _products(size, dtype, device)]
    return _settled(lambda: max(operations / _fastest_s(product, device) for operations, product in work))


def _settled(measured: Callable[[], float]) -> float:
    """Return the best of as many measurements as it takes until some in a row are no better."""
    best, stale = 0.0, 0
    for _ in range(PASSES_AT_MOST):
        rate = measured()
        stale = 0 if rate > RISE * best else stale + 1
        best = max(best, rate)
        if stale == STALE:
            break
    return best


def _products(size: int, dtype: torch.dtype, device: torch.device) -> list[Callable[[], Any]]:
    """Return ways to multiply two square matrices."""
    import torch

    left, right = (_filled((size, size), dtype, device) for _ in range(2))
    if dtype == torch.int8:
        # A GPU's tensor cores take integers with the second matrix lying transposed, and some take them no other way.
        return [partial(torch._int_mm, left, right if device.type == "cpu" else right.t())]
    found: list[Callable[[], Any]] = [partial(torch.mm, left, right)]
    if device.type == "cpu":  # a convolution whose window is one pixel is the same product, by oneDNN instead of BLAS
        image, kernel = left.reshape(1, size, -1, 32), right.reshape(size, size, 1, 1)
        channels_last = {"memory_format": torch.channels_last}
        image, kernel = image.contiguous(**channels_last), kernel.contiguous(**channels_last)
        found.append(partial(torch.nn.functional.conv2d, image, kernel))
    return found


def _memory(size: int, device: torch.device) -> float:
    """Return bytes a second at a working set of so many bytes: of copying or of reading, whichever is faster.

    A CPU walks through the set in pieces that are timed each: a whole large set takes longer than a busy machine leaves
    a program alone.
    """
    import torch

    pieces = max(1, min(PIECES, size // LEAST_PIECE)) if device.type == "cpu" else 1
    source = _filled((size // 4,), torch.float32, device)
    half = source[: size // 8]
    target = torch.empty_like(half)
    parts = itertools.cycle(source.chunk(pieces))
    pairs = itertools.cycle(list(zip(target.chunk(pieces), half.chunk(pieces), strict=True)))

    def copy() -> None:
        to, from_ = next(pairs)
        to.copy_(from_)

    copying = _fastest_s(copy, device)  # half of it is read, as much is written
    reading = _fastest_s(lambda: next(parts).sum(), device)
    return size / pieces / min(copying, reading)


def _filled(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    import torch

    return torch.ones(shape, device=device).to(dtype)


def _fastest_s(work: Callable[[], Any], device: torch.device) -> float:
    """Return the shortest time of a repetition, the first ones left out."""
    import torch

    def once() -> int:
        start = now_ns()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return now_ns() - start

    once()
    durations: list[int] = []
    deadline = now_ns() + int(LEAST_S * 1e9)
    while len(durations) < LEAST_REPETITIONS or now_ns() < deadline:
        durations.append(once())
    return max(min(durations), 1) / 1e9
