"""Sample ratio mismatch against published values, 40 digits, and its chance of a false alarm."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.assignment import SLOTS
from allocator.core.sample_ratio import (
    ALPHA,
    PSI,
    TILTS,
    Draws,
    draw_p_values,
    log_adaptive_sample_ratio,
    log_draw_evidence,
    log_fixed_sample_ratio,
    p_value,
    sample_ratio_grid,
    sample_ratio_sums,
)
from allocator.errors import InvalidArgument


def four_errors(share, runs):
    return 4.0 * math.sqrt(max(share * (1.0 - share), 1.0 / runs) / runs)


def mp_fixed(counts, shares):
    with mpmath.workdps(40):
        prior = [100 * mpmath.mpf(share) for share in shares]
        total = mpmath.loggamma(sum(prior)) - mpmath.loggamma(sum(prior) + sum(counts))
        for count, a, share in zip(counts, prior, shares, strict=True):
            total += mpmath.loggamma(a + count) - mpmath.loggamma(a) - count * mpmath.log(mpmath.mpf(share))
        return float(total)


@pytest.mark.parametrize(("counts", "expected"), [((510, 490), -1.01922670458), ((600, 400), 17.0989404165)])
def test_a_fixed_design_has_the_values_of_ssrm_test(counts, expected):
    assert log_fixed_sample_ratio(counts, (0.5, 0.5)) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(
    ("counts", "shares"),
    [
        ((500_010_000, 499_990_000), (0.5, 0.5)),
        ((700_000_000, 299_990_000, 10_000), (0.7, 0.29999, 0.00001)),
        ((10**9, 0), (0.5, 0.5)),
        ((3, 1, 0), (0.5, 0.25, 0.25)),
        ((7,), (1.0,)),
    ],
)
def test_a_fixed_design_is_exact_to_a_millionth_at_a_billion_rows(counts, shares):
    assert log_fixed_sample_ratio(counts, shares) == pytest.approx(mp_fixed(counts, shares), rel=1e-14, abs=1e-6)


@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 10**6), min_size=2, max_size=5), data=st.data())
def test_a_fixed_design_agrees_with_forty_digits(counts, data):
    raw = data.draw(st.lists(st.floats(0.01, 1.0), min_size=len(counts), max_size=len(counts)))
    shares = np.array(raw) / sum(raw)
    expected = mp_fixed(counts, shares.tolist())
    assert log_fixed_sample_ratio(counts, shares) == pytest.approx(expected, rel=1e-9, abs=1e-8)


def test_several_looks_come_at_once():
    looks = log_fixed_sample_ratio([[0, 0], [510, 490]], [0.5, 0.5])
    assert looks == pytest.approx([0.0, -1.01922670458], abs=1e-10)


def test_an_adaptive_design_is_a_likelihood_ratio_of_the_draws():
    arm, other, pi = np.array([40, 10]), np.array([300, 900]), np.array([0.1, 0.02])
    odds = np.exp(sample_ratio_grid().log_ratio)[:, None]
    assert odds[[0, 15, 16, 31], 0] == pytest.approx([1 / 2, 1 / 1.05, 1.05, 2])
    drawn = odds * pi / (odds * pi + 1.0 - pi)
    ratio = arm * np.log(drawn / pi) + other * np.log((1.0 - drawn) / (1.0 - pi))
    expected = math.log(np.exp(ratio.sum(axis=1)).mean())
    whole = sample_ratio_sums(arm, other, pi)
    parts = sample_ratio_sums(arm[:1], other[:1], pi[:1]) + sample_ratio_sums(arm[1:], other[1:], pi[1:])
    assert log_adaptive_sample_ratio(whole) == pytest.approx(expected, rel=1e-10)
    assert log_adaptive_sample_ratio(parts) == pytest.approx(expected, rel=1e-10)


def adaptive_p_values(lost, runs, seed):
    """p after 30 looks of 400 decisions at shares that follow the counts; `lost` of the arm's rows disappear."""
    rng, shares = np.random.default_rng(seed), (0.05, 0.1, 0.2, 0.4)
    result = []
    for _ in range(runs):
        total, evidence, choice = sample_ratio_sums([0], [0], [0.5]), [], 1
        for _ in range(30):
            arm = rng.binomial(400, shares[choice])
            total = total + sample_ratio_sums(rng.binomial(arm, 1.0 - lost), 400 - arm, shares[choice])
            evidence.append(log_adaptive_sample_ratio(total))
            choice = min(max(choice + (1 if arm > 400 * shares[choice] else -1), 0), 3)
        result.append(p_value(evidence))
    return np.array(result)


def test_a_correct_adaptive_split_raises_a_false_alarm_at_most_alpha_often():
    alpha, runs = 0.1, 300
    assert (adaptive_p_values(0.0, runs, 61) <= alpha).mean() <= alpha + four_errors(alpha, runs)


def test_an_arm_that_loses_a_third_of_its_outcomes_raises_the_alarm():
    assert np.all(adaptive_p_values(1 / 3, 20, 62) <= ALPHA)


def test_a_fixed_split_raises_a_false_alarm_at_most_alpha_often():
    alpha, runs, rng = 0.1, 2000, np.random.default_rng(63)
    counts = np.cumsum(rng.multinomial(50, [0.7, 0.2, 0.1], (runs, 60)), axis=1)
    evidence = log_fixed_sample_ratio(counts.reshape(-1, 3), [0.7, 0.2, 0.1]).reshape(runs, 60)
    alarms = np.array([p_value(row) for row in evidence]) <= alpha
    assert 0.0 < alarms.mean() <= alpha + four_errors(alpha, runs)


def test_the_p_value_never_rises_again():
    assert p_value([1.0, 3.0, -2.0]) == pytest.approx(math.exp(-3.0))
    assert p_value(-5.0) == 1.0


# ---- draws, in three integers for each arm


def draws_of(drawn, slots):
    """Draws of one arm: drawn, slots: whole numbers (n,), out of `slots` each."""
    drawn, slots = [int(each) for each in drawn], [int(each) for each in slots]
    return Draws((sum(drawn),), (sum(slots),), (sum(each * (SLOTS - each) for each in slots),))


def test_the_evidence_of_draws_is_the_average_of_its_terms_in_forty_digits():
    drawn, slots = 5_400, [6_000] * 40_000 + [9_000] * 10_000
    with mpmath.workdps(40):
        over = drawn - mpmath.mpf(sum(slots)) / SLOTS
        variance = sum(mpmath.mpf(each) * (SLOTS - each) for each in (6_000, 9_000, 6_000, 6_000, 6_000)) * 10_000 / SLOTS**2
        tilts = [sign * mpmath.mpf(2) ** -k for k in range(9) for sign in (1, -1)]
        terms = [mpmath.e ** (tilt * over - (mpmath.e ** abs(tilt) - 1 - abs(tilt)) * variance) for tilt in tilts]
        expected = float(mpmath.log(sum(terms) / len(terms)))
    draws = Draws((drawn,), (sum(slots),), (sum(s * (SLOTS - s) for s in slots),))
    assert log_draw_evidence([draws])[0, 0] == pytest.approx(expected, rel=1e-12)


def test_one_draw_multiplies_no_term_by_more_than_1_on_average():
    """The whole proof of validity: exact, over every number of slots that an arm may have."""
    p = (np.arange(SLOTS + 1) / SLOTS)[:, None]
    factor = (1.0 - p) * np.exp(-TILTS * p) + p * np.exp(TILTS * (1.0 - p))
    assert np.all(factor <= np.exp(PSI * p * (1.0 - p)) * (1.0 + 1e-12))


def alarms_at(alpha, chance_of, runs, seed, looks=60, batch=50):
    """Share of runs that reach 1/alpha at any look, when the slots of each batch follow the draws before it."""
    rng = np.random.default_rng(seed)
    drawn, expected, variance = np.zeros(runs), np.zeros(runs), np.zeros(runs)
    reached = np.zeros(runs, dtype=bool)
    for _ in range(looks):
        slots = np.where(drawn * SLOTS > expected, 20_000, 2_000)  # most is at stake when the arm is ahead
        drawn += rng.binomial(batch, chance_of(slots / SLOTS))
        expected += batch * slots
        variance += batch * slots * (SLOTS - slots)
        evidence = log_draw_evidence([Draws(*(tuple(int(each) for each in column) for column in (drawn, expected, variance)))])
        reached |= evidence[0] >= -math.log(alpha)
    return reached.mean()


def test_true_draws_at_weights_that_follow_the_draws_raise_a_false_alarm_at_most_alpha_often():
    runs = 4000
    assert 0.0 < alarms_at(0.1, lambda p: p, runs, 71) <= 0.1 + four_errors(0.1, runs)


@pytest.mark.parametrize("wrong", [0.75, 1.35])
def test_an_arm_drawn_too_rarely_or_too_often_raises_the_alarm(wrong):
    assert alarms_at(ALPHA, lambda p: wrong * p, 50, 72, looks=800) == 1.0


def test_draws_add_up_in_any_order_to_the_same_evidence():
    rng = np.random.default_rng(73)
    slots = rng.integers(0, SLOTS, 500)
    drawn = rng.random(500) < slots / SLOTS
    order = rng.permutation(500)
    assert log_draw_evidence([draws_of(drawn, slots)]) == log_draw_evidence([draws_of(drawn[order], slots[order])])


def test_the_same_units_seen_by_nine_processes_are_no_more_surprising_than_by_one():
    """Two and a half standard deviations, which every ninetieth healthy experiment shows. As one sample it would be an alarm."""
    n = 100_000
    mean, variance = 0.1 * n, 0.09 * n
    once = Draws((round(mean + 2.5 * math.sqrt(variance)),), (n * 6554,), (n * 6554 * (SLOTS - 6554),))
    nine = Draws(*((9 * column[0],) for column in (once.drawn, once.expected, once.variance)))
    assert draw_p_values([nine], 1)[0] <= ALPHA
    assert draw_p_values([once] * 9, 1)[0] == draw_p_values([once], 1)[0] > 0.1


def test_shares_of_alpha_of_all_lives_sum_to_one():
    sure = draws_of([1] * 200, [655] * 200)
    nothing = draws_of([], [])
    evidence = log_draw_evidence([sure])[0, 0]
    for j in (1, 2, 10, 100):
        assert math.log(draw_p_values([nothing] * (j - 1) + [sure], 1)[0]) == pytest.approx(math.log(j * (j + 1)) - evidence)
    assert sum(1 / (j * (j + 1)) for j in range(1, 10**6)) < 1


def test_without_draws_nothing_is_surprising():
    assert draw_p_values([], 3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: log_fixed_sample_ratio([1, 2], [0.5, 0.6]), "shares"),
        (lambda: log_fixed_sample_ratio([1, 2], [1.0, 0.0]), "shares"),
        (lambda: log_fixed_sample_ratio([1, 2], [0.5, math.nan]), "shares"),
        (lambda: log_fixed_sample_ratio([1, 2, 3], [0.5, 0.5]), "counts"),
        (lambda: log_fixed_sample_ratio([1, math.nan], [0.5, 0.5]), "counts"),
        (lambda: log_fixed_sample_ratio([1, -2], [0.5, 0.5]), "counts"),
        (lambda: sample_ratio_sums([1], [5], [0.0]), "pi"),
        (lambda: p_value([0.0, math.nan]), "log_evidence"),
    ],
)
def test_impossible_rows_are_refused_by_name(call, field):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.violations[0].field == field
