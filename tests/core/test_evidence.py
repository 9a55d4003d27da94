"""Restarts and thresholds against restarts kept apart one by one, computed values, and the laws they have to obey."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.evidence import (
    LOG_ZERO,
    Restarts,
    Schedule,
    detector_threshold,
    freeze_threshold,
    log_level,
    no_restarts,
    persistence_cap,
)
from allocator.core.evidence_rates import fold, fold_many, log_evidence, rate_grid
from allocator.errors import InvalidArgument
from tests.core.oracles_evidence import plain_fold

LIMITS = st.sampled_from([1e-9, 1e-4, 0.01, 0.2, 0.5, 0.9, 1.0 - 1e-6])
BUCKETS = st.lists(st.integers(0, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=12)


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
