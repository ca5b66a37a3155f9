"""Operations by the ONNX graph against torch's own counter, on every reference model; no weight is made.

The full sizes are `python benchmarks/flops.py`: a toy has the same operators at other widths.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import flops
from harness import graph_cost, registry
from harness.modelspec import ModelSpec

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

SAME_GRAPH = {"yolov8s", "yolov8m", "yolov8l", "yolov8x", "bert-large", "sd21-unet"}
"""Models that differ from another one in widths and depths only."""
ELSEWHERE = {"gemm", "attention", "conv-bn-silu", "bert-base", "yolov8n"}
"""Models whose counts `test_roofline.py` compares on a real export."""
OVER = {"minilm-l6": 2 * 384 * 384 / 1e9}
"""What torch counts and no output needs, so that the graph has not got it: MiniLM's pooler."""


def smallest(name: str) -> ModelSpec:
    sizes = registry.model_class(name).Options.__struct_fields__
    return ModelSpec(name=name, options={"size": "tiny"} if "size" in sizes and name != "minilm-l6" else {})


@pytest.mark.parametrize("name", [name for name in registry.MODELS if name not in SAME_GRAPH | ELSEWHERE])
def test_the_graph_has_what_torch_counts(name: str, tmp_path: Path) -> None:
    for module in registry.model_class(name).requires:
        pytest.importorskip(module)
    ours, theirs = flops.counted(smallest(name), tmp_path)
    assert ours == pytest.approx(theirs - OVER.get(name, 0.0), rel=1e-6)
    assert ours == pytest.approx(theirs, rel=0.01)


def test_a_difference_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graph_cost._COUNTS, "Conv", lambda node, shapes: 0)
    ours, theirs = flops.counted(smallest("conv-bn-silu"), tmp_path)
    assert ours != pytest.approx(theirs, rel=0.01)
