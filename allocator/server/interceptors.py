"""Around every call: parse the request, map errors to statuses, count the answer.

In: a method that takes a message and returns one. Out: a gRPC handler over bytes. Requests are parsed here and not by gRPC, which answers
malformed bytes with UNKNOWN and the text of a Python exception. Interceptors of gRPC itself were dropped: they cost a tenth of a call.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from allocator.errors import AllocatorError, InvalidArgument
from allocator.server.metrics import Metrics
from allocator.wire.status import to_status

log = structlog.get_logger()

Instant = Callable[[bytes], bytes]
Unary = Callable[[Any], Awaitable[Any]]
Streaming = Callable[[Any], AsyncGenerator[bytes, None]]


def instant(metrics: Metrics, name: str, method: Instant) -> grpc.RpcMethodHandler:
    """A handler for a method that waits for nothing, and does its own parsing: one call, and no coroutine besides gRPC's."""
    answered = metrics.rpcs.labels(name, "OK")

    async def handle(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            reply = method(raw)
        except Exception as error:
            return await _abort(context, metrics, name, error)
        answered.count += 1
        return reply

    return grpc.unary_unary_rpc_method_handler(handle)


def unary(metrics: Metrics, name: str, request_type: type[Message], method: Unary) -> grpc.RpcMethodHandler:
    """A handler for a method that answers once."""
    answered = metrics.rpcs.labels(name, "OK")
    parse = request_type.FromString

    async def handle(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            reply = await method(parse(raw))
        except Exception as error:
            return await _abort(context, metrics, name, error)
        answered.inc()
        return reply if isinstance(reply, bytes) else reply.SerializeToString()

    return grpc.unary_unary_rpc_method_handler(handle)


def streaming(metrics: Metrics, name: str, request_type: type[Message], method: Streaming) -> grpc.RpcMethodHandler:
    """A handler for a method that answers many times, with bytes. The next is asked for when the reader has room for it."""
    answered = metrics.rpcs.labels(name, "OK")

    async def handle(raw: bytes, context: grpc.aio.ServicerContext) -> AsyncGenerator[bytes, None]:
        metrics.watchers.inc()
        try:
            async with contextlib.aclosing(method(request_type.FromString(raw))) as replies:
                async for reply in replies:
                    yield reply
        except Exception as error:
            await _abort(context, metrics, name, error)
        finally:
            metrics.watchers.dec()
        answered.inc()

    return grpc.unary_stream_rpc_method_handler(handle)


async def _abort(context: grpc.aio.ServicerContext, metrics: Metrics, name: str, error: Exception) -> bytes:
    if isinstance(error, DecodeError):
        error = InvalidArgument.of_field("request", "got bytes that are no message of this type", reason="MALFORMED_REQUEST")
    if not isinstance(error, AllocatorError):
        log.exception("rpc.crashed", method=name)
        error = AllocatorError("the server made a mistake; its log says more", reason="INTERNAL")
    status = to_status(error)
    metrics.rpcs.labels(name, status.code.name).inc()
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returned")
