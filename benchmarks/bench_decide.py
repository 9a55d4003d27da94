"""How far is `Decide` from the least that a Python gRPC server can do, and how fast is a decision without a call?

    pytest benchmarks/bench_decide.py -s

The floor first: a handler that returns a constant `DecideResponse`, on the settings of `allocator/server/main.py`. Then, as shares of the
floor: ours; what people write themselves, numpy's Beta draws in a handler, which neither hashes a unit nor signs an id nor counts anything;
and the floor and ours while outcomes are reported for a tenth of the decisions, one a call, on a connection of their own; the floor takes
them with a constant; `both` counts the reports too. Each a process of its own on loopback, alternating slices so that noise hits all
alike. The decisions are asked for by h2load (of nghttp2, in C: it costs a tenth of a server) where it is installed, else by an asyncio
client, which costs as much as the servers and hides a part of the difference; the first line says which. The reports come from
`reports.py`, which costs little.

In process: a decision with id, propensity and exposure count; the arm alone; and the same among 10 and among 10,000 experiments.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import multiprocessing
import shutil
import statistics
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import pytest
import uvloop

from allocator.bench.server import EXPERIMENT, own_server
from allocator.core.assignment import SLOTS, first_layout
from allocator.core.decider import Decider
from allocator.core.decision import choose
from allocator.core.snapshot import Entry, Snapshot, Table
from allocator.server.main import OPTIONS, OWN_QUEUE, bounds
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from benchmarks.processor import TICK, processor_seconds
from benchmarks.reports import sending

SLICE_CALLS = 1000  # few: a neighbour's noise lasts for seconds, and what is compared must meet the same
SLICES = 80
CONNECTIONS, IN_FLIGHT = 2, 8  # on each
ROUNDS, DECISIONS = 20, 5000
MANY = 10_000
REPORTS = 1000  # at hand for a slice
REPORTED = ("floor", "ours")
TINY = {"SLICE_CALLS": 50, "SLICES": 2, "ROUNDS": 2, "DECISIONS": 200, "MANY": 100}

SERVICE = "allocator.v1.AllocatorService"
REQUEST = service_pb.DecideRequest(experiment=EXPERIMENT, unit="user-1234567").SerializeToString()
ANSWER = service_pb.DecideResponse(
    decision=pb.Decision(
        arm="old", propensity=0.5, reason=pb.REASON_ALLOCATED, id="A" * 68, snapshot_version=7, incumbent="old", segment="other"
    )
).SerializeToString()


TAKEN = service_pb.ReportOutcomesResponse(results=[pb.OutcomeResult(status=pb.OUTCOME_STATUS_ACCEPTED)]).SerializeToString()


class Slice(NamedTuple):
    """calls/s; the median time of a call, and the server's processor time for each, in microseconds."""

    rate: float
    p50: float
    processor: float = math.nan


class Peer(NamedTuple):
    """A server."""

    address: str
    pid: int


# ---- the servers


def constant() -> Callable[[bytes], bytes]:
    """The floor."""
    return lambda _: ANSWER


def beta_draws() -> Callable[[bytes], bytes]:
    """What people write themselves: Thompson sampling by a draw for each arm."""
    arms, rng = ["old", "new"], np.random.default_rng(0)
    successes, failures = np.array([101.0, 111.0]), np.array([901.0, 891.0])

    def decide(raw: bytes) -> bytes:
        service_pb.DecideRequest.FromString(raw)
        arm = arms[int(np.argmax(rng.beta(successes, failures)))]
        return service_pb.DecideResponse(decision=pb.Decision(arm=arm)).SerializeToString()

    return decide


def serve(make: Callable[[], Callable[[bytes], bytes]], pipe) -> None:
    """A server whose Decide is this function, on the settings of ours."""

    async def run() -> None:
        decide = make()

        async def handle(raw: bytes, _: grpc.aio.ServicerContext) -> bytes:
            return decide(raw)

        async def take(_raw: bytes, _: grpc.aio.ServicerContext) -> bytes:
            return TAKEN

        server = grpc.aio.server(options=[*OPTIONS, *bounds(512)])
        methods = {"Decide": handle, "ReportOutcomes": take}
        handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_registered_method_handlers(SERVICE, {name: handlers[name] for name in OWN_QUEUE})
        pipe.send(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        await server.wait_for_termination()

    uvloop.run(run())


@contextlib.contextmanager
def serving(make: Callable[[], Callable[[bytes], bytes]]) -> Iterator[Peer]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(make, there), daemon=True)
    process.start()
    try:
        yield Peer(here.recv(), process.pid)
    finally:
        process.terminate()
        process.join()


@pytest.fixture(scope="module")
def peers() -> Iterator[dict[str, Peer]]:
    with serving(constant) as floor, own_server() as ours, serving(beta_draws) as draws:
        yield {"floor": floor, "ours": Peer(*ours), "beta draws": draws}


# ---- the load


def h2load(address: str, folder: Path) -> Slice:
    """A slice from nghttp2's generator: HTTP/2 with prior knowledge, the body a gRPC message."""
    body, log = folder / "body", folder / "log"
    body.write_bytes(b"\0" + struct.pack(">I", len(REQUEST)) + REQUEST)
    log.unlink(missing_ok=True)
    flags = ["-n", str(SLICE_CALLS), "-c", str(CONNECTIONS), "-m", str(IN_FLIGHT), "-d", str(body), f"--log-file={log}"]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    said = subprocess.run(["h2load", *flags, *headers, f"http://{address}/{SERVICE}/Decide"], capture_output=True, text=True, check=True)
    assert f"{SLICE_CALLS} succeeded" in said.stdout, said.stdout
    rate = float(said.stdout.partition("finished in ")[2].split(", ")[1].split()[0])
    return Slice(rate, statistics.median(float(line.split("\t")[2]) for line in log.read_text().splitlines()))


def asyncio_load(address: str, _folder: Path) -> Slice:
    """The same from Python."""

    async def run() -> Slice:
        times: list[float] = []

        async def worker(call: grpc.aio.UnaryUnaryMultiCallable) -> None:
            while len(times) < SLICE_CALLS:
                started = time.perf_counter()
                await call(REQUEST)
                times.append((time.perf_counter() - started) * 1e6)

        async with contextlib.AsyncExitStack() as stack:
            options = (("grpc.use_local_subchannel_pool", 1),)
            channels = [await stack.enter_async_context(grpc.aio.insecure_channel(address, options)) for _ in range(CONNECTIONS)]
            begun = time.perf_counter()
            await asyncio.gather(*(worker(channel.unary_unary(f"/{SERVICE}/Decide")) for channel in channels for _ in range(IN_FLIGHT)))
        return Slice(len(times) / (time.perf_counter() - begun), statistics.median(times))

    return uvloop.run(run())


def reports(address: str) -> list[bytes]:
    """Reports of one outcome each, for decisions made just now."""
    units = [f"reported-{time.perf_counter_ns()}-{index}" for index in range(REPORTS)]
    with grpc.insecure_channel(address) as channel:
        batch = channel.unary_unary(f"/{SERVICE}/BatchDecide")
        asked = [service_pb.BatchDecideRequest(experiment=EXPERIMENT, units=units[at : at + 1000]) for at in range(0, REPORTS, 1000)]
        ids = [id_ for request in asked for id_ in service_pb.BatchDecideResponse.FromString(batch(request.SerializeToString())).ids]
    outcomes = (pb.Outcome(decision_id=id_, reward=0.0, metrics={"error": 0.0}) for id_ in ids)
    return [service_pb.ReportOutcomesRequest(outcomes=[outcome]).SerializeToString() for outcome in outcomes]


def accepted(answers: list[bytes]) -> int:
    found = [service_pb.ReportOutcomesResponse.FromString(answer).results for answer in answers]
    return sum(len(results) == 1 and results[0].status == pb.OUTCOME_STATUS_ACCEPTED for results in found)


def test_unary_decide_beside_its_floor(benchmark, peers, tmp_path):
    load = h2load if shutil.which("h2load") else asyncio_load
    ours = peers["ours"]
    print(f"\nload from {load.__name__}; {SLICES} alternating slices of {SLICE_CALLS} calls, {CONNECTIONS} x {IN_FLIGHT} in flight")

    def measure(peer: Peer) -> Slice:
        before = processor_seconds(peer.pid)
        found = load(peer.address, tmp_path)
        return found._replace(processor=max(processor_seconds(peer.pid) - before, TICK) / SLICE_CALLS * 1e6)

    def run() -> dict[str, list[Slice]]:
        found: dict[str, list[Slice]] = {}
        reported = 0
        for _ in range(SLICES + 1):
            for name, peer in peers.items():
                found.setdefault(name, []).append(measure(peer))
            for name in REPORTED:
                peer, mixed = peers[name], found.setdefault(f"{name} + 10 % outcomes", [])
                messages = reports(ours.address)
                rate = (mixed or found[name])[-1].rate / 10  # of the decisions that there are beside them
                with sending(peer.address, f"/{SERVICE}/ReportOutcomes", messages, rate) as answers:
                    slice_ = measure(peer)
                mixed.append(slice_)
                together = (slice_.rate + rate) / slice_.rate
                found.setdefault(f"{name} + 10 %, both", []).append(
                    Slice(slice_.rate * together, slice_.p50, slice_.processor / together)
                )
                assert accepted(answers) == len(answers)
                reported += len(answers)
        share = reported / len(REPORTED) / (SLICES + 1) / SLICE_CALLS
        print(f"outcomes accepted meanwhile: {share:.0%} of the decisions beside them")
        return {name: slices[1:] for name, slices in found.items()}  # the first warms up

    found = benchmark.pedantic(run, rounds=1, iterations=1)
    print("medians, and as shares of the floor slice by slice (least to most); processor: microseconds of the server for each call")
    for name, slices in found.items():
        told = []
        for what in Slice._fields:
            values = [getattr(slice_, what) for slice_ in slices]
            shares = sorted(value / getattr(floor, what) for value, floor in zip(values, found["floor"], strict=True))
            share = statistics.median(shares)
            told.append(f"{what} {statistics.median(values):>5.0f} = {share:.2f} ({shares[0]:.2f} to {shares[-1]:.2f})")
            benchmark.extra_info[f"{name}, {what}"] = share
        print(f"  {name:<22}{';  '.join(told)}")


# ---- without a call


def entry(number: int = 0) -> Entry:
    """Three arms."""
    shares = (SLOTS // 2, SLOTS // 4, SLOTS // 4)
    layout = first_layout(shares)
    table = Table(layout.ends, layout.owners, shares)
    return Entry(
        f"default/e{number}", number.to_bytes(8, "big"), 1, "RUNNING", True, b"salt-%d" % number, ("a", "b", "c"), ("", "", ""), 0, (table,)
    )


def timed(*calls: Callable[[int], object]) -> list[np.ndarray]:
    """Microseconds of each call, (ROUNDS, DECISIONS), for every one of them, round by round in turn, so that noise hits all alike.

    Two looks at the clock, some 0.1, are in each.
    """
    clock = time.perf_counter_ns
    found = [np.empty((ROUNDS, DECISIONS)) for _ in calls]
    for turn in range(ROUNDS):
        for call, times in zip(calls, found, strict=True):
            row = times[turn]
            for number in range(DECISIONS):
                started = clock()
                call(number)
                row[number] = (clock() - started) / 1000
    return found


def line(name: str, times: np.ndarray) -> str:
    p50, p99 = np.percentile(times, 50, axis=1), np.percentile(times, 99, axis=1)
    middle = [f"{np.median(values):.2f} ({values.min():.2f} to {values.max():.2f})" for values in (p50, p99)]
    return f"{name:<44}p50 {middle[0]:<24}p99 {middle[1]}"


def test_a_decision_in_process(benchmark):
    units = [b"user-%08d" % number for number in range(DECISIONS)]
    nonces = [number.to_bytes(8, "big") for number in range(DECISIONS)]
    decider, one = Decider(b"k" * 32), entry()

    def run() -> dict[str, np.ndarray]:
        plans = iter(range(2, 2 + ROUNDS * DECISIONS // 1000 + ROUNDS))
        newest = [one]

        def replanned(n: int) -> object:
            if n % 1000 == 0:
                newest[0] = replace(one, version=next(plans))
            return decider.decide(newest[0], units[n], {}, 1.8e9, nonces[n])

        calls = {
            "arm alone": lambda n: choose(one, units[n], {}, nonces[n]),
            "id, propensity, exposure count": lambda n: decider.decide(one, units[n], {}, time.time(), nonces[n]),
            "the same, a new plan every 1,000 decisions": replanned,
        }
        return dict(zip(calls, timed(*calls.values()), strict=True))

    print(f"\nmicroseconds, the median of {ROUNDS} rounds of {DECISIONS} and their spread:")
    for name, times in benchmark.pedantic(run, rounds=1, iterations=1).items():
        print(line(name, times))


def test_ten_thousand_experiments(benchmark):
    nonces = [number.to_bytes(8, "big") for number in range(DECISIONS)]

    def run() -> dict[int, np.ndarray]:
        callers = {}
        for count in (10, MANY):
            snapshot, decider = Snapshot().replaced([entry(number) for number in range(count)]), Decider(b"k" * 32)
            names = [f"default/e{number * 7919 % count}" for number in range(DECISIONS)]

            def decide(n: int, entries=snapshot.entries, decider=decider, names=names) -> object:
                return decider.decide(entries[names[n]], b"user-%d" % n, {}, 1.8e9, nonces[n])

            callers[count] = decide
        return dict(zip(callers, timed(*callers.values()), strict=True))

    found = benchmark.pedantic(run, rounds=1, iterations=1)
    print()
    for count, times in found.items():
        print(line(f"among {count} experiments", times))
    ratio = np.median(np.percentile(found[MANY], 99, axis=1)) / np.median(np.percentile(found[10], 99, axis=1))
    print(f"p99 among {MANY}: {ratio:.2f} x that among 10")
    few, many = (np.percentile(np.median(found[count], axis=0), 99) for count in (10, MANY))
    print(f"p99 of each decision's median over {ROUNDS} rounds, without what neighbours do: {few:.2f} and {many:.2f}, {many / few:.2f} x")
