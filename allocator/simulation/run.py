"""One replication of a scenario: the core that serves, on a clock and in a world of its own.

In: a scenario and a seed. Out: a `Replication`: what became of users, candidates and evidence. Each tick a batch of requests is decided
from the plan in force, outcomes that are due are counted, and the same `plan` as the server's makes the next one: posterior, best arm,
guardrails, ramp, exposure, slots, layout. Only decisions and counting are vectorised (`core/kernels/serve.py`).

Once an experiment has ended or is frozen nothing depends on chance any more but how many requests come, so the rest of the time is
summed up, not played.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from allocator.core.assignment import SLOTS
from allocator.core.budget import leases_requests, leases_units
from allocator.core.entry import entry_of
from allocator.core.lifecycle import Event, StageApproval, State, Status, step
from allocator.core.outcome import metric_names
from allocator.core.plan import Plan, carried_out, plan
from allocator.core.ramp import approvers
from allocator.core.record import Record
from allocator.core.settling import coarsening
from allocator.core.snapshot import Entry
from allocator.core.tally import Tally
from allocator.engine.grants import Grants
from allocator.simulation.bandit import POLICIES
from allocator.simulation.baseline import Baseline
from allocator.simulation.books import Books, interval
from allocator.simulation.decider import Batch, BatchDecider
from allocator.simulation.episode import START, Decisions, Episode, Floats, Integers
from allocator.simulation.parallel import Seed
from allocator.simulation.replication import Replication
from allocator.simulation.scenario import Scenario
from allocator.stores.memory import MemoryStore

UID, SALT = "00" * 8, b"rehearsal"
FIRST_LIFE = 1


def rehearse(seed: Seed, *, scenario: Scenario, policy: str) -> Replication:
    """Play one replication. seed: of this replication; it alone decides the world's chance, so that policies meet the same one.

    policy: one of `SERVED` or `POLICIES`. Raises InvalidArgument for a scenario that was not checked.
    """
    if policy in POLICIES:
        return Baseline(scenario, seed, policy).play()
    return Rehearsal(scenario.under(policy), seed, policy).play()


class Rehearsal(Episode):
    """An experiment in its world. `play` runs to the end; `tick` is one step, for whoever wants to look in between.

    entry: the plan in force as deciders see it; record: as it would be stored; made: the last plan; found: what it was made from.
    """

    def __init__(self, scenario: Scenario, seed: Seed, policy: str = "SPEC") -> None:
        super().__init__(scenario, seed)
        self.policy, spec = policy, self.experiment
        traffic = self._traffic = scenario.world.traffic
        arms, segments = len(spec.arms), len(spec.segments) + 1
        self.deciders = [BatchDecider(arms, segments, traffic.population) for _ in range(traffic.replicas)]
        self._lags = [traffic.lag_seconds * r / max(traffic.replicas - 1, 1) for r in range(traffic.replicas)]
        self._store = MemoryStore(SimpleNamespace(bytes=bytes))
        self._leased = leases_requests(spec) or leases_units(spec)
        self._live = SimpleNamespace(snapshot=None)
        self._grants = [Grants(self._store, self._live, decider) for decider in self.deciders] if self._leased else []
        for decider, grants in zip(self.deciders, self._grants, strict=False):
            decider.low = grants.fill
        status = step(Status(reason="applied", since_seconds=START), Event.STARTED, reason="", now=START)
        self.record = Record(UID, spec, SALT, version=2, status=status, metrics=metric_names(spec))
        self.entry = entry_of(self.record)
        self._published: deque[tuple[float, Entry]] = deque()
        self.log = _Log(self)
        self.made: Plan
        self.found: Tally
        self._plan(START)

    def play(self) -> Replication:
        """All ticks. Returns what happened."""
        for number in range(self.scenario.ticks):
            if self.record.status.state is not State.RUNNING:
                self._rest(self.scenario.ticks - number)
                break
            self.tick()
        return self.log.replication()

    def decide(self, batch: Batch) -> Decisions:
        """Each request is decided by the replica that its unit is routed to."""
        count, replicas = batch.units.size, len(self.deciders)
        arms, flags, plans = np.empty(count, np.int64), np.empty(count, np.uint8), np.empty(count, np.int64)
        route = ((batch.hashes >> np.uint64(32)) & np.uint64(0xFFFF)) % np.uint64(replicas) if replicas > 1 else None
        for number, (decider, lag) in enumerate(zip(self.deciders, self._lags, strict=True)):
            entry = next(entry for at, entry in reversed(self._published) if at <= self.now - lag or entry is self._published[0][1])
            places = slice(None) if route is None else route == number
            decided = decider.decide(entry, batch if route is None else batch.at(places), self.now, stale=lag > entry.lease_seconds)
            arms[places], flags[places], plans[places] = decided.arms, decided.flags, entry.version
            life = FIRST_LIFE + number if entry.sticky else 0
            self.ledger.exposed(entry, life, decided, self.now)
        return arms, flags, plans

    def served(self, middle: Floats, arms: Integers, segments: Integers, seconds: float) -> None:
        """Add it up."""
        self.log.batch(middle, arms, segments, seconds)

    def plan(self) -> None:
        """People approve, once it is time, and the planner plans."""
        self._approve()
        self._plan(self.now)

    def _approve(self) -> None:
        """People approve the next stage, once it is time."""
        status, stages, after = self.record.status, self.experiment.stages, self.scenario.approve_after_seconds
        if status.state is not State.RUNNING or status.stage + 1 >= len(stages) or after is None:
            return
        wanted = stages[status.stage + 1].approvals
        if len(approvers(self.experiment, status, self.now)) >= wanted or self.now - status.stage_since_seconds < after:
            return
        status = replace(status, approvals=tuple(StageApproval(f"person-{number + 1}", self.now) for number in range(wanted)))
        self.record = replace(self.record, version=self.record.version + 1, status=status, updated_seconds=self.now)

    def _plan(self, now: float) -> None:
        """One tick of the planner: plan, store, publish, fill leases."""
        found = self.ledger.tally()
        if self._leased:
            found = replace(found, granted=self._store.granted(UID), held=self._grants[0].held(UID) if self._live.snapshot else frozenset())
        made = plan(self.record, found, now)
        after = carried_out(self.record, made, now)
        before, self.made, self.found = self.record, made, found
        if after is not None:
            if made.settle_through is not None:
                self.ledger.settle(made.settle_through, coarsening(self.experiment))
            self.record = after
        if self.record.version != self.entry.version:
            self.entry = entry_of(self.record)
        if not self._published or self._published[-1][1] is not self.entry:
            self._published.append((now, self.entry))
            while len(self._published) > 1 and self._published[1][0] <= now - self._traffic.lag_seconds:
                self._published.popleft()
            self.ledger.plan(self.entry)
        if self._leased:
            self._live.snapshot = SimpleNamespace(by_uid={bytes.fromhex(UID): self.entry})
            for grants in self._grants:
                grants.renew(UID, made.limits)
                grants.fill()
        self.log.planned(before, made, now)

    def _rest(self, ticks: int) -> None:
        """The ticks that are left, on the arm that everyone gets."""
        only = self.entry.only[0] if self.entry.only is not None else self.entry.incumbent
        for _ in range(ticks):
            seconds = self.now - START
            count = self.count(seconds)
            self.requests += count
            self.log.rested(self.rates.at(seconds), only, count)
            self.log.point(seconds)
            self.now += self.scenario.tick_seconds


class _Log(Books):
    """Adds up what happens in a rehearsal."""

    def __init__(self, of: Rehearsal) -> None:
        super().__init__(of.scenario, of.rates)
        self._of, spec = of, of.experiment
        arms = self._arms = len(spec.arms)
        self._others = np.arange(arms) != spec.incumbent
        self._names = [arm.name for arm in spec.arms]
        self.churn = 0.0
        self._earned, self._excess = np.zeros(arms), np.full(arms, -np.inf)
        self._stopped, self._at_stop = np.full(arms, np.nan), np.full(arms, np.nan)
        self._stages = np.full(len(spec.stages), np.nan)
        self._stages[0] = 0.0
        self._breaches: list[str] = []
        self._least = 1.0
        self._evidence = np.zeros(arms)

    def batch(self, middle: Floats, arms: Integers, segments: Integers, seconds: float) -> None:
        """A batch was served."""
        self.served(middle, arms, segments)
        stage, x = self._of.experiment.stages[self._of.record.status.stage], self._of.experiment.exposure
        cap = min(stage.cap, x.total)
        self._earned += arms.size * np.where(self._others, min(cap, x.per_candidate), cap)
        had = self.exposures.astype(np.float64)
        had[self._incumbent] = had[self._others].sum()
        self._excess = np.maximum(self._excess, had - self._earned)
        self.point(seconds)

    def planned(self, before: Record, made: Plan, now: float) -> None:
        """A plan was made of the record `before`."""
        seconds, after = now - START, self._of.record
        if before.slots and made.slots != before.slots:
            moved = sum(abs(a - b) for old, new in zip(before.slots, made.slots, strict=True) for a, b in zip(old, new, strict=True))
            self.churn += moved / 2 / SLOTS / len(made.slots)
        if made.status.stage != before.status.stage:
            self._stages[made.status.stage] = seconds
        for occurrence in made.occurrences:
            if occurrence.action in ("experiment.freeze", "arm.drain"):
                self._breaches.append(f"{occurrence.action} {occurrence.reason}")
        for judgement in made.judgements:
            level = max(judgement.log_evidence, 0.0) / judgement.log_threshold if judgement.log_threshold > 0 else 0.0
            self._evidence[judgement.arm] = level
            stopped = judgement.action is not None and (
                made.status.state is State.FROZEN or self._names[judgement.arm] in made.status.drained
            )
            if stopped and np.isnan(self._stopped[judgement.arm]):
                self._stopped[judgement.arm], self._at_stop[judgement.arm] = seconds, self.exposures[judgement.arm]
        if after.status.state is State.RUNNING and self._of.entry.only is None:
            self._least = min(self._least, *(share / SLOTS for table in self._of.entry.tables for share in table.served if share))

    def replication(self) -> Replication:
        """Everything, once it is over."""
        of, reported = self._of, self._of.ledger.reported
        low, high = interval(of.experiment, of.found)
        return Replication(
            policy=of.policy,
            requests=of.requests,
            regret=self.regret,
            gain=self.gain,
            exposures=self.exposures,
            excess=self._excess,
            stopped=self._stopped,
            exposed_at_stop=self._at_stop,
            breaches=tuple(self._breaches),
            stages=self._stages,
            prob_best=of.made.learned[0].best.prob_best,
            churn=self.churn,
            covered=self.covered,
            width=high - low,
            least_propensity=self._least,
            accepted=reported.accepted,
            late=reported.late,
            missing=reported.missing,
            duplicates=reported.duplicates,
            state=of.record.status.state.value,
            waiting=of.made.waiting_for,
            series=self.series(),
        )

    def point(self, seconds: float) -> None:
        """A tick is over."""
        if not self.due():
            return
        entry, status = self._of.entry, self._of.record.status
        self.look(self._of.found, seconds)
        if entry.only is not None or not entry.tables:
            arm = entry.only[0] if entry.only is not None else entry.incumbent
            weights = np.eye(self._arms)[arm]
        else:
            weights = np.mean([table.served for table in entry.tables], axis=0) / SLOTS
        self.keep(seconds, weights, self._evidence.copy(), float(status.stage))
