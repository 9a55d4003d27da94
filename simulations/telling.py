"""What every study tells its reader: progress while it runs, shares with their intervals, tables in Markdown.

In: items, counts, rows. Out: the same items with a bar on a terminal (plain lines elsewhere), and text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.progress import track
from scipy.stats import binomtest

T = TypeVar("T")


def steps(items: Iterable[T], total: int, name: str) -> Iterator[T]:
    """The items, with a progress bar on a terminal and a line every fifth of the way elsewhere."""
    if sys.stdout.isatty():
        yield from track(items, f"{name:50.50}", total)
        return
    begun = time.perf_counter()
    for number, item in enumerate(items, 1):
        yield item
        if number % max(total // 5, 1) == 0:
            print(f"{name}: {number:,} of {total:,}, {time.perf_counter() - begun:.0f} s", flush=True)


def table(head: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table under a line of text; its columns are aligned for whoever reads it as text."""
    widths = [max(len(row[i]) for row in (names, *rows)) for i in range(len(names))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in (names, *rows)]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join((head, "", *lines, ""))


def share_of(count: int, runs: int) -> tuple[str, str, str]:
    """A count of runs, its share, and the Clopper-Pearson interval."""
    interval = binomtest(count, runs).proportion_ci(0.95, "exact")
    return f"{count:,} of {runs:,}", f"{count / runs:.3%}", f"{interval.low:.3%} to {interval.high:.3%}"
