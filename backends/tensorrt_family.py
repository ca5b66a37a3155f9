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
DRIVER_BRANCH = {12: "r535", 13: "r580"}
"""CUDA major version that a TensorRT distribution is built for -> the oldest driver branch NVIDIA names for it."""

_IMPORT_IN_CHILD = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[2])
print(json.dumps(str(importlib.import_module(sys.argv[1]).__version__)))
"""
_IMPORT_TIMEOUT_S = 120


class FamilyOptions(BackendOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that mean the same in both."""

    tf32: Annotated[
        bool,
        msgspec.Meta(description="let float32 products round their inputs to TF32's 10 mantissa bits; faster, drifts"),
    ] = False
    workspace_mb: (
        Annotated[int, msgspec.Meta(ge=1, le=MIB, description="scratch memory that one layer may use, in MiB")] | None
    ) = None


class TensorRTFamily(Backend):
    """Base of both backends. `modules[0]` is the Python module whose API family they share."""

    Options: ClassVar[type[BackendOptions]] = FamilyOptions
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
        version, failure = _import_in_child(module)
        if version is None:
            return Availability(available=False, reason=_import_reason(module, failure), hint=install)
        versions = {module: version}
        if old := cls._too_old(version):
            return Availability(available=False, versions=versions, reason=old, hint=install)
        try:
            driver = usable_driver(module)
        except UnavailableError as exc:
            return cls._without_device(versions, exc)
        if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
            missing = "cuda-bindings, which moves data to the device, is not installed"
            return Availability(available=False, versions=versions, reason=missing, hint="pip install cuda-bindings")
        devices = tuple(f"cuda:{gpu.index}" for gpu in driver.gpus)
        return Availability(available=True, versions=versions, devices=devices)

    @classmethod
    def _too_old(cls, version: str) -> str | None:
        """Return why this version cannot be used, or None."""
        return None

    @classmethod
    def _without_device(cls, versions: dict[str, str], why: UnavailableError) -> Availability:
        """Return the answer for a machine that has the package but no usable device."""
        return Availability(available=False, versions=versions, reason=why.message, hint=why.hint)

    def compile(self, request: CompileRequest) -> Session:
        self._check_precision(request)
        gpu = self._gpu(request)
        target = self._target(request.options, gpu)
        trt = importlib.import_module(self.modules[0])
        case = f"{self.name} cannot compile '{request.artifact.manifest.model.label}' ({request.precision}, {target})"
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
                plan_bytes=plan.nbytes,
                facts={"target": target, **facts, "plan_bytes": plan.nbytes, "network_layers": build.network_layers},
            )
            if gpu is None or gpu.target != target:
                return self._unrunnable(plan, card)
            return self._started(self._open(trt, plan, card, gpu, request, None), request)

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        plan, card = read_engine(engine_dir, self.name)
        try:
            gpu = usable_driver(self.modules[0]).gpu(request.device)
        except UnavailableError as exc:
            raise RunError(f"this engine was built for {card.target}: {exc.message}", hint=exc.hint) from exc
        if gpu.target != card.target:
            raise RunError(
                f"this engine was built for {card.target}, but {request.device} is {gpu.target} ({gpu.name})",
                hint="compile it again on this machine",
            )
        try:
            trt = importlib.import_module(self.modules[0])
        except ImportError as exc:
            raise RunError(
                f"{self.modules[0]} cannot be imported: {exc}", hint=registry.install_hint(self.name)
            ) from exc
        return self._open(trt, plan, card, gpu, request, engine_dir)

    def _check_precision(self, request: CompileRequest) -> None:
        if request.precision not in self.capabilities.precisions:
            known = ", ".join(self.capabilities.precisions)
            raise UnsupportedError(f"{self.name} has no precision '{request.precision}'; it has {known}")

    @abstractmethod
    def _gpu(self, request: CompileRequest) -> Gpu | None:
        """Return the device to build on and run on, or None where the build needs none and there is none."""

    @abstractmethod
    def _target(self, options: BackendOptions, gpu: Gpu | None) -> str:
        """Return the compute capability to build for, such as `sm_89`."""

    @abstractmethod
    def _provider(self, target: str) -> str:
        """Return what really runs, as the report shows it."""

    def _configure(
        self, trt: Any, build: Build, request: CompileRequest, target: str, gpu: Gpu | None
    ) -> dict[str, Scalar]:
        """Set what the options ask for, and return the facts about it."""
        options = request.options
        assert isinstance(options, FamilyOptions)
        if options.tf32:
            build.config.set_flag(trt.BuilderFlag.TF32)
        else:
            build.config.clear_flag(trt.BuilderFlag.TF32)  # TensorRT's own default is on
        facts: dict[str, Scalar] = {"tf32": options.tf32}
        if request.dynamic is not None:
            build.set_profile({spec.name: request.dynamic.bounds(spec) for spec in request.artifact.inputs})
            facts["profile"] = _profile(request.dynamic)
        if options.workspace_mb is not None:
            build.limit_workspace(options.workspace_mb * MIB)
            facts["workspace_mb"] = options.workspace_mb
        return facts

    def _built(self, trt: Any, build: Build, request: CompileRequest, gpu: Gpu | None) -> None:
        """Keep what a successful build left behind for the next one."""

    def _unrunnable(self, plan: Any, card: EngineCard) -> Session:
        return TargetEngine(plan, card)

    def _open(
        self, trt: Any, plan: Any, card: EngineCard, gpu: Gpu, request: CompileRequest, engine_dir: Path | None
    ) -> EngineSession:
        """Return a session; `engine_dir` is where the plan was read from, None for one just built."""
        return EngineSession(trt, plan, card, gpu=gpu, artifact=request.artifact)

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
    """Return the driver, if it is new enough for the CUDA version that the installed distribution was built for.

    Raises:
        UnavailableError: There is no driver or no device, or the driver is too old.
    """
    driver = cuda_device.driver()
    for major, branch in DRIVER_BRANCH.items():
        if _installed(f"{module}_cu{major}") and driver.cuda[0] < major:
            served = ".".join(map(str, driver.cuda))
            raise UnavailableError(
                f"the NVIDIA driver is too old: it serves CUDA {served}, {module}_cu{major} needs CUDA {major}",
                hint=f"update the NVIDIA driver to {branch} or newer",
            )
    return driver


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
