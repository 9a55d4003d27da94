"""Several engines with threads on a real Redis: the words of `ports.Store` as that store means them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from allocator.core.lifecycle import State
from allocator.core.outcome import Outcome
from allocator.engine.engine import Engine
from allocator.errors import AllocatorError, Overloaded, Refused, Unavailable
from allocator.ports import SystemClock, SystemEntropy
from allocator.stores.keepsake import DiskKeepsake
from allocator.stores.redis import RedisStore
from tests.conftest import two_arms
from tests.processes import until
from tests.redis_servers import Node
from tests.stores.test_redis import needs_flags

DEADLINE = 20.0


@pytest.fixture
def node(tmp_path) -> Iterator[Node]:
    with Node(tmp_path / "redis") as made:
        yield made


@pytest.fixture
def start(node, tmp_path) -> Iterator[Callable[[str], Engine]]:
    """Starts a server by its name, with a disk of its own."""
    with ExitStack() as stack:

        def make(name: str) -> Engine:
            keepsake = DiskKeepsake(tmp_path / name)
            engine = Engine(RedisStore(node.url), SystemClock(), SystemEntropy(), 0.2, restarted=False, keepsake=keepsake, holder=name)
            engine.start()
            stack.callback(engine.close)
            return engine

        yield make


def decide(engine: Engine, unit: str = "u"):
    entry = engine.live.snapshot.entries["default/ranker"]
    now = engine.clock.now()
    return engine.decider.decide(entry, unit.encode(), {}, now, engine.entropy.bytes(8), stale=engine.live.stale(entry))


def reason(engine: Engine) -> str:
    return decide(engine).reason.name


def test_servers_share_one_plan_a_freeze_a_loss_and_its_end(node, start):
    a, b = start("a"), start("b")
    assert [engine.term.in_force() for engine in (a, b)] == [True, False]
    b.commands.apply(two_arms(), actor="ann")
    b.commands.start("ranker", actor="ann")
    for engine in (a, b):
        until(lambda engine=engine: "default/ranker" in engine.live.snapshot.entries and reason(engine) == "ALLOCATED", "no weights")
    assert a.live.snapshot.entries["default/ranker"].digest() == b.live.snapshot.entries["default/ranker"].digest()

    decision = decide(b)
    assert [r.status.value for r in a.ingest.report([Outcome(decision.id, 1.0, {"error": 0.0})])] == ["ACCEPTED"]
    assert [r.status.value for r in b.ingest.report([Outcome(decision.id, 1.0, {"error": 0.0})])] == ["DUPLICATE"]

    b.commands.freeze("ranker", actor="ann", reason="errors are up")
    assert reason(b) == "FROZEN"
    until(lambda: reason(a) == "FROZEN", "the planner did not hear of the freeze")
    b.commands.resume("ranker", actor="ann", reason="mended")
    until(lambda: reason(a) == reason(b) == "ALLOCATED", "nobody heard of the resume")

    with node.client() as client:
        client.flushall()
    until(lambda: bool(a.keeper.lost and b.keeper.lost), "the loss was not noticed")
    until(lambda: reason(a) == reason(b) == "STALE", "the table is still believed")  # the same pass says so, a moment after it has noticed
    with pytest.raises(Unavailable):
        a.ingest.report([Outcome(decision.id, 1.0, {"error": 0.0})])
    with pytest.raises(Refused):
        b.commands.conclude("ranker", actor="ann", reason="why not", winner="new")
    b.commands.freeze("ranker", actor="ann", reason="to be sure")

    assert a.commands.reconcile(actor="ann", reason="somebody flushed it").restored == ("default/ranker",)
    until(lambda: not (a.keeper.lost or b.keeper.lost), "the end of the loss was not noticed")
    until(lambda: reason(a) == reason(b) == "FROZEN", "it did not come back frozen")
    until(lambda: b.store.record("default/ranker").status.state is State.FROZEN, "the store does not say so")

    def resumed() -> bool:
        try:
            a.commands.resume("ranker", actor="ann", reason="all is well")
        except AllocatorError:
            return False
        return True

    until(resumed, "it could not be resumed")
    until(lambda: reason(a) == reason(b) == "ALLOCATED", "nobody heard of the resume")


def test_a_redis_that_is_killed_and_comes_back_with_its_data_needs_nobody(node, start):
    a, b = start("a"), start("b")
    a.commands.apply(two_arms(), actor="ann")
    a.commands.start("ranker", actor="ann")
    until(lambda: "default/ranker" in b.live.snapshot.entries and reason(b) == "ALLOCATED", "no weights")
    node.kill()
    decision = decide(b)
    with pytest.raises(Unavailable):
        b.ingest.report([Outcome(decision.id, 1.0, {"error": 0.0})])
    assert a.commands.freeze("ranker", actor="ann", reason="errors are up").status.state is State.FROZEN
    assert reason(a) == "FROZEN"
    node.start()
    until(lambda: reason(b) == "FROZEN", "the freeze did not reach the other server")
    assert not a.keeper.lost
    assert not b.keeper.lost
    assert {r.status.value for r in b.ingest.report([Outcome(decision.id, 1.0, {"error": 0.0})])} == {"ACCEPTED"}


def test_a_full_redis_stops_the_counting_and_neither_the_planning_nor_a_freeze(node, start):
    needs_flags(node)
    a, b = start("a"), start("b")
    a.commands.apply(two_arms(), actor="ann")
    a.commands.start("ranker", actor="ann")
    until(lambda: "default/ranker" in b.live.snapshot.entries and reason(b) == "ALLOCATED", "no weights")
    decision = decide(b)
    node.ask("CONFIG", "SET", "maxmemory", "1")
    full = a.clock.monotonic()
    with pytest.raises(Overloaded):
        b.ingest.report([Outcome(decision.id, 1.0, {"error": 0.0})])
    until(lambda: min(a.live.confirmed, b.live.confirmed) > full, "the planner's term is not renewed")
    a.planner.stop()
    until(b.term.in_force, "nobody took over")
    over = b.clock.monotonic()
    until(lambda: b.live.confirmed > over, "the new planner cannot plan")
    assert reason(b) == "ALLOCATED"
    assert a.commands.freeze("ranker", actor="ann", reason="errors are up").status.reason == "errors are up"  # not kept: stored
    until(lambda: reason(b) == "FROZEN", "the freeze did not reach the other server")
    node.ask("CONFIG", "SET", "maxmemory", "0")
    assert [r.status.value for r in b.ingest.report([Outcome(decision.id, 1.0, {"error": 0.0})])] == ["ACCEPTED"]
