"""Models times shapes: which workloads a run has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.errors import UsageError
from harness.modelspec import parse_models
from harness.plan import parse_variants, with_dynamic
from harness.records import Settings, Workload
from harness.workloads import asked_models, dynamic_ranges, parse_dims, parse_shapes, parse_sizes, plan_workloads

HERE = Path("/")
SETTINGS = Settings(
    models=["tiny"],
    cases=[],
    dims={"batch": [1]},
    seed=0,
    threads=1,
    launches=1,
    rounds=1,
    slice_s=0.1,
    budget_s=1.0,
    timeout_s=1.0,
    memory_limit_bytes=1,
    quick=True,
)


def settings(**changes: Any) -> Settings:
    return msgspec.structs.replace(SETTINGS, **changes)


def planned(models: list[str], **changes: Any) -> list[Workload]:
    variants = parse_variants(["eager,onnxruntime"])
    return plan_workloads(parse_models(models, HERE), variants, settings(**changes))


def test_each_device_is_a_workload_of_its_own() -> None:
    found = planned(["tiny"], devices=("cuda:0", "cuda:1"), dims={"batch": [1, 2]})
    assert [(one.key, one.device, one.target) for one in found] == [
        ("tiny on cuda:0", "cuda:0", None),
        ("tiny on cuda:1", "cuda:1", None),
        ("tiny batch=2 on cuda:0", "cuda:0", None),
        ("tiny batch=2 on cuda:1", "cuda:1", None),
    ]
    assert [one.key for one in planned(["tiny"], devices=("cuda:1",))] == ["tiny"]


def test_a_target_is_compiled_for_whatever_devices_there_are() -> None:
    found = planned(["tiny"], devices=("cpu",), targets=["sm_89", "sm_120"])
    assert [(one.key, one.device, one.target) for one in found] == [
        ("tiny for sm_89", "cuda:0", "sm_89"),
        ("tiny for sm_120", "cuda:0", "sm_120"),
    ]


def test_a_sweep_is_the_product_of_models_and_sizes() -> None:
    found = planned(["bert-base", "tiny"], dims={"batch": [1, 4], "sequence": [128, 512]})
    assert [one.key for one in found] == [
        "bert-base",
        "bert-base sequence=512",
        "bert-base batch=4",
        "bert-base batch=4 sequence=512",
        "tiny",
        "tiny batch=4",
    ]
    assert [one.batch for one in found] == [1, 1, 4, 4, 1, 4]
    assert found[3].dims == {"batch": 4, "sequence": 512}


def test_an_items_own_size_goes_before_the_commands() -> None:
    found = planned(["bert-base:sequence=64"], dims={"batch": [1], "sequence": [128, 512]})
    assert [one.dims for one in found] == [{"batch": 1, "sequence": 64}]


def test_a_shape_sets_the_dimensions_that_it_names() -> None:
    (found,) = planned(["tiny"], dims={}, shapes={"input": [3, 3, 32, 32]})
    assert (found.dims, found.batch, found.key) == ({"batch": 3}, 3, "tiny batch=3")


@pytest.mark.parametrize("shape", [[3, 3, 32], [3, 1, 32, 32], [3, 3, 32, 33]])
def test_a_shape_that_does_not_fit_is_refused(shape: list[int]) -> None:
    with pytest.raises(UsageError, match="expected batchx3x32x32"):
        planned(["tiny"], dims={}, shapes={"input": shape})


def test_a_shape_and_a_sweep_of_one_dimension_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="--shape sets batch to 3"):
        planned(["tiny"], dims={"batch": [1, 4]}, shapes={"input": [3, 3, 32, 32]})


def test_a_dimension_or_input_that_no_model_has_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown dimension 'sequenc'; did you mean 'sequence'"):
        planned(["bert-base", "tiny"], dims={"batch": [1], "sequenc": [8]})
    with pytest.raises(UsageError, match="unknown input 'imput'"):
        planned(["tiny"], shapes={"imput": [1]})


def test_an_onnx_file_is_compared_with_what_can_run_it(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.onnx").write_bytes(b"")
    specs = parse_models(["a.onnx", "b/a.onnx"], tmp_path)
    found = plan_workloads(specs, parse_variants(["all"]), settings())
    assert [one.baseline for one in found] == ["onnxruntime", "onnxruntime"]
    assert [one.key for one in found] == ["a.onnx", "a.onnx#2"]


def test_suites_come_before_single_models_and_each_model_once() -> None:
    found = [spec.label for spec in asked_models(["tiny", "resnet50"], "quick", HERE)]
    assert found[0] == "tiny"
    assert found.count("tiny") == 1
    assert found[-1] == "resnet50"
    every = asked_models([], "reference", HERE)
    assert {"resnet50", "yolov8x", "sd21-unet", "whisper-large-decode"} <= {spec.label for spec in every}
    with pytest.raises(UsageError, match="unknown suite 'visio'; did you mean 'vision'"):
        asked_models([], "visio", HERE)


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ({"batch": [1, 4, 32]}, {"batch": (1, 32)}),
        ({"batch": [1]}, {"batch": (1, 2)}),
        ({"batch": [8]}, {"batch": (1, 16)}),
        ({"batch": [2], "sequence": [64, 128]}, {"sequence": (64, 128)}),
    ],
)
def test_dynamic_ranges(dims: dict[str, list[int]], expected: dict[str, tuple[int, int]]) -> None:
    workload = planned(["bert-base"], dims=dims)[0]
    assert dynamic_ranges(workload, settings(dims=dims)) == expected


def test_every_engine_has_a_dynamic_sibling_and_what_has_no_engine_has_none() -> None:
    found = [one.id for one in with_dynamic(parse_variants(["eager,onnxruntime,onnxruntime:level=basic"]))]
    assert found == [
        "eager",
        "onnxruntime",
        "onnxruntime:dynamic=true",
        "onnxruntime:level=basic",
        "onnxruntime:level=basic,dynamic=true",
    ]
    assert not any(one.asked_by_name for one in with_dynamic(parse_variants(["onnxruntime"]))[1:])
    twice = [one.id for one in with_dynamic(parse_variants(["onnxruntime,onnxruntime:dynamic=true"]))]
    assert twice == ["onnxruntime", "onnxruntime:dynamic=true"]


def test_sizes_dims_and_shapes_are_parsed() -> None:
    assert parse_sizes("--batch", " 32,1 , 4,4") == [1, 4, 32]
    assert parse_dims(("sequence=128,512", "past=8")) == {"sequence": [128, 512], "past": [8]}
    assert parse_shapes(("input=2x3x8X8", "ids=1x4")) == {"input": [2, 3, 8, 8], "ids": [1, 4]}


@pytest.mark.parametrize(
    "call",
    [
        lambda: parse_sizes("--batch", "1,,4"),
        lambda: parse_sizes("--batch", "0"),
        lambda: parse_sizes("--batch", "-1"),
        lambda: parse_sizes("--batch", "1.5"),
        lambda: parse_dims(("sequence",)),
        lambda: parse_dims(("a=1", "a=2")),
        lambda: parse_shapes(("input=2x",)),
        lambda: parse_shapes(("2x3",)),
        lambda: parse_shapes(("input=0x3",)),
    ],
)
def test_what_is_no_size_is_refused(call: Any) -> None:
    with pytest.raises(UsageError):
        call()
