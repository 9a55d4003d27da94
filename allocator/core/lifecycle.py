"""Where an experiment stands, and the one function that moves it.

In: a `Status`, an `Event`, who, why and when. Out: the next `Status`, or Refused. The theory is the table NEXT: DRAFT is written
down and serves the incumbent; RUNNING learns; FROZEN serves the incumbent until a person resumes; ROLLED_BACK and CONCLUDED are
ends. A pair of state and event that is absent from the table is refused.

Freezing is a latch in a semilattice: two replicas that disagree take the larger of each epoch, and `frozen` holds while the freeze
epoch is at least the resume epoch, so that a freeze wins a tie and is lost by no merge. A boolean was dropped: merged by "last
writer wins" it forgets a freeze.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from allocator.errors import Refused


class State(Enum):
    DRAFT = "DRAFT"
    RUNNING = "RUNNING"
    FROZEN = "FROZEN"
    ROLLED_BACK = "ROLLED_BACK"
    CONCLUDED = "CONCLUDED"


class ArmState(Enum):
    ACTIVE = "ACTIVE"
    SHADOW = "SHADOW"
    DRAINED = "DRAINED"


class Event(Enum):
    STARTED = "started"
    BREACHED = "breached"  # a guardrail's evidence
    FROZEN = "frozen"  # a person
    RESUMED = "resumed"
    ROLLED_BACK = "rolled back"
    CONCLUDED = "concluded"


NEXT: Mapping[tuple[State, Event], State] = {
    (State.DRAFT, Event.STARTED): State.RUNNING,
    (State.RUNNING, Event.BREACHED): State.FROZEN,
    (State.RUNNING, Event.FROZEN): State.FROZEN,
    (State.FROZEN, Event.FROZEN): State.FROZEN,
    (State.FROZEN, Event.RESUMED): State.RUNNING,
    (State.RUNNING, Event.ROLLED_BACK): State.ROLLED_BACK,
    (State.FROZEN, Event.ROLLED_BACK): State.ROLLED_BACK,
    (State.RUNNING, Event.CONCLUDED): State.CONCLUDED,
    (State.FROZEN, Event.CONCLUDED): State.CONCLUDED,
}

ADVICE = {
    State.DRAFT: "start it first",
    State.RUNNING: "it is running",
    State.FROZEN: "resume it first, with a reason",
    State.ROLLED_BACK: "it has ended; apply a new experiment under another name",
    State.CONCLUDED: "it has ended; apply a new experiment under another name",
}


@dataclass(frozen=True, slots=True)
class StageApproval:
    """Somebody agreed, at `seconds`, to enter the next stage of the revision then in force."""

    actor: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """Where one experiment stands. Times are seconds since the epoch.

    activation: 1, one more with each resume; evidence starts again with each. drained: names of arms that breached. recommended:
    the arm that the stop rule names, or "". winner: the arm that a concluded experiment serves, or "". stage_outcomes: rewards counted
    for each arm when the stage was entered. approvals: of the next stage, void after any revision. alerted: `what/arm` of what was told
    and changes nothing more by itself (a breach with ALERT or HOLD, a sample ratio mismatch, a budget used up), so that each is told once.
    """

    state: State = State.DRAFT
    reason: str = ""
    since_seconds: float = 0.0
    freeze_epoch: int = 0
    resume_epoch: int = 0
    activation: int = 1
    stage: int = 0
    stage_since_seconds: float = 0.0
    stage_outcomes: tuple[int, ...] = ()
    started_seconds: float = 0.0
    approvals: tuple[StageApproval, ...] = ()
    drained: tuple[str, ...] = ()
    alerted: tuple[str, ...] = ()
    recommended: str = ""
    winner: str = ""

    @property
    def frozen(self) -> bool:
        """Does the latch hold? A freeze wins a tie."""
        return self.freeze_epoch > 0 and self.freeze_epoch >= self.resume_epoch


def step(status: Status, event: Event, *, reason: str, now: float, winner: str = "") -> Status:
    """The status after `event`. Raises Refused when the table has no such pair."""
    state = NEXT.get((status.state, event))
    if state is None:
        raise Refused(
            f"the experiment is {status.state.value} and cannot be {event.value}: {ADVICE[status.state]}",
            reason="WRONG_STATE",
            state=status.state.value,
            event=event.value,
        )
    after = replace(status, state=state, reason=reason, since_seconds=now)
    if event is Event.STARTED:
        return replace(after, stage=0, stage_since_seconds=now, started_seconds=now, approvals=())
    if state is State.FROZEN:
        return replace(after, freeze_epoch=max(status.freeze_epoch, status.resume_epoch) + 1)
    if event is Event.RESUMED:
        return replace(
            after,
            resume_epoch=status.freeze_epoch + 1,
            activation=status.activation + 1,
            stage_since_seconds=now,
            approvals=(),
            drained=(),
            alerted=(),
        )
    if event is Event.CONCLUDED:
        return replace(after, winner=winner)
    return after


def merge_latch(one: Status, other: Status) -> Status:
    """`one` with the larger of each epoch, FROZEN where the merged latch holds. Commutative in the epochs, idempotent."""
    merged = replace(
        one,
        freeze_epoch=max(one.freeze_epoch, other.freeze_epoch),
        resume_epoch=max(one.resume_epoch, other.resume_epoch),
    )
    if merged.frozen and merged.state is State.RUNNING:
        return replace(merged, state=State.FROZEN, reason=other.reason or one.reason)
    return merged
