"""Every write of a small workload fails once, or the process dies in it; and what was acknowledged is there all the same.

Two workloads: a store that counts and freezes, and what a server keeps on its own disk.

strace lets the Nth call of one kind fail or kills the process in it, for N = 1, 2, ... until a whole workload ran without coming to its Nth
call. strace counts for each thread by itself, so the thread that opens and the one that writes are both put through it. Afterwards
the file is opened as if nothing had happened, asked again for everything, and read with plain sqlite3. The default run takes a
sample of the Ns; `-m slow` takes them all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from allocator.core.lifecycle import State, Status
from allocator.errors import AllocatorError
from allocator.ports import Counted, OutcomeRow, Pending, Save
from allocator.stores import sqlite_writer
from allocator.stores.keepsake import DiskKeepsake
from allocator.stores.sqlite import SqliteStore
from tests.faults import checker
from tests.stores.conftest import entry, outcome, record

ROOT = Path(__file__).parents[2]
BATCHES, FREEZES = 6, 5
LARGEST = 400  # more calls of a kind than any workload makes
FAULTS = {
    "killed in a write": ("pwrite64", "signal=KILL", "{}"),
    "a write fails once": ("pwrite64", "error=EIO", "{}"),
    "writes fail from then on": ("pwrite64", "error=EIO", "{}+"),
    "the disk is full from then on": ("pwrite64", "error=ENOSPC", "{}+"),
    "killed in a sync": ("fdatasync", "signal=KILL", "{}"),
    "a sync fails once": ("fdatasync", "error=EIO", "{}"),
    "syncs fail from then on": ("fdatasync", "error=EIO", "{}+"),
    "killed in a truncation": ("ftruncate", "signal=KILL", "{}"),
    "a truncation fails once": ("ftruncate", "error=EIO", "{}"),
}


def batch(number: int) -> list[OutcomeRow]:
    return [outcome(10 * number + n, bucket=number % 3) for n in range(8)]


def frozen() -> list[Save]:
    return [Save(record(status=Status(State.FROZEN, freeze_epoch=1)), None, (entry("freeze"),))]


def work(path: str) -> None:
    """What the child does, telling each step that was acknowledged. What is refused is passed over: so a client would."""

    def said(step: str, answer: object = None) -> None:
        print(step, type(answer).__name__ if isinstance(answer, AllocatorError) else "ok", flush=True)

    sqlite_writer.LOG_BYTES = 20_000  # so that the log is moved into the file on the way
    try:
        store = SqliteStore(path)
    except AllocatorError as error:
        said("open", error)
        return
    said("open")
    for number in range(BATCHES):
        if number == BATCHES // 2:
            try:
                (answer,) = store.save(frozen())
            except AllocatorError as error:
                answer = error
            said("freeze", answer)
        try:
            store.add(batch(number))
        except AllocatorError as error:
            said(str(number), error)
        else:
            said(str(number))
    store.close()
    said("close")


def keep(path: str) -> None:
    """What the other child does: freezes kept one by one, each with another record, told when they are acknowledged."""
    try:
        keepsake = DiskKeepsake(path)
        keepsake.belong("life", (), b"k" * 32)
    except AllocatorError:
        return
    for number in range(FREEZES):
        try:
            keepsake.keep([record(f"e{number}")], {f"default/e{number}": held(number)})
        except AllocatorError:
            print(number, "refused", flush=True)
        else:
            print(number, "ok", flush=True)
    keepsake.close()
    print("close", "ok", flush=True)


def held(number: int) -> Pending:
    return Pending(record(f"e{number}", status=Status(State.FROZEN, freeze_epoch=1)), entry("freeze"))


def remembered(path: Path, said: dict[str, bool]) -> None:
    """Every freeze that was acknowledged is there, and none is there by half."""
    with contextlib.closing(DiskKeepsake(path)) as keepsake:
        found = keepsake.load()
    assert {number for number in range(FREEZES) if said.get(str(number))} <= {int(kept.record.name[9:]) for kept in found.pending}
    assert {kept.record.name for kept in found.pending} == {kept.name for kept in found.records}
    assert all(kept == held(int(kept.record.name[9:])) for kept in found.pending)


def traced(path: Path, call: str, fault: str, when: str, workload: str = "work") -> tuple[dict[str, bool], bool]:
    """Run the child with a fault. What it said of each step, and whether the fault came about."""
    trace = path.parent / "trace"
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={when}"]
    code = f"import sys; from tests.faults.test_writes import {workload}; {workload}(sys.argv[1])"
    child = subprocess.run(
        [*command, sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if "ptrace" in child.stderr:
        pytest.skip("tracing is not permitted here")
    assert child.returncode in (0, -9, 137), child.stderr
    happened = "INJECTED" in trace.read_text(errors="replace") or "killed by SIGKILL" in trace.read_text(errors="replace")
    return {step: word == "ok" for step, word in (line.split() for line in child.stdout.splitlines())}, happened


def examine(path: Path, said: dict[str, bool]) -> None:
    """Nothing that was acknowledged is gone; asked again, everything is there once."""
    with contextlib.closing(SqliteStore(path)) as store:
        for number in range(BATCHES):
            answers = store.add(batch(number))
            assert not said.get(str(number)) or set(answers) == {Counted.DUPLICATE}, f"batch {number} was acknowledged and is not there"
        stored = store.record("default/ranker")
        assert stored is not None or not said.get("freeze"), "a freeze was acknowledged and is forgotten"
        if stored is None:
            assert store.save(frozen()) == [None]
        assert store.check() == []
    expected: dict[int, list[int]] = {}
    for number in range(BATCHES):
        sums = expected.setdefault(number % 3, [0, 0])
        sums[0] += 8
        sums[1] += 8 * 1_000_000
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert {bucket: sums for bucket, *sums in db.execute("SELECT bucket, count, total FROM cells")} == expected
        assert db.execute("SELECT count(*) FROM seen").fetchone() == (8 * BATCHES,)
        audit = db.execute("SELECT sequence, seconds, actor, action, experiment, reason, before, after, digest FROM audit").fetchall()
        assert [fields[3] for fields in audit] == ["freeze"]
        assert checker.chain(audit) == []


def put_through(tmp_path: Path, name: str, every: int, workload: str = "work") -> int:
    """Each Nth call, until none is the Nth. Returns how many came about."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    call, fault, when = FAULTS[name]
    look, steps = (examine, [*map(str, range(BATCHES)), "open", "freeze"]) if workload == "work" else (remembered, map(str, range(FREEZES)))
    for came, number in enumerate(range(1, LARGEST, every)):
        path = tmp_path / f"{number}" / "store.db"
        path.parent.mkdir()
        said, happened = traced(path, call, fault, when.format(number), workload)
        look(path, said)
        if not happened:
            assert said == dict.fromkeys((*steps, "close"), True)
            return came
        shutil.rmtree(path.parent)
    raise AssertionError(f"still {call} number {LARGEST}: the workload grew")


@pytest.mark.parametrize("name", FAULTS)
def test_a_failing_write_loses_nothing_that_was_acknowledged(tmp_path, name):
    call = FAULTS[name][0]
    came = put_through(tmp_path, name, every={"pwrite64": 61, "fdatasync": 9, "ftruncate": 5}[call])
    assert came > 0


@pytest.mark.parametrize("name", ["killed in a write", "killed in a sync", "a sync fails once"])
def test_a_failing_write_forgets_no_freeze_that_a_server_keeps_on_its_own_disk(tmp_path, name):
    assert put_through(tmp_path, name, {"pwrite64": 31, "fdatasync": 13}[FAULTS[name][0]], "keep") > 0


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("workload", ["work", "keep"])
@pytest.mark.parametrize("name", FAULTS)
def test_every_failing_write_loses_nothing_that_was_acknowledged(tmp_path, name, workload):
    came = put_through(tmp_path, name, 1, workload)
    print(f"\n{name}: each of {came} calls put through it, lost 0")
    assert came > 4
