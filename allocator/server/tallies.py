"""Counters and histograms of plain numbers, for what happens thousands of times a second.

In: additions, all from one thread (the event loop's). Out: what Prometheus reads when it scrapes, from a thread of its own; it may miss the
addition under way, and never sees a torn number. A Counter of prometheus_client takes a lock for each addition, which costs a fifth of all
that a decision costs. `labels` and `inc` are named as there, so that either serves where the other did.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

NOTED_AT_ONCE = 256


class Cell:
    """One count. Whoever is in a hurry adds to `count` itself."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def inc(self, count: int = 1) -> None:
        """Add."""
        self.count += count


class Tally(Collector):
    """A counter with labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._cells: dict[tuple[str, ...], Cell] = {}
        registry.register(self)

    def labels(self, *values: str) -> Cell:
        """The count with these labels, for keeping. Raises ValueError when they are too few or too many."""
        known = self._cells.get(values)
        if known is not None:
            return known
        if len(values) != len(self._labels):
            raise ValueError(f"got {len(values)} labels; {len(self._labels)} are needed: {', '.join(self._labels)}")
        return self._cells.setdefault(values, Cell())

    def collect(self) -> Iterator[CounterMetricFamily]:
        """For Prometheus."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, cell in list(self._cells.items()):
            family.add_metric(values, cell.count)
        yield family


class Spread(Collector):
    """A histogram. bounds: rising upper ends of its buckets, the last of them infinite in any case.

    Whoever is in a hurry appends to `noted` itself, and calls `count` when it has grown to `NOTED_AT_ONCE`: many at a time cost less.
    """

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._counting = threading.Lock()
        self.noted: list[float] = []
        registry.register(self)

    def observe(self, value: float) -> None:
        """Add one value."""
        self.noted.append(value)
        if len(self.noted) >= NOTED_AT_ONCE:
            self.count()

    def count(self) -> None:
        """Sort what was noted into the buckets. Any thread may do so, while another one notes more."""
        with self._counting:
            values = self.noted[:]
            del self.noted[: len(values)]
            for value in values:
                self._counts[bisect_left(self._bounds, value)] += 1
                self._sum += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For Prometheus."""
        self.count()
        total, buckets = 0, []
        with self._counting:
            counts, values = list(self._counts), self._sum
        for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
            total += count
            buckets.append((floatToGoString(bound), total))
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], buckets, values)
        yield family
