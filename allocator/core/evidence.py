"""Evidence that stays valid however often one looks: the state of a stream, its restarts and its thresholds.

In: log likelihood ratios per bucket of decision time, of each alternative on a grid. Out: the natural log of an e-process. Under the null
("the rate is within its limit", whatever the past was) the probability that it ever reaches 1/alpha is at most alpha (Ville 1939), so one
may look after every outcome for ever.

The idea. An alternative rate q above the limit p0 gives each outcome X in [0, 1] a factor (q/p0)^X ((1-q)/(1-p0))^(1-X)
whose mean is at most 1 for every true rate up to p0. A product of such factors is an e-process, and so is a mixture of
products over a fixed grid of alternatives. Each product is a function of two sums, exposures and events, so replicas
add counts in any order and obtain the same evidence. Only alternatives on one side of the limit take part: a mixture
over both sides would also fire on a candidate that is better. Five things are built on that:

- restarts, here: a long good history is a debt that evidence has to pay back first. A weighted sum of processes, one started
  at each block of outcomes, sees a late degradation and is still an e-process (WEIGHTED: for `freeze`). With all
  weights 1 it is a detector with a bounded average run length (SHIRYAEV_ROBERTS, CUSUM: for `warn` only, since a
  detector with a finite run length raises a false alarm with certainty in the end: Dandapanthula & Ramdas 2025);
- rates against a limit, and the mirror image, proof of safety: `evidence_rates`;
- the candidate's rate against the incumbent's, by the label kernel: `evidence_labels`;
- constant bets, sharper for fractions, and a margin on a difference: `evidence_bets`;
- the streams of one candidate together, and which of them are to blame: `evidence_streams`.

Order. Count an exposure in the bucket of its *decision*, and an event in the bucket of the decision it belongs to,
whenever it arrives: evidence is nondecreasing in events, so events still to come only hold it back. Counting by arrival
would freeze a healthy arm, because failures report first. Proof of safety is the opposite: give it matured buckets.

Tried and dropped: a truncated Beta prior (its tail probabilities underflow at 1e9 counts, and it has no additive state
to restart); bets that learn from the data (they need one global order of outcomes, replicas have none); numerators
estimated from the same sums (not an e-process).

Sources: Robbins 1970; Shin, Ramdas & Rinaldo 2023 (e-detectors).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from allocator.core.checked import LARGEST_COUNT, Floats, checked_alpha, invalid
from allocator.core.kernels import evidence as kernels

BLOCK = 50  # outcomes that close a block
LOG_ZERO = kernels.LOG_ZERO  # stands for ln 0 wherever a state or a grid holds one


class Grid(Protocol):
    """A grid of alternatives, of any kind, as restarts see it."""

    @property
    def log_weight(self) -> Floats:
        """ln of the mixture weights, which sum to 1; float64 (G,)."""


class Schedule(enum.Enum):
    """What each restart weighs, and hence what reaching a threshold means. See also `Bounded`."""

    WEIGHTED = kernels.WEIGHTED  # weights sum to one: the probability of ever reaching 1/alpha is at most alpha
    SHIRYAEV_ROBERTS = kernels.SHIRYAEV_ROBERTS  # every weight is one: the average run length is bounded
    CUSUM = kernels.CUSUM  # the largest instead of the sum: as SHIRYAEV_ROBERTS, somewhat slower after a quiet time


@dataclass(frozen=True, slots=True)
class Bounded:
    """A schedule for a campaign of declared length: each of the first `restarts` blocks weighs the same, later ones
    start nothing.

    The weights sum to one, as under WEIGHTED: the probability of ever reaching 1/alpha is at most alpha. A change in
    any block costs ln(restarts) nats, whereas WEIGHTED charges an early one less and a late one more. Raises
    InvalidArgument outside [1, 1e9].
    """

    restarts: int

    def __post_init__(self) -> None:
        if type(self.restarts) is not int or not 1 <= self.restarts <= 1_000_000_000:
            raise invalid("restarts", f"is {self.restarts!r}; expected a whole number in [1, 1e9]")

    @property
    def value(self) -> int:
        """As the kernels take it: below 0."""
        return -self.restarts


@dataclass(frozen=True, slots=True)
class Restarts:
    """The state of one stream between folds; plain numbers, all finite, so that it can be stored as a document.

    log_terms: for each alternative, ln of the weighted sum of its restarted likelihood ratios (LOG_ZERO: none yet).
    started: restarts so far. in_block: outcomes in the open block, 0 when the next outcome opens one.
    outcomes, events: totals since the first fold.
    """

    log_terms: tuple[float, ...]
    started: int = 0
    in_block: float = 0.0
    outcomes: float = 0.0
    events: float = 0.0


def no_restarts(grid: Grid) -> Restarts:
    """The state of a stream that has seen nothing."""
    return Restarts(log_terms=(LOG_ZERO,) * grid.log_weight.size)


def log_level(grid: Grid, state: Restarts) -> float:
    """Evidence that a state holds: what fold returned after the last bucket; 0 before the first exposure."""
    checked_state(grid, state)
    if state.started == 0:
        return 0.0
    return float(np.logaddexp.reduce(grid.log_weight + np.array(state.log_terms)))


def fold_increments(
    grid: Grid,
    state: Restarts,
    exposed: Floats,
    events: Floats,
    increments: Floats,
    schedule: Schedule | Bounded,
    block: float,
    cap: float | None,
) -> tuple[Restarts, Floats]:
    """The state after buckets of log likelihood ratios (B, G), and the evidence after each. exposed, events: (B,)."""
    checked_state(grid, state)
    log_terms, out = np.array(state.log_terms), np.empty(exposed.size)
    started, in_block = kernels.fold_increments(
        grid.log_weight,
        log_terms,
        state.started,
        state.in_block,
        exposed,
        increments,
        schedule.value,
        checked_block(block),
        checked_cap(cap),
        True,
        out,
    )
    new = Restarts(
        log_terms=tuple(log_terms.tolist()),
        started=int(started),
        in_block=float(in_block),
        outcomes=state.outcomes + float(exposed.sum()),
        events=state.events + float(events.sum()),
    )
    return new, out


def freeze_threshold(alpha: float, activation: int = 1) -> float:
    """ln(1/alpha_a) for activation a = 1, 2, ... of one candidate: what WEIGHTED evidence has to reach.

    alpha in (0, 1): chance of a false freeze over the candidate's whole life. alpha_a = alpha 6 / (pi a)^2 sums to
    alpha, so that a candidate may be resumed any number of times. Raises InvalidArgument.
    """
    alpha = checked_alpha(alpha)
    if not activation >= 1:
        raise invalid("activation", f"is {activation}; expected a whole number from 1")
    return math.log(math.pi**2 / 6.0) + 2.0 * math.log(activation) - math.log(alpha)


def detector_threshold(run_length: float, block: float = BLOCK) -> float:
    """What SHIRYAEV_ROBERTS or CUSUM evidence has to reach to warn falsely once in run_length outcomes, on average.

    run_length: outcomes of the stream, positive. The detector counts in blocks, hence ln(1 + run_length / block).
    Raises InvalidArgument.
    """
    if not 0.0 < run_length <= LARGEST_COUNT:
        raise invalid("run_length", f"is {run_length}; expected a positive number of outcomes")
    return math.log1p(run_length / checked_block(block))


def persistence_cap(alpha: float, buckets: int) -> float | None:
    """Largest log likelihood ratio of one bucket such that at least `buckets` of them have to agree; None for one.

    alpha: as in the threshold that will be compared. min(L, c) is concave and nondecreasing in L, so a capped process
    is still a supermartingale; with c = alpha^(-1 / (buckets - 1/2)), evidence of at most 1 cannot reach 1/alpha in
    buckets - 1 of them. Pair a capped guardrail with an uncapped one at a limit that must never be crossed.
    Raises InvalidArgument.
    """
    alpha = checked_alpha(alpha)
    if not buckets >= 1:
        raise invalid("buckets", f"is {buckets}; expected a whole number from 1")
    return None if buckets == 1 else -math.log(alpha) / (buckets - 0.5)


# ---------------------------------------------------------------------------------------------------- helpers


def checked_state(grid: Grid, state: Restarts) -> None:
    if len(state.log_terms) != grid.log_weight.size:
        raise invalid("state", f"has {len(state.log_terms)} terms; its grid has {grid.log_weight.size}")
    if not (state.started >= 0 and state.in_block >= 0.0 and math.isfinite(sum(state.log_terms))):
        raise invalid("state", f"is {state}; expected finite terms and counts from 0")


def checked_block(block: float) -> float:
    if not 0.0 < block <= LARGEST_COUNT:
        raise invalid("block", f"is {block}; expected a positive number of outcomes")
    return float(block)


def checked_cap(cap: float | None) -> float:
    if cap is None:
        return math.inf
    if not cap > 0.0:
        raise invalid("cap", f"is {cap}; expected a positive number of nats, or None")
    return float(cap)


def normalised(log_weight: Floats, mass: float) -> Floats:
    return log_weight - np.logaddexp.reduce(log_weight) + math.log(mass)


def frozen(array: Floats) -> Floats:
    array.flags.writeable = False
    return array
