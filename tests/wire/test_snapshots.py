"""Answers put together from prebuilt bytes are the messages that protobuf would have written."""

from __future__ import annotations

import itertools

import pytest

from allocator.core.decision import Decision, Reason
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.wire.snapshots import decide_response_around, decision_from_message

IDS = ("A" * 68, "-_" * 34, "z0" * 34)


@pytest.mark.parametrize("reason", list(Reason))
def test_an_answer_cut_around_its_id_is_byte_for_byte_the_serialised_message(reason):
    texts = ("", "v", "é" * 40, "-" * 68, "x" * 300)
    for arm, uri, shadow, segment in itertools.product(texts[1:], texts, ("", "-" * 68), ("", "other")):
        for propensity, version in ((0.0, 0), (0.125, 1), (1.0, 1 << 47)):
            decision = Decision(arm, propensity, reason, "", version, uri, arm, shadow, segment)
            before, after = decide_response_around(decision)
            for text in IDS:
                expected = decision._replace(id=text)
                raw = before + text.encode() + after
                assert raw == service_pb.DecideResponse(decision=pb.Decision(**expected._asdict())).SerializeToString()
                assert decision_from_message(service_pb.DecideResponse.FromString(raw).decision) == expected
