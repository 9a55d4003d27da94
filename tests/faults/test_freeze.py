"""Freeze, kill everything, start again in whatever order and with whatever is left of the store: nobody gets a candidate.

Two servers, each with a disk of its own, share a store. One is told to freeze and acknowledges; then both are gone without a word. The
store comes back as it was, as it had been before the freeze, or empty, before the servers, after them, or between them. Most trials are
engines in this process, whose disks are real and whose store is in memory; some are `allocator serve` on a Redis, and kill -9. With a
SQLite file, that is in `test_kill.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import operator_service_pb2 as operator_pb
from tests.conftest import two_arms
from tests.engine.fleet import Fleet
from tests.faults.history import History
from tests.faults.servers import Caller, allocates
from tests.processes import Server
from tests.redis_servers import Node, until

FATES = ("as it was", "as before the freeze", "empty")


def trial(disk: Path, seed: int) -> tuple[str, str]:
    """One freeze and what follows. Returns what became of the store, and who started when."""
    rng = random.Random(seed)
    fleet = Fleet(disk, seed)
    for name in "ab":
        fleet.start(name)
    fleet.run("a", two_arms())
    before = fleet.kept_copy()
    for _ in range(rng.randrange(3)):
        name = rng.choice("ab")
        fleet.report(name, [fleet.decide(name) for _ in range(20)], error=0.0)
        fleet.tick(seconds=rng.uniform(0.5, 3))
    teller = rng.choice("ab")
    gone = rng.random() < 0.3  # the store is gone when the freeze comes: the server's own disk takes it
    fleet.lines[teller].cut = gone
    fleet.engines[teller].commands.freeze("ranker", actor="ann", reason=f"trial {seed}")
    assert fleet.arms(teller) == {"old"}
    for name in "ab":
        fleet.kill(name)
    fleet.clock.pass_(rng.uniform(0, 60))

    fate = rng.choice(FATES)
    if fate == "as before the freeze":
        fleet.store = before
    elif fate == "empty":
        fleet.store = fleet.new_store()
    order = [*rng.sample("ab", 2)]
    with_store = rng.randrange(3)  # how many servers start before the store answers
    for place, name in enumerate(order):
        fleet.start(name, cut=place < with_store)
        if name == teller:  # its own disk knows, with the store or without
            assert fleet.arms(name) == {"old"}, f"seed {seed}"
    for line in fleet.lines.values():
        line.cut = False
    for _ in range(4):
        fleet.tick(seconds=1)
    for name in "ab":
        if "default/ranker" in fleet.engines[name].live.snapshot.entries:
            arms = fleet.arms(name)
            assert arms == {"old"}, f"seed {seed}: {name} serves {arms}; the store came back {fate}, gone at the freeze: {gone}"
        else:
            assert fate == "empty"
    for name in "ab":
        fleet.kill(name)
    return fate, f"{with_store} before the store"


def test_no_freeze_is_forgotten_in_200_deaths_of_everything(tmp_path):
    found = Counter(trial(tmp_path / str(seed), seed) for seed in range(200))
    assert len(found) == 9, "each fate is to meet each order"
    print(f"\n200 freezes, everything killed, started again: forgotten 0. {dict(Counter(fate for fate, _ in found.elements()))}")


def ask(address: str, history: History, what) -> object:
    """What an operator or a serving system hears from one server."""

    async def story() -> object:
        async with Caller(address, history, "ann") as caller:
            return await what(caller)

    return asyncio.run(story())


async def arms(caller: Caller) -> set[str]:
    reply = await caller.decide([f"u{random.random()}" for _ in range(200)])
    return {reply.arms[index] for index in reply.arm_index}


async def state(caller: Caller) -> str:
    found = await caller.operator.GetExperiment(operator_pb.GetExperimentRequest(experiment="ranker"), timeout=5)
    return pb.ExperimentState.Name(found.experiment.status.state).removeprefix("EXPERIMENT_STATE_")


def lost(server: Server) -> bool:
    with urlopen(f"http://{server.metrics}/metrics", timeout=5) as page:
        return "allocator_store_lost 1.0" in page.read().decode()


def real_trial(where: Path, fate: str, before: int, gone: bool, teller: str) -> None:
    """One freeze of real servers. before: how many start before the store does. gone: the store was away when the freeze came."""
    other = "ba"["ab".index(teller)]
    told = f"{fate}, {before} servers before it, gone at the freeze: {gone}, told {teller}"
    servers: dict[str, Server] = {}
    with Node(where / "redis") as node, History(where / "history.jsonl") as history, ThreadPoolExecutor(2) as pool:

        def start(names: str) -> None:
            servers.update(zip(names, pool.map(lambda name: Server(node.url, "--state", str(where / name)), names), strict=True))

        try:
            start("ab")
            ask(servers["a"].address, history, lambda caller: caller.begin())
            ask(servers["b"].address, history, allocates)
            shutil.copytree(node.directory, where / "older")
            if gone:
                node.kill()
            assert ask(servers[teller].address, history, lambda caller: caller.command("freeze", "before the power fails")), told
            assert ask(servers[teller].address, history, arms) == {"old"}, told
            for server in servers.values():
                server.kill()
            if not gone:
                node.kill()
            if fate != "as it was":
                node.erase()
            if fate == "as before the freeze":
                shutil.copytree(where / "older", node.directory, dirs_exist_ok=True)
            order = other + teller  # who knows least comes first
            start(order[:before])
            if before == 2:
                assert ask(servers[teller].address, history, arms) == {"old"}, told
            node.start()
            start(order[before:])
            for name, server in servers.items():
                until(lambda s=server: ask(s.address, history, state) == "FROZEN" or lost(s), f"{name} knows of it: {told}")
                for _ in range(3):
                    assert ask(server.address, history, arms) == {"old"}, told
        finally:
            for server in servers.values():
                server.kill()


def real_trials(tmp_path: Path, cases: list[tuple[str, int, bool]]) -> None:
    for number, (fate, before, gone) in enumerate(cases):
        real_trial(tmp_path / str(number), fate, before, gone, "ab"[number % 2])
    print(f"\n{len(cases)} freezes of real servers on Redis, kill -9 of everything, started again: forgotten 0")


def test_no_freeze_is_forgotten_by_real_servers_that_are_killed_with_their_redis(tmp_path):
    real_trials(tmp_path, [("as it was", 2, True), ("as before the freeze", 0, False), ("empty", 1, False)])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_freeze_is_forgotten_by_real_servers_whatever_becomes_of_their_redis_and_in_whatever_order_they_start(tmp_path):
    real_trials(tmp_path, list(itertools.product(FATES, (0, 1, 2), (False, True))))
