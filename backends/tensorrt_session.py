"""TensorRT engines on disk and in memory: `engine.plan` with `engine.json` beside it, and their sessions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from backends.cuda_device import DeviceMemory, Gpu
from backends.tensorrt_build import messages
from harness.api import Artifact, CompiledOnly, Scalar, Session, TensorSpec
from harness.errors import RunError, UnsupportedError

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
    """An engine built for a device that this machine lacks: it can be saved, not run."""

    def __init__(self, plan: Any, card: EngineCard) -> None:
        self.provider = card.provider
        self._plan = plan
        self._card = card

    def facts(self) -> dict[str, Scalar]:
        return dict(self._card.facts)

    def notes(self) -> list[str]:
        return [f"{self._card.backend}: built for {self._card.target} without the device, not run."]

    def save(self, engine_dir: Path) -> None:
        write_engine(engine_dir, self._plan, self._card)

    def close(self) -> None:
        self._plan = None


class EngineSession(Session):
    """A deserialized engine with its buffers on one device and a stream of its own.

    Every tensor keeps one buffer for the session's life, so addresses are given to TensorRT once.
    """

    def __init__(self, trt: Any, plan: Any, card: EngineCard, *, gpu: Gpu, artifact: Artifact) -> None:
        """Deserialize the plan and allocate a buffer for each input and output.

        Raises:
            RunError: The plan does not fit this machine, this version or the artifact.
            OutOfMemory: The device has not enough memory.
            UnsupportedError: A tensor's shape depends on data, or it lives on the host.
        """
        self.provider = card.provider
        self._trt = trt
        self._plan = plan
        self._card = card
        self._artifact = artifact
        self._messages = messages(trt)
        self._messages.take()
        self._addresses: dict[str, int] = {}
        self._staged: list[np.ndarray] = []
        self._memory = DeviceMemory(gpu.index)
        self.stream = self._memory.stream
        try:
            self._runtime = trt.Runtime(self._messages.logger)
            self._engine = self._made(self._runtime.deserialize_cuda_engine(plan), "deserialized")
            self._context = self._made(self._create_context(self._engine), "given an execution context")
            self._place()
        except BaseException:  # whatever ends it, Ctrl-C too, the device memory is freed; it goes on up
            self.close()
            raise

    def facts(self) -> dict[str, Scalar]:
        return {**self._card.facts, "layers": int(self._engine.num_layers)}

    def save(self, engine_dir: Path) -> None:
        write_engine(engine_dir, self._plan, self._card)

    def bind(self, inputs: Tensors) -> None:
        import numpy as np

        fitting = self._artifact.check_inputs(inputs)
        # The copies are asynchronous: what they read must outlive them.
        self._staged = [np.ascontiguousarray(array) for array in fitting.values()]
        for name, array in zip(fitting, self._staged, strict=True):
            self._memory.upload(self._addresses[name], array)

    def execute(self) -> None:
        if not self._context.execute_async_v3(self.stream):
            raise RunError(f"{self._card.backend} could not enqueue the engine: {self._reasons()}")

    def synchronize(self) -> None:
        self._memory.synchronize()

    def outputs(self) -> dict[str, np.ndarray]:
        import numpy as np

        arrays = {spec.name: np.empty(spec.shape, spec.dtype) for spec in self._artifact.outputs}
        for name, array in arrays.items():
            self._memory.download(array, self._addresses[name])
        self._memory.synchronize()
        return arrays

    def close(self) -> None:
        # TensorRT wants contexts gone before their engine, and engines before their runtime.
        self._context = self._engine = self._runtime = self._plan = None
        self._memory.close()
        self._staged = []

    def _create_context(self, engine: Any) -> Any:
        return engine.create_execution_context()

    def _place(self) -> None:
        """Give each tensor its shape and a buffer, and check both against the artifact."""
        import numpy as np

        context, inputs, outputs = self._context, self._artifact.inputs, self._artifact.outputs
        self._check_names(self._trt.TensorIOMode.INPUT, inputs)
        self._check_names(self._trt.TensorIOMode.OUTPUT, outputs)
        for spec in inputs:
            if not context.set_input_shape(spec.name, spec.shape):
                raise RunError(f"input '{spec.name}' cannot have shape {list(spec.shape)}: {self._reasons()}")
        if missing := context.infer_shapes():
            raise UnsupportedError(f"{self._card.backend}: shapes depend on the values of {', '.join(missing)}")
        for spec in (*inputs, *outputs):
            self._check_tensor(spec)
            address = self._memory.allocate(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize)
            if not context.set_tensor_address(spec.name, address):
                raise RunError(f"'{spec.name}' was refused its buffer: {self._reasons()}")
            self._addresses[spec.name] = address

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
            raise RunError(
                f"the engine built by {self._card.backend} {self._card.version} for {self._card.target} cannot be "
                f"{how} by {self._trt.__version__}: {self._reasons()}",
                hint="compile it again",
            )
        return thing

    def _reasons(self) -> str:
        return "; ".join(self._messages.take()) or "TensorRT gave no reason"
