"""The stream of snapshots: keys first, then the table, what changes, and how old it is; the same bytes for all who watch."""

from __future__ import annotations

import asyncio
import dataclasses

import grpc
import pytest

from allocator.core.decision_id import client_key, mint, read
from allocator.engine.live import Live
from allocator.errors import InvalidArgument
from allocator.server.watch import Feed
from allocator.v1 import allocator_service_pb2 as service_pb
from tests.conftest import ManualClock, two_arms


def started(running):
    running.engine.commands.apply(two_arms(), actor="ann")
    running.engine.commands.start("ranker", actor="ann")


async def test_keys_come_first_and_ids_made_with_them_are_the_services_own(running):
    started(running)
    stream = running.allocator.WatchSnapshots(service_pb.WatchSnapshotsRequest(keys=2))
    first = await stream.read()
    secret = running.engine.store.secret()
    assert [key.key for key in first.keys.keys] == [client_key(secret, key.number) for key in first.keys.keys]
    numbers = {key.number for key in first.keys.keys}
    assert len(numbers) == 2
    assert 0 not in numbers
    key = first.keys.keys[0]
    text = mint(key.key, bytes(8), 1, 0, 7, 123, 99, b"nonce..!", 1, key.number)
    assert read(secret, text).key == key.number
    with pytest.raises(InvalidArgument, match="authentication"):
        read(b"another secret", text)
    change = (await stream.read()).change
    assert (change.full, change.complete, [entry.experiment for entry in change.entries]) == (True, True, ["default/ranker"])


async def test_who_asks_for_no_key_gets_none_and_nobody_gets_more_than_a_relay_needs(running):
    stream = running.allocator.WatchSnapshots(service_pb.WatchSnapshotsRequest())
    assert (await stream.read()).WhichOneof("event") == "change"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.allocator.WatchSnapshots(service_pb.WatchSnapshotsRequest(keys=1025)).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_change_of_an_outcomeless_experiment_reaches_every_watcher_with_its_age(running):
    streams = [running.allocator.WatchSnapshots(service_pb.WatchSnapshotsRequest()) for _ in range(20)]
    for stream in streams:
        assert (await stream.read()).change.full
    started(running)

    async def seen(stream):
        async with asyncio.timeout(20):
            while True:
                message = await stream.read()
                if any(entry.state == 2 for entry in message.change.entries):
                    return message

    for message in await asyncio.gather(*map(seen, streams)):
        age = message.change.age.ToMilliseconds()
        assert 0 <= age < 10_000
        assert message.elapsed.ToMilliseconds() >= 0


def feed_of(clock, live):
    return Feed(live, clock.monotonic, lambda count: [(1, b"k")] * count)


async def test_age_and_elapsed_are_of_each_message_and_the_rest_is_made_once(monkeypatch):
    clock = ManualClock()
    live = Live(clock)
    live.confirm(clock.monotonic())
    feed = feed_of(clock, live)
    made = []
    message = service_pb.WatchSnapshotsResponse(change=service_pb.SnapshotChange(sequence=5, full=True))
    monkeypatch.setattr("allocator.server.watch.changes", lambda *asked: made.append(asked) or [message])
    found = []
    for wait in (1.5, 2.0):
        stream = feed.watch(service_pb.WatchSnapshotsRequest(keys=1))
        await anext(stream)
        clock.pass_(wait)
        found.append(service_pb.WatchSnapshotsResponse.FromString(await anext(stream)))
        await stream.aclose()
    assert [m.elapsed.ToMilliseconds() for m in found] == [1500, 2000]
    assert [m.change.age.ToMilliseconds() for m in found] == [1500, 3500]
    assert all(m.change.sequence == 5 and m.change.full for m in found)
    assert len(made) == 1
    feed.close()


async def test_a_table_says_of_which_life_of_the_store_it_is_and_comes_whole_when_another_begins(running):
    started(running)
    live, store = running.engine.live, running.engine.store
    stream = running.allocator.WatchSnapshots(service_pb.WatchSnapshotsRequest())
    first = (await stream.read()).change
    assert (first.full, first.epoch) == (True, store.news(0).epoch)

    async def next_change():
        async with asyncio.timeout(20):
            while not (message := await stream.read()).HasField("change"):
                pass
        return message.change

    entry = live.snapshot.entries["default/ranker"]
    live.publish([dataclasses.replace(entry, version=entry.version + 1)])
    change = await next_change()
    assert (change.full, change.epoch) == (False, "")
    live.begin("another")
    change = await next_change()
    assert (change.full, change.epoch, [e.version for e in change.entries]) == (True, "another", [entry.version + 1])


async def test_a_slow_watcher_gets_the_latest_of_each_entry_and_not_all_that_happened(running):
    started(running)
    live = running.engine.live
    feed = Feed(live, running.engine.clock.monotonic, running.engine.issue_keys)
    slow = feed.watch(service_pb.WatchSnapshotsRequest())
    await anext(slow)
    entry = live.snapshot.entries["default/ranker"]
    for version in range(entry.version + 1, entry.version + 1001):
        live.publish([dataclasses.replace(entry, version=version)])
    message = service_pb.WatchSnapshotsResponse.FromString(await anext(slow))
    while not message.HasField("change"):
        message = service_pb.WatchSnapshotsResponse.FromString(await anext(slow))
    assert [e.version for e in message.change.entries] == [entry.version + 1000]
    await slow.aclose()
    feed.close()
