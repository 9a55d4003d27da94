"""The server as a process of its own: started, awaited, moved in steps, stopped, whatever happens.

In: a seed and the path of the store. Out: its addresses, once it is ready. Its log is read all the time, for the
event that says so and for the last lines when it dies. It has a session of its own, so that a Ctrl-C in the terminal
reaches the demo alone, which stops it in order; and it ends by itself with its standard input, so that a demo killed
outright leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from allocator.errors import AllocatorError

READY_SECONDS = 120.0  # to start; a cold machine compiles kernels first
STEP_SECONDS = 30.0  # to carry out one step
STOP_SECONDS = 8.0  # to stop in order, before it is killed
LINES_KEPT = 20


class ServerProcess:
    """A server that runs from entering the context to leaving it.

    `address` and `metrics` are host:port, once `wait` has returned.
    """

    def __init__(self, seed: int, store: Path) -> None:
        self._command = [sys.executable, "-m", "allocator.demo.server", "--seed", str(seed), "--store", str(store)]
        self._ready = threading.Event()
        self._answered = threading.Semaphore(0)
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._store = store
        self._failure = ""
        self.address = ""
        self.metrics = ""

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_log, self._read_answers)]
        for reader in self._readers:
            reader.start()
        return self

    def wait(self, waiting: Callable[[], None]) -> None:
        """Wait until the server is ready, calling `waiting` meanwhile. Raises AllocatorError when it never is."""
        give_up = time.monotonic() + READY_SECONDS
        while not self._ready.wait(0.1):
            self.check()
            if time.monotonic() > give_up:
                raise AllocatorError(f"the server was not ready after {READY_SECONDS:.0f} s", reason="SERVER_NOT_READY")
            waiting()

    def step(self, seconds: float) -> None:
        """Let the server plan with all that it counted, and time pass there. Raises AllocatorError when it died."""
        try:
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise self._died() from exc
        give_up = time.monotonic() + STEP_SECONDS
        while not self._answered.acquire(timeout=0.5):
            self.check()
            if time.monotonic() > give_up:
                raise AllocatorError(f"the server did not plan within {STEP_SECONDS:.0f} s", reason="SERVER_STUCK")

    def check(self, patience: float = 0.0) -> None:
        """Raise AllocatorError, with its last words, when the server has ended, or does within `patience` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
            raise self._died()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it in order; kill it if that takes too long. Returns when the process is gone."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            for reader in self._readers:
                reader.join(1.0)
            for stream in (self._process.stdout, self._process.stderr):
                stream.close()
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _died(self) -> AllocatorError:
        code = self._process.wait()
        self._readers[0].join(1.0)
        if self._failure:
            why = f"the server cannot start with {self._store}: {self._failure}; --output names another place"
            return AllocatorError(why, reason="SERVER_FAILED")
        said = "\n".join(f"  {line}" for line in self._lines) or "  (nothing)"
        return AllocatorError(
            f"the server ended by itself, exit code {code}; the last it said:\n{said}", reason="SERVER_DIED", code=code
        )

    def _read_log(self) -> None:
        for line in self._process.stderr:
            self._lines.append(line.rstrip())
            if self._ready.is_set() or not line.startswith("{"):
                continue
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("event") == "server.ready":
                self.address, self.metrics = event["address"], event["metrics"]
                self._ready.set()
            elif event.get("event") == "server.failed":
                self._failure = event["error"]

    def _read_answers(self) -> None:
        for _ in self._process.stdout:
            self._answered.release()
