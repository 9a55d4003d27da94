"""Constant bets, margins on a difference and campaigns of declared length, against their definitions and their promises."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from functools import reduce
from operator import add

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.evidence import LOG_ZERO, Bounded, Schedule, freeze_threshold, log_level, no_restarts
from allocator.core.evidence_bets import BetSums, bet_sums, difference_grid, difference_sums, fold_bets, log_bet_evidence
from allocator.core.evidence_labels import warm_up
from allocator.core.evidence_rates import fold, log_evidence, rate_grid, safety_grid
from allocator.core.kernels import evidence as kernels
from allocator.errors import InvalidArgument

LIMITS = st.sampled_from([1e-9, 1e-4, 0.01, 0.2, 0.5, 0.9, 1.0 - 1e-6])
LOSSES = st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0.0, 1.0), max_size=20)
BUCKETS = st.lists(st.integers(0, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=12)


def four_errors(share, runs):
    """Four standard errors of a share of runs, counting at least one run."""
    return 4.0 * math.sqrt(max(share * (1.0 - share), 1.0 / runs) / runs)


# ------------------------------------------------------------------------------------------------- constant bets


@settings(deadline=None, max_examples=60)
@given(limit=LIMITS, losses=LOSSES, above=st.booleans())
def test_bets_are_their_definition(limit, losses, above):
    """Products of 1 + lam (X - limit) at 40 digits; the bets and their weights come from alternatives that other tests check."""
    grid = rate_grid(limit) if above else safety_grid(limit)
    with mpmath.workdps(40):
        p0, total = mpmath.mpf(limit), mpmath.mpf(0)
        for log_weight, log_event, log_clear in zip(grid.log_weight, grid.log_event, grid.log_clear, strict=True):
            # the factor of X is 1 + lam (X - p0) for the lam that gives 1 and 0 their factors; ruin takes the exact one
            lam = (mpmath.exp(log_event) - 1) / (1 - p0) if log_event > LOG_ZERO else -1 / (1 - p0)
            lam = 1 / p0 if log_clear <= LOG_ZERO else lam
            total += mpmath.exp(log_weight) * mpmath.fprod(max(1 + lam * (mpmath.mpf(x) - p0), 0) for x in losses)
        expected = float(mpmath.log(total))
    assert log_bet_evidence(grid, bet_sums(grid, losses)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(limit=LIMITS, exposed=st.integers(0, 400), share=st.floats(0.0, 1.0), above=st.booleans())
def test_bets_on_zeros_and_ones_are_the_evidence_of_counts(limit, exposed, share, above):
    grid, events = (rate_grid if above else safety_grid)(limit), round(share * exposed)
    losses = np.repeat([1.0, 0.0], [events, exposed - events])
    assert log_bet_evidence(grid, bet_sums(grid, losses)) == pytest.approx(log_evidence(grid, exposed, events), rel=1e-10, abs=1e-10)


@given(limit=LIMITS, losses=LOSSES, above=st.booleans())
def test_bets_on_fractions_never_say_less_than_their_counts(limit, losses, above):
    """Each factor is a chord of a convex function (Hoeffding 1963), and the chord lies above it."""
    grid = rate_grid(limit) if above else safety_grid(limit)
    counted = log_evidence(grid, len(losses), min(math.fsum(losses), len(losses)))
    assert log_bet_evidence(grid, bet_sums(grid, losses)) >= counted - 1e-9 * max(1.0, abs(counted))


@given(limit=LIMITS, share=st.floats(0.0, 1.0))
def test_the_factor_of_every_bet_has_mean_one_at_the_limit_and_at_most_one_within_it(limit, share):
    grid = rate_grid(limit)
    spread = min(limit, 1.0 - limit) * share
    low, high = (np.exp(bet_sums(grid, [limit + sign * spread]).log_factors) for sign in (-1.0, 1.0))
    assert 0.5 * (low + high) == pytest.approx(np.ones(low.size), abs=1e-6)
    assert np.all(np.exp(bet_sums(grid, [limit * (1.0 - share)]).log_factors) <= 1.0 + 1e-9)


@settings(deadline=None)
@given(limit=LIMITS, losses=LOSSES, cut=st.integers(0, 20), above=st.booleans())
def test_bets_add_up_over_replicas_and_buckets(limit, losses, cut, above):
    grid = rate_grid(limit) if above else safety_grid(limit)
    whole = bet_sums(grid, losses)
    parts = reduce(add, [bet_sums(grid, losses[cut:]), bet_sums(grid, losses[:cut])])
    assert (parts.outcomes, parts.events) == (whole.outcomes, pytest.approx(whole.events))
    assert parts.log_factors == pytest.approx(whole.log_factors, rel=1e-9, abs=1e-9)


def test_an_outcome_still_to_come_counts_as_none_and_can_only_raise_the_evidence():
    grid = rate_grid(0.05)
    pending = bet_sums(grid, [0.3, 0.2], exposed=10)
    assert pending.log_factors == pytest.approx(bet_sums(grid, [0.3, 0.2] + [0.0] * 8).log_factors, rel=1e-12)
    arrived = bet_sums(grid, [0.3, 0.2, 0.01], exposed=10)
    assert log_bet_evidence(grid, arrived) > log_bet_evidence(grid, pending)


def test_a_billion_pending_outcomes_and_ruined_bets_stay_finite():
    sums = bet_sums(rate_grid(0.01), [], exposed=1e9)
    assert np.isfinite(sums.log_factors).all()
    assert np.isfinite((sums + sums).log_factors).all()
    assert log_bet_evidence(rate_grid(0.01), sums) == pytest.approx(log_evidence(rate_grid(0.01), 1e9, 0), rel=1e-12)


def test_more_losses_than_fit_at_once_add_up_like_two_halves():
    losses = np.random.default_rng(5).random(140_000) * 0.1
    grid = rate_grid(0.05)
    halves = bet_sums(grid, losses[:70_000]) + bet_sums(grid, losses[70_000:])
    assert bet_sums(grid, losses).log_factors == pytest.approx(halves.log_factors, rel=1e-12)


def looks(rng, runs, steps, size, a, b, grid):
    """Evidence after each of `steps` batches of Beta(a, b) losses: of bets, and of counts. Both (runs, steps)."""
    bets, counts = np.empty((runs, steps)), np.empty((runs, steps))
    for run in range(runs):
        batches = rng.beta(a, b, (steps, size))
        level = np.cumsum([bet_sums(grid, batch).log_factors for batch in batches], axis=0)
        bets[run] = np.logaddexp.reduce(grid.log_weight + level, axis=1)
        counts[run] = log_evidence(grid, size * np.arange(1, steps + 1), np.cumsum(batches.sum(axis=1)))
    return bets, counts


def test_bets_on_losses_at_the_limit_raise_a_false_alarm_at_most_alpha_often():
    runs, alpha = 800, 0.05
    bets, _ = looks(np.random.default_rng(61), runs, 60, 5, 0.25, 4.75, rate_grid(0.05))
    assert (bets.max(axis=1) >= -math.log(alpha)).mean() <= alpha + four_errors(alpha, runs)


def test_bets_on_fractions_need_fewer_outcomes_than_their_counts():
    bets, counts = looks(np.random.default_rng(62), 100, 60, 5, 2.0, 18.0, rate_grid(0.05))  # mean 0.10
    assert (bets.max(axis=1) >= freeze_threshold(0.001)).all()
    first = [np.where(level.max(axis=1) >= 7.4, (level >= 7.4).argmax(axis=1), 60) for level in (bets, counts)]
    assert first[0].mean() < 0.7 * first[1].mean()


@settings(deadline=None)
@given(buckets=BUCKETS, limit=LIMITS, schedule=st.sampled_from([*Schedule, Bounded(3)]), cap=st.sampled_from([None, 1.0]))
def test_bets_fold_with_the_same_restarts_as_rates(buckets, limit, schedule, cap):
    grid = rate_grid(limit)
    exposed, events = np.array(buckets, dtype=float).T
    bets = [bet_sums(grid, np.ones(int(x)), exposed=n) for n, x in buckets]
    state, evidence = fold_bets(grid, no_restarts(grid), bets, schedule, cap=cap)
    other, expected = fold(grid, no_restarts(grid), exposed, events, schedule, cap=cap)
    assert evidence == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert replace(state, log_terms=()) == replace(other, log_terms=())
    assert log_level(grid, state) == pytest.approx(evidence[-1], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: bet_sums(rate_grid(0.1), [0.1, 1.1]), "losses"),
        (lambda: bet_sums(rate_grid(0.1), [math.nan]), "losses"),
        (lambda: bet_sums(rate_grid(0.1), [[0.1]]), "losses"),
        (lambda: bet_sums(rate_grid(0.1), [0.1, 0.1], exposed=1), "exposed"),
        (lambda: bet_sums(rate_grid(0.1), [0.1], exposed=math.nan), "exposed"),
        (lambda: fold_bets(rate_grid(0.1), no_restarts(rate_grid(0.1)), []), "buckets"),
        (lambda: fold_bets(rate_grid(0.1), no_restarts(rate_grid(0.1)), [BetSums(1.0, 0.0, np.zeros(3))]), "buckets"),
    ],
)
def test_bets_that_make_no_sense_are_refused_by_name(call, field):
    with pytest.raises(InvalidArgument, match=field):
        call()


# ------------------------------------------------------------------------------------- a margin on a difference


def rows(rng, count, candidate, incumbent, pi):
    """Rows of two arms: events of each and exposures, one cell a row."""
    arm = rng.random(count) < pi
    bad = rng.random(count) < np.where(arm, candidate, incumbent)
    return (arm & bad).astype(float), (~arm & bad).astype(float)


@given(
    margin=st.floats(-0.9, 0.9),
    incumbent=st.floats(0.0, 1.0),
    pi=st.sampled_from([0.001, 0.01, 0.1, 0.5, 0.9, 0.999]),
    below=st.floats(0.0, 1.0),
)
def test_the_mean_of_a_row_is_one_at_the_margin_and_at_most_one_within_it(margin, incumbent, pi, below):
    """The whole law of one row, enumerated: two arms, event or none."""
    grid = difference_grid(margin)
    incumbent = min(max(incumbent, -margin), 1.0 - margin)
    factor = [np.exp(difference_sums(grid, c, i, 1, pi).log_factors) for c, i in ((1, 0), (0, 1), (0, 0))]
    for candidate in (incumbent + margin, max(incumbent + margin - below, 0.0)):
        chance = pi * candidate, (1.0 - pi) * incumbent
        mean = chance[0] * factor[0] + chance[1] * factor[1] + (1.0 - sum(chance)) * factor[2]
        assert np.all(mean <= 1.0 + 1e-9)
        if candidate == incumbent + margin:
            assert mean == pytest.approx(np.ones(32), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    margin=st.sampled_from([-0.2, 0.0, 0.01, 0.3]),
    cells=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 50), st.floats(0.01, 0.99)), min_size=1, max_size=5),
)
def test_difference_sums_are_products_over_rows_in_any_order(margin, cells):
    grid = difference_grid(margin)
    with mpmath.workdps(40):
        delta, total = mpmath.mpf(margin), mpmath.mpf(0)
        for k in range(32):
            stake = mpmath.exp(mpmath.log("1e-4") + k * (mpmath.log("0.99") - mpmath.log("1e-4")) / 31)
            product = mpmath.mpf(1)
            for candidate, incumbent, clear, pi in cells:
                lam = stake / (1 / (1 - mpmath.mpf(pi)) + delta)
                product *= (1 + lam * (1 / mpmath.mpf(pi) - delta)) ** candidate
                product *= (1 - lam * (1 / (1 - mpmath.mpf(pi)) + delta)) ** incumbent * (1 - lam * delta) ** clear
            total += product / 32
        expected = float(mpmath.log(total))
    at_once = difference_sums(grid, *np.array([(c, i, c + i + n, pi) for c, i, n, pi in cells]).T)
    one_by_one = reduce(add, [difference_sums(grid, c, i, c + i + n, pi) for c, i, n, pi in reversed(cells)])
    assert log_bet_evidence(grid, at_once) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert log_bet_evidence(grid, one_by_one) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert (at_once.outcomes, at_once.events) == (sum(c + i + n for c, i, n, _ in cells), sum(c + i for c, i, _, _ in cells))


@given(pi=st.floats(0.01, 0.99), candidate=st.integers(0, 30), incumbent=st.integers(0, 30), clear=st.integers(0, 1000))
def test_at_margin_zero_a_bet_is_the_likelihood_ratio_of_the_labels(pi, candidate, incumbent, clear):
    """Stake c bets on the event ratio r = (c (1 - pi) + pi) / (pi (1 - c)): the algebra of the two kernels."""
    grid = difference_grid(0.0)
    sums = difference_sums(grid, candidate, incumbent, candidate + incumbent + clear, pi)
    ratio = (grid.stake * (1.0 - pi) + pi) / (pi * (1.0 - grid.stake))
    expected = candidate * np.log(ratio) - (candidate + incumbent) * np.log(ratio * pi + 1.0 - pi)
    assert sums.log_factors == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(pi=st.floats(0.05, 0.95), margin=st.floats(-0.5, 0.5), events=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=10))
def test_fractions_of_events_are_conservative(pi, margin, events):
    """The exact factor of a fraction Y is 1 + lam (Y / pi - margin); its logarithm is concave in Y."""
    grid = difference_grid(margin)
    lam = grid.stake / (1.0 / (1.0 - pi) + margin)
    exact = sum(np.log1p(lam * (y / pi - margin)) for y in events)
    used = difference_sums(grid, min(math.fsum(events), len(events)), 0.0, len(events), pi).log_factors
    assert np.all(used <= exact + 1e-9)


def watched(rng, runs, steps, size, candidate, incumbent, margin):
    """Evidence after each batch, while the candidate's share follows what has happened: (runs, steps)."""
    grid, out = difference_grid(margin), np.empty((runs, steps))
    for run in range(runs):
        total, pi, drift = BetSums(0.0, 0.0, np.zeros(32)), 0.3, rng.uniform(0.7, 1.3, steps)
        for step in range(steps):
            mean = incumbent * drift[step]
            mine, other = rows(rng, size, mean + candidate - incumbent, mean, pi)
            total = total + difference_sums(grid, mine.sum(), other.sum(), size, pi)
            pi = min(0.9, max(0.05, pi + (0.05 if mine.sum() <= other.sum() else -0.1)))
            out[run, step] = log_bet_evidence(grid, total)
    return out


def test_a_candidate_at_the_margin_raises_a_false_alarm_at_most_alpha_often_under_adaptive_shares_and_drift():
    runs, alpha = 600, 0.05
    evidence = watched(np.random.default_rng(71), runs, 60, 40, 0.25, 0.20, 0.05)
    assert (evidence.max(axis=1) >= -math.log(alpha)).mean() <= alpha + four_errors(alpha, runs)


def test_a_candidate_beyond_the_margin_is_found():
    evidence = watched(np.random.default_rng(72), 40, 60, 40, 0.45, 0.20, 0.05)
    assert (evidence.max(axis=1) >= freeze_threshold(0.001)).mean() >= 0.9


def test_exchanging_the_arms_proves_safety():
    """Equal rates of 20 %, margin 10 %: that the candidate is less than 10 points worse becomes evident; the other way never."""
    rng, pi = np.random.default_rng(73), 0.5
    mine, other = rows(rng, 4000, 0.2, 0.2, pi)
    safe, harm = difference_grid(-0.1), difference_grid(0.1)
    assert log_bet_evidence(safe, difference_sums(safe, other, mine, 1, 1.0 - pi)) >= math.log(20.0)
    assert log_bet_evidence(harm, difference_sums(harm, mine, other, 1, pi)) < 0.0


@pytest.mark.parametrize(
    ("candidate", "incumbent", "exposed", "pi", "field"),
    [
        (-1, 0, 5, 0.5, "candidate_events"),
        (0, math.nan, 5, 0.5, "incumbent_events"),
        (3, 3, 5, 0.5, "exposed"),
        (1, 1, 5, 0.0, "pi"),
        (1, 1, 5, 1.0, "pi"),
        (1, 1, 5, math.nan, "pi"),
    ],
)
def test_rows_that_no_draw_can_have_made_are_refused_by_name(candidate, incumbent, exposed, pi, field):
    with pytest.raises(InvalidArgument, match=field):
        difference_sums(difference_grid(0.0), candidate, incumbent, exposed, pi)


@pytest.mark.parametrize("margin", [-1.0, 1.0, math.nan, math.inf])
def test_a_margin_that_no_test_can_guard_is_refused(margin):
    with pytest.raises(InvalidArgument, match="margin"):
        difference_grid(margin)


# ------------------------------------------------------------------------------------ campaigns of declared length


@settings(deadline=None, max_examples=60)
@given(buckets=BUCKETS, limit=LIMITS, restarts=st.integers(1, 6))
def test_a_bounded_campaign_is_the_even_average_of_processes_kept_apart(buckets, limit, restarts):
    grid = rate_grid(limit)
    exposed, events = np.array(buckets, dtype=float).T
    _, evidence = fold(grid, no_restarts(grid), exposed, events, Bounded(restarts))
    starts, in_block = [], 0.0
    for b in range(exposed.size):
        if exposed[b] > 0.0:
            if in_block == 0.0:
                starts.append(b)
            in_block = (in_block + exposed[b]) % 1e9 if in_block + exposed[b] < 50.0 else 0.0
        if not starts:
            assert evidence[b] == 0.0
            continue
        each = [log_evidence(grid, exposed[s : b + 1].sum(), events[s : b + 1].sum()) for s in starts[:restarts]]
        expected = np.logaddexp.reduce(each) - math.log(restarts)
        assert evidence[b] == pytest.approx(expected, rel=1e-9, abs=1e-8)


def test_a_declared_length_finds_a_late_change_sooner_and_an_early_one_later():
    grid = rate_grid(0.01)

    def after(good, schedule):
        exposed, events = [50.0] * (good + 1), [0.0] * good + [6.0]
        return fold(grid, no_restarts(grid), exposed, events, schedule)[1][-1]

    assert after(500, Bounded(600)) > after(500, Schedule.WEIGHTED)
    assert after(1, Bounded(600)) < after(1, Schedule.WEIGHTED)


def test_a_bounded_campaign_freezes_a_harmless_candidate_at_most_alpha_often():
    rng, runs, alpha, grid = np.random.default_rng(81), 2000, 0.05, rate_grid(0.05)
    events = rng.binomial(50, 0.05, (runs, 60)).astype(float)
    largest = [fold(grid, no_restarts(grid), [50.0] * 60, row, Bounded(40))[1].max() for row in events]
    assert (np.array(largest) >= -math.log(alpha)).mean() <= alpha + four_errors(alpha, runs)


def test_the_state_of_a_bounded_campaign_is_a_document_and_continues():
    grid, schedule = rate_grid(0.01), Bounded(2)
    state, _ = fold(grid, no_restarts(grid), [50.0, 60.0], [1.0, 2.0], schedule)
    assert json.loads(json.dumps(asdict(state)))["started"] == 2
    _, later = fold(grid, state, [50.0, 50.0], [0.0, 5.0], schedule)
    _, whole = fold(grid, no_restarts(grid), [50.0, 60.0, 50.0, 50.0], [1.0, 2.0, 0.0, 5.0], schedule)
    assert later == pytest.approx(whole[2:], rel=1e-12)


def test_warming_up_leaves_nothing_to_compile():
    warm_up()
    before = len(kernels.fold_increments.signatures)
    grid, difference = rate_grid(0.01), difference_grid(0.0)
    fold_bets(grid, no_restarts(grid), [bet_sums(grid, [0.1, 0.2])], Bounded(5), block=7, cap=2)
    fold_bets(difference, no_restarts(difference), [difference_sums(difference, 1, 0, 5, 0.1)])
    assert len(kernels.fold_increments.signatures) == before


@pytest.mark.parametrize("restarts", [0, -1, 1.5, True, 10**9 + 1])
def test_a_campaign_without_a_length_is_refused(restarts):
    with pytest.raises(InvalidArgument, match="restarts"):
        Bounded(restarts)
