"""What reports promise: 95 % intervals that hold at every look of a Thompson run, in at least 95 % of runs; naive ones beside them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from simulations.coverage import run


def judge(rates: tuple[float, float], runs: int, seed: int) -> None:
    found = run.watch(rates, runs, seed)
    most = binom.ppf(0.9999, runs, run.ALPHA)
    valid = {"old": found.mean[:, :, 0], "new": found.mean[:, :, 1], "difference": found.difference, "ratio": found.labels}
    for name, missed in {**valid, "propensities": found.asymptotic}.items():
        assert missed.any(axis=1).sum() <= most, name
        assert missed.sum(axis=0).max() <= most, name  # at each look by itself
    naive = found.naive_mean.any(axis=1)
    print({name: missed.any(axis=1).mean() for name, missed in valid.items()}, "naive:", naive.mean(axis=0))
    assert naive.mean(axis=0).max() > 0.3


def test_intervals_hold_at_every_look_of_thompson_runs():
    judge((0.5, 0.6), 200, seed=11)


@pytest.mark.slow
@pytest.mark.parametrize("rates", run.SCENARIOS)
def test_intervals_hold_at_every_look_of_two_thousand_thompson_runs(rates):
    judge(rates, 2000, seed=12)


def test_a_run_of_the_study_is_thompson_sampling_with_the_chances_it_logs():
    """Shares drawn agree with the chances (four standard errors), chances follow the better arm, and outcomes have their rates."""
    rates, runs = (0.3, 0.6), 60
    played = [run.play(rates, 5, number) for number in range(runs)]
    second, outcome, pi = (np.array(column) for column in zip(*played, strict=True))
    assert abs((second - pi).sum()) <= 4 * np.sqrt((pi * (1 - pi)).sum())
    assert pi[:, 0].tolist() == [0.5] * runs
    assert pi[:, -1].mean() > 0.9
    assert pi.min() >= run.FLOOR
    assert pi.max() <= 1 - run.FLOOR
    for arm, rate in enumerate(rates):
        mine = outcome[second == arm]
        assert abs(mine.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / mine.size)
