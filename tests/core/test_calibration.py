"""Calibration, drift and parity: definitions, false alarms, and faults they have to find."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from allocator.core.calibration import (
    Parity,
    calibration_grid,
    calibration_sums,
    disparate_impact,
    drift_reference,
    fold_drift,
    log_calibration,
    no_drift,
    reliability,
)
from allocator.core.confidence import confidence_sequence
from allocator.core.evidence import Schedule, detector_threshold, no_restarts
from allocator.core.evidence_rates import fold
from allocator.core.evidence_streams import log_average
from allocator.errors import InvalidArgument


def four_errors(share, runs):
    return 4.0 * math.sqrt(max(share * (1.0 - share), 1.0 / runs) / runs)


def predictions(rows, seed, odds=1.0, slope=1.0):
    """Predictions whose true odds are odds x (predicted odds)^slope."""
    rng = np.random.default_rng(seed)
    probability = rng.uniform(0.01, 0.99, rows)
    true = 1.0 / (1.0 + ((1.0 - probability) / probability) ** slope / odds)
    return probability, (rng.random(rows) < true).astype(float)


# ---------------------------------------------------------------------------------------------------- calibration


def test_level_and_slope_are_the_likelihood_ratios_they_are_said_to_be():
    probability, outcome = predictions(200, 71)
    found = log_calibration(calibration_sums(probability, outcome))
    factors = np.exp(calibration_grid().log_ratio)
    assert factors[[0, 15, 16, 31]] == pytest.approx([1 / 10, 1 / 1.1, 1.1, 10])
    level = [outcome.sum() * math.log(r) - np.log(1.0 - probability + r * probability).sum() for r in factors]
    assert found.level == pytest.approx(np.logaddexp.reduce(level) - math.log(32), rel=1e-10)
    slope = []
    for s in factors:
        other = probability**s / (probability**s + (1.0 - probability) ** s)
        ratio = np.where(outcome == 1.0, other / probability, (1.0 - other) / (1.0 - probability))
        slope.append(np.log(ratio).sum())
    assert found.slope == pytest.approx(np.logaddexp.reduce(slope) - math.log(32), rel=1e-9)
    assert found.either == pytest.approx(np.logaddexp(found.level, found.slope) - math.log(2))


def test_calibration_sums_add_up():
    probability, outcome = predictions(100, 72)
    whole = log_calibration(calibration_sums(probability, outcome))
    parts = calibration_sums(probability[:37], outcome[:37]) + calibration_sums(probability[37:], outcome[37:])
    assert log_calibration(parts).either == pytest.approx(whole.either, rel=1e-10)


def test_extreme_predictions_give_finite_evidence():
    edge = np.array([1e-12, 1.0 - 1e-12] * 3)
    for outcome in (np.zeros(6), np.ones(6), np.full(6, 0.5)):
        found = log_calibration(calibration_sums(edge, outcome))
        assert all(math.isfinite(value) for value in asdict(found).values())


def test_calibrated_predictions_raise_a_false_alarm_at_most_alpha_often():
    alpha, runs = 0.1, 400
    alarms = 0
    for run in range(runs):
        probability, outcome = predictions(400, 10_000 + run)
        evidence, total = [], calibration_sums(probability[:0], outcome[:0])
        for start in range(0, 400, 40):
            total = total + calibration_sums(probability[start : start + 40], outcome[start : start + 40])
            evidence.append(log_calibration(total).either)
        alarms += max(evidence) >= -math.log(alpha)
    assert alarms / runs <= alpha + four_errors(alpha, runs)


def test_each_kind_of_miscalibration_is_found_by_its_test():
    shifted = log_calibration(calibration_sums(*predictions(2000, 73, odds=1.6)))
    assert shifted.level >= math.log(1e4)
    assert shifted.level > shifted.slope
    bold = log_calibration(calibration_sums(*predictions(2000, 74, slope=0.6)))
    assert bold.slope >= math.log(1e4)
    assert bold.level < 0.0
    assert bold.either >= math.log(1e4) - math.log(2.0)


def test_the_reliability_diagram_shows_each_bin_with_its_interval():
    probability, outcome = predictions(3000, 75)
    shown = reliability(probability, outcome, 0.05, bins=15)
    assert shown.total.tolist() == [200.0] * 15
    assert np.all(np.diff(shown.predicted) > 0.0)
    first = np.argsort(probability)[:200]
    assert shown.predicted[0] == pytest.approx(probability[first].mean())
    assert shown.observed[0] == pytest.approx(outcome[first].mean())
    assert (shown.low[0], shown.high[0]) == confidence_sequence(outcome[first].sum(), 200, 0.05 / 15)
    assert shown.error == pytest.approx(np.abs(shown.predicted - shown.observed).mean())
    assert np.all((shown.low <= shown.predicted) & (shown.predicted <= shown.high))


def test_the_error_of_calibrated_predictions_is_what_noise_alone_makes_of_it():
    shown = [reliability(*predictions(900, 20_000 + run)) for run in range(200)]
    error = np.array([one.error for one in shown])
    expected = np.mean([one.error_if_calibrated for one in shown])
    # bins of 60 binary outcomes: the normal approximation behind it is good to a few percent
    assert error.mean() == pytest.approx(expected, abs=4.0 * error.std() / math.sqrt(200) + 0.02 * expected)
    assert reliability(*predictions(900, 76, odds=3.0)).error > 2.0 * expected


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: calibration_sums([0.0], [0.0]), "probability"),
        (lambda: calibration_sums([1.0], [0.0]), "probability"),
        (lambda: calibration_sums([math.nan], [0.0]), "probability"),
        (lambda: calibration_sums([0.5], [1.1]), "outcome"),
        (lambda: calibration_sums([0.5], [math.nan]), "outcome"),
        (lambda: calibration_sums([0.5, 0.5], [1.0]), "outcome"),
        (lambda: reliability([0.5], [1.0], bins=2), "bins"),
        (lambda: reliability([0.5], [1.0], bins=0), "bins"),
        (lambda: reliability([0.5], [1.0], alpha=0.0, bins=1), "alpha"),
    ],
)
def test_predictions_that_cannot_be_judged_are_refused_by_name(call, field):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.violations[0].field == field


# ---------------------------------------------------------------------------------------------------------- drift


def warned_at(rates, seed, runs=1):
    """Bucket of 50 outcomes at which the pair of detectors first warns; len(rates) if never."""
    reference, rng, stops = drift_reference(0.08, 0.12), np.random.default_rng(seed), []
    for _ in range(runs):
        events = rng.binomial(50, rates)
        _, evidence = fold_drift(reference, no_drift(reference), np.full(len(rates), 50), events)
        reached = log_average(evidence) >= detector_threshold(10_000)
        stops.append(int(reached.argmax()) if reached.any() else len(rates))
    return np.array(stops)


def test_a_stream_within_its_reference_warns_no_more_than_once_in_the_run_length():
    stops = warned_at([0.1] * 300, 81, runs=200)
    assert (50 * stops).mean() >= 10_000


@pytest.mark.parametrize("rate", [0.03, 0.25])
def test_a_rise_and_a_fall_are_both_seen_after_a_quiet_time(rate):
    stops = warned_at([0.1] * 100 + [rate] * 40, 82, runs=50)
    assert np.all(stops >= 100)
    assert np.all(stops < 140)


def test_drift_continues_from_a_stored_state_and_tells_the_direction():
    reference = drift_reference(0.08, 0.12)
    exposed, events = [50] * 6, [5, 5, 4, 20, 22, 19]
    whole, evidence = fold_drift(reference, no_drift(reference), exposed, events)
    first, _ = fold_drift(reference, no_drift(reference), exposed[:3], events[:3])
    last, rest = fold_drift(reference, first, exposed[3:], events[3:])
    assert evidence.shape == (2, 6)
    for grid, found in ((reference.up, evidence[0]), (reference.down, evidence[1])):
        assert found == pytest.approx(fold(grid, no_restarts(grid), exposed, events, Schedule.SHIRYAEV_ROBERTS)[1])
    assert rest == pytest.approx(evidence[:, 3:], rel=1e-10)
    assert evidence[0, -1] > detector_threshold(10_000) > evidence[1, -1]
    json.dumps(asdict(whole), allow_nan=False)
    assert last.up.outcomes == 300


def test_a_baseline_that_reaches_the_edge_leaves_only_one_direction():
    reference = drift_reference(0.0, 1e-3)
    _, evidence = fold_drift(reference, no_drift(reference), [10**6] * 5, [0] * 5)
    assert np.all(log_average(evidence) < detector_threshold(10_000))


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1), (math.nan, 0.5), (0.1, math.nan)])
def test_an_interval_that_is_none_is_refused(low, high):
    with pytest.raises(InvalidArgument, match="low"):
        drift_reference(low, high)


# ------------------------------------------------------------------------------------------------------- fairness


def test_parity_compares_each_segment_with_the_best_other():
    found = disparate_impact([6000, 3000, 5900], [10_000] * 3, alpha=0.05)
    low, high = confidence_sequence([6000, 3000, 5900], 10_000, 0.05 / 3)
    assert found.parity == (Parity.PASSED, Parity.FLAGGED, Parity.PASSED)
    assert found.overall is Parity.FLAGGED
    assert found.ratio == pytest.approx(0.5)
    assert found.low == pytest.approx([low[0] / high[2], low[1] / high[0], low[2] / high[0]])
    assert found.high == pytest.approx([high[0] / low[2], high[1] / low[0], high[2] / low[0]])


def test_parity_is_undecided_while_the_data_are():
    assert disparate_impact([6, 3], [10, 10]).overall is Parity.UNDECIDED
    assert disparate_impact([0, 0], [0, 0]).overall is Parity.UNDECIDED
    assert disparate_impact([5000, 5000], [10_000, 10_000]).overall is Parity.PASSED
    assert disparate_impact([0, 0], [0, 0]).high.tolist() == [math.inf, math.inf]


def test_segments_treated_alike_are_flagged_at_most_alpha_often():
    """True ratio exactly at the limit: the hardest fair case."""
    runs, rng, flagged = 400, np.random.default_rng(91), 0
    for _ in range(runs):
        good = np.cumsum(rng.binomial(100, [[0.5, 0.4]] * 20), axis=0)
        verdicts = [disparate_impact(row, [100 * (i + 1)] * 2, alpha=0.2).overall for i, row in enumerate(good)]
        flagged += Parity.FLAGGED in verdicts
    assert flagged / runs <= 0.2 + four_errors(0.2, runs)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: disparate_impact([1], [2]), "total"),
        (lambda: disparate_impact([1, 3], [2, 2]), "count"),
        (lambda: disparate_impact([1, math.nan], [2, 2]), "count"),
        (lambda: disparate_impact([1, 1], [2, 2], limit=1.0), "limit"),
        (lambda: disparate_impact([1, 1], [2, 2], alpha=math.nan), "alpha"),
    ],
)
def test_segments_that_cannot_be_compared_are_refused_by_name(call, field):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.violations[0].field == field
