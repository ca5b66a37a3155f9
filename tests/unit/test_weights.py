"""Weights: what each kind of file gives, what is refused, and that nothing in a hostile file is executed."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from harness import registry
from harness.api import InputSpec, Model, PublicWeights, ReferenceModel
from harness.artifact import Artifact, sha256
from harness.errors import ExportError, StoreError, UnsupportedError, UsageError
from harness.modelspec import ModelSpec
from tests.support import ROOT

torch = pytest.importorskip("torch")

from harness import pickles, public, weights  # noqa: E402 - they need torch when they are used
from harness.weights import read_state_dict  # noqa: E402

Module = Any  # torch is Any to the type checker


def network() -> Module:
    """Return a module with parameters, batch normalisation's buffers, and a buffer that no state dict holds."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    module.register_buffer("positions", torch.arange(5.0), persistent=False)
    return module


class Small(ReferenceModel):
    """A reference model of a few parameters."""

    name = "small"
    summary = "for tests"
    public = PublicWeights(repository="org/small", file="model.safetensors", licence="MIT")
    parameters, gflop, memory_gib = 0, 0.0, 0.1

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec(name="x", dtype="float32", shape=("batch", 3, 8, 8)),)

    def build(self, dims: Mapping[str, int]) -> Module:
        return network()


class Unpublished(Small):
    """Nobody trained it."""

    public = None  # type: ignore[assignment]  # the base has one


class Own(Model):
    """What a factory is: a model that brings its weights."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return ()

    def build(self, dims: Mapping[str, int]) -> Module:
        return network()


REFERENCE = ModelSpec(name="small")
FACTORY = ModelSpec(kind="factory", name="mine:make")


def state(seed: int = 0) -> dict[str, Module]:
    torch.manual_seed(seed)
    return dict(network().state_dict())


def same(first: Mapping[str, Module], second: Mapping[str, Module]) -> bool:
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


# ---- files of weights


def test_safetensors_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    expected = state()
    save_file(expected, tmp_path / "w.safetensors")
    found = read_state_dict(tmp_path / "w.safetensors")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_file(tmp_path: Path, suffix: str, zipped: bool) -> None:
    torch.save(state(), tmp_path / f"w{suffix}", _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(tmp_path / f"w{suffix}"), state())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "ema"])
def test_state_dict_within_a_training_checkpoint(tmp_path: Path, key: str) -> None:
    torch.save({"epoch": 3, key: state(), "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    assert same(read_state_dict(tmp_path / "w.pt"), state())


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    torch.save({"model": state(1), "ema": state(2)}, tmp_path / "w.pt")
    assert same(read_state_dict(tmp_path / "w.pt"), state(2))


def test_prefix_of_data_parallel_is_taken_off(tmp_path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in state().items()}, tmp_path / "w.pt")
    assert same(read_state_dict(tmp_path / "w.pt"), state())


def test_file_of_tensors_is_mapped_privately(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(state(), path)
    before = sha256(path)
    for tensor in read_state_dict(path).values():
        tensor.zero_()
    assert sha256(path) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"\x10", "cannot be read"),
        ("w.pt", b"", "cannot be read"),
        ("w.pt", b"hello", "cannot be read|before torch 1.6"),
        ("w.pt", b"PK\x03\x04", "cannot be read|before torch 1.6"),
        ("w.onnx", b"x", "not a weights file"),
    ],
)
def test_nonsense(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_state_dict(tmp_path / name)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_state_dict(tmp_path / "w.pt")
    with pytest.raises(UsageError, match="is a folder"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("cut", [10, 400, -30])
def test_truncated_checkpoint(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "w.pt"
    torch.save(state(), path)
    os.truncate(path, cut if cut > 0 else path.stat().st_size + cut)
    with pytest.raises(UsageError):
        read_state_dict(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {"weight": torch.ones(1), "epoch": 3}], ids=str)
def test_content_that_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"w\.pt (holds a list|does not hold a state dict)"):
        read_state_dict(tmp_path / "w.pt")


def test_torchscript_is_refused_without_being_loaded(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "w.pt")
    with pytest.raises(UsageError, match="TorchScript archive, which holds code"):
        read_state_dict(tmp_path / "w.pt")


# ---- whole objects, pickled

WRITE_ULTRALYTICS = """
import sys, types
import torch

names = ["ultralytics", "ultralytics.nn", "ultralytics.nn.modules", "ultralytics.nn.tasks", "ultralytics.utils"]
for name in names:
    sys.modules[name] = types.ModuleType(name)

def resident(module, name, *bases):
    kind = type(name, bases, {"__module__": module})
    setattr(sys.modules[module], name, kind)
    return kind

Conv = resident("ultralytics.nn.modules", "Conv", torch.nn.Module)
DetectionModel = resident("ultralytics.nn.tasks", "DetectionModel", torch.nn.Module)
Settings = resident("ultralytics.utils", "IterableSimpleNamespace", types.SimpleNamespace)

def conv(channels):
    module = Conv()
    module.conv = torch.nn.Conv2d(channels, 8, 3, bias=False)
    module.bn = torch.nn.BatchNorm2d(8)
    module.act = torch.nn.SiLU(inplace=True)
    return module

def model(seed):
    torch.manual_seed(seed)
    whole = DetectionModel()
    whole.model = torch.nn.Sequential(conv(3), conv(8), torch.nn.Upsample(scale_factor=2))
    whole.model.register_buffer("anchors", torch.ones(3), persistent=False)
    whole.names = {0: "person"}
    whole.args = Settings(imgsz=640)
    whole.stride = torch.tensor([8.0, 16.0])
    whole.criterion = None
    return whole

import pathlib
import numpy
ema = model(1)
wide = {name: t.float() if t.is_floating_point() else t for name, t in ema.half().state_dict().items()}
torch.save(wide, sys.argv[2])
checkpoint = {"epoch": -1, "best_fitness": numpy.float64(0.5), "model": model(0).half(), "ema": ema, "updates": 3,
              "train_args": {"data": pathlib.Path("coco.yaml"), "lr0": 0.01}, "date": "2026-01-01"}
if sys.argv[3] == "stripped":
    checkpoint |= {"model": ema, "ema": None}
torch.save(checkpoint, sys.argv[1])
"""


@pytest.mark.parametrize("kind", ["training", "stripped"])
def test_checkpoint_of_whole_modules_whose_classes_are_not_installed(tmp_path: Path, kind: str) -> None:
    path, expected = tmp_path / "best.pt", tmp_path / "expected.pt"
    command = [sys.executable, "-c", WRITE_ULTRALYTICS, str(path), str(expected), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    found = read_state_dict(path)
    assert "ultralytics" not in sys.modules
    assert same(found, torch.load(expected)), "names, order and values are those of the module's own state dict"
    assert next(iter(found)) == "model.0.conv.weight"
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.int64}


WRITE_YOLO = """
import sys, types
import torch
from harness import registry

sys.modules["ultralytics"] = types.ModuleType("ultralytics")
sys.modules["ultralytics.tasks"] = types.ModuleType("ultralytics.tasks")
Part = sys.modules["ultralytics.tasks"].Part = type("Part", (torch.nn.Module,), {"__module__": "ultralytics.tasks"})

def same_tree(module):
    part = Part()
    for name, parameter in module.named_parameters(recurse=False):
        part.register_parameter(name, parameter)
    for name, buffer in module.named_buffers(recurse=False):
        part.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
    for name, child in module.named_children():
        part.add_module(name, same_tree(child))
    return part

torch.manual_seed(5)
module = registry.model_class("yolov8n")().build({"batch": 1})
torch.save(module.half().state_dict(), sys.argv[2])
torch.save({"epoch": -1, "ema": None, "model": same_tree(module), "train_args": {}}, sys.argv[1])
"""


def test_ultralytics_checkpoint_fills_the_own_definition(tmp_path: Path) -> None:
    path, expected = tmp_path / "yolov8n.pt", tmp_path / "expected.pt"
    command = [sys.executable, "-c", WRITE_YOLO, str(path), str(expected)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    spec = ModelSpec(name="yolov8n")
    found = weights.load(registry.model(spec), str(path), {"batch": 1}, 0, spec).module.state_dict()
    wanted = torch.load(expected)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name].to(found[name].dtype)) for name in wanted)


def test_whole_module_at_the_top(tmp_path: Path) -> None:
    module = network()
    torch.save(module, tmp_path / "w.pt")
    assert same(read_state_dict(tmp_path / "w.pt"), module.state_dict())


def test_shared_storages_and_views(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch is Any to the type checker
        pass

    base = torch.arange(12.0)
    module = Tied()
    module.a = torch.nn.Parameter(base.view(3, 4).t())
    module.b = torch.nn.Parameter(base[5:7])
    module.none = None
    module.register_parameter("absent", None)
    Tied.__qualname__, Tied.__module__ = "Tied", "gone"
    sys.modules["gone"] = cast(Any, SimpleNamespace(Tied=Tied))
    try:
        torch.save(module, tmp_path / "w.pt")
    finally:
        del sys.modules["gone"]
    found = read_state_dict(tmp_path / "w.pt")
    assert list(found) == ["a", "b"]
    assert torch.equal(found["a"], base.view(3, 4).t())
    assert torch.equal(found["b"], base[5:7])


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self._call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def hostile(witness: Path) -> dict[str, tuple[object, str]]:
    """Return objects whose loading would create `witness`, and the name that each wants."""
    code = f"open({str(witness)!r}, 'w')"
    return {
        "os.system": (Calls(os.system, f"touch {witness}"), "posix.system"),
        "eval": (Calls(eval, code), "builtins.eval"),
        "exec": (Calls(exec, code), "builtins.exec"),
        "subprocess": (Calls(subprocess.Popen, ["touch", str(witness)]), "subprocess.Popen"),
        "getattr": (Calls(getattr, Calls(__import__, "os"), "system"), "builtins.getattr"),
        "open": (Calls(open, str(witness), "w"), "io.open|_io.open|builtins.open"),
        "pickle": (Calls(pickle.loads, pickle.dumps(Calls(eval, code))), "_?pickle.loads"),
    }


HOSTILE = list(hostile(Path("x")))


def zipped(path: Path, program: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", sys.byteorder)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickle_is_refused_by_name_and_not_executed(tmp_path: Path, name: str, protocol: int) -> None:
    witness = tmp_path / "executed"
    payload, wanted = hostile(witness)[name]
    path = zipped(tmp_path / "w.pt", pickle.dumps({"model": payload}, protocol))
    with pytest.raises(UsageError, match=rf"is refused: it wants '({wanted})'.*nothing of it was executed"):
        read_state_dict(path)
    assert not witness.exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickle_in_the_old_formats_is_not_executed(tmp_path: Path, name: str) -> None:
    witness = tmp_path / "executed"
    payload, _ = hostile(witness)[name]
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(payload))
    legacy = tmp_path / "legacy.pt"
    torch.save({"model": payload}, legacy, _use_new_zipfile_serialization=False)
    tarred = tmp_path / "tar.pt"
    with tarfile.open(tarred, "w") as archive:
        for part in ("storages", "tensors", "pickle"):
            data = pickle.dumps(payload)
            entry = tarfile.TarInfo(part)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    for path in (bare, legacy, tarred):
        with pytest.raises(UsageError):
            read_state_dict(path)
    assert not witness.exists()


def test_the_witness_works(tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    pickle.loads(pickle.dumps(hostile(witness)["eval"][0]))
    assert witness.exists()


OPCODES = {
    # Allowed callables with hostile arguments, states and targets; each must end in an error.
    "tensor beyond its storage": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00(K\xfft(K\x01t\x89NtR."
    ),
    "tensor without a storage": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(K\x01t(K\x01t\x89NtR.",
    "storage of a class": (
        b"\x80\x02(X\x07\x00\x00\x00storagecevil\nStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ."
    ),
    "storage outside of the archive": (
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x0c\x00\x00\x00../../secretX\x03\x00\x00\x00cpuK\x02tQ."
    ),
    "text as persistent id": b"\x80\x02X\x04\x00\x00\x00/etcQ.",
    "persistent id of protocol 0": b"P/etc/passwd\n.",
    "call of a text": b"\x80\x02X\x02\x00\x00\x00os(tR.",
    "call of a stub": b"\x80\x02cevil\nThing\n)\x81(tR.",
    "call of an ordered dict": b"\x80\x02ccollections\nOrderedDict\n)R(tR.",
    "call of a container with a number": b"\x80\x02c__builtin__\nset\n(K\x05tR.",
    "instance of protocol 0": b"(S'touch /tmp/x'\nios\nsystem\n.",
    "object of protocol 1": b"(cos\nsystem\nS'touch /tmp/x'\no.",
    "extension registry": b"\x80\x02\x82\x01.",
    "dotted name": b"\x80\x04\x8c\x0ccollections.x\x8c\x18OrderedDict.fromkeys.__x\x93.",
    "name made of numbers": b"\x80\x04K\x01K\x02\x93.",
    "state of a tensor's class": b"\x80\x02ctorch\nTensor\n}X\x01\x00\x00\x00aK\x01sb.",
    "no stop": b"\x80\x02K\x01",
    "empty stack": b"\x80\x02R.",
    "mark missing": b"\x80\x02t.",
    "unknown memo": b"\x80\x02h\x05.",
    "keys of a number": b"\x80\x02K\x01K\x02K\x03s.",
    "not a pickle": b"\xff\xff\xff",
    "empty": b"",
}


@pytest.mark.parametrize("name", OPCODES)
def test_nonsense_in_a_pickle_is_an_error(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "w.pt", OPCODES[name], {"0": bytes(8)})
    (tmp_path / "secret").write_bytes(bytes(8))
    with pytest.raises(UsageError):
        read_state_dict(path)


def test_classes_and_functions_are_never_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A module on the path that would leave a trace on import, named as class, function, and base of a state.
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Trap:\n    pass\ndef call(*a): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    program = b"\x80\x02}(X\x05\x00\x00\x00modelctrap\nTrap\n)\x81}X\x01\x00\x00\x00actrap\ncall\n)Rsbu."
    found = pickles.read(zipped(tmp_path / "w.pt", program))
    assert found["model"].kind == "trap.Trap"
    assert found["model"].attribute("a").kind == "trap.call"
    assert "trap" not in sys.modules
    assert not (tmp_path / "executed").exists()


def test_setstate_of_a_stub_is_data(tmp_path: Path) -> None:
    # State that would overwrite methods of a real object, and slots: kept, never applied.
    program = (
        b"\x80\x02cevil\nThing\n)\x81}(X\x0c\x00\x00\x00__setstate__cevil\nrun\nX\x09\x00\x00\x00attribute"
        b"cevil\nrun\nu}X\x04\x00\x00\x00kindX\x01\x00\x00\x00xs\x86b."
    )
    found = pickles.read(zipped(tmp_path / "w.pt", program))
    assert (found.kind, callable(found), callable(found.attribute)) == ("evil.Thing", False, True)


def test_arrays_of_numpy_are_not_rebuilt(tmp_path: Path) -> None:
    torch.save({"model": np.array([Calls(os.system, "true")], dtype=object)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"posix\.system"):
        read_state_dict(tmp_path / "w.pt")
    torch.save({"model": np.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="without any tensors"):
        read_state_dict(tmp_path / "w.pt")


def test_module_that_holds_itself(tmp_path: Path) -> None:
    program = b"\x80\x02cevil\nThing\n)\x81q\x00}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x00ssb."
    with pytest.raises(UsageError, match="nested more than"):
        read_state_dict(zipped(tmp_path / "w.pt", program))


def test_module_with_something_else_for_a_tensor(tmp_path: Path) -> None:
    program = b"\x80\x02cevil\nThing\n)\x81}X\x0b\x00\x00\x00_parameters}X\x01\x00\x00\x00wcevil\nrun\n)Rssb."
    with pytest.raises(UsageError, match=r"'w' is a evil\.run"):
        read_state_dict(zipped(tmp_path / "w.pt", program))


def test_pickle_of_another_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": pickles.Stub("x")}, 2))
        archive.writestr("archive/byteorder", "big" if sys.byteorder == "little" else "little")
    with pytest.raises(UsageError, match="another byte order"):
        pickles.read(path)


# ---- into a module


def test_seeded_follows_the_seed() -> None:
    first, again, other = (weights.load(Small(), "seeded", {}, seed, REFERENCE).module for seed in (3, 3, 4))
    assert same(first.state_dict(), again.state_dict())
    assert not same(first.state_dict(), other.state_dict())
    assert not first.training


def test_file_is_loaded_and_recorded(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(state(7), path)
    loaded = weights.load(Small(), str(path), {}, 0, REFERENCE)
    assert same(loaded.module.state_dict(), state(7))
    assert (loaded.label, loaded.sha256, loaded.sources) == ("w.pt", sha256(path), [str(path)])
    assert torch.equal(loaded.module.positions, torch.arange(5.0)), (
        "a buffer of no state dict is still what build makes"
    )


def test_half_precision_file_fills_a_float32_module(tmp_path: Path) -> None:
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state().items()}, tmp_path / "w.pt")
    found = weights.load(Small(), str(tmp_path / "w.pt"), {}, 0, REFERENCE).module.state_dict()
    assert found["0.weight"].dtype == torch.float32
    torch.testing.assert_close(found["0.weight"], state()["0.weight"], rtol=1e-3, atol=1e-3)


def test_own_is_what_build_returns() -> None:
    loaded = weights.load(Own(), "own", {}, 5, FACTORY)
    assert same(loaded.module.state_dict(), state(5))
    assert loaded.label == "own of mine:make"


@pytest.mark.parametrize(
    ("model", "spec", "kind", "possible"),
    [
        (Unpublished(), REFERENCE, "pretrained", "seeded, a weights file"),
        (Small(), REFERENCE, "own", "seeded, pretrained, a weights file"),
        (Own(), FACTORY, "seeded", "own, a weights file"),
        (Own(), FACTORY, "pretrained", "own, a weights file"),
    ],
)
def test_weights_that_a_model_cannot_have(model: Model, spec: ModelSpec, kind: str, possible: str) -> None:
    with pytest.raises(UsageError, match=f"{spec.label} has no {kind} weights") as caught:
        weights.load(model, kind, {}, 0, spec)
    assert caught.value.hint == f"possible: {possible}"


def test_counters_may_be_missing() -> None:
    tensors = {name: tensor for name, tensor in state(2).items() if "num_batches" not in name}
    module = network()
    weights.fill(module, tensors, "w.pt")
    assert torch.equal(module[0].weight, tensors["0.weight"])


def test_another_architecture_is_described() -> None:
    tensors = state()
    del tensors["0.weight"]
    tensors["2.weight"] = torch.ones(2, 5)
    tensors |= {f"head.{index}": torch.ones(1) for index in range(5)}
    tensors["1.running_mean"] = torch.ones(4, dtype=torch.int64)
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ExportError) as caught:
        weights.fill(module, tensors, "w.pt does not fit small")
    assert caught.value.message == (
        "w.pt does not fit small: 1 missing: 0.weight; 5 unexpected: head.0, head.1, head.2, ...; 2 of another shape "
        "or type: 1.running_mean (expected float32[4], got int64[4]), "
        "2.weight (expected float32[2, 4], got float32[2, 5])"
    )
    assert same(module.state_dict(), before), "nothing is half loaded"


def test_one_name_of_a_tied_weight_is_enough() -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2, bias=False)})
    module["b"].weight = module["a"].weight
    weights.fill(module, {"a.weight": torch.ones(2, 2)}, "w")
    assert torch.equal(module["b"].weight, torch.ones(2, 2))


def test_weights_of_what_a_module_wraps() -> None:
    wrapper = torch.nn.ModuleDict({"model": network()})
    weights.fill(wrapper, state(4), "w")
    assert same(wrapper["model"].state_dict(), state(4))


# ---- out of an artifact


def artifact(tmp_path: Path, module: Module, model: Model, monkeypatch: pytest.MonkeyPatch, **more: Module) -> Artifact:
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()} | more
    save_file(tensors, tmp_path / "weights.safetensors")
    monkeypatch.setattr(registry, "model", lambda _: model)
    manifest = SimpleNamespace(model=REFERENCE, dims={}, module=True, seed=0, files={})
    return Artifact(tmp_path, cast(Any, manifest))


def test_restored_equals_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(9)
    module = network()
    with torch.no_grad():
        module[1].running_mean.fill_(3)
    restored = weights.restore(artifact(tmp_path, module, Small(), monkeypatch))
    assert same(restored.state_dict(), module.state_dict())
    assert torch.equal(restored.positions, torch.arange(5.0))
    assert not restored.training


def test_restore_draws_no_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = artifact(tmp_path, network(), Small(), monkeypatch)
    before = torch.get_rng_state()
    weights.restore(made)
    assert torch.equal(torch.get_rng_state(), before)


def test_buffers_outside_the_state_dict_are_restored_where_the_artifact_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact(tmp_path, network(), Small(), monkeypatch, positions=torch.full((5,), 2.0))
    assert torch.equal(weights.restore(made).positions, torch.full((5,), 2.0))


def test_random_buffers_are_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Random(Small):
        def build(self, dims: Mapping[str, int]) -> Module:
            module = network()
            module.register_buffer("noise", torch.zeros(100).normal_(), persistent=False)
            return module

    restored = weights.restore(artifact(tmp_path, network(), Random(), monkeypatch))
    assert restored.noise.std() > 0.5


def test_weights_that_do_not_fit_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = artifact(tmp_path, torch.nn.Linear(2, 2), Small(), monkeypatch)
    with pytest.raises(StoreError, match="keys differ"):
        weights.restore(made)
    os.truncate(tmp_path / "weights.safetensors", 30)
    with pytest.raises(StoreError, match="cannot be loaded"):
        weights.restore(made)


def test_graph_alone_has_no_module(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="ONNX file"):
        Artifact(tmp_path, cast(Any, SimpleNamespace(module=False, files={}))).module()


BUILDERS = ["bert", "llama", "whisper", "unet"]


def built(kind: str) -> Module:
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    if kind == "unet":
        diffusers = pytest.importorskip("diffusers")
        return diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            layers_per_block=1,
        )
    transformers = pytest.importorskip("transformers")
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**small, intermediate_size=64))
    if kind == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**small, intermediate_size=64, tie_word_embeddings=True)
        )
    return transformers.WhisperModel(
        transformers.WhisperConfig(
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            vocab_size=99,
            pad_token_id=0,
            max_source_positions=20,
        )
    )


@pytest.mark.parametrize("kind", BUILDERS)
def test_all_parameters_and_buffers_of_real_models_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    class Real(Small):
        def build(self, dims: Mapping[str, int]) -> Module:
            return built(kind)

    torch.manual_seed(1)
    module = built(kind)
    restored = weights.restore(artifact(tmp_path, module, Real(), monkeypatch))
    assert same(restored.state_dict(), module.state_dict())
    mine, theirs = (dict(each.named_buffers(remove_duplicate=False)) for each in (restored, module))
    assert same(mine, theirs), "rotary frequencies and positions too"
    if kind == "llama":
        assert any("inv_freq" in name for name in mine)
        assert restored.lm_head.weight is restored.model.embed_tokens.weight


# ---- from the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the hub's client an empty cache and no network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def publish(hub: Path, content: bytes, *, name: str | None = None, file: str = "model.safetensors") -> Path:
    """Lay a file into the client's cache as a download does: the blob named by its checksum."""
    root = hub / "models--org--small"
    blob = root / "blobs" / (name or hashlib.sha256(content).hexdigest())
    link = root / "snapshots" / COMMIT / file
    for folder in (blob.parent, link.parent, root / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    link.symlink_to(blob)
    (root / "refs" / "main").write_text(COMMIT)
    return blob


def safetensors_of(tensors: dict[str, Module]) -> bytes:
    from safetensors.torch import save

    return save(tensors)


def test_pretrained_comes_out_of_the_clients_cache(hub: Path) -> None:
    content = safetensors_of(state(8))
    publish(hub, content)
    loaded = weights.load(Small(), "pretrained", {}, 0, REFERENCE)
    assert same(loaded.module.state_dict(), state(8))
    assert loaded.label == "pretrained org/small (model.safetensors) at 0123456789ab"
    assert loaded.sha256 == hashlib.sha256(content).hexdigest()
    assert loaded.sources == []
    assert same(Small().load_public({}).state_dict(), state(8))


def test_part_of_a_published_model_takes_its_own_names(hub: Path) -> None:
    class Part(Small):
        def own_names(self, tensors: Mapping[str, Module]) -> dict[str, Module]:
            return {name.removeprefix("part."): t for name, t in tensors.items() if name.startswith("part.")}

    publish(hub, safetensors_of({"other": torch.ones(1), **{f"part.{name}": t for name, t in state(6).items()}}))
    loaded = weights.load(Part(), "pretrained", {}, 0, REFERENCE)
    assert same(loaded.module.state_dict(), state(6))


def test_damaged_download_is_refused(hub: Path) -> None:
    content = safetensors_of(state())
    blob = publish(hub, content)
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ExportError, match="does not have the checksum that the hub states") as caught:
        weights.load(Small(), "pretrained", {}, 0, REFERENCE)
    assert str(blob) in (caught.value.hint or "")


@pytest.mark.parametrize("damaged", [False, True])
def test_small_files_have_gits_checksum(hub: Path, damaged: bool) -> None:
    content = safetensors_of(state())
    named = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    publish(hub, content + b" " * damaged, name=named)
    if damaged:
        with pytest.raises(ExportError, match="checksum"):
            public.fetch(Small.public)
    else:
        assert public.fetch(Small.public).sha256 == hashlib.sha256(content).hexdigest()


def test_no_network_says_how_to_get_the_file_by_hand(hub: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot reach org/small \(model\.safetensors\)") as caught:
        weights.load(Small(), "pretrained", {}, 0, REFERENCE)
    assert "https://huggingface.co/org/small/resolve/main/model.safetensors" in (caught.value.hint or "")
    assert "--weights FILE" in (caught.value.hint or "")


def test_gated_weights_ask_for_consent_and_a_token() -> None:
    class GatedRepoError(Exception):
        response = SimpleNamespace(status_code=403)

    error = weights.unreachable(Small.public, GatedRepoError("Access is restricted\nmore"))
    assert "asks for consent (MIT): Access is restricted" in error.message
    assert "HF_TOKEN" in (error.hint or "")


def test_published_weights_of_another_architecture(hub: Path) -> None:
    publish(hub, safetensors_of({"w": torch.ones(1)}))
    with pytest.raises(
        ExportError, match=r"org/small/model\.safetensors does not fit small: 8 missing: .*1 unexpected: w"
    ):
        weights.load(Small(), "pretrained", {}, 0, REFERENCE)


def test_module_needs_no_torch_to_be_imported() -> None:
    code = "import sys, harness.weights, models.hub; assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_ordered_dicts_of_a_pickle_keep_their_order(tmp_path: Path) -> None:
    content = OrderedDict((name, torch.ones(1)) for name in "zyx")
    torch.save({"model": Calls(set, ["stub"]), "ema": content}, tmp_path / "w.pt")
    assert list(read_state_dict(tmp_path / "w.pt")) == ["z", "y", "x"]
