"""An edge: serves decisions on another machine, or in another process of this one, from an upstream's snapshots.

In: an `EdgeConfig`. Out: a server of AllocatorService that listens once it has a table to serve from, and until SIGTERM or SIGINT; then it
drains as any server does. When the upstream is gone decisions go on until the lease of the table ends, then everyone gets the incumbent
(STALE); reports are answered with UNAVAILABLE, since nobody could keep them. Operators' calls are passed on as they are, where that is
asked for.

With tokens (`callers`) an edge lets in whom its upstream would: it asks what a token allows (`server/introspection.py`), decides and
streams by the same table of rights, and passes on what it cannot do itself under the caller's own token (`server/forward.py`). Reports
then go upstream one by one, each in its caller's name. What the edge does for itself (following, its own leases and exposures) it does
with a token of its own, which needs to watch and to report.

The same thing is a worker of `serve --workers` (`server/workers.py`): it shares its port with the others, says so on its standard output
when it is ready, and ends when its standard input does, which is when its parent is gone. The first line there is its token upstream, or
empty: neither the list of processes nor their environment shows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from wsgiref.simple_server import WSGIServer

import grpc
import structlog
import uvloop
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from prometheus_client import CollectorRegistry

from allocator.client.channel import Access, aio_channel, channel
from allocator.client.follower import PAUSE_SECONDS
from allocator.client.local import RECONNECT
from allocator.client.remote import OPTIONS
from allocator.errors import InvalidArgument, Violation
from allocator.ports import Clock, Entropy, SystemClock, SystemEntropy
from allocator.server import access
from allocator.server.config import ACCESS, check_address, check_listener, check_pair, lacking
from allocator.server.forward import Forward
from allocator.server.interceptors import Unary, instant, streaming, unary
from allocator.server.interpreter import favour_decisions
from allocator.server.introspection import ASK_SECONDS, REFRESH_SECONDS, Introspected, check_digests
from allocator.server.main import FLUSH_SECONDS, MAX_MESSAGE, OWN_QUEUE, SERVICES, Generic, bind, grpc_server, keep_warning, serve_metrics
from allocator.server.metrics import Metrics
from allocator.server.relay import CALL_SECONDS, Relay
from allocator.server.servicers import STATUSES, AllocatorServicer
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.wire.status import from_rpc_error

THREADS = 32
OPERATOR_SECONDS = 30.0
LOOK_SECONDS = 1.0
NAMES_OF_STATUSES = {number: name.removeprefix("OUTCOME_STATUS_") for name, number in STATUSES.items()}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """upstream: host:port of a server or an edge; access: what opens its door. listen, metrics: host:port, port 0 for any free one,
    metrics "" for none. operator: pass operators' calls on. callers: `open`, or `tokens` to ask each call for one. tls_cert, tls_key,
    tls_client_ca: PEM files of the listener, "" for none. drain_seconds, grace_seconds, max_concurrent: as a server's. worker: one of
    several on the same port, with a parent at the end of its standard streams.
    """

    upstream: str
    listen: str = "127.0.0.1:50052"
    metrics: str = ""
    access: Access = field(default_factory=Access, repr=False)
    operator: bool = False
    callers: str = "open"
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    drain_seconds: float = 1.0
    grace_seconds: float = 10.0
    insecure: bool = False
    worker: bool = False
    max_concurrent: int = 512
    log_format: str = "pretty"
    pause: tuple[float, float] = PAUSE_SECONDS

    def __post_init__(self) -> None:
        found = [*check_address("listen", self.listen), *(check_address("metrics", self.metrics) if self.metrics else ())]
        found += check_address("upstream", self.upstream)
        for name in ("drain_seconds", "grace_seconds"):
            if not 0 <= getattr(self, name) <= 600:
                found.append(Violation(name.removesuffix("_seconds"), f"got {getattr(self, name)}; seconds from 0 to 600 are allowed"))
        if not 1 <= self.max_concurrent <= 100_000:
            found.append(Violation("max-concurrent", f"got {self.max_concurrent}; a number of calls from 1 to 100000 is allowed"))
        if self.callers not in ACCESS:
            found.append(Violation("access", f"got {self.callers!r}; one of {', '.join(ACCESS)} is allowed"))
        found += check_pair(self.tls_cert, self.tls_key, self.tls_client_ca)
        if not found and not self.insecure:
            found += check_listener(self.listen, encrypted=bool(self.tls_cert), authenticated=self.callers == "tokens")
        if found:
            raise InvalidArgument(violations=found, reason="INVALID_CONFIG")


    @property
    def insecurity(self) -> str:
        """What calls from other machines lack, "" where nothing does or none can come."""
        return lacking(self.listen, encrypted=bool(self.tls_cert), authenticated=self.callers == "tokens")


class Edge:
    """An edge that follows its upstream. `address` and `metrics_address` are the real ones, also where port 0 was asked for."""

    def __init__(self, config: EdgeConfig, *, clock: Clock | None = None, entropy: Entropy | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._entropy = entropy or SystemEntropy()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="rpc")
        self._low = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._web: WSGIServer | None = None
        self._draining = False
        self.address = ""
        self.metrics_address = ""

    async def start(self) -> None:
        """Take the port, wait for the first table, serve. Raises Unavailable when the port is taken. Cancel it to give up waiting."""
        config, loop = self._config, asyncio.get_running_loop()
        self._channel = channel(config.upstream, config.access, (*OPTIONS, *RECONNECT))
        self.relay = Relay(self._channel, self._clock, self._entropy, config.access, loop.call_soon_threadsafe, config.pause)
        registry = CollectorRegistry()
        self.metrics = Metrics(registry, self.relay.live.age)
        self.metrics.insecure.set(bool(config.insecurity))
        options = (("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", MAX_MESSAGE))
        self._upstream = aio_channel(config.upstream, config.access, options)
        self._introspect = self._upstream.unary_unary(
            f"{access.ALLOCATOR}IntrospectTokens",
            request_serializer=service_pb.IntrospectTokensRequest.SerializeToString,
            response_deserializer=service_pb.IntrospectTokensResponse.FromString,
        )
        self.tokens = Introspected(self._ask, self._clock)
        self._servicer = AllocatorServicer(
            self.relay,  # type: ignore[arg-type]
            self.metrics,
            self._threads,
            max_reports=max(1, config.max_concurrent // 2),
        )
        self._grpc = self._build()
        self.address = bind(self._grpc, config.listen, config.tls_cert, config.tls_key, config.tls_client_ca)
        if config.metrics:
            self._web = serve_metrics(config.metrics, registry, lambda: self.relay.ready.is_set() and not self._draining)
            self.metrics_address = "{}:{}".format(*self._web.server_address[:2])
        self.relay.decider.low = self._low.set
        self.relay.start()
        log.info("edge.waiting", upstream=config.upstream)
        self._tasks += [asyncio.create_task(task) for task in (self._look(), self._look_at_tokens())]
        while not self.relay.ready.is_set():
            await loop.run_in_executor(self._threads, self.relay.ready.wait, LOOK_SECONDS)
        favour_decisions()
        await self._grpc.start()
        self._tasks += [asyncio.create_task(task) for task in (self._flush(), self._lease())]
        if config.insecurity:
            self._tasks.append(asyncio.create_task(keep_warning("edge.insecure", self.address, config.insecurity)))
        for name in ("", *(SERVICES if config.operator else SERVICES[:1])):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info(
            "edge.ready",
            address=self.address,
            metrics=self.metrics_address,
            upstream=config.upstream,
            experiments=len(self.relay.live.snapshot.entries),
        )

    async def stop(self) -> None:
        """Drain: say so, let callers notice, finish what is under way, send what is counted."""
        log.info("edge.draining", seconds=self._config.drain_seconds)
        self._draining = True
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._config.drain_seconds)
        self._servicer.feed.close()
        await self._grpc.stop(self._config.grace_seconds)
        for task in self._tasks:
            task.cancel()
        await self._servicer.intake.close()
        if self._web is not None:
            self._web.shutdown()
            self._web.server_close()
        await asyncio.get_running_loop().run_in_executor(self._threads, self.relay.close)
        self._channel.close()
        await self._upstream.close()
        self._threads.shutdown()
        log.info("edge.stopped")

    def _build(self) -> grpc.aio.Server:
        server, metrics, a = grpc_server(self._config.max_concurrent, shared_port=self._config.worker), self.metrics, self._servicer
        checks = self._config.callers == "tokens"
        table = access.Access(self.tokens, self._namespace_of, self._clock) if checks else None
        forward = Forward(self._upstream, metrics, lambda: self.tokens.checked_upstream)

        def gate(path: str) -> access.Gate | None:
            return None if table is None else table.gate(path)

        def call(name: str, request_type: type[Message], method: Unary) -> grpc.RpcMethodHandler:
            return unary(metrics, name, request_type, method, gate(f"{access.ALLOCATOR}{name}"))

        watch = gate(f"{access.ALLOCATOR}WatchSnapshots")
        calls = {
            "Decide": instant(metrics, "Decide", service_pb.DecideRequest, a.decide, gate(f"{access.ALLOCATOR}Decide")),
            "BatchDecide": call("BatchDecide", service_pb.BatchDecideRequest, a.batch_decide),
            "WatchSnapshots": streaming(metrics, "WatchSnapshots", service_pb.WatchSnapshotsRequest, a.watch_snapshots, watch),
            "IntrospectTokens": call("IntrospectTokens", service_pb.IntrospectTokensRequest, self._introspect_tokens),
        }
        if checks:
            report, lease = f"{access.ALLOCATOR}ReportOutcomes", f"{access.ALLOCATOR}LeaseExposure"
            most = max(1, self._config.max_concurrent // 2)
            calls["ReportOutcomes"] = forward.handler(
                report, service_pb.ReportOutcomesRequest, gate(report), CALL_SECONDS, most=most, then=self._count_outcomes
            )
            calls["LeaseExposure"] = forward.handler(lease, service_pb.LeaseExposureRequest, gate(lease), CALL_SECONDS)
        else:
            calls["ReportOutcomes"] = unary(metrics, "ReportOutcomes", service_pb.ReportOutcomesRequest, a.report_outcomes, logs=False)
            calls["LeaseExposure"] = unary(metrics, "LeaseExposure", service_pb.LeaseExposureRequest, a.lease_exposure)
        server.add_registered_method_handlers(SERVICES[0], {method: calls[method] for method in OWN_QUEUE})
        handlers = [grpc.method_handlers_generic_handler(SERVICES[0], calls)]
        if self._config.operator:
            passing = {}
            for method in operator_pb.DESCRIPTOR.services_by_name["OperatorService"].methods:
                path, request_type = f"{access.OPERATOR}{method.name}", getattr(operator_pb, method.input_type.name)
                passing[method.name] = forward.handler(path, request_type, gate(path), OPERATOR_SECONDS)
            handlers.append(grpc.method_handlers_generic_handler(SERVICES[1], passing))
        server.add_generic_rpc_handlers(tuple(handlers))
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, Generic(server))
        return server

    async def _ask(self, digests: Sequence[bytes]) -> service_pb.IntrospectTokensResponse:
        """What the upstream knows of these tokens. Raises AllocatorError."""
        request, own = service_pb.IntrospectTokensRequest(digests=digests), self._config.access.metadata()
        try:
            return await self._introspect(request, timeout=ASK_SECONDS, metadata=own)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def _introspect_tokens(self, request: service_pb.IntrospectTokensRequest) -> service_pb.IntrospectTokensResponse:
        """IntrospectTokens, for edges of this one: never from memory, since their answers hold for a second themselves."""
        check_digests(request.digests)
        reply = await self._ask(request.digests)
        reply.checks_calls = self._config.callers == "tokens"
        return reply

    def _namespace_of(self, uid: str) -> str:
        """Of an experiment that is served; "" for others, whose outcomes are the upstream's to judge."""
        try:
            entry = self.relay.live.snapshot.by_uid.get(bytes.fromhex(uid))
        except ValueError:
            return ""
        return "" if entry is None else entry.experiment.partition("/")[0]

    def _count_outcomes(self, raw: bytes) -> None:
        results = service_pb.ReportOutcomesResponse.FromString(raw).results
        for status, count in Counter(result.status for result in results).items():
            self.metrics.outcomes.labels(NAMES_OF_STATUSES.get(status, "REFUSED")).inc(count)

    async def _look_at_tokens(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.tokens.refresh()
            except Exception:
                log.exception("tokens.crashed")

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.relay.follower.look()

    async def _lease(self) -> None:
        """Keep the leases of budgets filled: soon when one runs low, and at intervals."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._low.wait(), FLUSH_SECONDS)
            self._low.clear()
            try:
                await loop.run_in_executor(self._threads, self.relay.fill_leases)
            except Exception:
                log.exception("budget.crashed")

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self._servicer.intake.flush()
                await loop.run_in_executor(self._threads, self.relay.send)
            except Exception:
                log.exception("exposures.crashed")


async def _serve(config: EdgeConfig) -> None:
    edge, stopping, loop = Edge(config), asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if config.worker:
        loop.add_reader(sys.stdin.fileno(), _at_its_end(loop, stopping.set))
    starting, stop = asyncio.create_task(edge.start()), asyncio.create_task(stopping.wait())
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
    else:
        await starting
        if config.worker:
            sys.stdout.write("ready\n")
            sys.stdout.flush()
        await stop
    await edge.stop()


def _at_its_end(loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> Callable[[], None]:
    def read() -> None:
        if not sys.stdin.buffer.raw.read(64):  # type: ignore[attr-defined]
            loop.remove_reader(sys.stdin.fileno())
            then()

    return read


def serve(config: EdgeConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises AllocatorError when the edge cannot start."""
    if config.worker:
        config = replace(config, access=Access(token=sys.stdin.buffer.raw.readline().decode().strip()))  # type: ignore[attr-defined]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config))
