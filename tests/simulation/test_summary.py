"""Intervals against scipy's own, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, t

from allocator.errors import InvalidArgument
from allocator.simulation import proportion, summarise


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(3, 2, 40)
    found = summarise(values)
    low, high = t.interval(0.95, 39, values.mean(), values.std(ddof=1) / math.sqrt(40))
    assert (found.low, found.high) == (pytest.approx(low, rel=1e-12), pytest.approx(high, rel=1e-12))
    assert found.q50 == np.median(values)


@pytest.mark.parametrize(("events", "runs"), [(0, 100), (3, 100), (100, 100), (1, 1)])
def test_the_interval_of_a_share_is_clopper_pearsons(events, runs):
    found = proportion(events, runs)
    exact = binomtest(events, runs).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == (pytest.approx(exact.low, abs=1e-12), pytest.approx(exact.high, abs=1e-12))


def test_a_run_without_the_number_is_left_out_and_counted_out():
    found = summarise([1.0, math.nan, 3.0])
    assert (found.mean, found.runs) == (2.0, 2)


def test_nothing_is_said_of_no_runs():
    assert summarise([math.nan]).runs == 0
    assert math.isnan(summarise([math.nan]).mean)
    assert math.isnan(summarise([1.0]).low)


@pytest.mark.parametrize("wrong", [(5, 4), (-1, 4), (0, 0)])
def test_impossible_shares_are_refused(wrong):
    with pytest.raises(InvalidArgument):
        proportion(*wrong)


def test_an_infinite_value_is_refused():
    with pytest.raises(InvalidArgument):
        summarise([math.inf])
