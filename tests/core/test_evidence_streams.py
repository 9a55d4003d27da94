"""Several streams together against all subsets of streams and the published rules."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.evidence import LOG_ZERO
from allocator.core.evidence_streams import discoveries, log_average, stream_weights, to_blame
from allocator.errors import InvalidArgument


def test_the_average_rejects_whenever_weighted_bonferroni_does():
    weights = np.array([0.5, 0.3, 0.2])
    for stream in range(3):
        evidence = np.full(3, LOG_ZERO)
        evidence[stream] = -math.log(0.01 * weights[stream])
        assert log_average(evidence, weights) == pytest.approx(-math.log(0.01))
    assert log_average([0.0, 0.0]) == pytest.approx(0.0)
    assert log_average(np.zeros((2, 3)), [1.0, 0.0]) == pytest.approx(np.zeros(3))


def test_half_the_weight_lies_on_the_overall_streams():
    assert stream_weights([False, True, True, True]) == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert stream_weights([True, True]) == pytest.approx([0.5, 0.5])
    assert stream_weights([False]) == pytest.approx([1.0])


@given(
    log_evidence=st.lists(st.floats(-5.0, 12.0), min_size=1, max_size=7),
    alpha=st.sampled_from([1e-3, 0.05, 0.3]),
)
def test_blame_is_closed_testing_over_all_sets_of_streams(log_evidence, alpha):
    values, count = np.exp(log_evidence), len(log_evidence)
    sets = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]
    expected = [min(values[list(s)].mean() for s in sets if h in s) >= (1.0 - 1e-12) / alpha for h in range(count)]
    assert to_blame(log_evidence, alpha).tolist() == expected


@settings(deadline=None)
@given(log_evidence=st.lists(st.floats(-5.0, 12.0), min_size=1, max_size=7))
def test_blame_names_all_that_stepping_down_names(log_evidence):
    named, ascending = to_blame(log_evidence, 0.05), np.argsort(log_evidence)
    for left in range(len(log_evidence), 0, -1):
        stream = ascending[left - 1]
        if log_evidence[stream] < math.log(left / 0.05) + 1e-9:
            break
        assert named[stream]


def test_discoveries_follow_the_published_rule():
    evidence = np.log([100.0, 45.0, 30.0, 12.0, 1.0])  # five streams, alpha .1: needs 50, 25, 16.7, 12.5, 10
    assert discoveries(evidence, 0.1).tolist() == [True, True, True, False, False]
    assert discoveries(np.log([20.0, 26.0, 1.0, 1.0, 1.0]), 0.1).tolist() == [False] * 5
    assert discoveries(np.log([60.0, 1.0, 24.0, 26.0, 2.0]), 0.1).tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("call", [log_average, lambda e: to_blame(e, 0.1), lambda e: discoveries(e, 0.1)])
@pytest.mark.parametrize("evidence", [[], [math.nan], [0.0, math.inf], 1.0])
def test_streams_without_a_finite_number_are_refused(call, evidence):
    with pytest.raises(InvalidArgument, match="log_evidence"):
        call(evidence)


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, math.nan], [1.0, -1.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(InvalidArgument, match="weights"):
        log_average([0.0, 0.0], weights)
