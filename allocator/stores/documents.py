"""A `Record` as bytes, and back: JSON in an envelope with the number of its format and a digest.

The round trip is exact: floats are written with the digits that give them back. Bytes that were cut, altered or written by a newer
version are refused, never read as something else: a record says who is frozen. Pickle was dropped (it runs what it reads); protobuf
was dropped here (the messages are for other people; a record has parts that they never see).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from allocator.core.record import Record
from allocator.errors import AllocatorError, Unavailable

FORMAT = 1
DIGEST_BYTES = 16


class Envelope(msgspec.Struct):
    """format: grows when an old reader would misunderstand a new record. digest: blake2b of the record's bytes, hexadecimal."""

    format: int
    digest: str
    record: msgspec.Raw


def to_bytes(record: Record) -> bytes:
    """The document of a record. Raises TypeError for one that would not come back as it is: with a NaN, or a wrong type somewhere.

    It is read back for that, which doubles the time: a record that cannot be read must not replace one that can.
    """
    try:
        body = _encoder.encode(record)
        same = _records.decode(body) == record
    except (ValueError, OverflowError, AllocatorError) as exc:
        raise TypeError(f"the record of {record.name!r} cannot be written down: {exc}") from exc
    if not same:
        raise TypeError(f"the record of {record.name!r} would not be read back as it is")
    return _encoder.encode(Envelope(FORMAT, _digest(body), msgspec.Raw(body)))


def from_bytes(document: bytes | str) -> Record:
    """The record of a document. Raises Unavailable, reason STORE_CORRUPT, or STORE_TOO_NEW for a later format."""
    try:
        envelope = _envelopes.decode(document)
        if envelope.format == FORMAT and envelope.digest == _digest(envelope.record):
            return _records.decode(envelope.record)
    except (ValueError, AllocatorError) as exc:  # msgspec's errors are ValueErrors; a Layout checks itself
        raise _unreadable(f"it is no record: {exc}") from exc
    if envelope.format != FORMAT:
        raise Unavailable(
            f"the store holds a record of format {envelope.format}; this version reads format {FORMAT}",
            reason="STORE_TOO_NEW",
            format=envelope.format,
        )
    raise _unreadable("its digest does not fit: it was altered")


def _plain(value: object) -> object:
    """Numbers and mappings of other makers, as Python's own."""
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a record cannot hold {value!r} of type {type(value).__name__}")


def _digest(body: bytes | msgspec.Raw) -> str:
    return hashlib.blake2b(body, digest_size=DIGEST_BYTES).hexdigest()


def _unreadable(why: str) -> Unavailable:
    return Unavailable(f"a record in the store cannot be read: {why}", reason="STORE_CORRUPT")


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_envelopes = msgspec.json.Decoder(Envelope)
_records = msgspec.json.Decoder(Record)
