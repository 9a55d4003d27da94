"""One decision: which arm serves this unit, why, with what chance, and the id that brings its outcome home.

In: a row of the snapshot (`Entry`), the unit, its attributes, a nonce. Out: a `Choice` of indices; `core/decision_id.py` makes its id. The
server, the in-process client and the simulator call this one function, so what is simulated is what is served. Standard library
only: it runs inside other people's services.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple, Protocol

from allocator.core.assignment import SLOTS, unit_hash
from allocator.core.snapshot import Entry
from allocator.errors import InvalidArgument

MAX_UNIT_BYTES = 256
NOT_OPTED_OUT = frozenset({"", "false", "0", "no"})


class Reason(IntEnum):
    """Why a decision is what it is. The numbers are those of the API."""

    ALLOCATED = 1
    INCUMBENT_ONLY = 2
    CAPPED = 3
    FROZEN = 4
    DRAINED = 5
    OPTED_OUT = 6
    NOT_TARGETED = 7
    PINNED = 8
    STALE = 9
    UNKNOWN_EXPERIMENT = 10
    INVALID_REQUEST = 11


ALLOCATED = Reason.ALLOCATED
REASONS = {int(reason): reason for reason in Reason}


class Choice(NamedTuple):
    """What was decided, as indices. `slots` of 65,536 is the propensity; `counted` says whether outcomes of it teach anything.

    gated: a strict cap or a budget was closed for some candidate, so the propensity is not the published one. unit: hash of the unit.
    candidate_slots: those from which the draw could have taken a candidate; 0 when nothing was drawn.
    """

    arm: int
    slots: int
    reason: Reason
    segment: int
    counted: bool
    gated: bool
    unit: bytes
    candidate_slots: int = 0

    def shadow(self, entry: Entry) -> int:
        """Index of the arm to mirror the request to, -1 without a shadow stage. A unit is always mirrored to the same one."""
        return shadow_of(entry, self.reason, self.unit)


class Decision(NamedTuple):
    """The answer to a caller. `propensity` is the chance that this arm had in this decision, a multiple of 1/65,536."""

    arm: str
    propensity: float
    reason: Reason
    id: str
    snapshot_version: int
    model_uri: str = ""
    incumbent: str = ""
    shadow_arm: str = ""
    segment: str = ""


class Gate(Protocol):
    """What strict caps ask of a decider; see `core/gate.py`."""

    def closed_mask(self) -> int:
        """Candidates without room for the coming decision, a bit for each arm."""

    def admit(self, arm: int) -> bool:
        """Called once a decision: it earns credit, and spends one exposure of `arm`. False: there was no room."""


class Budgets(Protocol):
    """What absolute budgets ask of a decider; see `core/gate.py`."""

    def closed_mask(self, unit: bytes) -> int:
        """Candidates that may not serve this unit in the coming decision, a bit for each arm."""

    def spend(self, arm: int, unit: bytes) -> None:
        """Called when a candidate that was open serves."""


def check_unit(unit: str) -> bytes:
    """The unit as bytes. Raises InvalidArgument when it is empty or above 256 bytes."""
    encoded = unit.encode("utf-8", "surrogatepass")
    if not 1 <= len(encoded) <= MAX_UNIT_BYTES:
        raise _bad_unit("unit", encoded)
    return encoded


def check_units(units: Iterable[str | bytes]) -> list[bytes]:
    """The units as bytes. Raises InvalidArgument naming the first that is empty or above 256 bytes."""
    encoded = [unit if isinstance(unit, bytes) else unit.encode("utf-8", "surrogatepass") for unit in units]
    if encoded and not 1 <= min(map(len, encoded)) <= max(map(len, encoded)) <= MAX_UNIT_BYTES:
        index = next(index for index, unit in enumerate(encoded) if not 1 <= len(unit) <= MAX_UNIT_BYTES)
        raise _bad_unit(f"units[{index}]", encoded[index])
    return encoded


def choose(
    entry: Entry,
    unit: bytes,
    attributes: Mapping[str, str],
    nonce: bytes,
    *,
    stale: bool = False,
    gate: Gate | None = None,
    budgets: Budgets | None = None,
) -> Choice:
    """Which arm serves `unit`.

    unit: 1 to 256 bytes. nonce: 8 random bytes; in PER_REQUEST mode they are the draw. stale: the snapshot's lease is over. gate,
    budgets: the decider's strict caps and its leases, asked before the draw. Raises nothing: whatever is in doubt gets the incumbent,
    with the reason.
    """
    return Choice._make(choose_hashed(entry, unit, unit_hash(entry.salt, unit), attributes, nonce, stale, gate, budgets))


def choose_hashed(
    entry: Entry,
    unit: bytes,
    hashed: bytes,
    attributes: Mapping[str, str],
    nonce: bytes,
    stale: bool,
    gate: Gate | None,
    budgets: Budgets | None,
) -> tuple[int, int, Reason, int, bool, bool, bytes, int]:
    """`choose` for whoever has the unit's hash and is in a hurry: the values of a `Choice`."""
    incumbent = entry.incumbent
    segment, ruled = 0, None
    if stale or entry.segments or entry.opt_out or entry.target:
        segment, ruled = foresee(entry, attributes, stale)
        if ruled is not None:
            return incumbent, SLOTS, ruled, segment, entry.counted and ruled is Reason.STALE, True, hashed, 0
    if entry.pins:
        pinned = entry.pins.get(unit)
        if pinned is not None:
            return pinned, SLOTS, Reason.PINNED, segment, False, True, hashed, 0
    if entry.only is not None:
        arm, number = entry.only
        return arm, SLOTS, REASONS.get(number, Reason.INCUMBENT_ONLY), segment, entry.counted, False, hashed, 0
    tables = entry.tables
    ends, owners, served = tables[segment if len(tables) > 1 else 0]
    draw = hashed if entry.sticky else unit_hash(entry.salt, nonce)
    arm = owners[bisect_right(ends, draw[0] << 8 | draw[1])]
    reason = ALLOCATED
    if entry.drained >> arm & 1:
        arm, reason = incumbent, Reason.DRAINED
    if gate is None and budgets is None:
        return arm, served[arm], reason, segment, True, False, hashed, SLOTS - served[incumbent]
    closed = gate.closed_mask() if gate is not None else 0
    if budgets is not None:
        closed |= budgets.closed_mask(unit)
    if closed >> arm & 1:
        arm, reason = incumbent, Reason.CAPPED
    if gate is not None:
        gate.admit(arm)
    if budgets is not None and arm != incumbent:
        budgets.spend(arm, unit)
    refused = sum(share for index, share in enumerate(served) if closed >> index & 1) if closed else 0
    slots = served[arm] + refused if arm == incumbent else served[arm]
    return arm, slots, reason, segment, True, refused > 0, hashed, SLOTS - served[incumbent] - refused


def shadow_of(entry: Entry, reason: Reason, hashed: bytes) -> int:
    """Index of the arm to mirror the request to, -1 for none; hashed: `unit_hash` of the unit, which is always mirrored to the same one."""
    if not entry.shadow_arms or reason != Reason.INCUMBENT_ONLY:
        return -1
    return entry.shadow_arms[hashed[7] % len(entry.shadow_arms)]


def foresee(entry: Entry, attributes: Mapping[str, str], stale: bool = False) -> tuple[int, Reason | None]:
    """What is known before the unit is: the segment, and the reason that gives any unit the incumbent, or None.

    Opting out comes first: who did is counted nowhere, also while decisions are STALE, which count.
    """
    segment = len(entry.segments)
    if segment:
        for index, match in enumerate(entry.segments):
            if _matches(match, attributes):
                segment = index
                break
    if entry.opt_out and attributes.get(entry.opt_out, "").lower() not in NOT_OPTED_OUT:
        return segment, Reason.OPTED_OUT
    if stale:
        return segment, Reason.STALE
    if entry.target and not _matches(entry.target, attributes):
        return segment, Reason.NOT_TARGETED
    return segment, None


def _matches(match: Mapping[str, frozenset[str]], attributes: Mapping[str, str]) -> bool:
    return all(attributes.get(attribute) in values for attribute, values in match.items())


def _bad_unit(field: str, encoded: bytes) -> InvalidArgument:
    return InvalidArgument.of_field(
        field, f"got {len(encoded)} bytes; 1 to {MAX_UNIT_BYTES} bytes of UTF-8 are allowed", reason="INVALID_UNIT"
    )
