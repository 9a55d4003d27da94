"""What the embedded stores share: which outcomes count and what they add, who may save, who plans, how audit entries are chained.

In: rows, what was seen of them before, which buckets are settled. Out: a `Batch` that a store writes down whole, or drops. Pure, so that
the memory store and the SQLite store cannot come to differ in what an outcome counts; how it is kept is all that is left to them.

A decision is known by its uid, nonce and bucket. The bucket belongs to it because a decision has one time, and because rows of one
bucket then lie together: what a settled bucket forgets is one range, and what a batch writes is a few pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from allocator.core.audit import AuditEntry, AuditRecord, seal
from allocator.core.decision_id import NONCE_BYTES
from allocator.errors import AllocatorError, AlreadyExists, Conflict, InvalidArgument, Overloaded, Unavailable
from allocator.ports import Counted, ExposureRow, OutcomeRow, Save, Settle

Decision = tuple[str, bytes, int]  # uid, nonce, bucket: the first three fields of an OutcomeRow
Sums = dict[tuple[int, int, int, str], list[int]]  # the first four fields of a Cell → the last four


@dataclass(slots=True)
class Term:
    """Who is the one planner, for stores that one process has open: the term's end need not outlive it, its number must.

    number: of the last term that began. end: by the monotonic clock. beat: grows with each call that was granted.
    """

    number: int = 0
    holder: str = ""
    end: float = 0.0
    beat: int = 0

    def lead(self, holder: str, seconds: float, now: float, next_number: Callable[[], int]) -> int | None:
        """As `Store.lead`. now: monotonic seconds. next_number: what the store gives a term that begins.

        A term that ran out is over, also for its holder: another number begins.
        """
        if now < self.end and self.holder != holder:
            return None
        if now >= self.end:
            self.number = next_number()
        self.holder, self.end, self.beat = holder, now + seconds, self.beat + 1
        return self.number

    def resign(self, holder: str) -> None:
        """As `Store.resign`."""
        if self.holder == holder:
            self.holder, self.end = "", 0.0


@dataclass(slots=True)
class Batch:
    """What some rows come to. counted: one for each outcome. masks: metrics now counted, of each decision with new ones.

    open, settled: what to add to the cells, by uid.
    """

    counted: list[Counted] = field(default_factory=list)
    masks: dict[Decision, int] = field(default_factory=dict)
    open: dict[str, Sums] = field(default_factory=dict)
    settled: dict[str, Sums] = field(default_factory=dict)


def count(
    outcomes: Iterable[OutcomeRow],
    exposures: Iterable[ExposureRow],
    seen: Callable[[Decision], int],
    settles: Mapping[str, Settle],
) -> Batch:
    """Decide each row in turn. seen: the mask of metrics counted before, 0 for none. settles: what is settled, by uid."""
    batch = Batch()
    counted, masks = batch.counted, batch.masks
    for row in outcomes:
        uid, _, bucket, metrics, contributions = row
        if is_settled(settles.get(uid), bucket):
            counted.append(Counted.LATE)
            continue
        decision = row[:3]
        before = masks.get(decision)
        if before is None:
            before = seen(decision)
        new = metrics & ~before
        if not new:
            counted.append(Counted.DUPLICATE)
            continue
        counted.append(Counted.ACCEPTED)
        masks[decision] = before | new
        sums = batch.open.setdefault(uid, {})
        for metric, cell in contributions:
            if new >> metric & 1:
                add(sums, cell[:4], cell[4:])
    for uid, cell, _ in exposures:
        settle = settles.get(uid)
        if is_settled(settle, cell.bucket):
            add(batch.settled.setdefault(uid, {}), (coarse(cell.bucket, settle), *cell[1:4]), cell[4:])
        else:
            add(batch.open.setdefault(uid, {}), cell[:4], cell[4:])
    return batch


def check_nonces(outcomes: Iterable[OutcomeRow]) -> None:
    """Raise InvalidArgument when a nonce has not the length that nonces have: a store may keep it as a number."""
    for row in outcomes:
        if len(row[1]) != NONCE_BYTES:
            raise InvalidArgument.of_field("nonce", f"got {len(row[1])} bytes; {NONCE_BYTES} are allowed")


def add(sums: Sums, key: tuple[int, int, int, str], values: Sequence[int]) -> None:
    """Add `values` to the sums at `key`."""
    have = sums.get(key)
    if have is None:
        sums[key] = list(values)
    else:
        have[0] += values[0]
        have[1] += values[1]
        have[2] += values[2]
        have[3] += values[3]


def is_settled(settle: Settle | None, bucket: int) -> bool:
    """Does the bucket take no outcome any more?"""
    return settle is not None and bucket <= settle.through


def coarse(bucket: int, settle: Settle) -> int:
    """The settled bucket that an open one goes to."""
    return bucket // settle.coarsen if settle.coarsen else 0


def after(before: Settle | None, settle: Settle) -> Settle:
    """What is settled when `settle` follows `before`: no bucket opens again."""
    return settle if before is None else replace(settle, through=max(before.through, settle.through))


def refusal(save: Save, version: int | None) -> AllocatorError | None:
    """Why `save` may not replace what is stored at `version` (None: nothing is); None when it may."""
    name = save.record.name
    if version == save.expected:
        return None
    if save.expected is None:
        return AlreadyExists(f"an experiment {name!r} exists, at version {version}", experiment=name, version=version)
    found = "there is none" if version is None else f"it is at version {version}"
    return Conflict(
        f"experiment {name!r} was to be changed from version {save.expected}, but {found}", experiment=name, expected=save.expected
    )


def term_refusal(term: int | None, number: int) -> Conflict | None:
    """Why a save of `term` is refused when the last term that began has this number; None when it is not."""
    if term is None or term >= number:
        return None
    return Conflict(f"a planner was to save in its term {term}, but term {number} has begun", reason="STALE_TERM", term=term, latest=number)


def item_refusal(kind: str, key: str, expected: str | None, found: str | None) -> Conflict | None:
    """Why an item may not be put: it is not what the writer saw. None when it may."""
    if found == expected:
        return None
    return Conflict(f"{kind} {key!r} is not what you saw: somebody changed it; look again", reason="STALE_ITEM", kind=kind, key=key)


def chain(sequence: int, digest: str, entries: Iterable[AuditEntry]) -> list[AuditRecord]:
    """Sealed records of `entries`, after the record with this sequence and digest (0 and GENESIS before the first)."""
    records = []
    for entry in entries:
        # The digest covers how the number is written, and a store gives back a float whatever it was given.
        record = seal(sequence + 1, digest, replace(entry, seconds=float(entry.seconds)))
        sequence, digest = record.sequence, record.digest
        records.append(record)
    return records


def too_large() -> Overloaded:
    """The refusal of a sum outside 64 bits: it may neither wrap around nor turn into a float."""
    return Overloaded("a sum would leave the range of 64-bit integers; nothing was counted", reason="SUM_OVERFLOW")


def closed() -> Unavailable:
    """The answer to every call after `close`."""
    return Unavailable("the store is closed", reason="STORE_CLOSED")
