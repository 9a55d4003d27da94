"""The conservative constraint: never far below what the incumbent alone would have earned, at any time.

    python simulations/conservative/run.py --runs 400

In: how many runs, a seed, a directory. Out: `results.txt` (also printed) and `conservative.png` in that directory. The same seed and
number of runs give the same numbers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from allocator.core.best_arm import prob_best  # noqa: E402
from allocator.core.budget import ALPHA, conservative_limit  # noqa: E402
from allocator.core.confidence import confidence_sequence  # noqa: E402
from allocator.core.posterior import BetaPosterior  # noqa: E402
from simulations.telling import asked, share_of, steps, table  # noqa: E402

Floats = NDArray[np.float64]
REQUESTS, REFRESH = 20_000, 50


@dataclass(frozen=True, slots=True)
class World:
    """means: of a 0/1 reward, the incumbent's first. share: of the incumbent's reward that may be lost."""

    name: str
    means: tuple[float, ...]
    share: float = 0.05


WORLDS = (
    World("candidates are worse: 10 %, 5 %, 2 %", (0.10, 0.05, 0.02)),
    World("one is better: 50 %, 60 %, 40 %, 30 %", (0.5, 0.6, 0.4, 0.3)),
)


@dataclass(slots=True)
class State:
    """What a strategy knows: exposures and rewards of each arm, and how many candidate exposures it may still make."""

    exposures: Floats
    rewards: Floats
    room: float = np.inf

    @property
    def candidates(self) -> float:
        """Exposures of all candidates together."""
        return float(self.exposures[1:].sum())


Weights = Callable[[State], Floats]
Limit = Callable[[State, World, int], float]


def thompson(state: State) -> Floats:
    """P(best) of each arm."""
    return prob_best(BetaPosterior(1 + state.rewards, 1 + state.exposures - state.rewards))


def ucb(state: State) -> Floats:
    """Everything on the arm with the largest upper bound, sqrt(2 ln(1 / delta) / n) wide with delta = 1 / requests."""
    bonus = np.sqrt(2 * np.log(REQUESTS) / np.maximum(state.exposures, 1e-9))
    return np.eye(state.exposures.size)[np.argmax(state.rewards / np.maximum(state.exposures, 1e-9) + bonus)]


def unlimited(state: State, world: World, served: int) -> float:
    """No constraint."""
    del state, world, served
    return np.inf


def on_average(state: State, world: World, served: int) -> float:
    """Room by estimated means, as a constraint on expectations would have it."""
    mean = state.rewards / np.maximum(state.exposures, 1)
    lost = float((state.exposures[1:] * np.maximum(mean[0] - mean[1:], 0)).sum())
    worst = max(mean[0] - float(mean[1:].min()), 1e-6)
    return (world.share * mean[0] * (served + REFRESH) - lost) / worst


def budget_first(state: State, world: World, served: int) -> float:
    """Only the incumbent until the whole horizon is paid for, then no constraint (Wu et al. 2016)."""
    del state
    return np.inf if served * world.share * world.means[0] >= np.sqrt(2 * len(world.means) * REQUESTS) else 0.0


def conservative(state: State, world: World, served: int) -> float:
    """The product's limit on candidate exposures, from realised counts and confidence sequences."""
    del served  # the counts say it
    low, high = confidence_sequence(state.rewards, state.exposures, ALPHA / len(world.means))
    return conservative_limit(world.share, state.exposures, low, float(high[0]), 0) - state.candidates


STRATEGIES: dict[str, tuple[Weights, Limit]] = {
    "UCB, no constraint": (ucb, unlimited),
    "Thompson, no constraint": (thompson, unlimited),
    "BudgetFirst, then UCB": (ucb, budget_first),
    "Thompson, constraint on expectations": (thompson, on_average),
    "Thompson, realised constraint (ours)": (thompson, conservative),
}


def run(rng: np.random.Generator, world: World, weights: Weights, limit: Limit) -> Floats:
    """Reward in expectation over what the incumbent alone would have earned, after each refresh: (REQUESTS / REFRESH,).

    Expectation is over rewards, given which arms were served: whether the constraint holds is then no matter of luck with clicks.
    """
    means = np.array(world.means)
    state = State(np.zeros(means.size), np.zeros(means.size))
    ratios = np.empty(REQUESTS // REFRESH)
    for number in range(ratios.size):
        served = number * REFRESH
        drawn = rng.multinomial(REFRESH, weights(state))
        room = max(int(min(limit(state, world, served), REFRESH)), 0)
        counts = _within(drawn, room)
        state.exposures += counts
        state.rewards += rng.binomial(counts, means)
        ratios[number] = float(state.exposures @ means) / (means[0] * (served + REFRESH))
    return ratios


def _within(drawn: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """The draws, candidates cut to `room` together; what they lose goes to the incumbent."""
    counts = drawn.copy()
    for arm in range(1, counts.size):
        counts[arm] = min(counts[arm], room)
        room -= counts[arm]
    counts[0] += drawn.sum() - counts.sum()
    return counts


def main() -> None:
    about = "Reward against the incumbent alone, with and without the conservative constraint."
    options = asked(about, 400, "of each strategy in each world", 10, Path(__file__).parent)
    begun, told, found = time.perf_counter(), [], {}
    for world, seed in zip(WORLDS, np.random.SeedSequence(options.seed).spawn(len(WORLDS)), strict=True):
        rows = []
        for name, (weights, limit) in STRATEGIES.items():
            seeds = seed.spawn(options.runs)
            paths = (run(np.random.default_rng(each), world, weights, limit) for each in seeds)
            ratios = np.array(list(steps(paths, options.runs, f"{world.name}, {name}")))
            found[world.name, name] = ratios
            rows.append((name, *_row(ratios, world)))
        head = (
            f"{world.name}; at most {world.share:.0%} of the incumbent's reward may be lost at any time; {options.runs} runs of"
            f" {REQUESTS:,} requests, a refresh every {REFRESH}"
        )
        told.append(table(head, ("strategy", "runs that broke it", "share", "95 % interval", "worst ratio ever", "final ratio"), rows))
    told.append(f"seed {options.seed}; {time.perf_counter() - begun:.0f} s, one process\n")
    print("\n" + "\n".join(told))
    (options.output / "results.txt").write_text("\n".join(told))
    draw(found, options.output / "conservative.png")


def _row(ratios: Floats, world: World) -> tuple[str, ...]:
    broken = int((ratios.min(axis=1) < 1 - world.share - 1e-9).sum())
    return (*share_of(broken, len(ratios)), f"{ratios.min():.3f}", f"{ratios[:, -1].mean():.4f}")


def draw(found: dict[tuple[str, str], Floats], path: Path) -> None:
    """The worst tenth and the mean of the ratio over time."""
    figure, axes = plt.subplots(1, len(WORLDS), figsize=(12, 4.5), layout="constrained")
    at = np.arange(REFRESH, REQUESTS + 1, REFRESH)
    for axis, world in zip(axes, WORLDS, strict=True):
        for number, name in enumerate(STRATEGIES):
            ratios = found[world.name, name]
            axis.plot(at, ratios.mean(axis=0), color=f"C{number}", label=name)
            axis.fill_between(at, ratios.min(axis=0), ratios.mean(axis=0), color=f"C{number}", alpha=0.12, linewidth=0)
        axis.axhline(1 - world.share, color="black", linestyle="--", linewidth=0.8, label="the constraint")
        axis.set(xscale="log", xlabel="requests", ylabel="reward over the incumbent's (mean, down to the worst run)")
        axis.set_title(world.name)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
