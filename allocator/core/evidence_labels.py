"""The label kernel: among rows with an event, is the candidate's share larger than its propensity explains?

In: events of both arms by the candidate's chance when they were decided, and a ratio of event rates. Out: the natural log of the evidence
that the candidate's rate is above (or below) that ratio times the incumbent's. An incident that hits both arms raises both counts and
leaves the share alone, and no estimate of the incumbent's rate is needed. Restarts and thresholds are those of `evidence`.

Source: ter Schure et al. 2024 (a ratio of Cox partial likelihoods).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from allocator.core.checked import Floats, checked_amounts, checked_counts, invalid
from allocator.core.evidence import BLOCK, Bounded, Restarts, Schedule, fold_increments, frozen, no_restarts, normalised


@dataclass(frozen=True, slots=True, eq=False)
class LabelGrid:
    """Alternatives to a ratio of event rates, candidate to incumbent; made by `label_grid` or `two_sided_label_grid`.

    log_weight: ln of the mixture weights. log_ratio: ln of alternative / null ratio. Both float64 (G,), read-only.
    """

    ratio: float
    log_weight: Floats
    log_ratio: Floats


@dataclass(frozen=True, slots=True, eq=False)
class LabelSums:
    """Sums over rows with an event, for one LabelGrid; add them in any order.

    candidate_events, events: rows of the candidate, rows of both arms; floats, or float64 (B,) for B buckets.
    log_denominators: float64 (G,) or (B, G), sum over rows of ln((r pi + 1 - pi) / (rho pi + 1 - pi)) for each
    alternative r against the null ratio rho. Kept relative to the null, because the two sums apart grow with the
    traffic while their difference, which is all that counts, does not.
    """

    candidate_events: float | Floats
    events: float | Floats
    log_denominators: Floats

    def __add__(self, other: LabelSums) -> LabelSums:
        return LabelSums(
            self.candidate_events + other.candidate_events,
            self.events + other.events,
            self.log_denominators + other.log_denominators,
        )


@lru_cache(maxsize=4096)
def label_grid(ratio: float, above: bool = True) -> LabelGrid:
    """32 alternatives to "candidate's event rate <= ratio x incumbent's", from 1.1 to 10^4 times that ratio.

    ratio: in [1e-6, 1e6]. above=False: alternatives below, against "rate >= ratio x incumbent's" (proof of safety).
    Raises InvalidArgument.
    """
    if not 1e-6 <= ratio <= 1e6:
        raise invalid("ratio", f"is {ratio}; expected a number in [1e-6, 1e6]")
    distance = np.linspace(math.log(1.1), math.log(1e4), 32)
    return _label_grid(float(ratio), distance if above else -distance, -distance / 2.0)


@lru_cache(maxsize=64)
def two_sided_label_grid(nearest: float, furthest: float) -> LabelGrid:
    """32 alternatives to ratio 1, 16 a side, |ln r| equally spaced from ln(nearest) to ln(furthest), equal weights.

    nearest, furthest: 1 < nearest < furthest <= 1e6. Raises InvalidArgument.
    """
    if not 1.0 < nearest < furthest <= 1e6:
        raise invalid("nearest", f"is {nearest}, furthest {furthest}; expected 1 < nearest < furthest <= 1e6")
    distance = np.linspace(math.log(nearest), math.log(furthest), 16)
    return _label_grid(1.0, np.concatenate([-distance[::-1], distance]), np.zeros(32))


def label_sums(grid: LabelGrid, candidate_events: ArrayLike, incumbent_events: ArrayLike, pi: ArrayLike) -> LabelSums:
    """Sums over cells of rows with an event that share a propensity; a cell may also be a single row.

    candidate_events, incumbent_events: (C,), events (or weights in [0, 1] added up) of each arm. pi: (C,) in [0, 1],
    the candidate's chance among the two arms in force at those decisions. Take only rows whose arm was drawn with that
    chance: not rows where a cap or a freeze decided. Raises InvalidArgument, also for an event of an arm that had no
    chance.
    """
    candidate = checked_amounts("candidate_events", candidate_events)
    incumbent = checked_amounts("incumbent_events", incumbent_events)
    pi = np.asarray(pi, dtype=np.float64)
    candidate, incumbent, pi = np.broadcast_arrays(*np.atleast_1d(candidate, incumbent, pi))
    if pi.ndim != 1 or not np.all((pi >= 0.0) & (pi <= 1.0)):
        raise invalid("pi", f"is {pi}; expected a number in [0, 1] for each cell")
    if np.any((pi == 0.0) & (candidate > 0.0)) or np.any((pi == 1.0) & (incumbent > 0.0)):
        raise invalid("pi", "gives no chance to an arm that has events in the same cell")
    total = candidate + incumbent
    null = 1.0 + pi * (grid.ratio - 1.0)
    excess = np.multiply.outer(pi / null, grid.ratio * np.expm1(grid.log_ratio))  # of the alternative over the null
    return LabelSums(float(candidate.sum()), float(total.sum()), total @ np.log1p(excess))


def log_label_evidence(grid: LabelGrid, sums: LabelSums) -> float | Floats:
    """Evidence against the grid's ratio, without restarts: natural log, a float, or (B,) for sums of B buckets.

    Valid for any propensities and any common movement of the two rates, with no estimate of the incumbent's rate.
    """
    candidate = np.asarray(sums.candidate_events)[..., np.newaxis]
    terms = grid.log_weight + candidate * grid.log_ratio - sums.log_denominators
    top = terms.max(axis=-1)
    total = top + np.log(np.exp(terms - top[..., np.newaxis]).sum(axis=-1))
    return float(total) if total.ndim == 0 else total


def fold_labels(
    grid: LabelGrid,
    state: Restarts,
    exposed: ArrayLike,
    sums: LabelSums,
    schedule: Schedule | Bounded = Schedule.WEIGHTED,
    block: float = BLOCK,
    cap: float | None = None,
) -> tuple[Restarts, Floats]:
    """Fold buckets, in decision order, of label sums; as fold.

    exposed: (B,), decisions of the two arms, at least their events; they fill the blocks. 50 / pi is a good `block`: it
    opens one per 50 decisions of the candidate. sums: of B buckets, see stack. Fold a bucket when it is closed if the
    arms may report at different speeds. Raises InvalidArgument.
    """
    candidate = np.atleast_1d(np.asarray(sums.candidate_events, dtype=np.float64))
    exposed, events = checked_counts(np.atleast_1d(exposed), np.atleast_1d(sums.events))
    denominators = np.atleast_2d(sums.log_denominators)
    if not exposed.ndim == 1 or denominators.shape != (exposed.size, grid.log_weight.size):
        raise invalid("sums", f"has shape {denominators.shape}; expected {(exposed.size, grid.log_weight.size)}")
    increments = np.multiply.outer(candidate, grid.log_ratio) - denominators
    return fold_increments(grid, state, exposed, events, increments, schedule, block, cap)


def stack(buckets: Sequence[LabelSums]) -> LabelSums:
    """The sums of B buckets, one after another, as one LabelSums for fold_labels."""
    return LabelSums(
        np.array([bucket.candidate_events for bucket in buckets], dtype=np.float64),
        np.array([bucket.events for bucket in buckets], dtype=np.float64),
        np.array([bucket.log_denominators for bucket in buckets], dtype=np.float64),
    )


def warm_up() -> None:
    """Compile, or load from the cache, every kernel this file uses, with the types it uses."""
    grid = label_grid(1.0)
    fold_labels(grid, no_restarts(grid), [1.0], stack([label_sums(grid, 1.0, 0.0, 0.5)]))


def _label_grid(ratio: float, log_ratio: Floats, log_weight: Floats) -> LabelGrid:
    return LabelGrid(ratio, log_weight=frozen(normalised(log_weight, 1.0)), log_ratio=frozen(log_ratio))
