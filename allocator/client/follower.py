"""Follows the snapshots of a server: the table that decides, how old it is, and the keys of decision ids.

In: a stub. Out: a `Snapshot` that is replaced whole, `confirmed`, and a call to `heard` after each message. `Table` is what the messages
mean, told the time by its caller; `Follower` is the thread that reads them.

The lease. A message says how long ago the planner confirmed the table, and how long its stream had run when it was sent. So it was sent no
earlier than that long after we asked for the stream, and the table was confirmed its age before that. What lay in a buffer for a minute,
here or on the way, therefore counts as a minute old; measuring from its arrival would have renewed the lease. Two clocks drift apart, so
a stream is opened anew each half hour.

Another life of the store. An entry never goes back to an older version, so that no message from a server that lags behind undoes a freeze.
A store that was restored from a backup, or reconciled, counts on from lower versions; it says so by another epoch, and then the full
table holds as it is. An epoch that was left is not believed for a minute, in which the lease runs out: whoever still tells of it may not
have noticed. For longer would be wrong: an operator may have found the right store after all.

Every end of a stream, a clean one too, is followed by a pause with full jitter, so that a server which comes back is not met by all its
watchers at once. A stream that says nothing for several heartbeats is given up and opened anew.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import grpc

from allocator.core.snapshot import Entry, Snapshot
from allocator.errors import AllocatorError, Unavailable
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.wire.scalars import seconds_of
from allocator.wire.snapshots import entry_from_message
from allocator.wire.status import from_rpc_error

SILENCE_SECONDS = 5.0  # five heartbeats
STREAM_SECONDS = 1800.0
PAUSE_SECONDS = (2.0, 10.0)  # the longest first pause, and the longest of all
LEFT_SECONDS = 60.0
DEFAULT_LEASE_SECONDS = 15.0  # of a table without entries

log = logging.getLogger("allocator.client")


class Clock(Protocol):
    """Time, as `allocator/ports.py` has it."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never back."""


class Change(NamedTuple):
    """What a message changed: entries that are new, names that are gone."""

    entries: list[Entry]
    removed: list[str]


class Table:
    """What a stream has told so far. `snapshot`, `confirmed` and `lease_seconds` may be read from any thread.

    complete: was there ever a whole table? confirmed: monotonic seconds at which the planner surely still stood by it. lease_seconds: the
    shortest of its entries. keys: numbers and keys of decision ids, of the latest stream.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.complete = False
        self.confirmed = float("-inf")
        self.lease_seconds = DEFAULT_LEASE_SECONDS
        self.keys: tuple[tuple[int, bytes], ...] = ()
        self._left: dict[str, float] = {}  # epochs before the present one, and until when they are not believed
        self._doubted = ""  # one of them, of which the stream tells
        self._pieces: list[Entry] = []
        self._asked = float("-inf")

    def opened(self, asked: float) -> None:
        """A stream was asked for at this time, and begins with the whole table."""
        self._asked = asked
        self._pieces = []
        self._doubted = ""

    def hear(self, message: service_pb.WatchSnapshotsResponse, now: float) -> Change | None:
        """Take a message over. Returns what it changed, None for nothing. now: monotonic seconds.

        Raises Unavailable when the stream, of an epoch that was left, deserves another look: a new stream begins with the whole table.
        """
        event = message.WhichOneof("event")
        if event == "change" and message.change.full:
            self._doubted = message.change.epoch if now < self._left.get(message.change.epoch, now) else ""
        if self._doubted and event != "keys":
            if now >= self._left[self._doubted]:
                raise Unavailable("the server tells of an earlier life of the store; looking again", reason="EARLIER_LIFE")
            return None
        sent = min(now, self._asked + seconds_of(message.elapsed))
        if event == "heartbeat":
            if self.complete:
                self._confirm(sent - seconds_of(message.heartbeat.age))
            return None
        if event == "keys":
            self.keys = tuple((key.number, key.key) for key in message.keys.keys)
            return None
        if event != "change":
            return None  # something that a later version says
        change = message.change
        entries = [entry_from_message(entry) for entry in change.entries]
        removed = list(change.removed)
        if change.full:
            self._pieces += entries
            if not change.complete:
                return None
            entries, self._pieces = self._pieces, []
            named = {entry.experiment for entry in entries}
            removed = [name for name in self.snapshot.entries if name not in named]
            self.complete = True
        if change.full and change.epoch and change.epoch != self.snapshot.epoch:
            log.info("snapshots: another life of the store, %s", change.epoch)
            self._left[self.snapshot.epoch] = now + LEFT_SECONDS
            self.snapshot = self.snapshot.begun(change.epoch, entries)
        else:
            self.snapshot = self.snapshot.replaced(entries, removed)
        self.lease_seconds = min((entry.lease_seconds for entry in self.snapshot.entries.values()), default=DEFAULT_LEASE_SECONDS)
        if self.complete and change.complete:
            self._confirm(sent - seconds_of(change.age))
        return Change(entries, removed)

    def _confirm(self, at: float) -> None:
        self.confirmed = at  # also when it is earlier than before: a server that no longer trusts its table says so by its age


class Follower:
    """A thread that reads the stream, for ever, into `table`.

    watch: the stub's method. heard: called in the thread after each message, with what it changed. metadata: of each call. keys: how many
    to ask for. pause: the longest first pause and the longest of all, seconds.
    """

    def __init__(
        self,
        watch: Callable[..., Any],
        clock: Clock,
        heard: Callable[[Change | None], None],
        *,
        metadata: Callable[[], Any] = lambda: (),
        keys: int = 1,
        namespaces: tuple[str, ...] = (),
        pause: tuple[float, float] = PAUSE_SECONDS,
    ) -> None:
        self.table = Table()
        self._watch = watch
        self._clock = clock
        self._heard = heard
        self._metadata = metadata
        self._request = service_pb.WatchSnapshotsRequest(namespaces=namespaces, keys=keys)
        self._pause = pause
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._call: Any = None
        self._last = clock.monotonic()
        self._thread = threading.Thread(target=self._run, name="allocator-follower", daemon=True)
        self.opened = 0  # streams so far

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def look(self) -> None:
        """Give up a stream that has been silent for too long. To be called now and then, from any thread."""
        with self._lock:
            if self._call is not None and self._clock.monotonic() - self._last > SILENCE_SECONDS:
                log.warning("snapshots: nothing heard for %g s; opening the stream anew", SILENCE_SECONDS)
                self._last = self._clock.monotonic()
                self._call.cancel()

    def stop(self) -> None:
        """End the stream and the thread."""
        self._stopped.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        fruitless = 0
        while not self._stopped.is_set():
            messages, aged = self._stream()
            fruitless = 0 if messages else fruitless + 1
            if not aged:
                self._stopped.wait(random.uniform(0.0, min(self._pause[1], self._pause[0] * 2.0**min(fruitless, 30))))

    def _stream(self) -> tuple[int, bool]:
        """One stream to its end: how many messages it brought, and whether it ended only because of its age."""
        messages = 0
        try:
            self._open()
            for message in self._call:
                messages += 1
                self._last = self._clock.monotonic()
                self._heard(self.table.hear(message, self._last))
        except grpc.RpcError as error:
            if messages and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:  # type: ignore[attr-defined]
                return messages, True
            if not self._stopped.is_set():
                log.info("snapshots: the stream ended: %s", from_rpc_error(error).message)
        except AllocatorError as error:
            log.warning("snapshots: no stream: %s", error.message)
        except Exception:
            log.exception("snapshots: the stream said what cannot be read")
        finally:
            with self._lock:
                call, self._call = self._call, None
            if call is not None:
                call.cancel()
        return messages, False

    def _open(self) -> None:
        metadata = self._metadata()
        with self._lock:
            if self._stopped.is_set():
                raise AllocatorError("stopped", reason="STOPPED")
            self._last = self._clock.monotonic()
            self.table.opened(self._last)
            self.opened += 1
            self._call = self._watch(self._request, timeout=STREAM_SECONDS * random.uniform(0.8, 1.0), metadata=metadata)
