"""Exports are made once: what the cache key depends on, what a damaged entry leads to, and two that want the same."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from harness import export, protocol
from harness.artifact import MANIFEST, SCHEMA, Artifact, sha256
from harness.errors import ExportError, StoreError
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher
from harness.modelspec import ModelSpec
from tests.support import RUN_CLI


def recipe(model: str = "tiny", **changes: Any) -> Recipe:
    return msgspec.structs.replace(Recipe(model=ModelSpec(name=model), dims={"batch": 1}), **changes)


TINY = recipe()


def quiet(_: protocol.Progress) -> None:
    pass


@pytest.fixture
def own_cache(tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a copy of the tiny artifact; returns the copy's folder."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "exports" / tiny.folder.name
    shutil.copytree(tiny.folder, folder)
    return folder


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a worker is started."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(Launcher, "start", refuse)


@pytest.fixture
def copied_export(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Copy the tiny artifact in place of exporting; returns the folders that were exported into."""
    exported: list[Path] = []

    def copy(part: Path, *_: object) -> None:
        exported.append(part)
        shutil.copytree(tiny.folder, part, dirs_exist_ok=True)

    monkeypatch.setattr(export, "_export_into", copy)
    return exported


# ---- the cache


def test_second_call_starts_nothing(tiny: Artifact, launcher: Launcher, no_workers: None) -> None:
    artifact, cached = ensure_artifact(TINY, launcher, on_progress=quiet)
    assert cached
    assert (artifact.folder, artifact.hash) == (tiny.folder, tiny.hash)


@pytest.mark.parametrize(
    "other",
    [
        recipe("resnet50"),
        recipe(dims={"batch": 2}),
        recipe(shapes={"input": [2, 3, 32, 32]}),
        recipe(dynamic={"batch": (1, 2)}),
        recipe(weights="pretrained"),
        recipe(inputs="/inputs.npz"),
        recipe(seed=1),
        recipe(opset=17),
        recipe(input_sets=2),
    ],
    ids=["model", "dims", "shapes", "dynamic", "weights", "inputs", "seed", "opset", "input sets"],
)
def test_key_depends_on_the_recipe(other: Recipe) -> None:
    assert other.key() != TINY.key()
    assert recipe().key() == TINY.key()


def test_key_depends_on_the_models_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = TINY.key()
    source = tmp_path / "tiny.py"
    source.write_text("changed")
    monkeypatch.setattr(inspect, "getsourcefile", lambda _: str(source))
    changed = TINY.key()
    source.write_text("changed again")
    assert len({before, changed, TINY.key()}) == 3


def test_key_depends_on_the_exporting_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    before = TINY.key()
    monkeypatch.setattr(export, "_version", lambda name: "0" if name == "torch" else "1")
    assert TINY.key() != before


def test_key_is_the_same_in_another_process(tmp_path: Path) -> None:
    code = (
        "from harness.export import Recipe; from harness.modelspec import ModelSpec; "
        "print(Recipe(model=ModelSpec(name='tiny'), dims={'batch': 1}).key())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONPATH": str(RUN_CLI.parent.parent), "PYTHONHASHSEED": "7"}, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == TINY.key()


def truncate(folder: Path) -> None:
    os.truncate(folder / "weights.safetensors", 100)


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "reference-0.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "reference-0.safetensors").write_bytes(content)


def remove_a_file(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def remove_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def cut_the_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 100)


def newer_schema(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "schema": SCHEMA + 1}))


DAMAGE = [truncate, flip_a_byte, remove_a_file, remove_the_manifest, cut_the_manifest, newer_schema]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entry_is_exported_anew(
    damage: Callable[[Path], None], own_cache: Path, copied_export: list[Path], launcher: Launcher, tiny: Artifact
) -> None:
    damage(own_cache)
    said: list[str] = []
    artifact, cached = ensure_artifact(TINY, launcher, on_progress=quiet, say=said.append)
    assert not cached
    assert len(copied_export) == 1
    assert artifact.hash == Artifact.open(artifact.folder, verify=True).hash == tiny.hash
    assert len(said) == 1
    assert said[0].startswith("the cached export is damaged and is made again: ")
    assert sorted(path.name for path in own_cache.parent.iterdir()) == [own_cache.name, f"{own_cache.name}.lock"]


def test_a_file_of_the_users_that_changed_is_exported_anew(
    own_cache: Path, copied_export: list[Path], launcher: Launcher, tmp_path: Path
) -> None:
    file = tmp_path / "net.py"
    file.write_text("one")
    manifest = json.loads((own_cache / MANIFEST).read_text())
    manifest["sources"] = {str(file): sha256(file)}
    (own_cache / MANIFEST).write_text(json.dumps(manifest))
    said: list[str] = []
    assert ensure_artifact(TINY, launcher, on_progress=quiet, say=said.append)[1]
    file.write_text("two")
    assert not ensure_artifact(TINY, launcher, on_progress=quiet, say=said.append)[1]
    assert said == [f"{file} has changed since it was exported"]


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    own_cache: Path, launcher: Launcher, no_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StoreError) as caught:
        ensure_artifact(recipe("bert-large"), launcher, on_progress=quiet)
    assert "takes 2.7 GB" in caught.value.message and "0.0 GB are free" in caught.value.message
    assert not list(own_cache.parent.glob("bert-large*.part*"))


def test_refresh_exports_again(own_cache: Path, copied_export: list[Path], launcher: Launcher) -> None:
    assert ensure_artifact(TINY, launcher, on_progress=quiet)[1]
    assert not copied_export
    assert not ensure_artifact(TINY, launcher, on_progress=quiet, refresh=True)[1]
    assert len(copied_export) == 1


@pytest.mark.parametrize(
    "error", [ExportError("it cannot"), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_failed_refresh_keeps_the_old_artifact_and_no_part(
    error: BaseException, own_cache: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(part: Path, *_: object) -> None:
        (part / "model.onnx").write_bytes(b"half")
        raise error

    monkeypatch.setattr(export, "_export_into", fail)
    with pytest.raises((ExportError, StoreError, KeyboardInterrupt)) as caught:
        ensure_artifact(TINY, launcher, on_progress=quiet, refresh=True)
    if isinstance(error, OSError):
        assert "cannot be written" in str(caught.value) and "No space left" in str(caught.value)
    assert Artifact.open(own_cache, verify=True)
    assert not list(own_cache.parent.glob("*.part*"))


def test_two_processes_that_want_the_same_make_one(tmp_path: Path) -> None:
    command = [sys.executable, str(RUN_CLI), "export", "--model", "tiny"]
    environment = {**os.environ, "HARNESS_CACHE": str(tmp_path / "cache")}
    both = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    told = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sum("from the cache" in stdout for stdout, _ in told) == 1
    hashes = {line for stdout, _ in told for line in stdout.splitlines() if line.startswith("hash")}
    assert len(hashes) == 1
    folders = [path for path in (tmp_path / "cache" / "exports").iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert Artifact.open(folders[0], verify=True)


# ---- what an artifact holds


def test_artifact_holds_what_backends_need(tiny: Artifact) -> None:
    manifest = tiny.manifest
    assert (manifest.model.name, manifest.dims, manifest.seed, manifest.parameters) == ("tiny", {"batch": 1}, 0, 5450)
    assert (manifest.axes, manifest.dynamic, manifest.module) == ({"input": {0: "batch"}}, {}, True)
    assert manifest.weights == "seeded"
    assert [(spec.name, spec.dtype, spec.shape) for spec in tiny.inputs] == [("input", "float32", (1, 3, 32, 32))]
    assert [(spec.name, spec.dtype, spec.shape) for spec in tiny.outputs] == [("logits", "float32", (1, 10))]
    assert manifest.deterministic
    assert manifest.golden
    sets = [tiny.input_set(index)["input"] for index in range(manifest.input_sets)]
    assert len({array.tobytes() for array in sets}) == manifest.input_sets, "input sets differ"
    for index in range(manifest.input_sets):
        golden = tiny.golden(index)
        assert golden is not None
        assert golden["logits"].dtype == np.float64
        np.testing.assert_allclose(tiny.reference(index)["logits"], golden["logits"], rtol=1e-4, atol=1e-6)
    assert set(manifest.files) == {path.name for path in tiny.folder.iterdir()} - {MANIFEST}


def test_seed_changes_weights_and_inputs_and_batch_the_shapes(launcher: Launcher, tiny: Artifact) -> None:
    other, cached = ensure_artifact(recipe(seed=1, dims={"batch": 2}), launcher, on_progress=quiet)
    assert not cached
    assert other.hash != tiny.hash
    assert other.manifest.files["weights.safetensors"] != tiny.manifest.files["weights.safetensors"]
    assert (other.inputs[0].shape, other.outputs[0].shape) == ((2, 3, 32, 32), (2, 10))


@pytest.mark.parametrize("damage", DAMAGE)
def test_opening_a_damaged_artifact_says_what_to_do(damage: Callable[[Path], None], own_cache: Path) -> None:
    damage(own_cache)
    with pytest.raises(StoreError) as caught:
        Artifact.open(own_cache, verify=True)
    assert str(own_cache) in caught.value.message
    assert "harness cache clear --exports" in (caught.value.hint or "")


# ---- models that cannot be exported


BAD_MODELS = """
from __future__ import annotations
from harness.api import InputSpec, ReferenceModel

class Bad(ReferenceModel):
    name = "bad"
    summary = "fails"
    parameters = 0
    gflop = 0.0
    memory_gib = 0.1
    inputs = (InputSpec(name="input", dtype="float32", shape=("batch", 4)),)

class CannotBeBuilt(Bad):
    def build(self, dims):
        raise RuntimeError("weights are missing")

class GivesNan(Bad):
    def build(self, dims):
        import torch
        class Module(torch.nn.Module):
            def forward(self, x):
                return x / 0 - x / 0
        return Module()

class CannotRun(Bad):
    def build(self, dims):
        import torch
        return torch.nn.Linear(5, 5)
"""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("CannotBeBuilt", "weights are missing"),
        ("GivesNan", "the reference output 'output' holds NaN or infinite values"),
        ("CannotRun", "PyTorch cannot run the module: RuntimeError: "),
    ],
)
def test_model_that_cannot_be_exported(
    kind: str, message: str, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_model(tmp_path, kind, monkeypatch)
    with pytest.raises(ExportError) as caught:
        ensure_artifact(recipe("bad"), launcher, on_progress=quiet)
    assert message in caught.value.message
    assert caught.value.log
    assert "Traceback" in caught.value.worker_traceback
    root = export.exports_root()
    assert not [path for path in root.iterdir() if path.is_dir() and path.name.startswith("bad")]


def _install_model(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bad_models.py").write_text(BAD_MODELS)
    info = folder / "bad_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[harness.models]\nbad = bad_models:{kind}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)
    modules: dict[str, Any] = sys.modules
    monkeypatch.delitem(modules, "bad_models", raising=False)
