"""A backend that gets worse when the environment says so: regressions to plant between two runs.

PLANTED_VERSION        its version
PLANTED_SLOWER         factor on an iteration of one millisecond
PLANTED_COMPILE_S      how long it compiles
PLANTED_ENGINE_BYTES   how large its engine is
PLANTED_MEMORY_MB      what a running engine holds
PLANTED_OFF            what is added to its outputs, relative to the largest of them
PLANTED_FAILS          fail to compile: `always`, or once for each file of this name that is not there yet
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from fake_backends import FakeOk, OkSession

from harness.api import Availability, CompileRequest, Session
from harness.errors import CompileError

ITERATION_S = 0.001
"""Less than a scheduler lets run at once: a busy machine then hardly shows in a median."""


def planted(name: str, default: float) -> float:
    return float(os.environ.get(f"PLANTED_{name}") or default)


class PlantedSession(OkSession):
    def __init__(self, request: CompileRequest) -> None:
        super().__init__(request)
        self.seconds = ITERATION_S * planted("SLOWER", 1.0)
        self.held = np.ones(int(planted("MEMORY_MB", 1) * 1e6), dtype=np.uint8)

    def save(self, engine_dir: Path) -> None:
        (engine_dir / "engine.bin").write_bytes(bytes(int(planted("ENGINE_BYTES", 10_000))))

    def outputs(self) -> dict[str, np.ndarray]:
        off = planted("OFF", 0.0)
        return {name: array + off * np.abs(array).max() for name, array in super().outputs().items()}


class Planted(FakeOk):
    name = "fake-planted"
    summary = "as good as the environment says"
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
            time.sleep(planted("COMPILE_S", 0.3))
            return self.session(request)
