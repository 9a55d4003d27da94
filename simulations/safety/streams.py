"""Streams of outcomes without a service around them: how often a harmless candidate is stopped, how soon a harmful one.

In: rates, a threshold, a generator. Out: the outcome at which each run is stopped, or 0 when it never is. Outcomes are drawn here;
evidence is computed by the functions that the service calls. Allocation by Thompson sampling is a loop of its own: a fresh posterior draw
for each outcome, no snapshot, no caps, so that the candidate's share follows its own errors as closely as it can.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import njit
from numpy.typing import NDArray

from allocator.core.evidence import Restarts, no_restarts
from allocator.core.evidence_rates import RateGrid, fold_many, log_evidence
from tests.core.exact_freeze import naive_z_boundary

Floats = NDArray[np.float64]

MONITORS = ("restarted", "restarted, as served", "plain", "z, every outcome", "z, from 100")
CHUNK = 512  # outcomes drawn at a time until a stop


def same_arms(
    rng: np.random.Generator, grid: RateGrid, runs: int, outcomes: int, click: float, alpha: float, served_alpha: float
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Two arms alike, both with errors exactly at the grid's limit: of each run, when each of MONITORS stops the candidate, and its share.

    A stop is counted in outcomes of both arms, 1 to `outcomes`; 0: never. The share is the number of outcomes that the candidate had.
    served_alpha: what `restarted, as served` is held to, alpha of a first activation.
    """
    z_always, z_later = (naive_z_boundary(grid.limit, alpha, outcomes, start) for start in (1, 100))
    fresh, number = no_restarts(grid), np.arange(1, outcomes + 1)
    for _ in range(runs):
        at, errors = thompson(rng, outcomes, click, grid.limit)
        n = number[: at.size]
        events = np.cumsum(errors)
        restarted = fold_many([grid], [fresh], np.ones((1, n.size)), errors[np.newaxis])[1][0] if n.size else np.empty(0)
        plain = log_evidence(grid, n, events)
        reached = (
            restarted >= -np.log(alpha),
            restarted >= -np.log(served_alpha),
            plain >= -np.log(alpha),
            events >= z_always[n],
            events >= z_later[n],
        )
        yield tuple(int(at[found.argmax()]) if found.any() else 0 for found in reached), n.size


@njit(cache=True)
def thompson(rng, outcomes, click, error):
    """Of the candidate: at which outcomes it served, and its errors. An error earns no reward, else a click does by chance."""
    at, errors, count = np.empty(outcomes, np.int64), np.empty(outcomes), 0
    good, bad = np.ones(2), np.ones(2)
    for step in range(outcomes):
        arm = 1 if rng.beta(good[1], bad[1]) > rng.beta(good[0], bad[0]) else 0
        failed = rng.random() < error
        if not failed and rng.random() < click:
            good[arm] += 1.0
        else:
            bad[arm] += 1.0
        if arm == 1:
            at[count], errors[count] = step + 1, 1.0 if failed else 0.0
            count += 1
    return at[:count], errors[:count]


def plain_delay(rng: np.random.Generator, grid: RateGrid, rate: float, log_threshold: float) -> int:
    """Candidate outcomes until evidence without restarts reaches the threshold; the error rate is `rate` from the start."""
    count, events = 0, 0.0
    while True:
        total = events + np.cumsum(rng.random(CHUNK) < rate)
        reached = log_evidence(grid, np.arange(count + 1, count + CHUNK + 1), total) >= log_threshold
        if reached.any():
            return count + 1 + int(reached.argmax())
        count, events = count + CHUNK, float(total[-1])


def restarted_delay(rng: np.random.Generator, grid: RateGrid, rate: float, log_threshold: float, state: Restarts) -> int:
    """Candidate outcomes until evidence with restarts reaches the threshold, from the state that a history left."""
    count = 0
    while True:
        errors = (rng.random((1, CHUNK)) < rate).astype(np.float64)
        (state,), evidence = fold_many([grid], [state], np.ones(errors.shape), errors)
        reached = evidence[0] >= log_threshold
        if reached.any():
            return count + 1 + int(reached.argmax())
        count += CHUNK


def good_history(rng: np.random.Generator, grid: RateGrid, outcomes: int, rate: float) -> Restarts:
    """The state after so many outcomes at a harmless rate. They are folded by blocks of 50, which adds the same restarts as one by one."""
    errors = rng.binomial(50, rate, (1, outcomes // 50)).astype(np.float64)
    return fold_many([grid], [no_restarts(grid)], np.full(errors.shape, 50.0), errors)[0][0]
