"""A decider's own memory around `choose`: ids minted, exposures counted, units remembered, strict caps held.

In: a row of the snapshot, a unit, the time and a nonce. Out: a `Decision`, and from time to time the exposures counted since the last
call, as plain tuples. The server and the in-process client each hold one; it belongs to one thread. Standard library only.

Within a window a unit counts once for each arm in guardrails, however many requests it makes: twenty requests of one failing user
are one piece of evidence, not twenty. Units are remembered by their 8-byte hash. When too many would have to be remembered, a sample by
hash is: the sample does not depend on outcomes, so what is counted stays fair, only less. An LRU was dropped: a unit that comes back after
its eviction counts again, and heavy users come back most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from allocator.core.assignment import SLOTS
from allocator.core.decision import Decision, Reason, choose
from allocator.core.decision_id import ACTIVATION_BITS, COUNTED, FIRST, GATED, mint
from allocator.core.gate import CapGate
from allocator.core.snapshot import Entry

MAX_UNITS_REMEMBERED = 200_000  # for each experiment; about 20 MB


class Exposure(NamedTuple):
    """Decisions of one arm, segment and bucket since the last `take`. units: those that count in guardrails."""

    uid: bytes
    activation: int
    bucket: int
    arm: int
    segment: int
    count: int
    units: int


class Decider:
    """Decides and remembers. key: the secret of decision ids. restarted: strict caps begin without credit, since a process before
    this one may have spent it.
    """

    def __init__(self, key: bytes, key_number: int = 0, *, restarted: bool = True) -> None:
        self._key = key
        self._key_number = key_number
        self._restarted = restarted
        self._memories: dict[bytes, _Memory] = {}
        self._counts: dict[tuple[bytes, int, int, int, int], list[int]] = {}

    def decide(
        self, entry: Entry, unit: bytes, attributes: Mapping[str, str], now: float, nonce: bytes, *, stale: bool = False
    ) -> Decision:
        """The decision for one unit. now: seconds since the epoch. nonce: 8 bytes that never come again. See `choose`."""
        memory = self._memories.get(entry.uid)
        if memory is None or memory.version != entry.version:
            memory = self._memory(entry)
        choice = choose(entry, unit, attributes, nonce, stale=stale, gate=memory.gate)
        arm = choice.arm
        flags = (entry.activation & 31) << ACTIVATION_BITS
        if choice.counted:
            bucket = int(now // entry.bucket_seconds)
            first = not entry.first_only or memory.first(arm, choice.unit, int(now // entry.window_seconds))
            flags |= (FIRST | COUNTED) if first else COUNTED
            if choice.gated or choice.reason == Reason.STALE:
                flags |= GATED
            key = (entry.uid, entry.activation, bucket, arm, choice.segment)
            counted = self._counts.get(key)
            if counted is None:
                self._counts[key] = [1, int(first)]
            else:
                counted[0] += 1
                counted[1] += first
        shadow = choice.shadow(entry)
        return Decision(
            entry.arms[arm],
            choice.slots / SLOTS,
            choice.reason,
            mint(
                self._key, entry.uid, arm, choice.segment, entry.version, int(now * 1000), choice.slots, nonce, flags, self._key_number
            ),
            entry.version,
            entry.model_uris[arm],
            entry.arms[entry.incumbent],
            entry.arms[shadow] if shadow >= 0 else "",
            entry.segment_names[choice.segment],
        )

    def take(self) -> list[Exposure]:
        """The exposures counted since the last call. They are now the caller's: give back what could not be stored."""
        counts, self._counts = self._counts, {}
        return [Exposure(uid, activation, bucket, arm, segment, *n) for (uid, activation, bucket, arm, segment), n in counts.items()]

    def give_back(self, exposures: list[Exposure]) -> None:
        """Count these again: they could not be stored."""
        for e in exposures:
            counted = self._counts.setdefault((e.uid, e.activation, e.bucket, e.arm, e.segment), [0, 0])
            counted[0] += e.count
            counted[1] += e.units

    def forget(self, live: Mapping[bytes, Entry]) -> None:
        """Drop what is remembered of experiments that are no more."""
        self._memories = {uid: memory for uid, memory in self._memories.items() if uid in live}

    def _memory(self, entry: Entry) -> _Memory:
        memory = self._memories.get(entry.uid)
        if memory is None:
            memory = self._memories[entry.uid] = _Memory()
        memory.update(entry, self._restarted)
        return memory


class _Memory:
    """What is remembered of one experiment: the units seen in this window, and the credit of its strict caps."""

    __slots__ = ("activation", "gate", "limit", "units", "version", "window")

    def __init__(self) -> None:
        self.version = -1
        self.activation = 0
        self.gate: CapGate | None = None
        self.units: set[bytes] = set()
        self.window = -1
        self.limit = 256

    def update(self, entry: Entry, restarted: bool) -> None:
        self.version = entry.version
        if self.activation != entry.activation:
            self.activation = entry.activation
            self.units.clear()
        if not entry.strict:
            self.gate = None
            return
        caps = [entry.cap_per_candidate] * len(entry.arms)
        if self.gate is None:
            self.gate = CapGate(entry.incumbent, caps, entry.cap, entry.burst, restarted=restarted)
        else:
            self.gate.change(caps, entry.cap)

    def first(self, arm: int, unit: bytes, window: int) -> bool:
        """Is this the unit's first decision of this arm in this window, and the unit in the sample?"""
        if window != self.window:
            self.window = window
            self.units.clear()
        if unit[6] >= self.limit:
            return False
        seen = unit + bytes((arm,))
        if seen in self.units:
            return False
        self.units.add(seen)
        if len(self.units) > MAX_UNITS_REMEMBERED:
            self.limit = max(1, self.limit // 2)
            self.units = {seen for seen in self.units if seen[6] < self.limit}
        return True
