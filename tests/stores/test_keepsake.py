"""What a server keeps on its own disk comes back whole after a restart, or is refused. Expectations from `ports.Keepsake`."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from allocator.core.lifecycle import Event, State, Status, step
from allocator.errors import AllocatorError, Unavailable
from allocator.ports import Kept, Pending
from allocator.stores.keepsake import FILE, DiskKeepsake
from tests.stores.conftest import OTHER, UID, entry, record

FROZEN = step(Status(state=State.RUNNING), Event.FROZEN, reason="errors", now=1.0)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "state"


def reopened(path: Path) -> Kept:
    with contextlib.closing(DiskKeepsake(path)) as keepsake:
        return keepsake.load()


def test_a_new_directory_keeps_nothing_and_belongs_to_its_owner_alone(path):
    assert reopened(path) == Kept()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / FILE).stat().st_mode) == 0o600


def test_what_is_kept_comes_back_after_a_restart(path):
    held = Pending(record("b", status=FROZEN), entry("experiment.freeze"))
    with contextlib.closing(DiskKeepsake(path)) as keepsake:
        keepsake.belong("e2", ("e0", "e1"), b"k" * 32)
        keepsake.keep([record("a"), record("b")], {"default/b": held}, {UID: {(1, "requests"): 7, (0, "together"): 9}})
        keepsake.keep([record("a", version=4)])
    assert reopened(path) == Kept(
        "e2",
        ("e0", "e1"),
        b"k" * 32,
        (record("a", version=4), record("b")),
        (held,),
        {UID: {(1, "requests"): 7, (0, "together"): 9}},
    )


def test_a_freeze_that_the_store_took_is_let_go_of(path):
    with contextlib.closing(DiskKeepsake(path)) as keepsake:
        keepsake.belong("e", (), b"k")
        keepsake.keep(pending={"default/ranker": Pending(record(status=FROZEN), entry())})
        keepsake.keep(pending={"default/ranker": None})
        assert keepsake.load().pending == ()


def test_what_was_granted_is_never_made_smaller(path):
    with contextlib.closing(DiskKeepsake(path)) as keepsake:
        keepsake.belong("e", (), b"k")
        keepsake.keep(granted={UID: {(1, "requests"): 7}, OTHER: {(1, "requests"): 1}})
        keepsake.keep(granted={UID: {(1, "requests"): 3, (2, "requests"): 1}})
        assert keepsake.load().granted == {UID: {(1, "requests"): 7, (2, "requests"): 1}, OTHER: {(1, "requests"): 1}}


def test_one_process_has_the_directory(path):
    with contextlib.closing(DiskKeepsake(path)):
        code = f"from allocator.stores.keepsake import DiskKeepsake; DiskKeepsake({str(path)!r})"
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert child.returncode != 0
    assert f"pid {os.getpid()}" in child.stderr


def test_closing_twice_does_nothing_and_afterwards_it_is_unavailable(path):
    keepsake = DiskKeepsake(path)
    keepsake.close()
    keepsake.close()
    with pytest.raises(Unavailable):
        keepsake.load()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE life SET epoch = 'x'",
        "UPDATE granted SET amount = 1",
        "UPDATE pending SET entry = replace(entry, 'ann', 'eve')",
        "UPDATE records SET document = replace(document, '\"FROZEN\"', '\"RUNNING\"')",
    ],
)
def test_an_altered_row_is_refused(path, change):
    with contextlib.closing(DiskKeepsake(path)) as keepsake:
        keepsake.belong("e", (), b"k")
        keepsake.keep([record(status=FROZEN)], {"default/ranker": Pending(record(), entry())}, {UID: {(1, "requests"): 7}})
    with contextlib.closing(sqlite3.connect(path / FILE)) as db:
        assert db.execute(change).rowcount == 1
        db.commit()
    with pytest.raises(Unavailable, match=str(path)) as told:
        reopened(path)
    assert told.value.reason == "STORE_CORRUPT"


def full(path: Path) -> DiskKeepsake:
    """An open keepsake in which the freeze was the last to be acknowledged."""
    keepsake = DiskKeepsake(path)
    keepsake.belong("e", (), b"k" * 32)
    keepsake.keep([record(status=Status(state=State.RUNNING)), record("b")], granted={UID: {(1, "requests"): 7}})
    keepsake.keep(pending={"default/ranker": Pending(record(status=FROZEN), entry())})
    return keepsake


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_no_flipped_bit_is_believed_whether_the_process_was_killed_or_closed_the_file(path, tmp_path, end):
    with contextlib.closing(full(path)) as keepsake:
        truth = keepsake.load()
        if end == "closed":
            keepsake.close()
        files = {file.name: file.read_bytes() for file in path.iterdir() if not file.name.endswith((".lock", "-shm"))}
    rng, reasons = random.Random(7), []
    for number in range(400):
        (name,) = rng.choices(list(files), [len(content) for content in files.values()])
        changed = bytearray(files[name])
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        copy = tmp_path / str(number)
        copy.mkdir()
        for file, content in {**files, name: bytes(changed)}.items():
            (copy / file).write_bytes(content)
        try:
            assert reopened(copy) == truth
        except AllocatorError as error:
            reasons.append(error.reason)
    assert len(reasons) > 30
    assert set(reasons) <= {"STORE_CORRUPT", "STORE_FAILED", "STORE_TOO_NEW"}


def test_what_is_acknowledged_is_in_the_file_itself_and_synced(path):
    with contextlib.closing(full(path)) as keepsake:
        pragma = [keepsake._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
        assert pragma == ["truncate", 2]
        shutil.copytree(path, path.parent / "copy")
    (path.parent / "copy" / f"{FILE}-journal").unlink()
    assert reopened(path.parent / "copy") == reopened(path)


def test_a_file_that_was_emptied_or_lost_a_table_is_refused(path):
    full(path).close()
    whole = (path / FILE).read_bytes()
    (path / FILE).write_bytes(b"")
    with pytest.raises(Unavailable, match=r"is empty, and what was in it is gone: put it back, or remove the file.*forgets") as told:
        reopened(path)
    assert told.value.reason == "STORE_CORRUPT"
    (path / FILE).write_bytes(whole)
    with contextlib.closing(sqlite3.connect(path / FILE)) as db:
        db.execute("ALTER TABLE pending RENAME TO pendimg")
    with pytest.raises(Unavailable) as told:
        reopened(path)
    assert told.value.reason == "STORE_CORRUPT"


def test_a_file_with_a_write_ahead_log_of_an_earlier_version_is_taken_over_with_all_that_is_in_the_log(path):
    full(path).close()
    code = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA journal_mode = WAL');"
        "db.execute('DELETE FROM records WHERE name = ?', ('default/b',)); db.commit(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path / FILE)], check=False)
    assert (path / f"{FILE}-wal").stat().st_size > 0
    assert [found.name for found in reopened(path).records] == ["default/ranker"]
    assert not (path / f"{FILE}-wal").exists()
