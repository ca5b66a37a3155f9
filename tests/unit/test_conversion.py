"""An artifact's graph in other precisions, by the real converters."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from harness import drift, protocol, registry
from harness.artifact import Artifact
from harness.calibrating import calibration_sets
from harness.conversion import Calibration, ensure_converted
from harness.errors import ExportError, UnsupportedError, UsageError
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher
from harness.modelspec import ModelSpec
from harness.plan import parse_variants, with_dynamic, with_precisions
from harness.precisions import PRECISIONS, parse_precisions
from harness.sources import calibration_source
from tests.support import run_graph

FLOAT, FLOAT16, BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
FEW = Calibration(samples=8)


def converted(
    artifact: Artifact, precision: str, launcher: Launcher, calibration: Calibration = FEW
) -> tuple[Artifact, bool]:
    return ensure_converted(artifact, precision, calibration, launcher, weights="seeded", on_progress=lambda _: None)


def graph(artifact: Artifact) -> onnx.GraphProto:
    return onnx.load(artifact.onnx_path).graph


def types(artifact: Artifact) -> set[int]:
    return {value.type.tensor_type.elem_type for value in [*graph(artifact).input, *graph(artifact).output]}


def test_float16_keeps_inputs_and_outputs_and_narrows_weights(tiny: Artifact, launcher: Launcher) -> None:
    half, cached = converted(tiny, "fp16", launcher)
    assert not cached
    assert half.manifest.precision == "fp16"
    assert types(half) == {FLOAT}
    weights = Counter(entry.data_type for entry in graph(half).initializer if len(entry.dims) > 1)
    assert set(weights) == {FLOAT16}
    rows = drift.judge(run_graph(half, tiny), tiny.reference(0), tiny.golden(0), precision="fp16")
    assert drift.passed(rows), [row.reason for row in rows]
    (row,) = rows
    assert row.max_rel is not None and row.max_rel > 1e-5, "it really computes in half"


def test_a_second_time_it_comes_from_the_cache(tiny: Artifact, launcher: Launcher) -> None:
    first, _ = converted(tiny, "fp16", launcher)
    again, cached = converted(tiny, "fp16", launcher)
    assert cached
    assert again.folder == first.folder
    first.onnx_path.write_bytes(b"damaged")
    mended, cached = converted(tiny, "fp16", launcher)
    assert not cached
    assert types(mended) == {FLOAT}


def test_int8_has_scales_for_each_channel_and_float_biases(tiny: Artifact, launcher: Launcher) -> None:
    small, _ = converted(tiny, "int8", launcher)
    nodes = Counter(node.op_type for node in graph(small).node)
    assert nodes["QuantizeLinear"] and nodes["DequantizeLinear"]
    shapes = [tuple(entry.dims) for entry in graph(small).initializer if entry.name.endswith("weight_scale")]
    assert any(shape and shape[0] > 1 for shape in shapes), "weights have a scale a channel"
    assert not [entry for entry in graph(small).initializer if entry.data_type == onnx.TensorProto.INT32]
    rows = drift.judge(run_graph(small, tiny), tiny.reference(0), tiny.golden(0), precision="int8")
    assert drift.passed(rows), [row.reason for row in rows]
    (note,) = small.manifest.notes
    told = r"int8: \d+ nodes are quantised, their scales calibrated on 8 drawn samples, minmax, set [0-9a-f]{12}"
    assert re.fullmatch(told, note)


def test_float8_quantises_to_float8(tiny: Artifact, launcher: Launcher) -> None:
    small, _ = converted(tiny, "fp8", launcher)
    kinds = {entry.data_type for entry in graph(small).initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in kinds
    assert small.manifest.opset >= 19


def test_bfloat16_computes_between_casts(tiny: Artifact, launcher: Launcher) -> None:
    brain, _ = converted(tiny, "bf16", launcher)
    assert types(brain) == {FLOAT}
    assert {entry.data_type for entry in graph(brain).initializer if len(entry.dims) > 1} == {BFLOAT16}
    assert [spec.name for spec in tiny.outputs] == [value.name for value in graph(brain).output]
    assert "Shape" not in {node.op_type for node in graph(brain).node}, "constants are folded"


def test_another_calibration_makes_another_graph(tiny: Artifact, launcher: Launcher, tmp_path: Path) -> None:
    drawn, _ = converted(tiny, "int8", launcher)
    path = tmp_path / "calibration.npz"
    np.savez(path, input=np.full((1, 3, 32, 32), 9.0, dtype=np.float32))
    own, _ = converted(tiny, "int8", launcher, Calibration(source=str(path), samples=8))
    assert own.folder != drawn.folder
    assert f"1 samples of {path}" in own.manifest.notes[0]
    assert own.manifest.notes[1].startswith("1 calibration samples are few")
    np.savez(path, input=np.full((1, 3, 32, 32), 8.0, dtype=np.float32))
    assert not converted(tiny, "int8", launcher, Calibration(source=str(path), samples=8))[1], "the file has changed"


def test_the_judged_inputs_are_never_calibrated_on(tiny: Artifact, launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "judged.npz"
    np.savez(path, input=tiny.input_set(0)["input"])
    with pytest.raises(UsageError, match="holds the judged inputs only"):
        converted(tiny, "int8", launcher, Calibration(source=str(path)))


@pytest.mark.parametrize("name", ["tiny", "digits"])
def test_drawn_samples_are_never_judged_ones(name: str, launcher: Launcher) -> None:
    recipe = Recipe(
        model=ModelSpec(name=name),
        dims={"batch": 1},
        input_sets=8,
        weights=registry.default_weights(ModelSpec(name=name)),
    )
    artifact, _ = ensure_artifact(recipe, launcher, on_progress=lambda _: None)
    request = protocol.Convert(
        artifact=str(artifact.folder), precision="int8", samples=600, method="minmax", weights=recipe.weights, folder=""
    )
    sets = calibration_sets(artifact, request)
    (given,) = artifact.inputs
    judged = {artifact.input_set(index)[given.name].tobytes() for index in range(8)}
    assert len(judged) == 8
    assert judged.isdisjoint(sets[index][given.name].tobytes() for index in range(len(sets)))
    if name == "digits":  # of a few hundred images some are drawn twice: those are left out, and said to be
        assert sets.notes == [note for note in sets.notes if note.endswith("were left out: they are judged")] != []


def test_a_data_set_calibrates(launcher: Launcher, tmp_path: Path) -> None:
    recipe = Recipe(model=ModelSpec(name="digits"), dims={"batch": 4}, weights="pretrained")
    artifact, _ = ensure_artifact(recipe, launcher, on_progress=lambda _: None)
    request = protocol.Convert(
        artifact=str(artifact.folder), precision="int8", calibration="digits", samples=9, method="minmax",
        weights="pretrained", folder="",
    )  # fmt: skip
    sets = calibration_sets(artifact, request)
    assert len(sets) == 9
    assert sets[0]["image"].shape == (4, 1, 8, 8)
    with pytest.raises(UsageError, match="those that engines are judged on"):
        calibration_source("digits", [ModelSpec(name="digits")])
    with pytest.raises(UsageError, match=r"--calibration pairs:.* cannot be read"):
        calibration_source(f"pairs:{tmp_path / 'none.tsv'}", [ModelSpec(name="minilm-l6")])
    with pytest.raises(UsageError, match="there is no such file"):
        calibration_source(str(tmp_path / "none.npz"), [])
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a cat\ta dog\t1\na cat\ta tiger\t3\na cat\tthe cat\t5\n")
    source = f"pairs:{pairs}"
    assert calibration_source(source, [ModelSpec(name="minilm-l6")]) == source
    with pytest.raises(UsageError, match="those that engines are judged on"):
        calibration_source(source, [ModelSpec(name="minilm-l6")], dataset=source)


def test_calibration_inputs_of_another_shape_are_refused(tiny: Artifact, launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "wrong.npz"
    np.savez(path, input=np.zeros((1, 3, 31, 32), dtype=np.float32))
    with pytest.raises(UsageError, match="input"):
        converted(tiny, "int8", launcher, Calibration(source=str(path)))


def test_what_is_quantised_is_not_quantised_again(tiny: Artifact, launcher: Launcher, tmp_path: Path) -> None:
    small, _ = converted(tiny, "int8", launcher)
    path = tmp_path / "small.onnx"
    path.write_bytes(small.onnx_path.read_bytes())
    recipe = Recipe(model=ModelSpec(kind="onnx", name=str(path)), weights="own")
    own, _ = ensure_artifact(recipe, launcher, on_progress=lambda _: None)
    with pytest.raises(UsageError, match=r"small\.onnx is quantised already"):
        converted(own, "int8", launcher)
    with pytest.raises(UnsupportedError, match="bf16 needs a torch module"):
        converted(own, "bf16", launcher)


def test_a_failed_conversion_leaves_nothing_behind(
    tiny: Artifact, launcher: Launcher, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "timeout_s", 0.01)
    with pytest.raises(ExportError):
        converted(tiny, "int8", launcher, Calibration(samples=9))
    assert not list((cache / "exports").glob("*.part-*"))


class TestPlan:
    def ids(self, text: str, precisions: str) -> list[str]:
        return [one.id for one in with_precisions(parse_variants([text]), parse_precisions(precisions))]

    def test_every_backend_in_every_precision(self) -> None:
        assert self.ids("eager,tvm:trials=8", "fp32,fp16") == [
            "eager",
            "eager:precision=fp16",
            "tvm:trials=8",
            "tvm:trials=8,precision=fp16",
        ]

    def test_a_case_that_names_its_own_stays(self) -> None:
        assert self.ids("eager:precision=bf16,onnxruntime", "fp32,int8") == [
            "eager:precision=bf16",
            "onnxruntime",
            "onnxruntime:precision=int8",
        ]

    def test_only_what_was_asked_for_alone_fails_the_command(self) -> None:
        several = with_precisions(parse_variants(["eager"]), ("fp32", "int8"))
        assert [one.asked_by_name for one in several] == [True, False]
        (alone,) = with_precisions(parse_variants(["eager"]), ("int8",))
        assert alone.asked_by_name

    def test_dynamic_siblings_come_in_every_precision(self) -> None:
        variants = with_dynamic(with_precisions(parse_variants(["onnxruntime"]), ("fp32", "fp16")))
        assert [one.id for one in variants] == [
            "onnxruntime",
            "onnxruntime:dynamic=true",
            "onnxruntime:precision=fp16",
            "onnxruntime:precision=fp16,dynamic=true",
        ]

    def test_parsing(self) -> None:
        assert parse_precisions("FP16, fp32,fp16") == ("fp16", "fp32")
        for text in ("", "fp64", "fp32,,fp16"):
            with pytest.raises(UsageError, match="unknown precision"):
                parse_precisions(text)
        assert all(drift.limits(precision) for precision in PRECISIONS)
