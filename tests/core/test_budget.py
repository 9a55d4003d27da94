"""How many exposures candidates may ever receive: the bounds themselves, and what they promise about rewards."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.budget import (
    ALPHA,
    NO_LIMIT,
    TOGETHER,
    Limits,
    budget_notes,
    conservative_limit,
    limits,
    loss_limit,
    used_up,
    what_is_known,
)
from allocator.core.confidence import confidence_sequence
from allocator.core.experiment import Arm, Budget, Exposure, Reward, RewardModel
from allocator.core.gate import REQUESTS, UNITS
from allocator.core.record import EXPOSURES, REWARD, Cell, Record
from allocator.core.statistics import MICRO
from allocator.core.tally import tally
from tests.conftest import START, two_arms

THREE = (Arm("old", incumbent=True), Arm("new"), Arm("newer"))


def found_of(experiment, exposures=(), rewards=(), settled=(), granted=None, held=()):
    """The tally of cells: exposures, rewards, settled: (arm, count) or (arm, count, total in counted units), now or long ago."""
    record = Record(uid="0" * 16, experiment=experiment, salt=b"s")
    bucket = experiment.bucket(START)

    def cells(rows, stream, at):
        return [Cell(at, arm, 0, stream, count, *(round(value * MICRO) for value in total or (0,))) for arm, count, *total in rows]

    open_cells = cells(exposures, EXPOSURES, bucket) + cells(rewards, REWARD, bucket)
    past = cells([row for row in settled if len(row) == 2], EXPOSURES, 0) + cells([row for row in settled if len(row) == 3], REWARD, 0)
    found = tally(record, open_cells, past)
    return type(found)(found.open, found.settled, granted=granted or {}, held=frozenset(held))


# ---- what the spec says


def test_without_budgets_there_are_no_limits():
    experiment = two_arms()
    assert limits(experiment, found_of(experiment)) is None


def test_budgets_of_requests_and_units_are_limits_of_each_candidate():
    experiment = two_arms(arms=THREE, exposure=Exposure(budget=Budget(requests=100, units=7)))
    assert limits(experiment, found_of(experiment)) == Limits((None, 100, 100), (None, 7, 7), None)


def test_the_smaller_of_two_budgets_counts():
    experiment = two_arms(exposure=Exposure(budget=Budget(requests=20, loss=30.0)))
    assert limits(experiment, found_of(experiment)).requests == (None, 20)
    experiment = two_arms(exposure=Exposure(budget=Budget(requests=40, loss=30.0)))
    assert limits(experiment, found_of(experiment)).requests == (None, 30)  # nothing is known: each may lose a whole click


# ---- loss


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1e-6, 1.0))
def test_at_the_limit_the_worst_case_is_within_the_budget_and_one_exposure_more_would_pass_it(budget, returned, high):
    limit = loss_limit(budget, returned, high)
    exact = (Fraction(budget) + Fraction(returned)) / Fraction(high)
    assert limit == NO_LIMIT or limit <= exact < limit + 1


def test_what_a_candidate_returned_and_what_is_known_of_the_incumbent_make_room_for_more():
    experiment = two_arms(exposure=Exposure(budget=Budget(loss=50.0)))
    rewards = [(0, 10_000, 1_000.0), (1, 900, 90.0)]
    _, high = confidence_sequence(1_000, 10_000, ALPHA / 2)
    assert limits(experiment, found_of(experiment, [(0, 10_000), (1, 900)], rewards)).requests == (None, math.floor(140 / high))
    worse = [(0, 10_000, 1_000.0), (1, 900, 0.0)]
    assert limits(experiment, found_of(experiment, [(0, 10_000), (1, 900)], worse)).requests == (None, math.floor(50 / high))


def test_a_reward_with_a_range_of_its_own_is_taken_as_a_share_of_it():
    reward = Reward("minutes", RewardModel.GAUSSIAN, low=-20.0, high=60.0)
    experiment = two_arms(reward=reward, exposure=Exposure(budget=Budget(loss=800.0)))
    assert limits(experiment, found_of(experiment)).requests == (None, 10)  # of 80 each
    found = found_of(experiment, [(1, 4)], [(1, 4, 4 * 0.75)])  # four times 40: counted as (40 + 20) / 80
    assert what_is_known(experiment, found).returned.tolist() == [0.0, 3.0]
    assert limits(experiment, found).requests == (None, 13)


def test_with_a_value_for_missing_rewards_a_mean_is_judged_by_whole_cohorts_and_the_loss_by_all_that_came():
    experiment = two_arms(reward=Reward("click", missing=0.25), exposure=Exposure(budget=Budget(loss=5.0)))
    settled = [(0, 100), (0, 40, 40.0), (1, 20), (1, 8, 8.0)]
    known = what_is_known(experiment, found_of(experiment, [(0, 60), (1, 30)], [(0, 30, 30.0), (1, 5, 5.0)], settled))
    assert known.exposures.tolist() == [160, 50]
    assert known.count.tolist() == [100, 20]  # the open cohort reports successes first
    assert known.total.tolist() == [40 + 60 * 0.25, 8 + 12 * 0.25]
    assert known.returned.tolist() == [40 + 60 * 0.25 + 30, 8 + 12 * 0.25 + 5]


def test_a_candidate_never_loses_more_than_its_budget_but_with_probability_alpha():
    """Reward lost against the incumbent's mean, at every exposure of every run; a fair coin would cross 30 in half of them."""
    rng, runs, steps, budget, mean = np.random.default_rng(81), 400, 4_000, 30.0, 0.3
    count, total = np.zeros((runs, 2)), np.zeros((runs, 2))
    lost = np.zeros(runs)
    for step in range(steps):
        if step % 20 == 0:
            _, high = confidence_sequence(total[:, 0], count[:, 0], ALPHA / 2)
            limit = np.array([loss_limit(budget, back, bound) for back, bound in zip(total[:, 1], high, strict=True)])
        arm = ((rng.random(runs) < 0.5) & (count[:, 1] < limit)).astype(int)
        total[np.arange(runs), arm] += rng.random(runs) < np.where(arm == 1, 0.25, mean)
        count[np.arange(runs), arm] += 1
        lost = np.maximum(lost, count[:, 1] * mean - total[:, 1])
    assert (lost > budget).mean() <= ALPHA
    assert count[:, 1].mean() > budget / mean  # more than if nothing were ever learned
    assert lost.mean() > budget / 3


# ---- the conservative constraint

ARMS = st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=5)


@given(st.floats(0.001, 0.999), ARMS, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_split_of_the_limit_and_no_means_within_the_bounds_break_the_constraint(share, arms, chance):
    exposures = [count for count, _, _ in arms]
    low = np.array([min(a, b) for _, a, b in arms])
    high = np.array([max(a, b) for _, a, b in arms])
    limit = conservative_limit(share, exposures, low, high[0], 0)
    everything, spent = sum(exposures), sum(exposures[1:])
    assert limit >= math.floor(share * everything)
    if limit < spent or limit <= share * everything:
        return  # nothing more is granted, or no statistics were needed
    for _ in range(20):
        counts = exposures.copy()
        for _ in range(3):  # the rest, or part of it, to anyone
            arm = chance.randrange(1, len(arms))
            counts[arm] += chance.randrange(0, min(limit, 10**9) - sum(counts[1:]) + 1)
        counts[0] += chance.randrange(0, 1000)
        means = [chance.uniform(a, b) for a, b in zip(low, high, strict=True)]
        means[0] = chance.choice([low[0], high[0], means[0]])
        earned = sum(count * mean for count, mean in zip(counts, means, strict=True))
        assert earned >= (1 - share) * means[0] * sum(counts) - 1e-6 * sum(counts)


def test_the_limit_is_the_largest_that_the_bounds_allow():
    low, high = np.array([0.09, 0.05, 0.0]), np.array([0.11, 0.2, 1.0])
    limit = conservative_limit(0.05, [10_000, 400, 10], low, high[0], 0)

    def slack(granted, mean):
        known = 0.05 * mean * 10_410 + 400 * (0.05 - mean) + 10 * (0.0 - mean)
        return known - (granted - 410) * (mean - 0.0)

    assert min(slack(limit, mean) for mean in np.linspace(0.0, 0.11, 50)) >= 0 > slack(limit + 1, 0.11)


def test_a_candidate_proven_better_is_not_limited():
    assert conservative_limit(0.05, [1000, 1000], [0.1, 0.3], 0.2, 0) == NO_LIMIT


def test_a_price_next_to_nothing_is_no_limit():
    assert conservative_limit(0.5, [0, 1, 0], [0.0, 1.0, 0.0], 5e-324, 0) == NO_LIMIT


def test_max_loss_limits_candidates_together():
    experiment = two_arms(arms=THREE, exposure=Exposure(max_loss=0.05))
    assert limits(experiment, found_of(experiment)) == Limits((None,) * 3, (None,) * 3, 0)
    assert limits(experiment, found_of(experiment, [(0, 1000)])).together == 50


MEANS = np.array([0.10, 0.05, 0.02])
SHARE = 0.05


def thompson(requests, runs, seed, allowed):
    """Least and final share of the incumbent's reward earned in each run. allowed(rng, wanted arm, counts, sums, step) → arm."""
    rng, rows = np.random.default_rng(seed), np.arange(runs)
    counts, sums, least = np.zeros((runs, 3)), np.zeros((runs, 3)), np.full(runs, np.inf)
    for step in range(requests):
        wanted = rng.beta(1 + sums, 1 + counts - sums).argmax(axis=1)
        arm = allowed(rng, wanted, counts, sums, step)
        counts[rows, arm] += 1
        sums[rows, arm] += rng.random(runs) < MEANS[arm]
        least = np.minimum(least, counts @ MEANS / (MEANS[0] * (step + 1)))
    return least, counts @ MEANS / (MEANS[0] * requests)


def test_the_constraint_holds_at_every_request_and_costs_one_percent():
    limit = np.zeros(20)

    def within_limits(rng, wanted, counts, sums, step):
        if step % 10 == 0:  # between two plans the limits are old
            low, high = confidence_sequence(sums, counts, ALPHA / 3)
            limit[:] = [conservative_limit(SHARE, *row, 0) for row in zip(counts, low, high[:, 0], strict=True)]
        return np.where(counts[:, 1:].sum(axis=1) < limit, wanted, 0)

    least, final = thompson(20_000, 20, 82, within_limits)
    assert np.all(least >= 1 - SHARE)
    assert final.mean() == pytest.approx(0.990, abs=0.004)


def test_a_limit_on_expected_exposures_would_break_it():
    def on_average(rng, wanted, counts, sums, step):
        return np.where(rng.random(wanted.size) < SHARE, wanted, 0)  # candidates get at most their share, in expectation

    least, _ = thompson(2_000, 60, 83, on_average)
    assert (least < 1 - SHARE).mean() > 0.1


# ---- used up


def exposed(granted, counted, held=(), budget=100, ago=0):
    experiment = two_arms(exposure=Exposure(budget=Budget(requests=budget)))
    found = found_of(experiment, [(1, counted)] if counted else (), granted={(1, REQUESTS): granted} if granted else {}, held=held)
    return used_up(experiment, found, START + ago)


def test_a_budget_is_used_up_when_all_of_it_was_granted_and_received():
    assert exposed(100, 100) == {1}
    assert exposed(99, 99) == frozenset()
    assert exposed(100, 98) == frozenset()  # two are counted somewhere and not stored yet
    assert exposed(100, 100, held={1}) == frozenset()


def test_what_was_lost_with_a_process_is_given_up_when_nothing_of_it_is_seen_for_a_bucket():
    assert exposed(100, 60, ago=31) == frozenset()
    assert exposed(100, 60, ago=61) == {1}
    assert exposed(100, 60, ago=61, held={1}) == frozenset()


def test_a_larger_budget_is_not_used_up_and_one_of_0_always_is():
    assert exposed(100, 100, budget=101) == frozenset()
    assert exposed(0, 0, budget=0) == {1}


def test_how_much_is_gone_is_said_of_each_budget():
    exposure = Exposure(budget=Budget(requests=100, units=50), max_loss=0.05)
    experiment = two_arms(exposure=exposure)
    made = Limits((None, 100), (None, 50), NO_LIMIT)
    assert budget_notes(experiment, made, {(1, REQUESTS): 60, (1, UNITS): 50, (0, TOGETHER): 61}) == [
        "budget of requests of new: 60 of 100 that it allows now are spent or set aside",
        "budget of units of new: 50 of 50 that it allows now are spent or set aside",
        "requests of all candidates within a loss of 5.0% of the reward: 61 of any number that it allows now are spent or set aside",
    ]
    assert budget_notes(two_arms(), None, {}) == []
