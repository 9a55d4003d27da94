"""The in-process client against a real server: the same arm, exact counts, every state, and never an exception."""

from __future__ import annotations

import asyncio
import os
import queue
import re
import threading
import time
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from allocator.client import AsyncLocalClient, LocalClient, Reason, State, local
from allocator.core.decision import choose
from allocator.core.decision_id import read
from allocator.core.experiment import Assignment, Exposure, Segment
from allocator.errors import InvalidArgument
from tests.client.conftest import QUICK
from tests.conftest import ManualClock, two_arms
from tests.processes import free_port, until


class Cut(grpc.RpcError):
    """The connection broke before the answer came."""

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "connection reset"

    def trailing_metadata(self):
        return ()


def entry_at(service):
    return service.engine.live.snapshot.entries["default/ranker"]


def both_decide(service, make, units):
    """Arms that the server's table and a client give to as many units, under rules of every kind."""
    service.apply(
        segments=(Segment("mobile", {"device": ("ios", "android")}),),
        target={"country": ("fr", "de")},
        pins={"unit-8": "new"},
        opt_out="no",
    )
    client = make()
    until(lambda: client.decide("ranker", "unit-8", {"country": "fr"}).reason is Reason.PINNED)
    entry = entry_at(service)
    asked = [{"country": "fr"}, {"country": "de", "device": "ios"}, {"country": "us"}, {"country": "fr", "no": "true"}]
    different = 0
    arms = set()
    for number in range(units):
        attributes = asked[number % len(asked)]
        decision = client.decide("ranker", f"unit-{number}", attributes)
        choice = choose(entry, f"unit-{number}".encode(), attributes, b"")
        arms.add((decision.arm, decision.reason, decision.segment))
        different += (decision.arm, decision.reason, decision.propensity) != (entry.arms[choice.arm], choice.reason, choice.slots / 65_536)
        different += client.arm("ranker", f"unit-{number}", attributes) != decision.arm
        if decision.snapshot_version != entry.version:
            entry = entry_at(service)
    assert {reason for _, reason, _ in arms} >= {Reason.ALLOCATED, Reason.PINNED, Reason.OPTED_OUT, Reason.NOT_TARGETED}
    assert {segment for _, _, segment in arms} == {"mobile", "other"}
    return different


def test_the_client_and_the_server_give_every_unit_the_same_arm(service, make):
    assert both_decide(service, make, 100_000) == 0


@pytest.mark.slow
def test_the_client_and_the_server_give_a_million_units_the_same_arm(service, make):
    assert both_decide(service, make, 1_000_000) == 0


def test_ids_are_the_services_own_and_outcomes_and_exposures_count_once(service, make):
    service.apply()
    client = make()
    decisions = [client.decide("ranker", f"u{i}") for i in range(500)]
    assert read(service.store.secret(), decisions[0].id).key != 0
    for decision in decisions:
        client.report(decision.id, reward=1.0, metrics={"error": 0.0})
        client.report(decision.id, reward=1.0)
    assert client.flush(30)
    found = client.statistics()
    assert (found.sent, found.accepted, found.duplicate, found.pending, found.dropped) == (1000, 500, 500, 0, 0)
    assert found.reasons == {"ALREADY_COUNTED": 500}
    assert service.exposures() == 500
    assert found.pending_exposures == found.lost_exposures == 0


def test_a_report_that_the_server_counted_but_whose_answer_was_lost_counts_once(service, make):
    service.apply()
    client = make()
    send = client._report
    lost = iter([True, True])

    def losing(request, **more):
        reply = send(request, **more)
        if next(lost, False):
            raise Cut
        return reply

    client._report = losing
    for i in range(100):
        client.report(client.decide("ranker", f"u{i}").id, reward=1.0)
    assert client.flush(30)
    assert service.exposures() == 100
    found = client.statistics()
    assert found.duplicate >= 1  # the third answer says that they had been counted
    assert found.accepted + found.duplicate == 100
    record = service.engine.registry.get("ranker")
    assert sum(cell.count for cell in service.store.cells(record.uid) if cell.stream == "_reward") == 100


def test_a_report_that_failed_is_tried_again_after_its_pause_and_not_before(service, make, monkeypatch):
    monkeypatch.setattr(local.random, "uniform", lambda least, most: most)
    service.apply()
    clock = ManualClock(time.time())
    client = make(clock=clock)
    passes, attempts = [], []
    look, report = client._follower.look, client._report

    def failing(request, **more):
        attempts.append(clock.monotonic())
        raise Cut

    client._follower.look = lambda: passes.append(clock.monotonic()) or look()
    client._report = failing
    client.report(client.decide("ranker", "u").id, reward=1.0)
    until(lambda: attempts, "the first attempt")
    for pause in (0.4, 0.8, 1.6):
        tried = len(attempts)
        for seconds in (0.0, pause - 0.01):
            clock.pass_(seconds)
            seen = len(passes)
            until(lambda seen=seen: len(passes) > seen + 3, "the sender looks again and again")
            assert len(attempts) == tried, f"{pause} s are not over"
        clock.pass_(0.02)
        until(lambda tried=tried: len(attempts) == tried + 1, "the next attempt")
    seen = len(passes)
    until(lambda: len(passes) > seen, "the last attempt is over, and the next one's time is set")
    client._report = report
    clock.pass_(3.3)
    until(lambda: client.statistics().sent == 1, "it gets through")


def test_many_threads_decide_at_once_and_every_decision_is_counted(service, make):
    service.apply(assignment=Assignment.PER_REQUEST)
    client = make()
    ids: list[set[str]] = [set() for _ in range(8)]

    def work(mine: set[str]) -> None:
        for i in range(2000):
            mine.add(client.decide("ranker", f"u{i % 500}").id)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set.union(*ids)) == 16_000
    assert client.flush(30)
    assert service.exposures() == 16_000


def test_before_the_first_snapshot_the_fallback_serves():
    with LocalClient(f"127.0.0.1:{free_port()}", pause=QUICK) as client:
        assert client.state is State.CONNECTING
        assert not client.wait_ready(0)
        decision = client.decide("ranker", "u", fallback="old")
        assert (decision.arm, decision.reason, decision.id, decision.propensity) == ("old", Reason.UNKNOWN_EXPERIMENT, "", 1.0)
        assert client.decide("ranker", "u").arm == ""
        assert client.arm("ranker", "u", fallback="old") == "old"
        client.report(decision.id, reward=1.0)  # of no decision: nothing to send
        assert client.statistics().pending == 0


def test_ready_then_stale_then_the_incumbent_and_ready_again(service, make):
    service.apply()
    clock, states = ManualClock(), queue.Queue()
    client = make(clock=clock, on_state=states.put)
    assert states.get(timeout=30) is State.READY
    new = next(unit for unit in map(str, range(100)) if client.decide("ranker", unit).arm == "new")
    service.stop()
    until(lambda: client._follower._call is None)
    clock.pass_(14)
    assert client.state is State.READY
    assert client.decide("ranker", new).arm == "new"
    clock.pass_(2)
    assert client.state is State.STALE
    decision = client.decide("ranker", new)
    assert (decision.arm, decision.reason, decision.propensity) == ("old", Reason.STALE, 1.0)
    assert client.arm("ranker", new) == "old"
    assert states.get(timeout=30) is State.STALE
    service.start()
    assert states.get(timeout=60) is State.READY
    assert client.decide("ranker", new).arm == "new"


def test_what_was_decided_and_reported_while_the_server_was_away_is_counted_when_it_is_back(service, make):
    service.apply()
    client = make()
    service.stop()
    for i in range(300):
        client.report(client.decide("ranker", f"u{i}").id, reward=1.0)
    assert not client.flush(0.3)
    assert client.statistics().pending == 300
    service.start()
    assert client.flush(60)
    assert client.statistics().accepted == 300
    assert service.exposures() == 300


def test_a_stream_that_is_silent_for_several_heartbeats_is_opened_anew(service, make):
    service.apply()
    clock = ManualClock()
    client = make(clock=clock)
    before = client.statistics().streams

    def opened() -> bool:
        clock.pass_(6)  # no heartbeat comes as fast as that
        return client.statistics().streams > before

    until(opened)
    until(lambda: client.state is State.READY)


def test_a_freeze_reaches_the_client(service, make):
    service.apply()
    client = make()
    service.engine.commands.freeze("ranker", actor="ann", reason="a test")
    until(lambda: client.decide("ranker", "u").reason is Reason.FROZEN)
    assert all(client.decide("ranker", f"u{i}").arm == "old" for i in range(100))


def test_a_deleted_name_is_unknown_and_another_namespace_is_not_followed(service, make):
    service.apply()
    client = make(namespaces=("elsewhere",))
    assert client.state is State.READY
    assert client.decide("ranker", "u", fallback="old").reason is Reason.UNKNOWN_EXPERIMENT


def test_clients_together_keep_a_strict_cap_without_hearing_of_each_other(service, make):
    service.apply(assignment=Assignment.PER_REQUEST, exposure=Exposure(total=0.3, per_candidate=0.3, strict=True))
    clients = [make(burst=3) for _ in range(6)]
    requests = served = 0
    for i in range(6000):
        client = clients[(i * i) % 7 % 6]  # some are asked more than others
        served += client.decide("ranker", f"u{i}").arm == "new"
        requests += 1
        assert served <= 0.3 * requests
    assert served > 0.2 * requests


def test_decide_never_raises_whatever_it_is_given(service, make):
    service.apply()
    client = make()
    anything = st.one_of(
        st.none(), st.text(max_size=400), st.binary(max_size=9), st.integers(), st.floats(), st.lists(st.integers(), max_size=2),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers()), st.one_of(st.text(max_size=4), st.none(), st.floats()), max_size=3),
        st.just("ranker"), st.just(object()),
    )  # fmt: skip

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(anything, anything, anything, anything, anything, anything)
    def garbage(experiment, unit, attributes, fallback, reward, metrics):
        for name in (experiment, "ranker"):
            decision = client.decide(name, unit, attributes, fallback)
            assert decision.reason in Reason
            assert isinstance(client.arm(name, unit, attributes, fallback), str) or fallback is not None
        client.report(unit, reward=reward, metrics=metrics)
        client.report(decision.id, reward=reward, metrics=metrics)

    garbage()
    assert client.flush(60)
    good = client.decide("ranker", "after all that")
    client.report(good.id, reward=1.0)
    assert client.flush(60)
    assert client.statistics().accepted >= 1


@pytest.mark.parametrize("unit", ["", "x" * 257, None, 7])
def test_a_bad_unit_gets_the_incumbent_with_a_reason(service, make, unit):
    service.apply()
    decision = make().decide("ranker", unit, fallback="mine")
    assert (decision.arm, decision.reason, decision.id) == ("old", Reason.INVALID_REQUEST, "")


def test_one_outcome_outside_its_contract_does_not_hold_up_the_others(service, make):
    service.apply()
    client = make()
    for i in range(50):
        client.report(client.decide("ranker", f"u{i}").id, reward=1.0 if i % 10 else 99.0)
    client.report(client.decide("ranker", "nan").id, reward=float("nan"))
    assert client.flush(30)
    found = client.statistics()
    assert (found.accepted, found.refused, found.dropped, found.pending) == (45, 5, 1, 0)
    assert service.exposures() == 51


def test_close_sends_what_is_held_and_decisions_go_on_from_the_last_table(service, make):
    service.apply()
    client = make()
    client.report(client.decide("ranker", "u").id, reward=1.0)
    client.close()
    client.close()
    assert client.state is State.CLOSED
    assert client.statistics().accepted == 1
    assert service.exposures() == 1
    decision = client.decide("ranker", "u")
    assert decision.reason is Reason.ALLOCATED
    client.report(decision.id, reward=1.0)
    assert client.statistics().dropped == 1
    assert client.flush(1)


def test_an_event_loop_uses_it_without_waiting(service):
    service.apply()

    async def ask() -> None:
        async with AsyncLocalClient(service.address, pause=QUICK) as client:
            assert await client.ready(30)
            decision = client.decide("ranker", "u")
            client.report(decision.id, reward=1.0)
            assert await client.flush(30)
            assert client.statistics().accepted == 1
            assert client.state is State.READY
        assert client.state is State.CLOSED

    asyncio.run(ask())
    assert service.exposures() == 1


def test_a_forked_child_serves_the_incumbent_and_sends_nothing(service, make):
    service.apply()
    client = make()
    new = next(unit for unit in map(str, range(100)) if client.decide("ranker", unit).arm == "new")
    child = os.fork()
    if child == 0:
        decision = client.decide("ranker", new)
        client.report(decision.id, reward=1.0)
        os._exit(0 if (decision.arm, decision.reason, client.state) == ("old", Reason.STALE, State.CLOSED) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.decide("ranker", new).arm == "new"


@pytest.mark.parametrize("bad", [{"address": ""}, {"capacity": 0}, {"burst": -1}, {"pause": (2, 1)}, {"pause": (0, float("inf"))}])
def test_settings_are_checked_when_a_client_is_made(bad):
    with pytest.raises(InvalidArgument):
        LocalClient(**{"address": "127.0.0.1:1", **bad})


def test_another_server_brings_another_key_and_nothing_counted_is_lost(service, make):
    service.apply()
    client = make()
    first = client.decide("ranker", "u")
    streams = client.statistics().streams
    service.stop()
    service.start()
    until(lambda: client.statistics().streams > streams and client._follower._call is not None)
    until(lambda: read(service.store.secret(), client.decide("ranker", "u").id).key != read(service.store.secret(), first.id).key)
    client.report(client.decide("ranker", "u").id, reward=1.0)
    client.report(first.id, reward=0.0)
    assert client.flush(30)
    assert client.statistics().accepted == 2
    record = service.engine.registry.get("ranker")
    units = sum(cell.count for cell in service.store.cells(record.uid) if cell.stream.startswith("_units"))
    assert units == 1  # the unit was met before the key changed


def test_a_server_that_distrusts_its_table_makes_its_clients_serve_the_incumbent(service, make):
    service.apply()
    client = make()
    new = next(unit for unit in map(str, range(100)) if client.decide("ranker", unit).arm == "new")
    service.engine.planner.stop()
    service.engine.live.distrust()
    until(lambda: client.state is State.STALE)
    assert (client.decide("ranker", new).arm, client.decide("ranker", new).reason) == ("old", Reason.STALE)


def test_the_example_of_the_readme_runs_as_written(service):
    service.engine.commands.apply(two_arms(name="minimal"), actor="ann")
    service.engine.commands.start("minimal", actor="ann")
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), flags=re.DOTALL)
    (code,) = [block for block in blocks if "LocalClient" in block]
    found: dict = {}
    exec(code.replace("127.0.0.1:50051", service.address), found)
    assert found["decision"].reason is Reason.ALLOCATED
    assert found["client"].statistics().accepted == 1
