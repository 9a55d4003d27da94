"""Many decision ids at once, as columns: what a log of decisions is made of and read by.

In: ids as text. Out: arrays of what they say, unverified: whoever wrote them down knew that they were genuine, or wants to know what is
claimed. `decision_id.read` does the same for one id and checks its authentication code.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allocator.core.decision_id import ACTIVATION_BITS, BODY, COUNTED, FIRST, FORMAT, GATED, LENGTH, MAC_BYTES, DecisionId
from allocator.errors import InvalidArgument

_ID = np.dtype(
    [
        *(("format", "u1"), ("key", ">u4"), ("uid", "V8"), ("arm", "u1"), ("segment", "u1"), ("flags", "u1")),
        *(("version_high", ">u2"), ("version_low", ">u4"), ("ms_high", ">u2"), ("ms_low", ">u4")),
        *(("slots_high", "u1"), ("slots_low", ">u2"), ("nonce", "V8"), ("mac", "V12")),
    ]
)  # the layout of `decision_id`
assert _ID.itemsize == BODY.size + MAC_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class Ids:
    """What ids say; arrays of shape (N,), fields as in `decision_id.DecisionId`. uid, nonce: 8 bytes each, as void."""

    key: NDArray[np.int64]
    uid: NDArray[np.void]
    arm: NDArray[np.int64]
    segment: NDArray[np.int64]
    version: NDArray[np.int64]
    milliseconds: NDArray[np.int64]
    slots: NDArray[np.int64]
    nonce: NDArray[np.void]
    counted: NDArray[np.bool_]
    first: NDArray[np.bool_]
    gated: NDArray[np.bool_]
    activation: NDArray[np.int64]


def read_ids(ids: Sequence[str]) -> Ids:
    """Columns of many ids. Raises InvalidArgument, reason MALFORMED_DECISION_ID, naming the first that is none."""
    wrong = next((text for text in ids if len(text) != LENGTH), None)
    if wrong is None:
        try:  # 68 characters are whole groups of four, so that ids one behind the other decode as they would alone
            raw = binascii.a2b_base64("".join(ids).translate(_PLAIN), strict_mode=True) if ids else b""
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) == len(ids) * _ID.itemsize:
            found = np.frombuffer(raw, dtype=_ID)
            if (found["format"] == FORMAT).all():
                return _ids(found)
        wrong = next((text for text in ids if not _good(text)), "")
    raise InvalidArgument.of_field("decision_id", f"got {wrong[:80]!r}, which is no decision id", reason="MALFORMED_DECISION_ID")


def read_claims(text: str) -> DecisionId:
    """What one id claims, unverified. Raises InvalidArgument, reason MALFORMED_DECISION_ID."""
    ids = read_ids([text])
    return DecisionId(
        ids.uid[0].tobytes(), *(getattr(ids, name)[0].item() for name in ("arm", "segment", "version", "milliseconds", "slots")),
        ids.nonce[0].tobytes(), *(getattr(ids, name)[0].item() for name in ("counted", "first", "gated", "activation", "key")),
    )  # fmt: skip


_PLAIN = str.maketrans("-_", "+/")


def _ids(found: np.ndarray) -> Ids:
    flags = found["flags"].astype(np.int64)
    return Ids(
        key=found["key"].astype(np.int64),
        uid=found["uid"],
        arm=found["arm"].astype(np.int64),
        segment=found["segment"].astype(np.int64),
        version=(found["version_high"].astype(np.int64) << 32) | found["version_low"],
        milliseconds=(found["ms_high"].astype(np.int64) << 32) | found["ms_low"],
        slots=(found["slots_high"].astype(np.int64) << 16) | found["slots_low"],
        nonce=found["nonce"],
        counted=(flags & COUNTED) > 0,
        first=(flags & FIRST) > 0,
        gated=(flags & GATED) > 0,
        activation=flags >> ACTIVATION_BITS,
    )


def _good(text: str) -> bool:
    try:
        raw = binascii.a2b_base64(text.translate(_PLAIN), strict_mode=True)
    except (binascii.Error, ValueError):
        return False
    return len(raw) == _ID.itemsize and raw[0] == FORMAT
