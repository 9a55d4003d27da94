"""The history of an experiment, read off the audit log: its revisions, and what people wrote down about it.

In: a store and a name. Out: every revision with its author, reason, digest and differences; notes, conclusions and uses of break-glass. The
records `experiment.create` and `experiment.revise` carry the whole spec of their revision, so the chain of digests covers the registry too:
a revision can be neither altered nor lost unnoticed. A table of revisions beside it was dropped: it could say something else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import msgspec

from allocator.core.audit import AuditRecord
from allocator.core.experiment import Experiment
from allocator.core.record import Record
from allocator.core.revision import Annotation, Revision, differences, document
from allocator.errors import InvalidArgument, NotFound, Unavailable
from allocator.ports import Store

CREATED, REVISED = "experiment.create", "experiment.revise"
NOTE = "experiment.note"
TOLD = (NOTE, "experiment.conclude", "experiment.rollback")
PAGE = 1000


def revision_text(record: Record, approvers: Sequence[str] = ()) -> str:
    """The record's present revision, for the audit."""
    return json.dumps({"revision": record.revision, "approvers": approvers, "spec": json.loads(document(record.experiment))})


def revisions(store: Store, name: str) -> list[Revision]:
    """Every revision of the experiment `namespace/name`, oldest first. Raises Unavailable when one cannot be read."""
    found: list[Revision] = []
    for record in _records(store, name):
        entry = record.entry
        if entry.action.removeprefix("break_glass.") not in (CREATED, REVISED):
            continue
        try:
            kept = _kept.decode(entry.after)
        except (msgspec.DecodeError, InvalidArgument) as exc:
            raise Unavailable(
                f"audit record {record.sequence} holds no revision that can be read: {exc}",
                reason="STORE_CORRUPT",
                sequence=record.sequence,
            ) from exc
        changes = differences(found[-1].experiment, kept.spec) if found else []
        found.append(
            Revision(kept.revision, entry.seconds, entry.actor, entry.reason, kept.approvers, tuple(changes), record.sequence, kept.spec)
        )
    return found


def revision(store: Store, name: str, number: int) -> Revision:
    """One revision; the present one for 0. Raises NotFound."""
    found = revisions(store, name)
    for each in found:
        if each.number == (number or found[-1].number):
            return each
    raise NotFound(
        f"{name} has no revision {number}; it has 1 to {len(found)}", reason="UNKNOWN_REVISION", experiment=name, revision=number
    )


def annotations(store: Store, name: str) -> list[Annotation]:
    """Notes, conclusions and uses of break-glass, oldest first."""
    return [
        Annotation(entry.seconds, entry.actor, entry.action, entry.after if entry.action == NOTE else entry.reason)
        for entry in (record.entry for record in _records(store, name))
        if entry.action in TOLD or entry.action.startswith("break_glass.")
    ]


class _Kept(msgspec.Struct):
    revision: int
    approvers: tuple[str, ...]
    spec: Experiment


_kept = msgspec.json.Decoder(_Kept)


def _records(store: Store, name: str) -> Iterator[AuditRecord]:
    last = 0
    while page := store.audit(last, PAGE, name):
        yield from page
        last = page[-1].sequence
