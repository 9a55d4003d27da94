"""Reports on their way to the store: a bounded queue, several of them in one commit, and none for a caller who has gone.

In: the outcomes of one call. Out: their results, once durable. A commit costs about the same for one outcome and for hundreds, so what
arrives while others are being committed waits and shares the next one. Where the queue is full a report is refused at once with the time
after which there should be room: waiting longer than its caller does helps nobody, and decisions need the machine too. A report whose
caller's deadline passed in the queue is dropped unseen; it will be sent again, and counts once. Commits begin at least 10 ms apart, since
the way to another thread and back costs as much processor time as several decisions, and many callers report one outcome at a time.

A few outcomes are checked here, in the event loop, and handed to the store, which calls back: one thread less that fights the loop for
the interpreter. Many are checked in a thread, since a decision would have to wait for that.

Exposures that no report takes along are stored one to four times a second. They are made ready here as well, a few experiments at a time
with rests between, so that with traffic on thousands no decision waits for much of it: a thread that makes rows of hundreds at once holds
the interpreter against the loop, and the calls of that while take several times as long. A report takes along what is ready.

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
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from allocator.core.decider import TAKEN_AT_ONCE, Decider, Exposure
from allocator.core.outcome import Outcome
from allocator.engine.exposures import ExposureBatch
from allocator.engine.ingest import MAX_OUTCOMES, Ingest, Result
from allocator.errors import InvalidArgument, Overloaded
from allocator.server.metrics import Metrics

COMMITS = 4  # at a time; more only wait for the same disk
APART_SECONDS = 0.010  # between the beginnings of two: after a pause a report does not wait
TAKEN_BETWEEN_RESTS = 6  # experiments whose exposures are made ready between two rests, some 0.3 ms; more where the rests would add up
REST_SECONDS = 0.003
FEW_RESTS = 100  # beyond, pieces grow, up to `TAKEN_AT_ONCE`
ROWS_AT_ONCE = 1000  # in one step: others wait behind it, and what a store refuses is all given back
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
class Taken:
    """Exposures on their way from the decider to the store. rows: the same, as `Ingest.rows` made them."""

    exposures: list[Exposure] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)


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
        self._taken = Taken()
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
        waiting = self._decider.waiting(self._monotonic())
        most = min(max(TAKEN_BETWEEN_RESTS, -(-waiting // FEW_RESTS)), TAKEN_AT_ONCE)
        for piece in range(max(1, -(-waiting // most))):
            if piece:
                await asyncio.sleep(REST_SECONDS)
            self._take(most)
            if len(self._taken.rows) >= ROWS_AT_ONCE:
                await self._store(self._hand_over())
        if self._taken.exposures:
            await self._store(self._hand_over())

    def _take(self, most: int) -> None:
        """Take what was counted of some experiments, and make it ready."""
        exposures = self._decider.take(self._monotonic(), most)
        try:
            self._taken.rows += self._ingest.rows(exposures)
        except BaseException:
            self._decider.give_back(exposures)
            raise
        self._taken.exposures += exposures

    def _hand_over(self) -> Taken:
        """All that is ready: it is the caller's to store, or to give back."""
        taken, self._taken = self._taken, Taken()
        return taken

    async def _store(self, taken: Taken) -> None:
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell(_: Answer | None, error: Exception | None) -> None:
            if not told.done():
                told.set_exception(error) if error is not None else told.set_result(None)

        self._count([], taken, (), tell)
        await told

    async def close(self) -> None:
        """Wait for what is under way, so that nothing is given back that is being stored. What is only ready is given back."""
        if self._commits:
            self._ended = asyncio.get_running_loop().create_future()
            await self._ended
        self._decider.give_back(self._hand_over().exposures)

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
        self._begun = asyncio.get_running_loop().time()
        started = self._monotonic()
        try:
            self._take(TAKEN_AT_ONCE)
        except Exception as error:
            _fail(group, error)
            return
        outcomes = [outcome for waiting in group for outcome in waiting.outcomes]
        self._count(outcomes, self._hand_over(), group[0].batches, lambda answer, error: self._done(group, started, answer, error))

    def _count(self, outcomes: list[Outcome], taken: Taken, batches: Sequence[ExposureBatch], tell: Callable[..., None]) -> None:
        """Have all this counted in one step. `tell` gets the answer or the error, in this loop."""
        self._commits += 1
        begun = None

        def end(answer: Answer | None, error: Exception | None = None) -> None:
            if error is not None:
                self._decider.give_back(taken.exposures)
            try:
                tell(answer, error)
            finally:
                self._end()

        def counted(answer: Callable[[], Answer]) -> None:
            try:
                found = answer()
            except Exception as error:
                end(None, error)
            else:
                end(found)

        if len(outcomes) < FEW and not batches:
            try:
                begun = self._ingest.begin(outcomes, taken.rows)
            except Exception as error:
                end(None, error)
                return
        loop = asyncio.get_running_loop()
        if begun is not None:
            _when_done(begun.counted, loop, lambda _: counted(lambda: self._ingest.answers(begun)))
        else:
            work = self._threads.submit(self._ingest.receive, outcomes, taken.rows, batches)
            _when_done(work, loop, lambda done: counted(done.result))

    def _done(self, group: list[Waiting], started: float, answer: Answer | None, error: Exception | None) -> None:
        """Tell the callers."""
        if answer is None:
            if isinstance(error, InvalidArgument) and len(group) > 1:
                half = len(group) // 2
                self._commit(group[:half])
                self._commit(group[half:])
            else:
                _fail(group, error)
            return
        now = self._monotonic()
        self._seconds += (now - started - self._seconds) / 8
        results, lost = answer
        at = 0
        for waiting in group:
            self._observe(now - waiting.since)
            if not waiting.answer.done():
                waiting.answer.set_result((results[at : at + len(waiting.outcomes)], lost))
            at += len(waiting.outcomes)


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
