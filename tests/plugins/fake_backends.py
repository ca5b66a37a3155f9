"""Backends with one fault each, for testing isolation. Found through the entry points beside this file.

`fake-ok` answers with the artifact's own reference outputs, so it needs no framework and always agrees. The others
differ from it in one method.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from harness.api import Availability, Backend, BackendOptions, Capabilities, CompiledOnly, CompileRequest, Session
from harness.errors import CompileError, RunError
from harness.operators import Clock, Iterate, OperatorTime, Profile

GRANDCHILD = "harness-test-grandchild"


class OkOptions(BackendOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the fake backend."""

    ms: Annotated[float, msgspec.Meta(ge=0, description="how long one iteration takes")] = 1.0


class OkSession(Session):
    provider = "fake"

    def __init__(self, request: CompileRequest) -> None:
        self.request = request
        self.seconds = request.options.ms / 1000 if isinstance(request.options, OkOptions) else 0.001
        self.index = 0

    def save(self, engine_dir: Path) -> None:
        (engine_dir / "engine.txt").write_text("fake")

    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        artifact = self.request.artifact
        for index in range(artifact.manifest.input_sets):
            if all(np.array_equal(inputs[name], array) for name, array in artifact.input_set(index).items()):
                self.index = index
                return
        raise RunError("these inputs are none of the artifact's")

    def execute(self) -> None:
        # The calling thread's own CPU time: a fixed amount of work, whatever else the machine does.
        until = time.thread_time() + self.seconds
        while time.thread_time() < until:
            pass

    def synchronize(self) -> None:
        pass

    def outputs(self) -> dict[str, np.ndarray]:
        return self.request.artifact.reference(self.index)


class FakeOk(Backend):
    name = "fake-ok"
    summary = "agrees with everything"
    capabilities = Capabilities(source="onnx")
    modules = ()
    Options = OkOptions
    session: type[OkSession] = OkSession

    @classmethod
    def probe(cls) -> Availability:
        return Availability(available=True, versions={"fake": "1.0"}, devices=("cpu",))

    def compile(self, request: CompileRequest) -> Session:
        with request.stage("build"):
            return self.session(request)

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        return self.session(request)


class Released(FakeOk):
    """Comes in releases: those of the distribution `fake-released`."""

    name = "fake-released"

    @classmethod
    def distribution(cls, options: BackendOptions, kind: str) -> str:
        return "fake-released"

    @classmethod
    def companions(cls, version: str, options: BackendOptions, kind: str) -> tuple[str, ...]:
        return ("fake-beside",)


def _segfault() -> None:
    ctypes.string_at(0)


class SegfaultAtCompile(FakeOk):
    def compile(self, request: CompileRequest) -> Session:
        _segfault()
        return super().compile(request)


class SegfaultAtProbe(FakeOk):
    @classmethod
    def probe(cls) -> Availability:
        _segfault()
        return super().probe()


class ExitAtLoad(FakeOk):
    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        os._exit(3)


class HangAtCompile(FakeOk):
    def compile(self, request: CompileRequest) -> Session:
        time.sleep(3600)
        return super().compile(request)


class _LaterSession(OkSession):
    """Fails once inputs are bound again, which is in the first round's second boundary: past load and warm-up."""

    binds = 0

    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        super().bind(inputs)
        self.binds += 1
        if self.binds > 1:
            self.fail()

    def fail(self) -> None:
        raise NotImplementedError


class _HangSession(_LaterSession):
    def fail(self) -> None:
        time.sleep(3600)


class LateSession(OkSession):
    """Compiles anew in every other window: it is asked before and after each."""

    asked = -1

    def compilations(self) -> int:
        self.asked += 1
        return (self.asked + 3) // 4


class CompilesLate(FakeOk):
    """Is never done with compiling."""

    session = LateSession


class HangInRound(FakeOk):
    session = _HangSession


class _CrashSession(_LaterSession):
    def fail(self) -> None:
        _segfault()


class SegfaultInRound(FakeOk):
    session = _CrashSession


class ForkAtCompile(FakeOk):
    """Starts a process that leaves the worker's session and group, closes nothing and would live for an hour."""

    def compile(self, request: CompileRequest) -> Session:
        code = f"import time; time.sleep(3600)  # {GRANDCHILD}"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True, close_fds=False)
        if os.fork() == 0:
            os.setsid()
            time.sleep(3600)
        return super().compile(request)


class ForkAndCrash(ForkAtCompile):
    def compile(self, request: CompileRequest) -> Session:
        super().compile(request)
        os._exit(1)


class EatMemory(FakeOk):
    def compile(self, request: CompileRequest) -> Session:
        eaten = []
        for _ in range(200):
            eaten.append(np.ones(1 << 25, dtype=np.uint8))  # 32 MiB each, 6.4 GiB in all
            time.sleep(0.02)
        return super().compile(request)


class MemoryErrorAtCompile(FakeOk):
    def compile(self, request: CompileRequest) -> Session:
        raise MemoryError("cannot allocate 1 TiB")


class HalfLine(FakeOk):
    def compile(self, request: CompileRequest) -> Session:
        os.write(int(sys.argv[2]), b'{"is": "done", "val\n')
        time.sleep(3600)
        return super().compile(request)


class Chatty(FakeOk):
    """Prints megabytes on stdout and stderr, through Python and below it; works otherwise."""

    def compile(self, request: CompileRequest) -> Session:
        for _ in range(2000):
            print("x" * 500)
            os.write(1, b'{"is": "done", "value": null}\n')
            os.write(2, b"warning: \xff\xfe not text\n")
        return super().compile(request)


class OddException(FakeOk):
    def compile(self, request: CompileRequest) -> Session:
        raise KeyError("a compiler\nwith | a <strange> \x1b[31m message")


class SysExit(FakeOk):
    def compile(self, request: CompileRequest) -> Session:
        raise SystemExit(0)


class _ProfiledSession(OkSession):
    """Knows of one operator, which takes half of each iteration."""

    def profile(self, iterate: Iterate, clock: Clock) -> Profile:
        calls: list[None] = []

        def once() -> None:
            calls.append(None)
            self.execute()

        iterate(once)
        took = round(len(calls) * self.seconds * 5e8)
        return Profile(clock="fake", operators=[OperatorTime(name="all", kind="Fake", calls=len(calls), total_ns=took)])


class Profiled(FakeOk):
    session = _ProfiledSession


class _CrashProfileSession(OkSession):
    def profile(self, iterate: Iterate, clock: Clock) -> Profile:
        _segfault()
        return super().profile(iterate, clock)


class SegfaultInProfile(FakeOk):
    session = _CrashProfileSession


class _HangProfileSession(OkSession):
    def profile(self, iterate: Iterate, clock: Clock) -> Profile:
        time.sleep(3600)
        return super().profile(iterate, clock)


class HangInProfile(FakeOk):
    session = _HangProfileSession


class _NanSession(OkSession):
    def outputs(self) -> dict[str, np.ndarray]:
        return {name: np.full_like(array, np.nan) for name, array in super().outputs().items()}


class Nan(FakeOk):
    session = _NanSession


class _ShapeSession(OkSession):
    def outputs(self) -> dict[str, np.ndarray]:
        return {name: array[..., :-1].copy() for name, array in super().outputs().items()}


class WrongShape(FakeOk):
    session = _ShapeSession


class _FewSession(OkSession):
    def outputs(self) -> dict[str, np.ndarray]:
        return {}


class TooFew(FakeOk):
    session = _FewSession


class CannotSave(FakeOk):
    class session(OkSession):
        def save(self, engine_dir: Path) -> None:
            raise OSError(28, "No space left on device")


class DeviceOptions(OkOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the backend with a device."""

    nodes: Annotated[int, msgspec.Meta(description="nodes on the device")] = 10
    off: Annotated[int, msgspec.Meta(description="nodes beside it")] = 0


class Device(FakeOk):
    """Runs on devices that nothing here has, and says how many of its nodes lie there."""

    capabilities = Capabilities(source="onnx", devices=("cuda",))
    Options = DeviceOptions

    @classmethod
    def probe(cls) -> Availability:
        return Availability(available=True, versions={"fake": "1.0"}, devices=("cuda:0", "cuda:1"))

    class session(OkSession):
        def placement(self) -> dict[str, int]:
            options = self.request.options
            assert isinstance(options, DeviceOptions)
            return {"cuda": options.nodes, "cpu": options.off}


class Blind(Device):
    """Would run on a device, but sees none."""

    @classmethod
    def probe(cls) -> Availability:
        return Availability(available=True, versions={"fake": "1.0"}, devices=("cpu",))


class Target(FakeOk):
    """Builds for one absent device."""

    capabilities = Capabilities(source="onnx", devices=("cuda",), compile_targets=("sm_89",))

    class session(OkSession, CompiledOnly):
        runnable = False


class Varies(FakeOk):
    """Every build comes out at a speed of its own, which its engine keeps."""

    def compile(self, request: CompileRequest) -> Session:
        run = request.engine_dir.parent.name
        number = len(list(request.engine_dir.parents[2].glob(f"*/{run}/engine/speed.txt")))
        (request.engine_dir / "speed.txt").write_text(str(10.0**number))
        return self.load(request.engine_dir, request)

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        session = OkSession(request)
        session.seconds = float((engine_dir / "speed.txt").read_text()) / 1000
        return session


def _planted(name: str, default: float) -> float:
    return float(os.environ.get(f"PLANTED_{name}") or default)


class PlantedSession(OkSession):
    def __init__(self, request: CompileRequest) -> None:
        super().__init__(request)
        # Less than a scheduler lets run at once: a busy machine then hardly shows in a median.
        self.seconds = 0.001 * _planted("SLOWER", 1.0)
        self.held = np.ones(int(_planted("MEMORY_MB", 1) * 1e6), dtype=np.uint8)

    def save(self, engine_dir: Path) -> None:
        (engine_dir / "engine.bin").write_bytes(bytes(int(_planted("ENGINE_BYTES", 10_000))))

    def outputs(self) -> dict[str, np.ndarray]:
        off = _planted("OFF", 0.0)
        return {name: array + off * np.abs(array).max() for name, array in super().outputs().items()}


class Planted(FakeOk):
    """Gets worse when the environment says so: regressions to plant between two runs.

    `PLANTED_VERSION` is its version, `PLANTED_SLOWER` a factor on its iterations of a millisecond, `PLANTED_COMPILE_S`
    how long it compiles, `PLANTED_ENGINE_BYTES` how large its engine is, `PLANTED_MEMORY_MB` what a running engine
    holds, `PLANTED_OFF` what is added to its outputs, relative to the largest of them; and it fails to compile where
    the file `PLANTED_FAILS` is not there, which it makes.
    """

    session = PlantedSession

    @classmethod
    def probe(cls) -> Availability:
        version = os.environ.get("PLANTED_VERSION") or "1.0"
        return Availability(available=True, versions={"planted": version}, devices=("cpu",))

    def compile(self, request: CompileRequest) -> Session:
        fails = os.environ.get("PLANTED_FAILS")
        if fails and not Path(fails).exists():
            Path(fails).touch()
            raise CompileError("the compiler lost its way, this time")
        with request.stage("build"):
            time.sleep(_planted("COMPILE_S", 0.3))
            return self.session(request)
