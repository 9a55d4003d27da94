"""Who would be served what: the arms of whole columns of units under one row of the snapshot, for scoring offline.

In: a row of the snapshot, units, attributes. Out: columns of indices. Pure: no ids, no counting, no gates; what `choose` says of each unit
alone, so that what is scored is what would be served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from allocator.core.assignment import unit_hash
from allocator.core.decision import check_units, choose_hashed
from allocator.core.decision_id import NONCE_BYTES
from allocator.core.snapshot import Entry
from allocator.errors import InvalidArgument


class Scored(NamedTuple):
    """One value for each unit. arm, segment: indices (int16). slots: of 65,536, the propensity (int32). reason: its number (int8)."""

    arm: np.ndarray
    slots: np.ndarray
    reason: np.ndarray
    segment: np.ndarray


def decide_batch(
    entry: Entry,
    units: Sequence[str | bytes] | np.ndarray,
    attributes: Mapping[str, Sequence[str] | np.ndarray | str] | None = None,
    *,
    nonces: bytes | None = None,
    stale: bool = False,
) -> Scored:
    """The decision for each unit, as a server with this row and open gates would make it.

    units: (n,), text or bytes of 1 to 256 bytes. attributes: of each name a column (n,), or one text for all units. nonces: 8 bytes for
    each unit; needed where each request is drawn anew. Raises InvalidArgument naming the unit or the column that does not fit.
    """
    encoded = _encoded(units)
    if not entry.sticky and nonces is None:
        raise InvalidArgument.of_field("nonces", "got nothing; 8 bytes for each unit are needed where each request is drawn anew")
    if nonces is not None and len(nonces) != NONCE_BYTES * len(encoded):
        raise InvalidArgument.of_field("nonces", f"got {len(nonces)} bytes; {NONCE_BYTES} for each of {len(encoded)} units are needed")
    rows = _rows(attributes or {}, len(encoded))
    found = np.empty((len(encoded), 4), np.int64)
    for index, unit in enumerate(encoded):
        nonce = nonces[NONCE_BYTES * index : NONCE_BYTES * index + NONCE_BYTES] if nonces is not None else b""
        choice = choose_hashed(entry, unit, unit_hash(entry.salt, unit), rows[index] if rows else {}, nonce, stale, None, None)
        found[index] = choice[0], choice[1], choice[2], choice[3]
    arm, slots, reason, segment = found.T
    return Scored(arm.astype(np.int16), slots.astype(np.int32), reason.astype(np.int8), segment.astype(np.int16))


def _encoded(units: Sequence[str | bytes] | np.ndarray) -> list[bytes]:
    plain = units.tolist() if isinstance(units, np.ndarray) else list(units)
    for index, unit in enumerate(plain):
        if not isinstance(unit, str | bytes):
            got = type(unit).__name__
            raise InvalidArgument.of_field(f"units[{index}]", f"got {got}; text or bytes are allowed", reason="INVALID_UNIT")
    return check_units(plain)


def _rows(attributes: Mapping[str, Sequence[str] | np.ndarray | str], count: int) -> list[dict[str, str]]:
    """The attributes of each unit; none where there are no columns."""
    columns = {}
    for name, values in attributes.items():
        column = [values] * count if isinstance(values, str) else values.tolist() if isinstance(values, np.ndarray) else list(values)
        if len(column) != count:
            raise InvalidArgument.of_field(f"attributes[{name}]", f"got {len(column)} values; one for each of {count} units is needed")
        columns[name] = column
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] if columns else []
