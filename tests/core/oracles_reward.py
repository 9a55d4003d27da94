"""Slow, plain twins of the reward mathematics: textbook densities at 30 digits, integrated panel by panel with mpmath.

Nothing is shared with the product: densities are written with loggamma and normalised in closed form, panels are laid
out beforehand from every arm's own centre and width, and the expected loss is E[max] - E[arm], which 30 digits can
afford.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import mpmath
import numpy as np

DIGITS = 30
_NODES = 24


class Arm:
    """One posterior along a coordinate: log density there, centre, width, and the value at a coordinate."""

    def __init__(self, log_density: Callable, centre, width, value: Callable, mean, *, reach: int = 0) -> None:
        self.log_density, self.centre, self.width, self.value, self.mean = log_density, centre, width, value, mean
        self.reach = reach  # how many doublings of the width the tails need

    def breaks(self) -> list:
        steps = [mpmath.mpf(k) for k in range(1, 13)]
        steps += [12 * mpmath.sqrt(2) ** k for k in range(1, 2 * self.reach + 1)]
        return [self.centre] + [self.centre + sign * step * self.width for step in steps for sign in (-1, 1)]


@mpmath.workdps(DIGITS)
def beta(a, b) -> Arm:
    a, b = mpmath.mpf(a), mpmath.mpf(b)
    log_b = mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)
    return Arm(
        lambda y: a * y - (a + b) * mpmath.log1p(mpmath.exp(y)) - log_b,
        mpmath.log(a / b),
        min(mpmath.mpf(1), mpmath.sqrt(1 / a + 1 / b)),
        lambda y: 1 / (1 + mpmath.exp(-y)),
        a / (a + b),
        reach=max(3, int(mpmath.log(60 / min(a, b), 2)) if min(a, b) < 30 else 0),
    )


@mpmath.workdps(DIGITS)
def gamma(shape, rate) -> Arm:
    a, b = mpmath.mpf(shape), mpmath.mpf(rate)
    return Arm(
        lambda y: a * (y + mpmath.log(b)) - b * mpmath.exp(y) - mpmath.loggamma(a),
        mpmath.log(a / b),
        min(mpmath.mpf(1), 1 / mpmath.sqrt(a)),
        mpmath.exp,
        a / b,
        reach=max(3, int(mpmath.log(60 / a, 2)) if a < 30 else 0),
    )


@mpmath.workdps(DIGITS)
def normal(mean, sd) -> Arm:
    m, s = mpmath.mpf(mean), mpmath.mpf(sd)
    return Arm(lambda y: -(((y - m) / s) ** 2) / 2 - mpmath.log(s * mpmath.sqrt(2 * mpmath.pi)), m, s, lambda y: y, m)


@mpmath.workdps(DIGITS)
def student(nu, mean, scale) -> Arm:
    nu, m, s = mpmath.mpf(nu), mpmath.mpf(mean), mpmath.mpf(scale)
    log_norm = mpmath.loggamma((nu + 1) / 2) - mpmath.loggamma(nu / 2) - mpmath.log(s * mpmath.sqrt(nu * mpmath.pi))
    return Arm(
        lambda y: log_norm - (nu + 1) / 2 * mpmath.log1p(((y - m) / s) ** 2 / nu),
        m,
        s,
        lambda y: y,
        m,
        reach=max(2, int(90 / nu)),
    )


def best_arm(arms: Sequence[Arm]) -> tuple[np.ndarray, np.ndarray, float]:
    """P(best), expected loss of each arm, and E[max], largest value best."""
    with mpmath.workdps(DIGITS):
        nodes, weights, upto = _rule()
        breaks = sorted(set(itertools.chain.from_iterable(arm.breaks() for arm in arms)))
        below = [mpmath.mpf(0)] * len(arms)
        prob = [mpmath.mpf(0)] * len(arms)
        best = mpmath.mpf(0)
        for left, right in itertools.pairwise(breaks):
            width = right - left
            places = [left + width * u for u in nodes]
            density = [[mpmath.exp(arm.log_density(y)) for y in places] for arm in arms]
            distribution = [[below[i] + width * mpmath.fdot(row, density[i]) for row in upto] for i in range(len(arms))]
            for i, arm in enumerate(arms):
                for k, y in enumerate(places):
                    others = mpmath.fprod(distribution[j][k] for j in range(len(arms)) if j != i)
                    term = width * weights[k] * density[i][k] * others
                    prob[i] += term
                    best += term * arm.value(y)
                below[i] += width * mpmath.fdot(weights, density[i])
        assert max(abs(b - 1) for b in below) < 1e-15, "the oracle's own panels do not hold every arm's mass"
        return np.array([float(p) for p in prob]), np.array([float(best - arm.mean) for arm in arms]), float(best)


def mass_below(arm: Arm, y) -> float:
    """P(the arm's coordinate is below y), by the same panels cut at y."""
    with mpmath.workdps(DIGITS):
        nodes, weights, _ = _rule()
        breaks = [*(b for b in sorted(set(arm.breaks())) if b < y), y]
        return float(
            mpmath.fsum(
                (right - left) * mpmath.fdot(weights, [mpmath.exp(arm.log_density(left + (right - left) * u)) for u in nodes])
                for left, right in itertools.pairwise(breaks)
            )
        )


def beats_in_closed_form(a: int, b: int, c: int, d: int) -> float:
    """P(Beta(a, b) > Beta(c, d)) for an integer a: a sum of a terms. Source: Miller 2015, "Formulas for Bayesian A/B testing"."""
    with mpmath.workdps(DIGITS):
        return float(mpmath.fsum(mpmath.beta(c + i, b + d) / ((b + i) * mpmath.beta(1 + i, b) * mpmath.beta(c, d)) for i in range(a)))


def _rule() -> tuple[list, list, list]:
    """Gauss-Legendre nodes and weights on [0, 1] at full precision, and row k of integrals of the Lagrange polynomials up to node k."""
    if not _RULE:
        rough = np.polynomial.legendre.leggauss(_NODES)[0]
        roots = [mpmath.findroot(lambda x: mpmath.legendre(_NODES, x), mpmath.mpf(float(x))) for x in rough]
        weights = [2 / ((1 - x * x) * mpmath.diff(lambda t: mpmath.legendre(_NODES, t), x) ** 2) for x in roots]
        upto = []
        for x in roots:
            integrals = [x + 1] + [(mpmath.legendre(n + 1, x) - mpmath.legendre(n - 1, x)) / (2 * n + 1) for n in range(1, _NODES)]
            upto.append(
                [
                    w * mpmath.fsum((2 * n + 1) / mpmath.mpf(2) * mpmath.legendre(n, t) * integrals[n] for n in range(_NODES)) / 2
                    for t, w in zip(roots, weights, strict=True)
                ]
            )
        _RULE.extend(([(x + 1) / 2 for x in roots], [w / 2 for w in weights], upto))
    return tuple(_RULE)


_RULE: list = []
