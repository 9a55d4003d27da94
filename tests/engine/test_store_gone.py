"""The store is gone: decisions go on for a lease, a freeze is still possible and remembered, everything recovers by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from allocator.core.decision_id import read
from allocator.core.experiment import Arm, BreachAction, Guardrail
from allocator.core.lifecycle import State
from allocator.engine import keeper
from allocator.errors import NotFound, Overloaded, Unavailable
from allocator.ports import Kept, Save
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


def test_a_kept_freeze_stays_when_another_takes_its_place_while_the_store_is_found_to_have_the_first(fleet, monkeypatch):
    """Between the look at the store and letting go: the store's freeze is resumed, and this server freezes again without the store."""
    a, b = fleet.engines["a"], fleet.engines["b"]
    cut(fleet, "a")
    a.commands.freeze("ranker", actor="ann", reason="one")
    b.commands.freeze("ranker", actor="ben", reason="two")
    cut(fleet, "a", now=False)
    compared = keeper.latched

    def meanwhile(stored, pending):
        monkeypatch.setattr(keeper, "latched", compared)
        after = compared(stored, pending)
        assert after == stored  # the store has it
        b.planner.tick()
        b.commands.resume("ranker", actor="ben", reason="looked")
        cut(fleet, "a")
        a.commands.freeze("ranker", actor="ann", reason="three")
        cut(fleet, "a", now=False)
        return after

    monkeypatch.setattr(keeper, "latched", meanwhile)
    fleet.tick("a")
    assert keeper.latched is compared, "the moment came"
    kept = reopened(fleet, "a")
    assert [held.record.status.reason[:5] for held in kept.pending] == ["three"]
    for _ in range(3):
        fleet.tick(seconds=1)
    assert fleet.store.record("default/ranker").status.state is State.FROZEN
    assert fleet.arms("a") == fleet.arms("b") == {"old"}
    assert a.registry.held == {}
    assert reopened(fleet, "a").pending == ()


def test_a_freeze_kept_while_an_earlier_one_is_let_go_of_stays_on_the_disk(fleet):
    """The store took the first; before the disk lets go of it, the store is gone and a second one is kept."""
    a = fleet.engines["a"]
    cut(fleet, "a")
    a.commands.freeze("ranker", actor="ann", reason="one")
    cut(fleet, "a", now=False)
    let_go = a.registry.released

    def meanwhile(names):
        a.registry.released = let_go
        cut(fleet, "a")
        a.commands.freeze("ranker", actor="ann", reason="two")
        let_go(names)

    a.registry.released = meanwhile
    fleet.tick("a", seconds=2)
    assert a.registry.released == let_go, "the moment came"
    fleet.tick("a", seconds=2)
    assert [held.record.status.reason[:3] for held in reopened(fleet, "a").pending] == ["two"]
    fleet.kill("a")
    fleet.start("a", cut=True)
    assert fleet.arms("a") == {"old"}


def reopened(fleet: Fleet, name: str) -> Kept:
    """What a server's disk holds, as the next process would find it."""
    return fleet.engines[name]._keepsake.load()


# Its own disk


def test_a_plan_that_is_told_late_does_not_take_a_later_freeze_from_the_servers_own_disk(fleet):
    """The planner has stored its plan when a person freezes, and comes to tell the keeper of it only afterwards."""
    a = fleet.engines["a"]
    note = a.keeper.note
    older = []

    def late(records):
        a.registry.changed = note
        older.append(fleet.kept_copy())
        frozen = a.commands.freeze("ranker", actor="ann", reason="an incident")
        assert frozen.version > records[0].version
        note(records)

    a.registry.changed = late
    fleet.report("a", [fleet.decide("a") for _ in range(60)], error=0.0)
    fleet.tick("a", seconds=2)
    for _ in range(3):
        assert [(kept.status.state, kept.status.reason) for kept in reopened(fleet, "a").records] == [(State.FROZEN, "an incident")]
        fleet.tick("a", seconds=2)
    fleet.kill("a")
    fleet.store = older[0]  # as Redis may come back, from its last dump
    fleet.start("a")
    for _ in range(3):
        fleet.tick("a", seconds=1)
    assert fleet.arms("a") == {"old"}
    assert fleet.engines["a"].keeper.lost


def test_a_freeze_that_the_store_took_and_the_servers_own_disk_did_not_is_answered_so(fleet):
    a = fleet.engines["a"]
    keep = a._keepsake.keep

    def full(*_, **__):
        raise Overloaded("the disk is full; nothing was written", reason="STORE_FULL")

    a._keepsake.keep = full
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"is frozen, and the store has it, but .* cannot remember it.*the disk is full") as told:
            a.commands.freeze("ranker", actor="ann", reason="errors are up")
        assert told.value.reason == "FREEZE_NOT_KEPT"
    assert fleet.arms("a") == {"old"}
    assert fleet.store.record("default/ranker").status.state is State.FROZEN
    assert reopened(fleet, "a").records[0].status.state is State.RUNNING
    a._keepsake.keep = keep
    fleet.tick("a", seconds=1)  # by itself
    assert reopened(fleet, "a").records[0].status.state is State.FROZEN
    assert a.commands.freeze("ranker", actor="ann", reason="to be sure").status.state is State.FROZEN


def test_what_is_accepted_from_the_store_is_what_the_servers_own_disk_remembers(fleet):
    """Another server reconciled, and an experiment of the same name is another one now."""
    a = fleet.engines["a"]
    known = a.registry.get("ranker")
    another = replace(known, uid="00112233aabbccdd", version=1, digest="")
    fleet.store = fleet.new_store()
    fleet.store.save([Save(another, None)])
    a.registry.accept([known.name])
    assert [kept.uid for kept in reopened(fleet, "a").records] == [another.uid]


def test_what_was_granted_is_remembered_at_its_largest_whatever_is_heard_later(tmp_path):
    fleet = Fleet(tmp_path)
    a = fleet.start("a")
    fleet.run("a", two_arms())
    uid = a.registry.get("ranker").uid
    for amount in (5, 9, 7):  # of threads that asked the store one after another, and tell in another order
        a.keeper.note_granted(uid, {(1, "requests"): amount})
    fleet.store = fleet.new_store()
    fleet.tick("a", seconds=1)
    a.commands.reconcile(actor="ann", reason="the disk was replaced")
    assert fleet.store.granted(uid) == {(1, "requests"): 9}


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
