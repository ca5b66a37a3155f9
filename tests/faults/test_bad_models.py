"""Models of the user's own that cannot be compared: a few clear lines, exit code 2 or rows, and a clean cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support import Cli, rows_of

QUICK = ("--quick", "--json")
onnx = pytest.importorskip("onnx", reason="the files are made with it")


def net(path: Path, *, opset: int = 17, external: bool = False) -> Path:
    """Write an ONNX file with a free batch and a free length: y = relu(x * w)."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((1, 1024), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 1024])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if external:
        onnx.save(model, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def truncated(folder: Path) -> None:
    net(folder / "net.onnx")
    os.truncate(folder / "net.onnx", 1000)


def without_its_data(folder: Path) -> None:
    net(folder / "net.onnx", external=True)
    (folder / "net.bin").unlink()


def of_a_future_opset(folder: Path) -> None:
    net(folder / "net.onnx", opset=999)


def sound(folder: Path) -> None:
    net(folder / "net.onnx")


def with_inputs(**arrays: np.ndarray) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        net(folder / "net.onnx")
        np.savez(folder / "in.npz", **arrays)  # type: ignore[arg-type]  # numpy types allow_pickle, not names

    return write


GOOD = np.zeros((1, 8, 1024), np.float32)
IN = "--dim length=8 --inputs in.npz"
CASES = {
    "truncated": (truncated, "--dim length=8", ["net.onnx"]),
    "no external data": (without_its_data, "--dim length=8", ["net.bin"]),
    "opset too new": (of_a_future_opset, "--dim length=8", ["opset 999"]),
    "a free dimension": (sound, "", ["'length'", "--dim length="]),
    "a dimension that is not there": (sound, "--dim length=8 --dim width=3", ["'width'", "length"]),
    "a shape of another rank": (sound, "--shape x=1x8", ["x"]),
    "an input that is not there": (sound, "--dim length=8 --shape z=1x8x1024", ["'z'", "x"]),
    "inputs of another name": (with_inputs(z=GOOD), IN, ["in.npz", "z", "x"]),
    "inputs of another shape": (
        with_inputs(x=GOOD[:, :4]),
        "--dim length=8 --inputs in.npz",
        ["in.npz", "[1, 8, 1024]"],
    ),
    "inputs of another type": (
        with_inputs(x=GOOD > 0),
        "--dim length=8 --inputs in.npz",
        ["in.npz", "bool", "float32"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_onnx_file_that_cannot_be_used(case: str, cli: Cli, tmp_path: Path) -> None:
    prepare, arguments, parts = CASES[case]
    prepare(tmp_path)
    done = cli("compare", "--model", "net.onnx", *arguments.split(), "--backends", "onnxruntime", *QUICK)
    told = done.stderr + done.stdout
    for part in parts:
        assert part in told, told
    assert "Traceback" not in done.stderr and "internal" not in done.stderr
    if done.returncode == 2:
        assert done.stderr.count("error: ") == 1, done.stderr
        assert not list((tmp_path / "results").glob("*")), "nothing was done, and something was left behind"
    else:
        assert done.returncode == 3, done.stderr
        assert [row["status"] for row in rows_of(done)] == ["export_failed"]
    exports = Path(os.environ["HARNESS_CACHE"]) / "exports"
    assert not [path for path in exports.glob("net*") if path.is_dir()], "the cache holds what could not be exported"


def test_what_can_be_used_can_be(cli: Cli, tmp_path: Path) -> None:
    net(tmp_path / "sound.onnx", opset=9)
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 8, 1024), np.float32))
    done = cli(
        "compare", "--model", "sound.onnx", "--batch", "2", "--dim", "length=8", "--inputs", "in.npz",
        "--backends", "onnxruntime", *QUICK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in rows_of(done)] == ["ok"]


FACTORIES = """
import torch

def raises():
    raise ValueError("the moon is in the wrong house")

def nonsense():
    return 42

def fixed():
    return torch.nn.Linear(4, 4), torch.randn(1, 4)

number = 3
"""


@pytest.mark.parametrize(
    ("reference", "arguments", "parts"),
    [
        ("nets:raises", "", ["nets:raises", "ValueError: the moon is in the wrong house"]),
        ("nets:nonsense", "", ["nets:nonsense returned an int"]),
        ("nets:number", "", ["nets:number"]),
        ("nets:missing", "", ["nets", "missing"]),
        ("nots:fixed", "", ["nots"]),
        ("nets:fixed", "--batch 4", ["batch"]),
        ("nets:fixed", "--weights pretrained", ["pretrained"]),
    ],
)
def test_a_factory_that_cannot_be_used(
    reference: str, arguments: str, parts: list[str], cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(FACTORIES)
    done = cli("compare", "--model", reference, *arguments.split(), "--backends", "eager", *QUICK)
    told = done.stderr + done.stdout
    for part in parts:
        assert part in told, told
    assert done.returncode in (2, 3)
    assert "Traceback" not in done.stderr and "internal" not in done.stderr


def test_a_model_that_cannot_fit_is_not_tried(cli: Cli) -> None:
    done = cli(
        "compare",
        "--model",
        "llama-prefill,tiny",
        "--backends",
        "fake-ok",
        "--memory-limit",
        "1.5",
        "--quick",
        "--json",
    )
    assert done.returncode == 3, done.stderr
    (row,) = rows_of(done)
    assert row["status"] == "out_of_memory"
    assert "GiB of memory, and a worker may take 1.5 GiB here: not tried" in row["failure"]["message"]
    assert "exported tiny" in done.stderr, "the other model goes on"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--weights missing.pt", ["--weights missing.pt: there is no such file"]),
        ("--inputs missing", ["--inputs missing: there is no such file"]),
        ("--weights pretrained", ["tiny has no public weights"]),
        ("--dim sequence=8", ["unknown dimension 'sequence'", "batch"]),
        ("--dim batch=2 --batch 4", ["contradict each other"]),
        ("--batch 1,x", ["'x' is not a number"]),
        ("--suite visio", ["unknown suite 'visio'; did you mean 'vision'"]),
        ("--model tiny:size=9", ["unknown setting of tiny 'size'"]),
        ("--model gone.onnx", ["gone.onnx does not exist"]),
    ],
)
def test_wrong_usage_ends_before_anything_starts(arguments: str, parts: list[str], cli: Cli, tmp_path: Path) -> None:
    words = arguments.split()
    model = [] if "--model" in words or "--suite" in words else ["--model", "tiny"]
    done = cli("compare", *model, *words, "--backends", "fake-ok", "--quick")
    assert done.returncode == 2, done.stderr
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("results/*"))
