"""What the two TensorRT backends share: options, the probe, and the way from an artifact to a session and back."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from abc import abstractmethod
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from backends import cuda_device
from backends.cuda_device import Driver, Gpu
from backends.tensorrt_build import Build
from backends.tensorrt_session import EngineCard, EngineSession, TargetEngine, read_engine
from harness import registry
from harness.api import Availability, Backend, BackendOptions, CompileRequest, DynamicShapes, Scalar, Session
from harness.errors import RunError, UnavailableError, UnsupportedError

MIB = 1 << 20
BINDINGS = "cuda-bindings"

_IMPORT_IN_CHILD = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[2])
print(json.dumps(str(importlib.import_module(sys.argv[1]).__version__)))
"""
_IMPORT_TIMEOUT_S = 120


class FamilyOptions(BackendOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that mean the same in both."""

    workspace_mb: (
        Annotated[int, msgspec.Meta(ge=1, le=MIB, description="scratch memory that one layer may use, in MiB")] | None
    ) = None
    cuda_graph: Annotated[
        bool,
        msgspec.Meta(description="launch the whole engine as one recorded CUDA graph: for models bound by launches"),
    ] = False


class TensorRTFamily(Backend):
    """Base of both backends. `modules[0]` is the Python module whose API family they share."""

    Options: ClassVar[type[BackendOptions]] = FamilyOptions
    _session: ClassVar[type[EngineSession]] = EngineSession
    install_note: ClassVar[str] = ""
    """What the install command needs beyond itself."""

    @classmethod
    def probe(cls) -> Availability:
        try:
            return cls._probe()
        except Exception as exc:  # a probe must not raise, whatever a broken installation does
            return Availability(available=False, reason=f"the probe failed: {type(exc).__name__}: {exc}")

    @classmethod
    def _probe(cls) -> Availability:
        """Say what is missing, in the order in which it must be put right: package, its libraries, driver."""
        module = cls.modules[0]
        install = registry.install_hint(cls.name) + cls.install_note
        if importlib.util.find_spec(module) is None:
            return Availability(available=False, reason=f"{module} is not installed", hint=install)
        parts = _parts(module)
        if len(parts) > 1:
            return cls._twice(module, parts)
        version, failure = _import_in_child(module)
        if version is None:
            hint = "; ".join(filter(None, (install, cuda_device.mixture(cuda_device.cuda_parts()))))
            return Availability(available=False, reason=_import_reason(module, failure), hint=hint)
        versions = {module: version}
        if old := cls._too_old(version):
            return Availability(available=False, versions=versions, reason=old, hint=install)
        try:
            driver = usable_driver(module)
        except UnavailableError as exc:
            return cls._without_device(versions, exc)
        devices = tuple(f"cuda:{gpu.index}" for gpu in driver.gpus)
        return Availability(available=True, versions=versions, devices=devices)

    @classmethod
    def _twice(cls, module: str, parts: dict[int, list[str]]) -> Availability:
        """Return the answer for an environment in which the parts for two CUDA versions lie over one another."""
        try:
            served = cuda_device.driver().cuda[0]
        except UnavailableError:
            served = max(parts)
        kept = max((major for major in parts if major <= served), default=max(parts))
        superfluous = [name for major, names in parts.items() if major != kept for name in names]
        return Availability(
            available=False,
            reason=f"{module} is installed for two CUDA versions, whose files overwrite each other: "
            + "; ".join(f"{', '.join(names)} for CUDA {major}" for major, names in parts.items()),
            hint=f"pip uninstall {' '.join(superfluous)}, then: pip install --force-reinstall {' '.join(parts[kept])}",
        )

    @classmethod
    def _too_old(cls, version: str) -> str | None:
        """Return why this version cannot be used, or None."""
        return None

    @classmethod
    def _without_device(cls, versions: dict[str, str], why: UnavailableError) -> Availability:
        """Return the answer for a machine that has the package but no usable device."""
        return Availability(available=False, versions=versions, reason=why.message, hint=why.hint)

    def compile(self, request: CompileRequest) -> Session:
        self._check_supported(request)
        gpu = self._gpu(request)
        target = request.target or self._target(gpu)
        trt = importlib.import_module(self.modules[0])
        case = f"{self.name} cannot compile '{request.artifact.manifest.model.label}' ({request.precision}, {target})"
        if gpu is not None:
            cuda_device.select(gpu.index)  # what is built on a device is built on the current one
        build = Build(trt, case, request.threads)
        with request.stage("load"):
            build.parse(request.artifact.onnx_path)
        with request.stage("build"):
            facts = self._configure(trt, build, request, target, gpu)
            plan = build.plan(request.progress)
            self._built(trt, build, request, gpu)
            card = EngineCard(
                backend=self.name,
                provider=self._provider(target),
                version=str(trt.__version__),
                target=target,
                tuned_on=self._tuned_on(gpu),
                plan_bytes=plan.nbytes,
                facts={"target": target, **facts, "plan_bytes": plan.nbytes, "network_layers": build.network_layers},
            )
            if gpu is None:
                return TargetEngine(plan, card, why=self._why_not_run(request))
            return self._started(self._open(trt, plan, card, gpu, request, None), request)

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        plan, card = read_engine(engine_dir, self.name)
        try:
            gpu = usable_driver(self.modules[0]).gpu(request.device)
        except UnavailableError as exc:
            raise RunError(f"this engine was built for {card.target}: {exc.message}", hint=exc.hint) from exc
        try:
            trt = importlib.import_module(self.modules[0])
        except ImportError as exc:
            raise RunError(
                f"{self.modules[0]} cannot be imported: {exc}", hint=registry.install_hint(self.name)
            ) from exc
        if misfit := _misfit(card, gpu, str(trt.__version__)):
            raise RunError(
                f"this engine was built {misfit} ({request.device}: {gpu.name})",
                hint="compile it again on this machine",
            )
        return self._open(trt, plan, card, gpu, request, engine_dir)

    def _check_supported(self, request: CompileRequest) -> None:
        targets = self.capabilities.compile_targets
        if request.target is not None and request.target not in targets:
            raise UnsupportedError(
                f"{self.name} cannot build for {request.target} without the device"
                + (f"; it builds for {', '.join(targets)}" if targets else "")
            )

    @abstractmethod
    def _gpu(self, request: CompileRequest) -> Gpu | None:
        """Return the device to build on and run on, or None where the engine is only built."""

    def _why_not_run(self, request: CompileRequest) -> str:
        """Return why an engine is only built, empty where that was asked for."""
        return ""

    @abstractmethod
    def _target(self, gpu: Gpu | None) -> str:
        """Return the compute capability to build for where the request names none, such as `sm_89`."""

    @abstractmethod
    def _tuned_on(self, gpu: Gpu | None) -> str | None:
        """Return the name of the device that an engine is tied to, or None where it fits all of its target."""

    @abstractmethod
    def _provider(self, target: str) -> str:
        """Return what really runs, as the report shows it."""

    def _configure(
        self, trt: Any, build: Build, request: CompileRequest, target: str, gpu: Gpu | None
    ) -> dict[str, Scalar]:
        """Set what the options ask for, and return the facts about it."""
        options = request.options
        assert isinstance(options, FamilyOptions)
        # All other precisions are in the graph itself, whose types TensorRT keeps to.
        tf32 = request.precision == "tf32"
        if tf32:
            build.config.set_flag(trt.BuilderFlag.TF32)
        else:
            build.config.clear_flag(trt.BuilderFlag.TF32)  # TensorRT's own default is on
        facts: dict[str, Scalar] = {"tf32": tf32}
        if request.dynamic is not None:
            build.set_profile({spec.name: request.dynamic.bounds(spec) for spec in request.artifact.inputs})
            facts["profile"] = _profile(request.dynamic)
        if options.workspace_mb is not None:
            build.limit_workspace(options.workspace_mb * MIB)
            facts["workspace_mb"] = options.workspace_mb
        return facts

    def _built(self, trt: Any, build: Build, request: CompileRequest, gpu: Gpu | None) -> None:
        """Keep what a successful build left behind for the next one."""

    def _open(
        self, trt: Any, plan: Any, card: EngineCard, gpu: Gpu, request: CompileRequest, engine_dir: Path | None
    ) -> EngineSession:
        """Return a session; `engine_dir` is where the plan was read from, None for one just built."""
        options = request.options
        assert isinstance(options, FamilyOptions)
        return self._session(
            trt, plan, card, gpu=gpu, artifact=request.artifact, cuda_graph=options.cuda_graph, engine_dir=engine_dir
        )

    def _started(self, session: EngineSession, request: CompileRequest) -> EngineSession:
        """Finish what the compiler leaves to the first run."""
        return session


def _profile(dynamic: DynamicShapes) -> str:
    """Return the shapes that an engine takes and those that it is tuned for: `batch 1 to 8, tuned for 8`."""
    return "; ".join(f"{name} {low} to {high}, tuned for {high}" for name, (low, high) in dynamic.ranges.items())


def _import_in_child(module: str) -> tuple[str | None, str]:
    """Import a module in a child process, which a broken installation may end.

    Returns:
        The version and what was written to stderr; the version is None where the import failed.
    """
    command = [sys.executable, "-c", _IMPORT_IN_CHILD, module, json.dumps(sys.path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return None, f"the import took more than {_IMPORT_TIMEOUT_S} s"
    if done.returncode < 0:
        return None, f"the import ended with signal {-done.returncode}"
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or [f"the import ended with code {done.returncode}"])[-1]
    return str(json.loads(done.stdout.strip().splitlines()[-1])), ""


def _import_reason(module: str, failure: str) -> str:
    library = re.search(r"(lib[\w-]+\.so[.\d]*): cannot open shared object file", failure)
    if library:
        return f"{module} is installed without its libraries: {library[1]} is missing"
    return f"{module} is installed but cannot be imported: {failure}"


def usable_driver(module: str) -> Driver:
    """Return the driver, if all that is needed to run on its devices is there and fits it.

    Raises:
        UnavailableError: There is no driver or no device, the driver is too old for the CUDA version that a
            distribution was built for, or cuda-bindings is missing.
    """
    driver = cuda_device.driver()
    for major, names in _parts(module).items():
        cuda_device.require(driver, names[0], major)
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        raise UnavailableError(
            f"{BINDINGS}, which moves data to the device, is not installed",
            hint=f"pip install '{BINDINGS}<{driver.cuda[0] + 1}'",
        )
    version = metadata.version(BINDINGS)
    cuda_device.require(driver, f"{BINDINGS} {version}", int(version.partition(".")[0]))
    return driver


def _parts(module: str) -> dict[int, list[str]]:
    """Return CUDA major version -> the installed distributions of a module that are built for it."""
    start = f"{module.replace('_', '-')}-cu"
    parts = {
        major: [name for name in names if name.startswith(start)] for major, names in cuda_device.cuda_parts().items()
    }
    return {major: names for major, names in parts.items() if names}


def _misfit(card: EngineCard, gpu: Gpu, version: str) -> str | None:
    """Return why an engine does not fit a device and a version: `for sm_120, and this is sm_89`."""
    if card.target != gpu.target:
        return f"for {card.target}, and this device is {gpu.target}"
    if card.tuned_on not in (None, gpu.name):
        return f"on {card.tuned_on}, and this device is another"
    if card.version != version:
        return f"by {card.backend} {card.version}, and this is {version}"
    return None
