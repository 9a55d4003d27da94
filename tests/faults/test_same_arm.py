"""Two servers with the same snapshot version give every unit the same arm; so does a decider that had the snapshot over the wire."""

from __future__ import annotations

from allocator.core.decision import choose
from allocator.core.experiment import Exposure
from allocator.core.snapshot import Entry
from allocator.wire.snapshots import entry_from_message, entry_to_message
from tests.conftest import two_arms
from tests.engine.fleet import Fleet

UNITS = 1_000_000
NONCE = bytes(8)  # not looked at where assignment is sticky


def arms(entry: Entry) -> bytearray:
    """The arm of each of a million units."""
    return bytearray(choose(entry, b"unit-%d" % number, {}, NONCE).arm for number in range(UNITS))


def test_two_servers_with_one_snapshot_version_give_a_million_units_the_same_arm(tmp_path):
    fleet = Fleet(tmp_path)
    fleet.start("a")
    fleet.start("b")
    fleet.run("a", two_arms(exposure=Exposure(), guardrails=()))
    for number in range(40):  # plans enough that the layout is no first one
        name = "ab"[number % 2]
        decisions = [fleet.decide(name) for _ in range(50)]
        fleet.report(name, decisions, reward=float(number % 3 == 0))
        fleet.tick(seconds=2)
    here, there = (fleet.engines[name].live.snapshot.entries["default/ranker"] for name in "ab")
    assert here.version == there.version > 5
    assert here.digest() == there.digest()
    found = arms(here)
    assert 0 < found.count(1) < UNITS
    assert found == arms(there)
    assert entry_from_message(entry_to_message(here)).digest() == here.digest()
    runs = len(here.tables[0].ends)
    print(f"\n{UNITS:,} units, snapshot version {here.version}, {runs} runs: the same arm from two servers and over the wire")
