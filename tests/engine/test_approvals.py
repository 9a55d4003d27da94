"""What is riskier waits for other people; what is safer never does; break-glass is loud. Over the engine and a store in memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from allocator.core.approval import ProposalKind
from allocator.core.experiment import Approval, Exposure, Guardrail, RampStage
from allocator.core.lifecycle import State
from allocator.core.revision import spec_digest
from allocator.engine import history
from allocator.errors import InvalidArgument, NotFound, Refused
from tests.conftest import two_arms

GUARDED = two_arms(approval=Approval(required=1))
RAISED = replace(GUARDED, exposure=Exposure(total=0.9))
LOWERED = replace(GUARDED, exposure=Exposure(total=0.1))


@pytest.fixture
def running(rehearsal):
    """An experiment that was started with one approval."""
    rehearsal.engine.commands.apply(GUARDED, actor="ann")
    rehearsal.engine.commands.start("ranker", actor="ann")
    agree(rehearsal, "bob")
    assert rehearsal.record().status.state is State.RUNNING
    return rehearsal


def agree(rehearsal, actor, digest=None):
    return rehearsal.engine.commands.agree("ranker", revision=digest or rehearsal.record().proposal.digest, actor=actor)


def test_a_start_waits_for_somebody_else(rehearsal):
    commands = rehearsal.engine.commands
    commands.apply(GUARDED, actor="ann")
    record = commands.start("ranker", actor="ann", reason="ready")
    assert record.status.state is State.DRAFT
    assert (record.proposal.kind, record.proposal.author, record.proposal.required) == (ProposalKind.START, "ann", 1)
    with pytest.raises(Refused, match="somebody else") as caught:
        agree(rehearsal, "ann")
    assert caught.value.reason == "SELF_APPROVAL"
    assert rehearsal.record().status.state is State.DRAFT
    record = agree(rehearsal, "bob")
    assert record.status.state is State.RUNNING
    assert record.proposal is None
    assert rehearsal.actions() == ["experiment.create", "proposal.create", "proposal.approve", "experiment.start"]
    assert [entry.entry.actor for entry in rehearsal.store.audit()][1:] == ["ann", "bob", "ann"]


def test_a_riskier_revision_waits_and_a_safer_one_does_not(running):
    commands = running.engine.commands
    record, created, changed = commands.apply(RAISED, actor="ann", reason="more")
    assert (created, changed, record.experiment.exposure.total) == (False, False, 0.5)
    assert record.proposal.risks == ("exposure.total rises from 0.5 to 0.9",)
    assert running.engine.live.snapshot.entries["default/ranker"].cap == 0.5
    record = agree(running, "bob")
    assert (record.experiment.exposure.total, record.revision, record.author, record.proposal) == (0.9, 2, "ann", None)
    assert running.engine.live.snapshot.entries["default/ranker"].cap == 0.9
    record, _, changed = commands.apply(LOWERED, actor="ann")
    assert (changed, record.experiment.exposure.total, record.proposal) == (True, 0.1, None)


def test_a_draft_is_revised_freely(rehearsal):
    rehearsal.engine.commands.apply(GUARDED, actor="ann")
    record, _, changed = rehearsal.engine.commands.apply(RAISED, actor="ann")
    assert (changed, record.proposal) == (True, None)


def test_without_required_approvals_nothing_waits(rehearsal):
    rehearsal.run(two_arms())
    record, _, changed = rehearsal.engine.commands.apply(two_arms(exposure=Exposure(total=0.9)), actor="ann")
    assert (changed, record.proposal) == (True, None)


def test_a_server_may_ask_for_approvals_whatever_the_spec_says(rehearsal):
    rehearsal.engine.commands.least_approvals = 2
    rehearsal.engine.commands.apply(two_arms(), actor="ann")
    record = rehearsal.engine.commands.start("ranker", actor="ann")
    assert (record.status.state, record.proposal.required) == (State.DRAFT, 2)
    agree(rehearsal, "bob")
    assert agree(rehearsal, "cat").status.state is State.RUNNING


def test_asking_for_fewer_approvals_needs_those_that_are_asked_for_now(running):
    record, _, changed = running.engine.commands.apply(two_arms(), actor="ann")
    assert not changed
    assert record.proposal.risks == ("approval.required falls from 1 to 0",)


def test_an_approval_is_bound_to_the_exact_revision(running):
    commands = running.engine.commands
    first = commands.apply(RAISED, actor="ann")[0].proposal
    second = commands.apply(replace(RAISED, exposure=Exposure(total=0.8)), actor="ann")[0].proposal
    assert first.digest != second.digest
    with pytest.raises(NotFound) as caught:
        agree(running, "bob", first.digest)
    assert caught.value.reason == "UNKNOWN_PROPOSAL"
    assert agree(running, "bob", second.digest[:12].upper()).experiment.exposure.total == 0.8
    for digest in (first.digest, second.digest):
        with pytest.raises(NotFound):
            agree(running, "cat", digest)
    with pytest.raises(InvalidArgument):
        agree(running, "cat", second.digest[:11])


def test_any_change_of_what_was_proposed_upon_voids_it(running):
    commands = running.engine.commands
    digest = commands.apply(RAISED, actor="ann")[0].proposal.digest
    commands.apply(LOWERED, actor="dan")
    with pytest.raises(NotFound):
        agree(running, "bob", digest)
    assert running.record().experiment == LOWERED


def test_the_same_proposed_again_is_another_proposal_once_the_first_is_gone(running):
    commands = running.engine.commands
    first = commands.apply(RAISED, actor="ann")[0].proposal
    assert commands.apply(RAISED, actor="eve")[0].proposal == first, "who proposes what waits does not become its author"
    commands.reject("ranker", revision=first.digest, actor="bob", reason="not now")
    assert running.record().proposal is None
    running.clock.pass_(1)
    again = commands.apply(RAISED, actor="ann")[0].proposal
    with pytest.raises(NotFound):
        agree(running, "bob", first.digest)
    assert agree(running, "bob", again.digest).experiment == RAISED


def test_a_proposal_expires(running):
    digest = running.engine.commands.apply(RAISED, actor="ann")[0].proposal.digest
    running.clock.pass_(86_399)
    running.engine.commands.freeze("ranker", actor="dan", reason="a freeze does not void a revision")
    running.clock.pass_(1)
    with pytest.raises(Refused) as caught:
        agree(running, "bob", digest)
    assert caught.value.reason == "PROPOSAL_EXPIRED"
    assert running.engine.commands.apply(RAISED, actor="ann")[0].proposal.digest != digest


def test_several_people_must_agree_and_each_counts_once(rehearsal):
    rehearsal.run(two_arms(approval=Approval(0)))
    rehearsal.engine.commands.apply(two_arms(approval=Approval(3)), actor="ann")
    rehearsal.engine.commands.apply(two_arms(approval=Approval(3), guardrails=()), actor="ann")
    for actor in ("bob", "bob", "cat", "bob"):
        assert agree(rehearsal, actor).experiment.guardrails
    record = agree(rehearsal, "dan")
    assert record.experiment.guardrails == ()
    kept = json.loads(rehearsal.store.audit()[-1].entry.after)
    assert kept["approvers"] == ["bob", "cat", "dan"]


def test_a_resume_waits_and_a_freeze_renewed_meanwhile_voids_it(running):
    commands = running.engine.commands
    commands.freeze("ranker", actor="ann", reason="errors")
    record = commands.resume("ranker", actor="ann", reason="it was the network")
    assert (record.status.state, record.proposal.kind) == (State.FROZEN, ProposalKind.RESUME)
    digest = record.proposal.digest
    commands.freeze("ranker", actor="cat", reason="errors again")
    with pytest.raises(NotFound):
        agree(running, "bob", digest)
    assert running.record().status.state is State.FROZEN
    commands.resume("ranker", actor="ann", reason="really")
    record = agree(running, "bob")
    assert (record.status.state, record.status.activation) == (State.RUNNING, 2)


def test_to_conclude_on_a_candidate_waits_and_on_the_incumbent_does_not(running):
    commands = running.engine.commands
    record = commands.conclude("ranker", actor="ann", reason="better", winner="new")
    assert (record.status.state, record.proposal.winner) == (State.RUNNING, "new")
    record = commands.conclude("ranker", actor="ann", reason="not worth it")
    assert (record.status.state, record.status.winner, record.proposal) == (State.CONCLUDED, "old", None)


def test_safer_commands_never_wait(running):
    commands = running.engine.commands
    assert commands.freeze("ranker", actor="ann", reason="x").status.state is State.FROZEN
    assert commands.rollback("ranker", actor="ann", reason="x").status.state is State.ROLLED_BACK


def test_break_glass_carries_it_out_at_once_and_is_loud(running):
    commands, told = running.engine.commands, []
    commands.broken_glass = lambda: told.append(1)
    with pytest.raises(InvalidArgument, match="reason"):
        commands.apply(RAISED, actor="ann", break_glass=True)
    with capture_logs() as logs:
        record, _, changed = commands.apply(RAISED, actor="ann", reason="revenue is down", break_glass=True)
        commands.freeze("ranker", actor="ann", reason="x")
        commands.resume("ranker", actor="ann", reason="now", break_glass=True)
    assert (changed, record.experiment) == (True, RAISED)
    assert running.actions()[-3:] == ["break_glass.experiment.revise", "experiment.freeze", "break_glass.experiment.resume"]
    loud = [entry for entry in logs if entry["event"] == "break_glass"]
    assert [(entry["log_level"], entry["reason"]) for entry in loud] == [("error", "revenue is down"), ("error", "now")]
    assert told == [1, 1]
    assert [a.action for a in history.annotations(running.store, "default/ranker")] == [
        "break_glass.experiment.revise",
        "break_glass.experiment.resume",
    ]


def test_break_glass_that_nothing_asked_for_is_an_ordinary_change(rehearsal):
    rehearsal.run(two_arms())
    rehearsal.engine.commands.apply(two_arms(guardrails=()), actor="ann", reason="x", break_glass=True)
    assert rehearsal.actions()[-1] == "experiment.revise"


def test_a_dry_run_says_that_it_would_wait_and_keeps_nothing(running):
    record, _, changed = running.engine.commands.apply(RAISED, actor="ann", validate_only=True)
    assert not changed
    assert record.proposal is not None
    assert running.record().proposal is None


def test_a_proposal_that_the_planner_changed_meanwhile_is_still_carried_out(running):
    digest = running.engine.commands.apply(RAISED, actor="ann")[0].proposal.digest
    running.serve(200, lambda arm: {"reward": running.chance(0.3), "error": 0.0})
    assert running.record().proposal.digest == digest
    assert agree(running, "bob", digest).experiment == RAISED


def test_who_is_identified_approves_no_stage_of_their_own_spec(rehearsal):
    ramp = (RampStage(0.0, True), RampStage(0.5, approvals=1))
    rehearsal.run(two_arms(ramp=ramp))
    approved = rehearsal.engine.commands.approve("ranker", actor="ann").status.approvals
    assert [given.actor for given in approved] == ["ann"], "a claim proves nothing"
    rehearsal.engine.commands.apply(two_arms(ramp=ramp, guardrails=(Guardrail("errors", "error", max=0.01),)), actor="bob")
    rehearsal.engine.commands.identified = True
    with pytest.raises(Refused) as caught:
        rehearsal.engine.commands.approve("ranker", actor="bob")
    assert caught.value.reason == "SELF_APPROVAL"


STAGED = two_arms(ramp=(RampStage(0.0, True), RampStage(0.1, approvals=1)), approval=Approval(expiry_seconds=3600.0))


def test_an_approval_of_a_stage_is_void_after_any_revision(rehearsal):
    rehearsal.run(STAGED)
    commands = rehearsal.engine.commands
    wider = replace(STAGED, ramp=(STAGED.ramp[0], RampStage(0.5, approvals=1)), hypothesis="all is well")
    commands.approve("ranker", actor="carol", reason="10 % is fine")
    commands.apply(wider, actor="carol", reason="half of them")
    record = rehearsal.record()
    assert (record.status.stage, record.status.approvals) == (0, ())
    assert "1 more approval of stage 1 (50%)" in rehearsal.engine.describe("ranker").plan.waiting_for


def test_an_approval_of_a_stage_expires_and_can_be_given_again(rehearsal):
    waiting = replace(STAGED, ramp=(replace(STAGED.ramp[0], min_duration_seconds=7200.0), STAGED.ramp[1]))
    rehearsal.run(waiting)
    commands, engine = rehearsal.engine.commands, rehearsal.engine
    commands.approve("ranker", actor="ben")
    rehearsal.clock.pass_(3599.0)
    assert not any("approval" in missing for missing in engine.describe("ranker").plan.waiting_for)
    rehearsal.clock.pass_(3601.0)
    assert engine.describe("ranker").plan.waiting_for == ("1 more approval of stage 1 (10%)",)
    engine.planner.tick()
    assert rehearsal.record().status.stage == 0
    commands.approve("ranker", actor="ben")
    engine.planner.tick()
    assert rehearsal.record().status.stage == 1


def test_an_approval_of_a_stage_can_name_the_spec_that_was_seen(rehearsal):
    rehearsal.run(STAGED)
    commands, seen = rehearsal.engine.commands, spec_digest(STAGED)
    commands.apply(replace(STAGED, ramp=(STAGED.ramp[0], RampStage(0.5, approvals=1))), actor="ann")
    with pytest.raises(Refused, match="not the one you saw") as caught:
        commands.approve("ranker", actor="ben", revision=seen)
    assert caught.value.reason == "REVISION_CHANGED"
    now = spec_digest(rehearsal.record().experiment)
    assert [given.actor for given in commands.approve("ranker", actor="ben", revision=now[:12]).status.approvals] == ["ben"]


def test_the_history_holds_every_revision_whole(running):
    commands = running.engine.commands
    commands.apply(LOWERED, actor="cat", reason="careful")
    commands.apply(RAISED, actor="ann", reason="bold")
    agree(running, "bob")
    found = history.revisions(running.store, "default/ranker")
    assert [(r.number, r.author, r.reason, r.approvers) for r in found] == [
        (1, "ann", "", ()),
        (2, "cat", "careful", ()),
        (3, "ann", "bold", ("bob",)),
    ]
    assert [r.experiment for r in found] == [GUARDED, LOWERED, RAISED]
    assert found[1].changes == ("exposure.total: 0.5 -> 0.1",)
    assert len({r.digest for r in found}) == 3
    assert history.revision(running.store, "default/ranker", 0) == found[2]
    with pytest.raises(NotFound, match="1 to 3"):
        history.revision(running.store, "default/ranker", 4)


def test_a_note_stays_with_an_experiment_that_has_ended(running):
    commands = running.engine.commands
    commands.rollback("ranker", actor="ann", reason="slower")
    commands.annotate("ranker", actor="bob", text="The cache was cold.\nNext time: warm it.")
    told = history.annotations(running.store, "default/ranker")
    assert [(a.actor, a.action, a.text) for a in told] == [
        ("ann", "experiment.rollback", "slower"),
        ("bob", "experiment.note", "The cache was cold.\nNext time: warm it."),
    ]
    for text in ("", "  ", "x" * 10_001):
        with pytest.raises(InvalidArgument):
            commands.annotate("ranker", actor="bob", text=text)
