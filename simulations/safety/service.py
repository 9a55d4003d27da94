"""Healthy candidates through the whole engine, on a clock of its own: does anything but chance freeze them?

In: a scenario and a seed. Out: what happened in that run. The engine is the product's, with its ingest, planner and store in memory;
nothing runs by itself. In each scenario both arms have the same errors, exactly at the limit of the guardrail: the harmless
candidate that is hardest to tell from a harmful one. A run ends at its first freeze.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from allocator.core.decision import Decision
from allocator.core.evidence_rates import log_evidence, rate_grid
from allocator.core.experiment import (
    Arm,
    Assignment,
    BreachAction,
    Exposure,
    Guardrail,
    Policy,
    PolicyKind,
    Reward,
    UnitContribution,
)
from allocator.core.experiment_rules import checked
from allocator.core.outcome import Outcome
from allocator.engine.engine import Engine
from allocator.stores.memory import MemoryStore

LIMIT = 0.01
CLICK = 0.1
ALPHA = 0.001  # the default of an experiment


@dataclass(frozen=True)
class Run:
    """frozen: was the candidate stopped? beside: would what is shown beside it have stopped it? requests: decisions in all."""

    frozen: bool
    beside: bool
    requests: int


class Clock:
    """Time that moves when the scenario says so."""

    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


class Rehearsal:
    """One experiment in an engine, and a serving system that asks and reports."""

    def __init__(self, seed: int, **values: object) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.bytes = self.rng.randbytes  # the engine's entropy
        arms = (Arm("old", incumbent=True), Arm("new"))
        spec = {"name": "ranker", "arms": arms, "exposure": Exposure(total=0.5), "lease_seconds": 3600.0, **values}
        experiment = checked(**spec)  # the lease is long because nobody confirms the table between two looks
        self.engine = Engine(MemoryStore(self), self.clock, self, restarted=False)
        self.engine.start(threads=False)
        self.engine.commands.apply(experiment, actor="study")
        self.engine.commands.start("ranker", actor="study")
        self.requests = 0

    def decide(self, unit: str) -> Decision:
        self.requests += 1
        live = self.engine.live
        entry = live.snapshot.entries["default/ranker"]
        return self.engine.decider.decide(entry, unit.encode(), {}, self.clock.at, self.rng.randbytes(8), stale=live.stale(entry))

    def decide_new(self, count: int) -> list[Decision]:
        return [self.decide(f"unit-{self.requests}") for _ in range(count)]

    def report(self, outcomes: list[Outcome]) -> None:
        """Report, and let the planner look, as the service does after each commit."""
        for start in range(0, max(len(outcomes), 1), 1000):
            self.engine.ingest.report(outcomes[start : start + 1000], self.engine.decider.take())
        self.engine.planner.tick()

    def good(self, decision: Decision) -> Outcome:
        return Outcome(decision.id, float(self.rng.random() < CLICK), {"error": 0.0})

    def bad(self, decision: Decision) -> Outcome:
        return Outcome(decision.id, 0.0, {"error": 1.0})

    @property
    def frozen(self) -> bool:
        return self.engine.registry.get("ranker").status.state.value == "FROZEN"

    def happened(self, action: str) -> bool:
        return any(record.entry.action == action for record in self.engine.store.audit())


def failures_report_first(seed: int) -> Run:
    """Bad outcomes are reported a second after their decision, good ones an hour after: 90 minutes of traffic, and another hour.

    Beside it: the same evidence over outcomes as they arrive, which is what a count of reports would show.
    """
    r = Rehearsal(seed, reward=Reward("click", window_seconds=7200.0), guardrails=(Guardrail("errors", "error", max=LIMIT),))
    waiting: list[list[Decision]] = []
    arrived, failed, beside, grid = 0, 0, False, rate_grid(LIMIT)
    for minute in range(150):
        decisions = r.decide_new(100) if minute < 90 else []
        bad = [r.rng.random() < LIMIT for _ in decisions]
        r.clock.at += 1.0
        r.report([r.bad(d) for d, fails in zip(decisions, bad, strict=True) if fails])
        if r.frozen:
            break
        new = sum(d.arm == "new" for d, fails in zip(decisions, bad, strict=True) if fails)
        arrived, failed = arrived + new, failed + new
        beside = beside or log_evidence(grid, arrived, failed) >= -math.log(ALPHA)
        waiting.append([d for d, fails in zip(decisions, bad, strict=True) if not fails])
        r.clock.at += 59.0
        if minute >= 60:
            late = waiting[minute - 60]
            r.report([r.good(d) for d in late])
            arrived += sum(d.arm == "new" for d in late)
        if r.frozen:
            break
    return Run(r.frozen, beside, r.requests)


def twenty_requests_a_unit(seed: int, contribution: UnitContribution = UnitContribution.FIRST) -> Run:
    """600 units, of which 1 % always fail; each makes 20 requests, one every 20 seconds, under a window of 30 minutes."""
    r = Rehearsal(seed, reward=Reward("click"), guardrails=(Guardrail("errors", "error", max=LIMIT),), unit_contribution=contribution)
    fails = [r.rng.random() < LIMIT for _ in range(600)]
    for tick in range(119):
        active = range(6 * max(0, tick - 19), 6 * min(100, tick + 1))
        _each_of(r, active, fails)
        r.clock.at += 20.0
        if r.frozen:
            break
    return Run(r.frozen, False, r.requests)


def units_that_return(seed: int) -> Run:
    """The same 600 units, but each makes its 20 requests in 20 different windows, half an hour apart."""
    r = Rehearsal(seed, reward=Reward("click"), guardrails=(Guardrail("errors", "error", max=LIMIT),))
    fails = [r.rng.random() < LIMIT for _ in range(600)]
    for tick in range(200):
        _each_of(r, range(60 * (tick % 10), 60 * (tick % 10 + 1)), fails)
        r.clock.at += 180.0
        if r.frozen:
            break
    return Run(r.frozen, False, r.requests)


def common_incident(seed: int) -> Run:
    """Errors of both arms rise from 1 % to 10 % at half time; the guardrail says "no worse than the incumbent" (a ratio of 1).

    Beside it: an absolute guardrail of 2 % on the same metric, which only alerts. It has to fire: users are hurt, whoever is to blame.
    """
    guardrails = (
        Guardrail("relative", "error", max_ratio=1.0, window_seconds=60.0),
        Guardrail("absolute", "error", max=0.02, on_breach=BreachAction.ALERT),
    )
    r = Rehearsal(seed, reward=Reward("click", window_seconds=600.0), guardrails=guardrails)
    for tick in range(150):
        decisions = r.decide_new(100)
        rate = 0.01 if tick < 75 else 0.1
        r.clock.at += 1.0
        r.report([r.bad(d) if r.rng.random() < rate else r.good(d) for d in decisions])
        r.clock.at += 29.0
        if r.frozen:
            break
    for _ in range(3):  # the last bucket has to be over, and its window past
        if not r.frozen:
            r.clock.at += 60.0
            r.report([])
    return Run(r.frozen, r.happened("guardrail.alert"), r.requests)


def returning_units_compared(seed: int) -> Run:
    """2,000 units come back all the time, drawn anew for each request, a tenth of requests to the candidate; errors of both arms are 5 %.

    The guardrail says "no worse than the incumbent" (a ratio of 1). 40 minutes of traffic, all within one window.
    """
    r = Rehearsal(
        seed,
        assignment=Assignment.PER_REQUEST,
        policy=Policy(kind=PolicyKind.FIXED, shares={"old": 0.9, "new": 0.1}),
        exposure=Exposure(total=0.1),
        reward=Reward("click", window_seconds=7200.0),
        guardrails=(Guardrail("relative", "error", max_ratio=1.0, window_seconds=60.0),),
    )
    for _ in range(40):
        decisions = [r.decide(f"unit-{r.rng.randrange(2000)}") for _ in range(300)]
        r.clock.at += 1.0
        r.report([r.bad(d) if r.rng.random() < 0.05 else r.good(d) for d in decisions])
        r.clock.at += 59.0
        if r.frozen:
            break
    return Run(r.frozen, False, r.requests)


def _each_of(r: Rehearsal, units: range, fails: list[bool]) -> None:
    decisions = [(r.decide(f"unit-{unit}"), fails[unit]) for unit in units]
    r.report([r.bad(d) if failing else r.good(d) for d, failing in decisions])


def twenty_requests_all_counted(seed: int) -> Run:
    """As `twenty_requests_a_unit`, each request counted."""
    return twenty_requests_a_unit(seed, UnitContribution.ALL)


SCENARIOS: dict[str, Callable[[int], Run]] = {
    "failures report after 1 s, successes after 1 h": failures_report_first,
    "20 requests a unit, 1 % of units always fail, FIRST": twenty_requests_a_unit,
    "the same, unitContribution ALL": twenty_requests_all_counted,
    "the same units, each in 20 windows, FIRST": units_that_return,
    "common incident 1 % -> 10 %, maxRatio 1": common_incident,
    "units that return, PER_REQUEST, maxRatio 1": returning_units_compared,
}

BESIDE: dict[Callable[[int], Run], str] = {
    failures_report_first: "counted as they arrive, frozen",
    common_incident: "absolute guardrail of 2 % fires, rightly",
}
