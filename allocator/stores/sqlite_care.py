"""Looking after the file of a SQLite store: is it whole, copy it, put a copy in its place.

In: paths. Out: sentences, files. A check takes the lock, so that no server writes meanwhile, and looks at a copy: what it looks at is never
changed by looking, an older file is not migrated by it. A backup takes no lock and reads only, so a server may go on writing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator

from allocator.errors import AllocatorError, AlreadyExists, InvalidArgument, NotFound, Unavailable
from allocator.stores import sqlite_file as disk
from allocator.stores import sqlite_words as words
from allocator.stores.sqlite import SqliteStore

COMPANIONS = ("-wal", "-shm", ".tail")  # that belong to a store's file while it is open, or was not closed


def check(path: str) -> list[str]:
    """What is wrong with the store, a sentence each; none when it is whole.

    Raises NotFound, or Unavailable: STORE_LOCKED while a server has it, STORE_FOREIGN, STORE_TOO_NEW.
    """
    with _held(path), tempfile.TemporaryDirectory(prefix="allocator-check-", dir=os.path.dirname(os.path.realpath(path))) as aside:
        copy = os.path.join(aside, "copy.db")
        try:
            _copy(path, copy)
            with contextlib.closing(SqliteStore(copy)) as store:
                return store.check()
        except AllocatorError as error:
            if error.reason != "STORE_CORRUPT":
                raise
            return [error.message]


def backup(path: str, target: str) -> int:
    """Copy everything, as of one moment, to the new file `target`, mode 0600. Returns its bytes. Raises NotFound, AlreadyExists."""
    _must_exist(path)
    _copy(path, target)
    return os.stat(target).st_size


def restore(source: str, path: str, *, replace: bool = False) -> str:
    """Put a copy of `source`, which must be whole, in the place of the store `path`, with a new epoch: versions count on from earlier ones.

    Returns where the store that was there is kept, "" when there was none. Whenever it is broken off, the store is the old one, whole, or
    the new one. Raises AlreadyExists unless it may be replaced, NotFound, InvalidArgument for what is no file, Unavailable when the source
    is damaged, somebody has either of them, or the file to replace is another program's.
    """
    found = check(source)
    if found:
        raise words.damaged(f"{source} is not whole, and nothing was replaced: {found[0]}")
    path = os.path.realpath(path)
    exists = os.path.exists(path)
    if exists and not os.path.isfile(path):
        raise InvalidArgument.of_field("path", f"got {path}, which is no file; a store is a file", reason="NO_FILE", path=path)
    if exists and not replace:
        raise AlreadyExists(f"{path} exists; it is kept aside and replaced only when you say so", reason="STORE_EXISTS", path=path)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with _locked(path):
        incoming = f"{path}.incoming"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(incoming)  # of an attempt that was broken off
        _copy_into_another_life(source, incoming)
        kept = _unused(f"{path}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        try:
            if exists:
                _set_aside(path, kept)
            else:
                _move_companions(path, kept)  # of a file that is gone: they would be read into this one
            os.rename(incoming, path)
        except BaseException:
            if os.path.exists(kept) and os.path.samefile(kept, path):
                os.unlink(kept)  # it is the store still, and nobody is to open it under two names
            raise
        _sync_directory(path)
    return kept if any(os.path.exists(kept + rest) for rest in ("", *COMPANIONS)) else ""


def _set_aside(path: str, kept: str) -> None:
    """Keep what is at `path` under another name as well, and let nothing but the file itself be in the way.

    First the log is moved into the file, so that the file alone is the store, and one renaming puts another in its place. Where that is
    refused, the store is damaged: then an empty file is put there, which no server takes for a store, before its log goes.
    """
    try:
        _move_log_into_file(path)
    except AllocatorError as error:
        if error.reason not in ("STORE_CORRUPT", "STORE_FAILED"):
            raise
        damaged = True
    else:
        damaged = False
    _second_name(path, kept)
    if damaged:
        nothing = f"{path}.nothing"
        disk.private(nothing)
        os.rename(nothing, path)
        _move_companions(path, kept)
    for companion in COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + companion)


def _move_companions(path: str, kept: str) -> None:
    for companion in COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + companion, kept + companion)


def _move_log_into_file(path: str) -> None:
    """As a server does that opens it. Raises Unavailable for a store that is damaged, not ours, or in somebody's use."""
    disk.refuse_emptied(path)
    tail = disk.Tail(path)
    try:
        with words.told(), contextlib.closing(disk.connect(path, plain=True)) as db:
            disk.examine(db)
            tail.check()
            tail.clear()
            busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except Unavailable as error:
        busy = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
        if not busy:
            raise
    finally:
        tail.close()
    if busy:
        raise Unavailable(f"another program has {path} open; nothing was replaced: try again when it is done", reason="STORE_LOCKED")


def _second_name(path: str, name: str) -> None:
    """The file under another name as well; a copy where a file has but one."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copy2(path, name)


def _unused(stem: str) -> str:
    """A name that nothing has, nor anything that belongs to it."""
    for number in itertools.count(1):
        name = f"{stem}.replaced" if number == 1 else f"{stem}-{number}.replaced"
        if not any(os.path.lexists(name + rest) for rest in ("", *COMPANIONS)):
            return name
    raise AssertionError


def _sync_directory(path: str) -> None:
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _copy(path: str, target: str) -> None:
    """Everything that is committed, read and not written; what the log no longer holds is missed, and told."""
    disk.refuse_emptied(path)
    tail = disk.Tail(os.path.realpath(path))
    try:
        with words.told(), contextlib.closing(disk.connect(path, read_only=True)) as db:
            disk.examine(db)
            tail.check()
            disk.copy_file(db, target)
    finally:
        tail.close()


def _copy_into_another_life(source: str, target: str) -> None:
    """The same under another epoch, by which all who knew the store before see that it went back. The key of decision ids stays."""
    with tempfile.TemporaryDirectory(prefix="allocator-restore-", dir=os.path.dirname(os.path.realpath(target))) as aside:
        copy = os.path.join(aside, "copy.db")
        _copy(source, copy)
        with contextlib.closing(SqliteStore(copy)) as store:
            store.begin(store.secret())
            store.backup(target)


@contextlib.contextmanager
def _held(path: str) -> Iterator[None]:
    _must_exist(path)
    with _locked(path):
        yield


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """No server may have the file meanwhile."""
    file = disk.lock_file(os.path.realpath(path) + ".lock")
    try:
        yield
    finally:
        os.close(file)


def _must_exist(path: str) -> None:
    if not os.path.isfile(path):
        raise NotFound(f"there is no file {path}", reason="NO_FILE", path=path)
