"""Asks a server for decisions at a fixed rate, whatever it answers, and measures how long they take.

In: an address, a rate. Out: the latency of every call and what became of it. The loop is open: calls are sent on time though earlier ones
have not come back, as users do, and a latency counts from the time at which its call should have been sent. A server that stands still
for a second so gets a second's worth of bad latencies, where a closed loop would record one: the coordinated omission. Calls that fail
are counted by their status, and their times are among the others: leaving them out would make a server look better the more it refuses.

How late the generator itself was is measured too: beyond a millisecond it is the generator, not the server, that is being measured.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from hdrh.histogram import HdrHistogram

from allocator.client.channel import OPEN, Access, aio_channel
from allocator.errors import InvalidArgument, Unavailable, Violation
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.wire.status import from_rpc_error

DECIDE = "/allocator.v1.AllocatorService/Decide"
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
LONGEST_MICROSECONDS, DIGITS = 600_000_000, 3
CONNECT_SECONDS = 5.0
SPIN_SECONDS = 0.0015  # timers of event loops tick in milliseconds; what is due sooner is waited for awake
TELL_SECONDS = 0.2
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))  # a connection for each channel


@dataclass(frozen=True, slots=True)
class Load:
    """What to send. rate: calls a second. duration, timeout: seconds. units: how many different ones. Raises InvalidArgument."""

    experiment: str
    rate: float = 500.0
    duration: float = 10.0
    connections: int = 4
    timeout: float = 1.0
    units: int = 100_000

    def __post_init__(self) -> None:
        bounds = {"rate": (0.1, 1e6), "duration": (0.1, 86_400), "connections": (1, 1000), "timeout": (0.001, 600), "units": (1, 10**9)}
        found = [
            Violation(name, f"got {getattr(self, name)}; {low:g} to {high:g} is allowed")
            for name, (low, high) in bounds.items()
            if not low <= getattr(self, name) <= high
        ]
        if found:
            raise InvalidArgument(violations=found, reason="INVALID_LOAD")

    @property
    def calls(self) -> int:
        """How many calls that makes."""
        return max(1, round(self.rate * self.duration))


@dataclass(slots=True)
class Measured:
    """What came of it. latencies, lateness: in microseconds; of calls since they should have been sent, of the generator's sending.

    errors: how many calls ended with each status but OK. seconds: from the first call's time to the last answer.
    """

    load: Load
    latencies: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, LONGEST_MICROSECONDS, DIGITS))
    lateness: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, LONGEST_MICROSECONDS, DIGITS))
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Calls that have ended."""
        return self.latencies.get_total_count()

    def milliseconds(self, percentile: float) -> float:
        """The latency that this percentage of calls did not exceed."""
        return self.latencies.get_value_at_percentile(percentile) / 1000

    def document(self) -> dict[str, object]:
        """All of it in plain values, for JSON."""
        latency = {f"p{percentile:g}": self.milliseconds(percentile) for percentile in PERCENTILES}
        return {
            "experiment": self.load.experiment,
            "connections": self.load.connections,
            "calls": self.done,
            "rate": self.load.rate,
            "achievedRate": round(self.done / self.seconds, 1),
            "answeredRate": round((self.done - self.errors.total()) / self.seconds, 1),
            "seconds": round(self.seconds, 3),
            "latencyMilliseconds": {**latency, "max": self.latencies.get_max_value() / 1000},
            "errors": dict(sorted(self.errors.items())),
            "generatorLateMilliseconds": {"p99": self.lateness.get_value_at_percentile(99.0) / 1000},
        }


async def run(address: str, load: Load, tell: Callable[[Measured], None], access: Access = OPEN) -> Measured:
    """Send the load. `tell` is called now and then with what is measured so far. Raises what the server raised to a first call."""
    measured = Measured(load)
    channels = [aio_channel(address, access, OPTIONS) for _ in range(load.connections)]
    stubs = [channel.unary_unary(DECIDE) for channel in channels]
    metadata = access.metadata()
    try:
        first = service_pb.DecideRequest(experiment=load.experiment, unit="bench").SerializeToString()
        try:
            await asyncio.gather(*(stub(first, timeout=CONNECT_SECONDS, metadata=metadata) for stub in stubs))
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(f"no server answers at {address}", reason="NO_SERVER") from exc
            raise from_rpc_error(exc) from exc
        await _send(load, stubs, metadata, measured, tell)
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
    return measured


async def _send(load: Load, stubs: list, metadata: tuple, measured: Measured, tell: Callable[[Measured], None]) -> None:
    clock, sleep = time.perf_counter, asyncio.sleep
    record, late = measured.latencies.record_value, measured.lateness.record_value
    under_way: set[asyncio.Task[None]] = set()

    async def call(number: int, due: float) -> None:
        raw = service_pb.DecideRequest(experiment=load.experiment, unit=f"bench-{number % load.units}").SerializeToString()
        late(_microseconds(clock() - due))
        try:
            await stubs[number % len(stubs)](raw, timeout=load.timeout, metadata=metadata)
        except grpc.RpcError as error:
            measured.errors[error.code().name] += 1
        record(_microseconds(clock() - due))

    begun = told = clock()
    for number in range(load.calls):
        due = begun + number / load.rate
        while (left := due - clock()) > 0:
            await sleep(left - SPIN_SECONDS if left > SPIN_SECONDS else 0)
        task = asyncio.create_task(call(number, due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        if left < -SPIN_SECONDS:
            await sleep(0)  # behind: let answers in all the same
        if clock() - told > TELL_SECONDS:
            told = clock()
            tell(measured)
    await asyncio.gather(*under_way)
    measured.seconds = max(clock() - begun, load.duration)
    tell(measured)


def _microseconds(seconds: float) -> int:
    return min(max(1, round(seconds * 1e6)), LONGEST_MICROSECONDS)
