"""Holds what is to be reported until it has been: outcomes and exposures in, one bounded batch at a time out.

Values only: no thread, no clock, no transport; `client/local.py` sends. Nothing is lost while a server is away, up to a bound: beyond it
the oldest go, and are counted. A batch stays the same until it is settled, so what was counted although its answer was lost counts once:
outcomes by their decision ids, exposures by the batch's own.

One outcome outside its contract refuses a whole report (the server counts all or nothing), so what the refusal names is taken out and the
rest sent again; a refusal that names nothing takes the batch.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from allocator.errors import Violation
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb

MAX_OUTCOMES = 1000  # in a batch
MAX_BYTES = 1 << 20
MAX_EXPOSURES = 1000
MAX_EXPOSURES_HELD = 100_000
STATUSES = {number: name.removeprefix("OUTCOME_STATUS_") for name, number in pb.OutcomeStatus.items()}
OF_OUTCOME = re.compile(r"outcomes\[(\d+)\]")

Told = tuple[str, float | None, Mapping[str, float] | None]  # decision id, reward, metrics
Place = tuple[str, int, int, int, int]  # the first five fields of an ExposureCount


class Batch(NamedTuple):
    """What is being sent. exposures: under `id`."""

    id: bytes
    outcomes: list[Told]
    exposures: list[service_pb.ExposureCount]

    def request(self, life: int) -> service_pb.ReportOutcomesRequest:
        """As a message."""
        request = service_pb.ReportOutcomesRequest()
        for decision_id, reward, metrics in self.outcomes:
            outcome = request.outcomes.add(decision_id=decision_id, metrics=metrics)
            if reward is not None:
                outcome.reward = reward
        if self.exposures:
            request.exposures.add(id=self.id, life=life, counts=self.exposures)
        return request


class Outbox:
    """Outcomes and exposures not reported yet. Any thread may call; one at a time may send.

    capacity: outcomes held at most. results: what became of outcomes (ACCEPTED, DUPLICATE, LATE, REFUSED, IGNORED). dropped: outcomes
    that had to go; dropped_exposures, lost_exposures: decisions never counted, because they had to go here or came too late there.
    """

    def __init__(self, capacity: int, life: int) -> None:
        self._capacity = capacity
        self._life = life
        self._lock = threading.Lock()
        self._outcomes: deque[Told] = deque()
        self._exposures: dict[Place, service_pb.ExposureCount] = {}
        self._batch: Batch | None = None
        self.results: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.dropped = 0
        self.dropped_exposures = 0
        self.lost_exposures = 0

    @property
    def pending(self) -> int:
        """Outcomes held, those being sent included."""
        batch = self._batch
        return len(self._outcomes) + (len(batch.outcomes) if batch is not None else 0)

    @property
    def pending_exposures(self) -> int:
        """Decisions held whose exposure is not reported, those being sent included."""
        with self._lock:
            batch = self._batch
            return sum(e.count for e in self._exposures.values()) + sum(e.count for e in (batch.exposures if batch else ()))

    def put(self, outcome: Told) -> bool:
        """Hold an outcome; the oldest goes when there is no room. True when there is enough for a whole batch."""
        with self._lock:
            if len(self._outcomes) >= self._capacity:
                self._outcomes.popleft()
                self.dropped += 1
            self._outcomes.append(outcome)
            return len(self._outcomes) >= MAX_OUTCOMES

    def put_exposures(self, exposures: Sequence[service_pb.ExposureCount]) -> None:
        """Hold exposures, added up; the oldest go when there is no room. The messages are the outbox's from now on."""
        with self._lock:
            for e in exposures:
                held = self._exposures.setdefault((e.uid, e.activation, e.bucket, e.arm, e.segment), e)
                if held is not e:
                    held.count += e.count
                    held.units += e.units
                    held.drawn += e.drawn
                    held.expected += e.expected
                    held.variance += e.variance
            while len(self._exposures) > MAX_EXPOSURES_HELD:
                self.dropped_exposures += self._exposures.pop(next(iter(self._exposures))).count

    def batch(self) -> Batch | None:
        """The batch to send: the one that is not settled yet, or else the oldest of what is held. None: there is nothing."""
        with self._lock:
            if self._batch is None:
                outcomes, size = [], 0
                while self._outcomes and len(outcomes) < MAX_OUTCOMES and size < MAX_BYTES:
                    outcome = self._outcomes.popleft()
                    size += _size(outcome)
                    outcomes.append(outcome)
                exposures = [self._exposures.pop(place) for place in list(islice(self._exposures, MAX_EXPOSURES))]
                if outcomes or exposures:
                    self._batch = Batch(os.urandom(8), outcomes, exposures)
            return self._batch

    def settle(self, reply: service_pb.ReportOutcomesResponse) -> None:
        """The server has answered for the batch."""
        with self._lock:
            for result in reply.results:
                self.results[STATUSES.get(result.status, "REFUSED")] += 1
                if result.reason:
                    self.reasons[result.reason] += 1
            self.lost_exposures += reply.lost_exposures
            self._batch = None

    def refuse(self, violations: Sequence[Violation]) -> None:
        """The server refused the batch for these values: take them out of it, or all of it when they are not named."""
        with self._lock:
            batch = self._batch
            if batch is None:
                return
            bad = {int(found[1]) for violation in violations if (found := OF_OUTCOME.match(violation.field))}
            bad &= set(range(len(batch.outcomes)))
            counts = any(violation.field.startswith("exposures") for violation in violations)
            if not bad and not counts:
                bad, counts = set(range(len(batch.outcomes))), True
            if bad:
                self.results["REFUSED"] += len(bad)
                self.reasons["INVALID_OUTCOME"] += len(bad)
            if counts:
                self.lost_exposures += sum(e.count for e in batch.exposures)
            left = [outcome for index, outcome in enumerate(batch.outcomes) if index not in bad]
            exposures = [] if counts else batch.exposures
            self._batch = Batch(batch.id, left, exposures) if left or exposures else None

    def drop(self) -> None:
        """Give up everything held."""
        with self._lock:
            batch, self._batch = self._batch, None
            self.dropped += len(self._outcomes) + (len(batch.outcomes) if batch is not None else 0)
            self.dropped_exposures += sum(e.count for e in self._exposures.values())
            self.dropped_exposures += sum(e.count for e in batch.exposures) if batch is not None else 0
            self._outcomes.clear()
            self._exposures.clear()


def _size(outcome: Told) -> int:
    """Bytes of the message, about."""
    decision_id, _, metrics = outcome
    return len(decision_id) + 16 + sum(3 * len(name) + 16 for name in metrics or ())
