"""One tick of one experiment: what was counted in; weights, state changes and their reasons out.

In: the record, its tally, the time. Out: a `Plan`: statistics → posterior → best arm → guardrails → ramp → exposure → slots → layout, in
that order, and every change of state as an `Occurrence` for the audit. The planner, the simulator and `describe` call this one function.
It is pure: whoever holds the record saves what it says, or throws it away. The steps that are long have files of their own: `learning`,
`guardrail`, `ramp`, `allocation`, `settling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from allocator.core.allocation import allocate
from allocator.core.assignment import Layout
from allocator.core.budget import Limits, used_up
from allocator.core.budget import limits as budget_limits
from allocator.core.experiment import BreachAction, ConcludeAction, Experiment
from allocator.core.guardrail import Review, close, forget_safety, review, settle
from allocator.core.judgement import Finding, Judgement
from allocator.core.learning import Learned, exposures, learn, rewards_reported, tables
from allocator.core.lifecycle import Event, State, Status, step
from allocator.core.ramp import MISMATCH, mismatched, waiting_for
from allocator.core.record import Record, Stream
from allocator.core.sample_ratio import ALPHA as SAMPLE_RATIO_ALPHA
from allocator.core.sample_ratio import draw_p_values
from allocator.core.settling import closing
from allocator.core.tally import Tally, counts, up_to


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that the plan did, for the audit. action: e.g. "experiment.freeze"."""

    action: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of one tick. status, layouts, slots, evidence: to be stored. The rest explains them.

    tables: what was learned, one for each table. exposures: decisions of each arm, (arms,). pending: those whose reward is still open.
    settle_through: last bucket to settle, or None. changed: does anything differ that a decider or an operator must hear of?
    limits: what candidates may ever receive, for whoever grants it. sample_ratio: p-value of each candidate's draws, (arms,).
    """

    status: Status
    layouts: tuple[Layout, ...]
    slots: tuple[tuple[int, ...], ...]
    evidence: tuple[Stream, ...]
    occurrences: tuple[Occurrence, ...]
    learned: tuple[Learned, ...]
    exposures: NDArray[np.int64]
    pending: NDArray[np.int64]
    findings: tuple[Finding, ...]
    judgements: tuple[Judgement, ...]
    waiting_for: tuple[str, ...]
    notes: tuple[str, ...]
    settle_through: int | None
    changed: bool
    limits: Limits | None
    sample_ratio: tuple[float, ...]


def plan(record: Record, found: Tally, now: float, between: Callable[[], object] = lambda: None) -> Plan:
    """Decide weights and state for one experiment. Raises InvalidArgument for statistics no family has.

    now: seconds since the epoch. between: called between the steps, each about half a millisecond, so that others can have their turn.
    """
    experiment, status = record.experiment, record.status
    running = status.state is State.RUNNING
    occurrences: list[Occurrence] = []
    look = _review(record, found, now)
    between()
    if running:
        status = _obey(experiment, status, look, now, occurrences)
    eligible = np.array([arm.name not in status.drained for arm in experiment.arms])
    learned = tuple(learn(record, found, segment, eligible, now) for segment in tables(experiment))
    between()
    outcomes = rewards_reported(found)
    ratio = draw_p_values(found.draws, len(experiment.arms))
    ratio[experiment.incumbent] = 1.0  # it mirrors the others
    finished = used_up(experiment, found, now)
    if running:
        status = _notice(experiment, status, ratio, finished, occurrences)
    judgements = tuple(j for arm, j in sorted(look.judgements.items()) if eligible[arm])
    if status.state is State.RUNNING:
        status = _conclude(experiment, status, learned[0], judgements, now, occurrences)
    missing: tuple[str, ...] = ()
    if status.state is State.RUNNING:
        missing = waiting_for(experiment, status, judgements, outcomes, now)
        if not missing and status.stage + 1 < len(experiment.stages):
            status = enter_stage(status, status.stage + 1, outcomes, now)
            occurrences.append(Occurrence("experiment.advance", f"all conditions of stage {status.stage - 1} are met"))
            missing = waiting_for(experiment, status, judgements, outcomes, now)
    evidence = tuple(look.streams.values())
    if status.stage != record.status.stage:
        evidence = forget_safety(evidence)
    slots, layouts, notes = record.slots, record.layouts, ()
    if status.state is State.RUNNING:
        slots, layouts, notes = allocate(record, status, learned, judgements, eligible, finished)
        between()
    through = closing(experiment, now)
    settles = bool(found.open.buckets.size) and int(found.open.buckets[0]) <= through
    if settles:
        view = counts(up_to(found, through), found.labels)
        stage_bucket = math.ceil(status.stage_since_seconds / experiment.bucket_width_seconds)
        evidence = settle(experiment, record.status, evidence, view, stage_bucket)
    exposed, pending = exposures(found)
    return Plan(
        status=status,
        layouts=layouts,
        slots=slots,
        evidence=evidence,
        occurrences=tuple(occurrences),
        learned=learned,
        exposures=exposed,
        pending=pending,
        findings=look.findings,
        judgements=tuple(look.judgements[arm] for arm in sorted(look.judgements)),
        waiting_for=missing,
        notes=notes,
        settle_through=through if settles else None,
        changed=status != record.status or slots != record.slots or layouts != record.layouts,
        limits=budget_limits(experiment, found),
        sample_ratio=tuple(ratio.tolist()),
    )


def carried_out(record: Record, made: Plan, now: float) -> Record | None:
    """The record as it is to be stored after a plan of it; None when the plan changes nothing that is stored."""
    if not (made.occurrences or made.settle_through is not None or made.changed):
        return None
    return replace(
        record,
        version=record.version + 1,
        status=made.status,
        layouts=made.layouts,
        slots=made.slots,
        evidence=made.evidence,
        settled_through=record.settled_through if made.settle_through is None else made.settle_through,
        updated_seconds=now,
    )


def enter_stage(status: Status, stage: int, outcomes: Sequence[int], now: float) -> Status:
    """The status at the beginning of a stage: time, outcomes and approvals count anew."""
    return replace(status, stage=stage, stage_since_seconds=now, stage_outcomes=tuple(int(count) for count in outcomes), approvals=())


def closed_evidence(record: Record, found: Tally, now: float) -> tuple[Stream, ...]:
    """Every stream of the activation that ends now, open buckets included: what stays on record when evidence starts again."""
    view = counts(found.open, found.labels)
    return close(record.experiment, record.status, record.evidence, view, now)


# ------------------------------------------------------------------------------------------------------- the steps


def _review(record: Record, found: Tally, now: float) -> Review:
    status = record.status
    return review(
        record.experiment,
        status,
        record.evidence,
        counts(found.open, found.labels),
        now,
        max(now - status.started_seconds, 1.0),
    )


def _obey(experiment: Experiment, status: Status, look: Review, now: float, occurrences: list[Occurrence]) -> Status:
    """The status after what the guardrails demand."""
    for key in look.began:
        name = experiment.arms[key[1]].name
        occurrences.append(Occurrence("guardrail.warn", f"{key[0].split('@')[0]} warns of {name}"))
    for key, common in look.ended:
        kind = "ENVIRONMENT: the incumbent had warned as well" if common else "TRANSIENT"
        name = experiment.arms[key[1]].name
        occurrences.append(Occurrence("guardrail.recovered", f"{key[0].split('@')[0]} of {name} recovered, {kind}"))
    for arm, judgement in sorted(look.judgements.items()):
        name = experiment.arms[arm].name
        if judgement.action is None or name in status.drained:
            continue
        message = judgement.message
        if set(judgement.blamed) & look.environment:
            message += "; the incumbent warns as well, so the cause may be common to all arms"
        if judgement.action is BreachAction.FREEZE:
            if status.state is State.RUNNING:
                status = step(status, Event.BREACHED, reason=message, now=now)
                occurrences.append(Occurrence("experiment.freeze", message))
        elif judgement.action is BreachAction.DRAIN:
            status = replace(status, drained=(*status.drained, name))
            occurrences.append(Occurrence("arm.drain", message))
        else:
            told = f"{judgement.action.value}:{','.join(judgement.blamed)}/{name}"
            if told not in status.alerted:
                status = replace(status, alerted=(*status.alerted, told))
                occurrences.append(Occurrence(f"guardrail.{judgement.action.value.lower()}", message))
    return status


def _notice(
    experiment: Experiment, status: Status, ratio: Sequence[float], finished: Iterable[int], occurrences: list[Occurrence]
) -> Status:
    """The status after telling, once an activation, of draws that contradict the weights, and of budgets that are used up."""
    news = []
    for arm, p in enumerate(ratio):
        name = experiment.arms[arm].name
        if p <= SAMPLE_RATIO_ALPHA:
            why = f"{name} was not drawn as often as its weights say, p = {p:.2g}: whatever loses or adds decisions may bias rewards too"
            news.append((f"{MISMATCH}/{name}", Occurrence("experiment.sample_ratio", why)))
    for arm in sorted(finished):
        name, budget = experiment.arms[arm].name, experiment.exposure.budget.requests
        news.append((f"BUDGET:{budget}/{name}", Occurrence("arm.budget", f"{name} has had its whole budget of {budget} requests")))
    for told, occurrence in news:
        if told not in status.alerted:
            status = replace(status, alerted=(*status.alerted, told))
            occurrences.append(occurrence)
    return status


def _conclude(
    experiment: Experiment,
    status: Status,
    learned: Learned,
    judgements: Sequence[Judgement],
    now: float,
    occurrences: list[Occurrence],
) -> Status:
    """Name the winner once the stop rule is met, and promote it where the spec says so. What was named stays named."""
    rule = experiment.conclude
    last = status.stage + 1 == len(experiment.stages)
    if rule is None or experiment.stages[status.stage].shadow or mismatched(status):
        return status
    arm = int(learned.best.prob_best.argmax())
    loss = float(learned.best.expected_loss[arm])
    good = learned.best.prob_best[arm] >= rule.prob_best and (rule.max_expected_loss is None or loss <= rule.max_expected_loss)
    doubt = any(j.arm == arm and (j.held or j.warned or j.action) for j in judgements)
    if not good or doubt:
        return status
    name = experiment.arms[arm].name
    why = f"P({name} is best) = {learned.best.prob_best[arm]:.4f}, expected loss {loss:.2g}"
    if not status.recommended:
        status = replace(status, recommended=name)
        occurrences.append(Occurrence("experiment.recommend", why))
    if rule.action is ConcludeAction.PROMOTE and last and status.recommended == name:
        status = step(status, Event.CONCLUDED, reason=why, now=now, winner=name)
        occurrences.append(Occurrence("experiment.conclude", why))
    return status
