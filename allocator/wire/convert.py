"""Message ↔ value, both ways. The only place that knows both.

In: messages of `allocator/v1`. Out: values of the core, and back. Nothing is checked here but what a message can say and a value cannot
(an unknown enum number); `core.experiment.check` judges the rest.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from allocator.core.approval import Proposal, fits
from allocator.core.audit import AuditRecord
from allocator.core.experiment import (
    Approval,
    Arm,
    Assignment,
    BreachAction,
    Budget,
    Conclude,
    ConcludeAction,
    Experiment,
    Exposure,
    Goal,
    Guardrail,
    Metric,
    Per,
    Policy,
    PolicyKind,
    Pooling,
    Prior,
    RampStage,
    Reward,
    RewardModel,
    Segment,
    UnitContribution,
    WarmStart,
)
from allocator.core.lifecycle import ArmState, State
from allocator.errors import InvalidArgument
from allocator.v1 import allocator_pb2 as pb
from allocator.wire.enums import from_number, to_number
from allocator.wire.scalars import duration, fill_match, match_from_message, seconds_of, timestamp

if TYPE_CHECKING:  # it brings numba along, and whoever lints a file must not wait for that
    from allocator.core.record import Record

API_VERSION = "allocator/v1"
KIND = "Experiment"


def experiment_from_message(message: pb.Experiment) -> Experiment:
    """The spec as a value, unchecked. Raises InvalidArgument for an enum number that this version does not know."""
    spec = message.spec
    try:
        return Experiment(
            name=message.metadata.name,
            namespace=message.metadata.namespace or "default",
            labels=dict(message.metadata.labels),
            owner=spec.owner,
            hypothesis=spec.hypothesis,
            lineage=dict(spec.lineage),
            arms=tuple(Arm(arm.name, arm.incumbent, arm.model_uri) for arm in spec.arms),
            assignment=from_number(Assignment, spec.assignment, Assignment.STICKY),
            reward=_reward(spec.reward),
            policy=_policy(spec.policy),
            exposure=_exposure(spec.exposure),
            guardrails=tuple(map(_guardrail, spec.guardrails)),
            alpha=spec.alpha if spec.HasField("alpha") else 0.001,
            segments=tuple(Segment(segment.name, match_from_message(segment.match)) for segment in spec.segments),
            opt_out=spec.opt_out.attribute,
            ramp=tuple(map(_stage, spec.ramp)),
            conclude=_conclude(spec.conclude) if spec.HasField("conclude") else None,
            metrics=tuple(
                Metric(m.name, m.min if m.HasField("min") else 0.0, m.max if m.HasField("max") else 1.0) for m in spec.metrics
            ),
            target=match_from_message(spec.target.match),
            pins=dict(spec.pins),
            unit_contribution=from_number(UnitContribution, spec.unit_contribution, UnitContribution.FIRST),
            bucket_seconds=seconds_of(spec.bucket) if spec.HasField("bucket") else None,
            lease_seconds=seconds_of(spec.lease) if spec.HasField("lease") else 15.0,
            approval=_approval(spec.approval),
        )
    except KeyError as exc:
        raise InvalidArgument.of_field("experiment.spec", f"got an enum value that this version does not know: {exc}") from exc


def _reward(m: pb.Reward) -> Reward:
    prior = {name: getattr(m.prior, name) for name in Prior.__dataclass_fields__ if m.prior.HasField(name)}
    warm = None
    if m.HasField("warm_start"):
        warm = WarmStart(m.warm_start.experiment, m.warm_start.discount if m.warm_start.HasField("discount") else 0.5)
    return Reward(
        metric=m.metric,
        model=from_number(RewardModel, m.model, RewardModel.BERNOULLI),
        window_seconds=seconds_of(m.window) if m.HasField("window") else 1800.0,
        missing=m.missing if m.HasField("missing") else None,
        goal=from_number(Goal, m.goal, Goal.MAXIMISE),
        low=m.min if m.HasField("min") else 0.0,
        high=m.max if m.HasField("max") else None,
        prior=Prior(**prior),
        warm_start=warm,
    )


def _policy(m: pb.Policy) -> Policy:
    return Policy(
        kind=from_number(PolicyKind, m.kind, PolicyKind.THOMPSON),
        floor=m.floor,
        half_life_seconds=seconds_of(m.half_life) if m.HasField("half_life") else None,
        power=m.power if m.HasField("power") else 1.0,
        beta=m.beta if m.HasField("beta") else 0.5,
        floor_schedule=m.floor_schedule,
        shares=dict(m.shares),
        pooling=from_number(Pooling, m.weights, Pooling.POOLED),
    )


def _exposure(m: pb.Exposure) -> Exposure:
    budget = {name: getattr(m.budget, name) for name in ("requests", "units", "loss") if m.budget.HasField(name)}
    return Exposure(
        per_candidate=m.per_candidate if m.HasField("per_candidate") else 1.0,
        total=m.total if m.HasField("total") else 1.0,
        strict=m.strict,
        burst=m.burst if m.HasField("burst") else 50,
        budget=Budget(**budget),
        max_loss=m.max_loss if m.HasField("max_loss") else None,
    )


def _guardrail(m: pb.Guardrail) -> Guardrail:
    return Guardrail(
        name=m.name,
        metric=m.metric,
        max=m.max if m.HasField("max") else None,
        min=m.min if m.HasField("min") else None,
        quantile=m.quantile if m.HasField("quantile") else None,
        max_ratio=m.max_ratio if m.HasField("max_ratio") else None,
        on_breach=from_number(BreachAction, m.on_breach, BreachAction.FREEZE),
        per=from_number(Per, m.per, Per.ARM),
        persistence=m.persistence if m.HasField("persistence") else 1,
        window_seconds=seconds_of(m.window) if m.HasField("window") else None,
    )


def _stage(m: pb.RampStage) -> RampStage:
    return RampStage(m.cap, m.shadow, seconds_of(m.min_duration), m.min_outcomes, m.approvals)


def _conclude(m: pb.Conclude) -> Conclude:
    return Conclude(
        prob_best=m.prob_best if m.HasField("prob_best") else 0.99,
        max_expected_loss=m.max_expected_loss if m.HasField("max_expected_loss") else None,
        action=from_number(ConcludeAction, m.action, ConcludeAction.RECOMMEND),
    )


def _approval(m: pb.Approval) -> Approval:
    return Approval(m.required, seconds_of(m.expiry)) if m.HasField("expiry") else Approval(m.required)


def experiment_to_message(experiment: Experiment) -> pb.Experiment:
    """The spec as a message; what equals its default is left out where the schema can say "nothing"."""
    e = experiment
    message = pb.Experiment(api_version=API_VERSION, kind=KIND)
    message.metadata.name, message.metadata.namespace = e.name, e.namespace
    message.metadata.labels.update(e.labels)
    spec = message.spec
    spec.owner, spec.hypothesis = e.owner, e.hypothesis
    spec.lineage.update(e.lineage)
    for arm in e.arms:
        spec.arms.add(name=arm.name, incumbent=arm.incumbent, model_uri=arm.model_uri)
    spec.assignment = to_number(e.assignment)
    _fill_reward(spec.reward, e.reward)
    _fill_policy(spec.policy, e.policy)
    _fill_exposure(spec.exposure, e.exposure)
    for guardrail in e.guardrails:
        _fill_guardrail(spec.guardrails.add(), guardrail)
    spec.alpha = e.alpha
    for segment in e.segments:
        fill_match(spec.segments.add(name=segment.name).match, segment.match)
    if e.opt_out:
        spec.opt_out.attribute = e.opt_out
    for stage in e.ramp:
        item = spec.ramp.add(cap=stage.cap, shadow=stage.shadow, min_outcomes=stage.min_outcomes, approvals=stage.approvals)
        if stage.min_duration_seconds:
            item.min_duration.CopyFrom(duration(stage.min_duration_seconds))
    if e.conclude is not None:
        spec.conclude.prob_best = e.conclude.prob_best
        spec.conclude.action = to_number(e.conclude.action)
        if e.conclude.max_expected_loss is not None:
            spec.conclude.max_expected_loss = e.conclude.max_expected_loss
    for metric in e.metrics:
        spec.metrics.add(name=metric.name, min=metric.low, max=metric.high)
    if e.target:
        fill_match(spec.target.match, e.target)
    spec.pins.update(e.pins)
    spec.unit_contribution = to_number(e.unit_contribution)
    if e.bucket_seconds is not None:
        spec.bucket.CopyFrom(duration(e.bucket_seconds))
    spec.lease.CopyFrom(duration(e.lease_seconds))
    if e.approval != Approval():
        spec.approval.required = e.approval.required
        spec.approval.expiry.CopyFrom(duration(e.approval.expiry_seconds))
    return message


def _fill_reward(m: pb.Reward, r: Reward) -> None:
    m.metric, m.model, m.goal = r.metric, to_number(r.model), to_number(r.goal)
    m.window.CopyFrom(duration(r.window_seconds))
    if r.missing is not None:
        m.missing = r.missing
    if r.low != 0:
        m.min = r.low
    if r.high is not None:
        m.max = r.high
    for name in Prior.__dataclass_fields__:
        value = getattr(r.prior, name)
        if value is not None:
            setattr(m.prior, name, value)
    if r.warm_start is not None:
        m.warm_start.experiment, m.warm_start.discount = r.warm_start.experiment, r.warm_start.discount


def _fill_policy(m: pb.Policy, p: Policy) -> None:
    m.kind, m.weights, m.floor_schedule = to_number(p.kind), to_number(p.pooling), p.floor_schedule
    m.floor = p.floor
    if p.half_life_seconds is not None:
        m.half_life.CopyFrom(duration(p.half_life_seconds))
    if p.power != 1:
        m.power = p.power
    if p.beta != 0.5:
        m.beta = p.beta
    m.shares.update(p.shares)


def _fill_exposure(m: pb.Exposure, x: Exposure) -> None:
    m.per_candidate, m.total, m.strict = x.per_candidate, x.total, x.strict
    if x.strict:
        m.burst = x.burst
    for name in ("requests", "units", "loss"):
        value = getattr(x.budget, name)
        if value is not None:
            setattr(m.budget, name, value)
    if x.max_loss is not None:
        m.max_loss = x.max_loss


def _fill_guardrail(m: pb.Guardrail, g: Guardrail) -> None:
    m.name, m.metric, m.on_breach = g.name, g.metric, to_number(g.on_breach)
    m.per, m.persistence = to_number(g.per), g.persistence
    if g.window_seconds is not None:
        m.window.CopyFrom(duration(g.window_seconds))
    for name in ("max", "min", "quantile", "max_ratio"):
        value = getattr(g, name)
        if value is not None:
            setattr(m, name, value)


def record_to_message(record: Record) -> pb.Experiment:
    """What is stored of an experiment, as the operator sees it: spec, metadata, status."""
    message = experiment_to_message(record.experiment)
    if record.proposal is not None and fits(record.proposal, record.revision, record.status):
        _fill_proposal(message.status.proposal, record.proposal)
    meta, status = message.metadata, message.status
    meta.uid, meta.revision, meta.etag = record.uid, record.revision, etag(record)
    meta.create_time.CopyFrom(timestamp(record.created_seconds))
    meta.update_time.CopyFrom(timestamp(record.updated_seconds))
    s = record.status
    status.state, status.reason = to_number(s.state), s.reason
    status.freeze_epoch, status.resume_epoch = s.freeze_epoch, s.resume_epoch
    status.activation, status.stage = s.activation, s.stage
    status.snapshot_version = record.version
    status.winner = s.winner or s.recommended
    shadow = s.state is State.RUNNING and record.experiment.stages[s.stage].shadow
    served = record.served
    for index, arm in enumerate(record.experiment.arms):
        state = ArmState.ACTIVE
        if arm.name in s.drained:
            state = ArmState.DRAINED
        elif shadow and not arm.incumbent:
            state = ArmState.SHADOW
        status.arms.add(arm=arm.name, state=to_number(state), slots=served[index])
    return message


def _fill_proposal(m: pb.Proposal, p: Proposal) -> None:
    m.digest, m.kind, m.author, m.reason = p.digest, to_number(p.kind), p.author, p.reason
    m.create_time.CopyFrom(timestamp(p.seconds))
    m.expire_time.CopyFrom(timestamp(p.expires_seconds))
    m.required, m.winner = p.required, p.winner
    m.approvers.extend(p.approvers)
    m.risks.extend(p.risks)
    if p.experiment is not None:
        m.spec.CopyFrom(experiment_to_message(p.experiment).spec)


def etag(record: Record) -> str:
    """Opaque to callers; changes when a person or a guardrail changed something, not with each new plan."""
    s = record.status
    seen = (record.uid, record.revision, s.state, s.stage, s.freeze_epoch, s.resume_epoch, s.drained, s.approvals, s.winner)
    if record.proposal is not None:
        seen = (*seen, record.proposal.digest, record.proposal.approvers)
    return hashlib.blake2b(repr(seen).encode(), digest_size=8).hexdigest()


def audit_to_message(record: AuditRecord) -> pb.AuditRecord:
    """A sealed audit record as a message."""
    e = record.entry
    return pb.AuditRecord(
        sequence=record.sequence,
        time=timestamp(e.seconds),
        actor=e.actor,
        action=e.action,
        experiment=e.experiment,
        reason=e.reason,
        before=e.before,
        after=e.after,
        digest=record.digest,
    )
