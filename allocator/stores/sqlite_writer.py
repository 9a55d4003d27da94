"""The writing half of a SQLite store: a queue, one thread, one connection, and what a commit is made of.

In: works of callers (rows to count, grants, saves, items), each with the future on which its caller waits. Out: their answers, once
COMMIT has returned. See `sqlite.py` for the idea.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import msgspec

from allocator.core.audit import GENESIS, AuditEntry
from allocator.errors import AllocatorError, Unavailable
from allocator.ports import Counted, ExposureRow, OutcomeRow, Save, Settle
from allocator.stores import rules
from allocator.stores import sqlite_file as disk
from allocator.stores import sqlite_words as words
from allocator.stores.rules import Decision, Sums

GROUP_ROWS = 5_000  # that share a commit; a caller with more has one to itself
LOG_BYTES = 16 << 20  # of write-ahead log before it is moved into the file

log = logging.getLogger(__name__)
T = TypeVar("T")
W = TypeVar("W")


class Writer:
    """Owns the one connection that writes. `_write` is its thread; everything it calls runs there."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer: sqlite3.Connection | None = None
        self._reading = threading.Lock()  # in memory, the reader's connection is this one
        self._closed = False
        self._gate = threading.Lock()  # nothing enters the queue behind its end
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._reserve = disk.Reserve(path)
        self._tail = disk.Tail(path)
        self._numbers: dict[str, int] = {}  # of experiments, as committed: they never change
        self._looked_up: dict[str, int] = {}  # or given, in the transaction under way

    def _submit(self, work: Work) -> Any:
        return self._enqueue(work).result()

    def _enqueue(self, work: Work) -> Future[Any]:
        with self._gate:
            if self._closed:
                raise rules.closed()
            self._queue.put(work)
        return work.future

    def _write(self) -> None:
        """Take all the work that waits, carry it out, tell its callers; until the end of the queue."""
        ended = False
        while not ended:
            group: list[Work] = []
            rows = 0
            while rows < GROUP_ROWS:
                try:
                    work = self._queue.get(block=not group)
                except queue.Empty:
                    break
                if work is None:
                    ended = True
                    break
                group.append(work)
                rows += len(work)
            if group:
                try:
                    self._carry_out(group)
                except BaseException as exc:  # without this thread nothing is ever written again, and its callers wait for ever
                    self._break_off(group, exc)

    def _carry_out(self, group: list[Work]) -> None:
        adds = [work for work in group if isinstance(work, Add | Grant)]
        saves = [work for work in group if isinstance(work, Saves | Deed)]
        if adds and not self._reserve.take():
            _tell(adds, OSError(errno.ENOSPC, "the reserve for saves is not whole"))
            adds = []
        failure = self._commit(adds, saves)
        if saves and failure is not None and words.is_full(failure) and self._reserve.give():
            _tell(adds, failure)
            adds = []
            failure = self._commit([], saves)
            self._checkpoint()
            self._reserve.take()
        _tell([*adds, *saves], failure)
        if self._log_bytes() > LOG_BYTES:
            self._checkpoint()

    def _break_off(self, group: list[Work], fault: BaseException) -> None:
        """Tell those who were not told yet, after a fault that nobody foresaw. Outcomes may be sent again, saves looked up."""
        log.error("a commit broke off in an unexpected way", exc_info=fault)
        self._roll_back()
        for work in group:
            if not work.future.done():
                told = Unavailable(f"the store failed, and nobody knows whether it was written: {fault!r:.200}", reason="STORE_FAILED")
                told.__cause__ = fault
                work.future.set_exception(told)

    def _commit(self, adds: list[Add | Grant], saves: list[Saves | Deed]) -> Exception | None:
        """All of it in one transaction. The answers are left with the works. Returns why nothing of it was written, or None."""
        with self._reading if self._path == disk.MEMORY else contextlib.nullcontext():
            try:
                if self._writer is None:
                    self._writer = disk.connect(self._path)
                self._writer.execute("BEGIN IMMEDIATE")
                self._isolate(self._count_all, [work for work in adds if isinstance(work, Add)])
                self._isolate(self._grant_all, [work for work in adds if isinstance(work, Grant)])
                self._isolate(self._save_all, [item for work in saves if isinstance(work, Saves) for item in work.items])
                for work in saves:
                    if isinstance(work, Deed):
                        self._isolate(lambda works: works[0].do(), [work])
                self._writer.execute("COMMIT")
                self._numbers.update(self._looked_up)
            except Exception as exc:
                self._roll_back()
                return exc
            finally:
                self._looked_up.clear()
            self._tail.note()
        return None

    def _roll_back(self) -> None:
        try:
            if self._writer is not None and self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error:
            log.warning("a transaction could not be rolled back; its connection is given up", exc_info=True)
            given_up, self._writer = self._writer, None  # the reader keeps the index of the log alive: nothing uncommitted comes back
            with contextlib.suppress(sqlite3.Error):
                given_up.close()

    def _isolate(self, step: Callable[[list[W]], None], works: list[W]) -> None:
        """Take one step for all works; when that is refused, one for each, and leave a refused one the refusal as its answer."""
        if not works:
            return
        refusal = self._try(step, works)
        if refusal is None:
            return
        if len(works) == 1:
            works[0].answer = refusal
            return
        for work in works:
            self._isolate(step, [work])

    def _try(self, step: Callable[[list[W]], None], works: list[W]) -> Exception | None:
        """Take a step in a savepoint. Returns why it was refused, or None. Raises what spoils the whole transaction."""
        self._writer.execute("SAVEPOINT step")
        refusal = None
        try:
            step(works)
        except Exception as exc:
            refusal = words.refusal(exc)
            if refusal is None:
                raise
            self._writer.execute("ROLLBACK TO step")
            self._looked_up.clear()  # those of earlier steps too: they are looked up again
        self._writer.execute("RELEASE step")
        return refusal

    def _count_all(self, works: list[Add]) -> None:
        counted = iter(self._count([row for work in works for row in work.outcomes], [row for work in works for row in work.exposures]))
        for work in works:
            work.answer = list(islice(counted, len(work.outcomes)))

    def _count(self, outcomes: list[OutcomeRow], exposures: list[ExposureRow]) -> list[Counted]:
        ready = [row for row in exposures if row.ready]
        if ready:
            late = self._late(ready)
            exposures = [row for row in exposures if not row.ready or row.uid in late]
            ready = [row for row in ready if row.uid not in late]
        numbers, settles = self._experiments({row[0] for row in outcomes} | {row[0] for row in exposures})
        seen = self._seen(outcomes, numbers)
        batch = rules.count(outcomes, exposures, lambda decision: seen.get(decision, 0), settles)
        if batch.masks:
            masks: dict[int, dict[int, dict[int, int]]] = {}
            for (uid, nonce, bucket), mask in batch.masks.items():
                masks.setdefault(numbers[uid], {}).setdefault(bucket, {})[words.NONCE.unpack(nonce)[0]] = mask
            self._writer.execute(words.WRITE_SEEN, (words.text(masks),))
        self._touch(
            self._add_sums("cells", batch.open, numbers) | self._add_sums("settled", batch.settled, numbers) | self._add_ready(ready)
        )
        return batch.counted

    def _late(self, ready: list[ExposureRow]) -> set[str]:
        """Experiments whose rows were made ready for buckets that may be settled by now. The others' check numbers are not looked at again:
        they were when their numbers were looked up.
        """
        first: dict[int, int] = {}
        uids = {}
        for uid, cell, _ in ready:
            number = self._numbers[uid]
            uids[number] = uid
            first[number] = min(first.get(number, cell.bucket), cell.bucket)
        return {uids[number] for number in self._ask(words.NUMBERS, words.READ_SETTLED, words.text(first))}

    def _add_ready(self, ready: list[ExposureRow]) -> set[int]:
        """Add rows to the open cells, as they were made ready. Returns the experiments to which something was added."""
        if ready:
            self._writer.execute(words.ADD_CELLS.format(table="cells"), (words.together(row.ready for row in ready),))
        return {self._numbers[row.uid] for row in ready}

    def _experiments(self, uids: set[str]) -> tuple[dict[str, int], dict[str, Settle]]:
        """The numbers of experiments, given out where there was none; and what is settled of them."""
        if not uids:
            return {}, {}
        found = self._ask(words.EXPERIMENTS, words.READ_EXPERIMENTS, words.text(list(uids)))
        numbers = {uid: number for number, uid, _, _, _ in found}
        new = sorted(uids - numbers.keys())
        if new:
            (last,) = self._writer.execute("SELECT coalesce(max(number), 0) FROM experiments").fetchone()
            numbers.update(zip(new, range(last + 1, last + 1 + len(new)), strict=True))
            rows = [(numbers[uid], uid, words.proof_of(numbers[uid], uid, None, 0)) for uid in new]
            self._writer.execute(words.WRITE_EXPERIMENTS, (words.text(rows),))
        for row in found:
            words.prove(*row)
        self._looked_up.update(numbers)
        return numbers, {uid: Settle(through, coarsen) for _, uid, through, coarsen, _ in found if through is not None}

    def _ask(self, decoder: msgspec.json.Decoder[T], sql: str, *values: object) -> T:
        """What a statement of the writer gives as one JSON text."""
        return decoder.decode(self._writer.execute(f"SELECT CAST(({sql}) AS BLOB)", values).fetchone()[0])

    def _seen(self, outcomes: list[OutcomeRow], numbers: dict[str, int]) -> dict[Decision, int]:
        """Masks of those decisions that were counted before."""
        if not outcomes:
            return {}
        nonces: dict[int, dict[int, list[int]]] = {}
        for uid, nonce, bucket, _, _ in outcomes:
            nonces.setdefault(numbers[uid], {}).setdefault(bucket, []).append(words.NONCE.unpack(nonce)[0])
        found = self._ask(words.SEEN, words.READ_SEEN, words.text(nonces))
        uids = {number: uid for uid, number in numbers.items()}
        return {(uids[number], words.NONCE.pack(nonce), bucket): mask for number, bucket, nonce, mask in found}

    def _add_sums(self, table: str, added: dict[str, Sums], numbers: dict[str, int]) -> set[int]:
        """Add to the cells of a table. Returns the experiments to which something was added."""
        rows = [
            words.summed(numbers[uid], key, values)
            for uid, sums in added.items()
            for key, values in sums.items()
        ]
        if rows:
            self._writer.execute(words.ADD_CELLS.format(table=table), (words.text(rows),))
        return {row[0] for row in rows}

    def _touch(self, numbers: set[int]) -> None:
        if numbers:
            self._writer.execute(words.WRITE_MARKS, (words.text(list(numbers)),))

    def _grant_all(self, works: list[Grant]) -> None:
        for work in works:
            account = (work.uid, work.arm, work.kind)
            row = self._writer.execute(words.READ_GRANT, account).fetchone()
            if row is not None:
                words.prove(*account, *row)
            before = row[0] if row is not None else 0
            work.answer = max(0, min(work.amount, work.limit - before))
            if work.answer:
                after = before + work.answer
                self._writer.execute("REPLACE INTO grants VALUES (?, ?, ?, ?, ?)", (*account, after, words.proof_of(*account, after)))

    def _save_all(self, items: list[Item]) -> None:
        _, number, _ = self._life()
        versions = dict(self._ask(words.VERSIONS, words.READ_VERSIONS, words.text([item.save.record.name for item in items])))
        accepted = []
        for item in items:
            record = item.save.record
            item.answer = rules.term_refusal(item.term, number) or rules.refusal(item.save, versions.get(record.name))
            if item.answer is None:
                versions[record.name] = record.version
                accepted.append(item)
        if not accepted:
            return
        rows = [(item.save.record.name, item.save.record.uid, item.save.record.version, item.document) for item in accepted]
        self._writer.execute(words.WRITE_RECORDS, (self._next_mark(), words.text(rows)))
        self._append([entry for item in accepted for entry in item.save.audit])
        for item in accepted:
            if item.save.settle is not None:
                self._settle(item.save.record.uid, item.save.settle)

    def _life(self) -> tuple[str, int, int]:
        """Epoch, number of the last term, mark."""
        row = self._writer.execute(words.READ_LIFE).fetchone()
        words.prove(*row)
        return row[:3]

    def _live(self, epoch: str, term: int, mark: int) -> None:
        self._writer.execute("REPLACE INTO life VALUES (1, ?, ?, ?, ?)", (epoch, term, mark, words.proof_of(epoch, term, mark)))

    def _next_mark(self) -> int:
        epoch, term, mark = self._life()
        self._live(epoch, term, mark + 1)
        return mark + 1

    def _next_term(self) -> int:
        epoch, term, mark = self._life()
        self._live(epoch, term + 1, mark)
        return term + 1

    def _begin(self, epoch: str, secret: bytes) -> None:
        _, term, mark = self._life()
        self._live(epoch, term, mark)
        self._writer.execute("REPLACE INTO secret VALUES (1, ?, ?)", (secret, words.proof_of(secret)))

    def _put(self, kind: str, key: str, value: str | None, expected: str | None, audit: Sequence[AuditEntry]) -> None:
        row = self._writer.execute("SELECT kind, key, value, proof FROM items WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        if row is not None:
            words.prove(*row)
        refused = rules.item_refusal(kind, key, expected, None if row is None else row[2])
        if refused is not None:
            raise refused
        if value is None:
            self._writer.execute("DELETE FROM items WHERE kind = ? AND key = ?", (kind, key))
        else:
            self._writer.execute("REPLACE INTO items VALUES (?, ?, ?, ?)", (kind, key, value, words.proof_of(kind, key, value)))
        self._writer.execute("REPLACE INTO kinds VALUES (?, ?)", (kind, self._next_mark()))
        self._append(audit)

    def _append(self, entries: Sequence[AuditEntry]) -> None:
        if not entries:
            return
        head = self._writer.execute("SELECT sequence, digest FROM audit ORDER BY sequence DESC LIMIT 1").fetchone()
        # Bound one by one: a text inside JSON would lose what follows a NUL, and no longer fit its digest.
        self._writer.executemany(
            "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (r.sequence, repr(e.seconds), e.actor, e.action, e.experiment, e.reason, e.before, e.after, r.digest)
                for r in rules.chain(*(head or (0, GENESIS)), entries)
                for e in (r.entry,)
            ],
        )

    def _settle(self, uid: str, settle: Settle) -> None:
        numbers, settles = self._experiments({uid})
        settle = rules.after(settles.get(uid), settle)
        number, through, coarsen = numbers[uid], settle.through, settle.coarsen
        proof = words.proof_of(number, uid, through, coarsen)
        self._writer.execute(
            "UPDATE experiments SET through = ?, coarsen = ?, proof = ? WHERE number = ?", (through, coarsen, proof, number)
        )
        moved: Sums = {}
        for cell in words.proven(self._ask(words.ROWS, words.READ_CELLS.format(table="cells") + " AND bucket <= ?", uid, through)):
            rules.add(moved, (rules.coarse(cell.bucket, settle), *cell[1:4]), cell[4:])
        if moved:
            self._touch(self._add_sums("settled", {uid: moved}, numbers))
            self._writer.execute("DELETE FROM cells WHERE experiment = ? AND bucket <= ?", (number, through))
        self._writer.execute("DELETE FROM seen WHERE experiment = ? AND bucket <= ?", (number, through))

    def _log_bytes(self) -> int:
        try:
            return os.stat(self._path + "-wal").st_size
        except OSError:
            return 0

    def _checkpoint(self, mode: str = "PASSIVE") -> None:
        """Move the log into the file. A failure takes nothing back: what was committed stands in the log."""
        if self._writer is None:
            return
        try:
            self._writer.execute(f"PRAGMA wal_checkpoint({mode})")
        except sqlite3.Error:
            log.warning("the write-ahead log could not be moved into %s", self._path, exc_info=True)


@dataclass(slots=True, eq=False)
class Add:
    """A caller's rows, and the future on which it waits."""

    outcomes: Sequence[OutcomeRow]
    exposures: Sequence[ExposureRow]
    answer: list[Counted] | Exception | None = None
    future: Future[list] = field(default_factory=Future)

    def __len__(self) -> int:
        return len(self.outcomes) + len(self.exposures)

    def tell(self) -> None:
        if isinstance(self.answer, Exception):
            self.future.set_exception(self.answer)
        else:
            self.future.set_result(self.answer)


@dataclass(slots=True, eq=False)
class Grant:
    """What a caller asks for of a budget, and the future on which it waits."""

    uid: str
    arm: int
    kind: str
    amount: int
    limit: int
    answer: int | Exception | None = None
    future: Future[int] = field(default_factory=Future)

    def __len__(self) -> int:
        return 1

    tell = Add.tell


@dataclass(slots=True, eq=False)
class Item:
    """One save, with its document."""

    save: Save
    document: str
    term: int | None
    answer: Exception | None = None


@dataclass(slots=True, eq=False)
class Saves:
    """A caller's saves, and the future on which it waits."""

    items: list[Item]
    future: Future[list] = field(default_factory=Future)

    def __len__(self) -> int:
        return len(self.items)

    def tell(self) -> None:
        answers = [item.answer for item in self.items]
        fault = next((answer for answer in answers if not isinstance(answer, AllocatorError | None)), None)
        if fault is not None:
            self.future.set_exception(fault)
        else:
            self.future.set_result(answers)


@dataclass(slots=True, eq=False)
class Deed:
    """Something small that is done alone, and must get through like a save."""

    step: Callable[[], object]
    answer: object = None
    future: Future[Any] = field(default_factory=Future)

    def __len__(self) -> int:
        return 1

    def do(self) -> None:
        self.answer = self.step()

    tell = Add.tell


Work = Add | Grant | Saves | Deed


def _tell(works: Sequence[Work], failure: Exception | None = None) -> None:
    for work in works:
        if failure is None:
            work.tell()
        else:
            work.future.set_exception(words.error(failure))
