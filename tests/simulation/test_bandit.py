"""The bandit kernels against exact programs, published curves and constants, and plain twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import beta

from allocator.core.kernels import bandit as kernels
from allocator.errors import InvalidArgument
from allocator.simulation import POLICIES, simulate, summarise

# STATISTICS.md 8.3, item 1: exact dynamic programs over (pulls, successes), independent of this code.
EXACT = [
    (0.5, 0.6, 50, 1, 1.0, 31.1342718704, 1.8865728130),
    (0.5, 0.6, 100, 1, 1.0, 67.1469041672, 3.2853095833),
    (0.5, 0.6, 100, 10, 1.0, 66.0072795895, 3.3992720410),
    (0.9, 0.8, 100, 1, 1.0, 26.2108963783, 2.6210896378),
    (0.04, 0.05, 100, 1, 1.0, 53.0385607462, 0.4696143925),
    (0.5, 0.6, 100, 10, 0.2, 19.1890509133, 8.0810949087),
    pytest.param(0.6, 0.5, 100, 10, 0.2, 15.7447522596, 1.5744752260, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("incumbent", "candidate", "horizon", "batch", "cap", "pulls", "regret"), EXACT)
def test_thompson_sampling_agrees_with_the_exact_program(incumbent, candidate, horizon, batch, cap, pulls, regret):
    policy = {"policy": "thompson"} if cap == 1.0 else {"policy": "planned_thompson", "parameter": cap}
    runs = simulate([incumbent, candidate], horizon, **policy, batch=batch, replications=20_000, checkpoints=[horizon], random_state=7)
    for values, expected in ((runs.pulls[:, 0, 1], pulls), (runs.regret[:, 0], regret)):
        found = summarise(values)
        assert abs(found.mean - expected) < 4 * found.sd / math.sqrt(found.runs)


def test_a_plan_from_quadrature_samples_like_a_posterior_draw():
    runs = simulate([0.5, 0.6], 50, "planned_thompson", batch=5, replications=4000, checkpoints=[50], random_state=3)
    drawn = simulate([0.5, 0.6], 50, "thompson", batch=5, replications=4000, checkpoints=[50], random_state=4)
    one, other = summarise(runs.pulls[:, 0, 1]), summarise(drawn.pulls[:, 0, 1])
    assert abs(one.mean - other.mean) < 4 * math.hypot(one.sd, other.sd) / math.sqrt(4000)


def test_shares_and_regret_of_the_tutorial_are_reproduced():
    """Russo et al. 2018, fig. 3.1 and 3.2; values of STATISTICS.md 8.3, item 2, from 20,000 runs, given to their last digit."""
    means = [0.9, 0.8, 0.7]
    marks = [9, 10, 99, 100, 499, 500, 999, 1000]
    runs = simulate(means, 1000, "thompson", replications=20_000, checkpoints=marks, random_state=1)
    shares = {t: (runs.pulls[:, i] - runs.pulls[:, i - 1]) for t, i in ((10, 1), (100, 3), (500, 5), (1000, 7))}
    regret = {t: summarise(pulled @ (0.9 - np.array(means))) for t, pulled in shares.items()}
    for t, expected in ((100, (0.782, 0.166, 0.051)), (1000, (0.979, 0.017, 0.004))):
        for found, share in zip(shares[t].mean(axis=0), expected, strict=True):
            assert abs(found - share) < 4 * math.sqrt(2 * share * (1 - share) / 20_000) + 0.0005  # both are estimates
    for t, expected in ((10, 0.0762), (100, 0.0269), (500, 0.0053), (1000, 0.0025)):
        assert abs(regret[t].mean - expected) < 4 * math.sqrt(2) * regret[t].sd / math.sqrt(20_000) + 0.00005
    total = summarise(runs.regret[:, -1])
    assert abs(total.mean - 11.11) < 4 * math.sqrt(2) * total.sd / math.sqrt(20_000) + 0.005


def test_greedy_gets_stuck_as_the_tutorial_shows():
    runs = simulate([0.9, 0.8, 0.7], 1000, "greedy", replications=20_000, checkpoints=[999, 1000], random_state=2)
    shares = (runs.pulls[:, 1] - runs.pulls[:, 0]).mean(axis=0)
    for found, share in zip(shares, (0.464, 0.325, 0.211), strict=True):
        assert abs(found - share) < 4 * math.sqrt(2 * share * (1 - share) / 20_000) + 0.0005
    total = summarise(runs.regret[:, -1])
    assert abs(total.mean - 74.8) < 4 * math.sqrt(2) * total.sd / math.sqrt(20_000) + 0.05


def lai_robbins(means):
    """Sum of gaps over divergences from the best arm: the least possible slope of regret against ln t (Lai & Robbins 1985)."""
    best = max(means)
    return sum((best - m) / (m * math.log(m / best) + (1 - m) * math.log((1 - m) / (1 - best))) for m in means if m < best)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("means", "constant"), [((0.9, 0.8), 2.252099698524528), ((0.5, *(0.4,) * 9), 44.6971465482791)], ids=["two arms", "ten arms"]
)
def test_regret_grows_as_slowly_as_any_can(means, constant):
    assert lai_robbins(means) == pytest.approx(constant, rel=1e-12)
    marks = np.unique(np.geomspace(1e4, 3e5, 20).astype(int))
    runs = simulate(means, 300_000, "thompson", replications=200, checkpoints=marks, random_state=5, workers=2)
    slope = np.polyfit(np.log(marks), runs.regret.mean(axis=0), 1)[0]
    assert 0.7 < slope / constant < 1.1


@pytest.mark.parametrize("policy", ["ucb1", "kl_ucb"])
def test_an_optimist_pulls_the_arm_with_the_highest_index(policy):
    """Against the definitions, with the divergence inverted by scipy."""
    runs = simulate([0.3, 0.5, 0.55], 400, policy, replications=1, path=True, random_state=11)
    seen, good = np.zeros(3), np.zeros(3)
    for t, (arm, paid) in enumerate(zip(runs.arms[0], runs.paid[0], strict=True)):
        if t < 3:
            assert arm == t
        else:
            mean = good / seen
            if policy == "ucb1":
                index = mean + np.sqrt(2 * math.log(t + 1) / seen)
            else:
                index = np.array([upper(m, math.log(t + 1) / n) for m, n in zip(mean, seen, strict=True)])
            assert index[arm] >= index.max() - 1e-8
        seen[arm] += 1
        good[arm] += paid


@pytest.mark.parametrize("mean", [0.0, 1e-3, 0.1, 0.5, 2 / 3, 0.99, 1.0])
def test_the_index_of_kl_ucb_solves_its_equation_for_few_pulls_and_for_many(mean):
    for n in (1, 2, 3, 10, 1000, 10**6):
        for t in (2, 6, 1000, 10**6):
            assert kernels._kl_upper(mean, math.log(t) / n) == pytest.approx(upper(mean, math.log(t) / n), abs=1e-9)


def upper(mean, level):
    """The largest q with kl(mean, q) = level."""

    def over(q):
        found = (1 - mean) * math.log((1 - mean) / (1 - q)) if mean < 1 else 0.0
        return found + (mean * math.log(mean / q) if mean > 0 else 0.0) - level

    return 1.0 if mean == 1 or over(1 - 1e-15) < 0 else brentq(over, max(mean, 1e-15), 1 - 1e-15, xtol=1e-14)


def test_exponential_weights_are_those_of_the_definition():
    gain, gamma, share = np.array([3.0, 400.0, 900.0]), 0.3, np.empty(3)
    kernels._exp3(gain, gamma, share)
    weights = np.exp(gamma / 3 * (gain - gain.max()))
    assert share == pytest.approx((1 - gamma) * weights / weights.sum() + gamma / 3, rel=1e-12)


@pytest.mark.parametrize("loss", [[0.0, 0.0], [3.0, 1.0, 2.0], [0.0, 1e6, 5.0, 5.0]])
def test_tsallis_weights_solve_their_equation(loss):
    loss, t, share = np.array(loss), 99, np.empty(len(loss))
    kernels._tsallis(loss, t, share)
    eta = 2 / math.sqrt(t + 1)
    root = brentq(lambda x: (4 / (eta * (loss - x)) ** 2).sum() - 1, loss.min() - 1e4, loss.min() - 1e-6, xtol=1e-13)
    assert share == pytest.approx(4 / (eta * (loss - root)) ** 2, rel=1e-6)
    assert share.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.2, 3.0), (1.0, 1.0), (2.5, 40.0), (3000.0, 5.0)])
def test_draws_follow_the_beta_distribution(a, b):
    """P(X > median of a point mass): an arm against one whose posterior is as good as known, at five quantiles."""
    for q in (0.05, 0.3, 0.5, 0.8, 0.99):
        point = beta.ppf(q, a, b)
        arms = np.empty(40_000, np.int64)
        kernels.best_draws(np.random.default_rng(3), np.array([a, point * 1e11]), np.array([b, (1 - point) * 1e11]), arms)
        assert abs(arms.mean() - q) < 4 * math.sqrt(q * (1 - q) / arms.size)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_meets_the_same_world(policy):
    """The reward of (replication, step, arm) is a function of these alone, so a path never disagrees with the oracle's."""
    horizon = 200
    runs = simulate([0.4, 0.6], horizon, policy, replications=3, path=True, random_state=9)
    each = [simulate([1.0 * (a == 0), 1.0 * (a == 1)], horizon, "oracle", replications=3, path=True, random_state=9) for a in (0, 1)]
    assert all((found.arms == a).all() for a, found in enumerate(each))
    worlds = [simulate(rates, horizon, "oracle", replications=3, path=True, random_state=9) for rates in ([0.4, 0.0], [0.0, 0.6])]
    truth = np.stack([world.paid for world in worlds])
    assert (runs.paid == np.take_along_axis(truth, runs.arms[None].astype(int), axis=0)[0]).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_books_balance_for_every_policy(policy):
    means = np.array([0.2, 0.5, 0.4])
    runs = simulate(means, 300, policy, replications=4, path=True, checkpoints=[1, 10, 300], random_state=2, batch=3)
    for place, t in enumerate(runs.checkpoints):
        counts = np.stack([(runs.arms[:, :t] == arm).sum(axis=1) for arm in range(3)], axis=1)
        assert (runs.pulls[:, place] == counts).all()
        assert runs.regret[:, place] == pytest.approx(counts @ (0.5 - means), abs=1e-9)
        assert (runs.rewards[:, place] == runs.paid[:, :t].sum(axis=1)).all()


def test_rates_may_change_at_every_step():
    means = np.zeros((100, 2))
    means[:50, 0] = means[50:, 1] = 1.0
    runs = simulate(means, 100, "oracle", replications=2, path=True)
    assert (runs.arms[:, :50] == 0).all()
    assert (runs.arms[:, 50:] == 1).all()
    assert runs.rewards[:, -1].tolist() == [100, 100]


def test_outcomes_are_learned_from_at_the_end_of_their_batch_only():
    """A greedy policy cannot leave its first draw's arm for a sure one before it has heard of it."""
    runs = simulate([0.0, 1.0], 40, "greedy", batch=20, replications=200, path=True, random_state=6, prior=([5.0, 1.0], [1.0, 1.0]))
    assert (runs.arms[:, :20] == 0).all()
    assert (runs.arms[:, 20:] == 1).all()


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_nothing(workers):
    one = simulate([0.4, 0.5], 100, "top_two", replications=11, random_state=5, path=True)
    many = simulate([0.4, 0.5], 100, "top_two", replications=11, random_state=5, path=True, workers=workers)
    assert (one.arms == many.arms).all()
    assert (one.regret == many.regret).all()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"means": [0.5, 1.2]}, "means"),
        ({"means": [0.5, math.nan]}, "means"),
        ({"means": [[0.5, 0.5]] * 3}, "means"),
        ({"horizon": 0}, "horizon"),
        ({"policy": "thomson"}, "policy"),
        ({"policy": "exp3", "parameter": 0.0}, "parameter"),
        ({"parameter": 0.5}, "parameter"),
        ({"batch": 0}, "batch"),
        ({"prior": (0.0, 1.0)}, "prior"),
        ({"checkpoints": [5, 5]}, "checkpoints"),
        ({"checkpoints": [11]}, "checkpoints"),
        ({"replications": 0}, "replications"),
        ({"workers": 0}, "workers"),
        ({"random_state": -1}, "random_state"),
        ({"random_state": 1.5}, "random_state"),
        ({"means": "high"}, "means"),
        ({"means": ["0.5", "0.6"]}, "means"),
        ({"means": [[0.5, 0.6], [0.5]]}, "means"),
        ({"means": None}, "means"),
        ({"means": 0.5}, "means"),
        ({"means": [[[0.5, 0.6]]]}, "means"),
        ({"prior": "flat"}, "prior"),
        ({"prior": (1.0,)}, "prior"),
        ({"prior": (math.nan, 1.0)}, "prior"),
        ({"prior": [[1.0, 1.0], [1.0]]}, "prior"),
        ({"policy": "exp3", "parameter": "x"}, "parameter"),
        ({"policy": "exp3", "parameter": math.nan}, "parameter"),
        ({"policy": ["exp3"]}, "policy"),
        ({"checkpoints": "all"}, "checkpoints"),
        ({"checkpoints": [1.5, 2]}, "checkpoints"),
        ({"backend": "threads"}, "backend"),
        ({"backend": 2}, "backend"),
    ],
)
def test_what_is_not_allowed_is_named(change, field):
    with pytest.raises(InvalidArgument) as caught:
        simulate(**{"means": [0.5, 0.6], "horizon": 10, **change})
    (violation,) = caught.value.violations
    assert violation.field == field
    assert violation.message.startswith("got ")
    assert " allowed" in violation.message or "no parameter" in violation.message
