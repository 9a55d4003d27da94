"""What an operator looks at: experiments, and one in full.

In: names. Out: tables for people, documents for programs. A list is read to its end, page by page.
"""

from __future__ import annotations

from typing import Annotated

import typer

from allocator.cli import tables
from allocator.cli.connection import DEFAULT_SERVER, Name, Operator, Output, Server, Timeout, complete_name
from allocator.cli.output import Format, draw, draw_list, say_found
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
    wide = output is Format.WIDE
    say_found(output, found, full_name, lambda: draw_list(tables.experiments(found, wide=wide)), one=name is not None)


def describe(
    name: Name, output: Output = Format.TABLE, server: Server = DEFAULT_SERVER, timeout: Timeout = 10.0
) -> None:
    """Show one experiment in full: weights, posteriors, evidence, and what it waits for."""
    from allocator.v1 import operator_service_pb2 as service_pb

    with Operator(server, timeout) as operator:
        reply = operator.call("DescribeExperiment", service_pb.DescribeExperimentRequest(experiment=name))
    shown = tables.description(reply, wide=output is Format.WIDE)
    say_found(output, [reply], lambda found: full_name(found.experiment), lambda: draw(shown), one=True, zeros=True)
