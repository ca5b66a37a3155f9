"""What torch, Inductor and the CUDA libraries below them raise, in the harness' own errors: what, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.errors import HarnessError, OutOfMemory, RunError, UnavailableError, UnsupportedError

INSTALL = "install torch's CUDA build (make compare does, where nvidia-smi lists a GPU)"
NO_DRIVER = "Found no NVIDIA driver"
"""How torch says that there is none, which on a machine without a GPU needs no words."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    signs: tuple[str, ...]
    kind: type[HarnessError]
    hint: str


_KNOWN = (
    _Known(
        signs=("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
        kind=OutOfMemory,
        hint="free device memory (nvidia-smi says who holds it), or lower --batch",
    ),
    _Known(
        signs=("busy or unavailable", "GPU is lost", "has fallen off the bus"),
        kind=RunError,
        hint="see nvidia-smi: the card fell off the bus, or another process has it to itself (compute mode)",
    ),
    _Known(
        signs=("driver on your system is too old", "driver version is insufficient"),
        kind=UnavailableError,
        hint="update the NVIDIA driver, or install a torch that was built for an older CUDA",
    ),
    _Known(
        signs=("No CUDA GPUs are available", "no CUDA-capable device"),
        kind=UnavailableError,
        hint="see whether nvidia-smi lists a GPU, and whether CUDA_VISIBLE_DEVICES hides it",
    ),
    _Known(
        signs=(NO_DRIVER,),
        kind=UnavailableError,
        hint="install the NVIDIA driver, or run on a machine with an NVIDIA GPU",
    ),
    _Known(
        signs=("no kernel image is available", "too old to be supported by the triton"),
        kind=UnsupportedError,
        hint="this build has no code for the card: install a torch that was built for its compute capability",
    ),
    _Known(
        signs=("Cannot find a working triton",),
        kind=UnavailableError,
        hint=f"{INSTALL}, which brings Triton",
    ),
    _Known(
        signs=(
            "CUDA_HOME environment variable is not set",
            "cuda.h: No such file",
            "cuda_runtime_api.h: No such file",
            "host_defines.h: No such file",
            "cannot find -lcuda",
        ),
        kind=UnavailableError,
        hint="a package is compiled against the CUDA toolkit: install it and set CUDA_HOME, or leave out aot=true",
    ),
    _Known(
        signs=("Failed to find C compiler", "No working C++ compiler", "Python.h: No such file"),
        kind=UnavailableError,
        hint="install a compiler and Python's headers: sudo apt-get install g++ python3-dev",
    ),
    _Known(
        signs=(
            "Expected all tensors to be on the same device",
            "found two different devices",
            "on the same device as the indexed tensor",
        ),
        kind=RunError,
        hint="the model makes or keeps a tensor on the CPU: create it with device=x.device, or register it as a buffer",
    ),
    _Known(
        signs=("CUDA error:", "CUBLAS_STATUS_", "CUDNN_STATUS_"),
        kind=RunError,
        hint="a kernel failed, and the process can use the device no more; CUDA_LAUNCH_BLOCKING=1 shows which one",
    ),
)
"""What torch and its libraries say -> what it means. The first that fits counts: the last ones fit almost anything."""


def tell(exc: BaseException) -> None:
    """Raise what an exception of torch's means where it is known; else return.

    Raises:
        HarnessError: In a sentence, with what to do about it.
    """
    if isinstance(exc, HarnessError):
        return
    for known in _KNOWN:
        for cause in _chain(exc):
            for line in str(cause).splitlines():
                if any(sign in line for sign in known.signs):
                    raise known.kind(_without_advice(line), hint=known.hint) from exc


@contextmanager
def in_words() -> Iterator[None]:
    """Turn what torch raises within into the harness' own errors, where it is known what it means."""
    try:
        yield
    except Exception as exc:  # compilers wrap errors of the device in classes of their own
        tell(exc)
        raise


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """Yield an exception after what caused it, the first cause first."""
    seen: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in seen:
        seen.append(cause)
        cause = getattr(cause, "inner_exception", None) or cause.__cause__ or cause.__context__
    return reversed(seen)


def first_cause(exc: BaseException) -> BaseException:
    """Return what started it all: ending a capture that has failed raises another error."""
    return next(iter(_chain(exc)))


def sentence(exc: BaseException) -> str:
    """Return the part of a message that says what happened; what follows is how to debug torch."""
    return _without_advice(str(exc).strip().partition("\n")[0]) or type(exc).__name__


def _without_advice(line: str) -> str:
    return line.partition(" Of the allocated memory")[0].strip()  # the rest is about settings of the allocator


def hint_for(text: str) -> str | None:
    """Return what to do about a message, where it is known."""
    return next((known.hint for known in _KNOWN if any(sign in text for sign in known.signs)), None)
