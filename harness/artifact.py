"""The artifact: one exported model with weights, inputs and reference outputs, read by every backend.

An artifact is a folder. Its manifest is written last, so a folder without one is an export that did not
finish. All tensors are safetensors files: no pickle crosses a process border.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from harness.errors import RunError, StoreError, UnsupportedError
from harness.modelspec import ModelSpec

if TYPE_CHECKING:
    import numpy as np

MANIFEST = "artifact.json"
PROGRAM = "quantised.pt2"
"""The torch module in int8, in the artifact that was made for backends that compile torch modules."""
SCHEMA = 2


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Name, dtype (numpy's name) and shape of one input or output."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an artifact holds and how it was made."""

    schema: int = SCHEMA
    model: ModelSpec
    dims: dict[str, int]
    """Sizes of all free dimensions."""
    axes: dict[str, dict[int, str]] = {}
    """Input -> axis -> the name of its free dimension."""
    dynamic: dict[str, tuple[int, int]] = {}
    """Dimensions that the ONNX graph leaves free, and their smallest and largest sizes; else the graph is static."""
    module: bool = True
    """Whether there is a torch module; without one there is an ONNX graph only."""
    reference: str = ""
    """What gave the reference outputs."""
    weights: str
    """`seeded`, or where they came from."""
    weights_sha256: str | None = None
    seed: int
    opset: int
    precision: str = "fp32"
    task: str = "tensor"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_sets: int
    parameters: int
    gflop: float | None = None
    """Floating-point operations of one forward pass in 1e9, counted by torch, or in the graph if it has no module."""
    least_bytes: int | None = None
    """What one forward pass must move from and to memory; see `harness.graph_cost`."""
    weights_bytes: int
    """Of all parameters and buffers, or of all initialisers of an ONNX file."""
    deterministic: bool
    """Whether the reference gave bit-identical outputs when run twice."""
    golden: bool
    """Whether a float64 run of the same module is stored beside the float32 reference."""
    export_s: float
    onnx_max_abs: float | None
    """Largest absolute difference between the unoptimised ONNX graph's result and eager's; None where unchecked."""
    versions: dict[str, str]
    notes: list[str] = []
    """What a report must say of it, such as how a default was chosen."""
    sources: dict[str, str] = {}
    """Absolute path -> sha256 of the user's files that went into it: when one changes, it is made again."""
    files: dict[str, str]
    """File name -> sha256, of everything but the manifest."""


class Artifact:
    """Read access to an artifact's folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Artifact:
        """Open an artifact; with `verify` also check every file against its hash.

        Raises:
            StoreError: The manifest or a file is missing, damaged or from a newer version.
        """
        try:
            manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        except FileNotFoundError as exc:
            raise StoreError(f"no finished export in {folder}", hint="harness cache clear --exports") from exc
        except (msgspec.DecodeError, OSError) as exc:
            raise StoreError(
                f"the manifest of the export in {folder} cannot be read: {exc}", hint="harness cache clear --exports"
            ) from exc
        if manifest.schema != SCHEMA:
            raise StoreError(
                f"the export in {folder} has schema {manifest.schema}; this harness reads {SCHEMA}",
                hint="update harness, or harness cache clear --exports",
            )
        for name, digest in manifest.files.items():
            path = folder / name
            if not path.is_file() or (verify and sha256(path) != digest):
                raise StoreError(f"{path} is missing or damaged", hint="harness cache clear --exports")
        return cls(folder, manifest)

    @property
    def hash(self) -> str:
        """Content hash: equal for two artifacts whose files are equal."""
        return hashlib.sha256(msgspec.json.encode(sorted(self.manifest.files.items()))).hexdigest()

    @property
    def onnx_path(self) -> Path:
        """The ONNX file; large weights lie beside it as external data."""
        return self.folder / "model.onnx"

    @property
    def weights_path(self) -> Path:
        """The module's whole state dict as safetensors."""
        return self.folder / "weights.safetensors"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input specs in the order of the module's arguments."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output specs in the order in which the module returns them."""
        return self.manifest.outputs

    def check_inputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return inputs in argument order after holding them against the specs: what `Session.bind()` starts with.

        Raises:
            RunError: A name, shape or dtype does not fit; the message says what was expected.
        """
        expected = {spec.name: spec for spec in self.inputs}
        if set(inputs) != set(expected):
            raise RunError(f"expected inputs {sorted(expected)}, got {sorted(inputs)}")
        for name, spec in expected.items():
            array = inputs[name]
            if (str(array.dtype), tuple(array.shape)) != (spec.dtype, spec.shape):
                want, got = f"{spec.dtype}{list(spec.shape)}", f"{array.dtype}{list(array.shape)}"
                raise RunError(f"input '{name}': expected {want}, got {got}")
        return {name: inputs[name] for name in expected}

    def input_set(self, index: int) -> dict[str, np.ndarray]:
        """Return input set `index` in argument order."""
        tensors = read_tensors(self.folder / f"inputs-{index}.safetensors")
        return {spec.name: tensors[spec.name] for spec in self.inputs}

    def reference(self, index: int) -> dict[str, np.ndarray]:
        """Return eager's float32 outputs for input set `index`."""
        return read_tensors(self.folder / f"reference-{index}.safetensors")

    def golden(self, index: int) -> dict[str, np.ndarray] | None:
        """Return the float64 outputs for input set `index`, where they fitted."""
        if not self.manifest.golden:
            return None
        return read_tensors(self.folder / f"golden-{index}.safetensors")

    def fed_by(self, other: Artifact) -> Artifact:
        """Return this artifact's graph and weights with the inputs and references of another: a point of a sweep."""
        return _Fed(self, other)

    def module(self) -> object:
        """Rebuild the torch module with the artifact's weights, in eval mode. Imports torch.

        Raises:
            UnsupportedError: There is none: the model is an ONNX file.
            ExportError: It is a quantised one, and damaged.
        """
        if PROGRAM in self.manifest.files:
            from harness import torch_quantising

            return torch_quantising.restore(self.folder / PROGRAM)
        if not self.manifest.module:
            raise UnsupportedError("needs a torch module, and this model is an ONNX file")
        from harness.weights import restore

        return restore(self)


class _Fed(Artifact):
    """One artifact's graph under another one's tensors."""

    def __init__(self, graph: Artifact, tensors: Artifact) -> None:
        taken = ("inputs", "outputs", "input_sets", "golden", "deterministic", "dims")
        changes = {name: getattr(tensors.manifest, name) for name in taken}
        super().__init__(graph.folder, msgspec.structs.replace(graph.manifest, **changes))
        self._tensors = tensors

    def input_set(self, index: int) -> dict[str, np.ndarray]:
        return self._tensors.input_set(index)

    def reference(self, index: int) -> dict[str, np.ndarray]:
        return self._tensors.reference(index)

    def golden(self, index: int) -> dict[str, np.ndarray] | None:
        return self._tensors.golden(index)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file.

    Raises:
        StoreError: The file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as exc:
        raise StoreError(f"{path} cannot be read: {exc}") from exc


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a safetensors file from C-contiguous copies of the arrays."""
    import numpy as np
    from safetensors.numpy import save_file

    # Not `ascontiguousarray`: it makes a scalar an array of one element.
    save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, path)


def sha256(path: Path) -> str:
    """Return the hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
