"""Absolute budgets and the conservative constraint: what is known in, how many exposures candidates may ever receive out.

In: the spec and the tally. Out: `Limits`, whole numbers of exposures in all since the start. Whoever grants exposures never grants more
in all than the limit in force, and what was granted counts as received for ever, spent or not: a crash can only waste some. So each
limit is a promise about what candidates really received, across processes and restarts, and a plan may compute it from old counts.

`requests` and `units` are what the spec says. `loss` is the reward that a candidate may lose in all against the incumbent. Rewards are
taken as shares of their range, so that each lies in [0, 1]. G exposures would have earned at most G u at the incumbent, where u is an
upper bound of its mean; they have returned at least what was reported of them, whatever becomes of the rest. Hence
G u - returned <= budget is kept, at every count, and what is not known yet is priced at its worst without a rule of its own.

`maxLoss` a asks that the sum of n_i mu_i over all arms stays above (1 - a) mu_0 N, for N decisions of which n_i went to arm i. With
lower bounds l_i, and P exposures granted to all candidates together, of which n = sum n_i are known to be spent, it holds if

    a mu_0 N + sum n_i (l_i - mu_0) - (P - n) max(mu_0 - l_i, 0) >= 0      (sum and max over candidates)

for the true mu_0. The left side is concave in mu_0 and not negative at 0, so an upper bound u of mu_0 that passes is enough: what is below
passes too. P <= a N needs no bounds at all. All candidates share P: it does not matter to whom it goes, so planners that know different
counts cannot break it between them.

The bounds are confidence sequences of all arms, which together fail with probability at most ALPHA, ever. They hold for means that do
not drift; under drift, set a guardrail relative to the incumbent instead.

Tried and dropped: a limit on expected exposures (broken in a fifth of simulated runs, since what is drawn is not what was planned); the
difference of two estimated means as the loss (no promise: it is within its noise, then wrong); a share of the constraint for each
candidate (two planners may each grant what the other has counted on).

Sources: Wu, Shariff, Lattimore & Szepesvari 2016; Garcelon, Ghavamzadeh, Lazaric & Pirotta 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.confidence import confidence_sequence
from allocator.core.experiment import Budget, Experiment
from allocator.core.gate import REQUESTS, UNITS
from allocator.core.statistics import COUNT, Sums, matured, sums_of
from allocator.core.tally import EXPOSURE_STREAM, REWARD_STREAM, Tally

Floats = NDArray[np.float64]

ALPHA = 0.05  # chance that a promise on rewards is ever broken, all arms and both promises together
TOGETHER = "together"  # account of what all candidates were granted, kept under the incumbent's index
NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class Limits:
    """Exposures that may ever be granted, as of one plan. None: not limited, nothing to be granted.

    requests, units: for each arm, the incumbent's None. together: all candidates.
    """

    requests: tuple[int | None, ...]
    units: tuple[int | None, ...]
    together: int | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of each arm, float64 (arms,), rewards as shares of their range.

    exposures: decisions counted. count, total: rewards from which its mean may be judged. returned: all that came back so far.
    """

    exposures: Floats
    count: Floats
    total: Floats
    returned: Floats


def leases_requests(experiment: Experiment) -> bool:
    """Does every exposure of a candidate need a lease?"""
    x = experiment.exposure
    return x.budget.requests is not None or x.budget.loss is not None or x.max_loss is not None


def leases_units(experiment: Experiment) -> bool:
    """Does every unit that a candidate meets need a lease?"""
    return experiment.exposure.budget.units is not None


def limits(experiment: Experiment, found: Tally) -> Limits | None:
    """What candidates may ever receive; None without budgets."""
    x, arms = experiment.exposure, len(experiment.arms)
    if x.budget == Budget() and x.max_loss is None:
        return None
    requests: list[int | None] = [x.budget.requests] * arms
    together = None
    if x.budget.loss is not None or x.max_loss is not None:
        known = what_is_known(experiment, found)
        low, high = confidence_sequence(known.total, known.count, ALPHA / arms)
        if x.budget.loss is not None:
            budget = x.budget.loss / (experiment.reward.upper - experiment.reward.low)
            for arm in range(arms):
                limit = loss_limit(budget, float(known.returned[arm]), float(high[experiment.incumbent]))
                before = requests[arm]
                requests[arm] = limit if before is None else min(before, limit)
        if x.max_loss is not None:
            together = conservative_limit(x.max_loss, known.exposures, low, float(high[experiment.incumbent]), experiment.incumbent)
    requests[experiment.incumbent] = None
    units = tuple(None if arm == experiment.incumbent else x.budget.units for arm in range(arms))
    return Limits(tuple(requests), units, together)


def loss_limit(budget: float, returned: float, incumbent_high: float) -> int:
    """Exposures of one candidate at which it may have lost the budget.

    budget: at least 0; returned: reward that came back from it; incumbent_high: upper bound of the incumbent's mean, in (0, 1]. All as
    shares of the reward's range.
    """
    return min(NO_LIMIT, math.floor((Fraction(budget) + Fraction(returned)) / Fraction(incumbent_high)))


def conservative_limit(share: float, exposures: ArrayLike, low: ArrayLike, incumbent_high: float, incumbent: int) -> int:
    """Exposures of all candidates together that keep total reward above (1 - share) of the incumbent's.

    share: in (0, 1). exposures: (arms,), decisions that each is known to have had. low: (arms,), lower bounds of the means, in [0, 1];
    incumbent_high: upper bound of the incumbent's; incumbent: its index.
    """
    counts, lows = np.asarray(exposures, dtype=np.float64), np.asarray(low, dtype=np.float64)
    candidates = np.arange(counts.size) != incumbent
    everything, spent = float(counts.sum()), float(counts[candidates].sum())
    incumbent_high = float(incumbent_high)
    price = incumbent_high - float(lows[candidates].min())
    if price <= 0:
        return NO_LIMIT
    slack = share * incumbent_high * everything + float((counts * (lows - incumbent_high))[candidates].sum())
    more = slack / price if slack < price * NO_LIMIT else NO_LIMIT  # a price may be too small to divide by
    return max(math.floor(share * everything), min(NO_LIMIT, math.floor(spent + more)))


def what_is_known(experiment: Experiment, found: Tally) -> Known:
    """Sums since the start, nothing forgotten by age. With `missing`, a mean is judged by the decisions whose window has passed."""
    reward = experiment.reward
    width = reward.upper - reward.low

    def share(sums: Sums) -> Floats:
        total = (sums.total * reward.unit + sums.count * (reward.shift - reward.low)) / width
        return np.clip(total, 0.0, sums.count)

    reported, settled = sums_of(found.open, REWARD_STREAM), sums_of(found.settled, REWARD_STREAM)
    exposed, past = sums_of(found.open, EXPOSURE_STREAM), sums_of(found.settled, EXPOSURE_STREAM)
    if reward.missing is None:
        count, total = reported.count + settled.count, share(reported) + share(settled)
        return Known(exposed.count + past.count, count, total, total)
    cohort = matured(past, settled, (reward.missing - reward.shift) / reward.unit)
    return Known(exposed.count + past.count, cohort.count, share(cohort), share(cohort) + share(reported))


def used_up(experiment: Experiment, found: Tally, now: float) -> frozenset[int]:
    """Candidates that have had their whole budget of requests, and will get nothing more. now: seconds since the epoch.

    All of it was granted, none is held here, and either all was counted, or nothing was spent in the present bucket nor in the one
    before: the rest was lost with the process that held it.
    """
    budget = experiment.exposure.budget.requests
    if budget is None:
        return frozenset()
    open_now = found.open.sums[:, :, :, EXPOSURE_STREAM, COUNT].sum(axis=2)
    counted = open_now.sum(axis=0) + found.settled.sums[:, :, :, EXPOSURE_STREAM, COUNT].sum(axis=(0, 2))
    recent = open_now[found.open.buckets >= experiment.bucket(now) - 1].sum(axis=0)
    return frozenset(
        arm
        for arm in range(len(experiment.arms))
        if arm not in (experiment.incumbent, *found.held)
        and (granted := found.granted.get((arm, REQUESTS), 0)) >= budget
        and (counted[arm] >= granted or not recent[arm])
    )


def budget_notes(experiment: Experiment, made: Limits | None, granted: Mapping[tuple[int, str], int]) -> list[str]:
    """How much of each budget is gone, in sentences."""
    if made is None:
        return []
    budget, notes = experiment.exposure.budget, []

    def gone(arm: int, kind: str, limit: int | None) -> str:
        allowed = "any number" if limit is None or limit >= NO_LIMIT else f"{limit}"
        return f"{granted.get((arm, kind), 0)} of {allowed} that it allows now are spent or set aside"

    for arm, candidate in enumerate(experiment.arms):
        if arm == experiment.incumbent:
            continue
        if budget.loss is not None:
            notes.append(f"requests of {candidate.name} within a loss of {budget.loss:g}: {gone(arm, REQUESTS, made.requests[arm])}")
        elif budget.requests is not None:
            notes.append(f"budget of requests of {candidate.name}: {gone(arm, REQUESTS, made.requests[arm])}")
        if budget.units is not None:
            notes.append(f"budget of units of {candidate.name}: {gone(arm, UNITS, made.units[arm])}")
    if experiment.exposure.max_loss is not None:
        share = f"requests of all candidates within a loss of {experiment.exposure.max_loss:.1%} of the reward"
        notes.append(f"{share}: {gone(experiment.incumbent, TOGETHER, made.together)}")
    return notes
