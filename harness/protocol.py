"""What crosses the border between the parent and a worker: JSON lines, one message each way at a time.

The parent sends a request and reads messages until a `Done` or a `Failed`; any number of `Progress` may come
before it. Tensors do not travel: they lie in files.
"""

from __future__ import annotations

import msgspec

from harness.measure import Boundary
from harness.modelspec import ModelSpec

Scalar = str | int | float | bool | None


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag=lambda name: name.lower()):
    """Base of all requests; the field `do` names the class."""


class CaseSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A case as a worker needs it."""

    backend: str
    options: dict[str, Scalar]
    artifact: str
    """Folder of what is compiled."""
    fed_by: str | None = None
    """Folder of the artifact whose inputs a dynamic engine gets; None: those of `artifact`."""
    device: str
    target: str | None = None
    """Compute capability to build for without running."""
    precision: str
    threads: int
    build: int = 0
    """Which of the independent builds of a case it is."""
    engine_dir: str
    cache_dir: str


class Probe(Request, frozen=True, kw_only=True):
    """Ask a backend whether it works here."""

    backend: str


class Export(Request, frozen=True, kw_only=True):
    """Build a model and write everything of an artifact but the manifest into `folder`."""

    model: ModelSpec
    dims: dict[str, int]
    """What the user set; the model knows the rest."""
    shapes: dict[str, list[int]] = {}
    """Input -> shape, as the user set it: another way to give the sizes of free dimensions."""
    dynamic: dict[str, tuple[int, int]] = {}
    """Dimensions that stay free in the ONNX graph; `dims` then holds their largest sizes."""
    weights: str
    """`seeded`, `pretrained`, `own` or the path of a file."""
    inputs: str | None = None
    """The user's own inputs: an .npz file or a folder."""
    seed: int
    opset: int
    input_sets: int
    threads: int
    folder: str


class Check(Request, frozen=True, kw_only=True):
    """Run an exported ONNX file without graph optimisation and compare with the reference beside it."""

    folder: str
    input_sets: int


class Convert(Request, frozen=True, kw_only=True):
    """Write an artifact's graph in another precision into `folder`."""

    artifact: str
    """Folder of the source."""
    precision: str
    calibration: str | None = None
    """The user's own calibration inputs; None: drawn."""
    samples: int
    method: str
    weights: str
    """As in `Export`: some models tell their inputs only once they are built."""
    folder: str


class Import(Request, frozen=True, kw_only=True):
    """Import the backend's modules, timed, then probe it."""

    backend: str


class Compile(Request, frozen=True, kw_only=True):
    """Compile cold."""

    case: CaseSpec


class Load(Request, frozen=True, kw_only=True):
    """Load the saved engine."""

    case: CaseSpec


class RunOnce(Request, frozen=True, kw_only=True):
    """Bind input set 0 where nothing is bound yet, and time one iteration."""


class Outputs(Request, frozen=True, kw_only=True):
    """Run input set `index` and write its outputs to `path`."""

    index: int
    path: str


class Save(Request, frozen=True, kw_only=True):
    """Save the engine, timed."""


class WarmUp(Request, frozen=True, kw_only=True):
    """Run until the latency is settled."""


class Sample(Request, frozen=True, kw_only=True):
    """Take a slice of samples."""

    boundary: Boundary
    min_iterations: int
    min_seconds: float


AnyRequest = Probe | Export | Check | Convert | Import | Compile | Load | RunOnce | Outputs | Save | WarmUp | Sample


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Probe`, and part of the answer to `Import`."""

    available: bool
    versions: dict[str, str] = {}
    devices: list[str] = []
    reason: str | None = None
    hint: str | None = None


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Export`: what the manifest needs to know. Specs are (name, dtype, shape)."""

    inputs: list[tuple[str, str, list[int]]]
    outputs: list[tuple[str, str, list[int]]]
    input_sets: int
    dims: dict[str, int]
    axes: dict[str, dict[int, str]] = {}
    module: bool
    reference: str
    weights: str
    weights_sha256: str | None = None
    weights_bytes: int
    gflop: float | None = None
    parameters: int
    opset: int
    task: str
    deterministic: bool
    golden: bool
    export_s: float
    onnx_max_abs: float | None = None
    """Known already where the graph itself is the reference."""
    versions: dict[str, str]
    sources: list[str] = []
    """The user's files that went into it."""
    notes: list[str] = []


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Check`; `max_abs` is None where nothing here can run ONNX files."""

    max_abs: float | None


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Convert`."""

    opset: int
    seconds: float
    notes: list[str] = []
    versions: dict[str, str] = {}


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Import`."""

    import_s: float
    probed: Probed


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Compile` and `Load`. `seconds` holds the whole call under `total` and each marked stage."""

    seconds: dict[str, float]
    provider: str
    runnable: bool
    facts: dict[str, Scalar]
    notes: list[str]
    placement: dict[str, int] | None = None
    """Device kind -> nodes or layers that run there; None where the framework cannot say."""
    on_stream: bool = False
    """Whether the session enqueues on a CUDA stream, so that the harness can time the device itself."""


class Took(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `RunOnce` and `Save`."""

    seconds: float


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Outputs`: the file is there."""


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `WarmUp` and `Sample`."""

    durations_ns: list[int]
    enqueue_ns: list[int] = []
    """At the boundary `device`: how long `execute()` kept the host, one an iteration."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", tag=lambda name: name.lower()):
    """Base of what a worker sends."""


class Progress(Message, frozen=True, kw_only=True):
    """A sign of life from a long step."""

    text: str
    done: int | None = None
    total: int | None = None


class Done(Message, frozen=True, kw_only=True):
    """The step succeeded; `value` is the answer that belongs to the request."""

    value: msgspec.Raw


class Failed(Message, frozen=True, kw_only=True):
    """The step failed; the worker lives on."""

    status: str
    message: str
    hint: str | None = None
    traceback: str = ""
    usage: bool = False
    """Whether the user asked for something that cannot be: it ends the command, not the case."""


AnyMessage = Progress | Done | Failed
