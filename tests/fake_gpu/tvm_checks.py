"""What TVM must do on a GPU, in one process on the fake one: `tvm_checks.py FOLDER`.

Prints one JSON object: check -> null, or what was wrong. Each check is a function below.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import msgspec
import numpy as np

from backends import tvm_cuda, tvm_measure
from backends.tvm import TVM, Options
from backends.tvm_session import HEADER, Header
from harness.api import Artifact, CompileRequest, Session
from harness.errors import OutOfMemory, RunError, UnavailableError
from harness.measure import profile
from tests.fake_gpu import bindings
from tests.fake_tensorrt import make_artifact

SIZE, LAYERS = 4, 4


class Subject:
    """A chain of matrix products, as an artifact, and what the fake GPU has seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gpu = bindings.use()
        generator = np.random.default_rng(0)
        self.weights = [generator.standard_normal((SIZE, SIZE), dtype=np.float32) for _ in range(LAYERS)]
        self.artifact = make_artifact(folder / "artifact", chain(self.weights))

    def request(self, engine: str, artifact: Artifact | None = None, **options: Any) -> CompileRequest:
        return CompileRequest(
            artifact=artifact or self.artifact,
            options=Options(**{"tuner": "none"} | options),
            device="cuda:0",
            threads=1,
            engine_dir=self.folder / engine,
            cache_dir=self.folder / "cache",
            stage=lambda _: contextlib.nullcontext(),
            progress=lambda *_: None,
        )

    def check_outputs(self, session: Session) -> None:
        """Run once and compare with numpy."""
        value = self.artifact.input_set(0)["input"]
        session.bind({"input": value})
        session.execute()
        session.synchronize()
        for weight in self.weights:
            value = np.maximum(value @ weight, 0)
        np.testing.assert_allclose(session.outputs()["output"], value, rtol=1e-5)


def chain(weights: list[np.ndarray]) -> bytes:
    """Return an ONNX model of matrix products with a ReLU after each."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, name = [], "input"
    for index in range(len(weights)):
        last = "output" if index == len(weights) - 1 else f"relu{index}"
        nodes.append(helper.make_node("MatMul", [name, f"w{index}"], [f"product{index}"]))
        nodes.append(helper.make_node("Relu", [f"product{index}"], [last]))
        name = last
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, SIZE, SIZE)) for n in ("input", "output")]
    constants = [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "chain", [ends[0]], [ends[1]], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized


@contextlib.contextmanager
def fake(**settings: object) -> Iterator[None]:
    """Change the fake GPU for a while."""
    names = {f"FAKE_CUDA_{name.upper()}": str(value) for name, value in settings.items()}
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def raised(kind: type[Exception], pattern: str, action: Callable[[], object]) -> None:
    try:
        action()
    except kind as exc:
        assert re.search(pattern, str(exc)), f"expected {pattern!r}, got {exc}"
        return
    raise AssertionError(f"no {kind.__name__} was raised")


def lists_the_device(subject: Subject) -> None:
    """The probe names it, and its target is the one that is built for where it is absent."""
    import tvm

    answer = TVM.probe()
    assert (answer.available, answer.devices, answer.reason) == (True, ("cpu", "cuda:0"), None), answer
    assert str(tvm_cuda.target_of(tvm.cuda(0))) == str(tvm_cuda.target_for("sm_89"))


def says_why_there_is_none(subject: Subject) -> None:
    """A driver without a device, and one that is too old, leave the CPU and a reason."""
    with fake(devices=0):
        answer = TVM.probe()
        assert (answer.available, answer.devices) == (True, ("cpu",)) and answer.hint, answer
        assert "offers no device: cuInit returned 100" in str(answer.reason), answer
        raised(UnavailableError, "offers no device", lambda: TVM().compile(subject.request("none")))
    with fake(driver=12080):
        answer = TVM.probe()
        assert "too old: it serves CUDA 12.8, TVM's CUDA runtime needs CUDA 13" in str(answer.reason), answer


def enqueues_on_a_stream_of_its_own(subject: Subject) -> None:
    """Kernels and copies of an inference are all on the session's stream, and as many as it says."""
    with TVM().compile(subject.request("stream")) as session:
        assert session.provider == "cuda sm_89, dlight"
        assert session.placement() == {"cuda": LAYERS}
        assert session.facts()["kernels"] == 1 and session.facts()["cubin_bytes"], "all layers are alike"
        assert "DLight's default schedule" in session.notes()[0] and "tuner=none" in session.notes()[0]
        raised(RunError, "before the first", session.outputs)
        subject.gpu.log()
        subject.check_outputs(session)
        seen = subject.gpu.log()
        assert session.stream and all(line.endswith(f"stream={session.stream}") for line in seen), seen
        assert [line.split()[0] for line in seen].count("launch") == LAYERS, seen
        copies = [line for line in seen if line.startswith("copy")]
        assert [line.split()[1] for line in copies] == ["kind=1", "kind=2"], seen


def waits_for_weights_and_results(subject: Subject) -> None:
    """TVM itself copies on the default stream: weights before the first kernel, results only when they are there."""
    subject.gpu.log()
    with TVM().compile(subject.request("waits")) as session:
        assert subject.gpu.log() == [*["copy kind=1 bytes=64 stream=0"] * LAYERS, "synchronize stream=0"]
        session.bind(subject.artifact.input_set(0))
        profile(session, iterations=1)
        seen = subject.gpu.log()
        copies = [index for index, line in enumerate(seen) if line.startswith("copy kind=2")]
        assert len(copies) == LAYERS and all(seen[index].endswith("stream=0") for index in copies), seen
        assert {seen[index - 1] for index in copies} == {f"synchronize stream={session.stream}"}, seen


def replays_a_graph(subject: Subject) -> None:
    """With cuda_graph=true, what does not touch inputs or outputs is launched at once from the second run on."""
    with TVM().compile(subject.request("graph", cuda_graph=True)) as session:
        assert session.provider == "cuda sm_89, dlight, CUDA graph"
        assert session.facts()["cuda_graph"] is True
        subject.check_outputs(session)
        subject.gpu.log()
        subject.check_outputs(session)
        seen = subject.gpu.log()
        assert f"graph launches={LAYERS - 2} stream={session.stream}" in seen, seen
        assert [line.split()[0] for line in seen].count("launch") == 2, seen


def keeps_two_sessions_apart(subject: Subject) -> None:
    """Each enqueues on its own stream, whichever was used last."""
    with TVM().compile(subject.request("first")) as first, TVM().compile(subject.request("second")) as second:
        assert first.stream != second.stream
        for session in (first, second, first):
            subject.gpu.log()
            subject.check_outputs(session)
            assert all(line.endswith(f"stream={session.stream}") for line in subject.gpu.log())


def gives_everything_back(subject: Subject) -> None:
    """After close() the device holds nothing of it, also where it could not start."""
    before = subject.gpu.library.fake_live_blocks(), subject.gpu.library.fake_live_streams()
    with TVM().compile(subject.request("closed")) as session:
        subject.check_outputs(session)
        assert subject.gpu.library.fake_live_blocks() > before[0]
    assert (subject.gpu.library.fake_live_blocks(), subject.gpu.library.fake_live_streams()) == before
    with fake(memory_mb=0):
        raised(OutOfMemory, "out of memory", lambda: TVM().compile(subject.request("large")))
    assert (subject.gpu.library.fake_live_blocks(), subject.gpu.library.fake_live_streams()) == before


def loads_machine_code_for_this_card_only(subject: Subject) -> None:
    """A saved engine holds machine code; another card, another TVM and the CPU refuse it."""
    request = subject.request("engine")
    with TVM().compile(request) as session:
        session.save(request.engine_dir)
        kept = session.provider, session.facts(), session.notes(), session.placement()
    with TVM().load(request.engine_dir, request) as loaded:
        assert (loaded.provider, loaded.facts(), loaded.notes(), loaded.placement()) == kept
        subject.check_outputs(loaded)
    with fake(arch=90):
        raised(RunError, r"built for sm_89, but cuda:0 is sm_90 \(Fake GPU\)", lambda: TVM().load(*loading(request)))
    with fake(devices=0):
        raised(RunError, "built for sm_89: .*no device", lambda: TVM().load(*loading(request)))
    cpu = msgspec.structs.replace  # a header of another version
    path = request.engine_dir / HEADER
    header = msgspec.json.decode(path.read_bytes(), type=Header)
    path.write_bytes(msgspec.json.encode(cpu(header, tvm="0.1")))
    raised(RunError, "is for TVM 0.1", lambda: TVM().load(*loading(request)))
    path.write_bytes(msgspec.json.encode(cpu(header, target=None, cpu="")))
    raised(RunError, "is for TVM|is for the CPU", lambda: TVM().load(*loading(request)))


def loading(request: CompileRequest) -> tuple[Path, CompileRequest]:
    return request.engine_dir, request


def tunes_on_the_device(subject: Subject) -> None:
    """Tuning measures default schedules first, uses what is faster, and keeps both for the next compile."""
    options: dict[str, Any] = {"tuner": "meta-schedule", "trials": 6, "tuning_seconds": 300.0}
    with TVM().compile(subject.request("tuned", **options)) as session:
        facts = session.facts()
        assert (facts["trials"], facts["failed_trials"]) == (6, 0), (facts, session.notes())
        assert (facts["database_records"], facts["tasks"], facts["tasks_tuned"]) == (6, 1, 1), facts
        assert session.provider == "cuda sm_89"
        subject.check_outputs(session)
    with TVM().compile(subject.request("again", **options)) as session:
        again = session.facts()
        assert again["database_records_before"] == 6 and again["trials"] == 6, again
        assert again["tuning_s_total"] == facts["tuning_s_total"], "the defaults were measured again"
        subject.check_outputs(session)


def survives_kernels_that_do_not_fit(subject: Subject) -> None:
    """A block of too many threads is a failed trial, and so is a kernel that breaks the context: others go on."""
    target = tvm_cuda.target_for("sm_89")
    sound, large, fatal = (kernel(threads, target) for threads in (64, 2048, 96))
    with fake(fatal_threads=96):
        workers = tvm_measure.Workers(1, "cuda:0")
        try:
            results = workers.measure([sound, large, sound, fatal, sound])
        finally:
            workers.close()
    kinds = [type(result) for result in results]
    assert kinds == [list, str, list, str, list], results
    assert "TOO_MANY_RESOURCES" in results[1] or "too many resources" in results[1], results
    assert "illegal memory access" in results[3], results


def kernel(threads: int, target: Any) -> tvm_measure.Candidate:
    """Return a kernel of one block."""
    import tvm
    from tvm import te

    source = te.placeholder((4096,), name="source")
    function = te.create_prim_func([source, te.compute((4096,), lambda i: source[i] + 1.0, name="sum")])
    schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))
    (loop,) = schedule.get_loops(schedule.get_sblock("sum"))
    outer, inner = schedule.split(loop, [None, threads])
    schedule.bind(outer, "blockIdx.x")
    schedule.bind(inner, "threadIdx.x")
    return tvm_measure.Candidate(
        module=schedule.mod, target=target, arguments=[["TENSOR", "float32", [4096]], ["TENSOR", "float32", [4096]]]
    )


CHECKS: tuple[Callable[[Subject], None], ...] = (
    lists_the_device,
    says_why_there_is_none,
    enqueues_on_a_stream_of_its_own,
    waits_for_weights_and_results,
    replays_a_graph,
    keeps_two_sessions_apart,
    gives_everything_back,
    loads_machine_code_for_this_card_only,
    tunes_on_the_device,
    survives_kernels_that_do_not_fit,
)


def main() -> None:
    replies = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not part of the answer
    subject = Subject(Path(sys.argv[1]))
    results: dict[str, str | None] = {}
    for check in CHECKS:
        try:
            check(subject)
            results[check.__name__] = None
        except Exception:  # every check reports, whatever it raises
            results[check.__name__] = traceback.format_exc()[-3000:]
    os.write(replies, json.dumps(results).encode())


if __name__ == "__main__":
    main()
