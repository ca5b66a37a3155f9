"""What the torch backends share: their options, what torch is here, and the artifact's module on a device."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import msgspec

from backends import torch_cuda
from backends.torch_cuda import Place
from harness.api import Availability, BackendOptions, CompileRequest, Scalar
from harness.errors import UnsupportedError
from harness.narrowing import NARROW, between_casts
from harness.torch_rules import set_rules

if TYPE_CHECKING:
    import torch


PRECISIONS = {"cpu": ("fp32", "fp16", "bf16"), "cuda": ("fp32", "tf32", "fp16", "bf16")}
"""What both torch backends are offered in."""
NO_FP8 = "torch reads no calibrated graph, and no module is calibrated for float8"


class TorchOptions(BackendOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that all torch backends take."""

    channels_last: Annotated[bool, msgspec.Meta(description="store images as NHWC; often faster for convolutions")] = (
        False
    )
    cudnn_benchmark: Annotated[
        bool,
        msgspec.Meta(description="on cuda: let cuDNN try its convolutions in the first run and keep the fastest"),
    ] = True
    cuda_graph: Annotated[
        bool, msgspec.Meta(description="on cuda: capture a whole call as one CUDA graph, and replay that")
    ] = False


def probe_torch() -> Availability:
    """Say whether torch can be imported, in which version, and which devices it can use."""
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
    cuda = torch_cuda.devices()
    reason, hint = (None, None) if cuda else (torch_cuda.why_none() or (None, None))
    return Availability(available=True, versions=versions, devices=("cpu", *cuda), reason=reason, hint=hint)


def settle(request: CompileRequest) -> tuple[Place, dict[str, Scalar]]:
    """Set what is global in torch as a request wants it. Return the device's place, and what to state about it.

    To be called after a model was built or loaded: its code may set the same things.

    Raises:
        UnavailableError: torch cannot use the device.
        UnsupportedError: The device lacks what an option asks for.
    """
    import torch

    options = options_of(request)
    torch.set_num_threads(request.threads)
    place = torch_cuda.place_of(request.device)
    on_cuda = place.stream is not None
    tf32 = request.precision == "tf32"
    if tf32 and not torch.cuda.is_tf32_supported():
        raise UnsupportedError(
            f"tf32 needs an NVIDIA device of compute capability 8.0 or more, got {place.card() or place.device}"
        )
    if options.cuda_graph and not on_cuda:
        raise UnsupportedError(f"cuda_graph=true needs an NVIDIA device, got {place.device}", hint="leave it out")
    set_rules(tf32=tf32)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    if not on_cuda:
        return place, {}
    stated = {"tf32": tf32, "cudnn_benchmark": options.cudnn_benchmark}
    return place, {**stated, "cuda_graphs": int(options.cuda_graph)}


def prepare(request: CompileRequest) -> tuple[torch.nn.Module, Place, dict[str, Scalar]]:
    """Rebuild the artifact's module with its weights on the requested device, and settle what is global in torch.

    Raises:
        UnavailableError: torch cannot use the device.
        UnsupportedError: There is no torch module, or the memory layout does not fit.
    """
    import torch

    channels_last = options_of(request).channels_last
    if channels_last and all(len(spec.shape) != 4 for spec in request.artifact.inputs):
        raise UnsupportedError("channels_last needs a four-dimensional input, and this model has none")
    settle(request)  # before minutes may go into a large model that has no device to go to
    module = request.artifact.module()
    assert isinstance(module, torch.nn.Module)
    place, facts = settle(request)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    if request.precision in NARROW:
        module = between_casts(module, request.precision)
    return module.to(place.device), place, facts


def options_of(request: CompileRequest) -> TorchOptions:
    """Return the options that all torch backends take."""
    assert isinstance(request.options, TorchOptions)
    return request.options


def described(request: CompileRequest, engine: str) -> str:
    """Return a provider's name: what runs, where, and the options that change how."""
    options = options_of(request)
    chosen = [name for name in ("channels_last", "cuda_graph") if getattr(options, name)]
    precise = [] if request.precision == "fp32" else [request.precision]
    return " ".join([engine, request.device, *precise, *chosen])
