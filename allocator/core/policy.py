"""What the experiment would like to serve, before any cap: P(best) → wanted weights.

In: P(best) among the eligible arms, the spec's policy, the number of decisions so far. Out: `weights`, float64 (arms,)
that sums to 1; `exposure.py` cuts them to the caps.

The idea. Every policy here is a function of the P(best) vector alone, so the propensity of each decision is known
exactly and the hot path draws nothing from a posterior. Thompson sampling *is* the vector; top-two and exploration
sampling move weight from the leader to its rivals when the question is which arm wins rather than how to lose least;
tempering moves any of them towards an even split; the floor schedule keeps every arm's propensity from vanishing faster
than estimators after the fact can bear.

P(best) comes out of a quadrature with errors around 1e-12, so what it says about arms that share less than that is
noise. Top-two and exploration sampling divide by that share; below 1e-12 they give the leader's rivals' part to the
second-largest arm (ties share it).

Dropped: epsilon-greedy (jumps at ties, a floor with Thompson sampling dominates it), UCB (propensities of 0 and 1),
Exp3 and Tsallis-INF (no posterior to stop or ramp by): they are baselines for `simulation/`, not policies for
production.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.experiment import PolicyKind
from allocator.errors import InvalidArgument, Violation

Floats = NDArray[np.float64]

SUM_TOLERANCE = 1e-9
NOISE = 1e-12  # P(best) below this says nothing
SLOWEST_EXPONENT = 0.24  # a floor that decays like t**-0.25 or faster loses the validity it is there for


@dataclass(frozen=True, slots=True)
class Policy:
    """The spec's policy with arms as indices. Raises InvalidArgument with every field that is wrong.

    power: P(best) is tempered by it first, in [0, 1]; 1 leaves it alone, 0 is an even split. top_two_beta: share of the
    draws that keep their first arm, in [0, 1]. floor_schedule: mix in the even split as `floor_schedule` says. shares:
    for FIXED, and only there: one for each arm, they sum to 1.
    """

    kind: PolicyKind = PolicyKind.THOMPSON
    power: float = 1.0
    top_two_beta: float = 0.5
    floor_schedule: bool = False
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        violations = _unit_interval("power", self.power) + _unit_interval("top_two_beta", self.top_two_beta)
        if not isinstance(self.kind, PolicyKind):
            kinds = ", ".join(kind.value for kind in PolicyKind)
            violations.append(Violation("kind", f"got {self.kind!r}; one of {kinds} is allowed"))
        if (self.kind is PolicyKind.FIXED) != (self.shares is not None):
            violations.append(Violation("shares", f"got {self.shares!r} with {self.kind}; shares go with FIXED"))
        _raise(violations)
        if self.shares is not None:
            _distribution("shares", self.shares)


def weights(policy: Policy, best: ArrayLike, decisions: int = 0, eligible: ArrayLike | None = None) -> Floats:
    """The weights that the policy wants.

    best: float64 (arms,), P(best) computed among the eligible arms: 0 for the others, sums to 1. decisions: how many
    the experiment has made, for the floor schedule. eligible: bool (arms,), None for all; at least one. Returns float64
    (arms,) that sums to 1, 0 for ineligible arms, except that FIXED returns its shares whoever is eligible: the share
    of an ineligible candidate is the incumbent's, which `exposure.allowed` gives it. Raises InvalidArgument, also when
    `best` gives an ineligible arm a chance.
    """
    chances = _distribution("best", best)
    arms = len(chances)
    able = _able(eligible, arms)
    if np.any(chances[~able] != 0.0):
        raise InvalidArgument.of_field("best", f"got {best!r}; 0 is allowed for an arm not eligible in {eligible!r}")
    if policy.shares is not None and len(policy.shares) != arms:
        raise InvalidArgument.of_field("shares", f"got {len(policy.shares)}; one for each of {arms} arms is allowed")

    wanted = np.zeros(arms)
    if policy.kind is PolicyKind.FIXED:
        wanted[:] = fixed(policy.shares)
    else:
        tempered = temper(chances[able], policy.power)
        if policy.kind is PolicyKind.TOP_TWO:
            wanted[able] = top_two(tempered, policy.top_two_beta)
        elif policy.kind is PolicyKind.EXPLORATION:
            wanted[able] = exploration(tempered)
        else:
            wanted[able] = thompson(tempered)
    return floor_schedule(wanted, decisions, eligible=able) if policy.floor_schedule else wanted


def thompson(best: ArrayLike) -> Floats:
    """Probability matching: the weights are P(best). Source: Thompson 1933; Agrawal & Goyal 2013.

    best: float64 (arms,), at least 0, sums to 1. Every function below takes such a vector and returns one, and raises
    InvalidArgument for anything else.
    """
    return _distribution("best", best)


def fixed(shares: ArrayLike) -> Floats:
    """The same shares whatever was learned: an A/B test or a canary."""
    return _distribution("shares", shares)


def top_two(best: ArrayLike, beta: float = 0.5) -> Floats:
    """Top-two Thompson sampling: draw the best arm; keep it with chance beta, else draw until another one comes up.

    beta: in [0, 1]; 1 is Thompson sampling. Source: Russo 2020, Operations Research 68:1625.
    """
    _raise(_unit_interval("beta", beta))
    chances = _distribution("best", best)
    others = _sum_of_others(chances)
    if others.min() < NOISE:
        return _leader_and_rival(chances, beta)
    return beta * chances + (1.0 - beta) * chances * _sum_of_others(chances / others)


def exploration(best: ArrayLike) -> Floats:
    """Exploration sampling: weights proportional to a * (1 - a). Source: Kasy & Sautmann 2021, Econometrica 89:113."""
    chances = _distribution("best", best)
    others = _sum_of_others(chances)
    if others.min() < NOISE:
        return _leader_and_rival(chances, 0.5)  # what a * (1 - a) tends to: the rivals together match the leader
    products = chances * others
    return products / math.fsum(products)


def temper(best: ArrayLike, power: float) -> Floats:
    """Weights proportional to a ** power: between an even split (0) and Thompson sampling (1).

    power: in [0, 1]. An arm whose chance is exactly 0 keeps 0 for every power above 0.
    """
    _raise(_unit_interval("power", power))
    chances = _distribution("best", best)
    if power == 1.0:
        return chances
    powers = chances**power
    return powers / math.fsum(powers)


def floor_schedule(
    weights: ArrayLike,
    decisions: int,
    exponent: float = SLOWEST_EXPONENT,
    scale: float = 1.0,
    eligible: ArrayLike | None = None,
) -> Floats:
    """Mix in the even split over eligible arms, by a share that shrinks slowly enough for inference afterwards.

    decisions: t, a whole number of at least 0. The share is scale * t**-exponent, at most 1. exponent: in [0, 0.24];
    scale: at least 1, so that the share is never below t**-0.24: a mixture that fades like t**-0.25 or faster spoils
    the anytime-valid intervals that it is there for. A cap below the even split still wins, in `exposure.allowed`.
    Source: Liang & Bojinov 2023, mixture adaptive design.
    """
    chances = _distribution("weights", weights)
    able = _able(eligible, len(chances))
    violations = []
    if not isinstance(decisions, int) or decisions < 0:
        violations.append(Violation("decisions", f"got {decisions!r}; a whole number of at least 0 is allowed"))
    if not 0.0 <= exponent <= SLOWEST_EXPONENT:
        violations.append(Violation("exponent", f"got {exponent!r}; from 0 to {SLOWEST_EXPONENT} is allowed"))
    if not 1.0 <= scale < math.inf:
        violations.append(Violation("scale", f"got {scale!r}; a finite number of at least 1 is allowed"))
    _raise(violations)
    share = min(1.0, scale * max(decisions, 1) ** -exponent)
    return (1.0 - share) * chances + share * able / np.count_nonzero(able)


def _leader_and_rival(chances: Floats, leader_share: float) -> Floats:
    """The leader's share of a race that is over, the rest to the second-largest arm; arms that tie for it share it."""
    result = np.zeros(len(chances))
    leader = int(np.argmax(chances))
    if len(chances) == 1:
        leader_share = 1.0
    else:
        rivals = chances.copy()
        rivals[leader] = -1.0
        second = rivals == rivals.max()
        result[second] = (1.0 - leader_share) / np.count_nonzero(second)
    result[leader] = leader_share
    return result


def _sum_of_others(values: Floats) -> Floats:
    """For each entry the sum of all the others, by sums from both ends: nothing is subtracted, so nothing cancels."""
    before = np.concatenate(([0.0], np.cumsum(values[:-1])))
    after = np.concatenate((np.cumsum(values[:0:-1])[::-1], [0.0]))
    return before + after


def _distribution(field: str, values: ArrayLike) -> Floats:
    """The values as float64 (arms,) that sums to 1 to the last bit or two."""
    array = np.asarray(values)
    if array.dtype.kind in "fiu" and array.ndim == 1 and array.size:
        numbers = array.astype(np.float64)
        if np.all(numbers >= 0.0) and np.all(numbers <= 1.0 + SUM_TOLERANCE):
            total = math.fsum(numbers)
            if abs(total - 1.0) <= SUM_TOLERANCE:
                return numbers / total
    raise InvalidArgument.of_field(field, f"got {values!r}; numbers of at least 0 that sum to 1 are allowed")


def _able(eligible: ArrayLike | None, arms: int) -> NDArray[np.bool_]:
    able = np.ones(arms, dtype=np.bool_) if eligible is None else np.asarray(eligible)
    if able.dtype != np.bool_ or able.shape != (arms,) or not able.any():
        raise InvalidArgument.of_field("eligible", f"got {eligible!r}; true or false for each of {arms} arms is allowed, not all false")
    return able


def _unit_interval(field: str, value: float) -> list[Violation]:
    if isinstance(value, int | float) and 0.0 <= value <= 1.0:
        return []
    return [Violation(field, f"got {value!r}; a number from 0 to 1 is allowed")]


def _raise(violations: list[Violation]) -> None:
    if violations:
        raise InvalidArgument(violations=violations)
