"""Three arms, Thompson sampling against greedy: the first figures of the tutorial by Russo et al. (2018), drawn again.

    python simulations/tutorial/run.py --runs 20000

In: how many runs, a seed, a directory. Out: `results.txt` (also printed) and `tutorial.png` in that directory. The same seed and number of
runs give the same numbers.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from allocator.simulation import simulate  # noqa: E402
from simulations.telling import asked, table  # noqa: E402

MEANS = (0.9, 0.8, 0.7)
STEPS = 1000
SHARES = {  # of pulls at these steps: of the figure's reference program, run 20,000 times elsewhere
    ("thompson", 100): (0.782, 0.166, 0.051),
    ("thompson", 1000): (0.979, 0.017, 0.004),
    ("greedy", 1000): (0.464, 0.325, 0.211),
}
REGRET = {  # per period, and in all
    ("thompson", 10): 0.0762,
    ("thompson", 100): 0.0269,
    ("thompson", 500): 0.0053,
    ("thompson", 1000): 0.0025,
    ("greedy", 1000): 0.0747,
}
TOTAL = {"thompson": 11.11, "greedy": 74.8}


def main() -> None:
    about = "Thompson sampling against greedy on three arms."
    options = asked(about, 20_000, "of each policy", 100, Path(__file__).parent)
    begun = time.perf_counter()
    played = {policy: play(policy, options.runs, options.seed) for policy in ("thompson", "greedy")}
    cost = f"{time.perf_counter() - begun:.0f} s for {2 * options.runs * STEPS / 1e6:.0f} million steps, one process"
    told = "\n".join((shares(played), regrets(played), f"seed {options.seed}; {cost}\n"))
    print("\n" + told)
    (options.output / "results.txt").write_text(told)
    draw(played, options.output / "tutorial.png")


def play(policy: str, runs: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Which arm was pulled at each step, one-hot (runs, STEPS, arms), and the regret of each step, (runs, STEPS)."""
    made = simulate(
        MEANS, STEPS, policy, replications=runs, checkpoints=np.arange(1, STEPS + 1), random_state=seed, title=f"{policy}, {STEPS} steps"
    )
    pulls = np.diff(made.pulls, axis=1, prepend=0)
    return pulls, np.diff(made.regret, axis=1, prepend=0.0)


def shares(played: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> str:
    """The table of action shares."""
    rows = []
    for (policy, step), expected in SHARES.items():
        pulled = played[policy][0][:, step - 1]
        error = pulled.std(axis=0, ddof=1) / np.sqrt(len(pulled))
        rows.append((policy, f"{step}", _triple(expected), _triple(pulled.mean(axis=0)), _triple(error, 4)))
    head = f"1. Share of runs that pull each arm (means {MEANS}) at a step; {len(pulled):,} runs"
    return table(head, ("policy", "step", "expected", "found", "standard error"), rows)


def regrets(played: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> str:
    """The table of regret."""
    rows = []
    for (policy, step), expected in REGRET.items():
        found = played[policy][1][:, step - 1]
        rows.append((policy, f"at step {step}", f"{expected:.4f}", f"{found.mean():.4f}", f"{found.std(ddof=1) / np.sqrt(len(found)):.4f}"))
    for policy, expected in TOTAL.items():
        found = played[policy][1].sum(axis=1)
        rows.append((policy, "in all", f"{expected:.2f}", f"{found.mean():.2f}", f"{found.std(ddof=1) / np.sqrt(len(found)):.2f}"))
    return table("2. Regret of a step, and of all steps together", ("policy", "when", "expected", "found", "standard error"), rows)


def _triple(values: NDArray[np.float64] | tuple[float, ...], digits: int = 3) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def draw(played: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], path: Path) -> None:
    """Left: probability of each action over time. Right: regret per period."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    at = np.arange(1, STEPS + 1)
    for axis, policy in zip(axes, ("greedy", "thompson"), strict=False):
        for arm, mean in enumerate(MEANS):
            axis.plot(at, played[policy][0][:, :, arm].mean(axis=0), label=f"action {arm + 1} ({mean:g})")
        axis.set(ylim=(0, 1), xlabel="step", ylabel="share of runs", title=policy)
        axis.legend()
    for policy in ("greedy", "thompson"):
        axes[2].plot(at, played[policy][1].mean(axis=0), label=policy)
    axes[2].set(ylim=(0, 0.15), xlabel="step", ylabel="regret of the step")
    axes[2].legend()
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
