"""An edge between a server and its callers: the same decisions, nothing acknowledged that the server did not, no lease widened."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from allocator.client import AsyncClient, LocalClient, Reason, State
from allocator.core.decision_id import read
from allocator.core.experiment import Assignment, Budget, Exposure
from allocator.errors import InvalidArgument, Unavailable
from allocator.server.edge import Edge, EdgeConfig
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc
from tests.client.conftest import QUICK, Service
from tests.conftest import ManualClock
from tests.processes import free_port, until


@pytest.fixture
def service():
    service = Service()
    yield service
    service.close()


@asynccontextmanager
async def edge_of(address, clock=None, **settings):
    values = {"listen": "127.0.0.1:0", "drain_seconds": 0, "grace_seconds": 0, "pause": QUICK, "operator": True, **settings}
    edge = Edge(EdgeConfig(upstream=address, **values), clock=clock)
    await asyncio.wait_for(edge.start(), 60)
    try:
        yield edge
    finally:
        await edge.stop()


async def soon(condition, seconds=30):
    await asyncio.to_thread(until, condition, seconds)


async def test_an_edge_decides_as_its_upstream_and_its_ids_are_the_services(service):
    service.apply()
    async with edge_of(service.address) as edge, AsyncClient(edge.address, decide_timeout=5) as near:
        async with AsyncClient(service.address, decide_timeout=5) as far:
            for i in range(200):
                mine, theirs = await near.decide("ranker", f"u{i}"), await far.decide("ranker", f"u{i}")
                assert (mine.arm, mine.propensity, mine.reason) == (theirs.arm, theirs.propensity, theirs.reason)
        assert read(service.store.secret(), mine.id).key != 0
        assert (await near.report(mine.id, reward=1.0, metrics={"error": 0.0})).status == "ACCEPTED"
        assert (await near.report(mine.id, reward=1.0)).status == "DUPLICATE"
        assert (await near.report("A" * 68, reward=1.0)).status == "REFUSED"
        await soon(lambda: service.exposures() == 400)


async def test_reports_that_arrive_together_go_together_and_each_gets_its_own_answer(service):
    service.apply()
    async with edge_of(service.address) as edge, AsyncClient(edge.address, decide_timeout=5, report_timeout=30) as client:
        decisions = [await client.decide("ranker", f"u{i}") for i in range(60)]

        async def report(i):
            try:
                return (await client.report(decisions[i].id, reward=99.0 if i % 7 == 0 else 1.0)).status
            except InvalidArgument as error:
                return error.violations[0].field

        calls = edge.relay._report_outcomes
        sent = []
        edge.relay._report_outcomes = lambda request, **more: sent.append(len(request.outcomes)) or calls(request, **more)
        found = await asyncio.gather(*(report(i) for i in range(60)))
        assert found == ["outcomes[0].reward" if i % 7 == 0 else "ACCEPTED" for i in range(60)]
        assert max(sent) > 1


async def test_what_the_upstream_does_not_acknowledge_the_edge_does_not(service):
    service.apply()
    async with edge_of(service.address) as edge, AsyncClient(edge.address, decide_timeout=5) as client:
        decision = await client.decide("ranker", "u")
        await asyncio.to_thread(service.stop)
        with pytest.raises(Unavailable):
            await client.report(decision.id, reward=1.0)
        assert (await client.decide("ranker", "u2")).reason is Reason.ALLOCATED
        await asyncio.to_thread(service.start)
        await soon(lambda: service.exposures() == 2)  # both decisions were held


async def test_decisions_go_on_until_the_lease_ends_and_a_watcher_of_the_edge_is_no_longer_ready_than_the_edge(service):
    service.apply()
    clock = ManualClock()
    async with edge_of(service.address, clock) as edge, AsyncClient(edge.address, decide_timeout=5) as client:
        with LocalClient(edge.address, pause=QUICK, clock=clock) as local:
            assert await asyncio.to_thread(local.wait_ready, 30)
            unit = next(u for u in map(str, range(99)) if local.decide("ranker", u).arm == "new")
            await asyncio.to_thread(service.stop)
            await soon(lambda: edge.relay.follower._call is None)
            clock.pass_(14)
            assert (await client.decide("ranker", unit)).arm == "new"
            clock.pass_(2)
            found = await client.decide("ranker", unit)
            assert (found.arm, found.reason) == ("old", Reason.STALE)
            await soon(lambda: local._follower._last == clock.monotonic())  # it has heard the edge say how old its table is by now
            assert local.state is State.STALE
            found = local.decide("ranker", unit)
            assert (found.arm, found.reason) == ("old", Reason.STALE)
            await asyncio.to_thread(service.start)
            await soon(lambda: local.state is State.READY)
            assert local.decide("ranker", unit).arm == "new"


async def test_clients_of_an_edge_of_an_edge_report_and_make_ids_like_all_others(service):
    service.apply()
    async with edge_of(service.address) as near, edge_of(near.address) as far:
        with LocalClient(far.address, pause=QUICK) as client:
            assert await asyncio.to_thread(client.wait_ready, 30)
            for i in range(50):
                client.report(client.decide("ranker", f"u{i}").id, reward=1.0)
            assert await asyncio.to_thread(client.flush, 30)
            assert client.statistics().accepted == 50
        assert service.exposures() == 50


async def test_budgets_hold_behind_an_edge(service):
    service.apply(assignment=Assignment.PER_REQUEST, exposure=Exposure(budget=Budget(requests=200)))
    uid = service.engine.registry.get("ranker").uid
    await soon(lambda: service.store.granted(uid))
    own = service.store.granted(uid)[1, "requests"]
    async with edge_of(service.address) as edge, AsyncClient(edge.address, decide_timeout=5) as client:
        served = 0
        async with asyncio.timeout(60):
            while served < 200 - own:
                decisions = await asyncio.gather(*(client.decide("ranker", f"u{i}") for i in range(20)))
                served += sum(decision.arm == "new" for decision in decisions)
        more = await asyncio.gather(*(client.decide("ranker", f"v{i}") for i in range(300)))
        assert not any(decision.arm == "new" for decision in more)
        assert served == 200 - own


async def test_a_freeze_passes_through_and_operators_reach_the_upstream_through_a_worker(service):
    service.apply()
    async with edge_of(service.address) as edge, grpc.aio.insecure_channel(edge.address) as channel:
        operator, allocator = operator_grpc.OperatorServiceStub(channel), service_grpc.AllocatorServiceStub(channel)
        await operator.FreezeExperiment(operator_pb.FreezeExperimentRequest(experiment="ranker", actor="ann", reason="a test"))
        async with asyncio.timeout(30):
            while True:
                reply = await allocator.Decide(service_pb.DecideRequest(experiment="ranker", unit="u"))
                if reply.decision.reason == pb.REASON_FROZEN:
                    break
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await operator.GetExperiment(operator_pb.GetExperimentRequest(experiment="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert any(key == "grpc-status-details-bin" for key, _ in caught.value.trailing_metadata())


async def test_an_edge_serves_no_operator_unless_asked_to(service):
    service.apply()
    async with edge_of(service.address, operator=False) as edge, grpc.aio.insecure_channel(edge.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await operator_grpc.OperatorServiceStub(channel).GetExperiment(operator_pb.GetExperimentRequest(experiment="ranker"))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_edge_without_an_upstream_waits_and_gives_up_when_told():
    edge = Edge(EdgeConfig(upstream=f"127.0.0.1:{free_port()}", listen="127.0.0.1:0", drain_seconds=0, pause=QUICK))
    starting = asyncio.create_task(edge.start())
    await soon(lambda: edge.address != "" and edge.relay.follower.opened > 1)
    assert not starting.done()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await edge.stop()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"upstream": "nowhere"}, "upstream"),
        ({"listen": "0.0.0.0:1"}, "listen"),
        ({"metrics": "x"}, "metrics"),
        ({"drain_seconds": -1}, "drain"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, field):
    with pytest.raises(InvalidArgument) as caught:
        EdgeConfig(**{"upstream": "127.0.0.1:1", **settings})
    assert caught.value.violations[0].field == field
