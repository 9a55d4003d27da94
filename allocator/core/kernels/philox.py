"""Random numbers by counter: Philox4x32-10, four 32-bit words from a counter of four words and a key of two.

There is no state: a number is a function of where it is used, so it does not depend on the order of draws, on threads,
or on how many numbers something else took. Words live in uint64, because the product of two of them needs that many
bits. Known answers are in the tests.

Source: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import numpy as np
from numba import njit

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # multipliers of the rounds
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # what each round adds to the key
_LOW, _32, _20, _ONE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(20), np.uint64(1)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds. All arguments and the four results are uint64 below 2^32."""
    for _ in range(10):
        one, two = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (two >> _32) ^ c1 ^ k0, two & _LOW, (one >> _32) ^ c3 ^ k1, one & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def to_unit(high, low):
    """Two words to a float64 strictly between 0 and 1: the middle of one of 2^52 equal parts, exactly.

    With 53 bits the last of the middles would round to 1.
    """
    return (np.float64((high << _20) | (low >> np.uint64(12))) + 0.5) * 2.0**-52


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def uniforms(seed, stream, replication, purpose, t0, out):
    """Fill `out` with the numbers at t0, t0 + 1, ...; all arguments uint64. Numbers 2 j and 2 j + 1 share block j."""
    for i in range(out.size):
        t = t0 + np.uint64(i)
        if i == 0 or t & _ONE == 0:
            block = t >> _ONE
            a, b, c, d = philox4x32(replication, block & _LOW, block >> _32, purpose, seed, stream)
        out[i] = to_unit(c, d) if t & _ONE else to_unit(a, b)
