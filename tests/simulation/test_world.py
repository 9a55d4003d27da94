"""The world: curves by hand, laws by their moments, chance that belongs to its place."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest, lognorm, poisson

from allocator.core.experiment import Arm, Guardrail, Metric, Reward, RewardModel, Segment
from allocator.core.experiment_rules import checked
from allocator.core.kernels import serve
from allocator.errors import InvalidArgument
from allocator.simulation import world as w

ARMS = (Arm("old", incumbent=True), Arm("new"))
KEY = np.array([5, 9], np.uint64)


def experiment(**changes):
    values = {"name": "x", "arms": ARMS, "reward": Reward("click"), "guardrails": (Guardrail("errors", "error", max=0.1),)}
    return checked(**{**values, **changes})


def world(**changes):
    metrics = {name: w.Metric({"old": w.Curve(0.1), "new": w.Curve(0.2)}) for name in ("click", "error")}
    return replace(w.World(metrics, w.Traffic(w.Curve(10.0))), **changes)


@pytest.mark.parametrize(
    ("curve", "seconds", "level"),
    [
        (w.Curve(0.2), 1e6, 0.2),
        (w.Curve(0.2, drift_per_hour=0.1), 1800.0, 0.25),
        (w.Curve(0.2, jumps=((10.0, 0.5), (20.0, 0.1))), 9.9, 0.2),
        (w.Curve(0.2, jumps=((10.0, 0.5), (20.0, 0.1))), 10.0, 0.5),
        (w.Curve(0.2, drift_per_hour=0.36, jumps=((10.0, 0.5),)), 100.0, 0.51),
        (w.Curve(0.2, season=w.Season(0.5, 100.0)), 25.0, 0.3),
        (w.Curve(0.2, season=w.Season(0.5, 100.0, phase_seconds=25.0)), 25.0, 0.2),
    ],
)
def test_a_curve_is_where_its_parts_say(curve, seconds, level):
    assert curve.at(seconds) == pytest.approx(level)


def test_a_shock_hits_every_arm_alike_and_only_while_it_lasts():
    rates = w.Rates(world(shocks=(w.Shock(10.0, 5.0, {"error": 0.3, "click": -0.15}),)), experiment())
    before, during, after = (rates.at(seconds)[:, 0] for seconds in (9.9, 12.0, 15.0))
    assert before.tolist() == after.tolist() == [[0.1, 0.1], [0.2, 0.2]]
    assert during.ravel().tolist() == pytest.approx([0.0, 0.4, 0.05, 0.5])  # a rate ends at 0


def test_segments_have_their_own_rates_and_reward_is_their_mean():
    spec = experiment(segments=(Segment("mobile", {"device": ("ios",)}),))
    rates = w.Rates(world(segments={"mobile": w.Segment(0.25, {"click": 3.0})}), spec)
    assert rates.at(0.0)[:, :, 0].tolist() == [pytest.approx([0.3, 0.1]), pytest.approx([0.6, 0.2])]
    assert rates.reward(0.0) == pytest.approx([0.15, 0.3])


def draw(law, centre, spread, n=20_000, by_unit=False, low=-math.inf, high=math.inf, arm=0, units=None):
    values = np.empty((n, 1))
    units = np.arange(n) if units is None else units
    zeros = np.zeros(n, np.int64)
    middle = np.full((2, 1, 1), centre)
    kinds, unit, width = np.array([law.value]), np.array([by_unit]), np.array([spread])
    serve.respond(*KEY, 0, units, zeros, zeros + arm, kinds, unit, middle, width, np.array([low]), np.array([high]), values)
    return values[:, 0]


def test_every_law_has_its_distribution():
    rate = draw(w.Law.RATE, 0.3, 0.0)
    assert abs(rate.mean() - 0.3) < 4 * math.sqrt(0.21 / rate.size)
    assert kstest(draw(w.Law.NORMAL, 5.0, 2.0), "norm", (5.0, 2.0)).pvalue > 1e-4
    assert kstest(draw(w.Law.LOG_NORMAL, 90.0, 0.4), lognorm(0.4, scale=90.0).cdf).pvalue > 1e-4
    counts = draw(w.Law.COUNT, 3.5, 0.0)
    expected = poisson(3.5).pmf(np.arange(12))
    found = np.bincount(counts.astype(int), minlength=12)[:12] / counts.size
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / counts.size) + 1e-9).all()


def test_values_are_cut_to_what_the_experiment_takes():
    values = draw(w.Law.NORMAL, 5.0, 10.0, low=0.0, high=10.0)
    assert (values.min(), values.max()) == (0.0, 10.0)


def test_a_unit_has_the_same_luck_each_time_where_it_is_said_to():
    units = np.arange(20_000) % 100
    lucky = draw(w.Law.RATE, 0.3, 0.0, by_unit=True, units=units).reshape(200, 100)
    assert (lucky == lucky[0]).all()
    assert not (draw(w.Law.RATE, 0.3, 0.0, units=units).reshape(200, 100) == lucky[0]).all()


def test_arms_have_outcomes_of_their_own_and_ask_for_them_again_in_vain():
    one, other = draw(w.Law.RATE, 0.5, 0.0, arm=0), draw(w.Law.RATE, 0.5, 0.0, arm=1)
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(one.size)
    assert (one == draw(w.Law.RATE, 0.5, 0.0, arm=0)).all()


@pytest.mark.parametrize("sticky", [True, False])
def test_units_fall_evenly_on_slots_and_segments_and_sticky_ones_return(sticky):
    n, population = 50_000, 1000
    units, hashes, points, segments = np.empty(n, np.int64), np.empty(n, np.uint64), np.empty(n, np.int64), np.empty(n, np.int64)
    serve.arrive_units(*KEY, 7, population, np.array([0.2, 1.0]), sticky, units, hashes, points, segments)
    assert units.min() >= 0
    assert units.max() < population
    share = np.array([segments[units == unit][0] for unit in range(population)])
    assert abs((share == 0).mean() - 0.2) < 4 * math.sqrt(0.16 / population)
    per_unit = [len(set(points[units == unit].tolist())) for unit in range(50)]
    assert (max(per_unit) == 1) == sticky
    if not sticky:
        assert kstest(points / 65_536, "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"metrics": {"click": world().metrics["click"]}}, "world.metrics"),
        ({"metrics": {**world().metrics, "x": world().metrics["click"]}}, "world.metrics[x]"),
        ({"metrics": {**world().metrics, "click": w.Metric({"old": w.Curve(0.1)})}}, "world.metrics[click].arms"),
        ({"metrics": {**world().metrics, "click": w.Metric(world().metrics["click"].arms, w.Law.NORMAL, 1.0)}}, "world.metrics[click].law"),
        ({"traffic": w.Traffic(w.Curve(math.nan))}, "world.traffic.rate.level"),
        ({"traffic": w.Traffic(w.Curve(1.0), lag_seconds=1.0)}, "world.traffic.lag"),
        ({"traffic": w.Traffic(w.Curve(1.0), population=-1)}, "world.traffic.population"),
        ({"reports": w.Reports(1e6)}, "world.reports.delay"),
        ({"reports": w.Reports(successes_only=True)}, "world.reports.successesOnly"),
        ({"segments": {"mobile": w.Segment(0.5)}}, "world.segments[mobile]"),
        ({"shocks": (w.Shock(0.0, 0.0, {}),)}, "world.shocks[0].duration"),
    ],
)
def test_what_is_not_allowed_is_named(changes, field):
    with pytest.raises(InvalidArgument) as caught:
        w.Rates(world(**changes), experiment())
    assert caught.value.violations[0].field == field


def test_a_count_needs_the_law_of_counts():
    spec = experiment(reward=Reward("click", RewardModel.POISSON), metrics=(Metric("error"),))
    (found,) = w.violations(world(), spec)
    assert found.message == "got RATE; COUNT goes with a POISSON reward"
