"""`allocator assets`: what comes with the package beside code: documents, example specs, dashboards, alert rules.

In: a directory. Out: the files, written there to be read, edited or handed to Prometheus and Grafana. What is there already is left alone
unless one insists, because somebody may have edited it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.connection import Output
from allocator.cli.failures import complain
from allocator.cli.output import Column, Format, Grid, draw, say, say_values
from allocator.errors import AlreadyExists, InvalidArgument

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

app = typer.Typer(help="Documents, example specs, dashboards and alert rules that come along.", no_args_is_help=True)
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="DIR", help="One of the directories that `list` shows. May be repeated.", show_default=False),
]


@app.command("list")
def list_assets(only: Only = None, output: Output = Format.TABLE) -> None:
    """List the files."""
    found = [(str(path), len(asset.read_bytes())) for path, asset in assets(only or ())]
    if output is Format.WIDE:
        draw([Grid([Column("path"), Column("bytes", right=True)], [(path, f"{size:,}") for path, size in found])])
    elif output in (Format.TABLE, Format.NAME):
        for path, _ in found:
            say(path)
    else:
        say_values(output, [{"path": path, "bytes": size} for path, size in found], one=False)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write them; made if need be.")],
    only: Only = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there and differ.")] = False,
) -> None:
    """Write the files into a directory."""
    found = list(assets(only or ()))
    differing = [path for path, asset in found if (directory / path).exists() and (directory / path).read_bytes() != asset.read_bytes()]
    if differing and not force:
        raise AlreadyExists(
            f"{len(differing)} of these files are in {directory} and differ, {differing[0]} first; nothing was written."
            " Overwrite with --force",
            reason="FILE_EXISTS",
        )
    for path, asset in found:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(asset.read_bytes())
        say(str(directory / path))
    complain(f"{len(found)} files written")


def assets(only: list[str] | tuple[str, ...]) -> Iterator[tuple[Path, Traversable]]:
    """The files as (path, content), by path; of the directories named, or all. Raises InvalidArgument for an unknown one."""
    root = files("allocator").joinpath("assets")
    there = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("_"))
    unknown = [name for name in only if name not in there]
    if unknown:
        raise InvalidArgument.of_field("only", f"got {unknown[0]!r}; one of {', '.join(there)} is allowed")
    for name in there:
        if not only or name in only:
            yield from _under(root.joinpath(name), Path(name))


def _under(directory: Traversable, path: Path) -> Iterator[tuple[Path, Traversable]]:
    for entry in sorted(directory.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _under(entry, path / entry.name)
        else:
            yield path / entry.name, entry
