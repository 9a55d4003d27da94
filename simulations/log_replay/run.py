"""A real log instead of a world: what would a policy have earned from the shop's visitors?

    OPEN_BANDIT_DATA=path/to/open_bandit python simulations/log_replay/run.py --runs 200

In: the small Open Bandit Dataset, whose folder OPEN_BANDIT_DATA names, how many runs, a seed, a directory. Out: `results.txt` (printed too)
and `log_replay.png` in that directory. The same seed and number of runs give the same numbers. The data are not part of this product;
README.md says where they come from.

Each run replays a policy on as many rows drawn from the log with replacement, so that its interval holds what a log of this length leaves
open and not only the policy's own chance, which is the smaller part.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the study reads the data as the tests do, and those are not installed

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from allocator.simulation import replay  # noqa: E402
from simulations.telling import asked, steps, table  # noqa: E402
from tests.analysis.open_bandit import FOLDER, PRIORS, Logged, logged  # noqa: E402

CAMPAIGNS = ("men", "all")
SHOP = "thompson, the shop's priors"
POLICIES = ("uniform", "thompson", "ucb1", "kl_ucb", "epsilon_greedy", "tsallis_inf", SHOP)
Floats = NDArray[np.float64]


def main() -> None:
    about = "Policies replayed on the uniform log of the small Open Bandit Dataset."
    options = asked(about, 200, "of each policy, each on rows drawn anew from the log", 10, Path(__file__).parent)
    if not FOLDER.is_dir():
        sys.exit(f"the data are not at {FOLDER}: name their folder with OPEN_BANDIT_DATA")
    begun, told, found, truth = time.perf_counter(), [], {}, {}
    for campaign in CAMPAIGNS:
        log = logged("random", campaign)
        truth[campaign] = log.reward.mean(), logged("bts", campaign).reward.mean()
        for policy in POLICIES:
            runs = steps(played(log, campaign, policy, options.runs, options.seed), options.runs, f"{campaign}, {policy}")
            found[campaign, policy] = np.array(list(runs))
        told.append(report(campaign, log, {policy: found[campaign, policy] for policy in POLICIES}, truth[campaign]))
    told.append(f"seed {options.seed}; {time.perf_counter() - begun:.0f} s, one process\n")
    print("\n" + "\n".join(told))
    (options.output / "results.txt").write_text("\n".join(told))
    draw(found, truth, options.output / "log_replay.png")


def played(log: Logged, campaign: str, policy: str, runs: int, seed: int):
    """Matches and clicks of each run."""
    items = len(PRIORS[campaign][0])
    name, prior = ("thompson", PRIORS[campaign]) if policy == SHOP else (policy, (1.0, 1.0))
    for child in np.random.SeedSequence(seed).spawn(runs):
        rows = np.random.default_rng(child).integers(0, log.action.size, log.action.size)
        of = (log.action[rows], log.reward[rows], log.pscore[rows])
        made = replay(*of, items, name, prior=prior, replications=1, random_state=child)
        yield made.matches[0], made.rewards[0]


def value_of(runs: Floats) -> tuple[float, float, float]:
    """Clicks per match over all runs, and what 95 % of the runs have."""
    low, high = np.quantile(runs[:, 1] / np.maximum(runs[:, 0], 1), (0.025, 0.975))
    return float(runs[:, 1].sum() / runs[:, 0].sum()), float(low), float(high)


def report(campaign: str, log: Logged, found: dict[str, Floats], truth: tuple[float, float]) -> str:
    """The table of one campaign."""
    rows = []
    for policy, runs in found.items():
        value, low, high = value_of(runs)
        rows.append((policy, f"{runs[:, 0].mean():,.0f}", f"{runs[:, 1].mean():.2f}", f"{value:.5f}", f"{low:.5f} to {high:.5f}"))
    head = (
        f"{campaign}: {log.action.size:,} rows, {len(PRIORS[campaign][0])} items, {int(log.reward.sum())} clicks; {len(runs)} runs."
        f" The log's own mean is {truth[0]:.4f}; the shop's Thompson sampling earned {truth[1]:.4f} on other visitors"
    )
    return table(head, ("policy", "matches", "clicks", "clicks per match", "95 % of runs"), rows)


def draw(found: dict[tuple[str, str], Floats], truth: dict[str, tuple[float, float]], path: Path) -> None:
    """Values with intervals, beside what the two policies of the shop earned."""
    figure, axes = plt.subplots(1, len(CAMPAIGNS), figsize=(12, 4), sharey=True, layout="constrained")
    for axis, campaign in zip(axes, CAMPAIGNS, strict=True):
        for place, policy in enumerate(POLICIES):
            value, low, high = value_of(found[campaign, policy])
            axis.plot([low, high], [place, place], color=f"C{place}")
            axis.plot([value], [place], marker="o", color=f"C{place}")
        axis.axvline(truth[campaign][0], color="black", linestyle="--", linewidth=0.9, label="the uniform log's own mean")
        axis.axvline(truth[campaign][1], color="black", linestyle=":", linewidth=1.2, label="the shop's Thompson sampling, on-policy")
        axis.set(title=campaign, xlabel="clicks per match", yticks=range(len(POLICIES)), yticklabels=POLICIES)
    axes[0].invert_yaxis()  # of both
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
