"""Which engines of earlier runs are used again: never one of another card, driver or version, and why not is said."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from harness import environment, protocol
from harness.compiling import Compiled, Compiler
from harness.engines import EngineStore
from harness.launcher import Launcher
from harness.modelspec import ModelSpec
from harness.plan import parse_variants
from harness.records import REUSED, Settings, Workload
from tests.fake_nvml import FakeCard, FakeNvml
from tests.fake_tensorrt import make_artifact

SETTINGS = Settings(
    models=["tiny"], cases=["tensorrt"], seed=0, threads=1, launches=1, rounds=1, slice_s=0.1, budget_s=1.0,
    timeout_s=1.0, memory_limit_bytes=1 << 30, quick=True,
)  # fmt: skip


class OneWorker:
    """A launcher and its worker, which builds an engine of a few bytes."""

    python = "python"
    pid = 4711

    def __init__(self, logs: Path, version: str) -> None:
        self.logs = logs
        self.timeout_s = 1.0
        self.peak_bytes = 0
        self.version = version
        self.compiled = 0

    @contextmanager
    def start(self, name: str, *_: object, **__: object) -> Iterator[OneWorker]:
        yield self

    def call(self, request: protocol.AnyRequest, answer: type[Any], **_: object) -> Any:
        if isinstance(request, protocol.Import):
            versions = {"tensorrt": self.version}
            probed = protocol.Probed(available=True, versions=versions, devices=["cuda:0"])
            return protocol.Imported(import_s=0.0, probed=probed)
        if isinstance(request, protocol.Compile):
            self.compiled += 1
            (Path(request.case.engine_dir) / "engine").write_bytes(b"abc")
            seconds = {"total": 1.0}
            return protocol.Opened(seconds=seconds, provider="p", runnable=True, facts={}, notes=["its own note"])
        return protocol.Took(seconds=0.0)

    def check_cpus(self) -> None:
        pass

    def resident_bytes(self) -> int:
        return 0

    def note_peak(self) -> None:
        pass


class Machine:
    """Compiles the same case, run after run."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.artifact = make_artifact(root / "artifact")
        self.root = root
        self.patch = monkeypatch
        self.runs = 0

    def compile(self, *, card: str, version: str = "11.4", target: str | None = None, cold: bool = False) -> Compiled:
        self.patch.setattr(environment, "gpu_identity", lambda device: card)
        self.runs += 1
        self.worker = OneWorker(self.root / "logs", version)
        workload = Workload(
            key="tiny", model=ModelSpec(name="tiny"), dims={"batch": 1}, batch=1, device="cuda:0", target=target,
            baseline="tensorrt",
        )  # fmt: skip
        with EngineStore(f"run-{self.runs}") as engines:
            compiler = Compiler(
                self.artifact,
                workload,
                msgspec.structs.replace(SETTINGS, cold=cold),
                cast(Launcher, self.worker),
                engines,
                lambda _: None,
                dynamic=lambda: self.artifact,
                converted=lambda graph, *_: graph,
                failed={},
            )
            (variant,) = parse_variants(["tensorrt-rtx" if target else "tensorrt"])
            done = compiler.compile(variant)
            self.resume = functools.partial(compiler.resumed, variant, done.case)
            return done


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return Machine(tmp_path, monkeypatch)


def test_an_engine_of_the_same_card_and_version_is_used_again(machine: Machine) -> None:
    first = machine.compile(card="L4, driver 580").case
    assert first.failure is None and machine.worker.compiled == 1
    again = machine.compile(card="L4, driver 580").case
    assert machine.worker.compiled == 0
    assert again.facts[REUSED] == first.engine_created and again.notes == ["its own note"]
    machine.compile(card="L4, driver 580", cold=True)
    assert machine.worker.compiled == 1


@pytest.mark.parametrize(
    ("card", "version", "changed"),
    [
        ("4090, driver 580", "11.4", "built on L4, driver 580, and this is 4090, driver 580"),
        ("L4, driver 590", "11.4", "built on L4, driver 580, and this is L4, driver 590"),
        ("L4, driver 580", "11.5", "built with tensorrt 11.4, and this is 11.5"),
        ("no GPU", "11.5", "built with tensorrt 11.4, and this is 11.5"),
    ],
)
def test_an_engine_of_another_card_driver_or_version_is_not(
    card: str, version: str, changed: str, machine: Machine
) -> None:
    first = machine.compile(card="L4, driver 580").case
    done = machine.compile(card=card, version=version).case
    assert machine.worker.compiled == 1 and REUSED not in done.facts
    assert done.notes == [
        "its own note",
        f"compiled anew, as the engine of {first.engine_created} was {changed}",
    ]
    # The sentence is about this run only: it is not kept with the engine.
    assert machine.compile(card=card, version=version).case.notes == ["its own note"]
    # And the first card's engine is still there for it.
    assert machine.compile(card="L4, driver 580").case.facts[REUSED] == first.engine_created


def test_a_target_does_not_depend_on_the_card_that_is_here(machine: Machine) -> None:
    machine.compile(card="L4, driver 580", target="sm_89")
    again = machine.compile(card="4090, driver 590", target="sm_89").case
    assert machine.worker.compiled == 0 and REUSED in again.facts


def test_an_interrupted_run_goes_on_with_its_engine_on_the_same_card_only(machine: Machine) -> None:
    machine.compile(card="L4, driver 580")
    assert machine.resume() is not None
    machine.patch.setattr(environment, "gpu_identity", lambda device: "4090, driver 580")
    assert machine.resume() is None


def test_device_memory_is_what_the_worker_took_from_before_it_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, monkeypatch)
    # As in a container: the driver's list of processes does not have the worker.
    FakeNvml([FakeCard(used_bytes=lambda: (1 + 3 * machine.worker.compiled) << 30)]).install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.compile(card="card").memory.device_bytes == 3 << 30
