"""Eager PyTorch: the module as it is. The default baseline, and the reference for drift."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from backends.torch_errors import in_words
from backends.torch_module import (
    NO_FP8,
    PRECISIONS,
    TorchOptions,
    described,
    options_of,
    prepare,
    probe_torch,
)
from backends.torch_placement import placement
from backends.torch_session import SavedFacts, TorchSession, saved_placement
from harness.api import Availability, Backend, BackendOptions, Capabilities, CompileRequest, Session
from harness.errors import UnsupportedError, UsageError

KERNELS = {
    "math": "MATH",
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
}
"""Option -> member of `torch.nn.attention.SDPBackend`."""
EMULATED = "without a compiler torch multiplies in float32 what it has just dequantised: that is not int8's speed"
LACKS = {kind: {"int8": EMULATED, "fp8": NO_FP8} for kind in PRECISIONS}
ATTENTION = "aten::_scaled_dot_product_"
"""How the operators begin that `scaled_dot_product_attention` chooses between; the kernel's name comes next."""


class EagerOptions(TorchOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of eager PyTorch."""

    sdpa: (
        Annotated[
            Literal["math", "flash", "efficient", "cudnn"],
            msgspec.Meta(description="the one kernel that attention may use; by default torch chooses"),
        ]
        | None
    ) = None


class Eager(Backend):
    """No compiler: what every other backend is compared with."""

    name = "eager"
    summary = "PyTorch without a compiler"
    capabilities = Capabilities(
        source="torch", devices=("cpu", "cuda"), precisions=PRECISIONS, lacks=LACKS, saves_engines=False
    )
    modules = ("torch",)
    Options = EagerOptions

    @classmethod
    def distribution(cls, options: BackendOptions, kind: str) -> str:
        return "torch"

    @classmethod
    def probe(cls) -> Availability:
        return probe_torch()

    @classmethod
    def check(cls, options: BackendOptions) -> None:
        if options.dynamic:
            raise UsageError("eager has no engine: it takes every shape as it is", hint="leave out dynamic=true")

    def compile(self, request: CompileRequest) -> Session:
        with in_words():
            with request.stage("load"):
                session = self._session(request)
            with _closed_if_it_fails(session):
                _check_attention(session, request)
                if options_of(request).cuda_graph:
                    with request.stage("build"):
                        session.capture()
        return session

    def load(self, engine_dir: Path, request: CompileRequest) -> Session:
        with in_words():
            session = self._session(request, saved_placement(engine_dir))
            with _closed_if_it_fails(session):
                if options_of(request).cuda_graph:
                    session.capture()
        return session

    def _session(self, request: CompileRequest, found: dict[str, int] | None = None) -> TorchSession:
        kernel = _options(request).sdpa
        module, place, facts = prepare(request)
        return TorchSession(
            module,
            request,
            place,
            provider=described(request, "torch") + (f" sdpa={kernel}" if kernel else ""),
            saved=SavedFacts(facts=facts, placement=found),
            locate=partial(placement, module, request, place),
            within=_only(kernel),
        )


def _options(request: CompileRequest) -> EagerOptions:
    assert isinstance(request.options, EagerOptions)
    return request.options


@contextmanager
def _closed_if_it_fails(session: Session) -> Iterator[None]:
    """Leave torch its choice of kernels again, and the device its memory, whatever ends the block."""
    try:
        yield
    except BaseException:  # Ctrl-C too; it goes on up
        session.close()
        raise


def _only(kernel: str | None) -> AbstractContextManager[object]:
    if kernel is None:
        return nullcontext()
    from torch.nn import attention

    chosen: AbstractContextManager[object] = attention.sdpa_kernel(getattr(attention.SDPBackend, KERNELS[kernel]))
    return chosen


def _check_attention(session: Session, request: CompileRequest) -> None:
    """Run once under the profiler, and see that attention ran on the kernel that was asked for, and on no other.

    Raises:
        UnsupportedError: The kernel cannot run this model here, or the model has no attention to run on it.
    """
    kernel = _options(request).sdpa
    if kernel is None:
        return
    from torch.profiler import ProfilerActivity, profile

    session.bind(request.artifact.input_set(0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                session.execute()
                session.synchronize()
        except RuntimeError as exc:
            if "No viable backend" not in str(exc) and "No available kernel" not in str(exc):
                raise
            why = "; ".join(dict.fromkeys(_first_sentence(str(entry.message)) for entry in said))
            raise UnsupportedError(
                f"sdpa={kernel}: torch has no such kernel for this model on {request.device}"
                + (f": {why}" if why else ""),
                hint="leave out sdpa, or choose math, which runs everywhere",
            ) from exc
    ran = {event.name for event in seen.events() or [] if event.name.startswith(ATTENTION)}
    if not ran or (wrong := _others(kernel, ran)):
        found = f"it ran {', '.join(wrong)}" if ran else "it never calls scaled_dot_product_attention"
        raise UnsupportedError(f"sdpa={kernel} chooses nothing in this model: {found}", hint="leave out sdpa")


def _others(kernel: str, ran: Iterable[str]) -> list[str]:
    """Return the operators that are not the chosen kernel's. A CPU's and a GPU's begin alike."""
    begins = ATTENTION + ("attention_math" if kernel == "math" else f"{kernel}_attention")
    return sorted(name for name in ran if not name.startswith(begins))


def _first_sentence(text: str) -> str:
    return text.split(" (Triggered internally", 1)[0].strip()
