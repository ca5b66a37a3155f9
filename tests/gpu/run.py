"""The GPU suite on a bare machine: `python tests/gpu/run.py [pytest arguments]`.

Needs an NVIDIA GPU, torch, onnx and what this project itself depends on; nothing is installed or downloaded. What is
missing is named first. Then the tests below this folder run, and a quick comparison prints its table. The exit code is
that of the first part that failed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = (
    "alembic",
    "click",
    "filelock",
    "msgspec",
    "numpy",
    "packaging",
    "platformdirs",
    "plotext",
    "psutil",
    "pynvml",
    "rich",
    "safetensors",
    "scipy",
    "sqlalchemy",
    "tabulate",
)
NEEDED = (*CORE, "torch", "onnx", "onnxscript", "hypothesis", "pytest", "pytest_timeout")
USEFUL = {
    "cuda.bindings": "without it the device is not timed apart from the host",
    "onnxruntime": "one backend less, and exports are not checked",
    "tensorrt": "one backend less",
    "tvm": "one backend less",
}


def present(module: str) -> bool:
    """Say whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def main() -> int:
    """Run everything and return the exit code."""
    if missing := [module for module in NEEDED if not present(module)]:
        print(
            f"error: missing: {', '.join(missing)}; pip install -c constraints.txt -e '.[torch,dev]'", file=sys.stderr
        )
        return 2
    for module, loss in USEFUL.items():
        if not present(module):
            print(f"{module} is missing: {loss}", file=sys.stderr)
    environment = {**os.environ, "HARNESS_REQUIRE": "gpu,eager", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", *sys.argv[1:]], cwd=ROOT, env=environment
    )
    start = "import sys; sys.path.insert(0, '.'); import _harness_boot; _harness_boot.main()"
    comparison = [
        sys.executable, "-c", start, "compare", "--model", "tiny,resnet50", "--device", "cuda", "--backends", "all",
        "--launches", "3", "--budget", "60",
    ]  # fmt: skip
    table = subprocess.run(comparison, cwd=ROOT, env=environment)
    return tests.returncode or table.returncode


if __name__ == "__main__":
    sys.exit(main())
