"""torch on an NVIDIA device: whether it answers, the stream that all work runs on, CUDA graphs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backends import cuda_device
from backends.torch_errors import INSTALL, NO_DRIVER, first_cause, hint_for, in_words, sentence, tell
from harness.errors import UnavailableError, UnsupportedError

if TYPE_CHECKING:
    import torch

WARM_UP_CALLS = 3
"""Before a capture: libraries then choose their algorithms and allocate their workspaces, which a graph cannot."""


# ---- the device


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a session's tensors lie, and the stream on which its work is enqueued."""

    device: torch.device
    stream: Any = None
    """A `torch.cuda.Stream`; None on a CPU."""

    def host_tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return empty host memory: page-locked where a device copies to or from it, else the copy would wait."""
        import torch

        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self.stream is not None)

    def card(self) -> str | None:
        """Return what code is built for: the device's name and compute capability; None on a CPU."""
        import torch

        if self.stream is None:
            return None
        found = torch.cuda.get_device_properties(self.device)
        return f"{found.name} (sm_{found.major}{found.minor})"


def devices() -> tuple[str, ...]:
    """Return the CUDA devices that torch can use. Makes no context on them."""
    import torch

    # Not the count alone: it is NVML's, which also counts devices whose driver is too old for this torch.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(f"cuda:{index}" for index in range(count))


def why_none() -> tuple[str, str | None] | None:
    """Return why torch sees no CUDA device, and what to do about it; None where there is no NVIDIA driver at all."""
    import torch

    if not torch.backends.cuda.is_built():
        try:
            found = cuda_device.driver().gpus
        except UnavailableError:
            return None
        names = ", ".join(gpu.name for gpu in found)
        return f"torch {torch.__version__} is built for CPUs only and cannot use {names or 'a GPU'}", INSTALL
    try:
        torch.cuda.init()
    except Exception as exc:  # torch raises RuntimeError, AssertionError and a class of its own here
        if str(exc).startswith(NO_DRIVER):
            return None
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}): {sentence(exc)}", hint_for(str(exc))
    return None


def place_of(device: str) -> Place:
    """Return a device's place, after making it and a stream of this process' own on it current.

    Raises:
        UnavailableError: torch cannot use it; the message says why.
    """
    import torch

    chosen = torch.device(device)
    if chosen.type != "cuda":
        return Place(device=chosen)
    if not torch.backends.cuda.is_built():
        raise UnavailableError(f"torch {torch.__version__} is built for CPUs only, not for {device}", hint=INSTALL)
    try:
        torch.cuda.init()
    except Exception as exc:  # torch raises RuntimeError, AssertionError and a class of its own here
        raise UnavailableError(f"torch cannot use {device}: {sentence(exc)}", hint=hint_for(str(exc))) from exc
    index, count = chosen.index or 0, torch.cuda.device_count()
    if index >= count:
        known = ", ".join(f"cuda:{number}" for number in range(count))
        raise UnavailableError(
            f"no device '{device}' for torch; it has {known or 'none'}", hint="see CUDA_VISIBLE_DEVICES and nvidia-smi"
        )
    with in_words():
        return Place(device=torch.device("cuda", index), stream=_stream(index))


@functools.cache
def _stream(index: int) -> Any:
    """Return this process' stream on a device; it stays current, so that no call pays for making it so.

    A worker holds one session, whose stream this is: harness and session enqueue on it, and wait for nothing else.
    """
    import torch

    stream = torch.cuda.Stream(device=index)
    torch.cuda.set_stream(stream)  # makes its device current too
    return stream


# ---- CUDA graphs


class CapturedCall:
    """A call as one CUDA graph: it reads the tensors that it was captured with and overwrites its own results."""

    def __init__(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor], place: Place) -> None:
        """Capture a call on a CUDA device, on inputs that keep their addresses from now on.

        Raises:
            UnsupportedError: It does something that a graph cannot hold.
        """
        import torch

        for _ in range(WARM_UP_CALLS):
            call(*inputs)
        place.stream.synchronize()
        self._kept = call, inputs  # the graph knows addresses only
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph, stream=place.stream):
                self._results = call(*inputs)
        except RuntimeError as exc:
            first = first_cause(exc)
            if isinstance(first, torch.OutOfMemoryError):
                tell(first)
            raise UnsupportedError(
                f"cuda_graph=true: this model cannot be captured: {sentence(first)}",
                hint="leave out cuda_graph: it makes tensors on the CPU, or asks for a value, between its kernels",
            ) from exc

    def __call__(self, *_: object) -> Any:
        self._graph.replay()
        return self._results


@dataclass
class Recording:
    """What torch.compile did about CUDA graphs while `watch()` looked on."""

    graphs: int = 0
    """Recorded in this process on the device; each is replayed as a whole."""
    skipped: list[str] = field(default_factory=list)
    """Reasons why parts were left out, as Inductor gives them."""


@contextmanager
def watch(device: torch.device) -> Iterator[Recording]:
    """Count the CUDA graphs that Inductor has recorded by the end, and hear why it left parts out."""
    from torch._inductor import cudagraph_trees, cudagraph_utils

    found = Recording()

    class Hear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reason = record.getMessage().partition("\n")[0].strip().removeprefix("skipping cudagraphs due to ")
            if reason not in found.skipped:
                found.skipped.append(reason)

    # Its counter says how often, and nothing else says why.
    log, hear = cudagraph_utils.cudagraphs_log, Hear(logging.WARNING)
    log.addHandler(hear)
    try:
        yield found
    finally:
        log.removeHandler(hear)
        manager = cudagraph_trees.get_manager(device.index or 0, create_if_none_exists=False)
        nodes = list(manager.get_roots()) if manager is not None else []
        while nodes:
            found.graphs += 1
            nodes += [child for children in nodes.pop().children.values() for child in children]
