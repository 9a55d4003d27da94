"""Exact law of the outcome at which a monitor stops: the oracle for guardrails, without chance and without our code.

A monitor stops when the events among the first n outcomes reach a boundary c_n, which never falls. The state is the
number of events while below it; one outcome moves each state up with the event rate. No outcome is drawn: the result is
the distribution of the stopping time itself, to rounding. `weigh` and the rules write the definitions down again, from
odds, with scipy; nothing is imported from the product, so that a slip there cannot hide here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm


@dataclass(frozen=True)
class Rule:
    """A mixture over alternatives: ln weight, and what an event and a non-event add to each log likelihood ratio."""

    weight: NDArray[np.float64]
    event: NDArray[np.float64]
    clear: NDArray[np.float64]


def freeze_rule(limit: float) -> Rule:
    """Alternatives above the limit, and certain failure."""
    highest = 1.0 - min(1e-3, (1.0 - limit) / 10.0)
    span = logit(highest) - logit(limit)
    shift = np.linspace(math.log(1.1), span, max(31, 1 + math.ceil((span - math.log(1.1)) / 0.4)))
    rate = expit(logit(limit) + shift)
    with np.errstate(divide="ignore"):
        rate, weight = np.append(rate, 1.0), np.append(_weigh(shift, 0.9), math.log(0.1))
        return Rule(weight, np.log(rate / limit), np.log((1.0 - rate) / (1.0 - limit)))


def safety_rule(limit: float) -> Rule:
    """Alternatives below the limit, and certain success. Its events are the outcomes that went well."""
    shift = np.linspace(math.log(1.1), math.log(100.0), 31)
    rate = expit(logit(limit) - shift)
    with np.errstate(divide="ignore"):
        rate, weight = np.append(rate, 0.0), np.append(_weigh(shift, 0.9), math.log(0.1))
        return Rule(weight, np.log((1.0 - rate) / (1.0 - limit)), np.log(rate / limit))


def label_rule(ratio: float, pi: float) -> Rule:
    """Rows with an event, at one propensity; its events are those of the candidate."""
    shift = np.linspace(math.log(1.1), math.log(1e4), 32)
    null, rate = ratio * pi, ratio * np.exp(shift) * pi
    null, rate = null / (null + 1.0 - pi), rate / (rate + 1.0 - pi)
    return Rule(_weigh(shift, 1.0), np.log(rate / null), np.log((1.0 - rate) / (1.0 - null)))


def boundary(rule: Rule, log_threshold: float, horizon: int) -> NDArray[np.int64]:
    """c_n for n = 0..horizon: the fewest events at which the mixture reaches the threshold; n + 1 if none do."""
    return _boundary(rule.weight, rule.event, rule.clear, log_threshold, horizon)


def naive_z_boundary(limit: float, alpha: float, horizon: int, start: int = 1) -> NDArray[np.int64]:
    """c_n of somebody who looks at a one-sided z-test after every outcome from `start` on."""
    n = np.arange(horizon + 1)
    reach = np.floor(n * limit + norm.ppf(1.0 - alpha) * np.sqrt(n * limit * (1.0 - limit))).astype(np.int64) + 1
    return np.where(n < start, n + 1, np.minimum(reach, n + 1))


def stopping_law(bounds: NDArray[np.int64], rate: float, change_at: int = 0, rate_before: float = 0.0) -> NDArray[np.float64]:
    """P(stop at outcome n), n = 0..horizon. The event rate is rate_before for the first change_at outcomes."""
    return _stopping_law(bounds, rate, change_at, rate_before)


def mean(law: NDArray[np.float64]) -> float:
    """Mean stopping time; the horizon has to be long enough for the law to hold nearly all its mass."""
    assert law.sum() > 1.0 - 1e-6, "horizon too short"
    return float((law * np.arange(law.size)).sum() / law.sum())


def quantile(law: NDArray[np.float64], level: float) -> int:
    return int(np.searchsorted(np.cumsum(law), level))


def _weigh(shift: NDArray[np.float64], mass: float) -> NDArray[np.float64]:
    weight = np.exp(-shift / 2.0)
    return np.log(mass * weight / weight.sum())


@njit(cache=True)
def _boundary(weight, event, clear, log_threshold, horizon):
    bounds = np.empty(horizon + 1, np.int64)
    c = 0
    for n in range(horizon + 1):
        while c <= n:
            top, total = -np.inf, 0.0
            for k in range(weight.size):
                if n == c or clear[k] > -np.inf:
                    term = weight[k] + c * event[k] + ((n - c) * clear[k] if n > c else 0.0)
                    if term > top:
                        top, total = term, total * math.exp(top - term) + 1.0
                    else:
                        total += math.exp(term - top)
            if top + math.log(total) >= log_threshold:
                break
            c += 1
        bounds[n] = c
    return bounds


@njit(cache=True)
def _stopping_law(bounds, rate, change_at, rate_before):
    law = np.zeros(bounds.size)
    mass = np.zeros(bounds[-1] + 2)
    mass[0] = 1.0
    low, high = 0, 0  # states outside hold less than 1e-25 each
    for n in range(1, bounds.size):
        p = rate_before if n <= change_at else rate
        high += 1
        for x in range(high, low, -1):
            mass[x] = mass[x] * (1.0 - p) + mass[x - 1] * p
        mass[low] *= 1.0 - p
        while high >= bounds[n] and high >= low:
            law[n] += mass[high]
            mass[high] = 0.0
            high -= 1
        while high > low and mass[high] < 1e-25:
            mass[high] = 0.0
            high -= 1
        while low < high and mass[low] < 1e-25:
            mass[low] = 0.0
            low += 1
        if high < low:
            break
    return law
