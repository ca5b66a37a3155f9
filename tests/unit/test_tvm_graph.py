"""The TVM backend's way in: ONNX files of old opsets, and what it says where dimensions are free."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import tvm_graph
from backends.tvm import TVM, Options
from harness.api import Artifact, CompileRequest, DynamicShapes, TensorSpec
from harness.artifact import Manifest, write_tensors
from harness.errors import CompileError, UnsupportedError
from harness.modelspec import ModelSpec

SWEPT = DynamicShapes(axes={"x": {0: "batch"}}, ranges={"batch": (1, 2)})


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("tvm")
    pytest.importorskip("onnx")


def doubled(folder: Path, operator: str, opset: int, *, batch: int | str = 1) -> Artifact:
    """Write a model of one node that makes [batch, 1, 2, 2] twice as large; a name for the batch leaves it free."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    node = helper.make_node(operator, ["x", "scales"], ["y"], mode="nearest")
    graph = helper.make_graph(
        [node],
        "doubled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, 1, 2, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (batch, 1, 4, 4))],
        [scales],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), folder / "model.onnx"
    )
    size = batch if isinstance(batch, int) else 2
    write_tensors(folder / "inputs-0.safetensors", {"x": np.arange(4 * size, dtype=np.float32).reshape(size, 1, 2, 2)})
    manifest = Manifest(
        model=ModelSpec(kind="onnx", name="/elsewhere/doubled.onnx"),
        dims={},
        module=False,
        weights="own",
        seed=0,
        opset=opset,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(size, 1, 2, 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(size, 1, 4, 4)),),
        input_sets=1,
        parameters=0,
        weights_bytes=0,
        deterministic=True,
        golden=False,
        export_s=0.0,
        onnx_max_abs=None,
        versions={},
        files={},
    )
    return Artifact(folder, manifest)


def request_for(artifact: Artifact, options: Options, dynamic: DynamicShapes | None = None) -> CompileRequest:
    return CompileRequest(
        artifact=artifact,
        options=options,
        dynamic=dynamic,
        engine_dir=artifact.folder,
        cache_dir=artifact.folder,
        stage=lambda _: contextlib.nullcontext(),
        progress=lambda *_: None,
    )


def outputs(session: Any, artifact: Artifact) -> np.ndarray:
    session.bind(artifact.input_set(0))
    session.execute()
    found: np.ndarray = session.outputs()["y"]
    return found


def test_an_operator_that_only_a_newer_opset_imports_is_converted_and_the_report_says_so(tmp_path: Path) -> None:
    artifact = doubled(tmp_path, "Upsample", 9)
    with TVM().compile(request_for(artifact, Options(tuner="none"))) as session:
        assert session.notes()[1:] == [
            "the ONNX file was converted from opset 9 to 18: tvm could not import it as it is"
        ]
        expected = artifact.input_set(0)["x"].repeat(2, axis=2).repeat(2, axis=3)
        np.testing.assert_array_equal(outputs(session, artifact), expected)


def test_an_operator_that_it_lacks_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"tvm cannot import 'doubled\.onnx' \(fp32, cpu\): .*Frobnicate"):
        TVM().compile(request_for(doubled(tmp_path, "Frobnicate", 18), Options(tuner="none")))


def test_a_damaged_file_is_no_matter_of_free_dimensions(tmp_path: Path) -> None:
    artifact = doubled(tmp_path, "Upsample", 9, batch="batch")
    artifact.onnx_path.write_bytes(b"\x93\xff" * 50)
    with pytest.raises(CompileError, match=r"tvm cannot read the ONNX file of 'doubled\.onnx'"):
        TVM().compile(request_for(artifact, Options(dynamic=True), SWEPT))


def test_free_dimensions_leave_kernels_without_a_schedule(tmp_path: Path) -> None:
    artifact = doubled(tmp_path, "Upsample", 9, batch="batch")
    with TVM().compile(request_for(artifact, Options(dynamic=True), SWEPT)) as session:
        assert session.provider.endswith(", no schedule")
        assert "MetaSchedule tunes kernels of one shape only" in session.notes()[0]
        assert outputs(session, artifact).shape == (2, 1, 4, 4)


def test_a_graph_that_free_dimensions_break_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise TypeError("object of type 'NoneType' has no len()")

    artifact = doubled(tmp_path, "Upsample", 9, batch="batch")
    monkeypatch.setattr(tvm_graph, "_lower", lost)
    with pytest.raises(UnsupportedError, match=r"'doubled\.onnx' \(fp32, cpu, batch free\): TypeError") as raised:
        TVM().compile(request_for(artifact, Options(dynamic=True), SWEPT))
    assert raised.value.hint == "leave out dynamic=true: every shape then gets its own engine"
    with pytest.raises(CompileError, match=r"'doubled\.onnx' \(fp32, cpu\): TypeError"):
        TVM().compile(request_for(artifact, Options(tuner="none")))


def normalised(dtype: int) -> Any:  # a ModelProto, which is not typed
    """Return a layer normalisation of [2, 8] in some type, with a shape that is given as numbers."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[2, 8]),
        helper.make_node("Cast", ["x"], ["narrow"], to=dtype),
        helper.make_node("Reshape", ["narrow", "shape"], ["flat"]),
        helper.make_node("LayerNormalization", ["flat", "scale", "bias"], ["norm"]),
        helper.make_node("Cast", ["norm"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "normalised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 8))],
        [helper.make_tensor(name, dtype, (8,), [2.0] * 8) for name in ("scale", "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_numbers_are_constants_and_layer_normalisation_knows_no_bfloat16(tmp_path: Path) -> None:
    """When the second half fails TVM has learnt it, and may be offered bf16 on a CPU."""
    import onnx
    import tvm
    from onnx import TensorProto
    from tvm import relax

    target = tvm.target.Target("llvm")
    request = request_for(doubled(tmp_path, "Upsample", 9), Options(tuner="none"))
    onnx.save(normalised(TensorProto.FLOAT), request.artifact.onnx_path)
    prepared = tvm_graph.prepare(request, target)
    values = np.linspace(-1, 2, 16, dtype=np.float32).reshape(4, 4)
    run = relax.VirtualMachine(tvm.compile(prepared.module, target=target), tvm.cpu())["main"]
    flat = values.reshape(2, 8)
    expected = 2 * (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True) + 2
    np.testing.assert_allclose(run(tvm.runtime.tensor(values)).numpy(), expected, atol=1e-3)
    onnx.save(normalised(TensorProto.BFLOAT16), request.artifact.onnx_path)
    with pytest.raises(tvm.error.InternalError, match="only support float32 and float16"):
        tvm_graph.prepare(request, target)
