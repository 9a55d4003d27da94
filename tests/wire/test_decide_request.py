"""A request read from its bytes says what protobuf would have read."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.wire.decide_request import name_and_unit

PIECES = [b"\n\x01e", b"\x12\x01u", b"\n\x00", b"\x12\x00", b"\n\x05", b"\x12\x7f", b"\x1a\x00", b"u"]
TEXTS = st.one_of(st.text(max_size=300), st.text(st.characters(max_codepoint=127), max_size=130))


def parsed(raw):
    try:
        request = service_pb.DecideRequest.FromString(raw)
    except Exception:
        return None
    return request.experiment.encode(), request.unit.encode(), dict(request.attributes)


@given(TEXTS, TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=2))
@example("default/ranker", "user-1", {})
@example("e", "u" * 127, {})
@example("e", "u" * 128, {})
@example("e" * 127, "u", {})
@example("e" * 128, "u", {})
def test_what_a_library_wrote_is_read_alike_or_left_to_the_parser(experiment, unit, attributes):
    raw = service_pb.DecideRequest(experiment=experiment, unit=unit, attributes=attributes).SerializeToString()
    found = name_and_unit(raw)
    plain = experiment.isascii() and unit.isascii() and 1 <= len(experiment) <= 127 and 1 <= len(unit) <= 127 and not attributes
    assert (found is not None) == plain
    if found is not None:
        assert (*found, {}) == parsed(raw)


@given(st.one_of(st.binary(max_size=12), st.builds(b"".join, st.lists(st.sampled_from(PIECES), max_size=5))))
def test_of_other_bytes_nothing_is_read_that_the_parser_would_not(raw):
    found = name_and_unit(raw)
    if found is not None:
        assert (*found, {}) == parsed(raw)


@pytest.mark.parametrize(
    "raw", [b"", b"\n", b"\n\x01e", b"\n\x01e\x12", b"\n\x01e\x12\x00", b"\x12\x01u\n\x01e", b"\n\x01e\x12\x01u\x1a\x00"]
)
def test_what_is_not_these_two_fields_alone_is_left_to_the_parser(raw):
    assert name_and_unit(raw) is None
