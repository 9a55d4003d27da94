"""What a store would have counted of one experiment, as arrays: open buckets, settled ones, and outcomes that are still on their way.

In: batches of decisions and of what they will report. Out: the `Tally` that a plan reads, equal to what a server's ingest and store make
of the same decisions and outcomes. Sums are additive integers, so a batch is added at once. A decision's outcome waits in a list of the
tick in which it arrives; lists share one pool that grows when it must. What a deduplicating store would drop (a second report) is
counted and goes no further.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allocator.core.assignment import SLOTS
from allocator.core.experiment import Experiment, RewardModel
from allocator.core.guardrail_counts import Labels
from allocator.core.kernels import serve
from allocator.core.outcome import metric_names
from allocator.core.sample_ratio import Draws
from allocator.core.snapshot import Entry
from allocator.core.statistics import CELL, COUNT, MICRO, Statistics
from allocator.core.tally import EXPOSURE_STREAM, FIRST_GUARDRAIL, UNIT_STREAM, Tally
from allocator.simulation.decider import Decided
from allocator.simulation.world import Reports, value_range

Integers = NDArray[np.int64]

FIRST_ROOM = 1024
PLANS_REMEMBERED = 4096  # as the server's registry: an outcome under an older plan teaches a relative guardrail nothing


@dataclass(frozen=True, slots=True)
class Reported:
    """Outcomes so far. accepted: counted; late, missing: never counted; duplicates: a second report, counted once."""

    accepted: int
    late: int
    missing: int
    duplicates: int


class Ledger:
    """The counts of one experiment in one activation. tick_seconds: outcomes arrive at multiples of it.

    by_plan: int64 (plans, arms, 2), rewards heard of and their sum in micro-units, by the version of the plan that decided, modulo `plans`.
    """

    def __init__(self, experiment: Experiment, reports: Reports, key: NDArray[np.uint64], tick_seconds: float, plans: int = 0) -> None:
        self._experiment, self._reports = experiment, reports
        self._key0, self._key1 = key
        self._tick_seconds = tick_seconds
        self._arms, self._segments = len(experiment.arms), len(experiment.segments) + 1
        self._streams = FIRST_GUARDRAIL + len(experiment.guardrails)
        self._shape = (self._arms, self._segments, self._streams, CELL)
        self._buckets = np.zeros(0, np.int64)
        self._open = np.zeros((8, *self._shape), np.int64)
        self._settled_buckets = np.zeros(0, np.int64)
        self._settled = np.zeros((0, *self._shape), np.int64)
        self._settled_through = -(2**62)
        self.by_plan = np.zeros((plans, self._arms, 2), np.int64)
        self._draws: dict[int, list[list[int]]] = {}
        self._plans: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._labels: dict[int, dict[tuple[int, int, int, tuple[int, ...]], int]] = {}
        metrics = metric_names(experiment)
        ring = math.ceil(experiment.reward.window_seconds / tick_seconds) + 2
        self._heads = np.full(ring, -1, np.int64)
        self._pending = np.zeros((0, 6), np.int64)
        self._pending_values = np.zeros((0, len(metrics) + 1))
        self._counters = np.zeros(5, np.int64)
        self._free = self._underway = 0
        self._grow(FIRST_ROOM)
        self._rules(metrics)

    def plan(self, entry: Entry) -> None:
        """A plan is in force: outcomes of its decisions are judged by its weights."""
        if not self._relative.any() or entry.version in self._plans:
            return
        self._plans[entry.version] = tuple(table.served for table in entry.tables)
        while len(self._plans) > PLANS_REMEMBERED:
            del self._plans[next(iter(self._plans))]

    def exposed(self, entry: Entry, life: int, decided: Decided, now: float) -> None:
        """Count the exposures of one decider's batch. life: of the decider, 0 where every decision is a draw of its own."""
        if decided.exposures.any():
            self.count(decided.exposures, now)
            self._draw(entry, life, decided.drawn)

    def count(self, exposures: Integers, now: float) -> None:
        """Add exposures, (arms, segments, 2), decisions and those that count in guardrails; not all 0."""
        row = self._row(self._experiment.bucket(now))
        row[:, :, EXPOSURE_STREAM, COUNT] += exposures[:, :, 0]
        row[:, :, UNIT_STREAM, COUNT] += exposures[:, :, 1]

    def send(
        self,
        first: int,
        arms: Integers,
        segments: Integers,
        flags: NDArray[np.uint8],
        plans: Integers,
        values: NDArray[np.float64],
        now: float,
    ) -> None:
        """Send the outcomes of requests first, first + 1, ... on their way.

        plans: version of the entry that each was decided by. values: float64 (n, metrics), what each would report. now: of the decisions, a
        whole number of ticks since the epoch.
        """
        count = arms.size
        self._grow(count)
        reports, tick = self._reports, round(now / self._tick_seconds)
        bad_delay = reports.delay_seconds if reports.bad_delay_seconds is None else reports.bad_delay_seconds
        sent = serve.report(
            self._key0, self._key1, first, now, self._tick_seconds, tick, self._experiment.reward.window_seconds, reports.missing,
            reports.duplicates, reports.delay_seconds, bad_delay, reports.steady, reports.successes_only,
            self._experiment.bucket(now), plans, arms, segments, flags, values, self._heads, self._pending, self._pending_values,
            self._counters,
        )  # fmt: skip
        self._free -= sent
        self._underway += sent

    def arrive(self, now: float) -> None:
        """Count what arrives at `now`, a whole number of ticks since the epoch."""
        room = self._underway * int(self._relative.sum())
        labels = np.empty((room, 6), np.int64)
        before = self._counters[[serve.LATE, serve.ACCEPTED]].sum()
        filled = serve.arrive(
            now, round(now / self._tick_seconds), self._experiment.reward.window_seconds, self._settled_through, *self._reward,
            *self._guardrails, self._relative, self._buckets, self._open, self._heads, self._pending, self._pending_values,
            self._counters, labels, self.by_plan,
        )  # fmt: skip
        arrived = int(self._counters[[serve.LATE, serve.ACCEPTED]].sum() - before)
        self._underway -= arrived
        self._free += arrived
        for guardrail, bucket, arm, segment, version, micro in labels[:filled].tolist():
            tables = self._plans.get(version)
            if tables:
                key = (bucket, arm, segment, tables[segment if len(tables) > 1 else 0])
                sums = self._labels.setdefault(guardrail, {})
                sums[key] = sums.get(key, 0) + micro

    def settle(self, through: int, coarsen: int) -> None:
        """Close buckets, as `Settle` says."""
        self._settled_through = max(self._settled_through, through)
        count = int(np.searchsorted(self._buckets, self._settled_through, side="right"))
        if not count:
            return
        for bucket, sums in zip(self._buckets[:count].tolist(), self._open[:count], strict=True):
            coarse = bucket // coarsen if coarsen else 0
            if not self._settled_buckets.size or self._settled_buckets[-1] != coarse:
                self._settled_buckets = np.append(self._settled_buckets, coarse)
                self._settled = np.concatenate([self._settled, np.zeros((1, *self._shape), np.int64)])
            self._settled[-1] += sums
        left = self._buckets.size - count
        self._open[:left] = self._open[count : count + left]
        self._open[left:] = 0
        self._buckets = self._buckets[count:].copy()
        for sums in self._labels.values():
            for key in [key for key in sums if key[0] <= self._settled_through]:
                del sums[key]

    def tally(self) -> Tally:
        """Everything counted. Budgets' grants are the caller's to add."""
        return Tally(
            Statistics(self._buckets, self._open[: self._buckets.size]),
            Statistics(self._settled_buckets, self._settled),
            {guardrail: _label_rows(sums) for guardrail, sums in self._labels.items() if sums},
            tuple(Draws(*map(tuple, sums)) for _, sums in sorted(self._draws.items())),
        )

    @property
    def reported(self) -> Reported:
        """What became of outcomes so far."""
        c = self._counters
        return Reported(*(int(c[place]) for place in (serve.ACCEPTED, serve.LATE, serve.MISSING, serve.DUPLICATE)))

    def _rules(self, metrics: tuple[str, ...]) -> None:
        experiment, reward = self._experiment, self._experiment.reward
        self._reward = (reward.shift, reward.unit, reward.model is not RewardModel.POISSON)
        guardrails = experiment.guardrails
        ranges = [value_range(experiment, g.metric) for g in guardrails]
        kinds = [serve.EXCEEDANCE if g.quantile is not None else serve.SHORTFALL if g.min is not None else serve.MEAN for g in guardrails]
        limits = [g.max if g.max is not None else math.nan for g in guardrails]
        self._guardrails = (
            np.array([metrics.index(g.metric) for g in guardrails], np.int64),
            np.array(kinds, np.int64),
            np.array([low for low, _ in ranges], np.float64),
            np.array([high for _, high in ranges], np.float64),
            np.array(limits, np.float64),
            np.array([experiment.guardrail_window_seconds(g) for g in guardrails], np.float64),
        )
        self._relative = np.array([g.relative for g in guardrails], np.bool_)

    def _row(self, bucket: int) -> Integers:
        """Sums of an open bucket, (arms, segments, streams, 4); it is the latest, or a new one after it."""
        if not self._buckets.size or self._buckets[-1] != bucket:
            self._buckets = np.append(self._buckets, bucket)
            if self._buckets.size > len(self._open):
                self._open = np.concatenate([self._open, np.zeros_like(self._open)])
        return self._open[self._buckets.size - 1]

    def _draw(self, entry: Entry, life: int, drawn: Integers) -> None:
        """Add draws, and what they should have been, as `Decider.take` does."""
        for segment, counts in enumerate(drawn.tolist()):
            total = sum(counts)
            if not total:
                continue
            sums = self._draws.setdefault(life, [[0] * self._arms for _ in range(3)])
            served = entry.tables[segment if len(entry.tables) > 1 else 0].served
            for arm, (count, share) in enumerate(zip(counts, served, strict=True)):
                sums[0][arm] += count
                sums[1][arm] += total * share
                sums[2][arm] += total * share * (SLOTS - share)

    def _grow(self, count: int) -> None:
        """Room for `count` more pending outcomes."""
        if self._free >= count:
            return
        have = len(self._pending)
        more = max(have, count, FIRST_ROOM)
        self._pending = np.concatenate([self._pending, np.zeros((more, 6), np.int64)])
        self._pending_values = np.concatenate([self._pending_values, np.zeros((more, self._pending_values.shape[1]))])
        self._pending[have:, serve.NEXT] = np.arange(have + 1, have + more + 1)
        self._pending[-1, serve.NEXT] = self._counters[serve.FREE]
        self._counters[serve.FREE] = have
        self._free += more


def _label_rows(sums: dict[tuple[int, int, int, tuple[int, ...]], int]) -> Labels:
    bucket, arm, segment, slots = zip(*sums, strict=True)
    return Labels(
        np.array(bucket, np.int64),
        np.array(arm, np.int64),
        np.array(segment, np.int64),
        np.array(list(sums.values()), np.float64) / MICRO,
        np.array(slots, np.float64),
    )
