"""How many outcomes per second does a server take over gRPC, durably?

One server process on loopback, one client process that keeps a few reports of 500 outcomes in flight. The two share the machine, so the
client does as little as a client can: every request is serialized before the clock starts, with decision ids minted by the bench under
the server's own key, and answers are parsed after the clock has stopped; each must say ACCEPTED for every outcome. What was
acknowledged is compared with what the store holds. Rates are of whole rounds, from the first request sent to the last answer received.

Run: pytest benchmarks/bench_ingest.py -s
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import statistics
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import uvloop

from allocator.core.decision_id import COUNTED, FIRST, mint
from allocator.stores.redis import RedisStore
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc
from tests.processes import served
from tests.redis_servers import Node, until

BATCH = 500
IN_FLIGHT = 8
REPORTS = 100  # in a round
ROUNDS = 7
TINY = {"REPORTS": 3, "ROUNDS": 2}
ALONE, WITH_ERROR, REAL = KINDS = ("a click", "a click and an error", "two real numbers, no two alike")
RNG = random.Random(0)
REPORT = "/allocator.v1.AllocatorService/ReportOutcomes"


async def prepare(address: str) -> bytes:
    """Start one experiment with two arms and a guardrail. Returns its uid."""
    message = pb.Experiment(api_version="allocator/v1", kind="Experiment")
    message.metadata.name = "ranker"
    message.spec.arms.add(name="old", incumbent=True)
    message.spec.arms.add(name="new")
    message.spec.reward.metric = "click"
    message.spec.guardrails.add(name="errors", metric="error", max=0.02)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = operator_grpc.OperatorServiceStub(channel)
        await stub.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor="bench"))
        await stub.StartExperiment(operator_pb.StartExperimentRequest(experiment="ranker", actor="bench"))
        decide = channel.unary_unary("/allocator.v1.AllocatorService/Decide")
        raw = await decide(service_pb.DecideRequest(experiment="ranker", unit="u").SerializeToString())
    return urlsafe_b64decode(service_pb.DecideResponse.FromString(raw).decision.id)[5:13]


def reports(key: bytes, uid: bytes, kind: str) -> list[bytes]:
    """Serialized reports for decisions of this moment, none of them reported before."""
    found = []
    for _ in range(REPORTS):
        now, request = int(time.time() * 1000), service_pb.ReportOutcomesRequest()
        for index in range(BATCH):
            id_ = mint(key, uid, index & 1, 0, 1, now, 32768, os.urandom(8), COUNTED | FIRST | 1 << 3)
            outcome = request.outcomes.add(decision_id=id_, reward=RNG.random() if kind == REAL else float(index % 10 == 0))
            if kind != ALONE:
                outcome.metrics["error"] = RNG.random() / 100 if kind == REAL else float(index == 0)
        found.append(request.SerializeToString())
    return found


async def send(address: str, requests: list[bytes]) -> tuple[float, list[bytes]]:
    """Seconds from the first request to the last answer, and the answers."""
    waiting, answers = iter(requests), []
    async with grpc.aio.insecure_channel(address) as channel:
        report = channel.unary_unary(REPORT)
        await channel.channel_ready()

        async def worker() -> None:
            for request in waiting:
                answers.append(await report(request, timeout=30))

        begun = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        return time.perf_counter() - begun, answers


def rounds(address: str, key: bytes, uid: bytes, kind: str) -> list[float]:
    """Outcomes a second, of each round."""
    rates = []
    for _ in range(ROUNDS):
        requests = reports(key, uid, kind)
        seconds, answers = uvloop.run(send(address, requests))
        for raw in answers:
            results = service_pb.ReportOutcomesResponse.FromString(raw).results
            assert len(results) == BATCH
            assert {result.status for result in results} == {pb.OUTCOME_STATUS_ACCEPTED}
        rates.append(REPORTS * BATCH / seconds)
    return rates


def show(title: str, rates: list[float]) -> None:
    print(f"\n{title}: {statistics.median(rates):,.0f} outcomes/s, median of {len(rates)} rounds ({min(rates):,.0f} to {max(rates):,.0f})")


@pytest.mark.parametrize("wait", [0, 1])
def test_durable_ingest_with_redis(tmp_path, wait):
    """On one server with appendfsync everysec, as Redis is mostly run; and acknowledged by a replica."""
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(Node(tmp_path / "primary", repl_diskless_sync_delay=0))
        if wait:
            stack.enter_context(Node(tmp_path / "replica", replicaof=f"127.0.0.1 {primary.port}"))
            until(lambda: "'online'" in str(primary.ask("INFO", "replication")), "the replica follows")
        address = stack.enter_context(served(f"{primary.url}?wait={wait}", "--state", str(tmp_path / "state"))).address
        uid = uvloop.run(prepare(address))
        key = RedisStore(primary.url).secret()
        rates = rounds(address, key, uid, WITH_ERROR)
        fields = primary.ask("HGETALL", f"{{allocator:{uid.hex()}}}:open")
        stored = sum(int(value) for name, value in fields.items() if name.split(" ")[1] == "0" and name.endswith(" _reward"))
    show(f"Redis, wait={wait}, reports of {BATCH}, each with {WITH_ERROR}", rates)
    assert stored == ROUNDS * REPORTS * BATCH


@pytest.fixture
def sqlite_server(tmp_path) -> Iterator[tuple[str, Path]]:
    path = tmp_path / "store.db"
    with served(f"sqlite:{path}") as server:
        yield server.address, path


@pytest.mark.parametrize("kind", KINDS)
def test_durable_ingest_with_sqlite(sqlite_server, kind):
    address, path = sqlite_server
    uid = uvloop.run(prepare(address))
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        ((key,),) = db.execute("SELECT key FROM secret").fetchall()
        rates = rounds(address, key, uid, kind)
        ((stored,),) = db.execute("SELECT sum(count) FROM cells WHERE stream = '_reward'").fetchall()
    show(f"SQLite, synchronous FULL, reports of {BATCH}, each with {kind}", rates)
    assert stored == ROUNDS * REPORTS * BATCH
