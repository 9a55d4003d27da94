"""How often an interval misses the truth when Thompson sampling allocates and somebody looks after every outcome.

    python simulations/coverage/run.py --runs 2000

In: how many runs of each scenario, a seed, a directory. Out: `results.txt` (also printed) and `coverage.png` in that directory. The same
seed and number of runs give the same numbers. Weights are the exact P(best), published every 20 decisions and drawn from in between, as the
service does it, with a floor of 5 %.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from scipy.stats import binomtest  # noqa: E402

from allocator.core.best_arm import prob_best  # noqa: E402
from allocator.core.confidence import confidence_sequence, difference_sequence  # noqa: E402
from allocator.core.evidence_labels import label_grid, label_sums, log_label_evidence  # noqa: E402
from allocator.core.posterior import BetaPosterior  # noqa: E402
from simulations.telling import asked, steps, table  # noqa: E402

SCENARIOS = ((0.5, 0.5), (0.5, 0.6), (0.05, 0.05), (0.05, 0.06))
ROWS, REFRESH, FLOOR, ALPHA = 1000, 20, 0.05, 0.05
FIRST_NAIVE = 10  # outcomes of an arm before anybody would print a naive interval of it
Z = 1.959963984540054
VALID, NAIVE = "#0072B2", "#D55E00"

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Watched:
    """Which looks missed the truth: (runs, rows, arms) of means, (runs, rows) of differences, (runs, refreshes) of the ratio by labels.

    naive_shown: is there a naive interval of this arm yet?
    """

    mean: Bools
    naive_mean: Bools
    naive_shown: Bools
    difference: Bools
    naive_difference: Bools
    asymptotic: Bools
    labels: Bools


def main() -> None:
    about = "How often intervals miss the truth under Thompson sampling, looked at all the time."
    options = asked(about, 2000, "of each scenario", 10, Path(__file__).parent)
    begun = time.perf_counter()
    watched = {rates: watch(rates, options.runs, options.seed, shown=True) for rates in SCENARIOS}
    cost = f"{time.perf_counter() - begun:.0f} s for {len(SCENARIOS)} x {options.runs:,} runs of {ROWS:,} decisions, one process"
    told = "\n".join((ever(watched), at_one_look(watched), f"seed {options.seed}; {cost}\n"))
    print("\n" + told)
    (options.output / "results.txt").write_text(told)
    draw(watched, options.output / "coverage.png")


def watch(rates: tuple[float, float], runs: int, seed: int, *, shown: bool = False) -> Watched:
    """Play `runs` experiments with these rates and look after every outcome."""
    numbers = range(runs)
    gap = rates[1] - rates[0]
    chosen, came, from_propensities, labels = [], [], [], []
    for number in steps(numbers, runs, f"rates {rates}") if shown else numbers:
        second, outcome, pi = play(rates, seed, number)
        under, above = difference_sequence(second, outcome, pi, ALPHA, best_at=ROWS)
        from_propensities.append((under > gap) | (above < gap))
        labels.append(_labels(rates, second, outcome, pi))
        chosen.append(second)
        came.append(outcome)
    return Watched(*_means(rates, np.array(chosen), np.array(came)), np.array(from_propensities), np.array(labels))


def play(rates: tuple[float, float], seed: int, number: int) -> tuple[Bools, Floats, Floats]:
    """One run: was the second arm served, what came, and the chance that it had; (rows,) each."""
    rng = np.random.default_rng([seed, number, round(1000 * rates[0]), round(1000 * rates[1])])
    second, pi = np.empty(ROWS, np.bool_), np.empty(ROWS)
    chance, luck = rng.random(ROWS), rng.random((ROWS, 2)) < rates
    won, lost = np.ones(2), np.ones(2)
    for start in range(0, ROWS, REFRESH):
        rows = slice(start, start + REFRESH)
        pi[rows] = min(max(float(prob_best(BetaPosterior(won, lost))[1]), FLOOR), 1.0 - FLOOR)
        second[rows] = chance[rows] < pi[rows]
        for arm in (0, 1):
            mine = luck[rows, arm][second[rows] == arm]
            won[arm] += mine.sum()
            lost[arm] += mine.size - mine.sum()
    return second, np.where(second, luck[:, 1], luck[:, 0]).astype(np.float64), pi


def _means(rates: tuple[float, float], second: Bools, outcome: Floats) -> tuple[Bools, Bools, Bools, Bools, Bools]:
    """What `Watched` says of means, and of their difference from two sequences. second, outcome: (runs, rows)."""
    count = np.stack([np.cumsum(second == arm, axis=1) for arm in (0, 1)], axis=2)
    total = np.stack([np.cumsum(outcome * (second == arm), axis=1) for arm in (0, 1)], axis=2).astype(np.int64)
    truth, gap = np.array(rates), rates[1] - rates[0]
    low, high = _intervals(count, total, ALPHA)
    missed = (low > truth) | (high < truth)
    low, high = _intervals(count, total, ALPHA / 2)
    union = (low[..., 1] - high[..., 0] > gap) | (high[..., 1] - low[..., 0] < gap)
    mean = total / np.maximum(count, 1)
    error = np.sqrt(mean * (1.0 - mean) / np.maximum(count, 1))
    shown = count >= FIRST_NAIVE
    naive = (np.abs(mean - truth) > Z * error) & shown
    naive_gap = (np.abs(mean[..., 1] - mean[..., 0] - gap) > Z * np.hypot(error[..., 0], error[..., 1])) & shown.all(axis=2)
    return missed, naive, shown, union, naive_gap


def _intervals(count: NDArray[np.int64], total: NDArray[np.int64], alpha: float) -> tuple[Floats, Floats]:
    """The product's interval at every look; what many looks share is computed once."""
    distinct, place = np.unique(count * (ROWS + 1) + total, return_inverse=True)
    low, high = confidence_sequence(distinct % (ROWS + 1), distinct // (ROWS + 1), alpha)
    return low[place].reshape(count.shape), high[place].reshape(count.shape)


def _labels(rates: tuple[float, float], second: Bools, outcome: Floats, pi: Floats) -> Bools:
    """At each refresh: does the interval of `core.confidence.relative_risk` leave the true ratio out? Sides at alpha / 2 each."""
    ratio, needed = rates[1] / rates[0], math.log(2.0 / ALPHA)
    found = np.zeros(ROWS // REFRESH, np.bool_)
    for grid in (label_grid(ratio), label_grid(ratio, above=False)):
        sums = None
        for look in range(found.size):
            rows = slice(look * REFRESH, (look + 1) * REFRESH)
            events = [[float(outcome[rows][second[rows] == arm].sum())] for arm in (1, 0)]
            more = label_sums(grid, *events, pi[rows][:1])
            sums = more if sums is None else sums + more
            found[look] |= log_label_evidence(grid, sums) >= needed
    return found


# -------------------------------------------------------------------------------------------------------- telling


def ever(watched: dict[tuple[float, float], Watched]) -> str:
    """Share of runs in which an interval missed at any look; what a promise about every look is about."""
    rows = []
    for rates, w in watched.items():
        for name, missed in (
            ("mean of the worse arm, valid", _worse(w.mean)),
            ("mean of the worse arm, naive", _worse(w.naive_mean)),
            ("difference, valid (two sequences)", w.difference),
            ("difference, valid from 30 events on (propensities)", w.asymptotic),
            ("difference, naive", w.naive_difference),
            ("ratio, valid (label kernel)", w.labels),
        ):
            count, runs = int(missed.any(axis=1).sum()), missed.shape[0]
            interval = binomtest(count, runs).proportion_ci(0.95, "exact")
            shown = f"{interval.low:.2%} to {interval.high:.2%}"
            rows.append((f"{rates[0]:g}, {rates[1]:g}", name, f"{count:,}", f"{count / runs:.2%}", shown))
    runs = next(iter(watched.values())).mean.shape[0]
    head = f"Of {runs:,} runs, those in which a 95 % interval missed the truth at one look at least; 5 % are promised at most."
    return table(head, ("rates", "interval", "runs", "share", "95 % interval"), rows)


def at_one_look(watched: dict[tuple[float, float], Watched]) -> str:
    """Coverage of a single look: at the worst of all, and at the last."""
    rows = []
    for rates, w in watched.items():
        wrong = w.naive_mean.sum(axis=0) / np.maximum(w.naive_shown.sum(axis=0), 1)
        wrong[w.naive_shown.mean(axis=0) < 0.5] = 0.0
        of_valid, of_gap = w.mean.mean(axis=0), w.difference.mean(axis=0)
        covers = (of_valid.max(), of_valid[-1].max(), of_gap.max(), wrong.max(), wrong[-1].max(), w.naive_difference[:, -1].mean())
        rows.append((f"{rates[0]:g}, {rates[1]:g}", *(f"{1.0 - share:.2%}" for share in covers)))
    names = ("mean, worst look", "mean, last", "difference, worst look", "naive mean, worst", "naive mean, last", "naive difference, last")
    head = "Share of runs whose interval holds the truth at one look, of the worse arm (naive: once half of the runs show one)."
    return table(head, ("rates", *names), rows)


def _worse(missed: Bools) -> Bools:
    """(runs, rows) of the arm that missed in more runs."""
    return missed[:, :, int(missed.any(axis=1).sum(axis=0).argmax())]


def draw(watched: dict[tuple[float, float], Watched], path: Path) -> None:
    """Runs that had missed by each look, valid against naive, for every scenario."""
    figure, panels = plt.subplots(1, len(watched), figsize=(3.1 * len(watched), 3.2), sharey=True, layout="constrained")
    for axes, (rates, w) in zip(panels, watched.items(), strict=True):
        for missed, colour, dashes, label in _curves(w):
            by_then = np.maximum.accumulate(missed, axis=1).mean(axis=0)
            axes.plot(np.arange(1, ROWS + 1), by_then, color=colour, linestyle=dashes, label=label)
        axes.axhline(ALPHA, color="#999999", linestyle=":", linewidth=1)
        axes.set_title(f"rates {rates[0]:g} and {rates[1]:g}", fontsize=9)
        axes.set_xlabel("decisions")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("runs that had missed by then")
    panels[0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _curves(w: Watched) -> Iterator[tuple[Bools, str, str, str]]:
    yield _worse(w.mean), VALID, "-", "mean of the worse arm, valid"
    yield w.difference, VALID, "--", "difference, valid"
    yield _worse(w.naive_mean), NAIVE, "-", "mean of the worse arm, naive"
    yield w.naive_difference, NAIVE, "--", "difference, naive"


if __name__ == "__main__":
    main()
