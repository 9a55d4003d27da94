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

A draw is four numbers to store for an experiment of four arms, an exposure one. So the draws of an experiment with little traffic wait
for one another, a minute; exposures, on which pending outcomes and guardrails rest, never do. A process that is killed takes the
draws that wait with it, whichever arms they were, so what is left is judged as before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any, NamedTuple

from allocator.core.assignment import SLOTS
from allocator.core.decider_memory import ELSEWHERE, KNOWN, NEW, Form, Key, Memory, of_slots
from allocator.core.decision import Decision, Reason, choose_hashed, foresee, shadow_of
from allocator.core.decision_id import ACTIVATION_BITS, COUNTED, FIRST, GATED, Minter
from allocator.core.gate import BudgetGate
from allocator.core.snapshot import Entry

MAX_FORMS = 1024  # kept of each plan; only strict caps on many candidates make more than a handful
TAKEN_AT_ONCE = 64  # experiments of which one `take` adds up the counts, unless it is told: a decision that comes meanwhile waits
FEW_DRAWS = 16  # of one experiment: they may wait
DRAWS_SECONDS = 60.0  # that they wait; then they come along with what is counted, so a little longer where thousands wait
CELLS = 3  # that were set aside or given back count as one experiment in a `take`: after a store has refused there may be many
ALIGNED = 4  # bits of an address that are zero: left in, they would make the keys of a dict collide
new_tuple = tuple.__new__  # what `_make` calls, and 0.1 us cheaper

Place = tuple[bytes, int, int, int, int]  # the first five fields of an Exposure


class Exposure(NamedTuple):
    """Decisions of one arm, segment and bucket since the last `take`. units: those that count in guardrails.

    drawn: those that were draws from the published weights, and draws of before that waited. expected: what `drawn` should have been,
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


class Columns(NamedTuple):
    """The answers to many units, one value of each list for each unit. shadows: index of the arm to mirror to, -1 for none.

    dressed: what `dress` made of the decisions, and how many there were of each.
    """

    arms: list[int]
    slots: list[int]
    reasons: list[Reason]
    ids: list[str]
    shadows: list[int]
    segment: int
    dressed: list[tuple[Any, int]]


class Decider:
    """Decides and remembers.

    key: the secret of decision ids. restarted: strict caps begin without credit, since a process before this one may have spent it.
    life: differs from that of every other decider, and is larger than those of earlier ones. `low` is called, in the decider's thread,
    when a lease of a budget runs low; set it before the first decision. `dress` makes, of an experiment's name and a decision without its
    id, the `dressed` of a form: it is called once for many decisions alike; set it before the first decision.
    """

    def __init__(self, key: bytes, key_number: int = 0, *, restarted: bool = True, life: int = 0) -> None:
        self._minter = Minter(key, key_number)
        self._restarted = restarted
        self._life = life
        self._memories: dict[bytes, Memory] = {}
        self._seats: dict[int, Memory] = {}  # the same by the address of their entry, which each keeps alive: to be found in fewer steps
        self._budgets: dict[bytes, BudgetGate] = {}
        self._counting: deque[Memory] = deque()  # those with counts
        self._counts: dict[Place, list[int]] = {}  # set aside, of plans that have changed
        self._drawn: deque[_Draws] = deque()  # the same
        self._holding: deque[tuple[float, Memory]] = deque()  # those whose draws wait, and until when
        self._returned: dict[Place, list[int]] = {}
        self.low: Callable[[], None] = lambda: None
        self.dress: Callable[[str, Decision], Any] = lambda _name, _decision: None

    def decide(
        self, entry: Entry, unit: bytes, attributes: Mapping[str, str], now: float, nonce: bytes, *, stale: bool = False
    ) -> Decision:
        """The decision for one unit. now: seconds since the epoch. nonce: 8 bytes that never come again. See `choose`."""
        form, token = self.answer(entry, unit, attributes, now, nonce, stale)
        return new_tuple(Decision, (*form.before, token.decode("ascii"), *form.after))

    def answer(
        self, entry: Entry, unit: bytes, attributes: Mapping[str, str], now: float, nonce: bytes, stale: bool = False
    ) -> tuple[Form, bytes]:
        """As `decide`: what the decision has in common with others, and its id in ASCII.

        Where one table decides and nothing else has a say, as in most experiments, all is done here, for a third less than by `_count`.
        """
        milliseconds = int(now * 1000)
        memory = self._seats.get(id(entry) >> ALIGNED)
        if memory is None or not memory.since <= milliseconds < memory.until:
            memory = self._memory(entry, milliseconds)
        if stale or not memory.plain:
            form = self._count(memory, unit, attributes, nonce, stale)
        else:
            hashing = memory.keyed.copy()
            hashing.update(unit)
            hashed = draw = hashing.digest()
            if not memory.sticky:
                hashing = memory.keyed.copy()
                hashing.update(nonce)
                draw = hashing.digest()
            owner = memory.owners[bisect_right(memory.ends, draw[0] << 8 | draw[1])]
            arm = owner
            if memory.drained and memory.drained >> owner & 1:
                arm = memory.incumbent
            met = memory.meet(arm, hashed) if memory.first_only else NEW
            form = memory.drawn_forms[owner << 2 | met]
            if form is None:
                form = self._drawn_form(memory, owner, met, 0)
            form.count += 1
            if not memory.counting:
                memory.counting = True
                self._counting.append(memory)
            if memory.drawing and (not memory.sticky or (hashed not in memory.drew and memory.draws_now(hashed))):
                form.drawn += 1
        return form, self._minter.id(form.front, milliseconds, form.slot_bytes, nonce)

    def decide_batch(
        self, entry: Entry, units: Sequence[bytes], attributes: Mapping[str, str], now: float, nonces: bytes, *, stale: bool = False
    ) -> Columns:
        """The same for many units, in columns. nonces: 8 bytes for each unit.

        Decides, counts and remembers as one `decide` after another would.
        """
        milliseconds = int(now * 1000)
        segment, ruled = foresee(entry, attributes, stale)
        if not units:
            return Columns([], [], [], [], [], segment, [])
        memory = self._memory(entry, milliseconds)
        told = entry.only is None and ruled is None and not entry.pins and memory.gate is None and memory.budgets is None
        forms, bodies = (self._draw_batch if told else self._choose_batch)(memory, units, attributes, milliseconds, nonces, stale, segment)
        return Columns(
            [form.arm for form in forms],
            [form.slots for form in forms],
            [form.reason for form in forms],
            self._minter.ids(bodies),
            [form.shadow for form in forms],
            segment,
            [(form.dressed, count) for form, count in Counter(forms).items()],
        )

    def _count(self, memory: Memory, unit: bytes, attributes: Mapping[str, str], nonce: bytes, stale: bool) -> Form:
        """Choose for one unit, and count and remember it."""
        entry = memory.entry
        hashing = memory.keyed.copy()
        hashing.update(unit)
        hashed = hashing.digest()
        arm, slots, reason, segment, teaches, gated, _, candidate_slots = choose_hashed(
            entry, unit, hashed, attributes, nonce, stale, memory.gate, memory.budgets
        )
        flags = 0
        if teaches:
            met = memory.meet(arm, hashed) if entry.first_only else NEW
            flags = COUNTED if met == KNOWN else COUNTED | FIRST
            if met == ELSEWHERE or gated or stale:
                flags |= GATED
        key = (arm, slots, reason, segment, flags, shadow_of(entry, reason, hashed) if entry.shadow_arms else -1)
        form = memory.forms.get(key)
        if form is None:
            form = self._form(memory, key)
        form.count += 1
        if not memory.counting:
            memory.counting = True
            self._counting.append(memory)
        if candidate_slots and (not entry.sticky or (hashed not in memory.drew and memory.draws_now(hashed))) and not gated:
            form.drawn += 1  # a gated one was no draw, and its unit draws no more: the gate had a say in which units are left
        return form

    def _draw_batch(
        self,
        memory: Memory,
        units: Sequence[bytes],
        attributes: Mapping[str, str],
        milliseconds: int,
        nonces: bytes,
        stale: bool,
        segment: int,
    ) -> tuple[list[Form], list[bytes]]:
        """Where the tables decide and nothing holds them up: `_count` for many, with everything that they share worked out once."""
        del attributes, stale
        entry = memory.entry
        ends, owners, served = entry.tables[segment if len(entry.tables) > 1 else 0]
        time = milliseconds.to_bytes(6, "big")
        keyed, meet, drew, draws_now = memory.keyed.copy, memory.meet, memory.drew, memory.draws_now
        sticky, drawing, first_only = entry.sticky, served[entry.incumbent] < SLOTS, entry.first_only
        met = NEW
        found: dict[int, tuple[Form, bytes]] = {}
        forms, bodies = [], []
        if not memory.counting:
            memory.counting = True
            self._counting.append(memory)
        for index, unit in enumerate(units):
            nonce = nonces[8 * index : 8 * index + 8]
            hashing = keyed()
            hashing.update(unit)
            hashed = draw = hashing.digest()
            if not sticky:
                hashing = keyed()
                hashing.update(nonce)
                draw = hashing.digest()
            owner = owners[bisect_right(ends, draw[0] << 8 | draw[1])]
            arm = entry.incumbent if entry.drained >> owner & 1 else owner
            if first_only:
                met = meet(arm, hashed)
            shared = found.get(owner << 2 | met)
            if shared is None:
                form = self._drawn_form(memory, owner, met, segment)
                shared = found[owner << 2 | met] = form, form.front + time + form.slot_bytes
            form, front = shared
            form.count += 1
            if drawing and (not sticky or (hashed not in drew and draws_now(hashed))):
                form.drawn += 1
                drew = memory.drew
            forms.append(form)
            bodies.append(front + nonce)
        return forms, bodies

    def _choose_batch(
        self,
        memory: Memory,
        units: Sequence[bytes],
        attributes: Mapping[str, str],
        milliseconds: int,
        nonces: bytes,
        stale: bool,
        segment: int,
    ) -> tuple[list[Form], list[bytes]]:
        """One after another: pins, gates, leases and rules that hold for everyone."""
        del segment
        time = milliseconds.to_bytes(6, "big")
        forms, bodies = [], []
        for index, unit in enumerate(units):
            nonce = nonces[8 * index : 8 * index + 8]
            form = self._count(memory, unit, attributes, nonce, stale)
            forms.append(form)
            bodies.append(form.front + time + form.slot_bytes + nonce)
        return forms, bodies

    def _drawn_form(self, memory: Memory, owner: int, met: int, segment: int) -> Form:
        """The form of decisions that fell on a slot of `owner`."""
        entry = memory.entry
        arm = entry.incumbent if entry.drained >> owner & 1 else owner
        served = entry.tables[segment if len(entry.tables) > 1 else 0].served
        flags = COUNTED if met == KNOWN else COUNTED | FIRST
        flags |= GATED if met == ELSEWHERE else 0
        key = (arm, served[arm], Reason.ALLOCATED if arm == owner else Reason.DRAINED, segment, flags, -1)
        form = memory.forms.get(key) or self._form(memory, key)
        if memory.plain:
            place = owner << 2 | met
            memory.drawn_forms = (*memory.drawn_forms[:place], form, *memory.drawn_forms[place + 1 :])
        return form

    def _form(self, memory: Memory, key: Key) -> Form:
        """What decisions of this kind have in common, made once for a plan."""
        entry = memory.entry
        arm, slots, reason, segment, flags, shadow = key
        form = Form()
        form.arm, form.slots, form.reason, form.segment, form.flags, form.shadow = key
        form.count = form.drawn = 0
        form.front = self._minter.front(entry.uid, arm, segment, entry.version, flags | (entry.activation & 31) << ACTIVATION_BITS)
        form.slot_bytes, propensity = of_slots(slots)
        form.before = (entry.arms[arm], propensity, reason)
        form.after = (
            entry.version,
            entry.model_uris[arm],
            entry.arms[entry.incumbent],
            entry.arms[shadow] if shadow >= 0 else "",
            entry.segment_names[segment],
        )
        form.dressed = self.dress(entry.experiment, Decision._make((*form.before, "", *form.after)))
        memory.forms[key] = form
        return form

    def budget(self, uid: bytes) -> BudgetGate:
        """The leases of an experiment, for whoever fills them. May be called from any thread."""
        return self._budgets.setdefault(uid, BudgetGate(lambda: self.low()))

    def leasing(self) -> list[bytes]:
        """The experiments of which this decider needs leases. May be called from any thread."""
        return list(self._budgets)

    def rekey(self, key: bytes, key_number: int) -> None:
        """Make the ids of later decisions with another key."""
        self._minter = Minter(key, key_number)
        for memory in self._memories.values():  # what decisions have in common holds the number
            self._close(memory, self._counts, self._drawn)
            memory.forget_forms()

    def waiting(self, now: float | None = None) -> int:
        """For how many experiments `take` should be called now. What was set aside or given back counts as some, by its size.

        Draws that need not wait any longer come along with what was counted, not all at once: thousands may have begun to wait together.
        """
        due = len(self._holding)
        if now is not None:
            along = max(TAKEN_AT_ONCE, 2 * len(self._counting))
            due = sum(1 for _ in takewhile(lambda held: held[0] <= now, islice(self._holding, along)))
        return len(self._counting) + due + self._set_aside()

    def take(self, now: float | None = None, most: int = TAKEN_AT_ONCE) -> list[Exposure]:
        """The exposures counted since the last call. They are now the caller's: give back what could not be stored.

        now: seconds of a clock that never goes back. With it, an experiment's draws wait while there are few of them; without it, all that
        was counted is handed over, as at the end. most: experiments; what was set aside or given back takes the place of half of them where
        there is too little room. The rest comes with later calls. Empty when there is none left.
        """
        back = min(self._set_aside(), max(1, most // 2, most - len(self._counting)))
        left, cells = most - back, CELLS * back
        counts: dict[Place, list[int]] = {}
        draws: list[_Draws] = []
        while self._counting and (left > 0 or not (back or counts or draws)):
            memory = self._counting.popleft()
            if self._close(memory, counts, draws, hold=now is not None) and not memory.holding:
                memory.holding = True
                self._holding.append((now + DRAWS_SECONDS, memory))
            memory.counting = False
            left -= 1
        while self._holding and (now is None or self._holding[0][0] <= now) and (left > 0 or not (back or counts or draws)):
            memory = self._holding.popleft()[1]
            self._close(memory, counts, draws)
            memory.holding = False
            left -= 1
        found = {key: [*n, 0, 0, 0, 0] for key, n in counts.items()}
        for key in list(islice(self._counts, cells)):
            _merge(found, key, [*self._counts.pop(key), 0, 0, 0, 0])
            cells -= 1
        while self._drawn and cells > 0:
            draws.append(self._drawn.popleft())
            cells -= 1
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
        for key in list(islice(self._returned, cells)):
            _merge(found, key, self._returned.pop(key))
        return [Exposure(*key, *n) for key, n in found.items()]

    def _set_aside(self) -> int:
        """What was given back, and what was counted under plans that have changed: for how many experiments it counts."""
        return -(-(len(self._counts) + len(self._drawn) + len(self._returned)) // CELLS)

    def give_back(self, exposures: list[Exposure]) -> None:
        """Count these again: they could not be stored. What belongs to one cell is one from now on, however often it comes back."""
        for exposure in exposures:
            _merge(self._returned, exposure[:5], exposure[5:])

    def _memory(self, entry: Entry, milliseconds: int) -> Memory:
        """What is remembered of an experiment, brought up to this plan and this time."""
        memory = self._memories.get(entry.uid)
        first = memory is None
        if memory is None:
            memory = self._memories[entry.uid] = Memory(entry)
        if first or memory.entry is not entry:  # a version may come again with other weights, when the store was restored from a backup
            self._close(memory, self._counts, self._drawn)
            self._seats.pop(id(memory.entry) >> ALIGNED, None)
            memory.update(entry, self._restarted)
            self._seats[id(entry) >> ALIGNED] = memory
            memory.budgets = None
            if entry.leased_requests or entry.leased_units:
                memory.budgets = self.budget(entry.uid)
                memory.budgets.change(
                    len(entry.arms), entry.incumbent, entry.activation, requests=entry.leased_requests, units=entry.leased_units
                )
            memory.prepare()
        if not memory.since <= milliseconds < memory.until:
            # draws are judged over all buckets: those that wait go into the one in which their wait ends
            self._close(memory, self._counts, self._drawn, hold=True)
            memory.turn(milliseconds)
        return memory

    def _close(self, memory: Memory, counts: dict[Place, list[int]], draws: list[_Draws] | deque[_Draws], *, hold: bool = False) -> bool:
        """Add to `counts` and `draws` what was counted under this plan in this bucket: another begins, or it is stored. hold: all but the
        draws, while they are few. Returns whether any were left.
        """
        entry, drawn = memory.entry, {}
        waiting = sum(form.drawn for form in memory.forms.values()) if hold else 0
        hold = hold and waiting < FEW_DRAWS and len(memory.forms) <= MAX_FORMS
        for form in memory.forms.values():
            if form.count and form.flags & COUNTED:
                counted = counts.setdefault((entry.uid, entry.activation, memory.bucket, form.arm, form.segment), [0, 0])
                counted[0] += form.count
                counted[1] += form.count if form.flags & FIRST else 0
            form.count = 0
            if form.drawn and not hold:
                drawn.setdefault(form.segment, [0] * len(entry.arms))[form.arm] += form.drawn
                form.drawn = 0
        if len(memory.forms) > MAX_FORMS:
            memory.forget_forms()
        draws += [_Draws(entry, memory.bucket, segment, arms) for segment, arms in drawn.items()]
        return hold and waiting > 0


def _merge(into: dict[Place, list[int]], key: Place, numbers: Sequence[int]) -> None:
    """Add the numbers of an exposure. Its life is that of all draws there; without draws it is 0."""
    have = into.get(key)
    if have is None:
        into[key] = list(numbers)
    else:
        *added, life = numbers
        for index, number in enumerate(added):
            have[index] += number
        have[5] = max(have[5], life)


class _Draws(NamedTuple):
    """How often each arm came, in draws from one plan's weights."""

    entry: Entry
    bucket: int
    segment: int
    drawn: list[int]
