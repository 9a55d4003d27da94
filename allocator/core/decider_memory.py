"""What a decider remembers of one experiment: the units seen in this window, the credit of its strict caps, its leases, the units that
have drawn in this activation; and what decisions of the present plan have in common.

In: the entry of each new plan, the time, units by their 8-byte hash. Out: has a unit met an arm, does it draw now, and the parts of the
plan that the commonest decision reads, laid out. Standard library only. Why units are forgotten by sample: `core/decider.py`.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any

from allocator.core.assignment import HASH_BYTES, SLOTS
from allocator.core.decision import Reason
from allocator.core.gate import BudgetGate, CapGate
from allocator.core.snapshot import Entry

MAX_UNITS_REMEMBERED = 200_000  # for each experiment; about 20 MB
MAX_DRAWS_REMEMBERED = 65_536  # the same, about 7 MB
ALL_UNITS = 1 << 16
KNOWN, ELSEWHERE, NEW = range(3)

Key = tuple[int, int, Reason, int, int, int]  # arm, slots, reason, segment, flags of the id, arm to mirror to or -1


@lru_cache(1024)
def one(number: int) -> int:
    """The same object for equal numbers: what thousands of experiments have in common is then at hand in the processor's cache."""
    return number


@lru_cache(4096)
def of_slots(slots: int) -> tuple[bytes, float]:
    """The slots of an id, and the propensity: one pair of objects for all plans."""
    return slots.to_bytes(3, "big"), slots / SLOTS


class _AtHand:
    """What the commonest decision reads, side by side in memory: among thousands of experiments each line of it has to be fetched."""

    __slots__ = (
        "counting", "drained", "drawing", "drawn_forms", "drew", "ends", "first_only", "keyed", "limit", "owners", "plain", "since",
        "sticky", "units", "until",
    )  # fmt: skip


class Memory(_AtHand):
    """What is remembered of one experiment: the units seen in this window, the credit of its strict caps, its leases, and the units
    that have drawn in this activation.
    """

    __slots__ = ("activation", "bucket", "budgets", "entry", "forms", "gate", "holding", "incumbent", "sample", "window")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.activation = 0
        self.keyed = blake2b(digest_size=HASH_BYTES, key=entry.salt)  # of which each unit's `unit_hash` is a copy that went on
        self.gate: CapGate | None = None
        self.budgets: BudgetGate | None = None
        self.forms: dict[Key, Form] = {}
        self.drawn_forms: tuple[Form | None, ...] = ()  # of a plain plan, at owner << 2 | met
        self.counting = False
        self.holding = False
        self.units: dict[bytes, int] = {}  # hash of a unit: the arms that it has met, a bit for each
        self.since = self.until = 0  # milliseconds between which bucket and window stay the same
        self.bucket = self.window = -1
        self.limit = 256
        self.drew: set[bytes] = set()
        self.sample = ALL_UNITS
        self.plain = False

    def prepare(self) -> None:
        """Lay out what `Decider.answer` reads of the plan. plain: one table decides, and nothing else has a say."""
        entry = self.entry
        ruled = entry.only is not None or entry.segments or entry.opt_out or entry.target or entry.pins
        self.plain = not ruled and self.gate is None and self.budgets is None
        if self.plain:
            self.sticky, self.first_only = entry.sticky, entry.first_only
            self.ends, self.owners, served = entry.tables[0]
            self.drawn_forms = (None,) * (len(entry.arms) << 2)
            self.drained, self.incumbent = entry.drained, entry.incumbent
            self.drawing = served[entry.incumbent] < SLOTS

    def forget_forms(self) -> None:
        """What was counted with them has been set aside."""
        self.forms.clear()
        self.drawn_forms = (None,) * len(self.drawn_forms)

    def update(self, entry: Entry, restarted: bool) -> None:
        """Another plan. What was counted under the one before has been set aside."""
        self.entry = entry
        self.keyed = blake2b(digest_size=HASH_BYTES, key=entry.salt)
        self.forget_forms()
        self.until = self.since
        if self.activation != entry.activation:
            self.activation = entry.activation
            self.units.clear()
            self.drew.clear()
            self.sample = ALL_UNITS
        if not entry.strict:
            self.gate = None
            return
        caps = [entry.cap_per_candidate] * len(entry.arms)
        if self.gate is None:
            self.gate = CapGate(entry.incumbent, caps, entry.cap, entry.burst, restarted=restarted)
        else:
            self.gate.change(caps, entry.cap)

    def turn(self, milliseconds: int) -> None:
        """Another bucket, or another window: then every unit is new."""
        seconds, entry = milliseconds / 1000, self.entry
        self.bucket = int(seconds // entry.bucket_seconds)
        window = int(seconds // entry.window_seconds)
        if window != self.window:
            self.window = window
            self.units.clear()
        ends = min((self.bucket + 1) * entry.bucket_seconds, (window + 1) * entry.window_seconds)
        self.since, self.until = milliseconds, one(max(milliseconds + 1, int(ends * 1000) - 1))  # rather look once more than too late

    def meet(self, arm: int, unit: bytes) -> int:
        """KNOWN: the unit has met this arm in this window, or is not in the sample. ELSEWHERE: it meets this one for the first time, and
        has met another: it counts for this arm, but its propensity does not explain who has its outcome. NEW: it has met none.
        """
        units, bit = self.units, 1 << arm
        arms = units.get(unit)
        if arms is not None:
            if arms & bit:
                return KNOWN
            units[unit] = arms | bit
            return ELSEWHERE
        if unit[6] >= self.limit:
            return KNOWN
        units[unit] = bit
        if len(units) > MAX_UNITS_REMEMBERED:
            self.limit = max(1, self.limit // 2)
            self.units = {unit: arms for unit, arms in units.items() if unit[6] < self.limit}
        return NEW

    def draws_now(self, unit: bytes) -> bool:
        """Is a unit that never drew in this activation in the sample? Then it has drawn. Who left the sample never comes back to it."""
        if unit[4] << 8 | unit[5] >= self.sample:
            return False
        self.drew.add(unit)
        while len(self.drew) > MAX_DRAWS_REMEMBERED and self.sample > 1:
            self.sample //= 2
            self.drew = {drew for drew in self.drew if drew[4] << 8 | drew[5] < self.sample}
        return True


class Form:
    """What many decisions of one plan have in common: all but unit, time, nonce and id; and how many there were since the last look.

    drawn: those that were draws. front, slot_bytes: parts of their ids. before, after: of a `Decision`, around its id.
    """

    __slots__ = (
        "after", "arm", "before", "count", "drawn", "dressed", "flags", "front", "reason", "segment", "shadow", "slot_bytes", "slots",
    )  # fmt: skip

    arm: int
    slots: int
    reason: Reason
    segment: int
    flags: int
    shadow: int
    count: int
    drawn: int
    front: bytes
    slot_bytes: bytes
    before: tuple[str, float, Reason]
    after: tuple[int, str, str, str, str]
    dressed: Any
