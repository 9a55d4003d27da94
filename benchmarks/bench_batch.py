"""How many decisions a second does `BatchDecide` make over the wire, with 1,000 units a call? And the pure function, without a server?

    pytest benchmarks/bench_batch.py -s

One client process on loopback sends prepared requests, two calls at a time. Printed: decisions a second by the clock, and for each
second of processor time that the server used, which is what "per core" means where a client and neighbours want the processor too. Units
that are new each time have to be remembered, so they cost more than those that return: both are shown.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import grpc
import numpy as np
import uvloop

from allocator.bench.server import EXPERIMENT, own_server
from allocator.core.assignment import SLOTS, first_layout
from allocator.core.batch import decide_batch
from allocator.core.snapshot import Entry, Table
from allocator.v1 import allocator_service_pb2 as service_pb
from benchmarks.processor import TICK, processor_seconds

UNITS, CALLS, ROUNDS = 1000, 150, 9
OFFLINE = 200_000
TINY = {"CALLS": 4, "ROUNDS": 2, "OFFLINE": 2000}
CALL = "/allocator.v1.AllocatorService/BatchDecide"


def requests(round_: str) -> list[bytes]:
    return [
        service_pb.BatchDecideRequest(
            experiment=EXPERIMENT, units=[f"user-{round_}-{call}-{unit}" for unit in range(UNITS)]
        ).SerializeToString()
        for call in range(CALLS)
    ]


async def send(address: str, raws: list[bytes]) -> float:
    """Seconds for all of them, two at a time."""
    waiting = list(raws)
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(CALL)
        reply = service_pb.BatchDecideResponse.FromString(await call(raws[0]))
        assert len(set(reply.ids)) == UNITS

        async def worker() -> None:
            while waiting:
                await call(waiting.pop())

        begun = time.perf_counter()
        await asyncio.gather(worker(), worker())
        return time.perf_counter() - begun


def test_batches_over_the_wire(benchmark):
    with own_server() as (address, pid):

        def run() -> dict[str, list[tuple[float, float]]]:
            found: dict[str, list[tuple[float, float]]] = {"units that return": [], "new units": []}
            known = requests("known")
            for round_ in range(ROUNDS + 1):
                for name, raws in (("units that return", known), ("new units", requests(str(round_)))):
                    before = processor_seconds(pid)
                    seconds = uvloop.run(send(address, raws))
                    used = max(processor_seconds(pid) - before, TICK)
                    found[name].append((UNITS * CALLS / seconds, UNITS * (CALLS + 1) / used))
            return {name: rounds[1:] for name, rounds in found.items()}

        found = benchmark.pedantic(run, rounds=1, iterations=1)
    print(f"\n{UNITS} units a call, {ROUNDS} rounds of {CALLS} calls; decisions a second, median (least to most):")
    for name, rounds in found.items():
        for what, rates in zip(("by the clock", "for each processor second of the server"), zip(*rounds, strict=True), strict=True):
            print(f"  {name:<18} {what:<42}{statistics.median(rates):>10,.0f} ({min(rates):,.0f} to {max(rates):,.0f})")


def test_offline_scoring(benchmark):
    shares = (SLOTS // 2, SLOTS // 4, SLOTS // 4)
    layout = first_layout(shares)
    table = Table(layout.ends, layout.owners, shares)
    entry = Entry("default/x", b"uid-of-8", 1, "RUNNING", True, b"salt", ("a", "b", "c"), ("", "", ""), 0, (table,))
    units = np.array([f"user-{number}" for number in range(OFFLINE)])
    rates = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        decide_batch(entry, units)
        rates.append(OFFLINE / (time.perf_counter() - begun))
    benchmark.pedantic(decide_batch, (entry, units), rounds=1, iterations=1)
    print(f"\noffline, {OFFLINE:,} units: {statistics.median(rates):,.0f} a second ({min(rates):,.0f} to {max(rates):,.0f})")
