"""What an operator does to a running experiment, one command each.

In: a name, who, why. Out: a sentence that says what happened, or the experiment as it now is. Nothing is asked back:
the server judges what is allowed, and `--reason` is needed wherever the audit will be read for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from allocator.cli.connection import DEFAULT_SERVER, Actor, Name, Operator, Output, Reason, Server, Timeout
from allocator.cli.output import Format, say, say_documents
from allocator.cli.tables import full_name, stage_text

if TYPE_CHECKING:
    from allocator.v1 import allocator_pb2 as pb

Why = Annotated[
    str, typer.Option("--reason", metavar="WHY", help="Why; goes to the audit. Required.", show_default=False)
]


def start(
    name: Name,
    reason: Reason = "",
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Start a draft, in the first stage of its ramp."""
    experiment = _command("Start", server, timeout, experiment=name, actor=actor, reason=reason)
    _tell(output, experiment, f"started, in stage {stage_text(experiment)}")


def approve(
    name: Name,
    reason: Reason = "",
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Agree to entering the next ramp stage."""
    experiment = _command("Approve", server, timeout, experiment=name, actor=actor, reason=reason)
    _tell(output, experiment, f"approved by {actor}")


def advance(
    name: Name,
    stage: Annotated[
        int | None,
        typer.Option("--stage", metavar="N", min=0, help="The stage to enter, from 0 on.", show_default="the next one"),
    ] = None,
    reason: Reason = "",
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Enter the next ramp stage, if the evidence allows it, or step back to an earlier one."""
    experiment = _command("Advance", server, timeout, experiment=name, actor=actor, reason=reason, stage=stage)
    _tell(output, experiment, f"in stage {stage_text(experiment)}")


def freeze(
    name: Name,
    reason: Why,
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Give everyone the incumbent, until somebody resumes."""
    experiment = _command("Freeze", server, timeout, experiment=name, actor=actor, reason=reason)
    _tell(output, experiment, "frozen")


def resume(
    name: Name,
    reason: Why,
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Let a frozen experiment go on; evidence starts again."""
    experiment = _command("Resume", server, timeout, experiment=name, actor=actor, reason=reason)
    _tell(output, experiment, f"resumed, in stage {stage_text(experiment)}")


def rollback(
    name: Name,
    reason: Why,
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """End an experiment on the incumbent. There is no way back."""
    experiment = _command("Rollback", server, timeout, experiment=name, actor=actor, reason=reason)
    _tell(output, experiment, "rolled back")


def conclude(
    name: Name,
    reason: Why,
    winner: Annotated[
        str, typer.Option("--winner", metavar="ARM", help="The arm to end on.", show_default="the incumbent")
    ] = "",
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """End an experiment on an arm, which serves everyone from then on. There is no way back."""
    experiment = _command("Conclude", server, timeout, experiment=name, actor=actor, reason=reason, winner=winner)
    _tell(output, experiment, f"concluded, everyone gets {experiment.status.winner}")


def _command(verb: str, server: str, timeout: float, **fields: Any) -> pb.Experiment:
    from allocator.v1 import operator_service_pb2 as service_pb

    request = getattr(service_pb, f"{verb}ExperimentRequest")(**fields)
    with Operator(server, timeout) as operator:
        return operator.call(f"{verb}Experiment", request).experiment


def _tell(output: Format, experiment: pb.Experiment, what: str) -> None:
    if output.for_people:
        say(f"experiment {full_name(experiment)} {what}")
    elif output is Format.NAME:
        say(full_name(experiment))
    else:
        say_documents(output, [experiment], one=True)
