"""Several engines on one store, on told time: nothing runs unless a test says so, and the store can be cut off, emptied or put back."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allocator.core.decision import Decision
from allocator.core.outcome import Outcome
from allocator.engine.engine import Engine
from allocator.errors import Unavailable
from allocator.stores.keepsake import DiskKeepsake
from allocator.stores.memory import MemoryStore
from tests.conftest import ManualClock, SeededEntropy

CALLS = {
    "secret", "records", "record", "save", "add", "cells", "settled", "changed", "grant", "granted", "audit", "lead", "resign", "news",
    "listen",
    "items", "put", "begin", "close",
}  # fmt: skip


class Line:
    """One server's connection to the store: it can be cut, and look at what goes over it."""

    shared = True

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.cut = False
        self.calls: list[str] = []
        self.before: dict[str, Callable[[], None]] = {}  # what happens just before a call arrives, once

    def ready(self, exposures: list) -> list:
        """Nothing of this goes over the line."""
        return list(exposures)

    def __getattr__(self, name: str) -> Any:
        if name not in CALLS:
            raise AttributeError(name)

        def call(*values: Any, **named: Any) -> Any:
            self.calls.append(name)
            self.before.pop(name, lambda: None)()
            if name == "close":
                return None
            if self.cut:
                raise Unavailable("the store is gone", reason="STORE_FAILED")
            return getattr(self._fleet.store, name)(*values, **named)

        return call


class Fleet:
    """Servers by name. Each has its own connection and, with `disk`, its own keepsake."""

    def __init__(self, disk: Path | None = None, seed: int = 0) -> None:
        self.clock = ManualClock()
        self.disk = disk
        self.seed = seed
        self.lives = 0
        self.store = self.new_store()
        self.engines: dict[str, Engine] = {}
        self.lines: dict[str, Line] = {}
        self.units = 0

    def new_store(self) -> MemoryStore:
        """An empty store."""
        self.lives += 1
        return MemoryStore(SeededEntropy(self.seed + 1000 * self.lives), self.clock)

    def kept_copy(self) -> MemoryStore:
        """The store as it is now, to be put back later."""
        lock, self.store._lock = self.store._lock, None
        clock, self.store._clock = self.store._clock, None
        try:
            made = copy.deepcopy(self.store)
        finally:
            self.store._lock, self.store._clock = lock, clock
        made._lock, made._clock = threading.Lock(), clock
        return made

    def start(self, name: str, clock: ManualClock | None = None, *, cut: bool = False) -> Engine:
        """Start a server, again perhaps."""
        line = self.lines[name] = Line(self)
        line.cut = cut
        keepsake = None if self.disk is None else DiskKeepsake(self.disk / name)
        entropy = SeededEntropy(self.seed + 7 * len(self.engines) + 1)
        engine = Engine(line, clock or self.clock, entropy, restarted=False, keepsake=keepsake, holder=f"{name}-{self.lives}-{id(line)}")
        self.engines[name] = engine
        engine.start(threads=False)
        return engine

    def kill(self, name: str) -> None:
        """It is gone without a word."""
        self.lines.pop(name)
        engine = self.engines.pop(name)
        if engine._keepsake is not None:
            engine._keepsake.close()

    def tick(self, *names: str, seconds: float = 0.0) -> None:
        """Let time pass, then each (or these) make a pass; those whose store is gone fail."""
        self.clock.pass_(seconds)
        for name in names or list(self.engines):
            try:
                self.engines[name].planner.tick()
            except Unavailable:
                assert self.lines[name].cut

    def leaders(self) -> list[str]:
        """Who plans now."""
        return [name for name, engine in self.engines.items() if engine.term.in_force()]

    def decide(self, name: str, experiment: str = "default/ranker", unit: str | None = None) -> Decision:
        """Ask one server, for a new unit unless named."""
        self.units += 1
        engine = self.engines[name]
        entry = engine.live.snapshot.entries[experiment]
        return engine.decider.decide(
            entry,
            (unit or f"unit-{self.units}").encode(),
            {},
            self.clock.now(),
            engine.entropy.bytes(8),
            stale=engine.live.stale(entry),
        )

    def reasons(self, name: str, count: int = 40) -> set[str]:
        """Of decisions for new units."""
        return {self.decide(name).reason.name for _ in range(count)}

    def arms(self, name: str, count: int = 60) -> set[str]:
        """That new units get."""
        return {self.decide(name).arm for _ in range(count)}

    def table(self, name: str) -> dict[str, str]:
        """What a server serves, as digests."""
        return {entry.experiment: entry.digest() for entry in self.engines[name].live.snapshot.entries.values()}

    def report(self, name: str, decisions: list[Decision], reward: float = 1.0, **metrics: float) -> list[str]:
        """Report the same of each to one server; the statuses."""
        engine = self.engines[name]
        results = engine.ingest.report([Outcome(d.id, reward, metrics or None) for d in decisions], engine.decider.take())
        return [result.status.value for result in results]

    def run(self, name: str, experiment: Any) -> None:
        """Apply and start it at one server, and let all hear of it."""
        commands = self.engines[name].commands
        commands.apply(experiment, actor="ann")
        commands.start(experiment.full_name, actor="ann")
        for _ in range(3):
            self.tick(seconds=1)

    def actions(self) -> list[str]:
        """What the audit says happened, in order."""
        return [record.entry.action for record in self.store.audit()]
