"""The file of a SQLite store: connections to it, its lock, its migrations, copies of it, where its log ends, room held in reserve."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import sys
from importlib import resources
from urllib.parse import quote

from allocator.errors import AlreadyExists, Unavailable
from allocator.stores import sqlite_words as words

MEMORY = ":memory:"
APPLICATION_ID = 0x616C6C6F
PAGE_BYTES = 1024  # nonces are random: nearly each outcome changes a page of its own, and a commit writes whole pages
RESERVE_BYTES = 4 << 20
BUSY_SECONDS = 2.0
NEW = f"PRAGMA page_size = {PAGE_BYTES}; PRAGMA journal_mode = WAL;"  # what a new store begins with: one page
HEAD_BYTES = 48  # of the index of a write-ahead log


def connect(path: str, *, read_only: bool = False, plain: bool = False) -> sqlite3.Connection:
    """plain: for a look at a file of which nothing is known; nothing is set in it."""
    target = path if path == MEMORY else f"file:{quote(path)}?mode={'ro' if read_only else 'rw'}"
    db = sqlite3.connect(target, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=path != MEMORY)
    try:
        for pragma in ("trusted_schema = 0", "cell_size_check = 1", "mmap_size = 0", "foreign_keys = 1", "temp_store = 2"):
            db.execute(f"PRAGMA {pragma}")
        if not (read_only or plain):
            db.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # heeded in memory only: a file has its size
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal" and path != MEMORY:
                raise Unavailable(f"{path} cannot have a write-ahead log; a local file system is needed", reason="STORE_FAILED")
            for pragma in ("synchronous = FULL", "wal_autocheckpoint = 0", "journal_size_limit = 0", "cache_size = -65536"):
                db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


def create(path: str, script: str) -> None:
    """Where there is no file, make one with what `script` writes into it: whole under its name, or not there.

    Raises Unavailable when a log is left of one that is gone: it would be read into the new file.
    """
    if os.path.lexists(path):
        return
    left = [name for name in (f"{path}-wal", f"{path}.tail") if os.path.exists(name) and os.path.getsize(name)]
    if left:
        raise words.damaged(
            f"{path} is gone, and {left[0]} is left of it: put the file back, or a backup in its place;"
            f" to begin anew, remove {' and '.join(left)}"
        )
    new = f"{path}.new"
    for rest in ("", "-journal", "-wal", "-shm"):  # of an attempt that was broken off
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new + rest)
    private(new)
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
        db.executescript(script)
    os.rename(new, path)


def refuse_emptied(path: str, backup: str = "put a backup in its place with `allocator db restore BACKUP FILE --yes`") -> None:
    """Raise Unavailable for a file without a byte in it: SQLite would take it for a new one, and throw its log away."""
    if os.path.isfile(path) and not os.path.getsize(path):
        raise words.damaged(f"{path} is empty, and what was in it is gone: {backup}, or remove the file to begin anew")


def examine(db: sqlite3.Connection) -> None:
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


def migrate(db: sqlite3.Connection, path: str) -> None:
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
        copy_file(db, copy)
    for number, script in missing:
        try:
            db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def check_schema(db: sqlite3.Connection, script: str | None = None) -> None:
    """Raise Unavailable unless everything that the migrations (or `script`) made is there in their words.

    One changed letter makes a table read empty.
    """
    with contextlib.closing(sqlite3.connect(MEMORY, isolation_level=None)) as fresh:
        if script is None:
            migrate(fresh, MEMORY)
        else:
            fresh.executescript(script)
        if not set(fresh.execute(_SCHEMA)) <= set(db.execute(_SCHEMA)):
            raise words.altered()


_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master"


def copy_file(db: sqlite3.Connection, path: str) -> None:
    """A consistent copy in the new file `path`: whole under its name, or not there."""
    if os.path.exists(path):
        raise AlreadyExists(f"{path} exists; a backup does not overwrite", path=path)
    partial = path + ".partial"
    private(partial)
    try:
        with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as copy:
            db.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            examine(copy)
        os.rename(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def private(path: str) -> None:
    """Create the file if need be; nobody but its owner may read it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(file, 0o600)
    finally:
        os.close(file)


def lock_file(path: str) -> int:
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


class Tail:
    """How far the write-ahead log had got, in a small file of its own: `NAME.tail`.

    SQLite takes the first damaged frame of a log for its end, and would forget what was committed behind it without a word. After each
    commit the head of the log's index is noted here; at opening, the log must reach as far. The note is not synced, and the log was before
    it was written, so a crash leaves it behind the log, never ahead. It is cleared, and synced, before the log is removed.

    The index lies in NAME-shm: https://www.sqlite.org/walformat.html, section 2.1. frames, salt: at bytes 16 and 32.
    """

    def __init__(self, path: str) -> None:
        self._path = path + ".tail"
        self._index_path = path + "-shm"
        self._of_memory = path == MEMORY
        self._file = self._index = -1

    def note(self) -> None:
        """After a commit."""
        if self._of_memory:
            return
        try:
            if self._index < 0:  # kept open: closing it would let go of SQLite's locks
                self._index = os.open(self._index_path, os.O_RDONLY | os.O_CLOEXEC)
            os.pwrite(self._open(), os.pread(self._index, HEAD_BYTES, 0), 0)
        except OSError:  # half a note would accuse a log that is whole; an old one accuses none, so it may stay where it cannot go
            with contextlib.suppress(OSError):
                self._drop()

    def check(self) -> None:
        """With the log's index made, before the log is moved. Raises Unavailable when the log ends before the note."""
        try:
            with open(self._path, "rb") as file:
                noted = file.read()
        except FileNotFoundError:
            return
        if not noted:
            return
        self._index = os.open(self._index_path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.pread(self._index, HEAD_BYTES, 0)
        frames, salt = _frames_and_salt(found)
        noted_frames, noted_salt = _frames_and_salt(noted) if len(noted) == HEAD_BYTES else (-1, -1)
        if salt == 0 or noted_frames < 0 or (salt == noted_salt and frames < noted_frames) or (salt - noted_salt) % 2**32 >= 2**31:
            raise Unavailable(
                f"the store is damaged: of its write-ahead log, {frames} pages can be read, and {noted_frames} had been written. What was"
                f" acknowledged is lost: restore a backup, or remove {self._path} to go on without it",
                reason="STORE_CORRUPT",
            )

    def clear(self) -> None:
        """Before the log is removed: nothing is in it alone. A note that cannot be emptied goes, or it would accuse a log that is whole."""
        if self._of_memory:
            return
        try:
            os.ftruncate(self._open(), 0)
            os.fsync(self._file)
        except OSError:
            self._drop()

    def close(self) -> None:
        """After the connections are closed."""
        for file in (self._file, self._index):
            if file >= 0:
                os.close(file)
        self._file = self._index = -1

    def _drop(self) -> None:
        """Remove the note. The index stays open: closing it would let go of SQLite's locks."""
        file, self._file = self._file, -1
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        if file >= 0:
            os.close(file)

    def _open(self) -> int:
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._file


def _frames_and_salt(head: bytes) -> tuple[int, int]:
    """Of the head of a log's index. The salt grows by one each time that the log begins again, and is written big-endian."""
    return int.from_bytes(head[16:20], sys.byteorder), int.from_bytes(head[32:36], "big")


class Reserve:
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
            if not words.is_full(exc):
                raise
            return False
        finally:
            os.close(file)
        return True
