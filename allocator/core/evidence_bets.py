"""Evidence by constant bets: fractional losses against a limit, and the difference of two arms' rates against a margin.

In: losses in [0, 1], or events of both arms by the candidate's chance. Out: sums that add in any order, and the natural log of the
evidence they hold. Each alternative is a straight line in the loss, never negative and of mean at most 1 under the null. On fractions
bets are sharper than counts, and need one sum for each alternative where counts need two in all. Called from Python; guardrails use counts.

Source: Waudby-Smith & Ramdas 2024, bets held constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from allocator.core.checked import Floats, checked_amounts, checked_counts, invalid
from allocator.core.evidence import BLOCK, LOG_ZERO, Bounded, Restarts, Schedule, fold_increments, frozen, normalised
from allocator.core.evidence_rates import RateGrid

_ROWS_AT_ONCE = 65_536  # of bet_sums, to bound its memory


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
    return fold_increments(grid, state, exposed, events, increments, schedule, block, cap)


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
    return DifferenceGrid(float(margin), frozen(normalised(np.zeros(32), 1.0)), frozen(stake))


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
