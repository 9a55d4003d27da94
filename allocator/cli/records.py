"""What the log of an experiment has to tell, in words: proposals, revisions, annotations, tokens.

In: messages. Out: lines and grids for `output.draw`. Everything here was written by people, so every text is cleaned before it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from allocator.cli.failures import clean
from allocator.cli.output import Column, Grid

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from allocator.v1 import allocator_pb2 as pb

DIGITS = 12  # of a digest, as people type it
BREAK_GLASS = "break_glass."
KINDS = {1: "revision", 2: "start", 3: "resume", 4: "conclusion"}


def waits_for(e: pb.Experiment) -> str:
    """A command's answer where it became a proposal, with the command that agrees to it."""
    from allocator.cli.tables import full_name

    p = e.status.proposal
    more = p.required - len(p.approvers)
    return (
        f"unchanged: the {KINDS[p.kind]} waits for {more} approval{'s' if more > 1 else ''} by other people;"
        f" allocator approve {full_name(e)} --revision {p.digest[:DIGITS]}"
    )


def proposal_lines(p: pb.Proposal) -> list[tuple[str, str]]:
    """A pending proposal as facts: label and text."""
    people = ", ".join(p.approvers) or "nobody yet"
    found = [
        ("proposal", f"{p.digest[:DIGITS]}, a {KINDS[p.kind]} by {p.author}{f': {p.reason}' if p.reason else ''}"),
        ("", f"approved by {people}, {p.required} needed, until {moment(p.expire_time)}"),
    ]
    return [*found, *(("riskier" if index == 0 else "", risk) for index, risk in enumerate(p.risks))]


def annotation_lines(found: Iterable[pb.Annotation]) -> list[str]:
    """What people wrote down: when, who, what."""
    return [f"{moment(a.time)}  {a.actor}  {_said(a.action)}: {a.text or '-'}" for a in found]


def revisions(found: Sequence[pb.Revision], *, wide: bool = False) -> Grid:
    """A row for each revision. wide: digests whole, and the audit records that hold them."""
    columns = (
        Column("revision", right=True),
        Column("time"),
        Column("author"),
        Column("approved by"),
        Column("digest"),
        Column("reason", text=True),
        Column("changes", text=True),
        *((Column("audit record", right=True),) if wide else ()),
    )
    rows = [
        (
            str(r.revision),
            moment(r.time),
            r.author,
            ", ".join(r.approvers) or "-",
            r.digest if wide else r.digest[:DIGITS],
            r.reason or "-",
            "; ".join(r.changes) or "-",
            *((str(r.sequence),) if wide else ()),
        )
        for r in found
    ]
    return Grid(columns, rows)


def tokens(found: Sequence[pb.Token], *, wide: bool = False) -> Grid:
    """A row for each token. wide: how many calls a second it is good for, too."""
    columns = (
        Column("id"),
        Column("principal"),
        Column("roles"),
        Column("namespaces"),
        Column("created"),
        Column("expires"),
        Column("by"),
        *((Column("decide/s", right=True), Column("report/s", right=True)) if wide else ()),
    )
    rows = [
        (
            t.id,
            t.principal,
            ",".join(map(role, t.roles)),
            ",".join(t.namespaces),
            moment(t.create_time),
            moment(t.expire_time),
            t.creator or "-",
            *((f"{t.decide_rate:g}", f"{t.report_rate:g}") if wide else ()),
        )
        for t in found
    ]
    return Grid(columns, rows)


def role(number: int) -> str:
    """A role in small letters."""
    from allocator.v1 import allocator_pb2 as pb

    return pb.Role.Name(number).removeprefix("ROLE_").lower()


def moment(stamp: Timestamp) -> str:
    """A time to the second, UTC."""
    return stamp.ToDatetime().strftime("%Y-%m-%dT%H:%M:%SZ")


def _said(action: str) -> str:
    loud = "BREAK GLASS, " if action.startswith(BREAK_GLASS) else ""
    return clean(loud + action.removeprefix(BREAK_GLASS).removeprefix("experiment."))
