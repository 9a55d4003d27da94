"""The chances that every arm had in a decision, after caps, gates and freezes: what off-policy estimates divide by.

In: the snapshot's entry and what the decision's id and reason say. Out: slots of each arm, or None where they cannot be told. The rule is
that of `core/decision.choose`: what a closed gate refuses its candidate is added to the incumbent. Which gates were closed is not in an
id, but what was refused altogether is, when the incumbent served: it names the candidates unless two sets of them have the same share.
When a candidate served while another gate was closed it cannot be told, and None is the honest answer. So of rows behind gates it is the
arm that says which ones can be told: to use those alone would choose by what was drawn. `gates_known` says where that cannot happen.
"""

from __future__ import annotations

from itertools import combinations

from allocator.core.assignment import SLOTS
from allocator.core.decision import Reason
from allocator.core.snapshot import Entry

MOST_CANDIDATES = 8  # whose 255 sets are gone through
DRAWN = frozenset({Reason.ALLOCATED, Reason.DRAINED, Reason.CAPPED})  # reasons of decisions that the tables made


def gates_known(entry: Entry, segment: int) -> bool:
    """Can `chances` tell them whichever arm serves? Yes without strict caps and budgets, and where one candidate alone has a share."""
    if entry.only is not None or not (entry.strict or entry.leased_requests or entry.leased_units):
        return True
    return len(_candidates(entry, _served(entry, segment))) <= 1


def chances(entry: Entry, segment: int, arm: int, slots: int, reason: int, gated: bool) -> tuple[int, ...] | None:
    """Slots of each arm in this decision; they sum to 65,536. None: a gate was closed, and it cannot be told whose."""
    if entry.only is not None or reason not in DRAWN:
        return tuple(SLOTS * (index == arm) for index in range(len(entry.arms)))
    served = _served(entry, segment)
    if not gated or not (entry.strict or entry.leased_requests or entry.leased_units):
        return served
    candidates = _candidates(entry, served)
    if arm != entry.incumbent:
        return served if candidates == [arm] else None
    refused = slots - served[arm]
    if not refused:
        return served
    if len(candidates) > MOST_CANDIDATES:
        return None
    sizes = range(1, len(candidates) + 1)
    sets = [closed for size in sizes for closed in combinations(candidates, size) if sum(served[i] for i in closed) == refused]
    if len(sets) != 1:
        return None
    return tuple(slots if index == arm else share * (index not in sets[0]) for index, share in enumerate(served))


def _served(entry: Entry, segment: int) -> tuple[int, ...]:
    """Published slots of each arm; an arm that joined after its table was made has none."""
    return (*entry.tables[segment if len(entry.tables) > 1 else 0].served, *(0,) * len(entry.arms))[: len(entry.arms)]


def _candidates(entry: Entry, served: tuple[int, ...]) -> list[int]:
    return [index for index, share in enumerate(served) if share and index != entry.incumbent]
