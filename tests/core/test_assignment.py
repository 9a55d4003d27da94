"""Assignment: points, owned slots, and moving the fewest of them.

Expectations come from RFC 7693 by way of hashlib, from a dense table of 65,536 owners as the plain twin of a layout,
from the least possible number of moved slots, from the chi-square distribution, and from `tests/golden/assignment.json`
(its format is told in the README beside it; `write_golden` below made it).
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency

from allocator.core.assignment import SLOTS, Layout, counts, first_layout, move, owner, pick, point, unit_hash
from allocator.errors import InvalidArgument

GOLDEN = Path(__file__).parents[1] / "golden" / "assignment.json"


def dense(layout):
    """Plain twin: the owner of each of the 65,536 slots."""
    return np.repeat(layout.owners, np.diff(layout.ends, prepend=0))


def random_slots(rng, arms, concentration):
    """A split of the slots, Dirichlet; some arms often get none when `concentration` is small."""
    shares = [rng.gammavariate(concentration, 1.0) + 1e-12 for _ in range(arms)]
    slots = [int(share / sum(shares) * SLOTS) for share in shares]
    slots[0] += SLOTS - sum(slots)
    return slots


@st.composite
def splits(draw, arms):
    cuts = draw(st.lists(st.integers(0, SLOTS), min_size=arms - 1, max_size=arms - 1).map(sorted))
    return [high - low for low, high in zip([0, *cuts], [*cuts, SLOTS], strict=True)]


# ---- points


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=300))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_point_is_the_top_sixteen_bits_of_keyed_blake2b(salt, unit):
    digest = blake2b(unit, digest_size=8, key=salt).digest()
    assert unit_hash(salt, unit) == digest
    assert point(salt, unit) == int.from_bytes(digest, "big") >> 48


@pytest.mark.parametrize("salt", [b"", b"s" * 65, "text", None, 7])
def test_a_salt_of_another_size_or_type_is_refused_and_not_shown(salt):
    with pytest.raises(InvalidArgument) as caught:
        point(salt, b"unit")
    assert caught.value.violations[0].field == "salt"
    assert "sss" not in str(caught.value)


@pytest.mark.parametrize("unit", ["jane@example.com", None, 7])
def test_a_unit_that_is_not_bytes_is_refused_and_not_shown(unit):
    with pytest.raises(InvalidArgument) as caught:
        point(b"salt", unit)
    assert caught.value.violations[0].field == "unit"
    assert "jane" not in str(caught.value)


@pytest.mark.parametrize("salt", [b"a", bytes(16), b"\xff" * 64], ids=["short", "zeros", "longest"])
def test_units_fall_on_arms_as_often_as_their_slots_say(salt):
    """Chi-square over the arms, and over the table in 256 parts; a fair hash fails one of the six with chance 6e-5."""
    slots = (40_000, 20_000, 5_000, 500, 36)
    layout = first_layout(slots)
    points = np.array([point(salt, b"user-%d" % number) for number in range(250_000)])
    owners = dense(layout)[points]
    for seen, expected in (
        (np.bincount(owners, minlength=5), len(points) * np.array(slots) / SLOTS),
        (np.bincount(points >> 8, minlength=256), np.full(256, len(points) / 256)),
    ):
        statistic = float(((seen - expected) ** 2 / expected).sum())
        assert chi2.sf(statistic, len(expected) - 1) > 1e-5


def test_salts_split_the_same_units_independently():
    table = np.zeros((16, 16))
    for number in range(200_000):
        unit = b"%d" % number
        table[point(b"experiment-1", unit) >> 12, point(b"experiment-2", unit) >> 12] += 1
    assert chi2_contingency(table).pvalue > 1e-5


# ---- layouts


@given(st.integers(1, 9).flatmap(splits))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_first_layout_has_one_run_for_each_arm_with_slots(slots):
    layout = first_layout(slots)
    assert counts(layout, len(slots)) == tuple(slots)
    assert list(layout.owners) == [arm for arm, count in enumerate(slots) if count]


def test_a_point_belongs_to_the_run_that_holds_it():
    layout = Layout((3, 10, SLOTS), (2, 0, 1))
    assert [owner(layout, slot) for slot in (0, 2, 3, 9, 10, SLOTS - 1)] == [2, 2, 0, 0, 1, 1]


def test_a_pick_gives_the_arm_and_all_of_its_slots():
    layout = Layout((3, 10, SLOTS), (2, 0, 2))
    assert [pick(layout, counts(layout, 3), slot) for slot in (0, 5, 10)] == [(2, SLOTS - 7), (0, 7), (2, SLOTS - 7)]


def test_propensities_are_exact_and_sum_to_one():
    slots = (SLOTS - 3, 1, 2)
    assert sum(count / SLOTS for count in slots) == 1.0
    assert [math.ldexp(count, -16) for count in slots] == [count / SLOTS for count in slots]


@pytest.mark.parametrize("slot", [-1, SLOTS, 10**9])
def test_a_point_outside_the_table_is_refused(slot):
    with pytest.raises(InvalidArgument):
        owner(first_layout((SLOTS,)), slot)


@pytest.mark.parametrize(
    ("ends", "owners", "field"),
    [
        ((), (), "layout.ends"),
        ((SLOTS - 1,), (0,), "layout.ends"),
        ((SLOTS + 1,), (0,), "layout.ends"),
        ((0, SLOTS), (0, 1), "layout.ends"),
        ((9, 9, SLOTS), (0, 1, 0), "layout.ends"),
        ((9, 5, SLOTS), (0, 1, 0), "layout.ends"),
        ((5, SLOTS), (0,), "layout.owners"),
        ((5, SLOTS), (1, 1), "layout.owners"),
        ((5, SLOTS), (-1, 0), "layout.owners"),
    ],
)
def test_a_malformed_layout_is_refused(ends, owners, field):
    with pytest.raises(InvalidArgument) as caught:
        Layout(ends, owners)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    "slots",
    [(), (SLOTS - 1,), (SLOTS + 1, -1), (SLOTS / 2, SLOTS / 2), (math.nan, SLOTS), (True, SLOTS - 1)],
)
def test_slots_that_are_no_split_of_the_table_are_refused(slots):
    for use in (first_layout, lambda new: move(first_layout((SLOTS,)), new)):
        with pytest.raises(InvalidArgument):
            use(slots)


def test_a_layout_with_more_arms_than_slots_were_given_for_is_refused():
    with pytest.raises(InvalidArgument):
        move(first_layout((5, SLOTS - 5)), (SLOTS,))


# ---- moves


@given(st.integers(1, 8).flatmap(lambda arms: st.lists(splits(arms), min_size=2, max_size=8)))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_the_fewest_slots_change_hands_and_the_layout_stays_canonical(plans):
    layout = first_layout(plans[0])
    arms = len(plans[0])
    for before, after in pairwise(plans):
        moved = move(layout, after)
        assert counts(moved, arms) == tuple(after)
        changed = np.count_nonzero(dense(layout) != dense(moved))
        assert changed == sum(abs(new - old) for new, old in zip(after, before, strict=True)) // 2
        assert len(moved.ends) <= len(layout.ends) + arms - 1  # each cut settles a giver or a taker
        layout = moved


@given(splits(6), splits(6))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_an_arm_keeps_its_slots_unless_it_has_too_many(before, after):
    layout = first_layout(before)
    old, new = dense(layout), dense(move(layout, after))
    moved = old != new
    gains = np.subtract(after, before)
    assert np.all(gains[old[moved]] < 0)
    assert np.all(gains[new[moved]] > 0)


def test_a_unit_whose_slot_did_not_move_keeps_its_arm_and_moved_units_are_few():
    before, after = (45_000, 12_000, 8_536), (44_000, 13_500, 8_036)
    old, new = first_layout(before), move(first_layout(before), after)
    points = [point(b"salt", b"%d" % number) for number in range(20_000)]
    moved = sum(owner(old, slot) != owner(new, slot) for slot in points)
    expected = 20_000 * 1_500 / SLOTS
    assert abs(moved - expected) < 5 * math.sqrt(expected)


def test_a_plan_that_changes_nothing_gives_the_same_layout_back():
    layout = first_layout((10, SLOTS - 10))
    assert move(layout, (10, SLOTS - 10)) is layout


def test_arms_may_join_and_leave():
    layout = first_layout((SLOTS,))
    layout = move(layout, (SLOTS - 600, 600))
    layout = move(layout, (SLOTS - 1_200, 0, 700, 500))
    assert counts(layout, 4) == (SLOTS - 1_200, 0, 700, 500)
    assert move(layout, (SLOTS, 0, 0, 0)) == first_layout((SLOTS,))


def test_two_arms_never_need_more_than_two_runs():
    rng = random.Random(7)
    layout = first_layout((SLOTS, 0))
    for _ in range(500):
        layout = move(layout, random_slots(rng, 2, 1.0))
        assert len(layout.ends) <= 2


@pytest.mark.parametrize("arms", [5, 10])
def test_a_layout_stays_short_over_thousands_of_plans(arms):
    """A few runs for each arm, where scattered slots would make thousands; `benchmarks/bench_assignment.py` counts."""
    rng = random.Random(arms)
    shares = [1.0 / arms] * arms
    layout = first_layout(random_slots(rng, arms, 5.0))
    for step in range(2_000):
        if step < 1_000:  # plans that have nothing to do with one another
            slots = random_slots(rng, arms, rng.choice([0.1, 1.0, 5.0]))
        else:  # plans that drift
            shares = [max(1e-5, share * math.exp(rng.gauss(0.0, 0.1))) for share in shares]
            slots = [int(share / sum(shares) * SLOTS) for share in shares]
            slots[0] += SLOTS - sum(slots)
        layout = move(layout, slots)
        assert len(layout.ends) <= 10 * arms


def test_sixty_four_arms_can_be_moved():
    rng = random.Random(64)
    layout = first_layout(random_slots(rng, 64, 1.0))
    for _ in range(50):
        slots = random_slots(rng, 64, 1.0)
        layout = move(layout, slots)
        assert counts(layout, 64) == tuple(slots)
        assert len(layout.ends) <= 10 * 64


# ---- golden file


def golden_units():
    """(how it reads, bytes): plain, accented, Chinese, emoji, one byte, blank, control bytes, the longest allowed."""
    texts = ["user-1", "user-2", "a", "0", " ", "\t", "Zoë Größe", "用户-42", "🦊🦊", "jane@example.com", "x" * 256]
    texts += ["é" * 128, "00000000-0000-4000-8000-000000000000", "-1", "1e9", "Ünïcode/путь?q=1&r=2"]
    return [(text, text.encode()) for text in texts] + [("", b"\x00"), ("", bytes(range(256))), ("", b"\xff\xfe")]


def golden_plans():
    """Named chains of slots by arm, each plan a move from the one before it."""
    rng = random.Random(65_536)
    ramp = [[SLOTS - share, share] for share in (0, 655, 6_553, 32_768, 6_553, 1, SLOTS)]
    five = [random_slots(rng, 5, concentration) for concentration in (5.0, 1.0, 0.3, 5.0, 1.0, 0.1, 5.0, 1.0)]
    joins = [[SLOTS], [60_000, 5_536], [58_000, 5_536, 2_000], [50_000, 0, 9_536, 6_000], [65_533, 1, 1, 1]]
    many = [random_slots(rng, 64, 1.0) for _ in range(3)]
    return {"ramp": ramp, "five": five, "joins": joins, "many": many}


def golden_document():
    """What `assignment.json` holds; see the README beside it."""
    salts = [b"salt", bytes(16), bytes(range(64)), b"\xff"]
    hashes = [
        {
            "salt": salt.hex(),
            "unit": unit.hex(),
            "text": text,
            "hash": unit_hash(salt, unit).hex(),
            "point": point(salt, unit),
        }
        for salt in salts
        for text, unit in golden_units()
    ]
    layouts, rows = [], []
    for chain, plans in golden_plans().items():
        layout, after = None, None
        for slots in plans:
            layout = first_layout(slots) if layout is None else move(layout, slots)
            table = {"slots": list(slots), "ends": list(layout.ends), "owners": list(layout.owners)}
            layouts.append({"id": len(layouts), "chain": chain, "after": after, **table})
            after = layouts[-1]["id"]
            for index in range(len(layouts) % 4, len(hashes), 6):
                arm, count = pick(layout, slots, hashes[index]["point"])
                rows.append({"layout": layouts[-1]["id"], "hash": index, "arm": arm, "slots": count})
    return {"total_slots": SLOTS, "hashes": hashes, "layouts": layouts, "rows": rows}


def write_golden():
    """Write the file anew; whatever changes in it breaks every client.

    python -c "from tests.core.test_assignment import write_golden; write_golden()"
    """
    document = golden_document()
    parts = [f'  "{key}": ' + _one_a_line(value) for key, value in document.items()]
    GOLDEN.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _one_a_line(value):
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n" + ",\n".join("    " + json.dumps(item, ensure_ascii=False) for item in value) + "\n  ]"


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_golden_hashes_hold(golden):
    for row in golden["hashes"]:
        salt, unit = bytes.fromhex(row["salt"]), bytes.fromhex(row["unit"])
        assert not row["text"] or row["text"].encode() == unit
        assert blake2b(unit, digest_size=8, key=salt).hexdigest() == row["hash"]  # the twin
        assert int(row["hash"][:4], 16) == row["point"]
        assert (unit_hash(salt, unit).hex(), point(salt, unit)) == (row["hash"], row["point"])


def test_golden_layouts_hold(golden):
    assert golden["total_slots"] == SLOTS
    tables = {}
    for row in golden["layouts"]:
        layout = Layout(tuple(row["ends"]), tuple(row["owners"]))
        tables[row["id"]] = layout, dense(layout)
        owned = np.bincount(tables[row["id"]][1], minlength=len(row["slots"]))  # the twin
        assert owned.tolist() == row["slots"] == list(counts(layout, len(row["slots"])))
        if row["after"] is None:
            assert first_layout(row["slots"]) == layout
        else:
            earlier, table = tables[row["after"]]
            assert move(earlier, row["slots"]) == layout
            before = np.bincount(table, minlength=len(row["slots"]))
            moved = np.count_nonzero(table != tables[row["id"]][1])
            assert moved == np.abs(owned - before).sum() // 2


def test_golden_assignments_hold(golden):
    assert len(golden["rows"]) >= 200
    for row in golden["rows"]:
        layout = golden["layouts"][row["layout"]]
        slot = golden["hashes"][row["hash"]]["point"]
        value = Layout(tuple(layout["ends"]), tuple(layout["owners"]))
        assert dense(value)[slot] == row["arm"]  # the twin
        assert layout["slots"][row["arm"]] == row["slots"]
        assert pick(value, layout["slots"], slot) == (row["arm"], row["slots"])


# ---- doors


@pytest.mark.parametrize("module", ["assignment", "gate"])
def test_a_client_that_decides_loads_neither_numpy_nor_numba(module):
    code = f"import sys, allocator.core.{module}; sys.exit(any(name in sys.modules for name in ('numpy', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=GOLDEN.parents[2], check=False).returncode == 0
