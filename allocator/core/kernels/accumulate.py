"""The loop that adds a batch of outcomes to the integer sums of each arm.

In: arm indices, rewards and the range allowed. Out: what the batch adds, int64 (arms, 4), and the first outcome that had to be refused.
The caller adds the two arrays only if none was: a batch counts whole or not at all.

A reward becomes an integer of micro-units, rounded half to even. Its square, up to 1e24, is split into multiples of a million and the
rest. For that the value is written as thousands and units (q * 1000 + r), whose products all fit 64 bits.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FINE, BAD_ARM, BAD_REWARD, TOO_LARGE = 0, 1, 2, 3


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def accumulate(arms, arm, reward, low, high):
    """Sums of the batch, what is wrong with it (FINE if nothing), and the index of the first outcome for which it is."""
    sums = np.zeros((arms, 4), np.int64)
    for i in range(arm.size):
        a = arm[i]
        if a < 0 or a >= arms:
            return sums, BAD_ARM, i
        value = reward[i]
        if not low <= value <= high:  # false for NaN, too
            return sums, BAD_REWARD, i
        micro = np.int64(np.rint(value * 1e6))
        size = abs(micro)
        if size == 1_000_000 or size == 0:  # a success or a failure, by far the most frequent
            sums[a, 0] += 1
            sums[a, 1] += micro
            sums[a, 2] += size
            continue
        q = size // 1000
        r = size - q * 1000
        cross = 2000 * q * r + r * r
        carry = cross // 1_000_000
        sums[a, 0] += 1
        sums[a, 1] += micro
        sums[a, 2] += q * q + carry
        sums[a, 3] += cross - carry * 1_000_000
        if sums[a, 2] < 0:  # every summand is below 2^60, so that the first overflow shows as a sign
            return sums, TOO_LARGE, i
    return sums, FINE, -1
