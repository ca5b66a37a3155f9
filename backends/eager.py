"""Eager PyTorch: the module as it is. The default baseline, and the reference for drift."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from backends.torch_module import TorchSession, prepare, probe_torch
from harness.api import Availability, Backend, BackendOptions, Capabilities, CompileRequest, Session


class EagerOptions(BackendOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of eager PyTorch."""

    channels_last: Annotated[bool, msgspec.Meta(description="store images as NHWC; often faster for convolutions")] = (
        False
    )


class Eager(Backend):
    """No compiler: what every other backend is compared with."""

    name = "eager"
    summary = "PyTorch without a compiler"
    capabilities = Capabilities(source="torch", devices=("cpu", "cuda"), dynamic_shapes=True, saves_engines=False)
    modules = ("torch",)
    Options = EagerOptions

    @classmethod
    def probe(cls) -> Availability:
        return probe_torch()

    def compile(self, request: CompileRequest) -> Session:
        with request.stage("load"):
            return self._session(request)

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        return self._session(request)

    def _session(self, request: CompileRequest) -> Session:
        options = request.options
        assert isinstance(options, EagerOptions)
        module = prepare(request, channels_last=options.channels_last)
        provider = f"torch {request.device}" + (" channels_last" if options.channels_last else "")
        return TorchSession(module, request, provider=provider, channels_last=options.channels_last)
