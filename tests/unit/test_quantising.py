"""What is quantised: products with weights, and what hands a convolution's results on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.quantising import make_ready, quantised_nodes

Nodes = list[tuple[str, list[str], str]]


def graph(path: Path, nodes: Nodes, shape: list[int], *, named: bool = True) -> Path:
    made = [
        helper.make_node(
            kind, given, [out], f"make-{out}" if named else "", **({"axis": 1} if kind == "Concat" else {})
        )
        for kind, given, out in nodes
    ]
    value = helper.make_tensor_value_info
    weights = {"k": np.ones((4, 4, 1, 1), np.float32), "w": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32)}
    of = helper.make_graph(
        made,
        "graph",
        [value("x", TensorProto.FLOAT, shape)],
        [value(nodes[-1][2], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(of, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_a_residual_block_of_convolutions_hands_int8_on(tmp_path: Path) -> None:
    nodes: Nodes = [
        ("Conv", ["x", "k"], "a"),
        ("Relu", ["a"], "b1"),
        ("Conv", ["b1", "k"], "c"),
        ("Add", ["c", "b1"], "d"),
        ("Sigmoid", ["d"], "gate"),
        ("Mul", ["d", "gate"], "e"),
        ("Add", ["e", "c"], "f"),
        ("Concat", ["c", "d"], "g"),
    ]
    found = quantised_nodes(graph(tmp_path / "conv.onnx", nodes, [1, 4, 2, 2]))
    assert found == ["make-a", "make-b1", "make-c", "make-d", "make-g"]


def test_of_a_transformer_only_products_with_weights(tmp_path: Path) -> None:
    nodes: Nodes = [
        ("MatMul", ["x", "w"], "q"),
        ("Add", ["q", "b"], "biased"),
        ("MatMul", ["biased", "biased"], "scores"),
        ("Softmax", ["scores"], "weights"),
        ("MatMul", ["weights", "biased"], "mixed"),
        ("Gemm", ["mixed", "w", "b"], "out"),
        ("Add", ["out", "x"], "residual"),
        ("MatMul", ["w", "residual"], "left"),
    ]
    found = quantised_nodes(graph(tmp_path / "attention.onnx", nodes, [4, 4]))
    assert found == ["make-q", "make-out"]


def test_nameless_nodes_get_names_of_their_own(tmp_path: Path) -> None:
    nodes: Nodes = [("MatMul", ["x", "w"], "q"), ("Tanh", ["q"], "t"), ("MatMul", ["t", "w"], "out")]
    path = graph(tmp_path / "nameless.onnx", nodes, [4, 4], named=False)
    assert quantised_nodes(path) == ["", ""]
    make_ready(path)
    assert len(set(quantised_nodes(path))) == 2
    assert "" not in quantised_nodes(path)


def test_what_onnx_runtime_has_named_gets_other_names(tmp_path: Path) -> None:
    nodes: Nodes = [("MatMul", ["x", "w"], "gemm_input_token_7"), ("Tanh", ["gemm_input_token_7"], "y_token_1")]
    path = graph(tmp_path / "named.onnx", nodes, [4, 4])
    make_ready(path)
    first, second = onnx.load(path).graph.node
    assert list(first.output) == list(second.input) == ["gemm_input__made_7"]
    assert list(second.output) == ["y_token_1"], "outputs keep their names"
