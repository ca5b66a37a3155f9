"""TensorRT for RTX: builds engines ahead of time, also for devices that this machine lacks.

A build leaves the last step, kernels for the device at hand, to the first run there. What that step made is
kept in a runtime cache beside the engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.cuda_device import Gpu
from backends.tensorrt_build import Build
from backends.tensorrt_family import TensorRTFamily, usable_driver
from backends.tensorrt_session import EngineCard, EngineSession
from harness.api import Availability, Capabilities, CompileRequest, Scalar
from harness.errors import CompileError, UnavailableError, UnsupportedError
from harness.precisions import PRECISIONS

if TYPE_CHECKING:
    from harness.api import Tensors

TARGETS = {"sm_75": "SM75", "sm_80": "SM80", "sm_86": "SM86", "sm_89": "SM89", "sm_120": "SM120", "sm_121": "SM121"}
"""Compute capability -> member of `tensorrt_rtx.ComputeCapability` in 1.7."""
DEFAULT_TARGET = "sm_89"
"""What to build for where nothing is asked for and there is no device."""
RUNTIME_CACHE = "runtime.cache"
RUNS_UNTIL_RECORDED = 2
"""TensorRT-RTX records its CUDA graph in the second run."""


class RtxSession(EngineSession):
    """An engine whose kernels are compiled at its first run, unless the runtime cache has them."""

    def __init__(self, trt: Any, plan: Any, card: EngineCard, *, engine_dir: Path | None = None, **rest: Any) -> None:
        """As the base; a runtime cache may lie in `engine_dir`."""
        path = engine_dir / RUNTIME_CACHE if engine_dir else None
        self._known = path.read_bytes() if path is not None and path.is_file() else b""
        self._warm = False
        self._cache: Any = None
        super().__init__(trt, plan, card, engine_dir=engine_dir, **rest)

    def facts(self) -> dict[str, Scalar]:
        kernels = f"from a runtime cache of {len(self._known)} bytes" if self._warm else "compiled in this process"
        return {**super().facts(), "jit": kernels}

    def save(self, engine_dir: Path) -> None:
        super().save(engine_dir)
        kernels = self._cache.serialize()
        if kernels is not None:  # without it the next session compiles them again
            (engine_dir / RUNTIME_CACHE).write_bytes(kernels)

    def close(self) -> None:
        super().close()
        self._cache = None

    def settle(self, inputs: Tensors) -> None:
        """Run until all kernels are compiled and, where that is asked for, TensorRT has recorded its CUDA graph.

        Raises:
            UnsupportedError: It runs without a graph.
        """
        self.bind(inputs)
        for _ in range(RUNS_UNTIL_RECORDED if self._cuda_graph else 1):
            self.execute()
            self.synchronize()
        self._check_graph()

    def _create_context(self, engine: Any) -> Any:
        trt = self._trt
        config = engine.create_runtime_config()
        if self._cache is None:  # one for all contexts: it must outlive the first when a profile makes another
            self._cache = config.create_runtime_cache()
            # A cache of another device or version is refused, which costs a compilation and changes no result.
            self._warm = bool(self._known) and bool(self._cache.deserialize(self._known))
        config.set_runtime_cache(self._cache)
        # The default compiles kernels for a shape in the background while it runs slower ones: latency would fall
        # at some point of the measurement.
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        if self._cuda_graph:
            whole = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            config.cuda_graph_strategy = whole
            if config.cuda_graph_strategy != whole:
                raise self._not_recorded("TensorRT refused the setting")
        context = engine.create_execution_context(runtime_config=config)
        self._check_graph()
        return context

    def _record(self) -> None:
        self._run = self._enqueue  # TensorRT records and replays by itself, from the second run on
        self._enqueue()

    def _check_graph(self) -> None:
        # It only warns, and goes on without.
        if self._cuda_graph and (why := self._messages.no_graph()):
            raise self._not_recorded(why)


class TensorRTRTX(TensorRTFamily):
    """Builds without a device, for one compute capability."""

    name = "tensorrt-rtx"
    summary = "NVIDIA TensorRT for RTX: builds for a GPU that need not be here"
    capabilities = Capabilities(
        source="onnx",
        devices=("cuda",),
        precisions={"cuda": PRECISIONS},
        compile_targets=tuple(TARGETS),
        dynamic_shapes=True,
    )
    modules = ("tensorrt_rtx",)
    _session = RtxSession

    @classmethod
    def _without_device(cls, versions: dict[str, str], why: UnavailableError) -> Availability:
        reason = f"engines can be built but not run: {why.message}"
        return Availability(available=True, versions=versions, reason=reason, hint=why.hint)

    def _gpu(self, request: CompileRequest) -> Gpu | None:
        if request.target is not None or not request.device.startswith("cuda"):
            return None
        try:
            driver = usable_driver(self.modules[0])
        except UnavailableError:
            return None
        return driver.gpu(request.device)

    def _why_not_run(self, request: CompileRequest) -> str:
        if request.target is not None or not request.device.startswith("cuda"):
            return ""
        try:
            usable_driver(self.modules[0])
        except UnavailableError as exc:
            return exc.message
        return ""

    def _target(self, gpu: Gpu | None) -> str:
        target = gpu.target if gpu else DEFAULT_TARGET
        if target not in TARGETS:
            raise UnsupportedError(f"{self.name} cannot build for {target}; it builds for {', '.join(TARGETS)}")
        return target

    def _tuned_on(self, gpu: Gpu | None) -> str | None:
        return None  # the part that depends on the device is compiled at the first run

    def _provider(self, target: str) -> str:
        return f"TensorRT-RTX {target}"

    def _configure(
        self, trt: Any, build: Build, request: CompileRequest, target: str, gpu: Gpu | None
    ) -> dict[str, Scalar]:
        facts = super()._configure(trt, build, request, target, gpu)
        capability = getattr(trt.ComputeCapability, TARGETS[target], None)
        build.config.num_compute_capabilities = 1
        if capability is None or not build.config.set_compute_capability(capability, 0):
            raise CompileError(f"tensorrt_rtx {trt.__version__} cannot build for {target}")
        if request.dynamic is not None:
            facts["specialization"] = "eager"
        return {**facts, "jit": "left to the first run on the device"}

    def _started(self, session: EngineSession, request: CompileRequest) -> EngineSession:
        # Compiling the kernels is part of compiling: without this the first measured run would pay for it.
        assert isinstance(session, RtxSession)
        try:
            session.settle(request.artifact.input_set(0))
        except BaseException:  # whatever ends it, Ctrl-C too, the device memory is freed; it goes on up
            session.close()
            raise
        return session
