"""`lint` and `apply`: spec files on their way to a server.

In: files, directories, or `-` for stdin. Out: what was created, revised or unchanged. All files are read and checked
before the first call, so a typing error in the last one changes nothing. What the server refuses afterwards is told
with file, line and column as well, and does not keep the other experiments from being applied.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.connection import DEFAULT_SERVER, Actor, Operator, Output, Reason, Server, Timeout
from allocator.cli.differences import difference_from_server
from allocator.cli.failures import exit_code, hint, tell
from allocator.cli.output import Format, say, say_found
from allocator.cli.records import waits_for
from allocator.cli.tables import full_name
from allocator.errors import AllocatorError, DeadlineExceeded, InvalidArgument, Unauthenticated, Unavailable, Violation

if TYPE_CHECKING:
    from allocator.v1 import allocator_pb2 as pb

SUFFIXES = (".yaml", ".yml", ".json")
STDIN = "-"
FILE_FIELDS = ("spec", "metadata", "apiVersion", "kind")
HOPELESS = (Unavailable, DeadlineExceeded, Unauthenticated)  # the next call would fare no better


class DryRun(StrEnum):
    """Who checks, when nothing is to change."""

    CLIENT = "client"
    SERVER = "server"


Files = Annotated[
    list[str],
    typer.Option(
        "--file",
        "-f",
        metavar="FILE|DIR|-",
        help="A spec file, a directory of them, or - for stdin. May be repeated.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Written:
    """One experiment as a file has it. where: the path of a field to `file:line:column: path`."""

    message: pb.Experiment
    where: Callable[[str], str]

    @property
    def name(self) -> str:
        """`namespace/name`."""
        return full_name(self.message)


def lint(files: Files, output: Output = Format.TABLE) -> None:
    """Check spec files, without a server. `-o json` writes them as they were understood."""
    _tell_result(output, [(written.message, "valid") for written in read(files)])


def apply(
    files: Files,
    dry_run: Annotated[
        DryRun | None, typer.Option("--dry-run", help="Change nothing; who checks?", show_default=False)
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show what differs from the server first.")] = False,
    reason: Reason = "",
    break_glass: Annotated[
        bool, typer.Option("--break-glass", help="Carry it out without approvals. Admins only, with --reason; everybody is told.")
    ] = False,
    output: Output = Format.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
    actor: Actor = "",
) -> None:
    """Create experiments from spec files, or revise them.

    A file with metadata.etag, as `get -o yaml` writes it, is refused if somebody has changed the experiment since.
    """
    found = read(files)
    if dry_run is DryRun.CLIENT:
        _tell_result(output, [(written.message, "valid (dry run)") for written in found])
        return
    done, code = [], 0
    with Operator(server, timeout) as operator:
        for written in found:
            try:
                if diff and output.for_people:
                    difference_from_server(operator, written.message).show()
                done.append(_apply(operator, written, dry_run is DryRun.SERVER, actor, reason, break_glass))
            except AllocatorError as error:
                code = code or exit_code(error)
                tell(error)
                if isinstance(error, HOPELESS):
                    break
            else:
                if output.for_people:
                    _tell_result(output, done[-1:])
    if not output.for_people:
        _tell_result(output, done)
    if sys.stderr.isatty() and [what for _, what in done] == ["created"]:
        hint(f"it is a draft; `allocator start {full_name(done[0][0])}` starts it")
    raise typer.Exit(code)


def read(files: Sequence[str]) -> list[Written]:
    """Every experiment of these files, checked. Raises InvalidArgument with the violations of all files."""
    from allocator.wire import spec

    found: list[Written] = []
    errors: list[InvalidArgument] = []
    for path in spec_files(files):
        try:
            source = "<stdin>" if path == STDIN else path
            text = sys.stdin.buffer.read() if path == STDIN else _bytes(path)
            loaded = spec.load(text, source)
        except InvalidArgument as error:
            errors.append(error)
            continue
        found += [Written(one.message, one.where) for one in loaded]
    first: dict[str, Written] = {}
    for written in found:
        before = first.setdefault(written.name, written)
        if before is not written:
            again = f"got {written.name!r} a second time, first in {before.where('metadata.name')}"
            errors.append(InvalidArgument.of_field(written.where("metadata.name"), again, reason="INVALID_SPEC"))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        faults = [violation for error in errors for violation in error.violations]
        raise InvalidArgument(f"{len(faults)} faults in these files", violations=faults, reason="INVALID_SPEC")
    return found


def spec_files(paths: Sequence[str]) -> list[str]:
    """The paths, each directory replaced by the spec files in it. Raises InvalidArgument where it has none."""
    files: list[str] = []
    for path in paths:
        if path != STDIN and Path(path).is_dir():
            inside = sorted(str(file) for file in Path(path).iterdir() if file.suffix in SUFFIXES and file.is_file())
            if not inside:
                endings = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
                raise InvalidArgument.of_field(path, f"got a directory without {endings}", reason="CANNOT_READ")
            files += inside
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def _apply(operator: Operator, written: Written, dry: bool, actor: str, reason: str, break_glass: bool) -> tuple[pb.Experiment, str]:
    from allocator.v1 import operator_service_pb2 as service_pb

    request = service_pb.ApplyExperimentRequest(
        experiment=written.message,
        validate_only=dry,
        etag=written.message.metadata.etag,
        actor=actor,
        reason=reason,
        break_glass=break_glass,
    )
    try:
        reply = operator.call("ApplyExperiment", request)
    except InvalidArgument as error:
        at = [
            Violation(written.where(v.field) if v.field.startswith(FILE_FIELDS) else v.field, v.message)
            for v in error.violations
        ]
        raise InvalidArgument(f"{written.name} is refused", violations=at, reason=error.reason) from error
    what = "created" if reply.created else "revised" if reply.changed else "unchanged"
    if reply.pending:
        what = "would wait for approvals" if dry else waits_for(reply.experiment)
    return reply.experiment, what + (" (dry run)" if dry else "")


def _tell_result(output: Format, done: Sequence[tuple[pb.Experiment, str]]) -> None:
    def sentences() -> None:
        for message, what in done:
            say(f"experiment {full_name(message)} {what}")

    if done:
        say_found(output, [message for message, _ in done], full_name, sentences, one=len(done) == 1)


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise InvalidArgument.of_field(path, f"cannot be read: {exc.strerror}", reason="CANNOT_READ") from exc
