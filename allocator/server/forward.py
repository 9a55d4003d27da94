"""Calls that an edge has its upstream carry out: the same bytes there and back, the same errors.

In: an upstream, and who may call what. Out: gRPC handlers over bytes. The caller's own token goes along, so that the upstream knows whose
call it is: its table decides, and its audit log names the person. Where the upstream asks nobody for a token, the edge checks the call
whole, and writes the token's principal into it.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
from google.protobuf.message import Message

from allocator.errors import Overloaded
from allocator.server.access import Gate
from allocator.server.interceptors import abort
from allocator.server.metrics import Metrics

PASSED_ON = ("authorization", "traceparent")  # of a caller's metadata


class Forward:
    """The way upstream. checked: does the upstream ask for tokens itself?"""

    def __init__(self, upstream: grpc.aio.Channel, metrics: Metrics, checked: Callable[[], bool]) -> None:
        self._upstream = upstream
        self._metrics = metrics
        self._checked = checked

    def handler(
        self,
        path: str,
        request_type: type[Message],
        gate: Gate | None,
        seconds: float,
        *,
        most: int | None = None,
        then: Callable[[bytes], None] | None = None,
    ) -> grpc.RpcMethodHandler:
        """Of one RPC. gate: None where anybody may call. seconds: of patience with callers who have no deadline. most: calls under way;
        what comes beyond is refused. then: is shown each reply."""
        call, name = self._upstream.unary_unary(path), path.rpartition("/")[2]
        metrics, under_way = self._metrics, 0

        async def handle(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
            nonlocal under_way
            under_way += 1
            try:
                if most is not None and under_way > most:
                    metrics.shed.labels(name).inc()
                    raise Overloaded(f"{most} calls wait for the upstream; no more may", retry_after_seconds=0.1, reason="TOO_MANY_REPORTS")
                if gate is not None:
                    raw = await self._admitted(gate, request_type, raw, context)
                metadata = tuple((key, value) for key, value in context.invocation_metadata() or () if key in PASSED_ON)
                reply = await call(raw, timeout=context.time_remaining() or seconds, metadata=metadata)
                if then is not None:
                    then(reply)
            except grpc.aio.AioRpcError as error:
                metrics.rpcs.labels(name, error.code().name).inc()
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
                raise AssertionError("abort returned") from error
            except Exception as error:
                return await abort(context, metrics, name, error)
            finally:
                under_way -= 1
            metrics.rpcs.labels(name, "OK").inc()
            return reply

        return grpc.unary_unary_rpc_method_handler(handle)

    async def _admitted(self, gate: Gate, request_type: type[Message], raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """The request as it may go on. Raises what the gate raises."""
        caller = await gate.admit(context.invocation_metadata())
        if caller is None or self._checked():
            return raw
        request = request_type.FromString(raw)
        gate.permit(caller, request)
        return request.SerializeToString()
