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
from numpy.typing import NDArray

from allocator.core.assignment import SLOTS
from allocator.core.budget import leases_requests, leases_units
from allocator.core.confidence import confidence_sequence
from allocator.core.entry import entry_of
from allocator.core.experiment import Assignment
from allocator.core.kernels import serve
from allocator.core.learning import reward_sums
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
from allocator.simulation.baseline import baseline
from allocator.simulation.decider import Batch, BatchDecider
from allocator.simulation.ledger import Ledger
from allocator.simulation.parallel import Seed, child, key_of
from allocator.simulation.replication import Replication, Series
from allocator.simulation.scenario import Scenario
from allocator.simulation.world import Rates
from allocator.stores.memory import MemoryStore

START = 1_800_000_000.0  # when the rehearsal's clock starts, seconds since the epoch
UID, SALT = "00" * 8, b"rehearsal"
FIRST_LIFE = 1
CONFIDENCE = 0.05
Floats = NDArray[np.float64]


def rehearse(seed: Seed, *, scenario: Scenario, policy: str) -> Replication:
    """Play one replication. seed: of this replication; it alone decides the world's chance, so that policies meet the same one.

    policy: one of `SERVED` or `POLICIES`. Raises InvalidArgument for a scenario that was not checked.
    """
    if policy in POLICIES:
        return baseline(seed, scenario, policy)
    return Rehearsal(scenario.under(policy), seed, policy).play()


class Rehearsal:
    """An experiment in its world. `play` runs to the end; `tick` is one step, for whoever wants to look in between.

    entry: the plan in force as deciders see it; record: as it would be stored; made: the last plan; found: what it was made from.
    """

    def __init__(self, scenario: Scenario, seed: Seed, policy: str = "SPEC") -> None:
        self.scenario, self.policy = scenario, policy
        spec = self.experiment = scenario.experiment
        self.rates = Rates(scenario.world, spec)
        self.key = key_of(seed)
        self._rng = np.random.Generator(np.random.PCG64(child(seed, 1)))
        traffic = self._traffic = scenario.world.traffic
        arms, segments = len(spec.arms), len(spec.segments) + 1
        self.ledger = Ledger(spec, scenario.world.reports, self.key, scenario.tick_seconds)
        self.deciders = [BatchDecider(arms, segments, traffic.population) for _ in range(traffic.replicas)]
        self._lags = [traffic.lag_seconds * r / max(traffic.replicas - 1, 1) for r in range(traffic.replicas)]
        self._store = MemoryStore(SimpleNamespace(bytes=bytes))
        self._leased = leases_requests(spec) or leases_units(spec)
        self._live = SimpleNamespace(snapshot=None)
        self._grants = [Grants(self._store, self._live, decider) for decider in self.deciders] if self._leased else []
        for decider, grants in zip(self.deciders, self._grants, strict=False):
            decider.low = grants.fill
        self.now, self.requests = START, 0
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

    def tick(self) -> None:
        """Decide and serve one batch of requests, count what is reported by now, let a tick pass, and plan."""
        scenario = self.scenario
        seconds = self.now - START
        middle = self.rates.at(seconds)
        first, count = self.requests, self._count(seconds)
        batch = self.arrive(first, count)
        arms, flags, plans = self.decide(batch)
        values = np.empty((count, len(self.rates.names)))
        serve.respond(
            self.key[0], self.key[1], first, batch.units, batch.segments, arms, self.rates.kinds, self.rates.by_unit, middle,
            self.rates.spread, self.rates.low, self.rates.high, values,
        )  # fmt: skip
        self.requests += count
        self.log.served(middle, arms, batch.segments, seconds)
        self.ledger.send(first, arms, batch.segments, flags, plans, values, self.now)
        self.ledger.arrive(self.now)
        self.now += scenario.tick_seconds
        self._approve()
        self._plan(self.now)

    def arrive(self, first: int, count: int) -> Batch:
        """Requests first, first + 1, ...: who asks."""
        batch = Batch.empty(count)
        serve.arrive_units(
            self.key[0], self.key[1], first, self._traffic.population, self.rates.ends, self.experiment.assignment is Assignment.STICKY,
            batch.units, batch.hashes, batch.points, batch.segments,
        )  # fmt: skip
        return batch

    def decide(self, batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """Arm, flags and plan version of each request, decided by the replica that its unit is routed to."""
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

    def _count(self, seconds: float) -> int:
        mean = max(self._traffic.rate.at(seconds), 0.0) * self.scenario.tick_seconds
        if self._traffic.poisson:
            return int(self._rng.poisson(mean))
        return int(mean * (round(seconds / self.scenario.tick_seconds) + 1) + 1e-9) - int(
            mean * round(seconds / self.scenario.tick_seconds) + 1e-9
        )

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
            count = self._count(seconds)
            self.requests += count
            self.log.rested(only, count, seconds)
            self.now += self.scenario.tick_seconds


class _Log:
    """Adds up what happens in a rehearsal."""

    def __init__(self, of: Rehearsal) -> None:
        self._of = of
        spec = of.experiment
        arms = self._arms = len(spec.arms)
        self._incumbent = spec.incumbent
        self._others = np.arange(arms) != spec.incumbent
        self._names = [arm.name for arm in spec.arms]
        self.regret = self.gain = self.churn = 0.0
        self._exposures = np.zeros(arms, np.int64)
        self._earned, self._excess = np.zeros(arms), np.full(arms, -np.inf)
        self._stopped, self._at_stop = np.full(arms, np.nan), np.full(arms, np.nan)
        self._stages = np.full(len(spec.stages), np.nan)
        self._stages[0] = 0.0
        self._breaches: list[str] = []
        self._least = 1.0
        self._evidence = np.zeros(arms)
        self._covered = np.ones(arms)
        self._rows: list[tuple] = []
        self._every = max(1, of.scenario.ticks // of.scenario.points)
        self._tick = 0
        self._still = of.rates.still and len(of.rates.ends) == 1

    def served(self, middle: Floats, arms: NDArray[np.int64], segments: NDArray[np.int64], seconds: float) -> None:
        """A batch was served."""
        counts = np.zeros(middle.shape[:2])
        np.add.at(counts, (arms, segments), 1.0)
        self._add(counts, middle)
        stage, x = self._of.experiment.stages[self._of.record.status.stage], self._of.experiment.exposure
        cap = min(stage.cap, x.total)
        self._earned += arms.size * np.where(self._others, min(cap, x.per_candidate), cap)
        had = self._exposures.astype(np.float64)
        had[self._incumbent] = had[self._others].sum()
        self._excess = np.maximum(self._excess, had - self._earned)
        self._point(seconds)

    def rested(self, arm: int, count: int, seconds: float) -> None:
        """A batch went to one arm, whoever asked."""
        middle = self._of.rates.at(seconds)
        counts = np.zeros(middle.shape[:2])
        counts[arm] = count * self._of.rates.shares
        self._exposures[arm] += count
        self._value(counts, middle)
        self._point(seconds)

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
                self._stopped[judgement.arm], self._at_stop[judgement.arm] = seconds, self._exposures[judgement.arm]
        if after.status.state is State.RUNNING and self._of.entry.only is None:
            self._least = min(self._least, *(share / SLOTS for table in self._of.entry.tables for share in table.served if share))

    def replication(self) -> Replication:
        """Everything, once it is over."""
        of, reported = self._of, self._of.ledger.reported
        low, high = self._interval()
        return Replication(
            policy=of.policy,
            requests=of.requests,
            regret=self.regret,
            gain=self.gain,
            exposures=self._exposures,
            excess=self._excess,
            stopped=self._stopped,
            exposed_at_stop=self._at_stop,
            breaches=tuple(self._breaches),
            stages=self._stages,
            prob_best=of.made.learned[0].best.prob_best,
            churn=self.churn,
            covered=self._covered if self._still else np.full(self._arms, np.nan),
            width=high - low,
            least_propensity=self._least,
            accepted=reported.accepted,
            late=reported.late,
            missing=reported.missing,
            duplicates=reported.duplicates,
            state=of.record.status.state.value,
            waiting=of.made.waiting_for,
            series=Series(*(np.array(column, np.float64) for column in zip(*self._rows, strict=True))),
        )

    def _add(self, counts: Floats, middle: Floats) -> None:
        self._exposures += counts.sum(axis=1).astype(np.int64)
        self._value(counts, middle)

    def _value(self, counts: Floats, middle: Floats) -> None:
        sign = 1.0 if self._of.experiment.reward.goal.value == "MAXIMISE" else -1.0
        rewards = sign * middle[..., 0]
        mean = rewards @ self._of.rates.shares
        best = rewards[int(mean.argmax())]
        self.regret += float((counts * (best - rewards)).sum())
        self.gain += float((counts * (rewards - rewards[self._incumbent])).sum())

    def _interval(self) -> tuple[Floats, Floats]:
        """Always-valid interval of each arm's mean reward, as a share of its range, from the rewards that the planner counts."""
        reward, sums = self._of.experiment.reward, reward_sums(self._of.experiment, self._of.found)
        total = (sums.total * reward.unit + sums.count * (reward.shift - reward.low)) / (reward.upper - reward.low)
        return confidence_sequence(np.clip(total, 0.0, sums.count), sums.count, CONFIDENCE)

    def _point(self, seconds: float) -> None:
        self._tick += 1
        if (self._tick - 1) % self._every:
            return
        entry, status = self._of.entry, self._of.record.status
        if self._still:
            low, high = self._interval()
            reward = self._of.experiment.reward
            truth = (self._of.rates.reward(seconds) - reward.low) / (reward.upper - reward.low)
            self._covered *= (low <= truth) & (truth <= high)
        if entry.only is not None or not entry.tables:
            arm = entry.only[0] if entry.only is not None else entry.incumbent
            weights = np.eye(self._arms)[arm]
        else:
            weights = np.mean([table.served for table in entry.tables], axis=0) / SLOTS
        exposures = self._exposures.astype(np.float64)
        self._rows.append((seconds, weights, exposures, self._evidence.copy(), self.regret, float(status.stage)))
