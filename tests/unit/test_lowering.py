"""Graphs for releases that read no newer opset or file format, by the real converter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from harness.api import OnnxLimits
from harness.artifact import Artifact
from harness.domains import drop_idle
from harness.errors import UnsupportedError
from harness.launcher import Launcher
from harness.lowering import ensure_lowered, fits, readable
from harness.registry import backend
from tests.support import run_graph

AS_EXPORTED = OnnxLimits(opset=18, ir=10)


def model_of(artifact: Artifact) -> onnx.ModelProto:
    return onnx.load(artifact.onnx_path)


def opset_of(artifact: Artifact) -> int:
    return int(next(entry.version for entry in model_of(artifact).opset_import if entry.domain == ""))


def test_what_a_release_reads_stays_as_it_is(tiny: Artifact, launcher: Launcher) -> None:
    assert (opset_of(tiny), model_of(tiny).ir_version) == (AS_EXPORTED.opset, AS_EXPORTED.ir)
    assert ensure_lowered(tiny, AS_EXPORTED, launcher) is tiny
    assert readable(tiny, backend("onnxruntime"), None, launcher) is tiny
    assert readable(tiny, backend("onnxruntime"), "1.31.1", launcher) is tiny
    assert readable(tiny, backend("eager"), "2.13.0", launcher) is tiny


def test_an_older_format_changes_nothing_but_the_format(tiny: Artifact, launcher: Launcher) -> None:
    lowered = readable(tiny, backend("onnxruntime"), "1.16.3", launcher)
    assert (opset_of(lowered), model_of(lowered).ir_version) == (18, 9)
    assert model_of(lowered).graph == model_of(tiny).graph
    assert lowered.manifest.inputs == tiny.manifest.inputs and lowered.hash != tiny.hash
    again = readable(tiny, backend("onnxruntime"), "1.15.0", launcher)
    assert again.folder == lowered.folder, "two releases that read the same share it"


def test_an_older_opset_is_the_same_arithmetic(tiny: Artifact, launcher: Launcher) -> None:
    lowered = ensure_lowered(tiny, OnnxLimits(opset=17, ir=8), launcher)
    assert (opset_of(lowered), lowered.manifest.opset, model_of(lowered).ir_version) == (17, 17, 8)
    assert model_of(lowered).graph != model_of(tiny).graph
    for name, expected in tiny.reference(1).items():
        np.testing.assert_allclose(run_graph(lowered, tiny, 1)[name], expected, atol=1e-6)


def test_what_cannot_be_lowered_says_so(tiny: Artifact, launcher: Launcher) -> None:
    with pytest.raises(UnsupportedError, match="reads opset 5 at most, and the graph cannot be converted") as caught:
        ensure_lowered(tiny, OnnxLimits(opset=5, ir=3), launcher)
    assert caught.value.hint == "--opset 5"


def test_what_starts_unlike_an_onnx_file_is_not_taken_for_readable(tiny: Artifact, tmp_path: Path) -> None:
    for file in tiny.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    copy = Artifact.open(tmp_path)
    assert fits(copy, AS_EXPORTED)
    copy.onnx_path.write_bytes(b"\x12" + copy.onnx_path.read_bytes())
    assert not fits(copy, AS_EXPORTED)


@pytest.mark.parametrize(
    ("release", "limits"),
    [
        ("1.11.0", None),
        ("1.12.1", OnnxLimits(opset=17, ir=8)),
        ("1.13.1", OnnxLimits(opset=17, ir=8)),
        ("1.24.4", OnnxLimits(opset=25, ir=13)),
        ("1.24.0.dev20251031003", OnnxLimits(opset=25, ir=13)),
        ("1.40.0", OnnxLimits(opset=27, ir=14)),
    ],
)
def test_what_releases_of_onnxruntime_read(release: str, limits: OnnxLimits | None) -> None:
    assert backend("onnxruntime").reads(release) == limits


def test_operator_sets_that_no_node_comes_from_go(tiny: Artifact) -> None:
    model = model_of(tiny)
    assert not drop_idle(model)
    model.opset_import.extend([helper.make_opsetid("ai.onnx.ml", 5), helper.make_opsetid("inner", 1)])
    inner = helper.make_graph([helper.make_node("Own", [], ["y"], domain="inner")], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    assert drop_idle(model)
    assert [entry.domain for entry in model.opset_import] == ["", "inner"], "a node of a branch counts too"
