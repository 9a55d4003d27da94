"""Sample ratio mismatch: did each arm receive the share of decisions that its propensity promised?

In: decisions per arm, or joined outcomes per arm, with the propensities in force. Out: the natural log of an e-process
against "as promised"; reaching ln(1/ALPHA) at any look is an alarm that blocks the ramp and brands every report, since
whatever made arms lose different rows also biases their means.

The idea. Under a fixed design the counts are multinomial, and a Dirichlet mixture around the design is the alternative.
Under an adaptive one the chance changes from decision to decision; then every decision is an event of the label kernel
(`evidence`), the null ratio is 1, and the alternatives are odds of 1/2 to 2 on both sides. Run it once on decisions
(faulty assignment) and once more on decisions that have their outcome (one arm loses outcomes more often). Sums of the
second kind are additive: add them over cells, buckets and replicas, and evaluate whenever.

Those need a cell for each propensity. The planner watches with less: `Draws`, three integers for each arm. With O the
times that an arm was drawn, E the sum of its chances p and V the sum of p (1 - p), the evidence is the average over a
few lambda, of both signs, of exp(lambda (O - E) - psi(lambda) V), where psi(lambda) = exp(|lambda|) - 1 - |lambda|.
Given the past, a draw exceeds its chance by at most 1, falls short of it by at most 1, and has variance p (1 - p), so by
Bennett's inequality it multiplies each term by a factor of expectation at most 1, however p was chosen from the past.
Hence the average is a nonnegative supermartingale that starts at 1, and reaches 1/alpha with probability at most alpha
(Ville).

Sticky units draw once and then return, and no process remembers the units of another, so the same draw is counted anew
in each decider's life: after nine restarts of a server, chance would look like three times as many standard deviations.
Every life is therefore judged by itself. The j-th gets the share 1 / (j (j + 1)) of alpha: the shares sum to 1, so the
union bound holds however alike the lives are, and the hundredth still needs only 9 nats more than one alone.

Tried and dropped: a chi-squared test at each look (rejects a correct split with certainty in the end); the Dirichlet
form with averaged propensities (not a martingale when the propensities respond to the counts); disjoint samples of units
for each life (each sees too few); the average of the lives' evidence (an average of dependent ones is no martingale).

Sources: Bennett 1962; Lindon & Malek 2022; ter Schure et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from allocator.core.assignment import SLOTS
from allocator.core.checked import Floats, checked_amounts, invalid
from allocator.core.evidence_labels import LabelGrid, LabelSums, label_sums, log_label_evidence, two_sided_label_grid

ALPHA = 1e-4  # level of the alarm
CONCENTRATION = 100.0  # of the Dirichlet mixture: how near the design its alternatives lie
TILTS = np.array([sign * 2.0**-k for k in range(9) for sign in (1.0, -1.0)])  # 1/256: 0.4 % more or fewer than promised; 1: 2.7 times
PSI = np.expm1(np.abs(TILTS)) - np.abs(TILTS)


@dataclass(frozen=True, slots=True)
class Draws:
    """What was drawn in one life of a decider, exact sums, one whole number for each arm.

    drawn: how often the arm came. expected: how often it should have, x 65,536: the sum of its slots over all draws. variance: of
    `drawn`, x 65,536 squared: the sum of slots (65,536 - slots).
    """

    drawn: tuple[int, ...]
    expected: tuple[int, ...]
    variance: tuple[int, ...]


def log_draw_evidence(draws: Sequence[Draws]) -> Floats:
    """Evidence in each of `draws` that an arm was not drawn as often as its slots promised: natural logs, float64 (draws, arms).

    0 before the first draw.
    """
    over = [[(drawn * SLOTS - expected) / SLOTS for drawn, expected in zip(d.drawn, d.expected, strict=True)] for d in draws]
    variance = [[squares / SLOTS**2 for squares in d.variance] for d in draws]
    terms = np.array(over)[..., None] * TILTS - np.array(variance)[..., None] * PSI
    largest = terms.max(axis=-1)
    return largest + np.log(np.exp(terms - largest[..., None]).mean(axis=-1))


def draw_p_values(lives: Sequence[Draws], arms: int) -> Floats:
    """How surprising the draws of each arm are, over all lives, in the order in which they began: float64 (arms,), in (0, 1].

    Valid at every look. ALPHA or below is an alarm, which a correct service raises with probability at most ALPHA for each arm.
    """
    if not lives:
        return np.ones(arms)
    j = np.arange(1, len(lives) + 1)[:, None]
    most = (log_draw_evidence(lives) - np.log(j * (j + 1))).max(axis=0)
    return np.exp(-np.clip(most, 0.0, 700.0))


def sample_ratio_grid() -> LabelGrid:
    """Odds multipliers 1.05 to 2 on both sides of 1: the alternatives of the adaptive test."""
    return two_sided_label_grid(1.05, 2.0)


def sample_ratio_sums(arm_rows: ArrayLike, other_rows: ArrayLike, pi: ArrayLike) -> LabelSums:
    """Additive sums of the adaptive test, for one arm against another or against all others.

    arm_rows, other_rows: (C,), decisions (or joined outcomes) of each side in cells of one propensity. pi: (C,) in
    [0, 1], the arm's chance among the two sides at those decisions. Raises InvalidArgument, also for decisions of a
    side that had no chance: those are no mismatch but a fault.
    """
    return label_sums(sample_ratio_grid(), arm_rows, other_rows, pi)


def log_adaptive_sample_ratio(sums: LabelSums) -> float | Floats:
    """Evidence that an arm's share differs from its propensities: natural log, from sample_ratio_sums."""
    return log_label_evidence(sample_ratio_grid(), sums)


def log_fixed_sample_ratio(counts: ArrayLike, shares: ArrayLike) -> float | Floats:
    """Evidence that counts differ from a design that never changes: natural log.

    counts: (K,), or (T, K) for T looks; cumulative rows per arm. shares: (K,), positive, summing to 1: the design.
    Returns a float, or (T,). Exact to 1e-6 at 1e9 rows. Raises InvalidArgument. Source: Lindon & Malek 2022.
    """
    counts, shares = checked_amounts("counts", counts), checked_amounts("shares", shares)
    if counts.ndim not in (1, 2) or shares.ndim != 1 or counts.shape[-1] != shares.size:
        raise invalid("counts", f"has shape {counts.shape}; expected one column for each of {shares.size} shares")
    if not (np.all(shares > 0.0) and abs(shares.sum() - 1.0) <= 1e-9):
        raise invalid("shares", f"is {shares}; expected positive numbers that sum to 1")
    # ln Dirichlet-multinomial - ln multinomial; each ln Gamma(z) = (z - 1/2) ln z - z + ln(2 pi)/2 + remainder(z), and
    # the large parts are collected into z ln(z / expected z), which is small where it matters
    prior, total = CONCENTRATION * shares, counts.sum(axis=-1, keepdims=True)
    posterior, expected = prior + counts, (CONCENTRATION + total) * shares
    fit = posterior * np.log1p((counts - total * shares) / expected)
    remainders = _remainder(posterior) - 0.5 * np.log(posterior) - _log_gamma(prior)
    whole = 0.5 * np.log(CONCENTRATION + total) - _remainder(CONCENTRATION + total) + math.lgamma(CONCENTRATION)
    constant = (shares.size - 1) * 0.5 * math.log(2.0 * math.pi) + (prior * np.log(shares)).sum()
    value = (fit + remainders).sum(axis=-1) + whole[..., 0] + constant
    return float(value) if value.ndim == 0 else value


def p_value(log_evidence: ArrayLike) -> float:
    """The anytime-valid p-value after looks at these evidences: the least 1/e so far, at most 1."""
    largest = float(np.max(np.asarray(log_evidence, dtype=np.float64)))
    if math.isnan(largest):
        raise invalid("log_evidence", "holds a NaN; expected natural logs")
    return math.exp(-max(largest, 0.0))


def _remainder(z: Floats) -> Floats:
    """ln Gamma(z) - ((z - 1/2) ln z - z + ln(2 pi) / 2), for z > 0: about 1 / (12 z)."""
    large = np.maximum(z, 16.0)
    square = large * large
    series = (1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / 1680.0 / square) / square) / square) / large
    small = np.minimum(z, 16.0)
    exact = _log_gamma(small) - ((small - 0.5) * np.log(small) - small + 0.5 * math.log(2.0 * math.pi))
    return np.where(z < 16.0, exact, series)


def _log_gamma(z: Floats) -> Floats:
    return np.vectorize(math.lgamma, otypes=[np.float64])(z)
