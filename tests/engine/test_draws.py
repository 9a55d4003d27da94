"""Does what is served agree with the weights? Draws as deciders count them, and the alarm from end to end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from allocator.core import decider_memory
from allocator.core.assignment import SLOTS, first_layout
from allocator.core.decider import Decider
from allocator.core.experiment import Arm, Assignment, Budget, Conclude, Exposure, Policy, PolicyKind, Pooling, RampStage, Segment
from allocator.core.gate import REQUESTS, Block
from allocator.core.sample_ratio import ALPHA
from allocator.core.snapshot import Entry, Table
from tests.conftest import two_arms
from tests.engine.conftest import Rehearsal

SLOTS_OF = (SLOTS // 2, SLOTS // 8 * 3, SLOTS // 8)
HALVES = Policy(kind=PolicyKind.FIXED, shares={"old": 0.5, "new": 0.5})


def entry_with(*, owners=None, slots=SLOTS_OF, **changes):
    """Three arms with these slots; `owners`: who serves them in truth."""
    layout = first_layout(slots)
    table = Table(layout.ends, owners or layout.owners, slots)
    values = {"version": 1, "sticky": True, "tables": (table,)} | changes
    return Entry(
        "default/x", b"uid-of-8", state="RUNNING", salt=b"salt", arms=("a", "b", "c"), model_uris=("", "", ""), incumbent=0, **values
    )


def decide(decider, entry, units, start=0):
    """The arms of so many units, by name."""
    return Counter(decider.decide(entry, b"unit-%d" % n, {}, 1e9, n.to_bytes(8, "big")).arm for n in range(start, start + units))


def drawn(decider):
    """Draws, expected draws and variance of each arm since the last look."""
    found = {}
    for e in decider.take():
        found[e.arm] = tuple(a + b for a, b in zip(found.get(e.arm, (0, 0, 0)), (e.drawn, e.expected, e.variance), strict=True))
    return found


# ---- what a decider counts


def test_each_decision_adds_its_slots_to_what_was_expected_of_every_arm():
    decider = Decider(b"key")
    served = decide(decider, entry_with(), 500)
    found = drawn(decider)
    for arm, name in enumerate("abc"):
        share = SLOTS_OF[arm]
        assert found[arm] == (served[name], 500 * share, 500 * share * (SLOTS - share))


def test_a_new_plan_changes_what_is_expected_from_then_on():
    decider = Decider(b"key")
    other = (SLOTS - 200, 100, 100)
    decide(decider, entry_with(), 300)
    decide(decider, entry_with(version=2, slots=other), 200, start=300)
    found = drawn(decider)
    assert [found[arm][1] for arm in range(3)] == [300 * a + 200 * b for a, b in zip(SLOTS_OF, other, strict=True)]
    assert sum(count for count, _, _ in found.values()) == 500


def test_a_sticky_unit_draws_once_in_an_activation_however_often_it_returns():
    decider = Decider(b"key")
    for _ in range(3):
        decide(decider, entry_with(), 100)
        decide(decider, entry_with(version=2), 100)
    assert sum(count for count, _, _ in drawn(decider).values()) == 100
    decide(decider, entry_with(version=3, activation=2), 100)
    assert sum(count for count, _, _ in drawn(decider).values()) == 100


def test_where_each_request_is_drawn_anew_each_counts():
    decider, entry = Decider(b"key"), entry_with(sticky=False)
    for nonce in range(200):
        decider.decide(entry, b"unit", {}, 1e9, nonce.to_bytes(8, "big"))
    assert sum(count for count, _, _ in drawn(decider).values()) == 200


@pytest.mark.parametrize(
    ("changes", "attributes"),
    [
        ({"only": (0, 4)}, {}),
        ({"only": (1, 1)}, {}),
        ({"opt_out": "no"}, {"no": "yes"}),
        ({"target": {"country": frozenset({"de"})}}, {}),
        ({"pins": {b"unit": 1}}, {}),
        ({"leased_requests": True}, {}),
        ({"strict": True, "cap": 0.0, "cap_per_candidate": 0.0}, {}),
        ({"slots": (SLOTS, 0, 0)}, {}),
    ],
)
def test_what_the_weights_did_not_decide_is_no_draw(changes, attributes):
    decider = Decider(b"key")
    decider.decide(entry_with(**changes), b"unit", attributes, 1e9, bytes(8))
    decider.decide(entry_with(**changes), b"unit", attributes, 1e9, bytes(8), stale=True)
    assert all(found == (0, 0, 0) for found in drawn(decider).values())


def test_a_unit_that_a_budget_kept_from_everything_draws_when_it_comes_back_and_one_kept_from_a_part_does_not():
    entry = entry_with(leased_requests=True)
    decider = Decider(b"key")
    decide(decider, entry, 100)
    budget = decider.budget(entry.uid)
    budget.post(REQUESTS, 1, Block(1, 1, 10_000))  # arm c stays closed
    decide(decider, entry, 50)
    assert all(count == 0 for count, _, _ in drawn(decider).values())
    budget.post(REQUESTS, 2, Block(1, 1, 10_000))
    decide(decider, entry, 100)
    assert sum(count for count, _, _ in drawn(decider).values()) == 50


def test_too_many_units_become_a_sample_that_forgets_nobody_it_holds(monkeypatch):
    monkeypatch.setattr(decider_memory, "MAX_DRAWS_REMEMBERED", 100)
    decider, entry = Decider(b"key"), entry_with()
    decide(decider, entry, 1000)
    first = sum(count for count, _, _ in drawn(decider).values())
    assert 100 < first < 1000
    assert len(decider._memories[entry.uid].drew) <= 100
    decide(decider, entry, 1000)
    assert drawn(decider).get(1, (0, 0, 0))[0] == 0  # none of them again


def test_what_could_not_be_stored_is_counted_with_the_next():
    decider = Decider(b"key")
    decide(decider, entry_with(), 100)
    taken = decider.take()
    decider.give_back(taken)
    decide(decider, entry_with(), 50, start=100)
    assert sum(count for count, _, _ in drawn(decider).values()) == 150
    assert decider.take() == []


# ---- from end to end


def misrouted(rehearsal, share):
    """From now on the decider serves the incumbent in this share of the candidate's slots, and nobody is told."""
    entry = rehearsal.engine.live.snapshot.entries["default/ranker"]
    _, count = entry.tables[0].served
    lost = int(count * share)
    table = Table((SLOTS - count + lost, SLOTS), (0, 1), entry.tables[0].served)
    rehearsal.engine.live.publish([replace(entry, version=entry.version + 1, tables=(table,))])


def serve(rehearsal, rounds, count=200):
    for _ in range(rounds):
        decisions = [rehearsal.decide() for _ in range(count)]
        rehearsal.engine.ingest.report((), rehearsal.engine.decider.take())
        rehearsal.clock.pass_(1.0)
        rehearsal.plan()
    return decisions


def test_healthy_draws_raise_no_alarm_through_changing_weights_and_restarts(rehearsal):
    arms = (Arm("old", incumbent=True), Arm("new"), Arm("newer"))
    rehearsal.run(two_arms(arms=arms, guardrails=(), exposure=Exposure(total=0.8, strict=True)))
    for seed in range(1, 6):
        rates = {"old": 0.1, "new": 0.1 + seed / 50, "newer": 0.12}
        for _ in range(10):
            rehearsal.serve(100, lambda arm, rates=rates, chance=rehearsal.chance: {"reward": chance(rates[arm])})
        described = rehearsal.engine.describe("ranker")
        assert described.sample_ratio > 0.001
        rehearsal.clock.pass_(1)
        rehearsal = Rehearsal(rehearsal.store, rehearsal.clock, seed)  # the same units come to a new process
    tally = rehearsal.engine.planner.tally(rehearsal.record())
    assert len(tally.draws) == 5
    assert sum(tally.draws[0].drawn) > 800
    assert "experiment.sample_ratio" not in rehearsal.actions()


def test_a_candidate_that_loses_draws_holds_the_ramp_and_is_told_once(rehearsal):
    ramp = (RampStage(0.5, min_duration_seconds=60), RampStage(0.6))
    rehearsal.run(two_arms(guardrails=(), policy=HALVES, exposure=Exposure(total=0.6), ramp=ramp, conclude=Conclude(prob_best=0.51)))
    misrouted(rehearsal, 0.2)
    while rehearsal.engine.describe("ranker").sample_ratio > ALPHA:
        serve(rehearsal, 1)
        assert rehearsal.units < 12_000
        if rehearsal.units % 2000 == 0:
            misrouted(rehearsal, 0.2)
    rehearsal.clock.pass_(60)
    serve(rehearsal, 3)
    assert rehearsal.record().status.stage == 0
    assert rehearsal.actions().count("experiment.sample_ratio") == 1
    described = rehearsal.engine.describe("ranker")
    assert any("draws of new that agree with the weights" in sentence for sentence in described.plan.waiting_for)
    assert any("not drawn as often" in note for note in described.notes)
    told = next(record.entry for record in rehearsal.store.audit() if record.entry.action == "experiment.sample_ratio")
    assert told.reason.startswith("new was not drawn as often as its weights say")
    rehearsal.engine.commands.freeze("ranker", actor="ann", reason="routing")
    rehearsal.engine.commands.resume("ranker", actor="ann", reason="mended")
    assert rehearsal.engine.describe("ranker").sample_ratio == 1.0
    rehearsal.clock.pass_(61)
    serve(rehearsal, 1)
    assert rehearsal.record().status.stage == 1


def test_segments_with_weights_of_their_own_are_judged_by_those(rehearsal):
    segments = (Segment("mobile", {"device": ("ios",)}),)
    policy = Policy(pooling=Pooling.PER_SEGMENT)
    rehearsal.run(two_arms(guardrails=(), policy=policy, exposure=Exposure(), segments=segments))
    for attributes in ({"device": "ios"}, {}) * 15:
        best = "new" if attributes else "old"
        rehearsal.serve(100, lambda arm, best=best: {"reward": rehearsal.chance(0.5 if arm == best else 0.1)}, attributes=attributes)
    served = [table.served[1] for table in rehearsal.engine.live.snapshot.entries["default/ranker"].tables]
    assert served[0] > 0.9 * SLOTS
    assert served[1] < 0.1 * SLOTS
    assert rehearsal.engine.describe("ranker").sample_ratio > 0.01


def test_draws_that_are_settled_still_count(rehearsal):
    rehearsal.run(two_arms(guardrails=(), policy=HALVES, assignment=Assignment.PER_REQUEST))
    serve(rehearsal, 3)
    before = rehearsal.engine.planner.tally(rehearsal.record()).draws
    rehearsal.clock.pass_(4000)
    rehearsal.plan()
    found = rehearsal.engine.planner.tally(rehearsal.record())
    assert found.open.buckets.size == 0
    assert found.draws == before
    assert sum(found.draws[0].drawn) == 600


def test_a_used_up_budget_leaves_the_other_candidate_its_draws(rehearsal):
    """A closed candidate gates every decision, and gated ones teach neither this check nor a relative guardrail: it loses its weight."""
    arms = (Arm("old", incumbent=True), Arm("new"), Arm("newer"))
    policy = Policy(kind=PolicyKind.FIXED, shares={"old": 0.4, "new": 0.3, "newer": 0.3})
    rehearsal.run(two_arms(arms=arms, guardrails=(), policy=policy, exposure=Exposure(budget=Budget(requests=900))))
    rehearsal.store.grant(rehearsal.record().uid, 1, REQUESTS, 900, 900)  # all that `new` had left, gone with another process
    serve(rehearsal, 1)

    def drawn() -> int:
        return rehearsal.engine.planner.tally(rehearsal.record()).draws[0].drawn[2]

    before = drawn()
    serve(rehearsal, 1)
    assert drawn() == before
    rehearsal.clock.pass_(61)  # nothing more of `new` was seen for a bucket
    serve(rehearsal, 2)
    assert rehearsal.record().slots[0][1] == 0
    assert drawn() > before + 30
