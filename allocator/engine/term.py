"""Being the one planner, for a while: the term that a store grants to one of its servers.

In: the store, and a name for this server. Out: the number of the term in force here, or None. The end of a term is counted on this
process's own monotonic clock from before the store was asked, so it is never later here than there: a planner that was paused finds its
term over before it writes, and if it finds out too late the store refuses its number.

A planner that cannot plan does not renew: its term runs out, and another server has its turn.
"""

from __future__ import annotations

import math

import structlog

from allocator.errors import AllocatorError
from allocator.ports import Clock, Store

TERM_SECONDS = 5.0  # another server takes over within twice that, however the planner was lost
RENEWALS = 3  # asked for in each term
ATTEMPT_SECONDS = 1.0  # between two attempts while another leads

log = structlog.get_logger()


class Term:
    """This server's part in planning. Belongs to the planner's passes."""

    def __init__(self, store: Store, clock: Clock, holder: str, seconds: float = TERM_SECONDS) -> None:
        self._store = store
        self._clock = clock
        self._seconds = seconds
        self._end = -math.inf
        self._ask_at = -math.inf
        self.holder = holder
        self.number: int | None = None

    def hold(self, *, healthy: bool) -> int | None:
        """Begin a term or stay in it if that is possible; its number, or None. healthy: did the last pass that the store let begin succeed?

        Raises Unavailable when the store cannot be asked.
        """
        sent = self._clock.monotonic()
        if self.number is not None and sent >= self._end:
            self.number = None
            self._ask_at = sent if healthy else sent + self._seconds  # others first
        if sent < self._ask_at or (self.number is not None and not healthy):
            return self.number
        self._ask_at = sent + ATTEMPT_SECONDS
        self.number = self._store.lead(self.holder, self._seconds)
        if self.number is not None:
            self._end = sent + self._seconds
            self._ask_at = sent + min(self._seconds / RENEWALS, ATTEMPT_SECONDS)
        return self.number

    def in_force(self) -> bool:
        """May this server still write as the planner?"""
        return self.number is not None and self._clock.monotonic() < self._end

    def lost(self) -> None:
        """Another term has begun."""
        self.number = None

    def resign(self) -> None:
        """Make room at once. A store that does not hear it sees the term run out."""
        if self.number is None:
            return
        self.number = None
        try:
            self._store.resign(self.holder)
        except AllocatorError as error:
            log.warning("term.not_resigned", reason=error.reason, error=error.message)
