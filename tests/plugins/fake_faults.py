"""A backend with a planted fault: ONNX Runtime, or half arithmetic, on a copy of the graph in which one node is wrong.

The arithmetic is real; only the fault is made up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from harness.api import Availability, Backend, BackendOptions, Capabilities, CompileRequest, Session
from harness.errors import CompileError

SCALE = 1.02


class FaultOptions(BackendOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which node is wrong, and how."""

    fault: Annotated[
        Literal["none", "bf16", "scale", "transpose", "fusion"], msgspec.Meta(description="what is wrong")
    ] = "none"
    node: Annotated[str, msgspec.Meta(description="name of the node that is wrong")] = ""
    refuses: Annotated[str, msgspec.Meta(description="tensor that cannot be an output")] = ""
    dies: Annotated[bool, msgspec.Meta(description="refuse by ending the process")] = False
    half: Annotated[bool, msgspec.Meta(description="compute float16 graphs in float16, as ONNX Runtime does not")] = (
        False
    )


class FaultSession(Session):
    provider = "fake"

    def __init__(self, model: Any, request: CompileRequest) -> None:
        import onnx.reference
        import onnxruntime

        options = request.options
        assert isinstance(options, FaultOptions)
        self._artifact = request.artifact
        self._names = [value.name for value in model.graph.output]
        self._inputs: dict[str, np.ndarray] = {}
        self._outputs: list[np.ndarray] = []
        if options.half:
            self._run = onnx.reference.ReferenceEvaluator(model).run
        else:
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = request.threads
            self._run = onnxruntime.InferenceSession(model.SerializeToString(), settings).run

    def save(self, engine_dir: Path) -> None:
        (engine_dir / "engine.txt").write_text("fake")

    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._inputs = self._artifact.check_inputs(inputs)

    def execute(self) -> None:
        with np.errstate(all="ignore"):
            self._outputs = self._run(self._names, self._inputs)

    def synchronize(self) -> None:
        pass

    def outputs(self) -> dict[str, np.ndarray]:
        return {name: np.array(array) for name, array in zip(self._names, self._outputs, strict=True)}


class Faulty(Backend):
    name = "fake-faulty"
    summary = "one node is wrong"
    capabilities = Capabilities(source="onnx", precisions={"cpu": ("fp32", "fp16", "int8")})
    modules = ("onnxruntime",)
    Options = FaultOptions

    @classmethod
    def probe(cls) -> Availability:
        return Availability(available=True, versions={"fake": "1.0"}, devices=("cpu",))

    def compile(self, request: CompileRequest) -> Session:
        import onnx

        options = request.options
        assert isinstance(options, FaultOptions)
        model = onnx.load(request.artifact.onnx_path)
        if options.refuses in {value.name for value in model.graph.output}:
            if options.dies:
                os._exit(3)
            raise CompileError(f"'{options.refuses}' cannot be an output")
        tamper(model, options.fault, options.node)
        return FaultSession(model, request)

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        return self.compile(request)


def tamper(model: Any, fault: str, name: str) -> None:
    """Make one node wrong; do nothing where the graph does not have it."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    at = next((index for index, node in enumerate(graph.node) if node.name == name), None)
    if at is None or fault == "none":
        return
    node = graph.node[at]
    output = node.output[0]
    if fault == "fusion":  # right when its result is asked for, and where nothing follows to fuse it with
        exposed = output in {value.name for value in graph.output}
        narrow = any(one.op_type == "Cast" and output in one.input for one in graph.node)
        if exposed or narrow:
            return
    if fault == "transpose":
        weight = next(tensor for tensor in graph.initializer if tensor.name == node.input[1])
        turned = np.ascontiguousarray(numpy_helper.to_array(weight).T)
        graph.initializer.append(numpy_helper.from_array(turned, f"{weight.name}-turned"))
        node.input[1] = f"{weight.name}-turned"
        return
    if fault in ("scale", "fusion"):
        kind = next((one.data_type for one in graph.initializer if one.name in node.input), TensorProto.FLOAT)
        factor = helper.make_tensor(f"{name}-factor", kind, [], [SCALE])
        graph.initializer.append(factor)
        node.output[0] = f"{output}-right"
        graph.node.insert(at + 1, helper.make_node("Mul", [f"{output}-right", factor.name], [output]))
        return
    before, after = [], []
    for index, tensor in enumerate(node.input):
        before += _rounded(helper, TensorProto, tensor, f"{name}-in-{index}")
        node.input[index] = f"{name}-in-{index}"
    node.output[0] = f"{output}-exact"
    after = _rounded(helper, TensorProto, f"{output}-exact", output)
    nodes = [*graph.node]
    del graph.node[:]
    graph.node.extend([*nodes[:at], *before, nodes[at], *after, *nodes[at + 1 :]])


def _rounded(helper: Any, kinds: Any, tensor: str, name: str) -> list[Any]:
    return [
        helper.make_node("Cast", [tensor], [f"{name}-bf16"], to=kinds.BFLOAT16),
        helper.make_node("Cast", [f"{name}-bf16"], [name], to=kinds.FLOAT),
    ]
