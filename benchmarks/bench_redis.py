"""How many outcomes per second does the Redis store take, and what do faults, failovers and 10,000 experiments cost it?

    pytest benchmarks/bench_redis.py -s

A real server on the same machine, which shares its two cores with the callers. Batches of 500 outcomes with two contributions each, random
nonces, as in bench_store.py. `always`: Redis syncs its file before it answers; `everysec`: once a second; `wait=1`: a replica has it too.
The settings take turns round by round, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from allocator.core.experiment import Arm, Experiment, Guardrail, Reward
from allocator.core.record import Record
from allocator.errors import Unavailable
from allocator.ports import Save
from allocator.stores.redis import RedisStore
from benchmarks.bench_store import BATCH, batch
from tests.redis_servers import Node, Sentinels, until

ROUNDS = 7
BATCHES = 32
TINY = {"ROUNDS": 1, "BATCHES": 2}
NOT_TINY = ("test_a_failover",)  # three elections in real time; tests/stores/test_redis_deployments.py sees that they end well


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(found: list[float], factor: float = 1.0, digits: int = 0) -> str:
    low, middle, high = (f"{value * factor:,.{digits}f}" for value in (min(found), statistics.median(found), max(found)))
    return f"{middle:>10}  ({low} to {high})"


@contextlib.contextmanager
def stores(directory: Path) -> Iterator[dict[str, RedisStore]]:
    with contextlib.ExitStack() as stack:
        everysec = stack.enter_context(Node(directory / "everysec", appendfsync="everysec"))
        always = stack.enter_context(Node(directory / "always", appendfsync="always"))
        replica = stack.enter_context(Node(directory / "replica", replicaof=f"127.0.0.1 {everysec.port}", repl_diskless_sync_delay=0))
        until(lambda: replica.ask("ROLE")[3] == "connected", "the replica follows")
        urls = {
            "appendfsync everysec": f"{everysec.url}?timeout_ms=5000",
            "appendfsync always": f"{always.url}?timeout_ms=5000",
            "everysec and wait=1": f"{everysec.url}?timeout_ms=5000&prefix=waits&wait=1&wait_ms=2000",
        }
        yield {name: stack.enter_context(contextlib.closing(RedisStore(url))) for name, url in urls.items()}


def test_ingest(tmp_path, capsys):
    with stores(tmp_path) as found:
        rates: dict[tuple[str, str], list[float]] = {}
        for store in found.values():
            store.add(batch())
        for _ in range(ROUNDS):
            for name, store in found.items():
                for callers in (1, 4, 8):
                    batches = [batch() for _ in range(BATCHES)]
                    with ThreadPoolExecutor(callers) as pool:
                        took = seconds(lambda pool=pool, store=store, batches=batches: list(pool.map(store.add, batches)))
                    rates.setdefault((name, f"{callers} callers"), []).append(BATCHES * BATCH / took)
                known = [rows[: BATCH * 3 // 10] + batch()[: BATCH * 7 // 10] for rows in batches]
                with ThreadPoolExecutor(4) as pool:
                    took = seconds(lambda pool=pool, store=store, known=known: list(pool.map(store.add, known)))
                rates.setdefault((name, "4 callers, 30 % duplicates"), []).append(BATCHES * BATCH / took)
    with capsys.disabled():
        print(f"\noutcomes/s into Redis, batches of {BATCH}: median (least to most)")
        for (name, how), values in rates.items():
            print(f"  {name:<24}{how:<28}{spread(values)}")


def test_10_000_experiments(tmp_path, capsys):
    def record(number: int, version: int = 1) -> Record:
        guardrails = tuple(Guardrail(f"g{index}", "error", max=0.02) for index in range(4))
        arms = (Arm("old", incumbent=True), Arm("new"), Arm("newer"))
        experiment = Experiment(name=f"e{number}", arms=arms, reward=Reward("click"), guardrails=guardrails)
        return Record(f"{number:016x}", experiment, b"s" * 16, version)

    with Node(tmp_path) as server, contextlib.closing(RedisStore(f"{server.url}?timeout_ms=5000")) as store:
        saves = [Save(record(number), None) for number in range(10_000)]
        saved = seconds(lambda: store.save(saves))
        read = seconds(store.records)
        first = seconds(lambda: store.lead("first", 60))
        renewed = [seconds(lambda: store.lead("first", 60)) for _ in range(50)]
        store.resign("first")
        taken = seconds(lambda: store.lead("second", 60))
        mark = store.news(0).mark
        everything = [seconds(lambda: store.news(0)) for _ in range(10)]
        store.save([Save(record(number, 2), 1) for number in range(3)])
        few = [seconds(lambda: store.news(mark)) for _ in range(50)]
        assert len(store.news(mark).names) == 3
        one = [seconds(lambda n=n: store.save([Save(record(n, 2), 1)])) for n in range(100, 200)]
        memory = server.ask("INFO", "memory")["used_memory"]
    with capsys.disabled():
        print(f"\n10,000 experiments: saved in {saved:.2f} s, read in {read:.2f} s, {memory / 1e6:.0f} MB in Redis")
        print(f"  a first term {first * 1e3:.0f} ms, another's term (every experiment refuses the one before) {taken * 1e3:.0f} ms")
        print(
            f"  ms: renewing a term {spread(renewed, 1e3, 2)};  news of all {spread(everything, 1e3, 1)};  of three {spread(few, 1e3, 2)}"
        )
        print(f"  ms: one save {spread(one, 1e3, 2)}")


@pytest.mark.parametrize("timeout_ms", [50, 500])
def test_a_server_that_is_silent(tmp_path, capsys, timeout_ms):
    """From the first call on; nobody may wait for longer than the timeout."""
    took = []
    with Node(tmp_path) as server, contextlib.closing(RedisStore(f"{server.url}?timeout_ms={timeout_ms}")) as store:
        store.add(batch())
        server.pause()
        rows = batch()
        end = time.perf_counter() + 3
        while time.perf_counter() < end:
            start = time.perf_counter()
            with contextlib.suppress(Unavailable):
                store.add(rows)
            took.append(time.perf_counter() - start)
        server.resume()
        back = seconds(lambda: until(lambda: store.add(rows), "it answers again"))
    waited = [value for value in took if value > 0.01]
    refused = sorted(value for value in took if value <= 0.01)
    with capsys.disabled():
        print(
            f"\nsilence, timeout {timeout_ms} ms: first answer after {took[0] * 1e3:.0f} ms; in 3 s {len(waited)} calls waited, at most"
        )
        print(f"  {max(waited) * 1e3:.0f} ms; the others were refused within {refused[len(refused) * 99 // 100] * 1e3:.2f} ms (99 of 100);")
        print(f"  back {back * 1e3:.0f} ms after the server was")


def test_a_failover(tmp_path, capsys):
    """From the death of the master to the next acknowledged outcome; Sentinels wait for 1 s of silence."""
    gaps = []
    with Sentinels(tmp_path) as sentinels, contextlib.closing(RedisStore(f"{sentinels.url}?wait=1")) as store:
        for _ in range(3):
            until(lambda: store.add(batch()[:1]), "it answers")
            before = sentinels.master()
            before.kill()
            gaps.append(seconds(lambda: until(lambda: store.add(batch()[:1]), "an outcome is acknowledged")))
            sentinels.rejoin(before)
    with capsys.disabled():
        print(f"\nfailover after a kill, wait=1: no outcome acknowledged for {spread(gaps, 1.0, 2)} s")
