"""What a precision means, one definition for all backends.

| name | weights | products | sums | inputs and outputs | how it comes about |
|---|---|---|---|---|---|
| fp32 | float32 | float32 | float32 | float32 | as exported; TensorFloat-32 is off |
| tf32 | float32 | 10 bits of mantissa | float32 | float32 | as exported; the backend allows TensorFloat-32 |
| fp16 | float16 | float16 | the backend's choice | float32 | converted graph; `module.half()` in torch |
| bf16 | bfloat16 | bfloat16 | the backend's choice | float32 | graph of `module.bfloat16()` |
| int8 | int8, a scale a channel | int8 | int32 | float32 | calibrated graph with QuantizeLinear and DequantizeLinear |
| fp8 | float8 E4M3, a scale a tensor | float8 | the backend's choice | float32 | likewise |

The backend's choice of sums is mostly float32. One converted graph serves all backends that read ONNX; it is made once
and cached, and so is one calibrated module for those that compile torch modules (`harness.torch_quantising`). Operators
for which a precision has no kernel, such as a softmax in int8, stay as they are. Inputs and outputs keep float32: every
case of a workload is given and judged by the same arrays.
"""

from __future__ import annotations

from typing import Literal

from harness.errors import UsageError

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]
Source = Literal["torch", "onnx"]
"""What a backend compiles."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")
CONVERTED: frozenset[str] = frozenset({"fp16", "bf16", "int8", "fp8"})
"""Those whose ONNX graph is another than the exported one."""
CONVERTERS = ("torch", "torchao", "onnx", "onnxscript", "onnxruntime", "onnxconverter-common")
"""Distributions that take part in making such a graph."""
CALIBRATED: frozenset[str] = frozenset({"int8", "fp8"})
"""Those whose scales are found by running the model on calibration inputs."""


def is_converted(precision: str, source: Source) -> bool:
    """Say whether backends are given another artifact in this precision than the exported one.

    A torch module is narrowed by the backend itself, in no time; its scales are found once, as those of a graph are.
    """
    return precision in (CONVERTED if source == "onnx" else CALIBRATED)


def parse_precisions(text: str) -> tuple[str, ...]:
    """Return the precisions of `--precision fp32,fp16`, each once, in the order asked for.

    Raises:
        UsageError: One of them is none.
    """
    from harness import registry

    words = [part.strip().lower() for part in text.split(",")]
    for word in words:
        if word not in PRECISIONS:
            raise registry.unknown("precision", word, PRECISIONS)
    if not words:
        raise UsageError("no precision was asked for")
    return tuple(dict.fromkeys(words))
