"""A store that was put back from an older backup counts on from lower versions: what is frozen then reaches all who knew it before."""

from __future__ import annotations

import asyncio

import pytest

from allocator.client import AsyncClient, LocalClient, Reason, State
from allocator.core.decision_id import read
from allocator.server.edge import Edge, EdgeConfig
from allocator.stores import sqlite_care
from allocator.stores.sqlite import SqliteStore
from tests.client.conftest import QUICK, Service
from tests.processes import until


class Restored:
    """A server on a file; `go_back` puts an early backup in its place, with the server stopped."""

    def __init__(self, directory) -> None:
        self._path, self._copy = str(directory / "store.db"), str(directory / "copy.db")
        self.service = Service(SqliteStore(self._path))
        self.service.apply()
        sqlite_care.backup(self._path, self._copy)
        for _ in range(4):
            self.service.engine.commands.freeze("ranker", actor="ann", reason="a rehearsal")
            self.service.engine.commands.resume("ranker", actor="ann", reason="a rehearsal")

    def version(self) -> int:
        return self.service.engine.registry.get("ranker").version

    def go_back(self) -> None:
        before = self.version(), self.service.engine.keeper.epoch, self.service.store.secret()
        self.service.stop()
        sqlite_care.restore(self._copy, self._path, replace=True)
        self.service.store = SqliteStore(self._path)
        self.service.start()
        self.service.engine.commands.freeze("ranker", actor="ann", reason="after the restore")
        assert self.version() < before[0]
        assert self.service.engine.keeper.epoch != before[1]
        assert self.service.store.secret() == before[2]


@pytest.fixture
def restored(tmp_path):
    found = Restored(tmp_path)
    yield found
    found.service.close()


def test_a_client_that_knew_the_store_before_obeys_a_freeze_made_after_it_was_restored(restored):
    with LocalClient(restored.service.address, pause=QUICK) as client:
        until(lambda: client.decide("ranker", "u").snapshot_version == restored.version())
        before = client.decide("ranker", "u")
        assert before.reason is Reason.ALLOCATED
        restored.go_back()
        until(lambda: client.decide("ranker", "u").reason is Reason.FROZEN)
        assert {client.decide("ranker", f"u{i}").arm for i in range(200)} == {"old"}
        assert client.state is State.READY
        assert read(restored.service.store.secret(), before.id).key > 0  # ids made before stay good
        restored.service.engine.commands.resume("ranker", actor="ann", reason="looked at it")
        until(lambda: client.decide("ranker", "u").reason is Reason.ALLOCATED)


async def test_an_edge_and_a_client_behind_it_obey_a_freeze_made_after_the_store_was_restored(restored):
    edge = Edge(EdgeConfig(upstream=restored.service.address, listen="127.0.0.1:0", drain_seconds=0, grace_seconds=0, pause=QUICK))
    await edge.start()

    def reason_of(client: LocalClient) -> Reason:
        return client.decide("ranker", "u").reason

    try:
        async with AsyncClient(edge.address, decide_timeout=5) as client:
            with LocalClient(edge.address, pause=QUICK) as behind:
                await asyncio.to_thread(until, lambda: behind.decide("ranker", "u").snapshot_version == restored.version())
                assert reason_of(behind) is Reason.ALLOCATED
                assert (await client.decide("ranker", "u")).reason is Reason.ALLOCATED
                await asyncio.to_thread(restored.go_back)
                await asyncio.to_thread(until, lambda: edge.relay.live.snapshot.entries["default/ranker"].state == "FROZEN")
                assert {(await client.decide("ranker", f"u{i}")).arm for i in range(200)} == {"old"}
                await asyncio.to_thread(until, lambda: reason_of(behind) is Reason.FROZEN)
                assert {behind.decide("ranker", f"u{i}").arm for i in range(200)} == {"old"}
    finally:
        await edge.stop()
