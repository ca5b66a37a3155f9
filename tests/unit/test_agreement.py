"""Agreement in the words of a task: every figure against a calculation by hand or another library's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from harness import detection, registry
from harness.agreement import GAUGES, TaskJudge, rank_correlation
from harness.modelspec import ModelSpec
from harness.records import Agreement
from reports.formatting import agreed
from reports.values import least_agreement

Array = NDArray[np.generic]
RNG = np.random.default_rng(0)


def figures(task: str, *sets: tuple[Array, Array], name: str = "y") -> dict[str, float | None]:
    judge = TaskJudge(task)
    for candidate, reference in sets:
        judge.add({name: candidate}, {name: reference})
    assert judge.lacks is None
    return {one.figure: one.value for one in judge.agreements()}


def normal(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape, dtype=np.float32)


class TestClasses:
    def test_rows_of_all_input_sets_count_alike(self) -> None:
        reference = np.eye(6, dtype=np.float32)
        other = reference[[1, 0, 2, 3, 4, 5]]  # two of six rows have another class on top
        found = figures("classification", (other, reference), (reference[:2], reference[:2]))
        assert found["top-1"] == pytest.approx(6 / 8)


class TestTokens:
    def test_share_of_positions_with_the_same_token(self) -> None:
        reference = normal(2, 8, 50)
        candidate = reference.copy()
        candidate[0, 3] = -candidate[0, 3]
        candidate[1, 5, :] = np.nan
        candidate[1, 5, (reference[1, 5].argmax() + 1) % 50] = 0  # the only finite one is another
        assert figures("tokens", (candidate, reference)) == {"same token": pytest.approx(14 / 16)}

    def test_caches_of_keys_and_values_are_no_tokens(self) -> None:
        cache = normal(1, 2, 3, 4)
        assert figures("tokens", (cache, cache)) == {}


class TestEmbeddings:
    def test_one_row_a_set_is_ranked_over_the_sets(self) -> None:
        # Unit vectors at 0, 10, 30 and 70 degrees; the candidate turns the second to 45 degrees.
        def at(degrees: float) -> Array:
            return np.array([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]], np.float32)

        found = figures("embedding", *[(at(got), at(want)) for got, want in [(0, 0), (45, 10), (30, 30), (70, 70)]])
        assert found["cosine"] == pytest.approx(math.cos(math.radians(35)), abs=1e-6)
        # Angles of the pairs 01 02 03 12 13 23: 45 30 70 15 25 40 against 10 30 70 20 60 40; ranks 5 3 6 1 2 4 against
        # 1 3 6 2 5 4. The squares of their differences sum to 26, so rho = 1 - 6 * 26 / (6 * 35).
        assert found["rank correlation"] == pytest.approx(1 - 26 / 35)

    def test_two_rows_have_no_order(self) -> None:
        rows = normal(2, 8)
        assert set(figures("embedding", (rows, rows))) == {"cosine"}

    def test_a_row_of_nan_has_no_direction(self) -> None:
        rows = normal(3, 8)
        broken = rows.copy()
        broken[1] = np.nan
        assert figures("embedding", (broken, rows))["cosine"] == 0


def test_rank_correlation_of_a_textbook_example() -> None:
    # Intelligence quotient against hours of television a week, ten people: rho = -29/165 (d^2 sums to 194).
    iq = np.array([106, 100, 86, 101, 99, 103, 97, 113, 112, 110], float)
    hours = np.array([7, 27, 2, 50, 28, 29, 20, 12, 6, 17], float)
    assert rank_correlation(iq, hours) == pytest.approx(-29 / 165)
    assert rank_correlation(iq, np.ones(10)) is None


class TestImages:
    def test_psnr_by_hand_and_ssim_by_its_formula(self) -> None:
        reference = np.zeros((1, 1, 16, 16), np.float32)
        reference[..., 8:] = 2.0
        candidate = reference + np.float32(0.02)
        found = figures("image", (candidate, reference))
        assert found["PSNR dB"] == pytest.approx(40, abs=1e-3)  # 20 log10(2 / 0.02)
        # A constant shift leaves structure alone: in flat parts SSIM is the comparison of means, nearly 1 at the
        # bright side and c1 / (0.02^2 + c1) at the dark side with c1 = (0.01 * 2)^2: one half.
        assert 0.5 < found["SSIM"] < 1  # type: ignore[operator]

    def test_the_worst_item_counts(self) -> None:
        reference = normal(2, 3, 16, 16)
        candidate = reference.copy()
        candidate[1] += 0.5
        extent = float(np.ptp(reference[1].astype(np.float64)))
        found = figures("latent", (candidate, reference))
        assert found["PSNR dB"] == pytest.approx(20 * math.log10(extent / 0.5), rel=1e-4)

    def test_an_exact_image_has_no_finite_psnr(self) -> None:
        image = normal(1, 3, 16, 16)
        found = figures("image", (image, image))
        assert found == {"PSNR dB": None, "SSIM": pytest.approx(1)}

    def test_nan_is_no_picture_at_all(self) -> None:
        image = normal(1, 3, 16, 16)
        broken = image.copy()
        broken[0, 0, 0, 0] = np.nan
        assert figures("image", (broken, image)) == {"PSNR dB": 0, "SSIM": 0}

    def test_below_the_window_there_is_psnr_only(self) -> None:
        latent = normal(1, 4, 8, 8)
        assert set(figures("latent", (latent + 1, latent))) == {"PSNR dB"}


def yolo(boxes: list[tuple[float, float, float, float, int, float]], classes: int = 3, anchors: int = 20) -> Array:
    """Return a detector's output with these boxes: corner x, y, width, height, class, score."""
    output = np.zeros((1, 4 + classes, anchors), np.float32)
    for place, (x, y, width, height, number, score) in enumerate(boxes):
        output[0, :4, place] = (x + width / 2, y + height / 2, width, height)
        output[0, 4 + number, place] = score
    return output


class TestDetections:
    def test_doubles_go_and_others_stay(self) -> None:
        # The second box shares 90 of 110 with the first (0.82); the third is another class; the fourth is half of it.
        found = detection.detections(
            yolo([(0, 0, 10, 10, 0, 0.9), (1, 0, 10, 10, 0, 0.8), (0, 0, 10, 10, 1, 0.7), (0, 0, 10, 5, 0, 0.6)])
        )
        np.testing.assert_allclose(found[:, 1:3], [[0, 0.9], [1, 0.7], [0, 0.6]], rtol=1e-6)
        np.testing.assert_allclose(found[0, 3:], [0, 0, 10, 10], atol=1e-5)

    def test_suppression_equals_a_plain_loop(self) -> None:
        corner, size = RNG.uniform(0, 60, (200, 2)), RNG.uniform(20, 60, (200, 2))
        classes = RNG.integers(0, 3, 200)

        def overlap(a: int, b: int) -> float:
            inner = np.minimum(corner[a] + size[a], corner[b] + size[b]) - np.maximum(corner[a], corner[b])
            common = float(max(inner[0], 0) * max(inner[1], 0))
            return common / float(size[a].prod() + size[b].prod() - common)

        kept: list[int] = []
        for number in range(200):
            if all(classes[number] != classes[k] or overlap(number, k) <= detection.OVERLAP for k in kept):
                kept.append(number)
        assert detection.suppress(corner, size, classes).tolist() == kept
        assert len(kept) < 200

    def test_mean_precision_by_hand(self) -> None:
        # Class 0, two objects. Detections by score: a hit with overlap 1, a miss, a hit with overlap 0.6.
        # At 0.5: precision 1 up to recall 0.5, then 2/3: (51 * 1 + 50 * 2/3) / 101. From 0.65 on only the first hit is
        # one: precision 1 up to recall 0.5, then 0: 51/101. Thresholds 0.5, 0.55, 0.6 are of the first kind.
        objects = np.array([[0, 0, 0, 0, 10, 10, 100, 0], [0, 0, 50, 50, 10, 10, 100, 0]], float)
        found = np.array([[0, 0, 0.9, 0, 0, 10, 10], [0, 0, 0.8, 80, 80, 5, 5], [0, 0, 0.7, 50, 50, 10, 6.0001]], float)
        half, all_ = detection.MeanPrecision(found, objects, 1).values() or (0, 0)
        assert half == pytest.approx((51 + 50 * 2 / 3) / 101)
        assert all_ == pytest.approx((3 * half + 7 * 51 / 101) / 10)

    def test_drawing_images_again_counts_them_as_often(self) -> None:
        objects = np.array([[0, 0, 0, 0, 10, 10, 100, 0], [1, 0, 0, 0, 10, 10, 100, 0]], float)
        found = np.array([[0, 0, 0.9, 0, 0, 10, 10]], float)
        scored = detection.MeanPrecision(found, objects, 2)
        assert scored.values() == pytest.approx((51 / 101, 51 / 101))
        assert scored.values(np.array([0, 0])) == pytest.approx((1, 1))
        assert scored.values(np.array([1, 1])) == (0, 0)

    def test_a_crowd_is_neither_found_nor_missed(self) -> None:
        objects = np.array([[0, 0, 0, 0, 10, 10, 100, 0], [0, 0, 40, 40, 50, 50, 2500, 1]], float)
        found = np.array([[0, 0, 0.9, 0, 0, 10, 10], [0, 0, 0.95, 45, 45, 10, 10]], float)
        assert detection.MeanPrecision(found, objects, 1).values() == pytest.approx((1, 1))

    def test_same_detections_agree_and_shifted_ones_less(self) -> None:
        boxes = [(0.0, 0.0, 20.0, 20.0, 0, 0.9), (50.0, 50.0, 30.0, 30.0, 1, 0.8)]
        shifted = [(x + 4, y, width, height, number, score) for x, y, width, height, number, score in boxes]
        same = figures("detection", (yolo(boxes), yolo(boxes)))
        assert same == {"mAP@0.5:0.95": pytest.approx(1), "mAP@0.5": pytest.approx(1)}
        # Overlaps 16/24 = 0.67 and 26/34 = 0.76: four and six of ten thresholds are met.
        moved = figures("detection", (yolo(shifted), yolo(boxes)))
        assert moved == {"mAP@0.5:0.95": pytest.approx(0.5), "mAP@0.5": pytest.approx(1)}

    def test_without_a_sure_object_there_is_no_figure(self) -> None:
        faint = yolo([(0, 0, 10, 10, 0, 0.1)])
        assert figures("detection", (faint, faint)) == {}

    def test_scores_of_nan_find_nothing(self) -> None:
        sure = yolo([(0, 0, 10, 10, 0, 0.9)])
        assert figures("detection", (np.full_like(sure, np.nan), sure))["mAP@0.5"] == 0


class TestTaskJudge:
    def test_a_misshapen_or_missing_output_is_left_to_drift(self) -> None:
        judge = TaskJudge("embedding")
        judge.add({"a": normal(2, 3)}, {"a": normal(3, 3), "b": normal(3, 3)})
        assert judge.agreements() == []

    def test_a_plain_tensor_has_no_figures(self) -> None:
        assert figures("tensor", (normal(2, 3), normal(2, 3))) == {}

    def test_a_missing_library_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "pycocotools.cocoeval", None)
        judge = TaskJudge("detection")
        judge.add({"y": yolo([(0, 0, 9, 9, 0, 0.9)])}, {"y": yolo([(0, 0, 9, 9, 0, 0.9)])})
        assert judge.agreements() == []
        assert judge.lacks == "mean average precision needs pycocotools: pip install 'harness[metrics]'"


@pytest.mark.parametrize("name", registry.MODELS)
def test_every_model_declares_a_task_that_is_judged(name: str) -> None:
    task = registry.model(ModelSpec(name=name)).task
    assert task in GAUGES or task == "tensor"


def test_text_never_rounds_to_perfect() -> None:
    def text(figure: str, value: float | None) -> str:
        return agreed(Agreement(figure=figure, output="y", value=value, items=1))

    assert text("top-1", 1.0) == "top-1 1.0000"
    assert text("top-1", 0.99999) == "top-1 >0.9999"
    assert text("PSNR dB", 41.26) == "PSNR 41.3 dB"
    assert text("PSNR dB", None) == "PSNR exact"


def test_the_report_leads_with_the_output_that_agrees_least() -> None:
    figures_ = [
        Agreement(figure="cosine", output="a", value=0.99, items=4),
        Agreement(figure="rank correlation", output="a", value=0.2, items=4),
        Agreement(figure="cosine", output="b", value=0.95, items=4),
    ]
    assert least_agreement(figures_) == figures_[2]
    assert least_agreement([]) is None
