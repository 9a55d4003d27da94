"""A report as one HTML file that needs nothing else: no script, no font, no request to anywhere.

In: sections of plain text, tables and figures, and the same findings as a document. Out: HTML. Whoever writes a report writes no HTML: text
may come from anybody (names, reasons, model addresses), so every piece of it is escaped by the template, what cannot be printed becomes a
space, and the page forbids scripts and foreign resources by its own policy. Figures travel inside as data, and so does the document, for
programs that are handed the page: there it is whole, in escapes.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, GREEN, VERMILION, INK, FAINT = "#0072B2", "#009E73", "#D55E00", "#222222", "#999999"  # told apart by colour-blind eyes too
COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: columns, rows of text, and a sentence above it. Numbers are text already, with as many digits as mean something."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as PNG, and the same in words for those who do not see it."""

    png: bytes
    words: str

    @property
    def uri(self) -> str:
        """The figure as an address that holds it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands under it, in this order. warnings: shown first, and loudly."""

    title: str
    text: Sequence[str] = ()
    warnings: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    grids: Sequence[Grid] = ()


def render(title: str, sections: Sequence[Section], document: Mapping[str, Any], lead: str = "") -> str:
    """The page. document: what the sections say, for programs; JSON values, where a number that is not finite becomes null."""
    return _TEMPLATE.render(title=title, lead=lead, sections=sections, document=plain(document))


def picture(figure: Figure, words: str) -> Picture:
    """A figure of matplotlib as it stands."""
    into = io.BytesIO()
    figure.savefig(into, format="png", dpi=110, metadata={"Software": None})  # the same figure is the same bytes
    return Picture(into.getvalue(), words)


def plain(value: Any) -> Any:
    """`value` as JSON can say it: JSON has no infinity, and a NaN would make the whole document unreadable."""
    if isinstance(value, float):  # numpy's as well, which is made Python's: nothing else may stand in JSON
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def _printable(value: Any) -> Any:
    """Text without what turns the direction of a line or is invisible: escaping it as HTML would let the browser make it again."""
    if isinstance(value, str) and not value.isprintable():
        return "".join(character if character.isprintable() else " " for character in value)
    return value


_TEMPLATE = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable).from_string(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .3rem } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums } caption { text-align: left; color: #555 }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #eee }
img { max-width: 100% } .lead { color: #555 } .scroll { overflow-x: auto }
.warning { border-left: 4px solid #D55E00; background: #fff4ec; padding: .4rem .8rem }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if lead %}
<p class="lead">{{ lead }}</p>
{% endif %}
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for line in section.warnings %}
<p class="warning" role="alert">{{ line }}</p>
{% endfor %}
{% for line in section.text %}
<p>{{ line }}</p>
{% endfor %}
{% for shown in section.pictures %}
<p><img src="{{ shown.uri }}" alt="{{ shown.words }}"></p>
{% endfor %}
{% for grid in section.grids %}
<div class="scroll"><table>
{% if grid.caption %}
<caption>{{ grid.caption }}</caption>
{% endif %}
<thead><tr>{% for column in grid.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in grid.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% endfor %}
{% endfor %}
<script type="application/json" id="report">{{ document | tojson }}</script>
</body>
</html>
"""
)
