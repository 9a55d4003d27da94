"""A disk that is full or does not sync, and a second server on what a first one has: over the real server."""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import fill
from tests.faults import checker
from tests.faults.history import History
from tests.faults.servers import RANKER, Caller
from tests.processes import served


async def timed(call) -> float:
    """Milliseconds that a call takes."""
    begun = time.perf_counter()
    await call
    return (time.perf_counter() - begun) * 1e3


def test_a_full_disk_refuses_outcomes_decides_freezes_and_recovers_by_itself(small_disk, tmp_path):
    disk, rng = small_disk("64m"), random.Random(4)
    path = disk / "store.db"
    with History(tmp_path / "history.jsonl") as history, served(f"sqlite:{path}") as server:

        async def story() -> tuple[list[float], list[float], list[float], float]:
            async with (
                Caller(server.address, history, "ann") as caller,
                Caller(server.address, History(tmp_path / "other.jsonl"), "ben", experiment="other") as other,
            ):
                await caller.begin()
                await other.begin(name="other")
                healthy, full, refusals = [], [], []
                for number in range(20):
                    assert await caller.serve(rng, 100, may_fail=False)
                    healthy.append(await timed(caller.decide([f"healthy-{number}"])))
                filler = fill(disk)
                while len(refusals) < 30:
                    reply = await caller.decide([f"full-{len(full)}-{i}" for i in range(200)])
                    took = await timed(caller.report({id_: (0.0, {"error": 0.0}) for id_ in reply.ids}, seconds=2))
                    if caller.unknown:
                        assert caller.error == "RESOURCE_EXHAUSTED"
                        refusals.append(took)
                    full.append(await timed(caller.decide([f"beside-{len(full)}"])))
                assert await other.command("freeze", "also on a full disk")
                assert set((await other.decide([f"late-{i}" for i in range(200)])).arm_index) == {0}
                filler.unlink()
                freed = time.perf_counter()
                while await caller.report(dict(list(caller.unknown.items())[:500])) is None:
                    assert caller.error == "RESOURCE_EXHAUSTED"
                recovered = time.perf_counter() - freed
                await caller.report_unknown()
                assert await caller.intact()
                return healthy, full, refusals, recovered

        healthy, full, refusals, recovered = asyncio.run(story())
        assert server.stop() == 0
    assert checker.check(RANKER, checker.of_sqlite(path), history.path) == []
    assert checker.of_sqlite(path).states["default/other"] == "FROZEN"
    print(
        f"\nfull disk: refused in {statistics.median(refusals):.1f} ms (at most {max(refusals):.1f}), decisions in"
        f" {statistics.median(full):.2f} ms (healthy {statistics.median(healthy):.2f}), a freeze went through,"
        f" outcomes accepted {recovered * 1e3:.0f} ms after space came"
    )


def test_an_fsync_that_fails_acknowledges_nothing_and_decisions_go_on(tmp_path):
    """strace lets the 20th to the 60th sync of each thread fail; kill -9 then shows what had really been kept."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    path, rng = tmp_path / "store.db", random.Random(6)
    inject = "inject=fdatasync:error=EIO:when=20..60"
    wrap = ("strace", "-D", "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", "trace=fdatasync", "-e", inject)
    refused = 0
    with History(tmp_path / "history.jsonl") as history, served(f"sqlite:{path}", wrap=wrap) as server:

        async def story() -> int:
            refused = 0
            async with Caller(server.address, history, "ann") as caller:
                await caller.begin()
                while refused < 20 or caller.unknown:
                    reply = await caller.decide([f"u-{rng.random()}" for _ in range(20)])
                    if await caller.report({id_: (1.0, {"error": 0.0}) for id_ in reply.ids}) is None:
                        assert caller.error == "UNAVAILABLE"
                        refused += 1
                    elif refused >= 20:
                        await caller.report_unknown()
                assert await caller.serve(rng, 50, may_fail=False)
            return refused

        refused = asyncio.run(story())
        server.kill()
    assert "INJECTED" in (tmp_path / "trace").read_text(errors="replace")
    with served(f"sqlite:{path}") as server:
        assert server.stop() == 0
    assert checker.check(RANKER, checker.of_sqlite(path), history.path) == []
    print(f"\nEIO on fsync: {refused} reports refused, 0 acknowledged by a failed sync, every decision answered, accepted again afterwards")


def ends_at_once(*flags: str) -> str:
    """What a server says that cannot start."""
    command = [sys.executable, "-m", "allocator", "serve", "--metrics", "none", *flags]
    begun = time.perf_counter()
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    print(f"\nsecond server: exit {child.returncode} after {time.perf_counter() - begun:.1f} s: {child.stderr.splitlines()[0][:100]}")
    assert child.returncode == 7
    return child.stderr


def test_a_second_server_on_the_file_or_the_port_ends_at_once_with_a_clear_word(tmp_path):
    path: Path = tmp_path / "store.db"
    with History(tmp_path / "history.jsonl") as history, served(f"sqlite:{path}") as server:

        async def story() -> None:
            async with Caller(server.address, history, "ann") as caller:
                await caller.begin()
                for _ in range(2):
                    assert await caller.serve(random.Random(1), 100, may_fail=False)

        asyncio.run(story())
        said = ends_at_once("--listen", "127.0.0.1:0", "--store", f"sqlite:{path}")
        assert "error: another process (pid" in said
        assert "hint: stop the other process" in said
        said = ends_at_once("--listen", server.address, "--store", "memory:")
        assert f"cannot listen on {server.address}" in said
        assert server.stop() == 0
    assert checker.check(RANKER, checker.of_sqlite(path), history.path) == []
