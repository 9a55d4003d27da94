"""What the store counted for one experiment, in the shape that a plan needs.

In: a record and its cells, open and settled. Out: a `Tally`: dense integer statistics by bucket, arm, segment and stream, the rows of
relative guardrails, the draws of each decider, and what was granted of budgets. The streams are, in order: exposures, decisions that count
in guardrails, the reward, each guardrail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from allocator.core.guardrail_counts import Counts, Labels, key_of
from allocator.core.record import EXPOSURES, RATIO, REWARD, UNITS, Cell, Record
from allocator.core.sample_ratio import Draws
from allocator.core.statistics import COUNT, MICRO, TOTAL, Statistics, between

_UNITS = f"{UNITS}#"
EXPOSURE_STREAM, UNIT_STREAM, REWARD_STREAM, FIRST_GUARDRAIL = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Tally:
    """open: by bucket of decision time. settled: by coarsened bucket. labels: by index of relative guardrails, open buckets only.

    draws: of each life of a decider in this activation, in the order in which they began. granted: what was ever set aside of budgets,
    by arm and kind. held: arms for which this process holds some of it unspent. past_units: decisions that counted in guardrails of other
    activations, by arm and segment; no plan needs them.
    """

    open: Statistics
    settled: Statistics
    labels: dict[int, Labels] = field(default_factory=dict)
    draws: tuple[Draws, ...] = ()
    granted: Mapping[tuple[int, str], int] = field(default_factory=dict)
    held: frozenset[int] = frozenset()
    past_units: Mapping[tuple[int, int], int] = field(default_factory=dict)


def streams_of(record: Record) -> dict[str, int]:
    """Index of each stream that the plan reads, by the name that cells carry."""
    activation = record.status.activation
    names = {EXPOSURES: EXPOSURE_STREAM, f"{UNITS}#{activation}": UNIT_STREAM, REWARD: REWARD_STREAM}
    for index, guardrail in enumerate(record.experiment.guardrails):
        names[key_of(guardrail, activation)] = FIRST_GUARDRAIL + index
    return names


def label_stream(key: str, slots: Iterable[int]) -> str:
    """Name of the stream of bad outcomes of a relative guardrail that were decided under these weights."""
    return f"{key}|{','.join(map(str, slots))}"


def draw_stream(activation: int, life: int) -> str:
    """Name of the stream of what one life of a decider has drawn in one activation."""
    return f"{RATIO}#{activation}/{life}"


def tally(record: Record, open_cells: Iterable[Cell], settled_cells: Iterable[Cell]) -> Tally:
    """The cells as arrays. Cells of streams that nobody reads (guardrails of an earlier activation, dropped ones) are left out."""
    experiment = record.experiment
    names = streams_of(record)
    arms, segments, streams = len(experiment.arms), len(experiment.segments) + 1, len(names)
    keys = {key_of(g, record.status.activation): i for i, g in enumerate(experiment.guardrails) if g.relative}
    labelled: dict[int, list[tuple[int, int, int, float, list[int]]]] = {}
    drawing = draw_stream(record.status.activation, 0)[:-1]
    drawn: dict[int, list[list[int]]] = {}
    past: dict[tuple[int, int], int] = {}
    rows: list[tuple[int, ...]] = []
    for cell in open_cells:
        index = names.get(cell.stream)
        if index is not None:
            rows.append((cell.bucket, cell.arm, cell.segment, index, *cell[4:]))
            continue
        if cell.stream.startswith(drawing):
            _add_draws(drawn, arms, cell, drawing)
            continue
        key, _, slots = cell.stream.partition("|")
        if slots and key in keys:
            shares = [int(count) for count in slots.split(",")]
            shares += [0] * (arms - len(shares))
            labelled.setdefault(keys[key], []).append((cell.bucket, cell.arm, cell.segment, cell.total / MICRO, shares))
        elif cell.stream.startswith(_UNITS):
            past[cell.arm, cell.segment] = past.get((cell.arm, cell.segment), 0) + cell.count
    settled_rows = []
    for cell in settled_cells:
        if cell.stream in names:
            settled_rows.append((cell.bucket, cell.arm, cell.segment, names[cell.stream], *cell[4:]))
        elif cell.stream.startswith(drawing):
            _add_draws(drawn, arms, cell, drawing)
        elif cell.stream.startswith(_UNITS):
            past[cell.arm, cell.segment] = past.get((cell.arm, cell.segment), 0) + cell.count
    return Tally(
        Statistics.from_rows(arms, segments, streams, _array(rows)),
        Statistics.from_rows(arms, segments, streams, _array(settled_rows)),
        {index: _labels(found) for index, found in labelled.items()},
        tuple(Draws(*map(tuple, sums)) for _, sums in sorted(drawn.items())),
        past_units=past,
    )


def counts(statistics: Statistics, labels: dict[int, Labels]) -> Counts:
    """The guardrails' view of open or closing buckets."""
    sums = statistics.sums
    guarded = sums[:, :, :, FIRST_GUARDRAIL:, :].transpose(0, 3, 1, 2, 4)
    return Counts(
        statistics.buckets,
        sums[:, :, :, UNIT_STREAM, COUNT].astype(np.float64),
        guarded[..., COUNT].astype(np.float64),
        guarded[..., TOTAL] / MICRO,
        labels,
    )


def up_to(found: Tally, bucket: int) -> Statistics:
    """The open buckets from the oldest to `bucket`, it included."""
    first = int(found.open.buckets[0]) if found.open.buckets.size else bucket
    return between(found.open, min(first, bucket), bucket)


def _add_draws(drawn: dict[int, list[list[int]]], arms: int, cell: Cell, prefix: str) -> None:
    sums = drawn.setdefault(int(cell.stream.removeprefix(prefix)), [[0] * arms for _ in range(3)])
    for column, value in zip(sums, (cell.count, cell.total, cell.square_high * MICRO + cell.square_low), strict=True):
        column[cell.arm] += value


def _array(rows: list[tuple[int, ...]]) -> NDArray[np.int64]:
    return np.array(rows, dtype=np.int64).reshape(-1, 8)


def _labels(found: list[tuple[int, int, int, float, list[int]]]) -> Labels:
    bucket, arm, segment, weight, slots = zip(*found, strict=True)
    return Labels(
        np.array(bucket, dtype=np.int64),
        np.array(arm, dtype=np.int64),
        np.array(segment, dtype=np.int64),
        np.array(weight, dtype=np.float64),
        np.array(slots, dtype=np.float64),
    )
