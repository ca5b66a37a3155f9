"""The user's own models: ONNX files, factories in a repository with folders named as ours, and exported programs."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import harness
from harness import protocol, registry
from harness.api import GraphModel
from harness.artifact import read_tensors
from harness.errors import ExportError, UnsupportedError, UsageError
from harness.modelspec import ModelSpec
from models.factory import Factory
from models.onnx_file import OnnxFile
from tests.support import ROOT

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from harness import exporter, weights  # noqa: E402 - they need torch
from models.exported_program import ExportedProgram  # noqa: E402

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
nn: Any = torch.nn


def export(spec: ModelSpec, folder: Path, **changes: Any) -> protocol.Exported:
    settings: dict[str, Any] = {
        "model": spec, "weights": "own", "dims": {}, "seed": 0, "opset": 18, "input_sets": 2, "threads": 2,
        "folder": str(folder),
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    return exporter.export(protocol.Export(**{**settings, **changes}), lambda *_: None)


def restored(spec: ModelSpec, folder: Path, dims: dict[str, int]) -> Any:
    artifact: Any = SimpleNamespace(
        manifest=SimpleNamespace(model=spec, dims=dims, seed=0), weights_path=folder / "weights.safetensors"
    )
    return weights.restore(artifact)


def agrees(module: Any, exported: protocol.Exported, folder: Path, index: int = 1) -> bool:
    """Whether a module that takes its inputs by position gives the artifact's reference outputs."""
    tensors = read_tensors(folder / f"inputs-{index}.safetensors")
    reference = read_tensors(folder / f"reference-{index}.safetensors")
    with torch.inference_mode():
        result = module(*[torch.tensor(tensors[name]) for name, _, _ in exported.inputs])
    results = result if isinstance(result, tuple) else (result,)
    pairs = zip(exported.outputs, results, strict=True)
    return all(np.array_equal(tensor.numpy(), reference[name]) for (name, _, _), tensor in pairs)


# ---- ONNX files


def linear(
    path: Path,
    shape: list[int | str | None],
    *,
    opset: int = 17,
    ir: int = 8,
    kind: int = FLOAT,
    weights_are_inputs: bool = False,
    external: bool = False,
) -> ModelSpec:
    """Write relu(x @ w), where w has 8 rows, and return its spec."""
    weight = onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32), "w")
    inputs = [onnx.helper.make_tensor_value_info("x", kind, shape)]
    if weights_are_inputs:
        inputs.append(onnx.helper.make_tensor_value_info("w", FLOAT, [8, 4]))
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["m"]), onnx.helper.make_node("Relu", ["m"], ["y"])]
    outputs = [onnx.helper.make_tensor_value_info("y", FLOAT, [*shape[:-1], 4])]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return ModelSpec(kind="onnx", name=str(path))


def pair(path: Path, first: list[int | str | None], second: list[int | str | None]) -> ModelSpec:
    """Write x + cast(ids), and return its spec."""
    inputs = [onnx.helper.make_tensor_value_info("x", FLOAT, first),
              onnx.helper.make_tensor_value_info("ids", INT64, second)]  # fmt: skip
    nodes = [onnx.helper.make_node("Cast", ["ids"], ["f"], to=FLOAT), onnx.helper.make_node("Add", ["x", "f"], ["y"])]
    outputs = [onnx.helper.make_tensor_value_info("y", FLOAT, first)]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", inputs, outputs), ir_version=8,
                                   opset_imports=[onnx.helper.make_opsetid("", 17)])  # fmt: skip
    onnx.save(model, path)
    return ModelSpec(kind="onnx", name=str(path))


def dims_of(value: Any) -> list[int | str]:
    return [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]


def test_what_its_user_says_of_a_model_goes_into_the_artifact(tmp_path: Path) -> None:
    spec = linear(tmp_path / "net.onnx", ["N", 8])
    assert export(spec, tmp_path / "plain", dims={"batch": 3}).task == "tensor"
    told = ModelSpec(kind="onnx", name=spec.name, options={"task": "classification"})
    assert export(told, tmp_path / "told", dims={"batch": 3}).task == "classification"


def test_onnx_file_is_exported_with_fixed_shapes(tmp_path: Path) -> None:
    spec = linear(tmp_path / "net.onnx", ["N", 8])
    out = tmp_path / "out"
    exported = export(spec, out, dims={"batch": 3})
    assert exported.inputs == [("x", "float32", [3, 8])]
    assert exported.outputs == [("y", "float32", [3, 4])]
    assert (exported.dims, exported.axes) == ({"batch": 3}, {"x": {0: "batch"}})
    assert (exported.module, exported.golden, exported.deterministic, exported.onnx_max_abs) == (False, False, True, 0)
    assert (exported.weights, exported.opset, exported.parameters, exported.weights_bytes) == ("own", 17, 32, 128)
    assert exported.reference.startswith("ONNX Runtime")
    assert exported.sources == [str(tmp_path / "net.onnx")]
    written = onnx.load(out / "model.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert dims_of(written.graph.input[0]) == [3, 8]
    assert dims_of(written.graph.output[0]) == [3, 4]
    assert [dims_of(value) for value in written.graph.value_info] == [[3, 4]]
    weight = onnx.numpy_helper.to_array(written.graph.initializer[0])
    expected = np.maximum(read_tensors(out / "inputs-1.safetensors")["x"] @ weight, 0)
    np.testing.assert_allclose(read_tensors(out / "reference-1.safetensors")["y"], expected, rtol=1e-5, atol=1e-6)
    assert exporter.check(out, 2, 1).max_abs == 0.0


@pytest.mark.parametrize("name", ["batch", "N", "batch_size", "unk__17", "bs", None])
def test_first_axis_named_like_a_batch_is_the_batch_and_one_unless_set(tmp_path: Path, name: str | None) -> None:
    model = OnnxFile(linear(tmp_path / "net.onnx", [name, 8]))
    assert model.inputs[0].shape == ("batch", 8)
    assert model.dims == {"batch": 1}
    assert bool(model.notes) == (name != "batch")


def test_other_free_dimensions_must_be_set(tmp_path: Path) -> None:
    spec = pair(tmp_path / "net.onnx", ["batch", "time"], ["batch", "time"])
    with pytest.raises(UsageError, match="no size is set for 'time'") as caught:
        export(spec, tmp_path / "out")
    assert caught.value.hint == "--dim time=SIZE, or --shape x=1xSIZE"
    exported = export(spec, tmp_path / "out", shapes={"ids": [2, 5]})
    assert exported.dims == {"batch": 2, "time": 5}
    assert any("{0, 1}" in note for note in exported.notes)
    assert set(read_tensors(tmp_path / "out" / "inputs-0.safetensors")["ids"].flat) <= {0, 1}


def test_free_dimensions_without_names_are_called_after_their_place(tmp_path: Path) -> None:
    model = OnnxFile(pair(tmp_path / "net.onnx", [None, None], [None, 0]))
    assert model.inputs[0].shape == ("batch", "x_1")
    assert model.inputs[1].shape == ("batch", "ids_1")


def test_first_axis_that_is_no_batch_gets_no_size_by_itself(tmp_path: Path) -> None:
    model = OnnxFile(pair(tmp_path / "net.onnx", ["time", 4], ["batch", 4]))
    assert model.dims == {}
    assert [spec.shape[0] for spec in model.inputs] == ["time", "batch"]


def test_unknown_dimension_of_a_fixed_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no free dimension 'batch'; it has none"):
        export(linear(tmp_path / "net.onnx", [2, 8]), tmp_path / "out", dims={"batch": 4})


def test_dynamic_dimensions_stay_free_under_their_name(tmp_path: Path) -> None:
    import onnxruntime

    spec = linear(tmp_path / "net.onnx", ["N", 8])
    exported = export(spec, tmp_path / "out", dims={"batch": 4}, dynamic={"batch": (1, 4)})
    written = onnx.load(tmp_path / "out" / "model.onnx")
    assert dims_of(written.graph.input[0]) == ["batch", 8]
    assert dims_of(written.graph.output[0]) == ["batch", 4]
    assert exported.inputs == [("x", "float32", [4, 8])]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert session.run(None, {"x": np.ones((2, 8), np.float32)})[0].shape == (2, 4)


def test_opset_nine_whose_weights_are_inputs_too(tmp_path: Path) -> None:
    spec = linear(tmp_path / "net.onnx", [None, 8], opset=9, ir=3, weights_are_inputs=True)
    exported = export(spec, tmp_path / "out")
    assert (exported.opset, exported.parameters) == (9, 32)
    assert [name for name, _, _ in exported.inputs] == ["x"]
    assert [value.name for value in onnx.load(tmp_path / "out" / "model.onnx").graph.input] == ["x"]


def test_external_data_comes_along(tmp_path: Path) -> None:
    spec = linear(tmp_path / "net.onnx", ["batch", 8], external=True)
    exported = export(spec, tmp_path / "out")
    assert exported.sources == [str(tmp_path / "net.onnx"), str(tmp_path / "net.onnx.data")]
    (tmp_path / "net.onnx.data").unlink()
    assert exporter.check(tmp_path / "out", 2, 1).max_abs == 0.0


def test_missing_and_truncated_external_data_are_named(tmp_path: Path) -> None:
    spec = linear(tmp_path / "net.onnx", ["batch", 8], external=True)
    os.truncate(tmp_path / "net.onnx.data", 10)
    with pytest.raises(ExportError, match=r"net\.onnx\.data is cut short: 'w' ends at byte 128, the file has 10"):
        export(spec, tmp_path / "out")
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(ExportError, match=r"net\.onnx\.data does not exist"):
        export(spec, tmp_path / "out")


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "a/../../secret"])
def test_external_data_outside_its_folder_is_refused(tmp_path: Path, place: str) -> None:
    spec = linear(tmp_path / "net.onnx", ["batch", 8], external=True)
    model = onnx.load(spec.name, load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location").value = place
    Path(spec.name).write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="outside its own folder"):
        export(spec, tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 1, 20, 100, -30])
def test_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    spec = linear(tmp_path / "net.onnx", ["batch", 8])
    Path(spec.name).write_bytes(Path(spec.name).read_bytes()[:keep])
    with pytest.raises(ExportError, match="is not an ONNX file, or is cut short"):
        export(spec, tmp_path / "out")


def test_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("hello, I am a text")
    with pytest.raises(ExportError, match="is not an ONNX file"):
        export(ModelSpec(kind="onnx", name=str(tmp_path / "net.onnx")), tmp_path / "out")


@pytest.mark.parametrize(("version", "says"), [({"opset": 99}, "is written in opset 99"), ({"ir": 99}, "IR version")])
def test_versions_from_the_future_are_refused(tmp_path: Path, version: dict[str, int], says: str) -> None:
    with pytest.raises(ExportError, match=says) as caught:
        export(linear(tmp_path / "net.onnx", ["batch", 8], **version), tmp_path / "out")  # type: ignore[arg-type]
    assert caught.value.hint
    assert "--upgrade" in caught.value.hint


@pytest.mark.parametrize("kind", ["BFLOAT16", "STRING", "FLOAT8E4M3FN", "INT4", "COMPLEX64"])
def test_types_that_cannot_be_fed_are_refused(tmp_path: Path, kind: str) -> None:
    spec = linear(tmp_path / "net.onnx", ["batch", 8], kind=getattr(onnx.TensorProto, kind))
    with pytest.raises(ExportError, match=f"input 'x' of net.onnx is {kind.lower()}"):
        export(spec, tmp_path / "out")


def test_sequence_input_is_refused(tmp_path: Path) -> None:
    spec = linear(tmp_path / "net.onnx", ["batch", 8])
    model = onnx.load(spec.name)
    kind = onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(FLOAT, [2]))
    model.graph.input[0].CopyFrom(onnx.helper.make_value_info("x", kind))
    onnx.save(model, spec.name)
    with pytest.raises(ExportError, match=r"input 'x' of net\.onnx is a sequence, not a tensor"):
        export(spec, tmp_path / "out")


def test_onnx_file_has_no_other_weights_and_no_module(tmp_path: Path) -> None:
    spec = linear(tmp_path / "net.onnx", ["batch", 8])
    with pytest.raises(UsageError, match="seeded"):
        export(spec, tmp_path / "out", weights="seeded")
    model = registry.model(spec)
    assert isinstance(model, GraphModel)
    with pytest.raises(UnsupportedError, match="needs a torch module"):
        model.build({})


# ---- factories

NETWORK = """
    import torch
    from torch import nn
    import harness
    from models.blocks import activation

    class Net(nn.Module):
        def __init__(self, hidden):
            super().__init__()
            self.first, self.second = nn.Linear(8, hidden), nn.Linear(hidden, 4)

        def forward(self, x, mask=None):
            from models.blocks import activation as late
            y = self.second(late(self.first(x)))
            y = y if mask is None else y * mask
            return {"logits": y, "scores": y.softmax(-1)}

    class Plain(Net):
        def forward(self, x):
            return self.second(activation(self.first(x)))

    def by_name(batch: int = 2, hidden: int = 16):
        assert harness.MINE
        return Net(hidden), {"mask": torch.ones(batch, 4), "x": torch.randn(batch, 8)}

    def plain(batch, seed, verbose=False):
        return Plain(seed + 8), torch.randn(batch, 8)

    def fixed(): return Plain(8), [torch.randn(3, 8)]
    def opens(): return Plain(8), torch.full((1, 8), float(open("value.txt").read()))
    def raises(): raise ValueError("no such configuration")
    def exits(): raise SystemExit(3)
    def nothing(): return None
    def module_only(): return Plain(8)
    def three(): return 1, 2, 3
    def no_module(): return 3, torch.ones(1)
    def no_tensor(): return Plain(8), {"x": 3}
    def wrong_name(): return Plain(8), {"z": torch.ones(1, 8)}
    def too_many(): return Plain(8), (torch.ones(1, 8), torch.ones(1))
    def no_examples(): return Plain(8), ()
    def unset(width): return Plain(8), torch.ones(width, 8)
    def scripted(): return torch.jit.script(nn.Linear(2, 2)), torch.ones(1, 2)
    def half(): return Plain(8), torch.ones(1, 8, dtype=torch.bfloat16)
    number = 3
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's repository with packages that are called as ours are, one of them without an `__init__.py`."""
    root = tmp_path_factory.mktemp("repository")
    files = {
        "models/net.py": NETWORK,
        "models/blocks.py": "import torch\nfrom backends.shared import identity\n\ndef activation(x):\n"
        "    return identity(torch.relu(x))\n",
        "backends/__init__.py": "",
        "backends/shared.py": "def identity(x):\n    return x\n",
        "harness/__init__.py": "MINE = True\n",
        "needs.py": "import package_that_nobody_has\n",
        "broken.py": "def f(:\n",
        "value.txt": "0.5",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(text))
    return root


def made(repository: Path, name: str) -> ModelSpec:
    return ModelSpec(kind="factory", name=f"models.net:{name}", root=str(repository))


def test_factory_in_a_repository_with_folders_of_our_names(repository: Path, tmp_path: Path) -> None:
    before = {name: sys.modules[name] for name in ("harness", "models", "models.factory")}
    spec = made(repository, "by_name")
    exported = export(spec, tmp_path / "out")
    assert [name for name, _, _ in exported.inputs] == ["mask", "x"]
    assert [name for name, _, _ in exported.outputs] == ["logits", "scores"]
    assert exported.dims == {"batch": 2, "hidden": 16}
    assert exported.axes == {"mask": {0: "batch"}, "x": {0: "batch"}}
    files = {Path(name).relative_to(repository).as_posix() for name in exported.sources}
    assert files == {"models/net.py", "models/blocks.py", "backends/__init__.py", "backends/shared.py",
                     "harness/__init__.py"}  # fmt: skip
    assert set(read_tensors(tmp_path / "out" / "weights.safetensors")) == {
        "first.weight", "first.bias", "second.weight", "second.bias",
    }  # fmt: skip
    worst = exporter.check(tmp_path / "out", 2, 1).max_abs
    assert worst is not None
    assert worst < 1e-5
    assert agrees(restored(spec, tmp_path / "out", exported.dims), exported, tmp_path / "out")
    assert {name: sys.modules[name] for name in before} == before
    assert not hasattr(harness, "MINE")
    assert Path.cwd() != repository


def test_dynamic_factory_leaves_its_batch_free(repository: Path, tmp_path: Path) -> None:
    import onnxruntime

    export(made(repository, "by_name"), tmp_path, dims={"batch": 4}, dynamic={"batch": (1, 4)}, input_sets=1)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [value.shape for value in session.get_inputs()] == [["batch", 4], ["batch", 8]]
    tensors = {name: array[:3] for name, array in read_tensors(tmp_path / "inputs-0.safetensors").items()}
    reference = read_tensors(tmp_path / "reference-0.safetensors")["logits"]
    np.testing.assert_allclose(session.run(["logits"], tensors)[0], reference[:3], atol=1e-5)


def test_factory_in_a_process_of_its_own(repository: Path, tmp_path: Path) -> None:
    # As a worker finds it: in a scratch folder, our packages before all others, the user's folder not on the path.
    code = f"""
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        import _harness_boot
        _harness_boot.install()
        import models.tiny
        from harness.modelspec import ModelSpec
        from models.factory import Factory
        import torch
        module = Factory(ModelSpec(kind="factory", name="models.net:by_name", root={str(repository)!r})).build({{}})
        print([tuple(tensor.shape) for tensor in module(torch.ones(2, 4), torch.ones(2, 8))])
        print(sys.modules["models"].__file__, os.getcwd())
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)], capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[(2, 4), (2, 4)]", f"{ROOT / 'models' / '__init__.py'} {tmp_path}"]


def test_factory_is_passed_sizes_and_seed(repository: Path) -> None:
    model = Factory(made(repository, "plain"))
    assert model.dims == {"batch": 1}
    torch.manual_seed(7)
    module = model.build({"batch": 3})
    assert module.first.out_features == 15
    assert model.inputs[0].shape == ("batch", 8)
    assert model.examples["x"].shape == (3, 8)
    assert isinstance(module(torch.ones(3, 8)), torch.Tensor)
    assert model.output_names == ()


def test_factory_reads_files_of_its_folder(repository: Path) -> None:
    model = Factory(made(repository, "opens"))
    model.build({})
    np.testing.assert_array_equal(model.examples["x"], np.full((1, 8), 0.5, np.float32))


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("raises", ExportError, "raised ValueError: no such configuration"),
        ("exits", ExportError, "raised SystemExit: 3"),
        ("nothing", ExportError, "returned None"),
        ("module_only", ExportError, "returned a Plain"),
        ("three", ExportError, "returned a tuple of 3: int, int, int"),
        ("no_module", ExportError, "returned an int where the module belongs"),
        ("no_tensor", ExportError, "returned an int as the example for 'x', not a tensor"),
        ("wrong_name", ExportError, r"example inputs for \['z'\]; forward takes x"),
        ("too_many", ExportError, "returned 2 example inputs; forward takes 1"),
        ("no_examples", ExportError, "returned no example inputs"),
        ("scripted", ExportError, "TorchScript"),
        ("half", ExportError, "'x' is bfloat16"),
        ("unset", UsageError, "needs a size for 'width'"),
        ("number", UsageError, "is an int, not a callable"),
        ("plan", UsageError, "models.net has no 'plan'; did you mean 'plain'"),
    ],
)
def test_factory_that_is_wrong_is_told_so(repository: Path, name: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        Factory(made(repository, name)).build({})


def test_batch_of_a_factory_without_one_is_refused(repository: Path) -> None:
    with pytest.raises(UsageError, match="takes no 'batch'; it takes nothing") as caught:
        Factory(made(repository, "fixed")).build({"batch": 4})
    assert caught.value.hint
    assert "batch: int" in caught.value.hint
    with pytest.raises(UsageError, match="takes no 'hiden'; it takes batch, hidden"):
        Factory(made(repository, "by_name")).build({"hiden": 4})


@pytest.mark.parametrize(
    ("place", "kind", "says"),
    [
        ("nowhere.net:f", UsageError, "no module 'nowhere'"),
        ("models.nowhere:f", UsageError, "no module 'models.nowhere'"),
        ("needs:f", ExportError, "needs cannot be imported: No module named 'package_that_nobody_has'"),
        ("broken:f", ExportError, "SyntaxError"),
    ],
)
def test_module_that_cannot_be_imported_is_told_so(
    repository: Path, place: str, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        Factory(ModelSpec(kind="factory", name=place, root=str(repository))).build({})
    assert Path(sys.modules["models"].__file__ or "").is_relative_to(ROOT)


# ---- exported programs


class Program(nn.Module):  # type: ignore[misc]  # torch is Any to the type checker
    """Inputs by position and by keyword, results in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.embedding = nn.Embedding(10, 4)

    def forward(self, x: Any, *, ids: Any) -> dict[str, Any]:
        y = self.linear(x) + self.embedding(ids).sum(1)
        return {"logits": y, "scores": y.softmax(-1)}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "program.pt2"
    batch, time = torch.export.Dim("batch", min=2, max=16), torch.export.Dim("time", max=64)
    captured = torch.export.export(
        Program().eval(), (torch.randn(4, 8),), {"ids": torch.randint(0, 10, (4, 5))},
        dynamic_shapes={"x": {0: batch}, "ids": {0: batch, 1: time}},
    )  # fmt: skip
    torch.export.save(captured, path)
    return path


def given(path: Path) -> ModelSpec:
    return ModelSpec(kind="exported", name=str(path))


def test_exported_program_says_its_inputs_before_it_is_built(program: Path) -> None:
    model = ExportedProgram(given(program))
    assert {spec.name: spec.shape for spec in model.inputs} == {"x": ("batch", 8), "ids": ("batch", "ids_1")}
    assert model.dims == {"batch": 4, "ids_1": 5}
    assert model.output_names == ("logits", "scores")
    assert 0 <= model.examples["ids"].min() <= model.examples["ids"].max() < 10


def test_exported_program_is_exported_and_restored(program: Path, tmp_path: Path) -> None:
    spec = given(program)
    exported = export(spec, tmp_path, dims={"batch": 8, "ids_1": 3})
    assert exported.inputs == [("x", "float32", [8, 8]), ("ids", "int64", [8, 3])]
    assert [name for name, _, _ in exported.outputs] == ["logits", "scores"]
    assert set(read_tensors(tmp_path / "weights.safetensors")) == {"linear.weight", "linear.bias", "embedding.weight"}
    worst = exporter.check(tmp_path, 2, 1).max_abs
    assert worst is not None
    assert worst < 1e-5
    assert agrees(restored(spec, tmp_path, exported.dims), exported, tmp_path)


class Placed(nn.Module):  # type: ignore[misc]  # torch is Any to the type checker
    """Holds a constant that is no buffer, and makes tensors on a device that the export writes into the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.constant = torch.arange(4.0)

    def forward(self, x: Any) -> Any:
        return self.linear(x) + self.constant + torch.arange(4, device=x.device).to("cpu", torch.float32)


def test_exported_program_moves_with_its_constants_and_the_devices_in_its_graph(tmp_path: Path) -> None:
    path = tmp_path / "placed.pt2"
    torch.export.save(torch.export.export(Placed().eval(), (torch.ones(2, 4),)), path)
    module: Any = ExportedProgram(given(path)).build({})
    with torch.no_grad():
        before = module(torch.ones(2, 4))
        assert module.to("cpu")(torch.ones(2, 4)).equal(before)
        moved = module.to("meta")(torch.ones(2, 4, device="meta"))
    assert moved.device.type == "meta"
    assert "cpu" not in str(module.graph)


def test_size_outside_the_programs_range_is_refused(program: Path) -> None:
    with pytest.raises(UsageError, match="takes 'batch' from 2 to 16, got 1"):
        ExportedProgram(given(program)).build({"batch": 1, "ids_1": 5})


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """Copy an archive with the content of its members changed; an empty content leaves the member out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            if content := change(name.partition("/")[2], old.read(name)):
                new.writestr(name, content)
    return target


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self._mark, "w")


def bomb(kind: str, source: Path, target: Path, mark: Path) -> Path:
    """Put something that creates `mark` when it is executed into a copy of a program."""
    code = f"open({str(mark)!r}, 'w')"

    def described(change: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
        def rewrite(name: str, content: bytes) -> bytes:
            if name != "models/model.json":
                return content
            description = json.loads(content)
            change(description)
            return json.dumps(description).encode()

        return rewrite

    def pickled(name: str, content: bytes) -> bytes:
        stream = io.BytesIO()
        torch.save({"x": Bomb(mark)}, stream)
        if kind == "example inputs":
            return stream.getvalue() if name == "data/sample_inputs/model.pt" else content
        if name == "data/weights/model_weights_config.json":
            config = json.loads(content)
            first = next(iter(config["config"].values()))
            first["use_pickle"] = True
            return json.dumps(config).encode()
        return stream.getvalue() if name == "data/weights/weight_0" else content

    def constant(name: str, content: bytes) -> bytes:
        if name == "data/constants/model_constants_config.json":
            config = json.loads(content)
            config["config"]["c"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True,
                                     "tensor_meta": None}  # fmt: skip
            return json.dumps(config).encode()
        return content

    def expression(description: Any) -> None:
        values = description["graph_module"]["graph"]["tensor_values"]
        size = next(size for value in values.values() for size in value["sizes"] if "as_expr" in size)
        size["as_expr"]["expr_str"] = f"[{code}, 3][1]"

    def guard(description: Any) -> None:
        description["guards_code"] = [f"{code} is not None"]

    changes: dict[str, Callable[[str, bytes], bytes]] = {
        "example inputs": pickled, "weights": pickled, "constant": constant,
        "expression": described(expression), "guard": described(guard),
    }  # fmt: skip
    rewritten(source, target, changes[kind])
    if kind == "constant":
        with zipfile.ZipFile(source) as archive:
            prefix = archive.namelist()[0].partition("/")[0]
        with zipfile.ZipFile(target, "a") as archive:
            archive.writestr(f"{prefix}/data/constants/opaque_obj_0", pickle.dumps(Bomb(mark)))
    return target


@pytest.mark.parametrize("kind", ["example inputs", "weights", "constant", "expression", "guard"])
def test_nothing_in_an_archive_is_executed(program: Path, tmp_path: Path, kind: str) -> None:
    control, mark = tmp_path / "control", tmp_path / "mark"
    tensors = (torch.ones(4, 8), torch.ones(4, 5, dtype=torch.int64))
    with suppress(Exception):  # what was executed has been by then
        unguarded = torch.export.load(bomb(kind, program, tmp_path / "control.pt2", control)).module()
        unguarded(tensors[0], ids=tensors[1])
    if not control.exists():
        pytest.skip("this torch does not execute it either")
    path = bomb(kind, program, tmp_path / "hostile.pt2", mark)
    if kind == "guard":
        module = ExportedProgram(given(path)).build({"batch": 4, "ids_1": 5})
        assert len(module(*tensors)) == 2  # guards are left out, the rest is sound
    else:
        with pytest.raises(ExportError, match="is refused"):
            ExportedProgram(given(path)).build({"batch": 4, "ids_1": 5})
    assert not mark.exists()


def test_name_that_would_become_source_is_refused(program: Path, tmp_path: Path) -> None:
    def inject(name: str, content: bytes) -> bytes:
        return content.replace(b'"linear"', b'"linear=print(1)"') if name == "models/model.json" else content

    with pytest.raises(ExportError, match=r"is refused: name is 'linear=print\(1\)'"):
        ExportedProgram(given(rewritten(program, tmp_path / "hostile.pt2", inject))).build({"batch": 4, "ids_1": 5})


def test_torch_is_as_it_was_after_reading(program: Path) -> None:
    before = (torch.load, torch._C._pickle_load_obj, pickle.loads)
    assert ExportedProgram(given(program)).inputs
    assert (torch.load, torch._C._pickle_load_obj, pickle.loads) == before


def test_archive_of_compiled_code_is_refused(program: Path, tmp_path: Path) -> None:
    path = rewritten(program, tmp_path / "compiled.pt2", lambda _, content: content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("program/data/aotinductor/model/wrapper.so", b"\x7fELF")
    with pytest.raises(ExportError, match="code that AOTInductor compiled"):
        assert ExportedProgram(given(path)).inputs


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut"])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"is not a \.pt2 archive, or is cut short"):
        assert ExportedProgram(given(path)).inputs


def test_archive_without_a_program_is_refused(program: Path, tmp_path: Path) -> None:
    path = rewritten(program, tmp_path / "empty.pt2", lambda name, content: b"" if "models/" in name else content)
    with pytest.raises(ExportError, match="no program of the name 'model'"):
        assert ExportedProgram(given(path)).inputs


def test_archive_with_a_damaged_program_is_refused(program: Path, tmp_path: Path) -> None:
    def cut(name: str, content: bytes) -> bytes:
        return content[:100] if name == "models/model.json" else content

    with pytest.raises(ExportError, match="cannot be read"):
        assert ExportedProgram(given(rewritten(program, tmp_path / "cut.pt2", cut))).inputs
