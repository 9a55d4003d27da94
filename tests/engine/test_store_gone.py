"""The store is gone: decisions go on for a lease, a freeze is still possible and remembered, everything recovers by itself."""

from __future__ import annotations

import pytest

from allocator.core.decision_id import read
from allocator.core.experiment import Arm, BreachAction, Guardrail
from allocator.core.lifecycle import State
from allocator.errors import NotFound, Unavailable
from tests.conftest import two_arms
from tests.engine.fleet import Fleet


@pytest.fixture
def fleet(tmp_path) -> Fleet:
    made = Fleet(tmp_path)
    for name in "ab":
        made.start(name)
    made.run("a", two_arms(lease_seconds=15.0))
    return made


def cut(fleet: Fleet, *names: str, now: bool = True) -> None:
    for name in names:
        fleet.lines[name].cut = now


def test_decisions_ask_the_store_nothing(fleet):
    fleet.lines["a"].calls.clear()
    fleet.reasons("a", 500)
    assert fleet.lines["a"].calls == []


def test_candidates_are_served_until_the_lease_ends_then_the_incumbent_and_all_by_itself_again(fleet):
    fleet.tick()
    cut(fleet, "a", "b")
    for second in range(30):
        fleet.tick(seconds=1)
        assert fleet.reasons("a") == ({"ALLOCATED"} if second < 15 else {"STALE"}), second
    assert fleet.arms("a") == fleet.arms("b") == {"old"}
    cut(fleet, "a", "b", now=False)
    for _ in range(3):
        fleet.tick(seconds=1)
    assert fleet.reasons("a") == fleet.reasons("b") == {"ALLOCATED"}


def test_an_outcome_is_refused_at_once_and_counts_once_when_it_is_sent_again(fleet):
    decisions = [fleet.decide("a") for _ in range(20)]
    cut(fleet, "a")
    with pytest.raises(Unavailable):
        fleet.report("a", decisions)
    cut(fleet, "a", now=False)
    assert set(fleet.report("a", decisions)) == {"ACCEPTED"}
    assert set(fleet.report("b", decisions)) == {"DUPLICATE"}


def test_a_freeze_is_in_force_and_kept_and_stored_when_the_store_is_back(fleet):
    cut(fleet, "a")
    record = fleet.engines["a"].commands.freeze("ranker", actor="ann", reason="errors are up")
    assert record.status.state is State.FROZEN
    assert "kept on this server's disk" in record.status.reason
    assert fleet.reasons("a") == {"FROZEN"}
    assert fleet.engines["a"].registry.get("ranker").status.state is State.FROZEN
    assert fleet.store.record("default/ranker").status.state is State.RUNNING
    cut(fleet, "a", now=False)
    fleet.tick()
    fleet.tick()
    stored = fleet.store.record("default/ranker")
    assert stored.status.state is State.FROZEN
    assert fleet.actions().count("experiment.freeze") == 1
    assert [r.entry.actor for r in fleet.store.audit() if r.entry.action == "experiment.freeze"] == ["ann"]
    assert fleet.reasons("a") == fleet.reasons("b") == {"FROZEN"}
    assert fleet.engines["a"].registry.held == {}


def test_a_freeze_kept_by_a_server_that_was_killed_is_stored_when_it_comes_back(fleet):
    cut(fleet, "a")
    fleet.engines["a"].commands.freeze("ranker", actor="ann", reason="errors are up")
    fleet.kill("a")
    fleet.start("a", cut=True)
    assert fleet.engines["a"].registry.get("ranker").status.state is State.FROZEN
    assert fleet.arms("a") == {"old"}
    cut(fleet, "a", now=False)
    fleet.tick()
    fleet.tick()
    assert fleet.store.record("default/ranker").status.state is State.FROZEN
    fleet.kill("a")
    fleet.engines["b"].commands.resume("ranker", actor="ann", reason="mended")
    fleet.start("a")
    fleet.tick(seconds=6)
    fleet.tick()
    assert fleet.store.record("default/ranker").status.state is State.RUNNING  # what was stored is not asserted a second time


def test_a_resume_by_somebody_who_did_not_know_of_a_kept_freeze_does_not_undo_it(fleet):
    cut(fleet, "a")
    fleet.engines["a"].commands.freeze("ranker", actor="ann", reason="errors are up")
    b = fleet.engines["b"].commands
    b.freeze("ranker", actor="bob", reason="a look")
    b.resume("ranker", actor="bob", reason="looked")
    cut(fleet, "a", now=False)
    fleet.tick()
    fleet.tick()
    assert fleet.store.record("default/ranker").status.state is State.FROZEN
    fleet.engines["a"].commands.resume("ranker", actor="ann", reason="mended")
    fleet.tick()
    assert fleet.store.record("default/ranker").status.state is State.RUNNING


def test_a_resume_at_the_server_that_keeps_the_freeze_takes_it_back(fleet):
    cut(fleet, "a")
    fleet.engines["a"].commands.freeze("ranker", actor="ann", reason="errors are up")
    cut(fleet, "a", now=False)
    fleet.engines["a"].commands.resume("ranker", actor="ann", reason="a false alarm")
    fleet.tick(seconds=1)
    fleet.tick(seconds=1)
    assert fleet.store.record("default/ranker").status.state is State.RUNNING
    assert fleet.reasons("a") == {"ALLOCATED"}


def test_a_plan_under_way_does_not_undo_a_freeze_that_the_store_has_not_got(fleet):
    """The planner has read the record as RUNNING when the freeze comes, and its save would still fit the stored version."""
    a = fleet.engines["a"]
    decisions = [fleet.decide("a") for _ in range(60)]
    fleet.report("a", decisions, error=0.0)

    def frozen() -> None:
        fleet.lines["a"].cut = True
        a.commands.freeze("ranker", actor="ann", reason="errors are up")
        fleet.lines["a"].cut = False

    fleet.lines["a"].before["settled"] = frozen
    a.planner.replan(a.registry.get("ranker").uid)
    fleet.tick("a", seconds=1)
    assert fleet.reasons("a") == {"FROZEN"}
    fleet.tick("a", seconds=1)
    assert fleet.store.record("default/ranker").status.state is State.FROZEN


def test_without_a_disk_a_freeze_is_in_force_and_the_caller_told_that_it_is_not_remembered():
    fleet = Fleet()
    fleet.start("a")
    fleet.run("a", two_arms())
    cut(fleet, "a")
    with pytest.raises(Unavailable) as told:
        fleet.engines["a"].commands.freeze("ranker", actor="ann", reason="errors are up")
    assert told.value.reason == "FREEZE_NOT_KEPT"
    assert fleet.reasons("a") == {"FROZEN"}
    cut(fleet, "a", now=False)
    fleet.tick()
    assert fleet.store.record("default/ranker").status.state is State.FROZEN


def test_a_drain_that_the_store_could_not_take_is_kept(fleet, monkeypatch):
    arms = (Arm("old", incumbent=True), Arm("new"), Arm("newer"))
    guardrails = (Guardrail("errors", "error", max=0.02, on_breach=BreachAction.DRAIN),)
    fleet.run("a", two_arms(name="other", arms=arms, guardrails=guardrails))
    decisions = [fleet.decide("a", "default/other") for _ in range(120)]
    fleet.report("a", [d for d in decisions if d.arm == "new"], error=1.0)
    with monkeypatch.context() as broken:

        def full(saves, term=None):
            raise Unavailable("the disk failed", reason="STORE_FAILED")

        broken.setattr(fleet.store, "save", full)
        fleet.tick("a", seconds=1)
        assert {fleet.decide("a", "default/other").arm for _ in range(120)} == {"old", "newer"}
        fleet.kill("a")
        fleet.start("a", cut=True)
        assert fleet.engines["a"].registry.get("other").status.drained == ("new",)
    cut(fleet, "a", now=False)
    fleet.tick(seconds=6)
    assert fleet.store.record("default/other").status.drained == ("new",)


# Starting without it


def test_a_server_starts_without_its_store_from_what_it_remembers_and_joins_when_it_comes(fleet):
    fleet.tick(seconds=2)
    table = fleet.table("a")
    fleet.kill("a")
    a = fleet.start("a", cut=True)
    assert a.started
    assert fleet.table("a") == table
    decision = fleet.decide("a")
    assert (decision.arm, decision.reason.name) == ("old", "STALE")
    assert read(fleet.store.secret(), decision.id).arm == 0  # made with the store's key
    with pytest.raises(Unavailable):
        fleet.report("a", [decision])
    cut(fleet, "a", now=False)
    for _ in range(8):
        fleet.tick(seconds=1)
    assert fleet.reasons("a") == {"ALLOCATED"}


def test_a_frozen_experiment_stays_frozen_in_a_server_that_starts_without_its_store(fleet):
    fleet.engines["b"].commands.freeze("ranker", actor="ann", reason="errors are up")
    fleet.tick()
    fleet.kill("a")
    fleet.start("a", cut=True)
    assert fleet.engines["a"].live.snapshot.entries["default/ranker"].state == "FROZEN"


def test_a_server_that_remembers_nothing_starts_too_knows_no_experiment_and_joins(fleet):
    fleet.start("new", cut=True)
    new = fleet.engines["new"]
    assert new.started
    assert dict(new.live.snapshot.entries) == {}
    with pytest.raises(NotFound):
        new.registry.get("ranker")
    decision = fleet.decide("a")
    with pytest.raises(Unavailable):  # it cannot tell a forged id from a good one: nothing may be refused for good
        fleet.report("new", [decision])
    cut(fleet, "new", now=False)
    fleet.tick(seconds=1)
    fleet.tick(seconds=1)
    assert fleet.reasons("new") == {"ALLOCATED"}
    assert fleet.report("new", [decision]) == ["ACCEPTED"]


def test_what_is_kept_is_written_as_it_changes_and_not_for_all_each_time(tmp_path):
    fleet = Fleet(tmp_path)
    a = fleet.start("a")
    for index in range(40):
        a.commands.apply(two_arms(name=f"e{index}"), actor="ann")
    a.commands.start("e7", actor="ann")
    fleet.tick(seconds=1)
    written = []
    keep = a._keepsake.keep

    def spied(records=(), pending=None, granted=None):
        records = list(records)
        written.append([record.name for record in records])
        keep(records, pending, granted)

    a._keepsake.keep = spied
    for _ in range(5):
        fleet.report("a", [fleet.decide("a", "default/e7") for _ in range(50)], error=0.0)
        fleet.tick(seconds=1)
    assert written
    assert {name for names in written for name in names} == {"default/e7"}
