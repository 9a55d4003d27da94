"""An open loop: sent on time, measured from when it should have been sent, whatever the server does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import grpc
import pytest

from allocator.bench.figure import draw
from allocator.bench.load import DECIDE, Load, run
from allocator.client.channel import Access
from allocator.errors import InvalidArgument, NotFound, Unavailable
from allocator.v1 import allocator_service_pb2 as service_pb

PATIENCE = 30.0


class Scripted:
    """A server that answers as a test says, and remembers what it was asked."""

    def __init__(self, answer):
        self._answer = answer
        self.asked: list[service_pb.DecideRequest] = []
        self.callers: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()

    async def __aenter__(self):
        async def handle(raw, context):
            self.asked.append(service_pb.DecideRequest.FromString(raw))
            self.callers[context.peer()] += 1
            self.tokens[dict(context.invocation_metadata()).get("authorization", "")] += 1
            await self._answer(len(self.asked), context)
            return b""

        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service, _, method = DECIDE[1:].partition("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(handle)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_):
        await self._server.stop(None)


async def at_once(_number, _context):
    pass


async def test_every_call_is_sent_and_recorded_over_all_connections_with_the_token():
    load = Load("ranker", rate=200, duration=0.5, connections=3, units=10)
    told = []
    async with Scripted(at_once) as server:
        measured = await run(server.address, load, lambda m: told.append(m.done), Access(token="secret"))
    assert measured.done == load.calls == 100
    assert not measured.errors
    assert told[-1] == 100
    assert len(server.asked) == 100 + 3  # one on each connection to begin with
    assert {request.experiment for request in server.asked} == {"ranker"}
    assert len({request.unit for request in server.asked if request.unit != "bench"}) == 10
    assert len(server.callers) == 3
    assert set(server.tokens) == {"Bearer secret"}
    assert measured.seconds >= 0.5


async def test_a_server_that_stands_still_gets_the_latencies_of_all_who_waited():
    """A closed loop would record one slow call. Here the server stands still for as long as 100 calls take to come."""
    stopped = asyncio.Event()

    async def stand_still(number, _context):
        if number == 21:  # the first was not measured
            threading.Timer(0.5, asyncio.get_running_loop().call_soon_threadsafe, (stopped.set,)).start()
        if number >= 21:
            await stopped.wait()

    load = Load("ranker", rate=200, duration=1.0, connections=1, timeout=PATIENCE)
    async with Scripted(stand_still) as server:
        measured = await run(server.address, load, lambda _: None)
    assert measured.done == 200
    slow = 200 - measured.latencies.get_total_count() * _share_below(measured, 100.0)
    assert 70 <= slow <= 190  # those due in the first 400 of the 500 ms waited more than 100: 80, and more on a busy machine
    assert measured.latencies.get_max_value() / 1000 >= 490


def _share_below(measured, milliseconds):
    return sum(
        item.count_at_value_iterated_to
        for item in measured.latencies.get_recorded_iterator()
        if item.value_iterated_to / 1000 < milliseconds
    ) / measured.done


async def test_calls_that_fail_are_counted_by_status_and_timed_like_the_others():
    async def fail(number, context):
        if number > 1 and number % 2:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
        if number % 10 == 0:
            await asyncio.Event().wait()

    load = Load("ranker", rate=200, duration=0.5, connections=1, timeout=0.3)
    async with Scripted(fail) as server:
        measured = await run(server.address, load, lambda _: None)
    assert measured.done == 100
    assert measured.errors == {"RESOURCE_EXHAUSTED": 50, "DEADLINE_EXCEEDED": 10}
    assert measured.latencies.get_max_value() / 1000 >= 290
    document = measured.document()
    assert document["calls"] == 100
    assert document["answeredRate"] == pytest.approx(40 / measured.seconds, abs=0.1)


async def test_what_the_server_says_to_the_first_call_is_raised():
    async def unknown(_number, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such experiment")

    async with Scripted(unknown) as server:
        with pytest.raises(NotFound, match="no such experiment"):
            await run(server.address, Load("nobody"), lambda _: None)
    with pytest.raises(Unavailable, match="no server answers"):
        await run(server.address, Load("ranker"), lambda _: None)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rate", 0), ("rate", float("nan")), ("duration", -1), ("connections", 0), ("timeout", 0), ("timeout", float("inf")), ("units", 0)],
)
def test_a_load_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(InvalidArgument) as caught:
        Load("ranker", **{field: value})
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_the_figure_is_drawn(tmp_path):
    async with Scripted(at_once) as server:
        measured = await run(server.address, Load("ranker", rate=100, duration=0.3), lambda _: None)
    draw(measured, tmp_path / "latency.png", "30 decisions")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert time.time() - (tmp_path / "latency.png").stat().st_mtime < PATIENCE
