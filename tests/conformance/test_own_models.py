"""The user's own models through the whole command, for real: ONNX files of other people's packages, code, programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import Cli, rows_of

QUICK = ("--quick", "--json")


def shipped(package: str, path: str) -> Path:
    """Return a file of an installed package; packages that CI installs may not be missing there."""
    found = find_spec(package)
    if found is None or found.origin is None:
        if os.environ.get("HARNESS_REQUIRE"):
            pytest.fail(f"{package} is required here but not installed")
        pytest.skip(f"{package} is not installed")
    return Path(found.origin).parent / path


def statuses(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {row["id"]: row["status"] for row in rows_of(done)}


def info(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)["workloads"][0]["info"]
    return found


@pytest.mark.parametrize(
    ("package", "file", "sizes", "opset"),
    [
        ("magika", "models/standard_v3_3/model.onnx", ("--batch", "2"), 15),
        ("silero_vad", "data/silero_vad_op18_ifless.onnx", ("--dim", "sequence=576"), 18),
    ],
)
def test_an_onnx_file_of_another_package(
    package: str, file: str, sizes: tuple[str, ...], opset: int, cli: Cli, tmp_path: Path
) -> None:
    path = shipped(package, file)
    inputs: tuple[str, ...] = ()
    if package == "silero_vad":  # it runs at two rates only, and an integer that is drawn is neither
        np.savez(
            tmp_path / "in.npz",
            input=np.zeros((1, 576), np.float32), sr=np.array(16000), state=np.zeros((2, 1, 128), np.float32),
        )  # fmt: skip
        inputs = ("--inputs", "in.npz")
    backends = "eager,onnxruntime,onnxruntime:level=disable"
    done = cli("compare", "--model", str(path), *sizes, *inputs, "--backends", backends, *QUICK)
    assert statuses(done) == {"onnxruntime": "ok", "onnxruntime:level=disable": "ok", "eager": "unsupported"}
    assert done.returncode == 3, "eager was asked for by name"
    table = json.loads(done.stdout)["workloads"][0]
    assert table["baseline"] == "onnxruntime"
    assert info(done)["opset"] == opset
    assert "onnxruntime" in info(done)["reference"].lower().replace(" ", "")
    eager = next(row for row in table["rows"] if row["id"] == "eager")
    assert "needs a torch module" in eager["failure"]["message"]


REPOSITORY = {
    "models/__init__.py": "",
    "models/net.py": """
        import torch
        from models.parts import Block

        def make(batch=1, width=8):
            from models import lazily  # as late as a factory may import
            lazily.ready = True
            return torch.nn.Sequential(Block(width), torch.nn.Flatten()), torch.randn(batch, 3, 16, 16)
        """,
    "models/parts.py": """
        import torch

        class Block(torch.nn.Module):
            def __init__(self, width):
                super().__init__()
                self.conv = torch.nn.Conv2d(3, width, 3, 2, 1)

            def forward(self, x):
                return torch.nn.functional.silu(self.conv(x))
        """,
    "models/lazily.py": "ready = False\n",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A user's project whose folder of models has our folder's name."""
    for name, text in REPOSITORY.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        lines = text.strip("\n").split("\n")
        margin = len(lines[0]) - len(lines[0].lstrip()) if lines[0] else 0
        path.write_text("\n".join(line[margin:] for line in lines) + "\n")
    return tmp_path


def test_a_factory_in_a_repository_with_its_own_models_folder(repository: Path, cli: Cli) -> None:
    backends = "eager,onnxruntime,torch-compile"
    done = cli("compare", "--model", "models.net:make", "--batch", "2", "--backends", backends, *QUICK)
    assert done.returncode == 0, done.stderr
    assert set(statuses(done).values()) == {"ok"}
    assert info(done)["inputs"] == ["input float32[2, 3, 16, 16]"]

    again = cli("compare", "--model", "models.net:make", "--batch", "2", "--backends", backends, *QUICK)
    assert info(again)["export_cached"]
    assert all("engine_compiled_at" in row["facts"] for row in rows_of(again))
    alone = ("compare", "--model", "models.net:make", "--batch", "2", "--backends", "onnxruntime", *QUICK)
    cold = cli(*alone, "--cold")
    assert not any("engine_compiled_at" in row["facts"] for row in rows_of(cold))

    (repository / "models" / "parts.py").write_text((repository / "models" / "parts.py").read_text() + "# edited\n")
    edited = cli(*alone)
    assert not info(edited)["export_cached"]
    assert "models/parts.py has changed since it was exported" in edited.stderr


def test_an_exported_program(tmp_path: Path, cli: Cli) -> None:
    code = """
import torch
module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
batch = torch.export.Dim("batch", min=1, max=64)
program = torch.export.export(module, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
torch.export.save(program, "program.pt2")
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=200, capture_output=True)
    done = cli("compare", "--model", "program.pt2", "--batch", "3", "--backends", "eager,onnxruntime", *QUICK)
    assert done.returncode == 0, done.stderr
    assert set(statuses(done).values()) == {"ok"}
    assert [text.partition(" ")[2] for text in info(done)["inputs"]] == ["float32[3, 3, 8, 8]"]


def test_the_users_own_inputs_are_what_is_judged(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    for index in range(3):
        np.savez(folder / f"{index}.npz", input=np.full((1, 3, 32, 32), index, np.float32))
    done = cli("compare", "--model", "tiny", "--inputs", "sets", "--backends", "eager,onnxruntime", *QUICK)
    assert done.returncode == 0, done.stderr
    assert info(done)["input_sets"] == 3
    assert all(len(row["drift"]) == 3 for row in rows_of(done))


def test_weights_of_a_file_are_what_runs(tmp_path: Path, cli: Cli) -> None:
    code = """
import torch
from harness import registry
model = registry.model_class("tiny")()
module = model.build({"batch": 1})
with torch.no_grad():
    for parameter in module.parameters():
        parameter.fill_(0.5)
torch.save(module.state_dict(), "half.pt")
torch.save(torch.nn.Linear(2, 2).state_dict(), "other.pt")
"""
    root = Path(__file__).resolve().parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=200)
    done = cli("compare", "--model", "tiny", "--weights", "half.pt", "--backends", "eager,onnxruntime", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "half.pt" in info(done)["weights"]
    assert len(info(done)["weights_sha256"]) == 64

    other = cli("compare", "--model", "tiny", "--weights", "other.pt", "--backends", "eager", *QUICK)
    assert other.returncode in (2, 3)
    assert "other.pt does not fit tiny" in other.stderr + other.stdout
