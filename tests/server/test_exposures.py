"""Exposures on their way from a decider to the store: in small pieces, along with reports, nothing lost and nothing twice."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from allocator.client import AsyncClient
from allocator.core.decider import DRAWS_SECONDS, TAKEN_AT_ONCE
from allocator.core.outcome import Outcome
from allocator.core.record import EXPOSURES, RATIO
from allocator.errors import Overloaded
from allocator.ports import SystemClock
from allocator.server import intake as intake_module
from allocator.server.config import Config
from allocator.server.edge import Edge, EdgeConfig
from allocator.server.intake import ROWS_AT_ONCE, TAKEN_BETWEEN_RESTS, Intake
from allocator.server.main import Server
from allocator.server.metrics import Metrics
from allocator.stores.memory import MemoryStore
from allocator.stores.sqlite import SqliteStore
from tests.client.conftest import QUICK
from tests.conftest import two_arms
from tests.engine.conftest import Rehearsal

MANY = 300
PATIENCE = 30.0


@pytest.fixture(params=[MemoryStore, lambda: SqliteStore(":memory:")], ids=["memory", "sqlite"])
def rehearsal(request):
    rehearsal = Rehearsal(store=request.param())
    rehearsal.run(two_arms())
    yield rehearsal
    rehearsal.engine.close()


@pytest.fixture
def intake(rehearsal):
    threads = ThreadPoolExecutor(2)
    engine = rehearsal.engine
    yield Intake(engine.ingest, engine.decider, threads, Metrics(CollectorRegistry(), lambda: 0.0), engine.clock.monotonic, 100)
    threads.shutdown()


@pytest.fixture
def pieces(rehearsal, monkeypatch):
    """How many experiments' exposures were made ready at a time."""
    found, rows = [], rehearsal.engine.ingest.rows

    def counted(exposures):
        found.append(len({exposure.uid for exposure in exposures}))
        return rows(exposures)

    monkeypatch.setattr(rehearsal.engine.ingest, "rows", counted)
    return found


def uid_of(number):
    return number.to_bytes(8, "big")


def entries(rehearsal, count=MANY):
    """So many experiments that differ in their uid."""
    entry = rehearsal.engine.live.snapshot.entries["default/ranker"]
    return [replace(entry, uid=uid_of(number)) for number in range(count)]


def decide(rehearsal, count=MANY):
    """One decision of each of so many experiments."""
    for entry in entries(rehearsal, count):
        rehearsal.engine.decider.decide(entry, b"unit", {}, rehearsal.clock.now(), rehearsal.entropy.bytes(8))


def stored(rehearsal, count=MANY):
    """Decisions that the store counted, of so many experiments."""
    cells = [cell for number in range(count) for cell in rehearsal.store.cells(uid_of(number).hex())]
    return sum(cell.count for cell in cells if cell.stream == EXPOSURES)


@asynccontextmanager
async def resting(intake, monkeypatch):
    """A flush that waits in its first rest until it is cancelled."""
    monkeypatch.setattr(intake_module, "REST_SECONDS", 3600.0)
    flush = asyncio.create_task(intake.flush())
    while not intake._taken.exposures:
        await asyncio.sleep(0)
    yield flush
    flush.cancel()
    await asyncio.gather(flush, return_exceptions=True)


async def test_exposures_of_many_experiments_are_made_ready_in_pieces_and_stored_at_once(rehearsal, intake, pieces, monkeypatch):
    monkeypatch.setattr(intake_module, "REST_SECONDS", 0.0)
    found = entries(rehearsal)
    for _ in range(2):  # the second time the store knows them all
        for entry in found:
            rehearsal.engine.decider.decide(entry, b"unit", {}, rehearsal.clock.now(), rehearsal.entropy.bytes(8))
        pieces.clear()
        await intake.flush()
        assert pieces == [TAKEN_BETWEEN_RESTS] * (MANY // TAKEN_BETWEEN_RESTS)
    assert stored(rehearsal) == 2 * MANY
    await intake.flush()
    assert stored(rehearsal) == 2 * MANY


async def test_with_very_many_experiments_pieces_grow_and_rests_do_not_add_up(rehearsal, intake, pieces, monkeypatch):
    monkeypatch.setattr(intake_module, "REST_SECONDS", 0.0)
    decide(rehearsal, 3000)
    sizes, add_soon = [], rehearsal.store.add_soon
    monkeypatch.setattr(rehearsal.store, "add_soon", lambda outcomes, rows: sizes.append(len(rows)) or add_soon(outcomes, rows))
    await intake.flush()
    each = 3000 // intake_module.FEW_RESTS
    assert pieces == [each] * intake_module.FEW_RESTS
    assert stored(rehearsal, 3000) == 3000
    assert len(sizes) > 2
    assert max(sizes) < ROWS_AT_ONCE + 2 * each
    decide(rehearsal, 4000)
    pieces.clear()
    await intake.flush()
    assert max(pieces) <= 2 * TAKEN_AT_ONCE  # also of what was counted under plans that have changed, as all have here
    assert stored(rehearsal, 4000) == 7000


async def test_a_store_that_refuses_is_not_asked_for_all_that_waits(rehearsal, intake, monkeypatch):
    monkeypatch.setattr(intake_module, "REST_SECONDS", 0.0)
    decide(rehearsal, 3000)
    sizes = []
    with monkeypatch.context() as patched:
        patched.setattr(rehearsal.store, "add_soon", lambda _, rows: sizes.append(len(rows)) or _refuse())
        for _ in range(3):
            with pytest.raises(Overloaded):
                await intake.flush()
    assert len(sizes) == 3
    assert max(sizes) < ROWS_AT_ONCE + 2 * TAKEN_AT_ONCE
    await intake.flush()
    assert stored(rehearsal, 3000) == 3000


async def test_a_report_takes_along_what_is_ready_and_some_more(rehearsal, intake, monkeypatch):
    decision = rehearsal.decide()
    decide(rehearsal, MANY - 1)
    async with resting(intake, monkeypatch):
        results, _ = await asyncio.wait_for(intake.report([Outcome(decision.id, 1.0)]), PATIENCE)
        assert [result.status.value for result in results] == ["ACCEPTED"]
        own = rehearsal.store.cells(rehearsal.engine.registry.get("ranker").uid)
        assert sum(cell.count for cell in own if cell.stream == EXPOSURES) == 1
        assert stored(rehearsal) == TAKEN_BETWEEN_RESTS + TAKEN_AT_ONCE - 1


async def test_what_is_only_ready_when_it_ends_is_given_back(rehearsal, intake, monkeypatch):
    decide(rehearsal)
    async with resting(intake, monkeypatch):
        pass
    await intake.close()
    assert stored(rehearsal) == 0
    left = 0
    while exposures := rehearsal.engine.decider.take():
        left += sum(exposure.count for exposure in exposures)
    assert left == MANY


async def test_what_the_store_refuses_goes_with_the_next(rehearsal, intake, monkeypatch):
    monkeypatch.setattr(intake_module, "REST_SECONDS", 0.0)
    decide(rehearsal)
    with monkeypatch.context() as patched:
        patched.setattr(rehearsal.store, "add_soon", _refuse)
        with pytest.raises(Overloaded):
            await intake.flush()
    await intake.flush()
    assert stored(rehearsal) == MANY


async def test_a_fault_while_rows_are_made_ready_loses_nothing(rehearsal, intake, monkeypatch):
    monkeypatch.setattr(intake_module, "REST_SECONDS", 0.0)
    decide(rehearsal, 20)
    with monkeypatch.context() as patched:
        patched.setattr(rehearsal.store, "ready", _refuse)
        with pytest.raises(Overloaded):
            await intake.flush()
    await intake.flush()
    assert stored(rehearsal, 20) == 20


async def test_a_fault_while_rows_are_made_ready_is_told_to_whom_reports(rehearsal, intake, monkeypatch):
    decision = rehearsal.decide()
    with monkeypatch.context() as patched:
        patched.setattr(rehearsal.store, "ready", _refuse)
        with pytest.raises(Overloaded):
            await asyncio.wait_for(intake.report([Outcome(decision.id, 1.0)]), PATIENCE)
    assert intake._held == 0
    results, _ = await asyncio.wait_for(intake.report([Outcome(decision.id, 1.0)]), PATIENCE)
    assert [result.status.value for result in results] == ["ACCEPTED"]
    await asyncio.wait_for(intake.close(), PATIENCE)


def _refuse(*_):
    raise Overloaded("no room", reason="STORE_FULL")


class Ahead(SystemClock):
    """A clock of which the monotonic part can be put forward."""

    seconds = 0.0

    def monotonic(self):
        return super().monotonic() + self.seconds


async def drawn_and_counted(store, uid):
    """Draws and decisions, once all decisions are counted."""
    for _ in range(int(PATIENCE * 100)):
        cells = store.cells(uid)
        counted = sum(cell.count for cell in cells if cell.stream == EXPOSURES)
        if counted == 5:
            break
        await asyncio.sleep(0.01)
    return sum(cell.count for cell in cells if cell.stream.startswith(RATIO)), counted


@pytest.mark.parametrize("over_an_edge", [False, True])
async def test_draws_wait_in_a_server_and_in_an_edge_and_come_when_their_time_is_over(over_an_edge):
    store, clock = MemoryStore(), Ahead()
    server = Server(Config(listen="127.0.0.1:0", metrics="", store="memory:", drain_seconds=0), store=store, clock=clock)
    await server.start()
    address, edge = server.address, None
    try:
        server.engine.commands.apply(two_arms(), actor="ann")
        server.engine.commands.start("ranker", actor="ann")
        uid = server.engine.registry.get("ranker").uid
        if over_an_edge:
            edge = Edge(EdgeConfig(upstream=address, listen="127.0.0.1:0", drain_seconds=0, grace_seconds=0, pause=QUICK), clock=clock)
            await asyncio.wait_for(edge.start(), PATIENCE)
            address = edge.address
        async with AsyncClient(address, decide_timeout=PATIENCE) as client:
            for number in range(5):
                await client.decide("ranker", f"u{number}")
        assert await drawn_and_counted(store, uid) == (0, 5)
        clock.seconds = DRAWS_SECONDS
        for _ in range(int(PATIENCE * 100)):
            if (await drawn_and_counted(store, uid))[0]:
                break
            await asyncio.sleep(0.01)
        assert await drawn_and_counted(store, uid) == (5, 5)
    finally:
        if edge is not None:
            await edge.stop()
        await server.stop()
