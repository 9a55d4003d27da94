"""Randomness that is an argument: seed, stream, replication and time in, uniform numbers out.

For simulation and rehearsal. Each number is a pure function of where it is used, so two policies face the same world
when they ask for the same places, whatever else they draw (common random numbers), replications run in any order on any
number of threads, and one step of one replication can be looked at again without the steps before it. A generator with
a state, even one seeded per replication, gives none of that once two policies draw different amounts.

The key of the generator is (seed, stream); its counter is (replication, time, purpose). Use streams for arms and the
like, and purposes for the different questions asked at one time (which unit, what outcome). Nothing here is secret:
salts and decision ids need real entropy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from allocator.core.kernels import philox
from allocator.errors import InvalidArgument, Violation

WORDS = 2**32  # seeds, streams, replications and purposes
TIMES = 2**63


def uniforms(seed: int, stream: int, replication: int, t0: int, n: int, purpose: int = 0) -> NDArray[np.float64]:
    """The numbers at times t0, t0 + 1, ..., t0 + n - 1: float64 (n,), uniform, strictly between 0 and 1.

    seed, stream, replication, purpose: whole numbers in [0, 2^32). t0: in [0, 2^63), n: at least 0, t0 + n at most
    2^63. Any two places that differ in one of the first five give independent numbers, 52 random bits each; never 0 or
    1, so that a logarithm may be taken of either end. Raises InvalidArgument. Source: Philox4x32-10, Salmon et al.
    2011.
    """
    words = {"seed": seed, "stream": stream, "replication": replication, "purpose": purpose}
    limits = {**dict.fromkeys(words, WORDS), "t0": TIMES, "n": TIMES + 1}
    violations = [
        Violation(name, f"got {value!r}; a whole number of at least 0 and below {limits[name]} is allowed")
        for name, value in {**words, "t0": t0, "n": n}.items()
        if type(value) is not int or not 0 <= value < limits[name]
    ]
    if not violations and t0 + n > TIMES:
        violations.append(Violation("n", f"got {n} from {t0} on; times below {TIMES} are allowed"))
    if violations:
        raise InvalidArgument(violations=violations)
    out = np.empty(n)
    philox.uniforms(*(np.uint64(word) for word in words.values()), np.uint64(t0), out)
    return out


def warm_up() -> None:
    """Compile, or load from the cache, the kernel, with the types it is used with."""
    uniforms(0, 0, 0, 0, 1)
