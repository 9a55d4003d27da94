"""What a decider remembers, and that many at once are decided as one by one."""

from __future__ import annotations

import base64
import hashlib
import random
from collections import Counter
from dataclasses import replace

import pytest

from allocator.core import decider as decider_module
from allocator.core.assignment import SLOTS, first_layout
from allocator.core.decider import Decider
from allocator.core.decision import Reason, choose
from allocator.core.decision_id import mint, read
from allocator.core.gate import REQUESTS, Block
from allocator.core.snapshot import Entry, Table

KEY = b"k" * 32
SHARES = (SLOTS // 2, SLOTS // 4, SLOTS - SLOTS // 2 - SLOTS // 4)
START = 1_800_000_000.0


def table(*shares, served=None):
    layout = first_layout(shares)
    return Table(layout.ends, layout.owners, served or shares)


def entry_with(**changes):
    """Three arms, a quarter for each candidate."""
    values = {"version": 1, "sticky": True, "tables": (table(*SHARES),), "incumbent": 0} | changes
    return Entry(
        "default/x", b"uid-of-8", state="RUNNING", salt=b"salt", arms=("a", "b", "c"), model_uris=("u1", "", "u3"), **values
    )


ENTRIES = {
    "sticky": ({}, {}, False),
    "drawn for each request": ({"sticky": False}, {}, False),
    "every request counts": ({"first_only": False}, {}, False),
    "a drained arm": ({"drained": 2, "tables": (table(*SHARES, served=(SHARES[0] + SHARES[1], 0, SHARES[2])),)}, {}, False),
    "strict": ({"strict": True, "cap": 0.3, "cap_per_candidate": 0.2, "burst": 5}, {}, False),
    "leased": ({"leased_requests": True}, {}, False),
    "pins": ({"pins": {b"unit-3": 2, b"unit-4": 0}}, {}, False),
    "frozen": ({"only": (0, 4)}, {}, False),
    "shadow": ({"only": (0, 2), "shadow_arms": (1, 2)}, {}, False),
    "segments": (
        {
            "tables": (table(SLOTS, 0, 0), table(*SHARES)),
            "segments": ({"device": frozenset({"ios"})},),
            "segment_names": ("mobile", "other"),
        },
        {"device": "android"},
        False,
    ),
    "not targeted": ({"target": {"country": frozenset({"de"})}}, {"country": "fr"}, False),
    "opted out": ({"opt_out": "no"}, {"no": "yes"}, False),
    "stale": ({}, {}, True),
    "nothing for candidates": ({"tables": (table(SLOTS, 0, 0),)}, {}, False),
    "before the start": ({"only": (0, 2), "counted": False}, {}, False),
}


def pair(entry):
    """Two deciders alike."""
    deciders = [Decider(KEY, life=7), Decider(KEY, life=7)]
    for decider in deciders:
        if entry.leased_requests:
            decider.budget(entry.uid).post(REQUESTS, 1, Block(1, 1, 40))
            decider.budget(entry.uid).post(REQUESTS, 2, Block(2, 1, 10_000))
    return deciders


@pytest.mark.parametrize("case", ENTRIES)
def test_many_at_once_are_decided_counted_and_remembered_as_one_by_one(case):
    changes, attributes, stale = ENTRIES[case]
    entry, rng = entry_with(**changes), random.Random(1)
    single, batch = pair(entry)
    for step in range(4):  # some units return; a new plan, another bucket and another window come
        entry = replace(entry, version=1 + step // 2)
        now = START + (0, 1, 31, 2000)[step]
        units = [b"unit-%d" % rng.randrange(400) for _ in range(300)]
        nonces = rng.randbytes(8 * len(units))
        one_by_one = [
            single.decide(entry, unit, attributes, now, nonces[8 * i : 8 * i + 8], stale=stale) for i, unit in enumerate(units)
        ]
        found = batch.decide_batch(entry, units, attributes, now, nonces, stale=stale)
        assert [entry.arms[arm] for arm in found.arms] == [d.arm for d in one_by_one]
        assert [slots / SLOTS for slots in found.slots] == [d.propensity for d in one_by_one]
        assert found.reasons == [d.reason for d in one_by_one]
        assert found.ids == [d.id for d in one_by_one]
        assert [entry.arms[s] if s >= 0 else "" for s in found.shadows] == [d.shadow_arm for d in one_by_one]
        assert {entry.segment_names[found.segment]} == {d.segment for d in one_by_one}
        assert sum(count for _, count in found.dressed) == len(units)
        if step != 2:  # then two buckets are taken at once
            assert sorted(single.take()) == sorted(batch.take())


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("changes", [{}, {"only": (0, 4)}, {"pins": {b"u": 1}}, {"target": {"c": frozenset({"fr"})}}, {"strict": True}])
def test_who_opted_out_is_counted_nowhere_whatever_else_holds(changes, stale):
    entry, decider = entry_with(opt_out="no", **changes), Decider(KEY)
    decision = decider.decide(entry, b"u", {"no": "yes"}, START, bytes(8), stale=stale)
    found = decider.decide_batch(entry, [b"u", b"v"], {"no": "yes"}, START, bytes(16), stale=stale)
    assert {(decision.arm, decision.reason), *((entry.arms[a], r) for a, r in zip(found.arms, found.reasons, strict=True))} == {
        ("a", Reason.OPTED_OUT)
    }
    assert not read(KEY, decision.id).counted
    assert decider.take() == []


@pytest.mark.parametrize("case", sorted(set(ENTRIES) - {"strict", "leased"}))  # what gates allow depends on what came before
def test_a_decision_is_what_choose_says_and_its_id_is_minted_from_it(case):
    changes, attributes, stale = ENTRIES[case]
    entry = entry_with(**changes)
    decider = Decider(KEY)
    for number in range(200):
        unit, nonce = b"unit-%d" % number, number.to_bytes(8, "big")
        choice = choose(entry, unit, attributes, nonce, stale=stale)
        decision = decider.decide(entry, unit, attributes, START, nonce, stale=stale)
        shadow = choice.shadow(entry)
        assert decision[:3] == (entry.arms[choice.arm], choice.slots / SLOTS, choice.reason)
        assert decision[4:] == (
            entry.version,
            entry.model_uris[choice.arm],
            "a",
            entry.arms[shadow] if shadow >= 0 else "",
            entry.segment_names[choice.segment],
        )
        said = read(KEY, decision.id)
        assert (said.arm, said.slots, said.segment, said.version) == (choice.arm, choice.slots, choice.segment, entry.version)
        assert (said.nonce, said.key, said.seconds, said.counted) == (nonce, 0, START, choice.counted)
        flags = said.activation << 3 | said.gated << 2 | said.first << 1 | said.counted
        assert decision.id == as_documented(0, entry.uid, choice.arm, choice.segment, flags, 1, int(START * 1000), choice.slots, nonce)


def as_documented(number, uid, arm, segment, flags, version, milliseconds, slots, nonce):
    """The layout that the head of core/decision_id.py describes, written down once more."""
    values = (1, number, int.from_bytes(uid, "big"), arm, segment, flags, version, milliseconds, slots)
    sizes = (1, 4, 8, 1, 1, 1, 6, 6, 3)
    body = b"".join(value.to_bytes(size, "big") for value, size in zip(values, sizes, strict=True)) + nonce
    return base64.urlsafe_b64encode(body + hashlib.blake2b(body, digest_size=12, key=KEY).digest()).decode()


@pytest.mark.parametrize("case", ["sticky", "drawn for each request", "every request counts", "a drained arm", "nothing for candidates"])
def test_the_short_way_of_a_plan_without_rules_decides_counts_and_remembers_as_the_long_way(case):
    """A pin for a unit that never comes changes no decision, and sends all of them the long way, by `choose`."""
    plans = [entry_with(**ENTRIES[case][0])]
    plans.append(replace(plans[0], version=2, tables=(table(SHARES[1], SHARES[0], SHARES[2]),), drained=0))  # units meet other arms
    plans.append(replace(plans[0], version=3, activation=2))
    short, long = (Decider(KEY, life=7) for _ in range(2))
    rng = random.Random(5)
    for plan in plans:
        ruled = replace(plan, pins={b"nobody": 1})
        for number in range(3000):
            unit, nonce, now = b"unit-%d" % rng.randrange(400), rng.randbytes(8), START + number  # windows and buckets change
            stale = number % 50 == 0
            assert short.decide(plan, unit, {}, now, nonce, stale=stale) == long.decide(ruled, unit, {}, now, nonce, stale=stale)
        assert sorted(short.take()) == sorted(long.take())
    assert {memory.plain for memory in short._memories.values()} == {True}
    assert {memory.plain for memory in long._memories.values()} == {False}


def test_an_id_has_the_documented_layout_whatever_the_numbers_in_it():
    rng = random.Random(3)
    for _ in range(200):
        number, version, milliseconds = rng.randrange(1 << 32), rng.randrange(1 << 48), rng.randrange(1 << 48)
        arm, segment, flags, slots = rng.randrange(64), rng.randrange(64), rng.randrange(256), rng.randrange(SLOTS + 1)
        uid, nonce = rng.randbytes(8), rng.randbytes(8)
        found = mint(KEY, uid, arm, segment, version, milliseconds, slots, nonce, flags, number)
        assert found == as_documented(number, uid, arm, segment, flags, version, milliseconds, slots, nonce)


def test_exposures_lie_in_the_bucket_that_the_ids_time_is_in():
    entry, decider = entry_with(bucket_seconds=0.3, window_seconds=0.7), Decider(KEY)
    rng, now, expected = random.Random(4), START, Counter()
    for number in range(3000):
        now += rng.choice((0.0, 0.0004, 0.05, -0.02))
        decision = decider.decide(entry, b"unit-%d" % number, {}, now, rng.randbytes(8))
        expected[int(read(KEY, decision.id).seconds // 0.3)] += 1
    found = Counter()
    while taken := decider.take():
        for exposure in taken:
            found[exposure.bucket] += exposure.count
    assert found == expected
    assert len(found) > 50


def test_a_unit_counts_again_in_the_next_window_and_not_before():
    entry, decider = entry_with(), Decider(KEY)
    window = int(START // entry.window_seconds + 1) * entry.window_seconds
    firsts = []
    for now in (START, START + 1, window - 0.001, window, window + 1, window + 1799.9, window + 1800):
        firsts.append(read(KEY, decider.decide(entry, b"unit", {}, now, bytes(8)).id).first)
    assert firsts == [True, False, False, True, False, False, True]


def test_another_entry_under_the_same_version_is_the_one_that_decides():
    """The store was restored from a backup: its versions are there again, with other weights."""
    decider = Decider(KEY, life=7)
    running, frozen = entry_with(version=5), entry_with(version=5, only=(0, int(Reason.FROZEN)))
    units = [b"unit-%d" % number for number in range(100)]
    for entry, arms in ((running, {0, 1, 2}), (frozen, {0}), (running, {0, 1, 2})):
        one_by_one = [decider.decide(entry, unit, {}, START, bytes(8)) for unit in units]
        assert {decision.arm for decision in one_by_one} == {entry.arms[arm] for arm in arms}
        assert set(decider.decide_batch(entry, units, {}, START, bytes(800)).arms) == arms


def test_an_empty_batch_has_empty_columns():
    found = Decider(KEY).decide_batch(entry_with(), [], {}, START, b"")
    assert (found.arms, found.ids, found.dressed) == ([], [], [])


def test_what_is_dressed_is_made_once_for_decisions_alike():
    decider, made = Decider(KEY), []
    decider.dress = lambda name, decision: made.append((name, decision)) or len(made)
    entry = entry_with()
    for turn in range(3):
        for number in range(100):
            unit, nonce = b"unit-%d" % number, bytes((turn, number, 0, 0, 0, 0, 0, 0))
            form, token = decider.answer(entry, unit, {}, START, nonce)
            name, decision = made[form.dressed - 1]
            assert name == entry.experiment
            assert decision.id == ""
            said = read(KEY, token.decode())
            assert decision.arm == entry.arms[said.arm] == entry.arms[choose(entry, unit, {}, nonce).arm]
    assert len(made) == 6  # three arms, new or known


def test_of_every_experiment_the_latest_plan_decides_and_no_older_one_is_kept():
    decider, count = Decider(KEY), 50
    for version in range(1, 40):
        entries = [replace(entry_with(version=version), uid=number.to_bytes(8, "big")) for number in range(count)]  # at other addresses
        for entry in entries:
            said = read(KEY, decider.decide(entry, b"unit", {}, START, version.to_bytes(8, "big")).id)
            assert (said.uid, said.version) == (entry.uid, version)
    assert {id(memory.entry) for memory in decider._seats.values()} == set(map(id, entries))
    assert sum(exposure.count for exposure in decider.take(most=39 * count)) == 39 * count
    assert decider.take() == []


def test_kinds_of_decisions_beyond_a_limit_are_forgotten_without_losing_a_count(monkeypatch):
    monkeypatch.setattr(decider_module, "MAX_FORMS", 2)
    decider, entry = Decider(KEY), entry_with()
    for number in range(300):
        decider.decide(entry, b"unit-%d" % (number % 40), {}, START, number.to_bytes(8, "big"))
        if number % 7 == 0:
            decider.give_back(decider.take())
    assert sum(exposure.count for exposure in decider.take()) == 300
    assert not decider._memories[entry.uid].forms


@pytest.mark.parametrize("case", ["sticky", "drawn for each request", "segments"])
def test_what_a_store_refuses_again_and_again_is_held_once_for_each_cell_and_loses_no_count(case):
    changes, attributes, _ = ENTRIES[case]
    entry, rng = entry_with(**changes), random.Random(6)
    refused, stored = Decider(KEY, life=7), Decider(KEY, life=7)
    for number in range(600):
        unit, nonce, now = b"unit-%d" % rng.randrange(80), rng.randbytes(8), START + number / 10
        for decider in (refused, stored):
            decider.decide(entry, unit, attributes, now, nonce)
        taken = refused.take()
        assert len(taken) <= 3 * (1 + number // 300), "three arms in each bucket"
        refused.give_back(taken)
    assert sorted(refused.take()) == sorted(stored.take())
    assert refused.take() == []


def test_of_what_was_given_back_as_much_is_taken_at_once_as_there_is_room_for_and_the_rest_in_turn(monkeypatch):
    monkeypatch.setattr(decider_module, "CELLS", 2)
    decider, entry = Decider(KEY), entry_with(bucket_seconds=1.0)
    for number in range(60):
        decider.decide(entry, b"unit-%d" % number, {}, START + number, number.to_bytes(8, "big"))
    everything = decider.take()
    assert len(everything) >= 60  # one in each second, and three arms' draws
    decider.give_back(everything)
    assert decider.waiting() == -(-len(everything) // 2)
    for _ in range(3):
        taken = decider.take(most=2)
        assert len(taken) == 4
        decider.give_back(taken)
    found = []
    while taken := decider.take(most=2):
        assert len(taken) <= 4
        found += taken
    assert sorted(found) == sorted(everything)
    assert found[:4] == everything[12:16], "those that were tried wait behind those that were not"


def test_what_was_given_back_takes_the_place_of_half_of_what_is_new():
    decider = Decider(KEY)

    def decide(first, count):
        for number in range(first, first + count):
            decider.decide(replace(entry_with(), uid=number.to_bytes(8, "big")), b"unit", {}, START, number.to_bytes(8, "big"))

    decide(0, 30)
    decider.give_back(decider.take(0.0))
    assert decider.waiting(0.0) == 30 // decider_module.CELLS == 10
    decide(100, 20)
    uids = [{int.from_bytes(e.uid, "big") for e in decider.take(0.0, 8)} for _ in range(4)]
    assert [sum(uid < 100 for uid in found) for found in uids] == [12, 12, 6, 0]
    assert [sum(uid >= 100 for uid in found) for found in uids] == [4, 4, 6, 6]
    assert decider.waiting(0.0) == 0


def counted(exposures):
    """Decisions and units by activation, bucket, arm and segment."""
    found = Counter()
    for e in exposures:
        found[e[:5], "count"] += e.count
        found[e[:5], "units"] += e.units
    return +found


def drawn(exposures):
    """Draws by activation, arm and segment, over all buckets."""
    found = Counter()
    for e in exposures:
        for name in ("drawn", "expected", "variance"):
            found[e.activation, e.arm, e.segment, name] += getattr(e, name)
    return +found


@pytest.mark.parametrize("case", ENTRIES)
def test_draws_that_wait_come_to_the_same_as_those_that_do_not_and_no_exposure_waits(case):
    changes, attributes, stale = ENTRIES[case]
    entry, rng = entry_with(**changes), random.Random(9)
    waits, at_once = pair(entry)
    found: tuple[list, list] = [], []
    for number in range(900):
        if number in (300, 600):  # another plan, and another activation
            entry = replace(entry, version=entry.version + 1, activation=entry.activation + number // 600)
        now, unit, nonce = START + number, b"unit-%d" % rng.randrange(400), rng.randbytes(8)
        for decider in (waits, at_once):
            decider.decide(entry, unit, attributes, now, nonce, stale=stale)
        if rng.random() < 0.3:
            found[0].extend(waits.take(now))
            found[1].extend(at_once.take())
            assert counted(found[0]) == counted(found[1])
            missing = drawn(found[1]) - drawn(found[0])
            assert sum(n for key, n in missing.items() if key[-1] == "drawn") < decider_module.FEW_DRAWS
    for into, decider in zip(found, (waits, at_once), strict=True):
        into.extend(decider.take())
        assert decider.take() == []
    assert counted(found[0]) == counted(found[1])
    assert drawn(found[0]) == drawn(found[1])


def test_few_draws_wait_and_many_do_not():
    decider, entry, few = Decider(KEY), entry_with(), decider_module.FEW_DRAWS
    for number in range(few - 1):
        decider.decide(entry, b"unit-%d" % number, {}, START, number.to_bytes(8, "big"))
    assert sum(e.count for e in decider.take(100.0)) == few - 1
    assert decider.take(100.0 + decider_module.DRAWS_SECONDS - 0.1) == []
    assert sum(e.drawn for e in decider.take(100.0 + decider_module.DRAWS_SECONDS)) == few - 1
    for number in range(few):
        decider.decide(entry, b"other-%d" % number, {}, START, number.to_bytes(8, "big"))
    assert sum(e.drawn for e in decider.take(1000.0)) == few
    assert decider.take() == []


def test_the_draws_of_thousands_of_quiet_experiments_come_in_several_calls():
    decider, count = Decider(KEY), 3 * decider_module.TAKEN_AT_ONCE
    for number in range(count):
        decider.decide(replace(entry_with(), uid=number.to_bytes(8, "big")), b"unit", {}, START, number.to_bytes(8, "big"))
    assert decider.waiting(0.0) == count
    assert [sum(e.count for e in decider.take(0.0)) for _ in range(3)] == [count // 3] * 3
    assert decider.waiting(1.0) == 0
    late = decider_module.DRAWS_SECONDS
    assert (decider.waiting(late), decider.waiting()) == (decider_module.TAKEN_AT_ONCE, count)
    assert [sum(e.drawn for e in decider.take(late, 10)) for _ in range(2)] == [10, 10]
    assert sum(e.drawn for e in decider.take(late, count)) == count - 20
    assert decider.take() == []


def test_draws_that_waited_come_along_with_what_is_counted():
    decider, count = Decider(KEY), 4 * decider_module.TAKEN_AT_ONCE
    entries = [replace(entry_with(), uid=number.to_bytes(8, "big")) for number in range(count)]
    for number, entry in enumerate(entries):
        decider.decide(entry, b"unit", {}, START, number.to_bytes(8, "big"))
    decider.take(0.0, count)
    late, taken, calls = decider_module.DRAWS_SECONDS, 0, 0
    for number in range(100):
        decider.decide(entries[number], b"another", {}, START, number.to_bytes(8, "little"))
    assert decider.waiting(late) == 100 + 200
    while waiting := decider.waiting(late):
        taken, calls = taken + sum(e.drawn for e in decider.take(late, waiting)), calls + 1
    assert (taken + sum(e.drawn for e in decider.take()), calls) == (count + 100, 2)


def test_an_unknown_reason_from_a_newer_planner_is_an_incumbent_all_the_same():
    decision = Decider(KEY).decide(entry_with(only=(0, 77)), b"unit", {}, START, bytes(8))
    assert (decision.arm, decision.reason) == ("a", Reason.INCUMBENT_ONLY)
