"""`allocator db`: the store itself.

In: a server, who, why; or the file of a SQLite store. Out: what became of the store, on stdout. What a server cannot know goes to stderr.
`check`, `backup` and `restore` need no server: they look at the file themselves.
"""

from __future__ import annotations

from typing import Annotated

import typer

from allocator.cli.connection import DEFAULT_SERVER, Actor, Operator, OutputView, Server, Timeout, connected
from allocator.cli.failures import complain, hint
from allocator.cli.operate import Why
from allocator.cli.output import View, say, say_documents, say_values

File = Annotated[
    str, typer.Argument(metavar="FILE", help="The file of the store, with or without `sqlite:` before it.", show_default=False)
]

app = typer.Typer(help="Look after the store.", no_args_is_help=True)


@app.command()
def check(file: File, output: OutputView = View.TABLE) -> None:
    """Is the file whole? Its structure, documents, sums and their check numbers, what was counted, the audit chain.

    No server may have it meanwhile; check a backup of one that is in use. Nothing is changed. Exit code 1 when it is damaged.
    """
    from allocator.stores import sqlite_care

    path = _path(file)
    found = sqlite_care.check(path)
    if output is not View.TABLE:
        say_values(output, [{"file": path, "whole": not found, "damage": found}], one=True)
    elif not found:
        say(f"{path} is whole")
    if not found:
        return
    for line in found:
        complain(f"damaged: {line}")
    hint("put a backup in its place with `allocator db restore BACKUP FILE --yes`")
    raise typer.Exit(1)


@app.command()
def backup(
    file: File, target: Annotated[str, typer.Argument(metavar="BACKUP", help="The file to write; it must not exist.", show_default=False)]
) -> None:
    """Copy everything as of one moment, also while a server writes. The copy holds the key of decision ids: keep it as secret."""
    from allocator.stores import sqlite_care

    size = sqlite_care.backup(_path(file), target)
    say(f"{target} holds everything as of now ({size:,} bytes)")


@app.command()
def restore(
    source: Annotated[str, typer.Argument(metavar="BACKUP", help="What `backup` wrote.", show_default=False)],
    file: File,
    yes: Annotated[bool, typer.Option("--yes", help="Replace the store that is there; it is kept aside.")] = False,
) -> None:
    """Put a backup in the place of the store, as another life of it. No server may have it; what came since the backup is gone.

    Servers, edges and in-process clients see by the new epoch that it went back, and take what it says. Decision ids stay good.
    """
    from allocator.stores import sqlite_care

    path = _path(file)
    kept = sqlite_care.restore(source, path, replace=yes)
    say(f"{path} is now {source}" + (f"; what was there is kept as {kept}" if kept else ""))
    hint("look at each experiment before traffic returns: what was decided since the backup, freezes too, is not in it")
    hint("a server with --state remembers what came since, and waits for `allocator db reconcile`")


@app.command()
@connected
def reconcile(
    reason: Why,
    force: Annotated[
        bool, typer.Option("--force", help="Also at a server that knows nothing more than the store: what others knew is given up.")
    ] = False,
    output: OutputView = View.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 60.0,
    actor: Actor = "",
) -> None:
    """Put a store right that lost its data: write back what this server knows, running experiments FROZEN, and go on.

    Do it once, at a server that was up to date; the others follow. Then look at each experiment and resume it.
    """
    from allocator.v1 import operator_service_pb2 as service_pb

    with Operator(server, timeout) as operator:
        reply = operator.call("ReconcileStore", service_pb.ReconcileStoreRequest(actor=actor, reason=reason, force=force))
    if output is not View.TABLE:
        say_documents(output, [reply], one=True)
        return
    say(f"store reconciled: {len(reply.restored)} experiments written back, epoch {reply.epoch}")
    for note in reply.notes:
        hint(note)


def _path(file: str) -> str:
    return file.removeprefix("sqlite:")
