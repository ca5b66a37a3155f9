"""Products of integers in TVM: what the rewrite does to a quantised graph, and what TVM does with it by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import tvm_graph, tvm_int8, tvm_vnni
from backends.tvm import TVM, _build, _target
from backends.tvm_store import RECORDS, Budget, open_store
from backends.tvm_tuning import Tuner, extract_tasks
from harness.api import CompileRequest
from harness.errors import UnsupportedError
from tests.fake_tensorrt import Asked

pytest.importorskip("tvm")
onnx = pytest.importorskip("onnx")

SIZE = (1, 3, 9, 9)
STEP, SECOND = 0.02, 0.25
"""Scales of the two tensors that are quantised."""
KERNEL = np.random.default_rng(1).integers(-127, 128, (64, 3, 3, 3), dtype=np.int8)
MATRIX = np.random.default_rng(2).integers(-127, 128, (32, 25), dtype=np.int8)  # turned before it multiplies
SCALES, COLUMNS = np.linspace(0.01, 0.03, 64, dtype=np.float32), np.linspace(0.02, 0.04, 32, dtype=np.float32)
BIAS = np.linspace(-1, 1, 64, dtype=np.float32)
ZERO = np.int8(0)
INPUT = np.random.default_rng(3).normal(0, 1, SIZE).astype(np.float32)


def quantised(zero: np.generic = ZERO) -> Any:  # a ModelProto, which is not typed
    """Return a convolution with padding and stride and a product by a turned matrix, all of whose inputs are quantised.

    Neither 3 channels nor 25 rows are a multiple of the four products that one instruction adds up.
    """
    from onnx import TensorProto, helper, numpy_helper

    held = {
        "step": np.float32(STEP), "second": np.float32(SECOND), "zero": zero, "scales": SCALES, "columns": COLUMNS,
        "zeros64": np.zeros(64, np.int8), "zeros32": np.zeros(32, np.int8), "kernel": KERNEL, "matrix": MATRIX,
        "bias": BIAS, "shape": np.array([64, 25]),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "step", "zero"], ["xq"]),
        node("DequantizeLinear", ["xq", "step", "zero"], ["xd"]),
        node("DequantizeLinear", ["kernel", "scales", "zeros64"], ["kd"], axis=0),
        node("Conv", ["xd", "kd", "bias"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Reshape", ["r", "shape"], ["flat"]),
        node("QuantizeLinear", ["flat", "second", "zero"], ["fq"]),
        node("DequantizeLinear", ["fq", "second", "zero"], ["fd"]),
        node("DequantizeLinear", ["matrix", "columns", "zeros32"], ["md"], axis=0),
        node("Gemm", ["fd", "md"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SIZE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (64, 32))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def expected() -> np.ndarray:
    """Compute the graph with sums of integers, each scaled once."""

    def steps(values: np.ndarray, scale: float) -> np.ndarray:
        return np.clip(np.round(values / np.float32(scale)), -128, 127).astype(np.int64)

    padded = np.pad(steps(INPUT, STEP), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    sums = np.einsum("nchwij,ocij->nohw", windows, KERNEL.astype(np.int64))
    convolved = sums * (np.float32(STEP) * SCALES)[:, None, None] + BIAS[:, None, None]
    flat = steps(np.maximum(convolved, 0).astype(np.float32).reshape(64, 25), SECOND)
    product = flat @ MATRIX.T.astype(np.int64)
    return np.asarray(product * (np.float32(SECOND) * COLUMNS), np.float32)


def lowered(target: Any, *, rewritten: bool = True, dots: bool = False) -> Any:
    from tvm.relax.frontend.onnx import from_onnx

    module = from_onnx(quantised(), keep_params_in_input=False)
    if rewritten:
        module, done, left = tvm_int8.integers(module)
        assert (done, left) == (2, 0)
    return tvm_graph._lower(module, target, tvm_graph.CONV_LAYOUT, dots=dots)


def multiplied(module: Any) -> set[str]:
    """Return the types of the constants that kernels are given, biases and scales left out."""
    from tvm import relax

    found = set()

    def visit(expression: Any) -> None:
        held = tvm_int8.constant_of(expression)
        if held is not None and held.size > 64:
            found.add(str(held.dtype))

    relax.analysis.post_order_visit(module["main"], visit)
    return found


def outputs(executable: Any) -> np.ndarray:
    import tvm
    from tvm import relax

    result: np.ndarray = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(INPUT)).numpy()
    return result


@pytest.fixture
def request_(tmp_path: Path) -> CompileRequest:
    return Asked(tmp_path).request(TVM, quantised().SerializeToString(), device="cpu", precision="int8", tuner="none")


@pytest.fixture
def target(request_: CompileRequest) -> Iterator[Any]:
    yield _target(request_)
    tvm_vnni._registered.cache_clear()


def test_tvm_by_itself_multiplies_a_quantised_graph_in_float32(target: Any) -> None:
    """When this fails TVM has learnt it, and the rewrite may go."""
    assert multiplied(lowered(target, rewritten=False)) == {"float32"}


def test_products_are_of_integers_and_exact(target: Any) -> None:
    module = lowered(target)
    assert multiplied(module) == {"int8"}
    np.testing.assert_allclose(outputs(_build(module, target, None)), expected(), rtol=1e-5, atol=1e-5)


def test_the_instruction_gives_the_same_and_the_tuner_finds_it(target: Any, tmp_path: Path) -> None:
    if not tvm_vnni.has_dots(target):
        pytest.skip("this CPU has no AVX-512 VNNI")
    module = lowered(target, dots=True)
    assert multiplied(module) == {"int8"}
    with open_store(tmp_path, lambda: None) as store:
        tasks = extract_tasks(module, target)
        made = [task for task in tasks if tvm_vnni.of_dots(task.module)]
        assert len(made) == 1, "25 rows do not fit, 3 channels are filled up"
        with Tuner(store, made, target, Budget(seconds=60, trials=8), threads=1, progress=lambda *_: None) as tuner:
            tuner.run()
            database, outcome = tuner.fill_gaps()
        assert outcome.ledger.failed_trials == 0, outcome.last_failure
        assert tvm_vnni.INTRINSIC in (tmp_path / RECORDS).read_text()
        np.testing.assert_allclose(outputs(_build(module, target, database)), expected(), rtol=1e-5, atol=1e-5)


def test_a_session_says_who_made_the_products(request_: CompileRequest) -> None:
    with pytest.raises(UnsupportedError, match=r"in float32: no int8 tensor with one symmetric scale is multiplied"):
        request_.artifact.onnx_path.write_bytes(quantised(np.int8(3)).SerializeToString())
        tvm_graph.prepare(request_, _target(request_))
    request_.artifact.onnx_path.write_bytes(quantised().SerializeToString())
    prepared = tvm_graph.prepare(request_, _target(request_))
    assert prepared.notes == [
        "int8: TVM leaves products of a quantised graph in float32; harness turned 2 into products of integers"
    ]
