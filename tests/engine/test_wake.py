"""When the planner looks at once, and that nothing is missed by not looking."""

from __future__ import annotations

import pytest

from allocator.core.experiment import Exposure, Guardrail, Metric, Per, Segment
from allocator.core.lifecycle import State
from allocator.core.outcome import Outcome
from allocator.engine import planner
from allocator.engine.agenda import QUIET_SECONDS
from allocator.engine.engine import Engine
from allocator.errors import Unavailable
from tests.conftest import two_arms
from tests.engine.fleet import Fleet

GUARDRAILS = (
    Guardrail("errors", "error", max=0.02),
    Guardrail("tail", "latency", quantile=0.9, max=250.0),
    Guardrail("quality", "thumbs", min=0.5, per=Per.SEGMENT),
    Guardrail("slower", "cost", max_ratio=1.2),
)
HARMLESS = {"error": 0.0, "latency": 250.0, "thumbs": 1.0, "cost": 0.0}
WATCHED = two_arms(
    exposure=Exposure(),
    guardrails=GUARDRAILS,
    metrics=(Metric("latency", 0.0, 1000.0), Metric("cost", 0.0, 10.0)),
    segments=(Segment("mobile", {"device": ("ios",)}),),
)


def crowd(count: int) -> tuple[Fleet, Engine, list[str]]:
    """One server with so many running experiments, and their names."""
    fleet = Fleet()
    engine = fleet.start("a")
    names = [f"default/e{index}" for index in range(count)]
    for name in names:
        fleet.run("a", two_arms(name=name.partition("/")[2]))
    return fleet, engine, names


@pytest.mark.parametrize(
    ("outcome", "woken"),
    [
        ({"reward": 0.0}, False),
        ({"reward": 1.0}, False),
        ({"metrics": HARMLESS}, False),
        ({"metrics": {"error": 1.0}}, True),
        ({"metrics": {**HARMLESS, "error": 0.001}}, True),
        ({"metrics": {"latency": 250.1}}, True),
        ({"metrics": {"thumbs": 0.0}}, True),
        ({"metrics": {"cost": 0.5}}, True),
    ],
)
def test_only_a_loss_that_a_guardrail_looks_at_wakes_the_planner(rehearsal, outcome, woken):
    engine = rehearsal.run(WATCHED)
    decision = rehearsal.decide()
    engine.planner._woken.clear()
    rehearsal.report([Outcome(decision.id, **outcome)])
    assert engine.planner._woken.is_set() is woken
    rehearsal.plan()
    assert sum(arm.outcomes for arm in engine.describe("ranker").arms) == ("reward" in outcome)


@pytest.mark.parametrize("seed", range(5))
def test_outcomes_without_a_loss_never_raise_evidence_of_harm(rehearsal, seed):
    rehearsal.rng.seed(seed)
    engine = rehearsal.run(WATCHED)

    def evidence():
        return {(f.guardrail, f.arm, f.segment): f.log_evidence for f in engine.describe("ranker").findings}

    def values(_arm):
        chance = rehearsal.chance
        return {"error": chance(0.03), "latency": 200 + 100 * chance(0.1), "thumbs": chance(0.6), "cost": 5 * chance(0.2)}

    for _ in range(6):
        rehearsal.serve(200, values, attributes={"device": "ios"} if rehearsal.chance(0.5) else None)
        decisions = [rehearsal.decide() for _ in range(300)]
        rehearsal.report([])
        before = evidence()
        assert len(before) == 9  # of the incumbent too, where a guardrail is no comparison with it
        rehearsal.report([Outcome(decision.id, 0.0, HARMLESS) for decision in decisions])
        after = evidence()
        assert all(after[stream] <= told for stream, told in before.items()), (before, after)
        rehearsal.clock.pass_(700.0)


def test_a_pass_breaks_off_for_a_loss_and_the_rest_comes_after_it(monkeypatch):
    fleet, engine, names = crowd(6)
    for name in names:
        fleet.report("a", [fleet.decide("a", name)], reward=1.0)
    monkeypatch.setattr(planner, "PASS_SECONDS", -1.0)
    plan, seen = engine.planner._plan, []

    def planning(record, now, between):
        if len(seen) == 1:  # a pass that has just begun with what can wait goes on for one
            engine.planner.counted(set(), set(), {engine.registry.get(names[5]).uid})
        seen.append(record.name)
        return plan(record, now, between)

    monkeypatch.setattr(engine.planner, "_plan", planning)
    fleet.tick("a")
    assert len(seen) == 2
    assert engine.planner._woken.is_set()
    fleet.tick("a")
    assert seen[2] == names[5]
    assert sorted(set(seen)) == names


def test_a_plan_that_can_wait_lets_go_between_its_steps_and_one_for_a_loss_does_not():
    fleet, engine, names = crowd(2)
    fleet.tick("a")
    breaths, uid = [], engine.registry.get(names[0]).uid
    engine.planner._breathe = lambda: breaths.append(1)
    before = engine.planner.last[uid]
    fleet.report("a", [fleet.decide("a", names[0])], error=1.0)
    fleet.tick("a")
    assert engine.planner.last[uid] is not before
    assert not breaths
    fleet.report("a", [fleet.decide("a", names[1])], reward=1.0)
    fleet.tick("a", seconds=1.0)
    assert len(breaths) == 4


def test_a_loss_counted_by_another_server_is_looked_at_though_only_decisions_were_counted_here():
    fleet = Fleet()
    first, other = fleet.start("a"), fleet.start("b")
    fleet.run("a", two_arms(exposure=Exposure()))
    decisions = [fleet.decide("b") for _ in range(400)]
    other.ingest.report((), other.decider.take())
    fleet.tick("a", seconds=10)
    fleet.decide("a")
    first.ingest.report((), first.decider.take())
    other.ingest.report([Outcome(decision.id, None, {"error": 1.0}) for decision in decisions if decision.arm == "new"])
    fleet.tick("a")
    assert first.registry.get("default/ranker").status.state is State.FROZEN


def test_decisions_alone_are_looked_at_later_and_outcomes_at_the_next_refresh(rehearsal):
    engine = rehearsal.run(WATCHED)
    rehearsal.plan()
    rehearsal.clock.pass_(60.0)
    engine.planner.tick()
    rehearsal.decide()
    engine.ingest.report((), engine.decider.take())
    assert engine.planner.tick() == []
    rehearsal.clock.pass_(QUIET_SECONDS)
    assert len(engine.planner.tick()) == 1
    engine.ingest.report([Outcome(rehearsal.decide().id, 1.0)], engine.decider.take())
    assert len(engine.planner.tick()) == 1


def test_losses_that_never_end_leave_time_for_the_others(monkeypatch):
    fleet, engine, names = crowd(4)
    monkeypatch.setattr(planner, "PASS_SECONDS", -1.0)
    plan, seen = engine.planner._plan, set()

    def planning(record, now, between):
        engine.planner.counted(set(), set(), {engine.registry.get(names[0]).uid})
        seen.add(record.name)
        return plan(record, now, between)

    monkeypatch.setattr(engine.planner, "_plan", planning)
    engine.planner.counted(set(), set(), {engine.registry.get(names[0]).uid})
    for name in names[1:]:
        fleet.report("a", [fleet.decide("a", name)], reward=1.0)
    for _ in range(4):
        fleet.tick("a")
    assert sorted(seen) == names


def test_a_plan_that_crashes_keeps_no_other_from_being_made(monkeypatch):
    fleet, engine, names = crowd(3)
    plan, seen = engine.planner._plan, []

    def planning(record, now, between):
        seen.append(record.name)
        if record.name == names[0]:
            raise ZeroDivisionError
        return plan(record, now, between)

    monkeypatch.setattr(engine.planner, "_plan", planning)
    for name in names:
        fleet.report("a", [fleet.decide("a", name)], reward=1.0)
    fleet.tick("a")
    assert sorted(seen) == names
    fleet.tick("a", seconds=1.0)
    assert sorted(seen) == names
    fleet.tick("a", seconds=planner.LOOK_AGAIN_SECONDS)
    assert seen.count(names[0]) == 2
    assert engine.planner.crashes == 2


@pytest.mark.parametrize("fails", ["store", "term"])
def test_what_a_pass_could_not_do_comes_again(monkeypatch, fails):
    fleet = Fleet()
    engine = fleet.start("a")
    fleet.run("a", two_arms())
    fleet.report("a", [fleet.decide("a") for _ in range(20)], reward=1.0)
    with monkeypatch.context() as patch:
        if fails == "store":
            patch.setattr(engine.planner, "_plan", _gone)
            with pytest.raises(Unavailable):
                engine.planner.tick()
        else:
            patch.setattr(engine.planner, "_save", lambda *_: False)
            engine.planner.tick()
    assert [done.record.name for done in engine.planner.tick()] == ["default/ranker"]


def test_what_was_heard_is_looked_at_though_the_store_failed_meanwhile():
    fleet = Fleet()
    first, other = fleet.start("a"), fleet.start("b")
    fleet.tick()
    other.commands.apply(two_arms(), actor="ann")
    other.commands.start("default/ranker", actor="ann")
    line = fleet.lines["a"]
    line.before["changed"] = lambda: setattr(line, "cut", True)
    with pytest.raises(Unavailable):
        first.planner.tick()
    line.cut = False
    assert [done.record.name for done in first.planner.tick()] == ["default/ranker"]


def _gone(*_):
    raise Unavailable("the store is gone", reason="STORE_FAILED")
