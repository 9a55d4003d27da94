"""The rules of the race, on streams made by hand: each stops where its document says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from simulations.rules.rules import RULES, confidence_sequence, mann_whitney, peak, restarted_evidence, stop, windows_above
from simulations.rules.streams import SECONDS, Day, Scenario, day

STEADY = Scenario("by hand")


def by_hand(incumbent: np.ndarray, candidate: np.ndarray, scenario: Scenario = STEADY) -> Day:
    """A day with 45 and 5 requests a second and these failures."""
    return Day((np.full(SECONDS, 45.0), np.full(SECONDS, 5.0)), (incumbent, candidate), scenario, 0.1)


def test_a_threshold_rule_stops_at_the_end_of_the_window_that_is_one_too_many() -> None:
    failures = np.zeros(SECONDS)
    failures[[0, 120, 180, 600, 7200]] = 9  # 9 of 300 in five different minutes
    looks = windows_above(60, 5)(by_hand(np.zeros(SECONDS), failures))
    assert stop(looks, 0.01) == 7259
    assert math.isinf(stop(looks, 0.031))


def test_the_mann_whitney_statistic_is_that_of_scipy() -> None:
    rng = np.random.default_rng(5)
    control, candidate = rng.binomial(45, 0.01, SECONDS) * 1.0, rng.binomial(5, 0.03, SECONDS) * 1.0
    _, statistic = mann_whitney(3600)(by_hand(control, candidate))
    rates = [counts.reshape(-1, 60).sum(axis=1) / n for counts, n in ((candidate, 300), (control, 2700))]
    expected = mannwhitneyu(rates[0][:60], rates[1][:60], alternative="greater", method="asymptotic", use_continuity=False)
    assert statistic[0] == pytest.approx(-_quantile(expected.pvalue), rel=1e-9)


def test_the_confidence_sequence_excludes_zero_where_its_evidence_reaches_its_threshold() -> None:
    rng = np.random.default_rng(6)
    control, candidate = rng.binomial(45, 0.01, SECONDS) * 1.0, rng.binomial(5, 0.012, SECONDS) * 1.0
    seconds, log_e = confidence_sequence(3600, 5000)(by_hand(control, candidate))
    for at, found in zip(seconds.astype(int), log_e, strict=True):
        n1, n0 = 5.0 * (at + 1), 45.0 * (at + 1)
        p1, p0, n = candidate[: at + 1].sum() / n1, control[: at + 1].sum() / n0, n1 + n0
        rho2 = (-2 * math.log(0.05) + math.log(1 - 2 * math.log(0.05))) / 5000
        deviation = math.sqrt(n * (p1 * (1 - p1) / n1 + p0 * (1 - p0) / n0))
        width = deviation * math.sqrt(2 * (n * rho2 + 1) / (n**2 * rho2) * math.log(math.sqrt(n * rho2 + 1) / 0.05))
        assert (p1 - p0 > width) == (found >= math.log(20)), at


def test_late_successes_look_like_an_outage_by_arrival_and_not_by_decision() -> None:
    delayed = Scenario("A/A, delayed", good_delay=600, bad_delay=5)
    seen = day(np.random.default_rng(7), delayed)
    done, bad = seen.reported(1)
    assert bad[:600].sum() == done[:600].sum() > 0, "until the first success arrives, all that is reported has failed"
    assert math.isfinite(stop(windows_above(60, 5)(seen), 0.5))
    assert peak(restarted_evidence(seen)) < math.log(1000)


def test_all_rules_stop_a_broken_candidate_and_ours_first() -> None:
    scenario = Scenario("+20 points", extra=0.2)
    stops = {}
    for rule in RULES:
        seen = day(np.random.default_rng(8), scenario, rule.share)
        stops[rule.name] = stop(rule.looks(seen), rule.documented)
    assert all(math.isfinite(at) for at in stops.values())
    assert min(stops, key=stops.__getitem__) == "ours, limit, as outcomes come"


def _quantile(p: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(p))
