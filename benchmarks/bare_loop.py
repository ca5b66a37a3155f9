"""The loop that people write by hand, with nothing but the library: `bare_loop.py BACKEND ARTIFACT MODEL THREADS`.

Reads a number of seconds a line from stdin and answers each with a JSON list of durations in nanoseconds. Uses the
harness for one thing only, the definition of the torch module.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def onnxruntime_loop(folder: Path, threads: int, inputs: dict[str, Any]) -> Callable[[], object]:
    """Return one inference with ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def eager_loop(folder: Path, model: str, threads: int, inputs: dict[str, Any]) -> Callable[[], object]:
    """Return one inference with eager PyTorch."""
    import torch
    from safetensors.torch import load_file

    from harness import registry

    torch.set_num_threads(threads)
    reference = registry.model_class(model)
    module = reference().build(reference.dims)
    module.load_state_dict(load_file(folder / "weights.safetensors"))
    module.eval()
    tensors = [torch.from_numpy(array) for array in inputs.values()]

    def once() -> object:
        with torch.inference_mode():
            return module(*tensors)

    return once


def main() -> None:
    """Serve until stdin ends."""
    from safetensors.numpy import load_file

    backend, folder, model, threads = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    inputs = load_file(folder / "inputs-0.safetensors")
    if backend == "eager":
        once = eager_loop(folder, model, threads, inputs)
    else:
        once = onnxruntime_loop(folder, threads, inputs)
    for line in sys.stdin:
        durations: list[int] = []
        end = time.perf_counter() + float(line)
        while not durations or time.perf_counter() < end:
            start = time.perf_counter_ns()
            result = once()  # kept until the next one is there, as whoever wants the result does
            durations.append(time.perf_counter_ns() - start)
        print(json.dumps(durations), flush=True)
        del result


if __name__ == "__main__":
    main()
