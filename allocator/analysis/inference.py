"""What an experiment has shown: means, lifts, shares and segments, with intervals that hold at every look and under any allocation.

In: exact sums of each arm (from the server), or logged decisions (from the decision log). Out: plain values. Beside every valid interval
stands the naive one that most tools would print: it is shorter, and under Thompson sampling, looked at again and again, it is wrong far
more often than it says (`simulations/coverage` measures how often).

What holds when. A mean holds while the arm's rate stays what it is, under any allocation, if each reward is news: its mean, given all that
came before, is the arm's. A unit that comes back brings its luck along, so it may count once. From the log `unit_sums` makes such sums, of
each unit's first decision. A server's sums count every request: they are as good only if requests of a unit are independent of each other,
and whoever prints intervals of them says so (in 15 of 40 A/A tests of 1,000 units that always fare alike, with 60,000 requests, the lift's
left out the truth, 0). From the log come two lifts that also hold when rates drift together: the ratio by the label kernel (exact), and
the difference by augmented inverse propensities (asymptotic, so it is given from 30 events and 30 non-events of each arm on). Intervals
are each at level alpha; of ten of them together, use a tenth of alpha.

Tried and dropped: a unit's first decision of each arm (one that moves has shown its luck on the arm that it left, and arms lose units when
they do badly), and a unit's mean (it changes from look to look).

Sources: the functions of `core/confidence`, `core/sample_ratio` and `core/calibration` name theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from allocator.analysis.decision_log import Logged, draws
from allocator.core.calibration import (
    CalibrationEvidence,
    DisparateImpact,
    Reliability,
    calibration_sums,
    disparate_impact,
    log_calibration,
    reliability,
)
from allocator.core.checked import checked_alpha
from allocator.core.confidence import confidence_sequence, difference_sequence, empirical_bernstein, relative_risk
from allocator.core.sample_ratio import log_adaptive_sample_ratio, p_value, sample_ratio_sums
from allocator.errors import InvalidArgument

Floats = NDArray[np.float64]
VARIANCE_OF_INTEREST = 10.0  # of 1,000 outcomes with a standard deviation of a tenth of the range
CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Scale:
    """Of a reward: its declared range; center: guess of its mean made before the data; binary: declared to be one end or the other, as
    BERNOULLI rewards are. Raises InvalidArgument.
    """

    low: float = 0.0
    high: float = 1.0
    center: float | None = None
    binary: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InvalidArgument.of_field("scale", f"got {self.low} to {self.high}; finite numbers, low < high, are allowed")

    @property
    def width(self) -> float:
        """Of the range."""
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class Sums:
    """Of one arm: how many rewards, their total and that of their squares, in the reward's own units. squares: NaN when not known."""

    count: float
    total: float
    squares: float = math.nan

    @property
    def mean(self) -> float:
        """NaN without a reward."""
        return self.total / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with what is known of it. low, high: valid at every look; naive_low, naive_high: mean ± z standard errors, beside it."""

    value: float
    low: float
    high: float
    naive_low: float = math.nan
    naive_high: float = math.nan


@dataclass(frozen=True, slots=True)
class Lift:
    """A candidate against the incumbent. ratio: of means, None where rewards may be negative. difference: in the reward's own units."""

    ratio: Interval | None
    difference: Interval


def unit_sums(logged: Logged, arm: int, segment: str | None = None) -> Sums:
    """Rewards of one arm, and segment, from the first decisions of units: each unit counts once in all arms and segments together.

    logged: rows of `decision_log.firsts`, with rewards, see `Logged.known`.
    """
    use = (logged.action == arm) & ~np.isnan(logged.reward) & (True if segment is None else logged.segment == segment)
    reward = logged.reward[use]
    return Sums(reward.size, math.fsum(reward), math.fsum(reward**2))


def mean_interval(sums: Sums, scale: Scale, alpha: float = 0.05) -> Interval:
    """Interval of an arm's mean reward, valid at every look while that mean stays what it is.

    Rewards of small variance gain from their squares: half of alpha goes to each of two sequences, and both must hold. Where rewards are
    declared binary, squares say nothing new: all of it goes to the sequence from counts, which holds whatever they are. So it does where
    squares are unknown. What is declared decides, never the rewards: one procedure while they happen to be 0 or 1 and another from the
    first fraction on may miss 1.5 alpha of the time. Raises InvalidArgument.
    """
    checked_alpha(alpha)
    count, total, squares = _shares(sums, scale)
    alone = scale.binary or math.isnan(squares)
    low, high = (float(end) for end in confidence_sequence(total, count, alpha if alone else alpha / 2.0))
    if not alone and count:
        center = 0.5 if scale.center is None else min(max((scale.center - scale.low) / scale.width, 0.0), 1.0)
        least, most = empirical_bernstein(count, total, squares, center, alpha / 2.0, VARIANCE_OF_INTEREST)
        low, high = max(low, float(least)), min(high, float(most))
    half = _z(alpha) * _standard_error(sums, scale) if count else math.nan
    return Interval(sums.mean, scale.low + scale.width * low, scale.low + scale.width * high, sums.mean - half, sums.mean + half)


def lift(candidate: Sums, incumbent: Sums, scale: Scale, alpha: float = 0.05) -> Lift:
    """Ratio and difference of two means, each valid at every look while both stay what they are: from two intervals at alpha / 2."""
    mine, theirs = mean_interval(candidate, scale, alpha / 2.0), mean_interval(incumbent, scale, alpha / 2.0)
    error = math.hypot(_standard_error(candidate, scale), _standard_error(incumbent, scale))
    value = candidate.mean - incumbent.mean
    difference = Interval(value, mine.low - theirs.high, mine.high - theirs.low, value - _z(alpha) * error, value + _z(alpha) * error)
    if scale.low < 0.0:
        return Lift(None, difference)
    ratio = candidate.mean / incumbent.mean if incumbent.mean else math.nan
    relative = math.nan  # of the naive interval: the delta method, on the ratio's logarithm
    if ratio and ratio > 0.0:
        errors = _standard_error(candidate, scale) / candidate.mean, _standard_error(incumbent, scale) / incumbent.mean
        relative = _z(alpha) * math.hypot(*errors)
    low = mine.low / theirs.high if theirs.high > 0.0 else 0.0
    high = mine.high / theirs.low if theirs.low > 0.0 else math.inf
    return Lift(Interval(ratio, low, high, ratio * math.exp(-relative), ratio * math.exp(relative)), difference)


def drift_proof_lift(logged: Logged, candidate: int, incumbent: int, scale: Scale, alpha: float = 0.05) -> Lift:
    """The same from logged propensities, valid also when all rates drift together. logged: with rewards, see `Logged.matured`.

    Only draws are used, see `decision_log.draws`, on which both arms had a chance and one of them came. ratio: None where the range does
    not begin at 0. difference: (-width, width) until both arms have 30 events and 30 non-events. Raises InvalidArgument.
    """
    possible = (np.nan_to_num(logged.propensities[:, [candidate, incumbent]]) > 0.0).all(axis=1)
    rows = logged.keep(draws(logged, possible) & np.isin(logged.action, (candidate, incumbent)) & ~np.isnan(logged.reward))
    mine = rows.action == candidate
    reward = np.clip((rows.reward - scale.low) / scale.width, 0.0, 1.0)
    pi = rows.propensities[:, candidate] / (rows.propensities[:, candidate] + rows.propensities[:, incumbent])
    difference = Interval(math.nan, -scale.width, scale.width)
    if rows.action.size:
        low, high = difference_sequence(mine, reward, pi, alpha)
        weighted = np.where(mine, reward / pi, -reward / (1.0 - pi))
        difference = Interval(scale.width * float(weighted.mean()), scale.width * float(low[-1]), scale.width * float(high[-1]))
    if scale.low != 0.0:
        return Lift(None, difference)
    cells, place = np.unique(pi, return_inverse=True)
    events = [np.bincount(place, weights=reward * part, minlength=cells.size) for part in (mine, ~mine)]
    low, high = relative_risk(*events, cells, alpha) if cells.size else (0.0, math.inf)
    weighted = (reward * mine / np.maximum(pi, 1e-12)).sum(), (reward * ~mine / np.maximum(1.0 - pi, 1e-12)).sum()
    return Lift(Interval(float(weighted[0] / weighted[1]) if weighted[1] else math.nan, low, high), difference)


def sample_ratio_p_values(logged: Logged, joined: bool = False) -> list[float]:
    """How surprising it is, for each arm, how often it was drawn, given the logged propensities; valid at every look.

    joined: only decisions whose reward came: is one arm losing outcomes more often? An alarm is `sample_ratio.ALPHA` or below.
    """
    came, found = ~np.isnan(logged.reward), []
    for arm in range(len(logged.arms)):
        pi = np.nan_to_num(logged.propensities[:, arm])
        use = draws(logged, (pi > 0.0) & (pi < 1.0)) & (came if joined else True)
        cells, place = np.unique(pi[use], return_inverse=True)
        mine = (logged.action[use] == arm).astype(np.float64)
        sums = sample_ratio_sums(
            np.bincount(place, weights=mine, minlength=cells.size), np.bincount(place, weights=1.0 - mine, minlength=cells.size), cells
        )
        found.append(p_value(log_adaptive_sample_ratio(sums)))
    return found


def disparity(segments: Sequence[Sums], scale: Scale, alpha: float = 0.05, limit: float = 0.8, maximise: bool = True) -> DisparateImpact:
    """Does every segment of one arm fare at least `limit` times as well as the best one? See `core.calibration.disparate_impact`."""
    shares = [_shares(sums, scale) for sums in segments]
    count = np.array([share[0] for share in shares])
    total = np.array([share[1] for share in shares])
    return disparate_impact(total if maximise else count - total, count, alpha, limit)


def calibration(probability: Floats, outcome: Floats, alpha: float = 0.05) -> tuple[CalibrationEvidence, Reliability]:
    """Evidence that predicted probabilities are off, and the reliability diagram. probability is clipped to [1e-12, 1 - 1e-12]."""
    probability = np.clip(probability, 1e-12, 1.0 - 1e-12)
    bins = min(CALIBRATION_BINS, max(1, probability.size // 20))
    return log_calibration(calibration_sums(probability, outcome)), reliability(probability, outcome, alpha, bins)


# -------------------------------------------------------------------------------------------------------- helpers


def _shares(sums: Sums, scale: Scale) -> tuple[float, float, float]:
    """(count, total, squares) of (reward - low) / width, kept inside what rewards in range can sum to: rounding may leave it."""
    total = (sums.total - sums.count * scale.low) / scale.width
    squares = (sums.squares - 2.0 * scale.low * sums.total + sums.count * scale.low**2) / scale.width**2
    total = min(max(total, 0.0), sums.count)
    if not math.isnan(squares):
        squares = min(max(squares, total**2 / sums.count if sums.count else 0.0), total)
    return float(sums.count), total, squares


def _standard_error(sums: Sums, scale: Scale) -> float:
    """Of the mean, as everyone computes it; where squares are unknown that of a count: its variance is its mean."""
    if not sums.count:
        return math.nan
    if math.isnan(sums.squares):
        return math.sqrt(max(sums.mean, 0.0) / sums.count)
    _, total, squares = _shares(sums, scale)
    return scale.width * math.sqrt(max(squares / sums.count - (total / sums.count) ** 2, 0.0) / sums.count)


def _z(alpha: float) -> float:
    return NormalDist().inv_cdf(1.0 - alpha / 2.0)
