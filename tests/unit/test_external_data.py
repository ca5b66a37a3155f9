"""Large weights lie on the disk once: what ONNX names outside its own file is the same tensor, in every reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from harness.external_data import extents, share

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)
FOLDED = np.full((4,), 7, np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = x @ weight + folded, both outside of the file; safetensors beside it has `weight`, and another `folded`."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["m"]), helper.make_node("Add", ["m", "folded"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(FOLDED, "folded")],
    )
    path = tmp_path / "model.onnx"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(proto, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    save_file(
        {"first": np.zeros(5, np.int64), "weight": WEIGHT, "folded": FOLDED + 1}, tmp_path / "weights.safetensors"
    )
    return path


def result(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"x": np.ones((1, 3), np.float32)})[0]
    return answer


def test_extents_are_where_the_bytes_lie(model: Path) -> None:
    path = model.with_name("weights.safetensors")
    start, length = extents(path)["weight"]
    assert path.read_bytes()[start : start + length] == WEIGHT.tobytes()


def test_equal_tensors_are_shared_and_others_stay(model: Path) -> None:
    before = result(model)
    share(model, model.with_name("weights.safetensors"))
    np.testing.assert_array_equal(result(model), before)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}["location"]
        for tensor in onnx.load(model, load_external_data=False).graph.initializer
    }
    assert places == {"weight": "weights.safetensors", "folded": "model.onnx.data"}
    assert model.with_name("model.onnx.data").read_bytes() == FOLDED.tobytes()
    loaded = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}
    np.testing.assert_array_equal(loaded["weight"], WEIGHT)
    onnx.checker.check_model(model, full_check=True)


def test_nothing_is_left_beside_it_where_all_is_shared(model: Path) -> None:
    save_file({"weight": WEIGHT, "folded": FOLDED}, model.with_name("weights.safetensors"))
    share(model, model.with_name("weights.safetensors"))
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.onnx", "weights.safetensors"]
    np.testing.assert_array_equal(result(model), [[19, 22, 25, 28]])


def test_a_file_without_external_data_is_left_alone(model: Path) -> None:
    whole = onnx.load(model)
    onnx.save(whole, model.with_name("whole.onnx"))
    before = model.with_name("whole.onnx").read_bytes()
    share(model.with_name("whole.onnx"), model.with_name("weights.safetensors"))
    assert model.with_name("whole.onnx").read_bytes() == before
