"""News that come and go, and feedback in batches: the delay study of Chapelle & Li (2011), drawn again.

    python simulations/delay/run.py --runs 10

In: how many runs, a seed, a directory. Out: `results.txt` (also printed) and `delay.png` in that directory. The same seed and number of
runs give the same numbers.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from numba import njit  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from allocator.core.kernels.bandit import best_draw, set_shape  # noqa: E402
from allocator.simulation.parallel import Seed, replicate  # noqa: E402
from simulations.telling import asked, table  # noqa: E402

ITEMS, STEPS, REPLACED, SHAPE = 10, 1_000_000, 1e-3, 4.0
DELAYS = (1, 3, 10, 32, 100, 316, 1000)
PUBLISHED = {
    "Thompson": (9_105, 9_199, 9_049, 9_451, 11_550, 21_594, 59_256),
    "UCB": (24_145, 24_695, 25_662, 28_148, 37_141, 77_687, 226_220),
}
THOMPSON, UCB = 0, 1


@njit(cache=True)
def play(rng, policy, delay, steps, at_feedback):
    """Pseudo-regret of one run. What happened in a batch of `delay` steps is known at its end; an item that takes another's place begins
    anew at once, or when the feedback comes (at_feedback).
    """
    means = np.empty(ITEMS)
    for item in range(ITEMS):
        means[item] = rng.beta(SHAPE, SHAPE)
    good, bad = np.ones(ITEMS), np.ones(ITEMS)
    new_good, new_bad = np.zeros(ITEMS), np.zeros(ITEMS)
    replaced = np.zeros(ITEMS, np.bool_)
    constants = np.empty((ITEMS, 6))
    for item in range(ITEMS):
        set_shape(constants, item, 0, 1.0)
        set_shape(constants, item, 3, 1.0)
    regret, since = 0.0, 0.0
    for step in range(steps):
        if rng.random() < REPLACED:
            gone = rng.integers(0, ITEMS)
            means[gone] = rng.beta(SHAPE, SHAPE)
            new_good[gone], new_bad[gone] = 0.0, 0.0
            replaced[gone] = True
            if not at_feedback:
                _forget(gone, good, bad, constants)
        arm = best_draw(rng, constants) if policy == THOMPSON else _highest(good, bad, since)
        regret += means.max() - means[arm]
        if rng.random() < means[arm]:
            new_good[arm] += 1.0
        else:
            new_bad[arm] += 1.0
        if (step + 1) % delay == 0:
            since = float(step + 1)
            for item in range(ITEMS):
                if replaced[item]:
                    if at_feedback:
                        _forget(item, good, bad, constants)
                    replaced[item] = False
                if new_good[item] + new_bad[item] > 0.0:
                    good[item] += new_good[item]
                    bad[item] += new_bad[item]
                    new_good[item], new_bad[item] = 0.0, 0.0
                    set_shape(constants, item, 0, good[item])
                    set_shape(constants, item, 3, bad[item])
    return regret


@njit(cache=True)
def _forget(item, good, bad, constants):
    good[item], bad[item] = 1.0, 1.0
    set_shape(constants, item, 0, 1.0)
    set_shape(constants, item, 3, 1.0)


@njit(cache=True)
def _highest(good, bad, steps):
    """The item with the largest upper bound: a Chernoff bound at level 1 / sqrt(t), as in the paper; untried items first."""
    log_level = 0.5 * np.log(max(steps, 2.0))
    best, top = 0, -1.0
    for item in range(good.size):
        count = good[item] + bad[item] - 2.0
        if count <= 0.0:
            return item
        mean = (good[item] - 1.0) / count
        bound = mean + np.sqrt(2.0 * mean * log_level / count) + 2.0 * log_level / count
        if bound > top:
            best, top = item, bound
    return best


def one(seed: Seed, *, policy: int, delay: int, steps: int, at_feedback: bool) -> float:
    """One run."""
    return float(play(np.random.Generator(np.random.PCG64(seed)), policy, delay, steps, at_feedback))


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each run (default: {STEPS})")
    parser.add_argument("--workers", type=int, default=1, help="threads; the result is the same for any number (default: 1)")


def main() -> None:
    options = asked(
        "Regret with feedback in batches, while items are replaced.", 10, "of each policy and delay", 2, Path(__file__).parent, _more
    )
    begun, found = time.perf_counter(), {}
    for name, policy, at_feedback in (
        ("Thompson", THOMPSON, False),
        ("Thompson, reset at feedback", THOMPSON, True),
        ("UCB", UCB, False),
        ("UCB, reset at feedback", UCB, True),
    ):
        for delay in DELAYS:
            run = partial(one, policy=policy, delay=delay, steps=options.steps, at_feedback=at_feedback)
            made = replicate(run, options.runs, options.seed, workers=options.workers, title=f"{name}, feedback every {delay}")
            found[name, delay] = np.array(made)
    names = list(dict.fromkeys(name for name, _ in found))
    rows = [("published " + name, *(f"{value:,}" for value in values)) for name, values in PUBLISHED.items()]
    rows += [(name, *(_mean(found[name, delay]) for delay in DELAYS)) for name in names]
    for ours, theirs in zip(names[:2], names[2:], strict=True):
        rows.append((f"UCB / {ours}", *(f"{found[theirs, d].mean() / found[ours, d].mean():.2f}" for d in DELAYS)))
    head = f"Regret after {options.steps:,} steps, mean (standard error) of {options.runs} runs, by how many steps apart feedback comes"
    told = table(head, ("", *map(str, DELAYS)), rows) + f"\nseed {options.seed}; {time.perf_counter() - begun:.0f} s\n"
    print("\n" + told)
    (options.output / "results.txt").write_text(told)
    draw(found, names, options.output / "delay.png")


def _mean(values: NDArray[np.float64]) -> str:
    return f"{values.mean():,.0f} ({values.std(ddof=1) / np.sqrt(values.size):,.0f})"


def draw(found: dict[tuple[str, int], NDArray[np.float64]], names: list[str], path: Path) -> None:
    """Regret against the delay, published values as crosses."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, (name, values) in enumerate(PUBLISHED.items()):
        axis.plot(DELAYS, values, marker="x", linestyle=":", color=f"C{number}", label=f"{name}, published")
    for number, name in enumerate(names):
        means, faint = [found[name, d].mean() for d in DELAYS], 1.0 if number % 2 else 0.5
        axis.plot(DELAYS, means, marker="o", color=f"C{number // 2}", alpha=faint, label=name)
    axis.set(xscale="log", yscale="log", xlabel="steps between two feedbacks", ylabel="regret")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
