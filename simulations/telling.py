"""What every study asks and tells its reader: its options, progress while it runs, shares with their intervals, tables in Markdown.

In: the command line, items, counts, rows. Out: options, the same items with a bar on a terminal (plain lines elsewhere), and text.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.progress import track
from scipy.stats import binomtest

T = TypeVar("T")


def asked(
    description: str, runs: int, of: str, least: int, folder: Path, more: Callable[[argparse.ArgumentParser], object] | None = None
) -> argparse.Namespace:
    """The options of a study: runs, seed, output (made if it is not there). of: of what the runs are. least: fewest allowed.

    folder: where table and figure go unless told otherwise. more: adds options that only this study has.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=runs, help=f"{of} (default: {runs})")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (default: 1)")
    parser.add_argument("--output", type=Path, default=folder, metavar="DIR", help="where to leave table and figure")
    if more is not None:
        more(parser)
    options = parser.parse_args()
    if options.runs < least:
        parser.error(f"--runs: at least {least}")
    options.output.mkdir(parents=True, exist_ok=True)
    return options


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
