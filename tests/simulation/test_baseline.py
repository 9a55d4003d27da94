"""Policies of the literature in a world: the same as a planner meets, heard of at the same ticks, and learned from as their kernels do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from allocator.core.experiment import Arm, Goal, Guardrail, Policy, Reward, Segment
from allocator.core.experiment_rules import checked
from allocator.core.learning import reward_sums
from allocator.core.settling import closing
from allocator.errors import InvalidArgument
from allocator.simulation import POLICIES, simulate, study, summarise
from allocator.simulation import world as w
from allocator.simulation.baseline import Baseline
from allocator.simulation.parallel import child, root_seed
from allocator.simulation.run import Rehearsal
from allocator.simulation.scenario import Scenario

SEED = child(root_seed(4), 0)


def scenario(reward=None, metrics=None, traffic=None, reports=w.Reports(), segments=None, shocks=(), seconds=60.0, spec=None, **more):  # noqa: B008
    experiment = checked(
        name="two",
        arms=(Arm("old", incumbent=True), Arm("new")),
        reward=reward or Reward("click", window_seconds=20.0),
        segments=tuple(Segment(name, {"device": (name,)}) for name in segments or {}),
        **(spec or {}),
    )
    found = metrics or {"click": w.Metric({"old": w.Curve(0.3), "new": w.Curve(0.5)})}
    world = w.World(found, traffic or w.Traffic(w.Curve(30.0)), reports, segments or {}, tuple(shocks))
    return Scenario.checked(experiment=experiment, world=world, duration_seconds=seconds, **more)


def test_slow_and_lost_reports_cost_a_policy_of_the_literature_what_they_cost_a_planner():
    """Nothing is heard of for fifteen of twenty minutes: whoever treats unknown arms alike loses half of the gap, about 1,800."""
    two = {"click": w.Metric({"old": w.Curve(0.1), "new": w.Curve(0.3)})}
    late = scenario(
        Reward("click"), two, w.Traffic(w.Curve(20.0)), w.Reports(900.0, steady=True, missing=0.9), seconds=1200.0, tick_seconds=5.0,
        replications=4, policies=("THOMPSON", "ucb1", "kl_ucb", "thompson", "tsallis_inf"),
    )  # fmt: skip
    prompt = replace(late, world=replace(late.world, reports=w.Reports()))
    for policy, runs in study(late).runs.items():
        assert all(run.regret > 1600 for run in runs), policy
        assert all(0.88 < run.missing / run.requests < 0.92 for run in runs), policy
    for policy, runs in study(prompt).runs.items():
        assert all(run.regret < 500 for run in runs), policy


SHOCKED = w.Shock(10.0, 20.0, {"click": -0.2})
BY_SEGMENT = {"ios": w.Segment(0.3, {"click": 1.5}), "mac": w.Segment(0.2, {"click": 0.5})}
WITH_ERRORS = {
    "click": w.Metric({"old": w.Curve(0.3), "new": w.Curve(0.5)}),
    "error": w.Metric({"old": w.Curve(0.05), "new": w.Curve(0.05)}),
}
WORLDS = {
    "prompt": scenario(),
    "late, lost and repeated": scenario(reports=w.Reports(6.0, missing=0.2, duplicates=0.3)),
    "failures first": scenario(
        metrics=WITH_ERRORS, reports=w.Reports(8.0, bad_delay_seconds=0.5), spec={"guardrails": (Guardrail("errors", "error", max=0.9),)}
    ),
    "cohorts of successes": scenario(
        Reward("click", window_seconds=8.0, missing=0.0), reports=w.Reports(2.0, missing=0.1, successes_only=True)
    ),
    "cohorts that count half": scenario(Reward("click", window_seconds=8.0, missing=0.5), reports=w.Reports(2.0, missing=0.3)),
    "segments, a shock, units that return": scenario(
        traffic=w.Traffic(w.Curve(30.0), population=50), reports=w.Reports(3.0), segments=BY_SEGMENT, shocks=(SHOCKED,)
    ),
    "coarse ticks": scenario(reports=w.Reports(6.0), tick_seconds=7.0, seconds=120.0),
}


class Led(Baseline):
    """A baseline that is told which arms to serve."""

    arms: np.ndarray

    def choose(self, batch):
        return self.arms


class Told(Rehearsal):
    """A rehearsal that remembers what it decided and what that paid."""

    def decide(self, batch):
        self.decided = super().decide(batch)
        return self.decided


@pytest.mark.parametrize("name", WORLDS)
def test_whoever_serves_the_same_arms_has_heard_the_same_after_every_tick(name):
    chosen = WORLDS[name]
    planner, policy = Told(chosen, SEED), Led(chosen, SEED, "thompson")
    for _ in range(chosen.ticks):
        planner.tick()
        policy.arms = planner.decided[0]
        policy.tick()
        sums = reward_sums(chosen.experiment, planner.found)
        assert (policy.heard.tolist(), policy.good.tolist()) == (sums.count.tolist(), sums.total.tolist())
    assert policy.heard.sum() > 100
    assert policy.ledger.reported == planner.ledger.reported
    assert (policy.requests, policy.books.regret) == (planner.requests, planner.log.regret)
    assert policy.books.covered.tolist() == pytest.approx(planner.log.covered.tolist(), nan_ok=True)


def test_forgetting_is_a_planners_and_no_part_of_the_world():
    chosen = scenario(spec={"policy": Policy(half_life_seconds=64.0)})
    policy = Baseline(chosen, SEED, "thompson")
    policy.play()
    assert policy.heard.sum() == policy.requests == sum(policy.books.exposures)


class Kept(Baseline):
    """A baseline that remembers, tick by tick, when it decided, its arms, its chances and what the arms paid."""

    def __init__(self, *of):
        super().__init__(*of)
        self.kept, send = [], self.ledger.send

        def keep(first, arms, segments, flags, plans, values, now):
            self.kept.append((now, arms, self._share.copy(), values[:, 0].copy()))
            send(first, arms, segments, flags, plans, values, now)

        self.ledger.send = keep


@pytest.mark.parametrize("policy", ["exp3", "tsallis_inf"])
@pytest.mark.parametrize("missing", [None, 0.0])
def test_rewards_are_divided_by_the_chance_their_arm_had_when_it_was_decided(policy, missing):
    """Against a plain twin: a steady delay of 3 s, then every decision whose outcome, or whose cohort, a planner would count by now."""
    chosen = scenario(
        Reward("click", window_seconds=8.0, missing=missing), reports=w.Reports(3.0, steady=True, successes_only=missing is not None)
    )
    kept, through, long_ago = Kept(chosen, SEED, policy), -(2**62), 0
    for _ in range(chosen.ticks):
        kept.tick()
        expected = np.zeros(2)
        for at, arms, share, paid in kept.kept:
            counts = at + 3.0 < kept.now if missing is None else chosen.experiment.bucket(at) <= through
            long_ago += counts
            for arm, reward in zip(arms, paid, strict=True):
                expected[arm] += counts * (reward if policy == "exp3" else 1.0 - reward) / share[arm]
        assert kept._estimate == pytest.approx(expected, rel=1e-5, abs=1e-5)
        through = closing(chosen.experiment, kept.now)
    assert long_ago > 100


@pytest.mark.parametrize("policy", ["thompson", "ucb1", "tsallis_inf"])
def test_one_prompt_request_a_tick_is_the_bare_kernel(policy):
    """In law: pulls of the better arm in 60 steps, within four standard errors."""
    one = scenario(traffic=w.Traffic(w.Curve(1.0), poisson=False), seconds=60.0, replications=100, policies=(policy,), points=2)
    found = study(one).runs[policy]
    kernel = simulate([0.3, 0.5], 60, policy, replications=4000, checkpoints=[60], random_state=1)
    assert {run.requests for run in found} == {60}
    here, there = summarise([run.exposures[1] for run in found]), summarise(kernel.pulls[:, 0, 1])
    assert abs(here.mean - there.mean) < 4 * math.hypot(here.sd / math.sqrt(100), there.sd / math.sqrt(4000))


def test_arms_that_nothing_was_heard_of_are_taken_in_turn():
    """Else the order of arms would decide what a delay costs."""
    for policy in ("ucb1", "kl_ucb"):
        deaf = Baseline(scenario(reports=w.Reports(missing=1.0)), SEED, policy)
        deaf.play()
        assert abs(np.diff(deaf.books.exposures)[0]) <= 1


@pytest.mark.parametrize("policy", POLICIES)
def test_a_smaller_reward_is_better_where_it_is_minimised(policy):
    turned = Baseline(scenario(Reward("click", window_seconds=20.0, goal=Goal.MINIMISE), seconds=120.0), SEED, policy)
    made = turned.play()
    assert made.regret == pytest.approx(0.2 * made.exposures[1])
    assert made.exposures[0] > 0.6 * made.requests or policy in ("uniform", "greedy", "exp3", "top_two")


def test_the_oracle_takes_the_best_arm_of_each_moment_and_loses_nothing():
    crossing = {"click": w.Metric({"old": w.Curve(0.5), "new": w.Curve(0.3, jumps=((30.0, 0.6),))})}
    oracle = Baseline(scenario(metrics=crossing, segments=BY_SEGMENT), SEED, "oracle")
    made = oracle.play()
    assert made.regret == 0.0
    assert made.exposures.min() > 0.3 * made.requests


def test_who_serves_one_arm_alone_gets_the_same_outcomes_whatever_it_is_called():
    """The incumbent is best: the oracle and a planner that serves it alone meet one world, to the last lost report."""
    best = {"click": w.Metric({"old": w.Curve(0.5), "new": w.Curve(0.3)})}
    chosen = scenario(metrics=best, reports=w.Reports(9.0, missing=0.2, duplicates=0.3), policies=("INCUMBENT_ONLY", "oracle"))
    runs = [runs[0] for runs in study(replace(chosen, replications=1)).runs.values()]
    alike = ("requests", "regret", "gain", "accepted", "late", "missing", "duplicates")
    one, other = ({name: getattr(run, name) for name in alike} for run in runs)
    assert one == other
    assert min(one["late"], one["missing"], one["duplicates"]) > 0


def test_a_lag_between_replicas_cannot_be_given_to_a_policy_of_the_literature():
    lagging = w.Traffic(w.Curve(30.0), replicas=3, lag_seconds=5.0)
    assert scenario(traffic=lagging, policies=("SPEC", "FIXED"))
    with pytest.raises(InvalidArgument) as caught:
        scenario(traffic=lagging, policies=("SPEC", "ucb1"))
    (violation,) = caught.value.violations
    assert str(violation) == "policies[1]: got 'ucb1', which decides in one place: world.traffic.lag cannot be given to it"


def test_a_series_tells_shares_since_its_last_point():
    made = Baseline(scenario(seconds=120.0, points=12), SEED, "uniform").play()
    assert made.series.seconds.tolist() == [10.0 * number for number in range(12)]
    assert made.series.weights.sum(axis=1) == pytest.approx(np.ones(12))
    assert made.series.exposures[-1].sum() < made.requests
