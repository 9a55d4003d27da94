"""Rejection replay: in law a run of the policy, on made logs with an exact answer and on a real one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from allocator.core.kernels.bandit import THOMPSON
from allocator.errors import InvalidArgument
from allocator.simulation import POLICIES, replay, summarise
from allocator.simulation.parallel import child, root_seed
from allocator.simulation.replay import _walk
from tests.analysis.open_bandit import logged


def log(seed, rounds, means):
    rng = np.random.default_rng(seed)
    action = rng.integers(0, len(means), rounds)
    return action, (rng.random(rounds) < np.array(means)[action]).astype(int), np.full(rounds, 1 / len(means))


def test_matched_rounds_are_a_run_of_the_policy():
    """Fifty matches of Thompson sampling on arms of .5 and .6 pull the second 31.1342718704 times (STATISTICS.md 8.3, exact program)."""
    root, found = root_seed(1), []
    for run in range(4000):
        action, reward, _ = log(run, 400, (0.5, 0.6))
        paid = reward.astype(np.bool_)
        found.append(_walk(child(root, run), kind=THOMPSON, knob=0.0, actions=action, paid=paid, horizon=50, prior=np.ones((2, 2))))
    assert all(matches == 50 for matches, _, _ in found)
    told = summarise([pulls[1] for _, _, pulls in found])
    assert abs(told.mean - 31.1342718704) < 4 * told.sd / math.sqrt(4000)


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "oracle"])
def test_every_policy_that_learns_finds_the_better_arm(policy):
    found = replay(*log(1, 20_000, (0.1, 0.5)), 2, policy, replications=5)
    assert (found.matches > 1000).all()
    assert (found.pulls.sum(axis=1) == found.matches).all()
    share = (found.pulls[:, 1] / found.matches).mean()
    assert share > 0.8 or policy in ("uniform", "greedy", "top_two")
    assert 0.45 < share < 0.55 or policy != "uniform"


@pytest.mark.parametrize(("campaign", "items"), [("men", 34), ("all", 80)])
def test_replay_of_a_real_uniform_log_agrees_with_what_it_paid(campaign, items):
    """Open Bandit Dataset, small: a uniform policy earns the log's own mean, within what its matches allow."""
    found = logged("random", campaign)
    action, reward, pscore = found.action, found.reward, found.pscore
    mean = reward.mean()
    uniform = replay(action, reward, pscore, items, "uniform", replications=200)
    told = summarise(uniform.rewards / (action.size / items))  # matches are binomial: the ratio of expectations has no bias
    assert abs(told.mean - mean) < 4 * told.sd / math.sqrt(200)
    thompson = replay(action, reward, pscore, items, "thompson", replications=50)
    assert (thompson.matches > action.size / items / 2).all()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pscore": np.array([0.5, 0.4])}, "pscore"),
        ({"pscore": np.array([0.5, math.nan])}, "pscore"),
        ({"action": np.array([0, 2])}, "action"),
        ({"reward": np.array([0.5, 0])}, "reward"),
        ({"policy": "oracle"}, "policy"),
        ({"n_actions": 1}, "n_actions"),
        ({"prior": (1.0,)}, "prior"),
        ({"prior": (-5, 1)}, "prior"),
        ({"prior": (math.nan, 1.0)}, "prior"),
        ({"prior": "flat"}, "prior"),
        ({"horizon": -5}, "horizon"),
        ({"horizon": 2.5}, "horizon"),
        ({"pscore": np.array([0.5])}, "pscore"),
        ({"pscore": "half"}, "pscore"),
        ({"action": [[0], [0, 1]]}, "action"),
        ({"action": np.array([0.0, 1.0])}, "action"),
        ({"reward": ["0", "1"]}, "reward"),
        ({"parameter": "x"}, "parameter"),
        ({"policy": 7}, "policy"),
        ({"replications": 0}, "replications"),
    ],
)
def test_what_is_not_allowed_is_named(change, field):
    values = {"action": np.array([0, 1]), "reward": np.array([0, 1]), "pscore": np.array([0.5, 0.5]), "n_actions": 2, **change}
    with pytest.raises(InvalidArgument) as caught:
        replay(**values)
    (violation,) = caught.value.violations
    assert violation.field == field
    assert violation.message.startswith("got ")


def test_a_replay_may_begin_with_a_prior_of_each_arm_and_end_early():
    found = replay(*log(2, 4000, (0.1, 0.5)), 2, prior=[[9.0, 1.0], [1.0, 9.0]], horizon=50, replications=3)
    assert found.matches.tolist() == [50, 50, 50]
    other = replay(*log(2, 4000, (0.1, 0.5)), 2, horizon=50, replications=3)
    assert found.pulls[:, 0].sum() > other.pulls[:, 0].sum()
