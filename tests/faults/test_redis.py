"""Redis gone, empty, slow, stale or handed over: decisions go on, freezes stay, and nothing is lost where a setting promises so."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from pathlib import Path

import pytest

from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import operator_service_pb2 as operator_pb
from tests.faults import checker
from tests.faults.history import History
from tests.faults.proxy import Proxy
from tests.faults.servers import RANKER, Caller, allocates
from tests.processes import Server, served, until
from tests.redis_servers import Node, Sentinels


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98] * 1e3


def serving(store: str, tmp_path: Path, name: str = "a") -> Server:
    return served(store, "--state", str(tmp_path / f"state-{name}"))


async def arms(caller: Caller, word: str, count: int = 200) -> set[str]:
    """That so many new units get."""
    reply = await caller.decide([f"{word}-{number}" for number in range(count)])
    return {reply.arms[index] for index in reply.arm_index}


async def reasons(caller: Caller, word: str, count: int = 60) -> set[str]:
    """For which so many new units get what they get."""
    reply = await caller.decide([f"{word}-{number}" for number in range(count)])
    return {pb.Reason.Name(reason).removeprefix("REASON_") for reason in reply.reasons}


def test_redis_killed_and_restarted_empty_forgets_no_freeze_and_serves_no_candidate_until_somebody_looked(tmp_path):
    rng = random.Random(8)
    with (
        Node(tmp_path / "redis") as node,
        History(tmp_path / "history.jsonl") as history,
        History(tmp_path / "other.jsonl") as second,
        serving(node.url, tmp_path, "a") as one,
        serving(node.url, tmp_path, "b") as two,
    ):

        async def story() -> tuple[float, float]:
            async with (
                Caller(one.address, history, "ann") as ann,
                Caller(two.address, history, "ben") as ben,
                Caller(one.address, second, "cyd", experiment="other") as other,
            ):
                await ann.begin()
                await other.begin(name="other")
                assert await other.command("freeze", "before the store dies")
                for _ in range(10):
                    assert await ann.serve(rng, 50, may_fail=False)
                await allocates(ben)
                before = time.perf_counter()
                node.restart(empty=True)
                restarted = time.perf_counter()
                for number, caller in enumerate((ann, ben)):
                    while await reasons(caller, f"empty-{number}-{time.perf_counter()}") != {"STALE"}:  # few candidates prove nothing
                        assert time.perf_counter() - restarted < 30, "candidates are served out of an empty store"
                noticed = time.perf_counter() - restarted
                reply = await ann.decide(["late"])
                assert await ann.report({reply.ids[0]: (1.0, {})}) is None
                assert ann.error == "UNAVAILABLE"
                ann.unknown.clear()  # of a life that is over
                assert await arms(other, "frozen") == {"old"}
                await ann.operator.ReconcileStore(operator_pb.ReconcileStoreRequest(actor="ann", reason="it was rebooted"), timeout=20)
                described = await other.operator.GetExperiment(operator_pb.GetExperimentRequest(experiment="other"))
                assert described.experiment.status.state == pb.EXPERIMENT_STATE_FROZEN
                assert await arms(ann, "reconciled") == {"old"}  # running ones come back frozen: somebody is to look
                assert await ann.intact()
                return noticed, restarted - before

        noticed, away = asyncio.run(story())
    print(f"\nRedis killed and back empty after {away:.1f} s: no candidate anywhere {noticed * 1e3:.0f} ms later, freezes forgotten 0")


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_sentinel_failover_loses_no_acknowledged_outcome_and_no_decision(tmp_path, how):
    rng, unknown = random.Random(9), {}
    with (
        Sentinels(tmp_path / "redis") as redis,
        History(tmp_path / "history.jsonl") as history,
        serving(f"{redis.url}?wait=1", tmp_path) as server,
    ):

        async def story() -> float:
            async with Caller(server.address, history, "ann", unknown) as ann, Caller(server.address, history, "ben", unknown) as ben:
                await ann.begin()
                for _ in range(5):
                    assert await ann.serve(rng, 50, may_fail=False)
                master = redis.master()
                handed = asyncio.get_running_loop().run_in_executor(None, redis.wait_for_another, master)
                getattr(master, how)()
                began, gap = time.perf_counter(), 0.0
                while True:
                    if await ben.serve(rng, 20, may_fail=False) and handed.done():
                        gap = time.perf_counter() - began
                        break
                    assert time.perf_counter() - began < 40, "no outcome was accepted after the failover"
                await ann.report_unknown()
                for _ in range(5):
                    assert await ann.serve(rng, 50, may_fail=False)
                assert await ann.intact()
                if how == "pause":
                    master.resume()
                return gap

        gap = asyncio.run(story())
        port = redis.master().port
        server.stop()
        found = checker.check(RANKER, checker.of_redis(port), history.path)
    assert found == []
    figures = checker.figures(history.path)
    told = f"{figures['acknowledged']} acknowledged, lost 0, twice 0, accepted again after {gap:.1f} s, decisions failed 0"
    print(f"\nSentinel failover ({how}): {told}")


def test_a_stale_primary_loses_what_nobody_waited_for_and_nothing_that_was_waited_for(tmp_path):
    """The primary is cut off from its replica, goes on taking writes, and dies; the replica takes its place."""
    lost = {}
    for wait in (0, 1):
        with (
            Node(tmp_path / f"primary{wait}") as primary,
            Proxy(primary.address) as link,
            Node(tmp_path / f"replica{wait}", repl_diskless_sync_delay=0, replicaof=link.address.replace(":", " ")) as replica,
            History(tmp_path / f"history{wait}.jsonl") as history,
        ):
            until(lambda primary=primary: "'online'" in str(primary.ask("INFO", "replication")), "a replica online")
            with serving(f"{primary.url}?wait={wait}", tmp_path, str(wait)) as server:

                async def story(link=link, history=history, server=server) -> None:
                    loop, rng = asyncio.get_running_loop(), random.Random(10)
                    async with Caller(server.address, history, "ann") as ann:
                        await ann.begin()
                        for _ in range(5):
                            assert await ann.serve(rng, 50, may_fail=False)
                        link.partition()
                        end = loop.time() + 2.0
                        while loop.time() < end:
                            await ann.serve(rng, 50, may_fail=False)

                asyncio.run(story())
                primary.kill()
                replica.ask("REPLICAOF", "NO", "ONE")
                dump = checker.of_redis(replica.port)
                server.kill()
            lines = [pair for pair in checker.calls(history.path) if pair[0]["op"] == "report"]
            acknowledged = {
                checker.Id.of(outcome[0]).nonce
                for begun, ended in lines
                for outcome, status in zip(begun["outcomes"], ended.get("statuses", ()), strict=False)
                if status == "ACCEPTED"
            }
            lost[wait] = len(acknowledged - dump.seen.keys()), len(acknowledged)
            found = checker.outcomes(RANKER, dump, lines)
            assert not [line for line in found if not line.startswith("I1")], "what is left is not the fold of what is left"
    print(f"\nstale primary: wait=1 lost {lost[1][0]} of {lost[1][1]} acknowledged; wait=0 lost {lost[0][0]} of {lost[0][1]}")
    assert lost[1][0] == 0
    assert lost[0][0] > 0, "the partition came to nothing"


def test_decisions_do_not_wait_for_a_redis_that_is_slow_or_silent(tmp_path):
    rng = random.Random(13)
    with Node(tmp_path / "redis") as node, Proxy(node.address) as proxy, History(tmp_path / "history.jsonl") as history:
        with serving(f"redis://{proxy.address}", tmp_path) as server:

            async def story() -> dict[str, tuple[float, float]]:
                found = {}
                async with Caller(server.address, history, "ann") as ann, Caller(server.address, history, "ben") as ben:
                    await ann.begin(lease_seconds=120.0)
                    assert await ann.serve(rng, 50, may_fail=False)
                    for name, turn in {
                        "healthy": proxy.heal,
                        "200 ms": lambda: proxy.latency(0.2),
                        "black hole": proxy.black_hole,
                        "healthy again": proxy.heal,
                    }.items():
                        turn()
                        times: list[float] = []
                        reports: list[float] = []

                        async def report(reports=reports, times=times) -> None:
                            while len(times) < 1_000:
                                reply = await ben.decide([f"u-{rng.random()}"])
                                begun = time.perf_counter()
                                await ben.report({reply.ids[0]: (1.0, {})}, seconds=20)
                                reports.append(time.perf_counter() - begun)

                        beside = asyncio.ensure_future(report())
                        for _ in range(1_000):
                            begun = time.perf_counter()
                            await ann.allocator.Decide(service_pb.DecideRequest(experiment="ranker", unit=f"d-{rng.random()}"), timeout=1)
                            times.append(time.perf_counter() - begun)
                        await beside
                        found[name] = p99(times), max(reports) * 1e3
                    while ann.unknown or ben.unknown:
                        for caller in (ann, ben):
                            if caller.unknown:
                                await caller.report(dict(list(caller.unknown.items())[:200]))
                return found

            found = asyncio.run(story())
            assert server.stop() == 0
        assert checker.check(RANKER, checker.of_redis(node.port), history.path) == []
    healthy = found["healthy"][0]
    print("\ndecisions beside Redis, p99: " + ", ".join(f"{name} {ms:.2f} ms ({ms / healthy:.2f} x)" for name, (ms, _) in found.items()))
    print("longest report: " + ", ".join(f"{name} {ms:.0f} ms" for name, (_, ms) in found.items()))


def test_a_server_starts_without_its_redis_from_what_it_remembers(tmp_path):
    with History(tmp_path / "history.jsonl") as history, Node(tmp_path / "redis") as node:
        with serving(node.url, tmp_path) as server:

            async def story() -> None:
                async with Caller(server.address, history, "ann") as ann:
                    await ann.begin()
                    assert await ann.serve(random.Random(1), 100, may_fail=False)

            asyncio.run(story())
            assert server.stop() == 0
        node.kill()
        with serving(node.url, tmp_path) as server:

            async def without() -> None:
                async with Caller(server.address, history, "ann") as ann:
                    assert await arms(ann, "without") <= {"old", "new"}
                    reply = await ann.decide(["u"])
                    assert await ann.report({reply.ids[0]: (1.0, {"error": 0.0})}) is None
                    assert ann.error == "UNAVAILABLE"
                    node.start()
                    while await ann.report(dict(ann.unknown)) is None:
                        assert ann.error == "UNAVAILABLE"

            asyncio.run(without())
            assert server.stop() == 0
        assert checker.check(RANKER, checker.of_redis(node.port), history.path) == []
