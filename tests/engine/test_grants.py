"""Budgets end to end: what the store grants, what deciders spend, and what candidates ever receive, through crashes and restarts."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest

from allocator.core.assignment import SLOTS, first_layout
from allocator.core.budget import NO_LIMIT, TOGETHER, Limits
from allocator.core.decider import Decider
from allocator.core.experiment import Arm, Assignment, Budget, Exposure, Policy, PolicyKind, RampStage, Reward
from allocator.core.gate import REQUESTS, UNITS
from allocator.core.snapshot import Entry, Table
from allocator.engine.grants import Grants
from allocator.engine.live import Live
from allocator.errors import InvalidArgument, Unavailable
from allocator.stores.memory import MemoryStore
from allocator.stores.sqlite import SqliteStore
from tests.conftest import ManualClock, SeededEntropy, two_arms
from tests.engine.conftest import Rehearsal

UID = b"uid-of-8"


def budgeted(**changes):
    """Two arms that are equally good, half of the traffic each, and a budget."""
    values = {"guardrails": (), "exposure": Exposure(total=0.5, budget=Budget(**changes.pop("budget", {})))}
    return two_arms(**(values | changes))


def clicks(rehearsal, chances):
    return lambda arm: {"reward": rehearsal.chance(chances[arm])}


def candidates(decisions):
    return sum(decision.arm != "old" for decision in decisions)


# ---- one experiment from start to end


def test_a_budget_of_requests_is_spent_to_the_last_and_never_passed(rehearsal):
    rehearsal.run(budgeted(budget={"requests": 100}))
    served = [candidates(rehearsal.serve(100, clicks(rehearsal, {"old": 0.1, "new": 0.3}))) for _ in range(20)]
    assert sum(served) == 100 == rehearsal.store.granted(rehearsal.record().uid)[1, REQUESTS]
    assert served[-1] == 0


def test_a_budget_outlives_the_process_that_spent_it_and_what_it_held_is_lost(rehearsal):
    rehearsal.run(budgeted(budget={"requests": 100}))
    total = candidates([rehearsal.decide() for _ in range(60)])  # of which nothing was stored
    assert 0 < total < 100
    for seed in range(1, 4):
        again = Rehearsal(rehearsal.store, rehearsal.clock, seed)  # the same store; the one before is gone without a word
        again.units = 1000 * seed
        total += candidates([again.decide() for _ in range(40)])
        assert total <= 100
    again = Rehearsal(rehearsal.store, rehearsal.clock, 9)
    again.units = 9000
    total += candidates([again.decide() for _ in range(2000)])
    assert total < 100  # each left some of its lease unspent
    assert rehearsal.store.granted(rehearsal.record().uid) == {(1, REQUESTS): 100}


def test_a_budget_of_units_counts_each_unit_once_and_lets_those_come_back_that_had_the_arm(rehearsal):
    rehearsal.run(budgeted(budget={"units": 20}))
    seen = set()
    for _ in range(3):
        for number in range(200):
            decision = rehearsal.decide(unit=f"unit-{number}")
            if decision.arm == "new":
                seen.add(number)
            else:
                assert number not in seen
    assert len(seen) == 20


def test_a_refused_unit_is_told_so_and_its_propensity_is_that_of_the_incumbent_alone(rehearsal):
    rehearsal.run(budgeted(budget={"requests": 5}))
    decisions = [rehearsal.decide() for _ in range(200)]
    assert candidates(decisions) == 5
    last = decisions[-100:]
    assert {(d.arm, d.propensity) for d in last} == {("old", 1.0)}
    assert {d.reason.name for d in last} == {"ALLOCATED", "CAPPED"}


def test_candidates_need_not_wait_after_a_start_a_stage_or_a_resume(rehearsal):
    ramp = (RampStage(0.0, shadow=True), RampStage(0.5))
    rehearsal.run(budgeted(budget={"requests": 10_000}, ramp=ramp))
    engine = rehearsal.engine
    assert rehearsal.record().status.stage == 1  # a shadow stage without conditions is left at once
    assert {d.reason.name for d in (rehearsal.decide() for _ in range(20))} == {"ALLOCATED"}
    engine.decider.low = lambda: None
    while rehearsal.decide().reason.name != "CAPPED":
        pass
    engine.commands.freeze("ranker", actor="ann", reason="a rehearsal")
    before = engine.store.granted(rehearsal.record().uid)
    assert {rehearsal.decide().reason.name for _ in range(20)} == {"FROZEN"}
    engine.fill_leases()
    assert engine.store.granted(rehearsal.record().uid) == before  # nothing is set aside for nobody
    engine.commands.resume("ranker", actor="ann", reason="a rehearsal")
    assert {d.reason.name for d in (rehearsal.decide() for _ in range(20))} == {"ALLOCATED"}
    assert engine.store.granted(rehearsal.record().uid)[1, REQUESTS] > before[1, REQUESTS]


def test_a_freeze_voids_what_was_set_aside(rehearsal):
    rehearsal.run(budgeted(budget={"requests": 20}))
    served = 0
    for _ in range(8):
        served += candidates([rehearsal.decide() for _ in range(2)])
        rehearsal.engine.commands.freeze("ranker", actor="ann", reason="a rehearsal")
        rehearsal.engine.commands.resume("ranker", actor="ann", reason="a rehearsal")
    served += candidates([rehearsal.decide() for _ in range(300)])
    assert served < 20
    assert rehearsal.store.granted(rehearsal.record().uid)[1, REQUESTS] == 20


def test_a_used_up_budget_takes_the_weight_is_told_once_and_comes_back_with_a_larger_one(rehearsal):
    experiment = budgeted(budget={"requests": 30}, policy=Policy(floor=0.1))
    rehearsal.run(experiment)
    for _ in range(5):
        rehearsal.serve(100, clicks(rehearsal, {"old": 0.2, "new": 0.2}))
    assert rehearsal.record().slots == ((SLOTS, 0),)
    assert rehearsal.actions().count("arm.budget") == 1
    described = rehearsal.engine.describe("ranker")
    assert "new has used up its budget of 30 requests" in described.notes
    assert "budget of requests of new: 30 of 30 that it allows now are spent or set aside" in described.notes
    rehearsal.engine.commands.apply(replace(experiment, exposure=Exposure(total=0.5, budget=Budget(requests=50))), actor="ann")
    rehearsal.plan()
    assert rehearsal.record().slots[0][1] > 0
    assert sum(candidates(rehearsal.serve(100, clicks(rehearsal, {"old": 0.2, "new": 0.2}))) for _ in range(5)) == 20
    assert rehearsal.actions().count("arm.budget") == 2


def test_a_budget_of_loss_holds_a_bad_candidate_and_lets_an_equal_one_go_on(rehearsal):
    experiment = budgeted(budget={"loss": 40.0}, policy=Policy(kind=PolicyKind.FIXED, shares={"old": 0.5, "new": 0.5}))
    rehearsal.run(experiment)
    earned, seen = 0.0, 0
    for _ in range(40):
        decisions = rehearsal.serve(100, clicks(rehearsal, {"old": 0.4, "new": 0.1}))
        seen += candidates(decisions)
        learned = rehearsal.engine.planner.last[rehearsal.record().uid].tally
        earned = learned.open.sums[:, 1, :, 2, 1].sum() / 1e6
        assert seen * 0.4 - earned <= 40.0
    assert seen > 100  # at their worst, 40 would have lost 40
    other = Rehearsal(seed=3)
    other.run(experiment)
    equal = sum(candidates(other.serve(100, clicks(other, {"old": 0.4, "new": 0.4}))) for _ in range(40))
    assert equal > 2 * seen


def test_max_loss_keeps_the_reward_of_all_near_the_incumbents_at_every_decision(rehearsal):
    arms = (Arm("old", incumbent=True), Arm("new"), Arm("newer"))
    means = {"old": 0.10, "new": 0.05, "newer": 0.02}
    rehearsal.run(two_arms(arms=arms, guardrails=(), exposure=Exposure(max_loss=0.05), assignment=Assignment.PER_REQUEST))
    earned = count = 0
    for _ in range(60):
        for decision in rehearsal.serve(100, clicks(rehearsal, means)):
            count += 1
            earned += means[decision.arm]
            assert earned >= 0.95 * means["old"] * count - 1e-9
    assert count * means["old"] > earned  # candidates did serve


def test_a_better_candidate_outgrows_its_share_under_max_loss(rehearsal):
    rehearsal.run(two_arms(guardrails=(), exposure=Exposure(max_loss=0.05)))
    shares = [candidates(rehearsal.serve(200, clicks(rehearsal, {"old": 0.2, "new": 0.5}))) / 200 for _ in range(40)]
    assert sum(shares[:2]) / 2 <= 0.05
    assert sum(shares[-5:]) / 5 > 0.5


# ---- what may be revised


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        (Exposure(), Exposure(budget=Budget(requests=5)), "spec.exposure.budget.requests"),
        (Exposure(), Exposure(budget=Budget(loss=5.0)), "spec.exposure.budget.loss"),
        (Exposure(budget=Budget(requests=5)), Exposure(budget=Budget(requests=5, units=5)), "spec.exposure.budget.units"),
        (Exposure(budget=Budget(requests=5)), Exposure(budget=Budget(requests=5), max_loss=0.1), "spec.exposure.maxLoss"),
    ],
)
def test_a_budget_cannot_come_later_since_nobody_counted_what_went_before(rehearsal, before, after, field):
    rehearsal.run(two_arms(exposure=before, guardrails=()))
    with pytest.raises(InvalidArgument) as caught:
        rehearsal.engine.commands.apply(two_arms(exposure=after, guardrails=()), actor="ann")
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_budget_may_change_go_or_be_joined_by_one_of_the_same_account(rehearsal):
    rehearsal.run(budgeted(budget={"requests": 100}))
    served = candidates([rehearsal.decide() for _ in range(20)])
    for budget in (Budget(requests=60), Budget(requests=60, loss=1e6), Budget(loss=1e6)):
        rehearsal.engine.commands.apply(budgeted(exposure=Exposure(total=0.5, budget=budget)), actor="ann")
        rehearsal.plan()
        if budget.requests:
            assert rehearsal.store.granted(rehearsal.record().uid)[1, REQUESTS] <= 60
    served += candidates([rehearsal.decide() for _ in range(300)])
    assert served > 60


# ---- deciders, leases and the store


def live_with(entry):
    live = Live(ManualClock())
    live.publish([entry])
    return live


def entry_with(version=1, activation=1, slots=(SLOTS // 4, SLOTS // 4, SLOTS // 2), **changes):
    layout = first_layout(slots)
    values = {"leased_requests": True, "activation": activation} | changes
    table = Table(layout.ends, layout.owners, slots)
    return Entry("default/x", UID, version, "RUNNING", False, b"salt", ("a", "b", "c"), ("", "", ""), 0, (table,), **values)


class Process:
    """A decider and what fills its leases: all that a crash takes away."""

    def __init__(self, store, live, limits, rng):
        self.decider = Decider(b"key", restarted=True)
        self.grants = Grants(store, live, self.decider)
        self.grants.renew(UID.hex(), limits)
        self.rng = rng

    def serve(self, entry, decisions):
        """Arms served in so many decisions."""
        served = Counter()
        for _ in range(decisions):
            decision = self.decider.decide(entry, b"%d" % self.rng.randrange(500), {}, 1e9, self.rng.randbytes(8))
            served[decision.arm] += 1
        return served


class Dying:
    """A store whose caller is killed while it waits for an answer, after so many answers."""

    def __init__(self, store, answers):
        self.granted = store.granted
        self._store, self._answers = store, answers

    def grant(self, *arguments):
        granted = self._store.grant(*arguments)
        self._answers -= 1
        if self._answers < 0:
            raise SystemExit
        return granted


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("seed", range(50))
def test_no_crash_makes_deciders_pass_a_budget(kind, seed, tmp_path):
    """A kill between any two steps: before the grant, after it, before its block arrives, in the middle of serving."""
    rng = random.Random(seed)
    store = MemoryStore(SeededEntropy()) if kind == "memory" else SqliteStore(tmp_path / "store.db", SeededEntropy())
    budget, together = rng.randrange(0, 400), rng.choice([NO_LIMIT, 500])
    limits = Limits((None, budget, budget), (None, None, None), together)
    entry = entry_with()
    live = live_with(entry)
    processes = [Process(store, live, limits, rng) for _ in range(rng.randrange(1, 5))]
    spent = Counter()
    for _ in range(60):
        index = rng.randrange(len(processes))
        process = processes[index]
        fate = rng.random()
        if fate < 0.1:  # killed
            processes[index] = Process(store, live, limits, rng)
        elif fate < 0.2:  # killed when the store had set aside what was asked, before the answer came
            process.grants._store = Dying(store, answers=rng.randrange(3))
            with suppress(SystemExit):
                process.grants.fill()
            spent += process.serve(entry, rng.randrange(20))
            processes[index] = Process(store, live, limits, rng)
        elif fate < 0.3:  # a freeze, and a resume
            entry = entry_with(entry.version + 1, entry.activation + 1)
            live.publish([entry])
        else:
            if fate < 0.8:
                process.grants.fill()
            spent += process.serve(entry, rng.randrange(60))
        granted = store.granted(UID.hex())
        assert spent["b"] <= granted.get((1, REQUESTS), 0) <= budget
        assert spent["c"] <= granted.get((2, REQUESTS), 0) <= budget
        assert spent["b"] + spent["c"] <= granted.get((0, TOGETHER), 0) <= together
    store.close()


def test_four_deciders_share_one_budget_and_use_it_up():
    store, rng = MemoryStore(SeededEntropy()), random.Random(1)
    entry = entry_with()
    live, limits = live_with(entry), Limits((None, 300, 300), (None, None, None))
    processes = [Process(store, live, limits, rng) for _ in range(4)]
    for process in processes:
        process.decider.low = process.grants.fill
    spent = Counter()
    for _ in range(200):
        process = rng.choice(processes)
        process.grants.fill()
        spent += process.serve(entry, 20)
    assert (spent["b"], spent["c"]) == (300, 300)


def test_a_busy_lease_grows_and_a_quiet_one_shrinks():
    store, rng = MemoryStore(SeededEntropy()), random.Random(1)
    entry = entry_with(slots=(0, SLOTS, 0))
    process = Process(store, live_with(entry), Limits((None, NO_LIMIT, None), (None, None, None)), rng)
    asked = []
    process.decider.low = lambda: (process.grants.fill(), asked.append(1))
    process.grants.fill()
    assert process.serve(entry, 50_000)["b"] == 50_000  # never empty
    assert len(asked) < 20  # each is a write of the store
    busy = store.granted(UID.hex())[1, REQUESTS] - 50_000
    assert busy < 50_000
    for _ in range(40):
        process.grants.fill()
    assert process.serve(entry, busy - 100)["b"] == busy - 100
    process.grants.fill()
    assert store.granted(UID.hex())[1, REQUESTS] - 50_000 - busy < 0.1 * busy


def test_blocks_shrink_near_the_limit():
    store, rng = MemoryStore(SeededEntropy()), random.Random(1)
    entry = entry_with(slots=(0, SLOTS, 0))
    process = Process(store, live_with(entry), Limits((None, 1000, None), (None, None, None)), rng)
    spent = held = 0
    while spent < 1000:
        process.grants.fill()
        granted = store.granted(UID.hex())[1, REQUESTS]
        held = granted - spent
        assert held <= max((1000 - spent) // 2, 1) + 1
        served = process.serve(entry, held)["b"]
        assert served == held
        spent += served
    process.grants.fill()
    assert process.serve(entry, 100)["b"] == 0


def test_what_another_process_was_granted_meanwhile_is_not_spent(monkeypatch):
    store, rng = MemoryStore(SeededEntropy()), random.Random(1)
    entry = entry_with()
    process = Process(store, live_with(entry), Limits((None, 50, 50), (None, None, None), 60), rng)
    monkeypatch.setattr(store, "granted", lambda uid: {})  # what it knew then
    store.grant(UID.hex(), 1, REQUESTS, 45, 50)
    store.grant(UID.hex(), 0, TOGETHER, 45, 60)
    spent = Counter()
    for _ in range(10):
        process.grants.fill()
        spent += process.serve(entry, 50)
    assert spent["b"] <= 5
    assert spent["b"] + spent["c"] <= 15


def test_an_exhausted_lease_asks_the_store_for_nothing_more(monkeypatch):
    store, rng = MemoryStore(SeededEntropy()), random.Random(1)
    entry = entry_with()
    process = Process(store, live_with(entry), Limits((None, 3, 3), (None, None, None)), rng)
    for _ in range(20):
        process.grants.fill()
        process.serve(entry, 20)
    monkeypatch.setattr(store, "grant", None)  # would fail if it were called
    process.grants.fill()


def test_an_arm_without_slots_is_granted_nothing():
    store = MemoryStore(SeededEntropy())
    entry = entry_with(slots=(SLOTS // 2, SLOTS // 2, 0))
    Process(store, live_with(entry), Limits((None, 50, 50), (None, 50, 50)), random.Random(1)).grants.fill()
    assert store.granted(UID.hex()).keys() == {(1, REQUESTS)}


def test_units_have_leases_of_their_own():
    store, rng = MemoryStore(SeededEntropy()), random.Random(1)
    entry = entry_with(leased_requests=False, leased_units=True)
    process = Process(store, live_with(entry), Limits((None, None, None), (None, 10, 10)), rng)
    units = {"b": set(), "c": set()}
    for _ in range(3000):
        process.grants.fill()
        unit = b"%d" % rng.randrange(100)
        decision = process.decider.decide(entry, unit, {}, 1e9, rng.randbytes(8))
        if decision.arm != "a":
            units[decision.arm].add(unit)
    assert [len(found) for found in units.values()] == [10, 10]
    assert store.granted(UID.hex()) == {(1, UNITS): 10, (2, UNITS): 10}


def test_while_the_store_is_away_nothing_is_spent_that_was_not_granted(rehearsal, monkeypatch):
    rehearsal.run(budgeted(budget={"requests": 10_000}))

    def away(*_):
        raise Unavailable("the store is away")

    with monkeypatch.context() as broken:
        broken.setattr(rehearsal.store, "grant", away)
        decisions = [rehearsal.decide() for _ in range(300)]
        granted = rehearsal.store.granted(rehearsal.record().uid)[1, REQUESTS]
        assert candidates(decisions) == granted
        assert {d.reason.name for d in decisions[-50:]} == {"ALLOCATED", "CAPPED"}
    rehearsal.engine.fill_leases()
    assert candidates([rehearsal.decide() for _ in range(50)]) > 10


def test_without_a_budget_the_store_is_never_asked(rehearsal, monkeypatch):
    monkeypatch.setattr(rehearsal.store, "grant", None)
    monkeypatch.setattr(rehearsal.store, "granted", None)
    rehearsal.run(two_arms(guardrails=()))
    rehearsal.serve(100, clicks(rehearsal, {"old": 0.1, "new": 0.3}))
    assert rehearsal.engine.describe("ranker").plan.limits is None


def test_missing_rewards_count_at_their_value_in_a_budget_of_loss(rehearsal):
    reward = Reward("click", missing=0.0, window_seconds=60)
    rehearsal.run(budgeted(budget={"loss": 20.0}, reward=reward))
    seen = 0
    for _ in range(30):
        seen += candidates(rehearsal.serve(50, lambda arm: {"reward": 1.0} if rehearsal.chance(0.5) and arm == "old" else {}, seconds=20))
    assert 20 <= seen <= 20 / 0.45  # each loses half a click, once that is known
