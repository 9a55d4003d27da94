"""The head of the audit log, written down outside the store: what a cut or rewritten log no longer holds.

In: the store. Out: every minute and at the end, if the log has grown, a line in the server's log and one in a file: the sequence and digest
of the last record. A chain of digests shows every edit but one: somebody who rewrites it to its end, or cuts its end off, leaves a chain
that fits. Keep the file where those who can write the store cannot: another disk, another machine, write-once storage. Records that came
after the last checkpoint are not covered by it. Signing was dropped: a key beside the server is in the same hands as the store.

The chain is verified on the way, so a log that was altered under a running server is found within a minute, from the last checkpoint on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import structlog

from allocator.core.audit import GENESIS, seal
from allocator.errors import AllocatorError
from allocator.ports import Clock, Store

PAGE = 1000

log = structlog.get_logger()


class Checkpoints:
    """Follows the audit log of a store. path: the file to append to; "" for the server's log alone. broken: called for each record that
    does not fit the one before it.
    """

    def __init__(self, store: Store, path: str, clock: Clock, broken: Callable[[], None] = lambda: None) -> None:
        self._broken = broken
        self._store = store
        self._path = path
        self._clock = clock
        self._sequence, self._digest = 0, GENESIS
        self._written = 0

    def write(self) -> None:
        """Write the head down if the log has grown. What goes wrong is logged: a checkpoint must not stop a server."""
        try:
            self._follow()
            if self._sequence == self._written:
                return
            log.info("audit.head", sequence=self._sequence, digest=self._digest)
            if self._path:
                self._append()
            self._written = self._sequence
        except AllocatorError as error:
            log.warning("audit.no_checkpoint", reason=error.reason, error=error.message)
        except OSError as error:
            log.error("audit.no_checkpoint", path=self._path, error=error.strerror)

    def _follow(self) -> None:
        """Read what is new, and check that it fits what was read before."""
        while page := self._store.audit(self._sequence, PAGE):
            for record in page:
                fits = record.sequence == self._sequence + 1 and seal(record.sequence, self._digest, record.entry).digest == record.digest
                if not fits:
                    log.error("audit.broken", sequence=record.sequence)
                    self._broken()
                self._sequence, self._digest = record.sequence, record.digest

    def _append(self) -> None:
        line = json.dumps({"time": round(self._clock.now(), 3), "sequence": self._sequence, "digest": self._digest})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
