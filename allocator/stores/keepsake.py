"""What one server keeps on its own disk, in a small SQLite file of its own: see `ports.Keepsake`.

In: records, freezes that the store could not take, grants, and which life of the store they are of. Out: the same after a restart, when the
store may be gone, empty or older. One process has the directory; a file that is damaged is refused, because what it holds may be the only
memory of a freeze.

What is acknowledged stands in the file itself, behind a rollback journal that is empty again when a write returns. A write-ahead log is
cheaper by a sync or two, and forgets without a word: SQLite takes its first damaged frame for its end, and what was acknowledged behind it
is gone. Written once a second and at freezes, so the price does not matter.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from allocator.core.audit import AuditEntry
from allocator.core.record import Record
from allocator.errors import Unavailable
from allocator.ports import Granted, Kept, Pending
from allocator.stores import documents, rules
from allocator.stores import sqlite_file as disk
from allocator.stores import sqlite_words as words

FILE = "keepsake.db"
SCHEMA = 1
TABLES = f"""
CREATE TABLE life (only INTEGER PRIMARY KEY CHECK (only = 1), epoch TEXT, earlier TEXT, secret BLOB, proof INTEGER);
CREATE TABLE records (name TEXT PRIMARY KEY, document BLOB) WITHOUT ROWID;
CREATE TABLE pending (name TEXT PRIMARY KEY, document BLOB, entry TEXT, proof INTEGER) WITHOUT ROWID;
CREATE TABLE granted (uid TEXT, arm INTEGER, kind TEXT, amount INTEGER, proof INTEGER, PRIMARY KEY (uid, arm, kind)) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA};
"""


class DiskKeepsake:
    """A `Keepsake` in the directory `path`, which is created, mode 0700.

    Raises Unavailable: STORE_LOCKED when another process has it, STORE_CORRUPT when it is damaged, STORE_TOO_NEW when a later version
    wrote it, else STORE_FAILED. Overloaded, STORE_FULL: no room to create it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.realpath(path)
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._file: int | None = None
        try:
            with self._told():
                os.makedirs(self.path, mode=0o700, exist_ok=True)
                file = os.path.join(self.path, FILE)
                self._file = disk.lock_file(file + ".lock")
                disk.create(file, TABLES)
                disk.private(file)
                disk.refuse_emptied(file, "put it back")
                self._db = sqlite3.connect(file, timeout=disk.BUSY_SECONDS, isolation_level=None, check_same_thread=False)
                self._open(self._db)
        except BaseException:
            self.close()
            raise

    def load(self) -> Kept:
        with self._lock, self._told():
            db = self._connection()
            life = db.execute("SELECT epoch, earlier, secret, proof FROM life").fetchone()
            if life is None:
                return Kept()
            words.prove(*life)
            granted: dict[str, dict[tuple[int, str], int]] = {}
            for uid, arm, kind, amount, proof in db.execute("SELECT uid, arm, kind, amount, proof FROM granted"):
                words.prove(uid, arm, kind, amount, proof)
                granted.setdefault(uid, {})[arm, kind] = amount
            return Kept(
                epoch=life[0],
                earlier=tuple(json.loads(life[1])),
                secret=life[2],
                records=tuple(documents.from_bytes(row[0]) for row in db.execute("SELECT document FROM records ORDER BY name")),
                pending=tuple(_pending(*row) for row in db.execute("SELECT document, entry, proof FROM pending ORDER BY name")),
                granted=granted,
            )

    def keep(
        self,
        records: Iterable[Record] = (),
        pending: Mapping[str, Pending | None] | None = None,
        granted: Mapping[str, Granted] | None = None,
    ) -> None:
        kept = [(record.name, documents.to_bytes(record)) for record in records]
        accounts = [(uid, *of, amount) for uid, sums in (granted or {}).items() for of, amount in sums.items()]
        with self._transaction() as db:
            db.executemany("REPLACE INTO records VALUES (?, ?)", kept)
            for name, held in (pending or {}).items():
                if held is None:
                    db.execute("DELETE FROM pending WHERE name = ?", (name,))
                else:
                    entry = json.dumps(astuple(held.entry))
                    db.execute(
                        "REPLACE INTO pending VALUES (?, ?, ?, ?)", (name, documents.to_bytes(held.record), entry, words.proof_of(entry))
                    )
            db.executemany(
                "INSERT INTO granted VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (uid, arm, kind) DO UPDATE SET amount = excluded.amount, proof = excluded.proof"
                " WHERE excluded.amount > amount",
                [(*account, words.proof_of(*account)) for account in accounts],
            )

    def belong(self, epoch: str, earlier: Sequence[str], secret: bytes) -> None:
        row = (epoch, json.dumps(list(earlier)), secret)
        with self._transaction() as db:
            db.execute("REPLACE INTO life VALUES (1, ?, ?, ?, ?)", (*row, words.proof_of(*row)))

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _open(self, db: sqlite3.Connection) -> None:
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise Unavailable(f"it is damaged: {verdict}", reason="STORE_CORRUPT")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise Unavailable("it was written by a later version", reason="STORE_TOO_NEW", schema=version)
        (mode,) = db.execute("PRAGMA journal_mode = TRUNCATE").fetchone()  # the first versions had a write-ahead log
        if mode != "truncate":
            raise Unavailable("it cannot have a rollback journal", reason="STORE_FAILED")
        db.execute("PRAGMA synchronous = FULL")
        disk.check_schema(db, TABLES)

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise rules.closed()
        return self._db

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say whose trouble it is: not the store's."""
        try:
            with words.told():
                yield
        except Unavailable as error:
            advice = "; without it this server forgets what it knew of a lost store" if error.reason == "STORE_CORRUPT" else ""
            raise Unavailable(f"the state directory {self.path}: {error.message}{advice}", reason=error.reason, **error.metadata) from error


def _pending(document: bytes, entry: str, proof: int) -> Pending:
    words.prove(entry, proof)
    values: list[Any] = json.loads(entry)
    return Pending(documents.from_bytes(document), AuditEntry(*values))
