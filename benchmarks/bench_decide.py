"""How far is `Decide` from the least that a Python gRPC server can do?

Two servers with the same settings, each a process of its own on loopback: ours, and a bare handler that returns a constant
`DecideResponse`. The same closed-loop load from one client process, in alternating slices so that noise hits both alike. Printed:
calls/s and p50 of both, side by side, and the ratios.

Run: pytest benchmarks/bench_decide.py -s
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import time

import grpc
import pytest
import uvloop

from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc

SLICE_SECONDS = 1.0
SLICES = 8
IN_FLIGHT = 16


def bare(pipe) -> None:
    """The least handler: a constant answer, the server settings of `allocator/server/main.py`."""
    answer = service_pb.DecideResponse(
        decision=pb.Decision(arm="old", propensity=0.5, reason=pb.REASON_ALLOCATED, id="A" * 68, snapshot_version=7, incumbent="old", segment="other")
    ).SerializeToString()

    async def run() -> None:
        async def handle(_: bytes, __: grpc.aio.ServicerContext) -> bytes:
            return answer

        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", 4 << 20),
                ("grpc.max_concurrent_streams", 10_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        handlers = {"Decide": grpc.unary_unary_rpc_method_handler(handle)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("allocator.v1.AllocatorService", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    uvloop.run(run())


@pytest.fixture(scope="module")
def bare_address():
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=bare, args=(there,), daemon=True)
    process.start()
    yield here.recv()
    process.terminate()


@pytest.fixture(scope="module")
def our_address():
    command = [sys.executable, "-m", "allocator", "serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--store", "memory:", "--log-format", "json"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "server.ready":
            break
    asyncio.run(prepare(event["address"]))
    yield event["address"]
    process.terminate()
    process.wait()


async def prepare(address: str) -> None:
    """One running experiment with two arms and a guardrail."""
    message = pb.Experiment(api_version="allocator/v1", kind="Experiment")
    message.metadata.name = "ranker"
    message.spec.arms.add(name="old", incumbent=True)
    message.spec.arms.add(name="new")
    message.spec.reward.metric = "click"
    message.spec.exposure.total = 0.5
    message.spec.guardrails.add(name="errors", metric="error", max=0.02)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = operator_grpc.OperatorServiceStub(channel)
        await stub.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor="bench"))
        await stub.StartExperiment(operator_pb.StartExperimentRequest(experiment="ranker", actor="bench"))


async def load(address: str, seconds: float, report_share: float = 0.0) -> tuple[float, list[float]]:
    """Closed loop: calls/s, and the time of each Decide in seconds. report_share: outcomes reported for this share of decisions."""
    times: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        decide = channel.unary_unary("/allocator.v1.AllocatorService/Decide")
        report = channel.unary_unary("/allocator.v1.AllocatorService/ReportOutcomes")
        end = time.perf_counter() + seconds

        async def worker(number: int) -> None:
            count = 0
            while (started := time.perf_counter()) < end:
                count += 1
                raw = await decide(service_pb.DecideRequest(experiment="ranker", unit=f"{number}-{count}").SerializeToString())
                times.append(time.perf_counter() - started)
                if report_share and count % round(1 / report_share) == 0:
                    decision = service_pb.DecideResponse.FromString(raw).decision
                    outcome = pb.Outcome(decision_id=decision.id, reward=1.0, metrics={"error": 0.0})
                    await report(service_pb.ReportOutcomesRequest(outcomes=[outcome]).SerializeToString())

        begun = time.perf_counter()
        await asyncio.gather(*(worker(number) for number in range(IN_FLIGHT)))
        return len(times) / (time.perf_counter() - begun), times


def side_by_side(first: str, second: str, report_share: float = 0.0) -> dict[str, tuple[float, float]]:
    """Median calls/s and median p50 (µs) of both addresses, from alternating slices."""

    async def run() -> dict[str, tuple[float, float]]:
        rates: dict[str, list[float]] = {first: [], second: []}
        middles: dict[str, list[float]] = {first: [], second: []}
        for _ in range(SLICES):
            for address in (first, second):
                rate, times = await load(address, SLICE_SECONDS, report_share if address == second else 0.0)
                rates[address].append(rate)
                middles[address].append(statistics.median(times) * 1e6)
        for name, address in (("bare", first), ("ours", second)):
            low, high = min(rates[address]), max(rates[address])
            print(f"  {name}: {statistics.median(rates[address]):7.0f} calls/s ({low:.0f} to {high:.0f}), p50 {statistics.median(middles[address]):.0f} us")
        return {a: (statistics.median(rates[a]), statistics.median(middles[a])) for a in (first, second)}

    return uvloop.run(run())


@pytest.mark.parametrize("report_share", [0.0, 0.1], ids=["decide", "decide-with-10%-outcomes"])
def test_unary_decide_beside_a_bare_handler(benchmark, bare_address, our_address, report_share):
    print(f"\n{SLICES} slices of {SLICE_SECONDS:g} s each, {IN_FLIGHT} calls in flight, outcomes for {report_share:.0%} of decisions:")
    found = benchmark.pedantic(side_by_side, (bare_address, our_address, report_share), rounds=1, iterations=1)
    (bare_rate, bare_p50), (our_rate, our_p50) = found[bare_address], found[our_address]
    print(f"  throughput ratio {our_rate / bare_rate:.3f}, p50 ratio {our_p50 / bare_p50:.3f}")
    benchmark.extra_info.update(throughput_ratio=our_rate / bare_rate, p50_ratio=our_p50 / bare_p50)
    assert our_rate > 0
