"""int8 in torch: the scales of the graph, int8 kernels in the code, and what is refused before it is compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from backends.torch_compile import TorchCompile
from backends.torch_int8 import left_in_float
from harness import drift, protocol, registry
from harness.artifact import PROGRAM, Artifact
from harness.conversion import Calibration, ensure_converted
from harness.errors import ExportError, FallbackError, UnsupportedError, UsageError
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher
from harness.modelspec import ModelSpec
from harness.precisions import is_converted
from tests.support import run_graph

torch = pytest.importorskip("torch")

from harness.torch_quantising import products, quantise  # noqa: E402 - they import torch where they are called
from tests.torch_support import Built, one_process, request_for  # noqa: E402 - it imports torch

FEW = Calibration(samples=8)


@pytest.fixture(autouse=True)
def session() -> Iterator[None]:
    freezing = torch._inductor.config.freezing
    with one_process():
        yield
    torch._inductor.config.freezing = freezing


@pytest.fixture(scope="module")
def digits(launcher: Launcher) -> Artifact:
    pytest.importorskip("torchao", reason="pip install 'harness[torch-int8]'")
    pytest.importorskip("sklearn", reason="pip install 'harness[datasets]'")
    recipe = Recipe(model=ModelSpec(name="digits"), dims={"batch": 32}, weights="pretrained", input_sets=1)
    return ensure_artifact(recipe, launcher, on_progress=lambda _: None)[0]


def in_int8(artifact: Artifact, launcher: Launcher, source: Any, **asked: Any) -> tuple[Artifact, bool]:
    calibration = msgspec.structs.replace(FEW, **asked)
    return ensure_converted(
        artifact, "int8", calibration, launcher, weights="pretrained", on_progress=lambda _: None, source=source
    )


def own_scales(module: Any) -> set[float]:
    found = [node.args[1] for node in module.graph.nodes if "dequantize_per_tensor" in str(node.target)]
    return {round(float(getattr(module, str(one.target)) if hasattr(one, "target") else one), 7) for one in found}


def scales_of_graph(artifact: Artifact) -> set[float]:
    model = onnx.load(artifact.onnx_path)
    values = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    read = [values[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {round(float(one), 7) for one in read if one.ndim == 0}


def test_scales_are_those_of_the_graph(digits: Artifact, launcher: Launcher) -> None:
    module, _ = in_int8(digits, launcher, "torch")
    graph, _ = in_int8(digits, launcher, "onnx")
    found, expected = own_scales(module.module()), scales_of_graph(graph)
    assert len(found) == 3, "of what each of three products is given"
    assert found <= expected
    told, graph_told = (" ".join(one.manifest.notes) for one in (module, graph))
    assert told.rpartition("set ")[2] == graph_told.rpartition("set ")[2], "both saw the same samples"
    assert told.startswith("int8 of torch backends: 3 products are quantised, their scales calibrated on 8 drawn")
    weights = [value for value in module.module().state_dict().values() if value.dtype == torch.int8]  # type: ignore[attr-defined]
    assert len(weights) == 3, "weights are kept in int8"


def test_a_second_time_it_comes_from_the_cache_unless_the_samples_differ(digits: Artifact, launcher: Launcher) -> None:
    in_int8(digits, launcher, "torch")
    assert in_int8(digits, launcher, "torch")[1]
    module, cached = in_int8(digits, launcher, "torch", samples=9)
    assert not cached
    assert "calibrated on 9 drawn samples" in module.manifest.notes[0]


@pytest.mark.parametrize("aot", [False, True])
def test_inductor_computes_in_int8(digits: Artifact, launcher: Launcher, tmp_path: Path, *, aot: bool) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    module, _ = in_int8(digits, launcher, "torch")
    request = request_for(TorchCompile, module, tmp_path, precision="int8", aot=aot)
    with TorchCompile().compile(request) as session:
        session.bind(digits.input_set(0))
        session.execute()
        outputs = session.outputs()
        facts, provider = session.facts(), session.provider
        session.save(tmp_path)
    assert (facts["int8_products"], facts["int8_kernels"]) == (3, 3)
    assert provider == ("aot-inductor" if aot else "inductor") + " cpu int8"
    rows = drift.judge(outputs, digits.reference(0), digits.golden(0), precision="int8")
    assert drift.passed(rows), [row.reason for row in rows]
    assert rows[0].relative_l2 is not None and rows[0].relative_l2 > 1e-4, "it really computes in int8"
    graph, _ = in_int8(digits, launcher, "onnx")
    (own,), (other,) = outputs.values(), run_graph(graph, digits).values()
    apart = np.linalg.norm(own - other) / np.linalg.norm(other)
    assert apart < rows[0].relative_l2 / 2, "nearer to the graph in int8 than to float32"
    if not aot:
        code = "\n".join(source for _, source in generated())
        assert code.count("torch.ops.onednn.qconv_pointwise") >= 2 and "torch.ops.onednn.qlinear_pointwise" in code
        return
    with TorchCompile().load(tmp_path, request) as session:
        session.bind(digits.input_set(0))
        session.execute()
        np.testing.assert_array_equal(session.outputs()["logits"], own)
        assert session.facts() == facts


def generated() -> list[tuple[dict[str, Any], str]]:
    from backends.torch_inductor import _generated

    return _generated()


class Transposed(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch is imported only where it is installed
    """A product that Inductor has no int8 kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(1, 2, 3, 3, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Any) -> Any:
        widened = torch.ops.quantized_decomposed.dequantize_per_channel
        weight = widened(self.weight, self.scale, self.zero, 0, -127, 127, torch.int8)
        return torch.nn.functional.conv_transpose2d(x, weight)


def test_without_an_int8_kernel_there_is_no_number(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters
    from torch.ao.quantization.fx import _decomposed  # noqa: F401 - it registers the operators

    counters.clear()
    with torch.no_grad():
        program = torch.export.export(Transposed(), (torch.ones(2, 1, 8, 8),))
    artifact = Built(tmp_path, program.module())
    with pytest.raises(FallbackError, match="found an int8 kernel for none of the 1 quantised products"):
        TorchCompile().compile(request_for(TorchCompile, artifact, tmp_path, precision="int8"))


def test_what_stays_in_float_is_said() -> None:
    said = left_in_float({"int8_products": 5, "int8_kernels": 3})
    assert said == ["2 of 5 quantised products have no int8 kernel and are computed in float32"]
    assert left_in_float({"int8_products": 5, "int8_kernels": 5}) == []
    assert left_in_float({"graphs": 1}) == []


def asked(folder: Path, **changes: Any) -> protocol.Convert:
    request = protocol.Convert(
        artifact=str(folder), precision="int8", source="torch", samples=8, method="minmax", weights="seeded",
        folder=str(folder),
    )  # fmt: skip
    return msgspec.structs.replace(request, **changes)


def refused(folder: Path, module: Any, **changes: Any) -> None:
    quantise(Built(folder, module), folder / PROGRAM, asked(folder, **changes), lambda *_: None)


def test_without_torchao_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UnsupportedError, match="torchao quantises torch modules, and cannot be imported") as caught:
        refused(tmp_path, torch.nn.Conv2d(1, 2, 3))
    assert caught.value.hint == "pip install 'harness[torch-int8]'"


def test_another_calibration_method_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="calibrated by minmax only, not by entropy"):
        refused(tmp_path, torch.nn.Conv2d(1, 2, 3), method="entropy")


def test_a_module_for_a_sweep_is_unsupported(tmp_path: Path) -> None:
    artifact = Built(tmp_path, torch.nn.Conv2d(1, 2, 3))
    artifact.manifest = msgspec.structs.replace(artifact.manifest, dynamic={"batch": (1, 4)})
    with pytest.raises(UnsupportedError, match="not built with free dimensions"):
        quantise(artifact, tmp_path / PROGRAM, asked(tmp_path), lambda *_: None)


class DependsOnValues(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    def forward(self, x: Any) -> Any:
        return x * 2 if x.sum() > 0 else x


class QuantisedAlready(torch.nn.Module):  # type: ignore[misc,name-defined]  # as above
    def forward(self, x: Any) -> Any:
        return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)


@pytest.mark.parametrize(
    ("module", "error", "says"),
    [
        (DependsOnValues, ExportError, "torch.export cannot capture the module to quantise it: "),
        (QuantisedAlready, UsageError, "toy is quantised already"),
    ],
)
def test_a_module_that_cannot_be_captured_or_is_quantised(
    module: Any, error: type[Exception], says: str, tmp_path: Path
) -> None:
    pytest.importorskip("torchao", reason="pip install 'harness[torch-int8]'")
    with pytest.raises(error, match=says):
        refused(tmp_path, module())


def test_a_model_without_weights_has_nothing_to_quantise(launcher: Launcher) -> None:
    pytest.importorskip("torchao", reason="pip install 'harness[torch-int8]'")
    recipe = Recipe(model=ModelSpec(name="layernorm-sigmoid"), input_sets=1)
    artifact, _ = ensure_artifact(recipe, launcher, on_progress=lambda _: None)
    with pytest.raises(UnsupportedError, match="no operator of the module multiplies by weights"):
        in_int8(artifact, launcher, "torch")


def test_frozen_weights_are_no_arguments_of_the_code(tmp_path: Path) -> None:
    def arguments(*, freezing: bool) -> int:
        torch._dynamo.reset()
        before = len(generated())
        artifact = Built(tmp_path, torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten()))
        with TorchCompile().compile(request_for(TorchCompile, artifact, tmp_path, freezing=freezing)):
            ((_, code),) = generated()[before:]
        (line,) = [line for line in code.splitlines() if line.strip().endswith("= args")]
        return len([name for name in line.partition("=")[0].split(",") if name.strip()])

    assert arguments(freezing=False) == 3, "the input, the weights and the biases"
    assert arguments(freezing=True) == 1


@pytest.mark.parametrize("backend", ["eager", "torch-compile"])
def test_reasons_name_what_lacks_it(backend: str) -> None:
    capabilities = registry.backend(backend).capabilities
    able = backend == "torch-compile"
    assert ("int8" in capabilities.precisions_on("cpu")) is able
    assert ("int8" in capabilities.lacks["cpu"]) is not able
    assert "just dequantised" in capabilities.lacks["cuda"]["int8"]


def test_torch_narrows_itself_but_is_calibrated_once() -> None:
    assert [one for one in ("fp32", "fp16", "bf16", "int8") if is_converted(one, "torch")] == ["int8"]
    assert [one for one in ("fp32", "fp16", "bf16", "int8") if is_converted(one, "onnx")] == ["fp16", "bf16", "int8"]


def test_products_are_counted_by_their_weights() -> None:
    graph = torch.fx.Graph()
    graph.output(graph.placeholder("x"))
    assert products(torch.fx.GraphModule(torch.nn.Module(), graph)) == 0
