"""ONNX Runtime's execution providers: which there are, which options each takes, and what each is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from backends.cuda_device import Gpu
from harness.api import BackendOptions, CompileRequest, DynamicShapes
from harness.errors import UnsupportedError, UsageError
from harness.precisions import PRECISIONS, Precision

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT, RTX = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"
ENGINES, RUNTIME_CACHE = "trt", "runtime"
"""Folders beside a saved engine: TensorRT's engines, and the kernels that TensorRT-RTX compiled for the device."""
TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"

HINT = "pip install 'harness[onnxruntime]' (or 'harness[onnxruntime-gpu]' with an NVIDIA GPU)"
GPU_HINT = (
    "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'harness[onnxruntime-gpu]': "
    "an environment holds only one of them"
)
LIBRARIES_HINT = "pip install 'harness[onnxruntime-gpu]', which brings the libraries of CUDA and cuDNN"
TENSORRT_HINT = "pip install 'harness[onnxruntime-tensorrt]'; TensorRT's libraries come from NVIDIA's own package index"
RTX_HINT = "pip install 'harness[onnxruntime-rtx]'"


class OnnxRuntimeOptions(BackendOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of ONNX Runtime and of its providers."""

    level: Annotated[
        Literal["disable", "basic", "extended", "all"], msgspec.Meta(description="graph optimisation level")
    ] = "all"
    provider: Annotated[
        Literal["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx"] | None,
        msgspec.Meta(description="execution provider; left out: cpu on a CPU, cuda on a GPU"),
    ] = None
    cuda_graph: Annotated[
        bool, msgspec.Meta(description="record the kernels once and launch them together; fixed shapes only")
    ] = False
    cudnn_search: (
        Annotated[
            Literal["exhaustive", "heuristic", "default"],
            msgspec.Meta(description="how cuDNN chooses a convolution, of provider cuda; left out: exhaustive"),
        ]
        | None
    ) = None
    builder_optimization_level: (
        Annotated[
            int, msgspec.Meta(ge=0, le=5, description="how long the builder of provider tensorrt searches; left out: 3")
        ]
        | None
    ) = None


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One execution provider."""

    name: str
    """As in the option."""
    full_name: str
    """ONNX Runtime's."""
    device: str
    """Kind of device that it runs on."""
    precisions: tuple[Precision, ...]
    """Those in which it really computes, on the graph of that precision."""
    takes: tuple[str, ...] = ()
    """Options that mean something to it and not to all."""
    hint: str = GPU_HINT
    """How to install it."""


PROVIDERS = {
    one.name: one
    for one in (
        Provider(name="cpu", full_name=CPU, device="cpu", precisions=("fp32", "int8"), hint=HINT),
        # It computes quantised graphs in float32, between quantising and its inverse.
        Provider(
            name="cuda",
            full_name=CUDA,
            device="cuda",
            precisions=("fp32", "tf32", "fp16", "bf16"),
            takes=("cuda_graph", "cudnn_search"),
        ),
        # It has no option for float8, and it does not build strongly typed networks.
        Provider(
            name="tensorrt",
            full_name=TENSORRT,
            device="cuda",
            precisions=("fp32", "tf32", "fp16", "bf16", "int8"),
            takes=("cuda_graph", "builder_optimization_level"),
        ),
        Provider(
            name="nv-tensorrt-rtx",
            full_name=RTX,
            device="cuda",
            precisions=PRECISIONS,
            takes=("cuda_graph",),
            hint=RTX_HINT,
        ),
    )
}
KINDS = {one.full_name: one.device for one in PROVIDERS.values()}
SUPPORTED = {
    kind: tuple(p for p in PRECISIONS if any(one.device == kind and p in one.precisions for one in PROVIDERS.values()))
    for kind in ("cpu", "cuda")
}
"""Device kind -> precisions that some provider of it has."""
LACKS = {
    "cpu": {
        "fp16": "its CPU provider would compute in float32 between casts: neither the speed nor the drift of fp16",
        "bf16": "its CPU provider has no kernels for bfloat16",
        "fp8": "its CPU provider would compute in float32, between quantising and its inverse",
    }
}
"""Device kind -> precision -> why no provider of it has it."""
_OWN = sorted({option for one in PROVIDERS.values() for option in one.takes})


def check(options: OnnxRuntimeOptions) -> None:
    """Refuse an option that the provider asked for would not read.

    Raises:
        UsageError: Which option, and which providers read it.
    """
    # Without a provider the device decides between these two, and the device is not known yet.
    possible = [PROVIDERS[options.provider]] if options.provider else [PROVIDERS["cpu"], PROVIDERS["cuda"]]
    for option in _given(options):
        if not any(option in one.takes for one in possible):
            raise UsageError(f"onnxruntime: {_misfit(option)}", hint=f"leave out {option}, or choose such a provider")


def choose(options: OnnxRuntimeOptions, device: str, precision: str) -> Provider:
    """Return the provider of a case.

    Raises:
        UnsupportedError: It does not run on this device or in this precision, or an option means nothing to it.
    """
    kind = device.partition(":")[0]
    provider = PROVIDERS[options.provider or kind]
    if provider.device != kind:
        raise UnsupportedError(
            f"provider={provider.name} runs on {provider.device}, and this case on {device}",
            hint=f"use --device {provider.device}, or leave out provider",
        )
    for option in _given(options):
        if option not in provider.takes:
            raise UnsupportedError(f"{_misfit(option)}; this case runs on {device}", hint=f"leave out {option}")
    if precision not in provider.precisions:
        able = [one.name for one in PROVIDERS.values() if one.device == kind and precision in one.precisions]
        raise UnsupportedError(
            f"provider {provider.name} does not compute in {precision}; it has {', '.join(provider.precisions)}",
            hint=f"choose another: provider={able[0]}" if able else None,
        )
    if precision == "int8" and provider.full_name == CPU and options.level in ("disable", "basic"):
        raise UnsupportedError(
            f"level={options.level} leaves quantised products in float32, between quantising and its inverse",
            hint="level=extended or level=all",
        )
    return provider


def _given(options: OnnxRuntimeOptions) -> list[str]:
    # Off is what every provider without the option is anyway. A level of 0 is not off.
    return [option for option in _OWN if getattr(options, option) is not None and getattr(options, option) is not False]


def _misfit(option: str) -> str:
    takers = ", ".join(one.name for one in PROVIDERS.values() if option in one.takes)
    return f"{option} is an option of provider {takers}"


def environment(options: OnnxRuntimeOptions) -> dict[str, str]:
    """Return what a provider can only be told through the environment: these two have no option for TF32."""
    deaf = options.provider in ("tensorrt", "nv-tensorrt-rtx")
    return {TF32_OVERRIDE: "0"} if deaf and options.precision != "tf32" else {}


def tell(
    provider: Provider, request: CompileRequest, stream: int, gpu: Gpu, timings: Path
) -> dict[str, dict[str, str]]:
    """Return what to tell each provider of a session, the one asked for first. All work goes to one stream.

    `timings` is where TensorRT keeps what it measured of layers.
    """
    options = request.options
    assert isinstance(options, OnnxRuntimeOptions)
    if provider.full_name == RTX:  # its device is a handle, and it has no other provider behind it
        return {
            RTX: {
                "has_user_compute_stream": "1",
                "user_compute_stream": str(stream),
                "enable_cuda_graph": str(int(options.cuda_graph)),
                "nv_runtime_cache_path": str(request.engine_dir / RUNTIME_CACHE),
            }
        }
    cuda = {
        "device_id": str(gpu.index),
        "user_compute_stream": str(stream),
        "use_tf32": str(int(request.precision == "tf32")),  # ONNX Runtime's own default is on
        "cudnn_conv_algo_search": (options.cudnn_search or "exhaustive").upper(),
        "enable_cuda_graph": str(int(options.cuda_graph)),
    }
    if provider.full_name == CUDA:
        return {CUDA: cuda}
    level = options.builder_optimization_level
    tensorrt = {
        "device_id": str(gpu.index),
        "user_compute_stream": str(stream),
        # These allow a precision; what computes in it is in the graph.
        "trt_fp16_enable": str(request.precision == "fp16"),
        "trt_bf16_enable": str(request.precision == "bf16"),
        "trt_int8_enable": str(request.precision == "int8"),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(request.engine_dir / ENGINES),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(timings),
        "trt_builder_optimization_level": str(3 if level is None else level),
        "trt_cuda_graph_enable": str(options.cuda_graph),
        **(_profile(request, request.dynamic) if request.dynamic else {}),
    }
    # What TensorRT has no converter for stays on the device. A graph is recorded by the provider asked for.
    return {TENSORRT: tensorrt, CUDA: {**cuda, "enable_cuda_graph": "0"}}


def _profile(request: CompileRequest, dynamic: DynamicShapes) -> dict[str, str]:
    def text(end: int) -> str:
        shapes = {spec.name: dynamic.bounds(spec)[end] for spec in request.artifact.inputs}
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())

    low, high = text(0), text(1)
    return {"trt_profile_min_shapes": low, "trt_profile_opt_shapes": high, "trt_profile_max_shapes": high}
