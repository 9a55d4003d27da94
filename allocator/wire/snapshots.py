"""Decisions and rows of the snapshot ↔ messages. Loads neither numpy nor the rest of the core: the client lives on this."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache

from google.protobuf.struct_pb2 import ListValue

from allocator.core.decision import Decision, Reason
from allocator.core.decision_id import LENGTH
from allocator.core.lifecycle import State
from allocator.core.snapshot import Entry, Table
from allocator.v1 import allocator_pb2 as pb
from allocator.wire.enums import from_number, to_number
from allocator.wire.scalars import duration, fill_match, match_from_message, seconds_of

DOUBLE = struct.Struct("<d")


def decide_response_around(decision: Decision) -> tuple[bytes, bytes]:
    """The bytes of a DecideResponse before and after its id, which has 68 characters: what many answers share is built once.

    A serialised message is its fields one after another, in the order of their numbers, so the id may be put in later. Written here field
    by field, since of thousands of experiments each plan serves few decisions: by way of messages this costs more than the decision.
    Source: https://protobuf.dev/programming-guides/encoding.
    """
    propensity = b"\x11" + DOUBLE.pack(decision.propensity) if decision.propensity else b""
    before = b"%b%b\x18%c\x22%c" % (_text(1, decision.arm), propensity, decision.reason, LENGTH)
    version = b"\x28" + _varint(decision.snapshot_version) if decision.snapshot_version else b""
    after = b"".join(
        (version, _text(6, decision.model_uri), _text(7, decision.incumbent), _text(8, decision.shadow_arm), _text(9, decision.segment))
    )
    return b"\x0a%b%b" % (_varint(len(before) + LENGTH + len(after)), before), after


@lru_cache(4096)
def _text(field: int, text: str) -> bytes:
    """A field with a text; nothing when it is empty."""
    value = text.encode()
    return b"%c%b%b" % (field << 3 | 2, _varint(len(value)), value) if value else b""


def _varint(number: int) -> bytes:
    """A number of at least 0, seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def decision_from_message(m: pb.Decision) -> Decision:
    """A decision as its caller gets it. A reason that this version does not know counts as ALLOCATED."""
    reason = Reason(m.reason) if m.reason in _REASONS else Reason.ALLOCATED
    return Decision(m.arm, m.propensity, reason, m.id, m.snapshot_version, m.model_uri, m.incumbent, m.shadow_arm, m.segment)


_REASONS = frozenset(Reason)


def entry_to_message(entry: Entry) -> pb.SnapshotEntry:
    """A row of the snapshot as a message."""
    m = pb.SnapshotEntry(
        experiment=entry.experiment,
        uid=entry.uid.hex(),
        version=entry.version,
        state=to_number(State[entry.state]),
        assignment=pb.ASSIGNMENT_STICKY if entry.sticky else pb.ASSIGNMENT_PER_REQUEST,
        salt=entry.salt,
        incumbent=entry.incumbent,
        shadow_arms=entry.shadow_arms,
        activation=entry.activation,
        strict=entry.strict,
        cap=entry.cap,
        cap_per_candidate=entry.cap_per_candidate,
        burst=entry.burst,
        counted=entry.counted,
        first_only=entry.first_only,
        leased_requests=entry.leased_requests,
        leased_units=entry.leased_units,
        stage=entry.stage,
    )
    for index, (name, uri) in enumerate(zip(entry.arms, entry.model_uris, strict=True)):
        state = pb.ARM_STATE_DRAINED if entry.drained >> index & 1 else pb.ARM_STATE_ACTIVE
        m.arms.add(name=name, model_uri=uri, state=state)
    for table in entry.tables:
        m.tables.add(ends=table.ends, owners=table.owners, served=table.served)
    for name, match in zip(entry.segment_names, entry.segments, strict=False):
        fill_match(m.segments.add(name=name).match, {key: sorted(values) for key, values in match.items()})
    if entry.target:
        fill_match(m.target.match, {key: sorted(values) for key, values in entry.target.items()})
    if entry.opt_out:
        m.opt_out.attribute = entry.opt_out
    for unit, arm in entry.pins.items():
        m.pins[unit.decode("utf-8", "surrogatepass")] = entry.arms[arm]
    if entry.only is not None:
        m.only_arm, m.only_reason = entry.only[0] + 1, entry.only[1]
    for field, seconds in (("lease", entry.lease_seconds), ("window", entry.window_seconds), ("bucket", entry.bucket_seconds)):
        getattr(m, field).CopyFrom(duration(seconds))
    return m


def entry_from_message(m: pb.SnapshotEntry) -> Entry:
    """A row of the snapshot as a decider reads it."""
    arms = tuple(arm.name for arm in m.arms)
    return Entry(
        experiment=m.experiment,
        uid=bytes.fromhex(m.uid),
        version=m.version,
        state=from_number(State, m.state, State.DRAFT).value,
        sticky=m.assignment != pb.ASSIGNMENT_PER_REQUEST,
        salt=m.salt,
        arms=arms,
        model_uris=tuple(arm.model_uri for arm in m.arms),
        incumbent=m.incumbent,
        tables=tuple(Table(tuple(t.ends), tuple(t.owners), tuple(t.served)) for t in m.tables),
        only=(m.only_arm - 1, m.only_reason) if m.only_arm else None,
        drained=sum(1 << index for index, arm in enumerate(m.arms) if arm.state == pb.ARM_STATE_DRAINED),
        counted=m.counted,
        shadow_arms=tuple(m.shadow_arms),
        activation=m.activation,
        segment_names=(*(segment.name for segment in m.segments), "other"),
        segments=tuple(_frozen(segment.match) for segment in m.segments),
        target=_frozen(m.target.match),
        opt_out=m.opt_out.attribute,
        pins={unit.encode("utf-8", "surrogatepass"): arms.index(arm) for unit, arm in m.pins.items()},
        lease_seconds=seconds_of(m.lease),
        window_seconds=seconds_of(m.window),
        bucket_seconds=seconds_of(m.bucket),
        first_only=m.first_only,
        strict=m.strict,
        cap=m.cap,
        cap_per_candidate=m.cap_per_candidate,
        burst=m.burst,
        leased_requests=m.leased_requests,
        leased_units=m.leased_units,
        stage=m.stage,
    )


def _frozen(match: Mapping[str, ListValue]) -> dict[str, frozenset[str]]:
    return {attribute: frozenset(values) for attribute, values in match_from_message(match).items()}
