"""What does a full plan of one experiment cost?

Five arms, four guardrails, thirty open buckets, everything from integer sums to slots and layout. Beside it, in the same run, what the
parts cost alone, and the share of them. One core plans 1 / median experiments a second.

Run: pytest benchmarks/bench_plan.py -s
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import pytest

from allocator.core.best_arm import best_arm
from allocator.core.experiment import Arm, Exposure, Guardrail, Reward
from allocator.core.experiment_rules import checked
from allocator.core.guardrail import review
from allocator.core.lifecycle import Event, Status, step
from allocator.core.plan import plan
from allocator.core.posterior import BetaPrior, posterior
from allocator.core.record import Cell, Record
from allocator.core.statistics import sums_of
from allocator.core.tally import REWARD_STREAM, counts, streams_of, tally

NOW = 1_800_000_000.0
BUCKETS, ARMS = 30, 5


def busy_record() -> tuple[Record, list[Cell]]:
    """A record in its second plan, and cells of fifteen minutes of traffic."""
    arms = (Arm("old", incumbent=True), *(Arm(f"new{i}") for i in range(ARMS - 1)))
    guardrails = (
        Guardrail("errors", "error", max=0.02),
        Guardrail("outage", "error", max=0.2),
        Guardrail("tail", "latency_ms", quantile=0.99, max=250.0),
        Guardrail("quality", "thumbs_up", min=0.5),
    )
    experiment = checked(name="bench", arms=arms, reward=Reward("click"), exposure=Exposure(total=0.5), guardrails=guardrails)
    status = step(Status(), Event.STARTED, reason="", now=NOW - 900)
    record = Record("00" * 8, experiment, b"salt" * 4, status=status)
    cells = []
    for bucket in range(experiment.bucket(NOW - 900), experiment.bucket(NOW)):
        for arm in range(ARMS):
            for place, stream in enumerate(streams_of(record)):
                bad = (bucket + arm + place) % 50 == 0
                total = [0, 0, (5 + arm) * 1_000_000][place] if place < 3 else bad * 1_000_000
                cells.append(Cell(bucket, arm, 0, stream, 100, total, total if place == 2 else 0))
    made = plan(record, tally(record, cells, ()), NOW)
    return replace(record, slots=made.slots, layouts=made.layouts, status=made.status, version=2), cells


def timed(function, *arguments) -> float:
    """Median seconds of 200 calls."""
    times = []
    for _ in range(200):
        started = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@pytest.fixture(scope="module")
def case():
    record, cells = busy_record()
    return record, cells, tally(record, cells, ())


def test_a_full_plan(benchmark, case):
    record, cells, found = case
    benchmark(plan, record, found, NOW)
    sums = sums_of(found.open, REWARD_STREAM)
    parts = {
        "whole plan": timed(plan, record, found, NOW),
        "guardrails": timed(lambda: review(record.experiment, record.status, (), counts(found.open, found.labels), NOW, 900.0)),
        "posterior and P(best)": timed(lambda: best_arm(posterior(BetaPrior(), sums))),
        "cells to arrays (not part of it)": timed(tally, record, cells, ()),
    }
    print(f"\n{ARMS} arms, {len(record.experiment.guardrails)} guardrails, {BUCKETS} open buckets:")
    for name, seconds in parts.items():
        print(f"  {name:34} {seconds * 1e6:7.0f} us, {seconds / parts['whole plan']:.2f} of the plan")
    print(f"  one core plans {1 / parts['whole plan']:.0f} experiments a second")
