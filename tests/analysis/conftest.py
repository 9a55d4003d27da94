"""An engine that writes a decision log, on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from allocator.core.decision import Decision
from allocator.core.outcome import Outcome
from allocator.engine.ingest import Result
from allocator.server.decision_log import DecisionLog
from tests.engine.conftest import Rehearsal


class Logging(Rehearsal):
    """A rehearsal whose decisions and outcomes go through the hooks that servicers call. Nothing is written unless a test says so."""

    def begin(self, directory: Path, **options: object) -> None:
        self.directory = directory
        self.log = DecisionLog(directory, self.engine.live, self.engine.registry, self.clock.now, flush_seconds=3600, **options)
        self.log.start()

    def decide(self, name="default/ranker", unit=None, attributes: Mapping[str, str] | None = None) -> Decision:
        entry = self.engine.live.snapshot.entries[name]
        unit = unit or f"unit-{self.units + 1}"
        decision = super().decide(name, unit, attributes)
        self.log.decided(entry, decision.id, unit.encode(), attributes or {}, decision.reason)
        return decision

    def report(self, outcomes: list[Outcome]) -> list[Result]:
        results = super().report(outcomes)
        self.log.reported(outcomes, results)
        return results


@pytest.fixture
def logging(tmp_path) -> Callable[..., Logging]:
    """Makes a rehearsal that logs below the test's folder."""
    made = []

    def make(**options: object) -> Logging:
        rehearsal = Logging()
        rehearsal.begin(tmp_path / "log", **options)
        made.append(rehearsal)
        return rehearsal

    yield make
    for rehearsal in made:
        rehearsal.log.close()
