"""Builds and joins everything: the only file that picks a store, a clock, a registry of metrics.

In: a `Config`. Out: a server that serves until SIGTERM or SIGINT, then drains: health says "not serving", load balancers get time to
notice, calls under way end, exposures are stored, the store is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import grpc
import structlog
import uvloop
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION_NAME
from prometheus_client import CollectorRegistry, make_wsgi_app

from allocator.core import best_arm, confidence, evidence_labels, evidence_rates
from allocator.engine.engine import DAMAGED, Engine
from allocator.engine.tokens import Tokens
from allocator.errors import AllocatorError, Overloaded, Refused, Unavailable
from allocator.ports import Clock, Entropy, Store, SystemClock, SystemEntropy
from allocator.server import introspection, reflection
from allocator.server.access import REFLECTION, Access, Gate
from allocator.server.checkpoints import Checkpoints
from allocator.server.config import Config, is_loopback
from allocator.server.interceptors import Unary, instant, streaming, unary
from allocator.server.interpreter import favour_decisions
from allocator.server.metrics import Metrics
from allocator.server.servicers import AllocatorServicer, OperatorServicer
from allocator.server.tls import Certificates
from allocator.stores.keepsake import DiskKeepsake
from allocator.stores.memory import MemoryStore
from allocator.stores.sqlite import SqliteStore
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.wire import spec

if TYPE_CHECKING:  # it brings pyarrow along, which a server without a log need not have
    from allocator.server.decision_log import DecisionLog

SERVICES = ("allocator.v1.AllocatorService", "allocator.v1.OperatorService")
THREADS = 32
FLUSH_SECONDS = 0.25
FIRST_EXPERIMENTS = 16  # planned before the server is ready; the others' turn comes at once, while it serves
RETRY_SECONDS = 1.0  # after the store did not take something
CHECKPOINT_SECONDS = 60.0
INSECURE_SECONDS = 60.0
TOKENS_SECONDS = 0.5  # between two looks at the tokens: with a stream's heartbeat, a revoked one ends within 2 s everywhere
MAX_MESSAGE = 4 << 20

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_concurrent_streams", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
OWN_QUEUE = ("Decide", "ReportOutcomes")  # methods; the others share one

log = structlog.get_logger()


class Server:
    """A server that is listening. `address` and `metrics_address` are the real ones, also where port 0 was asked for."""

    def __init__(self, config: Config, *, clock: Clock | None = None, entropy: Entropy | None = None, store: Store | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._entropy = entropy or SystemEntropy()
        self._given_store = store
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="rpc")
        self._web: WSGIServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._low = asyncio.Event()
        self._log: DecisionLog | None = None
        self._draining = False
        self.address = ""
        self.metrics_address = ""

    async def start(self) -> None:
        """Open the store, load the specs, plan, listen. Raises Unavailable or InvalidArgument with a sentence that says why not."""
        config = self._config
        store = self._given_store or open_store(config.store, self._entropy, self._clock)  # first: a second server on a file ends at once
        keepsake = None
        try:
            keepsake = DiskKeepsake(config.kept_in) if config.kept_in else None
            best_arm.warm_up()
            evidence_rates.warm_up()
            evidence_labels.warm_up()
            confidence.warm_up()
            registry = CollectorRegistry()
            self.tokens = Tokens(store, self._clock, self._entropy)
            refresh_tokens(self.tokens)
            self._checkpoints = Checkpoints(store, config.audit_checkpoint, self._clock, lambda: metrics.audit_broken.inc())
            self.engine = Engine(
                store,
                self._clock,
                self._entropy,
                config.refresh_seconds,
                lambda planned: metrics.plan_duration.observe(planned.duration_seconds),
                keepsake=keepsake,
                holder=f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}",
            )
            self.engine.keeper.items = self.tokens.remembered
            metrics = self.metrics = Metrics(registry, self.engine.live.age)
            metrics.insecure.set(bool(config.insecurity))
            metrics.watch_store(
                plans=self.engine.term.in_force,
                lost=lambda: bool(self.engine.keeper.lost),
                held=lambda: len(self.engine.registry.held),
                diverged=lambda: self.engine.registry.divergences,
                crashed=lambda: self.engine.planner.crashes,
            )
            metrics.watch_experiments(lambda: self.engine.live.snapshot, self.engine.planner.last)
            self.engine.commands.identified = config.access == "tokens"
            self.engine.commands.least_approvals = config.least_approvals
            self.engine.commands.broken_glass = metrics.break_glass.inc
            self.engine.start(threads=False, most=FIRST_EXPERIMENTS)
            favour_decisions()
            specs_wait = not load_specs(self.engine, config.specs)
            self._log = open_decision_log(config, self.engine, metrics)
            self._grpc = self._build(metrics)
            self.address = bind(self._grpc, config.listen, config.tls_cert, config.tls_key, config.tls_client_ca)
            if config.metrics:
                self._web = serve_metrics(config.metrics, registry, self._ready)
                self.metrics_address = "{}:{}".format(*self._web.server_address[:2])
        except BaseException:
            if self._log is not None:
                self._log.close()
            store.close()
            if keepsake is not None:
                keepsake.close()
            raise
        self.engine.decider.low = self._low.set  # called where decisions are made: in this loop's thread
        self.engine.planner.start()
        await self._grpc.start()
        self._tasks += [asyncio.create_task(task) for task in (self._flush(), self._lease(), self._look_at_tokens(), self._checkpoint())]
        if config.insecurity:
            self._tasks.append(asyncio.create_task(keep_warning("server.insecure", self.address, config.insecurity)))
        if specs_wait:
            self._tasks.append(asyncio.create_task(self._load_specs()))
        for name in ("", *SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info(
            "server.ready",
            address=self.address,
            metrics=self.metrics_address,
            store=config.shown_store,
            access=config.access,
            tls=bool(config.tls_cert),
            experiments=len(self.engine.live.snapshot.entries),
        )

    async def stop(self) -> None:
        """Drain: say so, let callers notice, finish what is under way, store what is counted."""
        log.info("server.draining", seconds=self._config.drain_seconds)
        self._draining = True
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._config.drain_seconds)
        self._allocator.feed.close()
        await self._grpc.stop(self._config.grace_seconds)
        for task in self._tasks:
            task.cancel()
        await self._allocator.intake.close()
        if self._web is not None:
            self._web.shutdown()
            self._web.server_close()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._checkpoints.write)
        if self._log is not None:
            await loop.run_in_executor(self._threads, self._log.close)
        await loop.run_in_executor(self._threads, self.engine.close)
        self._threads.shutdown()
        log.info("server.stopped")

    def _build(self, metrics: Metrics) -> grpc.aio.Server:
        server = grpc_server(self._config.max_concurrent)
        a = self._allocator = AllocatorServicer(
            self.engine, metrics, self._threads, self._log, max(1, self._config.max_concurrent // 2)
        )
        o = OperatorServicer(self.engine, self.tokens, self._threads)
        access = Access(self.tokens, self.engine.registry.namespace_of, self._clock) if self._config.access == "tokens" else None

        def gate(method: str) -> Gate | None:
            return None if access is None else access.gate(method)

        def call(name: str, request_type: type[Message], method: Unary, *, logs: bool = True) -> grpc.RpcMethodHandler:
            return unary(metrics, name, request_type, method, gate(f"/{SERVICES[0]}/{name}"), logs=logs)

        watch = gate(f"/{SERVICES[0]}/WatchSnapshots")
        calls = {
            "Decide": instant(metrics, "Decide", service_pb.DecideRequest, a.decide, gate(f"/{SERVICES[0]}/Decide")),
            "BatchDecide": call("BatchDecide", service_pb.BatchDecideRequest, a.batch_decide),
            "ReportOutcomes": call("ReportOutcomes", service_pb.ReportOutcomesRequest, a.report_outcomes, logs=False),
            "WatchSnapshots": streaming(metrics, "WatchSnapshots", service_pb.WatchSnapshotsRequest, a.watch_snapshots, watch),
            "LeaseExposure": call("LeaseExposure", service_pb.LeaseExposureRequest, a.lease_exposure),
            "IntrospectTokens": call("IntrospectTokens", service_pb.IntrospectTokensRequest, self._introspect_tokens),
        }
        server.add_registered_method_handlers(SERVICES[0], {method: calls[method] for method in OWN_QUEUE})
        operator = {}
        for method in operator_pb.DESCRIPTOR.services_by_name["OperatorService"].methods:
            words = "".join("_" + c.lower() if c.isupper() else c for c in method.name).lstrip("_")
            request_type = getattr(operator_pb, method.input_type.name)
            operator[method.name] = unary(metrics, method.name, request_type, getattr(o, words), gate(f"/{SERVICES[1]}/{method.name}"))
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICES[0], calls),
                grpc.method_handlers_generic_handler(SERVICES[1], operator),
            )
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, Generic(server))
        wanted = self._config.reflection
        if is_loopback(self._config.listen) if wanted is None else wanted:
            names = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, REFLECTION_NAME)
            reflection.add(Generic(server), names, gate(f"{REFLECTION}ServerReflectionInfo"))
        return server

    async def _introspect_tokens(self, request: service_pb.IntrospectTokensRequest) -> service_pb.IntrospectTokensResponse:
        """IntrospectTokens."""
        return introspection.answer(request, self.tokens, self._clock.now(), checks_calls=self._config.access == "tokens")

    def _ready(self) -> bool:
        """Decisions are answered, from whatever is known: a server without its store is no reason to send callers nowhere."""
        return self.engine.started and not self._draining

    async def _lease(self) -> None:
        """Keep the leases of budgets filled: soon when one runs low, and at intervals since limits grow."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._low.wait(), FLUSH_SECONDS)
            self._low.clear()
            try:
                await loop.run_in_executor(self._threads, self.engine.fill_leases)
            except Exception:
                log.exception("budget.crashed")

    async def _flush(self) -> None:
        pause = FLUSH_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = FLUSH_SECONDS
            try:
                await self._allocator.intake.flush()
            except AllocatorError as error:
                log.warning("exposures.not_stored", reason=error.reason, error=error.message)
                pause = RETRY_SECONDS
            except Exception:
                log.exception("exposures.crashed")
                pause = RETRY_SECONDS

    async def _load_specs(self) -> None:
        """Apply the spec files once the store is there."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                if await loop.run_in_executor(self._threads, load_specs, self.engine, self._config.specs):
                    return
            except Exception:
                log.exception("specs.crashed")

    async def _look_at_tokens(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TOKENS_SECONDS)
            if self.engine.keeper.lost:
                continue  # a store that lost its tokens takes nobody's access away
            try:
                await loop.run_in_executor(self._threads, self.tokens.refresh)
            except AllocatorError as error:
                log.warning("tokens.not_refreshed", reason=error.reason, error=error.message)
            except Exception:  # a token that cannot be read: those known so far stay good
                log.exception("tokens.crashed")

    async def _checkpoint(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await loop.run_in_executor(self._threads, self._checkpoints.write)
            await asyncio.sleep(CHECKPOINT_SECONDS)


def bounds(calls: int) -> list[tuple[str, int]]:
    """Settings of gRPC that let this many calls of a queue wait, and refuse what comes beyond.

    They wait in gRPC's own threads: Python never has more than a few calls at hand, so `maximum_concurrent_rpcs` of grpc.aio, which
    counts those, bounds nothing. There a refusal costs a tenth of a decision; from here it would cost as much as the decision itself. The
    price is that it has but one status for it, CANCELLED, and no room for a hint. Between the two numbers a growing share is refused,
    so that callers do not all come back at once. A registered method has a queue of its own: a flood of decisions takes no place from a
    freeze. Calls whose deadline passes leave the queue by themselves.
    """
    return [("grpc.server.max_pending_requests", max(1, calls // 2)), ("grpc.server.max_pending_requests_hard_limit", calls)]


class Generic:
    """A server to which generated code adds its methods unregistered.

    gRPC waits for the next call of each registered method separately, so every one of them makes every call dearer: the five of health and
    reflection cost a Decide 17 µs.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        """Leave them to the generic handlers."""


def grpc_server(calls: int, *, shared_port: bool = False) -> grpc.aio.Server:
    """A server with the settings of all of ours. shared_port: several processes may listen on its port; else the second one fails."""
    return grpc.aio.server(options=[("grpc.so_reuseport", int(shared_port)), *OPTIONS, *bounds(calls)])


def bind(server: grpc.aio.Server, listen: str, tls_cert: str = "", tls_key: str = "", tls_client_ca: str = "") -> str:
    """Listen; the real address. Raises Unavailable, or InvalidArgument for a certificate that cannot be used."""
    host, _, port = listen.rpartition(":")
    try:
        if tls_cert:
            bound = server.add_secure_port(listen, Certificates(tls_cert, tls_key, tls_client_ca).credentials())
        else:
            bound = server.add_insecure_port(listen)
    except RuntimeError as exc:
        raise Unavailable(
            f"cannot listen on {listen}: another process has the port, or the address is not this machine's",
            reason="ADDRESS_IN_USE",
            listen=listen,
        ) from exc
    return f"{host}:{bound or port}"


async def keep_warning(event: str, address: str, lacks: str) -> None:
    """Say now and each minute that calls from other machines are not encrypted or authenticated: a line at the start is soon forgotten."""
    while True:
        log.warning(event, address=address, lacking=lacks, advice="whoever reaches it may decide, report and operate; see security.md")
        await asyncio.sleep(INSECURE_SECONDS)


def open_store(address: str, entropy: Entropy, clock: Clock | None = None) -> Store:
    """The store of a `Config.store` address. A Redis store need not be there yet; the others must be whole."""
    clock = clock or SystemClock()
    kind, _, path = address.partition(":")
    if kind == "memory":
        return MemoryStore(entropy, clock)
    if kind == "sqlite":
        if not os.path.exists(path):
            log.warning("store.created", path=os.path.abspath(path), advice="if this server had a store before, look where it is")
        return SqliteStore(path, entropy, clock)
    from allocator.stores.redis import RedisStore  # its library takes long to load, and most servers do without

    return RedisStore(address, entropy)


def refresh_tokens(tokens: Tokens) -> None:
    """Learn the tokens, unless the store is gone: then they come later."""
    try:
        tokens.refresh()
    except (Unavailable, Overloaded) as error:
        if error.reason in DAMAGED:
            raise
        log.warning("tokens.not_refreshed", reason=error.reason, error=error.message)


def open_decision_log(config: Config, engine: Engine, metrics: Metrics) -> DecisionLog | None:
    """The decision log that is asked for, writing. Raises Unavailable, or AllocatorError when its packages are not installed."""
    if not config.decision_log:
        return None
    try:
        from allocator.server.decision_log import DecisionLog
    except ModuleNotFoundError as exc:
        raise AllocatorError(f"the decision log needs {exc.name}, which is not installed", reason="MISSING_PACKAGES") from exc
    made = DecisionLog(
        Path(config.decision_log),
        engine.live,
        engine.registry,
        engine.clock.now,
        context=config.decision_log_context,
        days=config.decision_log_days,
    )
    made.start()
    metrics.log_decisions(lambda: (made.counts.written, made.counts.lost))
    return made


def load_specs(engine: Engine, paths: tuple[str, ...]) -> bool:
    """Apply every experiment of these files. False: the store cannot take them now. Raises InvalidArgument for an unreadable one."""
    for path in paths:
        for loaded in spec.load_file(Path(path)):
            try:
                record, created, changed = engine.commands.apply(loaded.experiment, actor="server", reason=f"loaded from {path}")
            except (Unavailable, Overloaded) as error:
                log.warning("spec.waits", experiment=loaded.experiment.full_name, reason=error.reason, error=error.message)
                return False
            except Refused as error:
                if error.reason != "STORE_LOST":
                    raise
                log.warning("spec.waits", experiment=loaded.experiment.full_name, reason=error.reason, error=error.message)
                return False
            waits, state = record.experiment != loaded.experiment, record.status.state.value
            log.info("spec.loaded", experiment=record.name, created=created, changed=changed, pending=waits, state=state)
    return True


def serve_metrics(listen: str, registry: CollectorRegistry, ready: Callable[[], bool]) -> WSGIServer:
    """`/metrics`, `/livez` and `/readyz` over HTTP, in a thread of their own."""
    metrics_app = make_wsgi_app(registry)

    def app(environ: dict, start_response: Callable) -> list[bytes]:  # type: ignore[type-arg]
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics_app(environ, start_response)
        found = {"/livez": True, "/readyz": path == "/readyz" and ready()}.get(path)
        status = "404 Not Found" if found is None else "200 OK" if found else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [status.partition(" ")[2].lower().encode() + b"\n"]

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    class Web(WSGIServer):
        address_family = family
        daemon_threads = True

    try:
        web = Web((host.strip("[]"), int(port)), Quiet)
    except OSError as exc:
        raise Unavailable(f"cannot listen on {listen} for metrics: {exc.strerror}", reason="ADDRESS_IN_USE", listen=listen) from exc
    web.set_app(app)
    if not is_loopback(listen):
        address = "{}:{}".format(*web.server_address[:2])
        log.warning("metrics.beyond_loopback", address=address, advice="it names experiments and arms to whoever reaches it")
    threading.Thread(target=web.serve_forever, name="metrics", daemon=True).start()
    return web


async def _serve(config: Config) -> None:
    server = Server(config)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await server.start()
    await stopping.wait()
    await server.stop()


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises AllocatorError when the server cannot start."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config))
