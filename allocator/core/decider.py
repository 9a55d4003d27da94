"""A decider's own memory around `choose`: ids minted, exposures counted, units remembered, strict caps and budgets held.

In: a row of the snapshot, a unit, the time and a nonce. Out: a `Decision`, and from time to time the exposures counted since the last
call, as plain tuples. The server and the in-process client each hold one; it belongs to one thread. Standard library only.

Within a window a unit counts once for each arm in guardrails, however many requests it makes: twenty requests of one failing user
are one piece of evidence, not twenty. Units are remembered by their 8-byte hash. When too many would have to be remembered, a sample by
hash is: the sample does not depend on outcomes, so what is counted stays fair, only less. An LRU was dropped: a unit that comes back after
its eviction counts again, and heavy users come back most.

Draws are counted beside exposures, for the check that what is served agrees with the published weights: how often each arm came, and
how often it should have. Where assignment is sticky a unit draws once and then returns to its slot, so only its first decision in an
activation is a draw. Nobody remembers units across processes, so draws carry the decider's `life`: each life is judged by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from allocator.core.assignment import SLOTS
from allocator.core.decision import Decision, Reason, choose
from allocator.core.decision_id import ACTIVATION_BITS, COUNTED, FIRST, GATED, mint
from allocator.core.gate import BudgetGate, CapGate
from allocator.core.snapshot import Entry

MAX_UNITS_REMEMBERED = 200_000  # for each experiment; about 20 MB
MAX_DRAWS_REMEMBERED = 65_536  # the same, about 7 MB
ALL_UNITS = 1 << 16
KNOWN, ELSEWHERE, NEW = range(3)


class Exposure(NamedTuple):
    """Decisions of one arm, segment and bucket since the last `take`. units: those that count in guardrails.

    drawn: those that were draws from the published weights. expected: what `drawn` should have been,
    x 65,536; variance: its variance, x 65,536 squared. life: of the decider, 0 where every decision is a draw of its own.
    """

    uid: bytes
    activation: int
    bucket: int
    arm: int
    segment: int
    count: int
    units: int
    drawn: int = 0
    expected: int = 0
    variance: int = 0
    life: int = 0


class Decider:
    """Decides and remembers.

    key: the secret of decision ids. restarted: strict caps begin without credit, since a process before this one may have spent it.
    life: differs from that of every other decider, and is larger than those of earlier ones. `low` is called, in the decider's thread,
    when a lease of a budget runs low; set it before the first decision.
    """

    def __init__(self, key: bytes, key_number: int = 0, *, restarted: bool = True, life: int = 0) -> None:
        self._key = key
        self._key_number = key_number
        self._restarted = restarted
        self._life = life
        self._memories: dict[bytes, _Memory] = {}
        self._budgets: dict[bytes, BudgetGate] = {}
        self._counts: dict[tuple[bytes, int, int, int, int], list[int]] = {}
        self._drawing: dict[bytes, _Memory] = {}  # those with draws that are not in `_drawn` yet
        self._drawn: list[_Draws] = []
        self._returned: list[Exposure] = []
        self.low: Callable[[], None] = lambda: None

    def decide(
        self, entry: Entry, unit: bytes, attributes: Mapping[str, str], now: float, nonce: bytes, *, stale: bool = False
    ) -> Decision:
        """The decision for one unit. now: seconds since the epoch. nonce: 8 bytes that never come again. See `choose`."""
        memory = self._memories.get(entry.uid)
        if memory is None or memory.version != entry.version:
            memory = self._memory(entry)
        choice = choose(entry, unit, attributes, nonce, stale=stale, gate=memory.gate, budgets=memory.budgets)
        arm, slots, reason, segment, teaches, gated, hashed, candidate_slots = choice
        flags = (entry.activation & 31) << ACTIVATION_BITS
        if teaches:
            bucket = int(now // entry.bucket_seconds)
            met = memory.meet(arm, hashed, int(now // entry.window_seconds)) if entry.first_only else NEW
            first = met != KNOWN
            flags |= (FIRST | COUNTED) if first else COUNTED
            if met == ELSEWHERE or gated or reason == Reason.STALE:
                flags |= GATED
            key = (entry.uid, entry.activation, bucket, arm, segment)
            counted = self._counts.get(key)
            if counted is None:
                self._counts[key] = [1, int(first)]
            else:
                counted[0] += 1
                counted[1] += first
            if candidate_slots and (not entry.sticky or (hashed not in memory.drew and memory.draws_now(hashed))) and not gated:
                drawn = memory.draws.get((bucket, segment))
                if drawn is None:
                    drawn = memory.draws[bucket, segment] = [0] * len(entry.arms)
                    self._drawing[entry.uid] = memory
                drawn[arm] += 1
        shadow = choice.shadow(entry)
        return Decision(
            entry.arms[arm],
            slots / SLOTS,
            reason,
            mint(self._key, entry.uid, arm, segment, entry.version, int(now * 1000), slots, nonce, flags, self._key_number),
            entry.version,
            entry.model_uris[arm],
            entry.arms[entry.incumbent],
            entry.arms[shadow] if shadow >= 0 else "",
            entry.segment_names[segment],
        )

    def budget(self, uid: bytes) -> BudgetGate:
        """The leases of an experiment, for whoever fills them. May be called from any thread."""
        return self._budgets.setdefault(uid, BudgetGate(lambda: self.low()))

    def take(self) -> list[Exposure]:
        """The exposures counted since the last call. They are now the caller's: give back what could not be stored."""
        counts, self._counts = self._counts, {}
        for memory in self._drawing.values():
            self._close_draws(memory)
        draws, self._drawn, self._drawing = self._drawn, [], {}
        returned, self._returned = self._returned, []
        found = {key: [*n, 0, 0, 0, 0] for key, n in counts.items()}
        for entry, bucket, segment, drawn in draws:
            served = entry.tables[segment if len(entry.tables) > 1 else 0].served
            total = sum(drawn)
            for arm, share in enumerate(served):
                if share or drawn[arm]:
                    into = found.setdefault((entry.uid, entry.activation, bucket, arm, segment), [0] * 6)
                    into[2] += drawn[arm]
                    into[3] += total * share
                    into[4] += total * share * (SLOTS - share)
                    into[5] = self._life if entry.sticky else 0
        return [*returned, *(Exposure(*key, *n) for key, n in found.items())]

    def give_back(self, exposures: list[Exposure]) -> None:
        """Count these again: they could not be stored."""
        self._returned += exposures

    def _close_draws(self, memory: _Memory) -> None:
        """Set aside what was drawn from the weights that `memory` knows: others follow, or it is stored."""
        self._drawn += [_Draws(memory.entry, bucket, segment, drawn) for (bucket, segment), drawn in memory.draws.items()]
        memory.draws = {}

    def _memory(self, entry: Entry) -> _Memory:
        memory = self._memories.get(entry.uid)
        if memory is None:
            memory = self._memories[entry.uid] = _Memory(entry)
        self._close_draws(memory)
        memory.update(entry, self._restarted)
        memory.budgets = None
        if entry.leased_requests or entry.leased_units:
            memory.budgets = self.budget(entry.uid)
            memory.budgets.change(
                len(entry.arms), entry.incumbent, entry.activation, requests=entry.leased_requests, units=entry.leased_units
            )
        return memory


class _Draws(NamedTuple):
    """How often each arm came, in draws from one plan's weights."""

    entry: Entry
    bucket: int
    segment: int
    drawn: list[int]


class _Memory:
    """What is remembered of one experiment: the units seen in this window, the credit of its strict caps, its leases, and the units
    that have drawn in this activation.
    """

    __slots__ = ("activation", "budgets", "draws", "drew", "entry", "gate", "limit", "sample", "units", "version", "window")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.version = -1
        self.activation = 0
        self.gate: CapGate | None = None
        self.budgets: BudgetGate | None = None
        self.units: set[bytes] = set()
        self.window = -1
        self.limit = 256
        self.drew: set[bytes] = set()
        self.sample = ALL_UNITS
        self.draws: dict[tuple[int, int], list[int]] = {}

    def update(self, entry: Entry, restarted: bool) -> None:
        self.entry = entry
        self.version = entry.version
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

    def meet(self, arm: int, unit: bytes, window: int) -> int:
        """KNOWN: the unit has met this arm in this window, or is not in the sample. ELSEWHERE: it meets this one for the first time, and
        has met another: it counts for this arm, but its propensity does not explain who has its outcome. NEW: it has met none.
        """
        if window != self.window:
            self.window = window
            self.units.clear()
        if unit[6] >= self.limit:
            return KNOWN
        seen = unit + bytes((arm,))
        if seen in self.units:
            return KNOWN
        met = ELSEWHERE if unit in self.units else NEW
        self.units.add(unit)
        self.units.add(seen)
        if len(self.units) > 2 * MAX_UNITS_REMEMBERED:
            self.limit = max(1, self.limit // 2)
            self.units = {seen for seen in self.units if seen[6] < self.limit}
        return met

    def draws_now(self, unit: bytes) -> bool:
        """Is a unit that never drew in this activation in the sample? Then it has drawn. Who left the sample never comes back to it."""
        if unit[4] << 8 | unit[5] >= self.sample:
            return False
        self.drew.add(unit)
        while len(self.drew) > MAX_DRAWS_REMEMBERED and self.sample > 1:
            self.sample //= 2
            self.drew = {drew for drew in self.drew if drew[4] << 8 | drew[5] < self.sample}
        return True
