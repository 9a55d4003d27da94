"""Reports on their way to the store: a bounded queue, several of them in one commit, and none for a caller who has gone.

In: the outcomes of one call. Out: their results, once durable. A commit costs about the same for one outcome and for hundreds, so what
arrives while others are being committed waits and shares the next one. Where the queue is full a report is refused at once with the time
after which there should be room: waiting longer than its caller does helps nobody, and decisions need the machine too. A report whose
caller's deadline passed in the queue is dropped unseen; it will be sent again, and counts once. Commits begin at least 5 ms apart, since
the way to another thread and back costs as much processor time as half a decision, and many callers report one outcome at a time.

A fault in one report must not refuse its neighbours: where values break a contract nothing of the commit was counted, and each goes alone.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from allocator.core.decider import Decider
from allocator.core.outcome import Outcome
from allocator.engine.exposures import ExposureBatch
from allocator.engine.ingest import MAX_OUTCOMES, Ingest, Result
from allocator.errors import InvalidArgument, Overloaded
from allocator.server.metrics import Metrics

COMMITS = 4  # at a time; more only wait for the same disk
APART_SECONDS = 0.005  # between the beginnings of two: after a pause a report does not wait
FEW = 50  # outcomes; a report of more is worth a commit of its own at once
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 0.05, 5.0
METHOD = "ReportOutcomes"

Answer = tuple[list[Result], int]


class Waiting(NamedTuple):
    """A report in the queue. `answer` is cancelled when its caller goes."""

    outcomes: Sequence[Outcome]
    batches: Sequence[ExposureBatch]
    answer: asyncio.Future[Answer]
    since: float


class Intake:
    """The queue before `Ingest.receive`; it belongs to the event loop. limit: reports that may wait or be under way."""

    def __init__(
        self,
        ingest: Ingest,
        decider: Decider,
        threads: ThreadPoolExecutor,
        metrics: Metrics,
        monotonic: Callable[[], float],
        limit: int,
    ) -> None:
        self._ingest = ingest
        self._decider = decider
        self._threads = threads
        self._monotonic = monotonic
        self._limit = limit
        self._shed = metrics.shed.labels(METHOD)
        self._dropped = metrics.dropped.labels(METHOD)
        self._observe = metrics.commit_duration.observe
        self._queue: deque[Waiting] = deque()
        self._held = 0
        self._commits: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._begun = -math.inf  # the last commit
        self._seconds = LEAST_RETRY_SECONDS  # of a commit, lately

    async def report(self, outcomes: Sequence[Outcome], batches: Sequence[ExposureBatch] = ()) -> Answer:
        """As `Ingest.receive`. Raises Overloaded, with the seconds after which to try again, when too much waits already."""
        if self._held >= self._limit:
            self._shed.inc()
            rounds = 1 + len(self._queue) // COMMITS
            raise Overloaded(
                f"{self._held} reports wait for the store; at most {self._limit} may",
                retry_after_seconds=min(max(self._seconds * rounds, LEAST_RETRY_SECONDS), MOST_RETRY_SECONDS),
                reason="TOO_MANY_REPORTS",
                limit=self._limit,
            )
        waiting = Waiting(outcomes, batches, asyncio.get_running_loop().create_future(), self._monotonic())
        self._queue.append(waiting)
        self._held += 1
        if self._timer is None and len(self._commits) < COMMITS:
            wait = self._begun + APART_SECONDS - asyncio.get_running_loop().time()
            if wait > 0 and len(outcomes) < FEW:
                self._timer = asyncio.get_running_loop().call_later(wait, self._begin)
            else:
                self._begin()
        try:
            return await waiting.answer
        finally:
            self._held -= 1

    async def flush(self) -> None:
        """Store the exposures that no report has taken along. Raises AllocatorError."""
        exposures = self._decider.take()
        if exposures:
            await self._receive([], exposures, [])

    def _begin(self) -> None:
        self._timer = None
        task = asyncio.create_task(self._work())
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)

    async def _work(self) -> None:
        while group := self._next():
            await self._commit(group)

    def _next(self) -> list[Waiting]:
        """The next reports that fit into one commit. One with batches goes alone: what was lost of them is told by call."""
        group: list[Waiting] = []
        outcomes = 0
        while self._queue:
            waiting = self._queue[0]
            if waiting.answer.done():
                self._queue.popleft()
                self._dropped.inc()
                continue
            outcomes += len(waiting.outcomes)
            if group and (outcomes > MAX_OUTCOMES or waiting.batches):
                break
            group.append(self._queue.popleft())
            if waiting.batches:
                break
        return group

    async def _commit(self, group: list[Waiting]) -> None:
        started, self._begun = self._monotonic(), asyncio.get_running_loop().time()
        outcomes = [outcome for waiting in group for outcome in waiting.outcomes]
        try:
            results, lost = await self._receive(outcomes, self._decider.take(), group[0].batches)
        except InvalidArgument as error:
            if len(group) == 1:
                _fail(group, error)
            else:
                for waiting in group:
                    await self._commit([waiting])
            return
        except Exception as error:
            _fail(group, error)
            return
        now = self._monotonic()
        self._seconds += (now - started - self._seconds) / 8
        at = 0
        for waiting in group:
            self._observe(now - waiting.since)
            if not waiting.answer.done():
                waiting.answer.set_result((results[at : at + len(waiting.outcomes)], lost))
            at += len(waiting.outcomes)

    async def _receive(self, outcomes: Sequence[Outcome], exposures: list, batches: Sequence[ExposureBatch]) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._ingest.receive, outcomes, exposures, batches)
        except BaseException:
            self._decider.give_back(exposures)
            raise


def _fail(group: Sequence[Waiting], error: Exception) -> None:
    for waiting in group:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
