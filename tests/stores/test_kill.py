"""A process that writes is killed at any moment; what it had acknowledged is there, once.

The child writes with several threads and tells each acknowledgement through a pipe; the parent kills it, opens the file again and
repeats what it does not know the fate of, as a client would. The file is then examined with plain sqlite3 against what the
parent knows was asked for: nothing of the product takes part in that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import random
import sqlite3
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from allocator.core.audit import AuditEntry
from allocator.core.lifecycle import State, Status
from allocator.core.record import Cell
from allocator.errors import AllocatorError
from allocator.ports import Contribution, OutcomeRow, Save
from allocator.stores.sqlite import SqliteStore
from tests.stores.conftest import UID, record

ROUNDS = 20
WRITERS = 4


def batches(round_: int, writer: int) -> Iterator[list[OutcomeRow]]:
    """What a writer asks for in a round, in order: batches of 1 to 200 outcomes, some repeated from the batch before."""
    rng = random.Random(round_ * 100 + writer)
    number = 0
    before: list[OutcomeRow] = []
    while True:
        batch = rng.sample(before, min(len(before), 3))
        for _ in range(rng.randint(1, 200)):
            nonce = bytes([round_, writer]) + number.to_bytes(6, "big")
            total = (number * 7919 + round_) % 1_000_000
            bucket = round_ * 10 + number % 3
            batch.append(OutcomeRow(UID, nonce, bucket, 1, (Contribution(0, Cell(bucket, writer, 0, "r", 1, total, 1, 2)),)))
            number += 1
        yield batch
        before = batch


def freeze(version: int) -> Save:
    frozen = record(version=version, status=Status(State.FROZEN, reason="test", freeze_epoch=version))
    return Save(frozen, version - 1 or None, (AuditEntry(float(version), "child", "freeze", frozen.name, str(version)),))


def write_until_killed(path: str, round_: int, version: int, pipe: Connection) -> None:
    """The child. Sends (writer, batches acknowledged) and ("freeze", version acknowledged)."""
    store = SqliteStore(path)
    speak = threading.Lock()

    def say(*words: object) -> None:
        with speak:
            pipe.send(words)

    def report(writer: int) -> None:
        for done, batch in enumerate(batches(round_, writer), 1):
            store.add(batch)
            say(writer, done)

    for writer in range(WRITERS):
        threading.Thread(target=report, args=(writer,), daemon=True).start()
    while True:
        version += 1
        assert store.save([freeze(version)]) == [None]
        say("freeze", version)


def test_a_killed_process_loses_nothing_it_acknowledged_and_counts_nothing_twice(tmp_path):
    rng = random.Random(20_261_123)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "allocator.stores.sqlite"])
    path = tmp_path / "allocator.db"
    asked: dict[bytes, OutcomeRow] = {}
    version = 0
    acknowledged_rows = unknown = 0
    for round_ in range(ROUNDS):
        acknowledged: dict[object, int] = {"freeze": version}
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=write_until_killed, args=(str(path), round_, version, sender))
        child.start()
        sender.close()
        heard = 0
        moment = rng.randrange(1, 200)
        with contextlib.suppress(EOFError):
            while True:
                who, count = receiver.recv()
                acknowledged[who] = count
                heard += 1
                if heard == moment:
                    child.kill()
        child.join()
        assert child.exitcode == -9, "the child was to be killed, not to end"

        with contextlib.closing(SqliteStore(path)) as store:
            stored = store.record("default/ranker")
            assert stored is None or stored.status.state is State.FROZEN
            found = stored.version if stored else 0
            assert acknowledged["freeze"] <= found <= acknowledged["freeze"] + 1
            version = found
            for writer in range(WRITERS):
                of_writer = batches(round_, writer)
                for _ in range(acknowledged.get(writer, 0)):
                    batch = next(of_writer)
                    acknowledged_rows += len(batch)
                    asked.update((row.nonce, row) for row in batch)
                batch = next(of_writer)  # begun perhaps, and perhaps committed: a client asks again
                counted = store.add(batch)
                unknown += any(answer.value == "DUPLICATE" for row, answer in zip(batch, counted, strict=True) if row.nonce not in asked)
                asked.update((row.nonce, row) for row in batch)
            assert not isinstance(store.save([freeze(version + 1)])[0], AllocatorError)
            version += 1
        if round_ % 5 == 4:  # nothing is forgotten between
            examine(path, asked, version)
    assert acknowledged_rows > 20_000
    assert unknown > 0, "no kill came between a commit and its acknowledgement; the moments are badly chosen"


def examine(path: Path, asked: dict[bytes, OutcomeRow], version: int) -> None:
    """Everything asked for is in the file, once; so is every freeze, with one audit record each that fits the one before."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        seen = {nonce.to_bytes(8, "big", signed=True) for (nonce,) in db.execute("SELECT nonce FROM seen")}
        assert seen == set(asked)
        expected: dict[tuple[int, int], list[int]] = {}
        for row in asked.values():
            cell = row.contributions[0].cell
            sums = expected.setdefault((cell.bucket, cell.arm), [0, 0, 0, 0])
            for index, value in enumerate(cell[4:]):
                sums[index] += value
        cells = db.execute("SELECT bucket, arm, count, total, square_high, square_low FROM cells").fetchall()
        assert {(bucket, arm): list(sums) for bucket, arm, *sums in cells} == expected

        ((stored, document),) = db.execute("SELECT version, document FROM records").fetchall()
        assert stored == version
        assert json.loads(document)["record"]["status"]["freeze_epoch"] == version
        digest = "0" * 64
        audit = db.execute(
            "SELECT sequence, seconds, actor, action, experiment, reason, before, after, digest FROM audit ORDER BY 1"
        ).fetchall()
        assert [(sequence, reason) for sequence, _, _, _, _, reason, *_ in audit] == [(n, str(n)) for n in range(1, version + 1)]
        for *fields, sealed in audit:
            hasher = hashlib.sha256(digest.encode())
            for text in map(str, fields):
                hasher.update(len(text.encode()).to_bytes(8, "big") + text.encode())
            digest = hasher.hexdigest()
            assert digest == sealed
