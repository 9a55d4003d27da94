"""The client, over a real channel: answers, errors, deadlines, and what it does without a server."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from allocator.client import AsyncClient, Client, Reason
from allocator.errors import DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from allocator.server.config import Config
from allocator.server.main import Server
from tests.conftest import two_arms
from tests.processes import free_address


@pytest.fixture(scope="module")
def server():
    """A server in a thread of its own, so that the synchronous client has somebody to wait for."""
    loop = asyncio.new_event_loop()
    running = Server(Config(listen="127.0.0.1:0", metrics="", store="memory:", drain_seconds=0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(running.start(), loop).result(60)
    running.engine.commands.apply(two_arms(), actor="ann")
    running.engine.commands.start("ranker", actor="ann")
    yield running
    asyncio.run_coroutine_threadsafe(running.stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture
def client(server):
    with Client(server.address, decide_timeout=5) as client:
        yield client


def test_a_decision_and_its_outcome(client):
    decision = client.decide("ranker", "u1", {"country": "fr", "beta": True, "age": 7})
    assert decision.arm in ("old", "new")
    assert decision.reason is Reason.ALLOCATED
    assert (decision.propensity * 65536).is_integer()
    assert decision.snapshot_version >= 1
    assert decision.model_uri in ("models:/ranker/1", "models:/ranker/2")
    assert client.report(decision.id, reward=1.0, metrics={"error": 0.0}).status == "ACCEPTED"
    assert client.report(decision.id, reward=1.0).status == "DUPLICATE"


def test_the_asynchronous_client_answers_alike(server):
    async def ask() -> None:
        async with AsyncClient(server.address, decide_timeout=5) as client:
            with Client(server.address, decide_timeout=5) as other:
                for unit in ("a", "b", "c"):
                    mine, theirs = await client.decide("ranker", unit), await asyncio.to_thread(other.decide, "ranker", unit)
                    if mine.snapshot_version != theirs.snapshot_version:  # a new plan came in between
                        mine = await client.decide("ranker", unit)
                    assert (mine.arm, mine.propensity) == (theirs.arm, theirs.propensity)
            assert (await client.report(mine.id, reward=0.0)).status == "ACCEPTED"

    asyncio.run(ask())


def test_the_client_raises_what_the_server_did(client):
    with pytest.raises(NotFound) as caught:
        client.decide("nobody", "u")
    assert caught.value.reason == "UNKNOWN_EXPERIMENT"
    assert caught.value.metadata["experiment"] == "nobody"
    with pytest.raises(InvalidArgument) as refused:
        client.decide("ranker", "x" * 257)
    assert refused.value.violations[0].field == "unit"
    decision = client.decide("ranker", "u")
    with pytest.raises(InvalidArgument) as refused:
        client.report(decision.id, reward=float("nan"))
    assert refused.value.violations[0].field == "outcomes[0].reward"


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"unit": 7}, "unit"),
        ({"unit": b"u"}, "unit"),
        ({"unit": "\ud800"}, "unit"),
        ({"experiment": None}, "experiment"),
        ({"attributes": {"a": [1]}}, "attributes[a]"),
        ({"attributes": {"a": "\udfff"}}, "attributes[a]"),
        ({"attributes": {"\udfff": "a"}}, "attributes"),
    ],
)
def test_values_of_the_wrong_type_are_refused_by_name_before_any_call(client, bad, field):
    with pytest.raises(InvalidArgument) as refused:
        client.decide(**{"experiment": "ranker", "unit": "u", **bad})
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"decision_id": "\ud800"}, "outcomes[0].decision_id"),
        ({"decision_id": 7}, "outcomes[0].decision_id"),
        ({"reward": "much"}, "outcomes[0].reward"),
        ({"metrics": {7: 1.0}}, "outcomes[0].metrics"),
        ({"metrics": {"error": None}}, "outcomes[0].metrics[error]"),
    ],
)
def test_reports_of_the_wrong_type_are_refused_by_name_before_any_call(client, bad, field):
    with pytest.raises(InvalidArgument) as refused:
        client.report(**{"decision_id": "d", **bad})
    assert [violation.field for violation in refused.value.violations] == [field]


def test_without_a_server_the_named_fallback_or_the_last_incumbent_serves():
    with Client(free_address()) as client:
        decision = client.decide("ranker", "u", fallback="old")
        assert (decision.arm, decision.reason, decision.propensity, decision.id) == ("old", Reason.STALE, 1.0, "")
        assert client.report(decision.id, reward=1.0).status == "IGNORED"
        with pytest.raises((Unavailable, DeadlineExceeded)):
            client.decide("ranker", "u")
        with pytest.raises((Unavailable, DeadlineExceeded)):
            client.report("A" * 68, reward=1.0)


def test_a_client_that_lost_its_server_serves_the_incumbent_it_knew():
    async def lose() -> None:
        server = Server(Config(listen="127.0.0.1:0", metrics="", store="memory:", drain_seconds=0, grace_seconds=0))
        await server.start()
        server.engine.commands.apply(two_arms(), actor="ann")
        server.engine.commands.start("ranker", actor="ann")
        async with AsyncClient(server.address, decide_timeout=5) as client:
            assert (await client.decide("ranker", "u")).id
            await server.stop()
            decision = await client.decide("ranker", "u")
            assert (decision.arm, decision.reason) == ("old", Reason.STALE)

    asyncio.run(lose())


def test_a_silent_server_costs_no_more_than_the_deadline():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with Client(address, decide_timeout=0.05) as client:
            decision = client.decide("ranker", "u", fallback="old")  # would wait for ever without a deadline
            assert decision.reason is Reason.STALE


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_deadline_is_a_positive_number(timeout):
    with pytest.raises(InvalidArgument):
        Client("127.0.0.1:1", decide_timeout=timeout)


def test_many_outcomes_go_in_one_call(client):
    decisions = [client.decide("ranker", f"many-{i}") for i in range(50)]
    reports = client.report_many([(d.id, 1.0, {"error": 0.0}) for d in decisions])
    assert [r.status for r in reports] == ["ACCEPTED"] * 50
