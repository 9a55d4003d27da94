"""Budgets across in-process clients: whatever they do, and however they end, candidates never receive more than was budgeted."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allocator.client import Reason
from allocator.client.leases import Leases, request_of
from allocator.core.decider import Decider
from allocator.core.decider import Exposure as Counted
from allocator.core.experiment import Assignment, Budget, Exposure
from allocator.engine.engine import Engine
from allocator.stores.memory import MemoryStore
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.wire.exposures import KINDS, exposure_from_message, exposure_to_message
from tests.conftest import ManualClock, SeededEntropy, two_arms
from tests.processes import until


def test_an_exposure_survives_the_wire():
    found = Counted(b"uid-uid-", 3, 9_999_999, 2, 1, 10**9, 5, 4, 10**9 << 16, 10**9 << 32, 77)
    assert exposure_from_message(exposure_to_message(found), 77) == found


def test_clients_spend_a_budget_to_the_last_and_not_beyond(service, make):
    service.apply(assignment=Assignment.PER_REQUEST, exposure=Exposure(budget=Budget(requests=300)))
    uid = service.engine.registry.get("ranker").uid
    until(lambda: service.store.granted(uid))  # the server's own decider holds some, and nobody asks it
    most = 300 - service.store.granted(uid)[1, "requests"]
    clients = [make() for _ in range(3)]
    served = 0

    def spend() -> bool:
        nonlocal served
        for client in clients:
            for i in range(20):
                served += client.decide("ranker", f"u{i}").arm == "new"
        return served >= most

    until(spend, seconds=60)
    for client in clients:
        for i in range(500):
            decision = client.decide("ranker", f"u{i}")
            served += decision.arm == "new"
            assert decision.reason in (Reason.CAPPED, Reason.ALLOCATED, Reason.DRAINED)
    assert served == most


class Fleet:
    """Clients' deciders and leases around one engine, without threads or transport."""

    def __init__(self, budget):
        self.clock = ManualClock()
        self.engine = Engine(MemoryStore(SeededEntropy(3)), self.clock, SeededEntropy(4))
        self.engine.start(threads=False)
        self.engine.commands.apply(two_arms(assignment=Assignment.PER_REQUEST, exposure=Exposure(budget=budget)), actor="ann")
        self.engine.commands.start("ranker", actor="ann")
        self.engine.planner.tick()
        self.made = 0
        self.clients = [self.client() for _ in range(3)]
        self.exposures, self.units = 0, set()

    def client(self):
        self.made += 1
        decider = Decider(b"k", self.made, life=self.made)
        return decider, Leases(decider)

    def decide(self, index, units):
        decider, _ = self.clients[index]
        for unit in units:
            entry = self.engine.live.snapshot.entries["default/ranker"]
            self.made += 1
            nonce = self.made.to_bytes(8, "big")
            decision = decider.decide(entry, f"u{unit}".encode(), {}, self.clock.now(), nonce)
            if decision.arm == "new":
                self.exposures += 1
                self.units.add(unit)

    def fill(self, index, lost):
        _, leases = self.clients[index]
        wanted = leases.wanted(self.engine.live.snapshot, self.clock.monotonic())
        request = request_of(wanted)
        answers = self.engine.lease_exposure([(lease.uid, lease.arm, KINDS[lease.kind], lease.exposures) for lease in request.leases])
        if not lost:
            reply = service_pb.LeaseExposureResponse(grants=[service_pb.LeaseGrant(exposures=n, activation=a) for n, a in answers])
            leases.granted(wanted, reply, self.clock.monotonic())

    def crash(self, index):
        self.clients[index] = self.client()

    def freeze_and_resume(self):
        self.engine.commands.freeze("ranker", actor="ann", reason="a test")
        self.engine.commands.resume("ranker", actor="ann", reason="a test")
        self.engine.planner.tick()


moves = st.lists(
    st.one_of(
        st.tuples(st.just("decide"), st.integers(0, 2), st.lists(st.integers(0, 60), min_size=1, max_size=60)),
        st.tuples(st.just("fill"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("crash"), st.integers(0, 2)),
        st.tuples(st.just("freeze_and_resume")),
        st.tuples(st.just("wait")),
    ),
    max_size=60,
)


@pytest.mark.parametrize("kind", ["requests", "units"])
def test_no_order_of_decisions_leases_lost_answers_and_crashes_passes_a_budget(kind):
    most = [0]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(moves)
    def run(done):
        fleet = Fleet(Budget(**{kind: 40}))
        for move, *values in done:
            if move == "wait":
                fleet.clock.pass_(9.0)
            else:
                getattr(fleet, move)(*values)
            spent = fleet.exposures if kind == "requests" else len(fleet.units)
            assert spent <= 40
            most[0] = max(most[0], spent)
        fleet.engine.close()

    run()
    assert most[0] > 0  # something was spent, so there was something to pass


def test_leases_of_an_earlier_activation_are_lost():
    fleet = Fleet(Budget(requests=1000))
    fleet.decide(0, [1])
    fleet.fill(0, False)
    before = fleet.engine.live.snapshot.entries["default/ranker"]
    fleet.freeze_and_resume()
    after = fleet.engine.live.snapshot.entries["default/ranker"]
    assert after.activation == before.activation + 1
    served = fleet.exposures
    fleet.decide(0, range(40))
    assert fleet.exposures == served
    fleet.fill(0, False)
    fleet.decide(0, range(40))
    assert fleet.exposures > served


def test_who_was_told_that_nothing_is_left_asks_again_later_and_later():
    fleet = Fleet(Budget(requests=5))
    decider, leases = fleet.clients[0]
    entry = fleet.engine.live.snapshot.entries["default/ranker"]
    decider.decide(entry, b"u", {}, 0.0, bytes(8))
    nothing = service_pb.LeaseExposureResponse(grants=[service_pb.LeaseGrant(exposures=0, activation=entry.activation)])
    now, asked = 0.0, []
    for _ in range(4000):
        now += 0.01
        wanted = leases.wanted(fleet.engine.live.snapshot, now)
        if wanted:
            asked.append(now)
            leases.granted(wanted, nothing, now)
    waits = [b - a for a, b in pairwise(asked)]
    assert len(asked) < 15
    assert waits[0] <= 0.52
    assert max(waits) > 4
