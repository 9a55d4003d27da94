"""What an operator is told about one experiment: the plan as of now, with intervals, evidence and what it waits for.

In: a record and its tally. Out: a `Description`, made by the same `plan` that the planner uses, so what is described is what is served.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from allocator.core.assignment import SLOTS
from allocator.core.budget import budget_notes
from allocator.core.experiment import Goal
from allocator.core.judgement import Finding, alpha_of
from allocator.core.lifecycle import ArmState, State
from allocator.core.plan import Plan, plan
from allocator.core.posterior import credible_interval
from allocator.core.ramp import mismatched
from allocator.core.record import Record, Stream
from allocator.core.tally import Tally

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class ArmDescription:
    """One arm. weight, wanted_weight, exposure, exposure_cap: shares of decisions. low, high: 95 % credible interval of the mean reward."""

    arm: str
    state: ArmState
    weight: float
    wanted_weight: float
    decisions: int
    exposure: float
    exposure_cap: float
    outcomes: int
    mean: float
    low: float
    high: float
    prob_best: float
    expected_loss: float
    pending: int


@dataclass(frozen=True, slots=True)
class PastEvidence:
    """A guardrail's evidence in an earlier activation, as it stood at the resume. arm, segment: indices (-1: all segments)."""

    guardrail: str
    activation: int
    arm: int
    segment: int
    exposed: float
    events: float
    log_evidence: float


@dataclass(frozen=True, slots=True)
class Description:
    """Everything worth telling. alpha: error budget of a candidate in this activation. past: evidence of earlier activations.

    sample_ratio: p-value of the candidate whose draws agree least with the weights; 1 when all agree.
    """

    record: Record
    arms: tuple[ArmDescription, ...]
    findings: tuple[Finding, ...]
    plan: Plan
    notes: tuple[str, ...]
    seconds: float
    alpha: float
    past: tuple[PastEvidence, ...]
    sample_ratio: float


def describe(record: Record, found: Tally, now: float) -> Description:
    """The description of one experiment as of `now` (seconds since the epoch)."""
    made = plan(record, found, now)
    experiment, status = record.experiment, record.status
    learned = made.learned[0]
    low, high = credible_interval(learned.posterior, LEVEL)
    total = max(int(made.exposures.sum()), 1)
    stage = experiment.stages[status.stage]
    running = status.state is State.RUNNING
    arms = []
    for index, arm in enumerate(experiment.arms):
        candidate = index != experiment.incumbent
        state = ArmState.ACTIVE
        if arm.name in status.drained:
            state = ArmState.DRAINED
        elif running and stage.shadow and candidate:
            state = ArmState.SHADOW
        arms.append(
            ArmDescription(
                arm=arm.name,
                state=state,
                weight=record.served[index] / SLOTS,
                wanted_weight=float(learned.wanted[index]),
                decisions=int(made.exposures[index]),
                exposure=float(made.exposures[index]) / total,
                exposure_cap=min(stage.cap, experiment.exposure.total, experiment.exposure.per_candidate) if candidate else 1.0,
                outcomes=int(learned.outcomes[index]),
                mean=float(learned.posterior.mean[index]),
                low=float(low[index]),
                high=float(high[index]),
                prob_best=float(learned.best.prob_best[index]),
                expected_loss=float(learned.best.expected_loss[index]),
                pending=int(made.pending[index]),
            )
        )
    return Description(
        record=record,
        arms=tuple(arms),
        findings=made.findings,
        plan=made,
        notes=_notes(record, found, made, learned.outcomes),
        seconds=now,
        alpha=alpha_of(experiment, status.activation),
        past=tuple(map(_past, record.past_evidence)),
        sample_ratio=min(made.sample_ratio),
    )


def _past(stream: Stream) -> PastEvidence:
    name, _, activation = stream.stream.partition("#")
    return PastEvidence(
        name.partition("@")[0],
        int(activation),
        stream.arm,
        stream.segment,
        stream.breach.outcomes,
        stream.breach.events,
        stream.log_evidence,
    )


def _notes(record: Record, found: Tally, made: Plan, outcomes: np.ndarray) -> tuple[str, ...]:
    experiment = record.experiment
    notes = [*made.notes, *budget_notes(experiment, made.limits, found.granted)]
    if astray := mismatched(made.status):
        notes.append(f"{', '.join(astray)}: not drawn as often as the weights say; what is learned may be biased until the cause is found")
    reward = experiment.reward
    if reward.missing is not None and int(made.pending.sum()):
        notes.append(
            f"{int(made.pending.sum())} decisions wait for their window of {reward.window_seconds:g} s: with `missing` set, rewards count"
            " by whole cohorts once it has passed"
        )
    if reward.goal is Goal.MINIMISE:
        notes.append(f"the best arm is the one with the smallest {reward.metric}")
    if not outcomes.any():
        notes.append("no reward counts yet: the weights are those of the prior")
    return tuple(notes)
