"""What tests and benchmarks need around real processes: free ports, waiting for a condition, and `allocator serve` in a process of its own.

Waiting is asking again until a deadline; nothing sleeps for a while in the hope that it was long enough. A server says on its log when it
is ready; a thread reads that log to its end, because a pipe that nobody reads fills up and the server waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

READY_SECONDS = 300.0  # of a full store on a busy machine
_pause = threading.Event()  # never set: a wait that ends


def free_port() -> int:
    """A port of loopback where nothing listens; use it at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_address() -> str:
    """An address of loopback where nothing listens."""
    return f"127.0.0.1:{free_port()}"


def until(true: Callable[[], object], what: str = "true", seconds: float = 30.0, despite: tuple[type[BaseException], ...] = ()) -> None:
    """Wait for what other threads and processes bring about. what: said when it does not come. despite: errors that mean "not yet"."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(*despite):
            if true():
                return
        assert time.monotonic() < deadline, f"after {seconds:g} s, still not: {what}"
        _pause.wait(0.01)


class Server:
    """`allocator serve`, with its metrics on a free port. wrap: what to start it with, such as strace. log_format: or "pretty".

    log: every line so far. ready: the event that says so (of a json log). Raises AssertionError when it ends before it is ready.
    """

    def __init__(
        self,
        store: str,
        *flags: str,
        listen: str = "127.0.0.1:0",
        wrap: Sequence[str] = (),
        env: dict[str, str] | None = None,
        log_format: str = "json",
    ) -> None:
        command = [*wrap, sys.executable, "-m", "allocator", "serve", "--listen", listen, "--metrics", "127.0.0.1:0", "--store", store]
        self.process = subprocess.Popen(
            [*command, "--log-format", log_format, *flags], stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self.log: list[str] = []
        self.address = self.metrics = ""
        self._told = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._told.wait(READY_SECONDS)
        if not self.address:
            self.kill()
            raise AssertionError("the server did not start:\n" + "".join(self.log))

    def _read(self) -> None:
        for line in self.process.stderr:
            self.log.append(line)
            if not self.address and "server.ready" in line:
                self.metrics, self.address = (re.search(rf'\b{name}"?[=:] ?"?([\d.:]+)', line)[1] for name in ("metrics", "address"))
                self._told.set()
        self._told.set()

    @property
    def ready(self) -> dict[str, Any]:
        return self.events("server.ready")[0]

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM. Returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        self._reader.join()
        return code

    def events(self, name: str) -> list[dict[str, Any]]:
        """What a json log says of one kind of event."""
        return [event for line in list(self.log) if line.startswith("{") and (event := json.loads(line))["event"] == name]


@contextlib.contextmanager
def served(store: str, *flags: str, **more: Any) -> Iterator[Server]:
    """A server, gone at the end whatever happens."""
    server = Server(store, *flags, **more)
    try:
        yield server
    finally:
        server.kill()
