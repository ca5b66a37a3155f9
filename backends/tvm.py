"""Apache TVM: Relax for the graph, MetaSchedule for the kernels.

TVM's CPU kernels have no schedule of their own: what is not tuned is a serial scalar loop. So compiling
means tuning, against a database that outlives the run: a later compile starts from it, and a larger budget
goes on where the last one stopped. On a GPU the kernels that nobody tuned run on DLight's schedules.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec

from backends import tvm_cubin, tvm_cuda, tvm_cuda_engine, tvm_cuda_session, tvm_graph, tvm_tuning
from backends.tvm_session import HEADER, LIBRARY, Header, TVMSession, case_of, first_line, this_cpu
from harness.api import Availability, Backend, BackendOptions, Capabilities, CompileRequest, SavedEngine, Session
from harness.errors import CompileError, HarnessError, RunError, UnavailableError, UnsupportedError, UsageError

PINNED_FFI = "apache-tvm-ffi==0.1.14.post0"
PINNED_FOR = "0.27."
_FLOAT32 = "it computes a quantised graph in float32, between quantising and its inverse"
_NORMALISATION = "its layer normalisation takes float32 and float16 only"
LACKS = {
    "cpu": {"bf16": _NORMALISATION, "fp8": _FLOAT32},
    "cuda": {
        "fp16": "its kernels of float16 have been tried on a CPU only",
        "bf16": _NORMALISATION,
        "int8": "harness turns a quantised graph into products of integers for a CPU only; TVM leaves them in float32",
        "fp8": _FLOAT32,
    },
}
"""Device kind -> precision -> why it is not offered."""


class Options(BackendOptions, frozen=True, kw_only=True):
    """Options of the `tvm` backend. Both budgets count everything ever spent on this model's database."""

    tuner: Annotated[
        Literal["meta-schedule", "none"],
        msgspec.Meta(
            description="none: on a CPU every kernel stays without a schedule, many times slower than eager; "
            "on a GPU it gets DLight's default one"
        ),
    ] = "meta-schedule"
    trials: (
        Annotated[int, msgspec.Meta(ge=0, description="most kernels to try, earlier compiles included; default: any")]
        | None
    ) = None
    tuning_seconds: Annotated[
        float, msgspec.Meta(ge=0, description="seconds of tuning, earlier compiles included; 0 replays what is known")
    ] = 120.0
    cuda_graph: Annotated[
        bool, msgspec.Meta(description="on a GPU: launch what has static shapes as one CUDA graph")
    ] = False


class TVM(Backend):
    """Compiles the artifact's ONNX file for this machine's CPU, its GPU, or a GPU that need not be here."""

    name = "tvm"
    summary = "Apache TVM: Relax with kernels tuned by MetaSchedule"
    capabilities = Capabilities(
        source="onnx",
        devices=("cpu", "cuda"),
        precisions={"cpu": ("fp32", "fp16", "int8")},
        lacks=LACKS,
        dynamic_shapes=True,
        compile_targets=tvm_cuda.TARGETS,
    )
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
        try:
            devices = tvm_cuda.usable_devices()
            tvm_cubin.tools()
        except UnavailableError as exc:
            reason = f"it cannot use a GPU: {exc.message}"
            return Availability(available=True, versions=versions, devices=("cpu",), reason=reason, hint=exc.hint)
        except Exception as exc:  # a probe must not raise, whatever a broken installation does
            reason = f"it cannot use a GPU: {type(exc).__name__}: {exc}"
            return Availability(available=True, versions=versions, devices=("cpu",), reason=reason)
        return Availability(available=True, versions=versions, devices=("cpu", *devices))

    @classmethod
    def distribution(cls, options: BackendOptions, kind: str) -> str:
        return "apache-tvm"

    @classmethod
    def companions(cls, version: str, options: BackendOptions, kind: str) -> tuple[str, ...]:
        """Return what importing a graph, tuning and compiling for a GPU take; TVM's wheel names only a part of it."""
        own = (PINNED_FFI,) if version.startswith(PINNED_FOR) else ()
        return (
            *own,
            "onnx",
            "cloudpickle",
            "filelock",
            "psutil",
            "scipy",
            *(("cuda-bindings", "cuda-toolkit[cccl,cudart,nvrtc]") if kind == "cuda" else ()),
        )

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

    @classmethod
    def snippet(cls, engine: SavedEngine) -> str:
        if engine.device != "cpu":
            raise UnsupportedError(f"loading an engine by itself was tried on a CPU only, not on {engine.device}")
        return f"""\
import json
import os

os.environ["TVM_NUM_THREADS"] = "{engine.threads}"
import tvm
from tvm import relax

names = json.loads((ENGINE / "{HEADER}").read_text())["inputs"]  # in the order of the function's arguments
machine = relax.VirtualMachine(tvm.runtime.load_module(str(ENGINE / "{LIBRARY}")), tvm.cpu())


def run(inputs):
    outputs = machine["main"](*(tvm.runtime.tensor(inputs[name]) for name in names))
    return [output.numpy() for output in ([outputs] if hasattr(outputs, "numpy") else outputs)]
"""

    def compile(self, request: CompileRequest) -> Session:
        options = cast("Options", request.options)
        with _compile_errors(request):
            with request.stage("load"):
                card = tvm_cuda_engine.card_for(request)
                if options.cuda_graph and card is None:
                    raise UnsupportedError("tvm: a CPU has no CUDA graphs", hint="leave out cuda_graph=true")
                target = card.target if card else _target(request)
                prepared = tvm_graph.prepare(request, target)

            def session(database: Any, outcome: tvm_tuning.Outcome | None) -> Session:
                with request.stage("build"):
                    if card is None:
                        return _session(request, _build(prepared.module, target, database), prepared, target, outcome)
                    return tvm_cuda_engine.engine(
                        *(request, card, prepared, database, outcome),
                        cuda_graph=options.cuda_graph,
                        untuned=_untuned(request),
                    )

            if _untuned(request):
                return session(None, None)
            folder = _store_folder(request, target, card.identity if card else "")
            with tvm_tuning.open_store(folder, lambda: _say_waiting(request)) as store:
                budget = tvm_tuning.Budget(seconds=options.tuning_seconds, trials=options.trials)
                with request.stage("tune"):
                    tasks = tvm_tuning.extract_tasks(prepared.module, target)
                    if card is not None:
                        tasks = [task for task in tasks if tvm_cuda.tunable(task.module)]
                    with tvm_tuning.Tuner(
                        store,
                        tasks,
                        target,
                        budget,
                        threads=request.threads,
                        progress=request.progress,
                        device=request.device,
                        default=tvm_cuda.default_schedule if card else None,
                    ) as tuner:
                        tuner.run()
                        database, outcome = tuner.fill_gaps()
                return session(database, outcome)

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        import tvm

        again = "compile it again on this machine"
        try:
            header = msgspec.json.decode((engine_dir / HEADER).read_bytes(), type=Header)
        except (OSError, msgspec.DecodeError) as exc:
            raise RunError(f"tvm: no finished engine in {engine_dir}: {exc}", hint="compile it again") from exc
        cpu = this_cpu() if header.target is None else platform.machine()
        if (header.tvm, header.cpu) != (tvm.__version__, cpu):
            raise RunError(
                f"tvm: the engine in {engine_dir} is for TVM {header.tvm} on {header.cpu}; "
                f"this is TVM {tvm.__version__} on {cpu}",
                hint=again,
            )
        if (header.target is None) != (request.device == "cpu"):
            where = header.target or "the CPU"
            raise RunError(f"tvm: the engine in {engine_dir} is for {where}, not for {request.device}", hint=again)
        gpu = tvm_cuda_engine.gpu_to_load_on(header, request) if header.target else None
        try:
            executable = tvm.runtime.load_module(str(engine_dir / LIBRARY))
            if gpu is not None:
                return tvm_cuda_session.CudaSession(request, executable, header, gpu=gpu)
            return TVMSession(request, executable, header)
        except HarnessError:
            raise
        except Exception as exc:
            raise RunError(f"tvm: the engine in {engine_dir} does not load: {exc}", hint="compile it again") from exc


def _untuned(request: CompileRequest) -> str:
    """Return why nothing is tuned, or an empty string where it is."""
    if request.dynamic is not None:
        return "MetaSchedule tunes kernels of one shape only"
    if cast("Options", request.options).tuner == "none":
        return "tuner=none"
    return "MetaSchedule measures on the device itself" if request.target is not None else ""


def _target(request: CompileRequest) -> Any:
    import tvm

    return tvm.target.Target({"kind": "llvm", "mcpu": this_cpu(), "num-cores": request.threads})


def _build(module: Any, target: Any, database: Any) -> Any:
    """Compile a lowered module with the schedules of a database, or with none."""
    import tvm
    from tvm.relax import transform

    if database is not None:
        with target, database:
            module = transform.MetaScheduleApplyDatabase()(module)
    return tvm.compile(module, target=target)


def _store_folder(request: CompileRequest, target: Any, device: str) -> Path:
    """Return where the database lies. `device` is what its measurements hold for, beyond the target."""
    import tvm

    parts = (request.artifact.hash, str(target), tvm.__version__, tvm_graph.RECIPE, device)
    key = "\n".join(filter(None, parts))
    return request.cache_dir / hashlib.sha256(key.encode()).hexdigest()[:24]


def _session(
    request: CompileRequest,
    executable: Any,
    prepared: tvm_graph.Prepared,
    target: Any,
    outcome: tvm_tuning.Outcome | None,
) -> TVMSession:
    import tvm

    cpu = this_cpu()
    scheduled = outcome is not None and outcome.tasks_tuned + outcome.tasks_unmeasured > 0
    header = Header(
        tvm=tvm.__version__,
        provider=f"{target.kind.name} -mcpu={cpu}" + ("" if scheduled else ", no schedule"),
        cpu=cpu,
        inputs=prepared.inputs,
        facts=outcome.facts() if outcome else {"tuner": "none"},
        notes=[*_notes(outcome, request), *prepared.notes],
    )
    try:
        return TVMSession(request, executable, header)
    except KeyError as exc:
        raise CompileError(f"tvm: the ONNX file's input {exc} is not an input of {case_of(request)}") from exc


def _notes(outcome: tvm_tuning.Outcome | None, request: CompileRequest) -> list[str]:
    if outcome is None:
        return [f"no schedule: TVM's kernels ran as serial scalar loops, because {_untuned(request)}"]
    notes = []
    if outcome.records_before:
        notes.append(outcome.warm_note())
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
        message = f"tvm cannot compile {case_of(request)}: {first_line(exc)}"
        if request.dynamic is not None:
            # The importer needs ranks and sizes in places where a free dimension hides them.
            raise UnsupportedError(
                message, hint="leave out dynamic=true: every shape then gets its own engine"
            ) from exc
        raise CompileError(message) from exc


def _say_waiting(request: CompileRequest) -> None:
    request.progress("waiting for another compile that tunes the same model", None, None)
