"""Records as documents. The expectation is equality with what was written, and refusal of everything else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import types
import typing
from collections.abc import Mapping
from enum import Enum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.assignment import SLOTS, Layout
from allocator.core.evidence import Restarts
from allocator.core.record import Record, Stream
from allocator.errors import Unavailable
from allocator.stores import documents
from tests.stores.conftest import record

finite = st.floats(allow_nan=False, allow_infinity=False)
int64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def layouts(draw) -> Layout:
    ends = sorted(draw(st.sets(st.integers(1, SLOTS - 1), max_size=5)))
    return Layout((*ends, SLOTS), tuple(index % 2 for index in range(len(ends) + 1)))


def values_of(hint: object) -> st.SearchStrategy:
    """Any value of a type, as the annotations of a record say it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Layout:
        return layouts()
    if hint in (int, float, bytes, bool):
        return {int: int64, float: finite, bytes: st.binary(max_size=40), bool: st.booleans()}[hint]
    if hint is str:
        return st.text(max_size=12)
    if hint is type(None):
        return st.none()
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values_of(argument) for argument in arguments])
    if origin is tuple and arguments[-1] is ...:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*[values_of(argument) for argument in arguments])
    if origin is Mapping:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=3)
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    hints = typing.get_type_hints(hint)
    return st.builds(hint, **{field.name: st.deferred(lambda h=hints[field.name]: values_of(h)) for field in dataclasses.fields(hint)})


@settings(max_examples=100, deadline=None)
@given(values_of(Record))
def test_a_record_comes_back_as_it_is(original):
    assert documents.from_bytes(documents.to_bytes(original)) == original


@pytest.mark.parametrize(
    "value", [0.1 + 0.2, 5e-324, -0.0, 1.7976931348623157e308, 2.2250738585072011e-308, 1e22, 9007199254740993.0, 1 / 3]
)
def test_a_float_comes_back_to_the_last_bit(value):
    stream = Stream("s", 1, -1, Restarts((value, -value)), Restarts((value,)), warning_since=value)
    back = documents.from_bytes(documents.to_bytes(record(evidence=(stream,), created_seconds=value)))
    assert back.created_seconds.hex() == value.hex()
    assert [term.hex() for term in back.evidence[0].breach.log_terms] == [value.hex(), (-value).hex()]


def test_random_doubles_come_back_to_the_last_bit():
    rng = random.Random(20_261_123)
    doubles = tuple(float(x) for x in np.frombuffer(rng.randbytes(8 * 20_000), dtype=np.float64) if np.isfinite(x))
    back = documents.from_bytes(documents.to_bytes(record(evidence=(Stream("s", 1, -1, Restarts(doubles), Restarts(())),))))
    assert [x.hex() for x in back.evidence[0].breach.log_terms] == [x.hex() for x in doubles]


def test_numbers_of_numpy_and_read_only_mappings_come_back_as_plain_ones():
    original = record(created_seconds=np.float64(0.1))
    original = dataclasses.replace(original, experiment=dataclasses.replace(original.experiment, labels=types.MappingProxyType({"a": "b"})))
    back = documents.from_bytes(documents.to_bytes(original))
    assert back == original
    assert type(back.created_seconds) is float


@pytest.mark.parametrize(
    "changes",
    [
        {"created_seconds": float("nan")},
        {"updated_seconds": float("inf")},
        {"version": "3"},
        {"salt": None},
        {"metrics": ["a list"]},
        {"slots": ((1, 2.5),)},
        {"status": None},
        {"evidence": (Ellipsis,)},
    ],
    ids=str,
)
def test_a_record_that_would_not_come_back_is_not_written(changes):
    with pytest.raises(TypeError, match="record"):
        documents.to_bytes(record(**changes))


@pytest.mark.parametrize(
    "garbled", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"format":1}', b'{"format":1,"digest":"","record":{}}', b'"x"']
)
def test_what_is_no_document_is_refused(garbled):
    with pytest.raises(Unavailable, match="cannot be read") as caught:
        documents.from_bytes(garbled)
    assert caught.value.reason == "STORE_CORRUPT"


def test_every_flipped_bit_and_every_cut_is_noticed():
    whole = documents.to_bytes(record())
    rng = random.Random(7)
    for _ in range(2_000):
        at = rng.randrange(len(whole))
        with pytest.raises(Unavailable):
            documents.from_bytes(whole[:at])
        altered = bytearray(whole)
        altered[at] ^= 1 << rng.randrange(8)
        with pytest.raises(Unavailable):
            documents.from_bytes(bytes(altered))


def test_a_record_written_before_a_field_existed_has_its_default():
    body = json.loads(documents.to_bytes(record(settled_through=4, warm=((1.0, 2.0, 3.0),))))["record"]
    del body["warm"]
    text = json.dumps(body).encode()
    digest = hashlib.blake2b(text, digest_size=16).hexdigest()
    document = b'{"format":1,"digest":"%s","record":%s}' % (digest.encode(), text)
    assert documents.from_bytes(document) == record(settled_through=4)


def test_a_document_of_a_later_format_is_refused_by_its_number():
    later = documents.to_bytes(record()).replace(b'"format":1', b'"format":2', 1)
    with pytest.raises(Unavailable, match="format 2") as caught:
        documents.from_bytes(later)
    assert caught.value.reason == "STORE_TOO_NEW"
