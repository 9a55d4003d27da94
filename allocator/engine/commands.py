"""An operator's command → lifecycle → store with its audit record, in one step, and in force when the method returns.

In: names, who, why. Out: the record as it now is. Making things safer is always allowed; what makes them riskier asks for a reason, the
right state and the evidence. Every command is refused whole or carried out whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from allocator.core.audit import AuditEntry
from allocator.core.experiment import Experiment, RewardModel, check
from allocator.core.lifecycle import Event, State, Status, step
from allocator.core.outcome import metric_names
from allocator.core.plan import closed_evidence, enter_stage, plan
from allocator.core.record import Record
from allocator.core.snapshot import full_name
from allocator.core.statistics import sums_of
from allocator.core.tally import REWARD_STREAM, Tally
from allocator.engine.planner import Planner
from allocator.engine.registry import Registry
from allocator.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, Refused, Violation
from allocator.ports import Clock, Entropy, Save

MAX_REASON = 1000
MAX_ACTOR = 128
REQUESTS_REMEMBERED = 10_000
T = TypeVar("T")

TRIES = 5  # of a command whose record the planner changed meanwhile


class Commands:
    """What people and pipelines may do. `actor` is who, `reason` is why; both go to the audit."""

    def __init__(self, registry: Registry, planner: Planner, clock: Clock, entropy: Entropy) -> None:
        self._registry = registry
        self._planner = planner
        self._clock = clock
        self._entropy = entropy
        self._requests: OrderedDict[str, Experiment] = OrderedDict()

    def apply(
        self,
        experiment: Experiment,
        *,
        actor: str,
        reason: str = "",
        etag: str | None = None,
        request_id: str = "",
        validate_only: bool = False,
        etag_of: Callable[[Record], str] | None = None,
    ) -> tuple[Record, bool, bool]:
        """Create the experiment in DRAFT or revise it: (record, created, changed).

        Raises InvalidArgument with every violation, Conflict when `etag` is not the current one, Refused when it has ended,
        AlreadyExists when `request_id` came before with other content.
        """
        check(experiment)
        actor, reason = _who(actor), _why(reason, needed=False)
        if request_id and self._requests.get(request_id, experiment) != experiment:
            raise AlreadyExists(f"request {request_id!r} came before with other content", reason="REQUEST_ID_REUSED", request_id=request_id)
        warm = self._warm(experiment)

        def attempt() -> tuple[Record, bool, bool]:
            now = self._clock.now()
            before = self._registry.find(experiment.full_name)
            if etag and (before is None or etag_of is None or etag_of(before) != etag):
                raise Conflict(
                    f"{experiment.full_name} is not what you saw: somebody changed it; get it again", reason="STALE_ETAG", etag=etag
                )
            if before is None:
                after = Record(
                    uid=self._entropy.bytes(8).hex(),
                    experiment=experiment,
                    salt=self._entropy.bytes(16),
                    status=Status(reason="applied", since_seconds=now),
                    metrics=metric_names(experiment),
                    warm=warm,
                    created_seconds=now,
                    updated_seconds=now,
                )
                if validate_only:
                    return after, True, True
                self._save(None, after, "experiment.create", actor, reason, "", _document(experiment))
                return after, True, True
            if before.experiment == experiment:
                return before, False, False
            check_revision(before, experiment)
            names = (*before.metrics, *(name for name in metric_names(experiment) if name not in before.metrics))
            after = dataclasses.replace(
                before,
                experiment=experiment,
                revision=before.revision + 1,
                version=before.version + 1,
                metrics=names,
                warm=warm,
                updated_seconds=now,
            )
            if validate_only:
                return after, False, True
            old, new = _differences(before.experiment, experiment)
            self._save(before, after, "experiment.revise", actor, reason, old, new)
            return after, False, True

        done = _retried(attempt)
        if request_id and not validate_only:
            self._requests[request_id] = experiment
            while len(self._requests) > REQUESTS_REMEMBERED:
                self._requests.popitem(last=False)
        return done

    def start(self, name: str, *, actor: str, reason: str = "") -> Record:
        """DRAFT → RUNNING, in the first stage."""
        return self._move(name, Event.STARTED, "experiment.start", actor, _why(reason, needed=False))

    def freeze(self, name: str, *, actor: str, reason: str) -> Record:
        """Everyone gets the incumbent from the return of this method on. Allowed again while frozen: the latch is renewed."""
        return self._move(name, Event.FROZEN, "experiment.freeze", actor, _why(reason))

    def resume(self, name: str, *, actor: str, reason: str) -> Record:
        """FROZEN → RUNNING, in a new activation: evidence starts again, the earlier one's stays on record, drained arms return."""
        return self._move(name, Event.RESUMED, "experiment.resume", actor, _why(reason))

    def rollback(self, name: str, *, actor: str, reason: str) -> Record:
        """End the experiment on the incumbent."""
        return self._move(name, Event.ROLLED_BACK, "experiment.rollback", actor, _why(reason))

    def conclude(self, name: str, *, actor: str, reason: str, winner: str = "") -> Record:
        """End the experiment on an arm; the incumbent when none is named."""
        record = self._registry.get(name)
        names = [arm.name for arm in record.experiment.arms]
        winner = winner or names[record.experiment.incumbent]
        if winner not in names:
            raise InvalidArgument.of_field("winner", f"got {winner!r}; one of {', '.join(names)} is allowed")
        return self._move(name, Event.CONCLUDED, "experiment.conclude", actor, _why(reason), winner)

    def approve(self, name: str, *, actor: str, reason: str = "") -> Record:
        """Agree to entering the next ramp stage. A person counts once."""
        actor, reason = _who(actor), _why(reason, needed=False)

        def attempt() -> Record:
            before = self._running(name, "approved")
            if before.status.stage + 1 >= len(before.experiment.stages):
                raise Refused(f"{before.name} is in its last stage; there is nothing to approve", reason="LAST_STAGE")
            if actor in before.status.approvers:
                return before
            status = dataclasses.replace(before.status, approvers=(*before.status.approvers, actor))
            return self._change(before, status, "stage.approve", actor, reason or f"stage {before.status.stage + 1}")

        record = _retried(attempt)
        self._planner.replan(record.uid)
        return record

    def advance(self, name: str, *, actor: str, reason: str = "", stage: int | None = None) -> Record:
        """Enter the next stage if its conditions are met, or step back to an earlier one (always allowed)."""
        actor, reason = _who(actor), _why(reason, needed=False)

        def attempt() -> Record:
            before = self._running(name, "advanced")
            stages, at = before.experiment.stages, before.status.stage
            to = at + 1 if stage is None else stage
            if not 0 <= to < len(stages):
                raise InvalidArgument.of_field("stage", f"got {to}; a stage from 0 to {len(stages) - 1} is allowed")
            if to == at:
                return before
            if to > at + 1:
                raise Refused(f"stage {to} is {to - at} steps away; one at a time is allowed", reason="STAGE_SKIPPED")
            now = self._clock.now()
            made = plan(before, self._planner.tally(before), now)
            if to > at and made.waiting_for:
                raise Refused(
                    f"stage {to} waits for: {'; '.join(made.waiting_for)}", reason="STAGE_NOT_READY", waiting_for="; ".join(made.waiting_for)
                )
            outcomes = [int(count) for count in made.learned[0].outcomes]
            status = enter_stage(before.status, to, outcomes, now)
            return self._change(before, status, "experiment.advance" if to > at else "experiment.step_back", actor, reason)

        record = _retried(attempt)
        self._replan_now(record)
        return self._registry.get(name)

    def _move(self, name: str, event: Event, action: str, actor: str, reason: str, winner: str = "") -> Record:
        actor = _who(actor)

        def attempt() -> Record:
            before = self._registry.get(name)
            status = step(before.status, event, reason=reason, now=self._clock.now(), winner=winner)
            return self._change(before, status, action, actor, reason)

        record = _retried(attempt)
        if event in (Event.STARTED, Event.RESUMED):
            self._replan_now(record)
            return self._registry.get(name)
        return record

    def _change(self, before: Record, status: Status, action: str, actor: str, reason: str) -> Record:
        resumed = status.activation != before.status.activation
        past = before.past_evidence
        if resumed:
            now = self._clock.now()
            past = (*past, *closed_evidence(before, self._planner.tally(before), now))
        after = dataclasses.replace(
            before,
            version=before.version + 1,
            status=status,
            evidence=() if resumed else before.evidence,
            past_evidence=past,
            updated_seconds=self._clock.now(),
        )
        self._save(before, after, action, actor, reason, _status_text(before.status), _status_text(status))
        return after

    def _save(self, before: Record | None, after: Record, action: str, actor: str, reason: str, old: str, new: str) -> None:
        entry = AuditEntry(after.updated_seconds, actor, action, after.name, reason, old, new)
        error = self._registry.write([Save(after, None if before is None else before.version, (entry,))])[0]
        if error is not None:
            raise error
        self._planner.replan(after.uid)

    def _replan_now(self, record: Record) -> None:
        """Have the first weights out before the command returns."""
        self._planner.replan(record.uid)
        self._planner.tick()

    def _running(self, name: str, what: str) -> Record:
        record = self._registry.get(name)
        if record.status.state is not State.RUNNING:
            raise Refused(f"{record.name} is {record.status.state.value} and cannot be {what}", reason="WRONG_STATE", state=record.status.state.value)
        return record

    def _warm(self, experiment: Experiment) -> tuple[tuple[float, float, float], ...]:
        """Sums of the earlier experiment for each arm of the same name, in counted units."""
        warm = experiment.reward.warm_start
        if warm is None:
            return ()
        path = "spec.reward.warmStart.experiment"
        try:
            earlier = self._registry.get(full_name(warm.experiment))
        except NotFound as exc:
            raise InvalidArgument.of_field(path, f"got {warm.experiment!r}, which does not exist") from exc
        theirs, ours = earlier.experiment.reward, experiment.reward
        same = (theirs.model, theirs.goal) == (ours.model, ours.goal)
        if not same or (ours.model is RewardModel.GAUSSIAN and (theirs.low, theirs.upper) != (ours.low, ours.upper)):
            raise InvalidArgument.of_field(path, f"got {warm.experiment!r}, whose reward is of another model, goal or range")
        found = self._planner.tally(earlier)
        learned = _total(found)
        index = {arm.name: i for i, arm in enumerate(earlier.experiment.arms)}
        return tuple(learned[index[arm.name]] if arm.name in index else (0.0, 0.0, 0.0) for arm in experiment.arms)


def check_revision(before: Record, after: Experiment) -> None:
    """May a record's spec become `after`? Raises Refused when it has ended, InvalidArgument with every field that may not change."""
    state, old = before.status.state, before.experiment
    if state in (State.ROLLED_BACK, State.CONCLUDED):
        raise Refused(
            f"{before.name} is {state.value} and cannot be revised; apply it under another name", reason="WRONG_STATE", state=state.value
        )
    if state is State.DRAFT:
        return
    found = []
    why = "cannot change once the experiment has started; apply a new experiment under another name"
    for index, arm in enumerate(old.arms):
        if index >= len(after.arms) or after.arms[index] != arm:
            got = after.arms[index].name if index < len(after.arms) else "nothing"
            found.append(Violation(f"spec.arms[{index}]", f"got {got} for {arm.name}: name, order, incumbent and modelUri {why}; arms may be added at the end"))
    if after.segments != old.segments:
        found.append(Violation("spec.segments", f"got others: they {why}"))
    for path, a, b in (
        ("spec.reward", dataclasses.replace(old.reward, warm_start=None), dataclasses.replace(after.reward, warm_start=None)),
        ("spec.reward.warmStart", old.reward.warm_start, after.reward.warm_start),
        ("spec.assignment", old.assignment, after.assignment),
        ("spec.policy.halfLife", old.policy.half_life_seconds, after.policy.half_life_seconds),
        ("spec.policy.weights", old.policy.pooling, after.policy.pooling),
        ("spec.bucket", old.bucket_seconds, after.bucket_seconds),
        ("spec.unitContribution", old.unit_contribution, after.unit_contribution),
    ):
        if a != b:
            found.append(Violation(path, f"got another value than the running one: it {why}"))
    a, b = old.exposure, after.exposure
    counted = a.budget.requests is not None or a.budget.loss is not None
    for path, kept, value in (
        ("budget.requests", counted, b.budget.requests),
        ("budget.loss", counted, b.budget.loss),
        ("budget.units", a.budget.units is not None, b.budget.units),
        ("maxLoss", a.max_loss is not None, b.max_loss),
    ):
        if value is not None and not kept:
            found.append(
                Violation(
                    f"spec.exposure.{path}",
                    f"got {value}, and the experiment began without: what candidates received since was not held against it. It can change"
                    " or go, but not come; apply a new experiment under another name",
                )
            )
    if before.status.stage >= len(after.stages):
        found.append(Violation("spec.ramp", f"got {len(after.stages)} stages, and the experiment is in stage {before.status.stage}"))
    if found:
        raise InvalidArgument(
            f"{before.name} is {state.value}; {len(found)} field{'s' if len(found) > 1 else ''} cannot be revised",
            violations=found,
            reason="CANNOT_REVISE",
        )


def _retried(attempt: Callable[[], T]) -> T:
    for _ in range(TRIES - 1):
        try:
            return attempt()
        except Conflict as error:
            if error.reason == "STALE_ETAG":
                raise
    return attempt()


def _total(found: Tally) -> list[tuple[float, float, float]]:
    open_now, settled = sums_of(found.open, REWARD_STREAM), sums_of(found.settled, REWARD_STREAM)
    both = zip(
        open_now.count + settled.count, open_now.total + settled.total, open_now.squares + settled.squares, strict=True
    )
    return [(float(count), float(total), float(squares)) for count, total, squares in both]


def _who(actor: str) -> str:
    if not 1 <= len(actor) <= MAX_ACTOR or not actor.isprintable():
        raise InvalidArgument.of_field("actor", f"got {actor[:40]!r}; 1 to {MAX_ACTOR} printable characters are allowed")
    return actor


def _why(reason: str, *, needed: bool = True) -> str:
    reason = reason.strip()
    if needed and not reason:
        raise InvalidArgument.of_field("reason", "got nothing; say why, it goes to the audit")
    if len(reason) > MAX_REASON:
        raise InvalidArgument.of_field("reason", f"got {len(reason)} characters; at most {MAX_REASON} are allowed")
    return reason


def _status_text(status: Status) -> str:
    return json.dumps({"state": status.state.value, "stage": status.stage, "activation": status.activation, "winner": status.winner})


def _document(experiment: Experiment) -> str:
    return json.dumps(dataclasses.asdict(experiment), default=_plain, sort_keys=True)


def _differences(before: Experiment, after: Experiment) -> tuple[str, str]:
    """The fields that differ, as JSON, before and after."""
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    names = [name for name in old if old[name] != new[name]]
    return tuple(json.dumps({name: values[name] for name in names}, default=_plain, sort_keys=True) for values in (old, new))  # type: ignore[return-value]


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no JSON form")
