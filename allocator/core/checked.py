"""Numbers that callers hand to the statistics, as float64 arrays; a wrong one raises InvalidArgument by the name of its argument.

In: what a caller passed, and what it is called. Out: the same as arrays of float64, or an error that says what came and what is allowed.
NaN never passes: every check asks for what is allowed, none for what is forbidden.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.errors import InvalidArgument, Violation

Floats = NDArray[np.float64]
LARGEST_COUNT = 2.0**53  # above it a float64 no longer counts by ones


def checked_counts(whole: ArrayLike, part: ArrayLike, names: tuple[str, str] = ("exposed", "events")) -> tuple[Floats, Floats]:
    """Both as float64 arrays broadcast to one shape; InvalidArgument, by name, unless 0 <= part <= whole <= 2^53."""
    whole, part = checked_amounts(names[0], whole), checked_amounts(names[1], part)
    try:
        whole, part = np.broadcast_arrays(whole, part)
    except ValueError as exc:
        raise invalid(names[1], f"has shape {part.shape}; expected that of {names[0]}, {whole.shape}") from exc
    if not np.all(part <= whole):
        first = np.argmax(part > whole)
        raise invalid(names[1], f"holds {part.flat[first]} where {names[0]} is {whole.flat[first]}; it cannot be more")
    return whole.copy(), part.copy()


def checked_amounts(name: str, value: ArrayLike) -> Floats:
    """As a float64 array; InvalidArgument unless every entry lies in [0, 2^53]."""
    array = np.asarray(value, dtype=np.float64)
    allowed = (array >= 0.0) & (array <= LARGEST_COUNT)
    if not allowed.all():
        raise invalid(name, f"holds {array.flat[np.argmin(allowed)]}; expected numbers in [0, 2^53]")
    return array


def checked_alpha(alpha: float) -> float:
    if not 0.0 < alpha < 1.0:
        raise invalid("alpha", f"is {alpha}; expected a number in (0, 1)")
    return float(alpha)


def invalid(argument: str, message: str) -> InvalidArgument:
    return InvalidArgument(violations=[Violation(argument, message)])
