"""What users say of their own models: in the grammar of `--model`, and what data sets make of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness import images, inputs, registry
from harness.agreement import GAUGES
from harness.api import InputSpec
from harness.artifact import Manifest, TensorSpec
from harness.datasets import image_input, open_dataset
from harness.errors import UsageError
from harness.modelspec import ModelSpec, parse_models

SHAPE = (2, 3, 28, 28)


def spec_of(folder: Path, settings: str) -> ModelSpec:
    (folder / "net.onnx").write_bytes(b"")
    (spec,) = parse_models([f"net.onnx:{settings}" if settings else "net.onnx"], folder)
    return spec


def manifest(spec: ModelSpec) -> Manifest:
    return Manifest(
        model=spec,
        dims={},
        weights="own",
        seed=0,
        opset=18,
        inputs=(TensorSpec(name="x", dtype="float32", shape=SHAPE),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(2, 4)),),
        input_sets=1,
        parameters=0,
        weights_bytes=0,
        deterministic=True,
        golden=False,
        export_s=0.0,
        onnx_max_abs=0.0,
        versions={},
        files={},
    )


def test_settings_stand_beside_sizes(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "task=classification,batch=4,images=imagenet")
    assert spec.options == {"task": "classification", "images": "imagenet"}
    assert spec.dims == {"batch": 4}
    assert spec.label == "net.onnx:task=classification,images=imagenet"
    model = registry.model(spec)
    assert model.task in GAUGES
    assert model.preprocessing is not None and model.preprocessing.mean[0] == 0.485
    assert registry.model(spec_of(tmp_path, "")).task == "tensor"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            "task=clasification",
            r"value of net\.onnx:task 'clasification'; did you mean 'classification'\? Known: classification,",
        ),
        ("images=square", r"unknown value of net\.onnx:images 'square'\. Known: crop, imagenet, letterbox"),
        ("tokenizer=none.json", r"none\.json does not exist"),
        ("taks=tokens", "a size from 1 to"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        spec_of(tmp_path, settings)


@pytest.mark.parametrize("settings", ["images=imagenet", "images=crop", "images=letterbox"])
def test_images_become_the_size_of_the_input(tmp_path: Path, settings: str) -> None:
    folder = tmp_path / "images" / "0"
    folder.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (40, 60), (255, 0, 0)).save(folder / f"{number}.png")
    spec = spec_of(tmp_path, settings)
    wanted = image_input(manifest(spec), "folder:images")
    array = images.read(folder / "0.png", wanted)
    assert array.shape == SHAPE[1:]
    model = registry.model(spec)
    (one,) = inputs.read(folder, [InputSpec(name="x", dtype="float32", shape=SHAPE)], {}, model.preprocessing)
    np.testing.assert_array_equal(one["x"][0], array)
    red = array[0, 14, 14]
    assert red == pytest.approx((1 - 0.485) / 0.229 if settings.endswith("net") else 1.0, rel=1e-5)


def test_a_data_set_says_what_is_to_be_declared(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "")
    with pytest.raises(UsageError, match="nothing says how an image becomes the input") as told:
        image_input(manifest(spec), "folder:images")
    assert told.value.hint == "--model net.onnx:images=imagenet, or letterbox, or crop"
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a\tb\t1\na\tc\t2\na\td\t3\n")
    with pytest.raises(UsageError, match=r"there is no tokenizer for net\.onnx") as told:
        open_dataset(f"pairs:{pairs}").refuse_artifact(manifest(spec))
    assert told.value.hint == "--model net.onnx:tokenizer=path/to/tokenizer.json"
