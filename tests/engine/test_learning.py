"""What the engine learns and does with it: weights, cohorts, forgetting, segments, priors, revisions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from allocator.core.assignment import SLOTS, counts
from allocator.core.experiment import (
    Arm,
    Assignment,
    Exposure,
    Goal,
    Guardrail,
    Policy,
    PolicyKind,
    Pooling,
    Prior,
    Reward,
    RewardModel,
    Segment,
    WarmStart,
)
from allocator.errors import Conflict, InvalidArgument, Refused
from tests.conftest import two_arms

OPEN = {"exposure": Exposure(), "guardrails": ()}


def described(rehearsal, name="ranker"):
    return {arm.arm: arm for arm in rehearsal.engine.describe(name).arms}


def test_the_posterior_is_the_beta_of_what_was_reported(rehearsal):
    rehearsal.run(two_arms(**OPEN))
    seen = {"old": [], "new": []}

    def values(arm):
        seen[arm].append(rehearsal.chance(0.3))
        return {"reward": seen[arm][-1]}

    for _ in range(5):
        rehearsal.serve(100, values)
    for arm, told in described(rehearsal).items():
        wins, losses = sum(seen[arm]), len(seen[arm]) - sum(seen[arm])
        posterior = stats.beta(1 + wins, 1 + losses)
        assert told.outcomes == len(seen[arm])
        assert told.mean == pytest.approx(posterior.mean(), rel=1e-12)
        assert (told.low, told.high) == pytest.approx(posterior.interval(0.95), rel=1e-7)


def test_a_gaussian_reward_far_from_zero_keeps_its_variance(rehearsal):
    reward = Reward("seconds", RewardModel.GAUSSIAN, low=1e6, high=1e6 + 10, goal=Goal.MINIMISE)
    rehearsal.run(two_arms(reward=reward, **OPEN))
    seen = {"old": [], "new": []}

    def values(arm):
        value = min(max(rehearsal.rng.gauss(1e6 + (5 if arm == "old" else 4.5), 0.5), 1e6), 1e6 + 10)
        seen[arm].append(value)
        return {"reward": value}

    for _ in range(5):
        rehearsal.serve(100, values)
    told = described(rehearsal)
    for arm, values_ in seen.items():
        n, mean, m2 = len(values_), np.mean(values_), np.sum((np.array(values_) - np.mean(values_)) ** 2)
        strength, shape, scale = 1 + n, 1 + n / 2, 6.25 + m2 / 2 + n / (1 + n) * (mean - (1e6 + 5)) ** 2 / 2
        posterior = stats.t(2 * shape, (1e6 + 5 + n * mean) / strength, np.sqrt(scale / (shape * strength)))
        assert told[arm].mean == pytest.approx(posterior.mean(), abs=1e-5)
        assert (told[arm].low, told[arm].high) == pytest.approx(posterior.interval(0.95), abs=1e-4)
    assert told["new"].prob_best > 0.999  # smaller is better


def test_a_poisson_reward_has_a_gamma_posterior(rehearsal):
    rehearsal.run(two_arms(reward=Reward("items", RewardModel.POISSON, prior=Prior(shape=2.0, rate=4.0)), **OPEN))
    total = {"old": [0, 0.0], "new": [0, 0.0]}

    def values(arm):
        value = float(rehearsal.rng.randint(0, 4))
        total[arm][0] += 1
        total[arm][1] += value
        return {"reward": value}

    rehearsal.serve(300, values)
    for arm, told in described(rehearsal).items():
        count, items = total[arm]
        assert told.mean == pytest.approx((2 + items) / (4 + count), rel=1e-9)


def test_with_missing_set_rewards_count_by_whole_cohorts(rehearsal):
    rehearsal.run(two_arms(reward=Reward("click", window_seconds=60, missing=0.0), **OPEN))
    clicks = {"old": 0, "new": 0}
    made = {"old": 0, "new": 0}

    def only_clicks(arm):
        made[arm] += 1
        if rehearsal.chance(0.1):
            clicks[arm] += 1
            return {"reward": 1.0}
        return {}

    rehearsal.serve(500, only_clicks)
    assert all(arm.outcomes == 0 for arm in described(rehearsal).values())  # no success counts before its cohort has matured
    rehearsal.clock.pass_(120)
    rehearsal.plan()
    rehearsal.plan()
    for arm, told in described(rehearsal).items():
        assert told.outcomes == made[arm]
        assert told.mean == pytest.approx((1 + clicks[arm]) / (2 + made[arm]))


def test_without_missing_an_unreported_decision_counts_as_nothing(rehearsal):
    rehearsal.run(two_arms(reward=Reward("click", window_seconds=60), **OPEN))
    rehearsal.serve(100, lambda arm: {})
    rehearsal.clock.pass_(120)
    rehearsal.plan()
    told = described(rehearsal)
    assert sum(arm.decisions for arm in told.values()) == 100
    assert sum(arm.outcomes for arm in told.values()) == 0


def test_settling_changes_no_sum(rehearsal):
    rehearsal.run(two_arms(reward=Reward("click", window_seconds=60), **OPEN))
    for _ in range(5):
        rehearsal.serve(50, lambda arm: {"reward": rehearsal.chance(0.2)}, seconds=7)
    before = described(rehearsal)
    rehearsal.clock.pass_(600)
    rehearsal.plan()
    record = rehearsal.record()
    assert rehearsal.store.cells(record.uid) == []
    assert record.settled_through > 0
    for arm, told in described(rehearsal).items():
        assert (told.outcomes, told.mean, told.decisions) == (before[arm].outcomes, before[arm].mean, before[arm].decisions)


def test_half_lives_forget_settled_and_open_outcomes_alike(rehearsal):
    reward = Reward("click", window_seconds=60)
    rehearsal.run(two_arms(reward=reward, policy=Policy(half_life_seconds=3600.0), **OPEN))
    rehearsal.serve(200, lambda arm: {"reward": 1.0})
    told = described(rehearsal)
    rehearsal.clock.pass_(7200)
    rehearsal.plan()
    faded = described(rehearsal)
    for arm in ("old", "new"):
        assert faded[arm].outcomes == pytest.approx(told[arm].outcomes / 4, rel=0.05, abs=1)


def test_weights_are_pooled_by_default_and_per_segment_when_the_spec_says_so(rehearsal):
    segments = (Segment("mobile", {"device": ("ios", "android")}),)
    rehearsal.run(two_arms(segments=segments, policy=Policy(pooling=Pooling.PER_SEGMENT), **OPEN))
    for _ in range(15):
        rehearsal.serve(60, lambda arm: {"reward": rehearsal.chance(0.5 if arm == "new" else 0.1)}, attributes={"device": "ios"})
        rehearsal.serve(60, lambda arm: {"reward": rehearsal.chance(0.1 if arm == "new" else 0.5)}, attributes={"device": "tv"})
    mobile, other = rehearsal.record().slots
    assert mobile[1] > 0.9 * SLOTS
    assert other[1] < 0.1 * SLOTS
    assert rehearsal.decide(attributes={"device": "ios"}).segment == "mobile"
    assert rehearsal.decide(attributes={}).segment == "other"

    pooled = two_arms(name="pooled", segments=segments, **OPEN)
    rehearsal.run(pooled)
    assert len(rehearsal.record("pooled").slots) == 1


def test_a_warm_start_begins_where_an_earlier_experiment_ended(rehearsal):
    rehearsal.run(two_arms(**OPEN))
    for _ in range(10):
        rehearsal.serve(100, lambda arm: {"reward": rehearsal.chance(0.5 if arm == "new" else 0.2)})
    first = described(rehearsal)
    again = two_arms(
        name="again",
        arms=(Arm("old", incumbent=True), Arm("new"), Arm("newest")),
        reward=Reward("click", warm_start=WarmStart("ranker", 0.5)),
        **OPEN,
    )
    rehearsal.run(again)
    told = described(rehearsal, "again")
    wins = first["new"].mean * (first["new"].outcomes + 2) - 1
    assert told["new"].mean == pytest.approx((1 + wins / 2) / (2 + first["new"].outcomes / 2), rel=1e-9)
    assert told["newest"].mean == 0.5
    with pytest.raises(InvalidArgument, match="does not exist"):
        rehearsal.run(two_arms(name="third", reward=Reward("click", warm_start=WarmStart("nobody")), **OPEN))


@pytest.mark.parametrize("kind", [PolicyKind.TOP_TWO, PolicyKind.EXPLORATION, PolicyKind.THOMPSON])
def test_every_policy_respects_the_caps(rehearsal, kind):
    arms = (Arm("old", incumbent=True), Arm("a"), Arm("b"))
    policy = Policy(kind=kind, floor=0.02)
    rehearsal.run(two_arms(arms=arms, policy=policy, exposure=Exposure(per_candidate=0.3, total=0.4), guardrails=()))
    for _ in range(12):
        rehearsal.serve(100, lambda arm: {"reward": rehearsal.chance({"old": 0.2, "a": 0.5, "b": 0.1}[arm])})
        slots = rehearsal.record().slots[0]
        assert slots[1] <= 0.3 * SLOTS
        assert slots[2] <= 0.3 * SLOTS
        assert slots[1] + slots[2] <= 0.4 * SLOTS
        assert min(slots[1:]) >= 0.02 * SLOTS
        assert counts(rehearsal.record().layouts[0], 3) == slots


def test_a_fixed_split_stays_what_it_is(rehearsal):
    policy = Policy(kind=PolicyKind.FIXED, shares={"old": 0.75, "new": 0.25})
    rehearsal.run(two_arms(policy=policy, **OPEN))
    for _ in range(5):
        rehearsal.serve(100, lambda arm: {"reward": float(arm == "new")})
    assert rehearsal.record().slots[0] == (SLOTS * 3 // 4, SLOTS // 4)


def test_a_sticky_unit_keeps_its_arm_and_a_request_is_drawn_anew(rehearsal):
    rehearsal.run(two_arms(**OPEN))
    assert len({rehearsal.decide(unit="u").arm for _ in range(50)}) == 1
    rehearsal.run(two_arms(name="drawn", assignment=Assignment.PER_REQUEST, **OPEN))
    arms = [rehearsal.decide("default/drawn", unit="u").arm for _ in range(400)]
    assert 140 < arms.count("new") < 260  # 4 standard errors around 200


def test_only_units_in_the_moved_slots_change_arms(rehearsal):
    rehearsal.run(two_arms(**OPEN))
    units = [f"u{i}" for i in range(4000)]
    before = {unit: rehearsal.decide(unit=unit).arm for unit in units}
    old_slots = rehearsal.record().slots[0]
    rehearsal.serve(60, lambda arm: {"reward": rehearsal.chance(0.6 if arm == "new" else 0.4)})
    slots = rehearsal.record().slots[0]
    moved = [unit for unit in units if rehearsal.decide(unit=unit).arm != before[unit]]
    share = abs(slots[1] - old_slots[1]) / SLOTS
    assert {before[unit] for unit in moved} <= {"old" if slots[1] > old_slots[1] else "new"}
    assert len(moved) == pytest.approx(4000 * share, abs=4 * (4000 * share * (1 - share)) ** 0.5 + 1)


def test_a_running_experiment_may_be_revised_only_where_it_stays_comparable(rehearsal):
    rehearsal.run(two_arms())
    revise = rehearsal.engine.commands.apply
    record, created, changed = revise(two_arms(owner="search"), actor="bob")
    assert (created, changed, record.revision) == (False, True, 2)
    slow = Guardrail("slow", "latency", quantile=0.9, max=5.0)
    wider = two_arms(owner="search", arms=(*two_arms().arms, Arm("third")), guardrails=(slow,))
    record, _, _ = revise(wider, actor="bob")
    assert record.metrics == ("click", "error", "latency")
    rehearsal.plan()
    assert len(rehearsal.record().slots[0]) == 3
    for change, field in (
        ({"arms": (*two_arms().arms[:1], Arm("other"))}, "spec.arms[1]"),
        ({"reward": Reward("sale")}, "spec.reward"),
        ({"assignment": Assignment.PER_REQUEST}, "spec.assignment"),
        ({"policy": Policy(half_life_seconds=3600)}, "spec.policy.halfLife"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            revise(two_arms(**change), actor="bob")
        assert field in {violation.field for violation in caught.value.violations}


def test_an_ended_experiment_can_neither_be_revised_nor_started(rehearsal):
    engine = rehearsal.run(two_arms())
    engine.commands.rollback("ranker", actor="ann", reason="no longer needed")
    assert rehearsal.decide().reason.name == "INCUMBENT_ONLY"
    with pytest.raises(Refused, match="ROLLED_BACK"):
        engine.commands.apply(two_arms(owner="x"), actor="ann")
    with pytest.raises(Refused, match="has ended"):
        engine.commands.start("ranker", actor="ann")


def test_a_concluded_experiment_serves_its_winner(rehearsal):
    engine = rehearsal.run(two_arms())
    engine.commands.conclude("ranker", actor="ann", reason="v2 it is", winner="new")
    decision = rehearsal.decide()
    assert (decision.arm, decision.propensity) == ("new", 1.0)


def test_a_plan_made_before_a_freeze_is_not_published_after_it(rehearsal):
    engine = rehearsal.run(two_arms())
    for i in range(50):
        rehearsal.decide(unit=f"w{i}")
    record = rehearsal.record()
    from allocator.core.plan import plan as make
    from allocator.ports import Save

    made = make(record, engine.planner.tally(record), rehearsal.clock.now())
    engine.commands.freeze("ranker", actor="ann", reason="now")
    from dataclasses import replace

    late = Save(replace(record, version=record.version + 1, status=made.status), record.version)
    assert isinstance(engine.registry.write([late])[0], Conflict)
    assert rehearsal.decide().reason.name == "FROZEN"
