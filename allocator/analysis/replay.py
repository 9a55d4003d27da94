"""Why this decision: the same arm and propensity again, from the snapshot that made it, one step after the other.

In: the snapshot's entry as the decision log has it (no salt, pinned units by their hash), what the decision's id says, and what is known
of the request: the hash of its unit, the slot that was drawn, its attributes or the reason that was logged. Out: the arm and the
propensity that follow, each step in a sentence, and whether they are those of the id.

The rules are those of `core/decision.choose`, told instead of carried out: that one needs the salt and the unit, which a log must not have.
A test holds the two together over random plans. What a replay cannot know it takes from the log and says so: that the snapshot was stale,
and which gates were closed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from allocator.core.assignment import SLOTS
from allocator.core.decision import Reason, foresee
from allocator.core.decision_columns import read_claims
from allocator.core.decision_id import DecisionId
from allocator.core.served_chances import chances
from allocator.core.snapshot import Entry
from allocator.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Request:
    """What is known of the request. unit_hash: hexadecimal. attributes: None when not known. reason: as logged, "" when it was not."""

    unit_hash: str = ""
    slot: int | None = None
    attributes: Mapping[str, str] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Replayed:
    """arm, slots: what follows from the snapshot; slots of 65,536 are the propensity. agrees: with the id. steps: why, in order."""

    arm: str
    slots: int
    reason: Reason
    agrees: bool
    steps: tuple[str, ...]


def claims(decision_id: str) -> DecisionId:
    """What an id says, unverified: only whoever has the key can tell whether it is genuine. Raises InvalidArgument."""
    return read_claims(decision_id)


def replay(entry: Entry, decision: DecisionId, request: Request) -> Replayed:
    """Decide again. Raises InvalidArgument when the snapshot is not the decision's, or the request is not known well enough."""
    if (entry.uid, entry.version) != (decision.uid, decision.version):
        raise InvalidArgument.of_field("snapshot", f"got version {entry.version} of {entry.uid.hex()}; the decision's own is allowed")
    steps: list[str] = []
    arm, slots, reason = _decide(entry, decision, request, steps)
    agrees = (arm, slots) == (decision.arm, decision.slots) and request.reason in ("", reason.name)
    steps.append(f"so {entry.arms[arm]}, with a chance of {_share(slots)}, {reason.name}")
    said = f"the id says {_arm(entry, decision.arm)}, {_share(decision.slots)}{f', and the log {request.reason}' if request.reason else ''}"
    steps.append(f"{said}: {'the same' if agrees else 'NOT the same'}")
    return Replayed(entry.arms[arm], slots, reason, agrees, tuple(steps))


def _decide(entry: Entry, decision: DecisionId, request: Request, steps: list[str]) -> tuple[int, int, Reason]:
    incumbent = entry.incumbent
    segment = decision.segment
    ruled = Reason[request.reason] if request.reason in ("STALE", "OPTED_OUT", "NOT_TARGETED") else None
    if request.attributes is not None:
        segment, found = foresee(entry, request.attributes, ruled is Reason.STALE)
        ruled = found if ruled is None or found is not None else ruled
        steps.append(f"its attributes put it into the segment {entry.segment_names[segment]}")
    elif len(entry.segment_names) > 1:
        steps.append(f"the id says the segment {_segment(entry, segment)}")
    whence = "by its attributes" if request.attributes is not None else "as logged; attributes are not kept"
    not_so = whence if request.attributes is not None or request.reason else "assumed: no attributes were given"
    if ruled is Reason.OPTED_OUT:
        steps.append(f"opted out ({whence}): the incumbent, and nothing is learned")
        return incumbent, SLOTS, ruled
    if entry.opt_out:
        steps.append(f"not opted out ({not_so})")
    if ruled is Reason.STALE:
        steps.append(f"the snapshot was older than its lease of {entry.lease_seconds:g} s (as logged): everyone gets the incumbent")
        return incumbent, SLOTS, ruled
    steps.append("the snapshot was within its lease")
    if ruled is Reason.NOT_TARGETED:
        steps.append(f"not targeted ({whence}): the incumbent, and nothing is learned")
        return incumbent, SLOTS, ruled
    if entry.target:
        steps.append(f"targeted ({not_so})")
    if entry.pins:
        pinned = entry.pins.get(request.unit_hash.encode()) if request.unit_hash else None
        if not request.unit_hash:
            raise _unknown("whether its unit is pinned")
        if pinned is not None:
            steps.append(f"its unit is pinned to {entry.arms[pinned]}: nothing is drawn, and nothing is learned")
            return pinned, SLOTS, Reason.PINNED
        steps.append("its unit is not pinned")
    if entry.only is not None:
        arm, number = entry.only
        steps.append(f"the experiment was {entry.state}: everyone gets {entry.arms[arm]}")
        return arm, SLOTS, Reason(number)
    return _draw(entry, decision, request, segment, steps)


def _draw(entry: Entry, decision: DecisionId, request: Request, segment: int, steps: list[str]) -> tuple[int, int, Reason]:
    slot = request.slot
    if slot is None and entry.sticky and request.unit_hash:
        slot = int(request.unit_hash[:4], 16)
    if slot is None:
        raise _unknown("where its unit falls")
    table = entry.tables[segment if len(entry.tables) > 1 else 0]
    run = bisect_right(table.ends, slot)
    arm = table.owners[run]
    begin = table.ends[run - 1] if run else 0
    drawn = "its unit falls on" if entry.sticky else "each request is drawn anew; this one fell on"
    steps.append(f"{drawn} slot {slot}; slots {begin} to {table.ends[run] - 1} belong to {entry.arms[arm]}")
    reason = Reason.ALLOCATED
    if entry.drained >> arm & 1:
        steps.append(f"{entry.arms[arm]} is drained: its slots are the incumbent's")
        arm, reason = entry.incumbent, Reason.DRAINED
    if not (entry.strict or entry.leased_requests or entry.leased_units):
        return arm, table.served[arm], reason
    # which gates were closed only the decider knew: the id says how many slots that gave to the incumbent
    if arm != entry.incumbent and decision.arm == entry.incumbent and request.reason in ("", "CAPPED"):
        steps.append(f"the strict cap or the budget of {entry.arms[arm]} had no room (as the id says): the incumbent")
        arm, reason = entry.incumbent, Reason.CAPPED
    refused = decision.slots - table.served[arm] if arm == decision.arm == entry.incumbent else 0
    if refused > 0:
        closed = chances(entry, segment, arm, decision.slots, reason, True)
        who = [entry.arms[i] for i, (now, full) in enumerate(zip(closed or (), table.served, strict=False)) if full and not now]
        steps.append(f"{_share(refused)} of {' and '.join(who) or 'closed candidates'} went to the incumbent")
        if closed is None and not _can_be_refused(entry, table.served, refused):
            refused = 0
    elif arm == decision.arm:
        steps.append("no gate that mattered was closed")
    return arm, table.served[arm] + max(refused, 0), reason


def _can_be_refused(entry: Entry, served: tuple[int, ...], refused: int) -> bool:
    """Is there a set of candidates with this many slots?"""
    sums = {0}
    for arm, share in enumerate(served):
        if arm != entry.incumbent:
            sums |= {known + share for known in sums}
    return refused in sums


def _unknown(what: str) -> InvalidArgument:
    return InvalidArgument.of_field(
        "unit", f"the log does not have this decision, so {what} is not known; --unit with --server finds out", reason="NEEDS_UNIT"
    )


def _share(slots: int) -> str:
    return f"{slots / SLOTS:.6g} ({slots} of {SLOTS})"


def _arm(entry: Entry, index: int) -> str:
    return entry.arms[index] if index < len(entry.arms) else f"arm {index}"


def _segment(entry: Entry, index: int) -> str:
    return entry.segment_names[index] if index < len(entry.segment_names) else f"number {index}"
