"""What a server keeps on its own disk comes back whole after a restart, or is refused. Expectations from `ports.Keepsake`."""

from __future__ import annotations

import contextlib
import os
import random
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


def test_a_flipped_byte_is_refused_or_changes_nothing(path):
    with contextlib.closing(DiskKeepsake(path)) as keepsake:
        keepsake.belong("e", (), b"k")
        keepsake.keep([record(status=FROZEN)], {"default/ranker": Pending(record(), entry())}, {UID: {(1, "requests"): 7}})
    whole = reopened(path)
    file = path / FILE
    content = file.read_bytes()
    rng = random.Random(7)
    refused = 0
    for _ in range(150):
        place = rng.randrange(len(content))
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
        for rest in ("-wal", "-shm"):
            Path(f"{file}{rest}").unlink(missing_ok=True)
        try:
            assert reopened(path) == whole
        except AllocatorError:
            refused += 1
    assert refused > 0
