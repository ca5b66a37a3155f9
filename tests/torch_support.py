"""An artifact whose torch module is at hand, requests for it, and a process without traces of earlier sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from backends import torch_session
from harness.api import Artifact, Backend, CompileRequest, TensorSpec
from harness.artifact import Manifest, write_tensors
from harness.modelspec import ModelSpec
from harness.torch_rules import set_rules


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Take back what a session leaves set for the rest of its process: in tests that is the process of them all."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark
    set_rules()
    torch_session.leave_gradients_off().__exit__(None, None, None)
    torch_session.leave_gradients_off.cache_clear()
    assert not torch.is_inference_mode_enabled()


class Built(Artifact):
    """An artifact whose module is at hand."""

    def __init__(
        self, folder: Path, made: Any, *, graph_only: bool = False, shape: tuple[int, ...] = (2, 1, 8, 8)
    ) -> None:
        values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        with torch.no_grad():
            result = made(torch.tensor(values)).numpy()
        write_tensors(folder / "inputs-0.safetensors", {"x": values})
        manifest = Manifest(
            model=ModelSpec(name="toy"),
            dims={"batch": 2},
            module=not graph_only,
            weights="seeded",
            seed=0,
            opset=18,
            inputs=(TensorSpec(name="x", dtype="float32", shape=values.shape),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=result.shape),),
            input_sets=1,
            parameters=0,
            weights_bytes=0,
            deterministic=True,
            golden=False,
            export_s=0.0,
            onnx_max_abs=None,
            versions={},
            files={},
        )
        super().__init__(folder, manifest)
        self.made, self.expected = made, result

    def module(self) -> object:
        return self.made if self.manifest.module else super().module()


def request_for(
    backend: type[Backend],
    artifact: Artifact,
    folder: Path,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    **options: Any,
) -> CompileRequest:
    """Return what a worker would be asked, with a backend's options by name."""
    return CompileRequest(
        artifact=artifact,
        options=msgspec.convert(options, type=backend.Options),
        device=device,
        precision=precision,
        engine_dir=folder,
        cache_dir=folder,
        stage=lambda _: contextlib.nullcontext(),
        progress=lambda *_: None,
    )
