"""Before a launch: what a spec promises at a given traffic, rehearsed.

In: a spec, the incumbent's reward, the traffic, and rates of the metrics where they are known. Out: a `Certificate`: how often a harmless
candidate is stopped, how soon a harmful one and how many users it has served by then, when each ramp stage is reached, what learning
earns over a fixed split, and whether the guardrails can prove safety in the time that stages last. Every number comes with its interval.

Harm is an addition to one guardrail's share of bad outcomes, from the first request on, for the first candidate; all else equals the
incumbent. Ticks are coarse where an answer takes days and fine where it takes seconds; a delay is overestimated by at most one tick, which
is told. What only people decide (approvals) is given at once, so times to a stage are the least that the spec allows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from allocator.core.evidence_rates import log_safety, safety_grid
from allocator.core.experiment import BreachAction, Experiment, Guardrail, RewardModel
from allocator.core.guardrail import SAFETY_ALPHA
from allocator.core.outcome import metric_names
from allocator.errors import InvalidArgument, Violation
from allocator.simulation.scenario import SPEC, Scenario, violations
from allocator.simulation.study import PolicySummary, Study, study, summary
from allocator.simulation.summary import Proportion, Summary, proportion, summarise
from allocator.simulation.world import Curve, Law, Metric, Reports, Segment, Traffic, World, value_range

EFFECTS = (0.01, 0.02, 0.05, 0.20)
SPREAD = 0.3  # sigma of the logarithm of a metric that a quantile is asked of
MOST_TICKS, FINE_TICKS = 500, 50
LEAST_SECONDS, MOST_SECONDS = 3600.0, 14 * 86400.0
LEAST_MEDIAN, MOST_MEDIAN = 1e-9, 1e9
UNKNOWN_RATE = 0.01  # of a metric that has no absolute limit to go by
STOPPING = (BreachAction.FREEZE, BreachAction.DRAIN)
ASKED = {"duration": "for", "world.reports.delay": "delay"}  # fields of the scenario that is made here: what they were asked for by


@dataclass(frozen=True, slots=True)
class Harm:
    """points: added to the share of bad outcomes. stopped: runs in which the candidate was stopped within `horizon_seconds`. seconds: from
    when it first served to the stop; units: decisions it had served by then. tick_seconds: how exact the first is.
    """

    points: float
    stopped: Proportion
    seconds: Summary
    units: Summary
    horizon_seconds: float
    tick_seconds: float


@dataclass(frozen=True, slots=True)
class Stage:
    """entered: runs of a harmless candidate that reached the stage within the horizon; seconds: after the start."""

    number: int
    cap: float
    entered: Proportion
    seconds: Summary


@dataclass(frozen=True, slots=True)
class Proof:
    """Can this guardrail prove a candidate safe in this stage? needed: matured outcomes without a single bad one that prove it, the
    fewest possible. given: those that a candidate can have by the stage's least duration. possible: given >= needed. Relative guardrails
    have no such number: `needed` is None, and the rehearsed times to the next stage tell.
    """

    stage: int
    guardrail: str
    needed: int | None
    given: int
    possible: bool | None


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """The answers, and what was assumed: `rates` of metrics, `harmed` guardrail, `promised`: the false-stop probability in the spec, all
    candidates together. false_stop: runs in which a candidate equal to the incumbent was stopped. learned: regret of the spec and of a
    fixed split where the first candidate's reward is better by `improvement`. waiting: what the next stage still waited for at the end of
    harmless runs, and in how many. studies: for figures, by name.
    """

    experiment: Experiment
    incumbent_rate: float
    traffic: float
    rates: Mapping[str, float]
    replications: int
    horizon_seconds: float
    tick_seconds: float
    promised: float
    waiting: Mapping[str, int]
    false_stop: Proportion
    harmed: str
    harms: tuple[Harm, ...]
    stages: tuple[Stage, ...]
    proofs: tuple[Proof, ...]
    improvement: float
    learned: tuple[PolicySummary, ...]
    studies: Mapping[str, Study]


def certify(
    experiment: Experiment,
    incumbent_rate: float,
    traffic: float,
    *,
    metric_rates: Mapping[str, float] | None = None,
    improvement: float = 0.1,
    guardrail: str | None = None,
    duration_seconds: float | None = None,
    delay_seconds: float = 0.0,
    replications: int = 20,
    seed: int = 0,
    workers: int = 1,
    backend: str = "loky",
    titles: bool = False,
) -> Certificate:
    """Rehearse the spec before its launch.

    incumbent_rate: mean reward of the incumbent. traffic: requests a second, above 0. metric_rates: of each metric, by name: its rate, or
    its median where a quantile is asked of it; what is not named is taken at half of what its limit allows. improvement: of
    the better candidate's reward, as a share. guardrail: the one that is harmed, by default the first that stops. duration_seconds: how
    long to rehearse, by default what the ramp needs at least, twice over. delay_seconds: mean, of outcomes. titles: progress bars. Raises
    InvalidArgument with every fault.
    """
    rates = dict(metric_rates or {})
    found = _faults(experiment, incumbent_rate, traffic, rates, improvement, guardrail)
    if found:
        raise InvalidArgument(violations=found)
    harmed = next((g for g in experiment.guardrails if g.name == guardrail or (guardrail is None and g.on_breach in STOPPING)), None)
    metrics = {name: _metric(experiment, name, rates, incumbent_rate) for name in metric_names(experiment)}
    segments = {s.name: Segment(1.0 / (len(experiment.segments) + 1)) for s in experiment.segments}
    world = World(metrics, Traffic(Curve(traffic)), Reports(delay_seconds, missing=0.0), segments)
    horizon = _horizon(experiment) if duration_seconds is None else duration_seconds
    tick = _tick(horizon / MOST_TICKS)
    base = Scenario(experiment, world, horizon, "a/a, every arm alike", tick, replications, seed)
    found = [Violation(ASKED.get(fault.field, fault.field), fault.message) for fault in violations(base)]
    if found:
        raise InvalidArgument(violations=found)

    def run(scenario: Scenario) -> Study:
        return study(scenario, workers=workers, backend=backend, title=scenario.name if titles else "")

    alike = run(base)
    harms, harm_studies = [], {}
    for points in EFFECTS if harmed is not None else ():
        scenario = _harmed(base, harmed, points)
        done = harm_studies[f"{points:+.0%}"] = run(scenario)
        harms.append(_harm(done, points))
    better = run(_improved(base, improvement))
    runs = alike.runs[SPEC]
    entered = np.array([one.stages for one in runs])
    stages = tuple(
        Stage(number, stage.cap, proportion(~np.isnan(column)), summarise(column))
        for number, (stage, column) in enumerate(zip(experiment.stages, entered.T, strict=True))
    )
    return Certificate(
        experiment=experiment,
        incumbent_rate=incumbent_rate,
        traffic=traffic,
        rates={name: metric.arms[experiment.arms[experiment.incumbent].name].level for name, metric in metrics.items()},
        replications=replications,
        horizon_seconds=horizon,
        tick_seconds=tick,
        promised=experiment.alpha * (len(experiment.arms) - 1),
        waiting=dict(Counter(reason for one in runs for reason in one.waiting).most_common()),
        false_stop=proportion(bool(one.breaches) for one in runs),
        harmed="" if harmed is None else harmed.name,
        harms=tuple(harms),
        stages=stages,
        proofs=_proofs(experiment, traffic),
        improvement=improvement,
        learned=summary(better),
        studies={"a/a": alike, "better": better, **harm_studies},
    )


def _faults(
    experiment: Experiment, rate: float, traffic: float, rates: Mapping[str, float], improvement: float, guardrail: str | None
) -> list[Violation]:
    found = []
    low, high = experiment.reward.low, experiment.reward.upper
    if not low < rate < high:
        found.append(Violation("incumbent-rate", f"got {rate}; a mean reward between {low:g} and {high:g} is allowed"))
    if not 0 < traffic <= 1e6:
        found.append(Violation("traffic", f"got {traffic}; requests a second above 0, up to 1e6, are allowed"))
    if not 0 < improvement <= 10:
        found.append(Violation("improvement", f"got {improvement}; a share above 0, up to 10, is allowed"))
    known = [name for name in metric_names(experiment) if name != experiment.reward.metric]
    for name, value in rates.items():
        if name not in known:
            found.append(Violation("metric-rates", f"{name!r} is no guardrail's metric; those are {', '.join(known) or 'none'}"))
            continue
        median = any(g.quantile is not None for g in experiment.guardrails if g.metric == name)
        low, high = (LEAST_MEDIAN, MOST_MEDIAN) if median else value_range(experiment, name)
        if not low <= value <= high:
            found.append(Violation("metric-rates", f"got {name}={value:g}; a number from {low:g} to {high:g} is allowed"))
    names = [g.name for g in experiment.guardrails]
    if guardrail is not None and guardrail not in names:
        found.append(Violation("guardrail", f"got {guardrail!r}; one of {', '.join(names) or 'none'} is allowed"))
    return found


def _metric(experiment: Experiment, name: str, rates: Mapping[str, float], incumbent_rate: float) -> Metric:
    """The metric of a candidate that equals the incumbent, and the incumbent's own."""
    arms = [arm.name for arm in experiment.arms]

    def same(level: float, law: Law = Law.RATE, spread: float = 0.0) -> Metric:
        return Metric({arm: Curve(level) for arm in arms}, law, spread)

    low, high = value_range(experiment, name)
    if name == experiment.reward.metric:
        model = experiment.reward.model
        if model is RewardModel.GAUSSIAN:
            return same(incumbent_rate, Law.NORMAL, (high - low) / 10)
        return same(incumbent_rate, Law.COUNT if model is RewardModel.POISSON else Law.RATE)
    users = [g for g in experiment.guardrails if g.metric == name]
    quantile = next((g for g in users if g.quantile is not None), None)
    if quantile is not None:
        median = rates.get(name, quantile.max / math.exp(SPREAD * ndtri(1.0 - (1.0 - quantile.quantile) / 2)))
        return same(median, Law.LOG_NORMAL, SPREAD)
    bounded = next((g for g in users if not g.relative), None)
    if (low, high) == (0.0, 1.0):
        half = UNKNOWN_RATE if bounded is None else bounded.loss_limit(0.0, 1.0) / 2
        return same(rates.get(name, 1.0 - half if bounded is not None and bounded.min is not None else half))
    half = low + (high - low) * UNKNOWN_RATE
    if bounded is not None:
        share = bounded.loss_limit(low, high) / 2
        half = high - share * (high - low) if bounded.min is not None else low + share * (high - low)
    level = rates.get(name, half)
    return same(level, Law.NORMAL, min(level - low, high - level) / 3)


def _harmed(base: Scenario, guardrail: Guardrail, points: float) -> Scenario:
    """The scenario in which the first candidate's share of bad outcomes is higher by `points`, on ticks fine enough to see it stop."""
    experiment, world = base.experiment, base.world
    candidate = next(arm.name for arm in experiment.arms if not arm.incumbent)
    metric = world.metrics[guardrail.metric]
    level = metric.arms[candidate].level
    low, high = value_range(experiment, guardrail.metric)
    if metric.law is Law.LOG_NORMAL:
        bad = 1.0 - _normal((math.log(guardrail.max) - math.log(level)) / metric.spread)
        bad_after = min(bad + points, 1.0 - 1e-9)
        after = guardrail.max / math.exp(metric.spread * ndtri(1.0 - bad_after))
        limit = 1.0 - guardrail.quantile
    else:
        bad = guardrail.loss(level, low, high)
        bad_after = min(bad + points, 1.0)
        after = high - bad_after * (high - low) if guardrail.min is not None else low + bad_after * (high - low)
        limit = guardrail.loss_limit(low, high) if not guardrail.relative else bad * guardrail.max_ratio
    arms = {**metric.arms, candidate: Curve(after)}
    metrics = {**world.metrics, guardrail.metric: replace(metric, arms=arms)}
    first = next((number for number, stage in enumerate(experiment.stages) if stage.cap > 0), 0)
    before = sum(stage.min_duration_seconds for stage in experiment.stages[:first])
    share = min(experiment.stages[first].cap, experiment.exposure.total, experiment.exposure.per_candidate) / (len(experiment.arms) - 1)
    seconds = _outcomes_to_stop(bad_after, limit, experiment.alpha) / max(share * world.traffic.rate.level, 1e-9)
    waits = experiment.guardrail_window_seconds(guardrail) + 2 * experiment.bucket_width_seconds if guardrail.relative else 0.0
    duration = min(base.duration_seconds, before + waits + max(60.0, 8 * seconds))
    tick = min(base.tick_seconds, _tick(max(seconds / FINE_TICKS, duration / MOST_TICKS)))
    return replace(
        base, name=f"{points:+.0%} bad outcomes of {candidate} on {guardrail.name}", world=replace(world, metrics=metrics),
        duration_seconds=duration, tick_seconds=tick, policies=(SPEC,),
    )  # fmt: skip


def _outcomes_to_stop(bad: float, limit: float, alpha: float) -> float:
    """About how many outcomes are needed to see a share of bad ones above the limit: threshold over divergence, and infinity below."""
    if bad <= limit:
        return 1e12
    q = min(bad, 1 - 1e-9)
    divergence = q * math.log(q / limit) + (1 - q) * math.log((1 - q) / (1 - limit))
    return (math.log(1 / alpha) + 3.0) / divergence + 5.0


def _harm(done: Study, points: float) -> Harm:
    runs = done.runs[SPEC]
    experiment = done.scenario.experiment
    candidate = next(index for index, arm in enumerate(experiment.arms) if not arm.incumbent)
    first = next((number for number, stage in enumerate(experiment.stages) if stage.cap > 0), 0)
    started = np.array([one.stages[first] for one in runs])
    stopped = np.array([one.stopped[candidate] for one in runs])
    return Harm(
        points=points,
        stopped=proportion(~np.isnan(stopped)),
        seconds=summarise(stopped - started),
        units=summarise([one.exposed_at_stop[candidate] for one in runs]),
        horizon_seconds=done.scenario.duration_seconds,
        tick_seconds=done.scenario.tick_seconds,
    )


def _improved(base: Scenario, improvement: float) -> Scenario:
    """The scenario in which the first candidate earns more, under the spec and under a fixed split."""
    experiment, world = base.experiment, base.world
    reward = world.metrics[experiment.reward.metric]
    candidate = next(arm.name for arm in experiment.arms if not arm.incumbent)
    better = reward.arms[candidate].level * (1 + improvement if experiment.reward.goal.value == "MAXIMISE" else 1 - improvement)
    arms = {**reward.arms, candidate: Curve(min(max(better, experiment.reward.low), experiment.reward.upper))}
    metrics = {**world.metrics, experiment.reward.metric: replace(reward, arms=arms)}
    return replace(base, name=f"{candidate} {improvement:.0%} better", world=replace(world, metrics=metrics), policies=(SPEC, "FIXED"))


def _proofs(experiment: Experiment, traffic: float) -> tuple[Proof, ...]:
    """For each stage that has another after it, and each guardrail: outcomes that prove safety at the least, and those there can be."""
    candidates = len(experiment.arms) - 1
    proofs = []
    for number, stage in enumerate(experiment.stages[:-1]):
        if stage.shadow or stage.cap == 0:
            continue
        share = min(stage.cap, experiment.exposure.total, experiment.exposure.per_candidate * candidates) / candidates
        for guardrail in experiment.guardrails:
            window = experiment.guardrail_window_seconds(guardrail)
            parts = len(experiment.segments) + 1 if guardrail.per.value == "SEGMENT" else 1
            given = int(max(stage.min_duration_seconds - window, 0.0) * traffic * share / parts)
            if guardrail.relative:
                proofs.append(Proof(number, guardrail.name, None, given, None))
                continue
            needed = _fewest(guardrail.loss_limit(*value_range(experiment, guardrail.metric)))
            proofs.append(Proof(number, guardrail.name, needed, given, given >= needed))
    return tuple(proofs)


def _fewest(limit: float) -> int:
    """The fewest outcomes, none of them bad, that prove a rate below the limit."""
    grid, wanted = safety_grid(limit), -math.log(SAFETY_ALPHA)
    low, high = 0, 1
    while log_safety(grid, float(high), 0.0) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if log_safety(grid, float(middle), 0.0) < wanted else (low, middle)
    return high


def _horizon(experiment: Experiment) -> float:
    """Twice what the ramp needs at the least, windows included, and another hour."""
    least = sum(stage.min_duration_seconds + experiment.reward.window_seconds for stage in experiment.stages[:-1])
    return min(max(2 * least, LEAST_SECONDS) + LEAST_SECONDS, MOST_SECONDS)


def _tick(seconds: float) -> float:
    """A whole number of seconds, or a tenth of one where that is needed."""
    return float(math.ceil(seconds)) if seconds > 1 else 1.0 if seconds > 0.5 else max(0.1, math.ceil(seconds * 10) / 10)


def _normal(z: float) -> float:
    """The distribution function of a standard normal."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))
