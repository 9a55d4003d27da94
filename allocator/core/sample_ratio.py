"""Sample ratio mismatch: did each arm receive the share of decisions that its propensity promised?

In: decisions per arm, or joined outcomes per arm, with the propensities in force. Out: the natural log of an e-process
against "as promised"; reaching ln(1/ALPHA) at any look is an alarm that blocks the ramp and brands every report, since
whatever made arms lose different rows also biases their means.

The idea. Under a fixed design the counts are multinomial, and a Dirichlet mixture around the design is the alternative.
Under an adaptive one the chance changes from decision to decision; then every decision is an event of the label kernel
(`evidence`), the null ratio is 1, and the alternatives are odds of 1/2 to 2 on both sides. Run it once on decisions
(faulty assignment) and once more on decisions that have their outcome (one arm loses outcomes more often). Sums of the
second kind are additive: add them over cells, buckets and replicas, and evaluate whenever.

Tried and dropped: a chi-squared test at each look (rejects a correct split with certainty in the end); the Dirichlet
form with averaged propensities (not a martingale when the propensities respond to the counts).

Sources: Lindon & Malek 2022; ter Schure et al. 2024.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from allocator.core.evidence import (
    Floats,
    LabelGrid,
    LabelSums,
    checked_amounts,
    invalid,
    label_sums,
    log_label_evidence,
    two_sided_label_grid,
)

ALPHA = 1e-4  # level of the alarm
CONCENTRATION = 100.0  # of the Dirichlet mixture: how near the design its alternatives lie


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
