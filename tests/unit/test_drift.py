"""Drift: every metric against a calculation by hand, and everything that must not pass."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness import drift
from harness.errors import UsageError
from harness.records import OutputDrift

Array = NDArray[np.generic]
RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(size=(4, 50)).astype(np.float32)


def one(candidate: Array, reference: Array, golden: Array | None = None, **options: object) -> OutputDrift:
    rows = drift.judge(
        {"y": candidate},
        {"y": reference},
        None if golden is None else {"y": golden},
        **options,  # type: ignore[arg-type]
    )
    assert len(rows) == 1
    return rows[0]


class TestMetrics:
    def test_against_a_calculation_by_hand(self) -> None:
        # r = (3, 4): norm 5, rms sqrt(12.5). c - r = (0.3, -0.4): norm 0.5. c.r = 9.9 + 14.4, |c|^2 = 10.89 + 12.96.
        row = one(np.array([3.3, 3.6]), np.array([3.0, 4.0]))
        assert row.elements == 2
        assert row.max_abs == pytest.approx(0.4)
        assert row.max_rel == pytest.approx(0.4 / (4 + math.sqrt(12.5)))
        assert row.rmse == pytest.approx(0.5 / math.sqrt(2))
        assert row.relative_l2 == pytest.approx(0.1)
        assert row.snr_db == pytest.approx(20.0)
        assert row.cosine == pytest.approx(24.3 / (5 * math.sqrt(23.85)))

    def test_golden_gives_eager_no_better_than_it_deserves(self) -> None:
        # Eager is off by 0.5 everywhere; fp32 allows 2 * 0.5 + 1e-4 * rms(golden).
        golden = np.array([100.0, -100.0])
        row = one(golden + 0.9, golden + 0.5, golden)
        assert row.rmse_golden == pytest.approx(0.9)
        assert row.rmse_limit == pytest.approx(2 * 0.5 + 1e-3 / 10 * 100)
        assert row.passed
        assert not row.within_tolerance
        assert not one(golden + 1.2, golden + 0.5, golden).passed

    def test_half_precision_is_allowed_three_times_eagers_error(self) -> None:
        golden = np.array([100.0, -100.0])
        assert one(golden + 0.9, golden + 0.5, golden, precision="fp16").rmse_limit == pytest.approx(1.5 + 0.1)

    def test_without_golden_the_distance_is_to_the_reference(self) -> None:
        row = one(REFERENCE + np.float32(1e-5), REFERENCE)
        assert row.rmse_golden == row.rmse
        assert row.rmse_limit == pytest.approx(1e-4 * math.sqrt(float((REFERENCE.astype(float) ** 2).mean())), rel=1e-6)

    def test_an_exact_match(self) -> None:
        row = one(REFERENCE, REFERENCE)
        assert row.passed
        assert (row.max_abs, row.rmse, row.relative_l2, row.snr_db) == (0, 0, 0, None)
        assert row.cosine == pytest.approx(1)

    def test_chunks_add_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        candidate = REFERENCE + RNG.normal(0, 1e-3, REFERENCE.shape).astype(np.float32)
        candidate[2, 7] = np.nan
        whole = one(candidate, REFERENCE)
        monkeypatch.setattr(drift, "CHUNK", 7)
        parts = one(candidate, REFERENCE)
        assert whole.elements == parts.elements == REFERENCE.size - 1
        for name in ("max_abs", "max_rel", "rmse", "relative_l2", "cosine", "snr_db", "rmse_limit", "rmse_golden"):
            assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)

    @given(st.integers(0, 1000), st.sampled_from([2.0**-20, 0.5, 1024.0]))
    @settings(max_examples=30, deadline=None)
    def test_units_do_not_matter(self, seed: int, unit: float) -> None:
        rng = np.random.default_rng(seed)
        reference = rng.normal(size=(2, 9))
        candidate = reference + rng.normal(size=(2, 9)) * 10.0 ** rng.uniform(-6, 0)
        plain, scaled = one(candidate, reference), one(candidate * unit, reference * unit)
        assert plain.passed == scaled.passed
        for name in ("max_rel", "relative_l2", "cosine", "snr_db"):
            assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-9)

    @given(st.lists(st.sampled_from([0.0, 1.0, -2.5, math.nan, math.inf, -math.inf]), min_size=4, max_size=4))
    def test_every_row_survives_json(self, values: list[float]) -> None:
        row = one(np.array(values), np.array([0.0, 1.0, -2.5, math.inf]))
        assert msgspec.json.decode(msgspec.json.encode(row), type=OutputDrift) == row


class TestVerdict:
    @pytest.mark.parametrize(
        ("precision", "error", "passed"),
        [("fp32", 0.9e-3, True), ("fp32", 1.2e-3, False), ("fp16", 0.9e-2, True), ("fp16", 1.2e-2, False)],
    )
    def test_all_elements_within_tolerance(self, precision: str, error: float, passed: bool) -> None:
        reference = np.array([1.0, -1.0, 1.0, 1.0])  # rms 1, so the scale of every element is 2
        row = one(reference + 2 * error, reference, precision=precision)
        assert (row.within_tolerance, row.passed) == (passed, passed)

    @pytest.mark.parametrize(
        ("precision", "limit"),
        [
            ("fp32", 1e-4),
            ("fp16", 1e-3 + 3 * 2**-11),  # of three roundings, and the tolerance's share
            ("bf16", 5e-3 + 3 * 2**-8),
            ("int8", 1e-2),
        ],
    )
    def test_a_half_precision_may_round_where_eager_in_float32_is_exact(self, precision: str, limit: float) -> None:
        golden = np.random.default_rng(3).choice([-1.0, 1.0], size=10_000)  # rms 1
        assert one(golden, golden, golden, precision=precision).rmse_limit == pytest.approx(limit)
        far = np.zeros_like(golden)
        far[0] = 100.0  # RMSE 1, and one element far out of any tolerance
        assert one(golden + 0.99 * limit * far, golden, golden, precision=precision).passed
        assert not one(golden + 1.01 * limit * far, golden, golden, precision=precision).passed

    def test_what_eager_adds_up_counts_where_it_is_more_than_a_rounding(self) -> None:
        golden = np.ones(100)
        row = one(golden, golden + 0.01, golden, precision="fp16")
        assert row.rmse_limit == pytest.approx(3 * 0.01 + 1e-3)

    def test_a_small_rmse_forgives_one_far_element(self) -> None:
        reference = np.ones(1_000_000)
        candidate = reference.copy()
        candidate[5] += 0.05
        row = one(candidate, reference)
        assert not row.within_tolerance
        assert row.passed

    def test_the_cosine_must_hold_as_well(self) -> None:
        # Elements are within bfloat16's tolerance of |r| + rms(r), yet the direction is off.
        reference = np.zeros(100)
        reference[0] = 1.0
        candidate = reference + 0.02 * np.where(np.arange(100) > 0, 1, 0) * 0.25
        allowed = drift.Limits(tolerance=0.5, k=2, cosine=0.9999)
        row = one(candidate, reference, allowed=allowed)
        assert row.within_tolerance
        assert not row.passed
        assert row.reason.startswith("cosine: expected at least 0.9999, got 0.998")

    def test_the_reason_says_what_was_expected_and_found(self) -> None:
        row = one(REFERENCE * np.float32(1.5), REFERENCE)
        assert not row.passed
        assert "RMSE to golden: expected at most" in row.reason
        assert "largest relative error: expected at most 0.001, got" in row.reason

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_not_a_number_where_the_reference_is_one(self, value: float) -> None:
        candidate = REFERENCE.copy()
        candidate[1, 1] = value
        row = one(candidate, REFERENCE)
        assert not row.passed
        assert row.nan_count + row.inf_count == 1
        assert row.elements == REFERENCE.size - 1
        assert "1 elements that differ" in row.reason

    def test_infinities_of_the_reference_must_be_met(self) -> None:
        reference = np.array([1.0, -math.inf, math.inf, math.nan])
        assert one(reference.copy(), reference).passed
        assert not one(np.array([1.0, -math.inf, -math.inf, math.nan]), reference).passed
        assert not one(np.array([1.0, -1e30, math.inf, math.nan]), reference).passed

    def test_only_not_a_number_is_nothing_to_compare(self) -> None:
        nothing = np.full(3, math.nan)
        assert not one(nothing, nothing).passed
        assert not one(nothing, np.ones(3)).passed
        assert not one(np.ones((0, 3)), np.ones((0, 3))).passed

    def test_zero_outputs(self) -> None:
        zeros = np.zeros(5)
        assert one(zeros, zeros).passed
        assert one(zeros, zeros).cosine == 1
        dead = one(zeros, np.ones(5), precision="int8", allowed=drift.Limits(tolerance=9, k=1, cosine=0.9))
        assert dead.cosine == 0
        assert not dead.passed
        near = one(zeros + 1e-9, zeros)
        assert near.passed
        assert (near.cosine, near.relative_l2) == (None, None)
        assert not one(zeros + 1.0, zeros).passed

    def test_a_scalar_and_a_constant(self) -> None:
        assert one(np.array(2.0), np.array(2.0)).elements == 1
        assert one(np.full(7, 3.0), np.full(7, 3.0)).passed
        assert not one(np.full(7, -3.0), np.full(7, 3.0)).passed

    def test_integers_must_be_equal(self) -> None:
        assert one(np.array([1, 2, 300]), np.array([1, 2, 300])).passed
        row = one(np.array([1, 2, 301]), np.array([1, 2, 300]))
        assert not row.passed
        assert row.reason == "expected equal elements, got 1 of 3 that differ"
        assert not one(np.array([True, False]), np.array([True, True])).passed

    def test_shape_and_dtype(self) -> None:
        row = one(REFERENCE.reshape(-1), REFERENCE)
        assert (row.passed, row.reason) == (False, "shape: expected [4, 50], got [200]")
        row = one(REFERENCE.astype(np.float16), REFERENCE)
        assert (row.passed, row.reason) == (False, "dtype: expected float32, got float16")
        assert one(REFERENCE.astype(np.float16), REFERENCE, precision="fp16").passed
        assert not one(np.array([1], dtype=np.int32), np.array([1], dtype=np.int64), precision="fp16").passed

    def test_missing_outputs_are_rows(self) -> None:
        rows = drift.judge({"b": REFERENCE, "c": REFERENCE}, {"a": REFERENCE, "b": REFERENCE}, input_set=3)
        assert [(row.output, row.passed, row.input_set) for row in rows] == [("a", False, 3), ("b", True, 3)]
        assert rows[0].reason == "missing: expected outputs a, b, got b, c"

    def test_nothing_compared_is_a_failure(self) -> None:
        rows = drift.judge({"y": REFERENCE}, {})
        assert [row.passed for row in rows] == [False]
        assert not drift.passed(rows)
        assert not drift.passed([])
        assert drift.passed(drift.judge({"y": REFERENCE}, {"y": REFERENCE}))

    def test_unknown_precision(self) -> None:
        with pytest.raises(UsageError, match=r"'fp7'.*fp32, tf32, fp16, bf16, int8, fp8"):
            drift.judge({}, {"y": REFERENCE}, precision="fp7")


class TestWorst:
    def test_a_failure_comes_before_a_distance(self) -> None:
        near, far = one(REFERENCE, REFERENCE), one(REFERENCE * np.float32(1.0001), REFERENCE)
        failed = one(np.array([1, 2]), np.array([1, 3]))
        assert drift.worst([]) is None
        assert drift.worst([near, far]) == 1
        assert drift.worst([far, failed, near]) == 1
        missing = drift.judge({}, {"y": REFERENCE})[0]
        assert drift.worst([failed, missing]) == 1


class TestAgreement:
    def test_by_hand(self) -> None:
        reference = np.array([[9, 8, 7, 6, 5, 1, 0.0], [9, 8, 7, 6, 5, 1, 0]])
        candidate = np.array([[9, 8, 7, 6, 1, 5, 0.0], [8, 9, 7, 6, 5, 1, 0]])
        assert drift.agreement(candidate, reference) == (0.5, 0.9)

    def test_not_a_number_ranks_last(self) -> None:
        assert drift.agreement(np.array([[math.nan, 1.0, 2.0]]), np.array([[3.0, 1.0, 2.0]])) == (0.0, 1.0)

    def test_only_for_scores_of_classification(self) -> None:
        assert one(REFERENCE, REFERENCE, task="classification").top1_agreement == 1
        assert one(REFERENCE, REFERENCE).top1_agreement is None
        assert one(REFERENCE.reshape(-1), REFERENCE.reshape(-1), task="classification").top1_agreement is None
        assert one(np.ones((2, 3), dtype=int), np.ones((2, 3), dtype=int), task="classification").top5_agreement is None
