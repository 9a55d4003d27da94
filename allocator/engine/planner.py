"""The planner: statistics → plan → store, with its audit records → publish → leases.

In: which experiments have new outcomes, and the time. Out: new weights and state changes, stored and in force. One thread carries it out.
It is woken when outcomes were committed and looks at the guardrails of those experiments at once; weights follow at each refresh. An
experiment to which nothing happens costs nothing: it is looked at when something of it is due.

A plan whose record was changed meanwhile is refused by the store and made again. A freeze that cannot be stored is served all the same
and stored as soon as that is possible.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from allocator.core.audit import AuditEntry
from allocator.core.budget import leases_requests, leases_units
from allocator.core.lifecycle import State
from allocator.core.plan import GRACE_SECONDS, Plan, carried_out, coarsening, plan
from allocator.core.record import Record
from allocator.core.tally import Tally, tally
from allocator.engine.grants import Grants
from allocator.engine.live import Live
from allocator.engine.registry import Registry
from allocator.errors import AllocatorError, InvalidArgument, Overloaded, Unavailable
from allocator.ports import Clock, Save, Settle, Store

ACTOR = "planner"
LOOK_AGAIN_SECONDS = 30.0  # an experiment with open buckets is looked at this often even when nothing is reported
LEAST_PAUSE_SECONDS = 0.02  # between two passes, so that a burst of outcomes is planned once

log = structlog.get_logger()


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
        clock: Clock,
        refresh_seconds: float = 1.0,
        observe: Callable[[Planned], None] | None = None,
    ) -> None:
        self._store = store
        self._registry = registry
        self._live = live
        self._grants = grants
        self._clock = clock
        self._refresh = refresh_seconds
        self._observe = observe
        self._mark = 0
        self._due: dict[str, float] = {}
        self._weighed: dict[str, float] = {}
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._pass_lock = threading.Lock()
        self.last: dict[str, Planned] = {}

    def wake(self) -> None:
        """Outcomes were committed or a record was changed: look now."""
        self._woken.set()

    def start(self) -> None:
        """Run in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name="planner", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the pass that it is in."""
        self._stopped.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()

    def run(self) -> None:
        """Pass after pass: at each wake-up, and at each refresh."""
        while not self._stopped.is_set():
            self._woken.wait(self._refresh)
            self._woken.clear()
            if self._stopped.is_set():
                return
            try:
                self.tick()
            except AllocatorError as error:
                log.warning("planner.failed", reason=error.reason, error=error.message)
            except Exception:
                log.exception("planner.crashed")
            self._stopped.wait(LEAST_PAUSE_SECONDS)

    def tick(self) -> list[Planned]:
        """One pass: plan what has new outcomes or is due, save, publish, confirm the table, fill leases. Returns what was planned.

        Raises Unavailable when the store cannot be read; the table is then not confirmed.
        """
        with self._pass_lock:
            now = self._clock.now()
            self._mark, changed = self._store.changed(self._mark)
            due = {uid for uid, at in self._due.items() if at <= now}
            known = {record.uid: record for record in self._registry.all()}
            wanted = [known[uid] for uid in {*changed, *due, *(uid for uid in known if uid not in self._due)} if uid in known]
            planned = [done for record in wanted if (done := self._plan(record, now)) is not None]
            self._save(planned, now)
            self._live.confirm()
            for done in planned:
                self._grants.renew(done.record.uid, done.plan.limits)
            self._grants.fill()
            return planned

    def replan(self, uid: str) -> None:
        """Plan this experiment in the next pass, weights included, whether or not it has new outcomes."""
        self._due[uid] = -math.inf
        self._weighed.pop(uid, None)
        self.wake()

    def tally(self, record: Record) -> Tally:
        """What the store counted for the record."""
        found = tally(record, self._store.cells(record.uid), self._store.settled(record.uid))
        if not (leases_requests(record.experiment) or leases_units(record.experiment)):
            return found
        return replace(found, granted=self._store.granted(record.uid), held=self._grants.held(record.uid))

    def _plan(self, record: Record, now: float) -> Planned | None:
        if record.status.state in (State.DRAFT, State.ROLLED_BACK, State.CONCLUDED):
            self._due[record.uid] = math.inf
            self._grants.renew(record.uid, None)
            return None
        started = time.perf_counter()
        try:
            found = self.tally(record)
            made = plan(record, found, now)
        except InvalidArgument as error:
            log.error("plan.refused", experiment=record.name, reason=error.reason, error=error.message)
            self._due[record.uid] = now + LOOK_AGAIN_SECONDS
            return None
        planned = Planned(record, made, found, now, time.perf_counter() - started)
        self.last[record.uid] = planned
        self._due[record.uid] = self._next(record, made, found, now)
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

    def _save(self, planned: list[Planned], now: float) -> None:
        saves, made_by = [], []
        for done in planned:
            save = self._to_save(done, now)
            if save is not None:
                saves.append(save)
                made_by.append(done)
        if not saves:
            return
        try:
            answers = self._registry.write(saves)
        except (Unavailable, Overloaded) as error:
            log.warning("plan.not_stored", reason=error.reason, error=error.message, experiments=len(saves))
            for save, done in zip(saves, made_by, strict=True):
                self._due[save.record.uid] = now + self._refresh
                safer = save.record.status.state is State.FROZEN or len(save.record.status.drained) > len(done.record.status.drained)
                if safer:
                    self._registry.hold_in_memory(save.record)
            return
        for save, done, error in zip(saves, made_by, answers, strict=True):
            if error is not None:
                self._due[save.record.uid] = now
                self.wake()
                continue
            for occurrence in done.plan.occurrences:
                log.info(occurrence.action, experiment=save.record.name, reason=occurrence.reason, version=save.record.version)

    def _to_save(self, done: Planned, now: float) -> Save | None:
        """What is to be written of a plan, or None. Between two refreshes only what guardrails or people demand."""
        record, made = done.record, done.plan
        after = carried_out(record, made, now)
        if after is None:
            return None
        urgent = bool(made.occurrences) or made.settle_through is not None or made.status != record.status
        if not urgent and now - self._weighed.get(record.uid, -math.inf) < self._refresh:
            self._due[record.uid] = min(self._due[record.uid], self._weighed[record.uid] + self._refresh)
            return None
        self._weighed[record.uid] = now
        audit = tuple(AuditEntry(now, ACTOR, o.action, record.name, o.reason) for o in made.occurrences)
        settle = None if made.settle_through is None else Settle(made.settle_through, coarsening(record.experiment))
        return Save(after, record.version, audit, settle)
