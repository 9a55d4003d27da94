"""The world that a rehearsed experiment meets: true rates over time, traffic, and how outcomes come back.

In: plain values. Out: a frozen `World`, checked whole against the experiment that is to meet it, and from it the rate of each arm, segment
and metric at any second. Rates may stand still, drift, jump at given times, follow a season; a shock hits every arm alike. Outcomes
are delayed, lost, repeated; readers lag behind the planner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from allocator.core.experiment import Experiment, RewardModel
from allocator.core.kernels import serve
from allocator.core.outcome import metric_names
from allocator.errors import InvalidArgument, Violation

MAX_RATE = 1e6  # requests a second
MAX_POPULATION = 50_000_000
MAX_POISSON = 700.0

Faults = Iterable[tuple[str, str]]


class Law(Enum):
    """How a value of a metric comes about. RATE: 1 with this chance, else 0. LOG_NORMAL: around this median. NORMAL: around this mean.

    COUNT: Poisson with this mean.
    """

    RATE = serve.RATE
    LOG_NORMAL = serve.LOG_NORMAL
    NORMAL = serve.NORMAL
    COUNT = serve.COUNT


@dataclass(frozen=True, slots=True)
class Season:
    """A sine on top: `amplitude` as a share of the level, once a `period_seconds`; it rises through 0 at `phase_seconds`."""

    amplitude: float
    period_seconds: float = 86400.0
    phase_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Curve:
    """A level over time. drift: added evenly, by the hour. jumps: from so many seconds on, this level instead (drift goes on)."""

    level: float
    drift_per_hour: float = 0.0
    jumps: tuple[tuple[float, float], ...] = ()
    season: Season | None = None

    def at(self, seconds: float) -> float:
        """The level `seconds` after the start."""
        level = self.level
        for since, value in self.jumps:
            if seconds >= since:
                level = value
        level += self.drift_per_hour * seconds / 3600.0
        if self.season is not None:
            turn = 2.0 * math.pi * (seconds - self.season.phase_seconds) / self.season.period_seconds
            level *= 1.0 + self.season.amplitude * math.sin(turn)
        return level


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric in this world. arms: the curve of each arm by name. spread: sigma of the logarithm, or standard deviation.

    by_unit: a unit has the same luck each time it meets an arm (units that always fail), instead of new luck at each request.
    """

    arms: Mapping[str, Curve]
    law: Law = Law.RATE
    spread: float = 0.0
    by_unit: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """Units of one declared segment. share: of all units. factors: of metrics, by name, on what the arm's curve says."""

    share: float
    factors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shock:
    """Something that hits every arm alike, for a while: added to metrics, by name (-0.05: five points less)."""

    start_seconds: float
    duration_seconds: float
    add: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests. rate: a second; poisson: their number varies. population: units that come back; 0: each request is a new unit.

    replicas: deciders, between which units are split; lag_seconds: how long a new plan takes to the last of them, evenly spread between;
    the first has it at once. A lag beyond the experiment's lease makes a replica serve the incumbent (STALE).
    """

    rate: Curve
    poisson: bool = True
    population: int = 0
    replicas: int = 1
    lag_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Reports:
    """How outcomes come back. delay_seconds: mean; bad_delay_seconds: the same where a metric other than the reward is 1 (None: no
    different). steady: every delay is the mean, not exponential. missing, duplicates: shares of outcomes. successes_only: a reward of 0 is
    never reported.
    """

    delay_seconds: float = 0.0
    bad_delay_seconds: float | None = None
    steady: bool = False
    missing: float = 0.0
    duplicates: float = 0.0
    successes_only: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """All that the experiment does not decide. metrics: by name, the reward's among them. segments: by name; `other` has the rest."""

    metrics: Mapping[str, Metric]
    traffic: Traffic
    reports: Reports = Reports()
    segments: Mapping[str, Segment] = field(default_factory=dict)
    shocks: tuple[Shock, ...] = ()


class Rates:
    """The world's numbers as the kernels want them. Metric 0 is the reward; the others follow in the experiment's order.

    kinds, by_unit, spread, low, high: (metrics,). ends: rising shares of segments, the last 1. still: do rates never change? Raises
    InvalidArgument with every fault.
    """

    def __init__(self, world: World, experiment: Experiment) -> None:
        found = violations(world, experiment)
        if found:
            raise InvalidArgument(f"the world has {len(found)} invalid values", violations=found, reason="INVALID_SCENARIO")
        self._world = world
        self.names = metric_names(experiment)
        self._arms = [arm.name for arm in experiment.arms]
        self._curves = [[world.metrics[name].arms[arm] for arm in self._arms] for name in self.names]
        metrics = [world.metrics[name] for name in self.names]
        self.kinds = np.array([metric.law.value for metric in metrics], np.int64)
        self.by_unit = np.array([metric.by_unit for metric in metrics], np.bool_)
        self.spread = np.array([metric.spread for metric in metrics], np.float64)
        self.low, self.high = np.array([value_range(experiment, name) for name in self.names], np.float64).T.copy()
        shares = [world.segments[s.name].share if s.name in world.segments else 0.0 for s in experiment.segments]
        self.ends = np.array([*np.cumsum(shares), 1.0])
        self.ends[-1] = 1.0
        self._factors = np.ones((len(self.ends), len(self.names)))
        for place, segment in enumerate(experiment.segments):
            factors = world.segments[segment.name].factors if segment.name in world.segments else {}
            self._factors[place] = [factors.get(name, 1.0) for name in self.names]
        plain = all(c.drift_per_hour == 0 and not c.jumps and c.season is None for row in self._curves for c in row)
        self.still = False
        self._level = self.at(0.0)
        self.still = plain and not world.shocks

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of units in each segment, (segments,)."""
        return np.diff(self.ends, prepend=0.0)

    def at(self, seconds: float) -> NDArray[np.float64]:
        """Rate, median or mean of each metric so many seconds after the start: float64 (arms, segments, metrics)."""
        if self.still:
            return self._level
        levels = np.array([[curve.at(seconds) for curve in row] for row in self._curves])
        middle = levels.T[:, None, :] * self._factors[None]
        for shock in self._world.shocks:
            if shock.start_seconds <= seconds < shock.start_seconds + shock.duration_seconds:
                middle += np.array([shock.add.get(name, 0.0) for name in self.names])
        rates = self.kinds == serve.RATE
        middle[..., rates] = middle[..., rates].clip(0.0, 1.0)
        counts = self.kinds == serve.COUNT
        middle[..., counts] = middle[..., counts].clip(0.0, MAX_POISSON)
        return np.ascontiguousarray(middle)

    def reward(self, seconds: float) -> NDArray[np.float64]:
        """Mean reward of each arm over all segments, (arms,): what regret is measured by. Of cut values, the uncut mean."""
        return self.at(seconds)[..., 0] @ self.shares


def violations(world: World, experiment: Experiment) -> list[Violation]:
    """Every fault of the world for this experiment, each with the path of its field."""
    return [
        Violation(f"world.{path}", message)
        for rule in (_metrics, _traffic, _reports, _segments, _shocks)
        for path, message in rule(world, experiment)
    ]


def value_range(experiment: Experiment, name: str) -> tuple[float, float]:
    """What values the experiment takes for a metric; the world cuts its own to it."""
    if name == experiment.reward.metric:
        return experiment.reward.low, experiment.reward.upper
    declared = any(metric.name == name for metric in experiment.metrics)
    if declared or any(g.quantile is None for g in experiment.guardrails if g.metric == name):
        return experiment.metric_range(name)
    return -math.inf, math.inf


def _number(path: str, value: float, low: float, high: float) -> Faults:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        yield path, f"got {value!r}; a number from {low:g} to {high:g} is allowed"


def _curve(path: str, curve: Curve, low: float, high: float) -> Faults:
    yield from _number(f"{path}.level", curve.level, low, high)
    yield from _number(f"{path}.driftPerHour", curve.drift_per_hour, -1e9, 1e9)
    for place, (at, level) in enumerate(curve.jumps):
        yield from _number(f"{path}.jumps[{place}].at", at, 0.0, 1e9)
        yield from _number(f"{path}.jumps[{place}].level", level, low, high)
        if place and at <= curve.jumps[place - 1][0]:
            yield f"{path}.jumps[{place}].at", f"got {at:g}s; jumps in order of time are allowed"
    if curve.season is not None:
        yield from _number(f"{path}.season.amplitude", curve.season.amplitude, 0.0, 1.0)
        yield from _number(f"{path}.season.period", curve.season.period_seconds, 1.0, 1e9)
        yield from _number(f"{path}.season.phase", curve.season.phase_seconds, -1e9, 1e9)


def _metrics(world: World, experiment: Experiment) -> Faults:
    needed, arms = metric_names(experiment), [arm.name for arm in experiment.arms]
    for name in needed:
        if name not in world.metrics:
            yield "metrics", f"got nothing for {name!r}; each of {', '.join(needed)} is needed"
    for name, metric in world.metrics.items():
        path = f"metrics[{name}]"
        if name not in needed:
            yield path, f"is no metric of the experiment; those are {', '.join(needed)}"
            continue
        low, high = {Law.RATE: (0.0, 1.0), Law.COUNT: (0.0, MAX_POISSON), Law.LOG_NORMAL: (1e-9, 1e9)}.get(metric.law, (-1e9, 1e9))
        if name == experiment.reward.metric:
            fits = {RewardModel.BERNOULLI: Law.RATE, RewardModel.POISSON: Law.COUNT}.get(experiment.reward.model, metric.law)
            if metric.law is not fits:
                yield f"{path}.law", f"got {metric.law.name}; {fits.name} goes with a {experiment.reward.model.value} reward"
        for arm in arms:
            if arm not in metric.arms:
                yield f"{path}.arms", f"got nothing for {arm!r}; each of {', '.join(arms)} is needed"
        for arm, curve in metric.arms.items():
            if arm not in arms:
                yield f"{path}.arms[{arm}]", f"is no arm of the experiment; those are {', '.join(arms)}"
            else:
                yield from _curve(f"{path}.arms[{arm}]", curve, low, high)
        needs_spread = metric.law in (Law.LOG_NORMAL, Law.NORMAL)
        yield from _number(f"{path}.spread", metric.spread, 0.0, 1e9 if needs_spread else 0.0)


def _traffic(world: World, experiment: Experiment) -> Faults:
    del experiment
    traffic = world.traffic
    yield from _curve("traffic.rate", traffic.rate, 0.0, MAX_RATE)
    for path, value, low, high in (("population", traffic.population, 0, MAX_POPULATION), ("replicas", traffic.replicas, 1, 256)):
        if type(value) is not int or not low <= value <= high:
            yield f"traffic.{path}", f"got {value!r}; a whole number from {low} to {high} is allowed"
    yield from _number("traffic.lag", traffic.lag_seconds, 0.0, 3600.0)
    if traffic.lag_seconds and traffic.replicas == 1:
        yield "traffic.lag", f"got {traffic.lag_seconds:g}s with one replica; the first replica has no lag"


def _reports(world: World, experiment: Experiment) -> Faults:
    reports, window = world.reports, experiment.reward.window_seconds
    for path, value in (("delay", reports.delay_seconds), ("badDelay", reports.bad_delay_seconds or 0.0)):
        for where, _ in _number(f"reports.{path}", value, 0.0, window):
            yield where, f"got {value!r} seconds; from 0 to the {window:g} seconds of the reward's window are allowed"
    yield from _number("reports.missing", reports.missing, 0.0, 1.0)
    yield from _number("reports.duplicates", reports.duplicates, 0.0, 1.0)
    if reports.successes_only and experiment.reward.missing is None:
        yield "reports.successesOnly", "needs `reward.missing` in the experiment: else a decision without a report counts as nothing"


def _segments(world: World, experiment: Experiment) -> Faults:
    declared = [segment.name for segment in experiment.segments]
    for name, segment in world.segments.items():
        path = f"segments[{name}]"
        if name not in declared:
            yield path, f"is no segment of the experiment; those are {', '.join(declared) or 'none'}"
        yield from _number(f"{path}.share", segment.share, 0.0, 1.0)
        for metric, factor in segment.factors.items():
            if metric not in world.metrics:
                yield f"{path}.factors[{metric}]", f"is no metric; those are {', '.join(world.metrics)}"
            yield from _number(f"{path}.factors[{metric}]", factor, 0.0, 1e6)
    total = sum(segment.share for segment in world.segments.values())
    if not total <= 1.0 + 1e-9:
        yield "segments", f"got shares that sum to {total:g}; at most 1 is allowed"


def _shocks(world: World, experiment: Experiment) -> Faults:
    del experiment
    for place, shock in enumerate(world.shocks):
        path = f"shocks[{place}]"
        yield from _number(f"{path}.start", shock.start_seconds, 0.0, 1e9)
        yield from _number(f"{path}.duration", shock.duration_seconds, 1e-3, 1e9)
        for metric, add in shock.add.items():
            if metric not in world.metrics:
                yield f"{path}.add[{metric}]", f"is no metric; those are {', '.join(world.metrics)}"
            yield from _number(f"{path}.add[{metric}]", add, -1e9, 1e9)
