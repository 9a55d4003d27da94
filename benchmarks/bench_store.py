"""How many outcomes per second does a store take, durably, beside plain sqlite3 doing the same work with executemany and commit?

    pytest benchmarks/bench_store.py

Batches of 500 outcomes with two contributions each, random nonces, synchronous=FULL. The plain way writes the same rows into the same
tables and answers nothing: neither what was a duplicate nor what was late, and a second caller would wait. Then the same beside a
thread that computes all the time, as a server's event loop may. The ways take turns round by round, so that what else the machine
does hits all alike. At the end: opening a store with 1,000 experiments.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from allocator.core.experiment import Arm, Experiment, Guardrail, Reward
from allocator.core.record import Cell, Record
from allocator.ports import Contribution, Counted, OutcomeRow, Save, Store
from allocator.stores import sqlite_file, sqlite_writer
from allocator.stores.memory import MemoryStore
from allocator.stores.sqlite import SqliteStore

UID = "0123456789abcdef"
BATCH = 500
ROUNDS, BUSY_ROUNDS, EXPERIMENTS = 15, 25, 1_000
TINY = {"ROUNDS": 2, "BUSY_ROUNDS": 2, "EXPERIMENTS": 20}
RNG = random.Random(0)
ADD = """ON CONFLICT DO UPDATE SET count = count + excluded.count, total = total + excluded.total,
    square_high = square_high + excluded.square_high, square_low = square_low + excluded.square_low"""


def batch() -> list[OutcomeRow]:
    rows = []
    for _ in range(BATCH):
        bucket, arm = 60_000_000 + RNG.randrange(3), RNG.randrange(3)
        reward = Contribution(0, Cell(bucket, arm, 0, "_reward", 1, RNG.randrange(2) * 1_000_000, 1, 0))
        error = Contribution(1, Cell(bucket, arm, 0, "errors@0a1b2c3d", 1, RNG.randrange(2) * 1_000_000, 1, 0))
        rows.append(OutcomeRow(UID, RNG.randbytes(8), bucket, 3, (reward, error)))
    return rows


class Plain:
    """The same rows with executemany, row by row, on a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute(f"PRAGMA page_size = {sqlite_file.PAGE_BYTES}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA cache_size = -65536")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {sqlite_writer.LOG_BYTES // sqlite_file.PAGE_BYTES}")
        for _, script in sqlite_file.migrations():
            self._db.executescript(script)

    def add(self, rows: list[OutcomeRow]) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        seen = [(row.bucket, int.from_bytes(row.nonce, "big", signed=True), row.metrics) for row in rows]
        db.executemany("INSERT INTO seen VALUES (1, ?, ?, ?) ON CONFLICT DO UPDATE SET metrics = metrics | excluded.metrics", seen)
        cells = [c.cell for row in rows for c in row.contributions]
        db.executemany(f"INSERT INTO cells VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, 0) {ADD}", cells)
        db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


@contextlib.contextmanager
def busy_thread() -> Iterator[None]:
    done = False

    def spin() -> None:
        while not done:
            sum(range(1_000))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        done = True
        thread.join()


def rate(add: Callable[[list[OutcomeRow]], object], batches: list[list[OutcomeRow]]) -> float:
    start = time.perf_counter()
    for rows in batches:
        add(rows)
    return len(batches) * BATCH / (time.perf_counter() - start)


def rate_of_eight(store: Store, batches: list[list[OutcomeRow]]) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(store.add, batches):
            assert answers.count(Counted.ACCEPTED) == BATCH
    return len(batches) * BATCH / (time.perf_counter() - start)


def show(capsys, title: str, rates: dict[str, list[float]]) -> None:
    plain = statistics.median(rates["plain sqlite3"])
    with capsys.disabled():
        print(f"\n{title}: rows/s, median (least to most), and over plain sqlite3")
        for way, found in rates.items():
            middle = statistics.median(found)
            print(f"  {way:<28}{middle:>10,.0f}  ({min(found):,.0f} to {max(found):,.0f}){middle / plain:>10.2f}")


@pytest.fixture
def ways(tmp_path) -> Iterator[tuple[Store, Plain, Store]]:
    found = SqliteStore(tmp_path / "store.db"), Plain(tmp_path / "plain.db"), MemoryStore()
    yield found
    for store in found:
        store.close()


def test_alone(ways, capsys):
    durable, plain, memory = ways
    rates: dict[str, list[float]] = {"plain sqlite3": [], "sqlite": [], "sqlite, 8 callers": [], "memory": []}
    for _ in range(ROUNDS):
        batches = [batch() for _ in range(16)]
        rates["plain sqlite3"].append(rate(plain.add, batches))
        rates["sqlite"].append(rate(durable.add, batches))
        rates["memory"].append(rate(memory.add, batches))
        rates["sqlite, 8 callers"].append(rate_of_eight(durable, [batch() for _ in range(16)]))
    show(capsys, "alone", rates)


def test_beside_a_busy_thread(ways, capsys):
    """Milliseconds of single batches: what matters here is the longest wait."""
    durable, plain, memory = ways
    adds = {"plain sqlite3": plain.add, "sqlite": durable.add, "memory": memory.add}
    took: dict[str, list[float]] = {way: [] for way in adds}
    for _ in range(BUSY_ROUNDS):
        for way, add in adds.items():
            rows = batch()
            with busy_thread():
                time.sleep(0.02)
                took[way].append(BATCH / rate(add, [rows]) * 1e3)
    with capsys.disabled():
        print(f"\nbeside a busy thread, {BATCH} rows: milliseconds, median, 9 of 10, most")
        for way, found in took.items():
            nine = statistics.quantiles(found, n=10)[-1]
            print(f"  {way:<28}{statistics.median(found):>10.1f}{nine:>10.1f}{max(found):>10.1f}")


def test_opening_with_1000_experiments(tmp_path, capsys):
    def record(number: int) -> Record:
        experiment = Experiment(
            name=f"e{number}",
            arms=(Arm("old", incumbent=True), Arm("new"), Arm("newer")),
            reward=Reward("click"),
            guardrails=tuple(Guardrail(f"g{index}", "error", max=0.02) for index in range(4)),
        )
        return Record(f"{number:016x}", experiment, b"s" * 16)

    path = tmp_path / "store.db"
    with contextlib.closing(SqliteStore(path)) as store:
        start = time.perf_counter()
        assert store.save([Save(record(number), None) for number in range(EXPERIMENTS)]) == [None] * EXPERIMENTS
        saved = time.perf_counter() - start
    took = []
    for _ in range(5):
        start = time.perf_counter()
        with contextlib.closing(SqliteStore(path)) as store:
            assert len(store.records()) == EXPERIMENTS
            took.append(time.perf_counter() - start)
    with capsys.disabled():
        print(f"\n{EXPERIMENTS:,} experiments: saved in {saved * 1e3:.0f} ms; opened and read in {statistics.median(took) * 1e3:.0f} ms")
