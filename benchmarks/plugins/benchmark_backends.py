"""ONNX Runtime, slowed by a known amount: what a verdict must find. Registered by the entry points beside this file."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec

from backends.onnxruntime import OnnxRuntime
from backends.onnxruntime_providers import OnnxRuntimeOptions
from backends.onnxruntime_session import HostSession, OnnxRuntimeSession
from harness.api import CompileRequest


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
    Options = SlowedOptions

    def compile(self, request: CompileRequest) -> OnnxRuntimeSession:
        return self._slow(super().compile(request), request)

    def load(self, engine_dir: Any, request: CompileRequest) -> OnnxRuntimeSession:
        return self._slow(super().load(engine_dir, request), request)

    @staticmethod
    def _slow(session: OnnxRuntimeSession, request: CompileRequest) -> OnnxRuntimeSession:
        assert isinstance(request.options, SlowedOptions)
        session.__class__ = SlowedSession
        assert isinstance(session, SlowedSession)
        session.factor = 1 + request.options.percent / 100
        return session
