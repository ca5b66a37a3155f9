"""What crosses the border between the parent and a worker: JSON lines, one message each way at a time.

The parent sends a request and reads messages until a `Done` or a `Failed`; any number of `Progress` may come
before it. Tensors do not travel: they lie in files.
"""

from __future__ import annotations

import msgspec

from harness.measure import Boundary
from harness.modelspec import ModelSpec
from harness.operators import Node
from harness.operators import Profile as OwnProfile
from harness.precisions import Source

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
    threads: int


class Convert(Request, frozen=True, kw_only=True):
    """Write an artifact's graph in another precision into `folder`."""

    artifact: str
    """Folder of the source."""
    precision: str
    source: Source = "onnx"
    """What is to be converted: the graph, or the torch module."""
    calibration: str | None = None
    """The user's own calibration inputs; None: drawn."""
    samples: int
    method: str
    weights: str
    """As in `Export`: some models tell their inputs only once they are built."""
    keep: list[str] = []
    """Names of nodes that stay in float32."""
    ranges: str | None = None
    """File of ranges that an earlier calibration found, or where to leave them for the next."""
    folder: str


class Lower(Request, frozen=True, kw_only=True):
    """Write an artifact's graph for a library that reads no newer opset and file format into `folder`."""

    artifact: str
    opset: int
    ir: int
    folder: str


class Survey(Request, frozen=True, kw_only=True):
    """Describe the tensors that an artifact's graph and its form in another precision have in common."""

    source: str
    """Folder of the artifact that holds the float32 graph and the inputs."""
    graph: str
    """Folder of the graph that a backend compiles; it may be the same."""
    input_set: int


class ListNarrow(Request, frozen=True, kw_only=True):
    """List the nodes that a converted graph does not compute in float32."""

    source: str
    graph: str


class Cut(Request, frozen=True, kw_only=True):
    """Write a part of a graph as an artifact of its own, with float32 inputs and reference outputs."""

    source: str
    graph: str
    input_set: int
    inputs: list[str] = []
    """Tensors at which the graph is cut off: they become inputs and get the reference's values."""
    outputs: list[str]
    whole: bool = False
    """Keep the graph's own outputs beside `outputs`, and all that they need."""
    folder: str


class Screen(Request, frozen=True, kw_only=True):
    """Read the samples of a labelled data set once, without running anything."""

    dataset: str
    artifact: str
    """Folder of the artifact whose inputs they become."""
    most: int


class Evaluate(Request, frozen=True, kw_only=True):
    """Run samples of a labelled data set through the loaded session and write its answers to `path`."""

    dataset: str
    samples: list[int]
    path: str


class Rates(Request, frozen=True, kw_only=True):
    """Measure how fast a device multiplies matrices and moves memory."""

    device: str
    precisions: list[str]
    threads: int
    memory: bool = True


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


class Profile(Request, frozen=True, kw_only=True):
    """Run under the backend's own profiler, on bound inputs."""

    iterations: int


AnyRequest = (
    Probe
    | Export
    | Check
    | Convert
    | Lower
    | Survey
    | Screen
    | Evaluate
    | ListNarrow
    | Cut
    | Rates
    | Import
    | Compile
    | Load
    | RunOnce
    | Outputs
    | Save
    | WarmUp
    | Sample
    | Profile
)


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
    least_bytes: int | None = None
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


class Rated(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Rates`."""

    matrix: dict[str, float]
    """Precision -> operations a second."""
    memory: list[tuple[int, float]]
    """Working set in bytes -> bytes a second; empty where it was not asked for."""
    refused: dict[str, str]
    """Precision -> why the device does not multiply in it."""
    device_name: str | None = None
    """The GPU's; None on a CPU."""
    version: str
    """torch's."""


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Convert`."""

    opset: int
    seconds: float
    notes: list[str] = []
    versions: dict[str, str] = {}


class Lowered(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Lower`: what the graph is in now."""

    opset: int
    ir: int


class SharedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A floating-point tensor that both graphs compute under one name, and what the reference says of it."""

    name: str
    node: str
    """Name of the node that computes it in the compiled graph; a cast or a quantisation is looked through."""
    op: str
    position: int
    """Of that node among all, in the order of the file."""
    parents: list[str]
    """The nearest such tensors, and inputs of the graph, that it is computed from."""
    shape: list[int]
    low: float | None
    """Smallest and largest finite value, None where there is none."""
    high: float | None
    nan_count: int
    inf_count: int


class Surveyed(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Survey`: tensors in topological order, the graph's own outputs among them."""

    tensors: list[SharedTensor]
    outputs: list[str]
    nodes: int
    deterministic: bool
    """Whether two runs of the reference agreed in every tensor."""
    closed: list[str]
    """Nodes that hold graphs of their own, such as loops, which are not looked into."""


class NarrowNodes(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `ListNarrow`: names and operators in the order of the file."""

    nodes: list[tuple[str, str]]
    nameless: int
    """Such nodes without a name, which cannot be kept in float32 by it."""


class WasCut(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Cut`: the artifact is written."""

    nodes: int


class Screened(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Screen`."""

    sound: list[int]
    broken: dict[int, str]
    """Sample -> what is wrong with it."""


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
    """Answer to `Outputs` and `Evaluate`: the file is there."""


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `WarmUp` and `Sample`."""

    durations_ns: list[int]
    enqueue_ns: list[int] = []
    """At the boundary `device`: how long `execute()` kept the host, one an iteration."""
    compilations: int = 0
    """Of `Sample`: how often the session compiled meanwhile, which no steady session does."""


class Profiled(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `Profile`."""

    profile: OwnProfile
    durations_ns: list[int]
    """One an iteration, by the harness' clock, with the profiler at work."""
    nodes: list[Node]
    """Of the graph that was compiled; empty where onnx, which reads it, is not installed."""


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
