"""The figures of a report.

In: what a report found. Out: pictures with the same in words. Colours tell arms apart for colour-blind eyes too, and order tells without
any.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from allocator.analysis.inference import Interval
from allocator.analysis.page import BLUE, COLOURS, FAINT, GREEN, INK, VERMILION, Picture, picture

if TYPE_CHECKING:
    from allocator.analysis.decision_log import Logged
    from allocator.analysis.report import Source

MARKED = {  # events that a figure marks, and how
    "experiment.start": FAINT,
    "experiment.advance": GREEN,
    "experiment.approve": FAINT,
    "experiment.freeze": VERMILION,
    "experiment.resume": BLUE,
    "experiment.rollback": VERMILION,
    "experiment.conclude": INK,
    "arm.drain": VERMILION,
}
MOST_MARKS, POINTS = 40, 60


def means(found: Mapping[str, Interval], incumbent: str, metric: str, heading: str) -> Picture:
    """Each arm's mean with its interval, which holds as `heading` says, and its naive one."""
    figure = Figure(figsize=(8.0, 0.9 + 0.6 * len(found)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    words = []
    for row, (arm, one) in enumerate(found.items()):
        axes.plot([one.low, one.high], [row, row], color=BLUE, linewidth=3, label=heading if row == 0 else None)
        if np.isfinite(one.value):
            label = None if "naive" in axes.get_legend_handles_labels()[1] else "naive"
            axes.plot([one.naive_low, one.naive_high], [row + 0.22] * 2, color=VERMILION, linewidth=1.5, label=label)
            axes.plot([one.value], [row], "o", color=INK, markersize=5)
        naive = f"naive {one.naive_low:.4g} to {one.naive_high:.4g}"
        words.append(f"{arm}: {one.value:.4g}, {heading} {one.low:.4g} to {one.high:.4g}, {naive}")
    axes.set_yticks(range(len(found)), [f"{arm}{' (incumbent)' if arm == incumbent else ''}" for arm in found], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"mean {metric}, intervals that hold at every look", parse_math=False)
    _tidy(axes)
    axes.legend(frameon=False, loc="best", fontsize=8)
    return picture(figure, "; ".join(words))


def timeline(source: Source, logged: Logged | None) -> Picture | None:
    """Share of decisions that each arm received over time, and what happened; None when time cannot be told."""
    if logged is not None:
        times, index, weight = logged.seconds, logged.action, np.ones(logged.action.size)
        names: Sequence[str] = logged.arms
    else:
        rows = [row for row in source.buckets if row.statistic == "DECISIONS" and row.bucket > 0]
        names = source.arms
        times = np.array([row.bucket for row in rows])
        index = np.array([names.index(row.arm) for row in rows], dtype=int)
        weight = np.array([float(row.count) for row in rows])
    if times.size == 0:
        return None
    events = [event for event in source.events if event.action in MARKED][-MOST_MARKS:]
    edges = np.linspace(times.min(), max(times.max(), times.min() + 1.0), POINTS + 1)
    shares = np.array([np.histogram(times[index == arm], edges, weights=weight[index == arm])[0] for arm in range(len(names))])
    whole = shares.sum(axis=0)
    figure = Figure(figsize=(8.0, 3.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    middle = [datetime.datetime.fromtimestamp(s, datetime.UTC) for s in (edges[:-1] + edges[1:]) / 2]
    for arm, name in enumerate(names):
        share = np.divide(shares[arm], whole, out=np.full(POINTS, np.nan), where=whole > 0)
        axes.plot(middle, share, marker=".", color=COLOURS[arm % len(COLOURS)], label=name)
    for event in events:
        if edges[0] <= event.seconds <= edges[-1]:
            axes.axvline(datetime.datetime.fromtimestamp(event.seconds, datetime.UTC), color=MARKED[event.action], linewidth=1, zorder=0)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_title("Share of decisions of each arm; lines mark stages, freezes, resumes and conclusions", fontsize=9, color=INK)
    _tidy(axes)
    for text in axes.legend(frameon=False, fontsize=8).get_texts():
        text.set_parse_math(False)
    told = ", ".join(f"{name} {shares[arm].sum() / max(whole.sum(), 1):.1%}" for arm, name in enumerate(names))
    return picture(figure, f"share of decisions over time; in all {told}; {len(events)} events marked")


def reliability(found: Sequence[Mapping[str, Any]]) -> Picture:
    """Predicted against observed, a curve for each arm."""
    figure = Figure(figsize=(5.0, 4.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle=":", label="calibrated")
    for number, one in enumerate(found):
        x, y, low, high = (np.array([row[name] for row in one["bins"]]) for name in ("predicted", "observed", "low", "high"))
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(x, y, yerr=[y - low, high - y], color=colour, marker="o", markersize=3, linewidth=1, elinewidth=0.6, label=one["arm"])
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("observed mean")
    _tidy(axes)
    for text in axes.legend(frameon=False, fontsize=8).get_texts():
        text.set_parse_math(False)
    return picture(figure, "; ".join(f"{one['arm']}: calibration error {one['error']:.4f}, p {one['pValue']:.3g}" for one in found))


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
