"""The audit log on disk: whatever is edited, removed, swapped, added or cut off behind a checkpoint is found."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from allocator.core.audit import GENESIS, AuditEntry, seal
from allocator.core.experiment import Exposure
from allocator.engine.engine import Engine
from allocator.errors import Unavailable
from allocator.server.checkpoints import PIECE, Checkpoints, read_heads
from allocator.server.offline import Offline
from allocator.stores.memory import MemoryStore
from allocator.stores.sqlite import SqliteStore
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import operator_service_pb2 as service_pb
from tests.conftest import ManualClock, SeededEntropy, two_arms

EDITS = 1000
TEXTS = ("actor", "action", "experiment", "reason", "before", "after", "digest")


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> tuple[Path, list[pb.AuditHead]]:
    """A store with a few dozen records, and the checkpoints that were written on the way."""
    folder = tmp_path_factory.mktemp("kept")
    store, clock = SqliteStore(str(folder / "a.db"), SeededEntropy()), ManualClock()
    checkpoints = Checkpoints(store, str(folder / "heads"), clock)
    engine = Engine(store, clock, SeededEntropy(1), restarted=False)
    engine.start(threads=False)
    engine.commands.apply(two_arms(), actor="ann")
    engine.commands.start("ranker", actor="ann")
    for number in range(12):
        clock.pass_(1)
        engine.commands.apply(two_arms(exposure=Exposure(total=0.1 + number / 100)), actor="ann", reason=f"step {number}")
        engine.commands.freeze("ranker", actor="bob", reason="look")
        engine.commands.resume("ranker", actor="ann", reason="on")
        if number % 4 == 3:
            checkpoints.write()
    engine.close()
    heads = [json.loads(line) for line in (folder / "heads").read_text().splitlines()]
    return folder / "a.db", [pb.AuditHead(sequence=head["sequence"], digest=head["digest"]) for head in heads]


def verify(path: Path, heads: list[pb.AuditHead]) -> service_pb.VerifyAuditRecordsResponse:
    with Offline(f"sqlite:{path}") as offline:
        return offline.call("VerifyAuditRecords", service_pb.VerifyAuditRecordsRequest(checkpoints=heads))


def is_accepted(path: Path, heads: list[pb.AuditHead]) -> bool:
    """Is the log said to be intact? One that does not begin at its beginning is not even opened."""
    try:
        return verify(path, heads).intact
    except Unavailable as refused:
        if refused.reason != "STORE_CORRUPT":
            raise
        return False


def test_an_untouched_log_is_intact_and_holds_its_checkpoints(kept):
    path, heads = kept
    told = verify(path, heads)
    assert told.intact
    assert told.records == heads[-1].sequence == 38
    assert told.head == heads[-1].digest
    assert [head.sequence for head in heads] == [14, 26, 38]


@pytest.fixture
def memory_disk(tmp_path):
    """A folder whose syncs cost nothing, where there is one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else tmp_path) as folder:
        yield Path(folder)


def test_a_thousand_random_edits_are_all_found(kept, memory_disk):
    path, heads = kept
    rng, found = random.Random(8), Counter()
    for number in range(EDITS):
        copy = memory_disk / "copy.db"
        shutil.copyfile(path, copy)
        kind = rng.choice((edit, edit_time, remove, swap, cut, add, write_anew))
        forge(copy, kind, rng)
        assert not is_accepted(copy, heads), (number, kind.__name__)
        found[kind.__name__] += 1
    print(f"\n{sum(found.values())} of {EDITS} edits found:", dict(found))


def forge(path: Path, kind, rng: random.Random) -> None:
    """Change the file as somebody would who can write it: what keeps records from being changed goes first, and comes back after."""
    connection = sqlite3.connect(path)
    with connection:
        guards = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit'").fetchall()
        for name, _ in guards:
            connection.execute(f"DROP TRIGGER {name}")
        kind(connection, rng)
        for _, sql in guards:
            connection.execute(sql)
    connection.close()


def test_the_store_itself_lets_nobody_change_a_record(kept, tmp_path):
    path, _ = kept
    copy = tmp_path / "copy.db"
    shutil.copyfile(path, copy)
    connection = sqlite3.connect(copy)
    for statement in ("UPDATE audit SET reason = 'x'", "DELETE FROM audit"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            connection.execute(statement)
    connection.close()


def rows(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT max(sequence) FROM audit").fetchone()[0]


def edit(connection, rng):
    """One character of one text of one record."""
    column, sequence = rng.choice(TEXTS), rng.randint(1, rows(connection))
    (text,) = connection.execute(f"SELECT {column} FROM audit WHERE sequence = ?", (sequence,)).fetchone()
    at = rng.randrange(len(text) + 1)
    changed = text[:at] + rng.choice("x0 \n") + text[at + rng.randint(0, 1) :]
    changed = changed if changed != text else text + "y"
    connection.execute(f"UPDATE audit SET {column} = ? WHERE sequence = ?", (changed, sequence))


def edit_time(connection, rng):
    change = (rng.choice((-1, 1e-3, 60)), rng.randint(1, rows(connection)))
    connection.execute("UPDATE audit SET seconds = seconds + ? WHERE sequence = ?", change)


def remove(connection, rng):
    connection.execute("DELETE FROM audit WHERE sequence = ?", (rng.randint(1, rows(connection)),))


def swap(connection, rng):
    one, other = rng.sample(range(1, rows(connection) + 1), 2)
    for before, after in ((one, -1), (other, one), (-1, other)):
        connection.execute("UPDATE audit SET sequence = ? WHERE sequence = ?", (after, before))


def cut(connection, rng):
    connection.execute("DELETE FROM audit WHERE sequence > ?", (rng.randrange(rows(connection)),))


def add(connection, rng):
    """A record between two others, the later ones renumbered."""
    at = rng.randint(1, rows(connection))
    connection.execute("UPDATE audit SET sequence = -sequence WHERE sequence >= ?", (at,))
    connection.execute("UPDATE audit SET sequence = 1 - sequence WHERE sequence < 0")
    connection.execute(f"INSERT INTO audit SELECT ?, {', '.join(COLUMNS)} FROM audit WHERE sequence = ?", (at, at + 1))


def write_anew(connection, rng):
    """Change one record and seal all that follow again, so that the chain fits: only a checkpoint tells."""
    chosen, digest = rng.randint(1, rows(connection)), GENESIS
    for sequence, *values in connection.execute(
        "SELECT sequence, seconds, actor, action, experiment, reason, before, after FROM audit ORDER BY sequence"
    ).fetchall():
        entry = AuditEntry(*values[:4], "nobody did this" if sequence == chosen else values[4], *values[5:])
        digest = seal(sequence, digest, entry).digest
        connection.execute("UPDATE audit SET reason = ?, digest = ? WHERE sequence = ?", (entry.reason, digest, sequence))


COLUMNS = ("seconds", *TEXTS)


def test_a_log_written_anew_fits_its_own_chain_and_no_checkpoint(kept, tmp_path):
    path, heads = kept
    copy = tmp_path / "copy.db"
    shutil.copyfile(path, copy)
    forge(copy, write_anew, random.Random(1))
    assert verify(copy, []).intact
    told = verify(copy, heads)
    assert (told.intact, told.first_broken) == (False, 0)
    assert told.missing_checkpoint in {head.sequence for head in heads}


def test_checkpoints_are_written_when_the_log_has_grown(tmp_path):
    store, clock, path = MemoryStore(), ManualClock(), tmp_path / "heads"
    checkpoints = Checkpoints(store, str(path), clock)
    checkpoints.write()
    assert not path.exists(), "an empty log has no head"
    store.put("note", "a", "1", None, [AuditEntry(1.0, "ann", "x", "")])
    with capture_logs() as logs:
        checkpoints.write()
        checkpoints.write()
    head = store.audit()[-1]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"time": clock.now(), "sequence": 1, "digest": head.digest}]
    assert [(entry["event"], entry["sequence"], entry["digest"]) for entry in logs] == [("audit.head", 1, head.digest)]


def test_a_log_that_was_altered_under_a_running_server_is_told_at_the_next_checkpoint(tmp_path):
    store = MemoryStore()
    told = []
    checkpoints = Checkpoints(store, "", ManualClock(), lambda: told.append(1))
    store.put("note", "a", "1", None, [AuditEntry(1.0, "ann", "x", "")])
    checkpoints.write()
    store.put("note", "b", "1", None, [AuditEntry(2.0, "ann", "x", ""), AuditEntry(3.0, "ann", "y", "")])
    store._audit[1] = seal(2, GENESIS, store._audit[1].entry)
    with capture_logs() as logs:
        checkpoints.write()
    assert [entry["sequence"] for entry in logs if entry["event"] == "audit.broken"] == [2, 3]
    assert told == [1, 1]


def looking(store, path="", piece=PIECE) -> tuple[Checkpoints, list[int]]:
    """Checkpoints, and what they tell the metric."""
    told: list[int] = []
    return Checkpoints(store, str(path), ManualClock(), lambda: told.append(1), piece), told


def told_of(checkpoints: Checkpoints, looks: int = 1) -> list[int]:
    """Sequences of what is found in so many looks."""
    with capture_logs() as logs:
        for _ in range(looks):
            checkpoints.write()
    return [entry["sequence"] for entry in logs if entry["event"] == "audit.broken"]


def grow(store, count: int, who: str = "ann") -> None:
    store.put("note", who + str(count), None, None, [AuditEntry(float(n), who, "x", "") for n in range(count)])


def change(path: Path, statement: str) -> None:
    """One statement by somebody who can write the file."""
    forge(path, lambda connection, rng: connection.execute(statement), random.Random(1))


@pytest.fixture
def living(tmp_path):
    """A store that a server has open, with 30 records, and its file."""
    with contextlib.closing(SqliteStore(str(tmp_path / "a.db"), SeededEntropy())) as store:
        grow(store, 30)
        yield store, tmp_path / "a.db"


def test_an_old_record_that_was_edited_under_a_running_server_is_told_once(living):
    store, path = living
    checkpoints, told = looking(store)
    assert told_of(checkpoints, looks=3) == []
    change(path, "UPDATE audit SET reason = 'nobody' WHERE sequence = 7")
    assert told_of(checkpoints) == [7]
    assert told_of(checkpoints, looks=3) == []
    assert told == [1]


def test_a_log_that_was_cut_off_under_a_running_server_is_told_at_the_next_look_also_when_it_has_grown_again(living):
    store, path = living
    checkpoints, told = looking(store)
    assert told_of(checkpoints) == []
    change(path, "DELETE FROM audit WHERE sequence > 20")
    assert told_of(checkpoints, looks=3) == [30]
    grow(store, 5)
    assert told_of(checkpoints, looks=2) == [], "it goes on from where the log ends now"
    change(path, "DELETE FROM audit WHERE sequence > 22")
    grow(store, 8, "bob")
    assert told_of(checkpoints) == [25]
    assert told == [1, 1]


def test_a_log_that_was_written_anew_under_a_running_server_is_told_at_the_next_look(living):
    store, path = living
    checkpoints, told = looking(store)
    assert told_of(checkpoints) == []
    forge(path, write_anew, random.Random(1))
    assert told_of(checkpoints) == [30]
    assert told == [1]


def test_a_long_log_is_looked_at_in_pieces_and_whole_after_a_round(living):
    store, path = living
    read = []
    audit = store.audit
    store.audit = lambda after=0, limit=1000, experiment=None: read.append(limit) or audit(after, limit, experiment)
    checkpoints, told = looking(store, piece=10)
    assert told_of(checkpoints) == []
    change(path, "UPDATE audit SET actor = 'bob' WHERE sequence = 5")
    for _ in range(2):
        read.clear()
        assert told_of(checkpoints) == [], "the second and the last third of the first round"
        assert sum(limit for limit in read if limit < 1000) <= 11
    assert told_of(checkpoints) == [5]
    assert told == [1]


def test_the_head_of_a_long_log_is_found_and_written_at_the_first_look(living, tmp_path):
    store, _ = living
    checkpoints, _ = looking(store, tmp_path / "heads", piece=3)
    checkpoints.write()
    assert json.loads((tmp_path / "heads").read_text())["sequence"] == 30
    grow(store, 40, "bob")
    checkpoints.write()
    assert [json.loads(line)["sequence"] for line in (tmp_path / "heads").read_text().splitlines()] == [30, 70]


@pytest.mark.parametrize("forged", [cut, write_anew])
def test_a_log_that_was_forged_while_no_server_ran_is_told_at_the_start_by_the_file_of_checkpoints(kept, tmp_path, forged):
    path, heads = kept
    shutil.copyfile(path, tmp_path / "a.db")
    shutil.copyfile(path.parent / "heads", tmp_path / "heads")
    forge(tmp_path / "a.db", forged, random.Random(2))
    with contextlib.closing(SqliteStore(str(tmp_path / "a.db"), SeededEntropy())) as store:
        checkpoints, told = looking(store, tmp_path / "heads")
        assert heads[-1].sequence in told_of(checkpoints)
        assert told
        assert told_of(checkpoints, looks=2) == []


def test_an_older_checkpoint_that_the_log_does_not_hold_is_told_in_the_first_round(kept, tmp_path):
    path, heads = kept
    lines = (path.parent / "heads").read_text().splitlines()
    other = json.dumps({"time": 1.0, "sequence": heads[0].sequence, "digest": "f" * 64})
    (tmp_path / "heads").write_text("\n".join([other, *lines[1:], ""]))
    shutil.copyfile(path, tmp_path / "a.db")
    with contextlib.closing(SqliteStore(str(tmp_path / "a.db"), SeededEntropy())) as store:
        checkpoints, _ = looking(store, tmp_path / "heads")
        assert told_of(checkpoints, looks=3) == [heads[0].sequence]


def test_an_untouched_log_is_told_by_nothing_through_any_number_of_restarts(kept, tmp_path):
    path, _ = kept
    shutil.copyfile(path, tmp_path / "a.db")
    shutil.copyfile(path.parent / "heads", tmp_path / "heads")
    for number in range(3):
        with contextlib.closing(SqliteStore(str(tmp_path / "a.db"), SeededEntropy())) as store:
            checkpoints, told = looking(store, tmp_path / "heads")
            assert told_of(checkpoints, looks=2) == []
            grow(store, 3, f"ann{number}")
            assert told_of(checkpoints, looks=2) == []
            assert told == []
    heads = [pb.AuditHead(sequence=head.sequence, digest=head.digest) for head in read_heads(str(tmp_path / "heads")).heads]
    assert heads[-1].sequence == 38 + 9
    assert verify(tmp_path / "a.db", heads).intact


@pytest.mark.parametrize("torn", ['{"time": 17', "\0\0\0\0", "\xff"])
def test_half_a_line_of_the_file_of_checkpoints_spoils_neither_the_lines_before_nor_those_after(living, tmp_path, torn):
    store, _ = living
    path = tmp_path / "heads"
    looking(store, path)[0].write()
    with path.open("ab") as file:
        file.write(torn.encode("latin-1"))
    grow(store, 1, "bob")
    checkpoints, told = looking(store, path)
    assert told_of(checkpoints) == []
    written = read_heads(str(path))
    assert [sequence for sequence, _ in written.heads] == [30, 31]
    assert (written.torn, written.foreign) == ([2], [])
    assert told == []


def test_a_record_that_the_store_cannot_read_any_more_is_told(living):
    store, _ = living
    checkpoints, told = looking(store)
    checkpoints.write()
    audit = store.audit

    def gone(after=0, limit=1000, experiment=None):
        if after < 12 <= after + limit:
            raise Unavailable("an audit record in the store cannot be read", reason="STORE_CORRUPT")
        return audit(after, limit, experiment)

    store.audit = gone
    assert told_of(checkpoints, looks=2) == [1], "somewhere from there on"
    assert told == [1]


def test_a_store_that_is_gone_for_a_while_is_no_altered_log(living):
    store, _ = living
    checkpoints, told = looking(store)
    checkpoints.write()
    audit = store.audit
    store.audit = lambda *_, **__: (_ for _ in ()).throw(Unavailable("gone", reason="STORE_FAILED"))
    with capture_logs() as logs:
        checkpoints.write()
    assert [entry["event"] for entry in logs] == ["audit.no_checkpoint"]
    store.audit = audit
    assert told_of(checkpoints, looks=2) == []
    assert told == []


def test_a_checkpoint_that_cannot_be_written_is_told_and_stops_nothing(tmp_path):
    store = MemoryStore()
    store.put("note", "a", "1", None, [AuditEntry(1.0, "ann", "x", "")])
    checkpoints = Checkpoints(store, str(tmp_path / "nowhere" / "heads"), ManualClock())
    with capture_logs() as logs:
        checkpoints.write()
    assert logs[-1]["event"] == "audit.no_checkpoint"
    (tmp_path / "nowhere").mkdir()
    checkpoints.write()
    assert (tmp_path / "nowhere" / "heads").exists(), "it is tried again"
