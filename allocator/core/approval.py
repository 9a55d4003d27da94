"""Proposals: a riskier change waits until enough people other than its author have agreed to exactly that.

In: what is proposed, by whom, and where the experiment stands. Out: a `Proposal`, the same with one more approver, or why it no longer
holds. Its digest covers the change and everything that it was made from, so an agreement to one revision cannot be used on another: any
change of the experiment that would make it something else voids it, and so does time. What is proposed travels inside the record and is
saved with it, so a proposal and what became of it are never apart; a separate list of proposals was dropped for that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from enum import Enum

from allocator.core.experiment import Experiment
from allocator.core.lifecycle import State, Status
from allocator.core.revision import document
from allocator.errors import InvalidArgument, NotFound, Refused

LEAST_DIGITS = 12  # of a digest, to name a proposal


class ProposalKind(Enum):
    REVISE = "REVISE"
    START = "START"
    RESUME = "RESUME"
    CONCLUDE = "CONCLUDE"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change that waits. made_from: what it changes, see `standing`. required: approvals by others.

    experiment: of a REVISE, the whole spec as it would be. winner: of a CONCLUDE.
    """

    kind: ProposalKind
    digest: str
    author: str
    reason: str
    seconds: float
    expires_seconds: float
    required: int
    risks: tuple[str, ...]
    made_from: tuple[int, ...]
    experiment: Experiment | None = None
    winner: str = ""
    approvers: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Have enough people agreed?"""
        return len(self.approvers) >= self.required


def standing(kind: ProposalKind, revision: int, status: Status) -> tuple[int, ...]:
    """What a proposal of this kind was made from: when it differs later, the proposal is void.

    A revision is made from a revision; the rest also from where the experiment stood. A freeze renewed meanwhile voids a resume.
    """
    if kind is ProposalKind.REVISE:
        return (revision,)
    return (revision, status.activation, status.freeze_epoch, int(status.state is State.DRAFT))


def propose(
    uid: str,
    kind: ProposalKind,
    revision: int,
    status: Status,
    risks: tuple[str, ...],
    *,
    required: int,
    expiry_seconds: float,
    author: str,
    reason: str,
    now: float,
    experiment: Experiment | None = None,
    winner: str = "",
) -> Proposal:
    """A proposal that nobody has agreed to yet. now: seconds since the epoch."""
    made_from = standing(kind, revision, status)
    parts = [uid, kind.value, list(made_from), now, author, winner, "" if experiment is None else document(experiment)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return Proposal(kind, digest, author, reason, now, now + expiry_seconds, required, risks, made_from, experiment, winner)


def fits(proposal: Proposal, revision: int, status: Status) -> bool:
    """Is the experiment still what the proposal was made from?"""
    if status.state in (State.ROLLED_BACK, State.CONCLUDED):
        return False
    return proposal.made_from == standing(proposal.kind, revision, status)


def is_this(
    proposal: Proposal, kind: ProposalKind, experiment: Experiment | None, winner: str, revision: int, status: Status, now: float
) -> bool:
    """Does somebody propose what waits already, and still may?"""
    alike = (proposal.kind, proposal.experiment, proposal.winner) == (kind, experiment, winner)
    return alike and still(proposal, revision, status, now)


def still(proposal: Proposal, revision: int, status: Status, now: float) -> bool:
    """May it be agreed to: has it neither expired nor become void?"""
    return now < proposal.expires_seconds and fits(proposal, revision, status)


def named(proposal: Proposal | None, digest: str, revision: int, status: Status, now: float) -> Proposal:
    """The pending proposal that `digest` (or at least its first 12 digits) names.

    Raises InvalidArgument for fewer digits, NotFound for another proposal or none, Refused when it is void or has expired.
    """
    if len(digest) < LEAST_DIGITS:
        raise InvalidArgument.of_field(
            "revision", f"got {digest!r}; a proposal's digest, at least its first {LEAST_DIGITS} digits, is allowed"
        )
    if proposal is None or not proposal.digest.startswith(digest.lower()):
        raise NotFound(
            "no such proposal waits: it was replaced, carried out or rejected; `allocator describe` shows the one that waits",
            reason="UNKNOWN_PROPOSAL",
            revision=digest[:64],
        )
    if not fits(proposal, revision, status):
        raise Refused("the experiment has changed since this was proposed, so it is void: propose it again", reason="PROPOSAL_VOID")
    if now >= proposal.expires_seconds:
        raise Refused("the proposal has expired: propose it again", reason="PROPOSAL_EXPIRED")
    return proposal


def agreed(proposal: Proposal, actor: str) -> Proposal:
    """The proposal with one more approver; a person counts once. Raises Refused for its author."""
    if actor == proposal.author:
        raise Refused(f"{actor} proposed this, and somebody else must agree", reason="SELF_APPROVAL", actor=actor)
    if actor in proposal.approvers:
        return proposal
    return dataclasses.replace(proposal, approvers=(*proposal.approvers, actor))


def risk_of(kind: ProposalKind, winner: str) -> str:
    """What becomes riskier by a move, in a sentence."""
    if kind is ProposalKind.CONCLUDE:
        return f"{winner} serves everyone"
    return "candidates begin to serve" if kind is ProposalKind.START else "candidates serve again"


def text_of(proposal: Proposal) -> str:
    """A proposal as JSON, for the audit: all that an approver agrees to."""
    return json.dumps(
        {
            "digest": proposal.digest,
            "kind": proposal.kind.value,
            "author": proposal.author,
            "required": proposal.required,
            "approvers": proposal.approvers,
            "risks": proposal.risks,
            "winner": proposal.winner,
            "spec": None if proposal.experiment is None else json.loads(document(proposal.experiment)),
        }
    )
