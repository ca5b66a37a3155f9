"""Sets of inputs: what is drawn, and the user's own from .npz files and images."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import inputs, protocol
from harness.api import InputSpec, Model, Preprocessing
from harness.errors import UsageError
from harness.inputs import ExampleModel, read
from harness.modelspec import ModelSpec

SPECS = (
    InputSpec(name="ids", dtype="int64", shape=("batch", "sequence"), high=100),
    InputSpec(name="scale", dtype="float32", shape=("batch", 2)),
)
DIMS = {"batch": 2, "sequence": 3}
IDS = np.arange(6).reshape(2, 3)
SCALE = np.ones((2, 2), np.float32)


class Drawn(Model):
    """A model without examples."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return SPECS

    def build(self, dims: Mapping[str, int]) -> Any:
        raise NotImplementedError


class Brought(Drawn, ExampleModel):
    """A model with examples."""

    @property
    def examples(self) -> dict[str, np.ndarray]:
        return {"ids": IDS, "scale": SCALE}


def request(**changes: Any) -> protocol.Export:
    settings: dict[str, Any] = {"seed": 0, "opset": 18, "input_sets": 3, "threads": 1, "weights": "own", "dims": {}}
    return protocol.Export(model=ModelSpec(name="x"), folder="", **{**settings, **changes})


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # keywords that may be called as savez' own are
    return path


# ---- drawn


def test_drawn_sets_follow_seed_and_index() -> None:
    sets = inputs.sets(Drawn(), request(), DIMS)
    again = inputs.sets(Drawn(), request(), DIMS)
    other = inputs.sets(Drawn(), request(seed=1), DIMS)
    assert len(sets) == 3
    assert {name: array.shape for name, array in sets[0].items()} == {"ids": (2, 3), "scale": (2, 2)}
    for index in range(3):
        np.testing.assert_array_equal(sets[index]["scale"], again[index]["scale"])
    np.testing.assert_array_equal(sets[1]["scale"], other[0]["scale"])
    assert not np.array_equal(sets[0]["scale"], sets[1]["scale"])


def test_examples_come_first_and_then_their_elements_in_another_order() -> None:
    sets = inputs.sets(Brought(), request(), DIMS)
    np.testing.assert_array_equal(sets[0]["ids"], IDS)
    assert not np.array_equal(sets[1]["ids"], IDS)
    assert sorted(sets[1]["ids"].flat) == sorted(IDS.flat)
    assert sets[1]["ids"].dtype == IDS.dtype
    assert "own example" in sets.notes[0]


def test_elements_of_examples_fill_another_shape() -> None:
    sets = inputs.sets(Brought(), request(), {"batch": 4, "sequence": 9})
    assert sets[0]["ids"].shape == (4, 9)
    assert set(sets[0]["ids"].flat) <= set(IDS.flat)


# ---- arrays


def test_npz_is_one_set_in_the_models_order(tmp_path: Path) -> None:
    found = read(saved(tmp_path / "a.npz", scale=SCALE, ids=IDS), SPECS, DIMS, None)
    assert [list(tensors) for tensors in found] == [["ids", "scale"]]
    np.testing.assert_array_equal(found[0]["ids"], IDS)


def test_arrays_without_names_are_taken_in_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", IDS, SCALE)
    np.testing.assert_array_equal(read(tmp_path / "a.npz", SPECS, DIMS, None)[0]["ids"], IDS)


def test_folder_is_one_set_a_file_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        saved(tmp_path / f"{name}.npz", ids=IDS + ord(name), scale=SCALE)
    (tmp_path / "README.md").write_text("about these")
    found = inputs.sets(Drawn(), request(inputs=str(tmp_path)), DIMS)
    assert [found[index]["ids"][0, 0] for index in range(len(found))] == [97, 98, 99]
    assert [Path(name).name for name in found.files] == ["a.npz", "b.npz", "c.npz"]


def test_at_most_sixty_four_sets_are_taken_and_it_is_said(tmp_path: Path) -> None:
    for index in range(inputs.SETS_AT_MOST + 2):
        saved(tmp_path / f"{index:03}.npz", ids=IDS, scale=SCALE)
    found = inputs.sets(Drawn(), request(inputs=str(tmp_path)), DIMS)
    assert len(found) == inputs.SETS_AT_MOST
    assert found.notes == ["the first 64 of 66 input files are used"]


@pytest.mark.parametrize(
    ("ids", "scale"),
    [(IDS.astype(np.int32), SCALE), (IDS.astype(np.uint8), SCALE.astype(np.float64)), (IDS, SCALE.astype(np.float16))],
)
def test_lossless_integers_and_any_float_are_cast(tmp_path: Path, ids: np.ndarray, scale: np.ndarray) -> None:
    (tensors,) = read(saved(tmp_path / "a.npz", ids=ids, scale=scale), SPECS, DIMS, None)
    assert (str(tensors["ids"].dtype), str(tensors["scale"].dtype)) == ("int64", "float32")
    np.testing.assert_array_equal(tensors["ids"], IDS)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"ids": IDS}, "expected the inputs ids, scale, got ids"),
        ({"ids": IDS, "scale": SCALE, "mask": SCALE}, "got ids, scale, mask"),
        ({"ids": IDS, "scales": SCALE}, "got ids, scales"),
        ({"ids": IDS.astype(np.float32), "scale": SCALE}, "'ids': expected int64, got float32"),
        ({"ids": IDS, "scale": SCALE.astype(np.int64)}, "'scale': expected float32, got int64"),
        ({"ids": IDS, "scale": SCALE * np.float64(1e300)}, "with values that do not fit"),
        ({"ids": np.full((2, 3), 2**63, np.uint64), "scale": SCALE}, "with values that do not fit"),
        ({"ids": IDS, "scale": np.ones((2, 3), np.float32)}, "expected the shape [2, 2], got [2, 3]"),
        ({"ids": IDS[0], "scale": SCALE}, "expected the shape [2, 3], got [3]"),
        ({"ids": IDS, "scale": SCALE * np.nan}, "'scale' holds NaN"),
        ({"ids": IDS.astype(object), "scale": SCALE}, "never unpickled"),
        ({"ids": IDS.astype(str), "scale": SCALE}, "'ids': expected int64, got <U"),
        ({"ids": IDS, "scale": SCALE.astype(np.complex64)}, "expected float32, got complex64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    path = saved(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError) as caught:
        read(path, SPECS, DIMS, None)
    assert says in caught.value.message
    assert str(path) in caught.value.message


def test_other_sizes_of_free_dimensions_come_with_the_option_that_sets_them(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", ids=np.zeros((2, 7), np.int64), scale=SCALE)
    with pytest.raises(UsageError) as caught:
        read(path, SPECS, DIMS, None)
    assert caught.value.hint == "--dim sequence=7"


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.npz cannot be read"):
        read(path, SPECS, DIMS, None)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", ids=IDS, scale=SCALE)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsageError, match="cannot be read"):
        read(path, SPECS, DIMS, None)


def test_places_without_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read(tmp_path / "nowhere", SPECS, DIMS, None)
    with pytest.raises(UsageError, match="holds no inputs"):
        read(tmp_path, SPECS, DIMS, None)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(UsageError, match="is not a file of inputs"):
        read(tmp_path / "a.csv", SPECS, DIMS, None)
    saved(tmp_path / "a.npz", ids=IDS, scale=SCALE)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UsageError, match="both"):
        read(tmp_path, SPECS, DIMS, None)


# ---- images

pillow = pytest.importorskip("PIL.Image")

IMAGE = (InputSpec(name="image", dtype="float32", shape=("batch", 3, 4, 6)),)
PLAIN = Preprocessing(height=4, width=6, resize="letterbox", resize_to=6)


def drawn(path: Path, mode: str, size: tuple[int, int], color: Any, **kwargs: Any) -> Path:
    pillow.new(mode, size, color).save(path, **kwargs)
    return path


def one(path: Path, preprocessing: Preprocessing = PLAIN) -> np.ndarray:
    batch = read(path, IMAGE, {"batch": 1}, preprocessing)[0]["image"]
    assert batch.shape[0] == 1
    return batch.reshape(batch.shape[1:])


def test_letterbox_keeps_the_ratio_and_pads_with_grey(tmp_path: Path) -> None:
    pixels = one(drawn(tmp_path / "a.png", "RGB", (8, 8), (255, 0, 51)))
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 4, 6)
    np.testing.assert_allclose(pixels[:, :, 1:5], np.broadcast_to([[[1.0]], [[0.0]], [[0.2]]], (3, 4, 4)))
    np.testing.assert_allclose(pixels[:, :, [0, 5]], 114 / 255)


def test_crop_takes_the_centre_and_normalises(tmp_path: Path) -> None:
    image = pillow.new("RGB", (40, 8), (0, 0, 0))
    image.paste((255, 255, 255), (17, 0, 23, 8))  # six columns in the middle
    image.save(tmp_path / "a.png")
    wanted = Preprocessing(height=4, width=6, resize="crop", resize_to=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    pixels = one(tmp_path / "a.png", wanted)
    np.testing.assert_allclose(pixels, np.broadcast_to([[[2.0]], [[1.0]], [[0.5]]], (3, 4, 6)))


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [("L", 102, 0.4), ("RGBA", (102, 102, 102, 10), 0.4), ("P", 0, 0.0), ("1", 1, 1.0), ("I;16", 26214, 0.4)],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, color: Any, expected: float) -> None:
    pixels = one(drawn(tmp_path / "a.png", mode, (6, 4), color))
    np.testing.assert_allclose(pixels, np.full((3, 4, 6), expected), atol=1e-6)


def test_image_is_turned_upright(tmp_path: Path) -> None:
    image = pillow.new("RGB", (4, 6), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 4, 2))  # a white band at the top of the stored pixels
    exif = image.getexif()
    exif[0x0112] = 6  # stored turned by a quarter: the top is the right side
    image.save(tmp_path / "a.png", exif=exif)
    pixels = one(tmp_path / "a.png")
    assert pixels[0, :, 4:].min() == 1.0
    assert pixels[0, :, :4].max() == 0.0


def test_batches_of_images_are_sets(tmp_path: Path) -> None:
    for index in range(5):
        drawn(tmp_path / f"{index}.png", "RGB", (6, 4), (index * 51, 0, 0))
    drawn(tmp_path / "b.JPG", "RGB", (6, 4), (0, 0, 0))
    found = inputs._read(tmp_path, IMAGE, {"batch": 4}, PLAIN)
    assert len(found) == 1
    np.testing.assert_allclose(found[0]["image"][:, 0, 0, 0], [0, 0.2, 0.4, 0.6], atol=1e-6)
    assert found.notes == ["the first 4 of 6 images are used"]
    assert len(found.files) == 4


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    drawn(tmp_path / "a.png", "RGB", (6, 4), (0, 0, 0))
    with pytest.raises(UsageError, match="takes no images"):
        read(tmp_path, IMAGE, {"batch": 1}, None)
    with pytest.raises(UsageError, match="takes no images"):
        read(tmp_path, SPECS, DIMS, PLAIN)
    with pytest.raises(UsageError, match="at least 2 images for one batch, got 1"):
        read(tmp_path, IMAGE, {"batch": 2}, PLAIN)


@pytest.mark.parametrize("cut", [0, 20, 200])
def test_broken_image_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "broken.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    pillow.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UsageError, match=r"broken\.png cannot be read as an image"):
        one(path)


def test_missing_pillow_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = drawn(tmp_path / "a.png", "RGB", (6, 4), (0, 0, 0))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError) as caught:
        one(path)
    assert caught.value.hint == "pip install 'harness[images]'"
