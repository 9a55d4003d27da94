"""Guardrails, ramp and lease, through the engine: what must stop stops, what must wait waits."""

from __future__ import annotations

import contextlib

import pytest

from allocator.core.assignment import SLOTS
from allocator.core.experiment import (
    Arm,
    BreachAction,
    Conclude,
    ConcludeAction,
    Exposure,
    Guardrail,
    Metric,
    Per,
    Policy,
    PolicyKind,
    RampStage,
    Reward,
    Segment,
)
from allocator.core.record import EXPOSURES
from allocator.errors import InvalidArgument, Overloaded, Refused, Unavailable
from allocator.stores.sqlite import SqliteStore
from tests.conftest import two_arms
from tests.engine.conftest import Rehearsal

RAMP = (
    RampStage(0.0, shadow=True, min_duration_seconds=600),
    RampStage(0.1, min_duration_seconds=300, min_outcomes=100),
    RampStage(0.5, approvals=1),
)


def healthy(rehearsal, click=0.1):
    return lambda arm: {"reward": rehearsal.chance(click), "error": 0.0}


def test_a_breach_freezes_until_a_person_resumes(rehearsal):
    engine = rehearsal.run(two_arms())
    rehearsal.serve(40, lambda arm: {"reward": 0.0, "error": float(arm == "new")})
    assert rehearsal.record().status.state.value == "FROZEN"
    assert rehearsal.decide().reason.name == "FROZEN"
    assert "experiment.freeze" in rehearsal.actions()
    for _ in range(3):
        rehearsal.serve(100, healthy(rehearsal))
    assert rehearsal.record().status.state.value == "FROZEN"
    engine.commands.resume("ranker", actor="bob", reason="the dependency is mended")
    assert rehearsal.record().status.activation == 2
    assert {rehearsal.decide().reason.name for _ in range(50)} == {"ALLOCATED"}
    rehearsal.serve(200, healthy(rehearsal))
    assert rehearsal.record().status.state.value == "RUNNING"
    assert [p.activation for p in engine.describe("ranker").past if p.arm == 1] == [1]


def test_an_outcome_of_the_first_activation_is_no_evidence_in_the_second(rehearsal):
    engine = rehearsal.run(two_arms())
    early = [rehearsal.decide() for _ in range(60)]
    engine.commands.freeze("ranker", actor="ann", reason="x")
    engine.commands.resume("ranker", actor="ann", reason="x")
    from allocator.core.outcome import Outcome

    rehearsal.report([Outcome(d.id, 0.0, {"error": 1.0}) for d in early if d.arm == "new"])
    rehearsal.plan()
    assert rehearsal.record().status.state.value == "RUNNING"
    assert all(f.events == 0 for f in engine.describe("ranker").findings)


def test_draining_stops_the_arm_and_not_the_experiment(rehearsal):
    guard = Guardrail("errors", "error", max=0.02, on_breach=BreachAction.DRAIN)
    arms = (Arm("old", incumbent=True), Arm("good"), Arm("bad"))
    rehearsal.run(two_arms(arms=arms, guardrails=(guard,)))
    before = [rehearsal.decide(unit=f"u{i}").arm for i in range(600)]
    rehearsal.serve(100, lambda arm: {"reward": 0.0, "error": float(arm == "bad")})
    assert rehearsal.record().status.drained == ("bad",)
    after = [rehearsal.decide(unit=f"u{i}") for i in range(600)]
    assert "bad" not in {d.arm for d in after}
    assert "good" in {d.arm for d in after}
    mine = [d for d, was in zip(after, before, strict=True) if was == "bad"]
    assert {d.reason.name for d in mine} <= {"DRAINED", "ALLOCATED"}
    assert "DRAINED" in {d.reason.name for d in mine}
    entry = rehearsal.engine.live.snapshot.entries["default/ranker"]
    assert sum(entry.tables[0].served) == SLOTS
    assert all(d.propensity == entry.tables[0].served[("old", "good", "bad").index(d.arm)] / SLOTS for d in after)


@pytest.mark.parametrize("action", [BreachAction.HOLD, BreachAction.ALERT])
def test_hold_and_alert_serve_on_and_are_told_once(rehearsal, action):
    rehearsal.run(two_arms(guardrails=(Guardrail("errors", "error", max=0.02, on_breach=action),)))
    for _ in range(5):
        rehearsal.serve(60, lambda arm: {"reward": float(arm == "new"), "error": float(arm == "new")})
    assert rehearsal.record().status.state.value == "RUNNING"
    assert rehearsal.actions().count(f"guardrail.{action.value.lower()}") == 1
    assert {d.arm for d in (rehearsal.decide() for _ in range(200))} == {"old", "new"}


def test_no_weight_rises_while_a_holding_guardrail_is_breached(rehearsal):
    guard = Guardrail("errors", "error", max=0.02, on_breach=BreachAction.HOLD)
    rehearsal.run(two_arms(guardrails=(guard,), exposure=Exposure(total=0.9)))
    rehearsal.serve(60, lambda arm: {"reward": float(arm == "old"), "error": float(arm == "new")})
    low = rehearsal.record().slots[0][1]
    for _ in range(5):
        rehearsal.serve(100, lambda arm: {"reward": float(arm == "new"), "error": float(arm == "new")})
        assert rehearsal.record().slots[0][1] <= low


@pytest.mark.parametrize(
    "values",
    [
        lambda arm: {"reward": 1.0},  # the metric never comes
        lambda arm: {"reward": 1.0, **({"error": 0.0} if arm == "old" else {})},  # only of the incumbent
        lambda arm: {},  # nothing comes
    ],
)
def test_without_data_a_guardrail_holds_and_the_ramp_never_advances(rehearsal, values):
    ramp = (RampStage(0.2), RampStage(0.5))
    rehearsal.run(two_arms(ramp=ramp, reward=Reward("click", window_seconds=60)))
    for _ in range(30):
        rehearsal.serve(50, values, seconds=20)
        finding = next(f for f in rehearsal.engine.describe("ranker").findings if f.arm == 1)
        assert finding.verdict.value == "HOLD"
        assert rehearsal.record().status.stage == 0


def test_data_that_stops_is_held_as_well(rehearsal):
    rehearsal.run(two_arms(ramp=(RampStage(0.2), RampStage(0.5, approvals=1)), reward=Reward("click", window_seconds=60)))
    for _ in range(10):
        rehearsal.serve(50, healthy(rehearsal), seconds=5)
    verdict = [f.verdict.value for f in rehearsal.engine.describe("ranker").findings if f.arm == 1]
    assert verdict == ["CLEAR"]
    for _ in range(20):
        rehearsal.serve(50, lambda arm: {"reward": 0.0}, seconds=10)
    finding = next(f for f in rehearsal.engine.describe("ranker").findings if f.arm == 1)
    assert finding.verdict.value == "HOLD"


def test_the_ramp_widens_exposure_on_time_outcomes_proof_and_approval_only(rehearsal):
    engine = rehearsal.run(two_arms(ramp=RAMP, reward=Reward("click", window_seconds=60)))
    shadowed = rehearsal.decide()
    assert (shadowed.arm, shadowed.shadow_arm, shadowed.reason.name) == ("old", "new", "INCUMBENT_ONLY")
    rehearsal.clock.pass_(599)
    rehearsal.plan()
    assert rehearsal.record().status.stage == 0
    rehearsal.clock.pass_(2)
    rehearsal.plan()
    assert rehearsal.record().status.stage == 1
    with pytest.raises(Refused) as caught:
        engine.commands.advance("ranker", actor="ann")
    waiting = caught.value.metadata["waiting_for"]
    assert "s more in this stage" in waiting
    assert "more outcomes of new" in waiting
    assert "1 more approval of stage 2 (50%)" in waiting
    for _ in range(60):
        rehearsal.serve(100, healthy(rehearsal), seconds=10)
        assert rehearsal.record().slots[0][1] <= 0.1 * SLOTS
    assert engine.describe("ranker").plan.waiting_for == ("1 more approval of stage 2 (50%)",)
    engine.commands.approve("ranker", actor="bob")
    rehearsal.plan()
    assert rehearsal.record().status.stage == 2
    engine.commands.advance("ranker", actor="ann", stage=0, reason="a night off")
    assert rehearsal.record().status.stage == 0
    assert rehearsal.decide().arm == "old"
    assert [a for a in rehearsal.actions() if a.startswith(("stage", "experiment.adv", "experiment.step"))] == [
        "experiment.advance", "stage.approve", "experiment.advance", "experiment.step_back",
    ]  # fmt: skip


def test_a_stage_cannot_be_skipped(rehearsal):
    engine = rehearsal.run(two_arms(ramp=RAMP))
    with pytest.raises(Refused, match="one at a time"):
        engine.commands.advance("ranker", actor="ann", stage=2)
    with pytest.raises(InvalidArgument, match="a stage from 0 to 2"):
        engine.commands.advance("ranker", actor="ann", stage=7)


def test_a_quantile_guardrail_judges_exceedances(rehearsal):
    guard = Guardrail("tail", "latency_ms", quantile=0.99, max=250.0)
    rehearsal.run(two_arms(guardrails=(guard,)))
    rehearsal.serve(300, lambda arm: {"reward": 0.0, "latency_ms": 1000.0 if rehearsal.chance(0.005) else 20.0})
    assert rehearsal.record().status.state.value == "RUNNING"
    for _ in range(6):
        rehearsal.serve(100, lambda arm: {"reward": 0.0, "latency_ms": 300.0 if arm == "new" and rehearsal.chance(0.2) else 20.0})
    assert rehearsal.record().status.state.value == "FROZEN"


def test_a_minimum_and_a_declared_range_are_judged(rehearsal):
    guard = Guardrail("score", "score", min=3.0)
    rehearsal.run(two_arms(guardrails=(guard,), metrics=(Metric("score", 1.0, 5.0),)))
    rehearsal.serve(200, lambda arm: {"reward": 0.0, "score": 4.0})
    assert rehearsal.record().status.state.value == "RUNNING"
    finding = next(f for f in rehearsal.engine.describe("ranker").findings if f.arm == 1)
    assert finding.observed == pytest.approx(4.0)
    for _ in range(5):
        rehearsal.serve(200, lambda arm: {"reward": 0.0, "score": 1.5 if arm == "new" else 4.0})
    assert rehearsal.record().status.state.value == "FROZEN"


def test_a_relative_guardrail_blames_the_candidate_and_not_a_common_incident(rehearsal):
    guard = Guardrail("quality", "thumbs_down", max_ratio=1.2, window_seconds=10)
    rehearsal.run(two_arms(guardrails=(guard,), reward=Reward("click", window_seconds=60)))
    for _ in range(20):
        rehearsal.serve(100, lambda arm: {"reward": 0.0, "thumbs_down": rehearsal.chance(0.3)}, seconds=2)  # both alike
    rehearsal.clock.pass_(15)
    rehearsal.plan()
    assert rehearsal.record().status.state.value == "RUNNING"
    for _ in range(20):
        rehearsal.serve(100, lambda arm: {"reward": 0.0, "thumbs_down": rehearsal.chance(0.3 if arm == "old" else 0.9)}, seconds=2)
    rehearsal.clock.pass_(15)
    rehearsal.plan()
    assert rehearsal.record().status.state.value == "FROZEN"


def test_a_guardrail_per_segment_finds_harm_that_the_whole_hides(rehearsal):
    segments = (Segment("mobile", {"device": ("ios",)}),)
    guard = Guardrail("errors", "error", max=0.2, per=Per.SEGMENT)
    rehearsal.run(two_arms(segments=segments, guardrails=(guard,)))
    for _ in range(10):
        rehearsal.serve(30, lambda arm: {"reward": 0.0, "error": float(arm == "new")}, attributes={"device": "ios"})
        rehearsal.serve(300, healthy(rehearsal), attributes={"device": "tv"})
    record = rehearsal.record()
    assert record.status.state.value == "FROZEN"
    assert "in segment mobile" in record.status.reason


def test_twenty_requests_of_one_failing_unit_are_one_piece_of_evidence(rehearsal):
    rehearsal.run(two_arms())
    from allocator.core.outcome import Outcome

    for group in range(10):
        outcomes = []
        for unit in range(30):
            fails = unit == 0 and group % 3 == 0
            for _ in range(20):
                decision = rehearsal.decide(unit=f"{group}-{unit}")
                outcomes.append(Outcome(decision.id, 0.0, {"error": float(fails)}))
        rehearsal.report(outcomes)
        rehearsal.plan()
    assert rehearsal.record().status.state.value == "RUNNING"
    findings = rehearsal.engine.describe("ranker").findings
    assert sum(f.exposed for f in findings) == 300
    assert sum(f.events for f in findings) == 4


def test_bad_outcomes_that_report_at_once_and_good_ones_later_freeze_no_healthy_arm(rehearsal):
    from allocator.core.outcome import Outcome

    rehearsal.run(two_arms(reward=Reward("click", window_seconds=3600)))
    waiting = []
    for _ in range(60):
        decisions = [rehearsal.decide() for _ in range(100)]
        bad = [d for d in decisions if rehearsal.chance(0.01)]
        rehearsal.report([Outcome(d.id, 0.0, {"error": 1.0}) for d in bad])
        waiting.append([d for d in decisions if d not in bad])
        rehearsal.clock.pass_(60)
        rehearsal.plan()
        if len(waiting) > 50:
            rehearsal.report([Outcome(d.id, 0.0, {"error": 0.0}) for d in waiting.pop(0)])
    assert rehearsal.record().status.state.value == "RUNNING"


def test_the_stop_rule_recommends_once_or_promotes_in_the_last_stage(rehearsal):
    rule = Conclude(prob_best=0.95, action=ConcludeAction.RECOMMEND)
    rehearsal.run(two_arms(conclude=rule))
    for _ in range(20):
        rehearsal.serve(100, lambda arm: {"reward": rehearsal.chance(0.5 if arm == "new" else 0.1), "error": 0.0})
    assert rehearsal.record().status.recommended == "new"
    assert rehearsal.actions().count("experiment.recommend") == 1
    rehearsal.run(two_arms(name="promoted", conclude=Conclude(prob_best=0.95, action=ConcludeAction.PROMOTE)))
    for _ in range(20):
        rehearsal.serve(100, lambda arm: {"reward": rehearsal.chance(0.5 if arm == "new" else 0.1), "error": 0.0}, "default/promoted")
    record = rehearsal.record("promoted")
    assert (record.status.state.value, record.status.winner) == ("CONCLUDED", "new")
    assert rehearsal.decide("default/promoted").arm == "new"


def test_strict_caps_hold_at_every_prefix_and_the_propensity_is_the_one_after_the_gate(rehearsal):
    rehearsal.run(two_arms(exposure=Exposure(total=0.2, strict=True, burst=20), guardrails=()))
    served = 0
    reasons = set()
    for n in range(1, 5001):
        decision = rehearsal.decide()
        served += decision.arm == "new"
        reasons.add(decision.reason.name)
        assert served <= 0.2 * n + 20
        if decision.reason.name == "CAPPED":
            assert (decision.arm, decision.propensity) == ("old", 1.0)
    assert served > 0.15 * 5000


def test_without_a_planner_everyone_gets_the_incumbent_once_the_lease_is_over(rehearsal):
    rehearsal.run(two_arms(lease_seconds=15.0))
    assert {rehearsal.decide().reason.name for _ in range(20)} == {"ALLOCATED"}
    rehearsal.clock.pass_(15.5)
    stale = [rehearsal.decide() for _ in range(50)]
    assert {(d.arm, d.reason.name, d.propensity) for d in stale} == {("old", "STALE", 1.0)}
    rehearsal.engine.planner.tick()
    assert {rehearsal.decide().reason.name for _ in range(20)} == {"ALLOCATED"}


def test_what_was_decided_before_the_end_is_counted_although_nobody_reported_since(tmp_path):
    path = tmp_path / "store.db"
    rehearsal = Rehearsal(SqliteStore(path))
    rehearsal.run(two_arms())
    uid = rehearsal.record().uid
    for _ in range(50):
        rehearsal.decide()
    rehearsal.engine.close()
    with contextlib.closing(SqliteStore(path)) as store:
        assert sum(cell.count for cell in store.cells(uid) if cell.stream == EXPOSURES) == 50


def test_a_freeze_that_cannot_be_stored_is_served_all_the_same_and_stored_later(rehearsal, monkeypatch):
    rehearsal.run(two_arms())

    def full(saves, term=None):
        raise Overloaded("the disk is full", reason="STORE_FULL")

    with monkeypatch.context() as broken:
        broken.setattr(rehearsal.store, "save", full)
        rehearsal.serve(40, lambda arm: {"reward": 0.0, "error": float(arm == "new")})
        assert rehearsal.decide().reason.name == "FROZEN"
        assert rehearsal.store.record("default/ranker").status.state.value == "RUNNING"
        rehearsal.clock.pass_(2)
        rehearsal.plan()
        assert {rehearsal.decide().reason.name for _ in range(50)} == {"FROZEN"}
    rehearsal.clock.pass_(2)
    rehearsal.plan()
    assert rehearsal.store.record("default/ranker").status.state.value == "FROZEN"
    assert rehearsal.decide().reason.name == "FROZEN"
    assert rehearsal.actions().count("experiment.freeze") == 1


def test_a_store_that_cannot_be_read_ends_the_lease(rehearsal, monkeypatch):
    rehearsal.run(two_arms(lease_seconds=5.0))

    def gone(since):
        raise Unavailable("the store is gone")

    monkeypatch.setattr(rehearsal.store, "changed", gone)
    for _ in range(4):
        rehearsal.clock.pass_(2)
        with contextlib.suppress(Unavailable):  # once its term has run out it does not even try
            rehearsal.engine.planner.tick()
    assert rehearsal.decide().reason.name == "STALE"


@pytest.mark.parametrize("common", [False, True])
def test_a_warning_takes_the_floor_and_ends_by_proof_of_recovery(rehearsal, common):
    experiment = two_arms(
        policy=Policy(kind=PolicyKind.FIXED, floor=0.2, shares={"old": 0.7, "new": 0.3}),
        exposure=Exposure(total=0.5),
        ramp=(RampStage(0.5), RampStage(0.5, approvals=1)),
        reward=Reward("click", window_seconds=30),
        guardrails=(Guardrail("errors", "error", max=0.05),),
        alpha=1e-9,  # a breach asks for much, so that the warning comes first by far
    )
    engine = rehearsal.run(experiment)

    def good(arm):
        return {"reward": 0.0, "error": 0.0}

    def worse(arm):
        return {"reward": 0.0, "error": rehearsal.chance(0.14 if common or arm == "new" else 0.0)}

    def warned() -> tuple[str, ...]:
        return engine.describe("ranker").plan.judgements[0].warned

    for _ in range(40):
        rehearsal.serve(200, good, seconds=5)
    for _ in range(60):
        rehearsal.serve(200, worse)
        if warned() and (not common or rehearsal.actions().count("guardrail.warn") == 2):
            break
    assert warned() == ("errors",)
    assert rehearsal.record().status.state.value == "RUNNING"  # a warning is no breach
    described = engine.describe("ranker")
    assert any("has no floor" in note for note in described.notes)
    assert any("recovered" in what for what in described.plan.waiting_for)
    for _ in range(200):
        rehearsal.serve(300, good, seconds=5)
        if not warned():
            break
    reason = next(r.entry.reason for r in rehearsal.store.audit() if "errors of new recovered" in r.entry.reason)
    assert ("ENVIRONMENT" in reason) == common
    assert ("TRANSIENT" in reason) != common


def test_a_persistent_guardrail_waits_for_several_buckets_to_agree(rehearsal):
    patient = Guardrail("errors", "error", max=0.02, persistence=3)
    rehearsal.run(two_arms(guardrails=(patient,), reward=Reward("click", window_seconds=600)))  # buckets of 10 s
    rehearsal.serve(300, healthy(rehearsal), seconds=10)
    rehearsal.serve(300, lambda arm: {"reward": 0.0, "error": float(arm == "new")}, seconds=10)  # a blip of one bucket
    assert rehearsal.record().status.state.value == "RUNNING"
    for _ in range(5):
        rehearsal.serve(100, lambda arm: {"reward": 0.0, "error": float(arm == "new")}, seconds=10)
        if rehearsal.record().status.state.value == "FROZEN":
            break
    assert rehearsal.record().status.state.value == "FROZEN"
