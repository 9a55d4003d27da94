"""An engine on a clock of its own and a store in memory: nothing runs unless a test says so."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from allocator.core.decision import Decision
from allocator.core.outcome import Outcome
from allocator.engine.engine import Engine
from allocator.engine.ingest import Result
from allocator.ports import Store
from allocator.stores.memory import MemoryStore
from tests.conftest import ManualClock, SeededEntropy


@dataclass
class Rehearsal:
    """An engine, its clock, and a serving system that asks and reports."""

    store: Store = field(default_factory=MemoryStore)
    clock: ManualClock = field(default_factory=ManualClock)
    seed: int = 0

    def __post_init__(self) -> None:
        self.entropy = SeededEntropy(self.seed)
        self.engine = Engine(self.store, self.clock, self.entropy, restarted=False, holder="rehearsal")  # the next one takes its place
        self.engine.start(threads=False)
        self.rng = random.Random(self.seed)
        self.units = 0

    def run(self, experiment, **start: object) -> Engine:
        """Apply and start."""
        self.engine.commands.apply(experiment, actor="ann")
        self.engine.commands.start(experiment.full_name, actor="ann")
        return self.engine

    def decide(self, name: str = "default/ranker", unit: str | None = None, attributes: Mapping[str, str] | None = None) -> Decision:
        """Ask for one unit, a new one unless named."""
        self.units += 1
        entry = self.engine.live.snapshot.entries[name]
        return self.engine.decider.decide(
            entry,
            (unit or f"unit-{self.units}").encode(),
            attributes or {},
            self.clock.now(),
            self.entropy.bytes(8),
            stale=self.engine.live.stale(entry),
        )

    def serve(
        self,
        count: int,
        values: Callable[[str], Mapping[str, float]],
        name: str = "default/ranker",
        attributes: Mapping[str, str] | None = None,
        seconds: float = 1.0,
    ) -> list[Decision]:
        """Decide for `count` new units, report `values(arm)` of each (key `reward` is the reward), plan, and let time pass."""
        decisions = [self.decide(name, attributes=attributes) for _ in range(count)]
        outcomes = []
        for decision in decisions:
            found = dict(values(decision.arm))
            reward = found.pop("reward", None)
            if reward is not None or found:
                outcomes.append(Outcome(decision.id, reward, found))
        for start in range(0, len(outcomes), 1000):
            self.report(outcomes[start : start + 1000])
        self.engine.ingest.report((), self.engine.decider.take())
        self.clock.pass_(seconds)
        self.plan()
        return decisions

    def report(self, outcomes: list[Outcome]) -> list[Result]:
        """Report with the exposures counted so far."""
        return self.engine.ingest.report(outcomes, self.engine.decider.take())

    def plan(self) -> None:
        """Plan every experiment now, weights included."""
        for record in self.engine.registry.all():
            self.engine.planner.replan(record.uid)
        self.engine.planner.tick()

    def record(self, name: str = "ranker"):
        """The record as it is now."""
        return self.engine.registry.get(name)

    def actions(self) -> list[str]:
        """What the audit says happened, in order."""
        return [record.entry.action for record in self.store.audit()]

    def chance(self, probability: float) -> float:
        """1.0 with this probability, else 0.0."""
        return float(self.rng.random() < probability)


@pytest.fixture
def rehearsal() -> Rehearsal:
    return Rehearsal()
