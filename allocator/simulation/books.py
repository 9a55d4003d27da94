"""What an episode comes to: exposures, regret and gain, whether intervals held, and a few curves.

In: what was served, tick by tick. Out: sums. Regret is the pseudo-regret: means of the arms served against the mean of the best, so that
luck with outcomes decides nothing. The best arm is the one that is best over all segments together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from allocator.core.confidence import confidence_sequence
from allocator.core.experiment import Experiment, Goal
from allocator.core.learning import reward_sums
from allocator.core.tally import Tally
from allocator.simulation.replication import Series
from allocator.simulation.scenario import Scenario
from allocator.simulation.world import Rates

CONFIDENCE = 0.05
Floats = NDArray[np.float64]


class Books:
    """Of one episode. exposures: int64 (arms,); regret, gain: in rewards; covered: (arms,), see `Replication`."""

    def __init__(self, scenario: Scenario, rates: Rates) -> None:
        self._scenario, self._rates = scenario, rates
        spec = scenario.experiment
        arms = len(spec.arms)
        self._incumbent = spec.incumbent
        self._sign = sign_of(spec)
        self.exposures = np.zeros(arms, np.int64)
        self.regret = self.gain = 0.0
        known = rates.still and len(rates.ends) == 1  # else no one number is an arm's mean
        self.covered = np.ones(arms) if known else np.full(arms, np.nan)
        self._rows: list[tuple] = []
        self._every, self._tick = max(1, scenario.ticks // scenario.points), 0

    def served(self, middle: Floats, arms: NDArray[np.int64], segments: NDArray[np.int64]) -> None:
        """Add a batch. middle: (arms, segments, metrics)."""
        counts = np.zeros(middle.shape[:2])
        np.add.at(counts, (arms, segments), 1.0)
        self.exposures += counts.sum(axis=1).astype(np.int64)
        self._value(counts, middle)

    def rested(self, middle: Floats, arm: int, count: int) -> None:
        """Add `count` requests that went to one arm, whoever asked."""
        counts = np.zeros(middle.shape[:2])
        counts[arm] = count * self._rates.shares
        self.exposures[arm] += count
        self._value(counts, middle)

    def due(self) -> bool:
        """Another tick: is it one whose point the series keeps?"""
        self._tick += 1
        return (self._tick - 1) % self._every == 0

    def look(self, found: Tally, seconds: float) -> None:
        """Do the intervals hold the means now?"""
        if np.isnan(self.covered).any():
            return
        low, high = interval(self._scenario.experiment, found)
        reward = self._scenario.experiment.reward
        truth = (self._rates.reward(seconds) - reward.low) / (reward.upper - reward.low)
        self.covered *= (low <= truth) & (truth <= high)

    def keep(self, seconds: float, weights: Floats, evidence: Floats, stage: float) -> None:
        """Keep a point of the series."""
        self._rows.append((seconds, weights, self.exposures.astype(np.float64), evidence, self.regret, stage))

    def series(self) -> Series:
        """The points kept."""
        return Series(*(np.array(column, np.float64) for column in zip(*self._rows, strict=True)))

    def _value(self, counts: Floats, middle: Floats) -> None:
        rewards = self._sign * middle[..., 0]
        best = rewards[int((rewards @ self._rates.shares).argmax())]
        self.regret += float((counts * (best - rewards)).sum())
        self.gain += float((counts * (rewards - rewards[self._incumbent])).sum())


def interval(experiment: Experiment, found: Tally) -> tuple[Floats, Floats]:
    """Always-valid interval of each arm's mean reward, as a share of its range, from the rewards that the planner counts."""
    reward, sums = experiment.reward, reward_sums(experiment, found)
    total = (sums.total * reward.unit + sums.count * (reward.shift - reward.low)) / (reward.upper - reward.low)
    return confidence_sequence(np.clip(total, 0.0, sums.count), sums.count, CONFIDENCE)


def sign_of(experiment: Experiment) -> float:
    """1 where rewards are maximised, -1 where they are minimised."""
    return 1.0 if experiment.reward.goal is Goal.MAXIMISE else -1.0
