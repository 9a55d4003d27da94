"""The store for several servers: Redis alone, behind Sentinels, or as a Cluster. In: the words of `Store`. Out: the same, in Redis.

One script is one atomic step over the keys of one experiment (`keys.py`), and everything that a step of `Store` promises for one
experiment happens in one script. What spans experiments is a step for each (`saving.py` says what a crash between them leaves behind,
and who mends it).

What is promised depends on how Redis is run; the README says it. `wait=0`: as much as the one server keeps. `wait=1` and more: an answer
came from that many replicas too. Redis promises neither of these to be the servers that a failover picks.

Trouble is Unavailable, and soon: within the timeout of the address, afterwards at once until the server is back. Then nobody knows
whether a call that was under way took effect; outcomes may be sent again, a save is looked up. A store that lost its data is STORE_LOST.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from allocator.core.audit import AuditEntry, AuditRecord
from allocator.core.record import Cell, Record
from allocator.errors import AllocatorError
from allocator.ports import Counted, Entropy, ExposureRow, News, OutcomeRow, Save, SystemEntropy
from allocator.stores import rules
from allocator.stores.redis.address import parse
from allocator.stores.redis.counting import Counting
from allocator.stores.redis.keys import Keys
from allocator.stores.redis.life import Life
from allocator.stores.redis.link import Link
from allocator.stores.redis.listening import Listening
from allocator.stores.redis.saving import Saving

ADDING = 4  # calls of `add_soon` under way at once


class RedisStore:
    """A `Store` at a URL (`address.py`). Nothing is asked of the servers before the first call: a server starts without its store.

    Raises InvalidArgument for a URL that is wrong. Any thread may call; several servers share one store.
    """

    shared = True

    def __init__(self, url: str, entropy: Entropy = SystemEntropy()) -> None:  # noqa: B008  (it has no state)
        self.url = url
        self.address = parse(url)
        keys = Keys(self.address.prefix)
        writer = secrets.token_hex(8)  # never the same for two objects, whatever the entropy given
        self._closed = False
        self._link = Link(self.address)
        self._life = Life(self._link, keys, entropy)
        self._counting = Counting(self._link, keys, self._life, writer)
        self._saving = Saving(self._link, keys, self._life, writer, self._counting.announce)
        self._listening = Listening(self._link, keys.common("news"), writer)
        self._adding = ThreadPoolExecutor(ADDING, "redis-add")

    def __repr__(self) -> str:
        return f"RedisStore({self.address})"

    def secret(self) -> bytes:
        self._check()
        return self._life.secret

    def records(self) -> list[Record]:
        self._check()
        return self._saving.records()

    def record(self, name: str) -> Record | None:
        self._check()
        return self._saving.record(name)

    def save(self, saves: Sequence[Save], term: int | None = None) -> list[AllocatorError | None]:
        self._check()
        return self._saving.save(saves, term)

    def add(self, outcomes: Sequence[OutcomeRow], exposures: Sequence[ExposureRow] = ()) -> list[Counted]:
        rules.check_nonces(outcomes)
        self._check()
        return self._counting.add(outcomes, exposures)

    def ready(self, exposures: Sequence[ExposureRow]) -> list[ExposureRow]:
        return list(exposures)

    def add_soon(self, outcomes: Sequence[OutcomeRow], exposures: Sequence[ExposureRow] = ()) -> Future[list[Counted]]:
        self._check()
        return self._adding.submit(self.add, outcomes, exposures)

    def cells(self, uid: str) -> list[Cell]:
        self._check()
        return self._counting.cells(uid, "open")

    def settled(self, uid: str) -> list[Cell]:
        self._check()
        return self._counting.cells(uid, "settled")

    def changed(self, since: int) -> tuple[int, list[str]]:
        self._check()
        return self._counting.changed(since)

    def grant(self, uid: str, arm: int, kind: str, amount: int, limit: int) -> int:
        self._check()
        return self._counting.grant(uid, arm, kind, amount, limit)

    def granted(self, uid: str) -> dict[tuple[int, str], int]:
        self._check()
        return self._counting.granted(uid)

    def audit(self, after: int = 0, limit: int = 1000, experiment: str | None = None) -> list[AuditRecord]:
        self._check()
        return self._saving.audit(after, limit, experiment)

    def lead(self, holder: str, seconds: float) -> int | None:
        self._check()
        return self._saving.lead(holder, seconds)

    def resign(self, holder: str) -> None:
        self._check()
        self._saving.resign(holder)

    def news(self, since: int) -> News:
        self._check()
        return self._saving.news(since)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        self._check()
        return self._listening.listen(listener)

    def items(self, kind: str) -> dict[str, str]:
        self._check()
        return self._saving.items(kind)

    def put(self, kind: str, key: str, value: str | None, expected: str | None = None, audit: Sequence[AuditEntry] = ()) -> None:
        self._check()
        self._saving.put(kind, key, value, expected, audit)

    def begin(self, secret: bytes) -> str:
        self._check()
        return self._life.begin(secret)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._adding.shutdown()
        self._listening.close()
        self._counting.close()
        self._link.close()

    def _check(self) -> None:
        if self._closed:
            raise rules.closed()
