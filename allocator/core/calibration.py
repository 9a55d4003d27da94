"""Is the data worth trusting: calibrated predictions, a reward stream that has not drifted, segments treated alike.

In: predicted probabilities with their outcomes; counts per bucket; counts per segment. Out: evidence, intervals and
verdicts that may be looked at continuously. Everything here informs or blocks a ramp; nothing here freezes.

The idea. Every test is one of the kernels of `evidence` in another dress. A calibrated probability p plays the part of
the propensity in the label kernel, every row counts, and the alternatives multiply its odds by a constant (level) or
raise them to a power (slope). A drift is what one of two detectors sees, one above a reference interval and one below.
The ratio of segments is bounded by the confidence sequence of each.

Tried and dropped: gating on the expected calibration error (its plug-in estimate is biased upwards by the noise of each
bin, so a calibrated model fails when it has few outcomes; it is reported next to what noise alone would give).

Sources: Arnold, Henzi & Ziegel 2023; Shin, Ramdas & Rinaldo 2023; Chugg, Cortes-Gomez, Wilder & Ramdas 2023.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from allocator.core.checked import Floats, checked_alpha, checked_amounts, checked_counts, invalid
from allocator.core.confidence import confidence_sequence
from allocator.core.evidence import BLOCK, Restarts, Schedule, no_restarts
from allocator.core.evidence_labels import LabelGrid, LabelSums, label_sums, log_label_evidence, two_sided_label_grid
from allocator.core.evidence_rates import RateGrid, fold_many, rate_grid, safety_grid
from allocator.core.evidence_streams import log_average

# ---------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSums:
    """Sums over rows; add them in any order. level: of the label kernel. slope: float64 (32,), ln likelihood ratios."""

    level: LabelSums
    slope: Floats

    def __add__(self, other: CalibrationSums) -> CalibrationSums:
        return CalibrationSums(self.level + other.level, self.slope + other.slope)


@dataclass(frozen=True, slots=True)
class CalibrationEvidence:
    """Natural logs. level: odds off by a constant factor. slope: too bold or too timid. either: their average."""

    level: float
    slope: float
    either: float


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Predictions against outcomes in bins of equal size; arrays float64 (bins,).

    total: rows. predicted: mean probability. observed: mean outcome. low, high: its interval, all bins together at
    1 - alpha. error: mean |predicted - observed| over rows (expected calibration error). error_if_calibrated: what
    noise alone would make of it; a model is worse than calibrated only beyond that.
    """

    total: Floats
    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    error: float
    error_if_calibrated: float


def calibration_grid() -> LabelGrid:
    """Factors 1.1 to 10 on both sides of 1: multipliers of the odds for the level, exponents of them for the slope."""
    return two_sided_label_grid(1.1, 10.0)


def calibration_sums(probability: ArrayLike, outcome: ArrayLike) -> CalibrationSums:
    """Additive sums for log_calibration.

    probability: (N,) in [1e-12, 1 - 1e-12], predicted before each outcome; clip what is nearer to certain.
    outcome: (N,) in [0, 1]. Raises InvalidArgument.
    """
    probability, outcome = _predictions(probability, outcome)
    level = label_sums(calibration_grid(), outcome, 1.0 - outcome, probability)
    log_odds = np.log(probability) - np.log1p(-probability)
    log_multiplier = np.multiply.outer(log_odds, np.expm1(calibration_grid().log_ratio))  # (s - 1) logit p
    slope = outcome @ log_multiplier - np.log1p(probability[:, np.newaxis] * np.expm1(log_multiplier)).sum(axis=0)
    return CalibrationSums(level, slope)


def log_calibration(sums: CalibrationSums) -> CalibrationEvidence:
    """Evidence that predictions are not calibrated: e-processes under "each outcome's mean is its prediction"."""
    grid = calibration_grid()
    level = float(log_label_evidence(grid, sums.level))
    slope = float(np.logaddexp.reduce(grid.log_weight + sums.slope))
    return CalibrationEvidence(level, slope, either=float(log_average([level, slope])))


def reliability(probability: ArrayLike, outcome: ArrayLike, alpha: float = 0.05, bins: int = 15) -> Reliability:
    """The reliability diagram, in bins of equal size by probability; intervals at alpha / bins each.

    probability: (N,) in [1e-12, 1 - 1e-12]; outcome: (N,) in [0, 1]; N >= bins >= 1. The intervals hold for bins whose
    borders do not depend on outcomes, at each size; for continuous looks use log_calibration. Raises InvalidArgument.
    """
    probability, outcome = _predictions(probability, outcome)
    if not 1 <= bins <= probability.size:
        raise invalid("bins", f"is {bins}; expected 1 to {probability.size}, the number of rows")
    parts = np.array_split(np.argsort(probability, kind="stable"), bins)
    total = np.array([part.size for part in parts], dtype=np.float64)
    count = np.array([outcome[part].sum() for part in parts])
    expected = np.array([probability[part].sum() for part in parts])
    variance = np.array([(probability[part] * (1.0 - probability[part])).sum() for part in parts])
    low, high = confidence_sequence(np.minimum(count, total), total, checked_alpha(alpha) / bins)
    return Reliability(
        total=total,
        predicted=expected / total,
        observed=count / total,
        low=low,
        high=high,
        error=float(np.abs(expected - count).sum() / total.sum()),
        error_if_calibrated=float(np.sqrt(2.0 / math.pi * variance).sum() / total.sum()),
    )


# ---------------------------------------------------------------------------------------------------------- drift


@dataclass(frozen=True, slots=True, eq=False)
class DriftReference:
    """Grids above and below the interval in which a rate was found during a baseline period."""

    up: RateGrid
    down: RateGrid


@dataclass(frozen=True, slots=True)
class Drift:
    """State of the two detectors between folds, plain numbers."""

    up: Restarts
    down: Restarts


def drift_reference(low: float, high: float) -> DriftReference:
    """A reference from the confidence sequence of a baseline period: 0 <= low <= high <= 1. Raises InvalidArgument."""
    if not 0.0 <= low <= high <= 1.0:
        raise invalid("low", f"is {low}, high {high}; expected 0 <= low <= high <= 1")
    # an interval that reaches 0 or 1 leaves no room on that side; the nearest limit of a grid is as good as none
    up, down = (min(max(edge, 1e-9), 1.0 - 1e-6) for edge in (high, low))
    return DriftReference(up=rate_grid(up), down=safety_grid(down))


def no_drift(reference: DriftReference) -> Drift:
    """The state of detectors that have seen nothing."""
    return Drift(no_restarts(reference.up), no_restarts(reference.down))


def fold_drift(
    reference: DriftReference, state: Drift, exposed: ArrayLike, events: ArrayLike, block: float = BLOCK
) -> tuple[Drift, Floats]:
    """Fold matured buckets, in decision order, into both detectors (Shiryaev-Roberts).

    exposed, events: (B,), as evidence.fold; matured, because a pending event counts as a fall of the rate. Returns the
    state and float64 (2, B): natural log of the evidence for a rise and for a fall after each bucket. The stream has
    drifted when evidence.log_average of the two reaches evidence.detector_threshold(run_length).
    Raises InvalidArgument.
    """
    exposed, events = checked_counts(np.atleast_1d(exposed), np.atleast_1d(events))
    (up, down), evidence = fold_many(
        [reference.up, reference.down],
        [state.up, state.down],
        np.stack([exposed, exposed]),
        np.stack([events, events]),
        Schedule.SHIRYAEV_ROBERTS,
        block,
    )
    return Drift(up, down), evidence


# ------------------------------------------------------------------------------------------------------- fairness


class Parity(enum.Enum):
    """What the intervals say about a segment's rate against the best other segment's."""

    PASSED = "PASSED"
    FLAGGED = "FLAGGED"
    UNDECIDED = "UNDECIDED"


@dataclass(frozen=True, slots=True, eq=False)
class DisparateImpact:
    """ratio: lowest rate / highest rate. low, high: float64 (S,), bounds of each segment's rate over the best other's.

    parity: the verdict of each segment. overall: FLAGGED if any is, PASSED if all are.
    """

    ratio: float
    low: Floats
    high: Floats
    parity: tuple[Parity, ...]
    overall: Parity


def disparate_impact(count: ArrayLike, total: ArrayLike, alpha: float = 0.05, limit: float = 0.8) -> DisparateImpact:
    """Does every segment receive the good outcome at a rate of at least `limit` times that of the best segment?

    count, total: (S,), S >= 2, good outcomes and outcomes of one arm per segment: compare segments within an arm, since
    weights that differ by segment make pooled means incomparable. alpha: for all segments at all times together.
    limit: in (0, 1); 0.8 is the four-fifths rule. Raises InvalidArgument.
    """
    total, count = checked_counts(total, count, ("total", "count"))
    if total.ndim != 1 or total.size < 2:
        raise invalid("total", f"has shape {total.shape}; expected (S,) with at least 2 segments")
    if not 0.0 < limit < 1.0:
        raise invalid("limit", f"is {limit}; expected a number in (0, 1)")
    least, most = confidence_sequence(count, total, checked_alpha(alpha) / total.size)
    with np.errstate(divide="ignore"):  # x / 0 is inf: the best other segment may have rate 0
        low, high = least / _best_other(most), most / _best_other(least)
    parity = tuple(
        Parity.FLAGGED if above < limit else Parity.PASSED if below >= limit else Parity.UNDECIDED
        for below, above in zip(low, high, strict=True)
    )
    rate = count / np.maximum(total, 1.0)
    overall = next((kind for kind in (Parity.FLAGGED, Parity.UNDECIDED) if kind in parity), Parity.PASSED)
    return DisparateImpact(float(rate.min() / rate.max()) if rate.max() > 0.0 else 1.0, low, high, parity, overall)


# -------------------------------------------------------------------------------------------------------- helpers


def _best_other(value: Floats) -> Floats:
    """For each entry, the largest of the others."""
    order = np.argsort(value)
    best = np.full(value.size, value[order[-1]])
    best[order[-1]] = value[order[-2]]
    return best


def _predictions(probability: ArrayLike, outcome: ArrayLike) -> tuple[Floats, Floats]:
    probability, outcome = checked_amounts("probability", probability), checked_amounts("outcome", outcome)
    if probability.ndim != 1 or probability.shape != outcome.shape:
        raise invalid("outcome", f"has shape {outcome.shape}; expected (N,), that of probability, {probability.shape}")
    if not np.all((probability >= 1e-12) & (probability <= 1.0 - 1e-12)):
        raise invalid("probability", f"spans {probability.min()} to {probability.max()}; expected [1e-12, 1 - 1e-12]")
    if not np.all(outcome <= 1.0):
        raise invalid("outcome", f"holds {outcome.max()}; expected numbers in [0, 1]")
    return probability, outcome
