"""A real server on a free loopback port, in this process, and real channels to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest_asyncio

from allocator.client import AsyncClient
from allocator.server.config import Config
from allocator.server.main import Server
from allocator.v1 import allocator_service_pb2_grpc, operator_service_pb2_grpc


@dataclass
class Running:
    """A server that listens, and ways to talk to it."""

    server: Server
    channel: grpc.aio.Channel
    client: AsyncClient

    def __post_init__(self) -> None:
        self.allocator = allocator_service_pb2_grpc.AllocatorServiceStub(self.channel)
        self.operator = operator_service_pb2_grpc.OperatorServiceStub(self.channel)
        self.engine = self.server.engine


@pytest_asyncio.fixture
async def running() -> AsyncIterator[Running]:
    server = Server(Config(listen="127.0.0.1:0", metrics="127.0.0.1:0", store="memory:", drain_seconds=0, refresh_seconds=0.1))
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel, AsyncClient(server.address, decide_timeout=5) as client:
        yield Running(server, channel, client)
    await server.stop()
