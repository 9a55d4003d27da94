"""Confidence sequences against computed and published values, their definitions, and their coverage when watched."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaln, gammainc, gammaln, xlog1py, xlogy

from allocator.core.confidence import (
    asymptotic_half_width,
    best_rho,
    confidence_sequence,
    difference_sequence,
    empirical_bernstein,
    gamma_exponential_boundary,
    ratio_of_means,
    relative_risk,
    warm_up,
)
from allocator.core.evidence_labels import label_grid, label_sums, log_label_evidence
from allocator.core.kernels import evidence as kernels
from allocator.errors import InvalidArgument


def four_errors(share, runs):
    return 4.0 * math.sqrt(max(share * (1.0 - share), 1.0 / runs) / runs)


# ----------------------------------------------------------------------------------------------- mean of one arm


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (12, 1000, 0.00335773364395, 0.0291977998807),
        (0, 500, 0.0, 0.0132625692323),
        (10_000, 1e6, 0.0095587563916, 0.0104544788357),
        (0, 0, 0.0, 1.0),
    ],
)
def test_an_interval_has_the_values_computed_independently(count, total, low, high):
    assert confidence_sequence(count, total, 0.05) == pytest.approx((low, high), rel=1e-11)


def log_mixture_ratio(count, total, rate):
    """ln of Beta(1/2, 1/2) mixture likelihood over the likelihood at rate, as defined."""
    mixture = betaln(count + 0.5, total - count + 0.5) - betaln(0.5, 0.5)
    return mixture - xlogy(count, rate) - xlog1py(total - count, -rate)


@settings(deadline=None)
@given(total=st.floats(0.01, 1e5), share=st.floats(0.0, 1.0), alpha=st.floats(1e-12, 0.5))
def test_the_bounds_lie_where_the_evidence_reaches_one_over_alpha(total, share, alpha):
    count = min(total * share, total)
    low, high = confidence_sequence(count, total, alpha)
    assert 0.0 <= low <= count / total <= high <= 1.0
    for bound in (low, high):
        if 1e-300 < bound < 1.0 - 1e-9:  # nearer to 1 a float64 has no digits left to place the bound
            assert log_mixture_ratio(count, total, bound) == pytest.approx(-math.log(alpha), abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 1000, 10**7, 5 * 10**8, 10**9 - 1, 10**9])
def test_the_bounds_are_exact_at_a_billion_outcomes(count):
    total, alpha = 10**9, 1e-3
    low, high = (float(bound) for bound in confidence_sequence(count, total, alpha))
    with mpmath.workdps(50):
        half = mpmath.mpf("0.5")

        def excess(rate):
            mixture = mpmath.loggamma(count + half) + mpmath.loggamma(total - count + half)
            mixture -= mpmath.loggamma(total + 1) + mpmath.log(mpmath.pi)
            likelihood = (count * mpmath.log(rate) if count else 0) + ((total - count) * mpmath.log(1 - rate) if count < total else 0)
            return float(mixture - likelihood + mpmath.log(alpha))

        for bound, edge in ((low, 0.0), (high, 1.0)):
            if bound != edge:
                assert excess(mpmath.mpf(bound)) == pytest.approx(0.0, abs=1e-5)
    assert (low == 0.0) == (count == 0)
    assert (high == 1.0) == (count >= total - 1)  # one miss in a billion: the bound rounds to 1


@given(count=st.integers(0, 50), total=st.integers(50, 200), alpha=st.floats(1e-4, 0.4))
@settings(deadline=None)
def test_less_error_means_a_wider_interval_and_swapping_outcomes_mirrors_it(count, total, alpha):
    low, high = confidence_sequence(count, total, alpha)
    wider = confidence_sequence(count, total, alpha / 2.0)
    mirrored = confidence_sequence(total - count, total, alpha)
    assert wider[0] <= low
    assert wider[1] >= high
    assert mirrored == pytest.approx((1.0 - high, 1.0 - low), abs=1e-12)


def test_intervals_come_for_all_arms_at_once():
    low, high = confidence_sequence([[1, 2], [3, 0]], [[10, 20], [30, 0]], 0.05)
    assert low.shape == high.shape == (2, 2)
    assert (low[1, 0], high[1, 0]) == confidence_sequence(3, 30, 0.05)
    assert (low[1, 1], high[1, 1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("count", "total", "alpha", "field"),
    [
        (3, 2, 0.1, "count"),
        (-1, 2, 0.1, "count"),
        (1, math.nan, 0.1, "total"),
        (1, 2, 0.0, "alpha"),
        (1, 2, 1.0, "alpha"),
        (1, 2, math.nan, "alpha"),
    ],
)
def test_impossible_counts_are_refused_by_name(count, total, alpha, field):
    with pytest.raises(InvalidArgument) as caught:
        confidence_sequence(count, total, alpha)
    assert caught.value.violations[0].field == field


def test_under_thompson_sampling_intervals_cover_when_watched_while_ordinary_ones_do_not():
    """Two equal arms at .5, 1000 rounds. An ordinary 95 % interval of an arm covers .905 at the end: published."""
    runs, rounds, rng = 2000, 1000, np.random.default_rng(51)
    good, rows = np.zeros((runs, 2)), np.zeros((runs, 2))
    covered = np.ones((runs, 2), dtype=bool)
    every = np.arange(runs)
    for step in range(1, rounds + 1):
        arm = rng.beta(1.0 + good, 1.0 + rows - good).argmax(axis=1)
        rows[every, arm] += 1.0
        good[every, arm] += rng.random(runs) < 0.5
        if step in (10, 20, 50, 100, 200, 300, 500, 700, 850, 1000):
            low, high = confidence_sequence(good, rows, 0.05)
            covered &= (low <= 0.5) & (high >= 0.5)
    mean = good / np.maximum(rows, 1.0)
    ordinary = np.abs(mean - 0.5) <= 1.96 * np.sqrt(mean * (1.0 - mean) / np.maximum(rows, 1.0))
    assert covered.mean() >= 0.95
    assert ordinary.mean() == pytest.approx(0.905, abs=four_errors(0.905, runs))


# ------------------------------------------------------------------------------------------- empirical Bernstein


def test_boundaries_have_the_values_published_with_confseq():
    """Its gamma-exponential tests use scale 2; deviations scale with it, intrinsic times and rho with its square."""
    assert best_rho(100.0, 0.05) == pytest.approx(12.60056, abs=5e-6)
    assert 100.0 * asymptotic_half_width(100.0, 1.0, 0.05, 100.0) == pytest.approx(30.35209, abs=5e-6)
    rho = best_rho(100.0, 2.0 * 0.05) / 4.0  # a one-sided boundary is tuned at twice its level
    assert kernels.log_gamma_exponential(10.0 / 2.0, 100.0 / 4.0, rho) == pytest.approx(-0.2490165, abs=5e-8)
    assert 2.0 * gamma_exponential_boundary(100.0 / 4.0, rho, 0.05) == pytest.approx(33.02017, abs=5e-6)


@settings(deadline=None)
@given(s=st.floats(0.0, 30.0), v=st.floats(0.0, 200.0), rho=st.floats(0.1, 50.0))
def test_the_mixture_is_the_published_formula(s, v, rho):
    z, x = v + rho, s + v + rho
    expected = rho * math.log(rho) - gammaln(rho) - math.log(gammainc(rho, rho))
    expected += gammaln(z) + math.log(gammainc(z, x)) - z * math.log(x) + s + v
    assert kernels.log_gamma_exponential(s, v, rho) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("v", [0.0, 1e-3, 1.0, 1e3, 1e6, 2.5e8])
@pytest.mark.parametrize("alpha", [0.5, 0.025, 1e-12])
def test_the_boundary_is_where_the_mixture_reaches_one_over_alpha(v, alpha):
    deviation = float(gamma_exponential_boundary(v, best_rho(max(v, 1.0), alpha), alpha))
    reached = kernels.log_gamma_exponential(deviation, v, best_rho(max(v, 1.0), alpha))
    assert reached == pytest.approx(-math.log(alpha), abs=1e-6)


def test_the_interval_adapts_to_a_small_variance():
    """Beta(20, 20), 2,000 outcomes; published widths of one sample: .0140, centre off by .2: .0352, mixture: .0837."""
    outcomes = np.random.default_rng(52).beta(20, 20, 2000)
    sums = len(outcomes), outcomes.sum(), (outcomes**2).sum()
    widths = []
    for center in (0.5, 0.3):
        low, high = empirical_bernstein(*sums, center, 0.05, variance_of_interest=2000 * 0.25 / 41.0)
        assert low < 0.5 < high
        widths.append(high - low)
    assert widths == pytest.approx([0.0140, 0.0352], rel=0.02)
    low, high = confidence_sequence(sums[1], sums[0], 0.05)
    assert high - low == pytest.approx(0.0837, abs=5e-4)


def test_empirical_bernstein_covers_at_all_times_at_once():
    runs, rows, rng = 400, 1000, np.random.default_rng(53)
    outcomes = np.where(rng.random((runs, rows)) < 0.1, rng.random((runs, rows)), 0.05)  # skewed; mean .095
    sums, squares = np.cumsum(outcomes, axis=1)[:, 9::10], np.cumsum(outcomes**2, axis=1)[:, 9::10]
    number = np.broadcast_to(np.arange(10, rows + 1, 10), sums.shape)
    low, high = empirical_bernstein(number, sums, squares, 0.1, 0.1, variance_of_interest=10.0)
    missed = ((low > 0.095) | (high < 0.095)).any(axis=1).mean()
    assert missed <= 0.1 + four_errors(0.1, runs)
    assert (high - low)[:, -1].mean() < 0.1


def test_no_outcomes_leave_everything_possible():
    low, high = empirical_bernstein([0, 5], [0.0, 2.5], [0.0, 1.5], 0.5, 0.05, 1.0)
    assert (low[0], high[0]) == (0.0, 1.0)
    assert 0.0 <= low[1] < 0.5 < high[1] <= 1.0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((10, 5.0, 6.0, 0.5, 0.05, 1.0), "squares"),
        ((10, 5.0, 1.0, 0.5, 0.05, 1.0), "squares"),
        ((10, 5.0, 4.0, 1.5, 0.05, 1.0), "center"),
        ((10, 5.0, 4.0, math.nan, 0.05, 1.0), "center"),
        ((10, 5.0, 4.0, 0.5, 0.05, 0.0), "variance_of_interest"),
        ((10, 5.0, math.nan, 0.5, 0.05, 1.0), "squares"),
        ((10, 15.0, 4.0, 0.5, 0.05, 1.0), "outcomes"),
        (([10, 10], [5.0, 5.0, 5.0], 4.0, 0.5, 0.05, 1.0), "outcomes"),
    ],
)
def test_sums_of_no_sample_are_refused_by_name(arguments, field):
    with pytest.raises(InvalidArgument) as caught:
        empirical_bernstein(*arguments)
    assert caught.value.violations[0].field == field


# ---------------------------------------------------------------------------------------------------- comparisons


def test_relative_risk_holds_the_ratios_that_the_label_kernel_does_not_refute():
    cells = [20, 30], [180, 250], [0.1, 0.05]
    low, high = relative_risk(*cells, 0.05)
    for ratio, above, refuted in (
        (low * 0.999, True, True),
        (low * 1.001, True, False),
        (high * 1.001, False, True),
        (high * 0.999, False, False),
    ):
        grid = label_grid(ratio, above)
        assert (log_label_evidence(grid, label_sums(grid, *cells)) >= math.log(2.0 / 0.05)) is refuted
    assert low < 1.5 < high  # about the odds of the labels over the odds of the shares


def test_relative_risk_leaves_open_what_the_data_leave_open():
    assert relative_risk([0], [0], [0.1], 0.05) == (0.0, math.inf)
    low, high = relative_risk([200], [0], [0.1], 0.05)
    assert low > 1.0
    assert high == math.inf
    low, high = relative_risk([0], [500], [0.5], 0.05)
    assert low == 0.0
    assert high < 0.1


def test_relative_risk_covers_under_adaptive_shares_and_a_common_incident():
    runs, alpha, rng, truth = 300, 0.1, np.random.default_rng(54), 1.5
    missed = 0
    for _ in range(runs):
        candidate, incumbent, pis, pi = [], [], [], 0.1
        for step in range(10):
            rate = 0.02 if step < 5 else 0.2
            mine = rng.binomial(1000, pi)
            candidate.append(rng.binomial(mine, truth * rate))
            incumbent.append(rng.binomial(1000 - mine, rate))
            pis.append(pi)
            pi = min(max(pi * (0.7 if candidate[-1] * (1 - pi) > incumbent[-1] * pi else 1.5), 0.02), 0.5)
        low, high = relative_risk(candidate, incumbent, pis, alpha)
        missed += not low <= truth <= high
    assert missed / runs <= alpha + four_errors(alpha, runs)


def test_a_ratio_of_means_is_the_union_of_two_intervals():
    low, high = ratio_of_means(10, 100, 10, 1000, 0.05)
    (low_candidate, low_incumbent), (high_candidate, high_incumbent) = confidence_sequence([10, 10], [100, 1000], 0.025)
    assert (low, high) == (low_candidate / high_incumbent, high_candidate / low_incumbent)
    assert ratio_of_means(1, 10, 0, 10, 0.05)[1] == math.inf


def scores_as_defined(candidate, outcome, pi):
    scores, hits, rows = [], [0.0, 0.0], [0, 0]
    for a, y, p in zip(candidate, outcome, pi, strict=True):
        m0, m1 = ((hits[i] + 0.5) / (rows[i] + 1.0) for i in (0, 1))
        scores.append(m1 - m0 + (y - m1) / p * a - (y - m0) / (1.0 - p) * (1 - a))
        hits[int(a)] += y
        rows[int(a)] += 1
    return np.array(scores)


def test_a_difference_is_the_mean_of_doubly_robust_scores_once_both_arms_have_enough():
    rng = np.random.default_rng(55)
    pi = rng.uniform(0.1, 0.9, 400)
    candidate = rng.random(400) < pi
    outcome = (rng.random(400) < np.where(candidate, 0.6, 0.4)).astype(float)
    low, high = difference_sequence(candidate, outcome, pi, 0.05, best_at=400)
    scores = scores_as_defined(candidate, outcome, pi)
    half = asymptotic_half_width(400, scores.var(), 0.05, 400)
    assert (low[-1], high[-1]) == pytest.approx((scores.mean() - half, scores.mean() + half))
    counts = [np.cumsum(candidate == a) for a in (True, False)]
    events = [np.cumsum(outcome * (candidate == a)) for a in (True, False)]
    ready = np.min([*events, *(n - x for n, x in zip(counts, events, strict=True))], axis=0) >= 30
    assert 0 < np.argmax(ready) < 399
    assert np.all((low == -1.0) & (high == 1.0) == ~ready)


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_difference_covers_when_watched_from_thirty_events_on(rate, share):
    runs, rows, rng, missed = 300, 12_000, np.random.default_rng(56), 0
    for _ in range(runs):
        pi = np.where(np.arange(rows) // 500 % 2 == 0, share, 2.0 * share / 3.0)
        candidate, outcome = rng.random(rows) < pi, (rng.random(rows) < rate).astype(float)
        low, high = difference_sequence(candidate, outcome, pi, 0.05, best_at=2000)
        missed += bool(np.any((low > 0.0) | (high < 0.0)))
    assert missed / runs <= 0.05 + four_errors(0.05, runs)


def test_a_difference_watched_from_the_hundredth_row_on_would_miss_far_too_often():
    runs, rows, rng, missed = 300, 5000, np.random.default_rng(57), 0
    number = np.arange(1.0, rows + 1.0)
    for _ in range(runs):
        pi, outcome = np.full(rows, 0.05), (rng.random(rows) < 0.05).astype(float)
        scores, events, clear = np.empty(rows), np.empty(rows), np.empty(rows)
        kernels.augmented_scores(rng.random(rows) < pi, outcome, pi, events, clear, scores)
        mean = np.cumsum(scores) / number
        half = asymptotic_half_width(number, np.maximum(np.cumsum(scores**2) / number - mean**2, 0.0), 0.05, 100)
        missed += bool(np.any(np.abs(mean[99:]) > half[99:]))
    assert missed / runs > 0.1


@pytest.mark.parametrize(
    ("candidate", "outcome", "pi", "field"),
    [
        ([1.0], [0.5], [0.5], "candidate"),
        ([True, False], [0.5], [0.5], "candidate"),
        ([True], [1.5], [0.5], "outcome"),
        ([True], [math.nan], [0.5], "outcome"),
        ([True], [0.5], [1.0], "pi"),
        ([True], [0.5], [0.0], "pi"),
    ],
)
def test_rows_that_no_draw_can_have_made_are_refused_by_name(candidate, outcome, pi, field):
    with pytest.raises(InvalidArgument) as caught:
        difference_sequence(candidate, outcome, pi, 0.05)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: best_rho(0.0, 0.05), "v"),
        (lambda: gamma_exponential_boundary(1.0, math.nan, 0.05), "rho"),
        (lambda: gamma_exponential_boundary(-1.0, 1.0, 0.05), "v"),
        (lambda: asymptotic_half_width(0.0, 1.0, 0.05, 1.0), "rows"),
        (lambda: difference_sequence([True], [0.5], [0.5], 0.05, start_events=0), "start_events"),
        (lambda: difference_sequence([True], [0.5], [0.5], 0.05, best_at=math.nan), "v"),
    ],
)
def test_settings_without_meaning_are_refused_by_name(call, field):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.violations[0].field == field


def test_warming_up_compiles_every_signature_that_is_used():
    warm_up()
    loops = kernels.krichevsky_trofimov, kernels.gamma_exponential_boundary, kernels.augmented_scores
    before = [len(loop.signatures) for loop in loops]
    confidence_sequence([1, 2], [3, 4], 0.05)
    empirical_bernstein(10, 5.0, 4.0, 0.5, 0.05, 1.0)
    difference_sequence([True, False], [0, 1], np.array([0.5, 0.5]), 0.05)
    assert [len(loop.signatures) for loop in loops] == before
