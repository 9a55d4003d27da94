"""Evidence on a rate against its definition (mpmath), its published and computed values, and the laws it has to obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.evidence import Schedule, no_restarts
from allocator.core.evidence_rates import fold, fold_many, log_evidence, log_safety, rate_grid, safety_grid, warm_up
from allocator.errors import InvalidArgument
from tests.core.oracles_evidence import mp_log_evidence

LIMITS = st.sampled_from([1e-9, 1e-4, 0.01, 0.2, 0.5, 0.9, 1.0 - 1e-6])


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


def test_warming_up_compiles_every_signature_that_is_used():
    from allocator.core.kernels import evidence as kernels

    warm_up()
    loops = (kernels.rate_evidence, kernels.fold_rates)
    before = [len(loop.signatures) for loop in loops]
    grids = [rate_grid(0.01), rate_grid(1e-9)]
    log_evidence(grids[0], np.arange(5), [0, 0, 1, 1, 1])
    log_safety(safety_grid(0.01), 5, 0)
    states = [no_restarts(grid) for grid in grids]
    fold_many(grids, states, np.ones((2, 3), int), np.zeros((2, 3)), Schedule.CUSUM, 7, [None, 1])
    assert [len(loop.signatures) for loop in loops] == before
