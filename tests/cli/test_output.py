"""What is on its way to stdout: a line stays a line, and a document says what was written without a character that acts."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from allocator.cli import output
from allocator.cli.output import json_of, yaml_of

STEERING = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x200B, 0x200E, 0x2028, 0x2029, 0x202E, 0x2066, 0xFEFF, 0xE0001]))
VALUES = st.recursive(
    st.text(max_size=150) | st.text(STEERING + 'a: "\\') | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=140), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=20), VALUES, max_size=4), st.booleans())
def test_a_document_reads_back_the_same_and_holds_nothing_but_what_can_be_printed(value, readable):
    for written, read in ((json_of, json.loads), (yaml_of, YAML(typ="safe", pure=True).load)):
        text = written(value, readable=readable)
        assert [each for each in text if not (each.isprintable() or each == "\n")] == []
        assert readable or text.isascii()
        assert (read(text) or {}) == value


@pytest.mark.parametrize("written", [json_of, yaml_of])
def test_letters_of_all_languages_stay_readable(written):
    text = written({"owner": "équipe 検索 🙂", "evil": "équipe\u202e\x9b"})
    assert text.count("équipe") == 2
    assert "検索 🙂" in text
    assert "\\u202e" in text.lower()


def test_each_of_a_list_is_a_document_of_yaml():
    assert list(YAML(typ="safe", pure=True).load_all(yaml_of([{"a": (1, 2)}, {"a": None}]))) == [{"a": [1, 2]}, {"a": None}]
    assert yaml_of([]) == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_stays_a_line_whatever_it_holds(terminal, capsys, monkeypatch):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "300")
    output.say(f"owner {STEERING} end")
    output.draw([f"title {STEERING} end", output.Grid([output.Column(f"c{STEERING}")], [[f"cell {STEERING} end"]])])
    told = re.sub(r"\x1b\[1m|\x1b\[0m", "", capsys.readouterr().out)  # the header of a table, on a terminal
    assert len(told.split("\n")) == 5
    assert told.replace("\n", "").isprintable()
