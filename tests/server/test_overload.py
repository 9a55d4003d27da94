"""More than there is room for: refused at once, never queued without bound, and nothing that matters is held up."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from allocator.client import AsyncClient
from allocator.core.record import EXPOSURES
from allocator.errors import InvalidArgument, Overloaded, Unavailable
from allocator.server.config import Config
from allocator.server.main import Server
from allocator.stores.memory import MemoryStore
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.wire.status import from_rpc_error
from tests.server.conftest import Running
from tests.server.test_end_to_end import started

PATIENCE = 30.0


class Gated(MemoryStore):
    """Counts outcomes only while the gate is open, and remembers how many came in each commit."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.commits: list[int] = []
        self.waiting = threading.Semaphore(0)
        self.threads = ThreadPoolExecutor(8)

    def add(self, outcomes, exposures=()):
        if outcomes:
            self.waiting.release()
            assert self.gate.wait(PATIENCE)
            self.commits.append(len(outcomes))
        return super().add(outcomes, exposures)

    def add_soon(self, outcomes, exposures=()):
        return self.threads.submit(self.add, outcomes, exposures)


@asynccontextmanager
async def overloaded(store, max_concurrent):
    """A server with little room."""
    config = Config(listen="127.0.0.1:0", metrics="127.0.0.1:0", store="memory:", drain_seconds=0, max_concurrent=max_concurrent)
    server = Server(config, store=store)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel, AsyncClient(server.address, decide_timeout=PATIENCE) as client:
        running = Running(server, channel, client)
        await started(running)
        try:
            yield running
        finally:
            store.gate.set()
    await server.stop()


async def until_the_store_waits(store):
    assert await asyncio.to_thread(store.waiting.acquire, timeout=PATIENCE)


def report_of(decision, reward=1.0):
    return service_pb.ReportOutcomesRequest(outcomes=[pb.Outcome(decision_id=decision.id, reward=reward)])


async def settled(calls):
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE)


async def test_a_flood_of_decisions_is_refused_beyond_the_queue_and_takes_no_place_from_a_freeze():
    async with overloaded(Gated(), max_concurrent=8) as running:
        request = service_pb.DecideRequest(experiment="ranker", unit="u")
        flood = [running.allocator.Decide(request) for _ in range(3000)]
        freeze = running.operator.FreezeExperiment(
            operator_pb.FreezeExperimentRequest(experiment="ranker", actor="ann", reason="too much"), timeout=PATIENCE
        )
        frozen = await freeze
        answers = await settled(flood)
        assert frozen.experiment.status.state == pb.EXPERIMENT_STATE_FROZEN
        refused = [a for a in answers if isinstance(a, BaseException)]
        assert {error.code() for error in refused} == {grpc.StatusCode.CANCELLED}  # the only status that gRPC's own queue refuses with
        assert len(refused) < len(answers)  # those in the queue were answered
        assert isinstance(from_rpc_error(refused[0]), Unavailable)
        assert (await running.allocator.Decide(request)).decision.reason == pb.REASON_FROZEN


async def test_decisions_whose_deadline_passes_in_the_queue_are_never_made():
    async with overloaded(Gated(), max_concurrent=10_000) as running:
        request = service_pb.DecideRequest(experiment="ranker", unit="u")
        decider, held, ended = running.server.engine.decider, threading.Event(), threading.Event()
        answer, made = decider.answer, []

        def answer_when_the_others_are_gone(*arguments, **more):
            if not made:
                held.set()
                assert ended.wait(PATIENCE)
            made.append(arguments)
            return answer(*arguments, **more)

        def flood():
            with grpc.insecure_channel(running.server.address) as channel:
                stub = service_grpc.AllocatorServiceStub(channel)
                first = stub.Decide.future(request, timeout=PATIENCE)
                assert held.wait(PATIENCE)  # from here on the server does nothing else
                codes = [call.code() for call in [stub.Decide.future(request, timeout=0.2) for _ in range(500)]]
                ended.set()
                return first.result(PATIENCE), codes

        decider.answer = answer_when_the_others_are_gone
        first, codes = await asyncio.to_thread(flood)
        assert first.decision.arm
        assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert len(made) <= 3  # gRPC may have handed over the next one or two before they ended


async def test_reports_beyond_the_queue_are_refused_with_a_hint_while_decisions_go_on():
    store = Gated()
    async with overloaded(store, max_concurrent=20) as running:
        decisions = [await running.client.decide("ranker", f"unit-{i}") for i in range(10)]
        store.gate.clear()
        calls = [running.allocator.ReportOutcomes(report_of(decision)) for decision in decisions]
        await until_the_store_waits(store)
        while running.server._allocator.intake._held < 10:
            await asyncio.wait_for(running.client.decide("ranker", "u"), PATIENCE)  # decisions are made meanwhile
        with pytest.raises(grpc.RpcError) as caught:
            await running.allocator.ReportOutcomes(report_of(decisions[0]))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        details = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"]).details
        assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details)
        error = from_rpc_error(caught.value)
        assert error.reason == "TOO_MANY_REPORTS"
        assert 0.05 <= error.retry_after_seconds <= 5
        assert running.server.metrics.shed.labels("ReportOutcomes").count == 1
        store.gate.set()
        answers = await settled(calls)
        assert {answer.results[0].status for answer in answers} == {pb.OUTCOME_STATUS_ACCEPTED}


async def test_reports_that_wait_share_a_commit_and_a_fault_refuses_only_its_own():
    store = Gated()
    async with overloaded(store, max_concurrent=400) as running:
        decisions = [await running.client.decide("ranker", f"unit-{i}") for i in range(100)]
        store.gate.clear()
        calls = [running.allocator.ReportOutcomes(report_of(d, 7.0 if i == 50 else 1.0)) for i, d in enumerate(decisions)]
        while running.server._allocator.intake._held < 99:  # the faulty one is refused before the store is asked
            await asyncio.wait_for(running.client.decide("ranker", "u"), PATIENCE)
        store.gate.set()
        answers = await settled(calls)
        faulty = from_rpc_error(answers.pop(50))
        assert isinstance(faulty, InvalidArgument)
        assert faulty.violations[0].field == "outcomes[0].reward"
        assert {answer.results[0].status for answer in answers} == {pb.OUTCOME_STATUS_ACCEPTED}
        again = await running.client.report(decisions[3].id, reward=1.0)
        assert again.status == "DUPLICATE"
        assert sum(store.commits) == 99 + 1

        decisions = [await running.client.decide("ranker", f"more-{i}") for i in range(100)]
        store.commits.clear()
        store.gate.clear()
        calls = [running.allocator.ReportOutcomes(report_of(d)) for d in decisions]
        while running.server._allocator.intake._held < 100:
            await asyncio.wait_for(running.client.decide("ranker", "u"), PATIENCE)
        store.gate.set()
        assert len(await settled(calls)) == sum(store.commits) == 100
        assert len(store.commits) < 20


async def test_a_report_whose_caller_has_gone_is_dropped_and_counts_when_it_comes_again():
    store = Gated()
    async with overloaded(store, max_concurrent=400) as running:
        decisions = [await running.client.decide("ranker", f"unit-{i}") for i in range(30)]
        store.gate.clear()
        held = []
        for decision in decisions[:4]:  # every worker is busy
            held.append(asyncio.ensure_future(running.allocator.ReportOutcomes(report_of(decision))))
            await until_the_store_waits(store)
        gone = await settled([running.allocator.ReportOutcomes(report_of(d), timeout=0.3) for d in decisions[4:]])
        assert {error.code() for error in gone} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        while running.server._allocator.intake._held > 4:  # the server has heard of it
            await asyncio.wait_for(running.client.decide("ranker", "u"), PATIENCE)
        store.gate.set()
        await settled(held)
        assert (await running.client.report(decisions[4].id, reward=1.0)).status == "ACCEPTED"
        assert sum(store.commits) == 5
        assert running.server.metrics.dropped.labels("ReportOutcomes").count == 26


async def test_exposures_that_could_not_be_stored_are_stored_with_the_next():
    class Failing(Gated):
        fails = False

        def add(self, outcomes, exposures=()):
            if self.fails:
                raise Overloaded("no room", reason="STORE_FULL")
            return super().add(outcomes, exposures)

    store = Failing()
    async with overloaded(store, max_concurrent=8) as running:
        store.fails = True
        decisions = [await running.client.decide("ranker", f"unit-{i}") for i in range(20)]
        with pytest.raises(Overloaded, match="no room"):
            await running.client.report(decisions[0].id, reward=1.0)
        store.fails = False
        assert (await running.client.report(decisions[0].id, reward=1.0)).status == "ACCEPTED"
        described = await running.operator.DescribeExperiment(operator_pb.DescribeExperimentRequest(experiment="ranker"))
        assert sum(arm.decisions for arm in described.arms) == 20


class Slow(MemoryStore):
    """Waits, once the gate is closed, before it counts exposures; and can be read after it was closed."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Semaphore(0)
        self.threads = ThreadPoolExecutor(8)

    def add(self, outcomes, exposures=()):
        if not self.gate.is_set():
            self.waiting.release()
            assert self.gate.wait(PATIENCE)
        return super().add(outcomes, exposures)

    def add_soon(self, outcomes, exposures=()):
        return self.threads.submit(self.add, outcomes, exposures)

    def close(self):
        pass


async def test_exposures_on_their_way_when_the_server_is_told_to_stop_count_once():
    store = Slow()
    config = Config(listen="127.0.0.1:0", metrics="127.0.0.1:0", store="memory:", drain_seconds=0)
    server = Server(config, store=store)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel, AsyncClient(server.address, decide_timeout=PATIENCE) as client:
        await started(Running(server, channel, client))
        store.gate.clear()
        for number in range(20):
            await client.decide("ranker", f"unit-{number}")
        await until_the_store_waits(store)
    stopping = asyncio.create_task(server.stop())
    while not all(task.cancelled() for task in server._tasks):
        await asyncio.sleep(0)
    store.gate.set()
    await asyncio.wait_for(stopping, PATIENCE)
    cells = store.cells(server.engine.registry.get("ranker").uid)
    assert sum(cell.count for cell in cells if cell.stream == EXPOSURES) == 20
