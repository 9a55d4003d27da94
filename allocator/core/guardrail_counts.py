"""What guardrails look at: decisions and bad outcomes per bucket of decision time, and the names of the streams they belong to.

In: nothing but the spec. Out: `Counts`, which a tally fills and a review reads, and `Labels`, the bad outcomes of a relative guardrail
with the weights in force when each was decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from allocator.core.experiment import Experiment, Guardrail, Per

ALL = -1  # the segment of a stream over all segments together


@dataclass(frozen=True, slots=True)
class Labels:
    """Bad outcomes of one relative guardrail: which arm had them, and the weights in force when it was decided.

    bucket, arm, segment: (rows,) int64. weight: (rows,) bad outcomes, may be fractional. slots: (rows, arms) of 65,536.
    """

    bucket: NDArray[np.int64]
    arm: NDArray[np.int64]
    segment: NDArray[np.int64]
    weight: NDArray[np.float64]
    slots: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Counts:
    """What each bucket of decision time holds, for the guardrails of one activation.

    buckets: (B,) ascending. exposed: (B, arms, segments), decisions that count in guardrails. reported, events: (B, guardrails,
    arms, segments), outcomes that came and the bad ones among them (fractions allowed). labels: by index of relative guardrails.
    """

    buckets: NDArray[np.int64]
    exposed: NDArray[np.float64]
    reported: NDArray[np.float64]
    events: NDArray[np.float64]
    labels: Mapping[int, Labels] = field(default_factory=dict)


def key_of(guardrail: Guardrail, activation: int) -> str:
    """Name of the guardrail's stream in an activation: evidence starts again with each."""
    return f"{guardrail.stream}#{activation}"


def segments_of(experiment: Experiment, guardrail: Guardrail) -> tuple[int, ...]:
    """The segments that a guardrail judges apart: (-1,) for all together."""
    return tuple(range(len(experiment.segments) + 1)) if guardrail.per is Per.SEGMENT else (ALL,)
