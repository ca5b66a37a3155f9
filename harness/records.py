"""What a run leaves behind: frozen records, raw samples included. Statistics are derived on reading.

`run.json` is one `Run`. Times are durations: `_s` in seconds, `_ns` in nanoseconds. Sizes are bytes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from harness.accuracy import Accuracy as Accuracy
from harness.accuracy import Agreement as Agreement
from harness.accuracy import Failure as Failure
from harness.accuracy import Paired as Paired
from harness.interpreter import Interpreter
from harness.measure import Boundary
from harness.modelspec import ModelSpec

SCHEMA = 2

Status = Literal[
    "ok",
    "drifted",
    "compiled",
    "fallback",
    "unavailable",
    "unsupported",
    "export_failed",
    "compile_failed",
    "run_failed",
    "out_of_memory",
    "timeout",
    "crashed",
    "interrupted",
]
Scalar = str | int | float | bool | None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records: frozen, keyword-only."""


class OutputDrift(Record, frozen=True, kw_only=True):
    """Distance of one output of one input set from the reference; see `harness.drift` for the formulas.

    A number is None where it does not exist: nothing could be compared, the reference is zero, or an exact match has
    no finite signal-to-noise ratio. JSON has neither NaN nor infinity.
    """

    output: str
    input_set: int
    elements: int
    """Elements that were compared: those finite in both."""
    max_abs: float | None = None
    max_rel: float | None = None
    """Largest error relative to |reference| + rms(reference)."""
    rmse: float | None = None
    relative_l2: float | None = None
    cosine: float | None = None
    snr_db: float | None = None
    nan_count: int = 0
    inf_count: int = 0
    within_tolerance: bool = False
    """Whether `max_rel` is within the precision's tolerance."""
    rmse_limit: float | None = None
    """The RMSE to golden that this output was allowed."""
    rmse_golden: float | None = None
    """RMSE to the float64 golden value, or to the float32 reference where there is none."""
    passed: bool
    reason: str = ""
    """Why it did not pass: what was expected and what was found."""
    top1_agreement: float | None = None
    top5_agreement: float | None = None


EnergySource = Literal["counter", "power"]
"""The card's energy counter, or the mean of readings of its power: the counter is too coarse for a short window."""
MemorySource = Literal["process", "device"]
"""The driver's list of processes; or how much more of the card was in use, where a process is not in that list."""


class GpuWindow(Record, frozen=True, kw_only=True):
    """What a GPU did while a window was sampled on it. None where the card or its driver does not say."""

    readings: int
    """Taken inside the window; there are two more, at its ends."""
    sm_mhz: float | None = None
    """Median, as `memory_mhz`."""
    sm_mhz_low: int | None = None
    sm_mhz_high: int | None = None
    memory_mhz: float | None = None
    temperature_c: int | None = None
    """The highest."""
    power_w: float | None = None
    """Mean, of the whole card."""
    energy_mj: float | None = None
    """Of all iterations of the window: mean power times their durations. The card's idle power is in it."""
    energy_by: EnergySource | None = None
    slowed_ns: dict[str, int] | None = None
    """Cause -> how long it lowered the clocks, for the causes that this card counts; see `harness.gpu.SLOWDOWNS`."""
    slowdowns: list[str] | None = None
    """Causes that lowered the clocks, by the counters or in a reading."""
    p_state: int | None = None
    """At the end; 0 is the fastest."""
    pcie_generation: int | None = None
    pcie_width: int | None = None
    used_bytes: int | None = None
    """Largest device memory in use, by whomever."""
    strangers: dict[int, int | None] | None = None
    """Processes on the card that are not of this run: id as the driver knows it -> device memory in bytes."""
    marks: list[str] = []
    """What disturbed this window, in a report's words. Verdicts rest on windows without any."""


class DeviceMemory(Record, frozen=True, kw_only=True):
    """Device memory of one worker, in bytes, its CUDA context included.

    Loading brings the weights, and the context where importing the framework did not; the first run brings
    activations and workspaces.
    """

    by: MemorySource
    before_load_bytes: int
    loaded_bytes: int
    ran_bytes: int
    """After the first run."""
    peak_bytes: int
    """By `process` over loading and all windows; by `device` over loading and the first run."""


class Window(Record, frozen=True, kw_only=True):
    """One slice of samples: one visit of one worker in one round."""

    round: int
    position: int
    """Place in the round's random order."""
    start_ns: int
    """Parent's clock when the slice was asked for, from the start of the launch."""
    samples_ns: list[int]
    boundary: Boundary = "compute"
    enqueue_ns: list[int] = []
    """At the boundary `device`: how long `execute()` kept the host, one an iteration."""
    others_cpu: float | None = None
    """Share of the CPU time that went to processes outside this run while sampling, 0 to 1: of the whole machine's, or
    of that of `Settings.cpu_set`."""
    mhz: float | None = None
    """CPU clock right after the slice, mean over cores."""
    package_energy_j: float | None = None
    """What all processor packages took while sampling, the rest of the machine's work included."""
    marks: list[str] = []
    """What disturbed this window: `busy machine`, `compiled while it was timed`."""
    gpu: GpuWindow | None = None
    """What the GPU did meanwhile; None for a case on another device."""


class Sitting(Record, frozen=True, kw_only=True):
    """One case in one launch: a fresh worker that loaded the saved engine."""

    case: str
    import_s: float
    load_s: float
    first_run_s: float
    loaded_alone: bool = True
    """False where other workers loaded at the same time: then import, load and first run say little."""
    warm_up_ns: list[int]
    windows: list[Window]
    notes: list[str] = []
    """What the loaded session says of itself."""
    energy: list[Window] = []
    """Longer windows on a GPU, for energy only: no latency is taken from them."""
    peak_bytes: int
    """Peak resident memory of the worker's process tree."""
    device_memory: DeviceMemory | None = None
    """On a GPU, where it is known."""
    failure: Failure | None = None


class Launch(Record, frozen=True, kw_only=True):
    """One set of fresh worker processes, resident together and visited in interleaved rounds."""

    index: int
    group: int = 0
    """Cases that do not fit in memory together are measured in groups; the baseline is in every group."""
    wall_s: float
    sittings: list[Sitting]
    complete: bool = True
    """False where the run was interrupted in its middle; a resumed run measures it again."""


class Build(Record, frozen=True, kw_only=True):
    """One of several independent builds of a case."""

    engine: str
    engine_created: str
    engine_bytes: int | None
    stages: dict[str, float]
    peak_compile_bytes: int


class Case(Record, frozen=True, kw_only=True):
    """One backend with its options on a workload, and all that happened to it."""

    id: str
    """Unique in its workload; what the table shows: `tvm:trials=64`."""
    backend: str
    release: str | None = None
    """The version that was asked for, as in `NAME@VERSION`; None: whichever is installed."""
    options: dict[str, Scalar]
    """Only what the user set."""
    device: str
    target: str | None = None
    """Compute capability that it was built for without being run, such as `sm_89`."""
    precision: str
    batch: int
    threads: int
    status: Status
    version: str | None = None
    """Version of the backend's own distribution."""
    versions: dict[str, str] = {}
    interpreter: Interpreter | None = None
    """What its workers ran in; None: the interpreter of harness, which is in `Environment`."""
    provider: str | None = None
    stages: dict[str, float] = {}
    """Directly timed durations in seconds: `import`, `compile` (the whole call), its parts `load`, `tune`, `build`,
    then `first_run`, `second_run`, `save`; from a fresh process `warm_import`, `warm_load`, `warm_first_run`."""
    facts: dict[str, Scalar] = {}
    placement: dict[str, int] | None = None
    """Device kind -> nodes or layers that run there; None where the framework cannot say."""
    notes: list[str] = []
    engine_bytes: int | None = None
    engine: str | None = None
    """Folder of the saved engine."""
    engine_created: str | None = None
    """When it was built: tells it from another one in the same place."""
    peak_compile_bytes: int | None = None
    builds: list[Build] = []
    """All builds, the first of which the fields above describe; empty where there is only one."""
    drift: list[OutputDrift] = []
    agreement: list[Agreement] = []
    """Over all input sets together, the most telling figure of an output first."""
    accuracy: Accuracy | None = None
    """On the labelled data set, where there is one."""
    outputs_sha256: str | None = None
    """Digest of the outputs that `drift` was computed from; a launch with the same digest is not judged again."""
    failure: Failure | None = None
    reproduce: str = ""


class Environment(Record, frozen=True, kw_only=True):
    """The machine and its software when the run started."""

    cpu: str
    cores: int
    logical_cores: int
    memory_bytes: int
    kernel: str
    os: str
    python: str
    governor: str | None
    load_average: float
    gpus: list[dict[str, str]]
    libraries: dict[str, str]
    git_commit: str | None
    hostname: str
    container: str | None
    advice: list[str]
    """What `harness doctor` would say makes numbers noisy here."""
    numa_nodes: int | None = None
    """Memory nodes with CPUs. This and what follows: None where the machine does not show it."""
    smt: bool | None = None
    """Whether two logical CPUs share a core."""
    turbo: bool | None = None
    min_mhz: float | None = None
    """Limits of the CPU clock as they are set now, over all CPUs."""
    max_mhz: float | None = None
    microcode: str | None = None


class Project(Record, frozen=True, kw_only=True):
    """The git repository in which the command was given: the user's own, not that of harness."""

    commit: str
    branch: str | None = None
    """None where no branch is checked out."""
    dirty: bool = False
    """Tracked files differ from the commit."""


class ModelInfo(Record, frozen=True, kw_only=True):
    """What was compared on, once it was exported."""

    weights: str
    """`seeded`, or where they came from."""
    weights_sha256: str | None = None
    parameters: int
    gflop: float | None = None
    """Of one forward pass at this shape; None where it is not known."""
    least_bytes: int | None = None
    """What it must move from and to memory, in float32."""
    task: str
    artifact: str
    """Content hash."""
    reference: str = ""
    """What gave the reference outputs."""
    opset: int
    inputs: list[str]
    """`input float32[1,3,224,224]`"""
    input_sets: int
    deterministic: bool
    golden: bool
    export_s: float
    export_cached: bool


class Workload(Record, frozen=True, kw_only=True):
    """One model at one shape: the cases in it are compared with each other, and with no others."""

    key: str
    """Unique in the run: `resnet50`, `resnet50 batch=4`."""
    model: ModelSpec
    asked: dict[str, int] = {}
    """Sizes of free dimensions, as far as they are known before the export."""
    dims: dict[str, int]
    """Sizes of all free dimensions, once the model was exported."""
    batch: int
    """Items in one inference."""
    device: str = "cpu"
    """Where it is measured: `cpu` or `cuda:N`."""
    target: str | None = None
    """Compute capability that it is compiled for and not run, such as `sm_89`."""
    baseline: str
    """Id of the case that the others are compared with."""
    info: ModelInfo | None = None
    cases: list[Case] = []
    launches: list[Launch] = []
    measure_s: float = 0.0
    notes: list[str] = []
    failure: Failure | None = None
    """What ended all of it, such as a model that cannot be exported."""


class Settings(Record, frozen=True, kw_only=True):
    """What the user asked for, completed by defaults; enough to resume."""

    models: list[str]
    """In the grammar of `--model`."""
    suite: str | None = None
    root: str = ""
    """The folder in which the command was given."""
    cases: list[str]
    """Case ids in the order asked for, in the grammar of `--backends`."""
    baseline: str | None = None
    """As the user asked for it; each workload has its own."""
    dims: dict[str, list[int]] = {}
    """Free dimension -> the sizes of the sweep; `batch` is one of them."""
    shapes: dict[str, list[int]] = {}
    weights: str | None = None
    """`seeded`, `pretrained`, a file's path; None: seeded, or what the user's own model brings."""
    inputs: str | None = None
    input_sets: int = 4
    dynamic: bool = False
    seed: int
    threads: int
    precisions: tuple[str, ...] = ("fp32",)
    calibration: str | None = None
    """Path of the user's own calibration inputs."""
    calibration_samples: int = 64
    calibration_method: str = "minmax"
    dataset: str | None = None
    """Labelled data that accuracy is measured on, in the grammar of `--dataset`, with absolute paths."""
    max_samples: int = 1000
    devices: tuple[str, ...] = ("cpu",)
    device_chosen: bool = False
    """Whether the user named them: a backend that runs elsewhere only is then refused, else it runs there."""
    targets: list[str] = []
    """Compute capabilities to compile for without running; empty: everything is measured."""
    builds: int = 1
    """Independent builds of every case, measured in turn."""
    parallel: bool = False
    """Measure several devices at the same time."""
    lock_clocks: int | Literal["base"] | None = None
    """MHz to which the SM clocks of the GPUs were locked; `base`: what a card holds at its rated power."""
    launches: int
    rounds: int
    slice_s: float
    precise_to: float = 0.01
    """Half-width of every ratio's interval, as a share, from which on no further launches are added for precision."""
    budget_s: float
    timeout_s: float
    memory_limit_bytes: int
    quick: bool
    asked: list[str] = []
    """The values of `--backends` as they were given."""
    pythons: dict[str, str] = {}
    """Backend, or `NAME@VERSION`, -> path of the user's own interpreter for it."""
    opset: int = 18
    cold: bool = False
    """Compile anew even where an engine of an earlier run fits."""
    cpus: str | None = None
    """The value of `--cpus` as it was given."""
    cpu_set: list[int] = []
    """The CPUs that it stood for: all workers run on them, and on no others. Empty: wherever they may."""


class Ceiling(Record, frozen=True, kw_only=True):
    """What one device can do at most."""

    device: str
    """`cpu` or `cuda:N`."""
    name: str
    threads: int | None = None
    """CPU threads; None on a GPU."""
    matrix: dict[str, float]
    """Precision -> operations a second in matrix products, a multiply-add counted as two."""
    memory: list[tuple[int, float]]
    """(working set in bytes, bytes a second), by ascending set."""
    source: str
    """How it is known."""


class Run(Record, frozen=True, kw_only=True):
    """One comparison. Immutable once `state` is `finished`."""

    schema: int = SCHEMA
    id: str
    created: str
    """ISO 8601, UTC."""
    harness: str
    state: Literal["running", "finished", "interrupted"]
    command: str
    settings: Settings
    environment: Environment
    ceilings: list[Ceiling] = []
    """Of its devices, as far as they were known when it started."""
    workloads: list[Workload] = []
    wall_s: float = 0.0
    notes: list[str] = []
    labels: list[str] = []
    """Names by which the user finds it again in the history."""
    project: Project | None = None


CONTROL = "~control"
"""Suffix of the id of the baseline's second worker, the A/A control."""
REUSED = "engine_compiled_at"
"""The fact that tells an engine of an earlier run from one that this run compiled."""
