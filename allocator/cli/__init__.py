"""The command line: `serve`, and the operator's commands.

In: arguments and `ALLOCATOR_*` variables. Out: data on stdout, everything else on stderr, and an exit code that says
what kind of trouble it was (`failures.py`). What is slow to import is imported where it is needed: neither help nor a
freeze waits for numba. Typer's own error boxes were dropped: they are hard to search for in a log, and know nothing
to do next.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from allocator.cli import (
    assets,
    audit,
    bench,
    certify,
    db,
    doctor,
    edge,
    look,
    operate,
    replay,
    report,
    revisions,
    serve,
    simulate,
    specs,
    status,
    token,
)
from allocator.cli.connection import OutputView, connected
from allocator.cli.extras import needs_extra
from allocator.cli.failures import INTERRUPTED, complain, hint, tell
from allocator.cli.output import View, say, say_values
from allocator.errors import AllocatorError, InvalidArgument, Violation

OUTPUT = Path("demo-output")


class _Commands(TyperGroup):
    """Runs a command and turns whatever it raises into a sentence and an exit code."""

    def main(self, args: Sequence[str] | None = None, *more: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        del standalone_mode
        try:
            code = self._code(sys.argv[1:] if args is None else args, *more, **extra)
        except (KeyboardInterrupt, typer.Abort):  # also while an error is being told
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)

    def _code(self, args: Sequence[str], *more: Any, **extra: Any) -> Any:
        try:
            _check_text({**{f"argument {at}": text for at, text in enumerate(args, 1)}, **os.environ})
            return super().main(args, *more, standalone_mode=False, **extra)
        except AllocatorError as error:
            return tell(error)
        except OSError as error:
            complain(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}")
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # which is flushed once more, and may not fail
            return 1
        except typer.Abort:
            raise
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            return _usage(error)


app = typer.Typer(
    cls=_Commands,
    help="Decides which model version serves each request, learns from the outcomes, and stops what does harm.",
    epilog="Exit codes: 0 ok, 1 error, 2 usage or invalid spec, 3 not found, 4 credentials, 5 conflict, 6 refused,"
    " 7 unavailable or timeout.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The `allocator` command."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it has to say comes as errors too, and we say those
    app(prog_name="allocator")


def demo(
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of everything that is random: the same seed tells the same story.")
    ] = 0,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where to leave the figure and the store.")
    ] = OUTPUT,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, help="Seconds of traffic; with up to 45 the whole demo ends within a minute.")
    ] = 30.0,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines, also on a terminal.")] = False,
) -> None:
    """Watch a rollout: real models, a better one that is let in, a broken one that is caught."""
    with needs_extra("the demo"):
        from allocator.demo.run import demo as run

        raise typer.Exit(run(seed=seed, output=output, seconds=seconds, plain=plain))


def version(output: OutputView = View.TABLE) -> None:
    """Print the version."""
    from importlib import metadata

    try:
        found = metadata.version("allocator")
    except metadata.PackageNotFoundError as exc:
        raise AllocatorError("allocator runs from files that were never installed, so it has no version") from exc
    if output is View.TABLE:
        say(f"allocator {found}")
    else:
        say_values(output, [{"name": "allocator", "version": found}], one=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.", show_default=False),
    ] = False,
) -> None:
    del show_version


def _check_text(given: Mapping[str, str]) -> None:
    """Raise InvalidArgument for what is no UTF-8: no message can carry it."""
    found = []
    for name, text in given.items():
        if name.startswith(("argument ", "ALLOCATOR_")) and any("\ud800" <= char <= "\udfff" for char in text):
            found.append(Violation(name, f"got {text.encode(errors='surrogateescape')!r}; UTF-8 is allowed"))
    if found:
        raise InvalidArgument(violations=found)


def _usage(error: Any) -> int:
    """A mistake in the arguments, in a sentence."""
    message, context = error.format_message().replace("Value error, ", ""), getattr(error, "ctx", None)
    if message:  # empty where help was shown instead
        complain(f"error: {message[:1].lower()}{message[1:]}")
        hint(f"`{context.command_path} --help` shows what is allowed" if context is not None else "")
    return error.exit_code


for _panel, _commands in {
    "Serve": (serve.serve, edge.edge, demo),
    "Specs": (specs.lint, specs.apply, revisions.diff, revisions.revisions),
    "Look": (look.get, look.describe, status.status),
    "Afterwards": (report.report, replay.replay, report.export),
    "Operate": (
        operate.start,
        operate.approve,
        operate.advance,
        operate.freeze,
        operate.resume,
        operate.rollback,
        operate.conclude,
        operate.reject,
        revisions.note,
    ),
    "Rehearse": (simulate.simulate, certify.certify),
    "Other": (bench.bench, doctor.doctor, version),
}.items():
    for _command in _commands:
        _reaches_a_server = "server" in inspect.signature(_command).parameters
        app.command(rich_help_panel=_panel)(connected(_command) if _reaches_a_server else _command)
app.add_typer(audit.audit, name="audit", rich_help_panel="Look")
app.add_typer(token.token, name="token", rich_help_panel="Operate")
app.add_typer(db.app, name="db", rich_help_panel="Operate")
app.add_typer(assets.app, name="assets", rich_help_panel="Other")
