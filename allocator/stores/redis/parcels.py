"""Exposures on their way: what was handed over and is not known to be counted.

Exposures have no ids, so that a reply that was lost leaves open whether they were counted. They are gathered into numbered parcels, one
under way for each experiment; the store remembers the last number of each writer, so that a parcel of unknown fate is sent again, as it
was, before any other. Counted once while this process lives and the store keeps what it has.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from allocator.stores import rules
from allocator.stores.rules import Sums

log = logging.getLogger(__name__)


class Parcel(NamedTuple):
    """number: 1, 2, 3, ... for each experiment."""

    number: int
    sums: Sums


class Parcels:
    """Gathers and sends. deliver: sends the parcels under way, by uid, and returns those that are done with. Any thread may call."""

    def __init__(self, deliver: Callable[[Mapping[str, Parcel]], set[str]]) -> None:
        self._deliver = deliver
        self._gathering = threading.Lock()
        self._sending = threading.Lock()
        self._waiting: dict[str, Sums] = {}
        self._under_way: dict[str, Parcel] = {}
        self._numbers: dict[str, int] = {}
        self._stuck = False

    def put(self, sums: Mapping[str, Sums]) -> None:
        """Take these over, by uid: from now on they are sent until they are counted."""
        with self._gathering:
            for uid, added in sums.items():
                waiting = self._waiting.setdefault(uid, {})
                for key, values in added.items():
                    rules.add(waiting, key, values)

    def send(self) -> None:
        """Send what there is. What does not get through stays for the next time."""
        if not self._waiting and not self._under_way:
            return
        with self._sending:
            while self._load():
                done = self._deliver(self._under_way)
                for uid in done:
                    del self._under_way[uid]
                if self._under_way:
                    if not self._stuck:
                        log.warning("exposures of %d experiments did not get through; they are sent again later", len(self._under_way))
                    self._stuck = True
                    return
            if self._stuck:
                log.info("the exposures that had not got through are counted")
            self._stuck = False

    def _load(self) -> bool:
        """Make parcels of what waits, where none is under way. Is anything under way?"""
        with self._gathering:
            for uid in self._waiting.keys() - self._under_way.keys():
                self._numbers[uid] = self._numbers.get(uid, 0) + 1
                self._under_way[uid] = Parcel(self._numbers[uid], self._waiting.pop(uid))
        return bool(self._under_way)
