"""What a TVM compile for a GPU is made of: the card it is for, and the engine with all that the report says of it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from backends import tvm_cubin, tvm_cuda
from backends.cuda_device import Gpu
from backends.tvm_cuda_session import CudaSession, TargetEngine
from backends.tvm_graph import Prepared
from backends.tvm_session import Header, case_of
from backends.tvm_tuning import Outcome
from harness.api import CompileRequest, Session
from harness.errors import CompileError, RunError, UnavailableError, UnsupportedError

# TVM objects are `Any` below: the package carries no types and must not be imported at the top of a backend.


@dataclass(frozen=True, kw_only=True)
class Card:
    """What an engine is for, and the compiler of its kernels."""

    target: Any
    gpu: Gpu | None
    """None: built for a device that need not be here."""
    assembler: tvm_cubin.Assembler

    @property
    def identity(self) -> str:
        """Name what a measured schedule is worth on: cards of one compute capability differ in size."""
        return self.gpu.name if self.gpu else ""


def card_for(request: CompileRequest) -> Card | None:
    """Return what to compile for; None: the CPU.

    Raises:
        UnavailableError: This machine lacks the device, what TVM needs to use it, or a compiler for its kernels.
        UnsupportedError: TVM has no kernels for such a device.
    """
    gpu = None
    if request.target is not None:
        if request.target not in tvm_cuda.TARGETS:
            raise UnsupportedError(
                f"tvm cannot build for {request.target}; it builds for {', '.join(tvm_cuda.TARGETS)}"
            )
        target = tvm_cuda.target_for(request.target)
    elif request.device == "cpu":
        return None
    elif request.device.partition(":")[0] == "cuda":
        import tvm

        gpu = tvm_cuda.gpu_for(request.device)
        target = tvm_cuda.target_of(tvm.cuda(gpu.index))
    else:
        raise UnsupportedError(f"tvm compiles for cpu and cuda, not for {request.device}")
    assembler = tvm_cubin.Assembler(target)
    assembler.install()
    return Card(target=target, gpu=gpu, assembler=assembler)


def engine(
    request: CompileRequest,
    card: Card,
    prepared: Prepared,
    database: Any,
    outcome: Outcome | None,
    *,
    cuda_graph: bool,
    untuned: str,
) -> Session:
    """Build the kernels and return a session; for a device that need not be here, one that cannot run.

    Args:
        request: What was asked for.
        card: What it is for.
        prepared: The model.
        database: Schedules that were measured, or None.
        outcome: Of the tuning, or None.
        cuda_graph: Whether what is static runs as one CUDA graph.
        untuned: Why nothing was tuned; empty where it was.
    """
    import tvm

    assembler = card.assembler
    request.progress(f"compiling kernels with {assembler.tool.name}", None, None)
    built = tvm_cuda.build(prepared.module, card.target, database, cuda_graph=cuda_graph)
    sources = [str(one.inspect_source("cuda")) for one in tvm_cubin.cuda_modules(built.executable.mod)]
    cubins = [assembler.cubin(source) for source in sources]
    provider = f"cuda {assembler.arch}"
    provider += "" if outcome and outcome.tasks_tuned else ", dlight"
    provider += ", CUDA graph" if built.graphs else ""
    header = Header(
        tvm=tvm.__version__,
        provider=provider,
        cpu=platform.machine(),
        target=assembler.arch,
        placement=built.placement,
        inputs=prepared.inputs,
        facts={
            **(outcome.facts() if outcome else {"tuner": "none"}),
            "target": assembler.arch,
            "kernels": sum(map(tvm_cubin.kernels, sources)),
            "cubin_bytes": sum(map(len, cubins)),
            "cuda_compiler": assembler.described,
            **({"cuda_graph": built.graphs > 0} if cuda_graph else {}),
        },
        notes=[*_notes(built, outcome, untuned, cuda_graph=cuda_graph), *prepared.notes],
    )
    if card.gpu is None:
        return TargetEngine(built.executable, header, assembler.cubin)
    try:
        return CudaSession(request, built.executable, header, gpu=card.gpu, cubin=assembler.cubin)
    except KeyError as exc:
        raise CompileError(f"tvm: the ONNX file's input {exc} is not an input of {case_of(request)}") from exc


def gpu_to_load_on(header: Header, request: CompileRequest) -> Gpu:
    """Return the device for an engine that was saved.

    Raises:
        RunError: The engine is not for it, or TVM cannot use it.
    """
    try:
        gpu = tvm_cuda.gpu_for(request.device)
    except UnavailableError as exc:
        raise RunError(f"tvm: this engine was built for {header.target}: {exc.message}", hint=exc.hint) from exc
    if gpu.target != header.target:
        raise RunError(
            f"tvm: this engine was built for {header.target}, but {request.device} is {gpu.target} ({gpu.name})",
            hint="compile it again on this machine",
        )
    return gpu


def _notes(built: tvm_cuda.Built, outcome: Outcome | None, untuned: str, *, cuda_graph: bool) -> list[str]:
    notes = []
    if outcome is None:
        notes.append(f"every kernel runs on DLight's default schedule, which nobody measured, because {untuned}")
    else:
        if outcome.tasks_tuned < outcome.tasks:
            rest = outcome.tasks - outcome.tasks_tuned
            notes.append(
                f"{rest} of {outcome.tasks} kernels run on DLight's default schedule: tuning measured nothing faster"
            )
        if outcome.last_failure and not outcome.tasks_tuned:
            notes.append(f"the last measurement that failed ended with {outcome.last_failure}")
        if outcome.records_before:
            notes.append(outcome.warm_note())
    if built.booleans:
        notes.append(
            f"{built.booleans} kernels with booleans run without vectors, untuned: TVM would load the wrong bytes"
        )
    if cuda_graph and not built.graphs:
        notes.append("no part of the model could be captured in a CUDA graph: none has static shapes throughout")
    return notes
