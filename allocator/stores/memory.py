"""What the words of `Store` mean, in plain dictionaries under one lock. Nothing outlives the process.

For tests, rehearsals and simulations; every other store is held to what this one does. Each step works out all that it will change
before it changes anything, so that a refusal leaves no trace.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from allocator.core.audit import GENESIS, AuditRecord
from allocator.core.record import Cell, Record
from allocator.errors import AllocatorError, Overloaded
from allocator.ports import Counted, Entropy, ExposureRow, OutcomeRow, Save, Settle, SystemEntropy
from allocator.stores import rules
from allocator.stores.rules import Decision, Sums

LIMIT = 2**63


class MemoryStore:
    """A `Store` in this process's memory. Calls from several threads take turns."""

    def __init__(self, entropy: Entropy = SystemEntropy()) -> None:  # noqa: B008  (it has no state)
        self._lock = threading.Lock()
        self._closed = False
        self._secret = entropy.bytes(32)
        self._records: dict[str, Record] = {}
        self._audit: list[AuditRecord] = []
        self._seen: dict[str, dict[int, dict[bytes, int]]] = {}  # uid, bucket, nonce → mask of the metrics counted
        self._open: dict[str, Sums] = {}
        self._settled: dict[str, Sums] = {}
        self._settles: dict[str, Settle] = {}
        self._granted: dict[str, dict[tuple[int, str], int]] = {}
        self._mark = 0
        self._marks: dict[str, int] = {}

    def secret(self) -> bytes:
        with self._lock:
            self._check()
            return self._secret

    def records(self) -> list[Record]:
        with self._lock:
            self._check()
            return [self._records[name] for name in sorted(self._records)]

    def record(self, name: str) -> Record | None:
        with self._lock:
            self._check()
            return self._records.get(name)

    def save(self, saves: Sequence[Save]) -> list[AllocatorError | None]:
        with self._lock:
            self._check()
            return [self._save(save) for save in saves]

    def add(self, outcomes: Sequence[OutcomeRow], exposures: Sequence[ExposureRow] = ()) -> list[Counted]:
        rules.check_nonces(outcomes)
        with self._lock:
            self._check()
            batch = rules.count(outcomes, exposures, self._mask, self._settles)
            opened, settled = _sum(self._open, batch.open), _sum(self._settled, batch.settled)
            _put(self._open, opened)
            _put(self._settled, settled)
            for (uid, nonce, bucket), mask in batch.masks.items():
                self._seen.setdefault(uid, {}).setdefault(bucket, {})[nonce] = mask
            self._touch({uid for changes in (opened, settled) for uid, sums in changes.items() if sums})
            return batch.counted

    def cells(self, uid: str) -> list[Cell]:
        with self._lock:
            self._check()
            return [Cell(*key, *sums) for key, sums in self._open.get(uid, {}).items()]

    def settled(self, uid: str) -> list[Cell]:
        with self._lock:
            self._check()
            return [Cell(*key, *sums) for key, sums in self._settled.get(uid, {}).items()]

    def changed(self, since: int) -> tuple[int, list[str]]:
        with self._lock:
            self._check()
            return max(self._mark, since), [uid for uid, mark in self._marks.items() if mark > since]

    def grant(self, uid: str, arm: int, kind: str, amount: int, limit: int) -> int:
        with self._lock:
            self._check()
            before = self._granted.get(uid, {}).get((arm, kind), 0)
            granted = max(0, min(amount, limit - before))
            if granted:
                self._granted.setdefault(uid, {})[arm, kind] = before + granted
            return granted

    def granted(self, uid: str) -> dict[tuple[int, str], int]:
        with self._lock:
            self._check()
            return dict(self._granted.get(uid, {}))

    def audit(self, after: int = 0, limit: int = 1000, experiment: str | None = None) -> list[AuditRecord]:
        with self._lock:
            self._check()
            found = [record for record in self._audit[max(after, 0) :] if experiment in (None, record.entry.experiment)]
            return found[: max(limit, 0)]

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def _check(self) -> None:
        if self._closed:
            raise rules.closed()

    def _mask(self, decision: Decision) -> int:
        uid, nonce, bucket = decision
        try:
            return self._seen[uid][bucket][nonce]
        except KeyError:
            return 0

    def _save(self, save: Save) -> AllocatorError | None:
        stored = self._records.get(save.record.name)
        refusal = rules.refusal(save, None if stored is None else stored.version)
        if refusal is not None:
            return refusal
        if save.settle is not None:
            try:
                self._settle(save.record.uid, save.settle)
            except Overloaded as refused:
                return refused
        self._records[save.record.name] = save.record
        head = self._audit[-1] if self._audit else None
        self._audit += rules.chain(head.sequence if head else 0, head.digest if head else GENESIS, save.audit)
        return None

    def _settle(self, uid: str, settle: Settle) -> None:
        settle = rules.after(self._settles.get(uid), settle)
        kept: Sums = {}
        moved: Sums = {}
        for key, sums in self._open.get(uid, {}).items():
            if rules.is_settled(settle, key[0]):
                rules.add(moved, (rules.coarse(key[0], settle), *key[1:]), sums)
            else:
                kept[key] = sums
        _put(self._settled, _sum(self._settled, {uid: moved}))
        self._open[uid] = kept
        self._settles[uid] = settle
        seen = self._seen.get(uid, {})
        for bucket in [bucket for bucket in seen if rules.is_settled(settle, bucket)]:
            del seen[bucket]
        if moved:
            self._touch({uid})

    def _touch(self, uids: set[str]) -> None:
        if uids:
            self._mark += 1
            self._marks.update(dict.fromkeys(uids, self._mark))


def _sum(cells: dict[str, Sums], added: dict[str, Sums]) -> dict[str, Sums]:
    """New values of the cells that `added` touches. Raises Overloaded when one leaves 64 bits."""
    after: dict[str, Sums] = {}
    for uid, sums in added.items():
        have = cells.get(uid, {})
        after[uid] = {key: [a + b for a, b in zip(have.get(key, (0, 0, 0, 0)), values, strict=True)] for key, values in sums.items()}
        if any(not -LIMIT <= value < LIMIT for values in after[uid].values() for value in values):
            raise rules.too_large()
    return after


def _put(cells: dict[str, Sums], values: dict[str, Sums]) -> None:
    for uid, sums in values.items():
        cells.setdefault(uid, {}).update(sums)
