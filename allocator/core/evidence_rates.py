"""Evidence on a rate: above its limit, which freezes, or below it, which proves safety.

In: counts of outcomes and of events among them, in total or per bucket of decision time, and a grid of alternatives to a limit. Out: the
natural log of the evidence against the limit (`rate_grid`) or for it (`safety_grid`). The idea is told in `evidence`: a mixture over
alternatives on one side of the limit, a function of two sums. The streams of all guardrails are folded in one call, because a dozen small
ones cost more than a large one.

Sources: Robbins 1970; Shin, Ramdas & Rinaldo 2023; Hoeffding 1963 (fractions can only lower the evidence).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.checked import Floats, checked_counts, invalid
from allocator.core.evidence import (
    BLOCK,
    LOG_ZERO,
    Bounded,
    Restarts,
    Schedule,
    checked_block,
    checked_cap,
    checked_state,
    frozen,
    no_restarts,
    normalised,
)
from allocator.core.kernels import evidence as kernels


@dataclass(frozen=True, slots=True, eq=False)
class RateGrid:
    """Alternatives to a limit on a rate, on one side of it; made by `rate_grid` or `safety_grid`.

    Arrays are float64 (G,), read-only. log_weight: ln of the mixture weights, which sum to 1. log_event: what one event
    adds to the log likelihood ratio of each alternative. log_clear: what one exposure without an event adds. Where an
    alternative rules an outcome out, the entry is LOG_ZERO, so that a zero count times it is zero.
    """

    limit: float
    above: bool
    log_weight: Floats
    log_event: Floats
    log_clear: Floats


@lru_cache(maxsize=4096)
def rate_grid(limit: float) -> RateGrid:
    """Alternatives above a limit: about 0.4 apart in log odds, from 1.1 times the odds of the limit, and the rate 1.

    limit: in [1e-9, 1 - 1e-6], the largest harmless rate of events. The atom at rate 1, weight 0.1, freezes a dead
    candidate after two failures, with restarts three (limit 1 %, alpha 0.001). Rates under 1.05 times the limit are left alone by design.
    Raises InvalidArgument outside the range.
    """
    limit = _limit(limit)
    tail = min(1e-3, (1.0 - limit) / 10.0)
    furthest = math.log1p(-tail) - math.log(tail) - math.log(limit) + math.log1p(-limit)
    nearest = math.log(1.1)
    points = max(31, 1 + math.ceil((furthest - nearest) / 0.4))
    return _grid_of_odds(limit, np.linspace(nearest, furthest, points), above=True)


@lru_cache(maxsize=4096)
def safety_grid(limit: float) -> RateGrid:
    """Alternatives below a limit, 31 of them down to a hundredth of its odds, and the rate 0: proof of safety.

    limit: in [1e-9, 1 - 1e-6]. Raises InvalidArgument outside the range.
    """
    limit = _limit(limit)
    return _grid_of_odds(limit, -np.linspace(math.log(1.1), math.log(100.0), 31), above=False)


def log_evidence(grid: RateGrid, exposed: ArrayLike, events: ArrayLike) -> float | Floats:
    """Evidence against the grid's limit from cumulative counts, without restarts.

    exposed, events: numbers or arrays (say, totals after each prefix), broadcast; 0 <= events <= exposed <= 2^53,
    fractions allowed (they can only lower the evidence: Hoeffding 1963). Returns the natural log, of the same shape.
    Exact to 1e-6 at 1e9 exposures. Raises InvalidArgument for other counts.
    """
    exposed, events = checked_counts(exposed, events)
    out = np.empty(exposed.size)
    kernels.rate_evidence(grid.log_weight, grid.log_event, grid.log_clear, exposed.ravel(), events.ravel(), out)
    return float(out[0]) if exposed.ndim == 0 else out.reshape(exposed.shape)


def log_safety(grid: RateGrid, exposed: ArrayLike, events: ArrayLike) -> float | Floats:
    """Evidence that the rate is below the limit; certify at ln(1/alpha). As log_evidence, on a `safety_grid`.

    Count matured buckets only: here a pending event would count in the candidate's favour. Start the counts anew at
    each ramp stage. For a ratio to the incumbent use log_label_evidence on label_grid(ratio, above=False).
    Raises InvalidArgument when given a grid of `rate_grid`, which proves the opposite.
    """
    if grid.above:
        raise invalid("grid", "came from rate_grid; proof of safety takes safety_grid(limit)")
    return log_evidence(grid, exposed, events)


def log_safety_many(grids: Sequence[RateGrid], exposed: ArrayLike, events: ArrayLike) -> Floats:
    """As log_safety, for S streams at once: a `safety_grid`, exposures and events each. Returns float64 (S,)."""
    exposed, events = checked_counts(exposed, events)
    if exposed.shape != (len(grids),) or any(grid.above for grid in grids):
        raise invalid("grids", f"are {len(grids)} for {exposed.shape} counts; expected a safety_grid for each")
    out = np.empty(len(grids))
    kernels.rate_evidence_each(*_padded(tuple(grids)), exposed, events, out)
    return out


def fold(
    grid: RateGrid,
    state: Restarts,
    exposed: ArrayLike,
    events: ArrayLike,
    schedule: Schedule | Bounded = Schedule.WEIGHTED,
    block: float = BLOCK,
    cap: float | None = None,
) -> tuple[Restarts, Floats]:
    """Fold buckets, in decision order, into one stream; see fold_many. exposed, events: (B,).

    Returns the new state and the natural log of the evidence after each bucket, float64 (B,). Fold settled buckets once
    and keep the state; fold the open ones from that state at every refresh and throw the state away.
    """
    exposed, events = np.atleast_1d(exposed)[np.newaxis], np.atleast_1d(events)[np.newaxis]
    states, evidence = fold_many([grid], [state], exposed, events, schedule, block, [cap])
    return states[0], evidence[0]


def fold_many(
    grids: Sequence[RateGrid],
    states: Sequence[Restarts],
    exposed: ArrayLike,
    events: ArrayLike,
    schedule: Schedule | Bounded = Schedule.WEIGHTED,
    block: float = BLOCK,
    caps: Sequence[float | None] | None = None,
) -> tuple[tuple[Restarts, ...], Floats]:
    """Fold buckets, in decision order, into S streams at once.

    grids, states: S of each. exposed, events: (S, B), as in log_evidence, per bucket. A block is a union of consecutive
    buckets of one stream, closed by the bucket that brings it to `block` exposures; a restart is added at its first
    exposure. caps: a stream's largest log likelihood ratio from one bucket, see persistence_cap; None: no cap.
    Returns S new states and the natural log of the evidence after each bucket, float64 (S, B); it is 0 before the first
    exposure. Compare WEIGHTED and Bounded with freeze_threshold, the other two with detector_threshold.
    Raises InvalidArgument. Source: Shin, Ramdas & Rinaldo 2023.
    """
    (exposed, events, log_terms, started, in_block), out = _folded(grids, states, exposed, events, schedule, block, caps)
    after = zip(
        states,
        log_terms.tolist(),
        started.tolist(),
        in_block.tolist(),
        exposed.sum(axis=1).tolist(),
        events.sum(axis=1).tolist(),
        strict=True,
    )
    return tuple(
        Restarts(tuple(terms[: len(state.log_terms)]), restarts, open_, state.outcomes + outcomes, state.events + bad)
        for state, terms, restarts, open_, outcomes, bad in after
    ), out


def look_many(
    grids: Sequence[RateGrid],
    breach: Sequence[Restarts],
    detector: Sequence[Restarts],
    exposed: ArrayLike,
    events: ArrayLike,
    block: float = BLOCK,
    caps: Sequence[float | None] | None = None,
) -> Floats:
    """The evidence of S streams after these buckets, float64 (2, S): WEIGHTED from `breach`, SHIRYAEV_ROBERTS from `detector`.

    For open buckets, which are folded anew at each look: no new state is made. exposed, events: (S, B), at least one bucket. caps: of the
    WEIGHTED evidence. Otherwise as fold_many.
    """
    exposed, events = checked_counts(exposed, events)
    if exposed.ndim != 2 or not exposed.shape[1] or not 1 <= len(grids) == len(breach) == len(detector) == exposed.shape[0]:
        raise invalid("exposed", f"has shape {exposed.shape}; expected (streams, buckets), a grid and two states each")
    log_weight, log_event, log_clear = _padded(tuple(grids))
    ceiling = np.array([checked_cap(cap) for cap in caps or [None] * len(grids)], dtype=np.float64)
    out = np.empty((2, len(grids)))
    kernels.look_rates(
        log_weight,
        log_event,
        log_clear,
        *_packed(grids, breach, log_weight.shape[1]),
        *_packed(grids, detector, log_weight.shape[1]),
        exposed,
        events,
        checked_block(block),
        ceiling,
        out,
    )
    return out


# ---------------------------------------------------------------------------------------------------- helpers


def warm_up() -> None:
    """Compile, or load from the cache, every kernel this file uses, with the types it uses."""
    grid = rate_grid(0.01)
    log_evidence(grid, 1, 0)
    fold(grid, no_restarts(grid), [1.0], [0.0])
    look_many([grid], [no_restarts(grid)], [no_restarts(grid)], [[1.0]], [[0.0]])
    log_safety_many([safety_grid(0.01)], [1.0], [0.0])


def _packed(grids: Sequence[RateGrid], states: Sequence[Restarts], points: int) -> tuple[Floats, Floats]:
    """log_terms (S, G), padded; restarts started and outcomes in the open block (S, 2)."""
    for grid, state in zip(grids, states, strict=True):
        checked_state(grid, state)
    log_terms = np.full((len(states), points), LOG_ZERO)
    for row, state in enumerate(states):
        if state.started:
            log_terms[row, : len(state.log_terms)] = state.log_terms
    return log_terms, np.array([(state.started, state.in_block) for state in states], dtype=np.float64)


def _folded(
    grids: Sequence[RateGrid],
    states: Sequence[Restarts],
    exposed: ArrayLike,
    events: ArrayLike,
    schedule: Schedule | Bounded,
    block: float,
    caps: Sequence[float | None] | None,
) -> tuple[tuple[Floats, Floats, Floats, NDArray[np.int64], Floats], Floats]:
    """Checked counts (S, B), advanced log_terms (S, G), started and in_block (S,); and the evidence after each bucket (S, B)."""
    exposed, events = checked_counts(exposed, events)
    if exposed.ndim != 2 or not 1 <= len(grids) == len(states) == exposed.shape[0]:
        raise invalid("exposed", f"has shape {exposed.shape}; expected (streams, buckets), a grid and a state each")
    caps = [None] * len(grids) if caps is None else caps
    if len(caps) != len(grids):
        raise invalid("caps", f"has {len(caps)} entries; expected one for each of {len(grids)} streams")
    log_weight, log_event, log_clear = _padded(tuple(grids))
    points = log_weight.shape[1]
    for grid, state in zip(grids, states, strict=True):
        checked_state(grid, state)
    log_terms = np.array([state.log_terms + (LOG_ZERO,) * (points - len(state.log_terms)) for state in states])
    started = np.array([state.started for state in states], dtype=np.int64)
    in_block = np.array([state.in_block for state in states], dtype=np.float64)
    ceiling = np.array([checked_cap(cap) for cap in caps], dtype=np.float64)
    out = np.empty(exposed.shape)
    kernels.fold_rates(
        log_weight,
        log_event,
        log_clear,
        log_terms,
        started,
        in_block,
        exposed,
        events,
        schedule.value,
        checked_block(block),
        ceiling,
        out,
    )
    return (exposed, events, log_terms, started, in_block), out


def _limit(limit: float) -> float:
    if not 1e-9 <= limit <= 1.0 - 1e-6:
        raise invalid("limit", f"is {limit}; expected a rate in [1e-9, 1 - 1e-6]")
    return float(limit)


@lru_cache(maxsize=256)
def _padded(grids: tuple[RateGrid, ...]) -> tuple[Floats, Floats, Floats]:
    """log_weight, log_event, log_clear of S grids as (S, G); points that a shorter grid lacks have no weight."""
    shape = len(grids), max(grid.log_weight.size for grid in grids)
    log_weight, log_event, log_clear = np.full(shape, LOG_ZERO), np.zeros(shape), np.zeros(shape)
    for s, grid in enumerate(grids):
        size = grid.log_weight.size
        log_weight[s, :size], log_event[s, :size] = grid.log_weight, grid.log_event
        log_clear[s, :size] = grid.log_clear
    return log_weight, log_event, log_clear


def _grid_of_odds(limit: float, log_odds_ratio: Floats, above: bool) -> RateGrid:
    """Alternatives with log odds logit(limit) + log_odds_ratio, 0.9 among them, and 0.1 on the rate 1 or 0."""
    log_weight = normalised(-np.abs(log_odds_ratio) / 2.0, 0.9)
    # (1 - q) / (1 - p0) = 1 / (1 + p0 (odds ratio - 1)): no cancellation at either end of the range of limits
    log_clear = -np.log1p(limit * np.expm1(log_odds_ratio))
    atom_event, atom_clear = (-math.log(limit), LOG_ZERO) if above else (LOG_ZERO, -math.log1p(-limit))
    return RateGrid(
        limit=limit,
        above=above,
        log_weight=frozen(np.append(log_weight, math.log(0.1))),
        log_event=frozen(np.append(log_odds_ratio + log_clear, atom_event)),
        log_clear=frozen(np.append(log_clear, atom_clear)),
    )
