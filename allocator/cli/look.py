"""What an operator looks at: experiments, one in full, the audit log.

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
from allocator.errors import AllocatorError, InvalidArgument

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
            "--selector", "-l", metavar="KEY=VALUE,...", help="List what has all of these labels.", show_default=False
        ),
    ] = "",
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
) -> None:
    """List experiments, or get one; `-o yaml` writes what `apply` reads."""
    from allocator.v1 import operator_service_pb2 as service_pb

    wanted = _labels(selector)
    if name is not None and (namespace or selector):
        raise InvalidArgument.of_field("NAME", "got a name and a filter; one of them is allowed")
    with Operator(server, timeout) as operator:
        if name is not None:
            found = [operator.call("GetExperiment", service_pb.GetExperimentRequest(experiment=name)).experiment]
        else:
            request = service_pb.ListExperimentsRequest(namespace=namespace)
            found = [
                e
                for e in operator.pages("ListExperiments", request, "experiments")
                if wanted.items() <= dict(e.metadata.labels).items()
            ]
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


audit = typer.Typer(help="Read the audit log, and check that nobody has changed it.", no_args_is_help=True)


@audit.command("list")
def list_records(
    name: MaybeName = None, output: OutputView = View.TABLE, server: Server = DEFAULT_SERVER, timeout: Timeout = 10.0
) -> None:
    """List who did what, when and why, oldest first."""
    from allocator.v1 import operator_service_pb2 as service_pb

    with Operator(server, timeout) as operator:
        found = operator.pages("ListAuditRecords", service_pb.ListAuditRecordsRequest(experiment=name or ""), "records")
    if output is View.TABLE:
        draw([tables.audit(found)])
        _say_if_none(found)
    else:
        say_documents(output, found, one=False)


@audit.command()
def verify(output: OutputView = View.TABLE, server: Server = DEFAULT_SERVER, timeout: Timeout = 60.0) -> None:
    """Recompute the chain of digests over all records. Exits with 1 if it is broken.

    An end cut off cannot be seen in the chain alone: keep a head from time to time, and look for its record later.
    """
    from allocator.v1 import operator_service_pb2 as service_pb

    with Operator(server, timeout) as operator:
        reply = operator.call("VerifyAuditRecords", service_pb.VerifyAuditRecordsRequest())
    if output is not View.TABLE:
        say_documents(output, [reply], one=True, zeros=True)
    elif reply.intact:
        say(f"audit log intact: {reply.records} records, head {reply.head or 'none'}")
    if not reply.intact:
        raise AllocatorError(
            f"the audit log is broken: record {reply.first_broken} of {reply.records} does not fit the one before it"
        )


def _say_if_none(found: Sequence[Any]) -> None:
    if not found:
        complain("nothing found")


def _labels(selector: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in selector.split(",") if pair.strip()]
    if not all(key.strip() and equals for key, equals, _ in pairs):
        raise InvalidArgument.of_field(
            "--selector", f"got {selector!r}; key=value is allowed, with commas between several"
        )
    return {key.strip(): value.strip() for key, _, value in pairs}
