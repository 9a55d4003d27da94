"""Contextual scores against normal equations, textbook formulas at 40 digits, scipy's optimiser and integrator, and coverage."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq, minimize
from scipy.stats import norm, t

from allocator.core.best_arm import best_arm
from allocator.core.posterior import NormalInverseGammaPrior, credible_interval, posterior
from allocator.core.regression import (
    LinearPrior,
    LogisticPrior,
    linear_posterior,
    linear_scores,
    linear_sums,
    logistic_posterior,
    logistic_scores,
)
from allocator.core.statistics import Sums
from allocator.errors import InvalidArgument


def sample(seed, n=40, d=3, noise=0.5):
    rng = np.random.default_rng(seed)
    features = rng.uniform(-1.0, 1.0, (n, d)) / math.sqrt(d)
    return features, features @ rng.normal(size=d) + noise * rng.normal(size=n)


def prior(seed, d=3):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d))
    return LinearPrior(rng.normal(size=d), root @ root.T + np.eye(d), shape=1.5, scale=0.7)


# --------------------------------------------------------------------------------------------------------- linear


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("centred", [False, True])
def test_the_linear_posterior_is_the_textbook_formula(seed, centred):
    """At 40 digits, with the raw sums of y and y^2 that 40 digits can afford."""
    before, (features, rewards), x = prior(seed), sample(seed + 10), np.array([0.3, -0.2, 0.6])
    center = np.random.default_rng(seed).normal(size=3) if centred else None
    scores = linear_scores([linear_posterior(before, linear_sums(features, rewards, center))], x)
    with mpmath.workdps(40):
        m0, l0 = mpmath.matrix(before.mean.tolist()), mpmath.matrix(before.precision.tolist())
        design, y, at = mpmath.matrix(features.tolist()), mpmath.matrix(rewards.tolist()), mpmath.matrix(x.tolist())
        precision = l0 + design.T * design
        mean = mpmath.lu_solve(precision, l0 * m0 + design.T * y)
        scale = before.scale + ((y.T * y)[0] + (m0.T * l0 * m0)[0] - (mean.T * precision * mean)[0]) / 2
        shape = mpmath.mpf(before.shape) + mpmath.mpf(len(rewards)) / 2
        spread = mpmath.sqrt(scale / shape * (at.T * mpmath.lu_solve(precision, at))[0])
        expected = float(2 * shape), float((at.T * mean)[0]), float(spread)
    assert (scores.nu[0], scores.mean[0], scores.scale[0]) == pytest.approx(expected, rel=1e-12)


def test_with_a_vanishing_prior_the_mean_solves_the_normal_equations():
    features, rewards = sample(3, n=200)
    after = linear_posterior(LinearPrior(np.zeros(3), 1e-12 * np.eye(3)), linear_sums(features, rewards))
    expected, residual, *_ = np.linalg.lstsq(features, rewards, rcond=None)
    assert after.mean == pytest.approx(expected, rel=1e-9)
    assert after.scale - 1.0 == pytest.approx(residual[0] / 2.0, rel=1e-9)
    assert after.whitening.T @ after.whitening == pytest.approx(np.linalg.inv(features.T @ features), rel=1e-9)


def test_one_constant_feature_is_the_gaussian_reward_without_features():
    rng = np.random.default_rng(4)
    for n in (0, 1, 7, 100):
        rewards = rng.normal(3.0, 2.0, n)
        plain = posterior(NormalInverseGammaPrior(0.5, 2.0, 1.5, 0.7), Sums([n], [rewards.sum()], [rewards @ rewards]))
        before = LinearPrior([0.5], [[2.0]], shape=1.5, scale=0.7)
        scores = linear_scores([linear_posterior(before, linear_sums(np.ones((n, 1)), rewards))], [1.0])
        for name in ("nu", "mean", "scale"):
            assert getattr(scores, name) == pytest.approx(getattr(plain, name), rel=1e-12)


def test_sums_add_up_over_replicas_in_any_order():
    features, rewards = np.round(sample(5)[0] * 8), np.arange(40.0)  # whole numbers: no rounding hides a fault
    whole = linear_sums(features, rewards)
    cut = linear_sums(features[25:], rewards[25:]) + linear_sums(features[:25], rewards[:25])
    for name in ("count", "outer", "cross", "squares"):
        assert np.array_equal(getattr(cut, name), getattr(whole, name))


def test_a_center_near_the_truth_keeps_the_variance_of_a_reward_a_million_standard_deviations_from_zero():
    features, rewards = sample(6, n=2000, noise=1.0)
    features = np.column_stack([features, np.ones(2000)])
    before = LinearPrior([0.0, 0.0, 0.0, 1e6], np.diag([1.0, 1.0, 1.0, 1e-6]))
    x = np.array([0.1, 0.1, 0.1, 1.0])
    centred = linear_scores([linear_posterior(before, linear_sums(features, rewards + 1e6, [0.0, 0.0, 0.0, 1e6]))], x)
    plain = linear_scores([linear_posterior(before, linear_sums(features, rewards + 1e6))], x)
    near_zero = LinearPrior(np.zeros(4), before.precision)
    expected = linear_scores([linear_posterior(near_zero, linear_sums(features, rewards))], x)
    assert centred.scale == pytest.approx(expected.scale, rel=1e-9)
    assert centred.mean - 1e6 == pytest.approx(expected.mean, rel=1e-7)
    assert abs(plain.scale[0] / expected.scale[0] - 1.0) > 1e-7  # what the center is there for


def chance_between(y, one, other):
    return one.pdf(y) * other.cdf(y)


def test_the_chance_to_be_best_for_a_unit_is_the_integral_over_its_scores():
    arms = [linear_posterior(prior(seed), linear_sums(*sample(seed, n=5 + 10 * seed))) for seed in range(2)]
    for x in ([0.5, 0.1, -0.4], [-0.9, 0.0, 0.1]):
        scores = linear_scores(arms, x)
        one, other = (t(nu, m, s) for nu, m, s in zip(scores.nu, scores.mean, scores.scale, strict=True))
        expected = quad(chance_between, -np.inf, np.inf, args=(one, other), epsabs=1e-12)[0]
        assert best_arm(scores).prob_best[0] == pytest.approx(expected, abs=1e-8)


def test_score_intervals_hold_as_often_as_they_say_when_the_prior_is_true():
    """Truth drawn from the prior: an exact 80 % interval covers in 80 % of runs, to four standard errors."""
    rng, runs, covered, x = np.random.default_rng(7), 1500, 0, np.array([0.4, -0.3])
    for _ in range(runs):
        variance = 0.7 / rng.gamma(2.0)
        truth = rng.normal(size=2) * math.sqrt(variance / 2.0)
        features = rng.uniform(-1.0, 1.0, (12, 2))
        rewards = features @ truth + rng.normal(size=12) * math.sqrt(variance)
        after = linear_posterior(LinearPrior([0.0, 0.0], 2.0 * np.eye(2), shape=2.0, scale=0.7), linear_sums(features, rewards))
        low, high = credible_interval(linear_scores([after], x), 0.8)
        covered += low[0] <= truth @ x <= high[0]
    assert covered / runs == pytest.approx(0.8, abs=4.0 * math.sqrt(0.16 / runs))


# ------------------------------------------------------------------------------------------------------- logistic

CELLS = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])


def objective(before, cells, total, successes):
    """Minus the log posterior, and its gradient, as the definition reads."""

    def value(at):
        score, moved = cells @ at, at - before.mean
        return -(successes @ score - total @ np.logaddexp(0.0, score)) + 0.5 * moved @ before.precision @ moved

    def slope(at):
        return -cells.T @ (successes - total / (1.0 + np.exp(-cells @ at))) + before.precision @ (at - before.mean)

    return value, slope


@pytest.mark.parametrize("seed", range(4))
def test_the_logistic_posterior_is_the_maximum_that_scipy_finds_and_its_curvature(seed):
    rng = np.random.default_rng(seed)
    total = rng.integers(0, 200, 4).astype(float)
    successes = rng.binomial(total.astype(int), 0.3).astype(float)
    before = LogisticPrior(rng.normal(size=3), np.diag([0.5, 1.0, 2.0]) + 0.1)
    after = logistic_posterior(before, CELLS, total, successes)
    value, slope = objective(before, CELLS, total, successes)
    found = minimize(value, before.mean, jac=slope, method="BFGS", options={"gtol": 1e-10})
    assert after.mean == pytest.approx(found.x, abs=1e-7)
    assert slope(after.mean) == pytest.approx(np.zeros(3), abs=1e-8)
    step = 1e-5
    curvature = np.array([(slope(after.mean + step * e) - slope(after.mean - step * e)) / (2.0 * step) for e in np.eye(3)])
    assert after.whitening.T @ after.whitening == pytest.approx(np.linalg.inv(curvature), rel=1e-6)


@pytest.mark.parametrize(("total", "successes"), [(0, 0), (10, 0), (10, 10), (1000, 3), (1e9, 12_345_678)])
@pytest.mark.parametrize("variance", [0.1, 4.0, 1e4])
def test_an_intercept_alone_solves_its_equation(total, successes, variance):
    """successes - total sigmoid(theta) - theta / variance = 0, by bisection."""
    after = logistic_posterior(LogisticPrior([0.0], [[1.0 / variance]]), [[1.0]], [total], [successes])

    def equation(theta):
        return successes - total / (1.0 + math.exp(-theta)) - theta / variance

    assert after.mean[0] == pytest.approx(brentq(equation, -60.0, 60.0, xtol=1e-15, rtol=1e-15), rel=1e-9, abs=1e-9)


def test_perfectly_separated_outcomes_give_finite_coefficients():
    after = logistic_posterior(LogisticPrior([0.0, 0.0], 1e-4 * np.eye(2)), [[1.0, -1.0], [1.0, 1.0]], [500, 500], [0, 500])
    assert np.isfinite(after.mean).all()
    assert after.mean[1] > 5.0
    assert np.isfinite(logistic_scores([after], [1.0, 1.0]).sd).all()


def test_a_prior_far_from_the_data_is_left_by_halved_steps():
    """At 30 the likelihood is flat, so that a whole Newton step would overshoot by thousands."""
    after = logistic_posterior(LogisticPrior([30.0], [[1e-6]]), [[1.0]], [100], [50])
    assert after.mean[0] == pytest.approx(0.0, abs=1e-4)


def test_counts_of_replicas_merge_by_addition_and_empty_cells_change_nothing():
    before = LogisticPrior(np.zeros(3), np.eye(3))
    first, second = (np.array([5, 0, 7, 2]), np.array([2, 0, 1, 2])), (np.array([1, 0, 0, 9]), np.array([0, 0, 0, 3]))
    merged = logistic_posterior(before, CELLS, first[0] + second[0], first[1] + second[1])
    apart = logistic_posterior(before, np.vstack([CELLS, CELLS]), [*first[0], *second[0]], [*first[1], *second[1]])
    assert merged.mean == pytest.approx(apart.mean, abs=1e-9)
    assert merged.whitening == pytest.approx(apart.whitening, abs=1e-9)


def test_the_better_arm_for_a_unit_depends_on_the_unit():
    """One arm wins where the feature is set and the other where it is not; two Normals have a closed form."""
    before, cells = LogisticPrior(np.zeros(2), np.eye(2)), [[1.0, 0.0], [1.0, 1.0]]
    arms = [logistic_posterior(before, cells, [100, 100], [60, 20]), logistic_posterior(before, cells, [100, 100], [20, 60])]
    for x, better in (([1.0, 0.0], 0), ([1.0, 1.0], 1)):
        scores = logistic_scores(arms, x)
        chance = best_arm(scores).prob_best
        assert chance[better] > 0.999
        apart = (scores.mean[0] - scores.mean[1]) / math.hypot(*scores.sd)
        assert chance[0] == pytest.approx(norm.cdf(apart), rel=1e-8)


# -------------------------------------------------------------------------------------------------------- refusals

FLAT = LinearPrior([0.0, 0.0], np.eye(2))
KNOWN = linear_posterior(FLAT, linear_sums(np.zeros((0, 2)), []))
ODDS = LogisticPrior([0.0, 0.0], np.eye(2))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: LinearPrior([0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]]), "prior.precision"),
        (lambda: LinearPrior([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "prior.precision"),
        (lambda: LinearPrior([0.0], np.eye(2)), "prior.precision"),
        (lambda: LinearPrior([math.nan], [[1.0]]), "prior.mean"),
        (lambda: LinearPrior(np.zeros(65), np.eye(65)), "prior.mean"),
        (lambda: LinearPrior([0.0], [[1.0]], shape=0.5), "prior.shape"),
        (lambda: LinearPrior([0.0], [[1.0]], scale=math.nan), "prior.scale"),
        (lambda: LogisticPrior([0.0], [[math.inf]]), "prior.precision"),
        (lambda: linear_sums([[1.0, math.nan]], [1.0]), "features"),
        (lambda: linear_sums([1.0], [1.0]), "features"),
        (lambda: linear_sums([[2e6]], [1.0]), "features"),
        (lambda: linear_sums(np.ones((1, 65)), [1.0]), "features"),
        (lambda: linear_sums([[1.0]], [math.inf]), "rewards"),
        (lambda: linear_sums([[1.0]], [1.0, 2.0]), "rewards"),
        (lambda: linear_sums([[1.0]], [1.0], [0.0, 0.0]), "center"),
        (lambda: linear_sums([[1.0]], [1.0]) + linear_sums([[1.0]], [1.0], [2.0]), "center"),
        (lambda: linear_posterior(FLAT, linear_sums([[1.0]], [1.0])), "sums"),
        (lambda: linear_scores([], [1.0]), "posteriors"),
        (lambda: linear_scores([KNOWN], [1.0]), "features"),
        (lambda: linear_scores([KNOWN], [0.0, 0.0]), "features"),
        (lambda: linear_scores([KNOWN], [math.nan, 1.0]), "features"),
        (lambda: logistic_posterior(ODDS, [[1.0]], [1], [1]), "cells"),
        (lambda: logistic_posterior(ODDS, [[1.0, 0.0]], [1, 2], [1]), "total"),
        (lambda: logistic_posterior(ODDS, [[1.0, 0.0]], [-1], [-1]), "total"),
        (lambda: logistic_posterior(ODDS, [[1.0, 0.0]], [1], [2]), "successes"),
        (lambda: logistic_posterior(ODDS, [[1.0, 0.0]], [1], [math.nan]), "successes"),
    ],
)
def test_a_wrong_argument_is_named(call, field):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert [violation.field for violation in caught.value.violations] == [field]


def test_features_that_no_prior_tells_apart_are_refused_and_give_no_nonsense():
    faint = 1e-12 * np.eye(2)
    with pytest.raises(InvalidArgument, match="features"):
        linear_posterior(LinearPrior([0.0, 0.0], faint), linear_sums([[1e6, 1e6]], [1.0]))
    with pytest.raises(InvalidArgument, match="features"):
        logistic_posterior(LogisticPrior([0.0, 0.0], faint), [[1e6, 1e6]], [5], [1])


def test_a_prior_keeps_its_own_copy():
    mean = np.zeros(1)
    before = LinearPrior(mean, [[1.0]])
    mean[0] = 5.0
    assert before.mean[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        before.mean[0] = 1.0
