"""Evidence of each guardrail that stays valid however often one looks.

In: counts of outcomes per bucket of decision time, and a limit on their rate (or on the ratio to the incumbent's rate).
Out: the natural log of an e-process. Under the null ("the rate is within its limit", whatever the past was) the
probability that it ever reaches 1/alpha is at most alpha (Ville 1939), so one may look after every outcome for ever.

The idea. An alternative rate q above the limit p0 gives each outcome X in [0, 1] a factor (q/p0)^X ((1-q)/(1-p0))^(1-X)
whose mean is at most 1 for every true rate up to p0. A product of such factors is an e-process, and so is a mixture of
products over a fixed grid of alternatives. Each product is a function of two sums, exposures and events, so replicas
add counts in any order and obtain the same evidence. Only alternatives on one side of the limit take part: a mixture
over both sides would also fire on a candidate that is better. Five things are built on that:

- restarts: a long good history is a debt that evidence has to pay back first. A weighted sum of processes, one started
  at each block of outcomes, sees a late degradation and is still an e-process (WEIGHTED: for `freeze`). With all
  weights 1 it is a detector with a bounded average run length (SHIRYAEV_ROBERTS, CUSUM: for `warn` only, since a
  detector with a finite run length raises a false alarm with certainty in the end: Dandapanthula & Ramdas 2025);
- the mirror image, alternatives below the limit: proof of safety, needed to widen exposure;
- the label kernel: among rows with an event, is the candidate's share larger than its propensity explains?
- constant bets: the same alternatives as straight lines in X, sharper for fractions, additive one sum per alternative;
  and with the same means a margin on the difference to the incumbent;
- combination of the streams of one candidate, and which of them are to blame.

Order. Count an exposure in the bucket of its *decision*, and an event in the bucket of the decision it belongs to,
whenever it arrives: evidence is nondecreasing in events, so events still to come only hold it back. Counting by arrival
would freeze a healthy arm, because failures report first. Proof of safety is the opposite: give it matured buckets.

Tried and dropped: a truncated Beta prior (its tail probabilities underflow at 1e9 counts, and it has no additive state
to restart); bets that learn from the data (they need one global order of outcomes, replicas have none); numerators
estimated from the same sums (not an e-process).

Sources: Robbins 1970; Waudby-Smith & Ramdas 2024 (constant bets); Shin, Ramdas & Rinaldo 2023 (e-detectors); ter Schure
et al. 2024 (the label kernel is a ratio of Cox partial likelihoods); Vovk & Wang 2021; Wang & Ramdas 2022.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.kernels import evidence as kernels
from allocator.errors import InvalidArgument, Violation

Floats = NDArray[np.float64]

BLOCK = 50  # outcomes that close a block
LARGEST_COUNT = 2.0**53  # above it a float64 no longer counts by ones
_ROWS_AT_ONCE = 65_536  # of bet_sums, to bound its memory
LOG_ZERO = kernels.LOG_ZERO  # stands for ln 0 wherever a state or a grid holds one


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


@dataclass(frozen=True, slots=True, eq=False)
class LabelGrid:
    """Alternatives to a ratio of event rates, candidate to incumbent; made by `label_grid` or `sample_ratio_grid`.

    log_weight: ln of the mixture weights. log_ratio: ln of alternative / null ratio. Both float64 (G,), read-only.
    """

    ratio: float
    log_weight: Floats
    log_ratio: Floats


@dataclass(frozen=True, slots=True, eq=False)
class DifferenceGrid:
    """Bets against "candidate's event rate - incumbent's <= margin"; made by `difference_grid`.

    log_weight: ln of the mixture weights. stake: each bet as a share, in (0, 1), of the largest that cannot be ruined.
    Both float64 (G,), read-only.
    """

    margin: float
    log_weight: Floats
    stake: Floats


@dataclass(frozen=True, slots=True, eq=False)
class BetSums:
    """Sums over outcomes, for one RateGrid or DifferenceGrid; add them in any order.

    outcomes, events: how many, and the sum of their losses. log_factors: float64 (G,), ln of the product of each bet's
    factors.
    """

    outcomes: float
    events: float
    log_factors: Floats

    def __add__(self, other: BetSums) -> BetSums:
        factors = np.maximum(self.log_factors + other.log_factors, LOG_ZERO)  # ruined twice is ruined
        return BetSums(self.outcomes + other.outcomes, self.events + other.events, factors)


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


# ---------------------------------------------------------------------------------------------- a limit on a rate


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


def bet_sums(grid: RateGrid, losses: ArrayLike, exposed: float | None = None) -> BetSums:
    """Sums of constant bets on losses that are fractions; sharper than log_evidence, which needs only their total.

    losses: (N,) in [0, 1]. exposed: outcomes there will be, at least N; those still to come count as 0. None: N. The
    factor of a loss X is 1 + lam (X - limit), with lam = (q - limit) / (limit (1 - limit)) for each alternative q: the
    straight line through the two factors that log_evidence gives to 0 and 1, hence equal to it there and above it
    between. These sums are floats: order of addition changes their last bits. Raises InvalidArgument. Source:
    Waudby-Smith & Ramdas 2024, bets held constant.
    """
    losses = checked_amounts("losses", losses)
    if losses.ndim != 1 or np.any(losses > 1.0):
        raise invalid("losses", f"has shape {losses.shape}, largest {losses.max(initial=0.0)}; expected (N,) in [0, 1]")
    number = float(losses.size)
    exposed = number if exposed is None else float(checked_amounts("exposed", exposed))
    if exposed < number:
        raise invalid("exposed", f"is {exposed:g} for {number:g} losses; it cannot be less")
    with np.errstate(divide="ignore", over="ignore"):  # ln 0, and many times LOG_ZERO
        factors = (exposed - number) * grid.log_clear
        for part in np.array_split(losses, math.ceil(number / _ROWS_AT_ONCE) or 1):
            low = np.add.outer(np.log1p(-part), grid.log_clear)
            factors = factors + np.logaddexp(low, np.add.outer(np.log(part), grid.log_event)).sum(axis=0)
    return BetSums(exposed, float(losses.sum()), np.maximum(factors, LOG_ZERO))


def log_bet_evidence(grid: RateGrid | DifferenceGrid, sums: BetSums) -> float:
    """Evidence against the grid's limit (or margin) from sums of constant bets, without restarts: natural log."""
    return float(np.logaddexp.reduce(grid.log_weight + sums.log_factors))


def fold_bets(
    grid: RateGrid | DifferenceGrid,
    state: Restarts,
    buckets: Sequence[BetSums],
    schedule: Schedule | Bounded = Schedule.WEIGHTED,
    block: float = BLOCK,
    cap: float | None = None,
) -> tuple[Restarts, Floats]:
    """Fold buckets, in decision order, of constant bets; as fold. Raises InvalidArgument."""
    exposed, events = checked_counts([bucket.outcomes for bucket in buckets], [bucket.events for bucket in buckets])
    increments = np.array([bucket.log_factors for bucket in buckets], dtype=np.float64)
    if increments.shape != (exposed.size, grid.log_weight.size):
        raise invalid("buckets", f"has shape {increments.shape}; expected at least one bucket of {grid.log_weight.size} factors each")
    return _folded_increments(grid, state, exposed, events, increments, schedule, block, cap)


# ------------------------------------------------------------------------------------- buckets, restarts, thresholds


def no_restarts(grid: RateGrid | LabelGrid | DifferenceGrid) -> Restarts:
    """The state of a stream that has seen nothing."""
    return Restarts(log_terms=(LOG_ZERO,) * grid.log_weight.size)


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
    ceiling = np.array([_checked_cap(cap) for cap in caps or [None] * len(grids)], dtype=np.float64)
    out = np.empty((2, len(grids)))
    kernels.look_rates(
        log_weight,
        log_event,
        log_clear,
        *_packed(grids, breach, log_weight.shape[1]),
        *_packed(grids, detector, log_weight.shape[1]),
        exposed,
        events,
        _checked_block(block),
        ceiling,
        out,
    )
    return out


def log_safety_many(grids: Sequence[RateGrid], exposed: ArrayLike, events: ArrayLike) -> Floats:
    """As log_safety, for S streams at once: a `safety_grid`, exposures and events each. Returns float64 (S,)."""
    exposed, events = checked_counts(exposed, events)
    if exposed.shape != (len(grids),) or any(grid.above for grid in grids):
        raise invalid("grids", f"are {len(grids)} for {exposed.shape} counts; expected a safety_grid for each")
    out = np.empty(len(grids))
    kernels.rate_evidence_each(*_padded(tuple(grids)), exposed, events, out)
    return out


def log_level(grid: RateGrid | LabelGrid | DifferenceGrid, state: Restarts) -> float:
    """Evidence that a state holds: what fold returned after the last bucket; 0 before the first exposure."""
    _checked_state(grid, state)
    if state.started == 0:
        return 0.0
    return float(np.logaddexp.reduce(grid.log_weight + np.array(state.log_terms)))


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
    return math.log1p(run_length / _checked_block(block))


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


# --------------------------------------------------------------------------------------------- the label kernel


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
    return _folded_increments(grid, state, exposed, events, increments, schedule, block, cap)


def stack(buckets: Sequence[LabelSums]) -> LabelSums:
    """The sums of B buckets, one after another, as one LabelSums for fold_labels."""
    return LabelSums(
        np.array([bucket.candidate_events for bucket in buckets], dtype=np.float64),
        np.array([bucket.events for bucket in buckets], dtype=np.float64),
        np.array([bucket.log_denominators for bucket in buckets], dtype=np.float64),
    )


# ------------------------------------------------------------------------------------- a margin on a difference


@lru_cache(maxsize=4096)
def difference_grid(margin: float) -> DifferenceGrid:
    """Bets against "candidate's event rate <= incumbent's + margin".

    margin: in [-0.99, 0.99]. 32 stakes, a factor of about 1.35 apart from 1e-4 up to 0.99, of equal weight: the best
    stake is about the excess times the candidate's share over the event rate, so that small shares need small stakes.
    For proof of safety, "rate < incumbent's + margin", exchange the arms: difference_grid(-margin), events exchanged, 1
    - pi. Raises InvalidArgument.
    """
    if not -0.99 <= margin <= 0.99:
        raise invalid("margin", f"is {margin}; expected a difference of rates in [-0.99, 0.99]")
    stake = np.exp(np.linspace(math.log(1e-4), math.log(0.99), 32))
    return DifferenceGrid(float(margin), _frozen(_normalised(np.zeros(32), 1.0)), _frozen(stake))


def difference_sums(
    grid: DifferenceGrid, candidate_events: ArrayLike, incumbent_events: ArrayLike, exposed: ArrayLike, pi: ArrayLike
) -> BetSums:
    """Sums over cells of rows that share a propensity; a cell may also be a single row.

    candidate_events, incumbent_events: (C,), events of each arm; fractions of an event add up and can only lower the
    evidence. exposed: (C,), rows of both arms, at least their events. pi: (C,) strictly between 0 and 1, the
    candidate's chance among the two in force at those rows: rows where a cap or a freeze decided do not belong here.

    Each row bets on Z = Y (A / pi - (1 - A) / (1 - pi)), whose mean given the past is the difference of the rates, by
    the factor 1 + lam (Z - margin), lam = stake / (1 / (1 - pi) + margin): pi is known before the row, so the bet may
    depend on it, and no row can make the factor negative. Valid for any propensities and drifting rates; unlike the
    label kernel it counts rows without event, and an incident common to both arms costs it evidence. Raises
    InvalidArgument. Source: Waudby-Smith & Ramdas 2024.
    """
    candidate = checked_amounts("candidate_events", candidate_events)
    incumbent = checked_amounts("incumbent_events", incumbent_events)
    exposed, pi = checked_amounts("exposed", exposed), np.asarray(pi, dtype=np.float64)
    candidate, incumbent, exposed, pi = np.broadcast_arrays(*np.atleast_1d(candidate, incumbent, exposed, pi))
    if pi.ndim != 1 or not np.all((pi > 0.0) & (pi < 1.0)):
        raise invalid("pi", f"is {pi}; expected a number strictly between 0 and 1 for each cell")
    if np.any(candidate + incumbent > exposed):
        raise invalid("exposed", f"is {exposed}; expected at least the events of both arms in each cell")
    bet = np.multiply.outer(1.0 / (1.0 / (1.0 - pi) + grid.margin), grid.stake)  # (C, G)
    clear = np.log1p(-bet * grid.margin)
    up = np.log1p(bet * (1.0 / pi - grid.margin)[:, np.newaxis])
    down = np.log1p(-grid.stake)  # 1 - lam (1 / (1 - pi) + margin)
    factors = candidate @ up + incumbent.sum() * down + (exposed - candidate - incumbent) @ clear
    return BetSums(float(exposed.sum()), float(candidate.sum() + incumbent.sum()), factors)


# ------------------------------------------------------------------------------------------- several streams


def log_average(log_evidence: ArrayLike, weights: ArrayLike | None = None) -> float | Floats:
    """ln of the weighted average of e-processes: evidence against "every stream is fine", whatever their dependence.

    log_evidence: (H,) or (H, B), natural logs. weights: (H,), nonnegative, rescaled to sum to 1; None: equal. Rejects
    whenever weighted Bonferroni does. Returns a float, or (B,). Raises InvalidArgument. Source: Vovk & Wang 2021.
    """
    log_evidence = _checked_log("log_evidence", log_evidence)
    weights = np.ones(log_evidence.shape[0]) if weights is None else checked_amounts("weights", weights)
    if weights.shape != log_evidence.shape[:1] or not weights.sum() > 0.0:
        raise invalid("weights", f"has shape {weights.shape}; expected one for each of {log_evidence.shape[0]} streams")
    used = weights > 0.0
    log_weight = np.log(weights[used] / weights.sum())
    terms = log_evidence[used] + log_weight.reshape(-1, *[1] * (log_evidence.ndim - 1))
    total = np.logaddexp.reduce(terms, axis=0)
    return float(total) if total.ndim == 0 else total


def stream_weights(segmented: Sequence[bool]) -> Floats:
    """Weights for log_average: half to the overall streams, half to those of single segments, equal within a half.

    segmented: for each stream, whether it looks at one segment only. When all are of one kind, they share everything.
    """
    kind = np.asarray(segmented, dtype=bool)
    if kind.all() or not kind.any():
        return np.full(kind.size, 1.0 / max(kind.size, 1))
    return np.where(kind, 0.5 / kind.sum(), 0.5 / (~kind).sum())


def to_blame(log_evidence: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """Which streams may be named with a chance of at most alpha of naming any wrongly; closed testing by averages.

    log_evidence: (H,), natural logs. A stream is named when every set of streams that holds it has an average of at
    least 1/alpha; for that it is enough to try it with its 1, 2, ... weakest fellows. Names all that e-Holm names, and
    more. Returns bool (H,). Raises InvalidArgument. Source: Vovk & Wang 2021, Algorithm 1.
    """
    log_evidence = _checked_log("log_evidence", log_evidence)
    order = np.argsort(log_evidence, kind="stable")
    ascending = log_evidence[order]
    named = np.zeros(log_evidence.size, dtype=bool)
    for rank, stream in enumerate(order):
        sums = np.logaddexp.accumulate(np.concatenate([ascending[rank : rank + 1], ascending[:rank]]))
        named[stream] = np.min(sums - np.log(np.arange(1, rank + 2))) >= -math.log(checked_alpha(alpha))
    return named


def discoveries(log_evidence: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """Which streams may be listed with an expected share of at most alpha listed wrongly (e-BH), under any dependence.

    log_evidence: (H,), natural logs. Lists the k* largest, k* the largest k whose k-th largest e-value is at least
    H / (alpha k). Returns bool (H,). Raises InvalidArgument. Source: Wang & Ramdas 2022.
    """
    log_evidence = _checked_log("log_evidence", log_evidence)
    count = log_evidence.size
    order = np.argsort(-log_evidence, kind="stable")
    needed = math.log(max(count, 1)) - math.log(checked_alpha(alpha)) - np.log(np.arange(1, count + 1))
    enough = np.flatnonzero(log_evidence[order] >= needed)
    listed = np.zeros(count, dtype=bool)
    listed[order[: enough[-1] + 1 if enough.size else 0]] = True
    return listed


# ---------------------------------------------------------------------------------------------------- helpers


def warm_up() -> None:
    """Compile, or load from the cache, every kernel this file uses, with the types it uses."""
    grid, labels = rate_grid(0.01), label_grid(1.0)
    log_evidence(grid, 1, 0)
    fold(grid, no_restarts(grid), [1.0], [0.0])
    look_many([grid], [no_restarts(grid)], [no_restarts(grid)], [[1.0]], [[0.0]])
    log_safety_many([safety_grid(0.01)], [1.0], [0.0])
    fold_labels(labels, no_restarts(labels), [1.0], stack([label_sums(labels, 1.0, 0.0, 0.5)]))


def _packed(grids: Sequence[RateGrid], states: Sequence[Restarts], points: int) -> tuple[Floats, Floats]:
    """log_terms (S, G), padded; restarts started and outcomes in the open block (S, 2)."""
    for grid, state in zip(grids, states, strict=True):
        _checked_state(grid, state)
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
        _checked_state(grid, state)
    log_terms = np.array([state.log_terms + (LOG_ZERO,) * (points - len(state.log_terms)) for state in states])
    started = np.array([state.started for state in states], dtype=np.int64)
    in_block = np.array([state.in_block for state in states], dtype=np.float64)
    ceiling = np.array([_checked_cap(cap) for cap in caps], dtype=np.float64)
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
        _checked_block(block),
        ceiling,
        out,
    )
    return (exposed, events, log_terms, started, in_block), out


def _folded_increments(
    grid: RateGrid | LabelGrid | DifferenceGrid,
    state: Restarts,
    exposed: Floats,
    events: Floats,
    increments: Floats,
    schedule: Schedule | Bounded,
    block: float,
    cap: float | None,
) -> tuple[Restarts, Floats]:
    """The state after buckets of log likelihood ratios (B, G), and the evidence after each. exposed, events: (B,)."""
    _checked_state(grid, state)
    log_terms, out = np.array(state.log_terms), np.empty(exposed.size)
    started, in_block = kernels.fold_increments(
        grid.log_weight,
        log_terms,
        state.started,
        state.in_block,
        exposed,
        increments,
        schedule.value,
        _checked_block(block),
        _checked_cap(cap),
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


def checked_counts(whole: ArrayLike, part: ArrayLike, names: tuple[str, str] = ("exposed", "events")) -> tuple[Floats, Floats]:
    """Both as float64 arrays broadcast to one shape; InvalidArgument, by name, unless 0 <= part <= whole <= 2^53."""
    whole, part = checked_amounts(names[0], whole), checked_amounts(names[1], part)
    try:
        whole, part = np.broadcast_arrays(whole, part)
    except ValueError as exc:
        raise invalid(names[1], f"has shape {part.shape}; expected that of {names[0]}, {whole.shape}") from exc
    if not np.all(part <= whole):
        first = np.argmax(part > whole)
        raise invalid(names[1], f"holds {part.flat[first]} where {names[0]} is {whole.flat[first]}; it cannot be more")
    return whole.copy(), part.copy()


def checked_amounts(name: str, value: ArrayLike) -> Floats:
    """As a float64 array; InvalidArgument unless every entry lies in [0, 2^53]."""
    array = np.asarray(value, dtype=np.float64)
    allowed = (array >= 0.0) & (array <= LARGEST_COUNT)
    if not allowed.all():
        raise invalid(name, f"holds {array.flat[np.argmin(allowed)]}; expected numbers in [0, 2^53]")
    return array


def checked_alpha(alpha: float) -> float:
    if not 0.0 < alpha < 1.0:
        raise invalid("alpha", f"is {alpha}; expected a number in (0, 1)")
    return float(alpha)


def _checked_log(name: str, value: ArrayLike) -> Floats:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim == 0 or array.size == 0 or not np.all(np.isfinite(array)):
        raise invalid(name, f"is {array}; expected at least one finite number")
    return array


def _checked_state(grid: RateGrid | LabelGrid | DifferenceGrid, state: Restarts) -> None:
    if len(state.log_terms) != grid.log_weight.size:
        raise invalid("state", f"has {len(state.log_terms)} terms; its grid has {grid.log_weight.size}")
    if not (state.started >= 0 and state.in_block >= 0.0 and math.isfinite(sum(state.log_terms))):
        raise invalid("state", f"is {state}; expected finite terms and counts from 0")


def _checked_block(block: float) -> float:
    if not 0.0 < block <= LARGEST_COUNT:
        raise invalid("block", f"is {block}; expected a positive number of outcomes")
    return float(block)


def _checked_cap(cap: float | None) -> float:
    if cap is None:
        return math.inf
    if not cap > 0.0:
        raise invalid("cap", f"is {cap}; expected a positive number of nats, or None")
    return float(cap)


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
    log_weight = _normalised(-np.abs(log_odds_ratio) / 2.0, 0.9)
    # (1 - q) / (1 - p0) = 1 / (1 + p0 (odds ratio - 1)): no cancellation at either end of the range of limits
    log_clear = -np.log1p(limit * np.expm1(log_odds_ratio))
    atom_event, atom_clear = (-math.log(limit), LOG_ZERO) if above else (LOG_ZERO, -math.log1p(-limit))
    return RateGrid(
        limit=limit,
        above=above,
        log_weight=_frozen(np.append(log_weight, math.log(0.1))),
        log_event=_frozen(np.append(log_odds_ratio + log_clear, atom_event)),
        log_clear=_frozen(np.append(log_clear, atom_clear)),
    )


def _label_grid(ratio: float, log_ratio: Floats, log_weight: Floats) -> LabelGrid:
    return LabelGrid(ratio, log_weight=_frozen(_normalised(log_weight, 1.0)), log_ratio=_frozen(log_ratio))


def _normalised(log_weight: Floats, mass: float) -> Floats:
    return log_weight - np.logaddexp.reduce(log_weight) + math.log(mass)


def _frozen(array: Floats) -> Floats:
    array.flags.writeable = False
    return array


def invalid(argument: str, message: str) -> InvalidArgument:
    return InvalidArgument(violations=[Violation(argument, message)])
