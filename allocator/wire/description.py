"""The description of an experiment as a message."""

from __future__ import annotations

import math

from allocator.core.description import Description, PastEvidence
from allocator.core.experiment import Experiment
from allocator.core.guardrail_counts import ALL
from allocator.core.judgement import Finding
from allocator.core.ramp import approvers
from allocator.v1 import operator_service_pb2 as pb
from allocator.wire.convert import record_to_message, timestamp
from allocator.wire.enums import to_number


def description_to_message(d: Description) -> pb.DescribeExperimentResponse:
    """All that `describe` tells."""
    experiment, status = d.record.experiment, d.record.status
    message = pb.DescribeExperimentResponse(
        experiment=record_to_message(d.record), notes=d.notes, sample_ratio_p_value=d.sample_ratio
    )
    message.plan_time.CopyFrom(timestamp(d.seconds))
    for arm in d.arms:
        message.arms.add(
            arm=arm.arm,
            state=to_number(arm.state),
            weight=arm.weight,
            wanted_weight=arm.wanted_weight,
            decisions=arm.decisions,
            exposure=arm.exposure,
            exposure_cap=arm.exposure_cap,
            outcomes=arm.outcomes,
            mean=arm.mean,
            interval_low=arm.low,
            interval_high=arm.high,
            prob_best=arm.prob_best,
            expected_loss=arm.expected_loss,
            pending=arm.pending,
        )
    for finding in d.findings:
        _fill_finding(message.guardrails.add(), experiment, finding, status.activation)
    for past in d.past:
        _fill_past(message.past_guardrails.add(), experiment, past)
    stage = message.stage
    stage.index, stage.count = status.stage, len(experiment.stages)
    stage.cap = min(experiment.stages[status.stage].cap, experiment.exposure.total)
    stage.shadow = experiment.stages[status.stage].shadow
    stage.entered_time.CopyFrom(timestamp(status.stage_since_seconds))
    stage.waiting_for.extend(d.plan.waiting_for)
    stage.approvers.extend(approvers(experiment, status, d.seconds))
    return message


def _fill_finding(m: pb.GuardrailDescription, experiment: Experiment, f: Finding, activation: int) -> None:
    m.guardrail, m.arm, m.segment = f.guardrail, experiment.arms[f.arm].name, _segment(experiment, f.segment)
    m.verdict = to_number(f.verdict)
    m.limit, m.exposed, m.events = f.limit, round(f.exposed), f.events
    if not math.isnan(f.observed):
        m.observed = f.observed
    m.log_evidence, m.log_threshold, m.log_safety = f.log_evidence, f.log_threshold, f.log_safety
    m.message, m.proven_safe, m.activation, m.alpha = f.message, f.proven_safe, activation, f.alpha


def _fill_past(m: pb.GuardrailDescription, experiment: Experiment, past: PastEvidence) -> None:
    m.guardrail, m.arm, m.segment = past.guardrail, experiment.arms[past.arm].name, _segment(experiment, past.segment)
    m.exposed, m.events, m.log_evidence, m.activation = round(past.exposed), past.events, past.log_evidence, past.activation


def _segment(experiment: Experiment, segment: int) -> str:
    return "" if segment == ALL else experiment.segment_names[segment]
