"""False freezes of healthy candidates, measured: short seeded versions of the study in `simulations/safety`.

Expectations are the promise itself (at most alpha, with a binomial margin) and the exact law of `exact_freeze`. Beside each promise stands
what breaks it when it is done the usual way, so that a test which could not see a broken promise would fail here.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from allocator.core.evidence import freeze_threshold
from allocator.core.evidence_rates import rate_grid
from simulations.safety import service, streams

from . import exact_freeze as exact

LIMIT, CLICK = 0.01, 0.1


def four_errors(share, runs):
    """Four standard errors of a share of runs, counting at least one run."""
    return 4.0 * math.sqrt(max(share * (1.0 - share), 1.0 / runs) / runs)


def frozen_shares(alpha, runs, outcomes, seed):
    """Share of runs that each monitor stopped, and of runs that the oracle says plain evidence stops, given the candidate's outcomes."""
    served_alpha = math.exp(-freeze_threshold(alpha))
    found = list(streams.same_arms(np.random.default_rng(seed), rate_grid(LIMIT), runs, outcomes, CLICK, alpha, served_alpha))
    stopped = (np.array([stops for stops, _ in found]) > 0).mean(axis=0)
    return dict(zip(streams.MONITORS, stopped, strict=True))


def check_same_arms(alpha, runs, outcomes, seed):
    shares = frozen_shares(alpha, runs, outcomes, seed)
    for monitor in ("restarted", "plain"):
        assert 0.0 < shares[monitor] <= alpha + four_errors(alpha, runs), shares
    served = 6.0 / math.pi**2 * alpha  # the part of the budget that a first activation has
    assert shares["restarted, as served"] <= served + four_errors(served, runs), shares
    always = exact.stopping_law(exact.naive_z_boundary(LIMIT, alpha, outcomes), LIMIT).sum()
    assert shares["restarted"] < shares["z, from 100"] < shares["z, every outcome"], shares
    # no run gives the candidate more than all outcomes, and allocation cannot look ahead
    assert alpha < shares["z, every outcome"] <= always + four_errors(always, runs), shares


def test_thompson_sampling_among_equals_freezes_the_candidate_at_most_alpha_often():
    check_same_arms(alpha=0.05, runs=1000, outcomes=2000, seed=1)


@pytest.mark.slow
def test_thompson_sampling_among_equals_freezes_the_candidate_at_most_alpha_often_in_ten_thousand_runs():
    check_same_arms(alpha=0.01, runs=10_000, outcomes=10_000, seed=2)


# ------------------------------------------------------------------------------------------------- the whole engine


def frozen(scenario, seeds):
    """How many of the runs froze, and in how many what stands beside them would have fired."""
    found = [scenario(seed) for seed in seeds]
    return sum(run.frozen for run in found), sum(run.beside for run in found)


def most(runs):
    """Freezes that `runs` harmless candidates exceed with probability 1e-4 at most."""
    count, tail = 0, 1.0
    while tail > 1e-4:
        tail -= math.comb(runs, count) * service.ALPHA**count * (1.0 - service.ALPHA) ** (runs - count)
        count += 1
    return count - 1


def test_failures_that_report_before_successes_freeze_no_healthy_candidate():
    assert frozen(service.failures_report_first, range(2)) == (0, 2)


def test_twenty_requests_of_each_unit_freeze_no_healthy_candidate_unless_all_are_counted():
    assert frozen(service.twenty_requests_a_unit, range(2))[0] == 0
    assert frozen(service.twenty_requests_all_counted, range(2))[0] == 2


def test_a_common_incident_freezes_no_candidate_by_a_relative_guardrail():
    assert frozen(service.common_incident, range(2)) == (0, 2)


def test_units_that_return_freeze_no_candidate_by_a_relative_guardrail():
    assert frozen(service.returning_units_compared, range(2))[0] == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("scenario", "beside"), [(service.failures_report_first, 0.7), (service.twenty_requests_a_unit, 0.0), (service.common_incident, 0.9)]
)
def test_of_a_hundred_healthy_candidates_no_more_are_frozen_than_alpha_explains(scenario, beside):
    stopped, others = frozen(scenario, range(1000, 1100))
    assert stopped <= most(100)
    assert others / 100 >= beside


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_counting_every_request_of_a_failing_unit_freezes_many_healthy_candidates():
    assert frozen(service.twenty_requests_all_counted, range(1000, 1030))[0] > most(30)
