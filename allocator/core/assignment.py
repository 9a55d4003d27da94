"""Who is served by which arm: salt and unit → point; point → arm and propensity; new weights → new owners of the slots.

In: an experiment's salt, a unit, the slots that each arm may have. Out: a point among 65,536, the layout (which arm
owns which slots), the arm at a point and its propensity as a whole number of slots. Standard library only: deciders
live in other people's processes.

The idea. A keyed hash throws every unit onto one of 65,536 slots, and arms own slots. The chance that an unseen unit
meets an arm is then the arm's slots / 65,536, exactly, whichever slots they are. So a new plan may choose *which* slots
change hands as it likes, and `move` chooses twice: every arm keeps what it may keep, hence the moved share is the total
variation distance between the two plans, the least possible; and slots change hands at borders that exist already,
hence the layout stays a short list of runs. A run is cut only between two arms that share no border, and the cut gives
them one.

Dropped: releasing the slots with the largest keyed rank (scatters the slots; the layout would be a table of 65,536
owners in every snapshot); contiguous ranges in the order of the arms (a change of the first arm pushes all others
along); weighted rendezvous hashing (a hash per arm for each decision, and it moves up to twice as many units).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

from allocator.errors import InvalidArgument

SLOTS = 65_536
HASH_BYTES = 8
MAX_SALT_BYTES = 64  # the longest key that blake2b takes


@dataclass(frozen=True, slots=True)
class Layout:
    """The owner of every slot, run by run: run k is the slots from ends[k-1] (0 for the first) to ends[k] - 1.

    ends: rising, in [1, 65,536], the last is 65,536. owners: arm index of each run, never the same twice in a row.
    Raises InvalidArgument otherwise: a layout may have come over the wire.
    """

    ends: tuple[int, ...]
    owners: tuple[int, ...]

    def __post_init__(self) -> None:
        ends, owners = self.ends, self.owners
        if not ends or ends[-1] != SLOTS or ends[0] < 1 or any(a >= b for a, b in pairwise(ends)):
            raise InvalidArgument.of_field("layout.ends", f"got {_brief(ends)}; rising ends of runs are allowed, the last of them {SLOTS}")
        if len(owners) != len(ends) or min(owners) < 0 or any(a == b for a, b in pairwise(owners)):
            raise InvalidArgument.of_field(
                "layout.owners",
                f"got {_brief(owners)}; an arm index for each of {len(ends)} runs is allowed, no two alike in a row",
            )


def unit_hash(salt: bytes, unit: bytes) -> bytes:
    """Keyed 64-bit blake2b of the unit: 8 bytes.

    salt: 1 to 64 bytes, secret to the experiment, so that nobody can choose a unit for its slot and two experiments
    split the same units independently. Raises InvalidArgument for any other salt, and for what is not bytes. Source:
    RFC 7693.
    """
    try:
        if salt:
            return blake2b(unit, digest_size=HASH_BYTES, key=salt).digest()
    except (TypeError, ValueError):
        pass
    # Neither value is shown: the salt is a secret, the unit may be a person.
    if isinstance(salt, bytes) and 0 < len(salt) <= MAX_SALT_BYTES:
        raise InvalidArgument.of_field("unit", f"got {type(unit).__name__}; bytes are allowed")
    got = f"{len(salt)} bytes" if isinstance(salt, bytes) else type(salt).__name__
    raise InvalidArgument.of_field("salt", f"got {got}; 1 to {MAX_SALT_BYTES} bytes are allowed")


def point(salt: bytes, unit: bytes) -> int:
    """The slot that a unit falls on, in [0, 65,536): the first two bytes of `unit_hash`, big-endian. Raises as that."""
    digest = unit_hash(salt, unit)
    return digest[0] << 8 | digest[1]


def owner(layout: Layout, point: int) -> int:
    """The arm that owns the slot `point`, in [0, 65,536). Raises InvalidArgument outside."""
    if not 0 <= point < SLOTS:
        raise InvalidArgument.of_field("point", f"got {point}; a slot from 0 to {SLOTS - 1} is allowed")
    return layout.owners[bisect_right(layout.ends, point)]


def pick(layout: Layout, slots: Sequence[int], point: int) -> tuple[int, int]:
    """The arm at `point` and the slots it has: its propensity is that number / 65,536, without rounding.

    slots: `counts` of the layout, kept beside it so that a decision need not count. Raises as `owner` does.
    """
    arm = owner(layout, point)
    return arm, slots[arm]


def counts(layout: Layout, arms: int) -> tuple[int, ...]:
    """How many slots each of `arms` arms owns; sums to 65,536. Raises InvalidArgument when a further arm owns one."""
    last = max(layout.owners)
    if last >= arms:
        raise InvalidArgument.of_field("arms", f"got {arms}; at least {last + 1} are needed, so many the layout names")
    owned = [0] * arms
    start = 0
    for end, arm in zip(layout.ends, layout.owners, strict=True):
        owned[arm] += end - start
        start = end
    return tuple(owned)


def first_layout(slots: Sequence[int]) -> Layout:
    """One run for each arm that has slots, in the order of the arms.

    slots: whole numbers of at least 0, one for each arm, that sum to 65,536. Raises InvalidArgument otherwise.
    """
    _check_slots(slots)
    return _layout([[arm, length] for arm, length in enumerate(slots) if length])


def move(layout: Layout, slots: Sequence[int]) -> Layout:
    """The layout in which arm i owns slots[i] slots, with the fewest slots changing hands.

    slots: as for `first_layout`; longer than before when arms joined (an arm that left keeps its index and has 0). The
    number of moved slots is half the sum of |slots[i] - counts[i]|; when it is 0, the same object comes back. The same
    input gives the same layout everywhere. Raises InvalidArgument.
    """
    _check_slots(slots)
    lack = [after - before for before, after in zip(counts(layout, len(slots)), slots, strict=True)]
    if not any(lack):
        return layout
    runs = []
    start = 0
    for end, arm in zip(layout.ends, layout.owners, strict=True):
        runs.append([arm, end - start])
        start = end
    _shift_borders(runs, lack)
    while any(lack):
        _open_border(runs, lack)
        _shift_borders(runs, lack)
    return _layout(runs)


def _shift_borders(runs: list[list[int]], lack: list[int]) -> None:
    """Let arms that lack slots take them from neighbours that have too many, until no such border is left; edits both
    lists.

    runs: [arm, length]. lack: slots still missing to each arm, negative where it has too many. The shortest run gives
    first: a run given away whole is a run less, and where it stood between two runs of one arm it is two less.
    """
    while True:
        short = -1
        for index, (arm, length) in enumerate(runs):
            shorter = lack[arm] < 0 and (short < 0 or length < runs[short][1])
            if shorter and any(lack[runs[side][0]] > 0 for side in _sides(runs, index)):
                short = index
        if short < 0:
            return
        giver = runs[short]
        for side in _sides(runs, short):
            taker = runs[side]
            given = min(lack[taker[0]], -lack[giver[0]], giver[1])
            if given > 0:
                giver[1] -= given
                taker[1] += given
                lack[giver[0]] += given
                lack[taker[0]] -= given
        if giver[1] == 0:
            del runs[short]
            if 0 < short < len(runs) and runs[short - 1][0] == runs[short][0]:
                runs[short - 1][1] += runs[short][1]
                del runs[short]


def _open_border(runs: list[list[int]], lack: list[int]) -> None:
    """Give the arm that lacks most its first slots from an arm with no border to it; edits both lists.

    The longest run that it may have whole, so that no run is added; else the end of the longest run there is, beside
    another arm that has too many, if there is one, so that the next slots can come over that border.
    """
    taker = max(range(len(lack)), key=lambda arm: lack[arm])
    givers = [index for index, (arm, _) in enumerate(runs) if lack[arm] < 0]
    whole = [index for index in givers if runs[index][1] <= min(lack[taker], -lack[runs[index][0]])]
    index = max(whole or givers, key=lambda index: runs[index][1])
    giver = runs[index]
    given = min(lack[taker], -lack[giver[0]], giver[1])
    lack[giver[0]] += given
    lack[taker] -= given
    if given == giver[1]:
        giver[0] = taker
        return
    giver[1] -= given
    generous = [side for side in _sides(runs, index) if lack[runs[side][0]] < 0]
    runs.insert(index if generous and generous[0] < index else index + 1, [taker, given])


def _sides(runs: list[list[int]], index: int) -> tuple[int, ...]:
    if index == 0:
        return (1,) if len(runs) > 1 else ()
    return (index - 1, index + 1) if index + 1 < len(runs) else (index - 1,)


def _layout(runs: list[list[int]]) -> Layout:
    ends = []
    end = 0
    for _, length in runs:
        end += length
        ends.append(end)
    return Layout(tuple(ends), tuple(arm for arm, _ in runs))


def _check_slots(slots: Sequence[int]) -> None:
    if any(type(count) is not int or count < 0 for count in slots) or sum(slots) != SLOTS:
        raise InvalidArgument.of_field("slots", f"got {_brief(slots)}; whole numbers of at least 0 that sum to {SLOTS} are allowed")


def _brief(values: Sequence[object]) -> str:
    shown = ", ".join(repr(value) for value in values[:8])
    return f"[{shown}, … {len(values)} in all]" if len(values) > 8 else f"[{shown}]"
