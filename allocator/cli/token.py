"""`allocator token`: who may do what.

In: a name, roles, namespaces. Out: a token's text, once, on stdout or in a file; what it is on stderr. With `--store` it works on the store
itself: that is how the first token is made, before a server runs that would ask for one. Whoever can open the store is an admin already.

`--out FILE` puts a file in place whole, or leaves the one that is there: a shell's `> FILE` empties it before the command begins, which
may need that very file to say who asks, and while a service reads it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from allocator.cli import records
from allocator.cli.connection import DEFAULT_SERVER, Actor, Output, OutputView, Reason, Server, StoreAddress, Timeout, connected, reached
from allocator.cli.failures import complain, hint
from allocator.cli.output import Format, View, draw_list, say, say_documents, say_found
from allocator.errors import AllocatorError, InvalidArgument

token = typer.Typer(help="Make, list, revoke and rotate tokens: who may do what.", no_args_is_help=True)
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Keep it there instead of printing it: whole or not at all, mode 0600.", show_default=False),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `token list` shows it.", show_default=False)]


class Role(StrEnum):
    DECIDE = "decide"
    REPORT = "report"
    WATCH = "watch"
    VIEW = "view"
    OPERATE = "operate"
    AUTHOR = "author"
    APPROVE = "approve"
    ADMIN = "admin"


@token.command()
@connected
def create(
    principal: Annotated[str, typer.Argument(metavar="WHO", help="Who acts with it: a person or a service.", show_default=False)],
    roles: Annotated[list[Role], typer.Option("--role", help="What it may do. May be repeated.", show_default=False)],
    namespaces: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="Where; `*` is everywhere. May be repeated.", show_default="default"),
    ] = None,
    lifetime: Annotated[str, typer.Option("--lifetime", metavar="DURATION", help="How long it is good.")] = "90d",
    decide_rate: Annotated[float, typer.Option("--decide-rate", min=0, help="Decide calls a second, on each server.")] = 5000.0,
    report_rate: Annotated[float, typer.Option("--report-rate", min=0, help="Reports a second, on each server.")] = 2000.0,
    out: Out = None,
    reason: Reason = "",
    store: StoreAddress = "",
    output: OutputView = View.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Make a token and print it. It cannot be shown again: `allocator token create ... --out FILE` keeps it."""
    from allocator.v1 import operator_service_pb2 as service_pb

    request = service_pb.CreateTokenRequest(
        principal=principal,
        roles=[_number(role) for role in roles],
        namespaces=namespaces or ["default"],
        lifetime=_duration("lifetime", lifetime),
        decide_rate=decide_rate,
        report_rate=report_rate,
        actor=actor,
        reason=reason,
    )
    with _kept(out) as keep, reached(server, timeout, store) as operator:
        _show(keep(operator.call("CreateToken", request)), output, out)


@token.command("list")
@connected
def list_tokens(
    store: StoreAddress = "", output: Output = Format.TABLE, server: Server = DEFAULT_SERVER, timeout: Timeout = 10.0
) -> None:
    """List the tokens that were not revoked; their texts are kept nowhere."""
    from allocator.v1 import operator_service_pb2 as service_pb

    with reached(server, timeout, store) as operator:
        found = operator.pages("ListTokens", service_pb.ListTokensRequest(), "tokens")
    wide = output is Format.WIDE
    say_found(output, found, _id, lambda: draw_list(records.tokens(found, wide=wide)))


@token.command()
@connected
def revoke(
    token_id: Id,
    reason: Reason = "",
    store: StoreAddress = "",
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """End a token, on every server within two seconds."""
    from allocator.v1 import operator_service_pb2 as service_pb

    with reached(server, timeout, store) as operator:
        reply = operator.call("RevokeToken", service_pb.RevokeTokenRequest(id=token_id, actor=actor, reason=reason))
    say_found(output, [reply.token], _id, lambda: say(f"token {reply.token.id} of {reply.token.principal} revoked"), one=True)


@token.command()
@connected
def rotate(
    token_id: Id,
    overlap: Annotated[str, typer.Option("--overlap", metavar="DURATION", help="How long both are good.")] = "1h",
    out: Out = None,
    reason: Reason = "",
    store: StoreAddress = "",
    output: OutputView = View.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Make another token with the same rights and print it; the old one ends after --overlap."""
    from allocator.v1 import operator_service_pb2 as service_pb

    request = service_pb.RotateTokenRequest(id=token_id, overlap=_duration("overlap", overlap), actor=actor, reason=reason)
    with _kept(out) as keep, reached(server, timeout, store) as operator:
        _show(keep(operator.call("RotateToken", request)), output, out)


def _show(reply: Any, output: View, out: Path | None) -> None:
    if output is not View.TABLE:
        say_documents(output, [reply], one=True)
        return
    if out is None:
        say(reply.text)
    made = reply.token
    roles = ", ".join(map(records.role, made.roles))
    complain(f"token {made.id} of {made.principal}: {roles} in {', '.join(made.namespaces)}, until {records.moment(made.expire_time)}")
    if out is None:
        hint("this is the only time that it is shown; commands take it from --token-file or ALLOCATOR_TOKEN")
    else:
        complain(f"wrote {out}")


@contextmanager
def _kept(out: Path | None) -> Iterator[Callable[[Any], Any]]:
    """What puts a reply's text into the file, and gives the reply back without it; without a file, as it is.

    Whether the file can be written is known before anything is asked for. Until the text is on the disk, the file stays what it was. It is
    for its owner alone (mode 0600): who writes it, or where root writes, whose it was.
    """
    if out is None:
        yield lambda reply: reply
        return
    target = Path(os.path.realpath(out))  # a link stays a link
    if target.exists() and not target.is_file():  # a directory; or a device, which would be gone afterwards
        raise InvalidArgument.of_field("out", f"got {out}, which is no file; the name of one is allowed", reason="CANNOT_WRITE")
    try:
        handle, made = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as exc:
        raise InvalidArgument.of_field("out", f"{out} cannot be written: {exc.strerror}", reason="CANNOT_WRITE") from exc

    def keep(reply: Any) -> Any:
        try:
            with suppress(FileNotFoundError, PermissionError):
                before = os.stat(target)
                os.fchown(handle, before.st_uid, before.st_gid)
            text = f"{reply.text}\n".encode()
            while text:
                text = text[os.write(handle, text) :]
            os.fsync(handle)
            os.replace(made, target)
            _sync(target.parent)
        except OSError as exc:
            lost = f"token {reply.token.id} was made, and {out} cannot be written: {exc.strerror}"
            raise AllocatorError(lost, reason="TOKEN_LOST") from exc
        reply.ClearField("text")
        return reply

    try:
        yield keep
    finally:
        os.close(handle)
        with suppress(FileNotFoundError):
            os.unlink(made)


def _sync(folder: Path) -> None:
    """Make a rename in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _id(made: Any) -> str:
    return made.id


def _number(role: Role) -> int:
    from allocator.v1 import allocator_pb2 as pb

    return pb.Role.Value(f"ROLE_{role.value.upper()}")


def _duration(flag: str, text: str) -> Any:
    from allocator.wire.scalars import duration
    from allocator.wire.spec import seconds_of_text

    seconds = seconds_of_text(text)
    if seconds is None:
        raise InvalidArgument.of_field(flag, f"got {text!r}; a duration like 30s, 15m, 1h or 7d is allowed")
    return duration(seconds)
