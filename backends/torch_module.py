"""What the torch backends share: the artifact's module as a session on a device."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import Artifact, Availability, CompileRequest, Scalar, Session
from harness.errors import RunError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    import torch

FACTS = "facts.json"


def probe_torch() -> Availability:
    """Say whether torch can be imported, in which version, and which devices it sees."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        import torch
    except ImportError as exc:
        return Availability(
            available=False, reason=f"torch cannot be imported: {exc}", hint="pip install 'harness[torch]'"
        )
    versions = {"torch": str(torch.__version__)}
    with suppress(PackageNotFoundError):  # only builds for GPUs bring it
        versions["triton"] = version("triton")
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return Availability(available=True, versions=versions, devices=tuple(devices))


def prepare(request: CompileRequest, *, channels_last: bool) -> torch.nn.Module:
    """Rebuild the artifact's module with its weights on the requested device; set threads and float32 rules.

    Raises:
        UnsupportedError: There is no torch module, or the precision or the memory layout does not fit.
    """
    import torch

    if request.precision != "fp32":
        raise UnsupportedError(f"precision {request.precision} is not built for torch backends")
    if channels_last and all(len(spec.shape) != 4 for spec in request.artifact.inputs):
        raise UnsupportedError("channels_last needs a four-dimensional input, and this model has none")
    torch.set_num_threads(request.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    module = request.artifact.module()
    assert isinstance(module, torch.nn.Module)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    return module.to(request.device)


@functools.cache
def leave_gradients_off() -> Any:  # torch's own kind of context, untyped
    """Enter inference mode for the rest of the process, which runs sessions only; entering it per call costs time."""
    import torch

    mode = torch.inference_mode()
    mode.__enter__()
    return mode  # kept by the cache: when it is collected the mode ends


class TorchSession(Session):
    """A callable on tensors that lie on the device."""

    def __init__(
        self,
        call: Callable[..., Any],  # a module, a compiled module or a package: torch types none of them alike
        request: CompileRequest,
        *,
        provider: str,
        channels_last: bool = False,
        facts: Mapping[str, Scalar] | None = None,
        notes: list[str] | None = None,
        within: AbstractContextManager[object] | None = None,
    ) -> None:
        """Take what runs; `within` is entered once, before the first call, and left by `close()`."""
        import torch

        self.provider = provider
        self._call = call
        self._artifact: Artifact = request.artifact
        self._device = torch.device(request.device)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._facts = dict(facts or {})
        self._notes = list(notes or [])
        self._inputs: list[torch.Tensor] = []
        self._results: Any = None
        leave_gradients_off()
        self._within = ExitStack()
        if within is not None:
            self._within.enter_context(within)

    def facts(self) -> dict[str, Scalar]:
        return dict(self._facts)

    def notes(self) -> list[str]:
        return list(self._notes)

    def save(self, engine_dir: Path) -> None:
        # The weights are the artifact's. What a later process needs beside them is what was found while compiling.
        (engine_dir / FACTS).write_text(json.dumps({"facts": self._facts, "notes": self._notes}))

    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        import torch

        fitting = self._artifact.check_inputs(inputs)
        self._inputs = []
        for array in fitting.values():
            layout = self._layout if array.ndim == 4 else torch.contiguous_format
            # A copy even on the CPU: the array may be read-only, and every backend pays for its own copy alike.
            tensor = torch.tensor(array, device=self._device)
            self._inputs.append(tensor.contiguous(memory_format=layout))

    def execute(self) -> None:
        self._results = self._call(*self._inputs)

    def synchronize(self) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)

    def outputs(self) -> dict[str, np.ndarray]:
        import torch
        from torch.utils import _pytree

        # Caches come nested in tuples, transformers' results as dicts: in the order in which the exporter sees them.
        results = [leaf for leaf in _pytree.tree_leaves(self._results) if isinstance(leaf, torch.Tensor)]
        names = [spec.name for spec in self._artifact.outputs]
        if len(results) != len(names):
            raise RunError(f"expected {len(names)} outputs, the module returned {len(results)}")
        # A copy even on the CPU: an output may be a view of an input.
        return {name: tensor.cpu().contiguous().numpy().copy() for name, tensor in zip(names, results, strict=True)}

    def close(self) -> None:
        self._inputs, self._results = [], None
        self._within.close()


def saved_facts(engine_dir: Path) -> tuple[dict[str, Scalar], list[str]]:
    """Return the facts and notes that `TorchSession.save()` wrote.

    Raises:
        RunError: They are missing or damaged.
    """
    try:
        content = json.loads((engine_dir / FACTS).read_text())
        return content["facts"], content["notes"]
    except (OSError, ValueError, KeyError) as exc:
        raise RunError(f"no saved engine in {engine_dir}: {exc}") from exc
