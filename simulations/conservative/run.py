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
# Of the first world, by a program that shares nothing with this one; 40 runs.
ELSEWHERE = {"runs": 40, "worst, no constraint": 0.46, "broken, expected weights": 8, "broken, realised": 0, "final, realised": 0.990}


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
    """What a strategy knows: exposures and rewards of each arm, and the exposures that its weights have promised so far."""

    exposures: Floats
    rewards: Floats
    promised: Floats

    @property
    def candidates(self) -> float:
        """Exposures of all candidates together."""
        return float(self.exposures[1:].sum())


Weights = Callable[[State, World], Floats]
Limit = Callable[[State, World, int], float]


def thompson(state: State, world: World) -> Floats:
    """P(best) of each arm."""
    del world
    return prob_best(BetaPosterior(1 + state.rewards, 1 + state.exposures - state.rewards))


def expected(state: State, world: World) -> Floats:
    """P(best), with the weights of candidates scaled so that the constraint holds for the exposures that all weights promise together.

    The bounds of the means are those of the realised constraint; what was really drawn is not looked at.
    """
    weights = thompson(state, world)
    low, high = confidence_sequence(state.rewards, state.exposures, ALPHA / len(world.means))
    had, scale = state.promised[1:], 1.0
    for incumbent in (low[0], high[0]):
        room = world.share * incumbent * (state.promised.sum() + REFRESH) - float((had * (incumbent - low[1:])).sum())
        price = REFRESH * float((weights[1:] * (incumbent - low[1:])).sum())
        if price > max(room, 0.0):
            scale = min(scale, max(room, 0.0) / price)
    weights[1:] *= scale
    weights[0] = max(1.0 - weights[1:].sum(), 0.0)
    return weights


def ucb(state: State, world: World) -> Floats:
    """Everything on the arm with the largest upper bound, sqrt(2 ln(1 / delta) / n) wide with delta = 1 / requests."""
    del world
    bonus = np.sqrt(2 * np.log(REQUESTS) / np.maximum(state.exposures, 1e-9))
    return np.eye(state.exposures.size)[np.argmax(state.rewards / np.maximum(state.exposures, 1e-9) + bonus)]


def unlimited(state: State, world: World, served: int) -> float:
    """No constraint."""
    del state, world, served
    return np.inf


def estimated(state: State, world: World, served: int) -> float:
    """Room by estimated means, as if those were known."""
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


EXPECTED, REALISED = "Thompson, constraint on expected weights", "Thompson, realised constraint (ours)"
FREE = "Thompson, no constraint"
STRATEGIES: dict[str, tuple[Weights, Limit]] = {
    "UCB, no constraint": (ucb, unlimited),
    FREE: (thompson, unlimited),
    "BudgetFirst, then UCB": (ucb, budget_first),
    "Thompson, constraint by estimated means": (thompson, estimated),
    EXPECTED: (expected, unlimited),
    REALISED: (thompson, conservative),
}


def run(rng: np.random.Generator, world: World, weights: Weights, limit: Limit) -> Floats:
    """Reward in expectation over what the incumbent alone would have earned, after each refresh: (REQUESTS / REFRESH,).

    Expectation is over rewards, given which arms were served: whether the constraint holds is then no matter of luck with clicks.
    """
    means = np.array(world.means)
    state = State(np.zeros(means.size), np.zeros(means.size), np.zeros(means.size))
    ratios = np.empty(REQUESTS // REFRESH)
    for number in range(ratios.size):
        served = number * REFRESH
        planned = weights(state, world)
        state.promised += REFRESH * planned
        drawn = rng.multinomial(REFRESH, planned)
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
    told.append(beside({name: found[WORLDS[0].name, name] for name in (FREE, EXPECTED, REALISED)}))
    told.append(f"seed {options.seed}; {time.perf_counter() - begun:.0f} s, one process\n")
    print("\n" + "\n".join(told))
    (options.output / "results.txt").write_text("\n".join(told))
    draw(found, options.output / "conservative.png")


def beside(found: dict[str, Floats]) -> str:
    """The figures computed elsewhere, those found here, and what so many runs as there allow in 95 of 100 cases."""
    runs, world = ELSEWHERE["runs"], WORLDS[0]
    lowest, final = found[FREE].min(axis=1), found[REALISED][:, -1]
    low, middle, high = (f"{np.quantile(lowest, 1 - (1 - level) ** (1 / runs)):.3f}" for level in (0.025, 0.5, 0.975))
    rows = [(f"worst ratio, {FREE}", f"{ELSEWHERE['worst, no constraint']:.2f}", f"{middle} (median)", f"{low} to {high}")]
    for name, what in ((EXPECTED, "broken, expected weights"), (REALISED, "broken, realised")):
        _, share, interval = share_of(ELSEWHERE[what], runs)
        rows.append((f"runs that broke it, {name}", share, f"{broken(found[name], world) / len(found[name]):.3%}", interval))
    mean, half = final.mean(), 1.96 * final.std(ddof=1) / runs**0.5
    allowed = f"{mean - half:.4f} to {mean + half:.4f}"
    rows.append((f"final ratio, {REALISED}", f"{ELSEWHERE['final, realised']:.3f}", f"{mean:.4f}", allowed))
    head = f"{world.name}: figures of {runs} runs of another program, and ours"
    return table(head, ("figure", "elsewhere", "here", f"95 % of what {runs} runs give"), rows)


def broken(ratios: Floats, world: World) -> int:
    """In how many runs the constraint was broken at any refresh."""
    return int((ratios.min(axis=1) < 1 - world.share - 1e-9).sum())


def _row(ratios: Floats, world: World) -> tuple[str, ...]:
    return (*share_of(broken(ratios, world), len(ratios)), f"{ratios.min():.3f}", f"{ratios[:, -1].mean():.4f}")


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
