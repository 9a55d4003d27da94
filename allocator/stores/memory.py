"""What the words of `Store` mean, in plain dictionaries under one lock. Nothing outlives the process.

For tests, rehearsals and simulations; every other store is held to what this one does. Each step works out all that it will change
before it changes anything, so that a refusal leaves no trace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from allocator.core.audit import GENESIS, AuditEntry, AuditRecord
from allocator.core.record import Cell, Record
from allocator.errors import AllocatorError, Overloaded
from allocator.ports import Clock, Counted, Entropy, ExposureRow, News, OutcomeRow, Save, Settle, SystemClock, SystemEntropy, losses
from allocator.stores import rules
from allocator.stores.rules import Decision, Sums, Term

LIMIT = 2**63


class MemoryStore:
    """A `Store` in this process's memory. Calls from several threads take turns; several servers in one process may share it."""

    def __init__(self, entropy: Entropy = SystemEntropy(), clock: Clock = SystemClock()) -> None:  # noqa: B008  (they have no state)
        self._lock = threading.Lock()
        self._clock = clock
        self._entropy = entropy
        self._closed = False
        self._secret = entropy.bytes(32)
        self._epoch = entropy.bytes(8).hex()
        self._term = Term()
        self._holders: set[str] = set()
        self._items: dict[str, dict[str, str]] = {}
        self._saved: dict[str, int] = {}  # name → mark of its last save
        self._put: dict[str, int] = {}  # kind → mark of its last put
        self._news_mark = 0
        self._listeners: list[Callable[[], None]] = []
        self._records: dict[str, Record] = {}
        self._audit: list[AuditRecord] = []
        self._seen: dict[str, dict[int, dict[bytes, int]]] = {}  # uid, bucket, nonce → mask of the metrics counted
        self._open: dict[str, Sums] = {}
        self._settled: dict[str, Sums] = {}
        self._settles: dict[str, Settle] = {}
        self._granted: dict[str, dict[tuple[int, str], int]] = {}
        self._mark = 0
        self._marks: dict[str, int] = {}

    @property
    def shared(self) -> bool:
        """Once a second server has asked for the term."""
        return len(self._holders) > 1

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

    def save(self, saves: Sequence[Save], term: int | None = None) -> list[AllocatorError | None]:
        with self._lock:
            self._check()
            answers = [rules.term_refusal(term, self._term.number) or self._save(save) for save in saves]
        self._tell()
        return answers

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
        if self._listeners and losses(outcomes):
            self._tell()
        return batch.counted

    def ready(self, exposures: Sequence[ExposureRow]) -> list[ExposureRow]:
        return list(exposures)

    def add_soon(self, outcomes: Sequence[OutcomeRow], exposures: Sequence[ExposureRow] = ()) -> Future[list[Counted]]:
        found: Future[list[Counted]] = Future()
        try:
            found.set_result(self.add(outcomes, exposures))
        except Exception as exc:
            found.set_exception(exc)
        return found

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
            found = [(mark, uid) for uid, mark in self._marks.items() if mark > since]
            return max(self._mark, since), [uid for _, uid in sorted(found, reverse=True)]

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

    def lead(self, holder: str, seconds: float) -> int | None:
        with self._lock:
            self._check()
            self._holders.add(holder)
            return self._term.lead(holder, seconds, self._clock.monotonic(), lambda: self._term.number + 1)

    def resign(self, holder: str) -> None:
        with self._lock:
            self._check()
            self._term.resign(holder)

    def news(self, since: int) -> News:
        with self._lock:
            self._check()
            names = tuple(name for name, mark in self._saved.items() if mark > since)
            kinds = tuple(kind for kind, mark in self._put.items() if mark > since)
            return News(self._news_mark, names, kinds, self._term.beat, self._epoch)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        with self._lock:
            self._check()
            self._listeners.append(listener)

        def stop() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop

    def items(self, kind: str) -> dict[str, str]:
        with self._lock:
            self._check()
            return dict(self._items.get(kind, {}))

    def put(self, kind: str, key: str, value: str | None, expected: str | None = None, audit: Sequence[AuditEntry] = ()) -> None:
        with self._lock:
            self._check()
            items = self._items.setdefault(kind, {})
            refused = rules.item_refusal(kind, key, expected, items.get(key))
            if refused is not None:
                raise refused
            if value is None:
                items.pop(key, None)
            else:
                items[key] = value
            self._append(audit)
            self._put[kind] = self._news_mark = self._news_mark + 1
        self._tell()

    def begin(self, secret: bytes) -> str:
        with self._lock:
            self._check()
            self._secret, self._epoch = secret, self._entropy.bytes(8).hex()
            return self._epoch

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def _tell(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def _append(self, entries: Sequence[AuditEntry]) -> None:
        head = self._audit[-1] if self._audit else None
        self._audit += rules.chain(head.sequence if head else 0, head.digest if head else GENESIS, entries)

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
        self._append(save.audit)
        self._saved[save.record.name] = self._news_mark = self._news_mark + 1
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
