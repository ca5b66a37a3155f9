"""Parts of graphs compute what the whole does; what is hard to look into is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from harness import protocol
from harness.artifact import Artifact
from harness.errors import RunError
from harness.graph_cuts import cut, survey
from harness.graph_reference import open_as_it_stands
from tests.planted import WIDTH, DirectLab, artifact, half, located, model, residual
from tests.plugins.fake_faults import FaultOptions


def surveyed(source: Artifact, graph: Artifact | None = None) -> protocol.Surveyed:
    return survey(protocol.Survey(source=str(source.folder), graph=str((graph or source).folder), input_set=0))


def part(source: Artifact, graph: Artifact, folder: Path, inputs: list[str], outputs: list[str]) -> Artifact:
    folder.mkdir()
    cut(
        protocol.Cut(
            source=str(source.folder),
            graph=str(graph.folder),
            input_set=1,
            inputs=inputs,
            outputs=outputs,
            folder=str(folder),
        )
    )
    return Artifact.open(folder, verify=True)


def outputs(of: Artifact) -> dict[str, np.ndarray]:
    session = open_as_it_stands(of.onnx_path, threads=1, what="a part")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, of.input_set(0)), strict=True))


def test_a_part_computes_what_the_whole_does(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(0, layers=4))
    inside = part(source, source, tmp_path / "part", ["stream_1"], ["branch_2", "stream_2"])
    assert [node.name for node in onnx.load(inside.onnx_path).graph.node] == [
        *("mix-2", "act-2", "out-2", "gate-2", "use-2", "add-2")
    ]
    assert [spec.name for spec in inside.inputs] == ["stream_1"]
    onnx.checker.check_model(inside.onnx_path, full_check=True)
    for name, array in outputs(inside).items():
        np.testing.assert_array_equal(array, inside.reference(0)[name])


def test_a_part_of_a_float16_graph_takes_and_gives_float32(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(0, layers=4))
    graph = half(tmp_path / "half", source)
    inside = part(source, graph, tmp_path / "part", ["stream_1"], ["active_2", "stream_2"])
    onnx.checker.check_model(inside.onnx_path, full_check=True)
    assert {spec.dtype for spec in [*inside.inputs, *inside.outputs]} == {"float32"}
    results = outputs(inside)
    for name, array in results.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, inside.reference(0)[name], atol=2e-2)
    assert any((array != inside.reference(0)[name]).any() for name, array in results.items()), "it is in float16"


def test_survey_of_a_converted_graph_looks_through_casts(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(0, layers=1))
    plain, narrow = surveyed(source), surveyed(source, half(tmp_path / "half", source))
    assert [tensor.name for tensor in narrow.tensors] == [tensor.name for tensor in plain.tensors]
    assert [tensor.node for tensor in narrow.tensors] == ["mix-0", "act-0", "out-0", "add-0", "head"]
    assert [tensor.parents for tensor in plain.tensors][-2:] == [["x", "branch_0"], ["stream_0"]]
    assert [set(tensor.parents) for tensor in narrow.tensors] == [set(tensor.parents) for tensor in plain.tensors]
    assert narrow.deterministic
    assert not narrow.closed


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(0, layers=1))
    with pytest.raises((RunError, Exception), match="nowhere"):
        part(source, source, tmp_path / "part", [], ["nowhere"])


def test_control_flow_is_one_node_and_said(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [4, WIDTH])
    branches = {
        name: helper.make_graph([helper.make_node(op, ["a"], ["inner"])], name, [], [value])
        for name, op in (("then_branch", "Tanh"), ("else_branch", "Relu"))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="before"),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "edge"], ["chosen"]),
        helper.make_node("If", ["chosen"], ["b"], name="branch", **branches),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="after"),
    ]
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(0), "edge")]
    source = artifact(tmp_path / "source", model(nodes, weights))
    found = surveyed(source)
    assert found.closed == ["If branch"]
    assert {tensor.name: set(tensor.parents) for tensor in found.tensors}["b"] == {"top", "a"}
    located_at = located(DirectLab(tmp_path / "cuts", source, FaultOptions(fault="transpose", node="before")))
    assert located_at.node == "before"
    assert any("Not looked into: If branch." in note for note in located_at.notes)


def test_a_reference_that_is_not_deterministic_is_said_first(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], name="dice"),
        helper.make_node("Add", ["x", "noise"], ["y"], name="shake"),
    ]
    source = artifact(tmp_path / "source", model(nodes, []))
    found = located(DirectLab(tmp_path / "cuts", source, FaultOptions()))
    assert found.notes[0].startswith("The reference is not deterministic")


def test_nan_in_the_middle_of_the_reference_is_said_and_is_no_fault(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Log", ["x"], ["logs"], name="log"),  # of negative numbers, too
        helper.make_node("IsNaN", ["logs"], ["odd"], name="find"),
        helper.make_node("Where", ["odd", "zero", "logs"], ["mended"], name="mend"),
        helper.make_node("MatMul", ["mended", "w"], ["y"], name="wrong"),
    ]
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(0), "zero")]
    source = artifact(tmp_path / "source", model(nodes, weights))
    found = located(DirectLab(tmp_path / "cuts", source, FaultOptions(fault="scale", node="wrong")))
    assert found.node == "wrong"
    assert any("NaN first at 'logs' (Log 'log')" in note for note in found.notes)
