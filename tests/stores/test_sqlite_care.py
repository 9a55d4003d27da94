"""Looking after the file: a check finds what was altered and changes nothing, a backup is of one moment, a restore loses nothing old."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from allocator.core.lifecycle import State
from allocator.core.outcome import Outcome
from allocator.errors import AlreadyExists, NotFound, Unavailable
from allocator.ports import Save
from allocator.stores import sqlite_care, sqlite_file
from allocator.stores.sqlite import SqliteStore
from tests.cli.conftest import said
from tests.conftest import ManualClock, two_arms
from tests.engine.conftest import Rehearsal
from tests.faults import checker
from tests.stores.conftest import record

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def path(tmp_path) -> str:
    """A store in which an experiment ran."""
    found = tmp_path / "store.db"
    rehearsal = Rehearsal(SqliteStore(found), ManualClock())
    rehearsal.run(two_arms())
    for _ in range(5):
        rehearsal.serve(20, lambda arm: {"reward": 1.0, "error": 0.0})
    rehearsal.engine.close()
    return str(found)


def altered(path: str, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute(statement).rowcount > 0
        db.commit()


def test_a_whole_file_is_said_to_be_whole_and_is_not_changed(path):
    before = Path(path).read_bytes()
    result = said("db", "check", f"sqlite:{path}")
    assert (result.code, result.out) == (0, f"{path} is whole\n")
    assert Path(path).read_bytes() == before
    companions = {"store.db", "store.db.lock", "store.db.tail", "store.db.reserve", "store.db-wal", "store.db-shm"}
    assert {file.name for file in Path(path).parent.iterdir()} <= companions, "the copy that was looked at is gone"


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("UPDATE cells SET total = total + 1 WHERE stream = '_reward'", "a sum of experiment"),
        ("DELETE FROM seen WHERE nonce = (SELECT min(nonce) FROM seen)", "adds up 100 rewards, and 99 were counted"),
        ("INSERT INTO seen SELECT experiment, bucket, 77, metrics FROM seen LIMIT 1", "adds up 100 rewards, and 101 were counted"),
        ("UPDATE seen SET metrics = 2 WHERE nonce = (SELECT min(nonce) FROM seen)", "adds up 100 rewards, and 99 were counted"),
        ("UPDATE records SET document = replace(document, 'RUNNING', 'runnjng')", "its digest does not fit"),
        ("UPDATE secret SET key = zeroblob(32)", "does not fit its check number"),
        ("UPDATE life SET epoch = 'x'", "does not fit its check number"),
    ],
)
def test_a_check_tells_what_was_altered_and_exits_with_1(path, statement, word):
    altered(path, statement)
    result = said("db", "check", path)
    assert result.code == 1
    assert result.err.startswith("damaged: ")
    assert word in result.err
    assert "hint: put a backup in its place" in result.err


def test_a_file_that_a_server_has_is_not_checked_and_not_replaced_and_is_backed_up_while_it_writes(path, tmp_path):
    copy = str(tmp_path / "copy.db")
    with contextlib.closing(SqliteStore(path)) as store:
        rehearsal = Rehearsal(store, ManualClock())
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                rehearsal.report([Outcome(rehearsal.decide().id, 1.0, {"error": 0.0}) for _ in range(10)])

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert said("db", "check", path).code == 7
            assert said("db", "restore", path, path, "--yes").code == 7
            assert said("db", "backup", path, copy).code == 0
        finally:
            stop.set()
            writer.join()
    assert sqlite_care.check(copy) == []
    assert sqlite_care.check(path) == []
    with pytest.raises(AlreadyExists):
        sqlite_care.backup(path, copy)
    assert Path(copy).stat().st_mode & 0o777 == 0o600


def test_a_restore_keeps_what_was_there_and_asks_first(path, tmp_path):
    copy = str(tmp_path / "copy.db")
    sqlite_care.backup(path, copy)
    with contextlib.closing(SqliteStore(path)) as store:
        Rehearsal(store, ManualClock()).engine.commands.freeze("ranker", actor="ann", reason="after the backup")
    refused = said("db", "restore", copy, path)
    assert refused.code == 5
    assert "hint: say --yes to replace it" in refused.err
    assert checker.of_sqlite(Path(path)).states == {"default/ranker": "FROZEN"}
    done = said("db", "restore", copy, path, "--yes")
    assert done.code == 0, done.err
    assert checker.of_sqlite(Path(path)).states == {"default/ranker": "RUNNING"}
    (kept,) = tmp_path.glob("store.db.*.replaced")
    assert checker.of_sqlite(kept).states == {"default/ranker": "FROZEN"}
    assert sqlite_care.check(path) == []


def test_what_is_restored_begins_another_life_under_the_same_secret_and_leaves_nothing_beside_it(path, tmp_path):
    copy = str(tmp_path / "copy.db")
    sqlite_care.backup(path, copy)
    lives = set()
    for _ in range(3):
        with contextlib.closing(SqliteStore(path)) as store:
            lives.add(store.news(0).epoch)
            secret, records, audit = store.secret(), store.records(), store.audit()
        if len(lives) == 1:
            first = secret, records, audit
        assert (secret, records, audit) == first
        sqlite_care.restore(copy, path, replace=True)
    assert len(lives) == 3
    assert [file.name for file in tmp_path.iterdir() if "restore" in file.name or "incoming" in file.name] == []
    assert Path(path).stat().st_mode & 0o777 == 0o600


FILE_CALLS = ("link", "rename", "unlink", "fsync")


def broken_off(monkeypatch, number: int, call: Callable[[], object], *, killed: bool) -> bool:
    """Break `call` off at its Nth operation on files, by kill -9 or by Ctrl-C. Returns whether it came that far."""
    count = 0

    def counted(real: Callable) -> Callable:
        def one(*values: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                if killed:
                    os._exit(9)
                raise KeyboardInterrupt
            return real(*values, **named)

        return one

    child = os.fork() if killed else 0
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with monkeypatch.context() as patch:
        for name in FILE_CALLS:
            patch.setattr(os, name, counted(getattr(os, name)))
        with contextlib.suppress(KeyboardInterrupt):
            call()
    if killed:
        os._exit(0)
    return count >= number


def killed_store(where: Path) -> Path:
    """A store whose process was killed: what it acknowledged stands in its log alone."""
    live = where / "live"
    with contextlib.closing(SqliteStore(live / "store.db")) as store:
        store.save([Save(record("old"), None)])
        shutil.copytree(live, where / "killed")
    return where / "killed" / "store.db"


@pytest.mark.parametrize("killed", [False, True], ids=["Ctrl-C", "kill -9"])
@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_a_restore_that_is_broken_off_anywhere_leaves_the_old_store_whole_or_the_new_one(tmp_path, monkeypatch, damaged, killed):
    backup = str(tmp_path / "backup.db")
    with contextlib.closing(SqliteStore(tmp_path / "new.db")) as store:
        store.save([Save(record("new"), None)])
        store.backup(backup)
    found: list[str] = []
    for number in range(1, 200):
        path = killed_store(tmp_path / str(number))
        if damaged:
            log = Path(f"{path}-wal")
            content = bytearray(log.read_bytes())
            content[-100] ^= 1
            log.write_bytes(content)
        came = broken_off(monkeypatch, number, lambda path=path: sqlite_care.restore(backup, str(path), replace=True), killed=killed)
        kept = list(path.parent.glob("*.replaced"))
        if came and not damaged and not killed:
            assert not any(file.samefile(path) for file in kept)
        try:
            with contextlib.closing(SqliteStore(path)) as store:
                (name,) = [known.experiment.name for known in store.records()]
                assert store.check() == []
        except Unavailable as error:
            assert damaged
            found.append(error.reason)
        else:
            found.append(name)
        if not came:
            break
        assert sqlite_care.restore(backup, str(path), replace=True), "it is put right by doing it again"
        assert sqlite_care.check(str(path)) == []
    assert found[-1] == "new"
    assert set(found) == ({"STORE_CORRUPT", "new"} if damaged else {"old", "new"})
    assert found == sorted(found, key="new".__eq__), "from some operation on it is done"
    assert sqlite_care.check(str(kept[0])) == [] or damaged


def test_two_restores_within_one_second_keep_both_of_what_was_there(path, tmp_path):
    copy = str(tmp_path / "copy.db")
    sqlite_care.backup(path, copy)
    with contextlib.closing(SqliteStore(path)) as store:
        store.save([Save(record("precious"), None)])
    kept = [sqlite_care.restore(copy, path, replace=True) for _ in range(3)]
    assert len(set(kept)) == 3
    names = []
    for file in kept:
        with contextlib.closing(SqliteStore(file)) as store:
            names.append([known.experiment.name for known in store.records()])
    assert names == [["precious", "ranker"], ["ranker"], ["ranker"]]


def test_what_is_no_file_or_another_programs_or_in_its_use_is_not_replaced(path, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.05)
    copy = str(tmp_path / "copy.db")
    sqlite_care.backup(path, copy)
    directory = tmp_path / "directory"
    directory.mkdir()
    (directory / "precious").touch()
    result = said("db", "restore", copy, str(directory), "--yes")
    assert result.code == 2
    assert "which is no file; a store is a file" in result.err
    assert [file.name for file in directory.iterdir()] == ["precious"]
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as db:
        db.execute("CREATE TABLE theirs (x)")
        db.commit()
    before = foreign.read_bytes()
    with pytest.raises(Unavailable) as caught:
        sqlite_care.restore(copy, str(foreign), replace=True)
    assert caught.value.reason == "STORE_FOREIGN"
    assert foreign.read_bytes() == before
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        with contextlib.closing(sqlite3.connect(path)) as writer:
            writer.execute("INSERT INTO kinds VALUES ('x', 1)")
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM kinds").fetchone()
            writer.commit()
        with pytest.raises(Unavailable, match=r"another program has .* open; nothing was replaced") as caught:
            sqlite_care.restore(copy, path, replace=True)
        assert caught.value.reason == "STORE_LOCKED"
    assert list(tmp_path.glob("*.replaced")) == []
    assert sqlite_care.restore(copy, path, replace=True)


def test_a_link_to_a_store_stays_a_link_and_what_it_leads_to_is_replaced(path, tmp_path):
    copy, link = str(tmp_path / "copy.db"), tmp_path / "link.db"
    sqlite_care.backup(path, copy)
    with contextlib.closing(SqliteStore(path)) as store:
        store.save([Save(record("later"), None)])
    link.symlink_to(path)
    kept = sqlite_care.restore(copy, str(link), replace=True)
    assert link.is_symlink()
    assert kept.startswith(f"{path}.")
    with contextlib.closing(SqliteStore(link)) as store:
        assert [known.experiment.name for known in store.records()] == ["ranker"]


def test_a_log_whose_file_is_gone_is_kept_aside_and_not_read_into_what_is_restored(path, tmp_path):
    copy = str(tmp_path / "copy.db")
    sqlite_care.backup(path, copy)
    old = killed_store(tmp_path / "x")
    old.unlink()
    kept = sqlite_care.restore(copy, str(old))
    assert {file.name.removeprefix(Path(kept).name) for file in old.parent.glob("*.replaced*")} == {"-wal", "-shm", ".tail"}
    assert sqlite_care.check(str(old)) == []


def test_where_a_file_has_but_one_name_the_old_store_is_copied(path, tmp_path, monkeypatch):
    copy = str(tmp_path / "copy.db")
    sqlite_care.backup(path, copy)

    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    kept = sqlite_care.restore(copy, path, replace=True)
    assert sqlite_care.check(kept) == sqlite_care.check(path) == []


def test_a_damaged_backup_replaces_nothing(path, tmp_path):
    copy = str(tmp_path / "copy.db")
    sqlite_care.backup(path, copy)
    altered(copy, "UPDATE cells SET count = count + 1")
    before = Path(path).read_bytes()
    with pytest.raises(Unavailable, match="is not whole, and nothing was replaced"):
        sqlite_care.restore(copy, path, replace=True)
    assert Path(path).read_bytes() == before


def test_a_damaged_store_is_replaced_by_its_backup_and_a_missing_one_is_made(path, tmp_path):
    copy = str(tmp_path / "copy.db")
    sqlite_care.backup(path, copy)
    Path(path).write_bytes(b"nothing of a database" * 1000)
    assert said("db", "check", path).code == 1
    assert sqlite_care.restore(copy, path, replace=True)
    assert sqlite_care.check(path) == []
    assert sqlite_care.restore(copy, str(tmp_path / "new" / "store.db")) == ""
    assert sqlite_care.check(str(tmp_path / "new" / "store.db")) == []


def test_a_file_that_was_emptied_is_not_whole_and_is_neither_copied_nor_put_into_place(path, tmp_path):
    emptied = str(tmp_path / "emptied.db")
    Path(emptied).touch()
    result = said("db", "check", emptied)
    assert result.code == 1
    assert f"{emptied} is empty, and what was in it is gone" in result.err
    for call in (
        lambda: sqlite_care.backup(emptied, str(tmp_path / "copy.db")),
        lambda: sqlite_care.restore(emptied, path, replace=True),
    ):
        with pytest.raises(Unavailable, match="is empty") as caught:
            call()
        assert caught.value.reason == "STORE_CORRUPT"
    assert sqlite_care.check(path) == []
    assert not (tmp_path / "copy.db").exists()


def test_a_file_that_is_not_there_is_told(tmp_path):
    assert said("db", "check", str(tmp_path / "none.db")).code == 3
    with pytest.raises(NotFound):
        sqlite_care.backup(str(tmp_path / "none.db"), str(tmp_path / "copy.db"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_first_version_is_checked_as_it_is_and_brought_up_with_a_backup_first(tmp_path):
    """`tests/golden/store-0001.db` was written by the code of schema 1."""
    path = tmp_path / "store.db"
    shutil.copy(GOLDEN / "store-0001.db", path)
    told = json.loads((GOLDEN / "store-0001.json").read_text())
    assert sqlite_care.check(str(path)) == []
    assert path.read_bytes() == (GOLDEN / "store-0001.db").read_bytes()
    before = checker.of_sqlite(path)
    with contextlib.closing(SqliteStore(path)) as store:
        rehearsal = Rehearsal(store, ManualClock(told["seconds"]))
        assert rehearsal.record("ranker").status.state is State.FROZEN
        assert rehearsal.record("other").status.state is State.RUNNING
        results = rehearsal.report([Outcome(id_, 1.0, {"error": 0.0}) for id_ in told["reported"]])
        assert {result.status.value for result in results} == {"DUPLICATE"}
        assert rehearsal.decide().arm == "old"
        assert store.check() == []
    after = checker.of_sqlite(path)
    assert (after.cells, after.seen, after.states) == (before.cells, before.seen, before.states)
    assert after.audit[: len(before.audit)] == before.audit
    backup = tmp_path / "store.db.0001.backup"
    with contextlib.closing(sqlite3.connect(backup)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM seen").fetchone() == (100,)
