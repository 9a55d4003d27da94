"""What happened in one replication: numbers and a few curves. Plain values, so that they travel between processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One replication over time, at P points. seconds: (P,), since the start. weights: (P, arms), slots as served / 65,536; of a policy of
    the literature, which has no slots, shares of the requests since the last point. exposures: (P, arms), decisions so far. evidence:
    (P, arms), of the breach that is nearest, as a share of what freezes. regret: (P,). stage: (P,).
    """

    seconds: Floats
    weights: Floats
    exposures: Floats
    evidence: Floats
    regret: Floats
    stage: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Replication:
    """What happened in one replication. Seconds since the start; NaN: it did not happen.

    regret: pseudo-regret, sum of (best mean - mean of the arm served), in rewards. gain: mean rewards above what the incumbent alone would
    have had. requests: decisions. exposures: (arms,). excess: (arms,), how far a candidate's exposures were ahead of the sum of its
    caps, at most; at the incumbent's place, all candidates'. stopped: (arms,), when a candidate was frozen or drained; exposed_at_stop:
    (arms,), its decisions until then. breaches: actions of the guardrails, in order. stages: (stages,), when each was entered. prob_best:
    (arms,), at the end. churn: sum over all plans of the share of slots that changed hands. covered: (arms,), 1 where the always-valid 95 %
    interval of the arm's mean reward held it at every point of the series, NaN in a world that changes; it is made of what the planner
    counts, so a success whose report is lost where `reward.missing` is 0 is a failure to it; width: (arms,) of that interval at the
    end. least_propensity: smallest share above 0 that any arm was served with. accepted, late, missing, duplicates: outcomes. state:
    at the end. waiting: what the next stage still waits for at the end.
    """

    policy: str
    requests: int
    regret: float
    gain: float
    exposures: NDArray[np.int64]
    excess: Floats
    stopped: Floats
    exposed_at_stop: Floats
    breaches: tuple[str, ...]
    stages: Floats
    prob_best: Floats
    churn: float
    covered: Floats
    width: Floats
    least_propensity: float
    accepted: int
    late: int
    missing: int
    duplicates: int
    state: str
    waiting: tuple[str, ...]
    series: Series
