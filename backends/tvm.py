"""Apache TVM: Relax for the graph, MetaSchedule for the kernels.

TVM's CPU kernels have no schedule of their own: what is not tuned is a serial scalar loop. So compiling
means tuning, against a database that outlives the run: a later compile starts from it, and a larger budget
goes on where the last one stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import msgspec

from backends import tvm_tuning
from harness.api import (
    Availability,
    Backend,
    BackendOptions,
    Capabilities,
    CompileRequest,
    Scalar,
    Session,
    TensorSpec,
)
from harness.errors import CompileError, HarnessError, RunError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from harness.api import Tensors

LIBRARY = "engine.so"
HEADER = "engine.json"
RECIPE = "1"
"""Changes whenever `_prepare()` does: kernels of another recipe are other tasks with another budget."""
CONV_LAYOUT = {"relax.nn.conv2d": ["NHWC", "HWIO"]}
"""Channels last, so that a vector runs along them: ResNet-50's kernels reach several times the speed of NCHW."""
PINNED_FFI = "apache-tvm-ffi==0.1.14.post0"


class Options(BackendOptions, frozen=True, kw_only=True):
    """Options of the `tvm` backend. Both budgets count everything ever spent on this model's database."""

    tuner: Annotated[
        Literal["meta-schedule", "none"],
        msgspec.Meta(description="none: leave every kernel without a schedule, about 90 times slower than eager"),
    ] = "meta-schedule"
    trials: (
        Annotated[int, msgspec.Meta(ge=0, description="most kernels to try, earlier compiles included; default: any")]
        | None
    ) = None
    tuning_seconds: Annotated[
        float, msgspec.Meta(ge=0, description="seconds of tuning, earlier compiles included; 0 replays what is known")
    ] = 120.0


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What lies beside the library and is needed to load it."""

    tvm: str
    provider: str
    cpu: str
    inputs: tuple[str, ...]
    """Names in the order of the compiled function's arguments."""
    facts: dict[str, Scalar]
    notes: list[str]


class TVM(Backend):
    """Compiles the artifact's ONNX file for the CPU of this machine."""

    name = "tvm"
    summary = "Apache TVM: Relax with kernels tuned by MetaSchedule"
    capabilities = Capabilities(source="onnx", devices=("cpu",), precisions=("fp32",))
    modules = ("tvm", "tvm.relax", "tvm.relax.frontend.onnx", "tvm.s_tir.meta_schedule")
    Options = Options

    @classmethod
    def probe(cls) -> Availability:
        from importlib.metadata import PackageNotFoundError, version

        versions = {}
        try:
            for distribution in ("apache-tvm", "apache-tvm-ffi", "onnx", "filelock", "psutil", "cloudpickle"):
                versions[distribution] = version(distribution)
            import tvm
            import tvm.relax.frontend.onnx
        except PackageNotFoundError as exc:
            return Availability(available=False, versions=versions, reason=f"{exc.name} is not installed")
        except Exception as exc:
            return Availability(
                available=False,
                versions=versions,
                reason=f"TVM does not import: {type(exc).__name__}: {exc}",
                hint=f"pip install '{PINNED_FFI}'",
            )
        if not tvm.runtime.enabled("llvm"):
            return Availability(available=False, versions=versions, reason="this build of TVM has no LLVM")
        return Availability(available=True, versions=versions, devices=("cpu",))

    @classmethod
    def check(cls, options: BackendOptions) -> None:
        options = cast("Options", options)
        default = cls.Options()
        if options.tuner != "none":
            return
        for field in ("trials", "tuning_seconds"):
            if getattr(options, field) != getattr(default, field):
                raise UsageError(
                    f"tvm: {field} says how long to tune, but tuner=none does not tune",
                    hint=f"leave out {field} or tuner=none",
                )

    @classmethod
    def environment(cls, options: BackendOptions, engine_dir: Path, threads: int) -> dict[str, str]:
        return {
            "TVM_NUM_THREADS": str(threads),
            # Would pin threads to the first cores, the same ones for every process.
            "TVM_BIND_THREADS": "0",
            # Would load, or even compile, an extension that only torch tensors need.
            "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1",
        }

    def compile(self, request: CompileRequest) -> Session:
        options = cast("Options", request.options)
        with _compile_errors(request):
            with request.stage("load"):
                target = _target(request)
                prepared, inputs = _prepare(request, target)
            if options.tuner == "none":
                with request.stage("build"):
                    return _session(request, _build(prepared, target, None), inputs, target, None)
            with tvm_tuning.open_store(_store_folder(request, target), lambda: _say_waiting(request)) as store:
                budget = tvm_tuning.Budget(seconds=options.tuning_seconds, trials=options.trials)
                with request.stage("tune"):
                    tasks = tvm_tuning.extract_tasks(prepared, target)
                    with tvm_tuning.Tuner(
                        store, tasks, target, budget, threads=request.threads, progress=request.progress
                    ) as tuner:
                        tuner.run()
                        database, outcome = tuner.fill_gaps()
                with request.stage("build"):
                    return _session(request, _build(prepared, target, database), inputs, target, outcome)

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        import tvm

        try:
            header = msgspec.json.decode((engine_dir / HEADER).read_bytes(), type=Header)
        except (OSError, msgspec.DecodeError) as exc:
            raise RunError(f"tvm: no finished engine in {engine_dir}: {exc}", hint="compile it again") from exc
        cpu = _cpu()
        if (header.tvm, header.cpu) != (tvm.__version__, cpu):
            raise RunError(
                f"tvm: the engine in {engine_dir} is for TVM {header.tvm} on {header.cpu}; "
                f"this is TVM {tvm.__version__} on {cpu}",
                hint="compile it again on this machine",
            )
        try:
            executable = tvm.runtime.load_module(str(engine_dir / LIBRARY))
            return TVMSession(request, executable, header)
        except Exception as exc:
            raise RunError(f"tvm: the engine in {engine_dir} does not load: {exc}", hint="compile it again") from exc


class TVMSession(Session):
    """A Relax virtual machine on the CPU."""

    def __init__(self, request: CompileRequest, executable: Any, header: Header) -> None:
        import tvm
        from tvm import relax

        self.provider = header.provider
        self._header = header
        self._executable = executable
        self._specs = {spec.name: spec for spec in request.artifact.inputs}
        self._output_names = [spec.name for spec in request.artifact.outputs]
        self._bound = {
            name: tvm.runtime.empty(self._specs[name].shape, self._specs[name].dtype) for name in header.inputs
        }
        self._run = relax.VirtualMachine(executable, tvm.cpu())["main"]
        self._result: Any = None

    def facts(self) -> dict[str, Scalar]:
        return dict(self._header.facts)

    def notes(self) -> list[str]:
        return list(self._header.notes)

    def save(self, engine_dir: Path) -> None:
        engine_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._executable.export_library(str(engine_dir / LIBRARY))
        except Exception as exc:
            raise CompileError(
                f"tvm: the engine cannot be written: {_first_line(exc)}",
                hint="TVM links it with g++ or clang++, which must be on PATH",
            ) from exc
        # Written last: an engine without its header is one that did not finish.
        (engine_dir / HEADER).write_bytes(msgspec.json.encode(self._header))

    def bind(self, inputs: Tensors) -> None:
        if set(inputs) != set(self._specs):
            raise RunError(f"tvm: expected inputs {sorted(self._specs)}, got {sorted(inputs)}")
        for name, tensor in self._bound.items():
            _check_fits(self._specs[name], inputs[name])
            tensor.copyfrom(inputs[name])

    def execute(self) -> None:
        try:
            self._result = self._run(*self._bound.values())
        except Exception as exc:
            raise RunError(f"tvm: the engine failed: {_first_line(exc)}") from exc

    def synchronize(self) -> None:
        """Do nothing: CPU kernels have returned when `execute()` does."""

    def outputs(self) -> dict[str, np.ndarray]:
        if self._result is None:
            raise RunError("tvm: outputs asked for before the first execute()")
        results = [self._result] if hasattr(self._result, "numpy") else list(self._result)
        if len(results) != len(self._output_names):
            raise RunError(f"tvm: expected {len(self._output_names)} outputs, got {len(results)}")
        return {name: result.numpy() for name, result in zip(self._output_names, results, strict=True)}

    def close(self) -> None:
        self._result = self._run = self._executable = None
        self._bound = {}


def _cpu() -> str:
    from tvm.target.codegen import llvm_get_system_cpu

    return str(llvm_get_system_cpu())


def _target(request: CompileRequest) -> Any:
    import tvm

    if request.device != "cpu":
        raise UnsupportedError(f"tvm compiles for the cpu only, not for {request.device}", hint="leave out --device")
    return tvm.target.Target({"kind": "llvm", "mcpu": _cpu(), "num-cores": request.threads})


def _prepare(request: CompileRequest, target: Any) -> tuple[Any, tuple[str, ...]]:
    """Import the ONNX file and lower it to fused kernels.

    Returns:
        The module that tuning and building both start from, and the inputs in the order of its arguments.
    """
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax import transform
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx.load(request.artifact.onnx_path)
    constants = {initializer.name for initializer in model.graph.initializer}
    inputs = tuple(entry.name for entry in model.graph.input if entry.name not in constants)
    try:
        module = from_onnx(model, keep_params_in_input=False)
    except tvm.error.OpNotImplemented as exc:
        raise UnsupportedError(f"tvm cannot import {_case(request)}: {_first_line(exc)}") from exc
    passes = [
        transform.DecomposeOpsForInference(),
        transform.CanonicalizeBindings(),
        transform.ConvertLayout(CONV_LAYOUT),
        transform.Normalize(),
        transform.CanonicalizeBindings(),
        transform.FoldConstant(),
        relax.get_pipeline("zero"),
    ]
    with target:
        return tvm.transform.Sequential(passes)(module), inputs


def _build(prepared: Any, target: Any, database: Any) -> Any:
    """Compile a prepared module with the schedules of a database, or with none."""
    import tvm
    from tvm.relax import transform

    if database is not None:
        with target, database:
            prepared = transform.MetaScheduleApplyDatabase()(prepared)
    return tvm.compile(prepared, target=target)


def _store_folder(request: CompileRequest, target: Any) -> Path:
    import tvm

    key = "\n".join((request.artifact.hash, str(target), tvm.__version__, RECIPE))
    return request.cache_dir / hashlib.sha256(key.encode()).hexdigest()[:24]


def _session(
    request: CompileRequest, executable: Any, inputs: tuple[str, ...], target: Any, outcome: tvm_tuning.Outcome | None
) -> TVMSession:
    import tvm

    cpu = _cpu()
    scheduled = outcome is not None and outcome.tasks_tuned + outcome.tasks_unmeasured > 0
    header = Header(
        tvm=tvm.__version__,
        provider=f"{target.kind.name} -mcpu={cpu}" + ("" if scheduled else ", no schedule"),
        cpu=cpu,
        inputs=inputs,
        facts=_facts(outcome),
        notes=_notes(outcome),
    )
    try:
        return TVMSession(request, executable, header)
    except KeyError as exc:
        raise CompileError(f"tvm: the ONNX file's input {exc} is not an input of {_case(request)}") from exc


def _facts(outcome: tvm_tuning.Outcome | None) -> dict[str, Scalar]:
    if outcome is None:
        return {"tuner": "none"}
    return {
        "tuner": "meta-schedule",
        "trials": outcome.ledger.trials,
        "failed_trials": outcome.ledger.failed_trials,
        "tasks": outcome.tasks,
        "tasks_tuned": outcome.tasks_tuned,
        "tuning_s_total": round(outcome.ledger.seconds, 1),
        "database_records": outcome.records,
        "database_records_before": outcome.records_before,
    }


def _notes(outcome: tvm_tuning.Outcome | None) -> list[str]:
    if outcome is None:
        return ["no schedule: TVM's kernels ran as serial scalar loops, because tuner=none"]
    notes = []
    bare = outcome.tasks - outcome.tasks_tuned - outcome.tasks_unmeasured
    if bare:
        notes.append(f"no schedule: {bare} of {outcome.tasks} kernels ran as serial scalar loops; every trial failed")
    if outcome.tasks_unmeasured:
        notes.append(
            f"{outcome.tasks_unmeasured} of {outcome.tasks} kernels ran on a schedule that was drawn but never "
            "measured: give tvm more tuning_seconds or trials"
        )
    if outcome.finished:
        notes.append("the tuner stopped before its budget was spent: no search had anything new to propose")
    return notes


def _check_fits(spec: TensorSpec, array: np.ndarray) -> None:
    if (str(array.dtype), array.shape) != (spec.dtype, spec.shape):
        raise RunError(
            f"tvm: input '{spec.name}' must be {spec.dtype}{list(spec.shape)}, got {array.dtype}{list(array.shape)}"
        )


@contextmanager
def _compile_errors(request: CompileRequest) -> Iterator[None]:
    try:
        yield
    except HarnessError:
        raise
    except tvm_tuning.TunerBroken as exc:
        raise UnsupportedError(
            f"tvm cannot tune here: {exc}", hint=f"pip install '{PINNED_FFI}', or set tuner=none"
        ) from exc
    except Exception as exc:
        raise CompileError(f"tvm cannot compile {_case(request)}: {_first_line(exc)}") from exc


def _case(request: CompileRequest) -> str:
    return f"'{request.artifact.manifest.model}' ({request.precision}, {request.device})"


def _first_line(exc: BaseException) -> str:
    # TVM appends its C++ stack, which the log keeps.
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {lines[0]}" if lines else type(exc).__name__


def _say_waiting(request: CompileRequest) -> None:
    request.progress("waiting for another compile that tunes the same model", None, None)
