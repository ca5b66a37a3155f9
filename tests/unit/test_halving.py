"""Float16 graphs whose types agree: Casts, and outputs that nodes read too. By the real converter."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from harness.halving import beyond, halved


def masked_mean(largest: float = 2.0) -> onnx.ModelProto:
    """Return `hidden = tanh(x) * w` and the mean of its masked rows, which reads that output and a Cast of integers."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Tanh", ["x"], ["bent"], "bend"),
        helper.make_node("Mul", ["bent", "w"], ["hidden"], "scale"),
        helper.make_node("Cast", ["mask"], ["weight"], "widen", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["hidden", "weight"], ["visible"], "hide"),
        helper.make_node("ReduceMean", ["visible"], ["mean"], "mean", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "masked",
        [value("x", TensorProto.FLOAT, [3, 4]), value("mask", TensorProto.INT64, [3, 1])],
        [value("hidden", TensorProto.FLOAT, [3, 4]), value("mean", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.array([largest], np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("keep", [(), ("hide",), ("widen",), ("scale", "mean")])
def test_a_graph_whose_output_and_cast_are_read_inside(keep: tuple[str, ...]) -> None:
    model = masked_mean()
    inputs = {"x": np.arange(12, dtype=np.float32).reshape(3, 4) / 7, "mask": np.array([[1], [0], [1]])}
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)
    half = halved(model, keep, infer_shapes=True)
    onnx.checker.check_model(half, full_check=True)
    onnxruntime.InferenceSession(half.SerializeToString())  # takes it; on a CPU it would compute in float32, though
    got = ReferenceEvaluator(half).run(None, inputs)
    assert [array.dtype for array in got] == [np.float32, np.float32]
    np.testing.assert_allclose(got[1], expected[1], rtol=2e-3)
    assert not np.array_equal(got[0], expected[0]), "it really computes in half"
    np.testing.assert_allclose(got[0], expected[0], rtol=2e-3)


def test_the_users_own_cast_stays_float32_where_it_is_kept() -> None:
    half = halved(masked_mean(), ("widen",), infer_shapes=True)
    (cast,) = [node for node in half.graph.node if node.name == "widen"]
    assert helper.get_attribute_value(cast.attribute[0]) == TensorProto.FLOAT


def test_what_float16_cannot_hold_is_counted_and_what_it_can_is_kept() -> None:
    assert (beyond(masked_mean(60_000.0)), beyond(masked_mean(70_000.0))) == (0, 1)
    half = halved(masked_mean(60_000.0), (), infer_shapes=True)
    (weight,) = half.graph.initializer
    assert numpy_helper.to_array(weight) == 60_000
