"""One replication of a world as it unfolds, whoever decides in it.

In: a scenario and a seed. Out, tick by tick: who asks, what the arms that they get pay, and what is heard of it by then. Requests, units,
what each arm would pay, delays and losses belong to (seed, request or unit, arm), so every decider meets the same ones, and what two of
them make of a replication may be compared by the difference. Those who decide are `run.Rehearsal`, the core that serves, and
`baseline.Baseline`, a policy of the literature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from allocator.core.experiment import Assignment
from allocator.core.kernels import serve
from allocator.simulation.decider import Batch
from allocator.simulation.ledger import Ledger
from allocator.simulation.parallel import Seed, child, key_of
from allocator.simulation.scenario import Scenario
from allocator.simulation.world import Rates

START = 1_800_000_000.0  # when the clock of an episode starts, seconds since the epoch
Floats, Integers = NDArray[np.float64], NDArray[np.int64]
Decisions = tuple[Integers, NDArray[np.uint8], Integers]


class Episode(ABC):
    """A world on a clock of its own. now: seconds since the epoch; requests: how many came; ledger: what was counted and is on its way.

    plans: of how many latest plans the ledger keeps rewards apart.
    """

    def __init__(self, scenario: Scenario, seed: Seed, plans: int = 0) -> None:
        self.scenario, self.experiment = scenario, scenario.experiment
        self.rates = Rates(scenario.world, scenario.experiment)
        self.key = key_of(seed)
        self.ledger = Ledger(scenario.experiment, scenario.world.reports, self.key, scenario.tick_seconds, plans)
        self.now, self.requests = START, 0
        self._rng = np.random.Generator(np.random.PCG64(child(seed, 1)))

    def tick(self) -> None:
        """One batch of requests is decided and served, what is reported by now is counted, a tick passes, and the next plan is made."""
        seconds = self.now - START
        middle = self.rates.at(seconds)
        first, count = self.requests, self.count(seconds)
        batch = self.arrive(first, count)
        arms, flags, plans = self.decide(batch)
        values = np.empty((count, len(self.rates.names)))
        serve.respond(
            self.key[0], self.key[1], first, batch.units, batch.segments, arms, self.rates.kinds, self.rates.by_unit, middle,
            self.rates.spread, self.rates.low, self.rates.high, values,
        )  # fmt: skip
        self.requests += count
        self.served(middle, arms, batch.segments, seconds)
        self.ledger.send(first, arms, batch.segments, flags, plans, values, self.now)
        self.ledger.arrive(self.now)
        self.now += self.scenario.tick_seconds
        self.plan()

    def count(self, seconds: float) -> int:
        """How many requests come in the tick that begins so many seconds after the start."""
        tick = self.scenario.tick_seconds
        mean = max(self.scenario.world.traffic.rate.at(seconds), 0.0) * tick
        if self.scenario.world.traffic.poisson:
            return int(self._rng.poisson(mean))
        return int(mean * (round(seconds / tick) + 1) + 1e-9) - int(mean * round(seconds / tick) + 1e-9)

    def arrive(self, first: int, count: int) -> Batch:
        """Requests first, first + 1, ...: who asks."""
        batch = Batch.empty(count)
        serve.arrive_units(
            self.key[0], self.key[1], first, self.scenario.world.traffic.population, self.rates.ends,
            self.experiment.assignment is Assignment.STICKY, batch.units, batch.hashes, batch.points, batch.segments,
        )  # fmt: skip
        return batch

    @abstractmethod
    def decide(self, batch: Batch) -> Decisions:
        """Arm, flags and version of the plan of each request; what is exposed is counted in the ledger."""

    @abstractmethod
    def served(self, middle: Floats, arms: Integers, segments: Integers, seconds: float) -> None:
        """A batch was served. middle: (arms, segments, metrics), the rates of that time."""

    @abstractmethod
    def plan(self) -> None:
        """It is `now`: make the next plan from what was counted."""
