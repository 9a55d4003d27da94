"""What many replications say together, always with how sure that is.

In: one number of each replication, or how many of them had something happen. Out: mean, spread, a t-interval of the mean and quantiles;
or a share with its Clopper-Pearson interval. Both are 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta, t

from allocator.errors import InvalidArgument, Violation

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one number: mean, standard deviation, the 95 % interval of the mean, 5 %, 50 % and 95 % quantiles, and how many runs had it.

    NaN where there were too few runs to say; `runs` leaves out those in which the number does not exist.
    """

    mean: float
    sd: float
    low: float
    high: float
    q05: float
    q50: float
    q95: float
    runs: int


@dataclass(frozen=True, slots=True)
class Proportion:
    """How often something happened: `events` of `runs`; the share and its exact 95 % interval."""

    events: int
    runs: int
    share: float
    low: float
    high: float


def summarise(values: ArrayLike) -> Summary:
    """Summary of the finite values; NaN marks a run without one (never frozen, no such stage). Raises InvalidArgument for infinities."""
    numbers = np.asarray(values, np.float64).ravel()
    if np.isinf(numbers).any():
        raise InvalidArgument.of_field("values", "got an infinite value; numbers, or NaN for none, are allowed")
    numbers = numbers[~np.isnan(numbers)]
    n = numbers.size
    if n == 0:
        return Summary(*(math.nan,) * 7, 0)
    mean = float(numbers.mean())
    sd = float(numbers.std(ddof=1)) if n > 1 else math.nan
    half = float(t.ppf(0.5 + LEVEL / 2, n - 1)) * sd / math.sqrt(n) if n > 1 else math.nan
    q05, q50, q95 = (float(q) for q in np.quantile(numbers, (0.05, 0.5, 0.95)))
    return Summary(mean, sd, mean - half, mean + half, q05, q50, q95, n)


def proportion(events: int | Iterable[bool], runs: int | None = None) -> Proportion:
    """Share of runs in which it happened. events: how many of `runs`, or one truth value a run.

    Raises InvalidArgument unless 0 <= events <= runs and runs >= 1. Source: Clopper & Pearson 1934.
    """
    if runs is None:
        flags = [bool(event) for event in events]  # type: ignore[union-attr]
        events, runs = sum(flags), len(flags)
    if not (isinstance(events, int | np.integer) and runs >= 1 and 0 <= events <= runs):
        raise InvalidArgument(violations=[Violation("events", f"got {events!r} of {runs!r}; 0 to as many as there are runs is allowed")])
    k, tail = int(events), (1 - LEVEL) / 2
    low = 0.0 if k == 0 else float(beta.ppf(tail, k, runs - k + 1))
    high = 1.0 if k == runs else float(beta.ppf(1 - tail, k + 1, runs - k))
    return Proportion(k, int(runs), k / runs, low, high)
