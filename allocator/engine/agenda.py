"""What the planner looks at next, and what can wait.

In: who asked, what this server counted, what the store says has changed, when each experiment is due. Out: the experiments of the next
pass. First those that somebody asked for, then those with losses, since a freeze may hang on them. Then, mixed so that none of them
keeps the others waiting for ever: those with other new outcomes; all of them, once, after a takeover; and what is merely due, a few a
second. Due is what its time has come for, and an experiment to which nothing but exposures came: what was not reported yet counts as
harmless, so exposures alone never show harm, and weights follow outcomes. Of 10,000 experiments with traffic all would be planned all the
time otherwise, and decisions would wait for the interpreter.

On a store that others count in as well, nobody tells their outcomes from exposures: there all that changed counts as outcomes.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Collection, Iterable
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import NamedTuple

QUIET_SECONDS = 5.0  # after exposures came and nothing else, an experiment is due
ROUTINE_A_SECOND = 40.0  # looks at what is merely due, over all experiments: 10,000 that are always due have their turn every 250 s
ROUTINE_AT_ONCE = 256
SHARE = 8  # of a pass, one in so many at least is for each kind of what can wait


class Turn(NamedTuple):
    """The experiments of one pass. asked: with weights, whatever happened to them. losses: at once. then: as far as there is time."""

    asked: list[str]
    losses: list[str]
    then: list[str]


class Agenda:
    """`ask` and `counted` may be called from any thread; the others belong to the planner's passes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: deque[str] = deque()
        self._losses: dict[str, None] = {}
        self._reported: set[str] = set()
        self._exposed: set[str] = set()
        self._fresh: dict[str, None] = {}
        self._unseen: dict[str, None] = {}
        self._due = Due()
        self._quiet: set[str] = set()  # due for nothing but exposures
        self._routine = float(ROUTINE_AT_ONCE)  # looks to spend
        self._refilled = -math.inf

    def ask(self, uid: str) -> None:
        """Look at this one in the next pass, whatever happened to it."""
        self._asked.append(uid)

    def counted(self, outcomes: Collection[str], exposures: Collection[str], losses: Collection[str]) -> None:
        """The experiments of which this server has just counted outcomes, exposures, losses."""
        with self._lock:
            self._reported.update(outcomes)
            self._exposed.update(exposures)
            self._losses.update(dict.fromkeys(losses))

    def forget(self) -> None:
        """Somebody else plans: nothing was asked, counted or changed."""
        with self._lock:
            for kept in (self._asked, self._losses, self._reported, self._exposed, self._fresh, self._unseen, self._quiet):
                kept.clear()

    def changed(self, uids: Iterable[str], now: float, *, shared: bool) -> None:
        """The store says that cells of these changed. shared: others may have counted them.

        What was counted here is told after the store has it, so it may come with the next look.
        """
        with self._lock:
            reported, self._reported = self._reported, set()
            exposed, self._exposed = self._exposed, set()
        self._fresh.update(dict.fromkeys(reported & self._quiet))
        for uid in uids:
            if shared or uid in reported or uid not in exposed:
                self._fresh[uid] = None
            else:
                self._quiet.add(uid)
                self._due.sooner(uid, now + QUIET_SECONDS)

    def everything(self, uids: Iterable[str]) -> None:
        """Look at each of these, in this order; there is no news, and nothing is due."""
        self._fresh.clear()
        self._due.clear()
        self._quiet.clear()
        self._unseen = dict.fromkeys(uids)

    def set(self, uid: str, at: float) -> None:
        """Look at it at `at`, seconds since the epoch; never by itself when infinite."""
        self._due.set(uid, at)

    def sooner(self, uid: str, at: float) -> None:
        """Look at it at `at`, or before that."""
        self._due.sooner(uid, at)

    def again(self, uids: Iterable[str]) -> None:
        """Look at these in the next pass: there was no time in this one, or somebody else wrote first."""
        self._fresh.update(dict.fromkeys(uids))

    def take(self, now: float, monotonic: float, most: int) -> Turn:
        """What comes next; they are due no more. At most so many, beside those that were asked for or have losses.

        now: seconds since the epoch; monotonic: of the other clock.
        """
        asked: dict[str, None] = {}
        while self._asked:
            asked[self._asked.popleft()] = None
        with self._lock:
            found, self._losses = self._losses, {}
        losses = [uid for uid in found if uid not in asked]
        for uid in (*asked, *losses):
            self._fresh.pop(uid, None)
            self._unseen.pop(uid, None)
        self._routine = min(ROUTINE_AT_ONCE, self._routine + max(0.0, monotonic - self._refilled) * ROUTINE_A_SECOND)
        self._refilled = monotonic
        room = max(0, most - len(asked) - len(losses))
        least = -(-room // SHARE)
        routine = self._due.take(now, min(int(self._routine), max(least, room - len(self._fresh) - len(self._unseen))))
        self._routine -= len(routine)
        room -= len(routine)
        unseen = list(islice(self._unseen, min(room, max(least, room - len(self._fresh)))))
        fresh = list(islice(self._fresh, room - len(unseen)))
        then = dict.fromkeys(_mixed(fresh, unseen, [uid for uid in routine if uid not in asked and uid not in found]))
        for uid in then:
            self._fresh.pop(uid, None)
            self._unseen.pop(uid, None)
        self._quiet.difference_update(asked, losses, then)
        return Turn(list(asked), losses, list(then))

    def give_back(self, turn: Turn) -> None:
        """The pass came to nothing: all of it comes again."""
        self._asked.extend(turn.asked)
        with self._lock:
            self._losses.update(dict.fromkeys(turn.losses))
        self.again(turn.then)

    def waiting(self) -> bool:
        """Is there more for a pass now?"""
        return bool(self._fresh or self._unseen or self._asked or self._losses)


def _mixed(*kinds: list[str]) -> list[str]:
    """All of them, each kind in its order and spread over the whole."""
    placed = [((place + 0.5) / len(kind), number, uid) for number, kind in enumerate(kinds) for place, uid in enumerate(kind)]
    return [uid for _, _, uid in sorted(placed)]


class Due:
    """When each experiment is to be looked at, the next one at hand whatever their number."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # with times that were changed since; they are skipped

    def clear(self) -> None:
        """Nothing is due."""
        self._at.clear()
        self._heap.clear()

    def set(self, uid: str, at: float) -> None:
        """Look at it at `at`; never when infinite."""
        self._at[uid] = at
        if at < math.inf:
            heappush(self._heap, (at, uid))
            if len(self._heap) > 2 * len(self._at) + 64:
                self._heap = [(at, uid) for uid, at in self._at.items() if at < math.inf]
                heapify(self._heap)

    def sooner(self, uid: str, at: float) -> None:
        """Look at it at `at`, or before that."""
        if at < self._at.get(uid, math.inf):
            self.set(uid, at)

    def take(self, now: float, most: int) -> list[str]:
        """Those due, the longest due first, at most so many. They are not due any more."""
        taken = []
        while len(taken) < most and self._heap:
            at, uid = self._heap[0]
            if self._at.get(uid) == at:
                if at > now:
                    break
                taken.append(uid)
                self._at[uid] = math.inf
            heappop(self._heap)
        return taken
