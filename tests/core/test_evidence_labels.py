"""The label kernel against the product over rows, its computed values, and the restarts it shares with rates."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.evidence import Schedule, log_level, no_restarts
from allocator.core.evidence_labels import (
    LabelSums,
    fold_labels,
    label_grid,
    label_sums,
    log_label_evidence,
    stack,
    two_sided_label_grid,
    warm_up,
)
from allocator.errors import InvalidArgument
from tests.core.oracles_evidence import plain_fold


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


def test_warming_up_labels_compiles_every_signature_that_is_used():
    from allocator.core.kernels import evidence as kernels

    warm_up()
    before = len(kernels.fold_increments.signatures)
    labels = label_grid(2.0, above=False)
    state, _ = fold_labels(labels, no_restarts(labels), [5], stack([label_sums(labels, 1, 1, 0.5)]), cap=1.0)
    fold_labels(labels, state, 5, label_sums(labels, 1, 1, 0.5))
    assert len(kernels.fold_increments.signatures) == before
