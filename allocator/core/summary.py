"""What was counted of an experiment, as sums for whoever makes reports: exact, since the start, nothing forgotten by age.

In: a record and its tally. Out: a `Row` for each arm, segment and statistic: decisions; first decisions of a unit, which count again for
each arm, window and activation, so that they are at least as many as units; rewards that count now (with `missing`, by whole cohorts whose
window has passed, as the planner counts them); and the losses of each guardrail in this activation. Rewards are put back into their own
units here, in rational numbers, so that the sums are as exact as what the store added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from allocator.core.experiment import Reward
from allocator.core.record import Record
from allocator.core.statistics import COUNT, MICRO, SQUARE_HIGH, SQUARE_LOW, TOTAL, Integers
from allocator.core.tally import EXPOSURE_STREAM, FIRST_GUARDRAIL, REWARD_STREAM, UNIT_STREAM, Tally


class Statistic(Enum):
    """What a row sums up."""

    DECISIONS = "DECISIONS"
    REWARD = "REWARD"
    LOSS = "LOSS"
    UNITS = "UNITS"


class Row(NamedTuple):
    """arm, segment: indices. guardrail: name, of LOSS. total, squares: in the metric's own units. bucket, width: seconds."""

    arm: int
    segment: int
    statistic: Statistic
    guardrail: str
    count: int
    total: float
    squares: float
    bucket: float = 0.0
    width: float = 0.0


def summary(record: Record, found: Tally) -> list[Row]:
    """Every sum since the start, those of nothing left out."""
    new, old = found.open.sums.sum(axis=0), found.settled.sums.sum(axis=0)
    units = (new + old)[:, :, UNIT_STREAM, COUNT]
    first = [(*key, int(units[key]) + found.past_units.get(key, 0)) for key in np.ndindex(units.shape)]
    return [
        *_rows(record, new + old, _matured(record, old) if record.experiment.reward.missing is not None else None),
        *(Row(arm, segment, Statistic.UNITS, "", count, 0.0, 0.0) for arm, segment, count in first if count),
    ]


def by_bucket(record: Record, found: Tally, coarse_seconds: float) -> list[Row]:
    """The same, as reported, for each bucket of decision time; no units. coarse_seconds: width of settled buckets; 0: they became one."""
    width = record.experiment.bucket_width_seconds
    rows = []
    for statistics, seconds in ((found.settled, coarse_seconds), (found.open, width)):
        for bucket, sums in zip(statistics.buckets.tolist(), statistics.sums, strict=True):
            rows += [row._replace(bucket=bucket * seconds, width=seconds) for row in _rows(record, sums, None)]
    return rows


def _rows(record: Record, sums: Integers, rewards: dict[tuple[int, int], tuple[int, Fraction, Fraction]] | None) -> Iterator[Row]:
    """sums: (arms, segments, streams, 4). rewards: those that count, by arm and segment; None: all that were reported."""
    reward, guardrails = record.experiment.reward, record.experiment.guardrails
    for arm, segment in np.ndindex(sums.shape[:2]):
        cells = sums[arm, segment]
        if decisions := int(cells[EXPOSURE_STREAM, COUNT]):
            yield Row(arm, segment, Statistic.DECISIONS, "", decisions, 0.0, 0.0)
        count, total, squares = rewards[arm, segment] if rewards is not None else _exact(cells[REWARD_STREAM])
        if count:
            yield Row(arm, segment, Statistic.REWARD, "", count, *_in_own_units(reward, count, total, squares))
        units = int(cells[UNIT_STREAM, COUNT])
        for index, guardrail in enumerate(guardrails if units else ()):
            total = int(cells[FIRST_GUARDRAIL + index, TOTAL]) / MICRO
            yield Row(arm, segment, Statistic.LOSS, guardrail.name, units, total, 0.0)


def _matured(record: Record, settled: Integers) -> dict[tuple[int, int], tuple[int, Fraction, Fraction]]:
    """Rewards of settled cohorts, and one of value `missing` for each decision that nobody reported."""
    reward = record.experiment.reward
    missing = (Fraction(reward.missing) - Fraction(reward.shift)) / Fraction(reward.unit)
    found = {}
    for arm, segment in np.ndindex(settled.shape[:2]):
        count, total, squares = _exact(settled[arm, segment, REWARD_STREAM])
        silent = max(int(settled[arm, segment, EXPOSURE_STREAM, COUNT]) - count, 0)
        found[arm, segment] = count + silent, total + silent * missing, squares + silent * missing**2
    return found


def _exact(cell: Integers) -> tuple[int, Fraction, Fraction]:
    squares = int(cell[SQUARE_HIGH]) * MICRO + int(cell[SQUARE_LOW])
    return int(cell[COUNT]), Fraction(int(cell[TOTAL]), MICRO), Fraction(squares, MICRO**2)


def _in_own_units(reward: Reward, count: int, total: Fraction, squares: Fraction) -> tuple[float, float]:
    """(total, squares) of shift + unit * counted."""
    shift, unit = Fraction(reward.shift), Fraction(reward.unit)
    return float(count * shift + unit * total), float(count * shift**2 + 2 * shift * unit * total + unit**2 * squares)
