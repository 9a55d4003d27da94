"""Who changed what, and why: records that each carry the digest of the one before.

In: an `AuditEntry` (what happened) and the record before. Out: a sealed `AuditRecord`. The digest is SHA-256 over the previous digest and
the exact fields, so an edited, removed or swapped record no longer fits its neighbours. A truncated tail fits: whoever must find that
compares the head with one written down elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change: actor did action to experiment for reason. before, after: JSON text of what changed. Time in seconds."""

    seconds: float
    actor: str
    action: str
    experiment: str
    reason: str = ""
    before: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A sealed entry. sequence: 1, 2, 3, ... digest: 64 hexadecimal digits."""

    sequence: int
    entry: AuditEntry
    digest: str


def seal(sequence: int, previous_digest: str, entry: AuditEntry) -> AuditRecord:
    """The record of `entry` at `sequence`, chained to the digest before it (GENESIS for the first)."""
    hasher = hashlib.sha256(previous_digest.encode())
    fields = (sequence, entry.seconds, entry.actor, entry.action, entry.experiment, entry.reason, entry.before, entry.after)
    for value in fields:
        encoded = repr(value).encode() if not isinstance(value, str) else value.encode("utf-8", "surrogatepass")
        hasher.update(len(encoded).to_bytes(8, "big"))
        hasher.update(encoded)
    return AuditRecord(sequence, entry, hasher.hexdigest())


def first_broken(records: Iterable[AuditRecord]) -> int:
    """Sequence of the first record that does not fit the chain from the genesis on; 0 when all fit."""
    digest, expected = GENESIS, 1
    for record in records:
        if record.sequence != expected or seal(expected, digest, record.entry).digest != record.digest:
            return expected
        digest, expected = record.digest, expected + 1
    return 0
