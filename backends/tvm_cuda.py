"""TVM on an NVIDIA GPU: whether it can run there, what it compiles for, and schedules for kernels that nobody tuned.

TVM keeps its CUDA runtime in a library of its own, and `import tvm` goes on without a word where that does not
load. What it lacks is found out here.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backends import cuda_device
from backends.cuda_device import Driver, Gpu
from harness.errors import CompileError, UnavailableError

# TVM objects are `Any` below: the package carries no types and must not be imported at the top of a backend.

TARGETS = (
    *("sm_75", "sm_80", "sm_86", "sm_87", "sm_88", "sm_89", "sm_90"),
    *("sm_100", "sm_103", "sm_110", "sm_120", "sm_121"),
)
"""Compute capabilities that nvcc 13.0 knows; another nvcc may know fewer, which `tvm_cubin` says."""
THREADS_PER_BLOCK, SHARED_BYTES_PER_BLOCK, THREADS_PER_WARP = 1024, 49152, 32
"""Limits that all of them have in common, without opting in to more shared memory."""
RUNTIME = "libtvm_runtime_cuda.so"


def gpu_for(device: str) -> Gpu:
    """Return a device on which TVM can run.

    Raises:
        UnavailableError: It cannot; the message names what is missing.
    """
    driver = cuda_device.driver()
    gpu = driver.gpu(device)
    _check(driver, gpu)
    return gpu


def usable_devices() -> tuple[str, ...]:
    """Return the devices on which TVM can run, as `cuda:N`; at least one.

    Raises:
        UnavailableError: There is none; the message names what is missing.
    """
    driver = cuda_device.driver()
    for gpu in driver.gpus:
        _check(driver, gpu)
    return tuple(f"cuda:{gpu.index}" for gpu in driver.gpus)


def _check(driver: Driver, gpu: Gpu) -> None:
    load_runtime()
    import tvm

    device = tvm.cuda(gpu.index)
    if not device.exist:
        cuda_device.require(driver, "TVM's CUDA runtime", int(device.api_version) // 1000)
        raise UnavailableError(
            f"the driver lists cuda:{gpu.index} ({gpu.name}), but the CUDA runtime cannot use it",
            hint="see whether nvidia-smi lists the device, and whether another process holds it exclusively",
        )
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        missing = "cuda-bindings, which moves data to the device, is not installed"
        raise UnavailableError(missing, hint="pip install cuda-bindings")


def load_runtime() -> None:
    """Load TVM's CUDA runtime, unless `import tvm` has.

    Raises:
        UnavailableError: This build of TVM has none, or a library that it needs is missing.
    """
    import tvm

    if tvm.get_global_func("device_api.cuda", allow_missing=True) is not None:
        return
    folders = [Path(folder) for folder in tvm.libinfo.package_lib_paths()]
    path = next((folder / RUNTIME for folder in folders if (folder / RUNTIME).exists()), None)
    if path is None:
        raise UnavailableError(
            f"this build of TVM has no CUDA runtime: {RUNTIME} is missing",
            hint=f"pip install --force-reinstall apache-tvm=={tvm.__version__}",
        )
    try:
        ctypes.CDLL(os.fspath(path))
    except OSError:
        _preload_cudart()
        try:
            ctypes.CDLL(os.fspath(path))
        except OSError as exc:
            raise _runtime_lacks(str(exc)) from exc


def _preload_cudart() -> None:
    # Where the CUDA runtime came as a wheel, no loader looks for it; what is loaded already is taken by its name.
    if find_spec("cuda") is None or find_spec("cuda.pathfinder") is None:
        return
    from cuda import pathfinder

    try:
        pathfinder.load_nvidia_dynamic_lib("cudart")
    except RuntimeError:
        return  # the loader's own message, which follows, names what is missing


def _runtime_lacks(failure: str) -> UnavailableError:
    found = re.search(r"(lib[\w-]+)\.so[.\d]*", failure)
    missing = found[0] if found else ""
    if found and found[1] == "libcudart":
        major = missing.rpartition(".")[2]
        return UnavailableError(
            f"TVM's CUDA runtime does not load: {missing} is missing",
            hint=f"install the runtime library of CUDA {major}, such as: pip install 'nvidia-cuda-runtime=={major}.*'",
        )
    hint = "install the NVIDIA driver" if found and found[1] == "libcuda" else None
    return UnavailableError(f"TVM's CUDA runtime does not load: {failure}", hint=hint)


def target_of(device: Any) -> Any:
    """Return the target that a device's own attributes describe. `device` is what `tvm.cuda()` returns."""
    return _target(
        arch="sm_" + str(device.compute_version).replace(".", ""),
        threads=int(device.max_threads_per_block),
        shared_bytes=int(device.max_shared_memory_per_block),
        warp=int(device.warp_size),
    )


def target_for(arch: str) -> Any:
    """Return the target for a compute capability such as `sm_89`, whose device need not be here."""
    return _target(arch=arch, threads=THREADS_PER_BLOCK, shared_bytes=SHARED_BYTES_PER_BLOCK, warp=THREADS_PER_WARP)


def _target(*, arch: str, threads: int, shared_bytes: int, warp: int) -> Any:
    import tvm

    return tvm.target.Target(
        {
            "kind": "cuda",
            "arch": arch,
            "max_threads_per_block": threads,
            "max_shared_memory_per_block": shared_bytes,
            "thread_warp_size": warp,
        }
    )


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a module came to."""

    executable: Any
    placement: dict[str, int]
    """Device kind -> how many kernels the model calls there."""
    graphs: int
    """Parts of the model that run as one CUDA graph each."""
    booleans: int
    """Kernels that TVM would make vectors of booleans for."""


def build(module: Any, target: Any, database: Any, *, cuda_graph: bool) -> Built:
    """Compile a lowered module for a GPU: a database's schedules first, DLight's for the rest.

    Raises:
        CompileError: A kernel has no schedule, and a GPU runs none without.
    """
    import tvm
    from tvm import relax
    from tvm.s_tir.dlight import ApplyDefaultSchedule

    kernels = [function for function in module.functions.values() if isinstance(function, tvm.tirx.PrimFunc)]
    with target:
        if database is not None:
            with database:
                module = relax.transform.MetaScheduleApplyDatabase()(module)
        module = ApplyDefaultSchedule(DLight())(module)
    bare = [
        str(name.name_hint)
        for name, function in module.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc) and not function.attrs.get("tirx.is_scheduled")
    ]
    if bare:
        raise CompileError(f"tvm has no schedule for {', '.join(sorted(bare))} on a GPU")
    lowered: list[Any] = []

    def keep(final: Any, _: Any) -> Any:
        lowered.append(final)
        return final

    passes = [relax.get_default_pipeline(target), tvm.transform.module_pass(keep, opt_level=0)]
    level = tvm.transform.PassContext.current().opt_level
    with tvm.transform.PassContext(opt_level=level, config={"relax.backend.use_cuda_graph": cuda_graph}):
        executable = tvm.compile(module, target=target, relax_pipeline=tvm.transform.Sequential(passes))
    placement, graphs = _calls(lowered[0])
    booleans = sum(map(_touches_booleans, kernels))
    return Built(executable=executable, placement=placement, graphs=graphs, booleans=booleans)


def default_schedule(module: Any, target: Any) -> Any:
    """Return DLight's schedule of a kernel, as `tvm.s_tir.Schedule`, or None where it has none."""
    with target:
        return DLight().apply(module["main"], target, False)


def tunable(module: Any) -> bool:
    """Say whether a search may have a kernel: what it makes of one with booleans computes something else."""
    return not _touches_booleans(module["main"])


class DLight:
    """The first of DLight's rules that fits a kernel, in the form of one of them."""

    def apply(self, function: Any, target: Any, _: bool) -> Any:
        """Return a schedule, or None."""
        for rule in _rules(function):
            found = rule.apply(function, target, False)
            if found is not None:
                return found[0] if isinstance(found, list) else found
        return None


def _rules(function: Any) -> tuple[Any, ...]:
    # Those of TVM's own CUDA pipeline, in its order.
    from tvm.s_tir.dlight import gpu

    if not _touches_booleans(function):
        return gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()

    class ScalarMatmul(gpu.Matmul):  # type: ignore[misc]
        def get_configs(self, target: Any) -> Any:
            return dataclasses.replace(super().get_configs(target), vector_size=1)

    # TVM 0.27 loads two booleans as two shorts, which are other bytes: no rule that makes vectors may have these.
    # Neither may MetaSchedule, which loads what it shares among threads as vectors.
    return ScalarMatmul(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()


def _touches_booleans(function: Any) -> bool:
    import tvm
    import tvm_ffi

    found: list[str] = []
    look = [
        (tvm.ir.TensorLoad, lambda load: found.append(str(load.ty.dtype))),
        (tvm.tirx.BufferStore, lambda store: found.append(str(store.buffer.dtype))),
    ]
    tvm_ffi.structural_walk(function.body, look, order="post")
    return "bool" in found


def _calls(module: Any) -> tuple[dict[str, int], int]:
    """Count a finished Relax module's kernels by where they run, and its CUDA graphs.

    What computes shapes runs on the host, as does a function of TVM's that is no kernel at all.
    """
    import tvm
    from tvm import relax

    calls: Counter[str] = Counter()
    graphs = 0

    def visit(expression: Any) -> None:
        nonlocal graphs
        if not isinstance(expression, relax.Call):
            return
        callee = expression.op
        if isinstance(callee, tvm.ir.GlobalVar):
            function = module[callee]
            if isinstance(function, tvm.tirx.PrimFunc):
                calls["cpu" if function.attrs.get("tirx.is_host_func") else "cuda"] += 1
            return
        named = [one for one in (callee, *expression.args) if isinstance(one, relax.ExternFunc)]
        for one in named[:1]:
            name = str(one.global_symbol)
            graphs += name == "vm.builtin.cuda_graph.run_or_capture"
            calls["cpu"] += not name.startswith("vm.builtin.")

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return {kind: number for kind, number in calls.items() if number}, graphs
