"""`allocator status`: where an experiment stands, in a few lines, once or live.

In: a name. Out: state, stage, what it waits for, weights and evidence with bars, and the last audit records. With `--watch` the view is
drawn again as things change, until the experiment has ended or Ctrl-C; in a pipe a changed view is printed under the one before,
so that a log of it can be read. `describe` says everything once; this says what to keep an eye on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allocator.cli import tables
from allocator.cli.connection import DEFAULT_SERVER, Name, Operator, Output, Server, Timeout
from allocator.cli.failures import clean, complain
from allocator.cli.output import Format, draw, renderables, say, say_found
from allocator.cli.tables import full_name
from allocator.errors import DeadlineExceeded, Overloaded, Unavailable

if TYPE_CHECKING:
    from allocator.v1 import operator_service_pb2 as service_pb

LATEST = 5  # audit records shown
ENDED = ("ROLLED_BACK", "CONCLUDED")


def status(
    name: Name,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Draw it again until the experiment has ended, or Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.05, help="Between two looks, with --watch.")] = 1.0,
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
) -> None:
    """Show where an experiment stands; `--watch` keeps it on the screen."""
    with Operator(server, timeout) as operator:
        look = _Look(operator, name)
        if not watch:
            _print(look.take(), output)
        elif output.for_people and sys.stdout.isatty():
            _watch(look, interval, wide=output is Format.WIDE)
        else:
            _follow(look, interval, lambda seen: _print_next(seen, output))


class _Look:
    """Reads one experiment and the newest audit records of it; of these only what came since the last look is asked for."""

    def __init__(self, operator: Operator, name: str) -> None:
        self._operator = operator
        self._name = name
        self._page = ""
        self._records: list[Any] = []

    def take(self) -> tuple[service_pb.DescribeExperimentResponse, list[Any]]:
        """What there is to see now."""
        from allocator.v1 import operator_service_pb2 as pb

        found = self._operator.call("DescribeExperiment", pb.DescribeExperimentRequest(experiment=self._name))
        new = self._operator.pages("ListAuditRecords", pb.ListAuditRecordsRequest(experiment=self._name, page_token=self._page), "records")
        if new:
            self._page = str(new[-1].sequence)
            self._records = [*self._records, *new][-LATEST:]
        return found, self._records


def _print(seen: tuple[Any, list[Any]], output: Format) -> None:
    shown = tables.status(*seen, wide=output is Format.WIDE)
    say_found(output, [seen[0]], lambda found: full_name(found.experiment), lambda: draw(shown), one=True, zeros=True)


def _print_next(seen: tuple[Any, list[Any]], output: Format) -> None:
    """One of several: JSON on a line of its own, YAML as a document of its own."""
    from allocator.wire.spec import to_document

    if output is Format.JSON:
        say(json.dumps(to_document(seen[0], zeros=True)))
        return
    if output is Format.YAML:
        say("---")
    _print(seen, output)


def _follow(look: _Look, interval: float, show: Callable[[Any], None]) -> None:
    """Print what changed, look by look."""
    before: Any = None
    while True:
        seen = look.take()
        now = (_without_times(seen[0]), [record.sequence for record in seen[1]])
        if now != before:
            show(seen)
            before = now
        if tables.state(seen[0].experiment) in ENDED:
            return
        time.sleep(interval)


def _without_times(found: Any) -> bytes:
    """What of a description tells that something happened: not when it was last planned."""
    copy = type(found)()
    copy.CopyFrom(found)
    copy.ClearField("plan_time")
    copy.experiment.metadata.ClearField("update_time")
    return copy.SerializeToString(deterministic=True)


def _watch(look: _Look, interval: float, *, wide: bool) -> None:
    """The view on a terminal, in place. A server that is away for a while is said to be, and asked again."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(markup=False, emoji=False, highlight=False)
    last: list[Any] = []
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            trouble, state = "", ""
            try:
                seen = look.take()
                last = list(renderables(tables.status(*seen, wide=wide), console))
                state = tables.state(seen[0].experiment)
            except (Unavailable, DeadlineExceeded, Overloaded) as error:
                if not last:
                    raise
                trouble = clean(error.message)
            foot = (
                Text(trouble, style="red") if trouble else Text(f"every {interval:g} s; Ctrl-C ends this, not the experiment", style="dim")
            )
            live.update(Group(*last, "", foot), refresh=True)
            if state in ENDED:
                break
            time.sleep(interval)
    complain(f"the experiment is {state}")
