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
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

import msgspec

from allocator.core.audit import AuditEntry, AuditRecord, first_broken
from allocator.core.record import REWARD, Cell, Record
from allocator.errors import AllocatorError
from allocator.ports import Clock, Counted, Entropy, ExposureRow, News, OutcomeRow, Save, SystemClock, SystemEntropy
from allocator.stores import documents, rules
from allocator.stores import sqlite_file as disk
from allocator.stores import sqlite_words as words
from allocator.stores.sqlite_file import MEMORY
from allocator.stores.sqlite_writer import Add, Deed, Grant, Item, Saves, Writer

T = TypeVar("T")


class SqliteStore(Writer):
    """A `Store` in the file `path`, created with its directory, mode 0600; or ":memory:", gone with the object.

    Raises Unavailable: STORE_LOCKED when another process has the file, STORE_CORRUPT when it is damaged, STORE_FOREIGN when it is
    another program's, STORE_TOO_NEW when a later version wrote it, else STORE_FAILED. Overloaded, STORE_FULL: no room to create it.
    """

    shared = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        entropy: Entropy = SystemEntropy(),  # noqa: B008  (it has no state)
        clock: Clock = SystemClock(),  # noqa: B008
    ) -> None:
        name = os.fspath(path)
        super().__init__(name if name == MEMORY else os.path.realpath(name))
        self._clock = clock
        self._entropy = entropy
        self._term = rules.Term()
        self._leading = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._lock: int | None = None
        try:
            with words.told():
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

    def save(self, saves: Sequence[Save], term: int | None = None) -> list[AllocatorError | None]:
        return self._submit(Saves([Item(save, documents.to_bytes(save.record).decode(), term) for save in saves]))

    def add(self, outcomes: Sequence[OutcomeRow], exposures: Sequence[ExposureRow] = ()) -> list[Counted]:
        rules.check_nonces(outcomes)
        return self._submit(Add(outcomes, exposures))

    def add_soon(self, outcomes: Sequence[OutcomeRow], exposures: Sequence[ExposureRow] = ()) -> Future[list[Counted]]:
        rules.check_nonces(outcomes)
        return self._enqueue(Add(outcomes, exposures))

    def ready(self, exposures: Sequence[ExposureRow]) -> list[ExposureRow]:
        made = []
        for uid, cell, _ in exposures:
            number = self._numbers.get(uid)
            made.append(ExposureRow(uid, cell, b"" if number is None else words.line(words.summed(number, cell[:4], cell[4:]))))
        return made

    def cells(self, uid: str) -> list[Cell]:
        return words.proven(self._read(words.ROWS, words.READ_CELLS.format(table="cells"), uid))

    def settled(self, uid: str) -> list[Cell]:
        return words.proven(self._read(words.ROWS, words.READ_CELLS.format(table="settled"), uid))

    def changed(self, since: int) -> tuple[int, list[str]]:
        marks = self._read(words.MARKS, "SELECT json_group_object(uid, mark) FROM experiments WHERE mark > ?", since)
        return max(marks.values(), default=since), sorted(marks, key=marks.__getitem__, reverse=True)

    def grant(self, uid: str, arm: int, kind: str, amount: int, limit: int) -> int:
        return self._submit(Grant(uid, arm, kind, amount, limit))

    def granted(self, uid: str) -> dict[tuple[int, str], int]:
        rows = self._rows("SELECT uid, arm, kind, granted, proof FROM grants WHERE uid = ?", uid)
        for row in rows:
            words.prove(*row)
        return {(arm, kind): granted for _, arm, kind, granted, _ in rows}

    def audit(self, after: int = 0, limit: int = 1000, experiment: str | None = None) -> list[AuditRecord]:
        values: tuple[object, ...] = (after, max(limit, 0))
        if experiment is None:
            rows = self._read(words.AUDIT, words.READ_AUDIT.format(where="sequence > ?"), *values)
        else:
            rows = self._read(words.AUDIT, words.READ_AUDIT.format(where="experiment = ? AND sequence > ?"), experiment, *values)
        return [AuditRecord(sequence, AuditEntry(seconds, *texts), digest) for sequence, seconds, *texts, digest in rows]

    def lead(self, holder: str, seconds: float) -> int | None:
        """One process has the file, so only its number outlives it: the term of a process that is gone is over."""
        with self._leading:
            if self._closed:
                raise rules.closed()
            return self._term.lead(holder, seconds, self._clock.monotonic(), lambda: self._submit(Deed(self._next_term)))

    def resign(self, holder: str) -> None:
        with self._leading:
            self._term.resign(holder)

    def news(self, since: int) -> News:
        found = self._read(words.NEWS, words.READ_NEWS, since, since)
        words.prove(*found.life)
        epoch, _, mark, _ = found.life
        return News(mark, found.names, found.kinds, self._term.beat, epoch)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:  # noqa: ARG002
        """There is no other server: one process has the file."""
        return lambda: None

    def items(self, kind: str) -> dict[str, str]:
        found = self._rows("SELECT kind, key, value, proof FROM items WHERE kind = ?", kind)
        for row in found:
            words.prove(*row)
        return {key: value for _, key, value, _ in found}

    def put(self, kind: str, key: str, value: str | None, expected: str | None = None, audit: Sequence[AuditEntry] = ()) -> None:
        self._submit(Deed(lambda: self._put(kind, key, value, expected, audit)))

    def begin(self, secret: bytes) -> str:
        epoch = self._entropy.bytes(8).hex()
        self._submit(Deed(lambda: self._begin(epoch, secret)))
        self._secret = secret
        return epoch

    def close(self) -> None:
        with self._gate:
            first, self._closed = not self._closed, True
            if first:
                self._queue.put(None)
        self._thread.join()
        if first:
            self._let_go()

    def check(self) -> list[str]:
        """What is wrong with the file, a sentence each: its structure, documents, sums, the chain of audit records. Reads it all."""
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
                    found += _unequal(db, record)
            for table in ("cells", "settled"):
                altered = {row[0] for row in db.execute(f"SELECT {words.COLUMNS} FROM {table}") if not words.fits(row)}
                found += [f"a sum of experiment number {number} in table {table} was altered" for number in sorted(altered)]
            for *account, granted, proof in db.execute("SELECT uid, arm, kind, granted, proof FROM grants"):
                if words.proof_of(*account, granted) != proof:
                    found.append(f"what was granted of the budget of experiment {account[0]} was altered")
            for item in db.execute("SELECT kind, key, value, proof FROM items"):
                if words.proof_of(*item[:3]) != item[3]:
                    found.append(f"item {item[1]!r} of kind {item[0]!r} was altered")
        broken = first_broken(self._whole_audit())
        if broken:
            found.append(f"audit record {broken} does not fit the one before it: one of them was altered, removed or swapped")
        return found

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy everything, as of one moment, to the new file `path`, mode 0600; it holds the secret. Raises AlreadyExists."""
        with self._aside() as db, words.told():
            disk.copy_file(db, os.fspath(path))

    # Reading: on the caller's thread.

    def _rows(self, sql: str, *values: object) -> list[tuple]:
        with self._reading, words.told():
            if self._reader is None:
                raise rules.closed()
            return self._reader.execute(sql, values).fetchall()

    def _read(self, decoder: msgspec.json.Decoder[T], sql: str, *values: object) -> T:
        """What a statement gives as one JSON text. As bytes: the decoder tells damage better."""
        ((text,),) = self._rows(f"SELECT CAST(({sql}) AS BLOB)", *values)
        with words.told():
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
        with words.told(), contextlib.closing(disk.connect(self._path, read_only=True)) as db:
            yield db

    # Opening and closing.

    def _open_also_when_full(self, entropy: Entropy) -> None:
        """An index of the log is made at opening, and must find room: who restarts on a full disk has freezes to keep."""
        try:
            self._open(entropy)
        except (sqlite3.Error, OSError) as exc:
            if not (words.is_full(exc) and self._reserve.give()):
                raise
            self._let_go()
            self._open(entropy)
        self._reserve.take()

    def _open(self, entropy: Entropy) -> None:
        if self._path == MEMORY:
            self._writer = self._reader = disk.connect(MEMORY)
            disk.migrate(self._writer, MEMORY)
        else:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            self._lock = disk.lock_file(self._path + ".lock")
            disk.create(self._path, disk.NEW)
            disk.private(self._path)
            disk.refuse_emptied(self._path)
            with contextlib.closing(disk.connect(self._path, plain=True)) as db:
                disk.examine(db)
                self._tail.check()
                self._tail.clear()
            self._tail.close()
            self._writer = disk.connect(self._path)
            disk.migrate(self._writer, self._path)
            disk.check_schema(self._writer)
            self._checkpoint("TRUNCATE")
            self._reader = disk.connect(self._path, read_only=True)
        for row in self._writer.execute("SELECT number, uid, through, coarsen, proof FROM experiments"):
            words.prove(*row)
            self._numbers[row[1]] = row[0]
        if self._writer.execute("SELECT min(sequence) FROM audit").fetchone()[0] not in (None, 1):
            raise words.altered()  # a number below 1 would hide its record from who reads the chain from its beginning
        found = self._writer.execute("SELECT key, proof FROM secret").fetchone()
        if found is None:
            key = entropy.bytes(32)
            found = (key, words.proof_of(key))
            self._writer.execute("INSERT INTO secret VALUES (1, ?, ?)", found)
        words.prove(*found)
        self._secret: bytes = found[0]
        if self._writer.execute(words.READ_LIFE).fetchone() is None:
            self._live(entropy.bytes(8).hex(), 0, 1)
        self._life()

    def _let_go(self) -> None:
        with self._reading, contextlib.suppress(sqlite3.Error):
            if self._path != MEMORY and self._reader is not None:
                self._reader.close()
            self._reader = None
        if self._writer is not None:
            if self._path != MEMORY:
                with contextlib.suppress(OSError):
                    self._tail.clear()
                    self._checkpoint("TRUNCATE")
            with contextlib.suppress(sqlite3.Error):
                self._writer.close()
            self._writer = None
        self._tail.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _unequal(db: sqlite3.Connection, record: Record) -> list[str]:
    """Open buckets in which other than one reward was added for each decision that is down as rewarded."""
    reward = record.experiment.reward.metric
    if reward not in record.metrics:
        return []
    found = db.execute(words.REWARDS, {"uid": record.uid, "bit": record.metrics.index(reward), "stream": REWARD}).fetchall()
    return [
        f"experiment {record.name!r}: bucket {bucket} adds up {added} rewards, and {seen} were counted" for bucket, added, seen in found
    ]
