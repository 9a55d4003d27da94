"""Every study runs as its README says, and those that repeat published results find them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from allocator.cli.scenarios import load_scenario
from tests.analysis.open_bandit import FOLDER, logged

ROOT = Path(__file__).parent.parent
STUDIES = sorted(path.parent for path in (ROOT / "simulations").glob("*/run.py"))
SHORT = {  # arguments that make a study short; all others are run as `--runs 20`
    "conservative": ("--runs", "10"),
    "delay": ("--runs", "2", "--steps", "20000"),
    "nonstationary": ("--runs", "2", "--minutes", "4"),
    "safety": ("--runs", "100"),
    "tutorial": ("--runs", "500"),
}
SLOW = {"safety"}
NEED_DATA = {"open_bandit", "log_replay"}


def run(study: Path, output: Path, *arguments: str) -> str:
    command = [sys.executable, str(study / "run.py"), *arguments, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "study", [pytest.param(study, marks=pytest.mark.slow if study.name in SLOW else ()) for study in STUDIES], ids=lambda study: study.name
)
def test_a_study_runs_and_leaves_its_table_and_its_figure(study: Path, tmp_path: Path) -> None:
    if study.name in NEED_DATA and not FOLDER.is_dir():
        pytest.skip(f"the Open Bandit Dataset is not at {FOLDER}: set OPEN_BANDIT_DATA to its folder")
    shown = run(study, tmp_path, *SHORT.get(study.name, ("--runs", "20")))
    text = (tmp_path / "results.txt").read_text()
    assert text.strip() in shown
    assert "| " in text
    assert [path.name for path in tmp_path.glob("*.png")] == [path.name for path in study.glob("*.png")]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_says_what_it_shows_and_how_to_draw_it_again(study: Path) -> None:
    page = (study / "README.md").read_text()
    assert "OPEN_BANDIT_DATA=" in page or study.name not in NEED_DATA
    assert f"python simulations/{study.name}/run.py" in page
    assert "results.txt" in page
    figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert figures
    assert all((study / name).is_file() for name in (*figures, "results.txt"))


def test_thompson_sampling_and_greedy_are_those_of_the_tutorial(tmp_path: Path) -> None:
    """Russo et al. 2018, figures 3.1 and 3.2, within four standard errors (ours and the reference's 20,000 runs)."""
    from simulations.tutorial.run import REGRET, SHARES, STEPS, TOTAL, play

    runs = 2000
    played = {policy: play(policy, runs, 2) for policy in ("thompson", "greedy")}
    for (policy, step), expected in SHARES.items():
        pulled = played[policy][0][:, step - 1].mean(axis=0)
        for found, share in zip(pulled, expected, strict=True):
            error = (share * (1 - share) * (1 / runs + 1 / 20_000)) ** 0.5
            assert abs(found - share) <= 4 * error + 5e-4, (policy, step)
    for (policy, step), expected in REGRET.items():
        found = played[policy][1][:, step - 1]
        assert abs(found.mean() - expected) <= 4 * found.std() * (1 / runs + 1 / 20_000) ** 0.5 + 5e-5, (policy, step)
    for policy, expected in TOTAL.items():
        found = played[policy][1].sum(axis=1)
        assert found.size == runs
        assert played[policy][1].shape == (runs, STEPS)
        assert abs(found.mean() - expected) <= 4 * found.std() * (1 / runs + 1 / 20_000) ** 0.5, policy


def test_forgetting_pays_where_rates_switch_and_costs_where_they_stand_still() -> None:
    """The same requests with and without a half-life, three times each: the first switch, and as long without one."""
    from simulations.nonstationary.run import KEEPS, forgets, play, scenario

    for world, better in (("switching", True), ("still", False)):
        chosen = scenario(world, runs=3, seed=7, minutes=60)
        found = play(replace(chosen, policies=("SPEC",)))
        pairs = zip(found[forgets(chosen)], found[KEEPS], strict=True)
        assert all((one.requests, one.regret < other.regret) == (other.requests, better) for one, other in pairs), world


def test_a_scenario_of_a_study_is_played_by_the_command_line() -> None:
    for path in sorted((ROOT / "simulations" / "nonstationary").glob("*.yaml")):
        if "kind: Scenario" in path.read_text():
            assert load_scenario(path).name == path.stem


def test_a_replayed_log_earns_an_even_split_what_it_paid() -> None:
    """Open Bandit Dataset, men: a uniform policy on resampled logs against the log's own mean, within four standard errors."""
    from simulations.log_replay.run import played

    found = logged("random", "men")
    runs = np.array(list(played(found, "men", "uniform", 200, 3)))
    clicks = runs[:, 1] * 34 / found.action.size  # matches are binomial: this ratio has no bias
    assert abs(clicks.mean() - found.reward.mean()) < 4 * clicks.std(ddof=1) / 200**0.5


def test_the_conservative_constraint_does_what_another_program_found() -> None:
    """STATISTICS.md 4.5, 40 runs: worst running ratio without a constraint 0.46, broken in 20 % of runs by expected weights and in none by
    realised counts, which end at 0.990. Within what 40 runs can be off by, once in 1,000 times.
    """
    from scipy.stats import binomtest

    from simulations.conservative.run import ELSEWHERE, EXPECTED, FREE, REALISED, STRATEGIES, WORLDS, broken
    from simulations.conservative.run import run as play

    found, theirs = {}, ELSEWHERE["runs"]
    for name in (FREE, EXPECTED, REALISED):
        found[name] = np.array([play(np.random.default_rng([2, number]), WORLDS[0], *STRATEGIES[name]) for number in range(60)])
    below = [(found[FREE].min(axis=1) <= edge).mean() for edge in (0.455, 0.465)]
    assert 1 - (1 - below[1]) ** theirs > 0.001  # the least of 40 may be as small
    assert (1 - below[0]) ** theirs > 0.001  # and as large
    interval = binomtest(ELSEWHERE["broken, expected weights"], theirs).proportion_ci(0.999, "exact")
    assert interval.low < broken(found[EXPECTED], WORLDS[0]) / 60 < interval.high
    assert broken(found[REALISED], WORLDS[0]) == 0
    final = found[REALISED][:, -1]
    assert abs(final.mean() - ELSEWHERE["final, realised"]) < 3.3 * final.std() * (1 / theirs + 1 / 60) ** 0.5 + 5e-4


def test_thompson_sampling_with_delayed_feedback_is_that_of_chapelle_and_li() -> None:
    """Table 1, within 15 % up to a delay of 100 and in the same order of growth after it; the paper leaves details open."""
    from functools import partial

    from allocator.simulation.parallel import replicate
    from simulations.delay.run import DELAYS, PUBLISHED, STEPS, THOMPSON, one

    found = {}
    for delay, published in zip(DELAYS, PUBLISHED["Thompson"], strict=True):
        if delay in (1, 100, 1000):
            play = partial(one, policy=THOMPSON, delay=delay, steps=STEPS, at_feedback=True)
            found[delay] = float(np.mean(replicate(play, 4, 3)))
            assert abs(found[delay] / published - 1) <= 0.15, delay
    assert found[1] < found[100] < found[1000]
