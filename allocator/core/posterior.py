"""Prior and sums to the posterior of each arm.

In: a prior (one for all arms, or one for each) and the `Sums` of a reward. Out: a frozen value of per-arm arrays, whose class names the
family: Beta for rewards in [0, 1], Student t for the mean of a Gaussian reward of unknown variance, Gamma for counts per exposure, and
Normal for whoever has a mean with a known error. All updates are conjugate, hence additions. A fractional reward r in [0, 1] counts as r
successes and 1 - r failures: no reward in that range varies more than a coin, so the Beta is, if anything, too wide, and no chance
is spent on rounding rewards to coins.

Quantiles come from the quadrature that also gives P(best): it keeps its digits at a billion counts, where inverse incomplete beta
functions lose some, and serves the four families alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from allocator.core.kernels import quadrature
from allocator.core.statistics import Sums
from allocator.errors import InvalidArgument

Floats = NDArray[np.float64]

_FEWEST = 0.01  # pseudo-counts below this put the mass of a Beta at 0 and 1, where quadrature loses digits
_MOST = 1e15
_SMALLEST, _LARGEST = 1e-15, 1e15  # rates and scales
_MOST_MEAN = 1e15


@dataclass(frozen=True, slots=True)
class BetaPrior:
    """`a` successes and `b` failures seen before the start, each from 0.01 to 1e15."""

    a: float = 1.0
    b: float = 1.0

    def __post_init__(self) -> None:
        _between("prior.a", self.a, _FEWEST, _MOST)
        _between("prior.b", self.b, _FEWEST, _MOST)


@dataclass(frozen=True, slots=True)
class NormalInverseGammaPrior:
    """Mean and variance of a Gaussian reward: mean | variance ~ N(mean, variance / strength), variance ~ InverseGamma(shape, scale).

    strength: outcomes that `mean` is worth, above 0. shape: at least 1, so that the marginal of the mean has a mean itself; half the
    outcomes that the variance is worth. scale: above 0, in squared units of the reward.
    """

    mean: float = 0.0
    strength: float = 1.0
    shape: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _between("prior.mean", self.mean, -_MOST_MEAN, _MOST_MEAN)
        _between("prior.strength", self.strength, _SMALLEST, _MOST)
        _between("prior.shape", self.shape, 1.0, _MOST)
        _between("prior.scale", self.scale, _SMALLEST, _LARGEST)


@dataclass(frozen=True, slots=True)
class GammaPrior:
    """Rate of a Poisson reward: `shape` events seen over `rate` exposures before the start."""

    shape: float = 1.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        _between("prior.shape", self.shape, _FEWEST, _MOST)
        _between("prior.rate", self.rate, _SMALLEST, _LARGEST)


Prior = BetaPrior | NormalInverseGammaPrior | GammaPrior


@dataclass(frozen=True, slots=True, eq=False)
class BetaPosterior:
    """The chance of success of each arm. a, b: float64 (arms,), each from 0.01 to 1e15."""

    a: Floats
    b: Floats

    def __post_init__(self) -> None:
        _freeze(self, a=(_FEWEST, _MOST), b=(_FEWEST, _MOST))

    @property
    def mean(self) -> Floats:
        return self.a / (self.a + self.b)


@dataclass(frozen=True, slots=True, eq=False)
class GammaPosterior:
    """The rate of each arm, per exposure. shape, rate: float64 (arms,); mean shape / rate."""

    shape: Floats
    rate: Floats

    def __post_init__(self) -> None:
        _freeze(self, shape=(_FEWEST, _MOST), rate=(_SMALLEST, _LARGEST))

    @property
    def mean(self) -> Floats:
        return self.shape / self.rate


@dataclass(frozen=True, slots=True, eq=False)
class StudentPosterior:
    """The mean reward of each arm: `mean` + `scale` times a Student t of `nu` >= 2 degrees of freedom. float64 (arms,) each."""

    nu: Floats
    mean: Floats
    scale: Floats

    def __post_init__(self) -> None:
        _freeze(self, nu=(2.0, _MOST), mean=(-_MOST_MEAN, _MOST_MEAN), scale=(_SMALLEST, _LARGEST))


@dataclass(frozen=True, slots=True, eq=False)
class NormalPosterior:
    """Each arm's value as mean and standard deviation, float64 (arms,) each; sd above 0."""

    mean: Floats
    sd: Floats

    def __post_init__(self) -> None:
        _freeze(self, mean=(-_MOST_MEAN, _MOST_MEAN), sd=(_SMALLEST, _LARGEST))


Posterior = BetaPosterior | GammaPosterior | StudentPosterior | NormalPosterior


def posterior(prior: Prior | Sequence[Prior], sums: Sums, *, shift: float = 0.0, unit: float = 1.0) -> Posterior:
    """The posterior of every arm.

    prior: one for all arms, or one for each, all of one kind. sums: per arm; rewards in [0, 1] for a BetaPrior, any for a
    NormalInverseGammaPrior, counts of at least 0 with one exposure each for a GammaPrior. shift, unit: a Gaussian reward was counted as
    (reward - shift) / unit, so that its variance keeps its digits beside a large mean; the posterior is in the reward's own units.
    No data give back the prior. Raises InvalidArgument for sums that the family cannot have. Source: Murphy 2007, sec. 3 (Gaussian);
    Russo et al. 2018, sec. 3 (Beta).
    """
    priors = _priors(prior, sums)
    if isinstance(priors[0], BetaPrior):
        return BetaPosterior(*_beta(priors, sums, shift, unit))
    if isinstance(priors[0], GammaPrior):
        return GammaPosterior(*_gamma(priors, sums, shift, unit))
    mean, strength, shape, scale = _normal_inverse_gamma(priors, sums, shift, unit)
    return StudentPosterior(nu=2.0 * shape, mean=mean, scale=np.sqrt(scale / (shape * strength)))


def warm_start(
    prior: Prior | Sequence[Prior],
    earlier_sums: Sums,
    discount: float,
    cap: float | None = None,
    *,
    shift: float = 0.0,
    unit: float = 1.0,
) -> tuple[Prior, ...]:
    """A prior for each arm from what an earlier experiment counted, taken at `discount` of its weight.

    prior: what the earlier experiment started from. earlier_sums: per arm; an arm without counts keeps the prior. discount: in [0, 1];
    0 gives the prior back, 1 counts an earlier outcome like a new one. cap: most outcomes that the earlier ones may be worth, for
    each arm, so that new evidence can overturn a long history; None is no cap. Raises InvalidArgument outside these ranges.
    """
    _between("discount", discount, 0.0, 1.0)
    share = np.full(earlier_sums.count.shape, discount)
    if cap is not None:
        _between("cap", cap, 0.0, _MOST)
        share = np.minimum(share, cap / np.maximum(earlier_sums.count, 1.0))
    sums = earlier_sums.scaled(share)
    priors = _priors(prior, sums)
    update, kind = {
        BetaPrior: (_beta, BetaPrior),
        GammaPrior: (_gamma, GammaPrior),
        NormalInverseGammaPrior: (_normal_inverse_gamma, NormalInverseGammaPrior),
    }[type(priors[0])]
    return tuple(kind(*map(float, row)) for row in zip(*update(priors, sums, shift, unit), strict=True))


def credible_interval(posterior: Posterior, level: float = 0.95) -> tuple[Floats, Floats]:
    """The equal-tailed interval that holds each arm's value with probability `level`, which lies in [0.01, 1 - 1e-9].

    Returns (low, high), float64 (arms,) each, in the unit of the value, to 1e-9 of its standard deviation.
    """
    _between("level", level, 0.01, 1.0 - 1e-9)
    family, parameters = family_of(posterior)
    values, complete = quadrature.quantiles(family, parameters, (1.0 - level) / 2.0, quadrature.PANEL)
    if not complete:
        raise InvalidArgument("posterior: too wide or too narrow to integrate", reason="NOT_INTEGRABLE")
    return values[0], values[1]


def family_of(posterior: Posterior) -> tuple[int, Floats]:
    """The family's number in the kernels, and its parameters as they take them: float64 (3, arms), a copy."""
    if isinstance(posterior, BetaPosterior):
        return quadrature.BETA, np.array((posterior.a, posterior.b, posterior.a))
    if isinstance(posterior, GammaPosterior):
        return quadrature.GAMMA, np.array((posterior.shape, posterior.rate, posterior.shape))
    if isinstance(posterior, StudentPosterior):
        return quadrature.STUDENT, np.array((posterior.mean, posterior.scale, posterior.nu))
    if isinstance(posterior, NormalPosterior):
        return quadrature.NORMAL, np.array((posterior.mean, posterior.sd, posterior.sd))
    raise InvalidArgument(f"posterior: got {type(posterior).__name__}; a Beta-, Gamma-, Student- or NormalPosterior is allowed")


def _beta(priors: Sequence[Prior], sums: Sums, shift: float, unit: float) -> tuple[Floats, Floats]:
    _as_counted(shift, unit)
    slack = 1e-9 * sums.count + 1e-9  # a discounted sum is rounded
    outside = (sums.total < -slack) | (sums.total > sums.count + slack)
    if outside.any():
        arm = int(np.flatnonzero(outside)[0])
        raise InvalidArgument(
            f"sums.total: arm {arm} has {sums.total[arm]} of {sums.count[arm]} outcomes; rewards in [0, 1] are allowed", arm=arm
        )
    successes = np.clip(sums.total, 0.0, sums.count)
    return _field(priors, "a") + successes, _field(priors, "b") + (sums.count - successes)


def _gamma(priors: Sequence[Prior], sums: Sums, shift: float, unit: float) -> tuple[Floats, Floats]:
    _as_counted(shift, unit)
    if (sums.total < 0).any():
        arm = int(np.flatnonzero(sums.total < 0)[0])
        raise InvalidArgument(f"sums.total: arm {arm} has {sums.total[arm]}; counts of at least 0 are allowed", arm=arm)
    return _field(priors, "shape") + sums.total, _field(priors, "rate") + sums.count


def _normal_inverse_gamma(priors: Sequence[Prior], sums: Sums, shift: float, unit: float) -> tuple[Floats, Floats, Floats, Floats]:
    _between("shift", shift, -_MOST_MEAN, _MOST_MEAN)
    _between("unit", unit, _SMALLEST, _LARGEST)
    n = sums.count
    offset = sums.total / np.where(n > 0, n, 1.0)
    deviations = unit * unit * np.maximum(0.0, sums.squares - sums.total * offset)
    prior_mean, strength = _field(priors, "mean"), _field(priors, "strength")
    surprise = np.where(n > 0, shift + unit * offset - prior_mean, 0.0)
    return (
        prior_mean + n * surprise / (strength + n),
        strength + n,
        _field(priors, "shape") + n / 2.0,
        _field(priors, "scale") + deviations / 2.0 + strength * n * surprise * surprise / (2.0 * (strength + n)),
    )


def _priors(prior: Prior | Sequence[Prior], sums: Sums) -> Sequence[Prior]:
    arms = sums.count.size
    priors = tuple(prior) if isinstance(prior, Sequence) else (prior,) * arms
    if len(priors) != arms:
        raise InvalidArgument(f"prior: got {len(priors)} priors; one for all, or one for each of {arms} arms is allowed")
    kinds = {type(one) for one in priors}
    if len(kinds) != 1 or not isinstance(priors[0], Prior):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InvalidArgument(f"prior: got {names}; BetaPrior, GammaPrior or NormalInverseGammaPrior, the same for all arms, is allowed")
    return priors


def _field(priors: Sequence[Prior], name: str) -> Floats:
    return np.array([getattr(prior, name) for prior in priors], np.float64)


def _as_counted(shift: float, unit: float) -> None:
    if shift != 0.0 or unit != 1.0:
        raise InvalidArgument(f"shift, unit: got {shift}, {unit}; only a Gaussian reward is counted in other than its own units")


def _between(name: str, value: float, least: float, most: float) -> None:
    if not (isinstance(value, Real) and math.isfinite(value) and least <= value <= most):
        raise InvalidArgument(f"{name}: got {value!r}; a number from {least:g} to {most:g} is allowed", field=name)


def _freeze(posterior: Posterior, **ranges: tuple[float, float]) -> None:
    """Take each field as a read-only float64 (arms,) of its own; refuse one outside its range or of another length."""
    arms = None
    for name, (least, most) in ranges.items():
        values = np.array(getattr(posterior, name), np.float64)
        arms = values.size if arms is None else arms
        if values.ndim != 1 or values.size != arms or arms == 0:
            raise InvalidArgument(f"posterior.{name}: got shape {values.shape}; ({arms or 'arms'},) is allowed", field=f"posterior.{name}")
        if not (values.min() >= least and values.max() <= most):  # false for NaN, too
            wrong = values[~((values >= least) & (values <= most))][0]
            raise InvalidArgument(
                f"posterior.{name}: got {wrong}; a number from {least:g} to {most:g} is allowed", field=f"posterior.{name}"
            )
        values.setflags(write=False)
        object.__setattr__(posterior, name, values)
