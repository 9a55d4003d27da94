"""The latencies of a load as a figure: which share of calls took longer than what, both on logarithmic scales.

In: what was measured. Out: a PNG. On these scales the tail, which is what users feel, has as much room as the rest.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from allocator.bench.load import PERCENTILES, Measured

INK, FAINT, BLUE = "#222222", "#999999", "#0072B2"


def draw(measured: Measured, path: Path, title: str) -> None:
    """Write the figure to `path`. Raises OSError when it cannot be written."""
    total = measured.done
    values, beyond, seen = [], [], 0
    for item in measured.latencies.get_recorded_iterator():
        values.append(item.value_iterated_to / 1000)
        beyond.append((total - seen) / total)
        seen += item.count_at_value_iterated_to
    figure = Figure(figsize=(8.5, 5.0), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_title(title, color=INK, loc="left", fontsize=11)
    axes.step(values, beyond, where="post", color=BLUE, linewidth=2.0)
    for percentile in PERCENTILES:
        value, share = measured.milliseconds(percentile), 1 - percentile / 100
        if share * total >= 1:
            axes.plot([value], [share], "o", color=BLUE, markersize=5)
            axes.annotate(f"p{percentile:g}: {value:.2f} ms", (value, share), xytext=(8, 4), textcoords="offset points", color=INK)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    axes.set_xlabel("milliseconds since the call should have been sent", color=INK)
    axes.set_ylabel("share of calls that took at least as long", color=INK)
    axes.grid(True, which="major", color=FAINT, alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=140)
