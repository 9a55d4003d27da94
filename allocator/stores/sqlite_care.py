"""Looking after the file of a SQLite store: is it whole, copy it, put a copy in its place.

In: paths. Out: sentences, files. A check takes the lock, so that no server writes meanwhile, and looks at a copy: what it looks at is never
changed by looking, an older file is not migrated by it. A backup takes no lock and reads only, so a server may go on writing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator

from allocator.errors import AllocatorError, AlreadyExists, NotFound
from allocator.stores import sqlite_file as disk
from allocator.stores import sqlite_words as words
from allocator.stores.sqlite import SqliteStore

COMPANIONS = ("", "-wal", "-shm", ".tail")  # that belong to a store's file


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

    Returns where the store that was there is kept, "" when there was none. Raises AlreadyExists unless it may be replaced, NotFound,
    Unavailable when the source is damaged or a server has either of them.
    """
    found = check(source)
    if found:
        raise words.damaged(f"{source} is not whole, and nothing was replaced: {found[0]}")
    exists = os.path.exists(path)
    if exists and not replace:
        raise AlreadyExists(f"{path} exists; it is kept aside and replaced only when you say so", reason="STORE_EXISTS", path=path)
    os.makedirs(os.path.dirname(os.path.realpath(path)), mode=0o700, exist_ok=True)
    with _locked(path):
        incoming = f"{path}.incoming"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(incoming)  # of an attempt that was broken off
        _copy_into_another_life(source, incoming)
        kept = ""
        if exists:
            kept = f"{path}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.replaced"
            for companion in reversed(COMPANIONS):
                with contextlib.suppress(FileNotFoundError):
                    shutil.move(path + companion, kept + companion)
        os.rename(incoming, path)
    return kept


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
