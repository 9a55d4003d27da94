"""A real log instead of a world: what would a policy have earned, had it met these rounds?

In: a log of arms that were drawn uniformly, and what they paid. Out: the policy's mean reward on the rounds in which it would have drawn
the logged arm. Those rounds are, in law, a run of the policy in the world of the log, so the estimate is unbiased for any policy that
learns; the price is that only about one round in K counts. A log that was not drawn uniformly is refused: for those, weigh the rounds
(`allocator.analysis.off_policy`), which works for policies that do not learn.

Source: Li, Chu, Langford & Wang 2011.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.kernels import bandit as kernels
from allocator.errors import InvalidArgument, Violation
from allocator.simulation.bandit import MAX_STEPS, brief, checked_policy, checked_prior, numbers
from allocator.simulation.parallel import RandomState, Seed, child, replicate

TOLERANCE = 1e-6  # of propensities, as a share of 1 / K


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """Of R replications (they differ in the policy's chance): matches and rewards, int64 (R,); value, (R,), mean reward of the matches, NaN
    without any; pulls, int64 (R, K).
    """

    policy: str
    matches: NDArray[np.int64]
    rewards: NDArray[np.int64]
    value: NDArray[np.float64]
    pulls: NDArray[np.int64]


def replay(
    action: ArrayLike,
    reward: ArrayLike,
    pscore: ArrayLike,
    n_actions: int,
    policy: str = "thompson",
    *,
    parameter: float | None = None,
    prior: ArrayLike = (1.0, 1.0),
    horizon: int | None = None,
    replications: int = 100,
    random_state: RandomState = 0,
    workers: int = 1,
) -> Replayed:
    """Play `policy` against a uniform log.

    action: integers (n,) in [0, n_actions); reward: 0 or 1, (n,); pscore: the propensity of each logged action, all 1 / n_actions.
    policy, parameter, prior: as in `simulate`; there is no oracle. horizon: stop after so many matches, by default at the log's end.
    Raises InvalidArgument with every fault, with reason NOT_UNIFORM for a log that was not drawn uniformly.
    """
    actions, rewards, chances = (np.array(()) if found is None else found for found in map(numbers, (action, reward, pscore)))
    kind, knob, found = checked_policy(policy, parameter)
    if policy == "oracle":
        found.append(Violation("policy", "got 'oracle'; nobody knows the best arm of a log"))
    if not (isinstance(n_actions, int | np.integer) and 2 <= n_actions <= 32_767):
        raise InvalidArgument.of_field("n_actions", f"got {n_actions!r}; a whole number from 2 to 32767 is allowed")
    priors, faults = checked_prior(prior, n_actions)
    found += faults
    if horizon is not None and not (isinstance(horizon, int | np.integer) and 1 <= horizon <= MAX_STEPS):
        found.append(Violation("horizon", f"got {horizon!r}; a whole number of matches from 1 to {MAX_STEPS}, or None, is allowed"))
    if actions.ndim != 1 or actions.dtype.kind not in "iu" or not ((actions >= 0) & (actions < n_actions)).all():
        what = f"integers (n,) from 0 to {n_actions - 1} are allowed"
        found.append(Violation("action", f"got {brief(action)}; {what}"))
        raise InvalidArgument(violations=found)
    if rewards.shape != actions.shape or not np.isin(rewards, (0, 1)).all():
        found.append(Violation("reward", f"got {brief(reward)}; 0 or 1 for each of {actions.size} actions is allowed"))
    if chances.shape != actions.shape:
        found.append(Violation("pscore", f"got {brief(pscore)}; a propensity for each of {actions.size} actions is allowed"))
    if found:
        raise InvalidArgument(violations=found)
    if not (np.abs(chances * n_actions - 1.0) <= TOLERANCE).all():
        got = f"got values from {chances.min():g} to {chances.max():g}"
        raise InvalidArgument.of_field("pscore", f"{got}; a log drawn uniformly has {1 / n_actions:g}", reason="NOT_UNIFORM")
    one = partial(
        _walk, kind=kind, knob=knob, actions=np.ascontiguousarray(actions, np.int64), paid=np.ascontiguousarray(rewards, np.bool_),
        horizon=len(actions) if horizon is None else int(horizon), prior=priors,
    )  # fmt: skip
    done = replicate(one, replications, random_state, workers=workers, backend="threading")
    matches, won, pulls = (np.array(column) for column in zip(*done, strict=True))
    with np.errstate(invalid="ignore"):
        return Replayed(policy, matches, won, won / np.where(matches, matches, np.nan), pulls)


def _walk(seed: Seed, *, kind: int, knob: float, actions, paid, horizon: int, prior) -> tuple[int, int, NDArray[np.int64]]:
    pulls = np.zeros(prior.shape[1], np.int64)
    rng = np.random.Generator(np.random.PCG64(child(seed, 0)))
    matches, won = kernels.replay(kind, knob, actions, paid, rng, horizon, prior, pulls)
    return matches, won, pulls
