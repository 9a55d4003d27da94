"""Policies: from P(best) to wanted weights.

Expectations come from worked examples, from the defining formulas in 60-digit arithmetic, and from drawing as the
definitions say.
"""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.exposure import allowed
from allocator.core.policy import (
    NOISE,
    Policy,
    PolicyKind,
    exploration,
    fixed,
    floor_schedule,
    temper,
    thompson,
    top_two,
    weights,
)
from allocator.errors import InvalidArgument

RAW = st.one_of(st.just(0.0), st.floats(1e-3, 1.0), st.floats(-300.0, 0.0).map(lambda exponent: 10.0**exponent), st.just(1.0))
CHANCES = (
    st.lists(RAW, min_size=1, max_size=10)
    .filter(lambda values: sum(values) > 1e-200)
    .map(lambda values: np.array(values) / math.fsum(values))
)
RULES = [
    thompson,
    fixed,
    top_two,
    exploration,
    lambda best: temper(best, 0.3),
    lambda best: floor_schedule(best, 10**6),
]


def exact_top_two(best, beta):
    with mpmath.workdps(60):
        a = [mpmath.mpf(float(value)) for value in best]
        a = [value / mpmath.fsum(a) for value in a]
        rest = [mpmath.fsum(a[:i] + a[i + 1 :]) for i in range(len(a))]
        odds = [value / others for value, others in zip(a, rest, strict=True)]
        second = [mpmath.fsum(odds[:i] + odds[i + 1 :]) for i in range(len(a))]
        return [float(a[i] * (beta + (1 - mpmath.mpf(beta)) * second[i])) for i in range(len(a))]


# ---- every rule


@pytest.mark.parametrize("rule", RULES)
@given(best=CHANCES)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_weights_are_a_distribution_for_chances_down_to_1e_300(rule, best):
    result = rule(best)
    assert result.dtype == np.float64
    assert result.shape == best.shape
    assert np.all(result >= 0.0)
    assert abs(math.fsum(result) - 1.0) <= 1e-14


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "best",
    [[0.5, math.nan], [0.5, math.inf], [0.5, 0.6], [1.1, -0.1], [], [[0.5, 0.5]], 1.0, ["a"], [True, False], None],
)
def test_what_is_no_distribution_is_refused(rule, best):
    with pytest.raises(InvalidArgument):
        rule(best)


@pytest.mark.parametrize("rule", RULES[:5])
def test_arms_alike_get_the_same(rule):
    np.testing.assert_allclose(rule(np.full(7, 1 / 7)), np.full(7, 1 / 7), rtol=1e-14)


def test_a_rule_leaves_its_input_alone():
    best = np.array([0.5, 0.3, 0.2])
    thompson(best)[0] = 9.0
    assert best.tolist() == [0.5, 0.3, 0.2]


# ---- one by one


def test_thompson_sampling_is_p_best():
    assert thompson([0.5, 0.25, 0.25]).tolist() == [0.5, 0.25, 0.25]


def test_top_two_agrees_with_the_worked_example():
    np.testing.assert_allclose(top_two([0.5, 0.3, 0.2]), [0.41964286, 0.3375, 0.24285714], atol=5e-9)


@given(CHANCES.filter(lambda best: len(best) > 1 and 1.0 - best.max() > 1e-6), st.floats(0.0, 1.0))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_top_two_agrees_with_its_formula(best, beta):
    np.testing.assert_allclose(top_two(best, beta), exact_top_two(best, beta), rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("rest", [1e-3, 1e-8, 2e-12])
def test_top_two_keeps_its_digits_when_one_arm_is_all_but_certain(rest):
    """Here 1 - max would keep few digits, and a sum over all arms less the arm's own term none."""
    best = [rest * 0.75, 1.0 - rest, rest * 0.25]
    np.testing.assert_allclose(top_two(best, 0.5), [0.375, 0.5, 0.125], rtol=2 * rest + 1e-13)


def test_top_two_is_what_drawing_until_another_arm_comes_up_gives():
    rng = np.random.default_rng(11)
    best, beta, draws = np.array([0.6, 0.3, 0.1]), 0.4, 200_000
    first = rng.choice(3, size=draws, p=best)
    again = rng.random(draws) >= beta
    chosen = first.copy()
    pending = np.flatnonzero(again)
    while pending.size:
        chosen[pending] = rng.choice(3, size=pending.size, p=best)
        pending = pending[chosen[pending] == first[pending]]
    expected = top_two(best, beta)
    margin = 5 * np.sqrt(expected * (1 - expected) / draws)
    assert np.all(np.abs(np.bincount(chosen) / draws - expected) < margin)


@pytest.mark.parametrize("rule", [top_two, exploration])
@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ([1.0, 0.0, 0.0], [0.5, 0.25, 0.25]),
        ([0.0, 1.0], [0.5, 0.5]),
        ([1e-300, 1.0, 0.0], [0.5, 0.5, 0.0]),
        ([1e-14, 1.0, 1e-13], [0.0, 0.5, 0.5]),
        ([1.0], [1.0]),
    ],
)
def test_below_the_noise_the_second_largest_arm_is_the_rival(rule, best, expected):
    assert sum(best) - 1.0 < NOISE
    np.testing.assert_allclose(rule(best), expected, atol=1e-15)


@given(CHANCES.filter(lambda best: len(best) > 1 and 1.0 - best.max() > 1e-6))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_exploration_agrees_with_its_formula(best):
    with mpmath.workdps(60):
        a = [mpmath.mpf(float(value)) for value in best]
        a = [value / mpmath.fsum(a) for value in a]
        products = [value * (1 - value) for value in a]
        expected = [float(product / mpmath.fsum(products)) for product in products]
    np.testing.assert_allclose(exploration(best), expected, rtol=1e-13, atol=1e-300)


@given(CHANCES, st.floats(0.0, 1.0))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_tempering_agrees_with_its_formula(best, power):
    with mpmath.workdps(60):
        powers = [mpmath.mpf(float(value)) ** mpmath.mpf(power) for value in best]
        expected = [float(value / mpmath.fsum(powers)) for value in powers]
    np.testing.assert_allclose(temper(best, power), expected, rtol=1e-12, atol=1e-300)


def test_tempering_runs_from_an_even_split_to_thompson_sampling():
    best = [0.98, 0.02, 0.0]
    np.testing.assert_allclose(temper(best, 0.0), [1 / 3] * 3)
    assert temper(best, 1.0).tolist() == best
    assert np.all(np.diff([temper(best, power)[0] for power in (0.1, 0.4, 0.7, 1.0)]) > 0)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, None])
def test_a_power_or_beta_outside_0_to_1_is_refused(value):
    with pytest.raises(InvalidArgument, match="power"):
        temper([0.5, 0.5], value)
    with pytest.raises(InvalidArgument, match="beta"):
        top_two([0.5, 0.5], value)


# ---- floor schedule


def test_the_floor_starts_with_an_even_split_and_fades_like_its_power_of_the_decisions():
    certain = [1.0, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(floor_schedule(certain, 0), [0.25] * 4)
    np.testing.assert_allclose(floor_schedule(certain, 1), [0.25] * 4)
    assert floor_schedule(certain, 10**6)[1] == pytest.approx(0.25 * 10 ** (-6 * 0.24), rel=1e-14)
    assert floor_schedule(certain, 10**6, exponent=0.1)[1] == pytest.approx(0.25 * 10**-0.6, rel=1e-14)
    assert floor_schedule(certain, 10**6, scale=2.0)[1] == pytest.approx(0.5 * 10 ** (-6 * 0.24), rel=1e-14)


@given(CHANCES, st.integers(0, 10**12), st.floats(0.0, 0.24), st.floats(1.0, 100.0))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_arm_falls_below_its_part_of_the_slowest_allowed_floor(best, decisions, exponent, scale):
    result = floor_schedule(best, decisions, exponent, scale)
    assert np.all(result >= max(decisions, 1) ** -0.24 / len(best) * (1 - 1e-14))


def test_ineligible_arms_take_no_part_in_the_floor():
    assert floor_schedule([0.0, 1.0, 0.0], 1, eligible=[True, True, False]).tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"decisions": -1}, "decisions"),
        ({"decisions": 2.5}, "decisions"),
        ({"decisions": 1, "exponent": 0.25}, "exponent"),
        ({"decisions": 1, "exponent": math.nan}, "exponent"),
        ({"decisions": 1, "scale": 0.5}, "scale"),
        ({"decisions": 1, "scale": math.inf}, "scale"),
        ({"decisions": 1, "eligible": [False, False]}, "eligible"),
        ({"decisions": 1, "eligible": [True]}, "eligible"),
        ({"decisions": 1, "eligible": [1, 1]}, "eligible"),
    ],
)
def test_a_floor_that_would_spoil_inference_is_refused(arguments, field):
    with pytest.raises(InvalidArgument) as caught:
        floor_schedule([0.5, 0.5], **arguments)
    assert [violation.field for violation in caught.value.violations] == [field]


# ---- the spec's policy


BEST = np.array([0.5, 0.0, 0.3, 0.2])
ELIGIBLE = np.array([True, False, True, True])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(), [0.5, 0.3, 0.2]),
        (Policy(power=0.0), [1 / 3, 1 / 3, 1 / 3]),
        (Policy(PolicyKind.TOP_TWO), [0.41964286, 0.3375, 0.24285714]),
        (Policy(PolicyKind.TOP_TWO, top_two_beta=1.0), [0.5, 0.3, 0.2]),
        (Policy(PolicyKind.TOP_TWO, power=0.0), [1 / 3, 1 / 3, 1 / 3]),
        (Policy(PolicyKind.EXPLORATION), np.array([0.25, 0.21, 0.16]) / 0.62),
        (Policy(floor_schedule=True), [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_a_policy_shares_among_the_eligible_arms_only(policy, expected):
    wanted = weights(policy, BEST, 0, ELIGIBLE)
    assert wanted[1] == 0.0
    np.testing.assert_allclose(wanted[ELIGIBLE], expected, atol=5e-9)


def test_a_rival_below_the_noise_is_never_an_ineligible_arm():
    wanted = weights(Policy(PolicyKind.TOP_TWO), [1.0, 0.0, 0.0], 0, [True, False, True])
    assert wanted.tolist() == [0.5, 0.0, 0.5]


def test_decisions_count_only_with_a_floor_schedule():
    best = [0.9, 0.1]
    assert weights(Policy(), best, 10).tolist() == weights(Policy(), best, 10**6).tolist() == best
    scheduled = Policy(floor_schedule=True)
    np.testing.assert_allclose(weights(scheduled, best, 10**6), floor_schedule(best, 10**6))


def test_fixed_shares_ignore_what_was_learned_and_the_incumbent_covers_for_an_ineligible_arm():
    policy = Policy(PolicyKind.FIXED, shares=(0.5, 0.3, 0.2))
    eligible = [True, False, True]
    wanted = weights(policy, [0.0, 0.0, 1.0], 10, eligible)
    assert wanted.tolist() == [0.5, 0.3, 0.2]
    np.testing.assert_allclose(allowed(wanted, 0, 1.0, 1.0, 0.0, eligible), [0.8, 0.0, 0.2])


def test_a_chance_for_an_ineligible_arm_is_refused():
    """P(best) among fewer arms is another integral, not the old one with an entry struck out."""
    for policy in (Policy(), Policy(PolicyKind.FIXED, shares=(0.5, 0.5))):
        with pytest.raises(InvalidArgument, match="not eligible"):
            weights(policy, [0.5, 0.5], 0, [True, False])


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        ({"power": 1.5}, ["power"]),
        ({"power": math.nan, "top_two_beta": -1.0}, ["power", "top_two_beta"]),
        ({"kind": "THOMPSON"}, ["kind"]),
        ({"kind": PolicyKind.FIXED}, ["shares"]),
        ({"shares": (1.0,)}, ["shares"]),
        ({"kind": PolicyKind.FIXED, "shares": (0.5, 0.4)}, ["shares"]),
    ],
)
def test_a_policy_that_means_nothing_is_refused(values, fields):
    with pytest.raises(InvalidArgument) as caught:
        Policy(**values)
    assert [violation.field for violation in caught.value.violations] == fields


def test_fixed_shares_for_other_arms_are_refused():
    with pytest.raises(InvalidArgument, match="shares"):
        weights(Policy(PolicyKind.FIXED, shares=(0.5, 0.5)), [0.2, 0.3, 0.5])
