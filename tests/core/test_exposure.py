"""Exposure: one-sided caps, floors, and whole slots.

Expectations come from worked examples, from the definition of the projection solved by scipy's SLSQP, and from the
bounds themselves.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from allocator.core.assignment import SLOTS
from allocator.core.exposure import allowed, check, steered, to_slots
from allocator.errors import InvalidArgument

EDGE = 1e-15
EVERY_SHARE = st.floats(0.0, 1.0, allow_subnormal=False)
RAW = st.one_of(st.just(0.0), st.floats(1e-3, 1.0), st.floats(-300.0, 0.0).map(lambda exponent: 10.0**exponent), st.just(1.0))


def raws(arms):
    return st.lists(RAW, min_size=arms, max_size=arms).filter(lambda values: sum(values) > 1e-200)


def distribution(raw):
    values = np.array(raw)
    return values / math.fsum(values)


@st.composite
def instances(draw, most=8):
    """(wanted, incumbent, cap, per_candidate, floors, eligible), with each floor at most its own cap."""
    arms = draw(st.integers(1, most))
    raw = draw(raws(arms))
    per_candidate = np.array(draw(st.lists(EVERY_SHARE, min_size=arms, max_size=arms)))
    fractions = np.array(draw(st.lists(st.sampled_from([0.0, 0.01, 0.2, 1.0]), min_size=arms, max_size=arms)))
    eligible = np.array(draw(st.lists(st.sampled_from([True, True, True, False]), min_size=arms, max_size=arms)))
    cap = draw(st.one_of(EVERY_SHARE, st.sampled_from([0.0, 0.01, 0.5, 1.0])))
    return distribution(raw), draw(st.integers(0, arms - 1)), cap, per_candidate, per_candidate * fractions, eligible


def candidates(weights, incumbent):
    return np.delete(weights, incumbent)


# ---- worked examples


def test_a_cap_per_candidate_sends_the_refused_share_to_the_incumbent():
    np.testing.assert_allclose(allowed([0.05, 0.9, 0.05], 0, 1.0, 0.2), [0.75, 0.2, 0.05], atol=EDGE)


def test_a_total_cap_scales_candidates_alike_above_their_floors():
    np.testing.assert_allclose(allowed([0.05, 0.6, 0.3, 0.05], 0, 0.5, 0.5, 0.01), [0.5, 0.2941176, 0.1764706, 0.0294118], atol=5e-8)


def test_a_capped_leader_gives_nothing_to_a_candidate_that_is_probably_worse():
    """Proportional water-filling would serve the last arm, whose P(best) is 0.07, to half of the users."""
    np.testing.assert_allclose(allowed([0.03, 0.9, 0.07], 0, 1.0, [1.0, 0.1, 0.5]), [0.83, 0.1, 0.07], atol=EDGE)


def test_the_incumbent_may_stand_at_any_index():
    np.testing.assert_allclose(allowed([0.9, 0.05, 0.05], 2, 1.0, 0.2), [0.2, 0.05, 0.75], atol=EDGE)


def test_the_caps_do_not_apply_to_the_incumbent():
    np.testing.assert_allclose(allowed([0.9, 0.1], 0, 1.0, 0.0), [1.0, 0.0])


def test_an_ineligible_candidate_gets_nothing_whatever_its_floor():
    weights = allowed([0.2, 0.5, 0.3], 0, 1.0, 1.0, 0.1, [True, False, True])
    np.testing.assert_allclose(weights, [0.7, 0.0, 0.3], atol=EDGE)
    assert to_slots(weights, 0.1, 0)[1] == 0


def test_floors_that_no_longer_fit_are_scaled_down_and_the_cap_stands():
    weights = allowed([1.0, *[0.0] * 20], 0, 0.1, 1.0, 0.01)
    np.testing.assert_allclose(weights, [0.9, *[0.005] * 20], atol=EDGE)


def test_a_stage_with_cap_zero_serves_the_incumbent_alone():
    assert allowed([0.0, 0.5, 0.5], 0, 0.0, 1.0, 0.01).tolist() == [1.0, 0.0, 0.0]


def test_a_lone_incumbent_gets_everything():
    assert allowed([1.0], 0, 0.5).tolist() == [1.0]


def test_strict_mode_aims_below_the_cap():
    assert steered(0.2) == pytest.approx(0.19)


# ---- what holds for every input


@given(instances())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_bounds_hold_to_the_last_bit_or_two(instance):
    wanted, incumbent, cap, per_candidate, floors, eligible = instance
    weights = allowed(wanted, incumbent, cap, per_candidate, floors, eligible)
    others = candidates(weights, incumbent)
    scale = min(1.0, cap / max(math.fsum(candidates(floors * eligible, incumbent)), 1e-300))
    assert np.all(others <= candidates(per_candidate, incumbent) + EDGE)
    assert np.all(others >= candidates(floors * eligible, incumbent) * scale - EDGE)
    assert math.fsum(others) <= cap + EDGE
    assert np.all(candidates(weights * ~eligible, incumbent) == 0.0)
    assert abs(math.fsum(weights) - 1.0) <= EDGE
    assert np.all(weights >= 0.0)


@given(instances())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_candidate_gets_more_than_was_wanted_for_it_except_by_its_floor(instance):
    wanted, incumbent, *limits = instance
    weights = allowed(wanted, incumbent, *limits)
    most = np.maximum(wanted, limits[2])
    assert np.all(candidates(weights, incumbent) <= candidates(most, incumbent))


@given(instances())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_is_allowed_is_allowed_again(instance):
    wanted, incumbent, *limits = instance
    once = allowed(wanted, incumbent, *limits)
    np.testing.assert_allclose(allowed(once, incumbent, *limits), once, atol=EDGE, rtol=0)


@given(instances(), st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_small_change_of_the_wanted_weights_changes_the_allowed_ones_at_most_twice_as_much(instance, data):
    wanted, incumbent, *limits = instance
    raw = data.draw(raws(len(wanted)))
    towards = data.draw(st.sampled_from([1e-12, 1e-6, 1e-3, 0.1, 1.0]))
    other = distribution((1.0 - towards) * wanted + towards * distribution(raw))
    moved = np.abs(allowed(wanted, incumbent, *limits) - allowed(other, incumbent, *limits)).sum()
    assert moved <= 2.0 * np.abs(wanted - other).sum() + 4 * EDGE


@given(instances(), st.floats(0.0, 1.0))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_smaller_total_cap_raises_no_candidate(instance, factor):
    wanted, incumbent, cap, *limits = instance
    before = allowed(wanted, incumbent, cap, *limits)
    after = allowed(wanted, incumbent, cap * factor, *limits)
    assert np.all(candidates(after - before, incumbent) <= EDGE)


@given(instances(), st.floats(0.0, 1.0), st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_smaller_cap_of_a_candidate_does_not_raise_it(instance, factor, data):
    wanted, incumbent, cap, per_candidate, floors, eligible = instance
    arm = data.draw(st.integers(0, len(wanted) - 1))
    assume(arm != incumbent)
    tighter = per_candidate.copy()
    tighter[arm] = max(floors[arm], per_candidate[arm] * factor)
    before = allowed(wanted, incumbent, cap, per_candidate, floors, eligible)
    after = allowed(wanted, incumbent, cap, tighter, floors, eligible)
    assert after[arm] <= before[arm] + EDGE


@pytest.mark.parametrize("seed", range(30))
def test_a_binding_cap_gives_the_kl_projection_that_slsqp_finds(seed):
    rng = np.random.default_rng(seed)
    arms = int(rng.integers(3, 9))
    wanted = rng.dirichlet(np.full(arms, 0.7)) + 1e-4
    wanted /= wanted.sum()
    per_candidate = rng.uniform(0.1, 1.0, arms)
    floors = rng.uniform(0.0, 0.04, arms)
    base = np.minimum(wanted, per_candidate)[1:]
    cap = rng.uniform(floors[1:].sum(), np.maximum(base, floors[1:]).sum())

    solved = minimize(
        lambda w: np.sum(w * np.log(w / base) - w + base),
        floors[1:] + (cap - floors[1:].sum()) / (arms - 1),
        jac=lambda w: np.log(w / base),
        bounds=[(max(floor, 1e-12), 1.0) for floor in floors[1:]],
        constraints={"type": "eq", "fun": lambda w: w.sum() - cap, "jac": lambda w: np.ones_like(w)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert solved.status in (0, 8)  # converged, or no step left that improves within double precision
    np.testing.assert_allclose(allowed(wanted, 0, cap, per_candidate, floors)[1:], solved.x, atol=1e-6)


# ---- slots


@given(instances(most=12))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_rounding_to_slots_passes_no_cap(instance):
    wanted, incumbent, cap, per_candidate, floors, eligible = instance
    weights = allowed(wanted, incumbent, cap, per_candidate, floors, eligible)
    slots = to_slots(weights, floors, incumbent, cap, per_candidate)
    assert sum(slots) == SLOTS
    assert all(type(count) is int and count >= 0 for count in slots)
    assert SLOTS - slots[incumbent] <= cap * SLOTS
    for arm, count in enumerate(slots):
        if arm != incumbent:
            assert count <= per_candidate[arm] * SLOTS
            assert abs(count - weights[arm] * SLOTS) <= 1.0 + 1e-9
            assert eligible[arm] or count == 0


@given(instances())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_floor_is_kept_where_no_cap_forbids_it(instance):
    wanted, incumbent, _, _, floors, _ = instance
    assume(candidates(floors, incumbent).sum() < 1.0)
    slots = to_slots(allowed(wanted, incumbent, 1.0, 1.0, floors), floors, incumbent)
    room = slots[incumbent] > 0  # else the total cap took the last slot of a floor
    assert not room or all(count >= floors[arm] * SLOTS for arm, count in enumerate(slots) if arm != incumbent)


@given(instances())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_without_floors_candidates_are_rounded_down(instance):
    wanted, incumbent, cap, per_candidate, _floors, eligible = instance
    weights = allowed(wanted, incumbent, cap, per_candidate, 0.0, eligible)
    slots = to_slots(weights, 0.0, incumbent, cap, per_candidate)
    for arm, count in enumerate(slots):
        if arm != incumbent:
            assert count in {math.floor(weights[arm] * SLOTS), math.floor(per_candidate[arm] * SLOTS)}


def test_the_cap_wins_over_the_last_slot_of_an_equal_floor():
    """1 % is 655.36 slots: the floor asks for 656, the cap allows 655."""
    assert to_slots([0.99, 0.01], 0.01, 0, 0.01) == (SLOTS - 655, 655)
    assert to_slots([0.99, 0.01], 0.01, 0) == (SLOTS - 656, 656)
    assert to_slots([0.99, 0.01], 0.01, 0, 1.0, 0.01) == (SLOTS - 655, 655)


def test_sixty_four_arms_on_their_floors_stay_inside_the_total_cap():
    floor = 0.5 / 63
    weights = allowed([1.0, *[0.0] * 63], 0, 0.5, 0.5, floor)
    slots = to_slots(weights, floor, 0, 0.5, 0.5)
    assert slots[0] == SLOTS // 2
    assert set(slots[1:]) == {math.floor(floor * SLOTS), math.ceil(floor * SLOTS)}


def test_a_present_weight_as_cap_holds_a_candidate_at_its_slots():
    """How a HOLD is expressed: no weight may rise."""
    held = np.array([0, 777, 0]) / SLOTS
    weights = allowed([0.1, 0.5, 0.4], 0, 1.0, held)
    assert to_slots(weights, 0.0, 0, 1.0, held) == (SLOTS - 777, 777, 0)


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"wanted": [0.5, math.nan]}, "wanted[1]"),
        ({"wanted": [0.5, 0.6]}, "wanted"),
        ({"wanted": [1.5, -0.5]}, "wanted[0]"),
        ({"wanted": []}, "wanted"),
        ({"wanted": [[0.5, 0.5]]}, "wanted"),
        ({"wanted": ["a", "b"]}, "wanted"),
        ({"incumbent": 2}, "incumbent"),
        ({"incumbent": -1}, "incumbent"),
        ({"cap": math.nan}, "cap"),
        ({"cap": 1.01}, "cap"),
        ({"cap": -0.1}, "cap"),
        ({"per_candidate": math.nan}, "per_candidate"),
        ({"per_candidate": [1.0, 1.0, 1.0]}, "per_candidate"),
        ({"floors": [0.0, math.inf]}, "floors[1]"),
        ({"per_candidate": 0.1, "floors": 0.2}, "floors[1]"),
        ({"eligible": [True]}, "eligible"),
        ({"eligible": [1.0, 0.0]}, "eligible"),
    ],
)
def test_bad_input_is_refused_and_named(arguments, field):
    good = {"wanted": [0.5, 0.5], "incumbent": 0, "cap": 1.0, "per_candidate": 1.0, "floors": 0.0, "eligible": None}
    with pytest.raises(InvalidArgument) as caught:
        allowed(**(good | arguments))
    assert field in [violation.field for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("weights", "cap", "per_candidate", "field"),
    [([0.4, 0.6], 0.5, 1.0, "weights"), ([0.4, 0.6], 1.0, 0.5, "weights[1]"), ([0.4, 0.5], 1.0, 1.0, "weights")],
)
def test_weights_above_their_caps_do_not_become_slots(weights, cap, per_candidate, field):
    with pytest.raises(InvalidArgument) as caught:
        to_slots(weights, 0.0, 0, cap, per_candidate)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({}, []),
        ({"floors": 0.25}, []),
        ({"floors": 0.26}, ["floors"]),
        ({"floors": [0.9, 0.25, 0.25]}, []),
        ({"floors": [0.0, 0.3, 0.0], "per_candidate": [0.0, 0.2, 1.0]}, ["floors[1]"]),
        ({"cap": 1.1}, ["cap"]),
        ({"cap": -0.1, "per_candidate": 2.0}, ["per_candidate", "cap"]),
        ({"cap": math.nan}, ["cap"]),
        ({"incumbent": 3}, ["incumbent"]),
    ],
)
def test_a_spec_that_cannot_be_met_is_refused_when_applied(arguments, fields):
    good = {"cap": 0.5, "per_candidate": 1.0, "floors": 0.0, "arms": 3, "incumbent": 0}
    assert [violation.field for violation in check(**(good | arguments))] == fields
