"""Stands for nvcc: has the host's compiler make a shared library of TVM's kernels, which the fake driver can run."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\) *\{')


def main(arguments: list[str]) -> int:
    """Answer as nvcc does to what TVM and harness ask of it."""
    if "--version" in arguments:
        print("Cuda compilation tools, release 13.0, V13.0.0")
        return 0
    if "--list-gpu-code" in arguments:
        print("sm_80\nsm_89\nsm_90")
        return 0
    source = Path(arguments[-1]).read_text()
    if "must not compile" in source:
        print("tvm_kernels.cu(7): error: says the fake")
        return 2
    # C++ wants the alignment first. Blocks run one after another, so a block's shared memory is a static variable.
    hosted = re.sub(r"__shared__ (alignas\(\d+\))", r"\1 static", source)
    # Copies that the host makes are there at once.
    hosted = re.sub(r'asm volatile\("cp\.async\.(commit|wait)_group[^;]*;"[^;]*;', "", hosted)
    text = hosted + "".join(call(name, parameters) for name, parameters in KERNEL.findall(source))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cpp"
        path.write_text(text)
        flags = ["-shared", "-fPIC", "-O1", "-w", "-I", str(Path(__file__).resolve().parent)]
        target = arguments[arguments.index("-o") + 1]
        return subprocess.run(["g++", *flags, "-o", target, str(path)], check=False).returncode


def call(name: str, parameters: str) -> str:
    """Return a function that calls a kernel with its arguments as the driver gets them: each by its address."""
    types = [parameter.rpartition(" ")[0].replace("__restrict__", "") for parameter in parameters.split(",")]
    values = ", ".join(f"*({kind}*)arguments[{index}]" for index, kind in enumerate(types))
    return (
        f'\nextern "C" {{ extern const int {name}__arguments = {len(types)};'
        f" void {name}__call(void **arguments) {{ {name}({values}); }} }}\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
