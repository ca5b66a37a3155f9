"""ONNX Runtime, slowed by a known amount: what a verdict must find. Registered by the entry points beside this file."""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import msgspec

from backends.onnxruntime import OnnxRuntime
from backends.onnxruntime_providers import OnnxRuntimeOptions
from backends.onnxruntime_session import HostSession, OnnxRuntimeSession
from harness.api import Availability, BackendOptions, CompileRequest


class SlowedOptions(OnnxRuntimeOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the slowed backend."""

    percent: Annotated[float, msgspec.Meta(ge=0, description="how much longer every iteration takes")] = 5.0


class SlowedSession(HostSession):
    """Each iteration is lengthened by a share of itself, so that the slow-down is exact whatever the machine does."""

    factor = 1.0

    def execute(self) -> None:
        start = time.perf_counter_ns()
        super().execute()
        until = start + int((time.perf_counter_ns() - start) * self.factor)
        while time.perf_counter_ns() < until:
            pass


class Slowed(OnnxRuntime):
    name = "onnxruntime-slowed"
    summary = "ONNX Runtime with a known slow-down"
    Options: ClassVar[type[OnnxRuntimeOptions]] = SlowedOptions

    def compile(self, request: CompileRequest) -> OnnxRuntimeSession:
        return self._slow(super().compile(request), self.percent(request))

    def load(self, engine_dir: Any, request: CompileRequest) -> OnnxRuntimeSession:
        return self._slow(super().load(engine_dir, request), self.percent(request))

    @staticmethod
    def percent(request: CompileRequest) -> float:
        """Return how much longer every iteration takes."""
        assert isinstance(request.options, SlowedOptions)
        return request.options.percent

    @staticmethod
    def _slow(session: OnnxRuntimeSession, percent: float) -> OnnxRuntimeSession:
        session.__class__ = SlowedSession
        assert isinstance(session, SlowedSession)
        session.factor = 1 + percent / 100
        return session


class Planted(Slowed):
    """The slow-down comes with a release of a distribution that `benchmarks/bisecting.py` makes."""

    name = "onnxruntime-planted"
    summary = "ONNX Runtime beside a package that slows it down"
    Options = OnnxRuntimeOptions

    @classmethod
    def distribution(cls, options: BackendOptions, kind: str) -> str:
        return "harness-planted"

    @classmethod
    def companions(cls, version: str, options: BackendOptions, kind: str) -> tuple[str, ...]:
        return ("onnxruntime",)

    @classmethod
    def reads(cls, version: str) -> None:
        return None

    @classmethod
    def probe(cls) -> Availability:
        found = super().probe()
        return replace(
            found, versions={"harness-planted": importlib.metadata.version("harness-planted"), **found.versions}
        )

    @staticmethod
    def percent(request: CompileRequest) -> float:
        return float(importlib.import_module("harness_planted").PERCENT)
