"""The demo's figure: what was planned, what was received, and the evidence that decided, over time.

In: the frames and events of a run. Out: a PNG with three panels that share their time axis. Colours tell the versions
apart for colour-blind eyes too, and line styles tell them apart without any.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from allocator.demo.frame import Event, Frame, frame_at

INK, FAINT = "#222222", "#999999"
BLUE, GREEN, VERMILION = "#0072B2", "#009E73", "#D55E00"  # of Okabe and Ito
LOOKS = ((BLUE, "-"), (GREEN, (0, (6, 1.5))), (VERMILION, (0, (2, 1))))
MOST_EVIDENCE = 1.5


def draw(frames: Sequence[Frame], events: Sequence[Event], path: Path, title: str) -> None:
    """Write the figure to `path`. Needs at least one frame. Raises OSError when it cannot be written."""
    figure = Figure(figsize=(9.5, 9.0), layout="constrained", facecolor="white")
    weights, exposures, evidence = figure.subplots(3, 1, sharex=True)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    time = [frame.seconds for frame in frames]
    names = [row.name for row in frames[0].arms]
    incumbent = next(row.name for row in frames[0].arms if row.incumbent)
    look = dict(zip([incumbent, *(name for name in names if name != incumbent)], LOOKS, strict=True))

    def curve(axes: Axes, name: str, values: Sequence[float]) -> None:
        colour, dashes = look[name]
        axes.step(time, values, where="post", color=colour, linestyle=dashes, linewidth=2.2, label=name)

    for name in names:
        curve(weights, name, [frame.arm(name).weight for frame in frames])
        if name != incumbent:
            curve(exposures, name, [frame.arm(name).exposure for frame in frames])
            curve(
                evidence, name, [min(MOST_EVIDENCE, max(g.share for g in frame.arm(name).gauges)) for frame in frames]
            )
    candidate = next(name for name in names if name != incumbent)
    caps = [frame.arm(candidate).cap for frame in frames]
    exposures.step(time, caps, where="post", color=INK, linestyle=":", linewidth=1.6, label="cap")
    evidence.axhline(1.0, color=INK, linestyle=":", linewidth=1.6, label="breach")

    _panel(weights, "Weight: share of requests that each version is planned to get", 1.0)
    _panel(exposures, "Exposure: share of all requests so far that each candidate really got", max(caps) * 1.1)
    _panel(evidence, "Evidence of the guardrails against each candidate, as a share of what stops it", MOST_EVIDENCE)
    evidence.set_xlabel("seconds of traffic", color=INK)
    evidence.set_xlim(0, time[-1])
    for axes in (weights, exposures, evidence):
        for event in events:
            if event.action in ("arm.drain", "experiment.advance"):
                drained = event.action == "arm.drain"
                axes.axvline(event.seconds, color=VERMILION if drained else FAINT, linewidth=1.2, alpha=0.8, zorder=0)
    for event in events:
        if event.action == "experiment.advance":
            _note(weights, event.seconds, 0.97, f"stage at {frame_at(frames, event.seconds).cap:.0%}", FAINT)
        elif event.action == "arm.drain":
            _note(evidence, event.seconds, 0.97, event.text.partition(":")[0], VERMILION)
    figure.savefig(path, dpi=130, format="png")


def _panel(axes: Axes, title: str, top: float) -> None:
    axes.set_title(title, fontsize=10.5, loc="left", pad=8, color=INK)
    axes.set_ylim(-0.03 * top, 1.03 * top)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="%"))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, handlelength=3.2)


def _note(axes: Axes, seconds: float, height: float, text: str, colour: str) -> None:
    """Words beside a vertical line, `height` of the panel up."""
    axes.annotate(
        text,
        (seconds, height),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=8.5,
        color=colour,
        va="top",
    )
