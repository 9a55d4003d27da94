"""200 watchers lose their connection at once and come back; some never read. All are served, the server's memory stays in bounds."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
import time
from pathlib import Path

import grpc

from allocator.client.follower import Follower
from allocator.client.local import RECONNECT
from allocator.client.remote import OPTIONS
from allocator.ports import SystemClock
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from tests.faults.history import History
from tests.faults.proxy import Proxy
from tests.faults.servers import Caller
from tests.processes import Server, served, until

WATCHERS, STUCK, EXPERIMENTS = 200, 50, 40
MORE_MEGABYTES = 100


def resident(server: Server) -> float:
    """Megabytes of memory that the server has."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def wait(condition, what: str) -> float:
    """Seconds until it is so."""
    begun = time.monotonic()
    until(condition, what, 60.0)
    return time.monotonic() - begun


def state_of(follower: Follower, name: str) -> str:
    entry = follower.table.snapshot.entries.get(f"default/{name}")
    return entry.state if entry is not None else ""


def test_200_watchers_come_back_at_once_and_stuck_ones_hold_nobody_up(tmp_path):
    options = (*OPTIONS, *RECONNECT, ("grpc.use_local_subchannel_pool", 1))
    with served("memory:") as server, Proxy(server.address) as proxy, contextlib.ExitStack() as stack:

        async def command(name: str, op: str) -> None:
            async with Caller(server.address, stack.enter_context(History(tmp_path / "history.jsonl")), "ann", experiment=name) as ann:
                await (ann.begin(name=name) if op == "begin" else ann.command(op, "a rehearsal"))

        async def begin() -> None:
            for number in range(EXPERIMENTS):
                await command(f"e{number}", "begin")

        asyncio.run(begin())
        stuck = []
        for _ in range(STUCK):
            channel = stack.enter_context(grpc.insecure_channel(server.address, options=options))
            stuck.append(service_grpc.AllocatorServiceStub(channel).WatchSnapshots(service_pb.WatchSnapshotsRequest()))  # and never read
        followers = []
        for _ in range(WATCHERS):
            channel = stack.enter_context(grpc.insecure_channel(proxy.address, options=options))
            follower = Follower(service_grpc.AllocatorServiceStub(channel).WatchSnapshots, SystemClock(), lambda change: None)
            stack.callback(follower.stop)
            followers.append(follower)
            follower.start()
        wait(lambda: all(len(f.table.snapshot.entries) == EXPERIMENTS for f in followers), "everybody has the table")
        before, opened = resident(server), [follower.opened for follower in followers]
        accepted = proxy.accepted
        proxy.reset()
        asyncio.run(command("e0", "freeze"))  # what happens while nobody watches is told afterwards
        begun = time.monotonic()
        peak: collections.Counter[int] = collections.Counter()
        pause = threading.Event()
        while not all(state_of(f, "e0") == "FROZEN" and f.opened > was for f, was in zip(followers, opened, strict=True)):
            assert time.monotonic() - begun < 60, "not all came back"
            peak[int(time.monotonic() - begun)] += proxy.accepted - accepted
            accepted = proxy.accepted
            pause.wait(0.05)
        back = time.monotonic() - begun
        asyncio.run(command("e1", "freeze"))
        told = wait(lambda: all(state_of(f, "e1") == "FROZEN" for f in followers), "everybody heard of the second freeze")
        more = resident(server) - before
        for follower in followers:
            follower.stop()
        for call in stuck:
            call.cancel()
    print(
        f"\n{WATCHERS} watchers dropped at once: all back and up to date after {back:.1f} s, at most {max(peak.values())} connections"
        f" in a second; a freeze reached all, beside {STUCK} that never read, in {told * 1e3:.0f} ms; memory {more:+.0f} MB"
    )
    assert more < MORE_MEGABYTES
