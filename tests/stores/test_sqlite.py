"""What the SQLite store promises beyond the contract: durability, one owner, and trouble that is told and survived.

Files are examined with plain sqlite3. Full disks are small tmpfs mounts, failing writes come from a file size limit or from strace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from allocator.core.lifecycle import State, Status
from allocator.errors import AllocatorError, AlreadyExists, Conflict, Overloaded, Unavailable
from allocator.ports import Counted, ExposureRow, Save, Settle
from allocator.stores import documents, sqlite_file, sqlite_writer
from allocator.stores.sqlite import SqliteStore
from tests.conftest import fill
from tests.stores.conftest import OTHER, UID, cell, entry, exposure, outcome, record, sums

ACCEPTED, DUPLICATE, LATE = Counted.ACCEPTED, Counted.DUPLICATE, Counted.LATE


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "data" / "allocator.db"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[SqliteStore]:
    with contextlib.closing(SqliteStore(path)) as store:
        yield store


def ask(path: Path, sql: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(AllocatorError) as caught:
        call()
    return caught.value.reason


# Durability


def test_what_was_answered_is_there_after_opening_again(path):
    with opened(path) as store:
        store.add([outcome(1), outcome(2, bucket=3)], [exposure()])
        store.save([Save(record(status=Status(State.FROZEN, freeze_epoch=1)), None, (entry(),), Settle(5, 2))])
        before = [store.secret(), store.records(), store.cells(UID), store.settled(UID), store.audit(), store.changed(0)]
    with opened(path) as store:
        assert [store.secret(), store.records(), store.cells(UID), store.settled(UID), store.audit(), store.changed(0)] == before
        assert store.add([outcome(1), outcome(2, bucket=3)]) == [DUPLICATE, LATE]
        assert store.changed(before[-1][0]) == (before[-1][0], [])
        store.add([outcome(9)])
        assert store.changed(before[-1][0])[1] == [UID]


def test_an_answer_is_given_after_the_commit_only(path):
    with opened(path) as store, contextlib.closing(sqlite3.connect(path)) as other:
        for number in range(20):
            store.add([outcome(number)])
            assert other.execute("SELECT sum(count) FROM cells").fetchone() == (number + 1,)


def test_the_file_is_written_in_full_sync_and_belongs_to_its_owner(path):
    with opened(path) as store:
        pragma = {
            name: store._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "wal_autocheckpoint")
        }
        assert pragma == {"journal_mode": "wal", "synchronous": 2, "wal_autocheckpoint": 0}
        for name in ("trusted_schema", "mmap_size"):
            assert store._writer.execute(f"PRAGMA {name}").fetchone()[0] == 0
        store.add([outcome(1)])
        files = sorted(path.parent.iterdir())
        assert {file.name for file in files} >= {"allocator.db", "allocator.db-wal", "allocator.db-shm", "allocator.db.lock"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_file_that_others_could_read_is_closed_to_them(path):
    with opened(path):
        pass
    path.chmod(0o644)
    with opened(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_reader_cannot_write(path):
    with opened(path) as store, pytest.raises(sqlite3.OperationalError, match="readonly"):
        store._reader.execute("DELETE FROM cells")


def test_a_store_in_memory_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened(":memory:") as store:
        store.add([outcome(1)])
        assert store.save([Save(record(), None, (entry(),), Settle(10))]) == [None]
        assert len(store.settled(UID)) == 1
        assert store.check() == []
    assert list(tmp_path.iterdir()) == []


def test_what_was_known_of_a_settled_bucket_is_forgotten(path):
    with opened(path) as store:
        store.add([outcome(n, bucket=n % 10) for n in range(100)] + [outcome(1, bucket=3, uid=OTHER)])
        store.save([Save(record(), None, settle=Settle(6))])
        assert ask(path, "SELECT bucket, count(*) FROM seen GROUP BY experiment, bucket ORDER BY 1") == [(3, 1), (7, 10), (8, 10), (9, 10)]


# Group commit


@contextlib.contextmanager
def together(store: SqliteStore) -> Iterator[Callable[..., Future]]:
    """What is submitted in the block is carried out after it, as one group: the writer is held up by an earlier call."""
    entered, go = threading.Event(), threading.Event()
    carry_out = store._carry_out

    def held_up(group: list) -> None:
        entered.set()
        go.wait()
        carry_out(group)

    store._carry_out = held_up
    futures: list[Future] = []
    with ThreadPoolExecutor(64) as pool:
        pool.submit(store.add, [])
        entered.wait()
        try:
            yield lambda *call: futures.append(pool.submit(*call)) or futures[-1]
            while store._queue.qsize() < len(futures):
                os.sched_yield()
        finally:
            go.set()


def test_callers_that_wait_share_a_commit_and_a_lone_one_has_its_own(path):
    with opened(path) as store:
        statements: list[str] = []
        with together(store) as submit:
            answers = [submit(store.add, [outcome(n), outcome(0)]) for n in range(1, 41)]
            saved = [submit(store.save, [Save(record(f"e{n}"), None, (entry(),))]) for n in range(10)]
            store._writer.set_trace_callback(statements.append)
        assert statements.count("COMMIT") == 2  # that of the call which held the others up, and theirs
        assert sorted(count.value for answer in answers for count in answer.result()) == ["ACCEPTED"] * 41 + ["DUPLICATE"] * 39
        assert [answer.result() for answer in saved] == [[None]] * 10
        statements.clear()
        store.add([outcome(99)])
        assert statements.count("COMMIT") == 1
    assert ask(path, "SELECT sum(count) FROM cells") == [(42,)]


def test_work_that_is_refused_does_not_spoil_what_it_is_committed_with(path):
    with opened(path) as store:
        store.save([Save(record("taken"), None)])
        statements: list[str] = []
        with together(store) as submit:
            store._writer.set_trace_callback(statements.append)
            good = [submit(store.add, [outcome(n)]) for n in range(5)]
            bad = submit(store.add, [outcome(7)], [ExposureRow(OTHER, cell(total=2**63))])
            broken = submit(store.add, [outcome(8)], [ExposureRow(UID, cell(total=1.5))])
            bug = submit(store.add, [outcome(9)], [ExposureRow(UID, cell(total=object()))])
            saved = submit(store.save, [Save(record("new"), None, (entry(),))])
            clash = submit(store.save, [Save(record("taken", version=2), 9)])
            unwritable = submit(store.save, [Save(record("third"), None, (entry("\ud800"),))])
        assert statements.count("COMMIT") == 2
        assert [answer.result() for answer in good] == [[ACCEPTED]] * 5
        assert reason_of(bad.result) == "SUM_OVERFLOW"
        assert isinstance(broken.exception(), AllocatorError)
        assert isinstance(bug.exception(), TypeError)
        assert saved.result() == [None]
        assert isinstance(clash.result()[0], Conflict)
        assert isinstance(unwritable.exception(), UnicodeEncodeError)
        assert store.add([outcome(n) for n in (0, 7, 8, 9)]) == [DUPLICATE, ACCEPTED, ACCEPTED, ACCEPTED]
        assert [found.name for found in store.records()] == ["default/new", "default/taken"]
        assert store.check() == []


def test_a_batch_takes_the_same_few_statements_whatever_its_size(path):
    """Each step of a statement gives up the interpreter's lock, and beside a busy thread waits for it."""
    with opened(path) as store:
        statements: list[str] = []
        store.add([outcome(0)])
        store._writer.set_trace_callback(statements.append)
        store.add([outcome(1)], [exposure()])
        few = len(statements)
        store.add([outcome(n, bucket=n % 7, metrics=(0, 1), uid=(UID, OTHER)[n % 2]) for n in range(500)], [exposure(n) for n in range(50)])
        assert len(statements) - few <= few + 2  # two more for an experiment that is new
        assert few <= 10


def test_rows_are_ready_once_their_experiment_has_a_number_that_was_committed(path):
    def ready(store, uid=UID):
        return [bool(row.ready) for row in store.ready([exposure(uid=uid)])]

    with opened(path) as store:
        with pytest.raises(AllocatorError):
            store.add([], [exposure(), ExposureRow(UID, cell(total=2**63))])
        assert ready(store) == [False]  # its number went with the transaction
        with together(store) as submit:
            good, bad = submit(store.add, [], [exposure()]), submit(store.add, [], [ExposureRow(OTHER, cell(total=2**63))])
        assert good.exception() is None
        assert isinstance(bad.exception(), AllocatorError)
        assert ready(store, OTHER) == [False]
        store.add([], [exposure(), exposure(uid=OTHER)])
        assert (ready(store), ready(store, OTHER)) == ([True], [True])
        store.add([], store.ready([exposure(n, uid=uid) for n in range(20) for uid in (UID, OTHER)]))
        assert store.check() == []
    with opened(path) as store:
        assert (ready(store), ready(store, OTHER)) == ([True], [True])
    assert ask(path, "SELECT experiment, sum(count) FROM cells GROUP BY 1") == [(1, 22), (2, 21)]


class Broken:
    """A connection of which the next COMMIT fails."""

    def __init__(self, connection):
        self._connection = connection

    def execute(self, sql, *values):
        if sql == "COMMIT":
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(sql, *values)

    def __getattr__(self, name):
        return getattr(self._connection, name)


def test_a_number_whose_commit_failed_is_not_remembered(path):
    with opened(path) as store:
        store.add([], [exposure()])
        writer, store._writer = store._writer, Broken(store._writer)
        with pytest.raises(Unavailable):
            store.add([], [exposure(uid=OTHER)])
        store._writer = writer
        assert [bool(row.ready) for row in store.ready([exposure(), exposure(uid=OTHER)])] == [True, False]
        store.add([], [exposure(uid="03" * 8)])  # gets the number that the other one had for a moment
        store.add([], store.ready([exposure(), exposure(uid=OTHER), exposure(uid="03" * 8)]))
        assert [sum(found.count for found in store.cells(uid)) for uid in (UID, OTHER, "03" * 8)] == [2, 1, 2]
        assert store.check() == []


def test_what_one_experiment_has_settled_holds_up_no_other_whose_buckets_are_wider(path):
    with opened(path) as store:
        store.add([], [exposure(1_000_000), exposure(10, uid=OTHER)])
        assert store.save([Save(record(), None, settle=Settle(999_999, 2))]) == [None]
        statements: list[str] = []
        store._writer.set_trace_callback(statements.append)
        store.add([], store.ready([exposure(1_000_000), exposure(10, uid=OTHER)]))
        assert not [sql for sql in statements if "coarsen" in sql], "nothing was looked up of an experiment"
        store.add([], store.ready([exposure(999_999), exposure(10, uid=OTHER)]))
        assert [sql for sql in statements if "coarsen" in sql]
        store._writer.set_trace_callback(None)
        assert [[found.count for found in store.cells(uid)] for uid in (UID, OTHER)] == [[2], [3]]
        assert [found.count for found in store.settled(UID)] == [1]


def test_a_row_made_ready_that_is_refused_spoils_nothing_else(path):
    with opened(path) as store:
        store.add([], [exposure()])
        full = store.ready([ExposureRow(UID, cell(total=2**63 - 1))])
        store.add([], full)
        with together(store) as submit:
            good, bad = submit(store.add, [], store.ready([exposure()])), submit(store.add, [], full)
        assert good.exception() is None
        assert reason_of(bad.result) == "SUM_OVERFLOW"
        assert sums(store.cells(UID))[10, 1, 0, "_exposures"][0] == 2
        assert store.check() == []


def test_a_group_takes_no_more_rows_than_its_limit(path, monkeypatch):
    monkeypatch.setattr(sqlite_writer, "GROUP_ROWS", 10)
    with opened(path) as store:
        statements: list[str] = []
        with together(store) as submit:
            store._writer.set_trace_callback(statements.append)
            for start in range(0, 40, 4):
                submit(store.add, [outcome(n) for n in range(start, start + 4)])
        assert statements.count("COMMIT") == 1 + 4  # three callers of four rows pass ten: groups of 3, 3, 3, 1
        assert len(store.add([outcome(n) for n in range(100, 200)])) == 100


def test_closing_finishes_what_was_begun(path):
    store = SqliteStore(path)
    with together(store) as submit:
        answers = [submit(store.add, [outcome(n)]) for n in range(20)]
        while store._queue.qsize() < 20:
            os.sched_yield()
        submit(store.close)
    assert [answer.result() for answer in answers] == [[ACCEPTED]] * 20
    assert reason_of(lambda: store.add([outcome(99)])) == "STORE_CLOSED"
    assert ask(path, "SELECT sum(count) FROM cells") == [(20,)]


def test_a_reader_sees_whole_batches_only(path):
    with opened(path) as store:
        done = threading.Event()

        def write() -> None:
            for start in range(0, 600, 20):
                store.add([outcome(n, metrics=(0, 1)) for n in range(start, start + 20)])
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not done.is_set():
            counts = {found.stream: found.count for found in store.cells(UID)}
            assert counts.get("m0", 0) == counts.get("m1", 0)
            assert counts.get("m0", 0) % 20 == 0
        writer.join()


def test_the_log_is_moved_into_the_file_before_it_grows_far(path, monkeypatch):
    monkeypatch.setattr(sqlite_writer, "LOG_BYTES", 100_000)
    with opened(path) as store:
        largest = 0
        for batch in range(60):
            store.add([outcome(1_000 * batch + n) for n in range(100)])
            store.cells(UID)
            largest = max(largest, os.stat(f"{path}-wal").st_size)
        assert 100_000 < largest < 500_000
    assert not os.path.exists(f"{path}-wal")


# One owner


def test_a_second_store_on_the_file_is_refused_at_once(path):
    with opened(path) as store:
        with pytest.raises(Unavailable, match=f"pid {os.getpid()}.*has this store open") as caught:
            SqliteStore(path)
        assert caught.value.reason == "STORE_LOCKED"
        code = f"from allocator.stores.sqlite import SqliteStore; SqliteStore({str(path)!r})"
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert child.returncode != 0
        assert "has this store open" in child.stderr
        assert store.add([outcome(1)]) == [ACCEPTED]
        link = path.parent / "link.db"
        link.symlink_to(path)
        assert reason_of(lambda: SqliteStore(link)) == "STORE_LOCKED"
    with opened(path) as store:
        assert store.add([outcome(1)]) == [DUPLICATE]


def test_a_file_locked_by_another_program_is_unavailable_until_it_lets_go(path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.05)
    with opened(path) as store:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert reason_of(lambda: store.add([outcome(1)])) == "STORE_FAILED"
            assert reason_of(lambda: store.save([Save(record(), None)])) == "STORE_FAILED"
            assert store.cells(UID) == []
        assert store.add([outcome(1)]) == [ACCEPTED]


# Trouble


def test_a_full_disk_is_overload_counts_nothing_and_passes(path):
    """SQLite's own limit on the size of the file gives the error of a full disk anywhere."""
    with opened(path) as store:
        store.add([outcome(1)])
        pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
        store._writer.execute(f"PRAGMA max_page_count = {pages}")
        many = [outcome(n) for n in range(2, 2_000)]
        for _ in range(3):
            with pytest.raises(Overloaded) as caught:
                store.add(many, [exposure()])
            assert caught.value.reason == "STORE_FULL"
            assert caught.value.retry_after_seconds > 0
            assert caught.value.__cause__.sqlite_errorname == "SQLITE_FULL"
        assert store.cells(UID) == [cell(stream="m0")]
        store._writer.execute("PRAGMA max_page_count = 1000000")
        assert store.add(many, [exposure()]) == [ACCEPTED] * len(many)
        assert store.check() == []


def test_a_really_full_disk_loses_nothing_and_the_store_goes_on_when_there_is_room(small_disk):
    disk = small_disk("1m")
    path = disk / "a.db"
    accepted = 0
    with opened(path) as store:
        for round_ in range(3):
            filler = fill(disk)
            refused = ""
            for batch in range(200):
                rows = [outcome(round_ * 1_000_000 + batch * 100 + n) for n in range(100)]
                try:
                    accepted += store.add(rows).count(ACCEPTED)
                except Overloaded as exc:
                    refused = exc.reason
                    break
            assert refused == "STORE_FULL"
            assert sum(found.count for found in store.cells(UID)) == accepted
            filler.unlink()
            assert store.add(rows) == [ACCEPTED] * 100
            accepted += 100
        assert store.check() == []
    assert ask(path, "SELECT sum(count) FROM cells") == [(accepted,)]
    assert ask(path, "SELECT count(*) FROM seen") == [(accepted,)]


def test_a_freeze_gets_through_on_a_full_disk(small_disk):
    """There is room for saves that outcomes never get, however often both come."""
    disk = small_disk("40m")
    answers: list[str] = []
    with opened(disk / "a.db") as store:
        store.save([Save(record(), None)])
        filler = fill(disk)
        for version in range(2, 200):
            rows = [outcome(500 * version + n, bucket=version) for n in range(500)]
            try:
                answers.append(store.add(rows)[0].value)
            except Overloaded as exc:
                answers.append(exc.reason)
            frozen = record(version=version, status=Status(State.FROZEN, freeze_epoch=version))
            assert store.save([Save(frozen, version - 1, (entry("freeze"),))]) == [None]
        assert answers.count("STORE_FULL") > 100
        filler.unlink()
        assert store.add([outcome(1, bucket=1)]) == [ACCEPTED]
        assert (disk / "a.db.reserve").stat().st_size == sqlite_file.RESERVE_BYTES
    with opened(disk / "a.db") as store:
        assert store.record("default/ranker") == frozen
        assert len(store.audit()) == 198
        assert sum(found.count for found in store.cells(UID)) == 500 * answers.count("ACCEPTED") + 1
        assert store.check() == []


def test_the_room_that_a_save_took_is_set_aside_again_at_once_and_not_when_outcomes_come(small_disk):
    """Another program takes whatever is free; nobody reports; and freeze after freeze gets through."""
    disk = small_disk("40m")
    with opened(disk / "a.db") as store:
        store.save([Save(record(), None)])
        for version in range(2, 6):
            fill(disk).rename(disk / f"filler-{version}")
            frozen = record(version=version, status=Status(State.FROZEN, freeze_epoch=version))
            assert store.save([Save(frozen, version - 1, (entry(),))]) == [None]
            assert (disk / "a.db.reserve").stat().st_size >= sqlite_file.RESERVE_BYTES >> version
        assert reason_of(lambda: store.add([outcome(1)])) == "STORE_FULL"
    with opened(disk / "a.db") as store:
        assert store.record("default/ranker") == frozen


def test_a_store_opens_on_a_full_disk_and_still_freezes(small_disk):
    disk = small_disk("40m")
    with opened(disk / "a.db") as store:
        store.add([outcome(1)])
        store.save([Save(record(), None)])
    filler = fill(disk)
    with opened(disk / "a.db") as store:
        assert store.records() == [record()]
        assert reason_of(lambda: store.add([outcome(2)])) == "STORE_FULL"
        assert store.save([Save(record(version=2, status=Status(State.FROZEN)), 1)]) == [None]
        filler.unlink()
        assert store.add([outcome(1), outcome(2)]) == [DUPLICATE, ACCEPTED]
    with opened(disk / "a.db") as store:
        assert store.record("default/ranker").status.state is State.FROZEN


@pytest.mark.parametrize("error", [OSError(errno.EOPNOTSUPP, "not supported"), AttributeError("posix_fallocate")], ids=repr)
def test_where_no_room_can_be_set_aside_the_store_works_without(path, monkeypatch, error):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with opened(path) as store:
        assert store.add([outcome(1)]) == [ACCEPTED]
        assert store.save([Save(record(), None)]) == [None]
        assert store.add([outcome(2)]) == [ACCEPTED]


def test_a_write_that_fails_is_told_and_counts_nothing(path):
    """A limit on the size of files makes writing fail with another error than a full disk."""
    with opened(path) as store:
        store.add([outcome(1)])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(f"{path}-wal").st_size, hard))
            for _ in range(3):
                with pytest.raises(Unavailable) as caught:
                    store.add([outcome(n) for n in range(100)])
                assert caught.value.reason == "STORE_FAILED"
                assert isinstance(caught.value.__cause__, sqlite3.Error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert store.cells(UID) == [cell(stream="m0")]
        assert store.add([outcome(n) for n in range(3)]) == [ACCEPTED, DUPLICATE, ACCEPTED]
        assert store.check() == []


SYNC_FAILS = """
import sys
from allocator.errors import Unavailable
from allocator.stores.sqlite import SqliteStore
from tests.stores.conftest import outcome
store = SqliteStore(sys.argv[1])
for number in range(40):
    try:
        store.add([outcome(number)])
        print("ok", number, flush=True)
    except Unavailable as exc:
        print(exc.reason, number, flush=True)
"""


@pytest.mark.parametrize("calls", ["16+", "16", "16..24"])
def test_an_outcome_whose_fsync_failed_is_never_acknowledged(path, calls):
    """strace lets fdatasync fail from a call on, once, or for a while. Nothing may be acknowledged by a failed one."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    command = [
        "strace",
        "-f",
        "-o",
        str(path.parent.parent / "trace"),
        "-e",
        f"inject=fdatasync:error=EIO:when={calls}",
        "-e",
        "trace=fdatasync",
    ]
    child = subprocess.run(
        [*command, sys.executable, "-c", SYNC_FAILS, str(path)], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    if "ptrace" in child.stderr:
        pytest.skip("tracing is not permitted here")
    lines = [line.split() for line in child.stdout.splitlines()]
    assert len(lines) == 40, child.stderr
    acknowledged = {int(number) for word, number in lines if word == "ok"}
    assert {word for word, _ in lines} == {"ok", "STORE_FAILED"}
    with opened(path) as store:
        answers = store.add([outcome(number) for number in range(40)])
        assert all(answers[number] is DUPLICATE for number in acknowledged)
        assert store.check() == []
    assert ask(path, "SELECT sum(count) FROM cells") == [(40,)]
    if calls.endswith("+"):
        assert [word for word, _ in lines[lines.index(["STORE_FAILED", str(len(acknowledged))]) :]] == ["STORE_FAILED"] * (
            40 - len(acknowledged)
        )


def test_a_note_of_the_log_that_can_be_neither_written_nor_removed_keeps_nobody_waiting(path, monkeypatch):
    """The disk fails for a moment, and just where the end of the log is noted."""
    killed = path.parent.parent / "killed"
    killed.mkdir()
    with opened(path) as store:
        store.add([outcome(1)])
        with monkeypatch.context() as failing:
            failing.setattr(os, "pwrite", _fail)
            failing.setattr(os, "unlink", _fail)
            for number in (2, 3):
                assert store.add([outcome(number)]) == [ACCEPTED]
        for name in ("allocator.db", "allocator.db-wal", "allocator.db.tail"):
            shutil.copy(path.parent / name, killed)
        assert store.add([outcome(4)]) == [ACCEPTED]
    with opened(killed / path.name) as store:
        assert store.add([outcome(number) for number in range(1, 5)]) == [DUPLICATE] * 3 + [ACCEPTED]
    with opened(path) as store:
        assert store.add([outcome(number) for number in range(1, 5)]) == [DUPLICATE] * 4
        assert store.check() == []


def test_a_note_that_fails_leaves_the_locks_of_the_file_alone(path, monkeypatch):
    """Who closes any descriptor of a file drops all locks that the process has on it: another process would begin the index anew."""
    code = (
        "import sys; from allocator.stores import sqlite_care; from tests.stores.conftest import UID\n"
        "sqlite_care.backup(sys.argv[1], sys.argv[2])"
    )
    with opened(path) as store:
        for number in range(10):
            store.add([outcome(number)])
            with monkeypatch.context() as failing:
                failing.setattr(os, "pwrite", _fail)
                store.add([outcome(100 + number)])
        copy = str(path.parent / "copy.db")
        child = subprocess.run(
            [sys.executable, "-c", code, str(path), copy], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
        )
        assert child.returncode == 0, child.stderr
        held = Path("/proc/locks").read_text()
        assert f":{os.stat(f'{path}-shm').st_ino} " in held, "the index of the log is locked for as long as the store is open"
        store.add([outcome(200)])
        assert store.check() == []
    assert ask(path, "SELECT sum(count) FROM cells") == [(21,)]


def _fail(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "I/O error"), ZeroDivisionError("a defect"), MemoryError(), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("where", ["_commit", "_log_bytes", "_isolate"])
def test_whatever_goes_wrong_in_the_writing_thread_its_callers_are_answered_and_the_next_ones_served(path, monkeypatch, fault, where):
    with opened(path) as store:

        def broken(*_: object) -> None:
            raise fault

        with monkeypatch.context() as patch:
            patch.setattr(store, where, broken)
            with ThreadPoolExecutor(2) as pool:
                counted = pool.submit(store.add, [outcome(1)])
                saved = pool.submit(store.save, [Save(record(), None)])
                told = [future.exception(timeout=30) for future in (counted, saved)]
        if where == "_log_bytes":
            assert told == [None, None]  # they had been answered, and rightly so
        else:
            assert {getattr(error, "reason", "") for error in told} <= {"STORE_FAILED", ""}
            assert None not in told
        assert store.add([outcome(1)])[0] in (ACCEPTED, DUPLICATE)
        assert store.records() in ([], [record()])
        assert store.save([Save(record("next"), None)]) == [None]
        assert store.check() == []


# What is refused at opening


def filled(path: Path) -> None:
    with opened(path) as store:
        store.save([Save(record(f"e{n}"), None, (entry(),)) for n in range(30)])
        store.add([outcome(n, bucket=n % 50) for n in range(3_000)])


def test_a_damaged_file_is_refused(path):
    filled(path)
    whole = path.read_bytes()
    rng = random.Random(3)
    for page in range(0, len(whole), sqlite_file.PAGE_BYTES * 7):
        garbled = bytearray(whole)
        garbled[page : page + 100] = rng.randbytes(100)
        path.write_bytes(garbled)
        assert reason_of(lambda: SqliteStore(path)) in ("STORE_CORRUPT", "STORE_FAILED"), page
    for size in (len(whole) // 2 // 1024 * 1024, len(whole) - 1024, 700):
        path.write_bytes(whole[:size])
        assert reason_of(lambda: SqliteStore(path)) == "STORE_CORRUPT", size
    path.write_bytes(b"no database at all, but long enough to look at" * 100)
    assert reason_of(lambda: SqliteStore(path)) == "STORE_CORRUPT"
    path.write_bytes(whole)
    with opened(path) as store:
        assert len(store.records()) == 30


def test_a_file_that_was_emptied_is_refused_with_what_to_do_and_so_is_a_log_whose_file_is_gone(path):
    filled(path)
    whole = path.read_bytes()
    path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"is empty.*allocator db restore BACKUP FILE --yes`, or remove") as caught:
            SqliteStore(path)
        assert caught.value.reason == "STORE_CORRUPT"
        assert path.read_bytes() == b""
    path.unlink()
    log = Path(f"{path}-wal")
    for left in (log, Path(f"{path}.tail")):
        left.write_bytes(b"something of it")
        with pytest.raises(Unavailable, match=rf"is gone, and {left} is left of it.*to begin anew, remove {left}") as caught:
            SqliteStore(path)
        assert caught.value.reason == "STORE_CORRUPT"
        assert not path.exists()
        left.unlink()
    with opened(path) as store:
        assert store.records() == []
    path.write_bytes(whole)
    with opened(path) as store:
        assert len(store.records()) == 30


def test_a_new_file_is_whole_under_its_name_or_not_there(path, monkeypatch):
    """What an attempt leaves behind that died on the way is no store, and in nobody's way."""
    path.parent.mkdir()
    for rest in ("", "-journal", "-wal", "-shm"):
        Path(f"{path}.new{rest}").write_bytes(b"half of it")
    with monkeypatch.context() as dying:
        dying.setattr(os, "rename", _fail)
        assert reason_of(lambda: SqliteStore(path)) == "STORE_FAILED"
    assert not path.exists()
    with opened(path) as store:
        assert store.add([outcome(1)]) == [ACCEPTED]
    assert [file.name for file in path.parent.iterdir() if ".new" in file.name] == []


def test_a_file_of_another_program_is_refused_and_left_alone(path):
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE somebody_elses (x)")
        db.commit()
    before = path.read_bytes()
    assert reason_of(lambda: SqliteStore(path)) == "STORE_FOREIGN"
    assert path.read_bytes() == before


def test_a_file_of_a_later_version_is_refused(path):
    filled(path)
    ask(path, "PRAGMA user_version = 99")
    assert reason_of(lambda: SqliteStore(path)) == "STORE_TOO_NEW"


def test_a_place_where_nothing_can_be_written_is_told(path, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert reason_of(lambda: SqliteStore(blocked / "a.db")) == "STORE_FAILED"
    path.mkdir(parents=True)
    assert reason_of(lambda: SqliteStore(path)) == "STORE_FAILED"


# Migrations


def test_a_migration_is_applied_once_and_the_old_file_kept_beside_it(path, monkeypatch):
    filled(path)
    first = sqlite_file.migrations()
    assert [number for number, _ in first] == list(range(1, len(first) + 1))
    last = first[-1][0]
    monkeypatch.setattr(sqlite_file, "migrations", lambda: [*first, (last + 1, "CREATE TABLE added (x); INSERT INTO added VALUES (1);")])
    for _ in range(2):
        with opened(path) as store:
            assert len(store.records()) == 30
            assert store.check() == []
    assert ask(path, "SELECT count(*) FROM added") == [(1,)]
    assert ask(path, "PRAGMA user_version") == [(last + 1,)]
    (backup,) = path.parent.glob("*.backup")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert ask(backup, "PRAGMA user_version") == [(last,)]
    assert ask(backup, "SELECT count(*) FROM seen") == [(3_000,)]


def test_a_migration_that_fails_changes_nothing(path, monkeypatch):
    filled(path)
    first = sqlite_file.migrations()
    last = first[-1][0]
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "migrations", lambda: [*first, (last + 1, "DROP TABLE cells; INSERT INTO nowhere VALUES (1);")])
        for _ in range(2):
            assert reason_of(lambda: SqliteStore(path)) == "STORE_FAILED"
    with opened(path) as store:
        assert sum(found.count for found in store.cells(UID)) == 3_000


def test_a_new_file_needs_no_backup(path):
    filled(path)
    assert not list(path.parent.glob("*.backup"))


# Audit, check, backup


def test_audit_records_can_only_be_appended(path):
    filled(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        for sql in (
            "UPDATE audit SET actor = 'eve' WHERE sequence = 3",
            "DELETE FROM audit WHERE sequence = 30",
            "REPLACE INTO audit SELECT * FROM audit WHERE sequence = 5",
            "INSERT INTO audit SELECT 33, seconds, actor, action, experiment, reason, before, after, digest FROM audit WHERE sequence = 1",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="audit records are"):
                db.execute(sql)


def tamper(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        for statement in (*statements, *(sql for _, sql in triggers)):
            db.execute(statement)
        db.commit()


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE audit SET reason = 'none' WHERE sequence = 7", "audit record 7"),
        ("DELETE FROM audit WHERE sequence = 12", "audit record 12"),
        ("UPDATE audit SET seconds = '1800000000.1234562' WHERE sequence = 30", "audit record 30"),
        ("UPDATE cells SET total = total + 1 WHERE bucket = 7", "table cells"),
        ("UPDATE cells SET arm = 0 WHERE bucket = 7", "table cells"),
        ("UPDATE records SET document = replace(document, 'ranker', 'rankee') WHERE name = 'default/e3'", "default/e3"),
        ("UPDATE records SET document = replace(document, 'RUNNING', 'x'), version = 5 WHERE name = 'default/e4'", "default/e4"),
    ],
)
def test_a_check_finds_what_was_altered(path, statement, found):
    filled(path)
    with opened(path) as store:
        assert store.check() == []
    tamper(path, statement)
    with opened(path) as store:
        (line,) = store.check()
        assert found in line


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE experiments SET uid = 'x'",
        "UPDATE experiments SET through = 3",
        "UPDATE secret SET key = zeroblob(32)",
        "UPDATE audit SET sequence = -1 WHERE sequence = 1",
        "DROP INDEX audit_experiment",
        "ALTER TABLE cells RENAME COLUMN total TO amount",
    ],
)
def test_an_altered_experiment_secret_or_schema_is_refused_at_opening(path, statement):
    filled(path)
    tamper(path, statement)
    assert reason_of(lambda: SqliteStore(path)) == "STORE_CORRUPT"


def test_no_flipped_bit_of_the_file_gives_other_sums_or_records(path):
    filled(path)
    with opened(path) as store:
        store.save([Save(record("settled"), None, settle=Settle(20, 10))])

    def contents(store: SqliteStore) -> list:
        return [store.secret(), sorted(store.cells(UID)), sorted(store.settled(UID)), store.records()]

    with opened(path) as store:
        truth = contents(store)
    whole = path.read_bytes()
    rng = random.Random(11)
    refused = 0
    for _ in range(300):
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            with opened(path) as store:
                assert contents(store) == truth, at
        except Unavailable:
            refused += 1
    assert refused > 50


def test_a_backup_holds_everything_of_one_moment(path, tmp_path):
    copy = tmp_path / "copy.db"
    with opened(path) as store:
        store.save([Save(record(), None, (entry(),))])
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                store.add([outcome(number + n, metrics=(0, 1)) for n in range(50)])
                number += 50

        writer = threading.Thread(target=write)
        writer.start()
        store.backup(copy)
        stop.set()
        writer.join()
        with pytest.raises(AlreadyExists):
            store.backup(copy)
        secret = store.secret()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert {file.name for file in tmp_path.iterdir()} == {"data", "copy.db"}
    with opened(copy) as store:
        assert store.secret() == secret
        assert store.records() == [record()]
        assert store.check() == []
        counts = {found.stream: found.count for found in store.cells(UID)}
    assert counts.get("m0", 0) == counts.get("m1", 0) == ask(copy, "SELECT count(*) FROM seen")[0][0]


# Several lives


def test_the_number_of_a_term_grows_with_each_process_life(path):
    terms = []
    for _ in range(3):
        with opened(path) as store:
            terms.append(store.lead("a", 3600))
            assert store.save([Save(record(f"e{len(terms)}"), None)], terms[-1]) == [None]
    assert terms == sorted(set(terms))
    with opened(path) as store:
        store.lead("a", 3600)
        assert store.save([Save(record("late"), None)], terms[-1])[0].reason == "STALE_TERM"


def test_epoch_items_and_news_outlive_the_process(path):
    with opened(path) as store:
        store.put("token", "ann", "1")
        store.save([Save(record(), None)])
        before = store.news(0)
    with opened(path) as store:
        assert store.news(0) == before
        assert store.items("token") == {"ann": "1"}
        begun = store.begin(b"k" * 32)
    with opened(path) as store:
        assert (store.news(0).epoch, store.secret()) == (begun, b"k" * 32)


def test_a_file_of_the_first_version_gains_an_epoch_and_all_its_records_are_news(path, monkeypatch):
    with monkeypatch.context() as patch:
        first = sqlite_file.migrations()[:1]
        patch.setattr(sqlite_file, "migrations", lambda: first)
        with contextlib.suppress(Unavailable):
            SqliteStore(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO records VALUES ('default/ranker', ?, 1, ?)", (UID, documents.to_bytes(record()).decode()))
        db.commit()
    with opened(path) as store:
        assert store.news(0).names == ("default/ranker",)
        assert store.news(0).epoch
        assert store.record("default/ranker") == record()


def test_an_altered_item_or_epoch_is_refused(path):
    with opened(path) as store:
        store.put("token", "ann", "1")
    _alter(path, "UPDATE items SET value = '2'")
    with opened(path) as store:
        assert reason_of(lambda: store.items("token")) == "STORE_CORRUPT"
        assert any("token" in line for line in store.check())
    _alter(path, "UPDATE life SET term = term + 1")
    assert reason_of(lambda: SqliteStore(path)) == "STORE_CORRUPT"


def _alter(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()
