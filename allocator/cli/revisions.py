"""The registry: every revision of a spec, how two differ, and what people wrote down.

In: names, files. Out: tables, unified differences, documents. A difference is told as `diff` tells it: exit code 1 when there is one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from allocator.cli import records
from allocator.cli.connection import DEFAULT_SERVER, Actor, Name, Operator, Output, OutputView, Server, Timeout, complete_name
from allocator.cli.differences import Difference, difference, difference_from_server, lines_of
from allocator.cli.operate import tell_change
from allocator.cli.output import Format, View, draw_list, say_found, say_values
from allocator.cli.specs import read
from allocator.cli.tables import full_name
from allocator.errors import InvalidArgument

DIFFERS = 1


def revisions(name: Name, output: Output = Format.TABLE, server: Server = DEFAULT_SERVER, timeout: Timeout = 10.0) -> None:
    """List every revision of an experiment's spec: who, when, why, and what changed."""
    from allocator.v1 import operator_service_pb2 as service_pb

    with Operator(server, timeout) as operator:
        found = operator.pages("ListRevisions", service_pb.ListRevisionsRequest(experiment=name), "revisions")
    wide = output is Format.WIDE
    say_found(output, found, lambda each: str(each.revision), lambda: draw_list(records.revisions(found, wide=wide)))


def diff(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Compare revisions of this experiment.", autocompletion=complete_name, show_default=False),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--file", "-f", metavar="FILE|DIR|-", help="Compare these specs with what the server has.", show_default=False),
    ] = None,
    first: Annotated[
        int | None, typer.Option("--from", metavar="N", min=1, help="The older revision.", show_default="the one before --to")
    ] = None,
    second: Annotated[
        int | None, typer.Option("--to", metavar="N", min=1, help="The newer revision.", show_default="the present one")
    ] = None,
    output: OutputView = View.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
) -> None:
    """Show what would change, or what changed from one revision to another. Exits with 1 if anything differs."""
    if (name is None) == (not files):
        raise InvalidArgument.of_field("NAME", "give the name of an experiment, or --file; one of them is needed")
    if files and (first or second):
        raise InvalidArgument.of_field("--from", "got a revision with --file, which compares with the present one")
    found = []
    with Operator(server, timeout) as operator:
        for written in read(files) if files else (None,):
            if written is None:
                found.append(_of_revisions(operator, name or "", first, second))
            else:
                found.append(difference_from_server(operator, written.message))
            if output is View.TABLE:
                found[-1].show()
    if output is not View.TABLE:
        say_values(output, [each.document() for each in found], one=len(found) == 1)
    raise typer.Exit(DIFFERS if any(each.lines for each in found) else 0)


def note(
    name: Name,
    text: Annotated[str, typer.Option("--text", metavar="TEXT", help="What to write down.", show_default=False)] = "",
    file: Annotated[str, typer.Option("--file", "-f", metavar="FILE|-", help="A file to take it from.", show_default=False)] = "",
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Attach a note to an experiment, also to one that has ended: what happened, what was learned. It stays."""
    from allocator.v1 import operator_service_pb2 as service_pb

    if bool(text) == bool(file):
        raise InvalidArgument.of_field("text", "give --text or --file; one of them is needed")
    if file:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    with Operator(server, timeout) as operator:
        reply = operator.call("AnnotateExperiment", service_pb.AnnotateExperimentRequest(experiment=name, actor=actor, text=text))
    tell_change(output, reply, lambda _: "noted")


def _of_revisions(operator: Operator, name: str, first: int | None, second: int | None) -> Difference:
    newer = _revision(operator, name, second or 0)
    number = newer.revision.revision
    older = _revision(operator, name, first or max(number - 1, 1))
    before, after = f"revision {older.revision.revision}", f"revision {number}"
    return difference(full_name(newer.experiment), lines_of(older.experiment), lines_of(newer.experiment), before, after)


def _revision(operator: Operator, name: str, number: int) -> Any:
    from allocator.v1 import operator_service_pb2 as service_pb

    return operator.call("GetRevision", service_pb.GetRevisionRequest(experiment=name, revision=number))
