"""How long does a harmful candidate go on serving after the outcome that condemns it was reported?

The real server, a process of its own, SQLite in a temporary directory, a real channel on loopback; a guardrail `max: 0.02`, and a candidate
that errs on every request. Each trial has an experiment of its own. Two questions:

- quiet: outcomes are reported one by one until the next must freeze. Then one more: time from sending it, and from its
  acknowledgement, to the answer of the first `Decide` that says FROZEN, while another task asks without pause;
- busy: callers decide, serve and report at once, each for itself; how many requests of the candidate are served before the freeze?

The polled unit is sticky and has been counted, so that asking again adds no evidence. Before the deciding outcome there is a pause of
random length, so that it meets the planner in every phase.

Run: pytest benchmarks/bench_freeze.py -s
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
import uvloop

from allocator.core.evidence import freeze_threshold, no_restarts
from allocator.core.evidence_rates import fold, rate_grid
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc
from tests.processes import served

TRIALS = 200
BUSY_TRIALS = 50
CALLERS = 8
TINY = {"TRIALS": 3, "BUSY_TRIALS": 2}
LIMIT, ALPHA = 0.02, 0.001


@dataclass(frozen=True)
class Freeze:
    """One trial. Seconds from sending the deciding outcome, and from its acknowledgement, to the first refusal; polls served after it."""

    from_sending: float
    from_acknowledgement: float
    served: int


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    store = f"sqlite:{tmp_path_factory.mktemp('freeze') / 'allocator.db'}"
    with served(store) as server:
        yield server.address


def failures_to_freeze() -> int:
    """Failures in a row, of as many requests, that the evidence needs in a first activation."""
    grid = rate_grid(LIMIT)
    _, evidence = fold(grid, no_restarts(grid), np.ones(20), np.ones(20))
    return 1 + int((evidence >= freeze_threshold(ALPHA)).argmax())


async def start(operator: operator_grpc.OperatorServiceStub, name: str) -> None:
    """A running experiment: half the traffic to a candidate, errors bounded."""
    message = pb.Experiment(api_version="allocator/v1", kind="Experiment")
    message.metadata.name = name
    message.spec.arms.add(name="old", incumbent=True)
    message.spec.arms.add(name="new")
    message.spec.reward.metric = "click"
    message.spec.reward.window.FromSeconds(86_400)  # a window that ends during a trial would count the polled unit once more
    message.spec.exposure.total = 0.5
    message.spec.alpha = ALPHA
    message.spec.guardrails.add(name="errors", metric="error", max=LIMIT)
    await operator.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor="bench"))
    await operator.StartExperiment(operator_pb.StartExperimentRequest(experiment=name, actor="bench"))


async def decide(allocator: service_grpc.AllocatorServiceStub, name: str, unit: str) -> pb.Decision:
    return (await allocator.Decide(service_pb.DecideRequest(experiment=name, unit=unit))).decision


async def report(allocator: service_grpc.AllocatorServiceStub, decision: pb.Decision) -> None:
    outcome = pb.Outcome(decision_id=decision.id, reward=0.0, metrics={"error": float(decision.arm == "new")})
    await allocator.ReportOutcomes(service_pb.ReportOutcomesRequest(outcomes=[outcome]))


async def quiet_trial(address: str, name: str, failures: int, pause: float) -> Freeze:
    """`failures` failing requests of the candidate, the last of them timed."""
    async with grpc.aio.insecure_channel(address) as channel, grpc.aio.insecure_channel(address) as second:
        allocator, watcher = service_grpc.AllocatorServiceStub(channel), service_grpc.AllocatorServiceStub(second)
        await start(operator_grpc.OperatorServiceStub(channel), name)
        number, polled, decision = 0, "", None
        for left in range(failures, 0, -1):
            decision = None
            while decision is None or decision.arm != "new":  # what the incumbent serves is left unreported: it is no evidence
                number += 1
                decision = await decide(allocator, name, f"unit-{number}")
            polled = polled or f"unit-{number}"
            if left > 1:
                await report(allocator, decision)
        await asyncio.sleep(pause)
        assert (await decide(watcher, name, polled)).reason == pb.REASON_ALLOCATED
        acknowledged, served = float("inf"), 0

        async def poll() -> float:
            nonlocal served
            while (await decide(watcher, name, polled)).reason != pb.REASON_FROZEN:
                served += time.perf_counter() > acknowledged
            return time.perf_counter()

        polling = asyncio.create_task(poll())
        await asyncio.sleep(0)
        sent = time.perf_counter()
        await report(allocator, decision)
        acknowledged = time.perf_counter()
        refused = await asyncio.wait_for(polling, 30.0)
        return Freeze(refused - sent, refused - acknowledged, served)


async def busy_trial(address: str, name: str) -> tuple[int, int]:
    """Requests of the candidate and of both arms that were served before the first refusal, with CALLERS at work."""
    async with grpc.aio.insecure_channel(address) as channel:
        allocator = service_grpc.AllocatorServiceStub(channel)
        await start(operator_grpc.OperatorServiceStub(channel), name)
        served = [0, 0]
        frozen = False

        async def caller(number: int) -> None:
            nonlocal frozen
            count = 0
            while not frozen:
                count += 1
                decision = await decide(allocator, name, f"{number}-{count}")
                if decision.reason == pb.REASON_FROZEN:
                    frozen = True
                    return
                served[0] += decision.arm == "new"
                served[1] += 1
                await report(allocator, decision)

        await asyncio.wait_for(asyncio.gather(*(caller(number) for number in range(CALLERS))), 30.0)
        return served[0], served[1]


def told(name: str, values: list[float], unit: str = "ms", scale: float = 1e3) -> str:
    low, high, most = np.quantile(np.array(values) * scale, (0.5, 0.99, 1.0))
    return f"  {name:46} p50 {low:7.1f}  p99 {high:7.1f}  max {most:7.1f} {unit}"


def load() -> str:
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


@pytest.mark.timeout(600)
def test_time_from_the_deciding_outcome_to_the_first_refusal(benchmark, address):
    failures, chance = failures_to_freeze(), random.Random(1)

    async def run() -> list[Freeze]:
        await quiet_trial(address, "warm-up", failures, 0.0)
        return [await quiet_trial(address, f"quiet-{trial}", failures, chance.uniform(0.03, 0.13)) for trial in range(TRIALS)]

    found = benchmark.pedantic(lambda: uvloop.run(run()), rounds=1, iterations=1)
    print(f"\n{TRIALS} trials; the candidate fails on every request, failure {failures} decides; {load()}:")
    print(told("from sending the deciding outcome", [f.from_sending for f in found]))
    print(told("from its acknowledgement", [f.from_acknowledgement for f in found]))
    print(told("polls answered ALLOCATED in between", [float(f.served) for f in found], "", 1.0))
    print(f"  other units that the candidate had served before: {failures} in every trial")
    benchmark.extra_info.update(p99_ms=float(np.quantile([f.from_acknowledgement for f in found], 0.99) * 1e3))
    assert len(found) == TRIALS


@pytest.mark.timeout(600)
def test_requests_served_before_the_freeze_under_load(benchmark, address):
    async def run() -> list[tuple[int, int]]:
        return [await busy_trial(address, f"busy-{trial}") for trial in range(BUSY_TRIALS)]

    found = benchmark.pedantic(lambda: uvloop.run(run()), rounds=1, iterations=1)
    print(f"\n{BUSY_TRIALS} trials, {CALLERS} callers that decide, fail and report without pause; {load()}:")
    print(told("requests that the candidate served", [float(new) for new, _ in found], "", 1.0))
    print(told("requests of both arms", [float(both) for _, both in found], "", 1.0))
    assert len(found) == BUSY_TRIALS
