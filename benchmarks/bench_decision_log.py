"""What does the decision log cost: where decisions are made, and in the thread that writes?

    pytest benchmarks/bench_decision_log.py -s

Prints microseconds for each decision, best and worst of several slices: the hook alone, with and without attributes to keep; and the
writer's work (hashing the unit, columns, the stream), which runs beside decisions and shares their processor.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from allocator.core.assignment import SLOTS
from allocator.core.decision import Reason
from allocator.core.decision_id import mint
from allocator.core.snapshot import Entry, Table
from allocator.engine.live import Live
from allocator.engine.registry import Registry
from allocator.ports import SystemClock, SystemEntropy
from allocator.server.decision_log import DecisionLog
from allocator.stores.memory import MemoryStore

ROWS, SLICES = 50_000, 8
TINY = {"ROWS": 500, "SLICES": 2}


def test_hook_and_writer(tmp_path: Path) -> None:
    entry = Entry(
        "default/ranker", b"12345678", 1, "RUNNING", True, b"salt", ("a", "b"), ("", ""), 0,
        (Table((30_000, SLOTS), (0, 1), (30_000, 35_536)),),
    )  # fmt: skip
    ids = [mint(b"key", entry.uid, 1, 0, 1, 1_800_000_000_000 + n // 10, 35_536, secrets.token_bytes(8), 3) for n in range(ROWS)]
    attributes = {"device": "ios", "country": "fr"}
    clock = SystemClock()
    live = Live(clock)
    for context in ((), ("device", "country")):
        log = DecisionLog(tmp_path / str(len(context)), live, Registry(MemoryStore(SystemEntropy()), live), clock.now, context=context)
        (tmp_path / str(len(context)) / ".open").mkdir(parents=True)
        hook, writer = [], []
        for _ in range(SLICES):
            started = time.perf_counter()
            for one in ids:
                log.decided(entry, one, b"unit", attributes, Reason.ALLOCATED)
            hook.append((time.perf_counter() - started) / ROWS * 1e6)
            started = time.perf_counter()
            log.flush()
            writer.append((time.perf_counter() - started) / ROWS * 1e6)
        log.close()
        print(
            f"\n{len(context)} attributes kept: hook {min(hook):.2f} to {max(hook):.2f} µs,"
            f" writer {min(writer):.2f} to {max(writer):.2f} µs a decision, lost {log.counts.lost['decisions']}"
        )
