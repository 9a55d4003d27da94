"""Data on its way to stdout: lines, documents, tables.

In: text, messages, values, grids, what rich can draw. Out: stdout; nothing else writes there. On a terminal, tables have
colours and pictures, and one that is too wide becomes several. In a pipe they are plain columns, as wide as what they
hold. No name is ever cut. Letting rich fold cells was dropped: at 80 columns a table of ten numbers cannot be read.

What people wrote may hold anything, so here is the one place that decides what becomes of characters that cannot be printed (controls,
line separators, marks that turn the direction of text): in lines and tables a space, in documents an escape, so that a program reads
what was written.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from allocator.cli.failures import clean, complain

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console, RenderableType
    from rich.table import Table

ENDLESS = 100_000  # characters in a line that nobody looks at on a screen
TEXT_WIDTH = 24  # of free text, before a table is taken apart for it
GAP = 2
RESET = "\x1b[0m"


class Format(StrEnum):
    """How a command says what it found."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"

    @property
    def for_people(self) -> bool:
        """Sentences and tables, not documents."""
        return self in (Format.TABLE, Format.WIDE)


class View(StrEnum):
    """The same where a name alone would say nothing."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Form(StrEnum):
    """A view, or a page to hand on."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    HTML = "html"


def say(line: str, colour: str = "") -> None:
    """A line on stdout, at once: the next one may be long in coming. colour: what a terminal needs to be told before it."""
    write(f"{colour}{clean(line)}{RESET}" if colour else clean(line))


def write(text: str) -> None:
    """Text on stdout as it is, and at its end a line's end: whoever made it has dealt with what others wrote."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def say_found(
    output: Format,
    messages: Sequence[Message],
    name: Callable[[Any], str],
    table: Callable[[], None],
    *,
    one: bool = False,
    zeros: bool = False,
) -> None:
    """Messages in any of the five ways. name: what other commands call one of them. table: prints all of them for people."""
    if output.for_people:
        table()
    elif output is Format.NAME:
        for message in messages:
            say(name(message))
    else:
        say_documents(output, messages, one=one, zeros=zeros)


def say_documents(output: Format | View | Form, messages: Sequence[Message], *, one: bool, zeros: bool = False) -> None:
    """Messages in the words of spec files. one: as JSON, without a list around it. zeros: say them too."""
    from allocator.wire.spec import to_document

    say_values(output, [to_document(message, zeros=zeros) for message in messages], one=one)


def say_values(output: Format | View | Form, values: Sequence[Any], *, one: bool) -> None:
    """Values that JSON knows, as documents. one: as JSON, without a list around it."""
    readable = (sys.stdout.encoding or "").lower().startswith("utf")
    write((yaml_of if output == View.YAML else json_of)(values[0] if one else values, readable=readable))


def json_of(value: Any, *, readable: bool = True) -> str:
    """The value as JSON. readable: letters of all languages as they are; what cannot be printed is escaped in any case."""
    text = json.dumps(value, indent=2, ensure_ascii=not readable)
    return "\n".join(line if line.isprintable() else "".join(map(_escaped, line)) for line in text.split("\n"))


def yaml_of(value: Any, *, readable: bool = True) -> str:
    """The value as YAML, a document for each of a list; what numpy or a tuple says becomes what JSON would make of it."""
    from allocator.wire.spec import dump

    plain = json.loads(json.dumps(value))
    documents = plain if isinstance(plain, list) else [plain]
    return dump(documents, readable=readable) if documents else ""


def _escaped(character: str) -> str:
    """As JSON has it between quotes, where alone it can be."""
    return character if character.isprintable() else json.dumps(character)[1:-1]


@dataclass(frozen=True, slots=True)
class Column:
    """right: numbers. picture: left out where there is no room or no screen. text: may be broken into lines to fit."""

    header: str
    right: bool = False
    picture: bool = False
    text: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table, before it is fitted to a screen. keys: how many leading columns are repeated where it is taken apart."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[RenderableType]]
    keys: int = 1


def draw(parts: Iterable[RenderableType | Grid]) -> None:
    """Print the parts, one under the other."""
    from rich.console import Console

    text = io.StringIO()
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, highlight=False, width=ENDLESS, file=text)
    for fitted in renderables(parts, console):
        console.print(fitted)
    if not console.is_terminal:
        write("\n".join(line.rstrip() for line in text.getvalue().removesuffix("\n").split("\n")))


def draw_list(grid: Grid) -> None:
    """Print a list; that it is empty goes to stderr."""
    draw([grid])
    if not grid.rows:
        complain("nothing found")


def renderables(parts: Iterable[RenderableType | Grid], console: Console) -> Iterator[RenderableType]:
    """The parts as the console can draw them: each grid as tables that fit it, each text on one line."""
    for part in parts:
        yield from _fitted(part, console) if isinstance(part, Grid) else (clean(part) if isinstance(part, str) else part,)


def _fitted(grid: Grid, console: Console) -> Iterator[RenderableType]:
    """The grid as tables that fit the console."""
    widths = [_width(grid, index, console) for index in range(len(grid.columns))]
    wanted = list(range(len(grid.columns)))
    if sum(widths) > console.width or not console.is_terminal or console.options.ascii_only:
        wanted = [index for index in wanted if not grid.columns[index].picture]
    keys, rest = wanted[: grid.keys], wanted[grid.keys :]
    parts = [list(keys)]
    for index in rest:
        if len(parts[-1]) > len(keys) and sum(widths[i] for i in (*parts[-1], index)) > console.width:
            parts.append(list(keys))
        parts[-1].append(index)
    for number, part in enumerate(parts):
        if number:
            yield ""
        yield _table(grid, part, fold=sum(widths[i] for i in part) > console.width)


def _width(grid: Grid, index: int, console: Console) -> int:
    """Characters that a column needs, with the gap behind it."""
    from rich.measure import Measurement

    column, endless = grid.columns[index], console.options.update(width=ENDLESS)
    widest = max((Measurement.get(console, endless, row[index]).maximum for row in grid.rows), default=0)
    return max(min(widest, TEXT_WIDTH) if column.text and console.is_terminal else widest, len(column.header)) + GAP


def _table(grid: Grid, wanted: Sequence[int], *, fold: bool) -> Table:
    """Some columns of the grid. fold: break any cell into lines, because even these columns are too wide."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for index in wanted:
        column = grid.columns[index]
        table.add_column(
            clean(column.header).upper(),
            justify="right" if column.right else "left",
            no_wrap=not (column.text or fold),
            overflow="fold",
        )
    for row in grid.rows:
        table.add_row(*(clean(row[index]) if isinstance(row[index], str) else row[index] for index in wanted))
    return table
