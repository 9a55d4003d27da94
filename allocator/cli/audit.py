"""`allocator audit`: read the log, take it along, and check that nobody has changed it.

In: a name, a file of checkpoints. Out: tables, lines of JSON, CSV. `verify` and `export` also work on a store directly, for a server that
is down or not to be trusted. What people wrote goes into CSV with a guard: a spreadsheet would run a cell that begins like a formula.
"""

from __future__ import annotations

import csv
import io
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allocator.cli import tables
from allocator.cli.connection import (
    DEFAULT_SERVER,
    Operator,
    Output,
    OutputView,
    Server,
    StoreAddress,
    Timeout,
    complete_name,
    connected,
    reached,
)
from allocator.cli.failures import clean, complain
from allocator.cli.output import Format, View, draw_list, say, say_documents, say_found, write
from allocator.errors import AllocatorError, InvalidArgument

if TYPE_CHECKING:
    from allocator.v1 import allocator_pb2 as pb

FIELDS = ("sequence", "time", "actor", "action", "experiment", "reason", "before", "after", "digest")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

audit = typer.Typer(help="Read the audit log, and check that nobody has changed it.", no_args_is_help=True)
MaybeName = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="One experiment; all when left out.", autocompletion=complete_name, show_default=False),
]
Namespace = Annotated[
    str, typer.Option("--namespace", "-n", metavar="NAME", help="Records of this namespace only.", show_default="all")
]


class Table(StrEnum):
    """How a log is taken along."""

    JSONL = "jsonl"
    CSV = "csv"


@audit.command("list")
@connected
def list_records(
    name: MaybeName = None,
    namespace: Namespace = "",
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
) -> None:
    """List who did what, when and why, oldest first."""
    with Operator(server, timeout) as operator:
        found = operator.pages("ListAuditRecords", _wanted(name, namespace), "records")
    wide = output is Format.WIDE
    say_found(output, found, lambda each: str(each.sequence), lambda: draw_list(tables.audit(found, wide=wide)))


@audit.command()
@connected
def verify(
    checkpoint: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", metavar="FILE", help="Heads written down by `serve --audit-checkpoint`.", show_default=False),
    ] = None,
    store: StoreAddress = "",
    output: OutputView = View.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 60.0,
) -> None:
    """Recompute the chain of digests over all records. Exits with 1 if it is broken.

    An end cut off, or a log written anew, cannot be seen in the chain alone: give it checkpoints, and it must hold each of them.
    """
    from allocator.v1 import operator_service_pb2 as service_pb

    heads = [head for path in checkpoint or () for head in _heads(path)]
    with reached(server, timeout, store) as operator:
        reply = operator.call("VerifyAuditRecords", service_pb.VerifyAuditRecordsRequest(checkpoints=heads))
    if output is not View.TABLE:
        say_documents(output, [reply], one=True, zeros=True)
    elif reply.intact:
        held = f", holds {len(heads)} checkpoints" if checkpoint else ""
        say(f"audit log intact: {reply.records} records, head {reply.head or 'none'}{held}")
    if reply.first_broken:
        raise AllocatorError(
            f"the audit log is broken: record {reply.first_broken} of {reply.records} does not fit the one before it"
        )
    if reply.missing_checkpoint:
        raise AllocatorError(
            f"the audit log was cut off or written anew: it does not hold the checkpoint of record {reply.missing_checkpoint}"
        )


@audit.command()
@connected
def export(
    name: MaybeName = None,
    namespace: Namespace = "",
    format_: Annotated[Table, typer.Option("--format", help="A JSON object a line, or CSV for spreadsheets.")] = Table.JSONL,
    store: StoreAddress = "",
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 60.0,
) -> None:
    """Write the whole log to stdout, oldest first."""
    with reached(server, timeout, store) as operator:
        found = operator.pages("ListAuditRecords", _wanted(name, namespace), "records")
    if format_ is Table.JSONL:
        for record in found:
            say(json.dumps(_row(record)))
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(FIELDS)
    writer.writerows([guarded(str(value)) for value in _row(record).values()] for record in found)
    write(text.getvalue())


def guarded(text: str) -> str:
    """The text as a cell that no spreadsheet takes for a formula, and on one line."""
    text = clean(text)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


def _row(record: pb.AuditRecord) -> dict[str, Any]:
    return {**{field: getattr(record, field) for field in FIELDS}, "time": record.time.ToJsonString()}


def _wanted(name: str | None, namespace: str) -> Any:
    from allocator.v1 import operator_service_pb2 as service_pb

    return service_pb.ListAuditRecordsRequest(experiment=name or "", namespace=namespace)


def _heads(path: str) -> list[Any]:
    """The newest checkpoints of a file; half lines are passed over and told. Raises InvalidArgument for a whole one that is none."""
    from allocator.server.checkpoints import read_heads
    from allocator.v1 import allocator_pb2 as pb

    try:
        found = read_heads(path)
    except OSError as exc:
        raise InvalidArgument.of_field(path, f"cannot be read: {exc.strerror}", reason="CANNOT_READ") from exc
    if found.foreign:
        raise InvalidArgument.of_field(f"{path}:{found.foreign[0]}", "got no checkpoint; a line with sequence and digest is allowed")
    if found.torn:
        lines = f"line {found.torn[0]} is" if len(found.torn) == 1 else f"lines {', '.join(map(str, found.torn))} are"
        verb = "is" if len(found.torn) == 1 else "are"
        complain(f"{path}: {lines} not whole (a server was killed, or had no room, while it wrote) and {verb} passed over")
    return [pb.AuditHead(sequence=head.sequence, digest=head.digest) for head in found.heads]
