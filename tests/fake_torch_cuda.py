"""A CUDA device for torch where there is none: tensors stay on the CPU, and what torch.cuda offers is played."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from backends.torch_cuda import Place


class FakeStream:
    """A stream that counts who waits for it, and may have an error to tell them."""

    cuda_stream = 77

    def __init__(self) -> None:
        self.waits = 0
        self.error: Exception | None = None

    def synchronize(self) -> None:
        self.waits += 1
        if self.error is not None:
            raise self.error


class FakePlace(Place):
    """A device whose memory is the host's. Remembers the host tensors that it was asked for."""

    name = "NVIDIA GeForce RTX 4090 (sm_89)"

    def host_tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(tuple(shape), dtype=dtype)
        self.hosts.append(tensor)
        return tensor

    @property
    def hosts(self) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = self.__dict__.setdefault("_hosts", [])
        return kept

    def card(self) -> str:
        return self.name


def fake_place() -> FakePlace:
    """Return a new device with a stream of its own."""
    return FakePlace(device=torch.device("cpu"), stream=FakeStream())


class FakeGraph:
    """A CUDA graph: replaying computes on the same tensors again and writes into the same results."""

    def __init__(self) -> None:
        self.tape: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for function, args, kwargs, results in self.tape:
            fresh = function(*args, **kwargs)
            for old, new in zip(_pytree.tree_leaves(results), _pytree.tree_leaves(fresh), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


class _Tape(TorchDispatchMode):  # type: ignore[misc]  # torch is Any to the type checker
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nSearch for `cudaError'")
        result = func(*args, **(kwargs or {}))
        self._graph.tape.append((func, args, kwargs or {}, result))
        return result


class FakeCapture:
    """What `torch.cuda.graph` is: after a failure, ending the capture fails too."""

    def __init__(self, graph: FakeGraph, *, stream: FakeStream) -> None:
        assert isinstance(stream, FakeStream)
        self._tape = _Tape(graph)

    def __enter__(self) -> None:
        self._tape.__enter__()

    def __exit__(self, kind: object, *rest: object) -> None:
        self._tape.__exit__(kind, *rest)
        if kind is not None:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
