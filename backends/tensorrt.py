"""Native TensorRT 10 and 11: tunes each layer on the device that the engine will run on."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
from filelock import FileLock, Timeout

from backends.cuda_device import Gpu
from backends.tensorrt_build import Build
from backends.tensorrt_family import FamilyOptions, TensorRTFamily, usable_driver
from harness.api import Capabilities, CompileRequest, Scalar
from harness.precisions import PRECISIONS

MAJORS = (10, 11)
CACHE_LOCK_WITHIN_S = 30


class TensorRTOptions(FamilyOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the native builder."""

    builder_optimization_level: Annotated[
        int, msgspec.Meta(ge=0, le=5, description="how long the builder searches: 0 builds fastest, 5 tries most")
    ] = 3


class TensorRT(TensorRTFamily):
    """Builds on the device itself, keeping layer timings in a cache per version and device."""

    name = "tensorrt"
    summary = "NVIDIA TensorRT 10 or 11, tuned on the device"
    capabilities = Capabilities(source="onnx", devices=("cuda",), precisions={"cuda": PRECISIONS}, dynamic_shapes=True)
    modules = ("tensorrt",)
    Options = TensorRTOptions
    install_note = "; its libraries come from NVIDIA's own package index"

    @classmethod
    def _too_old(cls, version: str) -> str | None:
        major = version.partition(".")[0]
        if major in map(str, MAJORS):
            return None
        return f"tensorrt {version} is not supported: this backend is written for {' and '.join(map(str, MAJORS))}"

    def _gpu(self, request: CompileRequest) -> Gpu:
        return usable_driver(self.modules[0]).gpu(request.device)

    def _target(self, gpu: Gpu | None) -> str:
        assert gpu is not None
        return gpu.target

    def _tuned_on(self, gpu: Gpu | None) -> str | None:
        assert gpu is not None
        return gpu.name

    def _provider(self, target: str) -> str:
        return f"TensorRT {target}"

    def _configure(
        self, trt: Any, build: Build, request: CompileRequest, target: str, gpu: Gpu | None
    ) -> dict[str, Scalar]:
        options = request.options
        assert isinstance(options, TensorRTOptions) and gpu is not None
        facts = super()._configure(trt, build, request, target, gpu)
        build.config.builder_optimization_level = options.builder_optimization_level
        path = timing_cache_path(request.cache_dir, trt.__version__, gpu)
        known = path.read_bytes() if path.is_file() else b""
        cache = build.config.create_timing_cache(known)
        # Entries of another device or version would be timings of something else: they are refused, not adapted.
        accepted = bool(cache is not None and build.config.set_timing_cache(cache, ignore_mismatch=False))
        if not accepted:
            build.config.set_timing_cache(build.config.create_timing_cache(b""), ignore_mismatch=False)
        warm = bool(known and accepted)
        return {
            **facts,
            "builder_optimization_level": options.builder_optimization_level,
            "timing_cache": f"warm, {len(known)} bytes" if warm else "cold",
        }

    def _built(self, trt: Any, build: Build, request: CompileRequest, gpu: Gpu | None) -> None:
        assert gpu is not None
        path = timing_cache_path(request.cache_dir, trt.__version__, gpu)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{path}.lock", timeout=CACHE_LOCK_WITHIN_S):
                self._keep(build.config, path)
        except Timeout:  # the engine is there, and the next build can time its layers itself
            logging.getLogger(__name__).warning("%s is locked: the layer timings of this build are lost", path)

    @staticmethod
    def _keep(config: Any, path: Path) -> None:
        """Write the layer timings of this build, and those that another one wrote meanwhile."""
        cache = config.get_timing_cache()
        if path.is_file():
            others = config.create_timing_cache(path.read_bytes())
            if others is not None:
                cache.combine(others, ignore_mismatch=False)  # damaged, or of another device: refused, and overwritten
        # Renamed into place: a build that is killed here must not leave half a cache to the next one.
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_bytes(cache.serialize())
        part.replace(path)


def timing_cache_path(cache_dir: Path, version: str, gpu: Gpu) -> Path:
    """Return where the layer timings of one TensorRT version on one kind of device are kept."""
    device = re.sub(r"[^\w.]+", "-", gpu.name).strip("-")
    return cache_dir / f"timing-{version}-{gpu.target}-{device}.cache"
