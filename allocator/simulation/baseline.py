"""A policy of the literature in the world of a scenario, for comparison with what is served.

In: a scenario, a seed, the name of a policy. Out: a `Replication` with what a baseline has: regret, gain, exposures, intervals, and their
curves. It meets the requests, potential outcomes, delays and losses that the served policies meet, hears of outcomes in the ticks in which
a planner does, and counts what a planner counts: rewards as they arrive, or whole cohorts where a missing report means something. What
it cannot have is what belongs to the experiment: caps, guardrails, a ramp, stickiness, forgetting by age, weights by segment. Two policies
in one replication are therefore compared by their difference.

Policies that draw or rank arms do so for each request; those that weigh arms (Exp3, Tsallis-INF, P(best)) do so once a tick, because
each reward is divided by the one chance that its arm had. Dropped: playing the bare kernel on the scenario's rates, which knows no delay
beyond a batch and no loss, and therefore beat every planner in a world of slow reports.
"""

from __future__ import annotations

import math

import numpy as np

from allocator.core.experiment import Experiment
from allocator.core.kernels import bandit as kernels
from allocator.core.kernels import serve
from allocator.core.learning import reward_sums
from allocator.core.settling import GRACE_SECONDS, closing
from allocator.core.statistics import MICRO
from allocator.simulation.bandit import checked_policy
from allocator.simulation.books import Books, Floats, interval, sign_of
from allocator.simulation.decider import Batch
from allocator.simulation.episode import START, Decisions, Episode, Integers
from allocator.simulation.parallel import Seed, child
from allocator.simulation.replication import Replication
from allocator.simulation.scenario import Scenario

WEIGHING = (kernels.EXP3, kernels.TSALLIS_INF)  # learn from rewards divided by chances


class Baseline(Episode):
    """`play` runs to the end. policy: one of `POLICIES`; the experiment's reward is BERNOULLI. Its prior is the policy's, its rewards are
    turned round where they are minimised.

    heard, good: float64 (arms,), rewards heard of and their sum, when the last tick ended.
    """

    def __init__(self, scenario: Scenario, seed: Seed, policy: str) -> None:
        self._kind, self._knob, _ = checked_policy(policy, None)
        spec, weighs = scenario.experiment, self._kind in WEIGHING
        super().__init__(scenario, seed, plans=_plans(spec, scenario.tick_seconds) if weighs else 0)
        self.policy, arms = policy, len(spec.arms)
        self._own = np.random.Generator(np.random.PCG64(child(seed, 0)))
        self._turned = sign_of(spec) < 0
        prior = spec.reward.prior
        both = [1.0 if value is None else value for value in (prior.successes, prior.failures)]
        self._prior = np.repeat(np.array(both[::-1] if self._turned else both)[:, None], arms, axis=1)
        self._pulled, self._share = np.zeros(arms, np.int64), np.ones(arms)
        self._weighed = _Weighed(spec, self.ledger.by_plan) if weighs else None
        self._estimate = np.zeros(arms)
        self._drawn = np.zeros(arms)  # requests since the last point of the series
        self.books, self._ticks = Books(scenario, self.rates), 0
        self.plan()

    def play(self) -> Replication:
        """All ticks. Returns what happened; what a baseline cannot have (breaches, stages, ...) is NaN or empty."""
        for _ in range(self.scenario.ticks):
            self.tick()
        arms, stages, reported = len(self.experiment.arms), len(self.experiment.stages), self.ledger.reported
        low, high = interval(self.experiment, self.found)
        nothing = np.full(arms, np.nan)
        return Replication(
            policy=self.policy,
            requests=self.requests,
            regret=self.books.regret,
            gain=self.books.gain,
            exposures=self.books.exposures,
            excess=nothing,
            stopped=nothing,
            exposed_at_stop=nothing,
            breaches=(),
            stages=np.full(stages, np.nan),
            prob_best=nothing,
            churn=np.nan,
            covered=self.books.covered,
            width=high - low,
            least_propensity=np.nan,
            accepted=reported.accepted,
            late=reported.late,
            missing=reported.missing,
            duplicates=reported.duplicates,
            state="",
            waiting=(),
            series=self.books.series(),
        )

    def decide(self, batch: Batch) -> Decisions:
        """The policy's arms, from what it had heard when the tick began."""
        arms, pulled = self.choose(batch), np.zeros((len(self.experiment.arms), len(self.rates.ends), 2), np.int64)
        if arms.size:
            np.add.at(pulled[..., 0], (arms, batch.segments), 1)
            self.ledger.count(pulled, self.now)
        if self._weighed is not None:
            self._weighed.begin(self._ticks, self.experiment.bucket(self.now), self._share, pulled[..., 0].sum(axis=1))
        return arms, np.full(arms.size, serve.COUNTED, np.uint8), np.full(arms.size, self._ticks, np.int64)

    def choose(self, batch: Batch) -> Integers:
        """An arm for each request."""
        arms = np.empty(batch.units.size, np.int64)
        best = int((sign_of(self.experiment) * self.rates.reward(self.now - START)).argmax())
        kernels.choose(
            self._kind, self._knob, self.requests, self._own, self._prior, self.heard, self.good, self._estimate, self._pulled, best,
            self._share, arms,
        )  # fmt: skip
        return arms

    def served(self, middle: Floats, arms: Integers, segments: Integers, seconds: float) -> None:
        """Add it up."""
        self.books.served(middle, arms, segments)
        self._drawn += np.bincount(arms, minlength=self._drawn.size)
        if self.books.due():
            self.books.look(self.found, seconds)
            self.books.keep(seconds, self._drawn / max(self._drawn.sum(), 1.0), np.zeros(self._drawn.size), 0.0)
            self._drawn[:] = 0.0

    def plan(self) -> None:
        """Read what was heard, in a planner's order: a cohort that settles now is read in the next tick."""
        self.found = self.ledger.tally()
        sums = reward_sums(self.experiment, self.found)
        self.heard, self.good = np.array(sums.count), np.array(sums.count - sums.total if self._turned else sums.total)
        through = closing(self.experiment, self.now)
        if self._weighed is not None:
            gains, losses = self._weighed.sums()
            self._estimate = gains if (self._kind == kernels.EXP3) != self._turned else losses
            self._weighed.through = through
        if self.found.open.buckets.size and self.found.open.buckets[0] <= through:
            self.ledger.settle(through, 0)
        self._ticks += 1


class _Weighed:
    """Rewards, and what they lack to 1, over the chance that their arm had, summed by arm. heard: see `Ledger.by_plan`.

    through: the last bucket that has settled; where a missing report means something, later decisions do not count yet.
    """

    def __init__(self, experiment: Experiment, heard: Integers) -> None:
        self._missing, self._heard, self.through = experiment.reward.missing, heard, -(2**62)
        plans, arms, _ = heard.shape
        self._bucket = np.zeros(plans, np.int64)
        self._chance, self._pulled = np.ones((plans, arms)), np.zeros((plans, arms))
        self._base = np.zeros((2, arms))  # of plans that nothing more is heard of

    def begin(self, plan: int, bucket: int, chance: Floats, pulled: Integers) -> None:
        """Plan number `plan` has decided: so many pulls of each arm in this bucket, with these chances."""
        row = plan % len(self._heard)
        self._base += self._of(slice(row, row + 1))
        self._heard[row] = 0
        self._bucket[row], self._chance[row], self._pulled[row] = bucket, chance, pulled

    def sums(self) -> Floats:
        """Gains and losses, (2, arms)."""
        return self._base + self._of(slice(None) if self._missing is None else self._bucket <= self.through)

    def _of(self, rows) -> Floats:
        count, total, chance = self._heard[rows, :, 0], self._heard[rows, :, 1] / MICRO, self._chance[rows]
        if self._missing is not None:
            total = total + np.maximum(self._pulled[rows] - count, 0) * self._missing
            count = self._pulled[rows]
        return np.stack([(total / chance).sum(axis=0), ((count - total) / chance).sum(axis=0)])


def _plans(experiment: Experiment, tick_seconds: float) -> int:
    """For how many ticks a decision may still be heard of."""
    seconds = experiment.reward.window_seconds + GRACE_SECONDS + 2 * experiment.bucket_width_seconds
    return math.ceil(seconds / tick_seconds) + 3
