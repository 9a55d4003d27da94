"""What an experiment has learned of its rewards: statistics → posterior → P(best) → the weights that its policy wants.

In: the record, its tally, the time. Out: a `Learned` for each table (one, or one a segment), before any cap, floor or guardrail.
Rewards count as they arrive, or by whole matured cohorts when a missing report means something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allocator.core import policy as policies
from allocator.core.best_arm import BestArm, best_arm
from allocator.core.checked import Floats
from allocator.core.experiment import Experiment, Goal, PolicyKind, Pooling, RewardModel
from allocator.core.posterior import BetaPrior, GammaPrior, NormalInverseGammaPrior, Posterior, Prior, posterior, warm_start
from allocator.core.record import Record
from allocator.core.settling import coarsening
from allocator.core.statistics import COUNT, Sums, discounted, matured, sums_of
from allocator.core.tally import EXPOSURE_STREAM, REWARD_STREAM, Tally


@dataclass(frozen=True, slots=True)
class Learned:
    """What one table's statistics say. best: P(best) and expected loss among eligible arms; outcomes: rewards that count, (arms,)."""

    posterior: Posterior
    best: BestArm
    wanted: Floats
    outcomes: Floats


def tables(experiment: Experiment) -> tuple[int | None, ...]:
    """The segment of each table; None: all together."""
    if experiment.policy.pooling is Pooling.PER_SEGMENT:
        return tuple(range(len(experiment.segments) + 1))
    return (None,)


def learn(record: Record, found: Tally, segment: int | None, eligible: NDArray[np.bool_], now: float) -> Learned:
    """What one table has learned. segment: its segment, None for all together. eligible: bool (arms,), those that may win."""
    experiment = record.experiment
    sums = reward_sums(experiment, found, segment, now)
    reward = experiment.reward
    after = posterior(_prior(record), sums, shift=reward.shift, unit=reward.unit)
    best = best_arm(after, None if eligible.all() else eligible, maximise=reward.goal is Goal.MAXIMISE)
    chosen = experiment.policy
    shares = tuple(chosen.shares[arm.name] for arm in experiment.arms) if chosen.kind is PolicyKind.FIXED else None
    spec = policies.Policy(chosen.kind, chosen.power, chosen.beta, chosen.floor_schedule, shares)
    decisions = int(exposures(found)[0].sum())
    return Learned(after, best, policies.weights(spec, best.prob_best, decisions, eligible), sums.count)


def rewards_reported(found: Tally) -> list[int]:
    """Rewards reported for each arm since the start."""
    total = found.open.sums[:, :, :, REWARD_STREAM, COUNT].sum(axis=(0, 2))
    return (total + found.settled.sums[:, :, :, REWARD_STREAM, COUNT].sum(axis=(0, 2))).tolist()


def exposures(found: Tally) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Decisions of each arm since the start, and those in open buckets whose reward has not come."""
    open_now = found.open.sums[:, :, :, EXPOSURE_STREAM, COUNT].sum(axis=(0, 2))
    reported = found.open.sums[:, :, :, REWARD_STREAM, COUNT].sum(axis=(0, 2))
    settled = found.settled.sums[:, :, :, EXPOSURE_STREAM, COUNT].sum(axis=(0, 2))
    return open_now + settled, np.maximum(open_now - reported, 0)


def reward_sums(experiment: Experiment, found: Tally, segment: int | None = None, now: float | None = None) -> Sums:
    """Rewards that count: as they arrive, or by whole matured cohorts when a missing report means something.

    now: the time by which a policy with a half-life forgets; None forgets nothing, which is what an interval needs.
    """
    reward, half_life = experiment.reward, experiment.policy.half_life_seconds
    width = experiment.bucket_width_seconds
    coarse = width * max(coarsening(experiment), 1)

    def read(settled: bool, stream: int) -> Sums:
        statistics, bucket_seconds = (found.settled, coarse) if settled else (found.open, width)
        if half_life is None or now is None:
            return sums_of(statistics, stream, segment)
        return discounted(statistics, stream, math.floor(now / bucket_seconds), half_life / bucket_seconds, segment)

    if reward.missing is None:
        old, new = read(True, REWARD_STREAM), read(False, REWARD_STREAM)
        return Sums(old.count + new.count, old.total + new.total, old.squares + new.squares)
    missing = (reward.missing - reward.shift) / reward.unit
    return matured(read(True, EXPOSURE_STREAM), read(True, REWARD_STREAM), missing)


def _prior(record: Record) -> Prior | Sequence[Prior]:
    reward, p = record.experiment.reward, record.experiment.reward.prior
    base: Prior
    if reward.model is RewardModel.BERNOULLI:
        base = BetaPrior(_or(p.successes, 1.0), _or(p.failures, 1.0))
    elif reward.model is RewardModel.POISSON:
        base = GammaPrior(_or(p.shape, 1.0), _or(p.rate, 1.0))
    else:
        middle, width = (reward.low + reward.upper) / 2, reward.upper - reward.low
        base = NormalInverseGammaPrior(_or(p.mean, middle), _or(p.strength, 1.0), _or(p.shape, 1.0), _or(p.scale, (width / 4) ** 2))
    if not record.warm or reward.warm_start is None:
        return base
    count, total, squares = (np.array(column) for column in zip(*record.warm, strict=True))
    return warm_start(base, Sums(count, total, squares), reward.warm_start.discount, shift=reward.shift, unit=reward.unit)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
