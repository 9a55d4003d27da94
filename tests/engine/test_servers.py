"""Several servers on one store: one plans, all serve the same, no stale plan is stored.

Expectations from `ports.Store` and decision 1, 8."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import pytest

from allocator.core.experiment import Budget, Exposure, Guardrail
from allocator.core.lifecycle import State
from allocator.engine.planner import PASS_EXPERIMENTS
from allocator.engine.term import TERM_SECONDS
from allocator.ports import Save
from tests.conftest import ManualClock, two_arms
from tests.engine.fleet import Fleet


@pytest.fixture
def fleet() -> Fleet:
    made = Fleet()
    for name in "abc":
        made.start(name)
    return made


# One planner


def test_one_of_three_plans_and_all_serve_the_same(fleet):
    fleet.run("b", two_arms())
    assert fleet.leaders() == ["a"]
    assert fleet.table("a") == fleet.table("b") == fleet.table("c")
    for name in "abc":
        assert fleet.reasons(name) == {"ALLOCATED"}
    for unit in range(300):
        assert len({fleet.decide(name, unit=f"u{unit}").arm for name in "abc"}) == 1


def test_when_the_planner_stops_another_takes_over_at_its_next_look(fleet):
    fleet.run("b", two_arms())
    fleet.engines["a"].planner.stop()
    fleet.tick("b", "c", seconds=1)
    assert fleet.leaders() == ["b"]


def test_when_the_planner_is_gone_without_a_word_another_takes_over_within_twice_its_term(fleet):
    fleet.run("b", two_arms())
    fleet.kill("a")
    passed = 0.0
    while not fleet.leaders():
        fleet.tick(seconds=1)
        passed += 1
    assert passed <= 2 * TERM_SECONDS
    assert fleet.reasons("b") == fleet.reasons("c") == {"ALLOCATED"}


def test_a_new_planner_looks_at_every_experiment_once(fleet):
    for index in range(5):
        fleet.run("a", two_arms(name=f"e{index}"))
    fleet.engines["a"].planner.stop()
    fleet.clock.pass_(1)
    assert {done.record.name for done in fleet.engines["b"].planner.tick()} == {f"default/e{index}" for index in range(5)}
    assert fleet.engines["b"].planner.tick() == []


def test_a_planner_that_cannot_plan_lets_its_term_run_out(fleet, monkeypatch):
    fleet.run("a", two_arms())

    def broken(uids=None):
        raise RuntimeError("a defect")

    monkeypatch.setattr(fleet.engines["a"].grants, "fill", broken)
    for _ in range(int(2 * TERM_SECONDS)):
        fleet.clock.pass_(1)
        with contextlib.suppress(RuntimeError):
            fleet.engines["a"].planner.tick()
        fleet.engines["b"].planner.tick()
    assert fleet.leaders() == ["b"]


def paused_after_planning(fleet: Fleet, meanwhile) -> None:
    """The planner `a` has seen a breach and is about to write the freeze when it is held up."""
    decisions = [fleet.decide("a") for _ in range(60)]
    fleet.report("a", [d for d in decisions if d.arm == "new"], error=1.0)
    fleet.lines["a"].before["settled"] = meanwhile
    fleet.lines["a"].calls.clear()
    fleet.engines["a"].planner.tick()


@pytest.mark.parametrize("skewed", [False, True], ids=["its own clock says so", "the store refuses it"])
def test_a_planner_that_was_paused_beyond_its_term_writes_nothing(skewed):
    fleet = Fleet()
    clock = ManualClock() if skewed else None
    fleet.start("a", clock)
    fleet.start("b")
    fleet.run("a", two_arms())
    taken = []

    def pause() -> None:
        fleet.clock.pass_(2 * TERM_SECONDS)
        fleet.engines["b"].planner.tick()
        taken.append(fleet.store.record("default/ranker"))
        assert taken[0].status.state is State.FROZEN

    paused_after_planning(fleet, pause)
    assert fleet.leaders() == ["b"]
    assert fleet.store.record("default/ranker") == taken[0]
    assert ("save" in fleet.lines["a"].calls) == skewed  # with its own clock right it does not even try
    assert fleet.engines["a"].term.number is None
    fleet.tick("a", seconds=1)
    assert fleet.table("a") == fleet.table("b")


def test_of_a_hundred_stale_plans_none_is_stored():
    fleet = Fleet()
    mine = ManualClock()
    fleet.start("a", mine)
    fleet.start("b")
    fleet.run("a", two_arms(guardrails=()))
    for trial in range(100):
        leader, other = ("a", "b") if fleet.engines["a"].term.number is not None else ("b", "a")
        stale = fleet.engines[leader].term.number
        fleet.engines[leader].planner._term.resign()
        fleet.clock.pass_(1)
        mine.pass_(1)
        fleet.engines[other].planner.tick()
        before = fleet.store.record("default/ranker")
        save = Save(replace(before, version=before.version + 1, revision=trial), before.version)
        answer = fleet.engines[leader].registry.write([save], stale)
        assert answer[0].reason == "STALE_TERM"
        assert fleet.store.record("default/ranker") == before


@pytest.mark.parametrize("seconds", [86_400.0, 3_600.0, -3_600.0, -86_400.0])
def test_a_wall_clock_that_is_set_neither_ends_a_term_nor_a_lease_nor_prolongs_them(fleet, seconds):
    fleet.run("a", two_arms(lease_seconds=5.0))
    fleet.clock.set_wall(seconds)
    assert fleet.leaders() == ["a"]
    for name in "abc":
        assert fleet.reasons(name) == {"ALLOCATED"}
    for _ in range(3):
        fleet.tick(seconds=1)
        assert fleet.leaders() == ["a"]
    for name in "abc":
        assert fleet.reasons(name) == {"ALLOCATED"}
    fleet.kill("a")
    fleet.clock.set_wall(-seconds)
    fleet.tick("b", "c", seconds=0.5)
    assert fleet.leaders() == []
    fleet.clock.pass_(TERM_SECONDS)
    assert fleet.reasons("b") == fleet.reasons("c") == {"STALE"}
    fleet.tick("b", "c", seconds=1)
    assert fleet.leaders() == ["b"]


def test_a_term_ends_that_long_after_it_was_asked_for_however_late_the_answer_came(fleet):
    fleet.run("a", two_arms())
    fleet.clock.pass_(1)
    asked = fleet.clock.monotonic()
    fleet.lines["a"].before["lead"] = lambda: fleet.clock.pass_(3)
    fleet.engines["a"].planner.tick()
    assert fleet.clock.monotonic() == asked + 3, "it was asked"
    fleet.clock.pass_(TERM_SECONDS - 3.1)
    assert fleet.engines["a"].term.in_force()
    fleet.clock.pass_(0.2)
    assert not fleet.engines["a"].term.in_force()


def test_a_planner_confirms_what_stood_when_it_looked_not_when_it_had_planned(fleet):
    fleet.run("a", two_arms())
    fleet.clock.pass_(1)
    looked = fleet.clock.monotonic()
    fleet.lines["a"].before["changed"] = lambda: fleet.clock.pass_(2)
    fleet.engines["a"].planner.tick()
    assert fleet.clock.monotonic() == looked + 2, "it was held up"
    assert fleet.engines["a"].live.confirmed == looked


def test_what_the_planner_before_saved_until_its_term_ended_is_heard_of_before_the_next_confirms(fleet):
    """Between the look at the news and the new term somebody freezes at another server."""
    fleet.run("a", two_arms())
    fleet.engines["a"].planner.stop()
    fleet.clock.pass_(1)
    fleet.lines["b"].before["lead"] = lambda: fleet.engines["c"].commands.freeze("ranker", actor="ann", reason="errors are up")
    fleet.engines["b"].planner.tick()
    assert fleet.leaders() == ["b"]
    assert fleet.reasons("b") == {"FROZEN"}


# Followers


def test_a_follower_confirms_only_what_it_saw_before_the_planner_was_last_seen_alive(fleet):
    fleet.run("a", two_arms())
    b = fleet.engines["b"]
    looked = fleet.clock.monotonic()
    fleet.tick("b")
    fleet.clock.pass_(1)
    fleet.tick("a")
    fleet.clock.pass_(0.5)
    fleet.tick("b")
    assert b.live.confirmed == looked
    confirmed = b.live.confirmed
    fleet.tick("b", seconds=1)  # the planner has not been heard of since
    assert b.live.confirmed == confirmed


def test_without_a_planner_the_followers_lease_ends(fleet):
    fleet.run("a", two_arms(lease_seconds=5.0))
    for _ in range(9):
        fleet.tick("a", seconds=1)
        fleet.tick("b")
    assert fleet.reasons("b") == {"ALLOCATED"}
    fleet.engines["b"].term._ask_at = math.inf  # nobody takes over
    for _ in range(8):
        fleet.tick("b", seconds=1)
    assert fleet.reasons("b") == {"STALE"}


def test_a_freeze_at_a_follower_is_in_force_there_at_once_and_everywhere_at_the_next_look(fleet):
    fleet.run("a", two_arms())
    fleet.engines["c"].commands.freeze("ranker", actor="ann", reason="errors")
    assert fleet.reasons("c") == {"FROZEN"}
    fleet.tick()
    assert [fleet.reasons(name) for name in "abc"] == [{"FROZEN"}] * 3


def test_a_plan_made_before_a_followers_freeze_does_not_undo_it():
    fleet = Fleet()
    fleet.start("a")
    fleet.start("b")
    fleet.run("a", two_arms())

    def frozen_and_resumed() -> None:
        fleet.engines["b"].commands.freeze("ranker", actor="ann", reason="errors")
        fleet.engines["b"].commands.resume("ranker", actor="ann", reason="a false alarm")
        fleet.engines["b"].commands.freeze("ranker", actor="ann", reason="it was none")

    paused_after_planning(fleet, frozen_and_resumed)
    assert fleet.store.record("default/ranker").status.reason == "it was none"
    assert fleet.store.record("default/ranker").status.freeze_epoch == 3
    assert fleet.reasons("a") == fleet.reasons("b") == {"FROZEN"}


def test_a_start_at_a_follower_is_in_force_there_and_the_planner_makes_the_first_weights(fleet):
    commands = fleet.engines["b"].commands
    commands.apply(two_arms(), actor="ann")
    assert commands.start("ranker", actor="ann").status.state is State.RUNNING
    assert fleet.engines["b"].live.snapshot.entries["default/ranker"].state == "RUNNING"
    assert fleet.store.record("default/ranker").layouts == ()
    fleet.tick()
    fleet.tick()
    assert fleet.store.record("default/ranker").layouts != ()
    assert fleet.table("a") == fleet.table("b") == fleet.table("c")


def test_outcomes_count_wherever_they_are_reported_and_a_breach_reaches_everyone(fleet):
    fleet.run("a", two_arms())
    for _ in range(3):
        decisions = [fleet.decide("b") for _ in range(60)]
        bad = [d for d in decisions if d.arm == "new"]
        assert set(fleet.report("b", [d for d in decisions if d.arm == "old"], error=0.0)) == {"ACCEPTED"}
        if not bad:
            break
        assert set(fleet.report("c", bad, error=1.0)) == {"ACCEPTED"}
        assert set(fleet.report("a", bad, error=1.0)) == {"DUPLICATE"}
        fleet.tick(seconds=1)
    assert fleet.actions().count("experiment.freeze") == 1
    assert [fleet.reasons(name) for name in "abc"] == [{"FROZEN"}] * 3


def test_an_outcome_of_an_experiment_that_was_made_elsewhere_just_now_counts(fleet):
    fleet.run("a", two_arms(name="other"))
    commands = fleet.engines["a"].commands
    commands.apply(two_arms(), actor="ann")
    commands.start("ranker", actor="ann")
    decision = fleet.decide("a")
    assert fleet.engines["b"].registry.find("default/ranker") is None
    assert fleet.report("b", [decision]) == ["ACCEPTED"]


def test_followers_keep_their_own_leases_and_together_stay_within_the_budget(fleet):
    fleet.run("a", two_arms(exposure=Exposure(total=0.5, budget=Budget(requests=300)), guardrails=()))
    candidates = 0
    for round_ in range(60):
        for name in "abc":
            candidates += sum(fleet.decide(name).arm == "new" for _ in range(20))
            fleet.engines[name].ingest.report((), fleet.engines[name].decider.take())
        fleet.tick(seconds=1)
        if round_ == 1:
            assert candidates > 20  # more than the planner's own share
    uid = fleet.store.record("default/ranker").uid
    assert candidates <= fleet.store.granted(uid)[1, "requests"] == 300
    assert candidates > 200


# The same version means the same arm


def test_a_server_that_makes_another_entry_of_a_record_serves_the_incumbent_until_the_next_version(fleet):
    fleet.run("a", two_arms())
    a, b = fleet.engines["a"], fleet.engines["b"]
    record = fleet.store.record("default/ranker")
    assert record.digest == a.live.snapshot.entries["default/ranker"].digest()
    fleet.store.save([Save(replace(record, version=record.version + 1, digest="0" * 64), record.version)])
    fleet.tick("b")
    assert fleet.arms("b") == {"old"}
    assert fleet.reasons("b") == {"STALE"}
    assert b.registry.divergences == 1
    record = fleet.store.record("default/ranker")
    a.registry.read(["default/ranker"])
    a.registry.write([Save(replace(record, version=record.version + 1), record.version)])
    fleet.tick("b")
    assert fleet.reasons("b") == {"ALLOCATED"}
    assert b.registry.divergences == 1


def test_another_record_under_the_same_version_is_noticed_and_neither_is_believed(fleet):
    fleet.run("a", two_arms())
    record = fleet.store.record("default/ranker")
    fleet.store._records["default/ranker"] = replace(record, salt=b"another")
    fleet.store._saved["default/ranker"] = fleet.store._news_mark = fleet.store._news_mark + 1
    fleet.tick("b")
    assert fleet.engines["b"].registry.divergences == 1
    assert fleet.arms("b") == {"old"}


def test_the_digest_of_an_entry_does_not_rest_on_the_order_of_sets_and_mappings(fleet):
    target = {"country": ("fr", "de", "it"), "age": ("a", "b")}
    fleet.run("a", two_arms(target=target, guardrails=(Guardrail("errors", "error", max=0.02),)))
    entry = fleet.engines["a"].live.snapshot.entries["default/ranker"]
    turned = replace(entry, target={key: frozenset(sorted(entry.target[key], reverse=True)) for key in reversed(entry.target)})
    assert turned.digest() == entry.digest()


# Thousands


def test_what_is_not_due_is_not_looked_at_however_many_there_are():
    fleet = Fleet()
    engine = fleet.start("a")
    for index in range(300):
        engine.commands.apply(two_arms(name=f"e{index}"), actor="ann")
    engine.commands.start("e7", actor="ann")
    fleet.tick(seconds=1)
    fleet.tick(seconds=1)
    decision = fleet.decide("a", "default/e7")
    fleet.report("a", [decision])
    fleet.lines["a"].calls.clear()
    assert [done.record.name for done in engine.planner.tick()] == ["default/e7"]
    assert fleet.lines["a"].calls.count("cells") == 1
    assert set(fleet.lines["a"].calls) <= {"lead", "news", "changed", "cells", "settled", "save"}
    engine.planner.tick()  # hears of its own save
    fleet.lines["a"].calls.clear()
    engine.planner.tick()
    assert set(fleet.lines["a"].calls) <= {"lead", "news", "changed"}


def test_a_takeover_plans_some_at_a_time_and_those_with_outcomes_first():
    fleet = Fleet()
    fleet.start("a")
    count = PASS_EXPERIMENTS + 50
    for index in range(count):
        fleet.engines["a"].commands.apply(two_arms(name=f"e{index}"), actor="ann")
        fleet.engines["a"].commands.start(f"e{index}", actor="ann")
    b = fleet.start("b")
    fleet.tick("b", seconds=1)
    fleet.report("b", [fleet.decide("a", "default/e299")])
    fleet.engines["a"].planner.stop()
    fleet.clock.pass_(1)
    first = [done.record.name for done in b.planner.tick()]
    assert len(first) == PASS_EXPERIMENTS
    assert "default/e299" in first
    second = [done.record.name for done in b.planner.tick()]
    assert len({*first, *second}) == count


def test_a_planner_that_begins_with_nothing_looks_at_some_at_a_time_though_all_have_outcomes():
    fleet = Fleet()
    a = fleet.start("a")
    count = PASS_EXPERIMENTS + 20
    for index in range(count):
        a.commands.apply(two_arms(name=f"e{index}"), actor="ann")
        a.commands.start(f"e{index}", actor="ann")
        fleet.decide("a", f"default/e{index}")
    a.ingest.report((), a.decider.take())
    a.planner.stop()
    b = fleet.start("b")
    assert len(b.planner.last) == PASS_EXPERIMENTS
    fleet.tick("b")
    assert len(b.planner.last) == count
