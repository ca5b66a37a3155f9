"""The user's own ONNX file: its inputs and free dimensions, and writing it with its shapes fixed.

Free dimensions are named as the file names them (`dim_param`); one without a name is called `<input>_<axis>`. Those of
axis 0 that are named like a batch, or not at all, are all called `batch`. A name that is a formula over others
(`past + 1`) follows from them.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from harness.api import GraphModel, InputSpec
from harness.errors import ExportError
from harness.modelspec import BATCH, ModelSpec

if TYPE_CHECKING:
    import onnx

SHAPE_INFERENCE_BYTES = 1 << 30
"""Above this the graph, its weights inside it, is not copied once more to infer shapes: protobuf ends at 2 GiB."""
BATCH_NAMES = frozenset({"b", "bs", "n", "batch", "batchsize", "batchdim", "nbatch", "numbatch", "none", "?", ""})
TAKEN = ("FLOAT", "DOUBLE", "FLOAT16", "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
"""Types of inputs that numpy has; the rest (bfloat16, 8-bit floats, 4-bit integers, strings) cannot be drawn."""


class OnnxFile(GraphModel):
    """A graph as a user brings it. Read when it is first asked about."""

    def __init__(self, spec: ModelSpec) -> None:
        self._path = Path(spec.name)

    @functools.cached_property
    def _graph(self) -> onnx.ModelProto:
        return _read(self._path)

    @functools.cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        specs = [_spec(value, self._path) for value in _fed(self._graph)]
        batch = {spec.shape[0] for spec in specs if spec.shape and _like_a_batch(spec)}
        return tuple(_renamed(spec, {name: BATCH for name in batch if isinstance(name, str)}) for spec in specs)

    @property
    def dims(self) -> dict[str, int]:
        """Sizes that need not be set: a batch of 1, where nothing else is free on any input's first axis."""
        first = {spec.shape[0] for spec in self.inputs if spec.shape and isinstance(spec.shape[0], str)}
        return {BATCH: 1} if first == {BATCH} else {}

    @property
    def notes(self) -> list[str]:
        """What a reader of the report should know about how the file was taken."""
        out = []
        original = {
            str(_size(dim, value.name, 0))
            for value in _fed(self._graph)
            for dim in value.type.tensor_type.shape.dim[:1]
            if not isinstance(_size(dim, value.name, 0), int)
        }
        if self.dims and original != {BATCH}:
            out.append(f"the free first axis ({', '.join(sorted(original))}) is taken for the batch: --batch sets it")
        if any(spec.dtype.startswith(("int", "uint")) for spec in self.inputs):
            out.append("integer inputs are drawn from {0, 1}: give real ones with --inputs")
        return out

    @property
    def sources(self) -> list[str]:
        """The file and its external data."""
        return [str(self._path), *(str(self._path.parent / place) for place in _places(self._graph))]

    def write(self, path: Path, dims: Mapping[str, int], dynamic: Mapping[str, tuple[int, int]]) -> None:
        import onnx

        graph = onnx.ModelProto()
        graph.CopyFrom(self._graph)
        self._bring_external_data(graph, path.parent)
        constants = {tensor.name for tensor in graph.graph.initializer}
        fed = _fed(graph)
        if len(fed) != len(graph.graph.input):
            # Until IR version 4 every initialiser was also an input, one that nobody could take for a constant.
            kept = [value for value in graph.graph.input if value.name not in constants]
            del graph.graph.input[:]
            graph.graph.input.extend(kept)
            graph.ir_version = max(graph.ir_version, 4)
        if any(isinstance(size, str) for spec in self.inputs for size in spec.shape):
            for value, spec in zip(graph.graph.input, self.inputs, strict=True):
                _fix(value, spec, dims, dynamic)
            graph = _inferred(graph)
        onnx.save(graph, path)

    def _bring_external_data(self, graph: onnx.ModelProto, folder: Path) -> None:
        """Put external data beside the new file, under flat names; the graph is told so."""
        names: dict[str, str] = {}
        for tensor in _external(graph):
            for entry in tensor.external_data:
                if entry.key == "location":
                    place = entry.value
                    if place not in names:
                        names[place] = f"model.onnx.data-{len(names)}"
                        shutil.copyfile(self._path.parent / place, folder / names[place])
                    entry.value = names[place]


def _read(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as exc:
        raise ExportError(f"{path} cannot be read: {exc.strerror}") from exc
    except Exception as exc:  # protobuf's own error, which is not typed
        raise ExportError(f"{path} is not an ONNX file, or is cut short: {exc}", hint="get the file again") from exc
    if not model.ir_version or not model.graph.output or not model.opset_import:
        raise ExportError(f"{path} is not an ONNX file, or is cut short: it has no graph", hint="get the file again")
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise ExportError(
                f"{path.name} is written in opset {entry.version}; onnx {onnx.__version__} knows up to {newest}",
                hint="pip install --upgrade onnx onnxruntime, or export the model at an older opset",
            )
    for place in _places(model):
        _check_external(model, path, place)
    return model


def _check_external(model: onnx.ModelProto, path: Path, place: str) -> None:
    pure = PurePosixPath(place.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or not place:
        raise ExportError(f"{path.name} wants external data at '{place}', outside its own folder: refused")
    file = path.parent / place
    if not file.is_file():
        raise ExportError(
            f"{path.name} keeps weights in '{place}', and {file} does not exist",
            hint="put the file beside the ONNX file, under that name",
        )
    size = file.stat().st_size
    for tensor in _external(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        end = int(entries.get("offset") or 0) + int(entries.get("length") or 0)
        if entries.get("location") == place and end > size:
            raise ExportError(
                f"{file} is cut short: '{tensor.name}' ends at byte {end}, the file has {size}",
                hint="get the file again",
            )


# ---- graphs


def _fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller must give."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _external(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    import onnx

    for graph in _graphs(model.graph):
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        tensors = (tensor for attribute in attributes for tensor in (attribute.t, *attribute.tensors))
        for tensor in (*graph.initializer, *tensors):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield tensor


def _places(model: onnx.ModelProto) -> list[str]:
    found = (entry.value for tensor in _external(model) for entry in tensor.external_data if entry.key == "location")
    return list(dict.fromkeys(found))


def _spec(value: onnx.ValueInfoProto, path: Path) -> InputSpec:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = (kind or "value without a type").removesuffix("_type")
        raise ExportError(f"input '{value.name}' of {path.name} is a {what}, not a tensor")
    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if name not in TAKEN:
        raise ExportError(
            f"input '{value.name}' of {path.name} is {name.lower()}, which cannot be fed", hint="cast it in the graph"
        )
    if not tensor.HasField("shape"):
        raise ExportError(
            f"input '{value.name}' of {path.name} has no shape, not even a number of axes",
            hint="write one into the file: onnx.tools.update_model_dims.update_inputs_outputs_dims",
        )
    shape = tuple(_size(dim, value.name, axis) for axis, dim in enumerate(tensor.shape.dim))
    return InputSpec(name=value.name, dtype=str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape=shape)


def _size(dim: onnx.TensorShapeProto.Dimension, name: str, axis: int) -> int | str:
    # Some exporters write 0 or -1 for "any size".
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    return str(dim.dim_param).strip() or f"{name}_{axis}"


def _like_a_batch(spec: InputSpec) -> bool:
    first = spec.shape[0]
    if not isinstance(first, str):
        return False
    plain = first.lower().replace("_", "").replace("-", "").replace(" ", "")
    return plain in BATCH_NAMES or "batch" in plain or first.startswith("unk__") or first == f"{spec.name}_0"


def _renamed(spec: InputSpec, names: Mapping[str, str]) -> InputSpec:
    shape = tuple(names.get(size, size) if isinstance(size, str) else size for size in spec.shape)
    return InputSpec(name=spec.name, dtype=spec.dtype, shape=shape)


# ---- shapes


def _fix(
    value: onnx.ValueInfoProto,
    spec: InputSpec,
    dims: Mapping[str, int],
    dynamic: Mapping[str, tuple[int, int]],
) -> None:
    for dim, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
        if isinstance(size, int):
            continue
        dim.Clear()
        if set(re.findall(r"\w+", size)) & set(dynamic):  # one of them, or a formula over them such as `past + 1`
            dim.dim_param = size
        else:
            dim.dim_value = dims[size]


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the shapes of all values inferred from its inputs' anew."""
    import onnx

    before = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in model.graph.output]
    for graph in _graphs(model.graph):
        del graph.value_info[:]
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    if model.ByteSize() <= SHAPE_INFERENCE_BYTES:
        with suppress(Exception):  # the shapes are a help to compilers, and some operators have no inference
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value, old in zip(model.graph.output, before, strict=True):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            # A valid file states the number of axes of its outputs: sizes that are fixed are kept, others unknown.
            value.CopyFrom(old)
            for dim in value.type.tensor_type.shape.dim:
                dim.ClearField("dim_param")
    return model
