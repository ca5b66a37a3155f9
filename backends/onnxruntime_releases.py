"""ONNX Runtime's releases: what each reads, and what must be beside it in an environment of its own."""

from __future__ import annotations

from collections.abc import Mapping

from backends.onnxruntime_providers import CPU, CUDA, PROVIDERS, RTX, TENSORRT, OnnxRuntimeOptions
from harness.api import OnnxLimits

READS = {
    (1, 12): OnnxLimits(opset=17, ir=8),
    (1, 14): OnnxLimits(opset=18, ir=8),
    (1, 15): OnnxLimits(opset=19, ir=9),
    (1, 17): OnnxLimits(opset=20, ir=9),
    (1, 18): OnnxLimits(opset=21, ir=10),
    (1, 21): OnnxLimits(opset=22, ir=10),
    (1, 23): OnnxLimits(opset=23, ir=11),
    (1, 24): OnnxLimits(opset=25, ir=13),
    (1, 25): OnnxLimits(opset=26, ir=13),
    (1, 32): OnnxLimits(opset=27, ir=14),
}
"""First release -> what it and the following ones read, tried with graphs of each opset and format."""

_CUDA = ("onnxruntime-gpu[cuda,cudnn]", "cuda-bindings")
_BESIDE: Mapping[str, tuple[str, ...]] = {
    CPU: (),
    CUDA: _CUDA,
    # Every release up to 1.31 links TensorRT 10, and the native backend is at 11: here they have an environment each.
    TENSORRT: (*_CUDA, "tensorrt-cu13>=10.13,<11"),
    RTX: ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "cuda-bindings"),
}
"""Provider -> what it needs beside ONNX Runtime's own wheel."""


def distribution(options: OnnxRuntimeOptions, kind: str) -> str:
    """Return which of ONNX Runtime's distributions has the provider of a case."""
    return "onnxruntime-gpu" if _provider(options, kind) in (CUDA, TENSORRT) else "onnxruntime"


def companions(options: OnnxRuntimeOptions, kind: str) -> tuple[str, ...]:
    """Return what a release needs beside its own wheel."""
    return _BESIDE[_provider(options, kind)]


def _provider(options: OnnxRuntimeOptions, kind: str) -> str:
    return PROVIDERS[options.provider or kind].full_name


def reads(version: str) -> OnnxLimits | None:
    """Return the newest ONNX that a release reads; None for one that is older than those that were tried."""
    release = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    return next((limits for first, limits in sorted(READS.items(), reverse=True) if first <= release), None)
