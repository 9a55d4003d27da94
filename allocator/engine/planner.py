"""The planner: statistics → plan → store, with its audit records → publish → leases.

In: which experiments have new outcomes, and the time. Out: new weights and state changes, stored and in force. One thread carries it out.
It is woken when losses were committed and looks at the guardrails of those experiments at once; what else was counted is taken along at
each refresh, when weights follow. An experiment to which nothing happens costs nothing. What comes first and what can wait: `agenda.py`. A
pass in which a loss is told breaks off and begins again with it; after a long pass there is a pause as long, and a plan that can wait lets
go of the processor between its steps, so that decisions are not held up for as long as there is something to plan.

Of all servers on one store one plans, for a term; the others follow: they publish what it saved, and keep their own leases of budgets
filled. A server that takes over looks at every experiment once, some at a time, those that changed last first. Its writes carry the
number of the term, and it makes none when the term is over by its own clock.

A plan whose record was changed meanwhile is refused by the store and made again. A freeze that cannot be stored is served all the same
and stored as soon as that is possible.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import structlog

from allocator.core.audit import AuditEntry
from allocator.core.budget import leases_requests, leases_units
from allocator.core.budget import limits as budget_limits
from allocator.core.lifecycle import State
from allocator.core.plan import Plan, carried_out, plan
from allocator.core.record import Record
from allocator.core.settling import GRACE_SECONDS, coarsening
from allocator.core.tally import Tally, tally
from allocator.engine.agenda import Agenda, Turn
from allocator.engine.follower import Follower
from allocator.engine.grants import Grants
from allocator.engine.keeper import Keeper
from allocator.engine.live import Live
from allocator.engine.registry import Registry
from allocator.engine.term import Term
from allocator.errors import AllocatorError, InvalidArgument, Overloaded, Unavailable
from allocator.ports import Clock, Pending, Save, Settle, Store

ACTOR = "planner"
SAFER = ("experiment.freeze", "arm.drain")  # actions of a plan that must not be forgotten
LOOK_AGAIN_SECONDS = 30.0  # after which an experiment with open buckets is due even when nothing is reported
LEAST_PAUSE_SECONDS = 0.02  # between two passes, so that a burst of outcomes is planned once; longer, and freezes come later
JUMP_SECONDS = 5.0  # by which the wall clock may run ahead of the monotonic one between two passes
RETRY_SECONDS = 0.5  # after a pass that failed: a store that is gone is not asked at each wake-up
PASS_SECONDS = 0.05  # that a pass gives to what can wait before it breaks off for a loss
LONGEST_PAUSE_SECONDS = 1.0  # after a long pass
BREATH_SECONDS = 50e-6  # between two steps of a plan that can wait
PASS_EXPERIMENTS = 256  # planned in one pass, so that after a takeover of thousands a freeze does not wait for all of them

log = structlog.get_logger()


def _go_on() -> None:
    """Between the steps of a plan that cannot wait."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The last plan of an experiment. seconds: when; duration_seconds: how long it took."""

    record: Record
    plan: Plan
    tally: Tally
    seconds: float
    duration_seconds: float


class Planner:
    """Plans every experiment that needs it. `tick` is one pass; `run` makes them until `stop`."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        live: Live,
        grants: Grants,
        keeper: Keeper,
        term: Term,
        clock: Clock,
        refresh_seconds: float = 1.0,
        observe: Callable[[Planned], None] | None = None,
    ) -> None:
        self._store = store
        self._registry = registry
        self._live = live
        self._grants = grants
        self._keeper = keeper
        self._term = term
        self._follower = Follower(store, registry, keeper, clock)
        self._clock = clock
        self._refresh = refresh_seconds
        self._observe = observe
        self._mark = 0
        self._number: int | None = None  # of the term in which everything was looked at
        self._healthy = True
        self._pace: float | None = None  # wall clock less monotonic clock, at the last look
        self._agenda = Agenda()
        self._weighed: dict[str, float] = {}
        self._limited: dict[str, float] = {}
        self._filled = -math.inf
        self._woken = threading.Event()
        self._hurried = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._stop_listening: Callable[[], None] | None = None
        self._pass_lock = threading.Lock()
        self._breathe: Callable[[], object] = _go_on
        self.crashes = 0  # of plans, since the start
        self.last: dict[str, Planned] = {}  # of each uid that is planned here; another planner knows better, and the end needs none

    def wake(self) -> None:
        """A record was changed, here or elsewhere, or a lease runs low: look now."""
        self._woken.set()
        self._hurried.set()

    def counted(self, outcomes: Collection[str], exposures: Collection[str], losses: Collection[str]) -> None:
        """The experiments of which this server has just counted outcomes, exposures, losses. Losses are looked at now."""
        self._agenda.counted(outcomes, exposures, losses)
        if losses:
            self.wake()

    def start(self) -> None:
        """Run in a thread of its own, which pauses between the steps of a plan that can wait, unless something is urgent."""
        self._breathe = lambda: self._hurried.wait(BREATH_SECONDS)
        self._thread = threading.Thread(target=self.run, name="planner", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the pass that it is in, and make room for another planner."""
        self._stopped.set()
        self.wake()
        if self._thread is not None:
            self._thread.join()
        if self._stop_listening is not None:
            self._stop_listening()
        with self._pass_lock:
            self._term.resign()
            self._keeper.flush(now=True)

    def run(self) -> None:
        """Pass after pass: at each wake-up, and at each refresh."""
        while not self._stopped.is_set():
            self._woken.wait(self._refresh)
            self._woken.clear()
            if self._stopped.is_set():
                return
            pause = LEAST_PAUSE_SECONDS
            begun = time.perf_counter()
            try:
                if self._stop_listening is None:
                    self._stop_listening = self._store.listen(self.wake)
                self.tick()
            except AllocatorError as error:
                log.warning("planner.failed", reason=error.reason, error=error.message)
                pause = RETRY_SECONDS
            except Exception:
                log.exception("planner.crashed")
                pause = RETRY_SECONDS
            took = time.perf_counter() - begun
            self._stopped.wait(pause)
            if took > pause:
                self._hurried.wait(min(took, LONGEST_PAUSE_SECONDS) - pause)

    def tick(self, most: int = PASS_EXPERIMENTS) -> list[Planned]:
        """One pass: hear what others did; as the planner, plan what has new outcomes or is due, save, publish; fill leases.

        most: how many to plan, beside those that somebody asked for; the others' turn comes in the next pass. Returns what was planned.
        Raises Unavailable when the store cannot be read; the table is then not confirmed.
        """
        with self._pass_lock:
            return self._pass(most)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No pass while this lasts; afterwards everything is compared with the store again."""
        with self._pass_lock:
            yield
            self._follower.start_over()
            self._number = None
        self.wake()

    def catch_up(self) -> None:
        """Hear what others did, now. Raises Unavailable."""
        with self._pass_lock:
            for record in self._follower.look():
                self.replan(record.uid)

    def replan(self, uid: str) -> None:
        """Plan this experiment in the next pass, weights included, whether or not it has new outcomes."""
        self._agenda.ask(uid)
        self.wake()

    def _pass(self, most: int) -> list[Planned]:
        self._hurried.clear()
        now = self._clock.now()
        self._hear()
        if self._keeper.lost:
            return self._be_lost()
        number = self._term.hold(healthy=self._healthy)
        self._healthy = False
        if number is not None and number != self._number:
            self._hear()  # what the planner before saved since the first look; from now on nobody else's plan is stored
            if self._keeper.lost:
                return self._be_lost()
        self._keeper.push()
        planned = self._follow(now) if number is None else self._lead(number, now, most)
        self._keeper.flush()
        self._healthy = True
        return planned

    def _hear(self) -> None:
        """Hear of records that others changed, to look at them, weights included."""
        heard = [record.uid for record in self._follower.look()]
        self._agenda.again(heard)
        for uid in heard:
            self._weighed.pop(uid, None)

    def _be_lost(self) -> list[Planned]:
        """Candidates get nothing from a table whose store is lost, and nobody plans it."""
        self._number = None
        self._live.distrust()
        self._term.resign()
        self._keeper.reassert()
        return []

    def _lead(self, number: int, now: float, most: int) -> list[Planned]:
        self._mark, changed = self._store.changed(self._mark)
        taken_over = self._number is None or number not in (self._number, self._number + 1)  # somebody else's term may have been between
        self._agenda.changed(() if taken_over else changed, now, shared=self._store.shared)
        if taken_over:
            self._agenda.everything((*changed, *self._registry.uids()))
        self._number = number
        self._keep_pace(now)
        turn = self._agenda.take(now, self._clock.monotonic(), most)
        for uid in turn.asked:
            self._weighed.pop(uid, None)
        try:
            planned = self._plan_all(turn, now)
            saved = self._save(planned, now)
        except BaseException:
            self._agenda.give_back(turn)
            raise
        if not saved:
            self._agenda.give_back(turn)
            return planned
        self._live.confirm(self._follower.asked)
        for done in planned:
            self._grants.renew(done.record.uid, done.plan.limits)
        self._fill([done.record.uid for done in planned])
        if self._agenda.waiting():
            self._woken.set()
        return planned

    def _plan_all(self, turn: Turn, now: float) -> list[Planned]:
        """Plan these. What can wait goes back when something comes that cannot and others have had their time."""
        first = [done for uid in (*turn.asked, *turn.losses) if (done := self._plan_one(uid, now)) is not None]
        then, begun = [], time.perf_counter()
        for place, uid in enumerate(turn.then):
            if place and self._hurried.is_set() and time.perf_counter() - begun > PASS_SECONDS:
                self._agenda.again(turn.then[place:])
                break
            if (done := self._plan_one(uid, now, self._breathe)) is not None:
                then.append(done)
        return first + then

    def _plan_one(self, uid: str, now: float, between: Callable[[], object] = _go_on) -> Planned | None:
        """Plan it. A fault that nobody foresaw keeps no other experiment from being planned."""
        record = self._registry.of_uid(uid)
        if record is None:
            return None
        try:
            return self._plan(record, now, between)
        except AllocatorError:
            raise
        except Exception:
            self.crashes += 1
            log.exception("plan.crashed", experiment=record.name)
            self._agenda.set(uid, now + LOOK_AGAIN_SECONDS)
            return None

    def _keep_pace(self, now: float) -> None:
        """A wall clock that jumped gives no stage time that nobody spent in it: where it ran ahead, beginnings of stages move along.

        Behind, stages last longer, which is safe; evidence from before a stage would count in it if its beginning moved back.
        """
        pace = now - self._clock.monotonic()
        jumped = pace - self._pace if self._pace is not None else 0.0
        if abs(jumped) <= JUMP_SECONDS:
            self._pace = pace
            return
        self._agenda.everything(self._registry.uids())  # what was due by the old clock
        saves = []
        for record in self._registry.all():
            status = record.status
            if jumped > 0 and status.state is State.RUNNING and status.stage + 1 < len(record.experiment.stages):
                moved = replace(status, stage_since_seconds=status.stage_since_seconds + jumped)
                entry = AuditEntry(now, ACTOR, "clock.jumped", record.name, f"the wall clock jumped by {jumped:+.0f} s")
                saves.append(Save(replace(record, version=record.version + 1, status=moved), record.version, (entry,)))
        log.warning("clock.jumped", seconds=round(jumped, 1), stages_prolonged=len(saves))
        if not saves or not any(self._registry.write(saves, self._term.number)):
            self._pace = pace  # else again in the next pass: what was moved already lasts longer still

    def _follow(self, now: float) -> list[Planned]:
        """Confirm what the planner elsewhere confirmed, and keep this server's leases filled."""
        self._number = None
        self._pace = now - self._clock.monotonic()
        self._agenda.forget()
        self.last.clear()
        self._live.confirm(self._follower.confirmed)
        if self._registry.leased:
            self._mark, changed = self._store.changed(self._mark)
            for uid in changed:
                if uid in self._limited:
                    self._limited[uid] = min(self._limited[uid], now + self._refresh)
            for uid in list(self._registry.leased):
                record = self._registry.of_uid(uid)
                if record is not None and self._limited.get(uid, now) <= now:
                    self._grants.renew(uid, budget_limits(record.experiment, self.tally(record)))
                    self._limited[uid] = now + LOOK_AGAIN_SECONDS
            for uid in self._limited.keys() - self._registry.leased:
                del self._limited[uid]
                self._grants.renew(uid, None)
            self._fill([])
        return []

    def _fill(self, uids: list[str]) -> None:
        """Fill the leases of these; of all, once a refresh."""
        at = self._clock.monotonic()
        if at - self._filled >= self._refresh:
            self._filled = at
            self._grants.fill()
        else:
            self._grants.fill(uids)

    def tally(self, record: Record) -> Tally:
        """What the store counted for the record."""
        found = tally(record, self._store.cells(record.uid), self._store.settled(record.uid))
        if not (leases_requests(record.experiment) or leases_units(record.experiment)):
            return found
        return replace(found, granted=self._store.granted(record.uid), held=self._grants.held(record.uid))

    def _plan(self, record: Record, now: float, between: Callable[[], object]) -> Planned | None:
        if record.status.state in (State.DRAFT, State.ROLLED_BACK, State.CONCLUDED):
            self._agenda.set(record.uid, math.inf)
            self._grants.renew(record.uid, None)
            self.last.pop(record.uid, None)
            return None
        started = time.perf_counter()
        try:
            found = self.tally(record)
            between()
            made = plan(record, found, now, between)
        except InvalidArgument as error:
            log.error("plan.refused", experiment=record.name, reason=error.reason, error=error.message)
            self._agenda.set(record.uid, now + LOOK_AGAIN_SECONDS)
            return None
        planned = Planned(record, made, found, now, time.perf_counter() - started)
        self.last[record.uid] = planned
        self._agenda.set(record.uid, self._next(record, made, found, now))
        if self._observe is not None:
            self._observe(planned)
        return planned

    def _next(self, record: Record, made: Plan, found: Tally, now: float) -> float:
        """When to look again if nothing is reported: a bucket to settle, a stage that has lasted long enough, data gone stale."""
        experiment = record.experiment
        at = math.inf
        if found.open.buckets.size:
            oldest = (int(found.open.buckets[0]) + 1) * experiment.bucket_width_seconds
            at = min(now + LOOK_AGAIN_SECONDS, oldest + experiment.reward.window_seconds + GRACE_SECONDS)
        if made.status.stage + 1 < len(experiment.stages):
            ripe = made.status.stage_since_seconds + experiment.stages[made.status.stage].min_duration_seconds
            at = min(at, ripe if ripe > now else now + LOOK_AGAIN_SECONDS)
        return max(at, now + self._refresh)

    def _save(self, planned: list[Planned], now: float) -> bool:
        """Store and publish. False when this server is the planner no more: nothing was written, or nothing counts."""
        saves, made_by = [], []
        for done in planned:
            save = self._to_save(done, now)
            if save is not None:
                saves.append(save)
                made_by.append(done)
        if not self._term.in_force():
            log.warning("term.over", experiments=len(saves))
            self._term.lost()
            return False
        if not saves:
            return True
        try:
            answers = self._registry.write(saves, self._term.number)
        except (Unavailable, Overloaded) as error:
            log.warning("plan.not_stored", reason=error.reason, error=error.message, experiments=len(saves))
            for save, done in zip(saves, made_by, strict=True):
                self._agenda.set(save.record.uid, now + self._refresh)
                if save.record.status.state is State.FROZEN or len(save.record.status.drained) > len(done.record.status.drained):
                    self._hold(save, done)
            return True
        for save, done, error in zip(saves, made_by, answers, strict=True):
            if error is not None:
                if error.reason == "STALE_TERM":
                    log.warning("term.stale", experiment=save.record.name, error=error.message)
                    self._term.lost()
                    return False
                self._agenda.again([save.record.uid])
                continue
            for occurrence in done.plan.occurrences:
                log.info(occurrence.action, experiment=save.record.name, reason=occurrence.reason, version=save.record.version)
        return True

    def _hold(self, save: Save, done: Planned) -> None:
        """Keep a freeze or drain that could not be stored."""
        entry = next((entry for entry in save.audit if entry.action in SAFER), save.audit[-1])
        try:
            self._keeper.hold(Pending(replace(save.record, version=done.record.version), entry))
        except Unavailable as error:
            log.warning("freeze.not_kept", experiment=save.record.name, reason=error.reason, error=error.message)

    def _to_save(self, done: Planned, now: float) -> Save | None:
        """What is to be written of a plan, or None. Between two refreshes only what guardrails or people demand."""
        record, made = done.record, done.plan
        after = carried_out(record, made, now)
        if after is None:
            return None
        urgent = bool(made.occurrences) or made.settle_through is not None or made.status != record.status
        if not urgent and now - self._weighed.get(record.uid, -math.inf) < self._refresh:
            self._agenda.sooner(record.uid, self._weighed[record.uid] + self._refresh)
            return None
        self._weighed[record.uid] = now
        audit = tuple(AuditEntry(now, ACTOR, o.action, record.name, o.reason) for o in made.occurrences)
        settle = None if made.settle_through is None else Settle(made.settle_through, coarsening(record.experiment))
        return Save(after, record.version, audit, settle)
