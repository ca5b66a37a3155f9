"""What stays in float32 in a converted graph, and `harness sensitivity` on a graph that float16 cannot hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from harness import protocol
from harness.artifact import Artifact
from harness.converter import convert
from harness.errors import UnsupportedError
from harness.graph_cuts import Graph
from tests.faults.test_localize import overflowing
from tests.planted import artifact, residual
from tests.support import Cli, interrupted


def converted(source: Artifact, folder: Path, precision: str, keep: list[str], ranges: str | None = None) -> Graph:
    folder.mkdir()
    convert(
        protocol.Convert(
            artifact=str(source.folder),
            precision=precision,
            samples=2,
            method="minmax",
            weights="own",
            keep=keep,
            ranges=ranges,
            folder=str(folder),
        ),
        lambda *_: None,
    )
    return Graph(folder / "model.onnx")


def test_nodes_stay_in_float32_in_a_float16_graph(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(0, layers=2))
    graph = converted(source, tmp_path / "half", "fp16", ["out-0"])
    assert (graph.types["mixed_0"], graph.types["branch_1"]) == ("FLOAT16", "FLOAT16")
    weight = next(one for one in graph.model.graph.initializer if one.name.startswith("v_0"))
    assert weight.data_type == onnx.TensorProto.FLOAT


def test_nodes_stay_in_float32_in_an_int8_graph_and_calibration_is_shared(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(0, layers=2))
    ranges = tmp_path / "ranges.json"
    graphs = [
        converted(source, tmp_path / f"int8-{number}", "int8", keep, str(ranges))
        for number, keep in enumerate(([], ["mix-1"]))
    ]
    written = ranges.read_text()
    fed = []
    for graph in graphs:
        node = next(node for node in graph.nodes if node.name == "mix-1")
        fed.append(node.input[1] in graph.constants)
    assert fed == [False, True], "the weights of the one that is kept are constants of float32"
    again = converted(source, tmp_path / "again", "int8", [], str(ranges))
    assert ranges.read_text() == written
    scales = [
        {one.name: onnx.numpy_helper.to_array(one) for one in graph.model.graph.initializer if "scale" in one.name}
        for graph in (graphs[0], again)
    ]
    assert scales[0].keys() == scales[1].keys()
    assert scales[0], "there are scales to share"
    for name, scale in scales[0].items():
        np.testing.assert_array_equal(scale, scales[1][name])


def test_nothing_stays_in_float32_in_a_bfloat16_graph(tmp_path: Path) -> None:
    source = artifact(tmp_path / "source", residual(0, layers=1))
    with pytest.raises(UnsupportedError, match="no node of it can stay in float32"):
        converted(source, tmp_path / "bf16", "bf16", ["out-0"])


def test_command(cli: Cli, tmp_path: Path) -> None:
    onnx.save(overflowing(far=False), tmp_path / "net.onnx")
    words = ["--model", "net.onnx", "--backend", "fake-faulty:half=true", "--precision", "fp16", "--input-sets", "1"]
    done = cli("sensitivity", *words, "--top", "1", "--budget", "120", "--json")
    assert done.returncode == 0, done.stderr
    advice = json.loads(done.stdout)
    assert advice["narrow"] == 7
    points = {point["name"]: point for point in advice["points"]}
    nothing, everything = points.pop("nothing"), points.pop("everything")
    assert (nothing["passed"], everything["passed"]) == (False, True)
    (kept,) = points.values()
    assert kept["nodes"] == ["square", "root"], "neither alone: what lies between them is beyond float16"
    assert kept["passed"]
    assert all(point["p50_ms"] > 0 for point in advice["points"])
    assert kept["ratio"][1] <= kept["ratio"][0] <= kept["ratio"][2]
    assert list((tmp_path / "results").glob("*-sensitivity-net.onnx-*/sensitivity.json"))


def test_ctrl_c_keeps_what_was_tried_and_the_same_command_converts_nothing_again(cli: Cli, tmp_path: Path) -> None:
    onnx.save(overflowing(far=False), tmp_path / "net.onnx")
    words = ["sensitivity", "--model", "net.onnx", "--backend", "fake-faulty:half=true", "--precision", "fp16"]
    words += ["--input-sets", "1", "--out", str(tmp_path / "results")]
    code, shown, _ = interrupted([*words, "--json"], "trial 5: ", tmp_path)
    assert code == 130
    advice = json.loads(shown)
    assert (advice["interrupted"], advice["tried"]) == (True, 4)
    assert [(point["name"], point["passed"]) for point in advice["points"]] == [
        ("nothing", False),
        ("square, root", True),
    ]
    (kept,) = tmp_path.glob("results/*/sensitivity.json")
    assert json.loads(kept.read_text()) == advice

    def graphs() -> dict[str, int]:
        found = Path(os.environ["HARNESS_CACHE"]).glob("exports/**/model.onnx")
        return {str(path): path.stat().st_mtime_ns for path in found}

    converted = graphs()
    assert len(converted) >= 6, "as exported, nothing kept, and four trials"
    code, shown, _ = interrupted(words, "launch 1: round 3", tmp_path)
    assert code == 130
    assert "INTERRUPTED: " in shown
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("square, root")]
    assert row[4] == "pass"
    assert float(row[5]) > 0, "what was sampled before counts"
    assert {path: when for path, when in graphs().items() if path in converted} == converted


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--backend", "fake-faulty"], 2, "is no graph in which some nodes could stay in float32"),
        (["--backend", "fake-faulty", "--precision", "bf16"], 2, "is no graph in which"),
        (["--backend", "fake-ok", "--precision", "int8"], 3, "fake-ok has no int8 on cpu"),
    ],
)
def test_what_cannot_be(words: list[str], code: int, says: str, cli: Cli, tmp_path: Path) -> None:
    done = cli("sensitivity", *words)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
