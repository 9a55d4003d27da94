"""Posteriors to the probability that each arm is best, and to what choosing it is expected to lose.

In: a posterior, which arms may be chosen, and whether large values are good. Out: P(best), which is also the weight that Thompson
sampling gives each arm; the expected loss of each arm against the best one; the value that may remain in the others. All are
integrals over one variable, computed to 1e-8 or better from no data to a billion counts (most cases reach 1e-12). Drawing from
the posteriors instead was dropped: 10,000 draws cost a hundred times as much, are off by half a percent, and two replicas that draw
differ.

Every result is checked before it leaves: each arm's mass and the sum of P(best) must come out as one to 1e-8, or the integral is done
again with panels half as wide, and if that does not help an error is raised. The caller then keeps what it had.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.kernels import quadrature
from allocator.core.posterior import BetaPosterior, Floats, Posterior, credible_interval, family_of
from allocator.core.statistics import add_outcomes
from allocator.errors import InvalidArgument

TOLERANCE = 1e-8


@dataclass(frozen=True, slots=True, eq=False)
class BestArm:
    """What the posteriors say about a choice among the eligible arms.

    prob_best: float64 (arms,), sums to one, exactly 0 for an ineligible arm. expected_loss: float64 (arms,), in the unit of the value,
    at least 0 for an eligible arm; for an ineligible one its mean's distance from the best, which is negative if it is better than
    all that may be chosen. expected_best: mean of the best eligible arm's value (the largest, or the smallest if that is good).
    """

    prob_best: Floats
    expected_loss: Floats
    expected_best: float


def best_arm(posterior: Posterior, eligible: ArrayLike | None = None, maximise: bool = True) -> BestArm:
    """P(best) and expected loss of every arm, from one integration.

    eligible: bool (arms,), at least one True; None is all of them. An ineligible arm is left out before integrating, so that P(best)
    is the probability of being the best of the others. Raises InvalidArgument for a mask of another shape, an empty one, or (reason
    NOT_INTEGRABLE) posteriors whose widths differ by more than floating point can hold. Source: Scott 2010, sec. 2.
    """
    family, parameters = family_of(posterior)
    arms = parameters.shape[1]
    chosen = None if eligible is None else _mask(eligible, arms)
    mean = posterior.mean
    contest = parameters if chosen is None else np.ascontiguousarray(parameters[:, chosen])
    if not maximise:
        family = _mirror(family, contest)
    prob, loss = _integrate(family, contest)
    leader = int(prob.argmax())
    sign = 1.0 if maximise else -1.0
    if chosen is None:
        return BestArm(prob, loss, float(mean[leader] + sign * loss[leader]))
    expected_best = float(mean[chosen][leader] + sign * loss[leader])
    prob_best = np.zeros(arms)
    prob_best[chosen] = prob
    expected_loss = sign * (expected_best - mean)
    expected_loss[chosen] = loss
    return BestArm(prob_best, expected_loss, expected_best)


def prob_best(posterior: Posterior, eligible: ArrayLike | None = None, maximise: bool = True) -> Floats:
    """P(each arm is the best of the eligible ones): float64 (arms,), sums to one, exactly 0 where not eligible. See `best_arm`."""
    return best_arm(posterior, eligible, maximise).prob_best


def expected_loss(posterior: Posterior, eligible: ArrayLike | None = None, maximise: bool = True) -> Floats:
    """What choosing each arm is expected to lose against the best eligible one: float64 (arms,). See `best_arm`."""
    return best_arm(posterior, eligible, maximise).expected_loss


def chance_of_more(posterior: Posterior, arm: int, gain: float, eligible: ArrayLike | None = None, maximise: bool = True) -> float:
    """P(the best other arm improves on `arm` by more than `gain`): the potential value remaining as a distribution.

    gain: at least 0. For a Beta and a Gamma it is a share of the arm's own value (0.01: better by 1 %; at most 1 when small values are
    good); for a Normal and a Student t, whose values may be near 0, a difference. eligible: bool (arms,); `arm` is compared with the
    other eligible ones and need not be eligible itself. Returns a probability. Source: Scott 2010, sec. 2.
    """
    family, contest, index = _against(posterior, arm, eligible, maximise)
    step = _step(family, gain, maximise)
    return _chance(family, contest, index, step, maximise)


def value_remaining(posterior: Posterior, arm: int, level: float = 0.95, eligible: ArrayLike | None = None, maximise: bool = True) -> float:
    """The gain that the other arms exceed with probability 1 - `level`: the `level` quantile of the potential value remaining.

    Scott's rule stops an experiment when this is below, say, 0.01 for the leading arm. It is a rule for deciding, not a bound on error.
    level: in [0.01, 0.9999]. Unit, eligible and source as in `chance_of_more`. Infinite where a Beta or Gamma so close to 0 has mass
    that the ratio exceeds the largest float.
    """
    if not 0.01 <= level <= 0.9999:
        raise InvalidArgument(f"level: got {level!r}; a number from 0.01 to 0.9999 is allowed", field="level")
    family, contest, index = _against(posterior, arm, eligible, maximise)
    tail = 1.0 - level
    if _chance(family, contest, index, 0.0, maximise) <= tail:
        return 0.0
    low, high = 0.0, float(contest[1, index] if family in _SHIFTED else contest[0, index] ** -0.5)
    over_low, over_high = 1.0 - tail, _chance(family, contest, index, high, maximise) - tail
    while over_high > 0:
        low, over_low = high, over_high
        high *= 2.0
        over_high = _chance(family, contest, index, high, maximise) - tail
    while high - low > 1e-10 * high:  # Illinois: the secant, with the weight of an end that stays halved
        middle = min(max((low * over_high - high * over_low) / (over_high - over_low), low), high)
        if not low < middle < high:
            break
        over = _chance(family, contest, index, middle, maximise) - tail
        if over > 0:
            low, over_low, over_high = middle, over, 0.5 * over_high
        else:
            high, over_high, over_low = middle, over, 0.5 * over_low
    if family in _SHIFTED:
        return high
    with np.errstate(over="ignore"):
        return float(np.expm1(high) if maximise else -np.expm1(-high))


def warm_up() -> None:
    """Compile every kernel of the reward mathematics, or load it from the cache, so that no later call waits for a compiler."""
    one = BetaPosterior(np.array([1.0, 2.0]), np.array([2.0, 1.0]))
    best_arm(one)
    chance_of_more(one, 0, 0.1)
    credible_interval(one)
    add_outcomes(np.zeros((1, 4), np.int64), np.zeros(1, np.int64), np.zeros(1))


_PANELS = (quadrature.PANEL, quadrature.PANEL / 2.0)
_SHIFTED = (quadrature.NORMAL, quadrature.STUDENT)  # families whose gain is a difference


def _integrate(family: int, parameters: Floats) -> tuple[Floats, Floats]:
    for panel in _PANELS:
        prob, loss, error = quadrature.best_arm(family, parameters, panel)
        if error <= TOLERANCE:  # false for NaN, too
            return prob, loss
    raise _not_integrable(parameters)


def _chance(family: int, parameters: Floats, index: int, step: float, maximise: bool) -> float:
    for panel in _PANELS:
        chance, error = quadrature.chance_of_more(family, parameters, index, step, not maximise, panel)
        if error <= TOLERANCE:
            return chance
    raise _not_integrable(parameters)


def _not_integrable(parameters: Floats) -> InvalidArgument:
    return InvalidArgument(
        f"posterior: the widths of its {parameters.shape[1]} arms differ too much to integrate over them", reason="NOT_INTEGRABLE"
    )


def _mirror(family: int, parameters: Floats) -> int:
    """Turn the parameters, in place, into those of a family in which small values have become large ones; return that family."""
    if family == quadrature.BETA:
        parameters[:2] = parameters[1::-1].copy()
    elif family == quadrature.GAMMA:
        return quadrature.GAMMA_MIRRORED
    else:
        parameters[0] *= -1.0
    return family


def _against(posterior: Posterior, arm: int, eligible: ArrayLike | None, maximise: bool) -> tuple[int, Floats, int]:
    """Family and parameters of `arm` and the eligible others, and where `arm` stands among them."""
    family, parameters = family_of(posterior)
    arms = parameters.shape[1]
    if not 0 <= arm < arms:
        raise InvalidArgument(f"arm: got {arm}; an index from 0 to {arms - 1} is allowed", field="arm")
    mask = np.ones(arms, np.bool_) if eligible is None else _mask(eligible, arms).copy()
    mask[arm] = True
    contest = np.ascontiguousarray(parameters[:, mask])
    return (family if maximise else _mirror(family, contest)), contest, int(mask[:arm].sum())


def _step(family: int, gain: float, maximise: bool) -> float:
    """The gain along the coordinate of the family."""
    shared = family not in _SHIFTED
    most = 1.0 if shared and not maximise else np.inf
    if not 0 <= gain <= most:
        raise InvalidArgument(f"gain: got {gain!r}; a number from 0 to {most:g} is allowed", field="gain")
    if not shared:
        return float(gain)
    with np.errstate(divide="ignore"):
        return float(np.log1p(gain) if maximise else -np.log1p(-gain))


def _mask(eligible: ArrayLike, arms: int) -> NDArray[np.bool_]:
    mask = np.asarray(eligible)
    if mask.dtype != np.bool_ or mask.shape != (arms,):
        raise InvalidArgument(f"eligible: got {mask.dtype} of shape {mask.shape}; bool of shape ({arms},) is allowed", field="eligible")
    if not mask.any():
        raise InvalidArgument("eligible: got no arm; at least one is needed", field="eligible")
    return mask
