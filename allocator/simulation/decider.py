"""A decider that decides whole batches: `core/decider.py` over arrays.

In: a row of the snapshot, and arrays of requests. Out: arms and flags, and the exposures and draws to count. One replica holds one.
Leases of budgets are filled by the engine's own `Grants`, in the middle of a batch when one runs low, as the server's are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allocator.core.assignment import SLOTS
from allocator.core.gate import REQUESTS, UNITS, Block
from allocator.core.kernels import serve
from allocator.core.snapshot import Entry

Integers = NDArray[np.int64]
NEVER = -(2**62)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Requests. units, points, segments: int64 (n,); hashes: uint64 (n,). See `serve.arrive_units`."""

    units: Integers
    hashes: NDArray[np.uint64]
    points: Integers
    segments: Integers

    @classmethod
    def empty(cls, count: int) -> Batch:
        """Room for `count` requests."""
        return cls(np.empty(count, np.int64), np.empty(count, np.uint64), np.empty(count, np.int64), np.empty(count, np.int64))

    def at(self, places: NDArray[np.bool_]) -> Batch:
        """Some of the requests, in order."""
        return Batch(self.units[places], self.hashes[places], self.points[places], self.segments[places])


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """Of a batch: arms int64 (n,), flags uint8 (n,), exposures int64 (arms, segments, 2) (decisions, those that count in guardrails),
    drawn int64 (segments, arms), draws from the published weights.
    """

    arms: Integers
    flags: NDArray[np.uint8]
    exposures: Integers
    drawn: Integers


class BatchDecider:
    """The memory of one replica of one experiment, for one thread. population: units that come back; 0: none does. `low` is called when a
    lease runs low.
    """

    def __init__(self, arms: int, segments: int, population: int = 0) -> None:
        self._arms, self._segments = arms, segments
        self._version = -1
        self._counters = np.array([0, NEVER, 256, 0, SLOTS, 0, 0], np.int64)
        none = np.empty(0, np.int64)
        self._credit = self._seen = self._rates = none
        self._ceiling = 0
        self._left, self._marks = np.zeros((2, arms), np.int64), np.zeros((2, arms), np.int64)
        self._granted = np.zeros((2, arms), np.int64)
        self._leased = np.zeros(2, np.bool_)
        self._activation = 0
        self._met = np.full((population, arms), NEVER, np.int64)
        self._met_any = np.full(population, NEVER, np.int64)
        self._drew = np.zeros(population, np.int64)
        self._known = np.zeros((population, arms), np.bool_)
        self._met_counts, self._drew_counts = np.zeros(256, np.int64), np.zeros(SLOTS, np.int64)
        self._owner, self._served = np.zeros((1, SLOTS), np.int16), np.zeros((1, arms), np.int64)
        self.low: Callable[[], None] = lambda: None

    def decide(self, entry: Entry, batch: Batch, now: float, *, stale: bool = False) -> Decided:
        """Decide every request of the batch, all at `now`. See `Decider.decide`."""
        if entry.version != self._version:
            self._update(entry)
        count = batch.units.size
        arms, flags = np.empty(count, np.int64), np.empty(count, np.uint8)
        exposures, drawn = np.zeros((self._arms, self._segments, 2), np.int64), np.zeros((self._segments, self._arms), np.int64)
        window, start = int(now // entry.window_seconds), 0
        while start < count:
            start, low = serve.decide(
                start, batch.units, batch.hashes, batch.points, batch.segments, self._owner, self._served, entry.incumbent,
                -1 if entry.only is None else entry.only[0], stale, entry.counted, entry.sticky, entry.first_only, entry.activation,
                window, self._counters, self._credit, self._seen, self._rates, self._ceiling, self._left, self._marks, self._leased,
                self._met, self._met_any, self._met_counts, self._drew, self._drew_counts, self._known, arms, flags, exposures, drawn,
            )  # fmt: skip
            if low:
                self.low()
        return Decided(arms, flags, exposures, drawn)

    # What `Grants` asks of a decider and of a budget: `budget(uid).spent(kind, arm)` and `.post(kind, arm, block)`.

    def budget(self, uid: bytes) -> BatchDecider:
        """The leases: this decider serves one experiment."""
        del uid
        return self

    def spent(self, kind: str, arm: int) -> int:
        """Exposures of `arm` spent from leases of this kind so far."""
        return int(self._granted[_place(kind), arm] - self._left[_place(kind), arm])

    def post(self, kind: str, arm: int, block: Block) -> None:
        """Add a block; it counts from the next decision on. See `BudgetLease.grant`: of this experiment there is one activation."""
        place = _place(kind)
        self._left[place, arm] += block.exposures
        self._granted[place, arm] += block.exposures
        self._marks[place, arm] = self._left[place, arm] // 2

    def _update(self, entry: Entry) -> None:
        self._version = entry.version
        if entry.activation != self._activation:
            self._activation = entry.activation
            self._counters[serve.ENTRIES], self._counters[serve.DREW], self._counters[serve.SAMPLE] = 0, 0, SLOTS
            self._met_counts[:] = self._drew_counts[:] = 0
            self._met[:] = self._met_any[:] = NEVER
        self._owner, self._served = owners(entry), np.array([table.served for table in entry.tables], np.int64).reshape(-1, self._arms)
        if not entry.tables:
            self._owner, self._served = np.zeros((1, SLOTS), np.int16), np.zeros((1, self._arms), np.int64)
        self._leased = np.array([entry.leased_requests, entry.leased_units])
        if not entry.strict:
            self._credit = self._seen = self._rates = np.empty(0, np.int64)
            return
        rates = np.array([int(entry.cap_per_candidate * serve.ONE)] * self._arms + [int(entry.cap * serve.ONE)], np.int64)
        if self._credit.size:
            serve.change_gate(self._counters, self._credit, self._seen, self._rates, self._ceiling, rates)
            return
        burst = int(entry.burst * serve.ONE)
        self._ceiling = max(burst, serve.ONE)
        self._counters[serve.REQUESTS] = 0
        self._credit, self._seen, self._rates = np.full(rates.size, burst, np.int64), np.zeros(rates.size, np.int64), rates


def owners(entry: Entry) -> NDArray[np.int16]:
    """The arm that serves each slot, int16 (tables, 65,536): slots of drained arms are the incumbent's."""
    table = np.empty((len(entry.tables), SLOTS), np.int16)
    for row, (ends, arms, _) in zip(table, entry.tables, strict=True):
        served = [entry.incumbent if entry.drained >> arm & 1 else arm for arm in arms]
        row[:] = np.repeat(np.array(served, np.int16), np.diff(ends, prepend=0))
    return table


def _place(kind: str) -> int:
    return {REQUESTS: 0, UNITS: 1}[kind]
