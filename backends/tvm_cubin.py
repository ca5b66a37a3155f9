"""From TVM's CUDA source to machine code, so that no engine compiles anything when it is loaded.

TVM generates CUDA C++ and asks a registered function to compile it. Where its CUDA runtime is loaded it asks at
once, and the module holds what came back. Where it is not, as on a machine without a driver, the module holds the
source: there the machine code takes its place when the engine is written.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from harness.errors import CompileError, UnavailableError, UnsupportedError

# TVM objects are `Any` below: the package carries no types and must not be imported at the top of a backend.

NVCC_FOLDERS = ("/usr/local/cuda/bin", "/opt/cuda/bin")
"""Where installers put nvcc without telling PATH."""
INSTALL = "pip install 'harness[tvm]', which brings nvrtc, or install NVIDIA's CUDA toolkit so that nvcc is on PATH"
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(')
_ELF = b"\x7fELF"


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A compiler of CUDA C++."""

    name: Literal["nvcc", "nvrtc"]
    version: str
    targets: tuple[str, ...]
    """Compute capabilities that it makes machine code for: `sm_89`."""
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    """What must be in the environment for TVM to find it, or its headers."""

    @property
    def knows(self) -> str:
        """Say what it makes machine code for."""
        return f"{self.name} {self.version} knows {', '.join(self.targets)}"


@cache
def tools() -> tuple[Tool, ...]:
    """Find the compilers: nvcc, which comes with all its headers, before nvrtc.

    Raises:
        UnavailableError: There is neither.
    """
    found, reasons = [], []
    for find in (_nvcc, _nvrtc):
        try:
            found.append(find())
        except Exception as exc:  # installations break in many ways; each is why there is another one
            reasons.append(f"{find.__name__[1:]}: {exc}")
    if not found:
        raise UnavailableError(f"tvm has no compiler for CUDA here ({'; '.join(reasons)})", hint=INSTALL)
    return tuple(found)


def _nvcc() -> Tool:
    found = shutil.which("nvcc") or _elsewhere()
    if found is None:
        raise FileNotFoundError("not on PATH, nor in the usual places")
    variables = {}
    if shutil.which("nvcc") is None:
        # TVM calls it by its bare name.
        variables["PATH"] = os.pathsep.join((str(Path(found).parent), os.environ.get("PATH", "")))
    version = re.search(r"\bV(\d+\.\d+\.\d+)", _said(found, "--version"))
    if version is None:
        raise ValueError(f"{found} --version names no version")
    targets = tuple(_said(found, "--list-gpu-code").split())
    return Tool(name="nvcc", version=version[1], targets=targets, variables=variables)


def _elsewhere() -> str | None:
    path = os.pathsep.join((*(f"{os.environ[name]}/bin" for name in _homes()), *NVCC_FOLDERS))
    if found := shutil.which("nvcc", path=path):
        return found
    if find_spec("cuda") is None or find_spec("cuda.pathfinder") is None:
        return None
    from cuda import pathfinder

    where = pathfinder.find_nvidia_binary_utility("nvcc")  # among installed wheels and in Conda's folders
    return str(where) if where else None


def _homes() -> list[str]:
    return [name for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def _nvrtc() -> Tool:
    from cuda import pathfinder
    from cuda.bindings import nvrtc

    error, major, minor = nvrtc.nvrtcVersion()
    supported, known = nvrtc.nvrtcGetSupportedArchs() if error.value == 0 else (error, [])
    if error.value or supported.value:
        raise RuntimeError(f"libnvrtc answered {error.name}, {supported.name}")
    headers = pathfinder.find_nvidia_header_directory("cudart")
    libcudacxx = pathfinder.find_nvidia_header_directory("cccl")
    if headers is None or libcudacxx is None:
        raise FileNotFoundError("the headers of the CUDA runtime and of CCCL are missing")
    return Tool(
        name="nvrtc",
        version=f"{major}.{minor}",
        targets=tuple(f"sm_{arch}" for arch in known),
        options=(f"-I{libcudacxx}",),
        # TVM looks for the headers in a folder `include` below this.
        variables={"CUDA_PATH": str(Path(headers).parent)},
    )


class Assembler:
    """Compiles CUDA source for one compute capability, each text once."""

    def __init__(self, target: Any) -> None:
        """Take the TVM target to compile for.

        Raises:
            UnavailableError: This machine has no compiler.
            UnsupportedError: No compiler here knows the compute capability.
        """
        self.arch = str(target.attrs["arch"])
        self._target = target
        self._made: dict[str, bytes] = {}
        able = [one for one in tools() if self.arch in one.targets]
        if not able:
            raise UnsupportedError(
                f"tvm cannot build for {self.arch} here: {'; '.join(one.knows for one in tools())}",
                hint="name one of them, or install a CUDA toolkit that knows it",
            )
        self.tool = able[0]
        os.environ.update(self.tool.variables)

    @property
    def described(self) -> str:
        """Name the compiler, and whether TVM has it round as it likes: `nvcc 13.0.88, fast math`."""
        exact = self.tool.name == "nvcc" and os.environ.get("TVM_CUDA_NVCC_NO_FAST_MATH")
        return f"{self.tool.name} {self.tool.version}" + ("" if exact else ", fast math")

    def install(self) -> None:
        """Have TVM's own CUDA modules compiled by this one."""
        import tvm_ffi

        tvm_ffi.register_global_func("tvm_callback_cuda_compile", self.cubin, override=True)

    def cubin(self, source: str) -> bytes:
        """Return the machine code of a CUDA C++ text.

        Raises:
            CompileError: It does not compile.
        """
        if source not in self._made:
            self._made[source] = self._compiled(source)
        return self._made[source]

    def _compiled(self, source: str) -> bytes:
        from tvm.support import nvcc

        try:
            with self._target:  # TVM looks the compute capability up there, even where it is told
                made = nvcc.compile_cuda(
                    source,
                    target_format="cubin",
                    arch=self.arch,
                    options=list(self.tool.options),
                    compiler=self.tool.name,
                )
        except RuntimeError as exc:
            # TVM puts the whole source before what the compiler said.
            said = str(exc).rpartition("Compilation error:")[2].strip().splitlines()
            first = next((line for line in said if "error" in line.lower()), said[0] if said else "it gave no reason")
            raise CompileError(
                f"{self.tool.name} {self.tool.version} cannot compile TVM's kernels for {self.arch}: {first.strip()}"
            ) from exc
        if made[:4] != _ELF:
            raise CompileError(f"{self.tool.name} {self.tool.version} made something else than a cubin for {self.arch}")
        return bytes(made)


def kernels(source: str) -> int:
    """Return how many kernels a CUDA C++ text of TVM's defines."""
    return len(set(_KERNEL.findall(source)))


def cuda_modules(module: Any) -> Iterator[Any]:
    """Yield the CUDA modules among a module and all that it imports, each once."""
    seen: list[Any] = []
    waiting = [module]
    while waiting:
        one = waiting.pop()
        if any(one.same_as(other) for other in seen):
            continue
        seen.append(one)
        waiting += list(one.imports)
        if one.kind == "cuda":
            yield one


def export(executable: Any, path: Path, cubin: Callable[[str], bytes]) -> None:
    """Write an executable as a library whose CUDA modules hold machine code.

    Args:
        executable: What `tvm.compile()` returned.
        path: Of the library.
        cubin: Returns the machine code of a CUDA C++ text.
    """
    sources = [str(one.inspect_source("cuda")) for one in cuda_modules(executable.mod) if not one.is_runnable()]
    if not sources:  # TVM's CUDA runtime is loaded, and had them compiled when they were made
        executable.export_library(str(path))
        return

    def pack(module: Any, is_system_lib: bool, prefix: str, folder: str) -> str:
        import tvm

        blob = tvm.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
        for source in sources:
            blob = with_cubin(blob, source.encode(), cubin(source))
        (host,) = (one for one in module.imports if one.kind == "llvm")
        target = host.get_function("_get_target_string")()
        packed = tvm.get_global_func("codegen.codegen_blob")(blob, is_system_lib, target, prefix)
        where = os.path.join(folder, f"{prefix}devc.o")
        packed.write_to_file(where)
        return where

    executable.export_library(str(path), fpack_imports=pack)


def with_cubin(blob: bytes, source: bytes, cubin: bytes) -> bytes:
    """Return TVM's packed modules with a CUDA module's source replaced by its machine code.

    `blob` is the length of all that follows, then among others, for a CUDA module: the text `cuda`, its length,
    and in it the format's name, a table of its functions, and the code in that format. Texts come after their length;
    lengths have eight bytes.

    Raises:
        CompileError: The source is not there, in this form.
    """
    kind, code = _text(b"cuda"), _text(source)
    begin = blob.find(code)
    end = begin + len(code)
    # The format's name has the same four letters; what tells it from others is the length before it.
    start = blob.rfind(kind, 0, max(begin, 0))
    while start > 0 and blob[start - len(kind) - 8 : start] != kind + _length(end - start):
        start = blob.rfind(kind, 0, start)
    if begin < 0 or start < 0:
        raise CompileError(
            "tvm: this version of TVM packs its CUDA modules in another way",
            hint="pip install apache-tvm==0.27.0.post1, or compile on a machine with an NVIDIA driver",
        )
    saved = _text(b"cubin") + blob[start + len(kind) : begin] + _text(cubin)
    whole = blob[8 : start - 8] + _length(len(saved)) + saved + blob[end:]
    return _length(len(whole)) + whole


def _text(data: bytes) -> bytes:
    return _length(len(data)) + data


def _length(size: int) -> bytes:
    return struct.pack("<Q", size)
