"""TensorRT for RTX: builds engines ahead of time, also for devices that this machine lacks.

A build leaves the last step, kernels for the device at hand, to the first run there. What that step made is
kept in a runtime cache beside the engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from backends.cuda_device import Gpu
from backends.tensorrt_build import Build
from backends.tensorrt_family import FamilyOptions, TensorRTFamily, usable_driver
from backends.tensorrt_session import EngineCard, EngineSession
from harness import registry
from harness.api import Availability, BackendOptions, Capabilities, CompileRequest, Scalar
from harness.errors import CompileError, UnavailableError, UnsupportedError

TARGETS = {"sm_75": "SM75", "sm_80": "SM80", "sm_86": "SM86", "sm_89": "SM89", "sm_120": "SM120", "sm_121": "SM121"}
"""Compute capability -> member of `tensorrt_rtx.ComputeCapability` in 1.7."""
DEFAULT_TARGET = "sm_89"
RUNTIME_CACHE = "runtime.cache"


class RtxOptions(FamilyOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of TensorRT-RTX. It searches no alternatives, so the native builder's level would do nothing."""

    target: (
        Annotated[
            str,
            msgspec.Meta(
                description="compute capability to build for, such as sm_89; "
                f"left out: this machine's device, or {DEFAULT_TARGET} where there is none"
            ),
        ]
        | None
    ) = None


class RtxSession(EngineSession):
    """An engine whose kernels are compiled at its first run, unless the runtime cache has them."""

    def __init__(self, trt: Any, plan: Any, card: EngineCard, *, engine_dir: Path | None, **rest: Any) -> None:
        """As the base; `engine_dir` is where a runtime cache may lie."""
        path = engine_dir / RUNTIME_CACHE if engine_dir else None
        self._known = path.read_bytes() if path is not None and path.is_file() else b""
        self._warm = False
        self._cache: Any = None
        super().__init__(trt, plan, card, **rest)

    def facts(self) -> dict[str, Scalar]:
        kernels = f"from a runtime cache of {len(self._known)} bytes" if self._warm else "compiled in this process"
        return {**super().facts(), "jit": kernels}

    def save(self, engine_dir: Path) -> None:
        super().save(engine_dir)
        (engine_dir / RUNTIME_CACHE).write_bytes(self._cache.serialize())

    def close(self) -> None:
        super().close()
        self._cache = None

    def _create_context(self, engine: Any) -> Any:
        config = engine.create_runtime_config()
        self._cache = config.create_runtime_cache()
        # A cache of another device or version is refused, which costs a compilation and changes no result.
        self._warm = bool(self._known) and bool(self._cache.deserialize(self._known))
        config.set_runtime_cache(self._cache)
        return engine.create_execution_context(runtime_config=config)


class TensorRTRTX(TensorRTFamily):
    """Builds without a device, for one compute capability."""

    name = "tensorrt-rtx"
    summary = "NVIDIA TensorRT for RTX: builds for a GPU that need not be here"
    capabilities = Capabilities(source="onnx", devices=("cuda",), compile_targets=tuple(TARGETS), dynamic_shapes=True)
    modules = ("tensorrt_rtx",)
    Options = RtxOptions

    @classmethod
    def check(cls, options: BackendOptions) -> None:
        assert isinstance(options, RtxOptions)
        if options.target is not None and options.target not in TARGETS:
            raise registry.unknown("target", options.target, TARGETS)

    @classmethod
    def _without_device(cls, versions: dict[str, str], why: UnavailableError) -> Availability:
        reason = f"engines can be built but not run: {why.message}"
        return Availability(available=True, versions=versions, reason=reason, hint=why.hint)

    def _gpu(self, request: CompileRequest) -> Gpu | None:
        if not request.device.startswith("cuda"):
            return None
        try:
            driver = usable_driver(self.modules[0])
        except UnavailableError:
            return None
        return driver.gpu(request.device)

    def _target(self, options: BackendOptions, gpu: Gpu | None) -> str:
        assert isinstance(options, RtxOptions)
        target = options.target or (gpu.target if gpu else DEFAULT_TARGET)
        if target not in TARGETS:
            raise UnsupportedError(
                f"{self.name} cannot build for {target}; it builds for {', '.join(TARGETS)}",
                hint="name one of them with the option target",
            )
        return target

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
        return {**facts, "jit": "left to the first run on the device"}

    def _open(
        self, trt: Any, plan: Any, card: EngineCard, gpu: Gpu, request: CompileRequest, engine_dir: Path | None
    ) -> EngineSession:
        return RtxSession(trt, plan, card, engine_dir=engine_dir, gpu=gpu, artifact=request.artifact)

    def _started(self, session: EngineSession, request: CompileRequest) -> EngineSession:
        # Compiling the kernels is part of compiling: without this the first measured run would pay for it.
        try:
            session.bind(request.artifact.input_set(0))
            session.execute()
            session.synchronize()
        except BaseException:  # whatever ends it, Ctrl-C too, the device memory is freed; it goes on up
            session.close()
            raise
        return session
