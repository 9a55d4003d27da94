"""Keeps the leases of this process's decider filled, out of what the store sets aside.

In: the limits of each plan, and how much the decider has spent. Out: blocks of exposures, granted by the store before they are handed over,
so that whatever happens afterwards less is received than was granted, never more. Whoever plans or serves calls `fill`: after each
plan, from time to time, and when the decider says that a lease runs low. It waits for the store, so never where decisions are made.

A lease follows its use (`core/leasing.py`). What a process holds is lost when it stops, so near a limit blocks shrink to a quarter of what
is left of it.

Dropped: giving back what was not spent (a crash between the two counts twice what was spent); asking the store for each exposure (a
decision would wait for the disk); a share of the budget for each process (the busy one stops while the idle one sits on the rest).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import structlog

from allocator.core.budget import TOGETHER, Limits
from allocator.core.decider import Decider
from allocator.core.gate import REQUESTS, UNITS
from allocator.core.leasing import MOST, Lease
from allocator.core.snapshot import Entry
from allocator.engine.live import Live
from allocator.errors import AllocatorError, Unavailable
from allocator.ports import Store

NEAR = 4  # a block is at most this part of what may still be granted

log = structlog.get_logger()


class Grants:
    """The leases of one decider. Any thread may call; they take turns."""

    def __init__(self, store: Store, live: Live, decider: Decider) -> None:
        self._store = store
        self._live = live
        self._decider = decider
        self._lock = threading.Lock()
        self._limits: dict[str, Limits] = {}
        self.observe: Callable[[str, dict[tuple[int, str], int]], None] | None = None  # told of what is known to have been granted
        self._leases: dict[tuple[str, int, str], Lease] = {}

    def renew(self, uid: str, limits: Limits | None) -> None:
        """The limits of an experiment as of its latest plan; None when it has none, or has ended."""
        with self._lock:
            if limits is None:
                self._limits.pop(uid, None)
            else:
                self._limits[uid] = limits

    def fill(self, uids: Iterable[str] | None = None) -> None:
        """Fill up every lease that needs it, of these experiments or of all.

        A store that cannot write is told of in the log, and asked again next time.
        """
        with self._lock:
            for uid in list(self._limits) if uids is None else uids:
                limits = self._limits.get(uid)
                if limits is None:
                    continue
                entry = self._live.snapshot.by_uid.get(bytes.fromhex(uid))
                if entry is None or entry.only is not None:
                    continue
                try:
                    self._fill(entry, uid, limits)
                except Unavailable as error:
                    log.warning("budget.not_granted", experiment=entry.experiment, reason=error.reason, error=error.message)
                    return  # nor will the others be
                except AllocatorError as error:
                    log.warning("budget.not_granted", experiment=entry.experiment, reason=error.reason, error=error.message)

    def lease(self, uid: str, arm: int, kind: str, wanted: int) -> tuple[int, int]:
        """Set exposures aside for a decider elsewhere: how many of those wanted, and the activation that they are of.

        What it does not spend is lost with it, so this may be asked again after any trouble. 0 where nothing is left or may be had now: the
        experiment is unknown, frozen or not limited, or the arm has no share. Raises Unavailable or Overloaded when the store cannot write.
        """
        with self._lock:
            entry, limits = self._live.snapshot.by_uid.get(bytes.fromhex(uid)), self._limits.get(uid)
            if entry is None:
                return 0, 0
            leased = entry.leased_requests if kind == REQUESTS else entry.leased_units
            if limits is None or not leased or entry.only is not None or arm >= len(limits.requests) or not _planned(entry, arm):
                return 0, entry.activation
            return self._grant(entry, uid, kind, arm, min(wanted, MOST), limits, self._store.granted(uid)), entry.activation

    def held(self, uid: str) -> frozenset[int]:
        """Arms of which this process holds requests that are not spent yet."""
        with self._lock:
            entry = self._live.snapshot.by_uid.get(bytes.fromhex(uid))
            return frozenset(
                arm
                for arm in range(len(entry.arms) if entry is not None else 0)
                if (lease := self._leases.get((uid, arm, REQUESTS))) is not None
                and lease.activation == entry.activation
                and lease.left(self._spent(entry, REQUESTS, arm))
            )

    def _fill(self, entry: Entry, uid: str, limits: Limits) -> None:
        granted: dict[tuple[int, str], int] | None = None
        for arm in range(len(entry.arms)):
            if arm >= len(limits.requests) or not _planned(entry, arm):
                continue
            for kind, leased in ((REQUESTS, entry.leased_requests), (UNITS, entry.leased_units)):
                wanted = self._wanted(entry, uid, kind, arm) if leased else 0
                if not wanted:
                    continue
                if granted is None:
                    granted = self._store.granted(uid)
                got = self._grant(entry, uid, kind, arm, wanted, limits, granted)
                if got:
                    self._decider.budget(entry.uid).post(kind, arm, self._leases[uid, arm, kind].block(got))
        if granted is not None and self.observe is not None:
            self.observe(uid, granted)

    def _wanted(self, entry: Entry, uid: str, kind: str, arm: int) -> int:
        """How much the lease should grow by; 0 while it is more than half full."""
        lease = self._leases.setdefault((uid, arm, kind), Lease())
        return lease.wanted(entry.activation, self._spent(entry, kind, arm))

    def _grant(
        self, entry: Entry, uid: str, kind: str, arm: int, wanted: int, limits: Limits, granted: dict[tuple[int, str], int]
    ) -> int:
        """Set aside up to `wanted`, from every account that it counts in; what one of them refuses is lost to those before."""
        own = (limits.requests if kind == REQUESTS else limits.units)[arm]
        accounts = [(arm, kind, own)] if own is not None else []
        if kind == REQUESTS and limits.together is not None:
            accounts.insert(0, (entry.incumbent, TOGETHER, limits.together))
        room = min((limit - granted.get((of, name), 0) for of, name, limit in accounts), default=0)
        got = min(wanted, max(room // NEAR, 1)) if room > 0 else 0
        for of, name, limit in accounts:
            if got:
                got = self._store.grant(uid, of, name, got, limit)
                granted[of, name] = granted.get((of, name), 0) + got
        return got

    def _spent(self, entry: Entry, kind: str, arm: int) -> int:
        return self._decider.budget(entry.uid).spent(kind, arm)


def _planned(entry: Entry, arm: int) -> bool:
    """Is this a candidate that serves somebody?"""
    return arm != entry.incumbent and any(arm < len(table.served) and table.served[arm] for table in entry.tables)
