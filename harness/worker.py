"""A worker: one process, one session. Reads requests and writes replies as JSON lines on two descriptors of its own.

stdout and stderr belong to the libraries. Whatever a library raises becomes a `Failed` message; whatever kills
the process is the parent's business.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from harness import protocol, registry
from harness.api import Availability, Backend, CompileRequest, DynamicShapes, Session
from harness.artifact import Artifact, write_tensors
from harness.errors import (
    CompileError,
    HarnessError,
    OutOfMemory,
    RunError,
    UnavailableError,
    UsageError,
)
from harness.measure import (
    DeviceTimer,
    StageClock,
    can_time_devices,
    profile,
    run_once,
    sample,
    sample_device,
    timed,
    warm_up,
)

if TYPE_CHECKING:
    import numpy as np

    from harness.datasets import Dataset


NO_EVENTS = "the device's own time was not measured, because cuda-bindings is missing: pip install cuda-bindings"


class Worker:
    """The state of a worker and one method a request."""

    def __init__(self, send: Callable[[protocol.AnyMessage], None]) -> None:
        self._send = send
        self._session: Session | None = None
        self._artifact: Artifact | None = None
        self._engine_dir: Path | None = None
        self._bound = False
        self._device_index = 0
        self._timer: DeviceTimer | None = None
        self._dataset: Dataset | None = None

    def handle(self, request: protocol.AnyRequest) -> msgspec.Struct:
        """Carry out a request and return its answer."""
        method = getattr(self, "_" + type(request).__name__.lower())
        return cast(msgspec.Struct, method(request))

    def _probe(self, request: protocol.Probe) -> protocol.Probed:
        return _probed(registry.backend(request.backend).probe())

    def _export(self, request: protocol.Export) -> protocol.Exported:
        from harness.exporter import export

        return export(request, self._progress)

    def _check(self, request: protocol.Check) -> protocol.Checked:
        from harness.graph_reference import check

        return check(Path(request.folder), request.input_sets, request.threads)

    def _convert(self, request: protocol.Convert) -> protocol.Converted:
        from harness.converter import convert

        return convert(request, self._progress)

    def _lower(self, request: protocol.Lower) -> protocol.Lowered:
        from harness.lowerer import lower

        return lower(request)

    def _survey(self, request: protocol.Survey) -> protocol.Surveyed:
        from harness.graph_cuts import survey

        return survey(request)

    def _listnarrow(self, request: protocol.ListNarrow) -> protocol.NarrowNodes:
        from harness.graph_cuts import list_narrow

        return list_narrow(request)

    def _cut(self, request: protocol.Cut) -> protocol.WasCut:
        from harness.graph_cuts import cut

        return cut(request)

    def _screen(self, request: protocol.Screen) -> protocol.Screened:
        from harness.evaluator import screen

        sound, broken = screen(request.dataset, Artifact.open(Path(request.artifact)), request.most, self._progress)
        return protocol.Screened(sound=sound, broken=broken)

    def _evaluate(self, request: protocol.Evaluate) -> protocol.Written:
        from harness.datasets import open_dataset
        from harness.evaluator import evaluate

        session, artifact = self._opened()
        if self._dataset is None or self._dataset.text != request.dataset:
            self._dataset = open_dataset(request.dataset)
            self._dataset.refuse_artifact(artifact.manifest)
        answers = evaluate(self._dataset, session, artifact, request.samples)
        write_tensors(Path(request.path), {"answers": answers})
        return protocol.Written()

    def _rates(self, request: protocol.Rates) -> protocol.Rated:
        from harness.rates import measure

        return measure(request)

    def _import(self, request: protocol.Import) -> protocol.Imported:
        backend = registry.backend(request.backend)
        clock = StageClock()
        for module in backend.modules:
            if _missing(module):
                break  # the probe below says what is missing, and how to install it
            with clock.stage("import"):
                try:
                    importlib.import_module(module)
                except Exception as exc:  # a library may raise anything while it is imported
                    known = backend.probe()  # it may know why, and what to do about it
                    raise UnavailableError(
                        known.reason or f"importing {module} failed: {type(exc).__name__}: {exc}",
                        hint=known.hint or registry.install_hint(request.backend),
                    ) from exc
        return protocol.Imported(import_s=clock.seconds.get("import", 0.0), probed=_probed(backend.probe()))

    def _compile(self, request: protocol.Compile) -> protocol.Opened:
        def compile_(backend: Backend, ask: CompileRequest) -> Session:
            return backend.compile(ask)

        return self._open(request.case, compile_, CompileError)

    def _load(self, request: protocol.Load) -> protocol.Opened:
        def load(backend: Backend, ask: CompileRequest) -> Session:
            return backend.load(ask.engine_dir, ask)

        return self._open(request.case, load, RunError)

    def _open(
        self,
        case: protocol.CaseSpec,
        start: Callable[[Backend, CompileRequest], Session],
        failure: type[HarnessError],
    ) -> protocol.Opened:
        kind = registry.backend(case.backend)
        clock = StageClock()
        self._artifact = Artifact.open(Path(case.artifact))
        dynamic = None
        if self._artifact.manifest.dynamic:
            dynamic = DynamicShapes(axes=self._artifact.manifest.axes, ranges=self._artifact.manifest.dynamic)
        if case.fed_by is not None:
            self._artifact = self._artifact.fed_by(Artifact.open(Path(case.fed_by)))
        self._engine_dir = Path(case.engine_dir)
        self._device_index = int(case.device.partition(":")[2] or 0)
        ask = CompileRequest(
            artifact=self._artifact,
            options=msgspec.convert(case.options, type=kind.Options),
            device=case.device,
            target=case.target,
            precision=case.precision,
            threads=case.threads,
            dynamic=dynamic,
            engine_dir=self._engine_dir,
            cache_dir=Path(case.cache_dir),
            stage=clock.stage,
            progress=self._progress,
        )
        try:
            session, seconds = timed(lambda: start(kind(), ask))
        except (HarnessError, MemoryError):
            raise
        except Exception as exc:  # compilers raise anything; the case gets a row that says what
            raise _memory(exc) or failure(f"{type(exc).__name__}: {exc}") from exc
        self._session = session
        return protocol.Opened(
            seconds={"total": seconds, **clock.seconds},
            provider=session.provider,
            runnable=session.runnable,
            facts=session.facts(),
            notes=[*session.notes(), *([] if session.stream is None or can_time_devices() else [NO_EVENTS])],
            placement=session.placement(),
            on_stream=session.stream is not None and can_time_devices(),
        )

    def _runonce(self, request: protocol.RunOnce) -> protocol.Took:
        session, artifact = self._opened()
        if not self._bound:
            session.bind(artifact.input_set(0))
            self._bound = True
        return protocol.Took(seconds=run_once(session) / 1e9)

    def _outputs(self, request: protocol.Outputs) -> protocol.Written:
        session, artifact = self._opened()
        session.bind(artifact.input_set(request.index))
        session.execute()
        session.synchronize()
        outputs = session.outputs()
        session.bind(artifact.input_set(0))
        path = Path(request.path)
        write_tensors(path, _safe(outputs))
        return protocol.Written()

    def _save(self, request: protocol.Save) -> protocol.Took:
        session, _ = self._opened()
        assert self._engine_dir is not None
        folder = self._engine_dir
        folder.mkdir(parents=True, exist_ok=True)
        _, seconds = timed(lambda: session.save(folder))
        return protocol.Took(seconds=seconds)

    def _warmup(self, request: protocol.WarmUp) -> protocol.Samples:
        return protocol.Samples(durations_ns=warm_up(self._opened()[0]))

    def _sample(self, request: protocol.Sample) -> protocol.Samples:
        session, artifact = self._opened()
        before = session.compilations()
        samples = self._sample_at(session, artifact, request)
        return msgspec.structs.replace(samples, compilations=session.compilations() - before)

    def _sample_at(self, session: Session, artifact: Artifact, request: protocol.Sample) -> protocol.Samples:
        if request.boundary == "device":
            return self._sample_device(session, request)
        inputs = artifact.input_set(0) if request.boundary == "host-to-host" else {}
        return protocol.Samples(
            durations_ns=sample(
                session,
                inputs,
                boundary=request.boundary,
                min_iterations=request.min_iterations,
                min_seconds=request.min_seconds,
            )
        )

    def _sample_device(self, session: Session, request: protocol.Sample) -> protocol.Samples:
        if self._timer is None:
            assert session.stream is not None
            self._timer = DeviceTimer(session.stream, self._device_index)
        durations_ns, enqueue_ns = sample_device(
            session, self._timer, min_iterations=request.min_iterations, min_seconds=request.min_seconds
        )
        return protocol.Samples(durations_ns=durations_ns, enqueue_ns=enqueue_ns)

    def _profile(self, request: protocol.Profile) -> protocol.Profiled:
        session, artifact = self._opened()
        found, durations_ns = profile(session, iterations=request.iterations)
        nodes = []
        if not _missing("onnx"):
            from harness.graph_nodes import read_graph

            nodes = read_graph(artifact.onnx_path).listed()
        return protocol.Profiled(profile=found, durations_ns=durations_ns, nodes=nodes)

    def _opened(self) -> tuple[Session, Artifact]:
        if self._session is None or self._artifact is None:
            raise RunError("no engine is open in this worker")
        return self._session, self._artifact

    def _progress(self, text: str, done: int | None = None, total: int | None = None) -> None:
        self._send(protocol.Progress(text=text, done=done, total=total))

    def close(self) -> None:
        """Free the session's memory."""
        if self._session is not None:
            self._session.close()
            self._session = None


def _probed(answer: Availability) -> protocol.Probed:
    return protocol.Probed(
        available=answer.available,
        versions={name: str(version) for name, version in answer.versions.items()},
        devices=list(answer.devices),
        reason=answer.reason,
        hint=answer.hint,
    )


def _missing(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is None


def _safe(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    # A backend under test may return anything at all; what is not an array is the judge's finding, not a crash.
    import numpy as np

    return {str(name): np.asarray(value) for name, value in outputs.items()}


def _memory(exc: BaseException) -> OutOfMemory | None:
    text = f"{type(exc).__name__}: {exc}"
    signs = ("OutOfMemory", "out of memory", "bad_alloc", "can't allocate memory", "Cannot allocate memory")
    return OutOfMemory(text) if isinstance(exc, MemoryError) or any(sign in text for sign in signs) else None


def _failed(exc: Exception) -> protocol.Failed:
    known = exc if isinstance(exc, HarnessError) else _memory(exc) or RunError(f"{type(exc).__name__}: {exc}")
    return protocol.Failed(
        status=known.status,
        message=known.message,
        hint=known.hint,
        traceback=known.worker_traceback or "".join(traceback.format_exception(type(exc), exc, exc.__traceback__)),
        usage=isinstance(exc, UsageError),
    )


def _die_with_parent() -> None:
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)


def main(argv: list[str]) -> None:
    """Serve requests until the parent closes its end. `argv` is the two descriptors: requests, replies."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends workers and keeps their results
    requests_fd, replies_fd = map(int, argv)
    for descriptor in (requests_fd, replies_fd):
        os.set_inheritable(descriptor, False)
    encode = msgspec.json.Encoder().encode
    decode = msgspec.json.Decoder(protocol.AnyRequest).decode

    def send(message: protocol.AnyMessage) -> None:
        line = encode(message) + b"\n"
        while line:
            line = line[os.write(replies_fd, line) :]

    worker = Worker(send)
    with os.fdopen(requests_fd, "rb") as requests:
        for line in requests:
            try:
                value = worker.handle(decode(line))
                send(protocol.Done(value=msgspec.Raw(encode(value))))
            except Exception as exc:  # the parent decides what an error means
                send(_failed(exc))
    worker.close()
    # Tearing a framework down takes up to a second, for memory that the kernel takes back at once.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
