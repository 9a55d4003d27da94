"""The function behind Decide, on bytes: whatever the form of a request, what is decided is what `choose` says of what was asked."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, generate_latest

from allocator.core.decision import REASONS, choose
from allocator.core.experiment import Arm, Guardrail, Reward, Segment
from allocator.core.experiment_rules import checked
from allocator.errors import InvalidArgument, NotFound
from allocator.server import decide as decide_module
from allocator.server.decide import deciding
from allocator.server.metrics import Metrics
from allocator.v1 import allocator_service_pb2 as service_pb
from tests.engine.conftest import Rehearsal

ARMS = (Arm("old", incumbent=True), Arm("new"))


@pytest.fixture
def served():
    """Experiments whose names begin alike, one with segments, and the function over them."""
    rehearsal, registry = Rehearsal(), CollectorRegistry()
    spec = checked(name="a", arms=ARMS, reward=Reward("click"), guardrails=(Guardrail("errors", "error", max=0.02),))
    for name in ("a", "ab", "a" * 60):
        rehearsal.run(replace(spec, name=name))
    rehearsal.run(replace(spec, name="mobile", segments=(Segment("phone", {"device": ("ios",)}),)))
    return rehearsal, deciding(rehearsal.engine, Metrics(registry, lambda: 0.0)), registry


def request(experiment, unit, **attributes):
    return service_pb.DecideRequest(experiment=experiment, unit=unit, attributes=attributes).SerializeToString()


def agrees(rehearsal, decide, experiment, unit, **attributes):
    """Ask, and compare with `choose`. Returns the decision."""
    decision = service_pb.DecideResponse.FromString(decide(request(experiment, unit, **attributes))).decision
    said = rehearsal.engine.ingest.read(decision.id)
    entry = rehearsal.engine.live.snapshot.by_uid[said.uid]
    assert entry.experiment == f"default/{experiment.removeprefix('default/')}"
    choice = choose(entry, unit.encode(), attributes, said.nonce)
    assert (decision.arm, REASONS[decision.reason]) == (entry.arms[choice.arm], choice.reason)
    assert (decision.segment, decision.snapshot_version) == (entry.segment_names[choice.segment], entry.version)
    assert decision.propensity * 65_536 == choice.slots == said.slots
    return decision


def test_requests_of_every_form_are_decided_as_choose_says(served):
    rehearsal, decide, _ = served
    rng = random.Random(4)
    units = ("u", "unit-7", "é", "x" * 127, "x" * 128, "x" * 256, "\n\x01a", "")
    for number in range(2000):
        name = rng.choice(("a", "ab", "a" * 60, "mobile", "default/a", "default/ab", "default/mobile"))
        unit = rng.choice(units)[:240] + str(number % 97)
        attributes = rng.choice(({}, {}, {"device": "ios"}, {"device": "android", "country": "de"}))
        agrees(rehearsal, decide, name, unit, **attributes)
    assert sum(exposure.count for exposure in rehearsal.engine.decider.take()) == 2000


def test_a_known_beginning_with_anything_else_behind_it_is_parsed(served):
    rehearsal, decide, _ = served
    agrees(rehearsal, decide, "a", "unit")  # from here on the beginning is known
    begun = b"\n\x01a\x12"
    for raw in (begun, begun + b"\x05unit", begun + b"\x03unit", begun + b"\x04\xff\xff\xff\xff"):
        with pytest.raises(DecodeError):
            decide(raw)
    with pytest.raises(InvalidArgument, match="unit"):
        decide(begun + b"\x00")
    entry = rehearsal.engine.live.snapshot.entries["default/a"]
    arms = {unit: choose(entry, unit, {}, b"").arm for unit in (b"other", b"u123", b"u1234")}
    assert len(set(arms.values())) == 2, "units that tell nothing apart"
    for unit, arm in arms.items():
        later = begun + b"\x04unit\x12" + bytes((len(unit),)) + unit  # the last one counts
        assert service_pb.DecideResponse.FromString(decide(later)).decision.arm == entry.arms[arm]
    for raw in (b"", b"\n", b"\n\x01", b"\n\x00\x12\x04unit"):
        with pytest.raises((InvalidArgument, DecodeError)):
            decide(raw)


def test_what_is_gone_is_not_found_though_it_was_asked_for_before(served):
    rehearsal, decide, _ = served
    agrees(rehearsal, decide, "ab", "unit")
    live = rehearsal.engine.live
    live.publish([], ["default/ab"])
    with pytest.raises(NotFound):
        decide(request("ab", "unit"))
    with pytest.raises(NotFound):
        decide(request("nobody", "unit"))


def test_more_beginnings_than_are_kept_are_forgotten_and_found_again(served, monkeypatch):
    rehearsal, decide, _ = served
    monkeypatch.setattr(decide_module, "MAX_BEGINNINGS", 2)
    for _ in range(3):
        for name in ("a", "ab", "default/a", "a" * 60):
            agrees(rehearsal, decide, name, "unit")


def test_each_decision_has_a_nonce_of_its_own_and_is_timed(served):
    rehearsal, decide, registry = served
    nonces = {rehearsal.engine.ingest.read(agrees(rehearsal, decide, "a", f"u{number}").id).nonce for number in range(1500)}
    assert len(nonces) == 1500
    assert "allocator_decision_duration_seconds_count 1500.0" in generate_latest(registry).decode()
