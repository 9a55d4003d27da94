"""When a bucket of decision time is closed for good, and how many closed ones become one.

In: the spec and the time. Out: the last bucket that no outcome can reach any more; the number of buckets that settle as one.
"""

from __future__ import annotations

import math

from allocator.core.experiment import Experiment

GRACE_SECONDS = 2.0  # after the window, for outcomes that were in time but are still under way
HISTORY_BUCKETS = 32  # settled buckets for each half-life: a later one than that changes a weight by 2 %


def closing(experiment: Experiment, now: float) -> int:
    """The last bucket that no outcome can reach any more."""
    return math.floor((now - experiment.reward.window_seconds - GRACE_SECONDS) / experiment.bucket_width_seconds) - 1


def coarsening(experiment: Experiment) -> int:
    """How many buckets become one when they settle; 0 when nothing is forgotten by age and all may become one."""
    half_life = experiment.policy.half_life_seconds
    if half_life is None:
        return 0
    return max(1, math.floor(half_life / HISTORY_BUCKETS / experiment.bucket_width_seconds))
