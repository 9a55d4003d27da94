"""`allocator db`: the store itself.

In: a server, who, why. Out: what became of its store, on stdout. What a server cannot know goes to stderr.
"""

from __future__ import annotations

from typing import Annotated

import typer

from allocator.cli.connection import DEFAULT_SERVER, Actor, Operator, OutputView, Server, Timeout, connected
from allocator.cli.failures import hint
from allocator.cli.operate import Why
from allocator.cli.output import View, say, say_documents

app = typer.Typer(help="Look after the store.", no_args_is_help=True)


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
