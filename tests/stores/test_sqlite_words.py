"""What goes into SQLite as JSON comes out of it as it was."""

from __future__ import annotations

import contextlib
import json
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocator.stores import sqlite_words as words

int64 = st.integers(-(2**63), 2**63 - 1)
streams = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)  # SQLite ends a text at the zero
READ = "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?)"


@given(st.lists(st.tuples(int64, streams, int64)))
def test_sqlite_reads_the_rows_that_were_written(rows):
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        assert database.execute(READ, (words.text(rows),)).fetchall() == rows


def test_keys_that_are_numbers_and_numbers_beyond_64_bits_are_written_as_json_does():
    for values in ({7: {-3: {2**62: 1}}}, [2**64, -(2**64)], ["\x00\x1f\"\\/\u2028ü"]):
        assert json.loads(words.text(values)) == json.loads(json.dumps(values))


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(UnicodeEncodeError):
        words.text(["\ud800"])
