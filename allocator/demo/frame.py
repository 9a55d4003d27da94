"""What the demo shows at one moment, as values: everything as the server describes it, nothing computed here.

In: a DescribeExperiment answer and audit records. Out: a `Frame` with a row for each arm, and `Event`s in words. The
table, the plain lines, the figure and the summary all read these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import operator_service_pb2 as operator_pb


@dataclass(frozen=True, slots=True)
class Gauge:
    """A guardrail's evidence against one arm.

    share: its logarithm as a share of what stops the arm, at least 0; 1 or more is a breach. exposed: decisions that
    count in it. bad: the bad outcomes among them. limit: as in the spec.
    """

    guardrail: str
    share: float
    exposed: int
    bad: float
    limit: float


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One arm.

    weight, exposure, cap: shares of decisions. low, high: 95 % interval of the mean reward. gauges: none for the
    incumbent.
    """

    name: str
    incumbent: bool
    state: str
    weight: float
    exposure: float
    cap: float
    decisions: int
    outcomes: int
    mean: float
    low: float
    high: float
    prob_best: float
    gauges: tuple[Gauge, ...]

    @property
    def drained(self) -> bool:
        """Does it get nothing any more?"""
        return self.state == "DRAINED"

    @property
    def worst(self) -> Gauge | None:
        """The guardrail that is nearest to stopping it; None for the incumbent."""
        return max(self.gauges, key=lambda gauge: gauge.share, default=None)


@dataclass(frozen=True, slots=True)
class Frame:
    """All arms at one moment.

    seconds: of traffic. requests: decided so far. cap: of all candidates together, in the present stage of the ramp.
    """

    experiment: str
    seconds: float
    requests: int
    cap: float
    arms: tuple[ArmRow, ...]

    def arm(self, name: str) -> ArmRow:
        """The row of an arm."""
        return next(row for row in self.arms if row.name == name)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the server did, in words. seconds: of traffic, at the end of the round in which it happened."""

    seconds: float
    action: str
    text: str


def frame_at(frames: Sequence[Frame], seconds: float) -> Frame:
    """The first frame that is not before `seconds`."""
    return next(frame for frame in frames if frame.seconds >= seconds)


def frame_of(description: operator_pb.DescribeExperimentResponse, seconds: float, requests: int) -> Frame:
    """The server's description as a frame."""
    gauges: dict[str, list[Gauge]] = {}
    for g in description.guardrails:
        share = max(0.0, g.log_evidence / g.log_threshold)
        gauges.setdefault(g.arm, []).append(Gauge(g.guardrail, share, g.exposed, g.events, g.limit))
    incumbent = next(arm.name for arm in description.experiment.spec.arms if arm.incumbent)
    rows = tuple(
        ArmRow(
            name=a.arm,
            incumbent=a.arm == incumbent,
            state=pb.ArmState.Name(a.state).removeprefix("ARM_STATE_"),
            weight=a.weight,
            exposure=a.exposure,
            cap=a.exposure_cap,
            decisions=a.decisions,
            outcomes=a.outcomes,
            mean=a.mean,
            low=a.interval_low,
            high=a.interval_high,
            prob_best=a.prob_best,
            gauges=() if a.arm == incumbent else tuple(gauges.get(a.arm, ())),
        )
        for a in description.arms
    )
    return Frame(description.experiment.metadata.name, seconds, requests, description.stage.cap, rows)


def events_of(records: Sequence[pb.AuditRecord], frame: Frame) -> list[Event]:
    """What the audit records of a round say, in words. Warnings of an arm that is drained anyway are left out."""
    return [
        Event(frame.seconds, record.action, _words(record, frame))
        for record in records
        if record.action != "experiment.create"
        and not (
            record.action == "guardrail.warn" and any(row.drained and row.name in record.reason for row in frame.arms)
        )
    ]


def _words(record: pb.AuditRecord, frame: Frame) -> str:
    if record.action == "experiment.start":
        return f"started: in the first stage candidates get at most {frame.cap:.0%} together"
    if record.action == "experiment.advance":
        return f"next stage: proven safe so far, candidates may now get {frame.cap:.0%}"
    if record.action == "experiment.recommend":
        return f"recommended: {record.reason}"
    if record.action == "arm.drain":
        for row in frame.arms:
            gauge = row.worst
            if row.drained and gauge and row.name in record.reason:
                count = f"{gauge.bad:g} of {gauge.exposed} bad, limit {gauge.limit:g}"
                return f"{row.name} DRAINED by guardrail {gauge.guardrail}: {count}"
    return record.reason or record.action
