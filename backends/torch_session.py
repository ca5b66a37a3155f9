"""A callable on tensors as a session: its inputs, a run, its outputs, and what is kept of it beside the engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from backends import torch_profile
from backends.torch_cuda import CapturedCall, Place
from backends.torch_errors import tell
from backends.torch_module import options_of
from backends.torch_shapes import Bounds
from harness.api import Artifact, CompileRequest, Profile, Scalar, Session
from harness.errors import RunError
from harness.operators import Clock, Iterate

if TYPE_CHECKING:
    import numpy as np
    import torch

FACTS = "facts.json"


class SavedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a session knows that a later process cannot find out, beside the engine."""

    facts: dict[str, Scalar] = {}
    notes: list[str] = []
    placement: dict[str, int] | None = None
    card: str | None = None
    """The NVIDIA device that the code was generated for; None on a CPU."""
    regions: list[Bounds] = []
    """For a sweep: what each graph or package of the engine holds for, input by input."""


@functools.cache
def leave_gradients_off() -> Any:  # torch's own kind of context, untyped
    """Enter inference mode for the rest of the process, which runs sessions only; entering it per call costs time."""
    import torch

    mode = torch.inference_mode()
    mode.__enter__()
    return mode  # kept by the cache: when it is collected the mode ends


class Inputs:
    """A session's input tensors. They keep their addresses: CUDA graphs know nothing else of them."""

    def __init__(self, request: CompileRequest, place: Place) -> None:
        """Allocate them on the device, and host memory to copy through."""
        import torch

        channels_last = options_of(request).channels_last
        with torch.inference_mode():  # Dynamo guards on the kind of tensor: all are of one kind
            self._hosts = [
                place.host_tensor(spec.shape, getattr(torch, spec.dtype)) for spec in request.artifact.inputs
            ]
            self.tensors = [self._resting(host, place, channels_last=channels_last) for host in self._hosts]
        self._views = [host.numpy() for host in self._hosts]

    @staticmethod
    def _resting(host: torch.Tensor, place: Place, *, channels_last: bool) -> torch.Tensor:
        import torch

        wants = channels_last and host.ndim == 4
        if place.stream is None and not wants:
            return host  # one copy is enough, as every other backend pays it on a CPU
        layout = torch.channels_last if wants else torch.contiguous_format
        return torch.empty(host.shape, dtype=host.dtype, device=place.device, memory_format=layout)

    def fill(self, arrays: Iterable[np.ndarray]) -> None:
        """Copy arrays in; to a device asynchronously, so that it must have read the ones before."""
        import numpy as np

        for view, host, tensor, array in zip(self._views, self._hosts, self.tensors, arrays, strict=True):
            np.copyto(view, array, casting="no")
            if tensor is not host:
                tensor.copy_(host, non_blocking=True)

    def free(self) -> None:
        """Let go of all memory."""
        self.tensors, self._hosts, self._views = [], [], []


class TorchSession(Session):
    """A callable on tensors that lie on the device."""

    def __init__(
        self,
        call: Callable[..., Any],  # a module, a compiled module or a package: torch types none of them alike
        request: CompileRequest,
        place: Place,
        *,
        provider: str,
        inputs: Inputs | None = None,
        saved: SavedFacts | None = None,
        locate: Callable[[], dict[str, int]] | None = None,
        compilations: Callable[[], int] | None = None,
        within: AbstractContextManager[object] | None = None,
    ) -> None:
        """Take what runs.

        `inputs` are those that it was compiled with. `locate` finds the placement where it was not saved.
        `compilations` counts what was compiled in this process. `within` is entered once, and left by `close()`.

        Raises:
            OutOfMemory: The device has no room for the inputs.
        """
        leave_gradients_off()
        self.provider = provider
        self.stream = place.stream.cuda_stream if place.stream is not None else None
        self._call: Any = call
        self._place = place
        self._artifact: Artifact = request.artifact
        self._saved = saved or SavedFacts()
        self._inputs = inputs or Inputs(request, place)
        self._copying = False
        self._results: Any = None
        self._locate = locate
        self._compilations = compilations
        self._landing: dict[str, torch.Tensor] = {}
        self._within = ExitStack()
        if within is not None:
            self._within.enter_context(within)

    def capture(self) -> None:
        """Put one CUDA graph in the call's place.

        Raises:
            UnsupportedError: A CUDA graph cannot hold it.
        """
        self.bind(self._artifact.input_set(0))
        self._call = CapturedCall(self._call, self._inputs.tensors, self._place)

    def facts(self) -> dict[str, Scalar]:
        return dict(self._saved.facts)

    def notes(self) -> list[str]:
        return list(self._saved.notes)

    def compilations(self) -> int:
        return self._compilations() if self._compilations is not None else 0

    def placement(self) -> dict[str, int] | None:
        if self._saved.placement is None and self._locate is not None:
            self._saved = msgspec.structs.replace(self._saved, placement=self._locate())
        return self._saved.placement or None

    def save(self, engine_dir: Path) -> None:
        # The weights are the artifact's. What a later process needs beside them is what was found while compiling.
        (engine_dir / FACTS).write_bytes(msgspec.json.encode(self._saved))

    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        fitting = self._artifact.check_inputs(inputs)
        if self._copying:  # the device may still be reading what is about to be overwritten
            self.synchronize()
        self._inputs.fill(fitting.values())
        self._copying = self._place.stream is not None

    def execute(self) -> None:
        try:
            self._results = None  # else two sets of outputs would be alive at once
            self._results = self._call(*self._inputs.tensors)
        except RuntimeError as exc:
            tell(exc)
            raise

    def synchronize(self) -> None:
        if self._place.stream is None:
            return
        try:
            self._place.stream.synchronize()
        except RuntimeError as exc:  # kernels fail long after they were enqueued
            tell(exc)
            raise
        self._copying = False

    def profile(self, iterate: Iterate, clock: Clock) -> Profile:
        self._results = None
        return torch_profile.profile(self._call, self._inputs.tensors, self._artifact, iterate, self._place)

    def outputs(self) -> dict[str, np.ndarray]:
        results = _tensors(self._results)
        names = [spec.name for spec in self._artifact.outputs]
        if len(results) != len(names):
            raise RunError(f"expected {len(names)} outputs, the module returned {len(results)}")
        pairs = dict(zip(names, results, strict=True))
        if self._place.stream is not None:
            pairs = {name: self._landed(name, tensor) for name, tensor in pairs.items()}
            self.synchronize()
        # A copy even on the CPU: an output may be a view of an input.
        return {name: tensor.contiguous().numpy().copy() for name, tensor in pairs.items()}

    def _landed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Enqueue a copy to page-locked memory that is kept for the next one."""
        host = self._landing.get(name)
        if host is None or (host.shape, host.dtype) != (tensor.shape, tensor.dtype):
            host = self._landing[name] = self._place.host_tensor(tensor.shape, tensor.dtype)
        return host.copy_(tensor, non_blocking=True)

    def close(self) -> None:
        self._call = self._results = self._locate = None
        self._inputs.free()
        self._landing = {}
        self._within.close()
        if self._place.stream is not None:
            import torch

            with suppress(RuntimeError):  # after a failed kernel nothing can be freed but by ending the process
                torch.cuda.empty_cache()


def saved_facts(engine_dir: Path, place: Place) -> SavedFacts:
    """Return what `TorchSession.save()` wrote.

    Raises:
        RunError: It is missing or damaged, or the engine was built for another device.
    """
    try:
        saved = msgspec.json.decode((engine_dir / FACTS).read_bytes(), type=SavedFacts)
    except (OSError, msgspec.DecodeError) as exc:
        raise RunError(f"no saved engine in {engine_dir}: {exc}") from exc
    if saved.card != (here := place.card()):
        # Kernels of another capability do not run, and tuning for another card of the same one does not hold.
        raise RunError(
            f"the engine in {engine_dir} was built for {saved.card or 'a CPU'}, this is {here or 'a CPU'}",
            hint="compile it again",
        )
    return saved


def saved_placement(engine_dir: Path) -> dict[str, int] | None:
    """Return the placement that an earlier session found; None where none was saved."""
    try:
        return msgspec.json.decode((engine_dir / FACTS).read_bytes(), type=SavedFacts).placement
    except (OSError, msgspec.DecodeError):
        return None


def _tensors(results: Any) -> list[torch.Tensor]:
    """Return a call's tensors in the order in which the exporter sees them.

    Caches come nested in tuples, transformers' results as dicts.
    """
    import torch
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]
