"""ONNX Runtime with its CPU or CUDA execution provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from harness.api import (
    Artifact,
    Availability,
    Backend,
    BackendOptions,
    Capabilities,
    CompileRequest,
    SavedEngine,
    Session,
)
from harness.errors import CompileError, FallbackError, RunError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

ENGINE = "model.onnx"
HINT = "pip install 'harness[onnxruntime]' (or 'harness[onnxruntime-gpu]' with an NVIDIA GPU)"
LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeOptions(BackendOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of ONNX Runtime."""

    level: Annotated[
        Literal["disable", "basic", "extended", "all"], msgspec.Meta(description="graph optimisation level")
    ] = "all"
    provider: Annotated[
        Literal["cpu", "cuda"] | None, msgspec.Meta(description="execution provider; the device's own by default")
    ] = None


class OnnxRuntime(Backend):
    """Optimises the ONNX graph and runs it node by node with its own kernels."""

    name = "onnxruntime"
    summary = "ONNX Runtime (CPU and CUDA execution providers)"
    capabilities = Capabilities(source="onnx", devices=("cpu", "cuda"), dynamic_shapes=True)
    modules = ("onnxruntime",)
    Options = OnnxRuntimeOptions

    @classmethod
    def probe(cls) -> Availability:
        try:
            import onnxruntime
        except ImportError as exc:
            return Availability(available=False, reason=f"onnxruntime cannot be imported: {exc}", hint=HINT)
        # get_available_providers() lists what was built in, not what works; a session tells the truth when it is made.
        built = onnxruntime.get_available_providers()
        devices = tuple(device for device, provider in PROVIDERS.items() if provider in built)
        return Availability(available=True, versions={"onnxruntime": onnxruntime.__version__}, devices=devices)

    @classmethod
    def snippet(cls, engine: SavedEngine) -> str:
        return f"""\
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {engine.threads}
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised already
session = onnxruntime.InferenceSession(ENGINE / "{ENGINE}", options, providers=["{engine.provider}"])


def run(inputs):
    return session.run(None, inputs)
"""

    def compile(self, request: CompileRequest) -> Session:
        options = _options(request)
        request.engine_dir.mkdir(parents=True, exist_ok=True)
        with request.stage("build"):
            # One call parses, optimises and prepares the kernels, and writes the optimised graph on its way.
            session = _open(
                request.artifact.onnx_path, request, options.level, CompileError, request.engine_dir / ENGINE
            )
        return OnnxRuntimeSession(session, request)

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        if not (engine_dir / ENGINE).is_file():
            raise RunError(f"no saved engine in {engine_dir}")
        # The saved graph is optimised already; doing it again would only cost time.
        return OnnxRuntimeSession(_open(engine_dir / ENGINE, request, "disable", RunError), request)


class OnnxRuntimeSession(Session):
    """An inference session with inputs and outputs bound to the device."""

    def __init__(self, session: Any, request: CompileRequest) -> None:
        self.provider = session.get_providers()[0]
        self._session = session
        self._artifact: Artifact = request.artifact
        kind, _, index = request.device.partition(":")
        self._device, self._index = kind, int(index or 0)
        self._binding = session.io_binding()

    def save(self, engine_dir: Path) -> None:
        """Do nothing: the optimised graph was written while the session was made, which is part of compile time."""

    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        import onnxruntime

        fitting = self._artifact.check_inputs(inputs)
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        for name, array in fitting.items():
            # On the CPU an OrtValue would share the caller's memory: copy, as every other backend does.
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), self._device, self._index)
            self._binding.bind_ortvalue_input(name, value)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, self._device, self._index)

    def execute(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def synchronize(self) -> None:
        if self._device != "cpu":
            self._binding.synchronize_outputs()

    def outputs(self) -> dict[str, np.ndarray]:
        arrays = self._binding.copy_outputs_to_cpu()
        names = [output.name for output in self._session.get_outputs()]
        return {name: array.copy() for name, array in zip(names, arrays, strict=True)}

    def close(self) -> None:
        self._binding = self._session = None


def _options(request: CompileRequest) -> OnnxRuntimeOptions:
    assert isinstance(request.options, OnnxRuntimeOptions)
    return request.options


def _open(
    path: Path,
    request: CompileRequest,
    level: str,
    failure: type[CompileError] | type[RunError],
    optimised: Path | None = None,
) -> Any:
    import onnxruntime

    if request.precision != "fp32":
        raise UnsupportedError(f"precision {request.precision} is not built for onnxruntime")
    kind, _, index = request.device.partition(":")
    wanted = PROVIDERS[_options(request).provider or kind]
    if wanted not in onnxruntime.get_available_providers():
        raise UnsupportedError(f"this build of onnxruntime has no {wanted}", hint=HINT)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = request.threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    if optimised is not None:
        settings.optimized_model_filepath = str(optimised)
        if request.artifact.manifest.weights_bytes > 1 << 30:  # protobuf ends at 2 GiB
            settings.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", f"{ENGINE}.data"
            )
    if wanted != PROVIDERS["cpu"]:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    choice = [(wanted, {"device_id": int(index or 0)})] if kind == "cuda" else [wanted]
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=choice)
    except Exception as exc:  # ONNX Runtime's errors share no base class but Exception
        if "disable_cpu_ep_fallback" in str(exc) or "explicitly disabled" in str(exc):
            raise FallbackError(f"ONNX Runtime would run nodes on the CPU instead of {wanted}: {exc}") from exc
        raise failure(f"{type(exc).__name__}: {exc}") from exc
    if session.get_providers()[0] != wanted:
        raise FallbackError(f"asked for {wanted}, ONNX Runtime runs {session.get_providers()[0]}")
    return session
