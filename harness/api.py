"""The contracts: what a backend, a session, a reference model and a report are. Those of models are in `harness.model`.

Everything here is importable without any framework. Implementations import theirs inside methods, so that
the process the user starts can read names, options and capabilities without paying for torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from harness.artifact import Artifact, TensorSpec
from harness.model import (
    Composition,
    GraphModel,
    InputSpec,
    Model,
    ModelOptions,
    Preprocessing,
    PublicWeights,
    ReferenceModel,
)
from harness.operators import Clock, Iterate, OperatorTime, Profile
from harness.precisions import Precision, Source

if TYPE_CHECKING:
    import numpy as np

    from harness.summary import RunSummary

    Tensors = Mapping[str, np.ndarray]

Scalar = str | int | float | bool | None
"""What a fact about a session may be: anything JSON holds in one cell."""

Stage = Literal["load", "tune", "build"]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend can do, as class data, so that it is known before anything is imported."""

    source: Source
    """What it compiles: the rebuilt torch module or the artifact's ONNX file."""
    devices: tuple[str, ...] = ("cpu",)
    """Device kinds that it runs on: `cpu`, `cuda`."""
    precisions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Device kind -> precisions; a kind that is left out has fp32 only."""
    lacks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Device kind -> precision that it is not offered in -> why, as the end of a sentence."""
    dynamic_shapes: bool = False
    saves_engines: bool = True
    """Whether `save()` writes something that `load()` starts from without compiling."""
    compile_targets: tuple[str, ...] = ()
    """Compute capabilities that it builds engines for without having the device, such as `sm_89`."""

    def precisions_on(self, kind: str) -> tuple[str, ...]:
        """Return what a kind of device is offered in."""
        return self.precisions.get(kind, ("fp32",))


@dataclass(frozen=True, kw_only=True)
class OnnxLimits:
    """The newest ONNX that a release of a library reads."""

    opset: int
    ir: int
    """Version of the file format."""


@dataclass(frozen=True, kw_only=True)
class Availability:
    """The answer of a probe: usable, or why not and what to install."""

    available: bool
    versions: Mapping[str, str] = field(default_factory=dict)
    """Distribution name -> version, the backend's own first."""
    devices: tuple[str, ...] = ()
    reason: str | None = None
    """Why it is not available; or, where it is, what it cannot do here, such as run what it builds."""
    hint: str | None = None


class BackendOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that every backend takes. A backend adds its own as fields with a `Meta(description=...)`."""

    threads: (
        Annotated[int, msgspec.Meta(ge=1, le=1024, description="CPU threads; overrides --threads for this case")] | None
    ) = None
    precision: Annotated[Precision, msgspec.Meta(description="see --precision, which this overrides")] | None = None
    dynamic: Annotated[bool, msgspec.Meta(description="one engine for all shapes of the sweep, see --dynamic")] = False


@dataclass(frozen=True, kw_only=True)
class DynamicShapes:
    """What an engine for a whole sweep of shapes must take."""

    axes: Mapping[str, Mapping[int, str]]
    """Input -> axis -> the name of its free dimension. An input without one is left out."""
    ranges: Mapping[str, tuple[int, int]]
    """Free dimension -> its smallest and its largest size; the largest is at least 2."""

    def bounds(self, spec: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the smallest and the largest shape of an input."""
        axes = self.axes.get(spec.name, {})
        pairs = [
            self.ranges[axes[axis]] if axes.get(axis) in self.ranges else (size, size)
            for axis, size in enumerate(spec.shape)
        ]
        return tuple(low for low, _ in pairs), tuple(high for _, high in pairs)


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """All that a backend is told when it compiles or loads."""

    artifact: Artifact
    """What to compile, and the inputs that the session will be given: for a dynamic engine those of one shape."""
    options: BackendOptions
    """An instance of the backend's own `Options`."""
    device: str = "cpu"
    """`cpu` or `cuda:N`."""
    target: str | None = None
    """Compute capability to build for without running, such as `sm_89`: the session is then a `CompiledOnly`."""
    precision: str = "fp32"
    threads: int = 1
    dynamic: DynamicShapes | None = None
    """Set where the engine is for a whole sweep: with `options.dynamic`. While compiling, the artifact's inputs have
    the largest shape; when the engine is loaded, that of one point of the sweep."""
    engine_dir: Path
    """The engine's own folder. Empty when compiling cold; `save()` completes it."""
    cache_dir: Path
    """A folder that outlives runs, for what makes a later compile warm (a tuning database, a timing cache)."""
    stage: Callable[[Stage], AbstractContextManager[None]]
    """Marks a part of `compile()` so that the harness can time it: `with request.stage("load"): ...`."""
    progress: Callable[[str, int | None, int | None], None]
    """Report long work: a message, steps done, steps in all. Cheap enough to call every step."""


@dataclass(frozen=True, kw_only=True)
class SavedEngine:
    """What a snippet is written for: a saved engine and how it ran."""

    options: BackendOptions
    provider: str
    device: str
    precision: str
    threads: int
    inputs: tuple[TensorSpec, ...]
    """In the order of the artifact."""


class Session(ABC):
    """A loaded, runnable engine. Use as a context manager; `close()` frees its memory.

    A session never reads a clock and never prints: the harness times all of them with the same code. What its
    framework's profiler says is asked for apart, in `profile()`, and called the backend's own account.
    """

    provider: str
    """What really runs: `CUDAExecutionProvider`, `inductor`, `llvm -mcpu=znver3`."""
    stream: int | None = None
    """CUDA stream handle on which `execute()` enqueues, for the harness' own events; None on a CPU."""
    runnable: ClassVar[bool] = True
    """False for an engine that was built for a device which this machine lacks."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - a session without device memory has nothing to free
        """Free host and device memory. Called once; the session is not used afterwards."""

    def facts(self) -> dict[str, Scalar]:
        """Return what is worth knowing about this engine: graph breaks, trials, how large its caches were."""
        return {}

    def placement(self) -> dict[str, int] | None:
        """Return device kind -> how many nodes or layers run there, such as `{"cuda": 120, "cpu": 3}`.

        None where the framework cannot say. The harness counts what is off the asked device, and refuses a session
        that has nothing on it.
        """
        return None

    def notes(self) -> list[str]:
        """Return sentences that the report must print under the table for this case."""
        return []

    def compilations(self) -> int:
        """Return how often something was compiled in this process: a sample in which it happens says so."""
        return 0

    def profile(self, iterate: Iterate, clock: Clock) -> Profile:
        """Run under the framework's own profiler, and return what its operators took.

        Inputs are bound. All of `iterate(once)` is to be seen by the profiler, and nothing else: it calls `once()`,
        which does what `execute()` and `synchronize()` do, several times.

        Raises:
            UnsupportedError: The framework has no profiler, or none for this engine.
        """
        from harness.errors import UnsupportedError

        raise UnsupportedError(f"{self.provider} does not say what its operators take")

    @abstractmethod
    def save(self, engine_dir: Path) -> None:
        """Write the engine so that `Backend.load()` in another process starts from it."""

    @abstractmethod
    def bind(self, inputs: Tensors) -> None:
        """Copy inputs to where `execute()` reads them. Not part of compute latency.

        Raises:
            RunError: A name, shape or dtype does not fit.
        """

    @abstractmethod
    def execute(self) -> None:
        """Run once on the bound inputs. May return before the work is done."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all that `execute()` enqueued is done."""

    @abstractmethod
    def outputs(self) -> dict[str, np.ndarray]:
        """Copy the last results to the host. Returned arrays are owned by the caller, in artifact order."""


class Backend(ABC):
    """A way to turn an artifact into a session. One file and one line in `harness/registry.py`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `harness backends`."""
    capabilities: ClassVar[Capabilities]
    modules: ClassVar[tuple[str, ...]]
    """Modules whose import the harness times as the import stage."""
    Options: ClassVar[type[BackendOptions]] = BackendOptions

    @classmethod
    @abstractmethod
    def probe(cls) -> Availability:
        """Say whether this backend works on this machine. Runs in a child process; never raises."""

    @classmethod
    def check(cls, options: BackendOptions) -> None:
        """Refuse options that conflict, before any work starts.

        Raises:
            UsageError: Which options conflict, and which to leave out.
        """
        return  # most backends have no conflicting options

    @classmethod
    def distribution(cls, options: BackendOptions, kind: str) -> str | None:
        """Return the distribution whose version is meant by `NAME@VERSION` on a kind of device.

        None: it has no releases that could be chosen.
        """
        return None

    @classmethod
    def companions(cls, version: str, options: BackendOptions, kind: str) -> tuple[str, ...]:
        """Return what the environment of a release needs beside its distribution, in pip's grammar.

        Without version numbers where possible: the newest that was there when the release came out is installed.
        """
        return ()

    @classmethod
    def reads(cls, version: str) -> OnnxLimits | None:
        """Return the newest ONNX that a release reads; None: all that is exported. A newer graph is lowered to it."""
        return None

    @classmethod
    def environment(cls, options: BackendOptions, engine_dir: Path, threads: int) -> dict[str, str]:
        """Return variables that the worker's environment needs before the framework is imported."""
        return {}

    @classmethod
    def snippet(cls, engine: SavedEngine) -> str | None:
        """Return the few lines of Python that load a saved engine with its own runtime and without harness.

        They find its folder in the variable `ENGINE`, a `Path`, and define `run(inputs)`, which takes arrays by name
        and returns the outputs in the artifact's order. None: there is no such engine.

        Raises:
            UnsupportedError: There is none with these options or on this device; the hint names what has one.
        """
        return None

    @abstractmethod
    def compile(self, request: CompileRequest) -> Session:
        """Compile cold. Mark the parts with `request.stage`. A lazy compiler runs once in here.

        Raises:
            UnsupportedError: The case asks for something that this backend cannot do.
            FallbackError: What would run is not what was asked for.
            CompileError: The compiler failed.
        """

    @abstractmethod
    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        """Start from what `Session.save()` wrote, in a fresh process, without compiling again.

        Raises:
            RunError: The engine is missing, damaged or does not fit this machine.
        """


class CompiledOnly(Session):
    """An engine that this machine built but cannot run. Subclasses implement `save()`."""

    runnable = False

    def _refuse(self) -> None:
        from harness.errors import UnsupportedError

        raise UnsupportedError(f"this {self.provider} engine needs a device that this machine does not have")

    def bind(self, inputs: Tensors) -> None:
        self._refuse()

    def execute(self) -> None:
        self._refuse()

    def synchronize(self) -> None:
        self._refuse()

    def outputs(self) -> dict[str, np.ndarray]:
        self._refuse()
        return {}


class Report(ABC):
    """A way to show a run."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def render(self, run: RunSummary, *, color: bool = False, width: int | None = None) -> str:
        """Return the whole text of the report, ending in a newline."""


__all__ = [
    "Artifact",
    "Availability",
    "Backend",
    "BackendOptions",
    "Capabilities",
    "CompileRequest",
    "CompiledOnly",
    "Composition",
    "DynamicShapes",
    "GraphModel",
    "InputSpec",
    "Model",
    "ModelOptions",
    "OnnxLimits",
    "OperatorTime",
    "Preprocessing",
    "Profile",
    "PublicWeights",
    "ReferenceModel",
    "Report",
    "SavedEngine",
    "Scalar",
    "Session",
    "TensorSpec",
]
