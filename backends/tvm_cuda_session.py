"""TVM engines for a GPU: one that runs, with a stream of its own, and one whose device need not be here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from backends import tvm_cubin, tvm_profile
from backends.cuda_device import DeviceMemory, Gpu
from backends.tvm_session import HEADER, LIBRARY, Header, first_line
from harness.api import CompiledOnly, CompileRequest, Profile, Scalar, Session
from harness.errors import CompileError, HarnessError, OutOfMemory, RunError
from harness.operators import Clock, Iterate

if TYPE_CHECKING:
    import numpy as np

    from harness.api import Tensors


def write_engine(folder: Path, executable: Any, header: Header, cubin: Callable[[str], bytes]) -> None:
    """Write library and header; the header last, so that a folder without one holds no finished engine.

    Args:
        folder: The engine's own.
        executable: What `tvm.compile()` returned, or a loaded library.
        header: What is written beside it.
        cubin: Returns the machine code of a CUDA C++ text.

    Raises:
        CompileError: It cannot be linked or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tvm_cubin.export(executable, folder / LIBRARY, cubin)
    except HarnessError:
        raise
    except Exception as exc:
        raise CompileError(
            f"tvm: the engine cannot be written: {first_line(exc)}",
            hint="TVM links it with g++ or clang++, which must be on PATH",
        ) from exc
    (folder / HEADER).write_bytes(msgspec.json.encode(header))


class TargetEngine(CompiledOnly):
    """An engine for a device that need not be here: it can be saved, not run."""

    def __init__(self, executable: Any, header: Header, cubin: Callable[[str], bytes]) -> None:
        self.provider = header.provider
        self._executable = executable
        self._header = header
        self._cubin = cubin

    def facts(self) -> dict[str, Scalar]:
        return dict(self._header.facts)

    def placement(self) -> dict[str, int] | None:
        return self._header.placement

    def notes(self) -> list[str]:
        return [f"built for {self._header.target}; nothing was run", *self._header.notes]

    def save(self, engine_dir: Path) -> None:
        write_engine(engine_dir, self._executable, self._header, self._cubin)

    def close(self) -> None:
        self._executable = None


class CudaSession(Session):
    """A Relax virtual machine whose inputs and outputs stay on the device.

    TVM copies on the default stream and waits; here copies are enqueued on the session's own stream, like its kernels,
    from and to page-locked memory.
    """

    def __init__(
        self,
        request: CompileRequest,
        executable: Any,
        header: Header,
        *,
        gpu: Gpu,
        cubin: Callable[[str], bytes] | None = None,
    ) -> None:
        """Load the weights onto the device and make a buffer for each input.

        `cubin` returns the machine code of a CUDA C++ text; None: the session was loaded, and is not saved again.

        Raises:
            KeyError: The model has no input of that name.
            OutOfMemory: The device has not enough memory.
            RunError: The engine does not start there.
        """
        import tvm
        from tvm import relax

        self.provider = header.provider
        self._header = header
        self._executable = executable
        self._cubin = cubin
        self._artifact = request.artifact
        specs = {spec.name: spec for spec in request.artifact.inputs}
        inputs = [specs[name] for name in header.inputs]
        self._device = tvm.cuda(gpu.index)
        self._result: Any = None
        self._inputs: dict[str, Any] = {}
        self._pinned: dict[str, np.ndarray] = {}
        self._uploading = False
        self._memory = DeviceMemory(gpu.index)
        self.stream = self._memory.stream
        try:
            for spec in inputs:
                self._inputs[spec.name] = tvm.runtime.empty(spec.shape, spec.dtype, self._device)
            self._run = relax.VirtualMachine(executable, self._device)["main"]
            self._device.sync()  # TVM copies the weights on the default stream, which this session's does not wait for
        except BaseException as exc:  # whatever ends it, Ctrl-C too, the device memory is freed; it goes on up
            self.close()
            if isinstance(exc, Exception):
                raise failed(exc, "tvm: the engine does not start") from exc
            raise

    def facts(self) -> dict[str, Scalar]:
        return dict(self._header.facts)

    def placement(self) -> dict[str, int] | None:
        return self._header.placement

    def notes(self) -> list[str]:
        return list(self._header.notes)

    def save(self, engine_dir: Path) -> None:
        if self._cubin is None:
            raise CompileError("tvm: a loaded engine is not written again")
        write_engine(engine_dir, self._executable, self._header, self._cubin)

    def bind(self, inputs: Tensors) -> None:
        import numpy as np

        fitting = self._artifact.check_inputs(inputs)
        if self._uploading:  # what the copies still read must not change under them
            self.synchronize()
        for name, tensor in self._inputs.items():
            staged = self._staged(name, tuple(fitting[name].shape), fitting[name].dtype.name)
            np.copyto(staged, fitting[name], casting="no")
            self._memory.upload(tensor.data_ptr(), staged)
        self._uploading = True

    def execute(self) -> None:
        # Freed before the next is made, so that an output keeps its place: everything that uses it is on one stream.
        self._result = None
        try:
            # TVM has one current stream a thread and device: another session of this process may have set its own.
            self._device.set_raw_stream(self.stream)
            self._result = self._run(*self._inputs.values())
        except Exception as exc:
            raise failed(exc, "tvm: the engine failed") from exc

    def synchronize(self) -> None:
        self._memory.synchronize()
        self._uploading = False

    def profile(self, iterate: Iterate, clock: Clock) -> Profile:
        from tvm import relax

        machine = relax.VirtualMachine(self._executable, self._device)
        main = machine["main"]

        def run() -> None:
            self._device.set_raw_stream(self.stream)
            main(*self._inputs.values())
            self.synchronize()

        return tvm_profile.profile(machine, run, iterate, clock, self._artifact, wait=self._memory.synchronize)

    def outputs(self) -> dict[str, np.ndarray]:
        if self._result is None:
            raise RunError("tvm: outputs asked for before the first execute()")
        results = [self._result] if hasattr(self._result, "data_ptr") else list(self._result)
        names = [spec.name for spec in self._artifact.outputs]
        if len(results) != len(names):
            raise RunError(f"tvm: expected {len(names)} outputs, got {len(results)}")
        arrays = {}
        for name, result in zip(names, results, strict=True):
            arrays[name] = self._staged(f"output {name}", tuple(map(int, result.shape)), str(result.dtype))
            self._memory.download(arrays[name], result.data_ptr())
        self.synchronize()
        return {name: array.copy() for name, array in arrays.items()}

    def close(self) -> None:
        import tvm

        self._result = self._run = self._executable = None
        self._inputs, self._pinned = {}, {}
        self._device.set_raw_stream(0)
        # TVM keeps freed blocks for the next allocation of the process.
        tvm.get_global_func("vm.builtin.memory_manager.clear")()
        self._memory.close()

    def _staged(self, key: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return a page-locked array for a tensor, the same one as long as the tensor keeps its shape and type."""
        known = self._pinned.get(key)
        if known is None or (known.shape, known.dtype.name) != (shape, dtype):
            known = self._pinned[key] = self._memory.host_array(shape, dtype)
        return known


def failed(exc: Exception, what: str) -> HarnessError:
    """Return the error for what TVM raised on a device; device memory that ran out is told from the rest."""
    if isinstance(exc, HarnessError):
        return exc
    message = f"{what}: {first_line(exc)}"
    if "out of memory" in str(exc):
        return OutOfMemory(message, hint="free device memory, or lower --batch")
    return RunError(message)
