"""Revisions, annotations and tokens as messages."""

from __future__ import annotations

from allocator.core.revision import Annotation, Revision
from allocator.core.token import Role, Token
from allocator.errors import InvalidArgument
from allocator.v1 import allocator_pb2 as pb
from allocator.wire.enums import from_number, to_number
from allocator.wire.scalars import seconds_since_epoch, timestamp


def revision_to_message(r: Revision) -> pb.Revision:
    """A revision, without its spec."""
    return pb.Revision(
        revision=r.number,
        time=timestamp(r.seconds),
        author=r.author,
        reason=r.reason,
        approvers=r.approvers,
        digest=r.digest,
        changes=r.changes,
        sequence=r.sequence,
    )


def annotation_to_message(a: Annotation) -> pb.Annotation:
    """What a person wrote down."""
    return pb.Annotation(time=timestamp(a.seconds), actor=a.actor, action=a.action, text=a.text)


def token_to_message(t: Token) -> pb.Token:
    """What may be told of a token: all but its digest."""
    return pb.Token(
        id=t.id,
        principal=t.principal,
        roles=[to_number(role) for role in t.roles],
        namespaces=t.namespaces,
        create_time=timestamp(t.seconds),
        expire_time=timestamp(t.expires_seconds),
        creator=t.creator,
        decide_rate=t.decide_rate,
        report_rate=t.report_rate,
    )


def token_from_message(message: pb.Token, digest: bytes) -> Token:
    """A token as it was told to somebody who knew its digest. Roles that this version does not know allow nothing here."""
    known = {number for number in pb.Role.values() if number}
    return Token(
        id=message.id,
        principal=message.principal,
        roles=roles_from_numbers([number for number in message.roles if number in known]),
        namespaces=tuple(message.namespaces),
        digest=digest.hex(),
        seconds=seconds_since_epoch(message.create_time),
        expires_seconds=seconds_since_epoch(message.expire_time),
        creator=message.creator,
        decide_rate=message.decide_rate,
        report_rate=message.report_rate,
    )


def roles_from_numbers(numbers: list[int]) -> tuple[Role, ...]:
    """Roles by their wire numbers. Raises InvalidArgument for one that this version does not know."""
    try:
        return tuple(from_number(Role, number, Role.VIEW) for number in numbers if number)
    except KeyError as exc:
        raise InvalidArgument.of_field("roles", f"got {exc}, which this version does not know") from exc
