"""TensorRT engines on disk and in memory: `engine.plan` with `engine.json` beside it, and their sessions."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from backends import tensorrt_layers, tensorrt_profile
from backends.cuda_device import DeviceMemory, Gpu
from backends.tensorrt_build import messages, out_of_memory
from backends.tensorrt_layers import Layer
from harness.api import Artifact, CompiledOnly, Profile, Scalar, Session, TensorSpec
from harness.errors import HarnessError, OutOfMemory, RunError, UnsupportedError
from harness.graph_nodes import read_graph
from harness.operators import Clock, Iterate

if TYPE_CHECKING:
    import numpy as np

    from harness.api import Tensors

PLAN = "engine.plan"
CARD = "engine.json"


class EngineCard(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored beside a plan: enough to say why it does not fit another machine or version."""

    schema: int = 1
    backend: str
    provider: str
    version: str
    """Of the TensorRT that built it: engines are tied to it."""
    target: str
    tuned_on: str | None
    """Name of the device that layers were timed on; None for an engine that fits every device of its target."""
    plan_bytes: int
    facts: dict[str, Scalar]


def write_engine(folder: Path, plan: Any, card: EngineCard) -> None:
    """Write plan and card; the card last, so that a folder without one holds no finished engine."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).write_bytes(plan)
    (folder / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card)) + b"\n")


def read_engine(folder: Path, backend: str) -> tuple[bytes, EngineCard]:
    """Return the plan and the card of a saved engine.

    Raises:
        RunError: Either is missing or damaged, or another backend wrote them.
    """
    again = "compile it again"
    try:
        card = msgspec.json.decode((folder / CARD).read_bytes(), type=EngineCard)
        plan = (folder / PLAN).read_bytes()
    except FileNotFoundError as exc:
        raise RunError(f"no finished {backend} engine in {folder}: {exc.filename} is missing", hint=again) from exc
    except (OSError, msgspec.DecodeError) as exc:
        raise RunError(f"the {backend} engine in {folder} cannot be read: {exc}", hint=again) from exc
    if card.backend != backend:
        raise RunError(f"the engine in {folder} was built by {card.backend}, not by {backend}", hint=again)
    if len(plan) != card.plan_bytes:
        raise RunError(f"{folder / PLAN} is damaged: expected {card.plan_bytes} bytes, got {len(plan)}", hint=again)
    return plan, card


class TargetEngine(CompiledOnly):
    """An engine that was built for a compute capability and not for a device at hand: it can be saved, not run."""

    def __init__(self, plan: Any, card: EngineCard, *, why: str) -> None:
        """Keep the plan; `why` says why it is not run, empty where that was asked for."""
        self.provider = card.provider
        self._plan = plan
        self._card = card
        self._why = why

    def facts(self) -> dict[str, Scalar]:
        return dict(self._card.facts)

    def notes(self) -> list[str]:
        return [f"built for {self._card.target}; nothing was run{f': {self._why}' if self._why else ''}"]

    def save(self, engine_dir: Path) -> None:
        write_engine(engine_dir, self._plan, self._card)

    def close(self) -> None:
        self._plan = None


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Where a tensor lives: on the device, and page-locked on the host for the way there and back."""

    address: int
    host: np.ndarray


class EngineSession(Session):
    """A deserialized engine with its buffers on one device and a stream of its own.

    Every tensor keeps one buffer for the session's life, so addresses are given to TensorRT once, and a CUDA graph
    that was recorded with them stays valid.
    """

    def __init__(
        self,
        trt: Any,
        plan: Any,
        card: EngineCard,
        *,
        gpu: Gpu,
        artifact: Artifact,
        cuda_graph: bool = False,
        engine_dir: Path | None = None,
    ) -> None:
        """Deserialize the plan and allocate buffers for each input and output.

        `engine_dir` is where the plan was read from, None for one just built.

        Raises:
            RunError: The plan does not fit this machine, this version or the artifact.
            OutOfMemory: The device has not enough memory.
            UnavailableError: The device cannot be used.
            UnsupportedError: A tensor's shape depends on data, or it lives on the host.
        """
        self.provider = card.provider
        self._trt = trt
        # Read from a file, it need not stay in memory: an engine is as large as its model.
        self._plan = plan if engine_dir is None else None
        self._engine_dir = engine_dir
        self._card = card
        self._artifact = artifact
        self._cuda_graph = cuda_graph
        self._run: Callable[[], None] = self._record if cuda_graph else self._enqueue
        self._messages = messages(trt)
        self._messages.take()
        self._buffers: dict[str, Buffer] = {}
        self._uploading = False
        self._known_layers: list[Layer] | None = None
        self._memory = DeviceMemory(gpu.index)
        self.stream = self._memory.stream
        try:
            self._runtime = trt.Runtime(self._messages.logger)
            self._engine = self._made(self._runtime.deserialize_cuda_engine(plan), "deserialized")
            self._context = self._made(self._create_context(self._engine), "given an execution context")
            # The engine knows more of its layers than profilers are to be told at every run.
            self._context.nvtx_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
            self._place()
        except BaseException:  # whatever ends it, Ctrl-C too, the device memory is freed; it goes on up
            self.close()
            raise

    def facts(self) -> dict[str, Scalar]:
        facts: dict[str, Scalar] = {**self._card.facts, "layers": int(self._engine.num_layers)}
        if self._cuda_graph:
            facts["cuda_graph"] = True
        if self._engine_dir is None and (types := tensorrt_layers.data_types(self._layers())):
            facts["layer_outputs"] = types
        return facts

    def placement(self) -> dict[str, int] | None:
        # TensorRT places no layer elsewhere: what the device cannot do, it refuses to build.
        layers = int(self._engine.num_layers)
        return {"cuda": layers} if layers else None

    def save(self, engine_dir: Path) -> None:
        if self._engine_dir is None:
            write_engine(engine_dir, self._plan, self._card)
            tensorrt_layers.write(engine_dir, self._layers())
        elif engine_dir != self._engine_dir:
            shutil.copytree(self._engine_dir, engine_dir, dirs_exist_ok=True)

    def bind(self, inputs: Tensors) -> None:
        import numpy as np

        fitting = self._artifact.check_inputs(inputs)
        if self._uploading:  # the copies of the last call may still be reading what is overwritten here
            self.synchronize()
        for name, array in fitting.items():
            buffer = self._buffers[name]
            np.copyto(buffer.host, array, casting="no")
            self._memory.upload(buffer.address, buffer.host)
        self._uploading = True

    def execute(self) -> None:
        self._run()

    def synchronize(self) -> None:
        self._memory.synchronize()
        self._uploading = False

    def profile(self, iterate: Iterate, clock: Clock) -> Profile:
        if self._cuda_graph:
            raise UnsupportedError("a CUDA graph replays without its layers", hint="profile it without cuda_graph=true")
        # In a context of its own: the session's never knows of a profiler.
        context = self._made(self._create_context(self._engine), "given an execution context")
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        for spec in self._artifact.inputs:
            context.set_input_shape(spec.name, spec.shape)
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.address)

        def once() -> None:
            if not context.execute_async_v3(self.stream):
                raise self._failure(f"{self._card.backend} could not enqueue the engine")
            self.synchronize()

        once()  # what it does only the first time is nobody's layer
        times = tensorrt_profile.collector(self._trt)
        context.profiler = times
        iterate(once)
        return tensorrt_profile.profile(times.times, self._layers(), lambda: read_graph(self._artifact.onnx_path))

    def outputs(self) -> dict[str, np.ndarray]:
        buffers = {spec.name: self._buffers[spec.name] for spec in self._artifact.outputs}
        for buffer in buffers.values():
            self._memory.download(buffer.host, buffer.address)
        self.synchronize()
        return {name: buffer.host.copy() for name, buffer in buffers.items()}

    def close(self) -> None:
        self._memory.forget_graph()
        # TensorRT wants contexts gone before their engine, and engines before their runtime.
        self._context = self._engine = self._runtime = self._plan = None
        self._buffers = {}
        self._memory.close()

    def _create_context(self, engine: Any) -> Any:
        return engine.create_execution_context()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self.stream):
            raise self._failure(f"{self._card.backend} could not enqueue the engine")

    def _record(self) -> None:
        """Run once as usual, then record what that does in a CUDA graph for all later calls.

        What TensorRT does only the first time must not be in the graph. The results are those of the usual run.

        Raises:
            UnsupportedError: The engine does something that a graph cannot hold.
        """
        self._enqueue()
        self.synchronize()
        try:
            self._memory.capture(self._enqueue)
        except RunError as exc:
            if exc.hint:  # the device is at fault, not the engine
                raise
            raise self._not_recorded(exc.message) from exc
        self._run = self._memory.replay

    def _not_recorded(self, why: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self._card.backend} cannot run this engine as a CUDA graph: {why}", hint="leave out cuda_graph=true"
        )

    def _layers(self) -> list[Layer]:
        if self._known_layers is None:
            inspector = self._engine.create_engine_inspector()
            inspector.execution_context = self._context  # it knows shapes that the engine leaves free
            told = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
            self._known_layers = tensorrt_layers.parse(told)
        return self._known_layers

    def _place(self) -> None:
        """Give each tensor its shape and its buffers, and check both against the artifact."""
        import numpy as np

        context, inputs, outputs = self._context, self._artifact.inputs, self._artifact.outputs
        self._check_names(self._trt.TensorIOMode.INPUT, inputs)
        self._check_names(self._trt.TensorIOMode.OUTPUT, outputs)
        for spec in inputs:
            if not context.set_input_shape(spec.name, spec.shape):
                raise self._failure(f"input '{spec.name}' cannot have shape {list(spec.shape)}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as exc:  # it says a number only
            raise self._failure("its shapes cannot be inferred") from exc
        if missing:
            raise UnsupportedError(f"{self._card.backend}: shapes depend on the values of {', '.join(missing)}")
        for spec in (*inputs, *outputs):
            self._check_tensor(spec)
            address = self._memory.allocate(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize)
            if not context.set_tensor_address(spec.name, address):
                raise self._failure(f"'{spec.name}' was refused its buffer")
            self._buffers[spec.name] = Buffer(address=address, host=self._memory.host_array(spec.shape, spec.dtype))

    def _check_names(self, mode: Any, specs: tuple[TensorSpec, ...]) -> None:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        got = sorted(name for name in names if self._engine.get_tensor_mode(name) == mode)
        expected = sorted(spec.name for spec in specs)
        if got != expected:
            raise RunError(f"expected {mode.name.lower()}s {expected}, the engine has {got}", hint="compile it again")

    def _check_tensor(self, spec: TensorSpec) -> None:
        import numpy as np

        name = spec.name
        if self._engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise UnsupportedError(f"{self._card.backend}: '{name}' must be in host memory")
        shape = tuple(self._context.get_tensor_shape(name))
        if -1 in shape:
            raise UnsupportedError(f"{self._card.backend}: the shape of '{name}' depends on the data: {list(shape)}")
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))).name
        if (dtype, shape) != (spec.dtype, spec.shape):
            raise RunError(
                f"'{name}' is {dtype}{list(shape)} in the engine, expected {spec.dtype}{list(spec.shape)}",
                hint="compile it again",
            )

    def _made(self, thing: Any, how: str) -> Any:
        if thing is None:
            raise self._failure(
                f"the engine built by {self._card.backend} {self._card.version} for {self._card.target} cannot be "
                f"{how} by {self._trt.__version__}",
                hint="compile it again",
            )
        return thing

    def _failure(self, what: str, *, hint: str | None = None) -> HarnessError:
        reasons = "; ".join(self._messages.take()) or "TensorRT gave no reason"
        if out_of_memory(reasons):
            return OutOfMemory(f"{what}: {reasons}", hint="free device memory, or lower --batch")
        return RunError(f"{what}: {reasons}", hint=hint)
