"""The head of the audit log, written down outside the store: what a cut or rewritten log no longer holds.

In: the store, and the heads that the file holds already. Out: every minute and at the end, if the log has grown, a line in the server's log
and one in a file: the sequence and digest of the last record. A chain of digests shows every edit but one: somebody who rewrites it to its
end, or cuts its end off, leaves a chain that fits. Keep the file where those who can write the store cannot: another disk, another machine,
write-once storage. Records that came after the last checkpoint are not covered by it. Signing was dropped: a key beside the server is in
the same hands as the store.

The log is looked at on the way. Each minute: is the last record that was seen still there, with the digest that it had? A log that was cut
off or written anew has lost it, also if it has grown again; at the start, the last one seen is the last of the file. Then: does what came
since fit? And by and by the whole chain from its beginning, a piece each minute, round after round, against the heads of the file too. So
an edit of an old record is found within a round, and a long log costs no more than a short one. What does not fit is told once.

Dropped: the whole chain each minute, ten seconds of a core for a million records; reading it whole at the start to find its end, which a
few dozen looks find as well.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import structlog

from allocator.core.audit import GENESIS, AuditRecord, seal
from allocator.errors import AllocatorError
from allocator.ports import Clock, Store

PAGE = 1000
PIECE = 10_000  # records verified in a look, beside the new ones: 0.1 s of a core
MAX_HEADS = 10_000  # of the file, the newest
MAX_TOLD = 10_000

log = structlog.get_logger()


class Head(NamedTuple):
    """A place in the log: sequence and digest of a record. Before the first: 0, GENESIS."""

    sequence: int
    digest: str


START = Head(0, GENESIS)


@dataclass(slots=True)
class Written:
    """What a file of checkpoints holds. torn: numbers of lines that are not whole; foreign: of those that are, and are no checkpoint.

    ends: does the file end with its last line?
    """

    heads: list[Head] = field(default_factory=list)
    torn: list[int] = field(default_factory=list)
    foreign: list[int] = field(default_factory=list)
    ends: bool = True


class Checkpoints:
    """Follows the audit log of a store. path: the file to append to; "" for the server's log alone. broken: called for each record that
    does not fit the one before it or a checkpoint. piece: records of the round in each look.
    """

    def __init__(self, store: Store, path: str, clock: Clock, broken: Callable[[], None] = lambda: None, piece: int = PIECE) -> None:
        self._broken = broken
        self._store = store
        self._path = path
        self._clock = clock
        self._piece = piece
        self._lock = threading.Lock()  # the last look, at the end, may come while another is under way
        self._heads: dict[int, str] | None = None  # of the file, None before it was read
        self._seen = START  # the last record
        self._round = START  # how far it has come
        self._written = 0
        self._torn = False  # the file ends within a line
        self._told: set[Head] = set()

    def write(self) -> None:
        """Look at the log, and write its head down if it has grown. What goes wrong is logged: a checkpoint must not stop a server."""
        with self._lock:
            for step in (self._begin, self._follow, self._write_down, self._look_back):
                try:
                    step()
                except AllocatorError as error:
                    log.warning("audit.no_checkpoint", reason=error.reason, error=error.message)
                    if error.reason != "STORE_CORRUPT":
                        return
                    place = self._round if step == self._look_back else self._seen
                    self._tell(Head(place.sequence + 1, ""), error.message)
                except OSError as error:
                    log.error("audit.no_checkpoint", path=self._path, error=error.strerror)

    def _begin(self) -> None:
        """Take the heads of the file over, once: the last is what the log must still hold."""
        if self._heads is not None:
            return
        self._heads = {}
        if not self._path or not os.path.isfile(self._path):
            return
        found = read_heads(self._path)
        if found.torn or found.foreign:
            log.warning("audit.checkpoints_unreadable", path=self._path, torn=found.torn[-10:], foreign=found.foreign[-10:])
        self._torn = not found.ends
        self._heads = dict(found.heads)
        self._seen = found.heads[-1] if found.heads else START

    def _follow(self) -> None:
        """Is the last record still there? Then read what is new, and check that it fits; of very much, the rest is left to the round."""
        if self._seen != START:
            page = self._store.audit(self._seen.sequence - 1, 1)
            if not page or head_of(page[0]) != self._seen:
                self._lose()
        read = 0
        while page := self._store.audit(self._seen.sequence, PAGE):
            for record in page:
                self._seen = self._check(record, self._seen)
            read += len(page)
            if read >= self._piece:
                self._seen = self._end(self._seen)

    def _lose(self) -> None:
        """The log was cut off or written anew. From now on what it has become is followed."""
        lost, self._seen, self._round = self._seen, self._end(START), START
        error = f"the log no longer holds this record as it was: it was cut off or written anew, and ends at {self._seen.sequence} now"
        self._tell(lost, error)
        heads = self._heads or {}
        self._heads = {sequence: digest for sequence, digest in heads.items() if sequence < min(lost.sequence, self._seen.sequence + 1)}

    def _end(self, known: Head) -> Head:
        """The last record, at or after a known one: a place beyond it is guessed, and halved."""
        low, beyond = known, max(known.sequence, 1)
        while page := self._store.audit(beyond, 1):
            low, beyond = head_of(page[0]), 2 * page[0].sequence
        while low.sequence < beyond:
            middle = (low.sequence + beyond) // 2
            page = self._store.audit(middle, 1)
            low, beyond = (head_of(page[0]), beyond) if page else (low, middle)
        return low

    def _write_down(self) -> None:
        if self._seen.sequence == self._written:
            return
        log.info("audit.head", sequence=self._seen.sequence, digest=self._seen.digest)
        if self._path:
            self._append()
        self._written = self._seen.sequence

    def _look_back(self) -> None:
        """One piece of the round: the chain up to the last record, against the heads of the file."""
        left = self._piece
        while left > 0 and self._round.sequence < self._seen.sequence:
            page = self._store.audit(self._round.sequence, min(left, PAGE, self._seen.sequence - self._round.sequence))
            if not page:
                break  # cut off since `_follow`: the next look finds it
            for record in page:
                self._round = self._check(record, self._round)
                if (self._heads or {}).get(record.sequence, record.digest) != record.digest:
                    self._tell(head_of(record), "the log does not hold the checkpoint of this record")
            left -= len(page)
        if self._round.sequence >= self._seen.sequence:
            self._round = START

    def _check(self, record: AuditRecord, before: Head) -> Head:
        """Its place; told if it does not fit the one before."""
        if record.sequence != before.sequence + 1 or seal(record.sequence, before.digest, record.entry).digest != record.digest:
            self._tell(head_of(record), "the record does not fit the one before it")
        return head_of(record)

    def _tell(self, what: Head, error: str) -> None:
        if what in self._told:
            return
        if len(self._told) < MAX_TOLD:
            self._told.add(what)
        log.error("audit.broken", sequence=what.sequence, error=error)
        self._broken()

    def _append(self) -> None:
        line = json.dumps({"time": round(self._clock.now(), 3), "sequence": self._seen.sequence, "digest": self._seen.digest})
        with open(self._path, "a", encoding="utf-8") as file:
            torn, self._torn = self._torn, True
            file.write("\n" * torn + line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._torn = False


def read_heads(path: str) -> Written:
    """The newest checkpoints of a file, oldest first. A server that was killed while it wrote leaves half a line. Raises OSError."""
    text = Path(path).read_bytes().decode("utf-8", "replace")
    found = Written(ends=text.endswith("\n") or not text)
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        head = _head(line)
        if head is not None:
            found.heads.append(head)
        else:
            (found.foreign if line.rstrip().endswith("}") else found.torn).append(number)
    del found.heads[:-MAX_HEADS]
    return found


def _head(line: str) -> Head | None:
    try:
        document = json.loads(line)
    except ValueError:
        return None
    sequence, digest = (document.get(name) for name in ("sequence", "digest")) if isinstance(document, dict) else (None, None)
    if not isinstance(sequence, int) or not isinstance(digest, str) or not 0 < sequence < 1 << 63:
        return None
    return Head(sequence, digest)


def head_of(record: AuditRecord) -> Head:
    """The place of a record."""
    return Head(record.sequence, record.digest)
