"""What makes cases comparable over time, and what is only reported; the project's commit."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness import environment
from harness.history.deriving import points_of
from harness.history.keys import common_causes, differing, machine_of
from harness.history.points import Point, sortable
from harness.interpreter import Interpreter
from harness.modelspec import ModelSpec
from harness.records import Project, Run
from tests.example_history import a_run


def of(run: Run, case: str = "onnxruntime") -> Point:
    (point,) = (point for point in points_of(run) if point.case == case)
    return point


def changed(run: Run, **fields: Any) -> Run:
    (workload,) = run.workloads
    return msgspec.structs.replace(run, workloads=[msgspec.structs.replace(workload, **fields)])


BASE = of(a_run())


@pytest.mark.parametrize(
    ("run", "case", "field", "values"),
    [
        (a_run(model="bert-base"), "onnxruntime", "model", ("resnet50", "bert-base")),
        (a_run(dims={"batch": 4}), "onnxruntime", "dims", ("batch=1", "batch=4")),
        (a_run(), "eager", "backend", ("onnxruntime", "eager")),
        (a_run(fields={"onnxruntime": {"precision": "fp16"}}), "onnxruntime", "precision", ("fp32", "fp16")),
        (a_run(fields={"onnxruntime": {"threads": 4}}), "onnxruntime", "threads", ("2", "4")),
        (a_run(fields={"onnxruntime": {"device": "cuda:0"}}), "onnxruntime", "device", ("cpu", "cuda")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_another_series(run: Run, case: str, field: str, values: tuple[str, str]) -> None:
    other = of(run, case)
    assert other.series != BASE.series
    assert differing(BASE.key, other.key)[field] == values


def test_a_release_that_was_asked_for_is_part_of_the_question() -> None:
    asked = of(a_run(fields={"onnxruntime": {"release": "1.31.0"}}))
    other = of(a_run(fields={"onnxruntime": {"release": "1.30.0"}}))
    assert len({point.series for point in (BASE, asked, other)}) == 3
    assert differing(asked.key, other.key) == {"release": ("1.31.0", "1.30.0")}


def test_a_case_with_an_interpreter_of_its_own_has_that_ones_libraries() -> None:
    interpreter = Interpreter(executable="/x/bin/python", version="3.10.4", packages={"numpy": "1.25.0"})
    point = of(a_run(fields={"onnxruntime": {"interpreter": interpreter}}))
    assert (point.circumstances.python, point.circumstances.others) == ("3.10.4", {"numpy": "1.25.0"})
    assert of(a_run(), "eager").circumstances.others["numpy"] == "2.4.1"


def test_options_and_machines_make_another_series() -> None:
    one = of(a_run(cases={"onnxruntime:level=basic": 5.0}), "onnxruntime:level=basic")
    two = of(a_run(cases={"onnxruntime": 5.0, "onnxruntime#2": 5.0}), "onnxruntime#2")
    three = of(a_run(environment={"cpu": "Another CPU"}))
    four = of(a_run(environment={"logical_cores": 64}))
    assert len({point.series for point in (BASE, one, two, three, four)}) == 5
    assert differing(BASE.key, three.key)["machine"][1] == "Another CPU, 2 cores, 4 usable threads"


def test_what_a_series_goes_through() -> None:
    moved = changed(a_run(), model=ModelSpec(name="resnet50", root="/another/folder"))
    upgraded = a_run(
        versions={"onnxruntime": "1.32.0"},
        environment={"hostname": "bench-2", "kernel": "6.2", "libraries": {"numpy": "2.5"}, "memory_bytes": 1},
        project=Project(commit="c0ffee" * 7, dirty=True),
    )
    assert of(moved).series == of(upgraded).series == BASE.series
    seen = differing(BASE.circumstances, of(upgraded).circumstances)
    assert seen == {
        "version": ("1.31.0", "1.32.0"),
        "numpy": ("2.4.1", "2.5"),
        "onnxruntime": ("1.31.0", "1.32.0"),
        "kernel": ("Linux 6.1.0-18-amd64", "6.2"),
        "hostname": ("bench-1", "bench-2"),
    }
    assert of(upgraded).circumstances.commit == "c0ffeec0ffee+"


def test_two_files_of_one_name_are_told_apart_by_what_they_are() -> None:
    info = a_run().workloads[0].info
    assert info is not None
    other = changed(a_run(), info=msgspec.structs.replace(info, parameters=5, weights_sha256="another", artifact="x"))
    assert of(other).series == BASE.series
    assert differing(BASE.subject, of(other).subject) == {"parameters": ("25,557,032", "5")}
    unknown = changed(a_run(), info=None)
    assert differing(BASE.subject, of(unknown).subject) == {}, "what is unknown is not another model"


def test_machine_of_a_gpu_case_is_its_gpu_and_the_processor() -> None:
    gpus = [{"name": "RTX 4090", "driver_version": "560.1"}, {"name": "H100", "driver_version": "560.1"}]
    found = a_run(environment={"gpus": gpus}).environment
    assert machine_of(found, "cuda:1") == "H100, AMD EPYC 7543 32-Core Processor, 2 cores, 4 usable threads"
    assert machine_of(found, "cpu") == BASE.key.machine, "a card does not change what the processor does"
    assert of(a_run(environment={"gpus": gpus})).circumstances.driver == "560.1"


def test_a_kernel_is_a_cause_on_one_machine_only_and_a_driver_anywhere() -> None:
    driver = {"gpus": [{"name": "H100", "driver_version": "560.1"}]}
    later = {"gpus": [{"name": "H100", "driver_version": "570.1"}], "kernel": "6.2"}
    before = of(a_run(environment=driver)).circumstances
    same, other = (of(a_run(environment={**later, "hostname": host})).circumstances for host in ("bench-1", "bench-2"))
    assert common_causes(before, same) == {"driver": ("560.1", "570.1"), "kernel": ("Linux 6.1.0-18-amd64", "6.2")}
    assert common_causes(before, other) == {"driver": ("560.1", "570.1")}


def test_state_of_the_processor_is_a_cause_too() -> None:
    run = a_run(environment={"turbo": True, "microcode": "0x1"})
    later = a_run(environment={"turbo": False, "microcode": "0x2"})
    pinned = msgspec.structs.replace(
        later, settings=msgspec.structs.replace(later.settings, cpus="0-1", cpu_set=[0, 1])
    )
    changed = {"turbo": ("on", "off"), "microcode": ("0x1", "0x2"), "cpus": ("all", "0-1")}
    assert common_causes(of(run).circumstances, of(pinned).circumstances) == changed
    assert common_causes(BASE.circumstances, of(run).circumstances) == {}, "what was unknown did not change"


def test_load_and_clock_are_those_while_the_case_was_sampled() -> None:
    (workload,) = a_run(launches=1, rounds=2).workloads
    (launch,) = workload.launches
    sittings = [
        msgspec.structs.replace(
            sitting,
            windows=[
                msgspec.structs.replace(window, others_cpu=number / 10, mhz=2000.0 + number)
                for number, window in enumerate(sitting.windows, start=1 if sitting.case == "eager" else 4)
            ],
        )
        for sitting in launch.sittings
    ]
    loaded = changed(a_run(), launches=[msgspec.structs.replace(launch, sittings=sittings)])
    eager, other = of(loaded, "eager"), of(loaded)
    assert [eager.others_cpu, other.others_cpu] == pytest.approx([0.15, 0.45])
    assert [eager.mhz, other.mhz] == [2001.5, 2004.5]
    assert (BASE.others_cpu, BASE.mhz) == (None, None)


def test_times_of_day_sort_as_text() -> None:
    same = ["2026-03-02T10:11:12Z", "2026-03-02T10:11:12+00:00", "2026-03-02T12:11:12.4+02:00"]
    assert {sortable(text) for text in same} == {"2026-03-02T10:11:12+00:00"}
    assert sortable("now") == "now"


# ---- the project


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, timeout=60)


def test_commit_of_a_project(tmp_path: Path) -> None:
    assert environment.project(tmp_path) is None
    git(tmp_path, "init", "-q", "-b", "trunk")
    assert environment.project(tmp_path) is None, "there is no commit yet"
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-m", "x")
    (tmp_path / "untracked").write_text("results are that")
    (tmp_path / "below").mkdir()
    clean = environment.project(tmp_path / "below")
    assert clean is not None and (clean.branch, clean.dirty) == ("trunk", False)
    (tmp_path / "file").write_text("2")
    git(tmp_path, "checkout", "-q", "--detach")
    assert environment.project(tmp_path) == Project(commit=clean.commit, branch=None, dirty=True)


def test_no_git_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.project(tmp_path) is None
