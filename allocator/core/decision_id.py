"""The decision id: a self-contained, authenticated token that brings an outcome home.

In: what was decided. Out: 68 characters, and back. Whoever holds the key attributes an outcome to its experiment, arm, segment, plan,
time and propensity without looking anything up; a forged or altered id is refused. A random id with a look-up table was dropped: it
costs a durable write for every decision, and a crash between the two loses outcomes.

Layout, big endian, then base64url without padding: format (1 byte), key (4), experiment (8), arm (1), segment (1), flags (1),
snapshot version (6), milliseconds since the epoch (6), slots of 65,536 (3), nonce (8), MAC (12: blake2b, keyed).

In-process deciders make ids too. Each has a number and the key that `client_key` derives for it from the service's secret, so the service
keeps nothing for them and still reads their ids: the number stands in the id. Number 0 is the service itself, its key the secret.
Standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from allocator.errors import InvalidArgument

FORMAT = 1
NONCE_BYTES = 8
MAC_BYTES = 12
BODY = struct.Struct(">BI8sBBBHIHIBH8s")
FRONT = struct.Struct(">BI8sBBBHI")  # of the body: all that does not change from one unit to the next
URL_SAFE = bytes.maketrans(b"+/", b"-_")
PLAIN = bytes.maketrans(b"-_", b"+/")
LENGTH = (BODY.size + MAC_BYTES) * 4 // 3

COUNTED, FIRST, GATED = 1, 2, 4  # flags; the five bits above them hold the activation, modulo 32
ACTIVATION_BITS = 3
MAX_KEY_NUMBER = (1 << 32) - 1
KEYS_AT_HAND = 4096  # of deciders whose ids were read lately
new_tuple = tuple.__new__  # what a NamedTuple's own `__new__` calls, at a third of the price


class DecisionId(NamedTuple):
    """What a decision id says. milliseconds: of the decision, since the epoch. slots: of 65,536, the propensity.

    counted: outcomes of it teach something. first: the unit's first decision of this arm within the window. gated: the
    propensity does not explain who has the outcome: a cap was closed, or the unit had met another arm within the window.
    activation: modulo 32.
    """

    uid: bytes
    arm: int
    segment: int
    version: int
    milliseconds: int
    slots: int
    nonce: bytes
    counted: bool
    first: bool
    gated: bool
    activation: int
    key: int = 0

    @property
    def seconds(self) -> float:
        """Time of the decision, seconds since the epoch."""
        return self.milliseconds / 1000


class Minter:
    """Makes ids with one key.

    key: up to 64 secret bytes. number: of the key. The keyed hash is set up once, then copied for each id: that is a third cheaper.
    """

    __slots__ = ("_keyed", "_number")

    def __init__(self, key: bytes, number: int = 0) -> None:
        self._keyed = hashlib.blake2b(digest_size=MAC_BYTES, key=key)
        self._number = number

    def front(self, uid: bytes, arm: int, segment: int, version: int, flags: int) -> bytes:
        """What many ids of one plan begin with, for `id`."""
        return FRONT.pack(FORMAT, self._number, uid, arm, segment, flags, version >> 32 & 0xFFFF, version & 0xFFFFFFFF)

    def id(self, front: bytes, milliseconds: int, slots: bytes, nonce: bytes) -> bytes:
        """The id of a decision, 68 ASCII characters. slots: 3 bytes. nonce: 8 bytes, never used twice in a millisecond. Raises nothing."""
        body = front + milliseconds.to_bytes(6, "big") + slots + nonce
        mac = self._keyed.copy()
        mac.update(body)
        return b2a_base64(body + mac.digest(), newline=False).translate(URL_SAFE)

    def ids(self, bodies: Iterable[bytes]) -> list[str]:
        """The ids of many decisions; each body is 39 bytes: the front, 6 of milliseconds, 3 of slots, the nonce."""
        keyed = self._keyed.copy
        parts = []
        for body in bodies:
            mac = keyed()
            mac.update(body)
            parts += (body, mac.digest())
        text = b2a_base64(b"".join(parts), newline=False).translate(URL_SAFE).decode("ascii")
        return [text[start : start + LENGTH] for start in range(0, len(text), LENGTH)]


def mint(
    key: bytes,
    uid: bytes,
    arm: int,
    segment: int,
    version: int,
    milliseconds: int,
    slots: int,
    nonce: bytes,
    flags: int,
    key_number: int = 0,
) -> str:
    """The id of one decision. key: up to 64 secret bytes. nonce: 8 bytes, never used twice in a millisecond. Raises nothing."""
    minter = Minter(key, key_number)
    return minter.id(minter.front(uid, arm, segment, version, flags), milliseconds, slots.to_bytes(3, "big"), nonce).decode("ascii")


def client_key(secret: bytes, number: int) -> bytes:
    """The key of the decider with this number, 32 bytes; of number 0 it is the secret itself. number: 0 to 2**32 - 1.

    Who holds one key learns neither the secret nor another number's key. Source: keyed BLAKE2b as a pseudo-random function, RFC 7693.
    """
    if number == 0:
        return secret
    return hashlib.blake2b(number.to_bytes(4, "big"), digest_size=32, key=secret, person=b"decision key").digest()


def read(secret: bytes, text: str) -> DecisionId:
    """What a decision id says, whichever decider made it. Raises InvalidArgument, reason MALFORMED_DECISION_ID or FORGED_DECISION_ID.

    secret: the service's.
    """
    if len(text) != LENGTH:
        raise _malformed(f"got {len(text)} characters; a decision id has {LENGTH}")
    try:
        raw = a2b_base64(text.encode("ascii").translate(PLAIN))
    except ValueError as exc:
        raise _malformed("got characters that are not base64url") from exc
    body, mac = raw[: BODY.size], raw[BODY.size :]
    if len(mac) != MAC_BYTES or body[0] != FORMAT:
        raise _malformed("got an id of another format")
    hashing = _keyed(secret, body[1:5]).copy()
    hashing.update(body)
    if not hmac.compare_digest(mac, hashing.digest()):
        raise InvalidArgument.of_field(
            "decision_id", "its authentication code does not fit: it was altered, or another service made it", reason="FORGED_DECISION_ID"
        )
    _, number, uid, arm, segment, flags, v_high, v_low, ms_high, ms_low, s_high, s_low, nonce = BODY.unpack(body)
    return new_tuple(
        DecisionId,
        (
            uid,
            arm,
            segment,
            v_high << 32 | v_low,
            ms_high << 32 | ms_low,
            s_high << 16 | s_low,
            nonce,
            bool(flags & COUNTED),
            bool(flags & FIRST),
            bool(flags & GATED),
            flags >> ACTIVATION_BITS,
            number,
        ),
    )


@lru_cache(KEYS_AT_HAND)
def _keyed(secret: bytes, number: bytes) -> hashlib.blake2b:
    """The keyed hash of the ids with this key number, 4 bytes, set up to be copied."""
    return hashlib.blake2b(digest_size=MAC_BYTES, key=client_key(secret, int.from_bytes(number, "big")))


def _malformed(message: str) -> InvalidArgument:
    return InvalidArgument.of_field("decision_id", message, reason="MALFORMED_DECISION_ID")
