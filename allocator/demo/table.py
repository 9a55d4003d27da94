"""What the demo shows while it runs: a table that lives on a terminal, plain lines anywhere else.

In: `Frame`s and `Event`s as they come. Out: text on standard output, and nothing but text: whoever pipes the demo
into a file gets a line for each second of traffic and one for each event, in ASCII. The table fits into 80 columns,
the usual width.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from allocator.demo.frame import ArmRow, Event, Frame

REFRESHES_PER_SECOND = 6
EVENTS_SHOWN = 6
BAR = 10
LOUD = {"arm.drain": "bold red", "experiment.recommend": "bold green"}
LINE_SECONDS = 1.0  # of traffic, between two plain lines
WAIT_SECONDS = 5.0  # between two plain lines that say what is waited for


class Screen(Protocol):
    """Where the demo tells its story. A context manager: leaving it gives the terminal back."""

    def wait(self, text: str) -> None:
        """Say what the user waits for; to be called again and again with the same text."""

    def show(self, frame: Frame) -> None:
        """Show the arms as they are now."""

    def tell(self, event: Event) -> None:
        """Add an event to what happened so far."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def screen(plain: bool) -> Screen:
    """The table on a terminal, plain lines elsewhere or when `plain` asks for them."""
    if plain or not sys.stdout.isatty() or os.environ.get("TERM") in (None, "", "dumb"):
        return Lines()
    return LiveTable(Console())


class LiveTable:
    """A table that is drawn again several times a second, in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._waiting = Spinner("dots", "", style="bold")
        self._frame: Frame | None = None
        self._events: tuple[Event, ...] = ()
        self._live = Live(console=console, refresh_per_second=REFRESHES_PER_SECOND, get_renderable=self._render)

    def wait(self, text: str) -> None:
        self._waiting.update(text=Text(text))

    def show(self, frame: Frame) -> None:
        self._frame = frame

    def tell(self, event: Event) -> None:
        self._events = (*self._events, event)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def _render(self) -> RenderableType:
        if self._frame is None:
            return self._waiting
        happened = [_event_line(event) for event in self._events[-EVENTS_SHOWN:]]
        return Group(arms_table(self._frame, self._console.options.ascii_only), "", *happened)


class Lines:
    """A line a second, and one for each event."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._waiting, self._waiting_since = "", 0.0
        self._shown_seconds = 0.0

    def wait(self, text: str) -> None:
        now = time.monotonic()
        if text == self._waiting and now - self._waiting_since < WAIT_SECONDS:
            return
        again = text == self._waiting
        self._waiting, self._waiting_since = text, now
        print(f"{text} ({now - self._begun:.0f} s)" if again else text, flush=True)

    def show(self, frame: Frame) -> None:
        if frame.seconds - self._shown_seconds < LINE_SECONDS:
            return
        self._shown_seconds = frame.seconds
        print(
            f"{frame.seconds:6.2f} s  {frame.requests:>6} requests  " + "  |  ".join(map(_arm_words, frame.arms)),
            flush=True,
        )

    def tell(self, event: Event) -> None:
        print(f"{event.seconds:6.2f} s  ** {event.text}", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def arms_table(frame: Frame, ascii_only: bool = False) -> Table:
    """The arms as a table, two lines each. ascii_only: the terminal knows no other characters."""
    stroke = "#" if ascii_only else "━"
    table = Table(
        title=(
            f"allocator demo  {frame.seconds:.1f} s  {frame.requests:,} requests"
            f"  this stage: candidates at most {percent(frame.cap, 0)}"
        ),
        caption="\nevidence: a guardrail's against a candidate, as a share of what stops it",
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        leading=1,
    )
    for heading in ("version", "weight", "exposure", "outcomes", "right, 95%", "P(best)", "evidence"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "outcomes" else "left")
    for row in frame.arms:
        table.add_row(*_cells(row, stroke), style="dim" if row.drained else "")
    return table


def percent(share: float, digits: int = 1) -> str:
    """A share as text: 12.5%."""
    return f"{share:.{digits}%}"


def _cells(row: ArmRow, stroke: str) -> list[RenderableType]:
    worst = row.worst
    if worst is None:
        evidence = Text("-")
    else:
        told = f"{percent(worst.share, 0)} {worst.guardrail}\n"
        evidence = Text.assemble((told, _alarm(worst.share)), _bar(worst.share, _alarm(worst.share), stroke))
    return [
        Text.assemble((row.name, "bold"), "\n", _state(row)),
        Text.assemble(f"{percent(row.weight)}\n", _bar(row.weight, "blue" if row.incumbent else "green", stroke)),
        f"{percent(row.exposure)}\n" + ("" if row.incumbent else f"cap {percent(row.cap, 0)}"),
        f"{row.outcomes:,}",
        f"{percent(row.mean)}\n{row.low * 100:.1f}-{row.high * 100:.1f}",
        percent(row.prob_best),
        evidence,
    ]


def _state(row: ArmRow) -> Text:
    if row.incumbent:
        return Text("incumbent", style="blue")
    return Text(row.state.lower(), style="bold red" if row.drained else "green")


def _alarm(share: float) -> str:
    return "bold red" if share >= 1 else "red" if share >= 0.5 else "yellow" if share >= 0.2 else "green"


def _bar(share: float, style: str, stroke: str) -> Text:
    filled = min(BAR, round(share * BAR))
    if share > 0 and filled == 0:
        filled = 1
    return Text.assemble(
        (stroke * filled, style), (("-" if stroke == "#" else stroke) * (BAR - filled), "bright_black")
    )


def _event_line(event: Event) -> Text:
    return Text.assemble((f"{event.seconds:6.2f} s  ", "bright_black"), (event.text, LOUD.get(event.action, "")))


def _arm_words(row: ArmRow) -> str:
    words = f"{row.name}: weight {percent(row.weight)}, got {percent(row.exposure)}"
    words += f", right {percent(row.mean)} of {row.outcomes}, P(best) {percent(row.prob_best)}"
    if row.drained:
        return f"{words}, DRAINED"
    return words if row.worst is None else f"{words}, evidence {percent(row.worst.share, 0)}"
