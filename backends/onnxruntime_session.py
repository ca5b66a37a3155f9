"""ONNX Runtime's sessions: on the CPU, and on an NVIDIA device with a stream and buffers of ours; engines on disk."""

from __future__ import annotations

import json
import mmap
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from backends import onnxruntime_profile
from backends.cuda_device import DeviceMemory
from backends.onnxruntime_libraries import failure
from backends.onnxruntime_providers import CPU, KINDS
from harness.api import Artifact, Profile, Scalar, Session, TensorSpec
from harness.errors import RunError, UnsupportedError
from harness.graph_nodes import read_graph
from harness.operators import Clock, Iterate

if TYPE_CHECKING:
    import numpy as np

GRAPH, CARD = "model.onnx", "engine.json"
Kind = Literal["graph", "context", "source"]
Assigned = Mapping[str, Mapping[str, int]]
"""Provider -> operator -> how many nodes."""

_COPIES = ("MemcpyToHost", "MemcpyFromHost")
_SHOWN = 6


class EngineCard(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored beside an engine: how to start from it, and what it is tied to."""

    schema: int = 1
    kind: Kind
    """`graph`: the optimised ONNX graph. `context`: a graph that holds what the provider compiled. `source`: at most
    the provider's own cache; a warm start optimises the exported ONNX file again."""
    provider: str
    version: str
    """Of the ONNX Runtime that wrote it."""
    device: str
    facts: dict[str, Scalar] = {}
    notes: list[str] = []

    def write(self, folder: Path) -> None:
        """Write it last, so that a folder without one holds no finished engine."""
        (folder / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    @classmethod
    def read(cls, folder: Path, expected: EngineCard) -> EngineCard:
        """Return the card of a saved engine, if it is for what `expected` is for.

        Raises:
            RunError: It is missing or damaged, or the engine belongs to another provider, version or device.
        """
        again = "compile it again"
        try:
            card = msgspec.json.decode((folder / CARD).read_bytes(), type=cls)
        except FileNotFoundError as exc:
            raise RunError(f"no finished engine in {folder}: {CARD} is missing", hint=again) from exc
        except (OSError, msgspec.DecodeError) as exc:
            raise RunError(f"the engine in {folder} cannot be read: {exc}", hint=again) from exc
        for what in ("provider", "version", "device"):
            got, wanted = getattr(card, what), getattr(expected, what)
            if got != wanted:
                raise RunError(f"this engine was built for {what} {got}, and this is {wanted}", hint=again)
        if card.kind != "source" and not (folder / GRAPH).is_file():
            raise RunError(f"no finished engine in {folder}: {GRAPH} is missing", hint=again)
        return card


def assigned(session: Any) -> Assigned:
    """Return which provider was given which nodes; empty where this version of ONNX Runtime does not say."""
    found: dict[str, Counter[str]] = {}
    if hasattr(session, "get_provider_graph_assignment_info"):
        for part in session.get_provider_graph_assignment_info():
            found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return found


def copies_in(graph: Path) -> int:
    """Return how many copies between host and device ONNX Runtime put into an optimised graph.

    It inserts them after it has said which provider has which nodes. The name of an operator lies in the file behind
    its tag and its length, so that it is found without a library that reads ONNX.
    """
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return sum(_occurrences(content, b"\x22%c%s" % (len(name), name.encode())) for name in _COPIES)


def _occurrences(content: mmap.mmap, wanted: bytes) -> int:
    count, place = 0, content.find(wanted)
    while place >= 0:
        count, place = count + 1, content.find(wanted, place + len(wanted))
    return count


def fixed_outputs(session: Any, artifact: Artifact) -> dict[str, TensorSpec]:
    """Return the outputs whose shape follows from the inputs': those can have one buffer for the session's life."""
    sizes = {
        name: size
        for argument in session.get_inputs()
        for spec in artifact.inputs
        if spec.name == argument.name
        for name, size in zip(argument.shape, spec.shape, strict=False)
        if isinstance(name, str)
    }
    declared = {
        argument.name: tuple(sizes.get(size, size) for size in argument.shape) for argument in session.get_outputs()
    }
    return {spec.name: spec for spec in artifact.outputs if declared.get(spec.name) == spec.shape}


def loose_outputs(session: Any, artifact: Artifact) -> list[str]:
    """Return the names of the other outputs: ONNX Runtime allocates them anew in every run."""
    fixed = fixed_outputs(session, artifact)
    return [argument.name for argument in session.get_outputs() if argument.name not in fixed]


def host_tensors(session: Any) -> set[str]:
    """Return the inputs and outputs of a session on a device that its nodes read or write in host memory."""
    if not hasattr(session, "get_input_memory_infos"):  # before 1.23
        return set()
    places = (
        *zip(session.get_inputs(), session.get_input_memory_infos(), strict=True),
        *zip(session.get_outputs(), session.get_output_memory_infos(), strict=True),
    )
    return {argument.name for argument, memory in places if memory.name == "Cpu"}


def node_note(found: Assigned, copies: Scalar) -> list[str]:
    """Say which nodes of a session on a device run on the CPU, and what is copied for them; nothing where none do."""
    operators = found.get(CPU, {})
    if not operators:
        return []
    which = [f"{count} {name}" for name, count in sorted(operators.items(), key=lambda item: (-item[1], item[0]))]
    named = ", ".join(which[:_SHOWN]) + (f" and {len(which) - _SHOWN} more" if len(which) > _SHOWN else "")
    why = ""
    if copies == 0:
        why = "; nothing is copied between host and device for them, as where shapes are computed"
    elif copies is not None:
        why = f"; copies between host and device in every run: {copies}; a warm load optimises the graph anew"
    return [f"onnxruntime: nodes on the CPU: {named}{why}."]


class OnnxRuntimeSession(Session):
    """What both kinds share: the truth about the nodes, the engine's card, and running."""

    def __init__(self, session: Any, artifact: Artifact, card: EngineCard, found: Assigned) -> None:
        self.provider = session.get_providers()[0]
        self._session = session
        self._artifact = artifact
        self._card = card
        self._assigned = found
        self._binding = session.io_binding()
        self._run_options: Any = None

    def placement(self) -> dict[str, int] | None:
        """Return the nodes as ONNX Runtime partitioned them, before a provider fused its own."""
        kinds: Counter[str] = Counter()
        for provider, operators in self._assigned.items():
            kinds[KINDS.get(provider, provider)] += sum(operators.values())
        return dict(kinds) or None

    def facts(self) -> dict[str, Scalar]:
        return dict(self._card.facts)

    def notes(self) -> list[str]:
        return list(self._card.notes)

    def save(self, engine_dir: Path) -> None:
        """Write the card; the graph was written while the session was made, which is part of compile time."""
        self._card.write(engine_dir)

    def execute(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._run_options)
        except Exception as exc:  # ONNX Runtime's errors share no base class but Exception
            raise failure(exc, RunError) from exc


class HostSession(OnnxRuntimeSession):
    """A session on the CPU. Inputs, and outputs of known shape, keep their buffers."""

    def __init__(
        self,
        session: Any,
        artifact: Artifact,
        card: EngineCard,
        found: Assigned,
        *,
        graph: Path | None = None,
        profiled: Callable[[Path, Path], Any] | None = None,
    ) -> None:
        """Bind buffers. `profiled` loads the optimised `graph` again, in a session that writes a trace to a path."""
        super().__init__(session, artifact, card, found)
        self._graph = graph
        self._profiled = profiled
        self._inputs = {spec.name: _value(spec) for spec in artifact.inputs}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        fixed = fixed_outputs(session, artifact)
        self._free = loose_outputs(session, artifact)
        for argument in session.get_outputs():
            if argument.name in fixed:
                self._binding.bind_ortvalue_output(argument.name, _value(fixed[argument.name]))
            else:
                self._binding.bind_output(argument.name)

    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        for name, array in self._artifact.check_inputs(inputs).items():
            self._inputs[name].update_inplace(array)
        for name in self._free:  # else the buffer of the last run would have to fit
            self._binding.bind_output(name)

    def synchronize(self) -> None:
        """Do nothing: on the CPU a run returns when it is done."""

    def outputs(self) -> dict[str, np.ndarray]:
        names = [output.name for output in self._session.get_outputs()]
        values = dict(zip(names, self._binding.get_outputs(), strict=True))
        return {spec.name: values[spec.name].numpy().copy() for spec in self._artifact.outputs}

    def profile(self, iterate: Iterate, clock: Clock) -> Profile:
        if self._profiled is None or self._graph is None or not self._graph.is_file():
            raise UnsupportedError("ONNX Runtime profiles an optimised graph, and this engine has none on disk")
        try:
            exported, optimised = read_graph(self._artifact.onnx_path), read_graph(self._graph)
        except ImportError as exc:  # an environment of a release holds what running needs
            raise UnsupportedError(
                "operators are mapped to nodes by onnx, which is not installed where this backend runs",
                hint="pip install onnx there; harness installs a release with what running it needs",
            ) from exc
        with tempfile.TemporaryDirectory(prefix="harness-trace-") as scratch:
            session = self._profiled(self._graph, Path(scratch) / "trace")
            twin = HostSession(session, self._artifact, self._card, self._assigned)
            twin.bind({name: value.numpy() for name, value in self._inputs.items()})
            for _ in range(onnxruntime_profile.WARM_UP):
                twin.execute()
            iterate(twin.execute)
            trace = json.loads(Path(session.end_profiling()).read_bytes())
            twin.close()
        return onnxruntime_profile.profile(trace, exported, optimised)

    def close(self) -> None:
        self._inputs = {}
        self._binding = self._session = self._profiled = None


class DeviceSession(OnnxRuntimeSession):
    """A session on an NVIDIA device. Every tensor of known shape keeps one buffer there and one in page-locked memory.

    Fixed addresses are what CUDA graphs need. `execute()` only enqueues: the run does not wait for the stream.
    """

    device_type = "cuda"

    def __init__(
        self,
        session: Any,
        artifact: Artifact,
        card: EngineCard,
        found: Assigned,
        *,
        memory: DeviceMemory,
        index: int,
    ) -> None:
        """Bind buffers to all inputs and outputs. `memory` is closed with the session."""
        import onnxruntime

        super().__init__(session, artifact, card, found)
        self.stream = memory.stream
        self._memory = memory
        self._index = index
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        # Of what lies on the device. What a node on the CPU reads or writes stays in page-locked memory.
        self._addresses: dict[str, int] = {}
        self._staged: dict[str, np.ndarray] = {}
        on_host = host_tensors(session)
        for spec in artifact.inputs:
            self._binding.bind_input(*self._place(spec, on_host))
        fixed = fixed_outputs(session, artifact)
        self._free = loose_outputs(session, artifact)
        for argument in session.get_outputs():
            if argument.name in fixed:
                self._binding.bind_output(*self._place(fixed[argument.name], on_host))
            else:
                self._binding.bind_output(argument.name, self.device_type, index)

    def _place(self, spec: TensorSpec, on_host: set[str]) -> tuple[Any, ...]:
        """Give a tensor its buffers, and return what a binding wants to know of it."""
        import numpy as np

        staged = self._staged[spec.name] = self._memory.host_array(spec.shape, spec.dtype)
        what = np.dtype(spec.dtype).type, spec.shape
        if spec.name in on_host:
            return spec.name, "cpu", 0, *what, staged.ctypes.data
        self._addresses[spec.name] = self._memory.allocate(staged.nbytes)
        return spec.name, self.device_type, self._index, *what, self._addresses[spec.name]

    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        import numpy as np

        fitting = self._artifact.check_inputs(inputs)
        self._memory.synchronize()  # the last upload may still be reading the page-locked arrays
        for name, array in fitting.items():
            np.copyto(self._staged[name], array)
            if name in self._addresses:
                self._memory.upload(self._addresses[name], self._staged[name])
        for name in self._free:  # as on the host
            self._binding.bind_output(name, self.device_type, self._index)

    def synchronize(self) -> None:
        self._memory.synchronize()

    def profile(self, iterate: Iterate, clock: Clock) -> Profile:
        raise UnsupportedError(
            "on a GPU ONNX Runtime's trace tells how long its nodes took to enqueue, not how long they ran",
            hint="NVIDIA's own tools see the kernels: nsys profile",
        )

    def outputs(self) -> dict[str, np.ndarray]:
        if self._free:  # ONNX Runtime allocated an output itself, and copies on another stream
            self._memory.synchronize()
            names = [output.name for output in self._session.get_outputs()]
            arrays = dict(zip(names, self._binding.copy_outputs_to_cpu(), strict=True))
        else:
            arrays = {spec.name: self._staged[spec.name] for spec in self._artifact.outputs}
            for name in arrays.keys() & self._addresses.keys():
                self._memory.download(arrays[name], self._addresses[name])
            self._memory.synchronize()
        return {spec.name: arrays[spec.name].copy() for spec in self._artifact.outputs}

    def close(self) -> None:
        self._binding = self._session = None  # it runs on the stream that goes next
        self._staged = {}
        self._memory.close()


def _value(spec: TensorSpec) -> Any:
    import numpy as np
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(spec.shape, np.dtype(spec.dtype).type, "cpu", 0)
