"""What one policy's log says about the other: the Open Bandit Dataset's two policies, each valued from the other's decisions.

    OPEN_BANDIT_DATA=path/to/open_bandit python simulations/open_bandit/run.py

In: the small dataset, whose folder OPEN_BANDIT_DATA names, and a directory. Out: `results.txt` (also printed) and `open_bandit.png` in that
directory. The data are not part of this product; README.md says where they come from.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the study reads the data as the tests do, and those are not installed

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from allocator.analysis.off_policy import Evaluation, Rows, evaluate  # noqa: E402
from allocator.errors import Refused  # noqa: E402
from simulations.telling import table  # noqa: E402
from tests.analysis.open_bandit import FOLDER, logged, thompson  # noqa: E402

CAMPAIGNS = ("men", "all")
SHOWN = ("IPS", "SNIPS", "DR")
LEAST = 1e-4  # where the figure begins
Found = dict[tuple[str, str], tuple[float, Evaluation | str]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Off-policy values on the small Open Bandit Dataset, beside the on-policy truth.")
    parser.add_argument("--runs", type=int, default=100_000, help="draws that make the policy's chances from its priors (default: 100000)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR", help="where to leave table and figure")
    options = parser.parse_args()
    if not FOLDER.is_dir():
        parser.error(f"the data are not at {FOLDER}: name their folder with OPEN_BANDIT_DATA")
    options.output.mkdir(parents=True, exist_ok=True)
    found: Found = {}
    for campaign in CAMPAIGNS:
        random, bts = logged("random", campaign), logged("bts", campaign)
        chances = thompson(campaign, max(options.runs, 10_000))
        items = chances.shape[0]
        even = np.full((random.action.size, items), 1 / items)
        there = Rows(random.action, random.reward, random.pscore, chances.T[random.position], even)
        back = Rows(bts.action, bts.reward, bts.pscore, np.full((bts.action.size, items), 1 / items))
        found[campaign, "bts from the random log"] = bts.reward.mean(), valued(there)
        found[campaign, "random from the bts log"] = random.reward.mean(), valued(back)
    told = report(found)
    print(told)
    (options.output / "results.txt").write_text(told)
    draw(found, options.output / "open_bandit.png")


def valued(rows: Rows) -> Evaluation | str:
    """The estimates, or why there are none."""
    try:
        return evaluate(rows)
    except Refused as refused:
        return refused.message


def report(found: Found) -> str:
    """The table: estimates with intervals that hold at every row, the truth, and what the weights are like."""
    lines, refusals = [], []
    for (campaign, question), (truth, answer) in found.items():
        if isinstance(answer, str):
            lines.append((campaign, question, f"{truth:.4f}", *("refused",) * len(SHOWN), "-", "-"))
            refusals.append(f"{campaign}, {question}: refused. {answer}.")
            continue
        cells = (f"{e.value:.5f} [{e.low:.5f}, {e.high:.5f}]" for e in (answer.estimates[name] for name in SHOWN))
        lines.append((campaign, question, f"{truth:.4f}", *cells, f"{answer.effective:,.1f}", f"{answer.mean_weight:.3f}"))
        lines[-1] = (*lines[-1][:-1], lines[-1][-1] + (" !" if answer.warnings else ""))
    head = (
        "Click rates with 95 % intervals that hold at every row; 10,000 rows each."
        " !: the mean weight is further from 1 than chance explains."
    )
    names = ("campaign", "value of", "truth", *SHOWN, "effective rows", "mean weight")
    return "\n".join((table(head, names, lines), *refusals, ""))


def draw(found: Found, path: Path) -> None:
    """Intervals beside the truth."""
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for place, (truth, answer) in enumerate(found.values()):
        axis.scatter([truth], [place], marker="|", s=900, color="black")
        if isinstance(answer, str):
            axis.text(truth, place + 0.2, "refused: too few effective rows", fontsize=8)
            continue
        for number, name in enumerate(SHOWN):
            e, y = answer.estimates[name], place + 0.22 * (number - 1)
            axis.plot([max(e.low, LEAST), e.high], [y, y], color=f"C{number}", label=name if place == 0 else None)
            axis.plot([e.value], [y], marker="o", color=f"C{number}")
    axis.set_yticks(range(len(found)), [f"{campaign}: {question}" for campaign, question in found])
    axis.set(xlabel="clicks per impression (an interval that touches the left edge begins at 0)", xscale="log", xlim=(LEAST, 1))
    axis.plot([], [], color="black", label="on-policy truth")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
