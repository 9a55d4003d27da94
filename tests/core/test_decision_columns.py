"""Many ids say the same as one by one; the chances of a decision are those that `choose` drew from."""

from __future__ import annotations

import random
from dataclasses import fields, replace

import pytest

from allocator.core.assignment import SLOTS, first_layout
from allocator.core.decision import choose
from allocator.core.decision_columns import read_claims, read_ids
from allocator.core.decision_id import client_key, mint, read
from allocator.core.served_chances import chances, gates_known
from allocator.core.snapshot import Entry, Table
from allocator.errors import InvalidArgument

KEY = b"k" * 32


def ids(count: int, seed: int = 0) -> list[str]:
    r = random.Random(seed)
    numbers = [r.randrange(2**32) for _ in range(count)]
    return [
        mint(
            client_key(KEY, number),
            r.randbytes(8),
            r.randrange(64),
            r.randrange(33),
            r.randrange(2**48),
            r.randrange(2**48),
            r.randrange(SLOTS + 1),
            r.randbytes(8),
            r.randrange(256),
            number,
        )
        for number in numbers
    ]


def test_columns_say_what_each_id_says():
    texts = ids(300)
    columns = read_ids(texts)
    for row, text in enumerate(texts):
        one = read(KEY, text)._asdict()
        assert {name: value for name, value in one.items() if name not in ("uid", "nonce")} == {
            field.name: getattr(columns, field.name)[row].item() for field in fields(columns) if field.name not in ("uid", "nonce")
        }
        assert (columns.uid[row].tobytes(), columns.nonce[row].tobytes()) == (one["uid"], one["nonce"])
        assert read_claims(text) == read(KEY, text)
    assert read_ids([]).arm.size == 0


@pytest.mark.parametrize("wrong", ["", "x", "é" * 68, "A" * 68, "=" * 68, "A" * 67 + "="])
def test_one_text_that_is_no_id_is_named(wrong):
    with pytest.raises(InvalidArgument, match="no decision id") as caught:
        read_ids([*ids(2), wrong, *ids(1)])
    assert caught.value.reason == "MALFORMED_DECISION_ID"
    assert repr(wrong[:80]) in str(caught.value)


class Gate:
    """Closed for the arms of a mask, and never asks for more."""

    def __init__(self, mask: int) -> None:
        self.mask = mask

    def closed_mask(self) -> int:
        return self.mask

    def admit(self, arm: int) -> bool:
        return True


def entry(slots, **changes) -> Entry:
    layout = first_layout(slots)
    plain = Entry(
        experiment="default/ranker", uid=b"12345678", version=3, state="RUNNING", sticky=True, salt=b"salt",
        arms=tuple("abcd"[: len(slots)]), model_uris=("",) * len(slots), incumbent=0,
        tables=(Table(layout.ends, layout.owners, tuple(slots)),), strict=True,
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.mark.parametrize("mask", [0b000, 0b010, 0b100, 0b110])
def test_chances_are_those_of_the_draw_or_unknown(mask):
    e = entry((SLOTS - 30_000, 20_000, 10_000))
    open_arms = [arm for arm in (1, 2) if not mask >> arm & 1]
    served = e.tables[0].served
    true = (SLOTS - sum(served[arm] for arm in open_arms), *(served[arm] * (arm in open_arms) for arm in (1, 2)))
    seen = set()
    for number in range(200):
        c = choose(e, str(number).encode(), {}, b"", gate=Gate(mask))
        found = chances(e, c.segment, c.arm, c.slots, c.reason, c.gated)
        assert found in (true, None)
        assert (found is None) == (c.arm != 0 and mask != 0)
        seen.add(c.arm)
    assert seen == {0, *open_arms}


def test_with_one_candidate_nothing_is_unknown():
    e = entry((SLOTS - 20_000, 20_000))
    for number in range(100):
        c = choose(e, str(number).encode(), {}, b"", gate=Gate(0))
        assert chances(e, c.segment, c.arm, c.slots, c.reason, True) == e.tables[0].served


@pytest.mark.parametrize(
    ("slots", "changes", "expected"),
    [
        ((SLOTS - 20_000, 20_000), {}, True),
        ((SLOTS - 20_000, 20_000, 0), {}, True),
        ((SLOTS - 30_000, 20_000, 10_000), {}, False),
        ((SLOTS - 30_000, 20_000, 10_000), {"strict": False}, True),
        ((SLOTS - 30_000, 20_000, 10_000), {"strict": False, "leased_requests": True}, False),
        ((SLOTS - 30_000, 20_000, 10_000), {"strict": False, "leased_units": True}, False),
        ((SLOTS - 30_000, 20_000, 10_000), {"only": (0, 4)}, True),
    ],
)
def test_where_gates_are_known_no_arm_hides_its_chances(slots, changes, expected):
    e = entry(slots, **changes)
    assert gates_known(e, 0) is expected
    told = []
    for mask in range(0, 1 << len(slots), 2) if e.strict or e.leased_requests or e.leased_units else (0,):
        for number in range(60):
            c = choose(e, str(number).encode(), {}, b"", gate=Gate(mask))
            told.append(chances(e, c.segment, c.arm, c.slots, c.reason, True) is not None)
    assert all(told) is expected


def test_two_candidates_of_one_share_cannot_be_told_apart():
    e = entry((SLOTS - 20_000, 10_000, 10_000))
    c = next(c for c in (choose(e, str(n).encode(), {}, b"", gate=Gate(0b010)) for n in range(99)) if c.arm == 0)
    assert chances(e, c.segment, c.arm, c.slots, c.reason, c.gated) is None


def test_where_nothing_was_drawn_the_arm_was_certain():
    e = entry((SLOTS - 20_000, 20_000), opt_out="no", pins={b"tester": 1})
    for unit, attributes, stale in ((b"u", {"no": "1"}, False), (b"tester", {}, False), (b"u", {}, True)):
        c = choose(e, unit, attributes, b"", stale=stale)
        assert chances(e, c.segment, c.arm, c.slots, c.reason, c.gated) == tuple(SLOTS * (arm == c.arm) for arm in (0, 1))


def test_arms_that_joined_after_the_weights_have_no_chance():
    e = replace(entry((SLOTS - 20_000, 20_000)), arms=("a", "b", "c"), model_uris=("",) * 3)
    assert chances(e, 0, 0, SLOTS - 20_000, 1, False) == (SLOTS - 20_000, 20_000, 0)
