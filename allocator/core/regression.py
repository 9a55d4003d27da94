"""Contextual scores: what is known of a unit in, the posterior of each arm's score for that unit out.

In: features of the units an arm has served and what came of them. Out: for one unit's features, a posterior over arms
that `best_arm` takes like any other: its P(best) is then the chance that each arm is best *for this unit*. Two models,
one for each arm, sharing nothing:

- linear, for a reward on the real line. Its sums (n, x x', x y, y y) add up over replicas and buckets; the score at x
  is a Student t.
- logistic, for successes. Units are grouped into cells of equal features, whose counts are sufficient and add up
  exactly; the model is refitted from them by Newton's method and approximated by a Gaussian at its maximum (Laplace),
  so the score, a log odds, is Normal.

For research: an experiment's spec does not offer these models, because their weights depend on the unit and no table of
slots can hold them. Because arms share no parameters, P(best | x) is exact up to the model, and so is a propensity made
from it.

Rewards are summed about `center`, a guess of the coefficients made in advance, as sums of squares of large numbers lose
the variance: with a constant feature it is the shift that a Gaussian reward without features has. Tried and dropped:
updating a Laplace posterior batch by batch (it depends on the order of batches, so replicas cannot merge it); sharing
coefficients between arms (scores are then correlated, and P(best) has no integral over one variable).

Sources: Agrawal & Goyal 2013 (linear payoffs); Murphy 2012, "Machine Learning", sec. 7.6.3 (unknown variance) and 8.4
(Laplace).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.posterior import NormalPosterior, StudentPosterior
from allocator.errors import InvalidArgument

Floats = NDArray[np.float64]

MOST_FEATURES = 64  # a refit costs their cube, a score their square
MOST_FEATURE = 1e6  # features should be about 1
MOST = 1e15  # everything else
STEPS = 200
CLOSE = 1e-9  # Newton stops within this share of a posterior standard deviation


@dataclass(frozen=True, slots=True, eq=False)
class LinearPrior:
    """Coefficients | variance ~ N(mean, variance x precision^-1), variance ~ InverseGamma(shape, scale).

    mean: (d,), d <= 64. precision: (d, d), symmetric, positive definite. shape: at least 1, so that scores have a mean.
    scale: above 0. Raises InvalidArgument.
    """

    mean: Floats
    precision: Floats
    shape: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _take_prior(self)
        if not 1.0 <= self.shape <= 1e15:
            raise InvalidArgument.of_field("prior.shape", f"got {self.shape!r}; a number from 1 to 1e15 is allowed")
        if not 1e-15 <= self.scale <= 1e15:
            raise InvalidArgument.of_field("prior.scale", f"got {self.scale!r}; a number from 1e-15 to 1e15 is allowed")


@dataclass(frozen=True, slots=True, eq=False)
class LinearSums:
    """Sums over one arm's outcomes; add them in any order. With e = y - center'x:

    count: n. outer: (d, d), sum of x x'. cross: (d,), sum of x e. squares: sum of e e. center: (d,), the same in all
    that are added.
    """

    count: float
    outer: Floats
    cross: Floats
    squares: float
    center: Floats

    def __add__(self, other: LinearSums) -> LinearSums:
        if not np.array_equal(self.center, other.center):
            raise InvalidArgument.of_field("center", f"got {other.center}; sums about {self.center} are allowed")
        return LinearSums(
            self.count + other.count, self.outer + other.outer, self.cross + other.cross, self.squares + other.squares, self.center
        )


@dataclass(frozen=True, slots=True, eq=False)
class LinearPosterior:
    """What is known of one arm's coefficients.

    whitening: (d, d) W with W'W = inverse of the precision; the rest as in LinearPrior.
    """

    mean: Floats
    whitening: Floats
    shape: float
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class LogisticPrior:
    """Coefficients ~ N(mean, precision^-1).

    mean: (d,), d <= 64. precision: (d, d), symmetric, positive definite. Raises InvalidArgument.
    """

    mean: Floats
    precision: Floats

    def __post_init__(self) -> None:
        _take_prior(self)


@dataclass(frozen=True, slots=True, eq=False)
class LogisticPosterior:
    """A Gaussian about the most probable coefficients of one arm. whitening: (d, d) W with W'W = its covariance."""

    mean: Floats
    whitening: Floats


# --------------------------------------------------------------------------------------------------------- linear


def linear_sums(features: ArrayLike, rewards: ArrayLike, center: ArrayLike | None = None) -> LinearSums:
    """The sums of one arm's outcomes.

    features: (n, d) within 1e6 of 0, best about 1; n may be 0, d is 1 to 64. rewards: (n,) within 1e15 of 0. center:
    (d,), declared before the data; None: zeros. Any center gives the same posterior; one near the truth keeps its
    digits. Raises InvalidArgument.
    """
    features, rewards = _finite("features", features, 2, MOST_FEATURE), _finite("rewards", rewards, 1)
    if not 1 <= features.shape[1] <= MOST_FEATURES:
        raise InvalidArgument.of_field("features", f"got {features.shape[1]} columns; 1 to {MOST_FEATURES} are allowed")
    if rewards.size != features.shape[0]:
        raise InvalidArgument.of_field("rewards", f"got {rewards.size}; one for each of {features.shape[0]} rows is allowed")
    center = np.zeros(features.shape[1]) if center is None else _finite("center", center, 1)
    if center.size != features.shape[1]:
        raise InvalidArgument.of_field("center", f"got {center.size} coefficients; {features.shape[1]} are allowed")
    rest = rewards - features @ center
    return LinearSums(float(rewards.size), features.T @ features, features.T @ rest, float(rest @ rest), center)


def linear_posterior(prior: LinearPrior, sums: LinearSums) -> LinearPosterior:
    """The posterior of one arm's coefficients and variance: conjugate, so an addition and a Cholesky factor.

    With d = 1 and x = 1 throughout it is the Gaussian reward of `posterior`. Raises InvalidArgument for sums of another
    number of features.
    """
    if sums.cross.size != prior.mean.size:
        raise InvalidArgument.of_field("sums", f"got {sums.cross.size} features; the {prior.mean.size} of the prior are allowed")
    before = prior.mean - sums.center
    whitening = _whitening(prior.precision + sums.outer)
    after = whitening.T @ (whitening @ (prior.precision @ before + sums.cross))
    moved = after - before
    # residuals about the new mean, and its distance from the old: neither is negative, so the scale never falls
    residuals = max(0.0, sums.squares - 2.0 * float(after @ sums.cross) + float(after @ sums.outer @ after))
    return LinearPosterior(
        mean=sums.center + after,
        whitening=whitening,
        shape=prior.shape + sums.count / 2.0,
        scale=prior.scale + 0.5 * (residuals + float(moved @ prior.precision @ moved)),
    )


def linear_scores(posteriors: Sequence[LinearPosterior], features: ArrayLike) -> StudentPosterior:
    """The expected reward of each arm for one unit, for `best_arm` and `credible_interval`.

    posteriors: one for each arm. features: (d,), the unit's, not all 0. Costs d^2 for each arm. Raises InvalidArgument.
    """
    mean, spread = _scores(posteriors, features)
    shape, scale = (np.array([getattr(one, name) for one in posteriors]) for name in ("shape", "scale"))
    return StudentPosterior(nu=2.0 * shape, mean=mean, scale=np.sqrt(scale / shape) * spread)


# ------------------------------------------------------------------------------------------------------- logistic


def logistic_posterior(prior: LogisticPrior, cells: ArrayLike, total: ArrayLike, successes: ArrayLike) -> LogisticPosterior:
    """The posterior of one arm's log odds, from counts per cell.

    cells: (C, d), the features of each cell, within 1e6 of 0, best about 1. total, successes: (C,), outcomes and
    successes in it, 0 <= successes <= total; merge replicas by adding them. Newton's method from the prior mean,
    halving steps that lose; the prior keeps coefficients finite where the outcomes separate perfectly. Raises
    InvalidArgument, with reason NOT_CONVERGED should 200 steps not be enough.
    """
    cells, total, successes = _finite("cells", cells, 2, MOST_FEATURE), _finite("total", total, 1), _finite("successes", successes, 1)
    if cells.shape[1] != prior.mean.size:
        raise InvalidArgument.of_field("cells", f"got {cells.shape[1]} columns; the {prior.mean.size} of the prior are allowed")
    if not total.size == successes.size == cells.shape[0]:
        raise InvalidArgument.of_field("total", f"got {total.size} and {successes.size} counts; {cells.shape[0]}, one a cell, are allowed")
    if np.any(total < 0.0):
        raise InvalidArgument.of_field("total", f"got {total.min()}; counts of at least 0 are allowed")
    if np.any((successes < 0.0) | (successes > total)):
        cell = int(np.argmax((successes < 0.0) | (successes > total)))
        raise InvalidArgument.of_field("successes", f"got {successes[cell]} of {total[cell]} in cell {cell}; 0 to that many are allowed")

    def log_density(at: Floats) -> float:
        score, moved = cells @ at, at - prior.mean
        return float(successes @ score - total @ np.logaddexp(0.0, score) - 0.5 * moved @ prior.precision @ moved)

    mean = prior.mean.copy()
    height = log_density(mean)
    for _ in range(STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(cells @ mean, -35.0, 35.0)))
        slope = cells.T @ (successes - total * chance) - prior.precision @ (mean - prior.mean)
        whitening = _whitening(prior.precision + (cells.T * (total * chance * (1.0 - chance))) @ cells)
        whitened = whitening @ slope
        if np.linalg.norm(whitened) <= CLOSE:
            return LogisticPosterior(mean, whitening)
        step = whitening.T @ whitened
        tried = log_density(mean + step)
        while tried < height - 1e-12 * (1.0 + abs(height)):  # rounding is no loss
            step *= 0.5
            tried = log_density(mean + step)
        mean, height = mean + step, tried
    raise InvalidArgument(f"cells: no maximum found within {STEPS} steps; scale the features to about 1", reason="NOT_CONVERGED")


def logistic_scores(posteriors: Sequence[LogisticPosterior], features: ArrayLike) -> NormalPosterior:
    """The log odds of each arm for one unit: P(best) among them is that among the chances; an expected loss is in log
    odds.

    posteriors: one for each arm. features: (d,), the unit's, not all 0. Raises InvalidArgument.
    """
    mean, spread = _scores(posteriors, features)
    return NormalPosterior(mean=mean, sd=spread)


# -------------------------------------------------------------------------------------------------------- helpers


def _scores(posteriors: Sequence[LinearPosterior] | Sequence[LogisticPosterior], features: ArrayLike) -> tuple[Floats, Floats]:
    """x'mean of each arm, and the length of its whitened x: (arms,) each."""
    features = _finite("features", features, 1, MOST_FEATURE)
    if not posteriors:
        raise InvalidArgument.of_field("posteriors", "got none; one for each arm is needed")
    for one in posteriors:
        if one.mean.size != features.size:
            raise InvalidArgument.of_field("features", f"got {features.size}; the {one.mean.size} of every posterior are allowed")
    if not features.any():
        raise InvalidArgument.of_field("features", "got zeros only, at which every arm scores 0 for certain; add a constant feature")
    mean = np.array([one.mean @ features for one in posteriors])
    return mean, np.array([np.linalg.norm(one.whitening @ features) for one in posteriors])


def _whitening(precision: Floats) -> Floats:
    """W with W'W = inverse of the precision: what it takes of a vector is never negative."""
    try:
        return np.linalg.inv(np.linalg.cholesky(precision))
    except np.linalg.LinAlgError as exc:
        message = "features: their scale and the prior's are too far apart to invert; scale the features to about 1"
        raise InvalidArgument(message, reason="NOT_INVERTIBLE") from exc


def _take_prior(prior: LinearPrior | LogisticPrior) -> None:
    mean, precision = _finite("prior.mean", prior.mean, 1), _finite("prior.precision", prior.precision, 2)
    if not 1 <= mean.size <= MOST_FEATURES:
        raise InvalidArgument.of_field("prior.mean", f"got {mean.size} coefficients; 1 to {MOST_FEATURES} are allowed")
    good = precision.shape == (mean.size, mean.size) and np.array_equal(precision, precision.T)
    if good:
        try:
            np.linalg.cholesky(precision)
        except np.linalg.LinAlgError:
            good = False
    if not good:
        size = f"({mean.size}, {mean.size})"
        raise InvalidArgument.of_field("prior.precision", f"got {precision}; a symmetric, positive definite {size} matrix is allowed")
    for name, values in (("mean", mean), ("precision", precision)):
        values.setflags(write=False)
        object.__setattr__(prior, name, values)


def _finite(name: str, values: ArrayLike, dimensions: int, most: float = MOST) -> Floats:
    """As float64, a copy. InvalidArgument unless it has so many dimensions and no entry beyond `most` or NaN."""
    array = np.array(values, dtype=np.float64)
    if array.ndim != dimensions or not (np.abs(array) <= most).all():
        allowed = f"{dimensions} dimension(s) of numbers from {-most:g} to {most:g} are allowed"
        raise InvalidArgument.of_field(name, f"got shape {array.shape}: {array}; {allowed}")
    return array
