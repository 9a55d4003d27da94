"""Decision rules, restated from what their makers document, each as one number that grows with the suspicion.

In: a `Day`. Out: the seconds at which the rule looks, and its statistic at each look; it stops the candidate at the first look where the
statistic reaches a threshold. Written so, every rule can be run at its documented threshold and at one that gives all of them the same
rate of false alarms. This compares rules, not software: what else a product does (ramps, webhooks, people) is left out, and where
a document leaves something open, the choice that is kinder to the rule is taken and said.

Sources, read or recalled in 2026: Flagger, "Metrics Analysis" and its canary examples (interval 1 m, threshold 5, success rate at
least 99); Argo Rollouts, "Analysis & Progressive Delivery" (interval 5 m, failureLimit 3); Kayenta, the Mann-Whitney classifier of its
judge (confidence 0.98, tolerance 0.25) with an hourly analysis; GrowthBook, "Sequential testing" (tuning parameter 5,000) and its update
schedules; Statsig, sequential testing by a mixture ratio test; TensorZero, adaptive experiments by track-and-stop (delta 0.05, an update
every five minutes). Waudby-Smith et al. 2024 (asymptotic confidence sequences); Garivier & Kaufmann 2016 (track-and-stop).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from allocator.core.evidence import BLOCK, freeze_threshold, no_restarts
from allocator.core.evidence_labels import LabelSums, fold_labels, label_grid
from allocator.core.evidence_rates import fold, rate_grid
from simulations.rules.streams import LIMIT, REQUESTS, SECONDS, SHARE, Day

Floats = NDArray[np.float64]
Looks = tuple[Floats, Floats]  # seconds since the start, increasing; the statistic at each

ALPHA = 0.001  # of ours, as in the product's default
BUCKET = 30  # seconds of decision time in a bucket of ours


@dataclass(frozen=True, slots=True)
class Rule:
    """looks: the statistic. documented: the threshold of its maker. share: of traffic that the rule itself gives the candidate."""

    name: str
    looks: Callable[[Day], Looks]
    documented: float
    share: float = SHARE
    kind: str = "limit"


def stop(looks: Looks, threshold: float) -> float:
    """The second of the first look that reaches the threshold; infinite when none does."""
    seconds, statistic = looks
    reached = statistic >= threshold
    return float(seconds[reached.argmax()]) if reached.any() else math.inf


def peak(looks: Looks) -> float:
    """The largest value of the statistic over the day: a threshold above it never stops."""
    return float(looks[1].max(initial=-math.inf))


# ------------------------------------------------------------------------------------------------ thresholds on windows


def windows_above(seconds: int, needed: int) -> Callable[[Day], Looks]:
    """The failure rate of the `needed`-th worst window so far: stops once so many windows were above a limit.

    A window without any report counts as neither good nor bad, which is kinder than the rules that fail it.
    """

    def looks(day: Day) -> Looks:
        done, bad = (_windows(counts, seconds) for counts in day.reported(1))
        rate = np.where(done > 0, bad / np.maximum(done, 1), 0.0)
        worst = np.zeros(needed)
        statistic = np.empty(rate.size)
        for number, value in enumerate(rate):
            if value > worst[0]:
                worst[0] = value
                worst.sort()
            statistic[number] = worst[0]
        return _ends(seconds, rate.size), statistic

    return looks


# -------------------------------------------------------------------------------------------------- tests against control


def mann_whitney(interval: int, point: int = 60, ratio: float = 1.25) -> Callable[[Day], Looks]:
    """z of the Mann-Whitney test between the failure rates of both arms minute by minute, over all minutes so far, at each interval.

    Nothing is said while the candidate's mean is below `ratio` times the incumbent's.
    """

    def looks(day: Day) -> Looks:
        rates = []
        for arm in (0, 1):
            done, bad = (_windows(counts, point) for counts in day.reported(arm))
            rates.append(bad / np.maximum(done, 1))
        each = interval // point
        ends = range(each, SECONDS // point + 1, each)
        found = [_u_test(rates[0][:end], rates[1][:end], ratio) for end in ends]
        return np.array([end * point - 1.0 for end in ends]), np.array(found)

    return looks


def _u_test(control: Floats, candidate: Floats, ratio: float) -> float:
    if candidate.mean() <= ratio * control.mean():
        return -math.inf
    n, m = candidate.size, control.size
    both = np.concatenate([candidate, control])
    ranks = rankdata(both)
    u = ranks[:n].sum() - n * (n + 1) / 2
    _, ties = np.unique(both, return_counts=True)
    variance = n * m / 12 * (n + m + 1 - (ties**3 - ties).sum() / ((n + m) * (n + m - 1)))
    return float((u - n * m / 2) / math.sqrt(variance)) if variance > 0 else -math.inf


def confidence_sequence(interval: int, tuning: float) -> Callable[[Day], Looks]:
    """Log evidence of the asymptotic normal mixture that the two failure rates differ, looked at every `interval` seconds.

    tuning: the number of outcomes at which it is sharpest. Only an excess of the candidate counts. Asymptotic: it needs some failures
    to mean anything, so it keeps silent below 10 on both arms together.
    """
    boundary = 2 * math.log(20)
    width = (boundary + math.log1p(boundary)) / tuning

    def looks(day: Day) -> Looks:
        at = np.arange(interval, SECONDS + 1, interval)
        (n0, x0), (n1, x1) = (tuple(np.cumsum(counts)[at - 1] for counts in day.reported(arm)) for arm in (0, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            p0, p1 = x0 / n0, x1 / n1
            z = (p1 - p0) / np.sqrt(p0 * (1 - p0) / n0 + p1 * (1 - p1) / n1)
            mass = (n0 + n1) * width
            log_e = np.where(z > 0, mass / (mass + 1) * z**2 / 2, 0.0) - 0.5 * np.log1p(mass)
        return at - 1.0, np.where((x0 + x1 >= 10) & np.isfinite(log_e), log_e, -math.inf)

    return looks


def track_and_stop(interval: int, least: int = 10) -> Callable[[Day], Looks]:
    """The generalised likelihood ratio that the incumbent is better, less what it may grow by with time."""

    def looks(day: Day) -> Looks:
        at = np.arange(interval, SECONDS + 1, interval)
        (n0, x0), (n1, x1) = (tuple(np.cumsum(counts)[at - 1] for counts in day.reported(arm)) for arm in (0, 1))
        p0, p1 = x0 / np.maximum(n0, 1), x1 / np.maximum(n1, 1)
        pooled = (x0 + x1) / np.maximum(n0 + n1, 1)
        ratio = n0 * _divergence(p0, pooled) + n1 * _divergence(p1, pooled)
        allowance = np.log(1 + np.log(np.maximum(n0 + n1, 2)))
        return at - 1.0, np.where((p1 > p0) & (n0 >= least) & (n1 >= least), ratio - allowance, -math.inf)

    return looks


def _divergence(p: Floats, q: Floats) -> Floats:
    """Kullback-Leibler divergence of Bernoulli(p) from Bernoulli(q)."""
    p, q = np.clip(p, 1e-12, 1 - 1e-12), np.clip(q, 1e-12, 1 - 1e-12)
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


# ------------------------------------------------------------------------------------------------------------------ ours


def restarted_evidence(day: Day) -> Looks:
    """The evidence that freezes, against the limit on the rate, at every second. Exposures count when decided, failures when reported.

    Evidence grows with failures, so with failures `bad_delay` late it is reached at most that much later.
    """
    grid = rate_grid(LIMIT)
    _, evidence = fold(grid, no_restarts(grid), day.requests[1], day.failures[1])
    return np.arange(SECONDS) + float(day.scenario.bad_delay), evidence


def restarted_ratio(day: Day) -> Looks:
    """The same against "at most the incumbent's rate", by the labels of failures; a bucket is judged once all of it is reported."""
    grid = label_grid(1.0)
    own, theirs = (_windows(day.failures[arm], BUCKET) for arm in (1, 0))
    requests = _windows(day.requests[0] + day.requests[1], BUCKET)
    pi = day.share
    excess = np.log1p(pi * np.expm1(grid.log_ratio))
    sums = LabelSums(own, own + theirs, np.multiply.outer(own + theirs, excess))
    _, evidence = fold_labels(grid, no_restarts(grid), requests, sums, block=BLOCK / pi)
    return _ends(BUCKET, own.size) + max(day.scenario.bad_delay, day.scenario.good_delay), evidence


def _windows(counts: Floats, seconds: int) -> Floats:
    return counts.reshape(-1, seconds).sum(axis=1)


def _ends(seconds: int, count: int) -> Floats:
    return seconds * np.arange(1.0, count + 1) - 1


RULES = (
    Rule("threshold, 5 windows of 1 min (Flagger)", windows_above(60, 5), LIMIT + 1e-12),
    Rule("threshold, 4 windows of 5 min (Argo Rollouts)", windows_above(300, 4), LIMIT + 1e-12),
    Rule("Mann-Whitney, hourly (Kayenta)", mann_whitney(3600), 2.326 / 0.75, kind="control"),
    Rule("sequential, every 6 h (GrowthBook)", confidence_sequence(21_600, 5000), math.log(20), kind="control"),
    Rule("sequential, every hour (GrowthBook)", confidence_sequence(3600, 5000), math.log(20), kind="control"),
    Rule("sequential, every 15 min (GrowthBook)", confidence_sequence(900, 5000), math.log(20), kind="control"),
    Rule("mixture ratio test, hourly (Statsig)", confidence_sequence(3600, REQUESTS * SECONDS), math.log(20), kind="control"),
    Rule("track-and-stop, every 5 min, half of the traffic (TensorZero)", track_and_stop(300), math.log(20), share=0.5, kind="control"),
    Rule("ours, limit, as outcomes come", restarted_evidence, freeze_threshold(ALPHA)),
    Rule("ours, ratio to the incumbent", restarted_ratio, freeze_threshold(ALPHA), kind="control"),
)
