"""A page holds everything inside, and nothing that anybody wrote becomes markup."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

from matplotlib.figure import Figure

from allocator.analysis.page import Grid, Section, picture, render

EVIL = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>"


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of the JSON document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.document = ""
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_data(self, data):
        if self._inside:
            self.document += data

    def handle_endtag(self, tag):
        self._inside = False


def page() -> str:
    figure = Figure()
    figure.subplots().plot([0, 1], [1, 0])
    grid = Grid((EVIL, "b"), ((EVIL, "1"),), EVIL)
    sections = [Section(EVIL, (EVIL,), (EVIL,), (picture(figure, EVIL),), (grid,))]
    return render(EVIL, sections, {"name": EVIL, "odd": [math.nan, math.inf, 1.5]}, lead=EVIL)


def test_text_from_anybody_stays_text():
    tags = Tags(page()).found
    assert [tag for tag, _ in tags if tag == "script"] == ["script"]
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 1
    assert images[0]["alt"] == EVIL
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)


def test_the_page_asks_nobody_for_anything():
    text = page()
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert "default-src 'none'" in text


def test_the_document_inside_reads_back_and_holds_no_number_that_json_lacks():
    assert json.loads(Tags(page()).document) == {"name": EVIL, "odd": [None, None, 1.5]}
