"""Statistics: adding, merging, cutting and reading integer sums.

Expectations come from Python's unbounded integers and fractions over the same outcomes, and from the rules of addition.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.statistics import (
    CELL,
    COUNT,
    MICRO,
    SQUARE_HIGH,
    SQUARE_LOW,
    TOTAL,
    Statistics,
    Sums,
    add_outcomes,
    between,
    coarsen,
    discounted,
    matured,
    merge,
    square_of,
    sums_of,
)
from allocator.errors import InvalidArgument

ARMS, SEGMENTS, STREAMS = 3, 2, 2

ROWS = st.lists(
    st.tuples(
        st.integers(-20, 20),
        st.integers(0, ARMS - 1),
        st.integers(0, SEGMENTS - 1),
        st.integers(0, STREAMS - 1),
        st.integers(0, 10**12),
        st.integers(-(10**15), 10**15),
        st.integers(0, 10**15),
        st.integers(0, 10**15),
    ),
    max_size=12,
)


def of(rows):
    return Statistics.from_rows(ARMS, SEGMENTS, STREAMS, np.array(rows, np.int64).reshape(-1, 8))


def same(one, other):
    return np.array_equal(one.buckets, other.buckets) and np.array_equal(one.sums, other.sums)


def test_nothing_counted_reads_as_zero():
    sums = sums_of(Statistics.empty(ARMS, SEGMENTS, STREAMS), 1)
    np.testing.assert_array_equal((sums.count, sums.total, sums.squares), np.zeros((3, ARMS)))
    assert merge(Statistics.empty(1, 1, 1)).sums.shape == (0, 1, 1, 1, CELL)


def test_rows_of_the_same_key_add_up():
    got = of([(7, 1, 0, 1, 2, 1_500_000, 1_250_000, 0), (4, 0, 1, 0, 1, 1, 0, 1), (7, 1, 0, 1, 1, 500_000, 250_000, 3)])
    np.testing.assert_array_equal(got.buckets, [4, 7])
    assert got.sums[1, 1, 0, 1].tolist() == [3, 2_000_000, 1_500_000, 3]
    assert got.sums[0, 0, 1, 0].tolist() == [1, 1, 0, 1]
    assert got.sums.sum() == 3 + 2_000_000 + 1_500_000 + 3 + 1 + 1 + 1


@given(ROWS, ROWS, ROWS)
@settings(deadline=None)
def test_merging_gives_the_same_bits_in_any_order_and_grouping(x, y, z):
    a, b, c = of(x), of(y), of(z)
    whole = of(x + y + z)
    assert same(merge(a, b, c), whole)
    assert same(merge(merge(c, a), b), whole)
    assert same(merge(c, merge(b, a)), whole)
    assert same(merge(whole, Statistics.empty(ARMS, SEGMENTS, STREAMS)), whole)


@given(ROWS, st.integers(1, 9), st.integers(1, 5))
@settings(deadline=None)
def test_coarser_buckets_hold_the_same_counts(rows, factor, again):
    fine = of(rows)
    coarse = coarsen(fine, factor)
    assert same(coarse, of([(row[0] // factor, *row[1:]) for row in rows]))
    assert same(coarsen(coarse, again), coarsen(fine, factor * again))


@given(ROWS, st.integers(-22, 22))
@settings(deadline=None)
def test_a_cut_leaves_nothing_out_and_nothing_twice(rows, at):
    whole = of(rows)
    low, high = between(whole, -100, at), between(whole, at + 1, 100)
    assert (low.buckets <= at).all()
    assert (high.buckets > at).all()
    assert same(merge(low, high), whole)


@given(ROWS, st.integers(0, STREAMS - 1), st.one_of(st.none(), st.integers(0, SEGMENTS - 1)))
@settings(deadline=None)
def test_sums_read_agree_with_exact_fractions(rows, stream, segment):
    got = sums_of(of(rows), stream, segment)
    for arm in range(ARMS):
        mine = [row for row in rows if row[1] == arm and row[3] == stream and segment in (None, row[2])]
        assert got.count[arm] == sum(row[4] for row in mine)
        assert got.total[arm] == float(Fraction(sum(row[5] for row in mine), MICRO))
        assert got.squares[arm] == float(Fraction(sum(row[6] * MICRO + row[7] for row in mine), MICRO**2))


def test_sums_of_many_large_cells_are_exact_beyond_64_bits():
    rows = [(bucket, 0, 0, 0, 1, 2**61, 2**61, 0) for bucket in range(9)]
    got = sums_of(of(rows), 0)
    assert got.total[0] == 9 * 2**61 / MICRO
    assert got.squares[0] == float(Fraction(9 * 2**61, MICRO))


@given(
    st.lists(st.tuples(st.integers(0, ARMS - 1), st.floats(-3e5, 3e5)), max_size=30),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_outcomes_add_up_to_the_same_bits_in_any_order_and_batches(outcomes, random):
    none = np.zeros((ARMS, CELL), np.int64)
    arms, rewards = [a for a, _ in outcomes], [r for _, r in outcomes]
    whole = _add(none, arms, rewards)
    exact = [[0, 0, 0] for _ in range(ARMS)]
    for arm, reward in outcomes:
        micro = round(reward * MICRO)
        exact[arm][0] += 1
        exact[arm][1] += micro
        exact[arm][2] += micro * micro
    for arm in range(ARMS):
        assert whole[arm, COUNT] == exact[arm][0]
        assert whole[arm, TOTAL] == exact[arm][1]
        assert int(whole[arm, SQUARE_HIGH]) * MICRO + int(whole[arm, SQUARE_LOW]) == exact[arm][2]
    shuffled = random.sample(outcomes, len(outcomes))
    cut = random.randint(0, len(outcomes))
    parts = none
    for part in (shuffled[:cut], shuffled[cut:]):
        parts = _add(parts, [a for a, _ in part], [r for _, r in part])
    np.testing.assert_array_equal(parts, whole)


def _add(sums, arms, rewards):
    return add_outcomes(sums, np.array(arms, np.int64), np.array(rewards, float), low=-1e6, high=1e6)


def test_zeros_ones_and_booleans_count_alike():
    none = np.zeros((2, CELL), np.int64)
    arms = np.array([0, 1, 1, 1])
    expected = [[1, 0, 0, 0], [3, 2 * MICRO, 2 * MICRO, 0]]
    for rewards in ([0, 1, 0, 1], [0.0, 1.0, 0.0, 1.0], [False, True, False, True]):
        np.testing.assert_array_equal(add_outcomes(none, arms, np.array(rewards)), expected)
    np.testing.assert_array_equal(add_outcomes(none, arms.astype(np.uint8), np.array([0, 1, 0, 1], np.int8)), expected)
    read_only = np.array([0.0, 1.0, 0.0, 1.0])
    read_only.setflags(write=False)
    np.testing.assert_array_equal(add_outcomes(none, arms[::-1][::-1], read_only), expected)


@pytest.mark.parametrize(
    ("arms", "rewards", "words"),
    [
        ([0, 1, 2], [0.5, 0.5, 0.5], r"arms\[2\]: got 2"),
        ([0, -1, 1], [0.5, 0.5, 0.5], r"arms\[1\]: got -1"),
        ([0, 1, 1], [0.5, math.nan, 0.5], r"rewards\[1\]: got nan"),
        ([0, 1, 1], [0.5, 0.5, math.inf], r"rewards\[2\]: got inf"),
        ([0, 1, 1], [0.5, 1.0000001, 0.5], r"rewards\[1\]"),
        ([0, 1, 1], [-1e-9, 0.5, 0.5], r"rewards\[0\]"),
        ([0, 1], [0.5], "rewards: got float64 of shape"),
        ([0.0, 1.0], [0.5, 0.5], "arms: got float64"),
        ([0, 1], ["a", "b"], "rewards: got"),
    ],
)
def test_a_batch_with_one_bad_outcome_changes_nothing(arms, rewards, words):
    before = np.array([[3, 2_000_000, 1_500_000, 7], [1, 0, 0, 0]])
    kept = before.copy()
    with pytest.raises(InvalidArgument, match=words):
        add_outcomes(before, np.array(arms), np.array(rewards))
    np.testing.assert_array_equal(before, kept)


def test_a_sum_that_would_leave_64_bits_is_refused_and_not_wrapped():
    full = np.array([[1, 0, 2**62 - 1, 0]])
    with pytest.raises(InvalidArgument, match="larger unit"):
        add_outcomes(full, np.zeros(1, np.int64), np.ones(1))
    with pytest.raises(InvalidArgument, match="larger unit"):
        add_outcomes(np.zeros((1, CELL), np.int64), np.zeros(20, np.int64), np.full(20, 1e6), high=1e6)
    half = of([(0, 0, 0, 0, 2**61, 0, 0, 0)])
    with pytest.raises(InvalidArgument, match="larger unit"):
        merge(half, half)
    with pytest.raises(InvalidArgument, match="larger unit"):
        of([(0, 0, 0, 0, 2**61, 0, 0, 0)] * 8)  # wraps to zero
    with pytest.raises(InvalidArgument, match="larger unit"):
        coarsen(of([(b, 0, 0, 0, 2**61, 0, 0, 0) for b in range(8)]), 8)


def test_four_trillion_outcomes_in_the_unit_interval_fit_one_cell():
    n = 4_600_000_000_000  # below 2^62 micro-units, however the rewards fall
    worst = of([(0, 0, 0, 0, n, n * MICRO, n * 999_999, n * 999_999)])
    assert sums_of(worst, 0).total[0] == n


@given(st.integers(-(10**12), 10**12))
def test_a_square_is_split_without_loss(micro):
    high, low = square_of(micro)
    assert high * MICRO + low == micro * micro
    assert 0 <= low < MICRO
    assert high < 2**63


@given(ROWS, st.floats(0.3, 1e6), st.integers(-30, 60), st.integers(-(10**6), 10**6))
@settings(deadline=None)
def test_discounting_follows_its_definition_and_does_not_depend_on_the_epoch(rows, half_life, now, epoch):
    got = discounted(of(rows), 0, now, half_life)
    for arm in range(ARMS):
        weights = [(2.0 ** (-max(now - row[0], 0) / half_life), row) for row in rows if row[1] == arm and row[3] == 0]
        assert got.count[arm] == pytest.approx(math.fsum(w * r[4] for w, r in weights), rel=1e-12, abs=1e-300)
        size = math.fsum(w * abs(r[5]) for w, r in weights)
        assert got.total[arm] == pytest.approx(math.fsum(w * r[5] for w, r in weights) / MICRO, rel=1e-12, abs=1e-12 * size)
        squares = math.fsum(w * (r[6] * MICRO + r[7]) for w, r in weights) / MICRO**2
        assert got.squares[arm] == pytest.approx(squares, rel=1e-12, abs=1e-300)
    moved = discounted(of([(row[0] + epoch, *row[1:]) for row in rows]), 0, now + epoch, half_life)
    for name in ("count", "total", "squares"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(got, name))


@given(ROWS, ROWS)
@settings(deadline=None)
def test_merging_then_discounting_is_discounting_then_adding(x, y):
    whole = discounted(merge(of(x), of(y)), 1, 25, 6.0)
    one, other = discounted(of(x), 1, 25, 6.0), discounted(of(y), 1, 25, 6.0)
    for name in ("count", "squares"):
        np.testing.assert_allclose(getattr(whole, name), getattr(one, name) + getattr(other, name), rtol=1e-12)


@given(ROWS, st.one_of(st.none(), st.integers(0, SEGMENTS - 1)))
@settings(deadline=None)
def test_an_infinite_half_life_discounts_nothing(rows, segment):
    whole, got = sums_of(of(rows), 0, segment), discounted(of(rows), 0, 50, math.inf, segment)
    np.testing.assert_allclose(got.count, whole.count, rtol=1e-14)
    np.testing.assert_allclose(got.squares, whole.squares, rtol=1e-14)


def test_an_outcome_one_half_life_old_counts_half():
    got = discounted(of([(10, 0, 0, 0, 8, 4 * MICRO, 4 * MICRO, 0), (20, 0, 0, 0, 8, 4 * MICRO, 4 * MICRO, 0)]), 0, 20, 10.0)
    assert (got.count[0], got.total[0], got.squares[0]) == (12, 6, 6)


def test_a_closed_exposure_without_a_report_counts_as_the_missing_value():
    exposures, reported = Sums([100, 10], [0, 0], [0, 0]), Sums([60, 10], [15, 4], [15, 3])
    zero = matured(exposures, reported, 0.0)
    np.testing.assert_array_equal((zero.count, zero.total, zero.squares), [[100, 10], [15, 4], [15, 3]])
    half = matured(exposures, reported, 0.5)
    np.testing.assert_array_equal((half.count, half.total, half.squares), [[100, 10], [35, 4], [25, 3]])


def test_lost_exposure_counts_never_take_an_outcome_away():
    reported = Sums([60], [15], [15])
    got = matured(Sums([7], [0], [0]), reported, 1.0)
    np.testing.assert_array_equal((got.count, got.total, got.squares), (reported.count, reported.total, reported.squares))


def test_statistics_and_sums_cannot_be_changed():
    buckets, sums = np.array([1]), np.zeros((1, 1, 1, 1, CELL), np.int64)
    one = Statistics(buckets, sums)
    sums[0] = 5
    assert one.sums.sum() == 0
    for array in (one.sums, one.buckets, sums_of(one, 0).count, add_outcomes(np.zeros((1, CELL), np.int64), [0], [1.0])):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Statistics.empty(0, 1, 1), "arms"),
        (lambda: Statistics(np.array([2, 1]), np.zeros((2, 1, 1, 1, CELL), np.int64)), "buckets"),
        (lambda: Statistics(np.array([1]), np.zeros((2, 1, 1, 1, CELL), np.int64)), "sums"),
        (lambda: Statistics(np.array([1.0]), np.zeros((1, 1, 1, 1, CELL), np.int64)), "buckets: got float64"),
        (lambda: of([(0, ARMS, 0, 0, 1, 0, 0, 0)]), "rows.arm"),
        (lambda: of([(0, 0, -1, 0, 1, 0, 0, 0)]), "rows.segment"),
        (lambda: of([(0, 0, 0, STREAMS, 1, 0, 0, 0)]), "rows.stream"),
        (lambda: of([(0, 0, 0, 0, -1, 0, 0, 0)]), "rows.count"),
        (lambda: of([(0, 0, 0, 0, 1, 0, 0, -4)]), "rows.square low"),
        (lambda: Statistics.from_rows(1, 1, 1, np.ones((2, 7), np.int64)), "rows"),
        (lambda: Statistics.from_rows(1, 1, 1, np.ones((2, 8))), "rows: got float64"),
        (lambda: merge(), "statistics"),
        (lambda: merge(Statistics.empty(1, 1, 1), Statistics.empty(2, 1, 1)), "statistics"),
        (lambda: coarsen(of([]), 0), "factor"),
        (lambda: sums_of(of([]), STREAMS), "stream"),
        (lambda: sums_of(of([]), 0, SEGMENTS), "segment"),
        (lambda: discounted(of([]), 0, 0, 0.0), "half_life"),
        (lambda: discounted(of([]), 0, 0, math.nan), "half_life"),
        (lambda: matured(Sums([1], [0], [0]), Sums([1], [0], [0]), math.nan), "missing"),
        (lambda: Sums([1], [math.nan], [0]), "sums.total"),
        (lambda: Sums([-1], [0], [0]), "sums.count"),
        (lambda: Sums([1, 1], [0], [0, 0]), "sums.total"),
        (lambda: add_outcomes(np.zeros((1, CELL)), [0], [1.0]), "sums: got float64"),
        (lambda: add_outcomes(np.zeros((1, CELL), np.int64), [0], [1.0], low=1, high=0), "low, high"),
        (lambda: add_outcomes(np.zeros((1, CELL), np.int64), [0], [1.0], high=math.nan), "low, high"),
    ],
)
def test_a_wrong_argument_is_named(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call()
