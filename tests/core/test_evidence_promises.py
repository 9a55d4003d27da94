"""What evidence promises, measured: chances of a false freeze and outcomes until a true one.

Expectations are exact dynamic programs (`exact_freeze`) where one exists; they in turn reproduce the tables that the
project publishes. Simulations of our own code have to agree with them within four standard errors. Seeds are fixed.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest

from allocator.core.evidence import Schedule, detector_threshold, no_restarts, persistence_cap
from allocator.core.evidence_labels import LabelSums, label_grid, label_sums, log_label_evidence
from allocator.core.evidence_rates import fold_many, log_evidence, rate_grid
from allocator.core.evidence_streams import log_average

from . import exact_freeze as exact

NATS = math.log(1000.0)  # alpha 0.001


def four_errors(share, runs):
    """Four standard errors of a share of runs, counting at least one run."""
    return 4.0 * math.sqrt(max(share * (1.0 - share), 1.0 / runs) / runs)


def plain_stops(limit, rate, log_threshold, runs, horizon, seed):
    """Outcome at which each run reaches the threshold, looking after every outcome; horizon + 1 if none."""
    rng, grid = np.random.default_rng(seed), rate_grid(limit)
    stops = np.full(runs, horizon + 1)
    alive, before, start = np.arange(runs), np.zeros(runs), 0
    while alive.size and start < horizon:
        size = min(max(start, 200), horizon - start)
        events = before[alive, None] + np.cumsum(rng.random((alive.size, size)) < rate, axis=1)
        reached = log_evidence(grid, np.arange(start + 1, start + size + 1), events) >= log_threshold
        hit = reached.any(axis=1)
        stops[alive[hit]] = start + 1 + reached[hit].argmax(axis=1)
        before[alive] = events[:, -1]
        alive, start = alive[~hit], start + size
    return stops


def restart_stops(grids, states, rate, schedule, log_threshold, horizon, rng, bucket=1):
    """As plain_stops, for streams with restarts, one bucket after another; horizon is in outcomes."""
    runs, stops = len(grids), np.full(len(grids), horizon + 1)
    alive, start, states = np.arange(runs), 0, list(states)
    while alive.size and start < horizon:
        buckets = max(min(500, horizon - start) // bucket, 1)
        events = rng.binomial(bucket, rate, (alive.size, buckets)).astype(float)
        after, evidence = fold_many(
            [grids[i] for i in alive],
            [states[i] for i in alive],
            np.full(events.shape, float(bucket)),
            events,
            schedule,
        )
        reached = evidence >= log_threshold
        hit = reached.any(axis=1)
        stops[alive[hit]] = start + bucket * (1 + reached[hit].argmax(axis=1))
        for i, state in zip(alive, after, strict=True):
            states[i] = state
        alive, start = alive[~hit], start + buckets * bucket
    return stops


# ------------------------------------------------------------------- the oracle reproduces the published tables


@lru_cache
def freeze_bounds(limit, log_threshold, horizon):
    return exact.boundary(exact.freeze_rule(limit), log_threshold, horizon)


@pytest.mark.parametrize(
    ("rate", "mean", "median", "ninth"),
    [(0.02, 2239, 2065, 3903), (0.03, 662, 602, 1169), (0.05, 215, 191, 387), (0.2, 22.4, 18, 42), (1.0, 2, 2, 2)],
)
def test_outcomes_until_a_freeze_are_as_published(rate, mean, median, ninth):
    law = exact.stopping_law(freeze_bounds(0.01, NATS, 30_000), rate)
    assert exact.mean(law) == pytest.approx(mean, abs=0.5 if mean > 100 else 0.05)
    assert (exact.quantile(law, 0.5), exact.quantile(law, 0.9)) == (median, ninth)


@pytest.mark.parametrize(
    ("limit", "alpha", "rates", "means"),
    [
        (0.01, 1e-2, (0.05, 0.02, 1.0), (155, 1595, 2)),
        (0.01, 1e-4, (0.05, 0.02, 1.0), (274, 2874, 3)),
        (0.01, 1e-6, (0.05, 0.02, 1.0), (390, 4130, 4)),
        (0.001, 1e-3, (0.002, 0.005, 0.02, 1.0), (22_677, 2190, 236, 2)),
        (0.05, 1e-3, (0.075, 0.1, 0.2, 1.0), (1539, 420, 62, 3)),
        (0.2, 1e-3, (0.25, 0.3, 0.4, 1.0), (1318, 309, 81, 6)),
    ],
)
def test_other_limits_and_levels_take_the_published_number_of_outcomes(limit, alpha, rates, means):
    bounds = freeze_bounds(limit, -math.log(alpha), 200_000 if limit == 0.001 else 30_000)
    assert [exact.mean(exact.stopping_law(bounds, rate)) for rate in rates] == pytest.approx(means, abs=0.5)


def test_the_chance_of_a_false_freeze_stays_below_alpha_for_a_million_outcomes():
    chance = np.cumsum(exact.stopping_law(freeze_bounds(0.01, NATS, 10**6), 0.01))
    assert chance[[10**3, 10**4, 10**5, 10**6]] == pytest.approx([3.4e-4, 5.0e-4, 5.3e-4, 6.6e-4], abs=0.6e-5)
    assert chance[-1] < 1e-3
    safer = np.cumsum(exact.stopping_law(freeze_bounds(0.01, NATS, 10**6)[: 10**5], 0.008))
    assert safer[-1] == pytest.approx(1.1e-4, abs=0.5e-5)


def test_a_z_test_at_every_outcome_freezes_one_harmless_candidate_in_seven():
    for start, published in ((1, [0.128, 0.140, 0.150]), (100, [0.033, 0.048, 0.059])):
        law = exact.stopping_law(exact.naive_z_boundary(0.01, 1e-3, 10**5, start), 0.01)
        assert np.cumsum(law)[[10**3, 10**4, 10**5]] == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize(
    ("ratio", "pi", "published"),
    [
        (1.0, 0.01, (2259, 220, 24, 3.2)),
        (1.0, 0.05, (2375, 235, 27, 4.2)),
        (1.0, 0.10, (2529, 254, 30, 4.4)),
        (1.0, 0.50, (4883, 548, 76, 12.6)),
        (1.2, 0.05, (4211, 284, 29, 4.2)),
    ],
)
def test_a_relative_guardrail_takes_the_published_candidate_exposures(ratio, pi, published):
    """Incumbent at 1 %, candidate at 2, 5, 20, 100 %. By Wald, exposures are event rows times exposures per row."""
    bounds = exact.boundary(exact.label_rule(ratio, pi), NATS, 40_000)
    for rate, expected in zip((0.02, 0.05, 0.2, 1.0), published, strict=True):
        per_row = pi * rate + (1.0 - pi) * 0.01
        rows = exact.mean(exact.stopping_law(bounds, pi * rate / per_row))
        assert rows * pi / per_row == pytest.approx(expected, abs=0.5 if expected > 20 else 0.05)


@pytest.mark.parametrize(
    ("alpha", "means", "truncated", "false"),
    [(0.05, (506, 698, 2330), 12_145, 0.0467), (0.01, (759, 1056, 3519), 17_558, 0.0092)],
)
def test_proof_of_safety_takes_the_published_number_of_outcomes(alpha, means, truncated, false):
    """The last figure is the mean over 40,000 outcomes at most; without that bound it is 12,224 and 17,845."""
    bounds = exact.boundary(exact.safety_rule(0.01), -math.log(alpha), 120_000)
    laws = [exact.stopping_law(bounds, 1.0 - rate) for rate in (0.001, 0.002, 0.005, 0.0075)]
    assert [exact.mean(law) for law in laws[:3]] == pytest.approx(means, abs=0.5)
    within = laws[3][:40_001]
    assert (within * np.arange(40_001)).sum() + 40_000 * (1.0 - within.sum()) == pytest.approx(truncated, abs=1.0)
    assert exact.stopping_law(bounds, 0.99)[:40_001].sum() == pytest.approx(false, abs=5e-5)


# ------------------------------------------------------------------------------ our code agrees with the oracle


@pytest.mark.parametrize(("rate", "runs"), [(0.02, 400), (0.05, 2000), (0.2, 4000), (1.0, 10)])
def test_our_monitor_freezes_when_the_oracle_does(rate, runs):
    stops = plain_stops(0.01, rate, NATS, runs, 30_000, seed=11)
    law = exact.stopping_law(freeze_bounds(0.01, NATS, 30_000), rate)
    assert stops.mean() == pytest.approx(exact.mean(law), abs=4.0 * stops.std() / math.sqrt(runs) + 1e-6)
    below = (stops <= exact.quantile(law, 0.5)).mean()
    assert below == pytest.approx(law[: exact.quantile(law, 0.5) + 1].sum(), abs=four_errors(0.5, runs))


@pytest.mark.parametrize("alpha", [0.1, 0.02])
def test_our_monitor_freezes_harmless_candidates_as_rarely_as_the_oracle_says(alpha):
    runs, horizon = 4000, 2000
    stopped = (plain_stops(0.01, 0.01, -math.log(alpha), runs, horizon, seed=12) <= horizon).mean()
    expected = exact.stopping_law(freeze_bounds(0.01, -math.log(alpha), horizon), 0.01).sum()
    assert stopped == pytest.approx(expected, abs=four_errors(expected, runs))
    assert expected < alpha


# ----------------------------------------------------------------------------------------------------- restarts

# mean outcomes from a change for the worse, after this many at half the limit: (before, rate, schedule, published)
AFTER_A_CHANGE = [
    (0, 0.05, Schedule.WEIGHTED, 231),
    (0, 1.0, Schedule.WEIGHTED, 3),
    (0, 0.05, Schedule.SHIRYAEV_ROBERTS, 279),
    (0, 0.05, Schedule.CUSUM, 285),
    (1000, 0.05, Schedule.WEIGHTED, 349),
    (1000, 1.0, Schedule.WEIGHTED, 4),
    (1000, 0.05, Schedule.SHIRYAEV_ROBERTS, 267),
    (1000, 0.05, Schedule.CUSUM, 276),
]
LATE_CHANGE = [
    (10_000, 0.05, Schedule.WEIGHTED, 425),
    (10_000, 1.0, Schedule.WEIGHTED, 4),
    (10_000, 0.05, Schedule.SHIRYAEV_ROBERTS, 263),
    (10_000, 0.05, Schedule.CUSUM, 282),
    (100_000, 0.02, Schedule.WEIGHTED, 5104),
    (100_000, 0.05, Schedule.WEIGHTED, 512),
    (100_000, 0.2, Schedule.WEIGHTED, 53),
    (100_000, 1.0, Schedule.WEIGHTED, 5),
    (100_000, 0.02, Schedule.SHIRYAEV_ROBERTS, 2157),
    (100_000, 0.05, Schedule.SHIRYAEV_ROBERTS, 261),
    (100_000, 0.2, Schedule.SHIRYAEV_ROBERTS, 30),
    (100_000, 0.02, Schedule.CUSUM, 2813),
    (100_000, 0.05, Schedule.CUSUM, 277),
    (100_000, 0.2, Schedule.CUSUM, 30),
]


@lru_cache
def after_good_history(before, schedule, runs):
    """States of streams after `before` outcomes at half of a one percent limit; cheap to start many changes from."""
    rng, grids = np.random.default_rng(before), [rate_grid(0.01)] * runs
    states = tuple(no_restarts(grid) for grid in grids)
    for _ in range(0, before, 1000):
        events = (rng.random((runs, 1000)) < 0.005).astype(float)
        states, _ = fold_many(grids, states, np.ones(events.shape), events, schedule)
    return states


def check_change(before, rate, schedule, published, runs):
    threshold = NATS if schedule is Schedule.WEIGHTED else detector_threshold(1e6)
    rng = np.random.default_rng(before + 1)
    states = after_good_history(before, schedule, runs)
    stops = restart_stops([rate_grid(0.01)] * runs, states, rate, schedule, threshold, 60_000, rng)
    assert stops.max() <= 60_000
    # the published means are of 300 runs at least: both have an error, and theirs is rounded
    error = 4.0 * stops.std() * math.sqrt(1.0 / runs + 1.0 / 300.0)
    assert stops.mean() == pytest.approx(published, abs=error + 0.6)


@pytest.mark.parametrize(("before", "rate", "schedule", "published"), AFTER_A_CHANGE)
def test_a_change_after_a_short_history_is_seen_as_fast_as_published(before, rate, schedule, published):
    check_change(before, rate, schedule, published, runs=500)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "rate", "schedule", "published"), LATE_CHANGE)
def test_a_change_after_a_long_history_is_seen_as_fast_as_published(before, rate, schedule, published):
    check_change(before, rate, schedule, published, runs=300)


@pytest.mark.parametrize(
    ("before", "rate", "published"),
    [(0, 0.05, 220), (1000, 0.05, 631), (10_000, 0.05, 2601), (100_000, 0.05, 16_279), (100_000, 1.0, 650)],
)
def test_without_restarts_a_good_history_is_a_debt(before, rate, published):
    """The oracle alone; the published figures are simulated, hence the margin of 3 %."""
    law = exact.stopping_law(freeze_bounds(0.01, NATS, 160_000), rate, before, 0.005)
    law[: before + 1] = 0.0
    assert (law * np.arange(law.size)).sum() / law.sum() - before == pytest.approx(published, rel=0.03)


def false_freezes(alpha, runs, horizon, seed, bucket):
    rng, grids = np.random.default_rng(seed), [rate_grid(0.01)] * runs
    states = [no_restarts(grid) for grid in grids]
    stops = restart_stops(grids, states, 0.01, Schedule.WEIGHTED, -math.log(alpha), horizon, rng, bucket=bucket)
    return (stops <= horizon).mean()


def test_a_harmless_candidate_is_frozen_at_most_alpha_often_with_restarts():
    assert 0.0 < false_freezes(0.1, 1000, 5000, 21, bucket=1) <= 0.1 + four_errors(0.1, 1000)


@pytest.mark.slow
def test_a_harmless_candidate_is_frozen_at_most_alpha_often_over_a_hundred_thousand_outcomes():
    assert false_freezes(0.05, 2000, 100_000, 22, bucket=10) <= 0.05 + four_errors(0.05, 2000)
    assert false_freezes(0.001, 4000, 100_000, 23, bucket=50) <= 0.001 + four_errors(0.001, 4000)


@pytest.mark.parametrize("schedule", [Schedule.SHIRYAEV_ROBERTS, Schedule.CUSUM])
def test_a_detector_warns_falsely_no_more_than_once_in_its_run_length(schedule):
    """Run lengths cut off at the horizon have a smaller mean, so the comparison is on the safe side."""
    promised, runs, rng = 2000.0, 400, np.random.default_rng(24)
    grids = [rate_grid(0.05)] * runs
    states = [no_restarts(grid) for grid in grids]
    stops = restart_stops(grids, states, 0.05, schedule, detector_threshold(promised), 20_000, rng)
    assert (stops <= 20_000).mean() > 0.1  # it does warn
    assert stops.mean() - 4.0 * stops.std() / math.sqrt(runs) >= promised


def persistence_history(runs, seed):
    """Buckets of 100 outcomes, three to agree; 5,000 outcomes at half the limit, folded with the cap and without."""
    rng, cap = np.random.default_rng(seed), persistence_cap(1e-3, 3)
    good = rng.binomial(100, 0.005, (runs, 50)).astype(float)
    grids = [rate_grid(0.01)] * runs
    new, size = [no_restarts(grid) for grid in grids], np.full(good.shape, 100.0)
    return rng, {c: fold_many(grids, new, size, good, caps=[c] * runs)[0] for c in (cap, None)}


@pytest.mark.parametrize("blip", [[50], [100], [30, 30, 30]])
def test_with_persistence_a_blip_never_freezes_and_without_it_always_does(blip):
    runs = 200
    _, histories = persistence_history(runs, 25)
    events = np.tile(np.array(blip + [0] * 10, dtype=float), (runs, 1))
    for cap, states in histories.items():
        _, evidence = fold_many([rate_grid(0.01)] * runs, states, np.full(events.shape, 100.0), events, caps=[cap] * runs)
        assert (evidence.max(axis=1) >= NATS).mean() == (1.0 if cap is None else 0.0)


@pytest.mark.parametrize(("rate", "bare", "capped"), [(1.0, 4, 375), (0.05, 399, 693)])
def test_persistence_delays_a_real_breach_as_little_as_published(rate, bare, capped):
    """Looks come after every outcome, so the open bucket is folded at each of its hundred sizes."""
    runs = 100
    rng, histories = persistence_history(runs, 26)
    for cap, states in histories.items():
        stops, alive, states = np.full(runs, 10**6), np.arange(runs), list(states)
        for start in range(0, 5000, 100):
            events = np.cumsum(rng.random((alive.size, 100)) < rate, axis=1).astype(float)
            before = [states[run] for run in alive for _ in range(100)]
            size = np.tile(np.arange(1.0, 101.0), alive.size)[:, None]
            after, evidence = fold_many([rate_grid(0.01)] * len(before), before, size, events.reshape(-1, 1), caps=[cap] * len(before))
            reached = evidence.reshape(-1, 100) >= NATS
            hit = reached.any(axis=1)
            stops[alive[hit]] = start + 1 + reached[hit].argmax(axis=1)
            for row, run in enumerate(alive):
                states[run] = after[row * 100 + 99]
            alive = alive[~hit]
            if not alive.size:
                break
        error = 4.0 * stops.std() * math.sqrt(1.0 / runs + 1.0 / 300.0)
        assert stops.mean() == pytest.approx(bare if cap is None else capped, abs=error + 0.6)


# -------------------------------------------------------------------------------------------------- label kernel


@pytest.mark.parametrize("incident", [False, True])
def test_a_relative_guardrail_survives_adaptive_weights_and_common_incidents(incident):
    """Weights chase the arm that looks better; at half time the rate of both arms may rise tenfold."""
    runs, steps, size, alpha = 3000, 40, 500, 0.05
    rng, grid = np.random.default_rng(31), label_grid(1.0)
    shares = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5])
    one = [label_sums(grid, 1.0, 0.0, pi).log_denominators for pi in shares]  # of one event, whoever had it
    candidate, everything, denominators = np.zeros(runs), np.zeros(runs), np.zeros((runs, grid.log_weight.size))
    seen, choice = np.zeros((2, runs, 2)), np.full(runs, 3)
    fired = np.zeros(runs, dtype=bool)
    for step in range(steps):
        rate = 0.1 if incident and step >= steps // 2 else 0.01
        mine = rng.binomial(size, shares[choice])
        bad, others = rng.binomial(mine, rate), rng.binomial(size - mine, rate)
        seen += np.stack([np.stack([mine, bad], axis=1), np.stack([size - mine, others], axis=1)])
        candidate, everything = candidate + bad, everything + bad + others
        denominators += (bad + others)[:, None] * np.array(one)[choice]
        fired |= log_label_evidence(grid, LabelSums(candidate, everything, denominators)) >= -math.log(alpha)
        better = (seen[0, :, 1] + 1) / (seen[0, :, 0] + 2) < (seen[1, :, 1] + 1) / (seen[1, :, 0] + 2)
        choice = np.clip(choice + np.where(better, 1, -1), 0, shares.size - 1)
    assert fired.mean() <= alpha + four_errors(alpha, runs)
    assert fired.mean() > 0.0


def test_an_average_of_correlated_streams_freezes_harmless_candidates_at_most_alpha_often():
    """Two segments and their union: as dependent as streams come."""
    runs, looks, alpha, rng, grid = 3000, 40, 0.1, np.random.default_rng(32), rate_grid(0.02)
    events = np.cumsum(rng.binomial(50, 0.02, (2, runs, looks)), axis=2).astype(float)
    exposed = 50.0 * np.arange(1, looks + 1)
    segments = [log_evidence(grid, exposed, part) for part in events]
    overall = log_evidence(grid, 2.0 * exposed, events.sum(axis=0))
    average = log_average(np.stack([overall, *segments]).reshape(3, -1), [0.5, 0.25, 0.25]).reshape(runs, looks)
    frozen = (average.max(axis=1) >= -math.log(alpha)).mean()
    assert 0.0 < frozen <= alpha + four_errors(alpha, runs)


# ------------------------------------------------------------------------------------------------- one per unit


def test_repeated_outcomes_of_one_unit_are_why_a_unit_counts_once():
    """1 % of units always fail, 20 requests each: harmless at a 1 % limit, and frozen in every other run."""
    runs, units, rng, grid = 1000, 1000, np.random.default_rng(41), rate_grid(0.01)
    failing = np.cumsum(rng.random((runs, units)) < 0.01, axis=1).astype(float)
    number = np.arange(1.0, units + 1.0)
    each_request = (log_evidence(grid, 20.0 * number, 20.0 * failing) >= NATS).any(axis=1).mean()
    first_only = (log_evidence(grid, number, failing) >= NATS).any(axis=1).mean()
    assert each_request == pytest.approx(0.56, abs=four_errors(0.56, runs))
    assert first_only <= 0.001 + four_errors(0.001, runs)
