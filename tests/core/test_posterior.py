"""Posteriors, warm starts and credible intervals.

Expectations come from worked examples, from conjugate formulas in exact fractions, from scipy's distributions, and at a billion
counts from densities integrated at 30 digits.
"""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from allocator.core.posterior import (
    BetaPosterior,
    BetaPrior,
    GammaPosterior,
    GammaPrior,
    NormalInverseGammaPrior,
    NormalPosterior,
    StudentPosterior,
    credible_interval,
    posterior,
    warm_start,
)
from allocator.core.statistics import CELL, MICRO, Statistics, Sums, add_outcomes, sums_of
from allocator.errors import InvalidArgument

from . import oracles_reward as oracle

NONE = Sums([0.0, 0.0], [0.0, 0.0], [0.0, 0.0])


def test_seven_successes_in_fifty_under_a_uniform_prior_are_a_beta_of_8_and_44():
    got = posterior(BetaPrior(), Sums([50], [7], [7]))
    assert (got.a[0], got.b[0]) == (8, 44)
    assert got.mean[0] == pytest.approx(8 / 52)


def test_a_fractional_reward_counts_as_that_much_success():
    got = posterior(BetaPrior(2, 3), Sums([4, 0], [2.5, 0], [2, 0]))
    np.testing.assert_array_equal(got.a, [4.5, 2])
    np.testing.assert_array_equal(got.b, [4.5, 3])


def test_no_data_give_back_the_prior():
    beta = posterior([BetaPrior(0.5, 2), BetaPrior(3, 1)], NONE)
    np.testing.assert_array_equal((beta.a, beta.b), [[0.5, 3], [2, 1]])
    gamma = posterior(GammaPrior(2, 5), NONE)
    np.testing.assert_array_equal((gamma.shape, gamma.rate), [[2, 2], [5, 5]])
    student = posterior(NormalInverseGammaPrior(3, 2, 4, 5), NONE)
    np.testing.assert_array_equal((student.nu, student.mean), [[8, 8], [3, 3]])
    np.testing.assert_allclose(student.scale, np.sqrt(5 / (4 * 2)), rtol=1e-15)


def test_a_billion_successes_are_counted_to_the_last_one():
    got = posterior(BetaPrior(), Sums([1e9, 1e9], [1e9, 1e9 - 1], [1e9, 1e9]))
    np.testing.assert_array_equal(got.a, [1e9 + 1, 1e9])
    np.testing.assert_array_equal(got.b, [1, 2])


def test_counts_per_exposure_add_to_shape_and_rate():
    got = posterior([GammaPrior(1, 10), GammaPrior(0.5, 1)], Sums([90, 4], [10, 7], [30, 13]))
    np.testing.assert_array_equal((got.shape, got.rate), [[11, 7.5], [100, 5]])
    np.testing.assert_allclose(got.mean, [0.11, 1.5])


@given(
    values=st.lists(st.integers(-1000, 1000), max_size=20),
    mean=st.integers(-100, 100),
    strength=st.integers(1, 50),
    shape=st.integers(1, 50),
    scale=st.integers(1, 1000),
)
@settings(deadline=None)
def test_the_gaussian_update_agrees_with_exact_fractions(values, mean, strength, shape, scale):
    n, total, squares = len(values), sum(values), sum(v * v for v in values)
    got = posterior(NormalInverseGammaPrior(mean, strength, shape, scale), Sums([n], [total], [squares]))
    kn = strength + n
    mn = Fraction(strength * mean + total, kn)
    bn = scale + (squares + strength * mean * mean - kn * mn * mn) / 2  # the same sum, not centred: exact in fractions
    an = shape + Fraction(n, 2)
    assert got.nu[0] == 2 * an
    assert got.mean[0] == pytest.approx(float(mn), rel=1e-12, abs=1e-12)
    assert got.scale[0] == pytest.approx(float(bn / (an * kn)) ** 0.5, rel=1e-12)


def test_a_shift_keeps_the_variance_of_a_reward_whose_mean_is_a_million_of_its_standard_deviations():
    rng = np.random.default_rng(0)
    far, n = 1000.0, 1_000_000
    offsets = np.rint(rng.normal(0, 1e-3, n) * MICRO).astype(np.int64)  # in micro-units
    cells = add_outcomes(np.zeros((1, CELL), np.int64), np.zeros(n, np.int64), offsets / MICRO, low=-1, high=1)
    statistics = Statistics(np.array([0]), cells.reshape(1, 1, 1, 1, CELL))
    got = posterior(NormalInverseGammaPrior(far, 1.0, 1.0, 1e-6), sums_of(statistics, 0), shift=far)

    total, squares = int(offsets.sum()), int((offsets.astype(object) ** 2).sum())
    kn, an = n + 1, 1 + Fraction(n, 2)
    deviations = Fraction(squares, MICRO**2) - Fraction(total, MICRO) ** 2 / n
    bn = Fraction(1, 10**6) + deviations / 2 + n * (Fraction(total, MICRO) / n) ** 2 / (2 * kn)
    assert got.mean[0] == pytest.approx(far + float(Fraction(total, MICRO) / kn), rel=1e-15)
    assert got.scale[0] == pytest.approx(float(bn / (an * kn)) ** 0.5, rel=1e-9)

    plain = Sums([n], [(offsets / MICRO + far).sum()], [((offsets / MICRO + far) ** 2).sum()])
    unshifted = posterior(NormalInverseGammaPrior(far, 1.0, 1.0, 1e-6), plain)
    assert unshifted.scale[0] != pytest.approx(got.scale[0], rel=1e-9)  # the loss of digits that the shift avoids


def test_a_reward_counted_as_a_share_of_its_range_comes_back_in_its_own_units():
    values = np.array([12.0, 19.0, 14.5, 11.0])
    prior = NormalInverseGammaPrior(15.0, 2.0, 1.5, 8.0)
    plain = posterior(prior, Sums([4], [values.sum()], [(values**2).sum()]))
    shares = (values - 10) / 20
    counted = posterior(prior, Sums([4], [shares.sum()], [(shares**2).sum()]), shift=10.0, unit=20.0)
    for name in ("nu", "mean", "scale"):
        np.testing.assert_allclose(getattr(counted, name), getattr(plain, name), rtol=1e-13)


EARLIER = Sums([1000, 0], [300, 0], [300, 0])


def test_a_warm_start_at_full_weight_continues_the_earlier_posterior():
    new = Sums([50, 20], [20, 5], [20, 5])
    both = Sums([1050, 20], [320, 5], [320, 5])
    for prior in (BetaPrior(2, 3), GammaPrior(2, 3)):
        got, expected = posterior(warm_start(prior, EARLIER, 1.0), new), posterior(prior, both)
        for name in got.__dataclass_fields__:
            np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-14)
    prior = NormalInverseGammaPrior(0.5, 2, 3, 4)
    got, expected = posterior(warm_start(prior, EARLIER, 1.0), new), posterior(prior, both)
    for name in got.__dataclass_fields__:
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-12)


def test_a_warm_start_is_discounted_and_capped():
    prior = BetaPrior(1, 1)
    assert warm_start(prior, EARLIER, 0.0) == (prior, prior)
    assert warm_start(prior, EARLIER, 0.5) == (BetaPrior(151, 351), prior)
    assert warm_start(prior, EARLIER, 0.5, cap=100) == (BetaPrior(31, 71), prior)
    assert warm_start(prior, EARLIER, 0.05, cap=100) == (BetaPrior(16, 36), prior)
    with pytest.raises(InvalidArgument, match="discount"):
        warm_start(prior, EARLIER, 1.5)
    with pytest.raises(InvalidArgument, match="cap"):
        warm_start(prior, EARLIER, 0.5, cap=-1)


BETAS = [(3, 9), (1, 1), (0.5, 0.5), (0.05, 3), (101, 1), (2e4, 3e6), (1, 1e6)]


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_intervals_agree_with_scipys_quantiles(level):
    tail = (1 - level) / 2
    a, b = np.array(BETAS).T
    cases = [
        (BetaPosterior(a, b), stats.beta(a, b)),
        (GammaPosterior([0.05, 1, 30, 1e5], [2, 3, 1e-3, 1e9]), stats.gamma([0.05, 1, 30, 1e5], scale=1 / np.array([2, 3, 1e-3, 1e9]))),
        (NormalPosterior([0, 1e6], [1, 1e-3]), stats.norm([0, 1e6], [1, 1e-3])),
        (StudentPosterior([2, 7, 1e6], [0, 3, -5], [1, 0.1, 2]), stats.t([2, 7, 1e6], [0, 3, -5], [1, 0.1, 2])),
    ]
    for got, expected in cases:
        low, high = credible_interval(got, level)
        width = expected.isf(0.16) - expected.ppf(0.16)
        assert (abs(low - expected.ppf(tail)) <= 1e-9 * width).all()
        assert (abs(high - expected.isf(tail)) <= 1e-9 * width).all()


@pytest.mark.parametrize(("a", "b"), [(5e8, 5e8), (2e7, 98e7), (1, 1e9), (1e9, 1e9 + 1e5)])
def test_intervals_hold_their_mass_at_a_billion_counts(a, b):
    low, high = credible_interval(BetaPosterior([a], [b]), 0.95)
    arm = oracle.beta(a, b)
    for value, mass in ((low[0], 0.025), (high[0], 0.975)):
        with mpmath.workdps(oracle.DIGITS):
            y = mpmath.log(mpmath.mpf(float(value)) / (1 - mpmath.mpf(float(value))))
        assert oracle.mass_below(arm, y) == pytest.approx(mass, abs=1e-9)


@given(
    level=st.floats(0.01, 0.999999),
    a=st.floats(-2, 15).map(lambda e: 10.0**e),
    b=st.floats(-2, 15).map(lambda e: 10.0**e),
)
@settings(deadline=None)
def test_every_valid_beta_has_an_interval_inside_zero_and_one(level, a, b):
    low, high = credible_interval(BetaPosterior([a], [b]), level)
    assert 0 <= low[0] <= high[0] <= 1


def test_a_wider_level_gives_a_wider_interval():
    one = BetaPosterior([8, 1], [44, 1])
    inner, outer = credible_interval(one, 0.8), credible_interval(one, 0.9)
    assert (outer[0] < inner[0]).all()
    assert (inner[1] < outer[1]).all()


def test_a_posterior_keeps_its_own_copy_and_cannot_be_changed():
    a = np.array([1.0, 2.0])
    one = BetaPosterior(a, [3, 4])
    a[0] = 99
    assert one.a[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        one.a[0] = 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: BetaPrior(0.001, 1), "prior.a"),
        (lambda: BetaPrior(1, float("nan")), "prior.b"),
        (lambda: NormalInverseGammaPrior(shape=0.9), "prior.shape"),
        (lambda: NormalInverseGammaPrior(scale=0), "prior.scale"),
        (lambda: NormalInverseGammaPrior(mean=float("inf")), "prior.mean"),
        (lambda: GammaPrior(1, 0), "prior.rate"),
        (lambda: BetaPosterior([1, float("nan")], [1, 1]), "posterior.a"),
        (lambda: BetaPosterior([1, 1], [1, 0]), "posterior.b: got 0"),
        (lambda: BetaPosterior([1, 1], [1]), "posterior.b"),
        (lambda: BetaPosterior([], []), "posterior.a"),
        (lambda: StudentPosterior([1.5], [0], [1]), "posterior.nu"),
        (lambda: NormalPosterior([0], [-1]), "posterior.sd"),
        (lambda: GammaPosterior([1], [float("inf")]), "posterior.rate"),
        (lambda: posterior(BetaPrior(), Sums([2], [3], [3])), "sums.total: arm 0"),
        (lambda: posterior(BetaPrior(), Sums([2], [-1], [1])), "sums.total: arm 0"),
        (lambda: posterior(GammaPrior(), Sums([2], [-1], [1])), "sums.total: arm 0"),
        (lambda: posterior([BetaPrior()] * 3, NONE), "3 priors"),
        (lambda: posterior([BetaPrior(), GammaPrior()], NONE), "BetaPrior, GammaPrior"),
        (lambda: posterior("flat", NONE), "prior"),
        (lambda: posterior(BetaPrior(), NONE, shift=1.0), "shift"),
        (lambda: posterior(NormalInverseGammaPrior(), NONE, unit=0.0), "unit"),
        (lambda: credible_interval(BetaPosterior([1], [1]), 1.0), "level"),
        (lambda: credible_interval(BetaPosterior([1], [1]), float("nan")), "level"),
    ],
)
def test_a_wrong_argument_is_named(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call()
