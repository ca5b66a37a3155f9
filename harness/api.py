"""The contracts: what a backend, a session, a reference model and a report are.

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

if TYPE_CHECKING:
    import numpy as np
    import torch

    from harness.summary import RunSummary

    Tensors = Mapping[str, np.ndarray]

Scalar = str | int | float | bool | None
"""What a fact about a session may be: anything JSON holds in one cell."""

Stage = Literal["load", "tune", "build"]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend can do, as class data, so that it is known before anything is imported."""

    source: Literal["torch", "onnx"]
    """What it compiles: the rebuilt torch module or the artifact's ONNX file."""
    devices: tuple[str, ...] = ("cpu",)
    """Device kinds that it runs on: `cpu`, `cuda`."""
    precisions: tuple[str, ...] = ("fp32",)
    dynamic_shapes: bool = False
    saves_engines: bool = True
    """Whether `save()` writes something that `load()` starts from without compiling."""
    compile_targets: tuple[str, ...] = ()
    """Devices that it builds engines for without having them, such as `sm_89`."""


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


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """All that a backend is told when it compiles or loads."""

    artifact: Artifact
    options: BackendOptions
    """An instance of the backend's own `Options`."""
    device: str = "cpu"
    """`cpu` or `cuda:N`."""
    precision: str = "fp32"
    threads: int = 1
    engine_dir: Path
    """The engine's own folder. Empty when compiling cold; `save()` completes it."""
    cache_dir: Path
    """A folder that outlives runs, for what makes a later compile warm (a tuning database, a timing cache)."""
    stage: Callable[[Stage], AbstractContextManager[None]]
    """Marks a part of `compile()` so that the harness can time it: `with request.stage("load"): ...`."""
    progress: Callable[[str, int | None, int | None], None]
    """Report long work: a message, steps done, steps in all. Cheap enough to call every step."""


class Session(ABC):
    """A loaded, runnable engine. Use as a context manager; `close()` frees its memory.

    A session never reads a clock and never prints: the harness times all of them with the same code.
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
        """Return what is worth knowing about this engine: graph breaks, trials, layers on another device."""
        return {}

    def notes(self) -> list[str]:
        """Return sentences that the report must print under the table for this case."""
        return []

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
    def environment(cls, options: BackendOptions, engine_dir: Path, threads: int) -> dict[str, str]:
        """Return variables that the worker's environment needs before the framework is imported."""
        return {}

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


class ReferenceModel(ABC):
    """A model that all backends are compared on: how to build it, feed it and judge it."""

    name: ClassVar[str]
    summary: ClassVar[str]
    tags: ClassVar[tuple[str, ...]] = ()
    parameters: ClassVar[int]
    """Number of trainable parameters; a test checks it against the built module."""
    gflop: ClassVar[float]
    """Floating-point operations of one forward pass at batch 1, in 1e9, a multiply-add counted as two."""
    task: ClassVar[Literal["classification", "tensor"]] = "tensor"
    """How outputs are judged beyond their elements: `classification` adds top-1 and top-5 agreement."""
    output_names: ClassVar[tuple[str, ...]] = ("output",)
    weights_url: ClassVar[str | None] = None
    """Where public weights that load key for key can be had."""

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """Return the module in eval mode, initialised from torch's current random state."""

    @abstractmethod
    def example_inputs(self, *, batch: int, seed: int) -> dict[str, np.ndarray]:
        """Draw one set of inputs: name -> array, in the order of `forward`'s arguments."""


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
    "ReferenceModel",
    "Report",
    "Scalar",
    "Session",
    "TensorSpec",
]
