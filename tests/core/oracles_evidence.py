"""What evidence has to agree with: its definitions, written as plainly as they read."""

from __future__ import annotations

import math

import mpmath
import numpy as np

from allocator.core.evidence import Schedule


def mp_log_evidence(limit, exposed, events, above=True):
    """The mixture as its definition reads, to 40 digits."""
    with mpmath.workdps(40):
        p0, n, x = mpmath.mpf(limit), mpmath.mpf(exposed), mpmath.mpf(events)
        logit = mpmath.log(p0 / (1 - p0))
        if above:
            highest = 1 - min(mpmath.mpf("0.001"), (1 - p0) / 10)
            far = mpmath.log(highest / (1 - highest)) - logit
            points = max(31, 1 + math.ceil((far - mpmath.log(mpmath.mpf("1.1"))) / mpmath.mpf("0.4")))
        else:
            far, points = mpmath.log(100), 31
        near = mpmath.log(mpmath.mpf("1.1"))
        shifts = [near + k * (far - near) / (points - 1) for k in range(points)]
        weights = [mpmath.exp(-u / 2) for u in shifts]
        total = mpmath.mpf(0)
        for u, w in zip(shifts, weights, strict=True):
            q = 1 / (1 + mpmath.exp(-(logit + u if above else logit - u)))
            total += mpmath.mpf("0.9") * w / sum(weights) * (q / p0) ** x * ((1 - q) / (1 - p0)) ** (n - x)
        if above and n == x:
            total += mpmath.mpf("0.1") * p0 ** (-x)
        if not above and x == 0:
            total += mpmath.mpf("0.1") * (1 - p0) ** (-n)
        return float(mpmath.log(total))


def plain_fold(grid, buckets, schedule, block=50.0, cap=math.inf):
    """The definition: one likelihood ratio per restart and alternative, kept apart to the end."""
    processes, in_block, evidence = [], 0.0, []
    for exposed, events in buckets:
        if exposed > 0:
            if in_block == 0.0:
                j = len(processes) + 1
                log_weight = -math.log(2.109742801236892 * (j + 1) * math.log(j + 1) ** 2)
                start = log_weight if schedule is Schedule.WEIGHTED else 0.0
                processes.append(np.full(grid.log_weight.size, start))
            with np.errstate(over="ignore"):
                ratio = np.minimum(events * grid.log_event + (exposed - events) * grid.log_clear, cap)
            processes = [process + ratio for process in processes]
            in_block = 0.0 if in_block + exposed >= block else in_block + exposed
        if not processes:
            evidence.append(0.0)
            continue
        together = np.max if schedule is Schedule.CUSUM else np.logaddexp.reduce
        evidence.append(float(np.logaddexp.reduce(grid.log_weight + together(np.array(processes), axis=0))))
    return evidence
