"""The experiment as written down before the rollout: arms, reward, policy, exposure, guardrails, ramp, stop rule.

In: plain values (from `wire/convert.py`, or straight from Python). Out: a frozen `Experiment`, which promises nothing until
`experiment_rules` has checked it. Durations are seconds, shares and rates are fractions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

OTHER = "other"  # the segment of units that match none


class Assignment(Enum):
    STICKY = "STICKY"
    PER_REQUEST = "PER_REQUEST"


class RewardModel(Enum):
    BERNOULLI = "BERNOULLI"
    GAUSSIAN = "GAUSSIAN"
    POISSON = "POISSON"


class Goal(Enum):
    MAXIMISE = "MAXIMISE"
    MINIMISE = "MINIMISE"


class PolicyKind(Enum):
    THOMPSON = "THOMPSON"
    TOP_TWO = "TOP_TWO"
    EXPLORATION = "EXPLORATION"
    FIXED = "FIXED"


class Pooling(Enum):
    POOLED = "POOLED"
    PER_SEGMENT = "PER_SEGMENT"


class BreachAction(Enum):
    FREEZE = "FREEZE"
    DRAIN = "DRAIN"
    HOLD = "HOLD"
    ALERT = "ALERT"


class Per(Enum):
    ARM = "ARM"
    SEGMENT = "SEGMENT"


class UnitContribution(Enum):
    FIRST = "FIRST"
    ALL = "ALL"


class ConcludeAction(Enum):
    RECOMMEND = "RECOMMEND"
    PROMOTE = "PROMOTE"


@dataclass(frozen=True, slots=True)
class Arm:
    """One model version. `model_uri` is the immutable identity of its artifact."""

    name: str
    incumbent: bool = False
    model_uri: str = ""


@dataclass(frozen=True, slots=True)
class Prior:
    """Parameters of the prior, those of the reward's model; None takes the default that the spec documents."""

    successes: float | None = None
    failures: float | None = None
    mean: float | None = None
    strength: float | None = None
    shape: float | None = None
    scale: float | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Begin from what an earlier experiment learned about arms of the same name, discounted."""

    experiment: str
    discount: float = 0.5


@dataclass(frozen=True, slots=True)
class Reward:
    """What is maximised. A value outside [low, high] is refused at the door."""

    metric: str
    model: RewardModel = RewardModel.BERNOULLI
    window_seconds: float = 1800.0
    missing: float | None = None
    goal: Goal = Goal.MAXIMISE
    low: float = 0.0
    high: float | None = None
    prior: Prior = Prior()
    warm_start: WarmStart | None = None

    @property
    def upper(self) -> float:
        """The declared upper end, or the model's default: 1 for BERNOULLI, 1000 for POISSON, NaN for GAUSSIAN."""
        if self.high is not None:
            return self.high
        return {RewardModel.BERNOULLI: 1.0, RewardModel.POISSON: 1000.0}.get(self.model, math.nan)

    @property
    def shift(self) -> float:
        """Rewards are counted as offsets from this, in units of `unit`: a Gaussian mean far from 0 keeps its variance."""
        return self.low if self.model is RewardModel.GAUSSIAN else 0.0

    @property
    def unit(self) -> float:
        """One counted unit in the reward's own units: the width of the range for GAUSSIAN, else 1."""
        return self.upper - self.low if self.model is RewardModel.GAUSSIAN else 1.0


@dataclass(frozen=True, slots=True)
class Policy:
    """From P(best) to the wanted weights."""

    kind: PolicyKind = PolicyKind.THOMPSON
    floor: float = 0.0
    half_life_seconds: float | None = None
    power: float = 1.0
    beta: float = 0.5
    floor_schedule: bool = False
    shares: Mapping[str, float] = field(default_factory=dict)
    pooling: Pooling = Pooling.POOLED


@dataclass(frozen=True, slots=True)
class Budget:
    """What each candidate may ever receive; None is no limit. `loss` is total reward lost against the incumbent."""

    requests: int | None = None
    units: int | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Exposure:
    """Caps on what candidates receive, as shares of decisions."""

    per_candidate: float = 1.0
    total: float = 1.0
    strict: bool = False
    burst: int = 50
    budget: Budget = Budget()
    max_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A stop condition on one metric: exactly one of `max`, `min`, `max_ratio`; `quantile` turns `max` into an exceedance."""

    name: str
    metric: str
    max: float | None = None
    min: float | None = None
    quantile: float | None = None
    max_ratio: float | None = None
    on_breach: BreachAction = BreachAction.FREEZE
    per: Per = Per.ARM
    persistence: int = 1
    window_seconds: float | None = None

    @property
    def stream(self) -> str:
        """Name under which its sums are kept: another limit or metric under the same name starts another stream."""
        definition = repr((self.metric, self.max, self.min, self.quantile, self.max_ratio, self.window_seconds))
        return f"{self.name}@{hashlib.blake2b(definition.encode(), digest_size=4).hexdigest()}"

    @property
    def relative(self) -> bool:
        """Is it judged against the incumbent?"""
        return self.max_ratio is not None

    def loss(self, value: float, low: float, high: float) -> float:
        """How bad one value of the metric is, in [0, 1]. `low`, `high`: the metric's declared range (not for quantiles)."""
        if self.quantile is not None:
            return 1.0 if value > self.max else 0.0
        share = (value - low) / (high - low)
        return 1.0 - share if self.min is not None else share

    def loss_limit(self, low: float, high: float) -> float:
        """The largest acceptable mean of `loss`; for a relative guardrail, NaN: its limit is a ratio."""
        if self.quantile is not None:
            return 1.0 - self.quantile
        if self.max is not None:
            return (self.max - low) / (high - low)
        if self.min is not None:
            return (high - self.min) / (high - low)
        return math.nan


@dataclass(frozen=True, slots=True)
class Metric:
    """Range of a metric that is not a rate in [0, 1]; a value outside is refused."""

    name: str
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class Segment:
    """Units by their attributes: every attribute named must have one of the values listed."""

    name: str
    match: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class RampStage:
    """One step of exposure: `cap` bounds all candidates together; the rest must be met before the next stage is entered."""

    cap: float
    shadow: bool = False
    min_duration_seconds: float = 0.0
    min_outcomes: int = 0
    approvals: int = 0


@dataclass(frozen=True, slots=True)
class Conclude:
    """When the question counts as answered."""

    prob_best: float = 0.99
    max_expected_loss: float | None = None
    action: ConcludeAction = ConcludeAction.RECOMMEND


@dataclass(frozen=True, slots=True)
class Approval:
    """How many people other than its author must agree before the experiment becomes riskier, and how long a proposal waits for them."""

    required: int = 0
    expiry_seconds: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Experiment:
    """The whole spec. Build it with `experiment_rules.checked(...)` or call its `check`: an unchecked one promises nothing."""

    name: str
    arms: tuple[Arm, ...]
    reward: Reward
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""
    hypothesis: str = ""
    lineage: Mapping[str, str] = field(default_factory=dict)
    assignment: Assignment = Assignment.STICKY
    policy: Policy = Policy()
    exposure: Exposure = Exposure()
    guardrails: tuple[Guardrail, ...] = ()
    alpha: float = 0.001
    segments: tuple[Segment, ...] = ()
    opt_out: str = ""
    ramp: tuple[RampStage, ...] = ()
    conclude: Conclude | None = None
    metrics: tuple[Metric, ...] = ()
    target: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    unit_contribution: UnitContribution = UnitContribution.FIRST
    bucket_seconds: float | None = None
    lease_seconds: float = 15.0
    approval: Approval = Approval()

    @property
    def full_name(self) -> str:
        """`namespace/name`: how the experiment is called everywhere."""
        return f"{self.namespace}/{self.name}"

    @property
    def incumbent(self) -> int:
        """Index of the incumbent among `arms`."""
        return next(index for index, arm in enumerate(self.arms) if arm.incumbent)

    @property
    def bucket_width_seconds(self) -> float:
        """Width of a bucket of decision time: as declared, else a sixtieth of the window, from 1 s to 1 h, whole seconds."""
        if self.bucket_seconds is not None:
            return self.bucket_seconds
        return float(min(3600, max(1, math.ceil(self.reward.window_seconds / 60))))

    @property
    def stages(self) -> tuple[RampStage, ...]:
        """The ramp; without one, a single stage at the cap of `exposure`."""
        return self.ramp or (RampStage(cap=self.exposure.total),)

    @property
    def segment_names(self) -> tuple[str, ...]:
        """The declared segments, and `other` last."""
        return (*(segment.name for segment in self.segments), OTHER)

    def metric_range(self, name: str) -> tuple[float, float]:
        """Declared range of a metric; [0, 1] when nothing was declared."""
        for metric in self.metrics:
            if metric.name == name:
                return metric.low, metric.high
        return 0.0, 1.0

    def guardrail_window_seconds(self, guardrail: Guardrail) -> float:
        """How long after its decision an outcome counts in this guardrail: the reward's window unless it has its own."""
        return self.reward.window_seconds if guardrail.window_seconds is None else guardrail.window_seconds

    def bucket(self, seconds: float) -> int:
        """The bucket of decision time that holds `seconds` (since the epoch)."""
        return int(seconds // self.bucket_width_seconds)
