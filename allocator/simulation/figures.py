"""Figures of a study: regret with bands, exposure, weights, evidence, and how soon harm was stopped.

In: a study. Out: matplotlib figures, each under the scenario's name, because several may stand on one page; nobody needs a screen. Bands
hold 5 % to 95 % of the replications, lines are means. Colours tell policies or arms apart for colour-blind eyes too, and dashes tell them
apart without any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from allocator.simulation.bandit import POLICIES
from allocator.simulation.replication import Replication
from allocator.simulation.study import Study

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")  # of Okabe and Ito
DASHES = ("-", (0, (6, 1.5)), (0, (2, 1)), (0, (6, 1, 1, 1)))
UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
MOST_EVIDENCE = 1.25
LEAST_TOP = 0.1  # of an axis of shares: nothing at all is drawn along the bottom of it
POINTS = 200


def figures(of: Study) -> dict[str, Figure]:
    """Every figure that the study has something for, by name: regret, exposure, weights, evidence, detection."""
    policy = next((name for name in of.runs if name not in POLICIES), None)
    found = {"regret": _regret(of)}
    if policy is None:
        return found
    runs = of.runs[policy]
    others = [index for index in range(len(of.arms)) if index != of.scenario.experiment.incumbent]
    named = {of.arms[index]: index for index in others}
    everyone = {arm: index for index, arm in enumerate(of.arms)}
    shares = {arm: _stack(runs, lambda s, i=i: s.exposures[:, i] / np.maximum(s.exposures.sum(axis=1), 1.0)) for arm, i in named.items()}
    weights = {arm: _stack(runs, lambda s, i=i: s.weights[:, i]) for arm, i in everyone.items()}
    of_all = f"Share of all decisions so far that each candidate got ({policy})"
    found["exposure"] = _bands(of, shares, _grid(runs), of_all, percent=True)
    found["weights"] = _bands(of, weights, _grid(runs), f"Planned share of each arm ({policy})", percent=True)
    if of.scenario.experiment.guardrails:
        evidence = {arm: _stack(runs, lambda s, i=i: np.minimum(s.evidence[:, i], MOST_EVIDENCE)) for arm, i in named.items()}
        against = f"Evidence against each candidate, as a share of what stops it ({policy})"
        found["evidence"] = _bands(of, evidence, _grid(runs), against, percent=True)
        found["evidence"].axes[0].axhline(1.0, color="#222222", linestyle=":", linewidth=1.4)
        found["evidence"].axes[0].set_ylim(0.0, MOST_EVIDENCE + 0.05)
    if any(np.isfinite(run.stopped).any() for run in runs):
        found["detection"] = _detection(of, runs, named)
    return found


def save(of: Study, directory: Path) -> list[Path]:
    """Write each figure as PNG into the directory, made where it is missing. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures(of).items():
        path = directory / f"{name}.png"
        figure.savefig(path, dpi=110)
        written.append(path)
    return written


def _regret(of: Study) -> Figure:
    grid = max((_grid(runs) for runs in of.runs.values()), key=lambda seconds: seconds[-1])
    lines = {policy: np.stack([np.interp(grid, run.series.seconds, run.series.regret) for run in runs]) for policy, runs in of.runs.items()}
    return _bands(of, lines, grid, "Regret: rewards lost so far to the best arm", percent=False)


def _detection(of: Study, runs: Sequence[Replication], arms: Mapping[str, int]) -> Figure:
    """Share of replications in which each candidate had been stopped, over time."""
    scale, unit = _unit(of.scenario.duration_seconds)
    figure, axes = _axes(of, "Replications in which the guardrails had stopped a candidate")
    for place, (arm, index) in enumerate(arms.items()):
        at = np.sort([run.stopped[index] for run in runs if np.isfinite(run.stopped[index])]) / scale
        x = np.concatenate([[0.0], at, [of.scenario.duration_seconds / scale]])
        y = np.concatenate([[0.0], np.arange(1, at.size + 1), [at.size]]) / len(runs)
        axes.step(x, y, where="post", color=COLOURS[place % 7], linestyle=DASHES[place % 4], linewidth=2, label=arm)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(unit)
    _legend(axes)
    return figure


def _bands(of: Study, lines: Mapping[str, NDArray[np.float64]], seconds: NDArray[np.float64], title: str, *, percent: bool) -> Figure:
    """Mean and 5 % to 95 % of each (replications, points)."""
    scale, unit = _unit(float(seconds[-1]))
    figure, axes = _axes(of, title)
    for place, (name, values) in enumerate(lines.items()):
        low, high = np.quantile(values, (0.05, 0.95), axis=0)
        colour = COLOURS[place % 7]
        axes.fill_between(seconds / scale, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(seconds / scale, values.mean(axis=0), color=colour, linestyle=DASHES[place % 4], linewidth=2, label=name)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    bottom, top = axes.get_ylim()
    axes.set_ylim((0.0, max(top, LEAST_TOP)) if percent else (min(0.0, bottom), top))
    axes.set_xlabel(unit)
    _legend(axes)
    return figure


def _axes(of: Study, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 4.0), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_title(f"{of.scenario.name}\n{title}", fontsize=11, loc="left")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, handlelength=3.2)


def _grid(runs: Sequence[Replication]) -> NDArray[np.float64]:
    """Points of time that every replication reaches."""
    return np.linspace(0.0, min(run.series.seconds[-1] for run in runs), POINTS)


def _stack(runs: Sequence[Replication], value) -> NDArray[np.float64]:
    grid = _grid(runs)
    return np.stack([np.interp(grid, run.series.seconds, value(run.series)) for run in runs])


def _unit(seconds: float) -> tuple[float, str]:
    return next(((size, name) for size, name in UNITS if seconds >= 3 * size), UNITS[-1])
