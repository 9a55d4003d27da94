"""What an operator does to a running experiment, one command each.

In: a name, who, why. Out: a sentence that says what happened, or the experiment as it now is. Nothing is asked back:
the server judges what is allowed, and `--reason` is needed wherever the audit will be read for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allocator.cli.connection import DEFAULT_SERVER, Actor, Name, Operator, Output, Reason, Server, Timeout
from allocator.cli.output import Format, say, say_found
from allocator.cli.records import waits_for
from allocator.cli.tables import full_name, stage_text

if TYPE_CHECKING:
    from allocator.v1 import allocator_pb2 as pb

Why = Annotated[
    str, typer.Option("--reason", metavar="WHY", help="Why; goes to the audit. Required.", show_default=False)
]
BreakGlass = Annotated[
    bool, typer.Option("--break-glass", help="Carry it out without approvals. Admins only, with --reason; everybody is told.")
]


def start(
    name: Name,
    reason: Reason = "",
    break_glass: BreakGlass = False,
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Start a draft, in the first stage of its ramp."""
    reply = _command("Start", server, timeout, experiment=name, actor=actor, reason=reason, break_glass=break_glass)
    tell_change(output, reply, lambda e: f"started, in stage {stage_text(e)}")


def approve(
    name: Name,
    revision: Annotated[
        str,
        typer.Option(
            "--revision",
            metavar="DIGEST",
            help="The pending proposal, as `describe` names it; or the spec you saw, as `revisions` names it: its next ramp stage.",
            show_default="the next ramp stage",
        ),
    ] = "",
    reason: Reason = "",
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Agree to what somebody proposed, or to entering the next ramp stage."""
    reply = _command("Approve", server, timeout, experiment=name, actor=actor, reason=reason, revision=revision)
    done = "" if reply.pending or reply.stage else ", and it is in force"
    tell_change(output, reply, lambda _: f"approved{done}")


def reject(
    name: Name,
    revision: Annotated[
        str, typer.Option("--revision", metavar="DIGEST", help="The pending proposal, as `describe` names it.", show_default=False)
    ],
    reason: Why,
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """End a pending proposal without carrying it out."""
    from allocator.v1 import operator_service_pb2 as service_pb

    request = service_pb.RejectProposalRequest(experiment=name, actor=actor, reason=reason, revision=revision)
    with Operator(server, timeout) as operator:
        reply = operator.call("RejectProposal", request)
    tell_change(output, reply, lambda _: "keeps its spec: the proposal is rejected")


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
    reply = _command("Advance", server, timeout, experiment=name, actor=actor, reason=reason, stage=stage)
    tell_change(output, reply, lambda e: f"in stage {stage_text(e)}")


def freeze(
    name: Name,
    reason: Why,
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Give everyone the incumbent, until somebody resumes."""
    reply = _command("Freeze", server, timeout, experiment=name, actor=actor, reason=reason)
    tell_change(output, reply, lambda _: "frozen")


def resume(
    name: Name,
    reason: Why,
    break_glass: BreakGlass = False,
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Let a frozen experiment go on; evidence starts again."""
    reply = _command("Resume", server, timeout, experiment=name, actor=actor, reason=reason, break_glass=break_glass)
    tell_change(output, reply, lambda e: f"resumed, in stage {stage_text(e)}")


def rollback(
    name: Name,
    reason: Why,
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """End an experiment on the incumbent. There is no way back."""
    reply = _command("Rollback", server, timeout, experiment=name, actor=actor, reason=reason)
    tell_change(output, reply, lambda _: "rolled back")


def conclude(
    name: Name,
    reason: Why,
    winner: Annotated[
        str, typer.Option("--winner", metavar="ARM", help="The arm to end on.", show_default="the incumbent")
    ] = "",
    break_glass: BreakGlass = False,
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """End an experiment on an arm, which serves everyone from then on. There is no way back."""
    fields = {"experiment": name, "actor": actor, "reason": reason, "winner": winner, "break_glass": break_glass}
    reply = _command("Conclude", server, timeout, **fields)
    tell_change(output, reply, lambda e: f"concluded, everyone gets {e.status.winner}")


def _command(verb: str, server: str, timeout: float, **fields: Any) -> Any:
    from allocator.v1 import operator_service_pb2 as service_pb

    request = getattr(service_pb, f"{verb}ExperimentRequest")(**fields)
    with Operator(server, timeout) as operator:
        return operator.call(f"{verb}Experiment", request)


def tell_change(output: Format, reply: Any, what: Callable[[pb.Experiment], str]) -> None:
    """Say what became of the experiment in a reply: in a sentence, or as the experiment that it now is."""
    experiment = reply.experiment

    def sentence() -> None:
        pending = "pending" in reply.DESCRIPTOR.fields_by_name and reply.pending
        say(f"experiment {full_name(experiment)} {waits_for(experiment) if pending else what(experiment)}")

    say_found(output, [experiment], full_name, sentence, one=True)
