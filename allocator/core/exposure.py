"""What the caps let through: wanted weights → allowed weights → whole slots.

In: the weights that the policy wants, caps, floors, which arms are eligible. Out: `allowed` weights, and from them
`to_slots`, the number of the 65,536 slots that each arm owns.

The idea. Whatever a cap refuses a candidate goes to the incumbent, never to another candidate. So no candidate gets
more than what was wanted for it, unless a floor says so: a cap makes an experiment more careful, never differently
bold. When all candidates together want more than the total cap, every one is scaled by the same factor, except those
that stand on their floor; that is the I-projection of the wanted weights onto the caps and floors, found exactly by one
scan over sorted ratios.

An incumbent's own minimum needs no second mechanism: it is a total cap below 1. "No weight may rise" is a cap per
candidate at its present weight.

Dropped: proportional water-filling, which pours what the best candidate may not have onto the others (with P(best) =
.90 and .07 and a cap of .10 on the first it served the second to half of the users); Euclidean projection, which adds
the same constant to every arm, the hopeless ones too; rounding to the nearest slot, which can pass a cap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.assignment import SLOTS
from allocator.errors import InvalidArgument, Violation

Floats = NDArray[np.float64]

STEERED_SHARE = 0.95
SUM_TOLERANCE = 1e-9


def allowed(
    wanted: ArrayLike,
    incumbent: int,
    cap: float,
    per_candidate: ArrayLike = 1.0,
    floors: ArrayLike = 0.0,
    eligible: ArrayLike | None = None,
) -> Floats:
    """The weights that may be served: as wanted, cut to the caps; the incumbent takes the rest.

    wanted: float64 (arms,), at least 0, sums to 1. incumbent: index of its arm; caps, floors and eligibility do not
    apply to it. cap: all candidates together, in [0, 1]. per_candidate, floors: (arms,) or one number for all, in
    [0, 1]. eligible: bool (arms,), None for all; an ineligible candidate gets 0, whatever its floor. Floors that
    together pass the cap, because arms joined or a stage is narrow, are scaled down to it. Returns float64 (arms,) that
    sums to 1. Raises InvalidArgument for anything else, a floor above its own cap included. Source: I-projection,
    Csiszar 1975, with the one-sided rule of this file.
    """
    weights, violations = _numbers("wanted", wanted, None)
    arms = len(weights)
    violations += _sum_to_one("wanted", weights) + _index("incumbent", incumbent, arms)
    _raise(violations)
    caps, least, violations = _limits(cap, per_candidate, floors, arms, incumbent)
    open_arms = np.ones(arms, dtype=bool) if eligible is None else np.asarray(eligible)
    if open_arms.dtype != np.bool_ or open_arms.shape != (arms,):
        violations.append(Violation("eligible", f"got {eligible!r}; true or false for each of {arms} arms is allowed"))
    _raise(violations)

    candidates = [arm for arm in range(arms) if arm != incumbent and open_arms[arm]]
    lower = [least[arm] for arm in candidates]
    needed = math.fsum(lower)
    if needed > cap:
        lower = [floor * (cap / needed) for floor in lower]
    upper = [min(weights[arm], caps[arm]) for arm in candidates]
    shares = [max(floor, share) for floor, share in zip(lower, upper, strict=True)]
    if math.fsum(shares) > cap:
        shares = _scaled(upper, lower, cap)
    result = np.zeros(arms)
    result[candidates] = shares
    result[incumbent] = max(0.0, 1.0 - math.fsum(shares))
    return result


def to_slots(weights: ArrayLike, floors: ArrayLike, incumbent: int, cap: float = 1.0, per_candidate: ArrayLike = 1.0) -> tuple[int, ...]:
    """How many of the 65,536 slots each arm owns, by rounding that no cap notices.

    weights: float64 (arms,) out of `allowed`; floors, cap, per_candidate: the same as there. A candidate is rounded
    down, or up where rounding down would break its floor and no cap forbids it (the cap wins over the last slot of a
    floor); the incumbent owns the rest. Returns ints (arms,) that sum to 65,536. Raises InvalidArgument, also when the
    weights pass the caps.
    """
    shares, violations = _numbers("weights", weights, None)
    arms = len(shares)
    violations += _sum_to_one("weights", shares) + _index("incumbent", incumbent, arms)
    _raise(violations)
    caps, least, violations = _limits(cap, per_candidate, floors, arms, incumbent)
    for arm in range(arms):
        if arm != incumbent and shares[arm] > caps[arm] + SUM_TOLERANCE:
            message = f"got {shares[arm]:g}; at most its cap {caps[arm]:g} is allowed"
            violations.append(Violation(f"weights[{arm}]", message))
    together = 1.0 - shares[incumbent]
    if not violations and together > cap + SUM_TOLERANCE:
        violations.append(Violation("weights", f"got {together:g} for all candidates; at most {cap:g} is allowed"))
    _raise(violations)

    slots = [0] * arms
    above: list[tuple[float, int]] = []  # by how much of a slot each candidate stands above its weight
    for arm in range(arms):
        if arm == incumbent:
            continue
        exact = shares[arm] * SLOTS  # no rounding error: a power of two
        count = math.floor(exact)
        if count < exact and count < least[arm] * SLOTS:
            count += 1
        slots[arm] = min(count, math.floor(caps[arm] * SLOTS))
        above.append((slots[arm] - exact, arm))
    excess = sum(slots) - math.floor(cap * SLOTS)
    if excess > 0:
        for _, arm in sorted((pair for pair in above if slots[pair[1]]), reverse=True)[:excess]:
            slots[arm] -= 1
    slots[incumbent] = SLOTS - sum(slots)
    return tuple(slots)


def steered(cap: float) -> float:
    """The cap to aim weights at when `core/gate.py` holds the real one: 95 % of it.

    With weights at the cap itself the gate would close for 1 % of the decisions (burst 50); at 95 % of it, for 0.005 %.
    """
    return STEERED_SHARE * cap


def check(cap: float, per_candidate: ArrayLike, floors: ArrayLike, arms: int, incumbent: int = 0) -> list[Violation]:
    """What is wrong with the caps and floors of a spec, when it is applied; empty when all can be met.

    Stricter than `allowed`: floors that pass the cap together are a fault of a spec, but not of an arm that joins
    later. cap: the widest that the spec will ever allow. The fields are called `cap`, `per_candidate` and `floors`.
    """
    violations = _index("incumbent", incumbent, arms)
    if violations:
        return violations
    _, least, violations = _limits(cap, per_candidate, floors, arms, incumbent)
    if not violations:
        needed = math.fsum(floor for arm, floor in enumerate(least) if arm != incumbent)
        if needed > cap + SUM_TOLERANCE:
            message = f"got a sum of {needed:g} over the candidates; at most the cap {cap:g} is allowed"
            violations.append(Violation("floors", message))
    return violations


def _scaled(upper: Sequence[float], lower: Sequence[float], cap: float) -> list[float]:
    """max(lower, t * upper) with the t in [0, 1] at which they sum to `cap`.

    Needs sum(lower) <= cap < sum(max(lower, upper)). The candidate that falls onto its floor first, as t shrinks, is
    the one with the largest lower/upper. So sort by that ratio, and hold the first k on their floors for the smallest k
    whose t keeps the next one above its own.
    """
    order = [arm for arm in range(len(upper)) if upper[arm] > 0.0]
    order.sort(key=lambda arm: lower[arm] / upper[arm], reverse=True)
    free = [0.0]  # sums of upper over the tail of the order, smallest tail first: no subtraction, so no cancellation
    for arm in reversed(order):
        free.append(free[-1] + upper[arm])
    free.reverse()
    held = math.fsum(lower[arm] for arm in range(len(upper)) if upper[arm] == 0.0)
    for position, arm in enumerate(order):
        factor = min(1.0, (cap - held) / free[position])
        if factor * upper[arm] >= lower[arm]:
            return [max(floor, factor * share) for floor, share in zip(lower, upper, strict=True)]
        held += lower[arm]
    return list(lower)


def _limits(
    cap: float, per_candidate: ArrayLike, floors: ArrayLike, arms: int, incumbent: int
) -> tuple[list[float], list[float], list[Violation]]:
    """Caps and floors by arm, and what is wrong with them."""
    caps, violations = _numbers("per_candidate", per_candidate, arms)
    least, more = _numbers("floors", floors, arms)
    violations += more
    if not (isinstance(cap, int | float) and 0.0 <= cap <= 1.0):
        violations.append(Violation("cap", f"got {cap!r}; a share from 0 to 1 is allowed"))
    for arm, (highest, lowest) in enumerate(zip(caps, least, strict=False)):
        if arm != incumbent and lowest > highest:
            violations.append(Violation(f"floors[{arm}]", f"got {lowest:g}; at most its cap {highest:g} is allowed"))
    return caps, least, violations


def _numbers(field: str, values: ArrayLike, arms: int | None) -> tuple[list[float], list[Violation]]:
    """The values as floats, one for each arm (`arms` None: as many as there are), and those outside [0, 1]."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" or array.ndim > 1 or (array.ndim == 0 and arms is None) or array.size == 0:
        return [], [Violation(field, f"got {values!r}; a share for each arm is allowed")]
    numbers = [float(array)] * (arms or 0) if array.ndim == 0 else [float(number) for number in array.tolist()]
    if arms is not None and len(numbers) != arms:
        return [], [Violation(field, f"got {len(numbers)} shares; one for each of {arms} arms is allowed")]
    return numbers, [
        Violation(f"{field}[{arm}]" if array.ndim else field, f"got {number!r}; a share from 0 to 1 is allowed")
        for arm, number in enumerate(numbers if array.ndim else numbers[:1])
        if not 0.0 <= number <= 1.0
    ]


def _sum_to_one(field: str, weights: Sequence[float]) -> list[Violation]:
    total = math.fsum(weights) if all(math.isfinite(weight) for weight in weights) else math.nan
    if weights and not abs(total - 1.0) <= SUM_TOLERANCE:
        return [Violation(field, f"got a sum of {total!r}; weights sum to 1")]
    return []


def _index(field: str, arm: int, arms: int) -> list[Violation]:
    if not isinstance(arm, int) or not 0 <= arm < arms:
        return [Violation(field, f"got {arm!r}; the index of one of {arms} arms is allowed")]
    return []


def _raise(violations: list[Violation]) -> None:
    if violations:
        raise InvalidArgument(violations=violations)
