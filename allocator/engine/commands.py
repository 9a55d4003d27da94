"""An operator's command → lifecycle → store with its audit record, in one step, and in force when the method returns.

In: names, who, why. Out: the record as it now is. Making things safer is always allowed; what makes them riskier asks for the right
state and the evidence, and where the spec says so for approvals: then the command becomes the record's `proposal`, and `agree` of
the last person needed carries it out. Break-glass carries it out at once, and says so loudly. A reason is asked for where somebody
will look for one: to freeze, resume, roll back, conclude, reject, and for break-glass. Every command is refused whole or carried out whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence

import structlog

from allocator.core import approval
from allocator.core.approval import Proposal, ProposalKind
from allocator.core.audit import AuditEntry
from allocator.core.experiment import Experiment, RewardModel
from allocator.core.experiment_rules import check
from allocator.core.lifecycle import Event, StageApproval, State, Status, step
from allocator.core.outcome import metric_names
from allocator.core.plan import closed_evidence, enter_stage, plan
from allocator.core.record import Record
from allocator.core.revision import differences, spec_digest
from allocator.core.risk import riskier
from allocator.core.snapshot import full_name
from allocator.core.statistics import sums_of
from allocator.core.tally import REWARD_STREAM, Tally
from allocator.engine.asked import retried, status_text, who, why
from allocator.engine.history import revision_text
from allocator.engine.keeper import Keeper, Reconciled
from allocator.engine.planner import Planner
from allocator.engine.registry import Registry
from allocator.engine.revision import check_revision
from allocator.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, Overloaded, Refused, Unavailable
from allocator.ports import Clock, Entropy, Save

MAX_NOTE = 10_000
BREAK_GLASS = "break_glass."  # before the action, in the audit
REQUESTS_REMEMBERED = 10_000
Warm = tuple[tuple[float, float, float], ...]

log = structlog.get_logger()


class Commands:
    """What people and pipelines may do. `actor` is who, `reason` is why; both go to the audit.

    identified: actors are who they say, because access is controlled. least_approvals: asked for by every experiment, whatever its spec
    says. broken_glass: called after each use of break-glass.
    """

    def __init__(self, registry: Registry, planner: Planner, keeper: Keeper, clock: Clock, entropy: Entropy) -> None:
        self._registry = registry
        self._planner = planner
        self._keeper = keeper
        self._clock = clock
        self._entropy = entropy
        self._requests: OrderedDict[str, Experiment] = OrderedDict()
        self.identified = False
        self.least_approvals = 0
        self.broken_glass: Callable[[], None] = lambda: None

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
        break_glass: bool = False,
    ) -> tuple[Record, bool, bool]:
        """Create the experiment in DRAFT or revise it: (record, created, changed).

        A revision of a started experiment that makes anything riskier waits for the approvals that its spec asks for: the record comes
        back as it is, unchanged, with the revision as its `proposal`. A draft serves nobody, so it is revised freely.
        Raises InvalidArgument with every violation, Conflict when `etag` is not the current one, Refused when it has ended,
        AlreadyExists when `request_id` came before with other content.
        """
        check(experiment)
        actor, reason = who(actor), why(reason, needed=break_glass)
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
                    author=actor,
                )
                if validate_only:
                    return after, True, True
                self._save(None, after, self._entry(after, "experiment.create", actor, reason, "", revision_text(after)))
                return after, True, True
            if before.experiment == experiment:
                return before, False, False
            check_revision(before, experiment)
            risks = () if before.status.state is State.DRAFT else tuple(riskier(before.experiment, experiment, before.status.stage))
            waits = bool(risks and self._required(before.experiment))
            if waits and not break_glass:
                found = self._proposed(
                    before, ProposalKind.REVISE, risks, actor, reason, now, experiment=experiment, save=not validate_only
                )
                return found, False, False
            after = self._revised(before, experiment, warm, actor, now)
            if validate_only:
                return after, False, True
            self._revise(before, after, BREAK_GLASS if waits else "", actor, reason)
            return after, False, True

        done = retried(attempt)
        if request_id and not validate_only:
            self._requests[request_id] = experiment
            while len(self._requests) > REQUESTS_REMEMBERED:
                self._requests.popitem(last=False)
        return done

    def start(self, name: str, *, actor: str, reason: str = "", break_glass: bool = False) -> Record:
        """DRAFT → RUNNING, in the first stage. May wait for approvals: then the record comes back in DRAFT, with its `proposal`."""
        return self._ask(name, ProposalKind.START, Event.STARTED, "experiment.start", actor, why(reason, needed=break_glass), break_glass)

    def freeze(self, name: str, *, actor: str, reason: str) -> Record:
        """Everyone gets the incumbent from the return of this method on. Allowed again while frozen: the latch is renewed.

        A store that cannot take it, or is lost, is no obstacle: the freeze is in force here and remembered on this server's disk, and
        stored when that is possible; the record's reason says so. Raises Unavailable, FREEZE_NOT_KEPT, when the disk cannot remember
        it, with the store or without: it is in force here all the same.
        """
        actor, reason = who(actor), why(reason)
        if not self._keeper.lost:
            try:
                record = self._move(name, Event.FROZEN, "experiment.freeze", actor, reason)
            except (Unavailable, Overloaded) as error:
                trouble = f"the store could not take it: {error.reason}"
            else:
                self._keeper.refuse_unkept(record)
                return record
        else:
            trouble = "the store is lost"
        record = self._keeper.freeze(self._registry.get(name), actor, reason, trouble)
        self._planner.replan(record.uid)
        return record

    def resume(self, name: str, *, actor: str, reason: str, break_glass: bool = False) -> Record:
        """FROZEN → RUNNING, in a new activation: evidence starts again, the earlier one's stays on record, drained arms return.

        May wait for approvals: then the record comes back FROZEN, with its `proposal`.
        """
        return self._ask(name, ProposalKind.RESUME, Event.RESUMED, "experiment.resume", actor, why(reason), break_glass)

    def reconcile(self, *, actor: str, reason: str, force: bool = False) -> Reconciled:
        """Write what this server knows back into a store that had lost it, and go on: see `Keeper.reconcile`. Raises Refused."""
        actor, reason = who(actor), why(reason)
        with self._planner.paused():
            return self._keeper.reconcile(actor, reason, force=force)

    def rollback(self, name: str, *, actor: str, reason: str) -> Record:
        """End the experiment on the incumbent."""
        return self._move(name, Event.ROLLED_BACK, "experiment.rollback", actor, why(reason))

    def conclude(self, name: str, *, actor: str, reason: str, winner: str = "", break_glass: bool = False) -> Record:
        """End the experiment on an arm; the incumbent when none is named. On a candidate it may wait for approvals, as `resume` may."""
        record = self._registry.get(name)
        names = [arm.name for arm in record.experiment.arms]
        incumbent = names[record.experiment.incumbent]
        winner = winner or incumbent
        if winner not in names:
            raise InvalidArgument.of_field("winner", f"got {winner!r}; one of {', '.join(names)} is allowed")
        if winner == incumbent:
            return self._move(name, Event.CONCLUDED, "experiment.conclude", actor, why(reason), winner)
        return self._ask(name, ProposalKind.CONCLUDE, Event.CONCLUDED, "experiment.conclude", actor, why(reason), break_glass, winner)

    def approve(self, name: str, *, actor: str, reason: str = "", revision: str = "") -> Record:
        """Agree to entering the next ramp stage. A person counts once. Where actors are identified, not who wrote the present revision.

        The approval is void after any revision, and expires as the spec's `approval.expiry` says; given again, it begins anew.
        revision: digest of the spec that was seen, or at least its first 12 digits. Raises Refused when another one is in force.
        """
        actor, reason = who(actor), why(reason, needed=False)

        def attempt() -> Record:
            before = self._registry.get(name)
            waiting, last = before.proposal, before.status.stage + 1 >= len(before.experiment.stages)
            if (last or before.status.state is not State.RUNNING) and waiting is not None and self._still(before, waiting):
                what = f"what waits is a proposal, {waiting.digest[: approval.LEAST_DIGITS]}"
                raise Refused(f"{before.name} has no stage to approve; {what}", reason="PROPOSAL_WAITS", revision=waiting.digest)
            before = self._running(name, "approved")
            if last:
                raise Refused(f"{before.name} is in its last stage; there is nothing to approve", reason="LAST_STAGE")
            if self.identified and actor == before.author:
                raise Refused(f"{actor} wrote revision {before.revision}; somebody else must agree", reason="SELF_APPROVAL", actor=actor)
            if revision and not self.in_force(before, revision):
                raise Refused(
                    f"revision {before.revision} is in force, and it is not the one you saw: look again",
                    reason="REVISION_CHANGED",
                    revision=revision[:64],
                )
            others = tuple(given for given in before.status.approvals if given.actor != actor)
            status = dataclasses.replace(before.status, approvals=(*others, StageApproval(actor, self._clock.now())))
            return self._change(before, status, "stage.approve", actor, reason or f"stage {before.status.stage + 1}")

        record = retried(attempt)
        self._planner.replan(record.uid)
        return record

    def in_force(self, record: Record, revision: str) -> bool:
        """Does `revision`, at least 12 digits of a digest, name the spec in force?"""
        return len(revision) >= approval.LEAST_DIGITS and spec_digest(record.experiment).startswith(revision.lower())

    def agree(self, name: str, *, revision: str, actor: str, reason: str = "") -> Record:
        """Agree to the pending proposal that `revision` names, its digest; the last person needed carries it out.

        Raises Refused for its author, and when it is void or has expired; NotFound when another proposal waits, or none.
        """
        actor, reason = who(actor), why(reason, needed=False)

        def attempt() -> Record:
            before, now = self._registry.get(name), self._clock.now()
            waiting = approval.named(before.proposal, revision, before.revision, before.status, now)
            found = approval.agreed(waiting, actor)
            if found is waiting and not found.complete:
                return before
            agreement = self._entry(before, "proposal.approve", actor, reason, "", approval.text_of(found), now)
            if found.complete:
                return self._carry_out(dataclasses.replace(before, proposal=found), found, agreement, now)
            after = dataclasses.replace(before, version=before.version + 1, proposal=found, updated_seconds=now)
            self._save(before, after, agreement)
            return after

        record = retried(attempt)
        if record.status.state is State.RUNNING:
            self._replan_now(record)
        return self._registry.get(name)

    def reject(self, name: str, *, revision: str, actor: str, reason: str) -> Record:
        """End the pending proposal without carrying it out. Its author may, and so may anybody who may author, operate or approve."""
        actor, reason = who(actor), why(reason)

        def attempt() -> Record:
            before, now = self._registry.get(name), self._clock.now()
            found = approval.named(before.proposal, revision, before.revision, before.status, now)
            after = dataclasses.replace(before, version=before.version + 1, proposal=None, updated_seconds=now)
            self._save(before, after, self._entry(after, "proposal.reject", actor, reason, approval.text_of(found), ""))
            return after

        return retried(attempt)

    def annotate(self, name: str, *, actor: str, text: str) -> Record:
        """Attach a note, also to an experiment that has ended. It is in the audit log and in what `describe` tells, for good."""
        actor, text = who(actor), text.strip()
        if not 1 <= len(text) <= MAX_NOTE:
            raise InvalidArgument.of_field("text", f"got {len(text)} characters; 1 to {MAX_NOTE} are allowed")

        def attempt() -> Record:
            before = self._registry.get(name)
            after = dataclasses.replace(before, version=before.version + 1, updated_seconds=self._clock.now())
            self._save(before, after, self._entry(after, "experiment.note", actor, "", "", text))
            return after

        return retried(attempt)

    def advance(self, name: str, *, actor: str, reason: str = "", stage: int | None = None) -> Record:
        """Enter the next stage if its conditions are met, or step back to an earlier one (always allowed)."""
        actor, reason = who(actor), why(reason, needed=False)

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
                missing = "; ".join(made.waiting_for)
                raise Refused(f"stage {to} waits for: {missing}", reason="STAGE_NOT_READY", waiting_for=missing)
            outcomes = [int(count) for count in made.learned[0].outcomes]
            status = enter_stage(before.status, to, outcomes, now)
            return self._change(before, status, "experiment.advance" if to > at else "experiment.step_back", actor, reason)

        record = retried(attempt)
        self._replan_now(record)
        return self._registry.get(name)

    def _ask(
        self, name: str, kind: ProposalKind, event: Event, action: str, actor: str, reason: str, break_glass: bool, winner: str = ""
    ) -> Record:
        """Move, or propose to move where the spec asks for approvals."""
        actor, waits = who(actor), False

        def attempt() -> Record:
            nonlocal waits
            before, now = self._registry.get(name), self._clock.now()
            step(before.status, event, reason=reason, now=now, winner=winner)  # raises where it could not be carried out either
            waits = self._required(before.experiment) > 0
            if not waits or break_glass:
                return before
            return self._proposed(before, kind, (approval.risk_of(kind, winner),), actor, reason, now, winner=winner)

        record = retried(attempt)
        if waits and not break_glass:
            return record
        return self._move(name, event, (BREAK_GLASS if waits else "") + action, actor, reason, winner)

    def _move(self, name: str, event: Event, action: str, actor: str, reason: str, winner: str = "") -> Record:
        actor = who(actor)

        def attempt() -> Record:
            before = self._registry.get(name)
            status = step(before.status, event, reason=reason, now=self._clock.now(), winner=winner)
            return self._change(before, status, action, actor, reason)

        record = retried(attempt)
        if event in (Event.STARTED, Event.RESUMED):
            self._replan_now(record)
            return self._registry.get(name)
        return record

    def _proposed(
        self,
        before: Record,
        kind: ProposalKind,
        risks: tuple[str, ...],
        actor: str,
        reason: str,
        now: float,
        *,
        experiment: Experiment | None = None,
        winner: str = "",
        save: bool = True,
    ) -> Record:
        """The record with this as its proposal; one that waits already keeps its approvals."""
        waiting = before.proposal
        if waiting is not None and approval.is_this(waiting, kind, experiment, winner, before.revision, before.status, now):
            return before
        made = approval.propose(
            before.uid,
            kind,
            before.revision,
            before.status,
            risks,
            required=self._required(before.experiment),
            expiry_seconds=before.experiment.approval.expiry_seconds,
            author=actor,
            reason=reason,
            now=now,
            experiment=experiment,
            winner=winner,
        )
        after = dataclasses.replace(before, version=before.version + 1, proposal=made, updated_seconds=now)
        if save:
            old = approval.text_of(waiting) if waiting is not None else ""
            self._save(before, after, self._entry(after, "proposal.create", actor, reason, old, approval.text_of(made)))
        return after

    def _still(self, record: Record, waiting: Proposal) -> bool:
        return approval.still(waiting, record.revision, record.status, self._clock.now())

    def _required(self, experiment: Experiment) -> int:
        return max(experiment.approval.required, self.least_approvals)

    def _carry_out(self, before: Record, done: Proposal, agreement: AuditEntry, now: float) -> Record:
        """What enough people agreed to, as its author's act."""
        if done.kind is ProposalKind.REVISE:
            assert done.experiment is not None
            check_revision(before, done.experiment)
            after = self._revised(before, done.experiment, self._warm(done.experiment), done.author, now)
            self._revise(before, after, "", done.author, done.reason, (agreement,), done.approvers)
            return after
        event, action = _MOVES[done.kind]
        status = step(before.status, event, reason=done.reason, now=now, winner=done.winner)
        return self._change(before, status, action, done.author, done.reason, (agreement,))

    def _revised(self, before: Record, experiment: Experiment, warm: Warm, author: str, now: float) -> Record:
        names = (*before.metrics, *(name for name in metric_names(experiment) if name not in before.metrics))
        return dataclasses.replace(
            before,
            experiment=experiment,
            status=dataclasses.replace(before.status, approvals=()),  # nobody agreed to a stage of this one yet
            revision=before.revision + 1,
            version=before.version + 1,
            metrics=names,
            warm=warm,
            updated_seconds=now,
            author=author,
            proposal=None,
        )

    def _revise(
        self,
        before: Record,
        after: Record,
        prefix: str,
        actor: str,
        reason: str,
        first: tuple[AuditEntry, ...] = (),
        approvers: Sequence[str] = (),
    ) -> None:
        old = json.dumps(differences(before.experiment, after.experiment))
        entry = self._entry(after, f"{prefix}experiment.revise", actor, reason, old, revision_text(after, approvers))
        self._save(before, after, *first, entry)

    def _change(
        self, before: Record, status: Status, action: str, actor: str, reason: str, first: tuple[AuditEntry, ...] = ()
    ) -> Record:
        resumed = status.activation != before.status.activation
        past = before.past_evidence
        if resumed:
            now = self._clock.now()
            past = (*past, *closed_evidence(before, self._planner.tally(before), now))
        carried_out = bool(first)
        proposal = before.proposal
        if proposal is not None and (carried_out or not approval.fits(proposal, before.revision, status)):
            proposal = None
        after = dataclasses.replace(
            before,
            version=before.version + 1,
            status=status,
            evidence=() if resumed else before.evidence,
            past_evidence=past,
            updated_seconds=self._clock.now(),
            proposal=proposal,
        )
        text = status_text(status, before.proposal.approvers if carried_out and before.proposal is not None else ())
        self._save(before, after, *first, self._entry(after, action, actor, reason, status_text(before.status), text))
        return after

    def _entry(self, record: Record, action: str, actor: str, reason: str, old: str, new: str, now: float | None = None) -> AuditEntry:
        return AuditEntry(record.updated_seconds if now is None else now, actor, action, record.name, reason, old, new)

    def _save(self, before: Record | None, after: Record, *entries: AuditEntry) -> None:
        self._keeper.refuse_if_lost()
        error = self._registry.write([Save(after, None if before is None else before.version, entries)])[0]
        if error is not None:
            raise error
        for entry in entries:
            if entry.action.startswith(BREAK_GLASS):
                log.error("break_glass", actor=entry.actor, action=entry.action, experiment=entry.experiment, reason=entry.reason)
                self.broken_glass()
            else:
                log.info(entry.action, actor=entry.actor, experiment=entry.experiment, reason=entry.reason, version=after.version)
        self._planner.replan(after.uid)

    def _replan_now(self, record: Record) -> None:
        """Have the first weights out before the command returns, where this server plans; elsewhere its planner hears of it."""
        self._planner.replan(record.uid)
        try:
            self._planner.tick()
        except (Unavailable, Overloaded) as error:
            log.warning("planner.failed", reason=error.reason, error=error.message, experiment=record.name)

    def _running(self, name: str, what: str) -> Record:
        record = self._registry.get(name)
        if record.status.state is not State.RUNNING:
            state = record.status.state.value
            raise Refused(f"{record.name} is {state} and cannot be {what}", reason="WRONG_STATE", state=state)
        return record

    def _warm(self, experiment: Experiment) -> Warm:
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


def _total(found: Tally) -> list[tuple[float, float, float]]:
    open_now, settled = sums_of(found.open, REWARD_STREAM), sums_of(found.settled, REWARD_STREAM)
    both = zip(
        open_now.count + settled.count, open_now.total + settled.total, open_now.squares + settled.squares, strict=True
    )
    return [(float(count), float(total), float(squares)) for count, total, squares in both]


_MOVES = {
    ProposalKind.START: (Event.STARTED, "experiment.start"),
    ProposalKind.RESUME: (Event.RESUMED, "experiment.resume"),
    ProposalKind.CONCLUDE: (Event.CONCLUDED, "experiment.conclude"),
}
