"""Several streams of evidence together: their average, which of them are to blame, which to list.

In: the natural logs of several e-processes, however they depend on one another. Out: one e-process, or which streams may be named with a
bounded chance of naming any wrongly (closed testing), or listed with a bounded share listed wrongly (e-BH).

Sources: Vovk & Wang 2021; Wang & Ramdas 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.checked import Floats, checked_alpha, checked_amounts, invalid


def log_average(log_evidence: ArrayLike, weights: ArrayLike | None = None) -> float | Floats:
    """ln of the weighted average of e-processes: evidence against "every stream is fine", whatever their dependence.

    log_evidence: (H,) or (H, B), natural logs. weights: (H,), nonnegative, rescaled to sum to 1; None: equal. Rejects
    whenever weighted Bonferroni does. Returns a float, or (B,). Raises InvalidArgument. Source: Vovk & Wang 2021.
    """
    log_evidence = _checked_log("log_evidence", log_evidence)
    weights = np.ones(log_evidence.shape[0]) if weights is None else checked_amounts("weights", weights)
    if weights.shape != log_evidence.shape[:1] or not weights.sum() > 0.0:
        raise invalid("weights", f"has shape {weights.shape}; expected one for each of {log_evidence.shape[0]} streams")
    used = weights > 0.0
    log_weight = np.log(weights[used] / weights.sum())
    terms = log_evidence[used] + log_weight.reshape(-1, *[1] * (log_evidence.ndim - 1))
    total = np.logaddexp.reduce(terms, axis=0)
    return float(total) if total.ndim == 0 else total


def stream_weights(segmented: Sequence[bool]) -> Floats:
    """Weights for log_average: half to the overall streams, half to those of single segments, equal within a half.

    segmented: for each stream, whether it looks at one segment only. When all are of one kind, they share everything.
    """
    kind = np.asarray(segmented, dtype=bool)
    if kind.all() or not kind.any():
        return np.full(kind.size, 1.0 / max(kind.size, 1))
    return np.where(kind, 0.5 / kind.sum(), 0.5 / (~kind).sum())


def to_blame(log_evidence: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """Which streams may be named with a chance of at most alpha of naming any wrongly; closed testing by averages.

    log_evidence: (H,), natural logs. A stream is named when every set of streams that holds it has an average of at
    least 1/alpha; for that it is enough to try it with its 1, 2, ... weakest fellows. Names all that e-Holm names, and
    more. Returns bool (H,). Raises InvalidArgument. Source: Vovk & Wang 2021, Algorithm 1.
    """
    log_evidence = _checked_log("log_evidence", log_evidence)
    order = np.argsort(log_evidence, kind="stable")
    ascending = log_evidence[order]
    named = np.zeros(log_evidence.size, dtype=bool)
    for rank, stream in enumerate(order):
        sums = np.logaddexp.accumulate(np.concatenate([ascending[rank : rank + 1], ascending[:rank]]))
        named[stream] = np.min(sums - np.log(np.arange(1, rank + 2))) >= -math.log(checked_alpha(alpha))
    return named


def discoveries(log_evidence: ArrayLike, alpha: float) -> NDArray[np.bool_]:
    """Which streams may be listed with an expected share of at most alpha listed wrongly (e-BH), under any dependence.

    log_evidence: (H,), natural logs. Lists the k* largest, k* the largest k whose k-th largest e-value is at least
    H / (alpha k). Returns bool (H,). Raises InvalidArgument. Source: Wang & Ramdas 2022.
    """
    log_evidence = _checked_log("log_evidence", log_evidence)
    count = log_evidence.size
    order = np.argsort(-log_evidence, kind="stable")
    needed = math.log(max(count, 1)) - math.log(checked_alpha(alpha)) - np.log(np.arange(1, count + 1))
    enough = np.flatnonzero(log_evidence[order] >= needed)
    listed = np.zeros(count, dtype=bool)
    listed[order[: enough[-1] + 1 if enough.size else 0]] = True
    return listed


def _checked_log(name: str, value: ArrayLike) -> Floats:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim == 0 or array.size == 0 or not np.all(np.isfinite(array)):
        raise invalid(name, f"is {array}; expected at least one finite number")
    return array
