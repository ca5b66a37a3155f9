"""ONNX Runtime on a machine with an NVIDIA GPU, as far as it can be had without one.

The runtime is the real one and computes on the CPU, through the addresses that a session binds; what is pretended is
who computes. `FakeCudart` lends the memory.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from backends.onnxruntime_providers import CPU, CUDA, RTX, TENSORRT


def graph(*, free: bool = False, host: bool = False) -> bytes:
    """Return the toy's graph, which doubles positive numbers.

    With `free` its batch is free; with `host` there is a node in it that only the CPU can run.
    """
    shape: list[int | str] = ["batch" if free else 1, 4, 4]
    nodes = [helper.make_node("Relu", ["input"], ["positive"], name="relu")]
    two = numpy_helper.from_array(np.array(2, np.float32), "two")
    nodes.append(helper.make_node("Mul", ["positive", "two"], ["doubled" if host else "output"], name="double"))
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    if host:
        nodes += [
            helper.make_node("Det", ["doubled"], ["det"], name="det"),
            helper.make_node("Unsqueeze", ["det", "axes"], ["shift"], name="unsqueeze"),
            helper.make_node("Add", ["doubled", "shift"], ["output"], name="add"),
        ]
    return made(nodes, [("input", shape)], [("output", shape)], [two, *([axes] if host else [])])


def made(
    nodes: list[Any],
    inputs: Sequence[tuple[str, Sequence[int | str]]],
    outputs: Sequence[tuple[str, Sequence[int | str]]],
    constants: list[Any],
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
) -> bytes:
    """Return an ONNX file; `kind` is the type of its outputs."""
    body = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs],
        constants,
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(model.SerializeToString())


@dataclass(kw_only=True)
class Seen:
    """What a session was made with and what it was asked to do."""

    path: Path
    settings: Any
    told: dict[str, dict[str, str]]
    runs: list[bool] = field(default_factory=list)
    """Of each run, whether it was told not to wait for the device."""

    @property
    def context(self) -> Path | None:
        """Where a provider is to write what it compiled."""
        try:
            return Path(self.settings.get_session_config_entry("ep.context_file_path"))
        except RuntimeError:  # it was not told to
            return None


class FakeRuntime(types.ModuleType):
    """`onnxruntime` built for CUDA 13, with a device that has all kernels but that of `Det`."""

    def __init__(self) -> None:
        super().__init__("onnxruntime")
        for name in ("GraphOptimizationLevel", "RunOptions", "OrtValue", "__version__", "__file__"):
            setattr(self, name, getattr(onnxruntime, name))
        self.cuda_version = "13.0"
        self.built = [TENSORRT, CUDA, CPU]
        self.preloads = 0
        self.sessions: list[Seen] = []
        self.takes: dict[str, set[str]] = {TENSORRT: {"Relu", "Mul"}}
        """Provider -> the operators that it runs, where those are not all but `Det`."""
        self.raises: Exception | None = None
        self.in_host_memory: set[str] = set()
        self.ep_devices = [SimpleNamespace(ep_name=RTX, ep_options={}, ep_metadata={})]
        self.registered: list[tuple[str, str]] = []

    class SessionOptions(onnxruntime.SessionOptions):  # type: ignore[misc]  # not typed by its authors
        """Keeps what a plug-in was told."""

        def __init__(self) -> None:
            super().__init__()
            self.told: dict[str, dict[str, str]] = {}

        def add_provider_for_devices(self, devices: list[Any], told: dict[str, str]) -> None:
            self.told = {devices[0].ep_name: told}

    def get_available_providers(self) -> list[str]:
        return self.built

    def preload_dlls(self) -> None:
        self.preloads += 1

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if self.registered:
            raise RuntimeError(f"library is already registered under {name}")
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[Any]:
        return self.ep_devices

    def make_session(
        self, path: Path, settings: Any, *, providers: list[Any] | None, enable_fallback: int
    ) -> FakeSession:
        assert not enable_fallback
        told = settings.told if providers is None else dict(one for one in providers if one != CPU)
        self.sessions.append(Seen(path=Path(path), settings=settings, told=told))
        if self.raises is not None:
            raise self.raises
        return FakeSession(self, self.sessions[-1])

    @property
    def InferenceSession(self) -> Any:
        def make(*arguments: Any, **rest: Any) -> FakeSession:
            return self.make_session(*arguments, **rest)

        make.get_provider_graph_assignment_info = None  # type: ignore[attr-defined]  # looked for, not called
        return make


class FakeSession:
    """A session on the CPU that says it is on the device."""

    def __init__(self, runtime: FakeRuntime, seen: Seen) -> None:
        real = onnxruntime.InferenceSession(seen.path, seen.settings, providers=[CPU])
        written = seen.settings.optimized_model_filepath
        if CUDA in seen.told and TENSORRT not in seen.told and written and b"\x22\x03Det" in Path(written).read_bytes():
            insert_copies(Path(written))
        if RTX in seen.told and seen.context is not None:
            seen.context.write_bytes(seen.path.read_bytes())
        self._runtime, self._seen, self._real = runtime, seen, real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return [*self._seen.told, CPU]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return self._seen.told

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def who(node: Any) -> str:
            for provider in self._seen.told:
                takes = self._runtime.takes.get(provider)
                if node.op_type in takes if takes is not None else node.op_type != "Det":
                    return provider
            return CPU

        nodes = onnx.load(self._seen.path).graph.node
        return [SimpleNamespace(ep_name=who(node), get_nodes=lambda node=node: [node]) for node in nodes]

    def get_input_memory_infos(self) -> list[Any]:
        return [self._memory(argument) for argument in self._real.get_inputs()]

    def get_output_memory_infos(self) -> list[Any]:
        return [self._memory(argument) for argument in self._real.get_outputs()]

    def _memory(self, argument: Any) -> Any:
        return SimpleNamespace(name="Cpu" if argument.name in self._runtime.in_host_memory else "Cuda")

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._seen.runs.append(options.get_run_config_entry("disable_synchronize_execution_providers") == "1")
        self._real.run_with_iobinding(binding, options)


def insert_copies(path: Path) -> None:
    """Put a copy to the host before each node for the CPU and one back after it, as ONNX Runtime does."""
    model = onnx.load(path)
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Det":
            nodes.append(helper.make_node("MemcpyToHost", [node.input[0]], ["there"], name="Memcpy"))
            nodes.append(helper.make_node("Det", ["there"], ["back"], name=node.name))
            nodes.append(helper.make_node("MemcpyFromHost", ["back"], [node.output[0]], name="Memcpy_token_0"))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
