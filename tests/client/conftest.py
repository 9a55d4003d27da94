"""Servers that stop and come back on the same port, in a thread of their own, and in-process clients of them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from allocator.client import LocalClient
from allocator.server.config import Config
from allocator.server.main import Server
from allocator.stores.memory import MemoryStore
from tests.conftest import SeededEntropy, two_arms
from tests.processes import free_port

QUICK = (0.01, 0.05)  # pauses before a lost stream is opened anew, so that tests need not wait


class Immortal(MemoryStore):
    """A memory store that outlives its server."""

    def close(self) -> None:
        pass


class Service:
    """A server that can go and come back."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.store = store or Immortal(SeededEntropy(9))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.server: Server | None = None
        self.start()

    @property
    def engine(self):
        return self.server.engine

    def start(self) -> None:
        config = Config(listen=self.address, metrics="", store="memory:", drain_seconds=0, grace_seconds=0, refresh_seconds=0.1)
        self.server = Server(config, store=self.store)
        self._run(self.server.start())

    def stop(self) -> None:
        if self.server is not None:
            self._run(self.server.stop())
            self.server = None

    def apply(self, **changes: object) -> None:
        """Apply `ranker` with these changes, and start it."""
        self.engine.commands.apply(two_arms(**changes), actor="ann")
        self.engine.commands.start("ranker", actor="ann")

    def exposures(self) -> int:
        """Decisions that the store counted."""
        uid = self.engine.registry.get("ranker").uid
        cells = [*self.store.cells(uid), *self.store.settled(uid)]
        return sum(cell.count for cell in cells if cell.stream == "_exposures")

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


@pytest.fixture
def service():
    service = Service()
    yield service
    service.close()


@pytest.fixture
def make(service):
    """Makes clients of the service, and closes them."""
    made = []

    def client(**settings: object) -> LocalClient:
        made.append(LocalClient(service.address, **{"pause": QUICK, **settings}))
        assert made[-1].wait_ready(30)
        return made[-1]

    yield client
    for each in made:
        each.close(0.1)
