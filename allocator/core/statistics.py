"""Sufficient statistics: what is kept of the outcomes, and how it is added, merged, cut and read.

In: outcomes, or the rows a store keeps of them. Out: `Statistics`, dense integer sums by bucket of decision time, arm, segment and stream,
and `Sums`, one stream's count, total and squares of each arm, from which a posterior is made. A stream is a reward, the losses of one
guardrail, or exposures.

Everything counted is an integer: a value is rounded once, to micro-units, and its square is kept as multiples of a million and the rest,
so that each sum of values in [0, 1] stays exact for 4e12 outcomes. Integers add up to the same bits in any order over any replicas;
floating point sums do not, and then two planners publish different weights from the same outcomes. A sum that would leave 64 bits is
refused, never wrapped. Decay happens when sums are read, over buckets that stay exact: decaying what is stored was dropped, because
it makes the order of merging matter and a half-life final.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.kernels.accumulate import BAD_ARM, BAD_REWARD, FINE, accumulate
from allocator.errors import InvalidArgument

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MICRO = 1_000_000  # counted units in one unit of the value
VALUE_LIMIT = 1e6  # largest absolute value that is counted
COUNT, TOTAL, SQUARE_HIGH, SQUARE_LOW = range(4)  # one cell: count, sum of micro-units, sum of their squares = high * 1e6 + low
CELL = 4

_SUM_LIMIT = 2.0**62


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What was counted. buckets: int64 (B,), ascending ids of decision-time buckets; sums: int64 (B, arms, segments, streams, 4).

    The last axis holds count, sum of micro-units, and the sum of their squares as high * 1e6 + low. Both arrays are read-only.
    """

    buckets: Integers
    sums: Integers

    def __post_init__(self) -> None:
        buckets, sums = _frozen(self.buckets, "buckets"), _frozen(self.sums, "sums")
        if buckets.ndim != 1 or (np.diff(buckets) <= 0).any():
            raise InvalidArgument(f"buckets: got shape {buckets.shape}; strictly ascending ids of shape (B,) are allowed")
        if sums.ndim != 5 or sums.shape[0] != buckets.size or sums.shape[4] != CELL:
            raise InvalidArgument(f"sums: got shape {sums.shape}; ({buckets.size}, arms, segments, streams, {CELL}) is allowed")
        object.__setattr__(self, "buckets", buckets)
        object.__setattr__(self, "sums", sums)

    @classmethod
    def empty(cls, arms: int, segments: int, streams: int) -> Statistics:
        """Nothing counted yet; each size at least 1."""
        sizes = {"arms": arms, "segments": segments, "streams": streams}
        for name, size in sizes.items():
            if not size >= 1:
                raise InvalidArgument(f"{name}: got {size}; at least 1 is allowed", field=name)
        return cls(np.zeros(0, np.int64), np.zeros((0, *sizes.values(), CELL), np.int64))

    @classmethod
    def from_rows(cls, arms: int, segments: int, streams: int, rows: ArrayLike) -> Statistics:
        """From a store's rows: int64 (R, 8) of bucket, arm, segment, stream, count, total, square high, square low.

        Rows of the same key add up. Raises InvalidArgument for an index outside its size or a negative count or square.
        """
        empty = cls.empty(arms, segments, streams)
        rows = np.asarray(rows)
        if rows.size == 0:
            return empty
        if rows.ndim != 2 or rows.shape[1] != 8 or rows.dtype.kind not in "iu":
            raise InvalidArgument(f"rows: got {rows.dtype} of shape {rows.shape}; integers of shape (R, 8) are allowed")
        rows = rows.astype(np.int64, copy=False)
        for column, (name, size) in enumerate((("arm", arms), ("segment", segments), ("stream", streams)), start=1):
            wrong = (rows[:, column] < 0) | (rows[:, column] >= size)
            if wrong.any():
                raise InvalidArgument(f"rows.{name}: got {rows[wrong][0, column]}; an index from 0 to {size - 1} is allowed")
        for column, name in ((4, "count"), (6, "square high"), (7, "square low")):
            if (rows[:, column] < 0).any():
                raise InvalidArgument(f"rows.{name}: got {rows[:, column].min()}; at least 0 is allowed")
        buckets, place = np.unique(rows[:, 0], return_inverse=True)
        sums = np.zeros((buckets.size, *empty.sums.shape[1:]), np.int64)
        rough = np.zeros(sums.shape)
        where = (place, rows[:, 1], rows[:, 2], rows[:, 3])
        np.add.at(sums, where, rows[:, 4:])
        np.add.at(rough, where, rows[:, 4:].astype(np.float64))
        return cls(buckets, _fits(sums, rough))


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """One stream, read: float64 (arms,) each, read-only. count: outcomes, fractional if discounted; total: sum of the values; squares:
    sum of their squares, both in the units in which the stream is counted.
    """

    count: Floats
    total: Floats
    squares: Floats

    def __post_init__(self) -> None:
        for name in ("count", "total", "squares"):
            values = np.array(getattr(self, name), np.float64)
            if values.ndim != 1 or values.size != np.size(self.count):
                raise InvalidArgument(f"sums.{name}: got shape {values.shape}; ({np.size(self.count)},) is allowed")
            if not np.isfinite(values).all() or (name != "total" and (values < 0).any()):
                raise InvalidArgument(f"sums.{name}: got {values}; finite numbers{', at least 0' * (name != 'total')} are allowed")
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    def scaled(self, share: ArrayLike) -> Sums:
        """The same outcomes at `share` of their weight: one number, or one for each arm."""
        return Sums(self.count * share, self.total * share, self.squares * share)


def square_of(micro: int) -> tuple[int, int]:
    """The square of a value in micro-units as a cell keeps it: (high, low), high * 1e6 + low."""
    return divmod(micro * micro, MICRO)


def add_outcomes(sums: ArrayLike, arms: ArrayLike, rewards: ArrayLike, low: float = 0.0, high: float = 1.0) -> Integers:
    """The sums of each arm with a batch of outcomes added: all of it, or none.

    sums: int64 (arms, 4), cells as in `Statistics`. arms: integers (n,), whom each outcome belongs to. rewards: numbers or bools (n,), each
    in [low, high], which lies within a million of 0. Returns a new array, equal to the last bit whatever the order of the
    outcomes and however they are split into batches. Raises InvalidArgument naming the first outcome out of range or not finite.
    """
    sums = np.asarray(sums)
    if sums.dtype != np.int64 or sums.ndim != 2 or sums.shape[1] != CELL:
        raise InvalidArgument(f"sums: got {sums.dtype} of shape {sums.shape}; int64 of shape (arms, {CELL}) is allowed", field="sums")
    if not -VALUE_LIMIT <= low <= high <= VALUE_LIMIT:
        raise InvalidArgument(f"low, high: got {low}, {high}; a range within {VALUE_LIMIT:g} of 0 is allowed", field="low")
    arms, rewards = np.asarray(arms), np.asarray(rewards)
    if arms.ndim != 1 or arms.dtype.kind not in "iu":
        raise InvalidArgument(f"arms: got {arms.dtype} of shape {arms.shape}; integers of shape (n,) are allowed", field="arms")
    if rewards.shape != arms.shape or rewards.dtype.kind not in "biuf":
        raise InvalidArgument(
            f"rewards: got {rewards.dtype} of shape {rewards.shape}; numbers of shape {arms.shape} are allowed", field="rewards"
        )
    # one compiled version serves every caller: contiguous and writable
    arms, rewards = np.require(arms, np.int64, "CW"), np.require(rewards, np.float64, "CW")
    batch, fault, index = accumulate(sums.shape[0], arms, rewards, float(low), float(high))
    if fault == FINE:
        return _fits(sums + batch, sums.astype(np.float64) + batch)
    if fault == BAD_ARM:
        raise InvalidArgument(f"arms[{index}]: got {arms[index]}; an index from 0 to {sums.shape[0] - 1} is allowed", field="arms")
    if fault == BAD_REWARD:
        raise InvalidArgument(f"rewards[{index}]: got {rewards[index]}; a number from {low:g} to {high:g} is allowed", field="rewards")
    raise _overflow()


def merge(*statistics: Statistics) -> Statistics:
    """Everything counted in any of them; the same bits in any order and grouping. All must have the same sizes."""
    if not statistics:
        raise InvalidArgument("statistics: got none; at least one is needed")
    sizes = {one.sums.shape[1:] for one in statistics}
    if len(sizes) > 1:
        raise InvalidArgument(f"statistics: got sizes {sorted(sizes)}; the same arms, segments and streams are needed")
    buckets = np.unique(np.concatenate([one.buckets for one in statistics]))
    sums = np.zeros((buckets.size, *sizes.pop()), np.int64)
    rough = np.zeros(sums.shape)
    for one in statistics:
        place = np.searchsorted(buckets, one.buckets)
        sums[place] += one.sums
        rough[place] += one.sums
    return Statistics(buckets, _fits(sums, rough))


def coarsen(statistics: Statistics, factor: int) -> Statistics:
    """The same counts in buckets `factor` (at least 1) times as wide: bucket b goes to b // factor."""
    if not factor >= 1:
        raise InvalidArgument(f"factor: got {factor}; at least 1 is allowed", field="factor")
    buckets, first = np.unique(statistics.buckets // factor, return_index=True)
    if buckets.size == statistics.buckets.size:
        return Statistics(buckets, statistics.sums)
    sums = np.add.reduceat(statistics.sums, first, axis=0)
    return Statistics(buckets, _fits(sums, np.add.reduceat(statistics.sums, first, axis=0, dtype=np.float64)))


def between(statistics: Statistics, first: int, last: int) -> Statistics:
    """Only the buckets with first <= id <= last."""
    cut = slice(*np.searchsorted(statistics.buckets, (first, last + 1)))
    return Statistics(statistics.buckets[cut], statistics.sums[cut])


def sums_of(statistics: Statistics, stream: int, segment: int | None = None) -> Sums:
    """One stream of each arm, over all buckets, and over all segments unless one is named. Exact until the last rounding."""
    cells = _stream(statistics, stream, segment).reshape(-1, statistics.sums.shape[1], CELL)
    # summed in two halves, so that no intermediate leaves 64 bits, and put together as Python's unbounded integers
    upper, lower = (cells >> 32).sum(axis=0).tolist(), (cells & 0xFFFFFFFF).sum(axis=0).tolist()
    exact = [[(u << 32) + v for u, v in zip(*halves, strict=True)] for halves in zip(upper, lower, strict=True)]
    return Sums(
        count=np.array([float(arm[COUNT]) for arm in exact]),
        total=np.array([arm[TOTAL] / MICRO for arm in exact]),
        squares=np.array([(arm[SQUARE_HIGH] * MICRO + arm[SQUARE_LOW]) / MICRO**2 for arm in exact]),
    )


def discounted(statistics: Statistics, stream: int, bucket_now: int, half_life_buckets: float, segment: int | None = None) -> Sums:
    """One stream of each arm, a bucket that is k half-lives old counted at 2**-k; a bucket from the future counts whole.

    half_life_buckets: above 0, in buckets; infinity discounts nothing. For the posterior alone: evidence from discounted counts is not
    bounded by any error level. Source: Raj & Kalyani 2017; forward decay of Cormode et al. 2009, without its overflow.
    """
    if not half_life_buckets > 0:
        raise InvalidArgument(f"half_life_buckets: got {half_life_buckets}; above 0 is allowed", field="half_life_buckets")
    weights = np.exp2(-np.maximum(bucket_now - statistics.buckets, 0) / half_life_buckets)
    cells = _stream(statistics, stream, segment).sum(axis=1, dtype=np.float64)
    count, total, high, low = np.tensordot(weights, cells, axes=1).T
    return Sums(count=count, total=total / MICRO, squares=(high * MICRO + low) / MICRO**2)


def matured(exposures: Sums, reported: Sums, missing: float) -> Sums:
    """The outcomes reported, and one of value `missing` for each exposure whose window has closed without a report.

    exposures: only those whose window has closed; their count is used. reported: their outcomes, in counted units like `missing`.
    With fewer exposures than reports, as when a server lost its exposure counts with its life, the reports stand and nothing is
    subtracted. Pending exposures belong in neither: counting them as failures holds young arms down, and leaving out closed ones
    favours whatever reports fast.
    """
    if not math.isfinite(missing):
        raise InvalidArgument(f"missing: got {missing}; a finite number is allowed", field="missing")
    unreported = np.maximum(exposures.count - reported.count, 0.0)
    return Sums(
        count=reported.count + unreported,
        total=reported.total + unreported * missing,
        squares=reported.squares + unreported * missing * missing,
    )


def _stream(statistics: Statistics, stream: int, segment: int | None) -> Integers:
    """Cells of one stream, int64 (B, segments, arms, 4)."""
    _, _, segments, streams, _ = statistics.sums.shape
    if not 0 <= stream < streams:
        raise InvalidArgument(f"stream: got {stream}; an index from 0 to {streams - 1} is allowed", field="stream")
    if segment is not None and not 0 <= segment < segments:
        raise InvalidArgument(f"segment: got {segment}; an index from 0 to {segments - 1} is allowed", field="segment")
    chosen = slice(None) if segment is None else slice(segment, segment + 1)
    return statistics.sums[:, :, chosen, stream].swapaxes(1, 2)


def _fits(sums: Integers, rough: Floats) -> Integers:
    """`sums`, read-only, unless floating point says that one of them has left 62 bits."""
    if rough.size and np.abs(rough).max() >= _SUM_LIMIT:
        raise _overflow()
    sums.setflags(write=False)
    return sums


def _overflow() -> InvalidArgument:
    return InvalidArgument("sums: a sum would leave 64 bits; count this stream in a larger unit", reason="SUM_TOO_LARGE")


def _frozen(values: ArrayLike, name: str) -> Integers:
    values = np.asarray(values)
    if values.dtype != np.int64:
        raise InvalidArgument(f"{name}: got {values.dtype}; int64 is allowed", field=name)
    if values.flags.writeable:
        values = values.copy()
        values.setflags(write=False)
    return values
