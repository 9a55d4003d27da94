"""kill -9 during ingest, over the real server: what was acknowledged is there, and nothing counts twice.

Four callers decide and report in batches of 1 to 200; the server is killed at a moment nobody chose, started again on the same file, and
asked again for what nobody knows the fate of. Afterwards the checker reads the history and the SQLite file.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from pathlib import Path

import pytest

from allocator.ports import SystemClock
from allocator.stores.sqlite import SqliteStore
from tests.conftest import two_arms
from tests.engine.conftest import Rehearsal
from tests.faults import checker
from tests.faults.history import History
from tests.faults.servers import RANKER, Caller
from tests.processes import Server, served

WRITERS = 4


async def write_until_killed(server: Server, history: History, unknown: dict[str, tuple], rng: random.Random, most: int) -> None:
    """Repeat what is unknown, then write until the server is gone."""
    async with Caller(server.address, history, "retry", unknown) as caller:
        await caller.report_unknown()
    loop, moment = asyncio.get_running_loop(), rng.uniform(0.02, 0.5)
    loop.call_later(moment, server.process.kill)

    async def write(worker: int) -> None:
        async with Caller(server.address, history, f"writer-{worker}", unknown) as caller:
            while await caller.serve(rng, rng.randint(1, most)):
                pass

    await asyncio.gather(*(write(worker) for worker in range(WRITERS)))
    server.kill()


def killed(tmp_path: Path, rounds: int, most: int, seed: int) -> dict[str, int]:
    """Kill so many times, freeze, kill once more, and check. Returns the figures."""
    path, rng, unknown, ready = tmp_path / "store.db", random.Random(seed), {}, []
    with History(tmp_path / "history.jsonl") as history:
        server = Server(f"sqlite:{path}")

        async def begin() -> None:
            async with Caller(server.address, history, "ann") as caller:
                await caller.begin()

        asyncio.run(begin())
        for _ in range(rounds):
            asyncio.run(write_until_killed(server, history, unknown, rng, most))
            before = time.perf_counter()
            server = Server(f"sqlite:{path}")
            ready.append(time.perf_counter() - before)

        async def freeze() -> None:
            async with Caller(server.address, history, "ann", unknown) as caller:
                await caller.report_unknown()
                assert await caller.command("freeze", "the last order before the power fails")
                assert await caller.intact()

        asyncio.run(freeze())
        server.kill()
        server = Server(f"sqlite:{path}")

        async def after() -> None:
            async with Caller(server.address, history, "ben") as caller:
                assert set((await caller.decide([f"late-{n}" for n in range(100)])).arm_index) == {0}

        asyncio.run(after())
        assert server.stop() == 0
    figures = checker.figures(history.path)
    assert checker.check(RANKER, checker.of_sqlite(path), history.path) == []
    print(
        f"\n{rounds} kills: {figures['acknowledged']:,} outcomes acknowledged, {figures.get('report info', 0)} reports unknown at first,"
        f" lost 0, counted twice 0; ready again in {statistics.median(ready):.2f} s (at most {max(ready):.2f})"
    )
    return figures


def test_25_kills_during_ingest_lose_nothing_and_count_nothing_twice(tmp_path):
    figures = killed(tmp_path, 25, 200, seed=11)
    assert figures["acknowledged"] > 2_000
    assert figures["report info"] > 0, "no kill came between a report and its answer; the moments are badly chosen"


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_200_kills_with_100_000_acknowledged(tmp_path):
    figures = killed(tmp_path, 200, 400, seed=12)
    assert figures["acknowledged"] >= 100_000
    assert figures["report info"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_with_1000_experiments_is_ready_again_after_a_kill(tmp_path):
    """How long it takes is printed: from starting the process to the first decision of the last experiment."""
    path = tmp_path / "store.db"
    rehearsal = Rehearsal(SqliteStore(path), SystemClock())
    rehearsal.run(two_arms())
    for number in range(999):
        rehearsal.run(two_arms(name=f"e{number}"))
    rehearsal.engine.close()
    ready = []
    with History(tmp_path / "history.jsonl") as history:

        async def ask(server: Server) -> None:
            async with Caller(server.address, history, "ann", experiment="e998") as caller:
                assert len((await caller.decide(["u"])).arms) == 2

        for _ in range(4):
            begun = time.perf_counter()
            with served(f"sqlite:{path}") as server:
                asyncio.run(ask(server))
                ready.append(time.perf_counter() - begun)
    print(f"\n1,000 experiments: serving {statistics.median(ready[1:]):.2f} s after kill -9 (at most {max(ready[1:]):.2f})")
