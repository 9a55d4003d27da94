"""Columns of units are decided as each unit alone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from allocator.core.batch import decide_batch
from allocator.core.decision import choose
from allocator.errors import InvalidArgument
from tests.core.test_decider import ENTRIES, entry_with

OPEN = sorted(set(ENTRIES) - {"strict", "leased"})  # gates have nothing to say about columns


@pytest.mark.parametrize("case", OPEN)
@pytest.mark.parametrize("kind", ["list of text", "list of bytes", "array of text", "array of bytes", "array of objects"])
def test_columns_say_what_choose_says_of_each_unit(case, kind):
    changes, attributes, stale = ENTRIES[case]
    entry, rng = entry_with(**changes), random.Random(2)
    units = [f"unit-{number}" for number in range(200)]
    given = {
        "list of text": units,
        "list of bytes": [unit.encode() for unit in units],
        "array of text": np.array(units),
        "array of bytes": np.array([unit.encode() for unit in units]),
        "array of objects": np.array(units, dtype=object),
    }[kind]
    nonces = rng.randbytes(8 * len(units))
    found = decide_batch(entry, given, attributes, nonces=nonces, stale=stale)
    for index, unit in enumerate(units):
        expected = choose(entry, unit.encode(), attributes, nonces[8 * index : 8 * index + 8], stale=stale)
        assert tuple(int(column[index]) for column in found) == (expected.arm, expected.slots, expected.reason, expected.segment)


def test_attributes_may_differ_from_row_to_row():
    changes, _, _ = ENTRIES["segments"]
    entry = entry_with(**changes)
    devices = np.array(["ios", "android", "ios", "android"])
    found = decide_batch(entry, ["a", "b", "c", "d"], {"device": devices, "country": "fr"})
    assert found.segment.tolist() == [0, 1, 0, 1]
    assert found.arm[[0, 2]].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"units": ["a", ""]}, "units[1]"),
        ({"units": ["a", "x" * 257]}, "units[1]"),
        ({"units": ["a", 7]}, "units[1]"),
        ({"units": [float("nan")]}, "units[0]"),
        ({"units": ["a", "b"], "attributes": {"device": ["ios"]}}, "attributes[device]"),
        ({"units": ["a"], "nonces": b"1234567"}, "nonces"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given, field):
    with pytest.raises(InvalidArgument) as caught:
        decide_batch(entry_with(), **given)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_draws_for_each_request_need_their_nonces():
    with pytest.raises(InvalidArgument, match="8 bytes for each unit"):
        decide_batch(entry_with(sticky=False), ["a"])


def test_no_units_are_no_rows():
    assert [column.shape for column in decide_batch(entry_with(), [], {"device": []})] == [(0,)] * 4
