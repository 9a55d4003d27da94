"""The ramp: stage, evidence and time in; advance, or what is still missing, out.

Exposure widens only on evidence: a stage is left when its least duration and outcomes are there, no guardrail holds or warns, every one
is proven safe since the stage began, and as many people as the next stage asks for have agreed, to this revision and not too long ago
(`approval.expiry`). Stepping back needs nothing. Draws that
contradicted the weights hold it for the rest of the activation: nobody knows what else went astray, and no evidence mends that.
A shadow stage serves no candidate, so no outcome can prove anything in it: it asks for time and people only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from allocator.core.experiment import Experiment
from allocator.core.judgement import Judgement
from allocator.core.lifecycle import Status

MISMATCH = "SAMPLE_RATIO"  # how `Status.alerted` says that an arm was not drawn as often as its weights say


def mismatched(status: Status) -> tuple[str, ...]:
    """Arms that were not drawn as often as their weights say, in this activation."""
    return tuple(told.partition("/")[2] for told in status.alerted if told.partition("/")[0] == MISMATCH)


def approvers(experiment: Experiment, status: Status, now: float) -> tuple[str, ...]:
    """Who has agreed to the next stage, by approvals that have not expired."""
    oldest = now - experiment.approval.expiry_seconds
    return tuple(approval.actor for approval in status.approvals if approval.seconds > oldest)


def waiting_for(
    experiment: Experiment, status: Status, judgements: Iterable[Judgement], outcomes: Sequence[int], now: float
) -> tuple[str, ...]:
    """What is missing before the next stage, as sentences; empty when it may be entered (or when this is the last one).

    judgements: of the candidates that are not drained. outcomes: rewards counted for each arm, since the start.
    """
    stages = experiment.stages
    if status.stage + 1 >= len(stages):
        return ()
    stage, coming = stages[status.stage], stages[status.stage + 1]
    missing = []
    spent = now - status.stage_since_seconds
    if spent < stage.min_duration_seconds:
        missing.append(f"{stage.min_duration_seconds - spent:.0f} s more in this stage")
    if names := mismatched(status):
        missing.append(f"draws of {', '.join(names)} that agree with the weights: find what went astray, then freeze and resume")
    if not stage.shadow:
        for judgement in judgements:
            name = experiment.arms[judgement.arm].name
            before = status.stage_outcomes[judgement.arm] if judgement.arm < len(status.stage_outcomes) else 0
            have = outcomes[judgement.arm] - before
            if have < stage.min_outcomes:
                missing.append(f"{stage.min_outcomes - have} more outcomes of {name} in this stage")
            if judgement.action is not None:
                missing.append(f"{name} to clear {', '.join(judgement.blamed)}, which it breached")
            if judgement.held:
                missing.append(f"data on {name} for {', '.join(judgement.held)}")
            if judgement.warned:
                missing.append(f"proof that {name} has recovered on {', '.join(judgement.warned)}")
            elif judgement.unproven:
                missing.append(f"proof that {name} is safe on {', '.join(judgement.unproven)}")
    short = coming.approvals - len(approvers(experiment, status, now))
    if short > 0:
        missing.append(f"{short} more approval{'s' if short > 1 else ''} of stage {status.stage + 1} ({coming.cap:.0%})")
    return tuple(missing)
