"""The demo's server process: the real server and its store, with seeded chance and a clock that the demo moves.

In: a seed, the path of the store, and on standard input a line for each step of time, its seconds. Out: on standard
error the server's log, on standard output a line when a step is done. Ends at SIGTERM, or when standard input does:
it never outlives the demo.

Everything is what `allocator serve` runs, but for the two ports where chance and time come in, so that a seed fixes
every decision on any machine however slow. A step plans, moves the clock, and plans again: between two steps no time
passes, so it does not matter when the planner's own thread looks. Ids made with seeded chance can be guessed, so this
must never serve anyone else.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import signal
import sys
import threading
import time
from pathlib import Path

import structlog
import uvloop

from allocator.errors import AllocatorError
from allocator.server import logs
from allocator.server.config import Config
from allocator.server.main import Server, open_store

ANY_PORT = "127.0.0.1:0"

log = structlog.get_logger()


class SeededEntropy:
    """Random bytes that a seed fixes."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def bytes(self, count: int) -> bytes:
        with self._lock:
            return self._random.randbytes(count)


class SteppedClock:
    """Wall time that stands still between two steps. Durations and leases go by the machine's own clock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> float:
        return self._seconds

    monotonic = staticmethod(time.monotonic)

    def step(self, seconds: float) -> None:
        self._seconds += seconds


async def serve(seed: int, store: Path) -> None:
    """Serve until SIGTERM or the end of standard input. Raises AllocatorError when the store cannot be had."""
    forget(store, SeededEntropy(seed))
    clock = SteppedClock(math.floor(time.time()))
    config = Config(listen=ANY_PORT, metrics=ANY_PORT, store=f"sqlite:{store}", drain_seconds=0.0, grace_seconds=2.0)
    server = Server(config, clock=clock, entropy=SeededEntropy(seed))
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await server.start()
    following = asyncio.create_task(follow(server, clock))
    following.add_done_callback(lambda _: stopping.set())
    await stopping.wait()
    await server.stop()
    if following.done():
        following.result()


async def follow(server: Server, clock: SteppedClock) -> None:
    """Carry out the steps asked for on standard input, until it ends."""
    loop, asked = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    while line := await asked.readline():
        await loop.run_in_executor(None, plan_all, server)
        clock.step(float(line))
        await loop.run_in_executor(None, plan_all, server)
        print("done", flush=True)


def forget(store: Path, entropy: SeededEntropy) -> None:
    """Remove what an earlier demo left; not what another process has open, nor what another program made."""
    if not store.exists():
        return
    open_store(f"sqlite:{store}", entropy).close()
    for suffix in ("", "-wal", "-shm", ".lock", ".reserve"):
        store.with_name(store.name + suffix).unlink(missing_ok=True)


def plan_all(server: Server) -> None:
    """Plan every experiment now, weights included, with all that was counted."""
    planner = server.engine.planner
    for record in server.engine.registry.all():
        planner.replan(record.uid)
    planner.tick()


def main() -> None:
    parser = argparse.ArgumentParser(description="the server of `allocator demo`")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--store", type=Path, required=True)
    options = parser.parse_args()
    logs.set_up("json")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options.seed, options.store))
    except AllocatorError as error:
        log.error("server.failed", reason=error.reason, error=error.message)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
