"""A GPU that is not there: libraries in the place of NVIDIA's, and a compiler for them.

TVM's own CUDA runtime runs on them unchanged, and so does all the code above it. What that cannot show is how fast
anything is, and what a real driver does otherwise than its documentation says.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


def missing() -> str:
    """Return what this machine lacks for it, or an empty string."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the fake GPU is for Linux on x86-64"
    for tool in ("gcc", "g++"):
        if shutil.which(tool) is None:
            return f"{tool} builds the fake GPU, and there is none"
    for module in ("tvm", "onnx", "cuda"):
        if find_spec(module) is None:
            return f"{module} is not installed"
    return ""


def fake_nvcc(folder: Path) -> None:
    """Put a program named nvcc into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "nvcc.py"}" "$@"\n')
    nvcc.chmod(0o755)


def install(folder: Path) -> dict[str, str]:
    """Build the libraries in a folder; return the variables that make a process find them before NVIDIA's."""
    script = folder / "cudart.map"
    script.write_text("libcudart.so.13 { global: *; };\n")
    empty = folder / "empty.c"
    empty.write_text("")
    cudart, driver = folder / "libcudart.so.13", folder / "libcuda.so.1"
    # Fortified jumps refuse to leave one stack for another.
    shared = ["gcc", "-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE"]
    source = HERE / "fake_gpu.c"
    subprocess.run(
        [*shared, "-o", cudart, f"-Wl,-soname,{cudart.name},--version-script={script}", source, "-ldl"], check=True
    )
    # Both are one library, so that both know of the same streams; the driver's name leads to it.
    subprocess.run([*shared, "-o", driver, f"-Wl,-soname,{driver.name},--no-as-needed", empty, cudart], check=True)
    fake_nvcc(folder)
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH")))),
        "PATH": os.pathsep.join((str(folder), os.environ["PATH"])),
    }
