"""Verdicts and percentiles: hand-computed values, invariances, and false alarms and power by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks import honesty
from harness import stats
from harness.stats import Contrasts

Floats = NDArray[np.float64]


def noisy_tables(seed: int, *, launches: int = 4, cases: int = 4, rounds: int = 8) -> Floats:
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.05, (launches, 1, rounds))
    return np.asarray(
        shared + rng.normal(0, 0.01, (launches, cases, 1)) + rng.normal(0, 0.03, (launches, cases, rounds))
    )


def known(difference: float, half_width: float, launches: int = 5) -> Contrasts:
    """Return a run of one candidate whose control is in order."""
    return Contrasts(
        difference=np.array([0.0, difference]),
        half_width=np.array([0.005, half_width]),
        build_sd=np.array([np.nan, np.nan]),
        launches=np.array([5.0, float(launches)]),
        freedom=np.array([8.0, 8.0]),
        process_sd=np.array(0.005),
    )


def relative(level: Floats) -> Floats:
    return np.asarray(level - level[..., :1])


class TestLevels:
    def test_recovers_cases_from_drifting_rounds_exactly(self) -> None:
        cases, rounds = np.log([3.0, 3.0, 1.5]), np.array([0.0, 0.1, 0.3, -0.2, 0.05])
        fit = stats.fit_levels((cases[:, None] + rounds)[None])
        assert relative(fit.level)[0] == pytest.approx([0.0, 0.0, math.log(0.5)], abs=1e-9)

    def test_a_case_visited_in_slow_rounds_only_is_not_taken_for_slow(self) -> None:
        # The machine is 30 % slower in rounds 2 and 3; the third case, as fast as the others, is visited only then.
        rounds = np.array([0.0, 0.01, 0.26, 0.27, 0.0, -0.01])
        table = np.tile(rounds, (3, 1))
        table[2, [0, 1, 4, 5]] = np.nan
        fit = stats.fit_levels(table[None])
        assert relative(fit.level)[0] == pytest.approx([0.0, 0.0, 0.0], abs=1e-9)
        assert fit.visits[0].tolist() == [6, 6, 2]

    def test_rounds_in_which_a_case_is_alone_do_not_narrow_anything(self) -> None:
        # A slow baseline is visited twice, a fast candidate in every round: only what they share can compare them.
        table = np.random.default_rng(5).normal(0, 0.2, (1, 3, 10))
        table[0, :2, [1, 2, 3, 4, 6, 7, 8, 9]] = np.nan
        shared = np.where(np.isnan(table[:, :1]), np.nan, table)
        found, expected = stats.contrast(table), stats.contrast(shared)
        assert found.half_width == pytest.approx(expected.half_width)
        assert found.difference == pytest.approx(expected.difference)
        assert np.all(found.half_width > 0.2), "two windows a case, each off by 20 %"

    def test_one_spiked_window_hardly_moves_its_case(self) -> None:
        table = noisy_tables(1, launches=1, cases=3, rounds=10)
        before = relative(stats.fit_levels(table).level)[0, 2]
        table[0, 2, 4] += 1.0
        after = relative(stats.fit_levels(table).level)[0, 2]
        assert 0 < after - before < 0.02  # the mean would move by 0.1

    def test_degrees_of_freedom_of_a_complete_table(self) -> None:
        assert stats.fit_levels(noisy_tables(0, launches=1, cases=4, rounds=8)).freedom.sum() == pytest.approx(3 * 7)

    def test_a_case_that_shares_no_round_with_the_baseline_has_no_level(self) -> None:
        table = noisy_tables(2, launches=1, cases=3, rounds=6)
        table[0, :2, 4:] = np.nan
        table[0, 2, :4] = np.nan
        assert np.isnan(stats.fit_levels(table).level[0]).tolist() == [False, False, True]


class TestContrast:
    def test_against_a_calculation_by_hand(self) -> None:
        # Rounds without noise, three launches. Control minus baseline: 0.01, -0.01, 0, sum of squares 0.0002.
        # Candidate minus mean baseline: 0.015, 0.035, 0.04, mean 0.03, sum of squares 0.00035.
        # Process variance (0.0002 + 0.00035) / (2 * 2 + 2 * 1.5) = 7.8571e-5; expected of the candidate 1.1786e-4;
        # moderated (4 * 1.1786e-4 + 0.00035) / 6 = 1.36905e-4; t(99.5 %, 6) = 3.70743.
        levels = np.array([[0.0, 0.01, 0.02], [0.0, -0.01, 0.03], [0.0, 0.0, 0.04]])
        found = stats.contrast(np.repeat(levels[:, :, None], 4, axis=2))
        assert found.difference == pytest.approx([0.0, 0.03], abs=1e-12)
        assert found.half_width[1] == pytest.approx(3.70743 * math.sqrt(1.36905e-4 / 3), rel=1e-4)
        assert found.freedom.tolist() == [6, 6]
        assert found.process_sd == pytest.approx(math.sqrt(7.8571e-5), rel=1e-4)

    def test_without_a_control_the_candidate_carries_all_of_one_baseline_worker(self) -> None:
        # Candidate minus baseline: 0.01, 0.03; sum of squares 0.0002 = df * (1 + 1) * process variance.
        levels = np.array([[0.0, np.nan, 0.01], [0.0, np.nan, 0.03]])
        found = stats.contrast(np.repeat(levels[:, :, None], 4, axis=2))
        assert np.isnan(found.difference[0])
        assert found.process_sd == pytest.approx(math.sqrt(0.0001), rel=1e-6)

    def test_a_worker_that_died_costs_its_launch_only(self) -> None:
        tables = noisy_tables(3)
        tables[1, 2] = np.nan
        found = stats.contrast(tables)
        assert found.launches.tolist() == [4, 3, 4]
        assert found.difference[1] == pytest.approx(
            stats.contrast(np.delete(tables, 1, axis=0)).difference[1], abs=2e-3
        )

    def test_one_launch_gives_an_interval_from_rounds_but_no_verdict(self) -> None:
        tables = noisy_tables(4, launches=1)
        tables[:, 2:] -= 1.0
        found = stats.contrast(tables)
        assert found.rounds_only
        assert np.isfinite(found.half_width).all()
        assert set(stats.verdicts(found)) == {"UNDECIDED"}
        assert not stats.precise(found)
        assert stats.noise_floor(found) is None
        tables[:, 1] += 1.0
        assert not stats.suspicious(stats.contrast(tables))

    @pytest.mark.parametrize("cases", [3, 6])
    def test_an_interval_from_rounds_has_the_width_that_noise_deserves(self, cases: int) -> None:
        noise = np.random.default_rng(0).normal(0, 0.03, (1500, 1, cases, 10))
        found = stats.contrast(noise)
        quantile = 2.7 if cases == 6 else 2.88  # t at 99.5 % with 45 and 18 degrees of freedom
        implied = float(np.sqrt(((found.half_width[:, 1:] / quantile) ** 2).mean()))
        assert implied == pytest.approx(float(found.difference[:, 1:].std()), rel=0.06)

    def test_one_launch_of_one_round_gives_no_interval(self) -> None:
        found = stats.contrast(noisy_tables(4, launches=1, rounds=1))
        assert np.isfinite(found.difference).all()
        assert np.isnan(found.half_width).all()

    def test_rounds_without_any_noise_are_not_suspicious(self) -> None:
        found = stats.contrast(np.full((3, 4, 5), 0.7))
        assert not stats.suspicious(found)
        assert stats.verdicts(found).tolist() == ["SAME", "SAME", "SAME"]

    @given(st.integers(0, 10_000), st.floats(-3, 3), st.integers(2, 3))
    @settings(max_examples=40, deadline=None)
    def test_an_effect_shifts_its_own_difference_by_exactly_that(self, seed: int, effect: float, case: int) -> None:
        tables = noisy_tables(seed)
        before = stats.contrast(tables)
        tables[:, case] += effect
        after = stats.contrast(tables)
        expected = np.where(np.arange(3) == case - 1, effect, 0.0)
        assert after.difference - before.difference == pytest.approx(expected, abs=1e-9)
        assert after.half_width == pytest.approx(before.half_width, abs=1e-9)

    @given(st.integers(0, 10_000))
    @settings(max_examples=40, deadline=None)
    def test_what_all_cases_share_changes_nothing(self, seed: int) -> None:
        tables, rng = noisy_tables(seed), np.random.default_rng(seed + 1)
        shared = rng.normal(0, 1, (4, 1, 1)) + rng.normal(0, 1, (4, 1, 8)) + math.log(1e6)
        before, after = stats.contrast(tables), stats.contrast(tables + shared)
        assert after.difference == pytest.approx(before.difference, abs=1e-9)
        assert after.half_width == pytest.approx(before.half_width, abs=1e-9)

    @given(st.integers(0, 10_000))
    @settings(max_examples=40, deadline=None)
    def test_swaps(self, seed: int) -> None:
        tables = noisy_tables(seed)
        plain = stats.contrast(tables)
        workers = stats.contrast(tables[:, [1, 0, 2, 3]])
        assert workers.difference == pytest.approx(plain.difference * [-1, 1, 1], abs=1e-9)
        candidates = stats.contrast(tables[:, [0, 1, 3, 2]])
        assert candidates.difference == pytest.approx(plain.difference[[0, 2, 1]], abs=1e-9)
        backwards = stats.contrast(-tables[:, :, ::-1])
        assert backwards.difference == pytest.approx(-plain.difference, abs=1e-9)
        for other in (workers, backwards):
            assert other.half_width == pytest.approx(plain.half_width, abs=1e-9)

    @given(st.integers(0, 10_000))
    @settings(max_examples=20, deadline=None)
    def test_padding_and_stacking_change_nothing(self, seed: int) -> None:
        tables = noisy_tables(seed)
        padded = np.concatenate([tables, np.full((4, 4, 3), np.nan)], axis=2)
        stacked = stats.contrast(np.stack([tables, noisy_tables(seed + 1)]))
        plain = stats.contrast(tables)
        assert stats.contrast(padded).half_width == pytest.approx(plain.half_width, rel=1e-9)
        assert stacked.half_width[0] == pytest.approx(plain.half_width, rel=1e-9)


class TestVerdicts:
    @pytest.mark.parametrize(
        ("ratio", "half_width", "launches", "verdict"),
        [
            (0.90, 0.05, 5, "FASTER"),
            (1.10, 0.05, 5, "SLOWER"),
            (1.10, 0.15, 5, "UNDECIDED"),  # the interval holds 1
            (1.10, 0.05, 1, "UNDECIDED"),  # one process
            (1.10, math.nan, 5, "UNDECIDED"),
            (1.009, 0.0005, 5, "SAME"),  # clear of 1, but not worth a claim
            (0.9905, 0.0004, 5, "SAME"),
            (1.012, 0.001, 5, "SLOWER"),
            (0.988, 0.001, 5, "FASTER"),
            (1.009, 0.002, 5, "UNDECIDED"),  # clear of 1, below 1 %, and reaching beyond 1 %
            (1.0, 0.011, 5, "UNDECIDED"),
            (1.0, 0.009, 5, "SAME"),
        ],
    )
    def test_truth_table(self, ratio: float, half_width: float, launches: int, verdict: str) -> None:
        assert stats.verdicts(known(math.log(ratio), half_width, launches))[1] == verdict

    @given(st.floats(-0.1, 0.1), st.floats(0, 0.1))
    def test_a_verdict_says_what_its_interval_says(self, difference: float, half_width: float) -> None:
        found = known(difference, half_width)
        verdict, (ratio, low, high) = stats.verdicts(found)[1], stats.ratios(found)
        assert (verdict == "FASTER") == (high[1] < 1 and ratio[1] <= 0.99)
        assert (verdict == "SLOWER") == (low[1] > 1 and ratio[1] >= 1.01)
        assert (verdict == "SAME") == (low[1] > 0.99 and high[1] < 1.01)

    def test_precision_is_blind_to_the_difference(self) -> None:
        for difference in (0.0, 0.5, -2.0):
            assert stats.precise(known(difference, 0.0099))
            assert not stats.precise(known(difference, 0.0101))
            assert stats.precise(known(difference, 0.0101), 0.02)
            assert not stats.precise(known(difference, 0.0201), 0.02)

    def test_a_case_without_samples_does_not_hold_a_run_up(self) -> None:
        tables = noisy_tables(5)
        quiet = np.repeat(tables[:, :, :1] * 0.01, 8, axis=2)
        assert stats.precise(stats.contrast(quiet))
        quiet[:, 3] = np.nan
        assert stats.precise(stats.contrast(quiet))
        quiet[:, 2] = np.nan
        assert not stats.precise(stats.contrast(quiet))

    def test_noise_floor_is_that_of_the_worst_candidate_and_at_least_the_effect(self) -> None:
        assert stats.noise_floor(known(0.3, 0.04)) == pytest.approx(math.expm1(0.04))
        assert stats.noise_floor(known(0.3, 0.001)) == 0.01
        assert stats.noise_floor(known(0.3, 0.04, launches=1)) == 0.01  # the control's, as the candidate has none

    def test_a_control_that_differs_is_suspicious(self) -> None:
        tables = noisy_tables(6)
        assert not stats.suspicious(stats.contrast(tables))
        tables[:, 1] += 0.2
        assert stats.suspicious(stats.contrast(tables))


class TestPercentile:
    @pytest.mark.parametrize(
        ("count", "q", "low", "high"),
        [(6, 0.5, 1, 6), (10, 0.5, 2, 9), (100, 0.5, 40, 61), (36, 0.9, 29, 36)],  # ranks from binomial tables
    )
    def test_ranks(self, count: int, q: float, low: int, high: int) -> None:
        found = stats.percentile(np.arange(1.0, count + 1), q)
        assert found is not None
        assert (found.low, found.high) == (low, high)
        assert found.value == pytest.approx(1 + q * (count - 1))

    @pytest.mark.parametrize(("q", "enough"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
    def test_a_tail_that_the_samples_cannot_support_is_not_given(self, q: float, enough: int) -> None:
        assert stats.percentile(np.arange(float(enough)), q) is not None
        assert stats.percentile(np.arange(float(enough - 1)), q) is None
        assert stats.percentile(np.array([]), q) is None

    @pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.99])
    def test_ranks_are_those_of_the_binomial_distribution(self, q: float) -> None:
        for count in [*range(1, 400, 3), 5_000, 200_000]:
            for share in (0.025, 0.975):
                assert stats._binomial_quantile(share, count, q) == scipy.stats.binom.ppf(share, count, q)

    def test_intervals_cover_the_truth(self) -> None:
        samples = np.sort(np.random.default_rng(0).exponential(size=(1000, 100)), axis=1)
        truth = -math.log(0.1)
        found = [one for row in samples if (one := stats.percentile(row, 0.9))]
        assert 0.94 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.99

    def test_variation(self) -> None:
        assert stats.variation(np.array([1.0, 3.0])) == pytest.approx(math.sqrt(2) / 2)
        assert stats.variation(np.array([5.0])) == 0.0


class TestHonesty:
    """Runs whose truth is known, from the same generator as `benchmarks/honesty.py`."""

    RUNS = 300

    def shares(self, **scenario: object) -> dict[str, float]:
        drawn = honesty.Scenario(name="test", **scenario)  # type: ignore[arg-type]
        found = honesty.judge(drawn, honesty.draw(drawn, self.RUNS, np.random.default_rng(7)))
        return {name: float((found == name).mean()) for name in ("FASTER", "SLOWER", "SAME", "UNDECIDED")}

    @pytest.mark.parametrize("candidates", [1, 3])
    @pytest.mark.parametrize("process", [0.005, 0.01])
    def test_equal_backends_are_rarely_called_different(self, candidates: int, process: float) -> None:
        shares = self.shares(candidates=candidates, process=process)
        assert shares["FASTER"] + shares["SLOWER"] <= 0.015

    @pytest.mark.parametrize("candidates", [1, 3])
    @pytest.mark.parametrize(("effect", "verdict"), [(0.05, "SLOWER"), (-0.05, "FASTER")])
    def test_five_per_cent_are_found(self, candidates: int, effect: float, verdict: str) -> None:
        assert self.shares(candidates=candidates, process=0.01, effect=effect)[verdict] >= 0.95

    def test_a_quiet_machine_can_say_same_and_says_it_of_no_true_effect(self) -> None:
        quiet = {"process": 0.003, "noise": 0.01, "rounds": 40}
        assert self.shares(**quiet)["SAME"] >= 0.7
        assert self.shares(**quiet, effect=0.015)["SAME"] <= 0.01

    def test_a_case_with_a_spread_of_its_own_is_not_judged_by_the_others(self) -> None:
        # One spread pooled over all cases calls such a case in 9 % of runs.
        shares = self.shares(first_process=0.03, judged="first")
        assert shares["FASTER"] + shares["SLOWER"] <= 0.06

    def test_the_script_passes(self) -> None:
        assert honesty.simulated(100, 0)

    @pytest.mark.parametrize("always", ["FASTER", "SAME", "UNDECIDED"])
    def test_the_script_fails_on_a_rule_that_does_not_look(self, always: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stats, "verdicts", lambda found: np.full(found.difference.shape, always))
        assert not honesty.simulated(5, 0)


class TestBuilds:
    """Two cases that take the same time on average, of which one comes out differently with every build."""

    LAUNCHES, BUILDS, RUNS = 6, 3, 400

    def tables(self, shift: float = 0.0, spread: float = 0.03) -> Floats:
        rng = np.random.default_rng(7)
        shape = (self.RUNS, self.LAUNCHES, 3, 8)
        noise = rng.normal(0, 0.005, (*shape[:3], 1)) + rng.normal(0, 0.01, shape)
        built = rng.normal(0, spread, (self.RUNS, self.BUILDS))
        noise[:, :, 2, :] += shift + built[:, np.arange(self.LAUNCHES) % self.BUILDS, None]
        return np.asarray(noise)

    @property
    def builds(self) -> list[int]:
        return [index % self.BUILDS for index in range(self.LAUNCHES)]

    def calls(self, tables: Floats, builds: list[int] | None) -> float:
        found = stats.verdicts(stats.contrast(tables, builds))[:, 1]
        return float(np.isin(found, ["FASTER", "SLOWER"]).mean())

    def test_without_their_number_the_spread_of_builds_makes_false_calls(self) -> None:
        assert self.calls(self.tables(), None) > 0.1

    def test_with_it_false_calls_are_as_rare_as_claimed(self) -> None:
        assert self.calls(self.tables(), self.builds) <= 0.02

    def test_a_true_difference_is_still_found_where_builds_are_alike(self) -> None:
        assert self.calls(self.tables(shift=0.2, spread=0.002), self.builds) > 0.95

    def test_the_spread_is_that_of_the_builds(self) -> None:
        found = stats.contrast(self.tables(), self.builds).build_sd[:, 1]
        assert float(np.sqrt((found**2).mean())) == pytest.approx(0.03, rel=0.15)

    def test_one_build_of_each_changes_nothing(self) -> None:
        tables = noisy_tables(3)
        plain, alone = stats.contrast(tables), stats.contrast(tables, [0] * len(tables))
        assert np.array_equal(plain.half_width, alone.half_width)
        assert np.isnan(alone.build_sd).all()

    def test_a_build_that_was_measured_more_often_counts_once(self) -> None:
        tables = np.zeros((3, 3, 4))
        tables[:2, 2] = 0.1  # build 0, twice
        tables[2, 2] = 0.3  # build 1
        assert stats.contrast(tables, [0, 0, 1]).difference[1] == pytest.approx(0.2)
