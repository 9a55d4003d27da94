"""How long until a change of one experiment has reached every one of 100 watchers?

A server in a process of its own and 100 `WatchSnapshots` streams, each on a connection of its own, in another. Changed: one experiment of
many is frozen, resumed, and so on. Printed: from sending the command, and from its acknowledgement, to each watcher and to the last.

Run: pytest benchmarks/bench_watch.py -s
"""

from __future__ import annotations

import asyncio
import os
import time

import grpc
import numpy as np
import pytest
import uvloop

from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc
from tests.processes import served

WATCHERS = 100
CHANGES = 100
TINY = {"WATCHERS": 5, "CHANGES": 4}


@pytest.fixture(scope="module")
def address():
    with served("memory:") as server:
        yield server.address


async def create(operator: operator_grpc.OperatorServiceStub, name: str) -> None:
    message = pb.Experiment(api_version="allocator/v1", kind="Experiment")
    message.metadata.name = name
    message.spec.arms.add(name="old", incumbent=True)
    message.spec.arms.add(name="new")
    message.spec.reward.metric = "click"
    await operator.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor="bench"))
    await operator.StartExperiment(operator_pb.StartExperimentRequest(experiment=name, actor="bench"))


async def measure(address: str, experiments: int) -> tuple[list[list[float]], list[list[float]]]:
    """For each change, seconds until each watcher had it: from sending the command, and from its acknowledgement."""
    async with grpc.aio.insecure_channel(address) as channel:
        operator, names = operator_grpc.OperatorServiceStub(channel), [f"e{number}-of-{experiments}" for number in range(experiments)]
        for name in names:
            await create(operator, name)
        channels = [grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(WATCHERS)]
        streams = [service_grpc.AllocatorServiceStub(each).WatchSnapshots(service_pb.WatchSnapshotsRequest()) for each in channels]
        ready = [asyncio.Event() for _ in range(WATCHERS)]
        waiting: dict[int, asyncio.Future[float]] = {}
        wanted = pb.EXPERIMENT_STATE_FROZEN

        async def watch(number: int, stream: grpc.aio.UnaryStreamCall) -> None:
            async for message in stream:
                for entry in message.change.entries:
                    future = waiting.get(number)
                    here = entry.experiment == f"default/{names[0]}" and entry.state == wanted
                    if here and future is not None and not future.done():
                        future.set_result(time.perf_counter())
                if message.change.full and message.change.complete:
                    ready[number].set()

        tasks = [asyncio.create_task(watch(number, stream)) for number, stream in enumerate(streams)]
        await asyncio.gather(*(event.wait() for event in ready))
        from_sending, from_acknowledgement, loop = [], [], asyncio.get_running_loop()
        for change in range(CHANGES):
            wanted = pb.EXPERIMENT_STATE_FROZEN if change % 2 == 0 else pb.EXPERIMENT_STATE_RUNNING
            waiting.update({number: loop.create_future() for number in range(WATCHERS)})
            sent = time.perf_counter()
            if wanted == pb.EXPERIMENT_STATE_FROZEN:
                await operator.FreezeExperiment(operator_pb.FreezeExperimentRequest(experiment=names[0], actor="bench", reason="bench"))
            else:
                await operator.ResumeExperiment(operator_pb.ResumeExperimentRequest(experiment=names[0], actor="bench", reason="bench"))
            acknowledged = time.perf_counter()
            arrived = await asyncio.wait_for(asyncio.gather(*waiting.values()), 30)
            from_sending.append([at - sent for at in arrived])
            from_acknowledgement.append([max(at - acknowledged, 0.0) for at in arrived])
            waiting.clear()
            await asyncio.sleep(0.03)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(each.close() for each in channels))
        return from_sending, from_acknowledgement


@pytest.mark.timeout(600)
@pytest.mark.parametrize("experiments", [10, 300])
def test_a_change_reaches_a_hundred_watchers(benchmark, address, experiments):
    measured = benchmark.pedantic(lambda: uvloop.run(measure(address, experiments)), rounds=1, iterations=1)
    print(f"\n{WATCHERS} watchers, {CHANGES} changes, {experiments} experiments, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}:")
    for since, found in zip(("sending the command", "its acknowledgement"), measured, strict=True):
        every, last = np.array(found) * 1e3, np.array(found).max(axis=1) * 1e3
        for name, values in (("each watcher", every), ("the last watcher", last)):
            low, high, most = np.quantile(values, (0.5, 0.99, 1.0))
            print(f"  {name:18} p50 {low:6.1f}  p99 {high:6.1f}  max {most:6.1f} ms from {since}")
        assert every.shape == (CHANGES, WATCHERS)
    benchmark.extra_info.update(p99_ms=float(np.quantile(np.array(measured[0]).max(axis=1), 0.99) * 1e3))
