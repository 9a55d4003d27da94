"""Reading what other servers wrote: the store's news → records → the snapshot, and until when it holds.

In: the store's news since the last look. Out: newer records, published; and as of when a planner elsewhere is known to live. The planner
renews its term only while its passes succeed, so whoever sees the beat grow between two looks knows that what stood in the store at
the first of them was in force until then, and has since read all that was saved up to the second. No clock but this process's own is asked.
"""

from __future__ import annotations

import math

from allocator.core.record import Record
from allocator.engine.keeper import Keeper
from allocator.engine.registry import Registry
from allocator.ports import Clock, Store


class Follower:
    """One server's place in the news. Belongs to the planner's passes."""

    def __init__(self, store: Store, registry: Registry, keeper: Keeper, clock: Clock) -> None:
        self._store = store
        self._registry = registry
        self._keeper = keeper
        self._clock = clock
        self._mark = 0
        self._compared = False
        self._expected: set[str] = set()  # names that the next news must tell of
        self._beat = 0
        self._looked = -math.inf
        self.asked = -math.inf  # monotonic seconds of this look
        self.confirmed = -math.inf  # and of the last moment at which a planner elsewhere was known to live

    def look(self) -> list[Record]:
        """Publish what others changed since the last look. Returns it. Raises Unavailable."""
        asked = self._clock.monotonic()
        self._expected |= self._registry.take_written()
        news = self._store.news(self._mark)
        went_back = news.mark < self._mark or news.beat < self._beat or not self._expected <= set(news.names)
        everything = self._keeper.check(news) or went_back or not self._compared
        found = self._registry.read(None if everything else news.names)
        if found.older:
            self._keeper.older(found.older)
        self._mark, self._compared = news.mark, True
        self._expected.clear()
        if news.beat > self._beat:
            self.confirmed = self._looked
        self._beat, self._looked, self.asked = news.beat, asked, asked
        return found.changed

    def start_over(self) -> None:
        """Compare everything at the next look."""
        self._compared = False
