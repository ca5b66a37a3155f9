"""Accuracy and paired differences: against calculations by hand, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from harness.records import Paired
from harness.scoring import ScoredClasses, ScoredDetections, ScoredPairs, paired_shares


class TestShares:
    def test_top_1_and_top_5_by_hand(self) -> None:
        answers = np.array([[3, 1, 2, 4, 5], [1, 3, 2, 4, 5], [9, 8, 7, 6, 5], [0, 1, 2, 3, 4]], float)
        scored = ScoredClasses(answers, np.array([3, 3, 3, 0]))
        assert scored.metrics() == {"top-1": 0.5, "top-5": 0.75}

    def test_mcnemar_by_hand(self) -> None:
        # 1 gained and 9 lost of 200: p = 2 * (1 + 10) / 2^10. b' = 2/202, c' = 10/202.
        found = paired_shares(1, 9, 200, "eager")
        assert found.difference == pytest.approx(-0.04)
        assert found.p == pytest.approx(22 / 1024)
        half = 2.5758293035489 * np.sqrt((12 / 202 - (8 / 202) ** 2) / 202)
        assert [found.low, found.high] == pytest.approx([-8 / 202 - half, -8 / 202 + half])
        assert not found.decided

    def test_equal_answers_still_have_an_interval(self) -> None:
        # No sample of 600 differs; rates up to about 1 - 0.01^(1/600) = 0.8 % would have done that.
        found = paired_shares(0, 0, 600, "eager")
        assert found.p == 1
        assert found.low == pytest.approx(-found.high)
        assert 0.003 < found.high < 0.009

    def test_a_clear_loss_is_decided(self) -> None:
        found = paired_shares(2, 30, 600, "eager")
        assert found.decided
        assert found.high < 0

    def test_only_the_same_samples_are_compared(self) -> None:
        labels = np.array([0, 1, 2, 3])
        right = ScoredClasses(labels[:, None].astype(float), labels)
        wrong = ScoredClasses(np.array([[0.0], [1.0], [0.0], [3.0]]), labels)
        found = wrong.against(right, "eager")
        assert found is not None
        assert "0 gained and 1 lost" in found.method

    def test_coverage_by_simulation(self) -> None:
        # 2 % gained, 4 % lost: a true difference of -0.02. 99 % intervals should hold it in 99 % of 2000 runs.
        generator = np.random.default_rng(0)
        draws = generator.multinomial(300, [0.02, 0.04, 0.94], 2000)
        held = [paired_shares(int(gained), int(lost), 300, "x") for gained, lost, _ in draws]
        share = np.mean([one.low <= -0.02 <= one.high for one in held])
        assert 0.98 < share < 1
        alike = generator.multinomial(300, [0.03, 0.03, 0.94], 2000)
        false_alarms = np.mean([paired_shares(int(b), int(c), 300, "x").decided for b, c, _ in alike])
        assert false_alarms <= 0.012


class TestPairs:
    def rows(self, cosines: np.ndarray) -> np.ndarray:
        """Return embeddings whose pairs have these cosines, both sentences of a pair in a row."""
        first = np.tile([1.0, 0.0], (len(cosines), 1))
        second = np.column_stack((cosines, np.sqrt(1 - cosines**2)))
        return np.stack((first, second), axis=1).reshape(-1, 2)

    def test_rank_correlation_by_hand(self) -> None:
        # Ranks 1 2 3 4 5 against 2 1 4 3 5: the squares of the differences sum to 4, so rho = 1 - 24/120.
        answers = self.rows(np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
        scored = ScoredPairs(answers, np.array([2.0, 1, 4, 3, 5]))
        assert scored.metrics() == {"Spearman": pytest.approx(0.8)}

    def test_length_does_not_matter_and_nan_is_no_likeness(self) -> None:
        answers = self.rows(np.array([0.1, 0.5, 0.9]))
        answers[3] *= 100
        assert ScoredPairs(answers, np.array([1.0, 2, 3])).metrics()["Spearman"] == pytest.approx(1)
        answers[5] = np.nan
        assert ScoredPairs(answers, np.array([1.0, 2, 3])).metrics()["Spearman"] == pytest.approx(-0.5)

    def test_noise_is_noise_and_a_loss_is_a_loss(self) -> None:
        generator = np.random.default_rng(0)
        scores = generator.uniform(0, 1, 300)
        base = np.clip(0.7 * scores + generator.normal(0, 0.1, 300), -1, 1)
        eager = ScoredPairs(self.rows(base), scores)
        close = ScoredPairs(self.rows(np.clip(base + generator.normal(0, 0.002, 300), -1, 1)), scores)
        far = ScoredPairs(self.rows(np.clip(base + generator.normal(0, 0.3, 300), -1, 1)), scores)
        near, lost = close.against(eager, "eager"), far.against(eager, "eager")
        assert near is not None and lost is not None
        assert not near.decided
        assert lost.decided
        assert lost.difference < -0.1
        same = eager.against(eager, "eager")
        assert isinstance(same, Paired)
        assert (same.difference, same.low, same.high) == (0, 0, 0)


class TestDetections:
    def objects(self, images: int) -> np.ndarray:
        return np.array([[image, image % 2, 0, 0, 10, 10, 100, 0] for image in range(images)], float)

    def found(self, images: int, width: float) -> np.ndarray:
        return np.array([[image, image % 2, 0.9, 0, 0, width, 10] for image in range(images)], float)

    def test_perfect_and_half_overlapping_boxes(self) -> None:
        # A box 7.7 of 10 wide overlaps by 0.77: six of the ten thresholds are met.
        exact = ScoredDetections(self.found(8, 10), self.objects(8), 8, 3)
        narrow = ScoredDetections(self.found(8, 7.7), self.objects(8), 8, 3)
        assert exact.metrics() == {"mAP@0.5:0.95": pytest.approx(1), "mAP@0.5": pytest.approx(1)}
        assert narrow.metrics() == {"mAP@0.5:0.95": pytest.approx(0.6), "mAP@0.5": pytest.approx(1)}
        paired = narrow.against(exact, "eager")
        assert paired is not None
        assert paired.difference == pytest.approx(-0.4)
        assert paired.decided

    def test_images_without_objects_have_no_precision(self) -> None:
        nothing = ScoredDetections(np.zeros((0, 7)), np.zeros((0, 8)), 4, 3)
        assert nothing.metrics() == {"mAP@0.5:0.95": 0, "mAP@0.5": 0}
        assert nothing.against(nothing, "eager") is None
