"""The safety study: draw everything, print the tables, draw the figure.

    python simulations/safety/run.py --runs 10000

In: how many runs, a seed, a directory. Out: `results.txt` (also printed) and `safety.png` in that directory. The same seed and number
of runs give the same numbers. `--runs` counts runs of the first table; runs that cost more are fewer, a fifth or a hundredth of it.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the study takes its oracle from the tests, which are not installed

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import structlog  # noqa: E402

from allocator.core.evidence import freeze_threshold, no_restarts  # noqa: E402
from allocator.core.evidence_rates import rate_grid  # noqa: E402
from simulations.safety import service, streams  # noqa: E402
from simulations.telling import asked, share_of, steps, table  # noqa: E402
from tests.core import exact_freeze as exact  # noqa: E402

LIMIT, CLICK = 0.01, 0.1
SAME_ALPHA, OUTCOMES = 0.01, 10_000
DELAY_ALPHA, HISTORY = 0.001, 100_000
RATES = (0.02, 0.05, 0.2, 1.0)


def main() -> None:
    about = "How often a harmless candidate is frozen, and how soon a harmful one."
    options = asked(about, 10_000, "runs of the first table", 100, Path(__file__).parent)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    same, harmful, through = (np.random.SeedSequence(options.seed).spawn(3))
    begun = time.perf_counter()
    stops, first = same_arms(np.random.default_rng(same), options.runs)
    print(f"\n{first}", flush=True)
    delays, second = detection(np.random.default_rng(harmful), options.runs)
    print(f"\n{second}", flush=True)
    third = engine(through, max(options.runs // 100, 2))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    told = f"seed {options.seed}; {time.perf_counter() - begun:.0f} s in all, one process, {os.cpu_count()} cores, load {load}\n"
    print(f"\n{third}\n{told}")
    (options.output / "results.txt").write_text("\n".join((first, second, third, told)))
    draw(stops, delays, options.output / "safety.png")


# ------------------------------------------------------------------------------------------------- no harm, no freeze


def same_arms(rng: np.random.Generator, runs: int) -> tuple[np.ndarray, str]:
    """When each monitor stopped each run, (runs, monitors), 0 for never; and the table."""
    begun, served_alpha = time.perf_counter(), math.exp(-freeze_threshold(SAME_ALPHA))
    found = streams.same_arms(rng, rate_grid(LIMIT), runs, OUTCOMES, CLICK, SAME_ALPHA, served_alpha)
    rows = list(steps(found, runs, "two arms alike"))
    stops, shares = np.array([stop for stop, _ in rows]), np.array([count for _, count in rows])
    lines = []
    for name, column in zip(streams.MONITORS, stops.T, strict=True):
        lines.append((name, *share_of(int((column > 0).sum()), runs)))
    head = (
        f"1. Two arms alike, errors exactly at the limit of {LIMIT:.0%}; Thompson sampling on the reward; alpha {SAME_ALPHA:g};"
        f" {runs:,} runs of {OUTCOMES:,} outcomes, looked at after each ({shares.mean():,.0f} of the candidate on average, in 90 % of"
        f" runs {np.quantile(shares, 0.05):,.0f} to {np.quantile(shares, 0.95):,.0f}); {time.perf_counter() - begun:.0f} s"
    )
    return stops, table(head, ("monitor", "false freezes", "share", "95 % interval"), lines)


# --------------------------------------------------------------------------------------------------- harm, and how soon


def detection(rng: np.random.Generator, runs: int) -> tuple[dict[tuple[str, float], np.ndarray], str]:
    """Outcomes until the freeze, by monitor and error rate; and the table."""
    begun, grid = time.perf_counter(), rate_grid(LIMIT)
    threshold, late_runs = -math.log(DELAY_ALPHA), max(runs // 5, 20)
    fresh = no_restarts(grid)
    histories = [streams.good_history(rng, grid, HISTORY, LIMIT / 2) for _ in steps(range(late_runs), late_runs, "good histories")]
    late = f"restarted, after {HISTORY:,} good"
    bounds, served = (exact.boundary(exact.freeze_rule(LIMIT), t, 40_000) for t in (threshold, freeze_threshold(DELAY_ALPHA)))
    delays: dict[tuple[str, float], np.ndarray] = {}
    lines = []
    for rate in RATES:
        plain = (streams.plain_delay(rng, grid, rate, threshold) for _ in range(runs))
        delays["plain", rate] = np.array(list(steps(plain, runs, f"plain, {rate:.0%}")))
        restarted = (streams.restarted_delay(rng, grid, rate, threshold, fresh) for _ in range(runs))
        delays["restarted, from the start", rate] = np.array(list(steps(restarted, runs, f"restarted, {rate:.0%}")))
        after = (streams.restarted_delay(rng, grid, rate, threshold, state) for state in histories)
        delays[late, rate] = np.array(list(steps(after, late_runs, f"restarted late, {rate:.0%}")))
        law, slower = exact.stopping_law(bounds, rate), exact.stopping_law(served, rate)
        oracle = (exact.mean(law), exact.quantile(law, 0.5), exact.quantile(law, 0.9))
        lines.append((f"{rate:.0%}", "plain, exact", "", f"{oracle[0]:,.1f}", "", f"{oracle[1]:,}", f"{oracle[2]:,}"))
        for name in ("plain", "restarted, from the start", late):
            found = delays[name, rate]
            error = found.std(ddof=1) / math.sqrt(found.size)
            middle, ninth = np.quantile(found, (0.5, 0.9), method="inverted_cdf")
            lines.append((f"{rate:.0%}", name, f"{found.size:,}", f"{found.mean():,.1f}", f"{error:.1f}", f"{middle:,}", f"{ninth:,}"))
        lines.append((f"{rate:.0%}", "plain, exact, first activation", "", f"{exact.mean(slower):,.1f}", "", "", ""))
    head = (
        f"2. Outcomes of the candidate until it is frozen: limit {LIMIT:.0%}, alpha {DELAY_ALPHA:g}, looked at after each outcome;"
        f" good histories have {LIMIT / 2:.1%} errors; {time.perf_counter() - begun:.0f} s"
    )
    return delays, table(head, ("errors", "monitor", "runs", "mean", "standard error", "median", "q90"), lines)


# ---------------------------------------------------------------------------------------------------- the whole engine


def engine(seeds: np.random.SeedSequence, runs: int) -> str:
    """Healthy candidates through the engine, scenario by scenario: the table."""
    begun, lines = time.perf_counter(), []
    for (name, scenario), seed in zip(service.SCENARIOS.items(), seeds.spawn(len(service.SCENARIOS)), strict=True):
        numbers = seed.generate_state(runs, np.uint64).tolist()
        found = list(steps((scenario(number) for number in numbers), runs, name))
        count = sum(run.frozen for run in found)
        beside = service.BESIDE.get(scenario)
        told = f"{beside}: {sum(run.beside for run in found)} of {runs}" if beside else ""
        requests = f"{sum(run.requests for run in found) / runs:,.0f}"
        lines.append((name, *share_of(count, runs), requests, told))
    head = (
        f"3. Healthy candidates through the engine: both arms have the same errors, alpha {service.ALPHA:g}, the planner looks after every"
        f" report; {runs} runs each; {time.perf_counter() - begun:.0f} s"
    )
    return table(head, ("scenario", "false freezes", "share", "95 % interval", "requests a run", "beside it"), lines)


# ------------------------------------------------------------------------------------------------------------- telling


def draw(stops: np.ndarray, delays: dict[tuple[str, float], np.ndarray], path: Path) -> None:
    """Left: share of harmless candidates frozen so far. Right: share of harmful ones (5 % errors) frozen so far."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for column, (name, style) in enumerate(
        zip(streams.MONITORS, (("C0", "-"), ("C0", ":"), ("C2", "-"), ("C3", "-"), ("C1", "-")), strict=True)
    ):
        at = np.sort(stops[stops[:, column] > 0, column])
        at = np.concatenate(([1], at, [OUTCOMES]))
        share = np.minimum(np.arange(at.size), at.size - 2) / len(stops)
        left.step(at, np.where(share > 0, share, np.nan), where="post", color=style[0], linestyle=style[1], label=name)
    left.axhline(SAME_ALPHA, color="black", linewidth=0.8, linestyle="--", label="alpha, the promise")
    left.set(xscale="log", yscale="log", xlim=(1, OUTCOMES), ylim=(3e-6, 1))
    left.set(xlabel="outcomes of both arms", ylabel="share of runs frozen so far")
    left.set_title("A harmless candidate, errors exactly at the limit")
    left.legend(fontsize=8, ncols=2, loc="lower left")
    for name, found in ((name, found) for (name, rate), found in delays.items() if rate == 0.05):
        right.step(np.sort(found), np.arange(1, found.size + 1) / found.size, where="post", label=f"{name} (mean {found.mean():.0f})")
    law = exact.stopping_law(exact.boundary(exact.freeze_rule(LIMIT), -math.log(DELAY_ALPHA), 2000), 0.05)
    right.plot(np.cumsum(law), color="black", linewidth=0.8, linestyle="--", label="plain, exact")
    right.set(xlim=(0, 1200), ylim=(0, 1), xlabel="outcomes of the candidate at 5 % errors", ylabel="share of runs frozen so far")
    right.set_title(f"A harmful candidate: limit {LIMIT:.0%}, alpha {DELAY_ALPHA:g}")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
