"""TVM for GPUs without one: what it compiles for, machine code in place of source, and why a GPU cannot be used.

What runs on a GPU is checked on a fake one, by the functions of `tests/fake_gpu/tvm_checks.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
import types
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from packaging.requirements import Requirement

from backends import cuda_device, tvm_cubin, tvm_cuda
from backends.tvm import TVM, Options
from backends.tvm_cost_model import gpu_features
from backends.tvm_session import HEADER, LIBRARY, Header
from backends.tvm_store import DEFAULTS, RECORDS, open_store
from backends.tvm_tuning import Task, extract_tasks
from harness.api import Artifact, CompileRequest, DynamicShapes
from harness.errors import CompileError, RunError, UnavailableError, UnsupportedError
from tests.fake_gpu import fake_nvcc, tvm_checks
from tests.fake_tensorrt import make_artifact
from tests.support import ROOT
from tests.unit.test_tvm_graph import SWEPT, doubled

# On a GPU that is not there


@pytest.fixture(scope="module")
def answers(fake_gpu: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Run all checks in one process: what each had to say, or None."""
    done = subprocess.run(
        [sys.executable, tvm_checks.__file__, tmp_path_factory.mktemp("checks")],
        env={**os.environ, **TVM.environment(Options(), Path(), 1), **fake_gpu},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("check", [check.__name__ for check in tvm_checks.CHECKS])
def test_on_the_fake_gpu(check: str, answers: dict[str, str | None]) -> None:
    if answers[check]:
        pytest.fail(str(answers[check]))


# Machine code in place of source


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def packed(*modules: bytes) -> bytes:
    """Return a blob in TVM's form: an import tree that nothing here reads, then the modules."""
    tree = struct.pack("<5Q", 2, 0, 1, 1, 1)
    body = tree + b"".join(modules)
    return struct.pack("<Q", len(body)) + body


def cuda(form: bytes, table: bytes, code: bytes) -> bytes:
    return text(b"cuda") + text(text(form) + table + text(code))


@pytest.mark.parametrize("table", [b"names of functions", b"named " + text(b"cuda") + b" by chance", b""])
@pytest.mark.parametrize("decoy", [text(b"cuda"), b"", text(b"const_loader") + text(text(b"cuda") + b"weights")])
def test_machine_code_takes_the_place_of_the_source(table: bytes, decoy: bytes) -> None:
    source, rest = b"__global__ void f() {}", text(b"_lib")
    before = packed(text(b"relax.VMExecutable") + text(b"bytecode"), decoy, cuda(b"cuda", table, source), rest)
    after = packed(text(b"relax.VMExecutable") + text(b"bytecode"), decoy, cuda(b"cubin", table, b"\x7fELF"), rest)
    assert tvm_cubin.with_cubin(before, source, b"\x7fELF") == after


def test_several_modules_each_get_their_own() -> None:
    blob = packed(cuda(b"cuda", b"1", b"one"), cuda(b"cuda", b"22", b"two"))
    blob = tvm_cubin.with_cubin(tvm_cubin.with_cubin(blob, b"two", b"TWO!"), b"one", b"ONE")
    assert blob == packed(cuda(b"cubin", b"1", b"ONE"), cuda(b"cubin", b"22", b"TWO!"))


@pytest.mark.parametrize("blob", [b"", packed(), packed(text(b"cuda") + text(b"fatbin") + text(b"source"))])
def test_another_form_is_an_error_and_no_broken_engine(blob: bytes) -> None:
    with pytest.raises(CompileError, match="packs its CUDA modules in another way"):
        tvm_cubin.with_cubin(blob, b"source", b"code")


def test_kernels_are_counted_by_name() -> None:
    source = 'extern "C" __global__ void __launch_bounds__(128) a_kernel(float* x);\n' * 2
    source += 'extern "C" __global__ void b_kernel(float* x) {}\n__device__ void c() {}\n'
    assert tvm_cubin.kernels(source) == 2


# The compiler of kernels


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Hide nvcc and nvrtc, and what was found of them before."""
    tvm_cubin.tools.cache_clear()
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tvm_cubin, "NVCC_FOLDERS", ())
    absent = types.ModuleType("cuda.pathfinder")
    absent.__spec__ = ModuleSpec("cuda.pathfinder", None)
    absent.find_nvidia_binary_utility = absent.find_nvidia_header_directory = lambda name: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", absent)
    monkeypatch.setattr("cuda.pathfinder", absent, raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    yield
    tvm_cubin.tools.cache_clear()


def test_without_a_compiler_both_reasons_and_the_remedy_are_said(no_compiler: None) -> None:
    pytest.importorskip("cuda.bindings")
    with pytest.raises(UnavailableError, match=r"no compiler for CUDA here \(nvcc: not on PATH.*; nvrtc: ") as raised:
        tvm_cubin.tools()
    assert raised.value.hint == tvm_cubin.INSTALL


def test_an_nvcc_that_path_does_not_know_is_found_and_made_known(
    no_compiler: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvcc(tmp_path / "toolkit" / "bin")
    pytest.importorskip("tvm")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    found = tvm_cubin.Assembler(tvm_cuda.target_for("sm_89")).tool
    assert (found.name, found.version) == ("nvcc", "13.0.0")
    assert shutil.which("nvcc") == str(tmp_path / "toolkit" / "bin" / "nvcc")


@pytest.fixture
def fake_nvrtc(no_compiler: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an nvrtc there that knows sm_89 and sm_121, with its headers."""
    cuda_package = pytest.importorskip("cuda.bindings")
    success = types.SimpleNamespace(value=0, name="NVRTC_SUCCESS")
    nvrtc = types.ModuleType("cuda.bindings.nvrtc")
    nvrtc.nvrtcVersion = lambda: (success, 13, 1)  # type: ignore[attr-defined]
    nvrtc.nvrtcGetSupportedArchs = lambda: (success, [89, 121])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", nvrtc)
    monkeypatch.setattr(cuda_package, "nvrtc", nvrtc, raising=False)
    headers = {"cudart": tmp_path / "include", "cccl": tmp_path / "include" / "cccl"}
    monkeypatch.setattr(sys.modules["cuda.pathfinder"], "find_nvidia_header_directory", headers.get)
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "older"))


def test_nvrtc_is_used_where_there_is_no_nvcc(fake_nvrtc: None, tmp_path: Path) -> None:
    (found,) = tvm_cubin.tools()
    assert (found.name, found.version, found.targets) == ("nvrtc", "13.1", ("sm_89", "sm_121"))
    assert found.options == (f"-I{tmp_path}/include/cccl",)


def test_an_nvcc_that_does_not_know_the_card_leaves_it_to_nvrtc(
    fake_nvrtc: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tvm")
    fake_nvcc(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert tvm_cubin.Assembler(tvm_cuda.target_for("sm_89")).tool.name == "nvcc"
    assert os.environ["CUDA_PATH"] == str(tmp_path / "older")
    assert tvm_cubin.Assembler(tvm_cuda.target_for("sm_121")).tool.name == "nvrtc"
    assert os.environ["CUDA_PATH"] == str(tmp_path), "headers of another version than nvrtc's own"
    with pytest.raises(UnsupportedError, match=r"nvcc 13\.0\.0 knows sm_80, .*; nvrtc 13\.1 knows sm_89, sm_121"):
        tvm_cubin.Assembler(tvm_cuda.target_for("sm_75"))


def hidden() -> tvm_cubin.Tool:
    raise FileNotFoundError("hidden")


@pytest.fixture
def nvrtc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide nvcc; what is found then is the real nvrtc."""
    try:
        version("nvidia-cuda-nvrtc")
    except PackageNotFoundError as exc:
        if "tvm" in os.environ.get("HARNESS_REQUIRE", "").split(","):
            raise
        pytest.skip(f"{exc.name} is not installed")
    pytest.importorskip("tvm")
    monkeypatch.setattr(tvm_cubin, "_nvcc", hidden)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile goes with it
        monkeypatch.delenv(name)
    tvm_cubin.tools.cache_clear()
    yield
    tvm_cubin.tools.cache_clear()


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the fake nvcc first on PATH, and hide nvrtc."""
    pytest.importorskip("tvm")
    monkeypatch.setattr(tvm_cubin, "_nvrtc", hidden)
    fake_nvcc(tmp_path / "bin")
    monkeypatch.setenv("PATH", os.pathsep.join((str(tmp_path / "bin"), os.environ["PATH"])))
    tvm_cubin.tools.cache_clear()
    yield
    tvm_cubin.tools.cache_clear()


def test_a_compute_capability_that_the_compiler_does_not_know_is_unsupported(nvcc: None) -> None:
    with pytest.raises(
        UnsupportedError, match=r"cannot build for sm_121 here: nvcc 13\.0\.0 knows sm_80, sm_89, sm_90"
    ):
        tvm_cubin.Assembler(tvm_cuda.target_for("sm_121"))


def test_what_the_compiler_says_is_told_without_the_source(nvcc: None) -> None:
    assembler = tvm_cubin.Assembler(tvm_cuda.target_for("sm_89"))
    with pytest.raises(CompileError) as raised:
        assembler.cubin("// error of long ago\nmust not compile\n")
    said = "nvcc 13.0.0 cannot compile TVM's kernels for sm_89: tvm_kernels.cu(7): error: says the fake"
    assert raised.value.message == said


def test_fast_math_is_said_unless_it_is_turned_off(nvcc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assembler = tvm_cubin.Assembler(tvm_cuda.target_for("sm_89"))
    assert assembler.described == "nvcc 13.0.0, fast math"
    monkeypatch.setenv("TVM_CUDA_NVCC_NO_FAST_MATH", "1")
    assert assembler.described == "nvcc 13.0.0"


def test_the_extra_and_the_environment_of_a_release_bring_a_compiler_alike() -> None:
    shipped = ConfigParser()
    shipped.read(ROOT / "setup.cfg")
    extra, core = (
        {(need.name, frozenset(need.extras)) for need in map(Requirement, text.strip().splitlines())}
        for text in (shipped["options.extras_require"]["tvm"], shipped["options"]["install_requires"])
    )
    companions = map(Requirement, TVM.companions("0.27", Options(), "cuda"))
    beside = {(need.name, frozenset(need.extras)) for need in companions}
    assert ("cuda-toolkit", frozenset({"cccl", "cudart", "nvrtc"})) in beside
    assert beside <= extra | core
    assert extra - beside <= {("apache-tvm", frozenset()), ("apache-tvm-ffi", frozenset())}


# Whether a GPU can be used


@pytest.mark.parametrize(
    ("failure", "reason", "hint"),
    [
        ("libcudart.so.13: cannot open shared object file", "libcudart.so.13 is missing", "nvidia-cuda-runtime==13.*"),
        ("libcuda.so.1: cannot open shared object file", "libcuda.so.1: cannot open", "install the NVIDIA driver"),
        ("undefined symbol: cuda", "undefined symbol", None),
    ],
)
def test_what_tvms_cuda_runtime_lacks_is_named(
    failure: str, reason: str, hint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tvm = pytest.importorskip("tvm")

    def fails(path: str) -> None:
        raise OSError(failure)

    monkeypatch.setattr(tvm, "get_global_func", lambda name, allow_missing: None)
    monkeypatch.setattr(ctypes, "CDLL", fails)
    monkeypatch.setattr(tvm_cuda, "_preload_cudart", lambda: None)
    with pytest.raises(UnavailableError, match=f"does not load: .*{reason}") as raised:
        tvm_cuda.load_runtime()
    assert (hint or "") in (raised.value.hint or "")
    assert (hint is None) == (raised.value.hint is None)


def test_a_tvm_without_its_cuda_runtime_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tvm = pytest.importorskip("tvm")
    monkeypatch.setattr(tvm, "get_global_func", lambda name, allow_missing: None)
    monkeypatch.setattr(tvm.libinfo, "package_lib_paths", lambda: [tmp_path])
    with pytest.raises(UnavailableError, match=r"has no CUDA runtime: libtvm_runtime_cuda\.so is missing"):
        tvm_cuda.load_runtime()


def test_a_machine_without_a_driver_keeps_its_cpu_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")

    def missing() -> None:
        raise UnavailableError("no NVIDIA driver on this machine", hint="install it")

    monkeypatch.setattr(cuda_device, "driver", missing)
    answer = TVM.probe()
    assert (answer.available, answer.devices) == (True, ("cpu",))
    assert (answer.reason, answer.hint) == ("it cannot use a GPU: no NVIDIA driver on this machine", "install it")


def test_a_probe_survives_whatever_the_driver_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")

    def broken() -> None:
        raise ZeroDivisionError("says the driver")

    monkeypatch.setattr(cuda_device, "driver", broken)
    assert TVM.probe().reason == "it cannot use a GPU: ZeroDivisionError: says the driver"


def test_a_target_is_made_of_the_devices_attributes() -> None:
    pytest.importorskip("tvm")
    blackwell = types.SimpleNamespace(
        compute_version="12.0", max_threads_per_block=512, max_shared_memory_per_block=32768, warp_size=32
    )
    target = tvm_cuda.target_of(blackwell)
    assert target.kind.name == "cuda" and target.attrs["arch"] == "sm_120"
    assert [int(target.attrs[name]) for name in ("max_threads_per_block", "max_shared_memory_per_block")] == [
        512,
        32768,
    ]


# What is built for a GPU that is not here


def request_for(artifact: Artifact, folder: Path, **changes: Any) -> CompileRequest:
    request = CompileRequest(
        artifact=artifact,
        options=Options(),
        device="cuda:0",
        target="sm_89",
        engine_dir=folder / "engine",
        cache_dir=folder / "cache",
        stage=lambda _: contextlib.nullcontext(),
        progress=lambda *_: None,
    )
    return dataclasses.replace(request, **changes)


def check_engine(request: CompileRequest) -> dict[str, Any]:
    """Build and save an engine for sm_89; check what must hold of each, and return its facts."""
    import tvm

    with TVM().compile(request) as session:
        assert not session.runnable
        assert session.provider == "cuda sm_89, dlight"
        assert session.notes()[0] == "built for sm_89; nothing was run"
        assert "MetaSchedule measures on the device itself" in session.notes()[1]
        with pytest.raises(UnsupportedError, match="device that this machine does not have"):
            session.bind(request.artifact.input_set(0))
        session.save(request.engine_dir)
        facts, placement = session.facts(), session.placement()
    assert (facts["target"], facts["tuner"]) == ("sm_89", "none")
    assert placement and set(placement) == {"cuda"} and placement["cuda"] >= int(str(facts["kernels"])) - 1
    library = (request.engine_dir / LIBRARY).read_bytes()
    assert b"__launch_bounds__" not in library, "the engine holds source, which would be compiled when it is loaded"
    begin = library.index(text(b"cubin"))
    code = library.index(b"\x7fELF", begin)
    assert struct.unpack("<Q", library[code - 8 : code]) == (facts["cubin_bytes"],)
    header = msgspec.json.decode((request.engine_dir / HEADER).read_bytes(), type=Header)
    assert (header.tvm, header.target, header.placement) == (tvm.__version__, "sm_89", placement)
    return facts


def test_an_engine_for_an_absent_gpu_holds_machine_code(nvcc: None, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", tvm_checks.chain([np.eye(4, dtype=np.float32)] * 3))
    request = request_for(artifact, tmp_path)
    assert check_engine(request)["cuda_compiler"] == "nvcc 13.0.0, fast math"
    with pytest.raises(RunError, match="is for sm_89, not for cpu"):
        TVM().load(request.engine_dir, dataclasses.replace(request, device="cpu", target=None))


def check_the_tiny_model(tiny: Artifact, folder: Path) -> str:
    """Compile it for sm_89 with the compiler that there is, and return what that was."""
    facts = check_engine(request_for(tiny, folder, device="cpu"))
    assert facts["kernels"] == 6
    machine_of_nvidia = 190  # EM_CUDA
    library = (folder / "engine" / LIBRARY).read_bytes()
    code = library.index(b"\x7fELF", library.index(text(b"cubin")))
    assert struct.unpack("<H", library[code + 18 : code + 20]) == (machine_of_nvidia,)
    return str(facts["cuda_compiler"])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")
def test_nvcc_itself_compiles_the_tiny_model_for_sm_89(tiny: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    tvm_cubin.tools.cache_clear()
    assert check_the_tiny_model(tiny, tmp_path).startswith("nvcc")


def test_nvrtc_itself_compiles_the_tiny_model_for_sm_89(nvrtc: None, tiny: Artifact, tmp_path: Path) -> None:
    assert check_the_tiny_model(tiny, tmp_path).startswith("nvrtc")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target": "sm_70"}, r"cannot build for sm_70; it builds for sm_75, .*sm_121"),
        ({"target": None, "device": "rocm:0"}, "compiles for cpu and cuda, not for rocm:0"),
        ({"target": None, "device": "cpu", "options": Options(cuda_graph=True)}, "a CPU has no CUDA graphs"),
    ],
)
def test_what_cannot_be_built_is_unsupported(changes: dict[str, Any], reason: str, nvcc: None, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        TVM().compile(request_for(make_artifact(tmp_path / "artifact"), tmp_path, **changes))


def test_an_operator_that_tvm_lacks_is_named_with_the_target(nvcc: None, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"tvm cannot import 'doubled\.onnx' \(fp32, sm_89\): .*Frobnicate"):
        TVM().compile(request_for(doubled(tmp_path, "Frobnicate", 18), tmp_path))


def test_free_dimensions_have_schedules_on_a_gpu(nvcc: None, tmp_path: Path) -> None:
    artifact = doubled(tmp_path, "Upsample", 9, batch="batch")
    swept: DynamicShapes = SWEPT
    request = request_for(artifact, tmp_path, options=Options(dynamic=True, cuda_graph=True), dynamic=swept)
    with TVM().compile(request) as session:
        assert session.provider == "cuda sm_89, dlight"
        assert "MetaSchedule tunes kernels of one shape only" in session.notes()[1]
        assert session.notes()[2].startswith("no part of the model could be captured")
        placement = session.placement()
    assert placement and placement["cuda"] == 1
    assert placement.get("cpu", 0) >= 1, "what computes shapes runs on the host"


# Schedules


def booleans() -> Any:
    """Return a kernel that TVM's own rules schedule with vectors: a product, masked."""
    from tvm import relax

    builder = relax.BlockBuilder()
    a, b = (relax.Var(name, relax.TensorType((64, 64), "float32")) for name in "ab")
    mask = relax.Var("mask", relax.TensorType((64,), "bool"))
    with builder.function("main", [a, b, mask]):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(a, b))
            result = builder.emit_output(relax.op.where(mask, product, relax.const(0.0)))
        builder.emit_func_output(result)
    with tvm_cuda.target_for("sm_89"):
        return relax.get_pipeline("zero")(builder.get())


def cuda_source(executable: Any) -> str:
    (module,) = tvm_cubin.cuda_modules(executable.mod)
    return str(module.inspect_source("cuda"))


def test_booleans_are_not_loaded_as_vectors() -> None:
    tvm = pytest.importorskip("tvm")
    target = tvm_cuda.target_for("sm_89")
    built = tvm_cuda.build(booleans(), target, None, cuda_graph=False)
    ours = cuda_source(built.executable)
    assert built.booleans == 1 and "short2" not in ours and "float2" not in ours
    assert [tvm_cuda.tunable(task.module) for task in extract_tasks(booleans(), target)] == [False]
    theirs = cuda_source(tvm.compile(booleans(), target=target))
    assert "ushort2*" in theirs, "TVM loads booleans as what they are: this project's own rule has become needless"


def test_every_feature_of_a_gpu_schedule_is_one_bin_of_a_question() -> None:
    matmul = [[1, 1, 1, 1, 1], [4, 1, 8, 2, 1], [2, 2, 16, 1, 4], [8, 4, 2], 3, 1, 2]
    rows = [gpu_features(decisions) for decisions in ([], matmul, [1], [[4, 1, 32, 1, 1]])]
    assert {row.sum() for row in rows} == {7.0}
    assert {row.size for row in rows} == {rows[0].size}
    assert len({row.tobytes() for row in rows}) == 4


@pytest.mark.parametrize(
    ("best", "default", "tuned"),
    [(None, None, False), (1.0, None, True), (1.0, 1.0, False), (0.9, 1.0, True)],
)
def test_a_kernel_is_tuned_where_that_brought_something(best: float | None, default: float | None, tuned: bool) -> None:
    assert Task(name="k", module=None, calls=1, flop=1.0, best_s=best, default_s=default).tuned is tuned


def test_a_kill_while_default_schedules_are_measured_leaves_a_database_that_opens(tmp_path: Path) -> None:
    (tmp_path / DEFAULTS).mkdir()
    (tmp_path / DEFAULTS / RECORDS).write_text('[0, [[["GetSB')
    with open_store(tmp_path, lambda: None):
        assert (tmp_path / DEFAULTS / RECORDS).read_text() == ""
