"""Faults planted in one node of a graph, and the node that `harness localize` names."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.planted import WIDTH, DirectLab, artifact, half, located, model, residual
from tests.plugins.fake_faults import FaultOptions
from tests.support import Cli, interrupted

TRIALS = range(20)
FAULTS: tuple[Literal["bf16", "scale", "transpose"], ...] = ("bf16", "scale", "transpose")
LAYERS = 12


@pytest.mark.parametrize("seed", TRIALS)
def test_a_planted_fault_is_named(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    fault = FAULTS[seed % 3]
    node = draw.choice([f"{word}-{index}" for index in range(LAYERS) for word in ("mix", "out")] + ["head"])
    source = artifact(tmp_path / "source", residual(seed), seed)
    lab = DirectLab(tmp_path / "cuts", source, FaultOptions(fault=fault, node=node))
    found = located(lab)
    assert (found.outcome, found.node, found.op) == ("located", node, "MatMul")
    assert found.tensor is not None and found.tensor.drift is not None and not found.tensor.drift.passed
    assert all(one.drift is None or one.drift.passed for one in found.before)
    assert found.alone is not None
    assert (found.alone.shows, found.alone.nodes) == (True, 1)
    assert found.engines == lab.engines
    assert found.engines <= 7, "of 54 tensors that are looked at eight at a time"


@pytest.mark.parametrize("seed", TRIALS)
def test_a_clean_model_raises_no_alarm(seed: int, tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(seed), seed)
    found = located(DirectLab(tmp_path / "cuts", source, FaultOptions()))
    assert (found.outcome, found.engines, found.node) == ("clean", 1, "")


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_float16_graph_raises_no_alarm(seed: int, tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(seed, layers=3), seed)
    lab = DirectLab(tmp_path / "cuts", source, FaultOptions(half=True), half(tmp_path / "half", source))
    assert located(lab).outcome == "clean"


def test_a_fusion_that_breaks_with_extra_outputs_is_called_one(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(1, layers=4))
    found = located(DirectLab(tmp_path / "cuts", source, FaultOptions(fault="fusion", node="mix-2")))
    assert found.outcome == "located"
    assert found.fused, "looking made it vanish"
    assert found.node == "act-2", "the first tensor at which a graph that is cut short drifts"
    assert found.alone is not None
    assert (found.alone.shows, found.alone.nodes) == (True, 2), "one node has nothing to fuse with"


def overflowing(*, far: bool = True) -> onnx.ModelProto:
    """Return a graph that squares numbers of a few hundred, and comes back: at once, or after one node more."""
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "large"], ["b"], name="grow"),
        helper.make_node("Mul", ["b", "b"], ["c"], name="square"),
        *([helper.make_node("Mul", ["c", "two"], ["d"], name="double")] if far else []),
        helper.make_node("Sqrt", ["d" if far else "c"], ["e"], name="root"),
        helper.make_node("Tanh", ["a"], ["f"], name="side"),
        helper.make_node("Add", ["e", "f"], ["g"], name="join"),
        helper.make_node("MatMul", ["g", "w"], ["y"], name="last"),
    ]
    weights = [numpy_helper.from_array(weight, "w")]
    weights += [numpy_helper.from_array(np.float32(value), name) for name, value in (("large", 200), ("two", 2))]
    return model(nodes, weights)


def test_an_overflow_of_float16_is_named_where_it_begins(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", overflowing())
    lab = DirectLab(tmp_path / "cuts", source, FaultOptions(half=True), half(tmp_path / "half", source))
    found = located(lab)
    assert (found.outcome, found.node) == ("located", "square")
    assert found.overflow is not None
    assert found.overflow.tensor == "c"
    assert found.overflow.reference_max > 65504
    assert 0 < found.overflow.lost <= found.overflow.elements
    assert found.overflow.seen_at == "e", "the root of infinity is the first number that could be compared"
    assert found.alone is not None and found.alone.shows


def masked(fault: str) -> onnx.ModelProto:
    """Return attention-like scores under a mask of -1e30, which float16 does not have and does not need."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], name="score"),
        helper.make_node("Less", ["x", "edge"], ["hidden"], name="hide"),
        helper.make_node("Where", ["hidden", "low", "scores"], ["masked"], name="mask"),
        helper.make_node("Softmax", ["masked"], ["shares"], name="share", axis=-1),
        helper.make_node("MatMul", ["shares", "w"], ["mixed"], name=fault),
        helper.make_node("Tanh", ["mixed"], ["y"], name="end"),
    ]
    weights = [numpy_helper.from_array(np.eye(WIDTH, k=1, dtype=np.float32) + np.eye(WIDTH, dtype=np.float32), "w")]
    weights += [numpy_helper.from_array(np.float32(value), name) for name, value in (("edge", -0.5), ("low", -1e30))]
    return model(nodes, weights)


def test_a_mask_beyond_float16_is_not_taken_for_the_fault(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", masked("wrong"))
    options = FaultOptions(fault="transpose", node="wrong", half=True)
    found = located(DirectLab(tmp_path / "cuts", source, options, half(tmp_path / "half", source)))
    assert (found.node, found.overflow) == ("wrong", None)


def test_a_tensor_that_cannot_be_an_output_is_left_out(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(2, layers=4))
    options = FaultOptions(fault="scale", node="act-2", refuses="active_2")
    found = located(DirectLab(tmp_path / "cuts", source, options))
    assert found.outcome == "narrowed"
    assert (found.node, found.unseen) == ("out-2", ["active_2"])
    assert any("cannot be an output" in note for note in found.notes)
    assert found.alone is not None and found.alone.shows and found.alone.nodes > 1


def test_a_backend_without_a_result_is_a_finding(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(2, layers=2))
    found = located(DirectLab(tmp_path / "cuts", source, FaultOptions(refuses="y")))
    assert found.outcome == "no_result"
    assert found.failure is not None and "'y' cannot be an output" in found.failure.message


def test_command(cli: Cli, tmp_path: Path) -> None:
    onnx.save(residual(3, layers=4), tmp_path / "net.onnx")
    words = ["--model", "net.onnx", "--backend", "fake-faulty:fault=scale,node=out-1", "--input-sets", "2"]
    done = cli("localize", *words, "--to", "alone", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["outcome"], found["node"], found["version"]) == ("located", "out-1", "1.0")
    assert found["alone"]["shows"] is True
    assert (tmp_path / "alone" / "model.onnx").is_file()
    assert list((tmp_path / "results").glob("*-localize-net.onnx-*/localization.json"))
    program, *again = found["alone"]["reproduce"].split()
    assert program == "harness"
    done = cli(*again, "--quick", "--json")
    assert done.returncode == 1, "the reproduce line shows the drift"
    assert json.loads(done.stdout)["workloads"][0]["rows"][0]["status"] == "drifted"


def test_ctrl_c_keeps_how_far_the_search_had_come(tmp_path: Path) -> None:
    onnx.save(residual(3, layers=4), tmp_path / "net.onnx")
    words = ["localize", "--model", "net.onnx", "--backend", "fake-faulty:fault=scale,node=out-1"]
    words += ["--input-sets", "1", "--to", "alone", "--out", "results"]
    code, shown, _ = interrupted([*words, "--json"], "engine 3: ", tmp_path)
    assert code == 130
    found = json.loads(shown)
    assert (found["interrupted"], found["outcome"], found["alone"]) == (True, "narrowed", None)
    assert "branch_1" in [*found["unseen"], found["tensor"]["name"]], "what the fault is in has not been ruled out"
    assert 0 < len(found["unseen"]) < 8, "of 17 tensors: one engine has looked at eight of them"
    assert not found["outputs"][0]["passed"]
    (kept,) = tmp_path.glob("results/*/localization.json")
    assert json.loads(kept.read_text()) == found
    code, shown, _ = interrupted(words, "a model of what lies between", tmp_path)
    assert code == 130
    assert "INTERRUPTED: " in shown
    assert "Drift begins at node" in shown, "that was found, and only the model of the node alone is missing"
    assert "MatMul 'out-1'" in shown
    assert not (tmp_path / "alone").exists(), "nothing is in the way of the same command"


@pytest.mark.parametrize("layers", [4, 8])
def test_wherever_it_is_interrupted_the_fault_is_not_ruled_out(layers: int, tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(5, layers=layers))
    options = FaultOptions(fault="fusion", node="mix-2")
    whole = located(DirectLab(tmp_path / "whole", source, options))
    for engines in range(2, whole.engines + 1):
        lab = DirectLab(tmp_path / f"part-{engines}", source, options)
        lab.engines_at_most = engines - 1
        found = located(lab)
        assert found.interrupted
        assert whole.tensor is not None and found.tensor is not None
        assert whole.tensor.name in [*found.unseen, found.tensor.name], engines
    blank = DirectLab(tmp_path / "none", source, options)
    blank.engines_at_most = 0
    with pytest.raises(KeyboardInterrupt):
        located(blank)


def test_command_on_a_backend_that_dies(cli: Cli, tmp_path: Path) -> None:
    onnx.save(residual(3, layers=2), tmp_path / "net.onnx")
    words = ["--model", "net.onnx", "--backend", "fake-faulty:fault=scale,node=mix-1,refuses=mixed_1,dies=true"]
    done = cli("localize", *words, "--input-sets", "1")
    assert done.returncode == 1, done.stderr
    assert "Drift begins at or above node" in done.stdout
    assert "Not looked at: mixed_1." in done.stdout
    assert "crashed" in done.stdout


def test_command_in_float16(cli: Cli, tmp_path: Path) -> None:
    onnx.save(overflowing(), tmp_path / "net.onnx")
    words = ["--model", "net.onnx", "--backend", "fake-faulty:half=true", "--precision", "fp16", "--input-sets", "1"]
    done = cli("localize", *words)
    assert done.returncode == 1, done.stderr
    assert "Overflow of float16 at 'c'" in done.stdout
    assert "Mul 'square'" in done.stdout
    assert "A model of that node alone drifts by itself" in done.stdout
    assert "--precision fp16 --inputs" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--backend", "fake-falty"], 2, "did you mean 'fake-faulty'"),
        (["--backend", "fake-ok,fake-faulty"], 2, "--backend takes one backend"),
        (["--backend", "fake-ok", "--precision", "fp17"], 2, "unknown precision 'fp17'"),
        (["--backend", "fake-ok", "--precision", "fp32,fp16"], 2, "one precision is wanted"),
        (["--backend", "fake-ok", "--precision", "fp16"], 3, "fake-ok has no fp16 on cpu"),
        (["--backend", "eager"], 3, "backends that compile those: fake-"),
        (["--backend", "fake-ok", "--batch", "1", "--model", "tiny,gemm"], 2, "takes one model"),
        (["--backend", "fake-segfault-at-compile", "--model", "net.onnx"], 3, "No result: crashed"),
    ],
)
def test_what_cannot_be(words: list[str], code: int, says: str, cli: Cli, tmp_path: Path) -> None:
    onnx.save(residual(0, layers=1), tmp_path / "net.onnx")
    done = cli("localize", *words)
    assert done.returncode == code, done.stderr
    assert says in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
