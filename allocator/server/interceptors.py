"""Around every call: check who calls, parse the request, map errors to statuses, count the answer.

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
from allocator.server import tracing
from allocator.server.access import Gate, Unasked
from allocator.server.metrics import Metrics
from allocator.wire.status import to_status

log = structlog.get_logger()

Instant = Callable[[bytes], bytes]
Unary = Callable[[Any], Awaitable[Any]]
Streaming = Callable[[Any], AsyncGenerator[bytes, None]]


def instant(
    metrics: Metrics, name: str, request_type: type[Message], method: Instant, gate: Gate | None = None
) -> grpc.RpcMethodHandler:
    """A handler for a method that waits for nothing, and does its own parsing: one call, and no coroutine besides gRPC's."""
    answered = metrics.rpcs.labels(name, "OK")

    async def handle(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            reply = method(raw)
        except Exception as error:
            return await abort(context, metrics, name, error)
        answered.count += 1
        return reply

    async def guarded(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            try:
                caller = gate.enter(context.invocation_metadata())
            except Unasked:  # at an edge alone; `admit` at once would cost each decision a coroutine
                caller = await gate.admit(context.invocation_metadata())
            if not caller.everywhere:
                gate.permit(caller, request_type.FromString(raw))
            reply = method(raw)
        except Exception as error:
            return await abort(context, metrics, name, error)
        answered.count += 1
        return reply

    return grpc.unary_unary_rpc_method_handler(handle if gate is None else guarded)


def unary(
    metrics: Metrics, name: str, request_type: type[Message], method: Unary, gate: Gate | None = None, *, logs: bool = True
) -> grpc.RpcMethodHandler:
    """A handler for a method that answers once. gate: the check of who calls; None: anybody may. logs: may it log anything?"""
    answered = metrics.rpcs.labels(name, "OK")
    parse = request_type.FromString

    async def handle(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if logs:
            tracing.bind(context.invocation_metadata())
        try:
            if gate is None:
                reply = await method(parse(raw))
            else:
                caller = await gate.admit(context.invocation_metadata())
                request = parse(raw)
                gate.permit(caller, request)
                reply = await method(request)
        except Exception as error:
            return await abort(context, metrics, name, error)
        answered.count += 1
        return reply if isinstance(reply, bytes) else reply.SerializeToString()

    return grpc.unary_unary_rpc_method_handler(handle)


def streaming(
    metrics: Metrics, name: str, request_type: type[Message], method: Streaming, gate: Gate | None = None
) -> grpc.RpcMethodHandler:
    """A handler for a method that answers many times, with bytes, as long as the caller's token is good.

    The next is asked for when the reader has room for it.
    """
    answered = metrics.rpcs.labels(name, "OK")

    async def handle(raw: bytes, context: grpc.aio.ServicerContext) -> AsyncGenerator[bytes, None]:
        metrics.watchers.inc()
        try:
            caller = None if gate is None else await gate.admit(context.invocation_metadata())
            request = request_type.FromString(raw)
            if gate is not None:
                gate.permit(caller, request)
            async with contextlib.aclosing(method(request)) as replies:
                async for reply in replies:
                    if gate is not None:
                        await gate.still(caller)
                    yield reply
        except Exception as error:
            await abort(context, metrics, name, error)
        finally:
            metrics.watchers.dec()
        answered.inc()

    return grpc.unary_stream_rpc_method_handler(handle)


async def abort(context: grpc.aio.ServicerContext, metrics: Metrics, name: str, error: Exception) -> bytes:
    """End the call with the status of an error: a crash tells its caller nothing."""
    if isinstance(error, DecodeError):
        error = InvalidArgument.of_field("request", "got bytes that are no message of this type", reason="MALFORMED_REQUEST")
    if not isinstance(error, AllocatorError):
        tracing.bind(context.invocation_metadata())
        log.exception("rpc.crashed", method=name)
        error = AllocatorError("the server made a mistake; its log says more", reason="INTERNAL")
    status = to_status(error)
    metrics.rpcs.labels(name, status.code.name).inc()
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returned")
