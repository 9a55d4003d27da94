"""One flipped bit in the file or its write-ahead log is found, or harms nothing: never another sum, another record, a forgotten freeze.

The file holds what a run of decisions, reports and a freeze left, half of it moved into the database and half still in the log, as after
kill -9. Each of 1,000 random bytes is altered in turn and the store is opened on the result. Either it is refused, or everything that it
says is what the whole file says (an altered audit record may be told, and its chain then says which); and what the whole file says is
the plain fold of the history. The list of what was counted is not covered: a bit flipped there lets one decision count again.
"""

from __future__ import annotations

import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from allocator.core.audit import first_broken
from allocator.core.outcome import Outcome
from allocator.errors import AllocatorError, Unavailable
from allocator.stores import sqlite_writer
from allocator.stores.sqlite import SqliteStore
from tests.conftest import ManualClock, two_arms
from tests.engine.conftest import Rehearsal
from tests.faults import checker
from tests.faults.history import History
from tests.faults.servers import RANKER

FLIPS = 500  # in each of two states
FILES = ("store.db", "store.db-wal", "store.db.tail")


def contents(store: SqliteStore) -> list:
    """Everything that a server would take from the store."""
    uids = store.changed(0)[1]
    sums = [(uid, sorted(store.cells(uid)), sorted(store.settled(uid)), store.granted(uid)) for uid in uids]
    return [store.secret(), sums, store.records(), store.news(0)]


@pytest.fixture
def killed(tmp_path, monkeypatch) -> Path:
    """A directory with the files of a store that had no chance to close."""
    path = tmp_path / "live" / "store.db"
    rehearsal = Rehearsal(SqliteStore(path), ManualClock())
    rehearsal.run(two_arms())
    with History(tmp_path / "history.jsonl") as history:
        monkeypatch.setattr(sqlite_writer, "LOG_BYTES", 30_000)
        for number in range(40):
            if number == 30:
                monkeypatch.setattr(sqlite_writer, "LOG_BYTES", 1 << 30)
            outcomes = [(rehearsal.decide().id, float(i % 3 == 0), {"error": 0.0}) for i in range(20)]
            call = history.invoke("client", "report", outcomes=outcomes)
            results = rehearsal.report([Outcome(*outcome) for outcome in outcomes])
            history.end(call, "ok", statuses=[result.status.value for result in results])
        freeze = history.invoke("ann", "freeze", actor="ann", reason="the last thing before the power fails")
        rehearsal.engine.commands.freeze("ranker", actor="ann", reason="the last thing before the power fails")
        history.end(freeze, "ok")
    directory = tmp_path / "killed"
    directory.mkdir()
    for name in FILES:
        shutil.copy(path.parent / name, directory)
    rehearsal.engine.close()
    assert checker.check(RANKER, checker.of_sqlite(path), history.path) == []
    return directory


def put(files: dict[str, bytes], directory: Path) -> Path:
    """These files and no others."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory / "store.db"


@pytest.mark.parametrize("state", ["killed", "closed"])
def test_no_flipped_bit_of_the_file_or_its_log_is_served_as_truth(killed, tmp_path, state):
    whole = {name: (killed / name).read_bytes() for name in FILES}
    assert len(whole["store.db-wal"]) > 30_000 < len(whole["store.db"]), "both are to hold something"
    path = put(whole, tmp_path / "whole")
    with closing(SqliteStore(path)) as store:
        truth, audit = contents(store), store.audit()
    if state == "closed":
        whole = {name: (path.parent / name).read_bytes() if (path.parent / name).exists() else b"" for name in FILES}
    rng, refused, places = random.Random(20), dict.fromkeys(FILES, 0), dict.fromkeys(FILES, 0)
    reasons: set[str] = set()
    for _ in range(FLIPS):
        name = rng.choices(FILES, [len(data) for data in whole.values()])[0]
        data = bytearray(whole[name])
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        data[at] ^= bit
        places[name] += 1
        try:
            with closing(SqliteStore(put({**whole, name: bytes(data)}, tmp_path / "flipped"))) as store:
                found = contents(store)
                told = store.audit() == audit or first_broken(store.audit()) > 0
        except AllocatorError as error:
            reasons.add(error.reason)
            refused[name] += 1
        else:
            assert found == truth, f"bit {bit} of byte {at} of {name} was flipped, and what it changed was served"
            assert told, f"bit {bit} of byte {at} of {name} was flipped, and the audit chain does not say so"
    print("\n" + "; ".join(f"{name}: {places[name]} bits flipped, {refused[name]} refused, the rest harmless" for name in FILES))
    assert reasons <= {"STORE_CORRUPT", "STORE_FAILED", "STORE_FOREIGN", "STORE_TOO_NEW"}
    assert refused["store.db"] > (5 if state == "killed" else 50)
    assert refused["store.db-wal"] == places["store.db-wal"], "every byte of the log holds something that was acknowledged"


def test_a_log_that_was_cut_or_removed_is_refused_until_a_person_decides(killed, tmp_path):
    whole = {name: (killed / name).read_bytes() for name in FILES}
    log = whole["store.db-wal"]
    cut = {**whole, "store.db-wal": log[: len(log) // 2]}
    removed = {name: data for name, data in whole.items() if name != "store.db-wal"}
    for damaged in (cut, removed):
        path = put(damaged, tmp_path / "cut")
        for _ in range(2):  # also when asked again
            with pytest.raises(Unavailable, match=r"acknowledged is lost: restore a backup, or remove .*store\.db\.tail") as caught:
                SqliteStore(path)
            assert caught.value.reason == "STORE_CORRUPT"
        (path.parent / "store.db.tail").unlink()
        with closing(SqliteStore(path)) as store:
            assert store.record("default/ranker").status.state.value == "RUNNING"  # the freeze was in what is lost


def test_an_old_note_or_none_does_not_accuse_a_whole_log(killed, tmp_path, monkeypatch):
    """As after a power failure: the note is not synced, so any earlier one may be what is left of it."""
    monkeypatch.setattr(sqlite_writer, "LOG_BYTES", 10_000)  # the log begins again and again
    notes, path = [], tmp_path / "notes" / "store.db"
    rehearsal = Rehearsal(SqliteStore(path), ManualClock())
    rehearsal.run(two_arms())
    for _ in range(30):
        rehearsal.report([Outcome(rehearsal.decide().id, 1.0) for _ in range(10)])
        notes.append((path.parent / "store.db.tail").read_bytes())
    files = {name: (path.parent / name).read_bytes() for name in FILES}
    assert len({note[32:36] for note in notes}) > 3, "the log was to begin again several times"
    for note in (b"", *notes):
        with closing(SqliteStore(put({**files, "store.db.tail": note}, tmp_path / "again"))) as store:
            assert sum(cell.count for cell in store.cells(store.changed(0)[1][0]) if cell.stream == "_reward") == 300
    rehearsal.engine.close()
    assert (path.parent / "store.db.tail").read_bytes() == b""
