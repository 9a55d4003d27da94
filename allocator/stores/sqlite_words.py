"""What stands in the file of a SQLite store, as texts: statements, how their answers are read, check numbers, and errors in our words.

In: rows and exceptions. Out: the same in the words of the store. A `proof` is a check number of its row: SQLite notices a page that makes
no sense, but not a changed digit.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from allocator.core.record import Cell
from allocator.errors import Overloaded, Unavailable
from allocator.stores import rules

FULL_RETRY_SECONDS = 5.0


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Say a failure of SQLite or the system in the words of the store."""
    try:
        yield
    except (sqlite3.Error, OSError, *DAMAGE) as exc:
        raise error(exc) from exc


def error(exc: Exception) -> Exception:
    """What a caller is told: one error for each, since raising it leaves marks on it."""
    code = getattr(exc, "sqlite_errorcode", 0)
    if is_full(exc):
        error: Exception = Overloaded("the disk is full; nothing was written", reason="STORE_FULL", retry_after_seconds=FULL_RETRY_SECONDS)
    elif code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or isinstance(exc, DAMAGE):
        error = Unavailable(f"the store is damaged: {str(exc)[:200]}", reason="STORE_CORRUPT")
    elif isinstance(exc, sqlite3.Error | OSError):
        error = Unavailable(f"the store failed: {str(exc)[:200]}", reason="STORE_FAILED")
    else:
        return exc
    error.__cause__ = exc
    return error


def is_full(exc: Exception) -> bool:
    if isinstance(exc, OSError):
        return exc.errno in (errno.ENOSPC, errno.EDQUOT)
    code = getattr(exc, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE


def refusal(exc: Exception) -> Exception | None:
    """The answer to work that was refused for what is in it, or None when the trouble is not with the work."""
    if not isinstance(exc, sqlite3.Error):
        return error(exc)
    if "int64" in str(exc) or "integer overflow" in str(exc):
        refusal = rules.too_large()
        refusal.__cause__ = exc
        return refusal
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return error(exc) if code & 0xFF in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG) else None


def proof_of(*values: object) -> int:
    return zlib.crc32(repr(values).encode())


def prove(*row: object) -> None:
    """Raise Unavailable unless a row ends in the proof of what stands before it."""
    if proof_of(*row[:-1]) != row[-1]:
        raise altered()


def proof_of_sums(key: tuple[object, ...], sums: Sequence[int]) -> int:
    """Additive in the sums of one key, so that what is added carries its proof along; another key has another factor."""
    count, total, high, low = sums
    one, two, three, four = WEIGHTS
    return (zlib.crc32(repr(key).encode()) + 1) * (one * count + two * total + three * high + four * low) % PRIME


def proven(rows: list[tuple]) -> list[Cell]:
    """Cells of rows (experiment, the fields of the cell, proof). Raises Unavailable when one was altered."""
    if not all(map(fits, rows)):
        raise altered()
    return [Cell._make(row[1:9]) for row in rows]


def fits(row: tuple) -> bool:
    return proof_of_sums(row[:5], row[5:9]) == row[9]


def altered() -> Unavailable:
    return damaged("the store is damaged: a row does not fit its check number")


def damaged(message: str) -> Unavailable:
    """What is told of a file that may not be used as it is."""
    return Unavailable(message, reason="STORE_CORRUPT")


def summed(number: int, key: tuple[object, ...], sums: Sequence[int]) -> tuple[object, ...]:
    """A row of COLUMNS: sums to add at a key of the experiment that has this number."""
    return (number, *key, *sums, proof_of_sums((number, *key), sums))


def line(row: tuple[object, ...]) -> bytes:
    """One row as JSON, for `together`."""
    return _encoder.encode(row)


def together(lines: Iterable[bytes]) -> str:
    """What `text` makes of rows, of rows that are JSON already."""
    return f"[{b','.join(lines).decode()}]"


def text(values: object) -> str:
    """As JSON. One call keeps the interpreter from decisions until it ends: half a millisecond for 4,000 cells, where json takes eight."""
    return _encoder.encode(values).decode()


class NewsRow(msgspec.Struct):
    """What READ_NEWS gives."""

    life: tuple[str, int, int, int]
    names: tuple[str, ...]
    kinds: tuple[str, ...]


DAMAGE = (UnicodeDecodeError, msgspec.MsgspecError)  # of text in the file
ROWS = msgspec.json.Decoder(list[tuple[int, int, int, int, str, int, int, int, int, int]])
EXPERIMENTS = msgspec.json.Decoder(list[tuple[int, str, int | None, int, int]])
NUMBERS = msgspec.json.Decoder(set[int])
SEEN = msgspec.json.Decoder(list[tuple[int, int, int, int]])
VERSIONS = msgspec.json.Decoder(list[tuple[str, int]])
MARKS = msgspec.json.Decoder(dict[str, int])
AUDIT = msgspec.json.Decoder(list[tuple[int, float, str, str, str, str, str, str, str]], strict=False)  # the time is text there
NEWS = msgspec.json.Decoder(NewsRow)
_encoder = msgspec.json.Encoder()
NONCE = struct.Struct(">q")
PRIME = 2**61 - 1
WEIGHTS = (0x1B873593CC9E2D51, 0x0A4B6E8F2C5D7193, 0x13C6EF372FE94F82, 0x0D1B54A32D192ED0)

COLUMNS = "experiment, bucket, arm, segment, stream, count, total, square_high, square_low, proof"

READ_CELLS = f"""SELECT json_group_array(json_array({COLUMNS}))
    FROM {{table}} WHERE experiment = (SELECT number FROM experiments WHERE uid = ?)"""

ADD_CELLS = f"""INSERT INTO {{table}} SELECT {", ".join(f"json_extract(value, '$[{i}]')" for i in range(10))} FROM json_each(?) WHERE true
    ON CONFLICT (experiment, bucket, arm, segment, stream) DO UPDATE SET
        count = count + excluded.count, total = total + excluded.total,
        square_high = square_high + excluded.square_high, square_low = square_low + excluded.square_low,
        proof = (proof + excluded.proof) % {PRIME}"""

READ_EXPERIMENTS = """SELECT json_group_array(json_array(number, uid, through, coarsen, proof))
    FROM experiments WHERE uid IN (SELECT value FROM json_each(?))"""

# {experiment: bucket} → those that have settled something as late as this bucket
READ_SETTLED = """SELECT json_group_array(x.number)
    FROM json_each(?) e CROSS JOIN experiments x ON x.number = CAST(e.key AS INTEGER) WHERE x.through >= e.value"""

WRITE_EXPERIMENTS = """INSERT INTO experiments (number, uid, proof)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?)"""

WRITE_MARKS = """UPDATE experiments SET mark = (SELECT max(mark) + 1 FROM experiments)
    WHERE number IN (SELECT value FROM json_each(?))"""

# {experiment: {bucket: [nonce, ...]}}; CROSS JOIN keeps this order, so that each nonce is looked up.
READ_SEEN = """SELECT json_group_array(json_array(s.experiment, s.bucket, s.nonce, s.metrics))
    FROM json_each(?) e CROSS JOIN json_each(e.value) b CROSS JOIN json_each(b.value) n CROSS JOIN seen s
    ON s.experiment = CAST(e.key AS INTEGER) AND s.bucket = CAST(b.key AS INTEGER) AND s.nonce = n.value"""

# {experiment: {bucket: {nonce: mask}}}
WRITE_SEEN = """INSERT INTO seen
    SELECT CAST(e.key AS INTEGER), CAST(b.key AS INTEGER), CAST(n.key AS INTEGER), n.value
    FROM json_each(?) e CROSS JOIN json_each(e.value) b CROSS JOIN json_each(b.value) n WHERE true
    ON CONFLICT (experiment, bucket, nonce) DO UPDATE SET metrics = excluded.metrics"""

READ_GRANT = "SELECT granted, proof FROM grants WHERE uid = ? AND arm = ? AND kind = ?"

READ_VERSIONS = "SELECT json_group_array(json_array(name, version)) FROM records WHERE name IN (SELECT value FROM json_each(?))"

WRITE_RECORDS = """INSERT INTO records (name, uid, version, document, mark)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), json_extract(value, '$[3]'), ?
    FROM json_each(?) WHERE true
    ON CONFLICT (name) DO UPDATE SET uid = excluded.uid, version = excluded.version, document = excluded.document, mark = excluded.mark"""

READ_LIFE = "SELECT epoch, term, mark, proof FROM life"

# Of one moment: a mark read before or after the names would lose some, or tell of them twice.
READ_NEWS = """SELECT json_object(
    'life', (SELECT json_array(epoch, term, mark, proof) FROM life),
    'names', (SELECT json_group_array(name) FROM records WHERE mark > ?),
    'kinds', (SELECT json_group_array(kind) FROM kinds WHERE mark > ?))"""

READ_AUDIT = """SELECT json_group_array(json_array(sequence, seconds, actor, action, experiment, reason, before, after, digest))
    FROM (SELECT * FROM audit WHERE {where} ORDER BY sequence LIMIT ?)"""

REWARDS = """WITH number AS (SELECT number FROM experiments WHERE uid = :uid),
    added AS (SELECT bucket, sum(count) AS n FROM cells WHERE experiment = (SELECT * FROM number) AND stream = :stream GROUP BY bucket),
    counted AS (SELECT bucket, count(*) AS n FROM seen WHERE experiment = (SELECT * FROM number) AND metrics >> :bit & 1 GROUP BY bucket)
    SELECT bucket, sum(added), sum(counted)
    FROM (SELECT bucket, n AS added, 0 AS counted FROM added UNION ALL SELECT bucket, 0, n FROM counted)
    GROUP BY bucket HAVING sum(added) <> sum(counted)"""
