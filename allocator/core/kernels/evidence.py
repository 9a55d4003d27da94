"""Loops behind evidence and confidence: arrays in, numbers written into arrays out.

Everything is a log-sum-exp over a grid of alternatives. A zero probability is the finite number LOG_ZERO, never an
infinity: the product of a zero count with it is zero rather than NaN, and a state that holds it can be stored as JSON.
Callers have checked every argument.

The exponential is our own because the C library's cannot be vectorised: the compiler turns this one into four lanes,
one nanosecond each instead of six. It uses nothing but IEEE sums and products. Skipping negligible summands of the C
library's instead was tried: about half as fast.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

LOG_ZERO = -1e300  # stands for ln 0: far below any sum of log likelihood ratios, yet finite

WEIGHTED, SHIRYAEV_ROBERTS, CUSUM = 0, 1, 2  # the values of evidence.Schedule
_LOG_RESTART_MASS = math.log(2.109742801236892)  # sum over j >= 1 of 1 / ((j + 1) ln(j + 1)^2)

_INVERSE_LN2 = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # ln 2 in two parts (Cody & Waite 1980)
_ROUNDER = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to an integer that then sits in the low bits
_INVERSE_FACTORIALS = tuple(1.0 / math.factorial(i) for i in range(14))


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _exp(t):
    """exp(t) for t <= 0, to 2 units in the last place; below -700 as at -700, which is 1e-304."""
    t = max(t, -700.0)
    shifted = t * _INVERSE_LN2 + _ROUNDER
    power = np.float64(shifted).view(np.int64)
    doublings = shifted - _ROUNDER
    rest = t - doublings * _LN2_HIGH - doublings * _LN2_LOW  # |rest| <= ln(2) / 2
    total = _INVERSE_FACTORIALS[13]
    total = total * rest + _INVERSE_FACTORIALS[12]
    total = total * rest + _INVERSE_FACTORIALS[11]
    total = total * rest + _INVERSE_FACTORIALS[10]
    total = total * rest + _INVERSE_FACTORIALS[9]
    total = total * rest + _INVERSE_FACTORIALS[8]
    total = total * rest + _INVERSE_FACTORIALS[7]
    total = total * rest + _INVERSE_FACTORIALS[6]
    total = total * rest + _INVERSE_FACTORIALS[5]
    total = total * rest + _INVERSE_FACTORIALS[4]
    total = total * rest + _INVERSE_FACTORIALS[3]
    total = total * rest + 0.5
    total = total * rest + 1.0
    total = total * rest + 1.0
    return total * np.int64((power + 1023) << 52).view(np.float64)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def log_restart_weight(restart, schedule):
    """ln g_j of restart j = 1, 2, ...: sums to one under WEIGHTED, is one under the two detectors.

    A schedule below 0, say -J, is that of evidence.Bounded: 1 / J for the first J restarts.
    """
    if schedule < 0:
        return -math.log(-schedule) if restart <= -schedule else LOG_ZERO
    if schedule != WEIGHTED:
        return 0.0
    log_index = math.log(restart + 1.0)
    return -_LOG_RESTART_MASS - log_index - 2.0 * math.log(log_index)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _log_sum(log_weight, level, multiple, scratch):
    """ln sum_k multiple_k exp(log_weight_k + level_k), not below LOG_ZERO."""
    size = level.size
    for k in range(size):
        scratch[k] = log_weight[k] + level[k]
    even, odd = LOG_ZERO, scratch[size - 1]
    for k in range(0, size - 1, 2):  # two running maxima, and below two running sums: one alone waits for itself
        even = scratch[k] if scratch[k] > even else even
        odd = scratch[k + 1] if scratch[k + 1] > odd else odd
    top = max(even, odd)
    if top <= LOG_ZERO:
        return LOG_ZERO
    for k in range(size):  # a loop without a sum or a call, so that it is vectorised
        scratch[k] = multiple[k] * _exp(scratch[k] - top)
    even, odd = scratch[size - 1] if size % 2 else 0.0, 0.0
    for k in range(0, size - 1, 2):
        even += scratch[k]
        odd += scratch[k + 1]
    return top + math.log(even + odd)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _open_block(level, multiple, log_restart, keep_larger):
    """Add one restart to every grid term, by sum, or by maximum for CUSUM."""
    for k in range(level.size):
        if keep_larger:
            level[k] = max(level[k], log_restart)
        else:
            ratio = _exp(-abs(level[k] - log_restart))
            above = level[k] >= log_restart
            multiple[k] = multiple[k] + ratio if above else multiple[k] * ratio + 1.0
            level[k] = level[k] if above else log_restart


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def rate_evidence(log_weight, log_event, log_clear, exposed, events, out):
    """Evidence of a stream without restarts at each pair of cumulative counts. exposed, events, out: (N,)."""
    level, multiple, scratch = np.empty(log_weight.size), np.ones(log_weight.size), np.empty(log_weight.size)
    for i in range(out.size):
        for k in range(level.size):
            level[k] = max(events[i] * log_event[k] + (exposed[i] - events[i]) * log_clear[k], LOG_ZERO)
        out[i] = _log_sum(log_weight, level, multiple, scratch)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def fold_increments(log_weight, log_terms, started, in_block, exposed, increments, schedule, block, cap, each, out):
    """Fold buckets of log likelihood ratios into one stream; returns the new (started, in_block).

    log_weight: (G,). log_terms: (G,), advanced in place. exposed: (B,), outcomes of each bucket. increments: (B, G).
    out: (B,), receives the evidence after each bucket, or with `each` off only out[-1].
    Inside, a term is multiple * exp(level): adding a restart
    then takes one exponential and no logarithm.
    """
    level, multiple, scratch = log_terms, np.ones(log_terms.size), np.empty(log_terms.size)
    evidence = _log_sum(log_weight, level, multiple, scratch) if started > 0 else 0.0
    for b in range(exposed.size):
        if exposed[b] > 0.0:
            if in_block == 0.0:
                started += 1
                _open_block(level, multiple, log_restart_weight(started, schedule), schedule == CUSUM)
            for k in range(level.size):
                level[k] = max(level[k] + min(increments[b, k], cap), LOG_ZERO)
            in_block += exposed[b]
            if in_block >= block:
                in_block = 0.0
            if each:
                evidence = _log_sum(log_weight, level, multiple, scratch)
        out[b] = evidence
    if not each and started > 0:
        out[-1] = _log_sum(log_weight, level, multiple, scratch)
    for k in range(level.size):
        level[k] += math.log(multiple[k])
    return started, in_block


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def fold_rates(log_weight, log_event, log_clear, log_terms, started, in_block, exposed, events, schedule, block, cap, out):
    """Fold buckets of counts into S streams, each with its own grid padded to G points.

    Grids and log_terms: (S, G). started: int64 (S,). in_block, cap: (S,). exposed, events, out: (S, B).
    log_terms, started and in_block are advanced in place; out receives the evidence after each bucket.
    """
    increments = np.empty((exposed.shape[1], log_weight.shape[1]))
    for s in range(log_weight.shape[0]):
        for b in range(exposed.shape[1]):
            clear = exposed[s, b] - events[s, b]
            for k in range(log_weight.shape[1]):
                increments[b, k] = events[s, b] * log_event[s, k] + clear * log_clear[s, k]
        started[s], in_block[s] = fold_increments(
            log_weight[s],
            log_terms[s],
            started[s],
            in_block[s],
            exposed[s],
            increments,
            schedule,
            block,
            cap[s],
            True,
            out[s],
        )


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def look_rates(
    log_weight, log_event, log_clear, breach_terms, breach_counts, detector_terms, detector_counts, exposed, events, block, cap, out
):
    """Evidence of S streams after these buckets under both schedules, WEIGHTED in out[0] and SHIRYAEV_ROBERTS in out[1]: (2, S).

    As fold_rates, but the likelihood ratios of a bucket are worked out once for both. Terms: (S, G), overwritten. Counts: (S, 2),
    restarts started and outcomes in the open block.
    """
    increments = np.empty((exposed.shape[1], log_weight.shape[1]))
    evidence = np.empty(exposed.shape[1])
    for s in range(log_weight.shape[0]):
        for b in range(exposed.shape[1]):
            clear = exposed[s, b] - events[s, b]
            for k in range(log_weight.shape[1]):
                increments[b, k] = events[s, b] * log_event[s, k] + clear * log_clear[s, k]
        fold_increments(
            log_weight[s], breach_terms[s], np.int64(breach_counts[s, 0]), breach_counts[s, 1],
            exposed[s], increments, WEIGHTED, block, cap[s], False, evidence,
        )  # fmt: skip
        out[0, s] = evidence[-1]
        fold_increments(
            log_weight[s], detector_terms[s], np.int64(detector_counts[s, 0]), detector_counts[s, 1],
            exposed[s], increments, SHIRYAEV_ROBERTS, block, np.inf, False, evidence,
        )  # fmt: skip
        out[1, s] = evidence[-1]


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def rate_evidence_each(log_weight, log_event, log_clear, exposed, events, out):
    """Evidence without restarts of S streams, each with its own grid padded to G points. Grids: (S, G). The rest: (S,)."""
    level, multiple, scratch = np.empty(log_weight.shape[1]), np.ones(log_weight.shape[1]), np.empty(log_weight.shape[1])
    for s in range(out.size):
        for k in range(level.size):
            level[k] = max(events[s] * log_event[s, k] + (exposed[s] - events[s]) * log_clear[s, k], LOG_ZERO)
        out[s] = _log_sum(log_weight[s], level, multiple, scratch)


# ------------------------------------------------------------------------------------------- confidence sequences


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _log_gamma_half(z):
    """ln Gamma(z + 1/2) - z ln z + z, without the cancellation: tends to ln(2 pi) / 2."""
    if z < 16.0:
        return math.lgamma(z + 0.5) - (z * math.log(z) - z if z > 0.0 else 0.0)
    square = z * z
    series = -1.0 / 24.0 + (7.0 / 2880.0 - (31.0 / 40320.0 - 127.0 / 430080.0 / square) / square) / square
    return 0.5 * math.log(2.0 * math.pi) + series / z


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _log_factorial(z):
    """ln Gamma(z + 1) - z ln z + z, without the cancellation: tends to ln(2 pi z) / 2."""
    if z < 16.0:
        return math.lgamma(z + 1.0) - (z * math.log(z) - z if z > 0.0 else 0.0)
    square = z * z
    series = 1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / 1680.0 / square) / square) / square
    return 0.5 * math.log(2.0 * math.pi * z) + series / z


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _log_shrinkage(hits, misses, budget):
    """Largest s <= 0 such that n KL(mean, mean exp(s)) >= budget, mean = hits / n > 0."""
    low, high = -745.0, 0.0  # exp(-745) is the smallest positive number
    for _ in range(110):  # to 1e-30: a bound may lie within a billionth of the mean
        s = 0.5 * (low + high)
        divergence = -hits * s
        if misses > 0.0:
            divergence -= misses * math.log1p(-math.expm1(s) * hits / misses)
        if divergence >= budget:
            low = s
        else:
            high = s
    return low


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def krichevsky_trofimov(count, total, log_threshold, low, high):
    """Bounds of the mixture confidence sequence at each pair of counts. All arrays (N,)."""
    for i in range(count.size):
        low[i], high[i] = 0.0, 1.0
        hits, misses = count[i], total[i] - count[i]
        if total[i] == 0.0:
            continue
        mixture = _log_gamma_half(hits) + _log_gamma_half(misses) - _log_factorial(total[i]) - math.log(math.pi)
        budget = log_threshold - mixture
        if hits > 0.0:
            low[i] = hits / total[i] * math.exp(_log_shrinkage(hits, misses, budget))
        if misses > 0.0:
            gap = misses / total[i] * math.expm1(_log_shrinkage(misses, hits, budget))
            high[i] = min(hits / total[i] - gap, 1.0)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _log_incomplete_gamma(z, x):
    """ln of the lower incomplete gamma function of (z, x), times x^-z e^x: the series sum x^k / (z (z+1) .. (z+k))."""
    term, total, scale, k = 1.0 / z, 1.0 / z, 0.0, 0
    while True:
        k += 1
        term *= x / (z + k)
        total += term
        if total > 1e200:
            term, total, scale = term * 1e-200, total * 1e-200, scale + 200.0 * math.log(10.0)
        if term * (z + k) < 1e-16 * total * (z + k - x):  # the rest is below term (z+k) / (z+k-x): a geometric sum
            return scale + math.log(total)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def log_gamma_exponential(s, v, rho):
    """ln of the gamma-exponential mixture supermartingale of scale 1 at deviation s >= 0 and intrinsic time v >= 0."""
    return _log_incomplete_gamma(v + rho, s + v + rho) - _log_incomplete_gamma(rho, rho)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def gamma_exponential_boundary(v, rho, log_threshold, out):
    """Deviation s at which log_gamma_exponential(s, v_i, rho) is log_threshold, to 1e-10. v, out: (N,)."""
    for i in range(v.size):
        target = log_threshold + _log_incomplete_gamma(rho, rho)
        z = v[i] + rho
        low, high = 0.0, math.sqrt(2.0 * z * log_threshold) + log_threshold + 1.0
        while _log_incomplete_gamma(z, z + high) < target:
            low, high = high, 2.0 * high
        s = high
        for _ in range(100):
            value = _log_incomplete_gamma(z, z + s)
            if abs(value - target) < 1e-10 or high - low < 1e-15 * high:
                break
            if value > target:
                high = s
            else:
                low = s
            s -= (value - target) / (1.0 - z / (z + s) + math.exp(-value) / (z + s))  # Newton, kept in the bracket
            if not low < s < high:
                s = 0.5 * (low + high)
        out[i] = s


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def augmented_scores(candidate, outcome, pi, events, clear, scores):
    """Doubly robust scores of the difference of two means, the guess of each mean made from earlier rows only.

    candidate: bool (T,). outcome, pi: float64 (T,). scores: (T,), written. events, clear: (T,), written with the
    fewest events, and non-events, that either arm has had up to and including each row.
    """
    hits, rows = np.zeros(2), np.zeros(2)
    for t in range(outcome.size):
        arm = 1 if candidate[t] else 0
        guess_candidate = (hits[1] + 0.5) / (rows[1] + 1.0)
        guess_incumbent = (hits[0] + 0.5) / (rows[0] + 1.0)
        scores[t] = guess_candidate - guess_incumbent
        if candidate[t]:
            scores[t] += (outcome[t] - guess_candidate) / pi[t]
        else:
            scores[t] -= (outcome[t] - guess_incumbent) / (1.0 - pi[t])
        hits[arm] += outcome[t]
        rows[arm] += 1.0
        events[t] = min(hits[0], hits[1])
        clear[t] = min(rows[0] - hits[0], rows[1] - hits[1])
