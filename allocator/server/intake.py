"""Reports on their way to the store: a bounded queue, several of them in one commit, and none for a caller who has gone.

In: the outcomes of one call. Out: their results, once durable. A commit costs about the same for one outcome and for hundreds, so what
arrives while others are being committed waits and shares the next one. Where the queue is full a report is refused at once with the time
after which there should be room: waiting longer than its caller does helps nobody, and decisions need the machine too. A report whose
caller's deadline passed in the queue is dropped unseen; it will be sent again, and counts once. Commits begin at least 10 ms apart, since
the way to another thread and back costs as much processor time as several decisions, and many callers report one outcome at a time.

A few outcomes are checked here, in the event loop, and handed to the store, which calls back: one thread less that fights the loop for
the interpreter. Many are checked in a thread, since a decision would have to wait for that.

A fault in one report must not refuse its neighbours: where values break a contract nothing of the commit was counted, and each half of it
goes by itself, until the fault is alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from allocator.core.decider import Decider, Exposure
from allocator.core.outcome import Outcome
from allocator.engine.exposures import ExposureBatch
from allocator.engine.ingest import MAX_OUTCOMES, Ingest, Result
from allocator.errors import InvalidArgument, Overloaded
from allocator.server.metrics import Metrics

COMMITS = 4  # at a time; more only wait for the same disk
APART_SECONDS = 0.010  # between the beginnings of two: after a pause a report does not wait
FEW = 50  # outcomes; a report of more is worth a commit of its own at once
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 0.05, 5.0
METHOD = "ReportOutcomes"

Answer = tuple[list[Result], int]
T = TypeVar("T")


class Waiting(NamedTuple):
    """A report in the queue. `answer` is cancelled when its caller goes."""

    outcomes: Sequence[Outcome]
    batches: Sequence[ExposureBatch]
    answer: asyncio.Future[Answer]
    since: float


@dataclass(slots=True, eq=False)
class Commit:
    """Reports that are counted in one step, and the exposures that go with them."""

    group: list[Waiting]
    started: float
    exposures: list[Exposure]


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
        self._commits = 0  # under way
        self._ended: asyncio.Future[None] | None = None
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
        loop = asyncio.get_running_loop()
        waiting = Waiting(outcomes, batches, loop.create_future(), self._monotonic())
        self._queue.append(waiting)
        self._held += 1
        if self._timer is None and self._commits < COMMITS:
            wait = self._begun + APART_SECONDS - loop.time()
            if wait > 0 and len(outcomes) < FEW:
                self._timer = loop.call_later(wait, self._begin)
            else:
                self._begin()
        try:
            return await waiting.answer
        finally:
            self._held -= 1

    async def flush(self) -> None:
        """Store the exposures that no report has taken along. Raises AllocatorError.

        Who is cancelled meanwhile does not undo it: they are given back when the store has refused them, and only then.
        """
        for _ in range(self._decider.helpings(self._monotonic())):
            if exposures := self._decider.take(self._monotonic()):
                await self._store(exposures)

    async def _store(self, exposures: list[Exposure]) -> None:
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()

        def tell(done: Future[Answer]) -> None:
            error = done.exception()
            if error is not None:
                self._decider.give_back(exposures)
            if not told.done():
                told.set_exception(error) if error is not None else told.set_result(None)
            self._end()

        self._commits += 1
        _when_done(self._threads.submit(self._ingest.receive, [], exposures), loop, tell)
        await told

    async def close(self) -> None:
        """Wait for what is under way, so that nothing is given back that is being stored."""
        if self._commits:
            self._ended = asyncio.get_running_loop().create_future()
            await self._ended

    def _end(self) -> None:
        """One commit less is under way: go on with what waits."""
        self._commits -= 1
        if not self._commits and self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        if self._timer is None:
            self._begin()

    def _begin(self) -> None:
        """Start as many commits as may run, of what waits."""
        self._timer = None
        while self._commits < COMMITS and (group := self._next()):
            self._commit(group)

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

    def _commit(self, group: list[Waiting]) -> None:
        """Begin one. `_done` ends it, in this loop."""
        self._commits += 1
        loop = asyncio.get_running_loop()
        self._begun = loop.time()
        commit = Commit(group, self._monotonic(), self._decider.take(self._monotonic()))
        outcomes = [outcome for waiting in group for outcome in waiting.outcomes]
        begun = None
        if len(outcomes) < FEW and not group[0].batches:
            try:
                begun = self._ingest.begin(outcomes, commit.exposures)
            except Exception as error:
                self._done(commit, error=error)
                return
        if begun is not None:
            _when_done(begun.counted, loop, lambda _: self._counted(commit, lambda: self._ingest.answers(begun)))
        else:
            work = self._threads.submit(self._ingest.receive, outcomes, commit.exposures, group[0].batches)
            _when_done(work, loop, lambda done: self._counted(commit, done.result))

    def _counted(self, commit: Commit, answer: Callable[[], Answer]) -> None:
        try:
            found = answer()
        except Exception as error:
            self._done(commit, error=error)
        else:
            self._done(commit, found)

    def _done(self, commit: Commit, answer: Answer | None = None, error: Exception | None = None) -> None:
        """Tell the callers."""
        group = commit.group
        if answer is None:
            self._decider.give_back(commit.exposures)
            if isinstance(error, InvalidArgument) and len(group) > 1:
                half = len(group) // 2
                self._commit(group[:half])
                self._commit(group[half:])
            else:
                _fail(group, error)
        else:
            now = self._monotonic()
            self._seconds += (now - commit.started - self._seconds) / 8
            results, lost = answer
            at = 0
            for waiting in group:
                self._observe(now - waiting.since)
                if not waiting.answer.done():
                    waiting.answer.set_result((results[at : at + len(waiting.outcomes)], lost))
                at += len(waiting.outcomes)
        self._end()


def _when_done(work: Future[T], loop: asyncio.AbstractEventLoop, tell: Callable[[Future[T]], None]) -> None:
    """Have `tell` called in the loop, never from here, once the work is done; nobody is told in a loop that has ended."""
    if work.done():
        loop.call_soon(tell, work)  # a third of the price of waking a loop from another thread
        return

    def call(done: Future[T]) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, done)

    work.add_done_callback(call)


def _fail(group: Sequence[Waiting], error: Exception | None) -> None:
    for waiting in group:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
