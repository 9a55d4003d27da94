"""Plain Thompson sampling, which protects nobody: how many failures its candidate causes in a day.

In: a scenario. Out: requests and failures of the candidate. Weights are P(best) on the success rate, by the product's own function,
refreshed every ten seconds; there is no cap and no guardrail, so nothing ever stops: a bad candidate is starved, not stopped.
"""

from __future__ import annotations

import numpy as np

from allocator.core import best_arm
from allocator.core.posterior import BetaPosterior
from simulations.rules.streams import REQUESTS, SECONDS, Scenario

REFRESH = 10


def starved(rng: np.random.Generator, scenario: Scenario) -> tuple[float, float]:
    """Requests and failures of the candidate over the day. Delays are left out: they only make it slower."""
    rates = scenario.rates()
    good, bad = np.ones(2), np.ones(2)
    requests = failures = 0.0
    for second in range(0, SECONDS, REFRESH):
        share = best_arm.prob_best(BetaPosterior(good, bad))[1]
        candidate = rng.binomial(REQUESTS * REFRESH, share)
        counts = (REQUESTS * REFRESH - candidate, candidate)
        for arm, count in enumerate(counts):
            failed = rng.binomial(count, rates[arm][second])
            good[arm] += count - failed
            bad[arm] += failed
            if arm == 1:
                requests += count
                failures += failed
    return requests, failures
