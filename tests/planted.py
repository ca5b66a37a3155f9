"""Small graphs to plant faults in, and a bench that builds engines of their cuts without starting a process."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness import converter, drift, protocol
from harness.api import CompileRequest
from harness.artifact import MANIFEST, Artifact, Manifest, TensorSpec, sha256, write_tensors
from harness.graph_cuts import cut, survey
from harness.graph_reference import open_as_it_stands
from harness.localization import Alone, Localization
from harness.localizing import Localizing
from harness.measure import StageClock
from harness.modelspec import ModelSpec
from tests.plugins.fake_faults import FaultOptions, Faulty

WIDTH = 16
SETS = 2


def residual(seed: int, layers: int = 12) -> onnx.ModelProto:
    """Return a residual network of square layers with random weights, each of nodes `mix-i`, `act-i`, `out-i`, `add-i`.

    Every third layer has a branch of its own beside it, so that the graph is no chain.
    """
    generator = np.random.default_rng(seed)
    nodes, weights = [], []

    def weight(name: str) -> str:
        values = generator.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    stream = "x"
    for index in range(layers):
        mixed, active, out, total = (f"{word}_{index}" for word in ("mixed", "active", "branch", "stream"))
        nodes.append(helper.make_node("MatMul", [stream, weight(f"w_{index}")], [mixed], name=f"mix-{index}"))
        nodes.append(helper.make_node("Tanh", [mixed], [active], name=f"act-{index}"))
        nodes.append(helper.make_node("MatMul", [active, weight(f"v_{index}")], [out], name=f"out-{index}"))
        if index % 3 == 2:
            nodes.append(helper.make_node("Sigmoid", [stream], [f"gate_{index}"], name=f"gate-{index}"))
            nodes.append(helper.make_node("Mul", [out, f"gate_{index}"], [f"gated_{index}"], name=f"use-{index}"))
            out = f"gated_{index}"
        nodes.append(helper.make_node("Add", [stream, out], [total], name=f"add-{index}"))
        stream = total
    nodes.append(helper.make_node("MatMul", [stream, weight("w_head")], ["y"], name="head"))
    return model(nodes, weights)


def model(nodes: list[Any], weights: list[Any], batch: int = 4) -> onnx.ModelProto:
    """Return a model from `x` to `y`, both of shape (batch, 16)."""
    value = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=[batch, WIDTH])
    graph = helper.make_graph(nodes, "planted", [value("x")], [value("y")], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def artifact(folder: Path, graph: onnx.ModelProto, seed: int = 0) -> Artifact:
    """Write a graph as an artifact, with drawn inputs and the outputs of ONNX Runtime for them."""
    folder.mkdir(parents=True)
    onnx.save(graph, folder / "model.onnx")
    session = open_as_it_stands(folder / "model.onnx", threads=1, what="a test's graph")
    generator = np.random.default_rng(1000 + seed)
    shape = tuple(size.dim_value for size in graph.graph.input[0].type.tensor_type.shape.dim)
    for index in range(SETS):
        inputs = {"x": generator.standard_normal(shape).astype(np.float32)}
        write_tensors(folder / f"inputs-{index}.safetensors", inputs)
        write_tensors(folder / f"reference-{index}.safetensors", {"y": session.run(["y"], inputs)[0]})
    again = [session.run(["y"], inputs)[0] for _ in range(2)]
    manifest = Manifest(
        model=ModelSpec(kind="onnx", name=str(folder / "model.onnx")),
        dims={},
        module=False,
        weights="own",
        seed=seed,
        opset=18,
        inputs=(TensorSpec(name="x", dtype="float32", shape=shape),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=shape),),
        input_sets=SETS,
        parameters=0,
        weights_bytes=0,
        deterministic=np.array_equal(*again),
        golden=False,
        export_s=0.0,
        onnx_max_abs=0.0,
        versions={},
        files={path.name: sha256(path) for path in folder.iterdir()},
    )
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return Artifact.open(folder)


def half(folder: Path, source: Artifact) -> Artifact:
    """Convert an artifact's graph to float16."""
    folder.mkdir(parents=True)
    request = protocol.Convert(
        artifact=str(source.folder), precision="fp16", samples=1, method="minmax", weights="own", folder=str(folder)
    )
    converter.convert(request, lambda *_: None)
    files = {"model.onnx": sha256(folder / "model.onnx")}
    manifest = msgspec.structs.replace(source.manifest, precision="fp16", files=files)
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return Artifact.open(folder)


class DirectLab:
    """What `harness.probing.GraphLab` does, in this process."""

    def __init__(self, scratch: Path, source: Artifact, options: FaultOptions, graph: Artifact | None = None) -> None:
        self.source = source
        self.graph = graph or source
        self.precision = self.graph.manifest.precision
        self.engines = 0
        self.engines_at_most = math.inf
        """Ctrl-C is pressed when one more is wanted."""
        self._options = options
        self._scratch = scratch
        self._count = 0

    def base(self) -> list[Mapping[str, np.ndarray]]:
        return self._outputs(self.graph if self.graph is self.source else self.graph.fed_by(self.source))

    def survey(self, input_set: int) -> protocol.Surveyed:
        source, graph = str(self.source.folder), str(self.graph.folder)
        return survey(protocol.Survey(source=source, graph=graph, input_set=input_set))

    def reference(self, names: Sequence[str], input_set: int) -> Mapping[str, np.ndarray]:
        return self._cut(self.graph, [], names, input_set).reference(0)

    def probe(
        self, names: Sequence[str], input_set: int, *, whole: bool
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        part = self._cut(self.graph, [], names, input_set, whole=whole)
        return self._outputs(part)[0], part.reference(0)

    def alone(self, inputs: Sequence[str], output: str, input_set: int) -> Alone:
        part = self._cut(self.source, inputs, [output], input_set)
        graph = part
        if self.precision == "fp16":
            graph = half(self._scratch / f"half-{self._count}", part).fed_by(part)
        rows = drift.judge(self._outputs(graph)[0], part.reference(0), precision=self.precision)
        nodes = len(onnx.load(part.onnx_path).graph.node)
        return Alone(folder=str(part.folder), nodes=nodes, shows=not drift.passed(rows), drift=rows[0], reproduce="")

    def _outputs(self, graph: Artifact) -> list[Mapping[str, np.ndarray]]:
        if self.engines >= self.engines_at_most:
            raise KeyboardInterrupt
        self.engines += 1
        request = CompileRequest(
            artifact=graph,
            options=self._options,
            precision=self.precision,
            engine_dir=self._scratch,
            cache_dir=self._scratch,
            stage=StageClock().stage,
            progress=lambda *_: None,
        )
        out: list[Mapping[str, np.ndarray]] = []
        with Faulty().compile(request) as session:
            for index in range(graph.manifest.input_sets):
                session.bind(graph.input_set(index))
                session.execute()
                out.append(session.outputs())
        return out

    def _cut(
        self, graph: Artifact, inputs: Sequence[str], outputs: Sequence[str], input_set: int, *, whole: bool = False
    ) -> Artifact:
        self._count += 1
        folder = self._scratch / f"cut-{self._count}"
        folder.mkdir(parents=True)
        request = protocol.Cut(
            source=str(self.source.folder),
            graph=str(graph.folder),
            input_set=input_set,
            inputs=list(inputs),
            outputs=list(outputs),
            whole=whole,
            folder=str(folder),
        )
        cut(request)
        return Artifact.open(folder)


def located(lab: DirectLab) -> Localization:
    """Search in this process."""
    blank = Localization(model="planted", backend="fake-faulty", precision=lab.precision, device="cpu", outcome="clean")
    return Localizing(lab, blank, lambda _: None).run()
