"""A day of requests on two arms, second by second: the same stream for every rule.

In: a scenario and a generator. Out: how many requests each arm got in each second, how many of them failed, and when the reports of a
second's successes and failures come in. Rules that watch dashboards see reports as they arrive; a rule that knows the decisions sees
requests when they are decided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SECONDS = 86_400
REQUESTS = 50  # a second, both arms together
SHARE = 0.1  # of them to the candidate
BASE = 0.005  # failures of a healthy arm
LIMIT = 0.01  # what the guardrails allow


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is true. extra: failures that the candidate adds, as a share; drift_seconds: over which they set in.

    shock: failures that both arms have more in the half hour after `shock_at`. good_delay, bad_delay: seconds until a success or a
    failure is reported. harmful: should the candidate be stopped?
    """

    name: str
    extra: float = 0.0
    drift_seconds: int = 0
    shock: float = 0.0
    shock_at: int = 21_600
    good_delay: int = 0
    bad_delay: int = 0

    @property
    def harmful(self) -> bool:
        """Is the candidate worse than the incumbent?"""
        return self.extra > 0

    def rates(self) -> tuple[Floats, Floats]:
        """Failure rates of incumbent and candidate in each second, both (SECONDS,)."""
        second = np.arange(SECONDS)
        common = BASE + self.shock * ((second >= self.shock_at) & (second < self.shock_at + 1800))
        onset = np.minimum(second / self.drift_seconds, 1.0) if self.drift_seconds else 1.0
        return common, np.minimum(common + self.extra * onset, 1.0)


SCENARIOS = (
    Scenario("A/A"),
    Scenario("+1 point", extra=0.01),
    Scenario("+2 points", extra=0.02),
    Scenario("+5 points", extra=0.05),
    Scenario("+20 points", extra=0.2),
    Scenario("drift to +5 points in 6 h", extra=0.05, drift_seconds=21_600),
    Scenario("A/A, +5 points on both for 30 min", shock=0.05),
    Scenario("A/A, failures after 5 s, successes after 10 min", good_delay=600, bad_delay=5),
    Scenario("+5 points, failures after 5 s, successes after 10 min", extra=0.05, good_delay=600, bad_delay=5),
)


@dataclass(frozen=True, slots=True)
class Day:
    """Counts by second of decision, int64 (SECONDS,) each: requests and failures of the incumbent (0) and the candidate (1)."""

    requests: tuple[Floats, Floats]
    failures: tuple[Floats, Floats]
    scenario: Scenario
    share: float

    def reported(self, arm: int) -> tuple[Floats, Floats]:
        """Reports of the arm by second of arrival: all, and failures."""
        good = _later(self.requests[arm] - self.failures[arm], self.scenario.good_delay)
        bad = _later(self.failures[arm], self.scenario.bad_delay)
        return good + bad, bad

    def served_by(self, second: float) -> tuple[float, float]:
        """Requests and failures of the candidate up to the end of a second; of the whole day when it is infinite."""
        end = SECONDS if np.isinf(second) else int(second) + 1
        return float(self.requests[1][:end].sum()), float(self.failures[1][:end].sum())


def day(rng: np.random.Generator, scenario: Scenario, share: float = SHARE) -> Day:
    """One day with a fixed share of traffic on the candidate."""
    rates = scenario.rates()
    candidate = rng.binomial(REQUESTS, share, SECONDS)
    requests = (REQUESTS - candidate, candidate)
    failures = tuple(rng.binomial(n, rate).astype(np.float64) for n, rate in zip(requests, rates, strict=True))
    return Day((requests[0].astype(np.float64), requests[1].astype(np.float64)), failures, scenario, share)  # type: ignore[arg-type]


def _later(counts: Floats, seconds: int) -> Floats:
    return counts if not seconds else np.concatenate([np.zeros(seconds), counts[:-seconds]])
