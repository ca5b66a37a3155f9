"""Parts of ONNX graphs, and what the tensors inside them should hold: the worker's half of `harness.localize`.

The reference of a tensor is the float32 graph's own, from ONNX Runtime without graph optimisation. Tensors are found
in a converted graph by name: converters keep the names of what they convert. Whatever crosses the edge of a part is
float32, as the inputs and outputs of every artifact are; a cast stands there where the graph computes in another type.

Imports onnx, so only workers import this module.
"""

from __future__ import annotations

import functools
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness import protocol
from harness.artifact import MANIFEST, Artifact, TensorSpec, sha256, write_tensors
from harness.errors import RunError, UnsupportedError
from harness.graph_reference import open_as_it_stands
from harness.modelspec import ModelSpec
from harness.references import failed

LOOKED_THROUGH = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
"""What a converter puts between two nodes of the model: drift is laid at the node before it."""
NARROW = ("FLOAT16", "BFLOAT16")
FLOATS = ("FLOAT", *NARROW)
AT_ONCE_BYTES = 1 << 29
"""Reference tensors that are held together while all of them are looked at."""
UNKNOWN_ELEMENTS = 1 << 20
"""What a tensor whose shape cannot be inferred is taken to hold."""


def survey(request: protocol.Survey) -> protocol.Surveyed:
    """Describe what two graphs have in common, and the reference's values.

    Raises:
        UnsupportedError: They share no tensor.
        ExportError: ONNX Runtime cannot run the float32 graph.
    """
    pair = _pair(request.source, request.graph)
    inputs = pair.source.input_set(request.input_set)
    compiled, reference = pair.compiled, pair.reference
    tensors = []
    deterministic = True
    for names in batches(pair.shared, reference):
        values, again = reference.run(names, inputs), reference.run(names, inputs)
        for name in names:
            deterministic &= np.array_equal(values[name], again[name], equal_nan=True)
            position = compiled.origin(name, reference.makers)
            node = compiled.nodes[position]
            tensors.append(_described(name, node, position, compiled.parents(name, set(pair.shared)), values[name]))
    if not tensors:
        raise UnsupportedError("the converted graph shares no tensor with the original: there is nothing to look at")
    return protocol.Surveyed(
        tensors=tensors,
        outputs=[name for name in compiled.outputs if name in pair.shared],
        nodes=len(compiled.nodes),
        deterministic=deterministic,
        closed=[f"{node.op_type} {node.name}".strip() for node in compiled.nodes if any(_subgraphs(node))],
    )


def list_narrow(request: protocol.ListNarrow) -> protocol.NarrowNodes:
    """List the nodes of a converted graph that compute in half precision or on quantised inputs."""
    graph = Graph(Artifact.open(Path(request.graph)).onnx_path)
    quantised = {name for node in graph.nodes if node.op_type == "DequantizeLinear" for name in node.output}
    names = Counter(node.name for node in graph.nodes)
    original = {node.name for node in Graph(Artifact.open(Path(request.source)).onnx_path).nodes}
    found = []
    nameless = 0
    for node in graph.nodes:
        if node.op_type in LOOKED_THROUGH and node.name not in original:
            continue
        half = any(graph.types.get(name) in NARROW for name in node.output if name in graph.varying)
        if half or any(name in quantised for name in node.input):
            known = bool(node.name) and names[node.name] == 1
            found += [(node.name, node.op_type)] if known else []
            nameless += not known
    return protocol.NarrowNodes(nodes=found, nameless=nameless)


def cut(request: protocol.Cut) -> protocol.WasCut:
    """Write an artifact: `model.onnx`, one set of inputs, its reference outputs, the manifest.

    Raises:
        RunError: A tensor is not there, or the part needs one that has no value.
        ExportError: ONNX Runtime cannot run the float32 graph.
    """
    pair = _pair(request.source, request.graph)
    folder = Path(request.folder)
    whole = [name for name in pair.compiled.outputs if name not in request.outputs] if request.whole else []
    outputs = [*whole, *request.outputs]
    own_inputs = pair.source.input_set(request.input_set)
    edge = [name for name in request.inputs if name not in pair.compiled.inputs]  # the graph's own are so already
    values = pair.reference.run([*outputs, *edge], own_inputs)
    part = pair.compiled.part(edge, outputs, {name: array.shape for name, array in values.items()})
    _bring_external_data(pair.graph.folder, folder, part)
    _write_model(part, folder / "model.onnx")
    given = {value.name: own_inputs.get(value.name, values.get(value.name)) for value in part.graph.input}
    if missing := [name for name, array in given.items() if array is None]:
        raise RunError(f"the part needs {', '.join(missing)}, which the reference does not give")
    fed = {name: array for name, array in given.items() if array is not None}
    write_tensors(folder / "inputs-0.safetensors", fed)
    write_tensors(folder / "reference-0.safetensors", {name: values[name] for name in outputs})
    manifest = msgspec.structs.replace(
        pair.graph.manifest,
        model=ModelSpec(kind="onnx", name=str(folder / "model.onnx")),
        module=False,
        golden=False,
        axes={},
        dynamic={},
        task="tensor",
        inputs=_specs(fed),
        outputs=_specs({value.name: values[value.name] for value in part.graph.output}),
        input_sets=1,
        files={path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()},
    )
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return protocol.WasCut(nodes=len(part.graph.node))


class Graph:
    """An ONNX graph by its tensors: who computes each, and from what."""

    def __init__(self, path: Path) -> None:
        import onnx

        self.model = onnx.load(path, load_external_data=False)
        self.nodes: list[Any] = list(self.model.graph.node)
        self.constants = {tensor.name for tensor in self.model.graph.initializer}
        self.inputs = [value.name for value in self.model.graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in self.model.graph.output]
        self.maker = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.makers = {node.name for node in self.nodes}
        self.types, self.shapes = _inferred(self.model)
        self.varying = self._varying()

    def _varying(self) -> set[str]:
        """Return the tensors that depend on an input: what a compiler cannot have computed already."""
        out = set(self.inputs)
        for node in self.nodes:
            if any(name in out for name in _read(node)):
                out.update(name for name in node.output if name)
        return out

    def parents(self, name: str, known: set[str]) -> list[str]:
        """Return the nearest of the known tensors, and graph inputs, that a tensor is computed from."""
        found: dict[str, None] = {}
        seen: set[str] = set()
        left = list(_read(self.nodes[self.maker[name]]))
        while left:
            one = left.pop(0)
            if one in seen:
                continue
            seen.add(one)
            if one in known or one in self.inputs:
                found[one] = None
            elif one in self.maker:
                left += _read(self.nodes[self.maker[one]])
        return list(found)

    def origin(self, name: str, original: set[str]) -> int:
        """Return the position of the node that computes a tensor, past what a converter put behind it."""
        position = self.maker[name]
        while True:
            node = self.nodes[position]
            source = node.input[0] if node.input else ""
            if node.op_type not in LOOKED_THROUGH or node.name in original or source not in self.maker:
                return position
            position = self.maker[source]

    def part(self, inputs: list[str], outputs: list[str], shapes: Mapping[str, tuple[int, ...]]) -> Any:  # a ModelProto
        """Return the nodes between some tensors and others as a model that takes and gives float32."""
        import onnx

        for name in [*inputs, *outputs]:
            if name not in self.maker and name not in self.inputs:
                raise RunError(f"the graph has no tensor '{name}'")
        kept, needed = self._between(inputs, outputs)
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        for field in (graph.node, graph.input, graph.output, graph.initializer, graph.value_info):
            del field[:]
        graph.node.extend(self.nodes[index] for index in kept)
        graph.initializer.extend(one for one in self.model.graph.initializer if one.name in needed)
        graph.input.extend(one for one in self.model.graph.input if one.name in needed and one.name not in inputs)
        graph.output.extend(one for one in self.model.graph.output if one.name in outputs)
        for name in inputs:
            self._open_input(model, name, shapes[name])
        for name in outputs:
            if name not in self.outputs:
                self._open_output(model, name, shapes[name])
        return model

    def _between(self, inputs: list[str], outputs: list[str]) -> tuple[list[int], set[str]]:
        kept: set[int] = set()
        needed: set[str] = set()
        left = list(outputs)
        while left:
            name = left.pop()
            if name in needed:
                continue
            needed.add(name)
            if name in self.maker and name not in inputs and self.maker[name] not in kept:
                kept.add(self.maker[name])
                left += _read(self.nodes[self.maker[name]])
        return sorted(kept), needed

    def _open_input(self, model: Any, name: str, shape: tuple[int, ...]) -> None:
        from onnx import TensorProto, helper

        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        if self.types[name] in NARROW:
            inner = f"{name}__narrow"
            _rename(model.graph, name, inner)
            kind = getattr(TensorProto, self.types[name])
            model.graph.node.insert(0, helper.make_node("Cast", [name], [inner], name=f"{name}__narrowed", to=kind))

    def _open_output(self, model: Any, name: str, shape: tuple[int, ...]) -> None:
        from onnx import TensorProto, helper

        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        if self.types[name] in NARROW:
            inner = f"{name}__narrow"
            _rename(model.graph, name, inner)
            model.graph.node.append(
                helper.make_node("Cast", [inner], [name], name=f"{name}__widened", to=TensorProto.FLOAT)
            )


class Reference(Graph):
    """The float32 graph with every tensor in reach."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact.onnx_path)
        self.watched = [name for name in self.maker if name in self.varying and self.types.get(name) in (None, "FLOAT")]
        self._session = self._open(artifact)

    def _open(self, artifact: Artifact) -> Any:
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.watched if name not in self.outputs)
        with tempfile.TemporaryDirectory() as scratch:
            _bring_external_data(artifact.folder, Path(scratch), model)
            path = Path(scratch) / "model.onnx"
            _write_model(model, path)
            session = open_as_it_stands(path, threads=0, what="ONNX Runtime cannot load the graph as it stands")
        # What inference over the file could not tell, ONNX Runtime knows.
        floats = {output.name for output in session.get_outputs() if output.type == "tensor(float)"}
        self.types |= dict.fromkeys(floats, "FLOAT")
        self.watched = [name for name in self.watched if name in floats]
        return session

    def run(self, names: list[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the values of tensors for a set of inputs."""
        if not names:
            return {}
        try:
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        except Exception as exc:  # ONNX Runtime raises many kinds; all mean that the graph does not run
            raise failed("ONNX Runtime cannot run the graph as it stands", exc) from exc


class _Pair:
    """The float32 graph and the one that is compiled."""

    def __init__(self, source: str, graph: str) -> None:
        self.source, self.graph = Artifact.open(Path(source)), Artifact.open(Path(graph))
        self.reference = Reference(self.source)
        self.compiled = self.reference if source == graph else Graph(self.graph.onnx_path)
        known = set(self.reference.watched) | set(self.reference.outputs)
        self.shared = [name for name in self.compiled.maker if name in known and self._alike(name)]

    def _alike(self, name: str) -> bool:
        if name in self.reference.outputs:
            return True  # also where it holds whole numbers
        if name not in self.compiled.varying or self.compiled.types.get(name) not in FLOATS:
            return False
        if self.compiled is self.reference:
            return True
        # A graph that was exported anew may use a name for something else.
        theirs = self.compiled.nodes[self.compiled.origin(name, self.reference.makers)].op_type
        ours = self.reference.nodes[self.reference.maker[name]].op_type
        sizes = {self.compiled.shapes.get(name), self.reference.shapes.get(name)}
        return theirs == ours and (None in sizes or len(sizes) == 1)


@functools.lru_cache(maxsize=2)
def _pair(source: str, graph: str) -> _Pair:
    # One worker serves all cuts of a search: the reference is loaded once.
    return _Pair(source, graph)


def _described(name: str, node: Any, position: int, parents: list[str], value: np.ndarray) -> protocol.SharedTensor:
    floating = np.issubdtype(value.dtype, np.floating)
    finite = value[np.isfinite(value)] if floating else value
    return protocol.SharedTensor(
        name=name,
        node=node.name,
        op=node.op_type,
        position=position,
        parents=parents,
        shape=list(value.shape),
        low=float(finite.min()) if finite.size else None,
        high=float(finite.max()) if finite.size else None,
        nan_count=int(np.isnan(value).sum()) if floating else 0,
        inf_count=int(np.isinf(value).sum()) if floating else 0,
    )


def batches(names: list[str], reference: Reference) -> Iterator[list[str]]:
    """Part tensors so that the values of each part fit in memory together."""
    batch: list[str] = []
    size = 0
    for name in names:
        needed = 2 * 4 * math.prod(reference.shapes.get(name) or (UNKNOWN_ELEMENTS,))  # float32, run twice
        if batch and size + needed > AT_ONCE_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += needed
    if batch:
        yield batch


def _inferred(model: Any) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Return the element types and the shapes of the tensors of which inference over the file can tell them."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # a converter may have left stale ones
    try:
        inferred = onnx.shape_inference.infer_shapes(bare).graph
    except Exception:  # an operator of the user's own, or a graph that protobuf cannot copy: less is known then
        inferred = model.graph
    name_of = onnx.TensorProto.DataType.Name
    types = {tensor.name: name_of(tensor.data_type) for tensor in inferred.initializer}
    shapes = {}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        kind = value.type.tensor_type
        if kind.elem_type:
            types[value.name] = name_of(kind.elem_type)
        if kind.HasField("shape") and all(size.HasField("dim_value") for size in kind.shape.dim):
            shapes[value.name] = tuple(size.dim_value for size in kind.shape.dim)
    return types, shapes


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _read(node: Any) -> list[str]:
    """Return the tensors that a node reads, those that its own graphs take from outside among them."""
    names = [name for name in node.input if name]
    for graph in _subgraphs(node):
        inside = {value.name for value in [*graph.input, *graph.initializer]}
        for one in graph.node:
            names += [name for name in _read(one) if name not in inside]
            inside.update(one.output)
        names += [value.name for value in graph.output if value.name not in inside]
    return names


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                if name == old:
                    field[index] = new
        for inner in _subgraphs(node):
            _rename(inner, old, new)


def _external(tensors: Iterable[Any]) -> Iterator[str]:
    for tensor in tensors:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")


def _bring_external_data(source: Path, target: Path, model: Any) -> None:
    # Copies: onnx refuses data behind a link of either kind.
    for place in dict.fromkeys(_external(model.graph.initializer)):
        shutil.copyfile(source / place, target / place)


def _write_model(model: Any, path: Path) -> None:
    path.write_bytes(model.SerializeToString())


def _specs(tensors: Mapping[str, np.ndarray]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, dtype=str(array.dtype), shape=tuple(array.shape)) for name, array in tensors.items()
    )
