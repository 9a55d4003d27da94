"""One tick of one experiment: what was counted in; weights, state changes and their reasons out.

In: the record, its tally, the time. Out: a `Plan`: statistics → posterior → best arm → guardrails → ramp → exposure → slots → layout, in that
order, and every change of state as an `Occurrence` for the audit. The planner, the simulator and `describe` call this one function.
It is pure: whoever holds the record saves what it says, or throws it away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from allocator.core import exposure as limits
from allocator.core import policy as policies
from allocator.core.assignment import SLOTS, Layout, first_layout, move
from allocator.core.best_arm import BestArm, best_arm
from allocator.core.budget import Limits, leases_requests, leases_units, used_up
from allocator.core.budget import limits as budget_limits
from allocator.core.decision import Reason
from allocator.core.experiment import (
    BreachAction,
    ConcludeAction,
    Experiment,
    Goal,
    PolicyKind,
    Pooling,
    RewardModel,
    UnitContribution,
)
from allocator.core.guardrail import Finding, Judgement, Review, close, forget_safety, review, settle
from allocator.core.lifecycle import Event, State, Status, step
from allocator.core.posterior import (
    BetaPrior,
    GammaPrior,
    NormalInverseGammaPrior,
    Posterior,
    Prior,
    posterior,
    warm_start,
)
from allocator.core.ramp import MISMATCH, mismatched, waiting_for
from allocator.core.record import Record, Stream, served
from allocator.core.sample_ratio import ALPHA as SAMPLE_RATIO_ALPHA
from allocator.core.sample_ratio import draw_p_values
from allocator.core.snapshot import Entry, Table
from allocator.core.statistics import COUNT, Sums, discounted, matured, sums_of
from allocator.core.tally import EXPOSURE_STREAM, REWARD_STREAM, Tally, counts, up_to

Floats = NDArray[np.float64]

GRACE_SECONDS = 2.0  # after the window, for outcomes that were in time but are still under way
HISTORY_BUCKETS = 32  # settled buckets for each half-life: a later one than that changes a weight by 2 %
UNMOVED_SLOTS = 64  # a plan that moves fewer than 0.1 % of the units is not worth a new snapshot


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that the plan did, for the audit. action: e.g. "experiment.freeze"."""

    action: str
    reason: str


@dataclass(frozen=True, slots=True)
class Learned:
    """What one table's statistics say. best: P(best) and expected loss among eligible arms; outcomes: rewards that count, (arms,)."""

    posterior: Posterior
    best: BestArm
    wanted: Floats
    outcomes: Floats


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


def plan(record: Record, found: Tally, now: float) -> Plan:
    """Decide weights and state for one experiment. now: seconds since the epoch. Raises InvalidArgument for statistics no family has."""
    experiment, status = record.experiment, record.status
    running = status.state is State.RUNNING
    occurrences: list[Occurrence] = []
    look = _review(record, found, now)
    if running:
        status = _obey(experiment, status, look, now, occurrences)
    eligible = np.array([arm.name not in status.drained for arm in experiment.arms])
    learned = tuple(_learn(record, found, segment, eligible, now) for segment in _tables(experiment))
    outcomes = _rewards(found)
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
        slots, layouts, notes = _allocate(record, status, learned, judgements, eligible, finished)
    through = closing(experiment, now)
    settles = bool(found.open.buckets.size) and int(found.open.buckets[0]) <= through
    if settles:
        view = counts(record, up_to(found, through), found.labels)
        stage_bucket = math.ceil(status.stage_since_seconds / experiment.bucket_width_seconds)
        evidence = settle(experiment, record.status, evidence, view, stage_bucket)
    exposed, pending = _exposures(found)
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


def closing(experiment: Experiment, now: float) -> int:
    """The last bucket that no outcome can reach any more."""
    return math.floor((now - experiment.reward.window_seconds - GRACE_SECONDS) / experiment.bucket_width_seconds) - 1


def coarsening(experiment: Experiment) -> int:
    """How many buckets become one when they settle; 0 when nothing is forgotten by age and all may become one."""
    half_life = experiment.policy.half_life_seconds
    if half_life is None:
        return 0
    return max(1, math.floor(half_life / HISTORY_BUCKETS / experiment.bucket_width_seconds))


def enter_stage(status: Status, stage: int, outcomes: Sequence[int], now: float) -> Status:
    """The status at the beginning of a stage: time, outcomes and approvals count anew."""
    return replace(
        status, stage=stage, stage_since_seconds=now, stage_outcomes=tuple(int(count) for count in outcomes), approvers=()
    )


def closed_evidence(record: Record, found: Tally, now: float) -> tuple[Stream, ...]:
    """Every stream of the activation that ends now, open buckets included: what stays on record when evidence starts again."""
    view = counts(record, found.open, found.labels)
    return close(record.experiment, record.status, record.evidence, view, now)


def entry_of(record: Record) -> Entry:
    """The record as a decider sees it."""
    e, status = record.experiment, record.status
    stage = e.stages[status.stage]
    running = status.state is State.RUNNING
    only: tuple[int, int] | None = None
    if status.state is State.FROZEN or (running and status.frozen):
        only = (e.incumbent, Reason.FROZEN)
    elif status.state is State.CONCLUDED and status.winner and status.winner != e.arms[e.incumbent].name:
        only = (next(i for i, arm in enumerate(e.arms) if arm.name == status.winner), Reason.ALLOCATED)
    elif not running or stage.cap == 0 or not record.layouts:
        only = (e.incumbent, Reason.INCUMBENT_ONLY)
    drained = {index for index, arm in enumerate(e.arms) if arm.name in status.drained}
    strict = running and e.exposure.strict
    return Entry(
        experiment=record.name,
        uid=bytes.fromhex(record.uid),
        version=record.version,
        state=status.state.value,
        sticky=e.assignment.value == "STICKY",
        salt=record.salt,
        arms=tuple(arm.name for arm in e.arms),
        model_uris=tuple(arm.model_uri for arm in e.arms),
        incumbent=e.incumbent,
        tables=tuple(
            Table(layout.ends, layout.owners, served(slots, e.incumbent, drained))
            for layout, slots in zip(record.layouts, record.slots, strict=True)
        ),
        only=only,
        drained=sum(1 << index for index in drained),
        counted=status.state is not State.DRAFT,
        shadow_arms=tuple(i for i in range(len(e.arms)) if i != e.incumbent and i not in drained)
        if running and stage.shadow and not status.frozen
        else (),
        activation=status.activation,
        segment_names=e.segment_names,
        segments=tuple({key: frozenset(values) for key, values in segment.match.items()} for segment in e.segments),
        target={key: frozenset(values) for key, values in e.target.items()},
        opt_out=e.opt_out,
        pins={unit.encode(): _index(e, arm) for unit, arm in e.pins.items() if _index(e, arm) not in drained}
        if running and not status.frozen
        else {},
        lease_seconds=e.lease_seconds,
        window_seconds=e.reward.window_seconds,
        bucket_seconds=e.bucket_width_seconds,
        first_only=e.unit_contribution is UnitContribution.FIRST,
        strict=strict,
        cap=min(stage.cap, e.exposure.total),
        cap_per_candidate=e.exposure.per_candidate,
        burst=e.exposure.burst,
        leased_requests=leases_requests(e),
        leased_units=leases_units(e),
        stage=status.stage,
    )


# ------------------------------------------------------------------------------------------------------- the steps


def _index(experiment: Experiment, name: str) -> int:
    return next(index for index, arm in enumerate(experiment.arms) if arm.name == name)


def _tables(experiment: Experiment) -> tuple[int | None, ...]:
    """The segment of each table; None: all together."""
    if experiment.policy.pooling is Pooling.PER_SEGMENT:
        return tuple(range(len(experiment.segments) + 1))
    return (None,)


def _review(record: Record, found: Tally, now: float) -> Review:
    status = record.status
    return review(
        record.experiment,
        status,
        record.evidence,
        counts(record, found.open, found.labels),
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


def _learn(record: Record, found: Tally, segment: int | None, eligible: NDArray[np.bool_], now: float) -> Learned:
    experiment = record.experiment
    sums = _reward_sums(experiment, found, segment, now)
    reward = experiment.reward
    after = posterior(_prior(record), sums, shift=reward.shift, unit=reward.unit)
    best = best_arm(after, None if eligible.all() else eligible, maximise=reward.goal is Goal.MAXIMISE)
    chosen = experiment.policy
    shares = tuple(chosen.shares[arm.name] for arm in experiment.arms) if chosen.kind is PolicyKind.FIXED else None
    spec = policies.Policy(chosen.kind, chosen.power, chosen.beta, chosen.floor_schedule, shares)
    decisions = int(_exposures(found)[0].sum())
    return Learned(after, best, policies.weights(spec, best.prob_best, decisions, eligible), sums.count)


def _reward_sums(experiment: Experiment, found: Tally, segment: int | None, now: float) -> Sums:
    """Rewards that count now: as they arrive, or by whole matured cohorts when a missing report means something."""
    reward, half_life = experiment.reward, experiment.policy.half_life_seconds
    width = experiment.bucket_width_seconds
    coarse = width * max(coarsening(experiment), 1)

    def read(settled: bool, stream: int) -> Sums:
        statistics, bucket_seconds = (found.settled, coarse) if settled else (found.open, width)
        if half_life is None:
            return sums_of(statistics, stream, segment)
        return discounted(statistics, stream, math.floor(now / bucket_seconds), half_life / bucket_seconds, segment)

    if reward.missing is None:
        old, new = read(True, REWARD_STREAM), read(False, REWARD_STREAM)
        return Sums(old.count + new.count, old.total + new.total, old.squares + new.squares)
    missing = (reward.missing - reward.shift) / reward.unit
    return matured(read(True, EXPOSURE_STREAM), read(True, REWARD_STREAM), missing)


def _prior(record: Record) -> Prior | Sequence[Prior]:
    reward, p = record.experiment.reward, record.experiment.reward.prior
    base: Prior
    if reward.model is RewardModel.BERNOULLI:
        base = BetaPrior(_or(p.successes, 1.0), _or(p.failures, 1.0))
    elif reward.model is RewardModel.POISSON:
        base = GammaPrior(_or(p.shape, 1.0), _or(p.rate, 1.0))
    else:
        middle, width = (reward.low + reward.upper) / 2, reward.upper - reward.low
        base = NormalInverseGammaPrior(
            _or(p.mean, middle), _or(p.strength, 1.0), _or(p.shape, 1.0), _or(p.scale, (width / 4) ** 2)
        )
    if not record.warm or reward.warm_start is None:
        return base
    count, total, squares = (np.array(column) for column in zip(*record.warm, strict=True))
    return warm_start(base, Sums(count, total, squares), reward.warm_start.discount, shift=reward.shift, unit=reward.unit)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _rewards(found: Tally) -> list[int]:
    """Rewards reported for each arm since the start."""
    total = found.open.sums[:, :, :, REWARD_STREAM, COUNT].sum(axis=(0, 2))
    return (total + found.settled.sums[:, :, :, REWARD_STREAM, COUNT].sum(axis=(0, 2))).tolist()


def _exposures(found: Tally) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Decisions of each arm since the start, and those in open buckets whose reward has not come."""
    open_now = found.open.sums[:, :, :, EXPOSURE_STREAM, COUNT].sum(axis=(0, 2))
    reported = found.open.sums[:, :, :, REWARD_STREAM, COUNT].sum(axis=(0, 2))
    settled = found.settled.sums[:, :, :, EXPOSURE_STREAM, COUNT].sum(axis=(0, 2))
    return open_now + settled, np.maximum(open_now - reported, 0)


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
    good = learned.best.prob_best[arm] >= rule.prob_best and loss <= _or(rule.max_expected_loss, math.inf)
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


def _allocate(
    record: Record,
    status: Status,
    learned: Sequence[Learned],
    judgements: Sequence[Judgement],
    eligible: NDArray[np.bool_],
    finished: frozenset[int],
) -> tuple[tuple[tuple[int, ...], ...], tuple[Layout, ...], tuple[str, ...]]:
    """Slots and layout of each table, and why they are not what the policy wanted."""
    experiment = record.experiment
    stage, x = experiment.stages[status.stage], experiment.exposure
    cap, per_candidate = min(stage.cap, x.total), x.per_candidate
    if x.strict:
        cap, per_candidate = limits.steered(cap), limits.steered(per_candidate)
    arms, incumbent = len(experiment.arms), experiment.incumbent
    same_stage = (record.status.stage, record.status.activation) == (status.stage, status.activation)
    floors = np.full(arms, min(experiment.policy.floor, per_candidate))
    held_all = any(j.action is BreachAction.HOLD for j in judgements)
    held = {j.arm for j in judgements if j.held or held_all}
    notes = []
    for judgement in judgements:
        name = experiment.arms[judgement.arm].name
        if judgement.warned:
            floors[judgement.arm] = 0.0
            notes.append(f"{name} has no floor while {', '.join(judgement.warned)} warns")
        if judgement.arm in held and same_stage and record.slots:
            because = f"{', '.join(judgement.held)} lacks data" if judgement.held else "a guardrail that holds is breached"
            notes.append(f"the weight of {name} may not rise: {because}")
    notes += [f"{experiment.arms[arm].name} has used up its budget of {x.budget.requests} requests" for arm in sorted(finished)]
    done_slots, done_layouts = [], []
    for index, table in enumerate(learned):
        before = record.slots[index] if index < len(record.slots) else None
        if before is not None and len(before) < arms:
            before = (*before, *(0,) * (arms - len(before)))
        caps = np.full(arms, per_candidate)
        caps[list(finished)] = 0.0
        if before is not None and same_stage:
            for arm in held:
                caps[arm] = min(caps[arm], before[arm] / SLOTS)
        least = np.minimum(floors, caps)
        least[incumbent] = 0.0
        weights = limits.allowed(table.wanted, incumbent, cap, caps, least, eligible)
        if index == 0:
            notes.extend(_cap_notes(experiment, table.wanted, weights, cap, finished))
        target = list(limits.to_slots(weights, np.where(eligible, least, 0.0), incumbent, cap, caps))
        if before is not None:
            for arm in range(arms):
                if not eligible[arm] and arm != incumbent:
                    target[arm] = min(before[arm], target[incumbent])
                    target[incumbent] -= target[arm]
        chosen = tuple(target)
        if before is not None and _not_worth_moving(before, chosen, caps, cap, incumbent, eligible):
            chosen = before
        done_slots.append(chosen)
        done_layouts.append(move(record.layouts[index], chosen) if before is not None else first_layout(chosen))
    return tuple(done_slots), tuple(done_layouts), tuple(notes)


def _not_worth_moving(
    before: Sequence[int], after: Sequence[int], caps: Floats, cap: float, incumbent: int, eligible: NDArray[np.bool_]
) -> bool:
    moved = sum(abs(a - b) for a, b in zip(before, after, strict=True)) // 2
    if moved >= UNMOVED_SLOTS:
        return False
    served = [count for arm, count in enumerate(before) if arm != incumbent and eligible[arm]]
    full = [after[arm] >= math.floor(caps[arm] * SLOTS) for arm in range(len(after)) if arm != incumbent]
    within = all(before[arm] <= caps[arm] * SLOTS for arm in range(len(before)) if arm != incumbent and eligible[arm])
    at_cap = any(full) or SLOTS - after[incumbent] >= math.floor(cap * SLOTS)
    return within and sum(served) <= cap * SLOTS and (moved <= 1 or not at_cap)


def _cap_notes(experiment: Experiment, wanted: Floats, weights: Floats, cap: float, finished: frozenset[int]) -> list[str]:
    notes = []
    for arm, (want, have) in enumerate(zip(wanted, weights, strict=True)):
        if arm not in (experiment.incumbent, *finished) and want > have + 0.001:
            notes.append(f"{experiment.arms[arm].name} would get {want:.1%}; caps and the stage allow {have:.1%} (all candidates: {cap:.1%})")
    return notes
