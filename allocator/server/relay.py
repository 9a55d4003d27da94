"""What an edge has where a server has an engine: everything comes from an upstream, and everything that must last goes back to it.

In: a channel to a server, or to another edge. Out: an object that `AllocatorServicer` serves from, as it does from an `Engine`: the table
that the upstream streams, a decider of its own, and calls that are carried out upstream.

- Snapshots: taken over as they come, and served on with the upstream's age added to our own, so that a lease is never widened.
- Outcomes: forwarded while the caller waits, several reports in one call where they arrive together (`server/intake.py`). What is
  acknowledged here was acknowledged there; there is nothing to lose.
- Exposures of the edge's own decider go through an outbox, each batch with an id: nobody waits for them, and they count once.
- Leases of budgets: asked of the upstream, for the edge's decider and for watchers alike. Keys of decision ids: a stock from the
  upstream, of which watchers get some; two may get the same one without harm.

Dropped: a store of its own on the edge's disk (an acknowledgement would mean less, and a lost edge would lose outcomes).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import cycle, islice
from typing import Any

import grpc
import structlog

from allocator.client.channel import Access
from allocator.client.follower import PAUSE_SECONDS, Change, Follower
from allocator.client.leases import Leases, request_of
from allocator.client.outbox import Outbox
from allocator.core.decider import Decider, Exposure
from allocator.core.outcome import Outcome
from allocator.engine.exposures import ExposureBatch
from allocator.engine.ingest import MAX_OUTCOMES, Result, Status
from allocator.engine.live import Live
from allocator.errors import AllocatorError, InvalidArgument, Unavailable
from allocator.ports import Clock, Entropy
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from allocator.wire.exposures import NUMBERS, exposure_to_message
from allocator.wire.status import from_rpc_error

CALL_SECONDS = 5.0
KEYS = 256
STATUSES = {number: Status[name.removeprefix("OUTCOME_STATUS_")] for name, number in pb.OutcomeStatus.items() if number}

log = structlog.get_logger()


class Relay:
    """Stands where an `Engine` does. `low` and `changed` aside, everything may be called from any thread.

    on_loop: runs a function where decisions are made. metadata: of each call upstream.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        clock: Clock,
        entropy: Entropy,
        access: Access,
        on_loop: Callable[[Callable[[], None]], None],
        pause: tuple[float, float] = PAUSE_SECONDS,
    ) -> None:
        self.clock = clock
        self.entropy = entropy
        self.live = Live(clock)
        self._life = int(clock.now() * 1e6)
        self.decider = Decider(b"", life=self._life)
        self.ingest = self  # what an engine has as a part of its own
        self.ready = threading.Event()
        stub = service_grpc.AllocatorServiceStub(channel)
        self._report_outcomes = stub.ReportOutcomes
        self._lease_exposure = stub.LeaseExposure
        self._metadata = access.metadata
        self._on_loop = on_loop
        self._outbox = Outbox(1, self._life)
        self._leases = Leases(self.decider)
        self._lease_lock = threading.Lock()
        self._sending = threading.Lock()
        self._taken: tuple[tuple[int, bytes], ...] = ()
        self._keys: Any = iter(())
        self._keys_lock = threading.Lock()
        self.follower = Follower(stub.WatchSnapshots, clock, self._heard, metadata=access.metadata, keys=KEYS, pause=pause)

    def start(self) -> None:
        """Follow the upstream."""
        self.follower.start()

    def close(self) -> None:
        """Send the last exposures, as far as the upstream takes them now, and stop following."""
        while exposures := self.decider.take():
            self._outbox.put_exposures(self.rows(exposures))
        try:
            self._send_own()
        except AllocatorError as error:
            log.warning("exposures.lost", decisions=self._outbox.pending_exposures, reason=error.reason, error=error.message)
        self.follower.stop()

    def issue_keys(self, count: int) -> list[tuple[int, bytes]]:
        """Numbers and keys for deciders that watch this edge. Raises Unavailable before the upstream has given any."""
        with self._keys_lock:
            found = list(islice(self._keys, count))
        if len(found) < count:
            raise Unavailable("the upstream has given no keys yet", reason="NO_KEYS")
        return found

    def lease_exposure(self, wanted: Sequence[tuple[str, int, str, int]]) -> list[tuple[int, int]]:
        """As `Engine.lease_exposure`, upstream. Raises what the upstream did."""
        leases = [
            service_pb.ExposureLease(uid=uid, arm=arm, kind=NUMBERS[kind], exposures=exposures)  # type: ignore[arg-type]
            for uid, arm, kind, exposures in wanted
        ]
        reply = self._call(self._lease_exposure, service_pb.LeaseExposureRequest(leases=leases))
        return [(grant.exposures, grant.activation) for grant in reply.grants]

    def fill_leases(self) -> None:
        """Fill up the leases of the edge's own decider. An upstream that gives no answer is told of in the log, and asked again."""
        with self._lease_lock:
            wanted = self._leases.wanted(self.live.snapshot, self.clock.monotonic())
            if not wanted:
                return
            try:
                reply = self._call(self._lease_exposure, request_of(wanted))
            except AllocatorError as error:
                log.warning("budget.not_granted", reason=error.reason, error=error.message)
                return
            self._leases.granted(wanted, reply, self.clock.monotonic())

    def report(self, outcomes: Sequence[Outcome], exposures: Sequence[Exposure] = ()) -> list[Result]:
        """As `Ingest.report`, upstream."""
        return self.receive(outcomes, self.rows(exposures))[0]

    def rows(self, exposures: Sequence[Exposure]) -> list[service_pb.ExposureCount]:
        """As `Ingest.rows`: the edge's own exposures as they go upstream."""
        return [exposure_to_message(e) for e in exposures]

    def begin(self, _outcomes: Sequence[Outcome], _exposures: Sequence[service_pb.ExposureCount]) -> None:
        """Nothing can be begun without waiting for the upstream: see `Ingest.begin`."""

    def receive(
        self, outcomes: Sequence[Outcome], exposures: Sequence[service_pb.ExposureCount] = (), batches: Sequence[ExposureBatch] = ()
    ) -> tuple[list[Result], int]:
        """As `Ingest.receive`, upstream: returns when it was acknowledged there, raises what was raised there.

        The exposures are this edge's own: taken over when this returns, to be held and sent by the outbox, and the caller's when it raises.
        """
        if len(outcomes) > MAX_OUTCOMES:
            raise InvalidArgument.of_field(
                "outcomes", f"got {len(outcomes)}; at most {MAX_OUTCOMES} in one report are allowed", reason="BATCH_TOO_LARGE"
            )
        if not outcomes and not batches:
            self._outbox.put_exposures(exposures)
            return [], 0
        request = service_pb.ReportOutcomesRequest()
        for outcome in outcomes:
            message = request.outcomes.add(decision_id=outcome.decision_id, metrics=outcome.metrics)
            if outcome.reward is not None:
                message.reward = outcome.reward
        for batch in batches:
            request.exposures.add(id=batch.id, life=batch.life, counts=map(exposure_to_message, batch.counts))
        reply = self._call(self._report_outcomes, request)
        self._outbox.put_exposures(exposures)
        return [_result(result.status, result.reason, result.message) for result in reply.results], reply.lost_exposures

    def send(self) -> None:
        """Send the exposures that were taken over. What does not get through is held, and goes with the next call."""
        try:
            self._send_own()
        except AllocatorError as error:
            log.info("exposures.held", decisions=self._outbox.pending_exposures, reason=error.reason)

    def _send_own(self) -> None:
        """Send what the edge's own decider has counted."""
        with self._sending:
            while (batch := self._outbox.batch()) is not None:
                try:
                    self._outbox.settle(self._call(self._report_outcomes, batch.request(self._life)))
                except InvalidArgument as error:
                    log.error("exposures.refused", decisions=sum(e.count for e in batch.exposures), error=error.message)
                    self._outbox.refuse(error.violations)

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=CALL_SECONDS, metadata=self._metadata())
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc

    def _heard(self, change: Change | None) -> None:
        """The follower has read a message. In its thread."""
        table = self.follower.table
        if table.keys and table.keys is not self._taken:
            self._taken = table.keys
            (number, key), *others = table.keys
            self._on_loop(lambda: self.decider.rekey(key, number))
            with self._keys_lock:
                self._keys = cycle(others or table.keys)
        if change is not None:
            if table.snapshot.epoch != self.live.snapshot.epoch:
                self.live.begin(table.snapshot.epoch, table.snapshot.entries.values())
            else:
                self.live.publish(change.entries, change.removed)
        self.live.confirmed = table.confirmed
        if table.complete:
            self.ready.set()


@lru_cache(256)
def _result(status: int, reason: str, message: str) -> Result:
    """The same object for what is told again and again: answers are kept for it."""
    return Result(STATUSES.get(status, Status.REFUSED), reason, message)
