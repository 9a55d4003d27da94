"""The reflection service, which asks for a token as everything else does when access is controlled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from allocator.errors import AllocatorError
from allocator.server.access import Gate
from allocator.wire.status import to_status

HEAR_SECONDS = 1.0


class Reflection(ReflectionServicer):
    """Says what the services look like, to those whom the gate lets in."""

    def __init__(self, names: Sequence[str], gate: Gate | None) -> None:
        super().__init__(names)
        self._gate = gate

    async def ServerReflectionInfo(self, request_iterator: AsyncIterable[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        """ServerReflectionInfo."""
        try:
            if self._gate is not None:
                await self._gate.admit(context.invocation_metadata())
        except AllocatorError as error:
            await _heard_out(request_iterator)
            status = to_status(error)
            await context.abort(status.code, status.details, status.trailing_metadata)
        async for reply in super().ServerReflectionInfo(request_iterator, context):
            yield reply


async def _heard_out(requests: AsyncIterable[Any]) -> None:
    """Wait until the caller has said all, a second at most: a refusal that overtakes it may reach him as a reset stream, INTERNAL."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HEAR_SECONDS):
            async for _ in requests:
                pass


def add(server: Any, names: Sequence[str], gate: Gate | None) -> None:
    """Have the server answer reflection."""
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(Reflection(names, gate), server)
