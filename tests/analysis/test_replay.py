"""A decision replayed from the log is the decision that was made, whatever the plan; and the command says so."""

from __future__ import annotations

import random
from dataclasses import replace as changed

import pytest
from google.protobuf.json_format import Parse

from allocator.analysis.replay import Request, claims, replay
from allocator.core.assignment import SLOTS, first_layout, move, unit_hash
from allocator.core.decider import Decider
from allocator.core.decision import Reason
from allocator.core.experiment import Assignment, Exposure, Segment
from allocator.core.snapshot import Entry, Table
from allocator.errors import InvalidArgument
from allocator.server.decision_log import without_units
from allocator.v1 import allocator_pb2 as pb
from allocator.wire.snapshots import entry_from_message
from tests.cli.conftest import said
from tests.conftest import two_arms

KEY = b"k" * 32


def table(r: random.Random, arms: int, drained: int) -> Table:
    layout = first_layout((SLOTS, *(0,) * (arms - 1)))
    for _ in range(3):
        cuts = sorted(r.randrange(SLOTS) for _ in range(arms - 1))
        slots = [b - a for a, b in zip([0, *cuts], [*cuts, SLOTS], strict=True)]
        layout = move(layout, slots)
    kept = [0 if drained >> arm & 1 else count for arm, count in enumerate(slots)]
    kept[0] += SLOTS - sum(kept)
    return Table(layout.ends, layout.owners, tuple(kept))


def plan(r: random.Random) -> Entry:
    """Any plan that a decider may meet."""
    arms = r.randrange(2, 5)
    drained = 1 << r.randrange(1, arms) if r.random() < 0.3 else 0
    segmented = r.random() < 0.5
    names = tuple("abcd"[:arms])
    return Entry(
        experiment="default/any", uid=r.randbytes(8), version=r.randrange(1, 2**40), state="RUNNING", sticky=r.random() < 0.5,
        salt=r.randbytes(16), arms=names, model_uris=("",) * arms, incumbent=0,
        tables=tuple(table(r, arms, drained) for _ in range(2 if segmented and r.random() < 0.5 else 1)),
        only=(0, int(r.choice([Reason.FROZEN, Reason.INCUMBENT_ONLY]))) if r.random() < 0.15 else None, drained=drained,
        segment_names=("mobile", "other") if segmented else ("other",), segments=({"d": frozenset({"ios"})},) if segmented else (),
        target={"c": frozenset({"fr"})} if r.random() < 0.3 else {}, opt_out="no" if r.random() < 0.3 else "",
        pins={b"u1": 1} if r.random() < 0.3 else {}, strict=r.random() < 0.4, cap=0.3, cap_per_candidate=0.2, burst=2,
    )  # fmt: skip


def logged(entry: Entry) -> Entry:
    """The entry as it comes back from the log."""
    return entry_from_message(Parse(without_units(entry), pb.SnapshotEntry()))


@pytest.mark.parametrize("seed", range(120))
def test_a_replay_decides_as_the_decider_did(seed):
    r = random.Random(seed)
    entry = plan(r)
    decider, kept, reasons = Decider(KEY, restarted=False), logged(entry), set()
    for number in range(60):
        unit, nonce, stale = f"u{number}".encode(), r.randbytes(8), r.random() < 0.05
        attributes = {k: v for k, v in {"d": "ios", "c": "fr", "no": "1"}.items() if r.random() < (0.1 if k == "no" else 0.7)}
        decision = decider.decide(entry, unit, attributes, 1.8e9, nonce, stale=stale)
        drawn = unit_hash(entry.salt, unit if entry.sticky else nonce)
        known = Request(unit_hash(entry.salt, unit).hex(), drawn[0] << 8 | drawn[1], None, decision.reason.name)
        for request in (known, changed(known, attributes=attributes)):
            found = replay(kept, claims(decision.id), request)
            assert (found.arm, found.slots / SLOTS, found.reason) == (decision.arm, decision.propensity, decision.reason)
            assert found.agrees
            assert found.steps[-1].endswith(": the same")
        reasons.add(decision.reason)
    assert reasons


def test_all_reasons_of_a_decision_were_replayed():
    met = set()
    for seed in range(120):
        r = random.Random(seed)
        entry = plan(r)
        decider = Decider(KEY, restarted=False)
        for number in range(60):
            attributes = {k: v for k, v in {"d": "ios", "c": "fr", "no": "1"}.items() if r.random() < 0.5}
            met.add(decider.decide(entry, f"u{number}".encode(), attributes, 1.8e9, r.randbytes(8), stale=r.random() < 0.05).reason)
    assert met == set(Reason) - {Reason.UNKNOWN_EXPERIMENT, Reason.INVALID_REQUEST}  # which a caller makes for itself


def test_a_decision_that_the_snapshot_does_not_explain_is_told():
    r = random.Random(3)
    entry = changed(plan(r), only=None, pins={}, target={}, opt_out="", strict=False, sticky=True, drained=0)
    entry = changed(entry, segments=(), segment_names=("other",))
    entry = changed(entry, tables=entry.tables[:1])
    decision = claims(Decider(KEY).decide(entry, b"u", {}, 1.8e9, b"12345678").id)
    request = Request(unit_hash(entry.salt, b"u").hex())
    assert replay(logged(entry), decision, request).agrees
    for wrong in (decision._replace(arm=(decision.arm + 1) % 2), decision._replace(slots=decision.slots + 1)):
        found = replay(logged(entry), wrong, request)
        assert not found.agrees
        assert "NOT the same" in found.steps[-1]


def test_another_version_is_refused_and_an_unknown_unit_asked_for():
    entry = changed(plan(random.Random(3)), only=None, pins={}, target={}, opt_out="")
    decision = claims(Decider(KEY).decide(entry, b"u", {}, 1.8e9, b"12345678").id)
    with pytest.raises(InvalidArgument, match="snapshot"):
        replay(logged(changed(entry, version=entry.version + 1)), decision, Request("00" * 8, 0))
    with pytest.raises(InvalidArgument, match="--unit with --server") as caught:
        replay(logged(entry), decision, Request())
    assert caught.value.reason == "NEEDS_UNIT"


def test_the_command_says_why_step_by_step(logging):
    rehearsal = logging()
    rehearsal.run(two_arms())
    decision = rehearsal.decide(unit="user-42")
    rehearsal.log.flush(rotate=True)
    done = said("replay", decision.id, "--log", str(rehearsal.directory))
    assert done.code == 0, done.err
    assert "the id is not checked" in done.out
    slot = int.from_bytes(unit_hash(rehearsal.record().salt, b"user-42")[:2], "big")
    assert f"its unit falls on slot {slot}" in done.out
    assert f"so {decision.arm}, with a chance of {decision.propensity:.6g}" in done.out
    assert "user-42" not in done.out


def test_the_command_says_which_gate_was_closed(logging):
    rehearsal = logging()
    strict = Exposure(per_candidate=0.3, total=0.3, strict=True, burst=1)
    rehearsal.run(two_arms(exposure=strict, guardrails=(), assignment=Assignment.PER_REQUEST))
    capped = next(d for d in (rehearsal.decide() for _ in range(999)) if d.reason is Reason.CAPPED)
    rehearsal.log.flush()
    done = said("replay", capped.id, "--log", str(rehearsal.directory))
    assert done.code == 0, done.out + done.err
    assert "the strict cap or the budget of new had no room" in done.out
    assert "went to the incumbent" in done.out


def test_the_command_refuses_what_it_cannot_know(logging, tmp_path):
    rehearsal = logging()
    rehearsal.run(two_arms(segments=(Segment("mobile", {"device": ("ios",)}),)))
    decision = rehearsal.decide()
    log = ("--log", str(rehearsal.directory))
    early = said("replay", decision.id, *log)
    assert (early.code, "is not in the log" in early.err) == (3, True)
    rehearsal.log.flush()
    assert said("replay", "nonsense", *log).code == 2
    assert said("replay", decision.id, *log, "--unit", "u").code == 2
    assert said("replay", decision.id, *log, "--attribute", "oops").code == 2
    assert said("replay", decision.id, "--log", str(tmp_path / "nowhere")).code == 2
    right = said("replay", decision.id, *log, "--attribute", "device=android")
    assert (right.code, "into the segment other" in right.out) == (0, True)
