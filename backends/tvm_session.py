"""An engine that TVM compiled: how it runs, what is saved of it, and what must fit for it to load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from backends import tvm_profile
from harness.api import CompileRequest, Profile, Scalar, Session
from harness.errors import CompileError, RunError
from harness.operators import Clock, Iterate

if TYPE_CHECKING:
    import numpy as np

    from harness.api import Tensors

LIBRARY = "engine.so"
HEADER = "engine.json"


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What lies beside the library and is needed to load it."""

    tvm: str
    provider: str
    cpu: str
    """LLVM's name of the CPU; of an engine for a GPU, whose host code is for any CPU of a family, the family."""
    target: str | None = None
    """Compute capability that its kernels were compiled for, such as `sm_89`; None: they run on the CPU."""
    placement: dict[str, int] | None = None
    inputs: tuple[str, ...]
    """Names in the order of the compiled function's arguments."""
    facts: dict[str, Scalar]
    notes: list[str]


class TVMSession(Session):
    """A Relax virtual machine on the CPU."""

    def __init__(self, request: CompileRequest, executable: Any, header: Header) -> None:
        import tvm
        from tvm import relax

        self.provider = header.provider
        self._header = header
        self._executable = executable
        self._artifact = request.artifact
        specs = {spec.name: spec for spec in request.artifact.inputs}
        self._output_names = [spec.name for spec in request.artifact.outputs]
        self._bound = {name: tvm.runtime.empty(specs[name].shape, specs[name].dtype) for name in header.inputs}
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
                f"tvm: the engine cannot be written: {first_line(exc)}",
                hint="TVM links it with g++ or clang++, which must be on PATH",
            ) from exc
        # Written last: an engine without its header is one that did not finish.
        (engine_dir / HEADER).write_bytes(msgspec.json.encode(self._header))

    def bind(self, inputs: Tensors) -> None:
        fitting = self._artifact.check_inputs(inputs)
        for name, tensor in self._bound.items():
            tensor.copyfrom(fitting[name])

    def execute(self) -> None:
        try:
            self._result = self._run(*self._bound.values())
        except Exception as exc:
            raise RunError(f"tvm: the engine failed: {first_line(exc)}") from exc

    def synchronize(self) -> None:
        """Do nothing: CPU kernels have returned when `execute()` does."""

    def profile(self, iterate: Iterate, clock: Clock) -> Profile:
        import tvm
        from tvm import relax

        machine = relax.VirtualMachine(self._executable, tvm.cpu())
        main = machine["main"]
        return tvm_profile.profile(machine, lambda: main(*self._bound.values()), iterate, clock, self._artifact)

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


def this_cpu() -> str:
    """Return LLVM's name of this machine's CPU, such as `znver4`."""
    from tvm.target.codegen import llvm_get_system_cpu

    return str(llvm_get_system_cpu())


def case_of(request: CompileRequest) -> str:
    """Return how an error names what it was about: `'resnet50' (fp32, cpu)`, `'resnet50' (fp32, sm_89)`."""
    free = f", {' and '.join(request.dynamic.ranges)} free" if request.dynamic else ""
    where = request.target or request.device
    return f"'{request.artifact.manifest.model.label}' ({request.precision}, {where}{free})"


def first_line(exc: BaseException) -> str:
    """Return an error's type and first line: TVM appends its C++ stack, which the log keeps."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {lines[0]}" if lines else type(exc).__name__
