"""Evidence against its definitions (mpmath), its published and computed values, and the laws it has to obey."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.evidence import (
    LOG_ZERO,
    LabelSums,
    Restarts,
    Schedule,
    detector_threshold,
    discoveries,
    fold,
    fold_labels,
    fold_many,
    freeze_threshold,
    label_grid,
    label_sums,
    log_average,
    log_evidence,
    log_label_evidence,
    log_level,
    log_safety,
    no_restarts,
    persistence_cap,
    rate_grid,
    safety_grid,
    stack,
    stream_weights,
    to_blame,
    two_sided_label_grid,
    warm_up,
)
from allocator.errors import InvalidArgument

LIMITS = st.sampled_from([1e-9, 1e-4, 0.01, 0.2, 0.5, 0.9, 1.0 - 1e-6])
BUCKETS = st.lists(st.integers(0, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=12)


def mp_log_evidence(limit, exposed, events, above=True):
    """The mixture as its definition reads, to 40 digits."""
    with mpmath.workdps(40):
        p0, n, x = mpmath.mpf(limit), mpmath.mpf(exposed), mpmath.mpf(events)
        logit = mpmath.log(p0 / (1 - p0))
        if above:
            highest = 1 - min(mpmath.mpf("0.001"), (1 - p0) / 10)
            far = mpmath.log(highest / (1 - highest)) - logit
            points = max(31, 1 + math.ceil((far - mpmath.log(mpmath.mpf("1.1"))) / mpmath.mpf("0.4")))
        else:
            far, points = mpmath.log(100), 31
        near = mpmath.log(mpmath.mpf("1.1"))
        shifts = [near + k * (far - near) / (points - 1) for k in range(points)]
        weights = [mpmath.exp(-u / 2) for u in shifts]
        total = mpmath.mpf(0)
        for u, w in zip(shifts, weights, strict=True):
            q = 1 / (1 + mpmath.exp(-(logit + u if above else logit - u)))
            total += mpmath.mpf("0.9") * w / sum(weights) * (q / p0) ** x * ((1 - q) / (1 - p0)) ** (n - x)
        if above and n == x:
            total += mpmath.mpf("0.1") * p0 ** (-x)
        if not above and x == 0:
            total += mpmath.mpf("0.1") * (1 - p0) ** (-n)
        return float(mpmath.log(total))


# ------------------------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize(
    ("exposed", "events", "expected"),
    [
        (0, 0, 0.0),
        (1, 0, -0.2452691873),
        (1, 1, 3.1149856332),
        (2, 2, 7.4117415939),
        (100, 0, -1.3898947168),
        (100, 3, 0.3378275053),
        (1000, 10, -1.6892152251),
        (1000, 26, 6.9592359551),
        (1e6, 10_000, -48.25483894),
        (1e6, 10_500, -0.59974903781),
        (1e9, 9_000_000, -141710.57114851),
        (7.5, 0.25, -0.2671079408),
    ],
)
def test_evidence_has_the_values_computed_independently(exposed, events, expected):
    assert log_evidence(rate_grid(0.01), exposed, events) == pytest.approx(expected, rel=1e-11, abs=2e-10)


@pytest.mark.parametrize("limit", [1e-9, 1e-4, 0.01, 0.3, 0.5, 0.99, 1.0 - 1e-6])
@pytest.mark.parametrize("deviation", [-1.0, 0.0, 1.0, 6.0])
def test_evidence_is_exact_to_a_millionth_at_a_billion_exposures(limit, deviation):
    sd = math.sqrt(1e9 * limit * (1.0 - limit))
    events = float(min(max(round(1e9 * limit + deviation * sd), 0), 10**9))
    assert log_evidence(rate_grid(limit), 1e9, events) == pytest.approx(mp_log_evidence(limit, 1e9, events), abs=1e-6)


def test_the_grid_has_the_published_points():
    grid = rate_grid(0.01)
    rates = 0.01 * np.exp(grid.log_event)
    assert grid.log_weight.size == 32
    assert rates[[0, 30, 31]] == pytest.approx([0.010989011, 0.999, 1.0], rel=1e-8)
    assert np.exp(grid.log_weight[[0, 30, 31]]) == pytest.approx([0.15624908, 5.2109e-4, 0.1], rel=1e-5)


@settings(deadline=None)
@given(limit=st.floats(1e-9, 1.0 - 1e-6))
def test_every_alternative_lies_on_its_side_of_the_limit_and_the_weights_sum_to_one(limit):
    for grid in (rate_grid(limit), safety_grid(limit)):
        assert np.exp(grid.log_weight).sum() == pytest.approx(1.0, abs=1e-12)
        assert np.all(grid.log_event > 0.0) == grid.above
        assert np.all(grid.log_clear > 0.0) == (not grid.above)
        # at the limit itself each factor has mean one: this is what makes it a test of the limit
        mean = limit * np.exp(grid.log_event) + (1.0 - limit) * np.exp(grid.log_clear)
        assert mean == pytest.approx(np.ones(mean.size), abs=1e-9)


def test_the_fewest_events_that_freeze_are_as_tabulated():
    grid = rate_grid(0.01)
    for exposed, fewest in {2: 2, 5: 3, 10: 4, 20: 5, 50: 6, 100: 8, 500: 17, 1000: 26, 10_000: 147}.items():
        evidence = log_evidence(grid, np.full(exposed + 1, exposed), np.arange(exposed + 1))
        assert int(np.argmax(evidence >= math.log(1000.0))) == fewest


def test_evidence_after_each_prefix_comes_in_the_shape_that_went_in():
    exposed = np.array([[1, 2], [3, 4]])
    evidence = log_evidence(rate_grid(0.1), exposed, 1)
    assert evidence.shape == (2, 2)
    assert evidence[1, 0] == log_evidence(rate_grid(0.1), 3, 1)
    assert isinstance(log_evidence(rate_grid(0.1), 3, 1), float)


@pytest.mark.parametrize(
    ("exposed", "events", "expected"),
    [(375, 0, 2.99293790665), (376, 0, 3.00174393382), (500, 1, 1.765494042075), (1000, 5, 0.5700974154605)],
)
def test_proof_of_safety_has_the_values_computed_independently(exposed, events, expected):
    assert log_safety(safety_grid(0.01), exposed, events) == pytest.approx(expected, rel=1e-11)
    assert mp_log_evidence(0.01, exposed, events, above=False) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(("alpha", "fewest"), [(0.05, 376), (0.01, 554)])
def test_zero_failures_certify_a_one_percent_limit_after_the_tabulated_exposures(alpha, fewest):
    exposed = np.arange(1000)
    assert int(np.argmax(log_safety(safety_grid(0.01), exposed, 0) >= -math.log(alpha))) == fewest


@settings(max_examples=200, deadline=None)
@given(
    limit=LIMITS,
    exposed=st.one_of(st.floats(0.0, 2.0**53), st.integers(0, 10**9)),
    share=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.0, 1.0)),
)
def test_no_valid_counts_give_anything_but_a_finite_number(limit, exposed, share):
    for grid in (rate_grid(limit), safety_grid(limit)):
        assert math.isfinite(log_evidence(grid, exposed, min(exposed * share, exposed)))


@settings(deadline=None)
@given(limit=LIMITS, exposed=st.integers(1, 10**6), data=st.data())
def test_evidence_of_harm_rises_and_proof_of_safety_falls_with_each_event(limit, exposed, data):
    events = data.draw(st.integers(0, exposed - 1))
    more = log_evidence(rate_grid(limit), exposed, events + 1) - log_evidence(rate_grid(limit), exposed, events)
    less = log_safety(safety_grid(limit), exposed, events + 1) - log_safety(safety_grid(limit), exposed, events)
    assert more > 0.0 > less


@settings(deadline=None)
@given(outcomes=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12), limit=st.floats(0.01, 0.9))
def test_fractional_outcomes_are_conservative(outcomes, limit):
    """A fraction weighs no more than a coin that falls 1 with that probability, averaged over the coin."""
    grid = rate_grid(limit)
    chance = np.ones(1)  # of 0, 1, ... events, when each outcome is replaced by such a coin
    for value in outcomes:
        chance = np.append(chance * (1.0 - value), 0.0) + np.append(0.0, chance * value)
    exposed, events = len(outcomes), min(math.fsum(outcomes), len(outcomes))
    coins = chance @ np.exp(log_evidence(grid, exposed, np.arange(exposed + 1)))
    assert math.exp(log_evidence(grid, exposed, events)) <= coins * (1.0 + 1e-9)


@pytest.mark.parametrize(
    ("exposed", "events", "field"),
    [
        (1, 2, "events"),
        (-1, 0, "exposed"),
        (1, -0.5, "events"),
        (math.nan, 0, "exposed"),
        (1, math.nan, "events"),
        (math.inf, 0, "exposed"),
        (2.0**54, 0, "exposed"),
        ([3, 3], [1, 4], "events"),
        ([3, 3], [1, 1, 1], "events"),
    ],
)
def test_impossible_counts_are_refused_by_name(exposed, events, field):
    for call in (
        lambda: log_evidence(rate_grid(0.01), exposed, events),
        lambda: fold(rate_grid(0.01), no_restarts(rate_grid(0.01)), exposed, events),
    ):
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert caught.value.violations[0].field == field


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.0, 1.5, 9e-10, math.nan, math.inf])
def test_a_limit_that_no_test_can_guard_is_refused(limit):
    for make in (rate_grid, safety_grid):
        with pytest.raises(InvalidArgument, match="limit"):
            make(limit)


def test_proof_of_safety_refuses_the_grid_that_proves_harm():
    with pytest.raises(InvalidArgument, match="safety_grid"):
        log_safety(rate_grid(0.01), 100, 0)


def test_grids_cannot_be_changed_by_their_users():
    with pytest.raises(ValueError, match="read-only"):
        rate_grid(0.01).log_weight[0] = 0.0


# ------------------------------------------------------------------------------------------------------- restarts


def plain_fold(grid, buckets, schedule, block=50.0, cap=math.inf):
    """The definition: one likelihood ratio per restart and alternative, kept apart to the end."""
    processes, in_block, evidence = [], 0.0, []
    for exposed, events in buckets:
        if exposed > 0:
            if in_block == 0.0:
                j = len(processes) + 1
                log_weight = -math.log(2.109742801236892 * (j + 1) * math.log(j + 1) ** 2)
                start = log_weight if schedule is Schedule.WEIGHTED else 0.0
                processes.append(np.full(grid.log_weight.size, start))
            with np.errstate(over="ignore"):
                ratio = np.minimum(events * grid.log_event + (exposed - events) * grid.log_clear, cap)
            processes = [process + ratio for process in processes]
            in_block = 0.0 if in_block + exposed >= block else in_block + exposed
        if not processes:
            evidence.append(0.0)
            continue
        together = np.max if schedule is Schedule.CUSUM else np.logaddexp.reduce
        evidence.append(float(np.logaddexp.reduce(grid.log_weight + together(np.array(processes), axis=0))))
    return evidence


def test_weighted_restarts_have_the_values_computed_independently():
    grid = rate_grid(0.01)
    _, evidence = fold(grid, no_restarts(grid), [50] * 5, [0, 0, 0, 0, 10])
    expected = [-1.790220072427, -1.788719554847, -1.872481300978, -1.963711106964, 15.20853483692]
    assert evidence == pytest.approx(expected, rel=1e-11)


@settings(max_examples=60, deadline=None)
@given(buckets=BUCKETS, limit=LIMITS, schedule=st.sampled_from(Schedule), cap=st.sampled_from([None, 0.5, 3.0]))
def test_a_fold_agrees_with_restarts_kept_apart(buckets, limit, schedule, cap):
    grid = rate_grid(limit)
    exposed, events = np.array(buckets, dtype=float).T
    state, evidence = fold(grid, no_restarts(grid), exposed, events, schedule, cap=cap)
    expected = plain_fold(grid, buckets, schedule, cap=math.inf if cap is None else cap)
    assert evidence == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert log_level(grid, state) == pytest.approx(expected[-1], rel=1e-10, abs=1e-10)
    assert (state.outcomes, state.events) == (exposed.sum(), events.sum())


@settings(max_examples=60, deadline=None)
@given(buckets=BUCKETS, schedule=st.sampled_from(Schedule), data=st.data())
def test_settling_some_buckets_first_changes_nothing(buckets, schedule, data):
    grid = rate_grid(0.05)
    settled = data.draw(st.integers(0, len(buckets)))
    exposed, events = np.array(buckets, dtype=float).T
    whole, all_evidence = fold(grid, no_restarts(grid), exposed, events, schedule)
    first, _ = fold(grid, no_restarts(grid), exposed[:settled], events[:settled], schedule)
    stored = json.loads(json.dumps(asdict(first), allow_nan=False))
    reread = Restarts(**{**stored, "log_terms": tuple(stored["log_terms"])})
    last, evidence = fold(grid, reread, exposed[settled:], events[settled:], schedule)
    assert evidence == pytest.approx(all_evidence[settled:], rel=1e-10, abs=1e-10)
    assert (last.started, last.in_block, last.outcomes) == (whole.started, whole.in_block, whole.outcomes)
    assert last.log_terms == pytest.approx(whole.log_terms, rel=1e-10, abs=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(BUCKETS.filter(lambda b: len(b) >= 3).map(lambda b: b[:3]), min_size=2, max_size=4),
    limits=st.lists(LIMITS, min_size=4, max_size=4),
)
def test_many_streams_fold_as_each_does_alone(rows, limits):
    """Grids of different sizes are padded; the padding must not count."""
    grids = [rate_grid(limit) for limit, _ in zip(limits, rows, strict=False)]
    counts = np.array(rows, dtype=float)
    caps = [None, 2.0, None, 1.0][: len(grids)]
    states, evidence = fold_many(grids, [no_restarts(g) for g in grids], counts[..., 0], counts[..., 1], caps=caps)
    for s, grid in enumerate(grids):
        state, alone = fold(grid, no_restarts(grid), counts[s, :, 0], counts[s, :, 1], cap=caps[s])
        assert evidence[s] == pytest.approx(alone, rel=1e-12, abs=1e-12)
        assert states[s].log_terms == pytest.approx(state.log_terms, rel=1e-12, abs=1e-12)


@given(buckets=BUCKETS, schedule=st.sampled_from(Schedule), cap=st.sampled_from([None, 1.0]), data=st.data())
@settings(deadline=None)
def test_an_event_still_to_come_can_only_raise_the_evidence(buckets, schedule, cap, data):
    grid = rate_grid(0.05)
    exposed, events = np.array(buckets, dtype=float).T
    arrived = np.array([data.draw(st.integers(0, int(x))) for x in events], dtype=float)
    _, now = fold(grid, no_restarts(grid), exposed, arrived, schedule, cap=cap)
    _, later = fold(grid, no_restarts(grid), exposed, events, schedule, cap=cap)
    assert np.all(now <= later + 1e-9)


def test_counting_by_arrival_would_freeze_a_healthy_arm_that_counting_by_decision_spares():
    """Failures of 1,000 decisions at the limit report at once, the other outcomes only later."""
    grid = rate_grid(0.01)
    assert log_evidence(grid, 2, 2) > math.log(1000.0)  # the first two arrivals, both failures
    assert log_evidence(grid, 1000, 10) < 0.0


@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 10**9), min_size=1, max_size=6), schedule=st.sampled_from(Schedule))
def test_no_state_holds_anything_json_could_not(counts, schedule):
    grid = rate_grid(1e-9)
    state, evidence = fold(grid, no_restarts(grid), counts, np.array(counts) // 3, schedule)
    assert np.all(np.isfinite(evidence))
    assert all(math.isfinite(term) and term >= LOG_ZERO for term in state.log_terms)
    json.dumps(asdict(state), allow_nan=False)


def test_a_stream_without_exposures_has_no_evidence_either_way():
    grid = rate_grid(0.01)
    state, evidence = fold(grid, no_restarts(grid), [0, 0], [0, 0])
    assert evidence.tolist() == [0.0, 0.0]
    assert state == no_restarts(grid)
    assert log_level(grid, state) == 0.0
    assert fold(grid, state, [], [])[1].shape == (0,)


def test_a_block_is_a_union_of_buckets_closed_at_fifty_exposures():
    grid = rate_grid(0.01)
    states = [no_restarts(grid)]
    for exposed in (20, 29, 1, 0, 500, 49, 3):
        states.append(fold(grid, states[-1], exposed, 0)[0])
    assert [state.started for state in states[1:]] == [1, 1, 1, 1, 2, 3, 3]
    assert [state.in_block for state in states[1:]] == [20, 49, 0, 0, 0, 49, 0]


def test_weights_of_all_restarts_sum_to_one():
    """Partial sum plus the integral bounds of the tail, 1 / ln."""
    j = np.arange(1.0, 1e6 + 1.0)
    partial = (1.0 / (2.109742801236892 * (j + 1.0) * np.log(j + 1.0) ** 2)).sum()
    assert partial + 1.0 / math.log(1e6 + 2.0) / 2.109742801236892 <= 1.0
    assert partial + 1.0 / math.log(1e6 + 1.0) / 2.109742801236892 >= 1.0


def test_with_the_cap_one_bucket_less_than_asked_for_never_freezes_and_that_many_can():
    grid, alpha = rate_grid(0.01), 1e-3
    for asked in (2, 3, 5):
        cap = persistence_cap(alpha, asked)
        _, evidence = fold(grid, no_restarts(grid), [10**6] * 40, [10**6] * 40, cap=cap)
        assert evidence[asked - 2] < -math.log(alpha)
        assert evidence.max() >= -math.log(alpha)
        assert cap == pytest.approx(-math.log(alpha) / (asked - 0.5))
    assert persistence_cap(alpha, 1) is None


@pytest.mark.parametrize("size", [50, 100])
def test_a_blip_within_one_bucket_freezes_only_without_the_cap(size):
    grid, alpha = rate_grid(0.01), 1e-3
    good, _ = fold(grid, no_restarts(grid), [100] * 50, [0, 1] * 25)
    for cap, freezes in ((None, True), (persistence_cap(alpha, 3), False)):
        _, evidence = fold(grid, good, [100] * 10, [size] + [0] * 9, cap=cap)
        assert bool(evidence.max() >= -math.log(alpha)) is freezes


def test_thresholds_are_as_defined():
    assert freeze_threshold(1e-3) == pytest.approx(-math.log(1e-3 * 6.0 / math.pi**2))
    spent = sum(math.exp(-freeze_threshold(0.05, a)) for a in range(1, 20_000))
    assert 0.05 * (1.0 - 1e-4) < spent < 0.05
    assert detector_threshold(1e6) == pytest.approx(math.log(20_001.0))
    assert detector_threshold(1e6, block=1) == pytest.approx(math.log(1e6 + 1.0))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: freeze_threshold(0.0), "alpha"),
        (lambda: freeze_threshold(1.0), "alpha"),
        (lambda: freeze_threshold(math.nan), "alpha"),
        (lambda: freeze_threshold(0.1, 0), "activation"),
        (lambda: detector_threshold(0.0), "run_length"),
        (lambda: detector_threshold(math.nan), "run_length"),
        (lambda: detector_threshold(10.0, 0), "block"),
        (lambda: persistence_cap(0.1, 0), "buckets"),
        (lambda: fold(rate_grid(0.1), no_restarts(rate_grid(1e-9)), 1, 0), "state"),
        (lambda: fold(rate_grid(0.1), Restarts((math.nan,) * 32), 1, 0), "state"),
        (lambda: fold(rate_grid(0.1), Restarts((0.0,) * 32, in_block=math.nan), 1, 0), "state"),
        (lambda: fold(rate_grid(0.1), no_restarts(rate_grid(0.1)), 1, 0, block=math.nan), "block"),
        (lambda: fold(rate_grid(0.1), no_restarts(rate_grid(0.1)), 1, 0, cap=0.0), "cap"),
        (lambda: fold(rate_grid(0.1), no_restarts(rate_grid(0.1)), 1, 0, cap=math.nan), "cap"),
        (lambda: fold_many([], [], np.zeros((0, 1)), np.zeros((0, 1))), "exposed"),
        (lambda: fold_many([rate_grid(0.1)], [no_restarts(rate_grid(0.1))], [1.0], [0.0]), "exposed"),
        (lambda: fold_many([rate_grid(0.1)], [no_restarts(rate_grid(0.1))], [[1.0]], [[0.0]], caps=[]), "caps"),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(call, field):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.violations[0].field == field


# --------------------------------------------------------------------------------------------------- label kernel


@pytest.mark.parametrize(
    ("ratio", "candidate", "incumbent", "pi", "expected"),
    [
        (1.0, [3], [0], [0.1], 5.214624855203),
        (1.0, [5, 2], [12, 8], [0.1, 0.05], 2.605217330594),
        (1.2, [5, 2], [12, 8], [0.1, 0.05], 1.848673834181),
    ],
)
def test_the_label_kernel_has_the_values_computed_independently(ratio, candidate, incumbent, pi, expected):
    grid = label_grid(ratio)
    assert log_label_evidence(grid, label_sums(grid, candidate, incumbent, pi)) == pytest.approx(expected, rel=1e-11)


CELLS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.floats(1e-4, 1.0 - 1e-4)), min_size=1, max_size=8)


@settings(deadline=None)
@given(cells=CELLS, ratio=st.floats(0.01, 100.0), above=st.booleans(), data=st.data())
def test_label_sums_add_in_any_order_to_the_product_over_rows(cells, ratio, above, data):
    grid = label_grid(ratio, above)
    candidate, incumbent, pi = np.array(cells).T
    together = log_label_evidence(grid, label_sums(grid, candidate, incumbent, pi))
    shuffled = data.draw(st.permutations(cells))
    parts = [label_sums(grid, *cell) for cell in shuffled]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert log_label_evidence(grid, total) == pytest.approx(together, rel=1e-9, abs=1e-9)
    # the definition: a Bernoulli likelihood ratio of the labels, row by row
    r, rho = ratio * np.exp(grid.log_ratio)[:, None], ratio
    alternative, null = r * pi / (r * pi + 1.0 - pi), rho * pi / (rho * pi + 1.0 - pi)
    rows = candidate * np.log(alternative / null) + incumbent * np.log((1.0 - alternative) / (1.0 - null))
    definition = np.logaddexp.reduce(grid.log_weight + rows.sum(axis=1))
    assert together == pytest.approx(definition, rel=1e-7, abs=1e-7)


def test_rows_without_a_choice_carry_no_evidence():
    grid = label_grid(1.0)
    assert log_label_evidence(grid, label_sums(grid, [0, 7], [9, 0], [0.0, 1.0])) == pytest.approx(0.0, abs=1e-12)


def test_label_evidence_stays_exact_at_a_billion_events():
    grid, pi, events = label_grid(1.0), 0.1, 10**9
    candidate = events // 10 + 30_000
    with mpmath.workdps(40):
        total = mpmath.mpf(0)
        for log_weight, log_ratio in zip(grid.log_weight, grid.log_ratio, strict=True):
            r, chance = mpmath.exp(mpmath.mpf(log_ratio)), mpmath.mpf(pi)
            total += mpmath.exp(log_weight) * r**candidate / (r * chance + 1 - chance) ** events
        expected = float(mpmath.log(total))
    found = log_label_evidence(grid, label_sums(grid, candidate, events - candidate, pi))
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-5)


@pytest.mark.parametrize(
    ("candidate", "incumbent", "pi", "field"),
    [
        ([1], [0], [0.0], "pi"),
        ([0], [1], [1.0], "pi"),
        ([1], [1], [1.1], "pi"),
        ([1], [1], [math.nan], "pi"),
        ([-1], [1], [0.5], "candidate_events"),
        ([1], [math.nan], [0.5], "incumbent_events"),
    ],
)
def test_impossible_labels_are_refused_by_name(candidate, incumbent, pi, field):
    with pytest.raises(InvalidArgument) as caught:
        label_sums(label_grid(1.0), candidate, incumbent, pi)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf, 1e7])
def test_a_ratio_that_no_test_can_guard_is_refused(ratio):
    with pytest.raises(InvalidArgument, match="ratio"):
        label_grid(ratio)


def test_two_sided_alternatives_need_room_on_both_sides():
    with pytest.raises(InvalidArgument, match="nearest"):
        two_sided_label_grid(1.0, 2.0)


@settings(max_examples=40, deadline=None)
@given(cells=CELLS, schedule=st.sampled_from(Schedule), cap=st.sampled_from([None, 1.0]))
def test_labels_fold_with_the_same_restarts_as_rates(cells, schedule, cap):
    """At one propensity the labels are a rate: candidate's events among all events."""
    labels, pi = label_grid(1.5), 0.2
    null = 1.5 * pi / (1.5 * pi + 1.0 - pi)
    rate = 1.5 * np.exp(labels.log_ratio) * pi
    rate = rate / (rate + 1.0 - pi)

    class Rates:
        log_weight = labels.log_weight
        log_event = np.log(rate / null)
        log_clear = np.log((1.0 - rate) / (1.0 - null))

    sums = [label_sums(labels, candidate, incumbent, pi) for candidate, incumbent, _ in cells]
    rows = np.array([bucket.events for bucket in sums])
    state, evidence = fold_labels(labels, no_restarts(labels), rows, stack(sums), schedule, block=20, cap=cap)
    buckets = [(bucket.events, bucket.candidate_events) for bucket in sums]
    expected = plain_fold(Rates, buckets, schedule, block=20, cap=math.inf if cap is None else cap)
    assert evidence == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert log_level(labels, state) == pytest.approx(expected[-1], rel=1e-9, abs=1e-9)
    assert state.outcomes == rows.sum()


def test_a_bucket_with_more_labels_than_decisions_is_refused():
    grid = label_grid(1.0)
    with pytest.raises(InvalidArgument, match="events"):
        fold_labels(grid, no_restarts(grid), [2.0], stack([label_sums(grid, 2, 1, 0.5)]))
    with pytest.raises(InvalidArgument, match="sums"):
        fold_labels(grid, no_restarts(grid), [2.0], LabelSums(1.0, 1.0, np.zeros(7)))


# ----------------------------------------------------------------------------------------------- several streams


def test_the_average_rejects_whenever_weighted_bonferroni_does():
    weights = np.array([0.5, 0.3, 0.2])
    for stream in range(3):
        evidence = np.full(3, LOG_ZERO)
        evidence[stream] = -math.log(0.01 * weights[stream])
        assert log_average(evidence, weights) == pytest.approx(-math.log(0.01))
    assert log_average([0.0, 0.0]) == pytest.approx(0.0)
    assert log_average(np.zeros((2, 3)), [1.0, 0.0]) == pytest.approx(np.zeros(3))


def test_half_the_weight_lies_on_the_overall_streams():
    assert stream_weights([False, True, True, True]) == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert stream_weights([True, True]) == pytest.approx([0.5, 0.5])
    assert stream_weights([False]) == pytest.approx([1.0])


@given(
    log_evidence=st.lists(st.floats(-5.0, 12.0), min_size=1, max_size=7),
    alpha=st.sampled_from([1e-3, 0.05, 0.3]),
)
def test_blame_is_closed_testing_over_all_sets_of_streams(log_evidence, alpha):
    values, count = np.exp(log_evidence), len(log_evidence)
    sets = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]
    expected = [min(values[list(s)].mean() for s in sets if h in s) >= (1.0 - 1e-12) / alpha for h in range(count)]
    assert to_blame(log_evidence, alpha).tolist() == expected


@settings(deadline=None)
@given(log_evidence=st.lists(st.floats(-5.0, 12.0), min_size=1, max_size=7))
def test_blame_names_all_that_stepping_down_names(log_evidence):
    named, ascending = to_blame(log_evidence, 0.05), np.argsort(log_evidence)
    for left in range(len(log_evidence), 0, -1):
        stream = ascending[left - 1]
        if log_evidence[stream] < math.log(left / 0.05) + 1e-9:
            break
        assert named[stream]


def test_discoveries_follow_the_published_rule():
    evidence = np.log([100.0, 45.0, 30.0, 12.0, 1.0])  # five streams, alpha .1: needs 50, 25, 16.7, 12.5, 10
    assert discoveries(evidence, 0.1).tolist() == [True, True, True, False, False]
    assert discoveries(np.log([20.0, 26.0, 1.0, 1.0, 1.0]), 0.1).tolist() == [False] * 5
    assert discoveries(np.log([60.0, 1.0, 24.0, 26.0, 2.0]), 0.1).tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("call", [log_average, lambda e: to_blame(e, 0.1), lambda e: discoveries(e, 0.1)])
@pytest.mark.parametrize("evidence", [[], [math.nan], [0.0, math.inf], 1.0])
def test_streams_without_a_finite_number_are_refused(call, evidence):
    with pytest.raises(InvalidArgument, match="log_evidence"):
        call(evidence)


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, math.nan], [1.0, -1.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(InvalidArgument, match="weights"):
        log_average([0.0, 0.0], weights)


# ----------------------------------------------------------------------------------------------------- compiling


def test_warming_up_compiles_every_signature_that_is_used():
    from allocator.core.kernels import evidence as kernels

    warm_up()
    loops = (kernels.rate_evidence, kernels.fold_rates, kernels.fold_increments)
    before = [len(loop.signatures) for loop in loops]
    grids = [rate_grid(0.01), rate_grid(1e-9)]
    log_evidence(grids[0], np.arange(5), [0, 0, 1, 1, 1])
    log_safety(safety_grid(0.01), 5, 0)
    states = [no_restarts(grid) for grid in grids]
    fold_many(grids, states, np.ones((2, 3), int), np.zeros((2, 3)), Schedule.CUSUM, 7, [None, 1])
    labels = label_grid(2.0, above=False)
    state, _ = fold_labels(labels, no_restarts(labels), [5], stack([label_sums(labels, 1, 1, 0.5)]), cap=1.0)
    fold_labels(labels, state, 5, label_sums(labels, 1, 1, 0.5))
    assert [len(loop.signatures) for loop in loops] == before
