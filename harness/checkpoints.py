"""Read weights from a user's file, whatever wrote it, without executing any of it. Imports torch: for workers."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from harness import pickles
from harness.errors import UsageError

if TYPE_CHECKING:
    import torch

SAFETENSORS = ".safetensors"
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
NESTED = ("ema", "state_dict", "model_state_dict", "model")
"""Keys under which training scripts put weights, beside the optimiser's state and the like. The first that is there
counts: an averaged copy (ema) is what a trainer's own evaluation runs."""
PARALLEL = "module."
"""What `DataParallel` puts before every name."""
DEEPEST = 100
"""Modules nested deeper are a file that holds itself."""


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt` file by name, in the file's order.

    Tensors may be views of the mapped file: copy them before it changes. Of a checkpoint that pickles whole modules,
    such as Ultralytics', the state dict is put together from what the modules hold, half precision widened to float32.

    Raises:
        UsageError: The file is missing, damaged, of another kind, or holds code; the message says which.
    """
    if not path.is_file():
        raise UsageError(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}", hint="--weights path/to/file"
        )
    if path.suffix == SAFETENSORS:
        return _safetensors(path)
    if path.suffix not in PICKLED:
        raise UsageError(
            f"{path.name} is not a weights file; known are {', '.join((SAFETENSORS, *PICKLED))}",
            hint="convert it with safetensors.torch.save_file",
        )
    return _unnested(_pickled(path), path)


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as exc:
        raise UsageError(f"{path} cannot be read: {exc}", hint="get the file again") from exc


def _pickled(path: Path) -> Any:
    import torch

    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UsageError(
                    f"{path} is a TorchScript archive, which holds code, not only weights",
                    hint="save its weights: torch.save(torch.jit.load(file).state_dict(), 'weights.pt')",
                )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as exc:  # besides its own errors torch lets through whatever a bad opcode leads to
        if zipped:
            return pickles.read(path)  # holds more than tensors, or is damaged: this reader tells which
        if isinstance(exc, UnpicklingError):
            raise UsageError(
                f"{path} is no checkpoint, or one from before torch 1.6 that holds more than tensors",
                hint="save its state dict anew: torch.save(module.state_dict(), 'weights.pt')",
            ) from exc
        raise UsageError(f"{path} cannot be read: {exc}", hint="get the file again") from exc


def _unnested(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict within what a file holds."""
    import torch

    if isinstance(content, pickles.Stub):
        return _of_module(content, path)
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    for key in NESTED:
        inner = content.get(key)
        if isinstance(inner, pickles.Stub):
            return _of_module(inner, path)
        if isinstance(inner, Mapping) and any(isinstance(value, torch.Tensor) for value in inner.values()):
            return _unnested(inner, path)
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    others = sorted(str(key) for key in content if key not in tensors)
    if not tensors or others:
        raise UsageError(
            f"{path} does not hold a state dict: " + (f"{others[:5]} are not tensors" if others else "it is empty"),
            hint=f"put the tensors at the top or under one of {', '.join(NESTED)}",
        )
    if all(key.startswith(PARALLEL) for key in tensors):
        tensors = {key.removeprefix(PARALLEL): value for key, value in tensors.items()}
    return tensors


def _of_module(module: pickles.Stub, path: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    _collect(module, "", tensors, DEEPEST, path)
    if not tensors:
        raise UsageError(f"{path} holds a {module.kind} without any tensors")
    return tensors


def _collect(module: pickles.Stub, prefix: str, into: dict[str, torch.Tensor], depth: int, path: Path) -> None:
    """Put a module's tensors in the order of `state_dict()`: parameters, buffers, then children."""
    import torch

    if depth == 0:
        raise UsageError(f"{path} is refused: its modules are nested more than {DEEPEST} deep")
    transient = module.attribute("_non_persistent_buffers_set") or ()
    for table in ("_parameters", "_buffers"):
        for name, tensor in (module.attribute(table) or {}).items():
            if tensor is None or (table == "_buffers" and name in transient):
                continue
            if not isinstance(tensor, torch.Tensor):
                raise UsageError(f"{path}: '{prefix}{name}' is a {getattr(tensor, 'kind', type(tensor).__name__)}")
            half = tensor.dtype in (torch.float16, torch.bfloat16)
            into[f"{prefix}{name}"] = tensor.float() if half else tensor
    for name, child in (module.attribute("_modules") or {}).items():
        if isinstance(child, pickles.Stub):
            _collect(child, f"{prefix}{name}.", into, depth - 1, path)
