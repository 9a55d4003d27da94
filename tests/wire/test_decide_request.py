"""What is read of a request from its bytes is what protobuf would have read."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.wire.decide_request import beginning

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
@example("e" * 124, "u", {})
@example("e" * 125, "u", {})
@example("e" * 127, "u", {})
@example("e" * 128, "u", {})
def test_a_request_of_a_name_and_a_unit_in_ascii_has_a_beginning_and_its_unit_is_the_rest(experiment, unit, attributes):
    raw = service_pb.DecideRequest(experiment=experiment, unit=unit, attributes=attributes).SerializeToString()
    begun = beginning(raw)
    plain = experiment.isascii() and unit.isascii() and 1 <= len(experiment) <= 127 and 1 <= len(unit) <= 127 and not attributes
    assert (begun is not None) == plain
    if begun is not None:
        assert len(begun) == raw[1] + 3
        assert raw == begun + bytes((len(unit),)) + unit.encode()


@given(st.one_of(st.binary(max_size=12), st.builds(b"".join, st.lists(st.sampled_from(PIECES), max_size=5))), st.binary(max_size=130))
@example(b"\n\x01e\x12\x01u", b"a" * 127)
@example(b"\n\x01e\x12\x01u", b"a" * 128)
def test_another_unit_after_the_same_beginning_is_parsed_so(raw, unit):
    begun = beginning(raw)
    if begun is not None and unit and unit.isascii() and len(unit) < 128:
        experiment, _, attributes = parsed(raw)
        assert parsed(begun + bytes((len(unit),)) + unit) == (experiment, unit, attributes)
        assert not attributes


@pytest.mark.parametrize(
    "raw", [b"", b"\n", b"\n\x01e", b"\n\x01e\x12", b"\n\x01e\x12\x00", b"\x12\x01u\n\x01e", b"\n\x01e\x12\x01u\x1a\x00"]
)
def test_what_is_not_these_two_fields_alone_has_none(raw):
    assert beginning(raw) is None
