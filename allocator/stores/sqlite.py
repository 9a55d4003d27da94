"""The default store: one SQLite file, embedded. In: the words of `Store`. Out: the same, on disk before a call returns.

The idea. One thread owns the one connection that writes and checkpoints (before 3.51.3, SQLite can damage a write-ahead log that two
connections write or checkpoint). Callers put their work into its queue and wait. The writer takes all that waits, does it in one
transaction, and lets the callers go when COMMIT, hence fsync, has returned: the more of them wait, the more share a commit, and a lone
one waits for nobody. Outcomes of all callers are counted together; where that is refused, each caller's alone, in a savepoint.

Reads go over a second connection, which can neither write nor checkpoint. It sees the last commit and does not wait for the one
under way; over the writer, a tick that reads a thousand experiments would wait for as many commits.

A batch goes into a statement as one JSON text, and rows come out of one likewise. The sqlite3 module gives up the interpreter's lock at
each step of a statement, and beside a busy thread may wait 5 ms to have it back: row by row, a batch of 500 took up to 6 s;
as one text, 0.1 s at most (`benchmarks/bench_store.py`).

Trouble. A full disk is Overloaded (STORE_FULL) and passes by itself; saves have a reserve beside the file, so that a freeze gets
through meanwhile. Anything else is Unavailable. What failed is rolled back on the connection where it failed, so that the next
transaction overwrites what a failed fsync left in the log; a new connection would take it for committed. For the same reason,
opening a file first moves its log into it.

Dropped: several writing connections, autocheckpoint (whoever commits would run it), an ORM, gathering by a timer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import queue
import sqlite3
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib import resources
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from allocator.core.audit import GENESIS, AuditEntry, AuditRecord, first_broken
from allocator.core.record import Cell, Record
from allocator.errors import AllocatorError, AlreadyExists, Overloaded, Unavailable
from allocator.ports import Counted, Entropy, ExposureRow, OutcomeRow, Save, Settle, SystemEntropy
from allocator.stores import documents, rules
from allocator.stores.rules import Decision, Sums

MEMORY = ":memory:"
APPLICATION_ID = 0x616C6C6F
GROUP_ROWS = 5_000  # that share a commit; a caller with more has one to itself
PAGE_BYTES = 1024  # nonces are random: nearly each outcome changes a page of its own, and a commit writes whole pages
LOG_BYTES = 16 << 20  # of write-ahead log before it is moved into the file
RESERVE_BYTES = 4 << 20
BUSY_SECONDS = 2.0
FULL_RETRY_SECONDS = 5.0

log = logging.getLogger(__name__)
T = TypeVar("T")
W = TypeVar("W")


class SqliteStore:
    """A `Store` in the file `path`, created with its directory, mode 0600; or ":memory:", gone with the object.

    Raises Unavailable: STORE_LOCKED when another process has the file, STORE_CORRUPT when it is damaged, STORE_FOREIGN when it is
    another program's, STORE_TOO_NEW when a later version wrote it, else STORE_FAILED. Overloaded, STORE_FULL: no room to create it.
    """

    def __init__(self, path: str | os.PathLike[str], entropy: Entropy = SystemEntropy()) -> None:  # noqa: B008  (it has no state)
        name = os.fspath(path)
        self._path = name if name == MEMORY else os.path.realpath(name)
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self._lock: int | None = None
        self._closed = False
        self._gate = threading.Lock()  # nothing enters the queue behind its end
        self._queue: queue.SimpleQueue[_Add | _Grant | _Save | None] = queue.SimpleQueue()
        self._reserve = _Reserve(self._path)
        try:
            with _told():
                self._open_also_when_full(entropy)
        except BaseException:
            self._let_go()
            raise
        self._thread = threading.Thread(target=self._write, name="sqlite-writer", daemon=True)
        self._thread.start()

    def secret(self) -> bytes:
        if self._closed:
            raise rules.closed()
        return self._secret

    def records(self) -> list[Record]:
        return [documents.from_bytes(document) for (document,) in self._rows("SELECT CAST(document AS BLOB) FROM records ORDER BY name")]

    def record(self, name: str) -> Record | None:
        rows = self._rows("SELECT CAST(document AS BLOB) FROM records WHERE name = ?", name)
        return documents.from_bytes(rows[0][0]) if rows else None

    def save(self, saves: Sequence[Save]) -> list[AllocatorError | None]:
        return self._submit(_Save([_Item(save, documents.to_bytes(save.record).decode()) for save in saves]))

    def add(self, outcomes: Sequence[OutcomeRow], exposures: Sequence[ExposureRow] = ()) -> list[Counted]:
        rules.check_nonces(outcomes)
        return self._submit(_Add(outcomes, exposures))

    def cells(self, uid: str) -> list[Cell]:
        return _proven(self._read(_ROWS, _READ_CELLS.format(table="cells"), uid))

    def settled(self, uid: str) -> list[Cell]:
        return _proven(self._read(_ROWS, _READ_CELLS.format(table="settled"), uid))

    def changed(self, since: int) -> tuple[int, list[str]]:
        marks = self._read(_MARKS, "SELECT json_group_object(uid, mark) FROM experiments WHERE mark > ?", since)
        return max(marks.values(), default=since), list(marks)

    def grant(self, uid: str, arm: int, kind: str, amount: int, limit: int) -> int:
        return self._submit(_Grant(uid, arm, kind, amount, limit))

    def granted(self, uid: str) -> dict[tuple[int, str], int]:
        rows = self._rows("SELECT uid, arm, kind, granted, proof FROM grants WHERE uid = ?", uid)
        for row in rows:
            _prove(*row)
        return {(arm, kind): granted for _, arm, kind, granted, _ in rows}

    def audit(self, after: int = 0, limit: int = 1000, experiment: str | None = None) -> list[AuditRecord]:
        values: tuple[object, ...] = (after, max(limit, 0))
        if experiment is None:
            rows = self._read(_AUDIT, _READ_AUDIT.format(where="sequence > ?"), *values)
        else:
            rows = self._read(_AUDIT, _READ_AUDIT.format(where="experiment = ? AND sequence > ?"), experiment, *values)
        return [AuditRecord(sequence, AuditEntry(seconds, *texts), digest) for sequence, seconds, *texts, digest in rows]

    def close(self) -> None:
        with self._gate:
            first, self._closed = not self._closed, True
            if first:
                self._queue.put(None)
        self._thread.join()
        if first:
            self._let_go()

    def check(self) -> list[str]:
        """What is wrong with the file, a sentence each: its structure, documents, sums, and the chain of audit records. Reads it all."""
        with self._aside() as db:
            found = [str(line) for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"]
            for name, uid, version, document in db.execute("SELECT name, uid, version, CAST(document AS BLOB) FROM records"):
                try:
                    record = documents.from_bytes(document)
                except AllocatorError as exc:
                    found.append(f"experiment {name!r}: {exc.message}")
                else:
                    if (record.name, record.uid, record.version) != (name, uid, version):
                        found.append(f"experiment {name!r} is written down as version {record.version} of {record.name!r}")
            for table in ("cells", "settled"):
                altered = {row[0] for row in db.execute(f"SELECT {_COLUMNS} FROM {table}") if not _fits(row)}
                found += [f"a sum of experiment number {number} in table {table} was altered" for number in sorted(altered)]
            for *account, granted, proof in db.execute("SELECT uid, arm, kind, granted, proof FROM grants"):
                if _proof_of(*account, granted) != proof:
                    found.append(f"what was granted of the budget of experiment {account[0]} was altered")
        broken = first_broken(self._whole_audit())
        if broken:
            found.append(f"audit record {broken} does not fit the one before it: one of them was altered, removed or swapped")
        return found

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy everything, as of one moment, to the new file `path`, mode 0600; it holds the secret. Raises AlreadyExists."""
        with self._aside() as db, _told():
            _copy(db, os.fspath(path))

    # Reading: on the caller's thread.

    def _rows(self, sql: str, *values: object) -> list[tuple]:
        with self._reading, _told():
            if self._reader is None:
                raise rules.closed()
            return self._reader.execute(sql, values).fetchall()

    def _read(self, decoder: msgspec.json.Decoder[T], sql: str, *values: object) -> T:
        """What a statement gives as one JSON text. As bytes: the decoder tells damage better."""
        ((text,),) = self._rows(f"SELECT CAST(({sql}) AS BLOB)", *values)
        with _told():
            return decoder.decode(text)

    def _whole_audit(self) -> Iterator[AuditRecord]:
        last = 0
        while page := self.audit(last):
            yield from page
            last = page[-1].sequence

    @contextlib.contextmanager
    def _aside(self) -> Iterator[sqlite3.Connection]:
        """A connection for long reading, so that nobody waits for it; in memory there is but one."""
        if self._closed:
            raise rules.closed()
        if self._path == MEMORY:
            with self._reading:
                yield self._reader
            return
        with _told(), contextlib.closing(_connect(self._path, read_only=True)) as db:
            yield db

    # Writing: on the writer's thread.

    def _submit(self, work: _Add | _Grant | _Save) -> Any:
        with self._gate:
            if self._closed:
                raise rules.closed()
            self._queue.put(work)
        return work.future.result()

    def _write(self) -> None:
        """Take all the work that waits, carry it out, tell its callers; until the end of the queue."""
        ended = False
        while not ended:
            group: list[_Add | _Grant | _Save] = []
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
                self._carry_out(group)

    def _carry_out(self, group: list[_Add | _Grant | _Save]) -> None:
        adds = [work for work in group if isinstance(work, _Add | _Grant)]
        saves = [work for work in group if isinstance(work, _Save)]
        if adds and not self._reserve.take():
            _tell(adds, OSError(errno.ENOSPC, "the reserve for saves is not whole"))
            adds = []
        failure = self._commit(adds, saves)
        if saves and failure is not None and _is_full(failure) and self._reserve.give():
            _tell(adds, failure)
            adds = []
            failure = self._commit([], saves)
            self._checkpoint()
            self._reserve.take()
        _tell([*adds, *saves], failure)
        if self._log_bytes() > LOG_BYTES:
            self._checkpoint()

    def _commit(self, adds: list[_Add | _Grant], saves: list[_Save]) -> Exception | None:
        """All of it in one transaction. The answers are left with the works. Returns why nothing of it was written, or None."""
        with self._reading if self._path == MEMORY else contextlib.nullcontext():
            try:
                if self._writer is None:
                    self._writer = _connect(self._path)
                self._writer.execute("BEGIN IMMEDIATE")
                self._isolate(self._count_all, [work for work in adds if isinstance(work, _Add)])
                self._isolate(self._grant_all, [work for work in adds if isinstance(work, _Grant)])
                self._isolate(self._save_all, [item for work in saves for item in work.items])
                self._writer.execute("COMMIT")
            except Exception as exc:
                self._roll_back()
                return exc
        return None

    def _roll_back(self) -> None:
        try:
            if self._writer is not None and self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error:
            log.warning("a transaction could not be rolled back; its connection is given up", exc_info=True)
            self._writer.close()
            self._writer = None  # the reader keeps the index of the log alive: nothing uncommitted comes back

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
            refusal = _refusal(exc)
            if refusal is None:
                raise
            self._writer.execute("ROLLBACK TO step")
        self._writer.execute("RELEASE step")
        return refusal

    def _count_all(self, works: list[_Add]) -> None:
        counted = iter(self._count([row for work in works for row in work.outcomes], [row for work in works for row in work.exposures]))
        for work in works:
            work.answer = list(islice(counted, len(work.outcomes)))

    def _count(self, outcomes: list[OutcomeRow], exposures: list[ExposureRow]) -> list[Counted]:
        numbers, settles = self._experiments({row[0] for row in outcomes} | {row[0] for row in exposures})
        seen = self._seen(outcomes, numbers)
        batch = rules.count(outcomes, exposures, lambda decision: seen.get(decision, 0), settles)
        if batch.masks:
            masks: dict[int, dict[int, dict[int, int]]] = {}
            for (uid, nonce, bucket), mask in batch.masks.items():
                masks.setdefault(numbers[uid], {}).setdefault(bucket, {})[_NONCE.unpack(nonce)[0]] = mask
            self._writer.execute(_WRITE_SEEN, (_text(masks),))
        self._touch(self._add_sums("cells", batch.open, numbers) | self._add_sums("settled", batch.settled, numbers))
        return batch.counted

    def _experiments(self, uids: set[str]) -> tuple[dict[str, int], dict[str, Settle]]:
        """The numbers of experiments, given out where there was none; and what is settled of them."""
        found = self._ask(_EXPERIMENTS, _READ_EXPERIMENTS, _text(list(uids)))
        numbers = {uid: number for number, uid, _, _, _ in found}
        new = sorted(uids - numbers.keys())
        if new:
            (last,) = self._writer.execute("SELECT coalesce(max(number), 0) FROM experiments").fetchone()
            numbers.update(zip(new, range(last + 1, last + 1 + len(new)), strict=True))
            rows = [(numbers[uid], uid, _proof_of(numbers[uid], uid, None, 0)) for uid in new]
            self._writer.execute(_WRITE_EXPERIMENTS, (_text(rows),))
        for row in found:
            _prove(*row)
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
            nonces.setdefault(numbers[uid], {}).setdefault(bucket, []).append(_NONCE.unpack(nonce)[0])
        found = self._ask(_SEEN, _READ_SEEN, _text(nonces))
        uids = {number: uid for uid, number in numbers.items()}
        return {(uids[number], _NONCE.pack(nonce), bucket): mask for number, bucket, nonce, mask in found}

    def _add_sums(self, table: str, added: dict[str, Sums], numbers: dict[str, int]) -> set[int]:
        """Add to the cells of a table. Returns the experiments to which something was added."""
        rows = [
            (numbers[uid], *key, *values, _proof_of_sums((numbers[uid], *key), values))
            for uid, sums in added.items()
            for key, values in sums.items()
        ]
        if rows:
            self._writer.execute(_ADD_CELLS.format(table=table), (_text(rows),))
        return {row[0] for row in rows}

    def _touch(self, numbers: set[int]) -> None:
        if numbers:
            self._writer.execute(_WRITE_MARKS, (_text(list(numbers)),))

    def _grant_all(self, works: list[_Grant]) -> None:
        for work in works:
            account = (work.uid, work.arm, work.kind)
            row = self._writer.execute(_READ_GRANT, account).fetchone()
            if row is not None:
                _prove(*account, *row)
            before = row[0] if row is not None else 0
            work.answer = max(0, min(work.amount, work.limit - before))
            if work.answer:
                after = before + work.answer
                self._writer.execute("REPLACE INTO grants VALUES (?, ?, ?, ?, ?)", (*account, after, _proof_of(*account, after)))

    def _save_all(self, items: list[_Item]) -> None:
        versions = dict(self._ask(_VERSIONS, _READ_VERSIONS, _text([item.save.record.name for item in items])))
        accepted = []
        for item in items:
            record = item.save.record
            item.answer = rules.refusal(item.save, versions.get(record.name))
            if item.answer is None:
                versions[record.name] = record.version
                accepted.append(item)
        if not accepted:
            return
        rows = [(item.save.record.name, item.save.record.uid, item.save.record.version, item.document) for item in accepted]
        self._writer.execute(_WRITE_RECORDS, (_text(rows),))
        self._append([entry for item in accepted for entry in item.save.audit])
        for item in accepted:
            if item.save.settle is not None:
                self._settle(item.save.record.uid, item.save.settle)

    def _append(self, entries: list[AuditEntry]) -> None:
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
        proof = _proof_of(number, uid, through, coarsen)
        self._writer.execute(
            "UPDATE experiments SET through = ?, coarsen = ?, proof = ? WHERE number = ?", (through, coarsen, proof, number)
        )
        moved: Sums = {}
        for cell in _proven(self._ask(_ROWS, _READ_CELLS.format(table="cells") + " AND bucket <= ?", uid, through)):
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

    # Opening and closing.

    def _open_also_when_full(self, entropy: Entropy) -> None:
        """An index of the log is made at opening, and must find room: who restarts on a full disk has freezes to keep."""
        try:
            self._open(entropy)
        except (sqlite3.Error, OSError) as exc:
            if not (_is_full(exc) and self._reserve.give()):
                raise
            self._let_go()
            self._open(entropy)
        self._reserve.take()

    def _open(self, entropy: Entropy) -> None:
        if self._path == MEMORY:
            self._writer = self._reader = _connect(MEMORY)
            _migrate(self._writer, MEMORY)
        else:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            self._lock = _lock_file(self._path + ".lock")
            _private(self._path)
            with contextlib.closing(_connect(self._path, plain=True)) as db:
                _examine(db)
            self._writer = _connect(self._path)
            _migrate(self._writer, self._path)
            self._checkpoint("TRUNCATE")
            self._reader = _connect(self._path, read_only=True)
        for row in self._writer.execute("SELECT number, uid, through, coarsen, proof FROM experiments"):
            _prove(*row)
        found = self._writer.execute("SELECT key, proof FROM secret").fetchone()
        if found is None:
            key = entropy.bytes(32)
            found = (key, _proof_of(key))
            self._writer.execute("INSERT INTO secret VALUES (1, ?, ?)", found)
        _prove(*found)
        self._secret: bytes = found[0]

    def _let_go(self) -> None:
        with self._reading, contextlib.suppress(sqlite3.Error):
            if self._path != MEMORY and self._reader is not None:
                self._reader.close()
            self._reader = None
        if self._writer is not None:
            if self._path != MEMORY:
                self._checkpoint("TRUNCATE")
            with contextlib.suppress(sqlite3.Error):
                self._writer.close()
            self._writer = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@dataclass(slots=True, eq=False)
class _Add:
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
class _Grant:
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

    tell = _Add.tell


@dataclass(slots=True, eq=False)
class _Item:
    """One save, with its document."""

    save: Save
    document: str
    answer: Exception | None = None


@dataclass(slots=True, eq=False)
class _Save:
    """A caller's saves, and the future on which it waits."""

    items: list[_Item]
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


class _Reserve:
    """Room on the disk that is given up when there is no other, for what must get through: a save may be a freeze.

    Once it was given up, nothing but saves gets room until it is whole again; else outcomes would eat it bit by bit.
    """

    def __init__(self, path: str) -> None:
        self._path = path + ".reserve"
        self._directory = os.path.dirname(path)
        self._whole = path == MEMORY

    def take(self) -> bool:
        """Take what is missing, as much as there is; the first time only where it is a small part of what is free.

        Returns whether there is room for others.
        """
        if self._whole:
            return True
        try:
            disk = os.statvfs(self._directory)
            if not os.path.exists(self._path) and disk.f_bavail * disk.f_frsize < 8 * RESERVE_BYTES:
                return True
            size = RESERVE_BYTES
            while size >= RESERVE_BYTES >> 6 and not self._hold(size):
                size //= 2
            self._whole = size == RESERVE_BYTES
        except (OSError, AttributeError):  # this system, or its file system, sets no room aside
            self._whole = True
        return self._whole

    def give(self) -> bool:
        """Free it. False when there was nothing to free."""
        with contextlib.suppress(OSError):
            if os.stat(self._path).st_size:
                os.truncate(self._path, 0)
                self._whole = False
                return True
        return False

    def _hold(self, size: int) -> bool:
        """Have at least `size` bytes; where they cannot be had, as many as before."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        held = os.fstat(file).st_size
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as exc:
            os.ftruncate(file, held)
            if not _is_full(exc):
                raise
            return False
        finally:
            os.close(file)
        return True


def _tell(works: Sequence[_Add | _Grant | _Save], failure: Exception | None = None) -> None:
    for work in works:
        if failure is None:
            work.tell()
        else:
            work.future.set_exception(_error(failure))


def _connect(path: str, *, read_only: bool = False, plain: bool = False) -> sqlite3.Connection:
    """plain: for a look at a file of which nothing is known; nothing is set in it."""
    target = path if path == MEMORY else f"file:{quote(path)}?mode={'ro' if read_only else 'rw'}"
    db = sqlite3.connect(target, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=path != MEMORY)
    try:
        for pragma in ("trusted_schema = 0", "cell_size_check = 1", "mmap_size = 0", "foreign_keys = 1", "temp_store = 2"):
            db.execute(f"PRAGMA {pragma}")
        if not (read_only or plain):
            db.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # heeded in a new file only
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal" and path != MEMORY:
                raise Unavailable(f"{path} cannot have a write-ahead log; a local file system is needed", reason="STORE_FAILED")
            for pragma in ("synchronous = FULL", "wal_autocheckpoint = 0", "journal_size_limit = 0", "cache_size = -65536"):
                db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


def _examine(db: sqlite3.Connection) -> None:
    """Raise Unavailable for a file that is damaged or not ours."""
    verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise Unavailable(f"the store is damaged: {verdict}", reason="STORE_CORRUPT")
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise Unavailable("the file belongs to another program", reason="STORE_FOREIGN")


def migrations() -> list[tuple[int, str]]:
    """Number and text of each migration, in order: the files of `sql/`."""
    files = (resources.files(__package__) / "sql").iterdir()
    return sorted((int(file.name[:4]), file.read_text("utf-8")) for file in files if file.name.endswith(".sql"))


def _migrate(db: sqlite3.Connection, path: str) -> None:
    """Apply what is missing, each migration in its own transaction; copy a file that holds something beside it first."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    known = migrations()
    if version > known[-1][0]:
        raise Unavailable(
            f"the store was written by a later version: its schema is {version}, this version knows {known[-1][0]}",
            reason="STORE_TOO_NEW",
            schema=version,
        )
    missing = [(number, script) for number, script in known if number > version]
    if missing and version and path != MEMORY:
        copy = f"{path}.{version:04}.backup"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy)  # of an attempt that failed
        _copy(db, copy)
    for number, script in missing:
        try:
            db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def _copy(db: sqlite3.Connection, path: str) -> None:
    """A consistent copy in the new file `path`: whole under its name, or not there."""
    if os.path.exists(path):
        raise AlreadyExists(f"{path} exists; a backup does not overwrite", path=path)
    partial = path + ".partial"
    _private(partial)
    try:
        with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as copy:
            db.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            _examine(copy)
        os.rename(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _private(path: str) -> None:
    """Create the file if need be; nobody but its owner may read it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(file, 0o600)
    finally:
        os.close(file)


def _lock_file(path: str) -> int:
    """Hold the lock until the descriptor is closed, or the process is gone. Raises Unavailable at once when somebody else has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        holder = os.pread(file, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(file)
        raise Unavailable(
            f"another process (pid {holder}) has this store open; only one may: stop it, or choose another file",
            reason="STORE_LOCKED",
            path=path.removesuffix(".lock"),
            pid=holder,
        ) from exc
    with contextlib.suppress(OSError):  # on a full disk the lock holds without the number
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Say a failure of SQLite or the system in the words of the store."""
    try:
        yield
    except (sqlite3.Error, OSError, *_DAMAGE) as exc:
        raise _error(exc) from exc


def _error(exc: Exception) -> Exception:
    """What a caller is told: one error for each, since raising it leaves marks on it."""
    code = getattr(exc, "sqlite_errorcode", 0)
    if _is_full(exc):
        error: Exception = Overloaded("the disk is full; nothing was written", reason="STORE_FULL", retry_after_seconds=FULL_RETRY_SECONDS)
    elif code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or isinstance(exc, _DAMAGE):
        error = Unavailable(f"the store is damaged: {str(exc)[:200]}", reason="STORE_CORRUPT")
    elif isinstance(exc, sqlite3.Error | OSError):
        error = Unavailable(f"the store failed: {str(exc)[:200]}", reason="STORE_FAILED")
    else:
        return exc
    error.__cause__ = exc
    return error


def _is_full(exc: Exception) -> bool:
    if isinstance(exc, OSError):
        return exc.errno in (errno.ENOSPC, errno.EDQUOT)
    code = getattr(exc, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE


def _refusal(exc: Exception) -> Exception | None:
    """The answer to work that was refused for what is in it, or None when the trouble is not with the work."""
    if not isinstance(exc, sqlite3.Error):
        return _error(exc)
    if "int64" in str(exc) or "integer overflow" in str(exc):
        refusal = rules.too_large()
        refusal.__cause__ = exc
        return refusal
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return _error(exc) if code & 0xFF in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG) else None


def _proof_of(*values: object) -> int:
    return zlib.crc32(repr(values).encode())


def _prove(*row: object) -> None:
    """Raise Unavailable unless a row ends in the proof of what stands before it."""
    if _proof_of(*row[:-1]) != row[-1]:
        raise _altered()


def _proof_of_sums(key: tuple[object, ...], sums: Sequence[int]) -> int:
    """Additive in the sums of one key, so that what is added carries its proof along; another key has another factor."""
    count, total, high, low = sums
    one, two, three, four = _WEIGHTS
    return (zlib.crc32(repr(key).encode()) + 1) * (one * count + two * total + three * high + four * low) % _PRIME


def _proven(rows: list[tuple]) -> list[Cell]:
    """Cells of rows (experiment, the fields of the cell, proof). Raises Unavailable when one was altered."""
    if not all(map(_fits, rows)):
        raise _altered()
    return [Cell._make(row[1:9]) for row in rows]


def _fits(row: tuple) -> bool:
    return _proof_of_sums(row[:5], row[5:9]) == row[9]


def _altered() -> Unavailable:
    return Unavailable("the store is damaged: a row does not fit its check number", reason="STORE_CORRUPT")


def _text(values: object) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


_DAMAGE = (UnicodeDecodeError, msgspec.MsgspecError)  # of text in the file
_ROWS = msgspec.json.Decoder(list[tuple[int, int, int, int, str, int, int, int, int, int]])
_EXPERIMENTS = msgspec.json.Decoder(list[tuple[int, str, int | None, int, int]])
_SEEN = msgspec.json.Decoder(list[tuple[int, int, int, int]])
_VERSIONS = msgspec.json.Decoder(list[tuple[str, int]])
_MARKS = msgspec.json.Decoder(dict[str, int])
_AUDIT = msgspec.json.Decoder(list[tuple[int, float, str, str, str, str, str, str, str]], strict=False)  # the time is text there
_NONCE = struct.Struct(">q")
_PRIME = 2**61 - 1
_WEIGHTS = (0x1B873593CC9E2D51, 0x0A4B6E8F2C5D7193, 0x13C6EF372FE94F82, 0x0D1B54A32D192ED0)

_COLUMNS = "experiment, bucket, arm, segment, stream, count, total, square_high, square_low, proof"

_READ_CELLS = f"""SELECT json_group_array(json_array({_COLUMNS}))
    FROM {{table}} WHERE experiment = (SELECT number FROM experiments WHERE uid = ?)"""

_ADD_CELLS = f"""INSERT INTO {{table}} SELECT {", ".join(f"json_extract(value, '$[{i}]')" for i in range(10))} FROM json_each(?) WHERE true
    ON CONFLICT (experiment, bucket, arm, segment, stream) DO UPDATE SET
        count = count + excluded.count, total = total + excluded.total,
        square_high = square_high + excluded.square_high, square_low = square_low + excluded.square_low,
        proof = (proof + excluded.proof) % {_PRIME}"""

_READ_EXPERIMENTS = """SELECT json_group_array(json_array(number, uid, through, coarsen, proof))
    FROM experiments WHERE uid IN (SELECT value FROM json_each(?))"""

_WRITE_EXPERIMENTS = """INSERT INTO experiments (number, uid, proof)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?)"""

_WRITE_MARKS = """UPDATE experiments SET mark = (SELECT max(mark) + 1 FROM experiments)
    WHERE number IN (SELECT value FROM json_each(?))"""

# {experiment: {bucket: [nonce, ...]}}; CROSS JOIN keeps this order, so that each nonce is looked up.
_READ_SEEN = """SELECT json_group_array(json_array(s.experiment, s.bucket, s.nonce, s.metrics))
    FROM json_each(?) e CROSS JOIN json_each(e.value) b CROSS JOIN json_each(b.value) n CROSS JOIN seen s
    ON s.experiment = CAST(e.key AS INTEGER) AND s.bucket = CAST(b.key AS INTEGER) AND s.nonce = n.value"""

# {experiment: {bucket: {nonce: mask}}}
_WRITE_SEEN = """INSERT INTO seen
    SELECT CAST(e.key AS INTEGER), CAST(b.key AS INTEGER), CAST(n.key AS INTEGER), n.value
    FROM json_each(?) e CROSS JOIN json_each(e.value) b CROSS JOIN json_each(b.value) n WHERE true
    ON CONFLICT (experiment, bucket, nonce) DO UPDATE SET metrics = excluded.metrics"""

_READ_GRANT = "SELECT granted, proof FROM grants WHERE uid = ? AND arm = ? AND kind = ?"

_READ_VERSIONS = "SELECT json_group_array(json_array(name, version)) FROM records WHERE name IN (SELECT value FROM json_each(?))"

_WRITE_RECORDS = """INSERT INTO records
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), json_extract(value, '$[3]')
    FROM json_each(?) WHERE true
    ON CONFLICT (name) DO UPDATE SET uid = excluded.uid, version = excluded.version, document = excluded.document"""

_READ_AUDIT = """SELECT json_group_array(json_array(sequence, seconds, actor, action, experiment, reason, before, after, digest))
    FROM (SELECT * FROM audit WHERE {where} ORDER BY sequence LIMIT ?)"""
