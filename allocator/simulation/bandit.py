"""Bandit policies on Bernoulli arms, as researchers run them: rates in, regret and pulls out, millions of steps a second.

In: the mean of each arm, constant or step by step, and the name of a policy. Out: arrays over replications and checkpoints. No caps, no
guardrails, no ramp: what those change is rehearsed by `allocator.simulation.run`, through the core that serves. Every policy meets the same
potential outcomes in the same replication, so policies are compared by paired differences.

The policies are those of the literature that production does not use, for comparison, and the posterior draw that production replaces
by the exact P(best): `thompson` draws at each step, `planned_thompson` integrates at each batch and cuts candidates to a cap, as a
planner does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.kernels import bandit as kernels
from allocator.errors import InvalidArgument, Violation
from allocator.simulation.parallel import RandomState, Seed, child, key_of, replicate

MAX_STEPS = 2**40
MAX_ARMS = 32_767


@dataclass(frozen=True, slots=True)
class _Policy:
    """kind: its number in the kernel. knob: default of its one parameter; low, high: range of that; meaning: in words."""

    kind: int
    knob: float = 0.0
    low: float = 0.0
    high: float = 0.0
    meaning: str = ""


_POLICIES: Mapping[str, _Policy] = MappingProxyType(
    {
        "thompson": _Policy(kernels.THOMPSON),
        "planned_thompson": _Policy(kernels.PLANNED, 1.0, 0.0, 1.0, "cap on arms 1, 2, ... together"),
        "top_two": _Policy(kernels.TOP_TWO, 0.5, 0.0, 1.0, "beta: share of steps that keep the first arm"),
        "greedy": _Policy(kernels.GREEDY),
        "epsilon_greedy": _Policy(kernels.EPSILON_GREEDY, 0.1, 0.0, 1.0, "epsilon"),
        "ucb1": _Policy(kernels.UCB1, 2.0, 0.0, 100.0, "factor of ln t / n under the root"),
        "kl_ucb": _Policy(kernels.KL_UCB, 0.0, 0.0, 100.0, "c in ln t + c ln ln t"),
        "exp3": _Policy(kernels.EXP3, 0.05, 1e-6, 1.0, "gamma: share of the even split"),
        "tsallis_inf": _Policy(kernels.TSALLIS_INF),
        "oracle": _Policy(kernels.ORACLE),
        "uniform": _Policy(kernels.FIXED, 1.0, 0.0, 1.0, "cap on arms 1, 2, ... together"),
    }
)
POLICIES = tuple(_POLICIES)


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """What R replications of one policy did on K arms.

    checkpoints: int64 (C,), numbers of steps. regret: float64 (R, C), pseudo-regret so far, sum of (best mean - mean of the arm pulled).
    rewards: int64 (R, C), successes so far. pulls: int64 (R, C, K). arms: int16 (R, horizon) and paid: bool (R, horizon), each step's arm
    and reward, only where `path` was asked for.
    """

    policy: str
    checkpoints: NDArray[np.int64]
    regret: NDArray[np.float64]
    rewards: NDArray[np.int64]
    pulls: NDArray[np.int64]
    arms: NDArray[np.int16] | None = None
    paid: NDArray[np.bool_] | None = None


def simulate(
    means: ArrayLike,
    horizon: int,
    policy: str = "thompson",
    *,
    parameter: float | None = None,
    replications: int = 100,
    batch: int = 1,
    prior: ArrayLike = (1.0, 1.0),
    checkpoints: ArrayLike | None = None,
    path: bool = False,
    random_state: RandomState = 0,
    workers: int = 1,
    backend: str = "threading",
    title: str = "",
) -> Runs:
    """Play `policy` for `horizon` steps in each of `replications` worlds.

    means: float64 (K,) in [0, 1], or (horizon, K) for rates that change. policy: one of `POLICIES`; parameter: its one parameter, where
    it has one (`top_two` beta, `epsilon_greedy` epsilon, `exp3` gamma, ...). batch: outcomes are known to the policy at the end of each
    batch of steps. prior: (successes, failures) of every Beta prior, or (2, K) of each arm's, above 0. checkpoints: ascending numbers of
    steps, by default 100 from 1 to the horizon, evenly spread. path: keep every step (3 bytes each). random_state, workers, backend,
    title: see `replicate`; the result depends on none of workers, backend and title. Raises InvalidArgument with every fault.
    """
    rates, priors, marks, found = _checked(means, horizon, policy, parameter, batch, prior, checkpoints)
    if found:
        raise InvalidArgument(violations=found)
    kind, knob, _ = checked_policy(policy, parameter)
    one = partial(
        _play,
        kind=kind,
        knob=knob,
        rates=rates,
        horizon=horizon,
        batch=batch,
        prior=priors,
        checkpoints=marks,
        path=path,
    )
    done = replicate(one, replications, random_state, workers=workers, backend=backend, title=title)
    regret, rewards, pulls, arms, paid = (np.stack(column) for column in zip(*done, strict=True))
    return Runs(policy, marks, regret, rewards, pulls, arms if path else None, paid if path else None)


def checked_policy(policy: str, parameter: float | None) -> tuple[int, float, list[Violation]]:
    """Number and parameter of a policy in the kernel, and what is wrong with them."""
    chosen = _POLICIES.get(policy) if isinstance(policy, str) else None
    if chosen is None:
        return 0, 0.0, [Violation("policy", f"got {policy!r}; one of {', '.join(POLICIES)} is allowed")]
    if parameter is None:
        return chosen.kind, chosen.knob, []
    number = isinstance(parameter, int | float | np.integer | np.floating) and not isinstance(parameter, bool)
    if chosen.meaning and number and chosen.low <= parameter <= chosen.high:
        return chosen.kind, float(parameter), []
    what = f"{chosen.meaning}, from {chosen.low:g} to {chosen.high:g}, is allowed" if chosen.meaning else f"{policy} has no parameter"
    return chosen.kind, chosen.knob, [Violation("parameter", f"got {parameter!r}; {what}")]


def brief(value: object) -> str:
    """A value as a fault shows it: on one line, and not all of it."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}..."


def numbers(value: ArrayLike) -> NDArray | None:
    """`value` as an array of numbers, or None for what is none: text, rows of different lengths, anything else."""
    try:
        found = np.asarray(value)
    except (ValueError, TypeError):
        return None
    return found if found.dtype.kind in "biuf" else None


def checked_prior(prior: ArrayLike, arms: int) -> tuple[NDArray[np.float64], list[Violation]]:
    """A prior as float64 (2, arms), successes and failures, and what is wrong with it."""
    found = numbers(prior)
    if found is not None and found.shape == (2,):
        found = np.repeat(found[:, None], arms, axis=1)
    if found is None or found.shape != (2, arms) or not ((found > 0) & (found < 1e12)).all():
        what = f"got {brief(prior)}; successes and failures above 0, one pair or one for each arm, are allowed"
        return np.ones((2, arms)), [Violation("prior", what)]
    return np.ascontiguousarray(found, np.float64), []


def warm_up() -> None:
    """Compile the kernels, or load them from the cache, with the types that they are used with."""
    simulate([0.5, 0.5], 1, replications=1)


def _play(seed: Seed, *, kind: int, knob: float, rates, horizon: int, batch: int, prior, checkpoints, path: bool):
    """One replication. The policy's own chance comes from child 0 of its seed, the world from the seed's key."""
    count, arms = checkpoints.size, rates.shape[1]
    regret, rewards, pulls = np.zeros(count), np.zeros(count, np.int64), np.zeros((count, arms), np.int64)
    steps = horizon if path else 0
    chosen, paid = np.empty(steps, np.int16), np.empty(steps, np.bool_)
    rng = np.random.Generator(np.random.PCG64(child(seed, 0)))
    kernels.play(kind, knob, rates, rng, key_of(seed), horizon, batch, prior, checkpoints, regret, rewards, pulls, chosen, paid)
    return regret, rewards, pulls, chosen, paid


def _checked(means, horizon, policy, parameter, batch, prior, checkpoints):
    """Rates, prior and checkpoints as arrays of one layout, and every fault."""
    found: list[Violation] = []
    rates = numbers(means)
    arms_known = rates is not None and rates.ndim in (1, 2) and 1 <= rates.shape[-1] <= MAX_ARMS
    if not arms_known or not ((rates >= 0) & (rates <= 1)).all():
        found.append(Violation("means", f"got {brief(means)}; a rate in [0, 1] for each arm, or a row of them a step, is allowed"))
    rates = np.array(rates, np.float64, ndmin=2, order="C") if arms_known else np.zeros((1, 1))
    found += checked_policy(policy, parameter)[2]
    priors, faults = checked_prior(prior, rates.shape[1])
    found += faults if arms_known else []
    for name, value in (("horizon", horizon), ("batch", batch)):
        if not (isinstance(value, int | np.integer) and 1 <= value <= MAX_STEPS):
            found.append(Violation(name, f"got {value!r}; a whole number of steps from 1 to {MAX_STEPS} is allowed"))
            return rates, None, None, found
    if rates.shape[0] not in (1, horizon):
        found.append(Violation("means", f"got {rates.shape[0]} rows; one, or one for each of {horizon} steps, is allowed"))
    marks = np.unique(np.linspace(1, horizon, min(100, horizon)).round()) if checkpoints is None else numbers(checkpoints)
    whole = marks is not None and marks.ndim == 1 and marks.size and (marks == np.round(marks)).all()
    if not whole or (np.diff(marks) <= 0).any() or not 1 <= marks[0] <= marks[-1] <= horizon:
        found.append(Violation("checkpoints", f"got {brief(checkpoints)}; ascending numbers of steps from 1 to {horizon} are allowed"))
        marks = np.ones(1)
    return rates, priors, np.ascontiguousarray(marks, np.int64), found
