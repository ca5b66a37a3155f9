"""Masks in a graph: found from their constant to the softmax that ends them, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from harness.masks import masking_nodes


def graph(path: Path, lowest: float) -> Path:
    """Write softmax(where(seen, 0, lowest) + 2 x) @ x."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Where", ["seen", "zero", "lowest"], ["mask"], "where"),
        helper.make_node("Mul", ["x", "two"], ["scores"], "scale"),
        helper.make_node("Add", ["scores", "mask"], ["hidden"], "add"),
        helper.make_node("Softmax", ["hidden"], ["weights"], "softmax"),
        helper.make_node("MatMul", ["weights", "x"], ["y"], "product"),
    ]
    constants = {"zero": 0.0, "lowest": lowest, "two": 2.0}
    made = helper.make_graph(
        nodes,
        "attention",
        [value("x", TensorProto.FLOAT, [4, 4]), value("seen", TensorProto.BOOL, [4, 4])],
        [value("y", TensorProto.FLOAT, [4, 4])],
        [numpy_helper.from_array(np.array(number, np.float32), name) for name, number in constants.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.mark.parametrize("lowest", [float(np.finfo(np.float32).min), -np.inf])
def test_from_the_constant_to_the_softmax(tmp_path: Path, lowest: float) -> None:
    assert masking_nodes(graph(tmp_path / "masked.onnx", lowest)) == ["where", "add", "softmax"]


def test_ordinary_constants_hide_nothing(tmp_path: Path) -> None:
    assert masking_nodes(graph(tmp_path / "plain.onnx", -10_000.0)) == []
