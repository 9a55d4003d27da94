"""Plain counts look to Prometheus as its own counters and histograms do."""

from __future__ import annotations

import random

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from allocator.server.tallies import Spread, Tally


def values(registry):
    """Every sample but the times at which prometheus_client's own were made."""
    return {line for line in generate_latest(registry).decode().splitlines() if "_created" not in line}


def test_a_tally_is_scraped_as_a_counter_is():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("calls", "Calls.", ["method", "code"], ours)
    counter = Counter("calls", "Calls.", ["method", "code"], registry=theirs)
    for number in range(50):
        labels = ("Decide", "OK") if number % 3 else ('B"atch\n', "ERROR")
        tally.labels(*labels).inc(number)
        tally.labels(*labels).count += 1
        counter.labels(*labels).inc(number + 1)
    assert values(ours) == values(theirs)


def test_a_spread_is_scraped_as_a_histogram_is():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bounds = (1e-5, 0.001, 0.5, 1.0)
    spread = Spread("seconds", "Seconds.", bounds, ours)
    histogram = Histogram("seconds", "Seconds.", buckets=bounds, registry=theirs)
    rng = random.Random(1)
    for value in (*bounds, 0.0, 7.0, *(rng.expovariate(10.0) for _ in range(500))):
        spread.observe(value)
        histogram.observe(value)
    assert values(ours) == values(theirs)


def test_labels_that_do_not_fit_are_refused():
    tally = Tally("calls", "Calls.", ["method", "code"], CollectorRegistry())
    with pytest.raises(ValueError, match="2 are needed"):
        tally.labels("Decide")
