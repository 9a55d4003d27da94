"""The current snapshot, and waiting for the next.

In: entries from the planner and from commands. Out: one reference that readers take once for each request, and the changes since a
sequence for those that watch. An entry never goes back to an older version, whoever publishes last: a freeze that was acknowledged
cannot be undone by a plan computed before it. That holds within one life of the store (its epoch); with another one, those that watch are
given the full table, which they take as it is.

The lease: readers serve candidates only while the planner has confirmed the table within an experiment's `lease`, by the monotonic clock
of this process, and as of a moment before it looked: a pause between looking and confirming makes the table old, not young.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import takewhile

from allocator.core.snapshot import Entry, Snapshot
from allocator.ports import Clock

MAX_CHANGES_KEPT = 10_000


class Live:
    """The snapshot in force. `snapshot` and `confirmed` may be read without a lock from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._changes: deque[tuple[int, str]] = deque(maxlen=MAX_CHANGES_KEPT)
        self._listeners: set[Callable[[], None]] = set()
        self._begun = 0  # the sequence with which this life of the store began
        self.snapshot = Snapshot()
        self.confirmed = float("-inf")  # monotonic seconds at which the planner last said that this table holds

    def publish(self, entries: Iterable[Entry], removed: Iterable[str] = ()) -> Snapshot:
        """Swap in a snapshot with these entries; those older than what is served are left out. Returns it."""
        entries, removed = list(entries), list(removed)
        with self._lock:
            after = self.snapshot.replaced(entries, removed)
            for name in removed:
                self._changes.append((after.sequence, name))
            for entry in entries:
                if after.entries.get(entry.experiment) is entry:
                    self._changes.append((after.sequence, entry.experiment))
            self.snapshot = after
            listeners = list(self._listeners)
        for listener in listeners:
            listener()
        return after

    def begin(self, epoch: str, entries: Iterable[Entry] | None = None) -> None:
        """The table is of this life of the store from now on. entries: all of it, whatever their versions; None: it stays what it is."""
        with self._lock:
            before = self.snapshot
            if entries is None and epoch == before.epoch:
                return
            self.snapshot = before.begun(epoch, before.entries.values() if entries is None else entries)
            self._begun = self.snapshot.sequence
            self._changes.clear()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def confirm(self, at: float) -> None:
        """The table held at `at`, monotonic seconds: the planner had not changed anything that is not in it."""
        self.confirmed = max(self.confirmed, at)

    def distrust(self) -> None:
        """Nothing holds until it is confirmed again: everyone gets the incumbent, here and at those that watch."""
        self.confirmed = float("-inf")

    def age(self) -> float:
        """Seconds since the planner last confirmed the table; infinite before the first time."""
        return self._clock.monotonic() - self.confirmed

    def stale(self, entry: Entry) -> bool:
        """Is the lease of this entry over?"""
        return self._clock.monotonic() - self.confirmed > entry.lease_seconds

    def changes_since(self, sequence: int) -> tuple[Snapshot, list[Entry], list[str], bool]:
        """The snapshot now, entries changed after `sequence`, names gone, and whether this is the full table.

        The full table comes when `sequence` is 0, unknown, too long ago, or of an earlier life of the store.
        """
        with self._lock:
            now = self.snapshot
            kept = len(self._changes) < MAX_CHANGES_KEPT or self._changes[0][0] <= sequence
            known = 0 < sequence <= now.sequence and sequence >= self._begun and kept
            if not known:
                return now, list(now.entries.values()), [], True
            names = {name for _, name in takewhile(lambda change: change[0] > sequence, reversed(self._changes))}
        changed = [now.entries[name] for name in sorted(names) if name in now.entries]
        return now, changed, sorted(name for name in names if name not in now.entries), False

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener`, from whichever thread publishes, after each change. Returns what stops it."""
        with self._lock:
            self._listeners.add(listener)

        def stop() -> None:
            with self._lock:
                self._listeners.discard(listener)

        return stop
