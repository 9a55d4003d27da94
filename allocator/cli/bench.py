"""`allocator bench`: how many decisions a second, how fast, on the operator's own machine.

In: a running server, or `--self` for one of its own. Out: a table or a document on stdout, a figure where one is asked for, progress on a
terminal's stderr. What is slow to import, or comes with the extra `sim`, is imported when it is needed.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.connection import DEFAULT_SERVER, OutputView, Server, access
from allocator.cli.failures import complain
from allocator.cli.output import Column, Grid, View, draw, say, say_values
from allocator.errors import AllocatorError, InvalidArgument

if TYPE_CHECKING:
    from allocator.bench.load import Load, Measured
    from allocator.client.channel import Access

PACKAGES = {"hdrh": "hdrhistogram", "matplotlib": "matplotlib"}
LATE_MILLISECONDS = 1.0


def bench(
    experiment: Annotated[
        str, typer.Option("--experiment", metavar="NAME", help="Whose decisions to ask for; they count as exposures.", show_default=False)
    ] = "",
    rate: Annotated[float, typer.Option("--rate", metavar="CALLS", help="Calls a second, sent on time whatever comes back.")] = 500.0,
    duration: Annotated[float, typer.Option("--duration", metavar="SECONDS", help="How long.")] = 10.0,
    connections: Annotated[int, typer.Option("--connections", metavar="N", help="How many connections.")] = 4,
    timeout: Annotated[float, typer.Option("--deadline", metavar="SECONDS", help="Of each call.")] = 1.0,
    own: Annotated[bool, typer.Option("--self", help="Start a server for it, with an experiment, and stop it again.")] = False,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw the latencies.", show_default=False)] = None,
    server: Server = DEFAULT_SERVER,
    output: OutputView = View.TABLE,
) -> None:
    """Measure decisions: an open loop at a fixed rate, latencies from when each call should have been sent."""
    try:
        from allocator.bench import load as loads
        from allocator.bench.server import EXPERIMENT, own_server

        if png is not None:
            from allocator.bench import figure
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package not in PACKAGES:
            raise
        raise AllocatorError(f"this needs {PACKAGES[package]}, which is not installed", reason="MISSING_PACKAGES") from exc
    if bool(experiment) == own:
        got = "both it and --self" if own else "neither it nor --self"
        raise InvalidArgument.of_field("--experiment", f"got {got}; one of them is needed")
    load = loads.Load(experiment or EXPERIMENT, rate, duration, connections, timeout)
    with own_server() if own else nullcontext((server, 0)) as (address, _):
        measured = _run(address, load, None if own else access())
    if output is View.TABLE:
        _show(measured)
    else:
        say_values(output, [measured.document()], one=True)
    late = measured.lateness.get_value_at_percentile(99.0) / 1000
    if late > LATE_MILLISECONDS:
        complain(f"warning: 1 % of the calls were sent more than {late:.1f} ms late: this measures the generator too; lower --rate")
    if png is not None:
        title = f"{measured.done:,} decisions at {load.rate:g}/s over {load.connections} connections"
        figure.draw(measured, png, title)


def _run(address: str, load: Load, door: Access | None) -> Measured:
    import uvloop

    from allocator.bench.load import run
    from allocator.client.channel import OPEN

    door = door or OPEN

    if not sys.stderr.isatty():
        return uvloop.run(run(address, load, lambda _: None, door))
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=load.calls, now="")

        def tell(measured: Measured) -> None:
            now = f"p50 {measured.milliseconds(50.0):.2f} ms, p99 {measured.milliseconds(99.0):.2f} ms, errors {measured.errors.total()}"
            progress.update(task, completed=measured.done, now=now)
            progress.refresh()

        return uvloop.run(run(address, load, tell, door))


def _show(measured: Measured) -> None:
    found = measured.document()
    latency: dict[str, float] = found["latencyMilliseconds"]  # type: ignore[assignment]
    columns = [Column("wanted/s", right=True), Column("answered/s", right=True), Column("calls", right=True), Column("errors", right=True)]
    columns += [Column(f"{name} ms", right=True) for name in latency]
    row = [f"{measured.load.rate:g}", f"{found['answeredRate']:g}", f"{measured.done}", f"{measured.errors.total()}"]
    row += [f"{value:.2f}" for value in latency.values()]
    draw([Grid(columns, [row], keys=0)])
    for code, count in sorted(measured.errors.items()):
        say(f"{count} {code}")
