"""The worker's half of an export: sizes, outputs, references, files and what is said when it cannot be."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from harness import flops, protocol, registry, shapes
from harness.api import InputSpec, Model
from harness.artifact import read_tensors, write_tensors
from harness.errors import ExportError, UsageError
from harness.inputs import Sets
from harness.modelspec import ModelSpec
from harness.references import failed

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from harness import exporter  # noqa: E402 - it needs torch

Module = Any  # torch is Any to the type checker
nn: Any = torch.nn


def export(folder: Path, **changes: Any) -> protocol.Exported:
    settings: dict[str, Any] = {
        "model": ModelSpec(name="tiny"), "weights": "seeded", "dims": {}, "seed": 0, "opset": 18, "input_sets": 2,
        "threads": 2, "folder": str(folder),
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    return exporter.export(protocol.Export(**{**settings, **changes}), lambda *_: None)


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, protocol.Exported]:
    folder = tmp_path_factory.mktemp("static")
    return folder, export(folder)


class Given(Model):
    """A model around a module that a test made."""

    def __init__(self, module: Module, output_names: tuple[str, ...] = ()) -> None:
        self._module, self._names = module, output_names

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec(name="x", dtype="float32", shape=("batch", 4)),)

    @property
    def output_names(self) -> tuple[str, ...]:
        return self._names

    def build(self, dims: Mapping[str, int]) -> Module:
        return self._module


def module_of(forward: Any) -> Module:
    class Made(nn.Module):  # type: ignore[misc]  # torch is Any to the type checker
        def forward(self, x: Any) -> Any:
            return forward(x)

    return Made()


def two_sets() -> Sets:
    return Sets(count=2, make=lambda index: {"x": np.full((1, 4), index + 1, np.float32)})


def quiet(*_: object) -> None:
    pass


# ---- a whole export


def test_exported_says_what_the_manifest_needs(static: tuple[Path, protocol.Exported]) -> None:
    folder, exported = static
    assert exported.inputs == [("input", "float32", [1, 3, 32, 32])]
    assert exported.outputs == [("logits", "float32", [1, 10])]
    assert (exported.dims, exported.axes) == ({"batch": 1}, {"input": {0: "batch"}})
    assert (exported.weights, exported.module, exported.task) == ("seeded", True, "classification")
    assert (exported.parameters, exported.weights_bytes) == (5_450, 4 * 5_450 + 4 * 32 + 8)
    assert (exported.opset, exported.deterministic, exported.golden) == (18, True, True)
    assert exported.gflop == pytest.approx(0.00081, rel=0.01)
    assert {"torch", "onnx", "onnxscript"} <= set(exported.versions)
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx", "weights.safetensors", *(f"{kind}-{i}.safetensors" for kind in ("inputs", "reference", "golden")
                                               for i in (0, 1)),
    }  # fmt: skip


def test_reference_is_computed_in_float32_on_the_cpu_whatever_the_models_code_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during: list[tuple[Any, ...]] = []

    class Careless(Given):
        def build(self, dims: Mapping[str, int]) -> Module:
            torch.set_float32_matmul_precision("medium")
            torch.backends.fp32_precision = "tf32"
            torch.set_default_device("meta")  # as good a stranger as a GPU
            return super().build(dims)

    def forward(x: Any) -> Any:
        switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul
        during.append((x.device.type, torch.get_default_device().type, *(switch.fp32_precision for switch in switches)))
        return x + torch.ones(4)

    monkeypatch.setattr(registry, "model", lambda spec: Careless(module_of(forward)))
    export(tmp_path, model=ModelSpec(kind="factory", name="tests:careless"), weights="own", dims={"batch": 1})
    assert set(during) == {("cpu", "cpu", "ieee", "ieee", "ieee")}


def test_golden_values_are_near_the_reference_and_wider(static: tuple[Path, protocol.Exported]) -> None:
    folder, _ = static
    golden = read_tensors(folder / "golden-1.safetensors")["logits"]
    reference = read_tensors(folder / "reference-1.safetensors")["logits"]
    assert golden.dtype == np.float64
    assert 0 < np.abs(golden - reference).max() < 1e-5


def test_exported_graph_equals_the_module(static: tuple[Path, protocol.Exported]) -> None:
    pytest.importorskip("onnxruntime")
    folder, exported = static
    worst = exporter.check(folder, exported.input_sets, 1).max_abs
    assert worst is not None
    assert worst < 1e-5


@pytest.mark.parametrize("changed", ["value", "shape"])
def test_graph_that_gives_something_else_is_refused(
    static: tuple[Path, protocol.Exported], tmp_path: Path, changed: str
) -> None:
    pytest.importorskip("onnxruntime")
    for name in ("model.onnx", "inputs-0.safetensors"):
        (tmp_path / name).write_bytes((static[0] / name).read_bytes())
    reference = read_tensors(static[0] / "reference-0.safetensors")["logits"]
    wrong = reference * np.float32(1.01) if changed == "value" else reference[:, :9]
    write_tensors(tmp_path / "reference-0.safetensors", {"logits": wrong})
    with pytest.raises(ExportError, match="does not equal the module"):
        exporter.check(tmp_path, 1, 1)


def test_dynamic_graph_takes_every_size_of_its_range(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = export(tmp_path, dims={"batch": 4}, dynamic={"batch": (1, 4)}, input_sets=1)
    assert exported.inputs == [("input", "float32", [4, 3, 32, 32])]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    tensors = read_tensors(tmp_path / "inputs-0.safetensors")["input"]
    reference = read_tensors(tmp_path / "reference-0.safetensors")["logits"]
    for batch in (1, 3):
        (got,) = session.run(None, {"input": tensors[:batch]})
        np.testing.assert_allclose(got, reference[:batch], atol=1e-5)


def test_users_inputs_take_the_place_of_drawn_ones(tmp_path: Path) -> None:
    image = np.full((1, 3, 32, 32), 0.5, np.float32)
    np.savez(tmp_path / "mine.npz", input=image)
    exported = export(tmp_path / "out", inputs=str(tmp_path / "mine.npz"), input_sets=4)
    assert exported.input_sets == 1
    assert exported.sources == [str(tmp_path / "mine.npz")]
    np.testing.assert_array_equal(read_tensors(tmp_path / "out" / "inputs-0.safetensors")["input"], image)


def test_module_that_torch_cannot_export_is_said_in_few_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Given(module_of(lambda x: x if x.sum() > 0 else -x))
    monkeypatch.setattr(registry, "model", lambda _: model)
    with pytest.raises(ExportError, match=r"torch\.onnx cannot export it at opset 18: \w+: ") as caught:
        export(tmp_path, weights="own", dims={"batch": 1})
    assert len(caught.value.message) < 700


# ---- sizes

PAIR = (
    InputSpec(name="ids", dtype="int64", shape=("batch", "sequence")),
    InputSpec(name="image", dtype="float32", shape=("batch", 3, 8, 8)),
)


def resolve(wanted: dict[str, int], sizes: dict[str, list[int]]) -> dict[str, int]:
    return shapes.resolve(PAIR, defaults={"batch": 1}, wanted=wanted, shapes=sizes)


def test_sizes_come_from_dimensions_and_whole_shapes_before_the_models_own() -> None:
    assert resolve({"sequence": 4}, {}) == {"batch": 1, "sequence": 4}
    assert resolve({"sequence": 4}, {"image": [2, 3, 8, 8]}) == {"batch": 2, "sequence": 4}
    assert resolve({}, {"ids": [5, 6], "image": [5, 3, 8, 8]}) == {"batch": 5, "sequence": 6}


@pytest.mark.parametrize(
    ("wanted", "sizes", "says"),
    [
        ({"sequenc": 4}, {}, "no free dimension 'sequenc'; it has batch, sequence"),
        ({}, {"idz": [1, 2]}, "no input 'idz'; it has ids, image"),
        ({}, {"image": [1, 3, 8]}, "has 4 axes (batchx3x8x8), got 1x3x8"),
        ({}, {"image": [1, 3, 8, 9]}, "axis 3 of input 'image' (batchx3x8x8) is fixed: expected 8, got 9"),
        ({"batch": 2}, {"ids": [3, 4]}, "'batch' is given two sizes: 2, and 3 by --shape ids"),
        ({}, {"ids": [3, 4], "image": [2, 3, 8, 8]}, "'batch' is given two sizes"),
        ({}, {}, "no size is set for 'sequence' (ids: batchxsequence)"),
    ],
)
def test_sizes_that_cannot_be_are_refused(wanted: dict[str, int], sizes: dict[str, list[int]], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(wanted, sizes)
    assert says in caught.value.message
    if "sequenc" in wanted:
        assert "a free first axis is called batch" in (caught.value.hint or "")


def test_unset_size_comes_with_both_ways_to_set_it() -> None:
    with pytest.raises(UsageError) as caught:
        resolve({}, {})
    assert caught.value.hint == "--dim sequence=SIZE, or --shape ids=1xSIZE"


def test_formulas_follow_from_other_sizes() -> None:
    specs = (InputSpec(name="mask", dtype="int64", shape=("batch", "past + 1")),
             InputSpec(name="keys", dtype="float32", shape=("2*batch", "past")))  # fmt: skip
    assert shapes.resolve(specs, defaults={"batch": 3}, wanted={"past": 7}, shapes={}) == {
        "batch": 3, "past": 7, "past + 1": 8, "2*batch": 6,
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"'past \+ 1', 'past'"):
        shapes.resolve(specs, defaults={"batch": 3}, wanted={}, shapes={})


def test_one_name_on_two_axes_of_an_input_has_one_size() -> None:
    square = (InputSpec(name="x", dtype="float32", shape=("n", "n")),)
    with pytest.raises(UsageError, match="cannot be both 2 and 3"):
        shapes.resolve(square, defaults={}, wanted={}, shapes={"x": [2, 3]})


def test_dimension_that_no_input_has_cannot_stay_free() -> None:
    request: Any = SimpleNamespace(dims={"batch": 1}, shapes={}, dynamic={"sequence": (1, 8)})
    with pytest.raises(UsageError, match="'sequence' cannot stay free"):
        shapes.settle(Given(None), request)


# ---- outputs and references


def test_outputs_are_named_as_declared_or_by_what_they_are() -> None:
    one, two = torch.ones(1), torch.zeros(2)
    assert list(exporter.named_outputs(one)) == ["output"]
    assert list(exporter.named_outputs((one, two))) == ["output_0", "output_1"]
    assert list(exporter.named_outputs({"a": one, "b": two})) == ["a", "b"]
    assert list(exporter.named_outputs([one, two], ("first", "second"))) == ["first", "second"]


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ((1, 2), "'output_0' of the module's results is a int, not a tensor"),
        ({"logits": None}, "'logits' of the module's results is None"),
        (lambda: [torch.ones(1), [torch.ones(1)]], "'output_1' of the module's results is a list"),
        ((), "returns nothing"),
    ],
)
def test_results_that_are_no_tensors_are_refused(result: Any, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        exporter.named_outputs(result() if callable(result) else result)


def test_number_of_outputs_is_held_against_the_declared_ones() -> None:
    with pytest.raises(ExportError, match=r"expected 2 outputs \(a, b\), the module returns 1"):
        exporter.named_outputs(torch.ones(1), ("a", "b"))


def test_module_that_writes_into_its_input_is_refused() -> None:
    with pytest.raises(ExportError, match="changes its input 'x' in place"):
        exporter.call(module_of(lambda x: x.add_(1)), {"x": np.ones((1, 4), np.float32)})


def test_noise_is_not_deterministic(tmp_path: Path) -> None:
    noisy, steady = module_of(lambda x: x + torch.rand_like(x)), module_of(lambda x: x + 1)
    assert exporter._references(noisy, Given(noisy), two_sets(), tmp_path, quiet)[1] is False
    assert exporter._references(steady, Given(steady), two_sets(), tmp_path, quiet)[1] is True
    np.testing.assert_array_equal(read_tensors(tmp_path / "reference-1.safetensors")["output"], np.full((1, 4), 3.0))


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda x: x / 0, "'output' holds NaN or infinite values"),
        (lambda x: x.to(torch.bfloat16), "'output' is bfloat16"),
        (lambda x: x @ torch.ones(5, 5), "PyTorch cannot run the module: RuntimeError"),
    ],
)
def test_references_that_cannot_be_compared_are_refused(tmp_path: Path, forward: Any, says: str) -> None:
    module = module_of(forward)
    with pytest.raises(ExportError, match=says):
        exporter._references(module, Given(module), two_sets(), tmp_path, quiet)


# ---- golden values and weights


def test_golden_is_left_out_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30, total=1 << 40))
    module = torch.nn.Linear(4, 4)
    assert not exporter._golden(module, Given(module), two_sets(), tmp_path, quiet)
    assert module.weight.dtype == torch.float32


def test_golden_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def float32_only(x: Any) -> Any:
        if x.dtype == torch.float64 and x[0, 0] > 1:
            raise NotImplementedError
        return x

    module = module_of(float32_only)
    assert not exporter._golden(module, Given(module), two_sets(), tmp_path, quiet)
    assert list(tmp_path.iterdir()) == []


def test_module_is_as_it_was_after_its_golden_run(tmp_path: Path) -> None:
    class Mixed(nn.Module):  # type: ignore[misc]  # torch is Any to the type checker
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.register_buffer("scale", torch.rand(4).half())
            self.register_buffer("wide", torch.rand(4).double())
            self.register_buffer("ids", torch.arange(4), persistent=False)

        def forward(self, x: Any) -> Any:
            return self.b(self.a(x)) * self.scale + self.ids

    module = Mixed()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert exporter._golden(module, Given(module), two_sets(), tmp_path, quiet)
    assert read_tensors(tmp_path / "golden-1.safetensors")["output"].dtype == np.float64
    after = module.state_dict()
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: t.dtype for name, t in before.items()}
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert module.b.weight is module.a.weight


def test_tied_and_transposed_weights_are_written_under_every_name(tmp_path: Path) -> None:
    module = torch.nn.Module()
    module.a, module.b = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    module.b.weight = module.a.weight
    module.register_buffer("turned", torch.arange(6.0).view(2, 3).t())
    size = exporter._write_weights(module, tmp_path / "weights.safetensors")
    written = read_tensors(tmp_path / "weights.safetensors")
    assert set(written) == {"a.weight", "b.weight", "turned"}
    np.testing.assert_array_equal(written["a.weight"], written["b.weight"])
    np.testing.assert_array_equal(written["turned"], np.arange(6.0).reshape(2, 3).T)
    assert size == 4 * 16 + 4 * 6  # the tied matrix once


# ---- operations


def test_operations_are_counted() -> None:
    tensors = {"x": np.ones((8, 4), np.float32)}
    assert flops.count(torch.nn.Linear(4, 5), tensors) == pytest.approx(2 * 8 * 4 * 5 / 1e9)
    attention = module_of(lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x))
    assert flops.count(attention, {"x": np.ones((1, 2, 16, 8), np.float32)}) == pytest.approx(
        2 * (2 * 2 * 16 * 16 * 8) / 1e9
    )


def test_operations_that_depend_on_values_are_not_counted() -> None:
    assert flops.count(module_of(lambda x: x if x.sum() > 0 else -x), {"x": np.ones(3, np.float32)}) is None


# ---- failures


def test_failure_names_its_root_cause_briefly() -> None:
    outer = RuntimeError("export failed")
    outer.__cause__ = ValueError("no such operator" + "!" * 5000)
    error = failed("cannot export", outer, hint="try another --opset")
    assert isinstance(error, ExportError)
    assert error.message.startswith("cannot export: ValueError: no such operator")
    assert len(error.message) < 700
    assert error.hint == "try another --opset"


def test_failure_for_want_of_memory_stays_one() -> None:
    assert isinstance(failed("x", RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")), MemoryError)


def test_failure_for_want_of_disk_is_recognisable() -> None:
    from harness.export import DISK_FULL

    text = str(failed("x", OSError(errno.ENOSPC, "No space left on device")))
    assert any(sign in text for sign in DISK_FULL)
