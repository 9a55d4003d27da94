"""A wall clock that jumps by a day, either way, lets no stage advance early; what time was spent is what the monotonic clock says."""

from __future__ import annotations

from contextlib import closing

import pytest

from allocator.core.experiment import RampStage
from allocator.stores.sqlite import SqliteStore
from tests.conftest import ManualClock, two_arms
from tests.engine.conftest import Rehearsal

DAY, HOUR = 86_400.0, 3_600.0
RAMP = (RampStage(cap=0.1, min_duration_seconds=HOUR, min_outcomes=100), RampStage(cap=0.5))


def served(rehearsal: Rehearsal, seconds: float) -> None:
    """A while in which all goes well: a plan every 20 s, with outcomes enough to prove it."""
    for _ in range(round(seconds / 20)):
        rehearsal.serve(60, lambda arm: {"reward": rehearsal.chance(0.1), "error": 0.0}, seconds=20)


@pytest.mark.parametrize("jumps", [(DAY,), (-DAY,), (DAY, -DAY), (-DAY, DAY), (HOUR, HOUR, HOUR), (600.0, -600.0)], ids=str)
def test_a_wall_clock_that_jumps_advances_no_stage_early(tmp_path, jumps):
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        clock = ManualClock()
        rehearsal = Rehearsal(store, clock)
        rehearsal.run(two_arms(ramp=RAMP))
        served(rehearsal, 600)
        for jump in jumps:
            clock.set_wall(jump)
            served(rehearsal, 200)
            assert rehearsal.record().status.stage == 0, f"advanced {clock.at - 1_800_000_000:.0f} s after the start"
        assert "experiment.advance" not in rehearsal.actions()
        moved = [record for record in store.audit() if record.entry.action == "clock.jumped"]
        assert len(moved) == sum(jump > 0 for jump in jumps)


def test_a_clock_that_keeps_time_advances_the_stage_when_its_time_has_come(tmp_path):
    """The scenario above can fail: without a jump, the same traffic does advance."""
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        rehearsal = Rehearsal(store, ManualClock())
        rehearsal.run(two_arms(ramp=RAMP))
        served(rehearsal, HOUR - 200)
        assert rehearsal.record().status.stage == 0
        served(rehearsal, 400)
        assert rehearsal.record().status.stage == 1
