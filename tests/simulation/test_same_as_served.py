"""The rehearsal and the real engine, side by side: the same hashes and outcomes must give the same bits.

On one side `Rehearsal`, vectorised. On the other `Engine`, as the server runs it: each unit is hashed and decided by `Decider`, each
outcome read and counted by `Ingest`, each tick planned by `Planner` on a store in memory. The test carries units and outcomes across and
compares what was decided, counted and planned, tick by tick.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from allocator.core.assignment import unit_hash
from allocator.core.decision_id import read
from allocator.core.experiment import (
    Arm,
    Assignment,
    BreachAction,
    Budget,
    Exposure,
    Guardrail,
    Metric,
    Per,
    Policy,
    Pooling,
    RampStage,
    Reward,
    RewardModel,
    Segment,
    UnitContribution,
)
from allocator.core.experiment_rules import checked
from allocator.core.kernels import serve
from allocator.core.kernels.philox import to_unit
from allocator.core.outcome import Outcome
from allocator.engine.engine import Engine
from allocator.simulation import world as w
from allocator.simulation.decider import Batch
from allocator.simulation.parallel import child, root_seed
from allocator.simulation.run import START, Rehearsal
from allocator.simulation.scenario import Scenario
from allocator.stores.memory import MemoryStore
from tests.conftest import ManualClock, SeededEntropy

ARMS = (Arm("old", incumbent=True), Arm("new"), Arm("bad"))
SEGMENTS = (Segment("mobile", {"device": ("ios", "android")}), Segment("desktop", {"device": ("mac",)}))
DEVICES = ("ios", "mac", "toaster")


class Twin(Rehearsal):
    """A rehearsal whose units carry the hashes that the real engine will give them."""

    def __init__(self, scenario, seed, salt):
        self.salt, self.nonces = salt, {}
        super().__init__(scenario, seed)

    def arrive(self, first, count):
        batch = super().arrive(first, count)
        hashes = [unit_hash(self.salt, name_of(unit)) for unit in batch.units.tolist()]
        self.nonces = {first + i: hashlib.blake2b(f"nonce {first + i}".encode(), digest_size=8).digest() for i in range(count)}
        draws = hashes if self.experiment.assignment is Assignment.STICKY else [unit_hash(self.salt, n) for n in self.nonces.values()]
        self.batch = Batch(
            batch.units,
            np.array([int.from_bytes(h) for h in hashes], np.uint64),
            np.array([int.from_bytes(d[:2]) for d in draws], np.int64),
            batch.segments,
        )
        return self.batch

    def decide(self, batch):
        self.decided = super().decide(batch)
        return self.decided


def name_of(unit):
    return f"unit-{unit}".encode()


class Real:
    """The engine, asked and told what the twin was."""

    def __init__(self, scenario):
        self.clock = ManualClock(START)
        self.scenario = scenario
        self.engine = Engine(MemoryStore(SeededEntropy(1)), self.clock, SeededEntropy(2), restarted=False)
        self.engine.start(threads=False)
        self.name = scenario.experiment.full_name
        self.engine.commands.apply(scenario.experiment, actor="ann")
        self.engine.commands.start(self.name, actor="ann")
        self.due: dict[int, list[Outcome]] = {}

    @property
    def record(self):
        return self.engine.registry.get(self.name)

    def decide(self, twin, first):
        """Decide the twin's batch. Returns ids, arms and flags."""
        entry = self.engine.live.snapshot.entries[self.name]
        ids, arms, flags = [], [], []
        for i, (unit, segment) in enumerate(zip(twin.batch.units.tolist(), twin.batch.segments.tolist(), strict=True)):
            attributes = {"device": DEVICES[segment]} if len(entry.segment_names) > 1 else {}
            stale = self.engine.live.stale(entry)
            nonce = twin.nonces[first + i]
            decision = self.engine.decider.decide(entry, name_of(unit), attributes, self.clock.now(), nonce, stale=stale)
            said = read(self.engine.store.secret(), decision.id)
            ids.append(decision.id)
            arms.append(said.arm)
            flags.append(serve.FIRST * said.first | serve.COUNTED * said.counted | serve.GATED * said.gated)
        return ids, arms, flags

    def send(self, twin, first, ids, arms, values):
        """What is reported when: the world's rule, restated one outcome at a time."""
        reports, names = self.scenario.world.reports, twin.rates.names
        tick = round(self.clock.now() / self.scenario.tick_seconds)
        for i, (decision, arm) in enumerate(zip(ids, arms, strict=True)):
            a, b, c, d = serve._block(*twin.key, first + i, arm, serve._REPORT)
            if to_unit(a, b) < reports.missing:
                continue
            bad = any(value == 1.0 for value in values[i, 1:])
            mean = reports.bad_delay_seconds if bad and reports.bad_delay_seconds is not None else reports.delay_seconds
            delay = mean if reports.steady else -mean * math.log(to_unit(c, d))
            metrics = dict(zip(names[1:], values[i, 1:].tolist(), strict=True))
            reward = None if reports.successes_only and values[i, 0] == 0 else float(values[i, 0])
            if delay > self.scenario.experiment.reward.window_seconds or (reward is None and not metrics):
                continue
            outcome = Outcome(decision, reward, metrics)
            arrives = tick + math.ceil(delay / self.scenario.tick_seconds)
            self.due.setdefault(arrives, []).append(outcome)
            a, b, _, _ = serve._block(*twin.key, first + i, arm, serve._DUPLICATE)
            if to_unit(a, b) < reports.duplicates:
                self.due.setdefault(arrives + 1, []).append(outcome)

    def pass_tick(self):
        tick = round(self.clock.now() / self.scenario.tick_seconds)
        due = self.due.pop(tick, [])
        for start in range(0, len(due), 1000):
            self.engine.ingest.report(due[start : start + 1000])
        self.engine.ingest.report((), self.engine.decider.take())
        self.clock.pass_(self.scenario.tick_seconds)
        status = self.record.status
        coming = self.scenario.experiment.stages[status.stage + 1 : status.stage + 2]
        if status.state.value == "RUNNING" and coming and coming[0].approvals > len(status.approvals):
            self.engine.commands.approve(self.name, actor="person-1")
        self.engine.planner.replan(self.record.uid)
        self.engine.planner.tick()


def curves(**levels):
    return {arm: w.Curve(level) for arm, level in levels.items()}


def scenario(experiment=None, traffic=None, reports=w.Reports(), metrics=None, segments=None, seconds=60.0, **more):  # noqa: B008
    spec = {"name": "ranker", "arms": ARMS, "reward": Reward("click", window_seconds=20.0), "exposure": Exposure(total=0.5)}
    spec |= {"guardrails": (Guardrail("errors", "error", max=0.1),)} | (experiment or {})
    found = {
        "click": w.Metric(curves(old=0.3, new=0.4, bad=0.2)),
        "error": w.Metric(curves(old=0.05, new=0.05, bad=0.15)),
        **(metrics or {}),
    }
    world = w.World(found, traffic or w.Traffic(w.Curve(30.0)), reports, segments or {})
    return Scenario.checked(experiment=checked(**spec), world=world, duration_seconds=seconds, **more)


LATENCY = {"latency_ms": w.Metric(curves(old=100.0, new=110.0, bad=300.0), w.Law.LOG_NORMAL, 0.3)}
THREE_SEGMENTS = {"mobile": w.Segment(0.5, {"click": 1.5}), "desktop": w.Segment(0.3, {"error": 2.0})}
CASES = {
    "plain": scenario(),
    "delays": scenario(reports=w.Reports(4.0, bad_delay_seconds=0.5, missing=0.1, duplicates=0.2)),
    "late outcomes": scenario(reports=w.Reports(15.0, missing=0.1)),
    "two guardrails, one drains": scenario(
        {
            "guardrails": (
                Guardrail("errors", "error", max=0.1, persistence=2),
                Guardrail("tail", "latency_ms", quantile=0.9, max=200.0, on_breach=BreachAction.DRAIN, window_seconds=5.0),
            )
        },
        reports=w.Reports(3.0),
        metrics=LATENCY,
    ),
    "segments with weights of their own": scenario(
        {
            "segments": SEGMENTS,
            "policy": Policy(pooling=Pooling.PER_SEGMENT, floor=0.02),
            "guardrails": (Guardrail("errors", "error", max=0.2, per=Per.SEGMENT), Guardrail("worse", "error", max_ratio=1.3)),
        },
        reports=w.Reports(2.0),
        segments=THREE_SEGMENTS,
    ),
    "units that come back, drawn anew": scenario(
        {
            "assignment": Assignment.PER_REQUEST,
            "reward": Reward("click", window_seconds=10.0),
            "guardrails": (Guardrail("worse", "error", max_ratio=1.1), Guardrail("errors", "error", max=0.15)),
        },
        w.Traffic(w.Curve(40.0), population=300),
        w.Reports(1.0),
        {"error": w.Metric(curves(old=0.05, new=0.05, bad=0.1), by_unit=True)},
    ),
    "every request counts": scenario({"unit_contribution": UnitContribution.ALL}, w.Traffic(w.Curve(40.0), population=100)),
    "strict caps": scenario(
        {"exposure": Exposure(total=0.3, per_candidate=0.2, strict=True, burst=3)}, w.Traffic(w.Curve(40.0), population=60)
    ),
    "a freeze": scenario(metrics={"error": w.Metric(curves(old=0.05, new=0.05, bad=0.6))}),
    "budgets": scenario(
        {
            "exposure": Exposure(total=0.6, strict=True, burst=5, budget=Budget(requests=200, units=60)),
            "assignment": Assignment.PER_REQUEST,
        },
        w.Traffic(w.Curve(40.0), population=150),
    ),
    "a loss that is bounded": scenario({"exposure": Exposure(total=0.6, budget=Budget(loss=40.0), max_loss=0.2)}, seconds=90.0),
    "a ramp with approvals": scenario(
        {
            "ramp": (
                RampStage(0.0, shadow=True, min_duration_seconds=3.0),
                RampStage(0.3, min_duration_seconds=20.0, min_outcomes=20),
                RampStage(0.5, approvals=1),
            ),
            "guardrails": (Guardrail("errors", "error", max=0.4),),
        },
        w.Traffic(w.Curve(60.0)),
        seconds=90.0,
    ),
    "a cohort, forgotten by age": scenario(
        {"reward": Reward("click", window_seconds=8.0, missing=0.0, model=RewardModel.BERNOULLI), "policy": Policy(half_life_seconds=64.0)},
        reports=w.Reports(2.0, successes_only=True, missing=0.05),
    ),
    "a gaussian reward": scenario(
        {"reward": Reward("click", RewardModel.GAUSSIAN, window_seconds=20.0, low=-10.0, high=30.0), "metrics": (Metric("error"),)},
        metrics={"click": w.Metric(curves(old=3.0, new=4.0, bad=2.0), w.Law.NORMAL, 6.0)},
    ),
    "a count as reward": scenario(
        {"reward": Reward("click", RewardModel.POISSON, window_seconds=20.0), "guardrails": (Guardrail("ok", "healthy", min=0.8),),
         "metrics": (Metric("error"),)},
        metrics={
            "click": w.Metric(curves(old=3.0, new=4.0, bad=2.0), w.Law.COUNT), "healthy": w.Metric(curves(old=0.9, new=0.9, bad=0.7)),
        },
    ),
}  # fmt: skip
HAPPENS = {
    "two guardrails, one drains": {"arm.drain"},
    "a freeze": {"experiment.freeze"},
    "a ramp with approvals": {"experiment.advance"},
    "budgets": {"arm.budget"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_rehearsal_is_what_the_engine_would_have_done(case):
    chosen = CASES[case]
    real = Real(chosen)
    twin = Twin(chosen, child(root_seed(5), 0), real.record.salt)
    happened = set()
    for _ in range(chosen.ticks):
        first = twin.requests
        captured = {}
        send = twin.ledger.send

        def keep(first, arms, segments, flags, plans, values, now, send=send, captured=captured):
            captured["values"] = values
            send(first, arms, segments, flags, plans, values, now)

        twin.ledger.send = keep
        twin.tick()
        twin.ledger.send = send
        ids, arms, flags = real.decide(twin, first)
        assert arms == twin.decided[0].tolist()
        assert flags == twin.decided[1].tolist()
        real.send(twin, first, ids, arms, captured["values"])
        real.pass_tick()
        same(twin, real)
        happened |= {occurrence.action for occurrence in twin.made.occurrences}
        if twin.record.status.state.value != "RUNNING":
            break
    assert twin.requests > 30
    assert happened >= HAPPENS.get(case, set())


def same(twin, real):
    """Statistics, plan and state, to the last bit."""
    planned = real.engine.planner.last[real.record.uid]
    ours, theirs = twin.found, planned.tally
    for part in ("open", "settled"):
        one, other = getattr(ours, part), getattr(theirs, part)
        assert one.buckets.tolist() == other.buckets.tolist()
        assert (one.sums == other.sums).all()
    assert ours.draws == theirs.draws
    assert ours.labels.keys() == theirs.labels.keys()
    for index, labels in ours.labels.items():
        assert sorted(rows(labels)) == sorted(rows(theirs.labels[index]))
    assert ours.granted == theirs.granted
    assert ours.held == theirs.held
    record = real.record
    assert (twin.record.version, twin.record.slots, twin.record.layouts) == (record.version, record.slots, record.layouts)
    assert twin.record.status == record.status
    assert twin.record.settled_through == record.settled_through
    if not any(guardrail.relative for guardrail in record.experiment.guardrails):
        assert twin.record.evidence == record.evidence
    for one, other in zip(twin.made.findings, planned.plan.findings, strict=True):  # label rows are added up in another order
        for name in ("verdict", "held", "proven_safe", "exposed", "events"):
            assert getattr(one, name) == getattr(other, name)
        assert one.log_evidence == pytest.approx(other.log_evidence, rel=1e-12, abs=1e-12)


def rows(labels):
    columns = (labels.bucket, labels.arm, labels.segment, labels.weight)
    return [(*row, *slots) for *row, slots in zip(*(c.tolist() for c in columns), labels.slots.tolist(), strict=True)]
