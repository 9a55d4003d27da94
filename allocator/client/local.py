"""Decides in the caller's own process, from the snapshots that a server streams: no call, no wait, no exception.

In: an address. Out: `LocalClient`, for threads (`local_async` has the one for asyncio). It decides with the decider that servers have,
so the same snapshot gives the same arm. Two threads work behind it: one follows the snapshots (`client/follower.py`); one sends outcomes
and exposures from the outbox, keeps leases of budgets filled, and watches the first. Losing the server loses no decision: candidates
are served until the lease of the table ends, then everyone gets the incumbent with the reason STALE, and when the server is back all is
as before.

One decider serves all threads, behind a lock. Dropped: a decider for each thread; a unit that two threads serve would count twice in
guardrails, each thread would need leases and strict caps of its own, and the lock costs 0.2 us of a decision. Threads do not stand in
line for it: with a blocking `acquire` the lock passed to a thread that had yet to get the interpreter, so that once two had met every
decision waited for a switch of threads (99.9 % of them came within 8 ms; now within 0.1 ms).

Strict caps. A client's gate begins without credit, so among its first n requests a candidate has at most cap x n, and all clients
together keep the cap without hearing of each other. `burst` is how far each may run ahead in any window; those add up over clients.

A process that forks: the child has none of the threads, so it serves incumbents (STALE). Make a client after the fork.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import blake2b
from types import TracebackType
from typing import Any, Self

import grpc

from allocator.client.arguments import check_settings, checked_outcome, texts
from allocator.client.channel import OPEN, Access, channel
from allocator.client.follower import PAUSE_SECONDS, Change, Clock, Follower
from allocator.client.leases import Leases, request_of
from allocator.client.outbox import Outbox
from allocator.client.remote import OPTIONS, Value
from allocator.core.assignment import HASH_BYTES
from allocator.core.decider import TAKEN_AT_ONCE, Decider
from allocator.core.decision import Decision, Reason, check_unit, choose_hashed
from allocator.core.snapshot import Entry, full_name
from allocator.errors import AllocatorError, InvalidArgument
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from allocator.wire.exposures import exposure_to_message
from allocator.wire.status import from_rpc_error

TICK_SECONDS = 0.1  # between two looks of the sender
EXPOSURES_SECONDS = 1.0  # between two reports of exposures
CALL_SECONDS = 5.0  # deadline of a report
AGAIN_SECONDS = (0.2, 10.0)  # the longest first pause after a failed report, and the longest of all
TRIES = 5  # of a batch that the server fails at for a reason that should not come again
BURST = 10  # exposures ahead of a strict cap
NONCES = 512  # taken from the operating system at once
FATAL = frozenset({"INTERNAL", "UNKNOWN", "UNIMPLEMENTED", "DATA_LOSS", "FAILED_PRECONDITION", "NOT_FOUND"})
NOTHING: Mapping[str, str] = {}
RECONNECT = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 5000),
)

log = logging.getLogger("allocator.client")
_clients: weakref.WeakSet[LocalClient] = weakref.WeakSet()


class State(StrEnum):
    """CONNECTING: no table yet, everyone gets the fallback. READY: within the lease. STALE: past it, the incumbent. CLOSED."""

    CONNECTING = "CONNECTING"
    READY = "READY"
    STALE = "STALE"
    CLOSED = "CLOSED"


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a client has done. age: seconds since the table was confirmed, infinite before the first.

    sent: outcomes that a server answered for; of them accepted counted, duplicate had been counted, late, refused and ignored count nothing
    (`reasons` says how many for which reason). pending: outcomes held. dropped: outcomes that had to go unsent, or were unfit to send.
    pending_exposures: decisions whose exposure is not reported yet; lost_exposures: decisions whose exposure never will be.
    streams: opened so far.
    """

    state: State
    age: float
    sent: int
    accepted: int
    duplicate: int
    late: int
    refused: int
    ignored: int
    pending: int
    dropped: int
    pending_exposures: int
    lost_exposures: int
    streams: int
    reasons: Mapping[str, int]


class SystemClock:
    """The machine's clocks."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


class LocalClient:
    """Decides in this process; for threads, any number of them. Use it as a context manager, or call `close`.

    address: host:port of a server or an edge. access: TLS and the token. namespaces: those to follow, all when empty. capacity: outcomes
    held while no server takes them. burst: exposures that this client may run ahead of a strict cap. on_state: called with each new state,
    from a thread of the client. pause: the longest first pause before a lost stream is opened anew and the longest of all, seconds.
    clock: for tests. Raises InvalidArgument, here and nowhere else.
    """

    def __init__(
        self,
        address: str,
        *,
        access: Access = OPEN,
        namespaces: tuple[str, ...] = (),
        capacity: int = 10_000,
        burst: int = BURST,
        on_state: Callable[[State], None] | None = None,
        pause: tuple[float, float] = PAUSE_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        check_settings(address, capacity, burst, pause)
        clock = clock or SystemClock()
        self._clock = clock
        self._now = clock.now
        self._monotonic = clock.monotonic
        self._access = access
        self._on_state = on_state
        self._burst = burst
        self._life = int(clock.now() * 1e6)
        self._lock = threading.Lock()  # of the decider and the nonces
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._decider = Decider(b"", life=self._life)
        self._keys: tuple[tuple[int, bytes], ...] = ()
        self._nonces = b""
        self._at = 0
        self._entries: Mapping[str, Entry] = {}
        self._named: dict[str, tuple[Entry, Any]] = {}  # by the names that callers use
        self._confirmed = float("-inf")
        self._outbox = Outbox(capacity, self._life)
        self._leases = Leases(self._decider)
        self._unfit = 0
        self._troubles = 0
        self._ready = threading.Event()
        self._wake = threading.Event()
        self._settled = threading.Condition()
        self._hurry = 0  # flushes that wait
        self._rounds = 0  # passes in which all that was held was sent
        self._closing = False
        self._closed = False
        self._give_up = math.inf
        self._failures = 0
        self._again = -math.inf
        self._exposures_due = -math.inf
        self._said = State.CONNECTING
        self._decider.low = self._wake.set
        self._channel = channel(address, access, (*OPTIONS, *RECONNECT))
        stub = service_grpc.AllocatorServiceStub(self._channel)
        self._report = stub.ReportOutcomes
        self._lease = stub.LeaseExposure
        self._follower = Follower(
            stub.WatchSnapshots, clock, self._heard, metadata=access.metadata, namespaces=tuple(namespaces), pause=pause
        )
        self._table = self._follower.table
        self._sender = threading.Thread(target=self._work, name="allocator-sender", daemon=True)
        _clients.add(self)
        atexit.register(self.close)
        self._follower.start()
        self._sender.start()

    def decide(
        self, experiment: str, unit: str, attributes: Mapping[str, Value] | None = None, fallback: str | None = None
    ) -> Decision:
        """Which arm serves this unit. Never raises, never waits.

        experiment: "name" or "namespace/name". unit: who or what is routed, 1 to 256 bytes. attributes: for segments, targeting and
        opt-out. fallback: the arm to answer with where no incumbent is known, "" without one. Reasons that only a client gives:
        UNKNOWN_EXPERIMENT, before the first snapshot and for names that it does not hold; INVALID_REQUEST; such a decision has no id, and a
        report of it is ignored.
        """
        entry = None
        try:
            row = self._named.get(experiment) or self._row(experiment)
            if row is None:
                return Decision(fallback or "", 1.0, Reason.UNKNOWN_EXPERIMENT, "", 0, "", fallback or "")
            entry = row[0]
            encoded = check_unit(unit)
            known = texts(attributes) if attributes else NOTHING
            stale = self._monotonic() - self._confirmed > entry.lease_seconds
            while not self._acquire(False):  # never in line for it: who waits in line owns the lock before he has the interpreter
                time.sleep(0)
            try:
                at = self._at
                if at == len(self._nonces):
                    at = 0
                    self._nonces = os.urandom(8 * NONCES)
                self._at = at + 8
                return self._decider.decide(entry, encoded, known, self._now(), self._nonces[at : at + 8], stale=stale)
            finally:
                self._release()
        except Exception as error:
            return self._without(entry, fallback, error)

    def arm(self, experiment: str, unit: str, attributes: Mapping[str, Value] | None = None, fallback: str | None = None) -> str:
        """The arm that the published weights give this unit: for reads that must agree with a decision (a cache, a log, a second look).

        No id, not counted, nothing spent: strict caps and budgets are not asked, so to *serve* by it would pass them. Of a PER_REQUEST
        experiment, which gives units no arm, the incumbent. Never raises, never waits.
        """
        entry = None
        try:
            row = self._named.get(experiment) or self._row(experiment)
            if row is None:
                return fallback or ""
            entry, keyed = row
            if not entry.sticky and entry.only is None:
                return entry.arms[entry.incumbent]
            encoded = check_unit(unit)
            known = texts(attributes) if attributes else NOTHING
            stale = self._monotonic() - self._confirmed > entry.lease_seconds
            hashing = keyed.copy()
            hashing.update(encoded)
            return entry.arms[choose_hashed(entry, encoded, hashing.digest(), known, b"", stale, None, None)[0]]
        except Exception as error:
            return self._without(entry, fallback, error).arm

    def report(self, decision_id: str, *, reward: float | None = None, metrics: Mapping[str, float] | None = None) -> None:
        """Report what came of a decision. Returns at once and never raises; `statistics` says what became of it.

        May be called again with other metrics as they come: each counts once. What is not a finite number is dropped, and counted.
        """
        if not decision_id:
            return
        try:
            told = checked_outcome(decision_id, reward, metrics)
        except Exception as error:
            self._unfit += 1
            log.warning("report: not an outcome, dropped: %s", error)
            return
        if self._closed:
            self._unfit += 1
        elif self._outbox.put(told):
            self._wake.set()

    @property
    def state(self) -> State:
        """The state now."""
        if self._closed:
            return State.CLOSED
        if not self._table.complete:
            return State.CONNECTING
        return State.STALE if self._monotonic() - self._confirmed > self._table.lease_seconds else State.READY

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait for the first snapshot; False when there was none in time (seconds)."""
        return self._ready.wait(timeout)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that is held now has been answered for; False when it was not in time (seconds)."""
        if self._closed:
            return self._outbox.pending == 0
        with self._settled:
            target = self._rounds + 2  # the pass under way may have begun before what is held now
            self._hurry += 1
            self._wake.set()
            try:
                return self._settled.wait_for(lambda: self._rounds >= target or self._closed, timeout) and not self._closed
            finally:
                self._hurry -= 1

    def statistics(self) -> Statistics:
        """What this client has done so far."""
        box = self._outbox
        of = box.results
        return Statistics(
            state=self.state,
            age=self._monotonic() - self._confirmed,
            sent=sum(of.values()),
            accepted=of["ACCEPTED"],
            duplicate=of["DUPLICATE"],
            late=of["LATE"],
            refused=of["REFUSED"],
            ignored=of["IGNORED"],
            pending=box.pending,
            dropped=box.dropped + self._unfit,
            pending_exposures=box.pending_exposures,
            lost_exposures=box.lost_exposures + box.dropped_exposures,
            streams=self._follower.opened,
            reasons=dict(box.reasons),
        )

    def close(self, timeout: float = 5.0) -> None:
        """Send what is held, for at most so many seconds, and let go of everything. Calling twice does nothing.

        Decisions go on from the last table until its lease ends.
        """
        with self._settled:
            if self._closing:
                return
            self._closing = True
        atexit.unregister(self.close)
        self._give_up = time.monotonic() + timeout
        self._wake.set()
        if threading.current_thread() is not self._sender:  # it is, when `on_state` closes
            self._sender.join(timeout + CALL_SECONDS)
        self._closed = True
        self._outbox.drop()
        self._follower.stop()
        self._channel.close()
        with self._settled:
            self._settled.notify_all()
        self._say(State.CLOSED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _row(self, experiment: str) -> tuple[Entry, Any] | None:
        """The entry of this name, and the keyed hash of which each unit's is a copy that went on; kept until the next change."""
        named = self._named  # taken first: a change that comes now puts another in its place, and this row is not in it
        entry = self._entries.get(experiment) or self._entries.get(full_name(experiment))
        if entry is None:
            return None
        row = named[experiment] = entry, blake2b(digest_size=HASH_BYTES, key=entry.salt)
        return row

    def _without(self, entry: Entry | None, fallback: str | None, error: Exception) -> Decision:
        """The answer where none can be had: the incumbent, or the fallback."""
        if not isinstance(error, InvalidArgument | TypeError | AttributeError | ValueError):
            self._troubles += 1
            if self._troubles & (self._troubles - 1) == 0:  # the 1st, 2nd, 4th, ...: a log line costs as much as a hundred decisions
                log.exception("decide: the incumbent serves instead, %d times so far", self._troubles)
        if entry is None:
            arm = fallback if isinstance(fallback, str) else ""
            return Decision(arm, 1.0, Reason.INVALID_REQUEST, "", 0, "", arm)
        incumbent = entry.incumbent
        return Decision(
            entry.arms[incumbent], 1.0, Reason.INVALID_REQUEST, "", entry.version, entry.model_uris[incumbent], entry.arms[incumbent]
        )

    def _heard(self, change: Change | None) -> None:
        """The follower has read a message. In its thread."""
        table = self._table
        if table.keys is not self._keys:
            self._keys = table.keys
            number, key = table.keys[0] if table.keys else (0, b"")
            with self._lock:
                self._decider.rekey(key, number)
        if change is not None:
            entries = dict(self._entries)
            for name in change.removed:
                entries.pop(name, None)
            for entry in change.entries:
                held = table.snapshot.entries[entry.experiment]
                entries[entry.experiment] = replace(held, burst=min(held.burst, self._burst)) if held.strict else held
            self._entries, self._named = entries, {}
        self._confirmed = table.confirmed
        if table.complete and not self._ready.is_set():
            self._ready.set()
            self._wake.set()

    def _work(self) -> None:
        """The sender, until closed."""
        while True:
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()
            closing = self._closing
            try:
                self._follower.look()
                self._say(self.state)
                self._fill_leases()
                empty = self._send(closing)
            except Exception:
                log.exception("the sender failed")
                empty = False
            if empty:
                with self._settled:
                    self._rounds += 1
                    if self._hurry:
                        self._wake.set()
                    self._settled.notify_all()
            if closing and (empty or time.monotonic() > self._give_up):
                return

    def _send(self, closing: bool) -> bool:
        """Send all that is held and due. True when nothing is left."""
        now = self._monotonic()
        hurried = closing or self._hurry > 0
        if hurried or now >= self._exposures_due:
            self._exposures_due = now + EXPOSURES_SECONDS
            spare = None if hurried else now
            for _ in range(max(1, -(-self._decider.waiting(spare) // TAKEN_AT_ONCE))):
                with self._lock:
                    taken = self._decider.take(spare)
                self._outbox.put_exposures([exposure_to_message(e) for e in taken])
        if now < self._again and not hurried:
            return False
        while (batch := self._outbox.batch()) is not None:
            try:
                self._outbox.settle(self._report(batch.request(self._life), timeout=CALL_SECONDS, metadata=self._access.metadata()))
                self._failures = 0
            except grpc.RpcError as exc:
                if not self._survived(from_rpc_error(exc), exc.code().name):  # type: ignore[attr-defined]
                    return False
            except AllocatorError as error:
                if not self._survived(error, ""):
                    return False
            if closing and time.monotonic() > self._give_up:
                return False
        return True

    def _survived(self, error: AllocatorError, code: str) -> bool:
        """What a failed report means: mended, and the rest may go at once; or all waits for the next try."""
        if code == "INVALID_ARGUMENT" and isinstance(error, InvalidArgument):
            log.warning("report: refused: %s", "; ".join(f"{v.field}: {v.message}" for v in error.violations[:3]) or error.message)
            self._outbox.refuse(error.violations)
            return True
        self._failures += 1
        if code in FATAL and self._failures >= TRIES:
            log.error("report: given up after %d tries: %s", self._failures, error.message)
            self._outbox.refuse(())
            self._failures = 0
            return True
        if self._failures == 1:
            log.info("report: held for later: %s", error.message)
        longest = min(AGAIN_SECONDS[1], AGAIN_SECONDS[0] * 2.0 ** min(self._failures, 30))
        self._again = self._monotonic() + random.uniform(0.0, longest)
        return False

    def _fill_leases(self) -> None:
        wanted = self._leases.wanted(self._table.snapshot, self._monotonic()) if self.state is State.READY else []
        if not wanted:
            return
        try:
            reply = self._lease(request_of(wanted), timeout=CALL_SECONDS, metadata=self._access.metadata())
        except grpc.RpcError as exc:
            log.info("budget: no lease: %s", from_rpc_error(exc).message)
            return
        self._leases.granted(wanted, reply, self._monotonic())

    def _say(self, state: State) -> None:
        if state is self._said:
            return
        before, self._said = self._said, state
        log.log(logging.WARNING if state is State.STALE else logging.INFO, "state: %s, was %s", state, before)
        if self._on_state is not None:
            try:
                self._on_state(state)
            except Exception:
                log.exception("on_state raised")

    def _forked(self) -> None:
        """In a child process: no thread came along, and what the parent holds is the parent's."""
        self._lock = threading.Lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._nonces, self._at = b"", 0
        self._confirmed = -math.inf
        self._closed = self._closing = True


def _after_fork() -> None:
    for client in list(_clients):
        client._forked()


os.register_at_fork(after_in_child=_after_fork)
