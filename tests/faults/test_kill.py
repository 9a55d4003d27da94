"""kill -9 during ingest, over the real server: what was acknowledged is there, and nothing counts twice.

The checker reads the SQLite file with the standard library and shares no code with the product.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import grpc

from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc
from allocator.wire.convert import experiment_to_message
from tests.conftest import two_arms

ROUNDS = 20
WRITERS = 4


def serve(path: Path) -> tuple[subprocess.Popen[str], str]:
    """A server process on this file, and its address."""
    command = [sys.executable, "-m", "allocator", "serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--store", f"sqlite:{path}", "--log-format", "json"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("{") and (event := json.loads(line))["event"] == "server.ready":
            return process, event["address"]
    raise AssertionError("the server did not start: " + "".join(seen))


def stored(path: Path) -> tuple[int, int]:
    """Rewards in the file: how many, and their sum."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        rows = []
        for table in ("cells", "settled"):
            rows += db.execute(f"SELECT sum(count), sum(total) FROM {table} WHERE stream = '_reward'").fetchall()
    return sum(row[0] or 0 for row in rows), round(sum(row[1] or 0 for row in rows) / 1_000_000)


class Ledger:
    """What a reporter knows: sent and answered, or sent and not known. Retried until it is known."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, float] = {}
        self.unknown: dict[str, float] = {}

    async def report(self, stub, batch: dict[str, float]) -> bool:
        outcomes = [pb.Outcome(decision_id=id_, reward=reward, metrics={"error": 0.0}) for id_, reward in batch.items()]
        self.unknown.update(batch)
        try:
            reply = await stub.ReportOutcomes(service_pb.ReportOutcomesRequest(outcomes=outcomes), timeout=10)
        except grpc.RpcError:
            return False
        for id_, result in zip(batch, reply.results, strict=True):
            assert result.status in (pb.OUTCOME_STATUS_ACCEPTED, pb.OUTCOME_STATUS_DUPLICATE), result
            self.acknowledged[id_] = batch[id_]
            self.unknown.pop(id_, None)
        return True


async def one_round(process: subprocess.Popen[str], address: str, ledger: Ledger, rng: random.Random) -> None:
    """Retry what is unknown, then write until the server is killed at a moment nobody chose."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_grpc.AllocatorServiceStub(channel)
        unknown = list(ledger.unknown.items())
        for start in range(0, len(unknown), 500):
            assert await ledger.report(stub, dict(unknown[start : start + 500]))

        async def write(worker: int) -> None:
            size = rng.randint(1, 200)
            try:
                while True:
                    units = [f"{worker}-{rng.random()}" for _ in range(size)]
                    decided = await stub.BatchDecide(service_pb.BatchDecideRequest(experiment="ranker", units=units), timeout=10)
                    if not await ledger.report(stub, {id_: float(rng.random() < 0.3) for id_ in decided.ids}):
                        return
            except grpc.RpcError:
                return

        async def kill() -> None:
            await asyncio.sleep(rng.uniform(0.02, 0.5))
            os.kill(process.pid, signal.SIGKILL)

        await asyncio.gather(kill(), *(write(worker) for worker in range(WRITERS)))
    process.wait()


async def command(address: str, name: str, request) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await getattr(operator_grpc.OperatorServiceStub(channel), name)(request, timeout=10)


def test_twenty_kills_during_ingest_lose_nothing_and_count_nothing_twice(tmp_path):
    path, ledger, rng = tmp_path / "store.db", Ledger(), random.Random(11)
    process, address = serve(path)
    apply = operator_pb.ApplyExperimentRequest(experiment=experiment_to_message(two_arms()), actor="ann")
    asyncio.run(command(address, "ApplyExperiment", apply))
    asyncio.run(command(address, "StartExperiment", operator_pb.StartExperimentRequest(experiment="ranker", actor="ann")))
    for _ in range(ROUNDS):
        asyncio.run(one_round(process, address, ledger, rng))
        count, _ = stored(path)
        assert count >= len(ledger.acknowledged), "an acknowledged outcome was lost"
        assert count <= len(ledger.acknowledged) + len(ledger.unknown), "an outcome was counted twice"
        process, address = serve(path)
    freeze = operator_pb.FreezeExperimentRequest(experiment="ranker", actor="ann", reason="the last order before the power fails")
    asyncio.run(command(address, "FreezeExperiment", freeze))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    process, address = serve(path)

    async def finish() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = service_grpc.AllocatorServiceStub(channel)
            unknown = list(ledger.unknown.items())
            for start in range(0, len(unknown), 500):
                assert await ledger.report(stub, dict(unknown[start : start + 500]))
            decision = (await stub.Decide(service_pb.DecideRequest(experiment="ranker", unit="u"))).decision
            assert (decision.arm, decision.reason) == ("old", pb.REASON_FROZEN)  # the freeze was not forgotten
            operator = operator_grpc.OperatorServiceStub(channel)
            assert (await operator.VerifyAuditRecords(operator_pb.VerifyAuditRecordsRequest())).intact

    asyncio.run(finish())
    process.terminate()
    process.wait()
    count, successes = stored(path)
    print(f"{ROUNDS} kills, {len(ledger.acknowledged)} outcomes acknowledged, {count} stored")
    assert len(ledger.acknowledged) > 2000
    assert count == len(ledger.acknowledged)
    assert successes == sum(ledger.acknowledged.values())
