"""What an operator looks at: experiments, and one in full.

In: names. Out: tables for people, documents for programs. A list is read to its end, page by page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from allocator.cli import tables
from allocator.cli.connection import DEFAULT_SERVER, Name, Operator, Output, OutputView, Server, Timeout, complete_name
from allocator.cli.failures import complain
from allocator.cli.output import Format, View, draw, say, say_documents
from allocator.cli.tables import full_name
from allocator.errors import InvalidArgument

MaybeName = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]", help="One experiment; all when left out.", autocompletion=complete_name, show_default=False
    ),
]


def get(
    name: MaybeName = None,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NAME", help="List this namespace only.", show_default="all")
    ] = "",
    selector: Annotated[
        str,
        typer.Option(
            "--selector", "-l", metavar="LABELS", help="List by labels: `team=search,tier!=gold,reviewed`.", show_default=False
        ),
    ] = "",
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
) -> None:
    """List experiments, or get one; `-o yaml` writes what `apply` reads."""
    from allocator.v1 import operator_service_pb2 as service_pb

    if name is not None and (namespace or selector):
        raise InvalidArgument.of_field("NAME", "got a name and a filter; one of them is allowed")
    with Operator(server, timeout) as operator:
        if name is not None:
            found = [operator.call("GetExperiment", service_pb.GetExperimentRequest(experiment=name)).experiment]
        else:
            request = service_pb.ListExperimentsRequest(namespace=namespace, selector=selector)
            found = operator.pages("ListExperiments", request, "experiments")
    if output is Format.NAME:
        for experiment in found:
            say(full_name(experiment))
    elif output.for_people:
        draw([tables.experiments(found, wide=output is Format.WIDE)])
        _say_if_none(found)
    else:
        say_documents(output, found, one=name is not None)


def describe(
    name: Name, output: OutputView = View.TABLE, server: Server = DEFAULT_SERVER, timeout: Timeout = 10.0
) -> None:
    """Show one experiment in full: weights, posteriors, evidence, and what it waits for."""
    from allocator.v1 import operator_service_pb2 as service_pb

    with Operator(server, timeout) as operator:
        reply = operator.call("DescribeExperiment", service_pb.DescribeExperimentRequest(experiment=name))
    if output is View.TABLE:
        draw(tables.description(reply))
    else:
        say_documents(output, [reply], one=True, zeros=True)


def _say_if_none(found: Sequence[Any]) -> None:
    if not found:
        complain("nothing found")
