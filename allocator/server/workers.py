"""`serve --workers N`: one process that plans and stores, N that decide, all on one port of one machine.

In: a `Config` and a number. Out: the planner on a port of loopback that the system chooses, and N edges of it that share the public port;
Linux gives each new connection to one of them. A Python process decides on one core, so this is how a machine's other cores decide.

The planner process starts the workers, and is their parent: it passes SIGTERM on and waits until they have drained; when it dies they
end. A worker that dies is replaced, its callers meanwhile connect to the others. When workers keep dying the service ends, with an error.

With `--access tokens` all of them look at tokens. The workers' own one is made at the start, is in no store, and goes to each through its
standard input.

Dropped: forking after the imports (gRPC's threads do not survive it); a listener in the parent that hands connections on (one process
would read every byte).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections import deque
from dataclasses import replace

import structlog
import uvloop

from allocator.core.token import Role
from allocator.errors import AllocatorError, InvalidArgument, Unavailable
from allocator.server.config import Config
from allocator.server.main import Server

MAX_WORKERS = 64
DEATHS, WITHIN_SECONDS = 5, 60.0  # so many within so long end the service
START_SECONDS = 60.0
AGAIN_SECONDS = 0.5
WORKER = "worker"  # the principal

log = structlog.get_logger()


def check_workers(config: Config, workers: int) -> None:
    """Raises InvalidArgument for what cannot be."""
    if not 1 <= workers <= MAX_WORKERS:
        raise InvalidArgument.of_field("workers", f"got {workers}; a number from 1 to {MAX_WORKERS} is allowed", reason="INVALID_CONFIG")
    if config.decision_log:
        raise InvalidArgument.of_field(
            "workers", f"got {workers} and --decision-log; workers do not write one, so let one process do it", reason="INVALID_CONFIG"
        )
    if not hasattr(socket, "SO_REUSEPORT"):
        raise InvalidArgument.of_field("workers", "this system lets no two processes share a port", reason="INVALID_CONFIG")


class Workers:
    """The planner's process, with its workers. `address` is the public one."""

    def __init__(self, config: Config, workers: int) -> None:
        check_workers(config, workers)
        self._config = config
        self._wanted = workers
        # Only this machine reaches the planner's own port, and the listener's certificates are the workers' to show.
        self.server = Server(replace(config, listen="127.0.0.1:0", tls_cert="", tls_key="", tls_client_ca=""))
        self._tasks: list[asyncio.Task[None]] = []
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._stopping = False
        self.failed = asyncio.Event()
        self.address = ""
        self._token = ""  # of the workers, on the planner's port

    @property
    def pids(self) -> list[int]:
        """Of the workers that run."""
        return [process.pid for process in self._running.values()]

    async def start(self) -> None:
        """Take the port, start the planner and then the workers; returns when all are ready. Raises Unavailable when one does not start."""
        self._port = self._reserve()
        host = self._config.listen.rpartition(":")[0]
        self.address = f"{host}:{self._port.getsockname()[1]}"
        await self.server.start()
        if self._config.access == "tokens":
            self._token = self.server.tokens.lend(WORKER, (Role.WATCH, Role.REPORT))
        try:
            await asyncio.gather(*(self._spawn(number) for number in range(self._wanted)))
        except BaseException:
            await self.stop()
            raise
        self._tasks += [asyncio.create_task(self._keep(number)) for number in range(self._wanted)]
        log.info("workers.ready", address=self.address, workers=self._wanted)

    async def stop(self) -> None:
        """Have the workers drain, then the planner."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        ending = list(self._running.values())
        for process in ending:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        patience = self._config.drain_seconds + self._config.grace_seconds + 10.0
        for process in ending:
            try:
                await asyncio.wait_for(process.wait(), patience)
            except TimeoutError:
                log.error("worker.killed", pid=process.pid, seconds=patience)
                process.kill()
                await process.wait()
        await self.server.stop()
        self._port.close()

    def _reserve(self) -> socket.socket:
        """Hold the public port, without listening: first alone, so that no stranger shares it, then as the workers will."""
        host, _, port = self._config.listen.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended a moment ago keep nobody out
                probe.bind((host, int(port)))
                probe.listen(1)
            held = socket.socket(family)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((host, int(port)))
        except OSError as exc:
            raise Unavailable(
                f"cannot listen on {self._config.listen}: {exc.strerror}", reason="ADDRESS_IN_USE", listen=self._config.listen
            ) from exc
        return held

    def _command(self, number: int) -> list[str]:
        config = self._config
        flags = ["--upstream", self.server.address, "--listen", self.address, "--operator", "--worker", "--log-format", config.log_format]
        flags += ["--access", config.access]
        flags += ["--drain", str(config.drain_seconds), "--grace", str(config.grace_seconds), "--metrics", self._metrics(number)]
        for flag in ("tls_cert", "tls_key", "tls_client_ca"):
            if getattr(config, flag):
                flags += [f"--{flag.replace('_', '-')}", getattr(config, flag)]
        if config.insecure or config.tls_cert:
            flags.append("--insecure")  # the listener was judged when `config` was
        return [sys.executable, "-m", "allocator", "edge", *flags]

    def _metrics(self, number: int) -> str:
        """Where worker `number` shows its metrics: the ports after the planner's."""
        if not self._config.metrics:
            return "none"
        host, _, port = self._config.metrics.rpartition(":")
        return f"{host}:{int(port) + 1 + number if int(port) else 0}"

    async def _spawn(self, number: int) -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*self._command(number), stdin=pipe, stdout=pipe)
        assert process.stdin is not None
        process.stdin.write(f"{self._token}\n".encode())
        self._running[number] = process
        assert process.stdout is not None
        try:
            said = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        except TimeoutError:
            said = b""
        if said.strip() != b"ready":
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            code = await process.wait()
            raise Unavailable(f"worker {number} did not start (exit code {code}); its log says why", reason="WORKER_FAILED")
        log.info("worker.ready", worker=number, pid=process.pid)

    async def _keep(self, number: int) -> None:
        """Replace worker `number` whenever it ends."""
        loop = asyncio.get_running_loop()
        while True:
            process = self._running[number]
            code = await process.wait()
            if self._stopping:
                return
            log.error("worker.died", worker=number, pid=process.pid, code=code)
            while True:
                self._deaths.append(loop.time())
                if len(self._deaths) == DEATHS and self._deaths[-1] - self._deaths[0] < WITHIN_SECONDS:
                    log.error("workers.failed", deaths=DEATHS, seconds=WITHIN_SECONDS)
                    self.failed.set()
                    return
                await asyncio.sleep(AGAIN_SECONDS)
                try:
                    await self._spawn(number)
                    break
                except AllocatorError as error:
                    log.error("worker.not_started", worker=number, error=error.message)


async def _serve(config: Config, workers: int) -> bool:
    service, stopping, loop = Workers(config, workers), asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await service.start()
    ends = [asyncio.create_task(event.wait()) for event in (stopping, service.failed)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    await service.stop()
    return service.failed.is_set()


def serve(config: Config, workers: int) -> None:
    """Serve until SIGTERM or SIGINT. Raises AllocatorError when the service cannot start, or its workers keep dying."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if runner.run(_serve(config, workers)):
            raise Unavailable(f"{DEATHS} workers died within {WITHIN_SECONDS:g} s; their log says why", reason="WORKERS_FAILED")
