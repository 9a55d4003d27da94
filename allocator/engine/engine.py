"""The engine whole: store, snapshot, planner, ingest and commands, joined once.

In: the ports. Out: an object that the server, the tests and the simulator drive. `start` loads what the store holds and plans once before
anyone asks; with `threads` off nothing runs by itself, and the caller ticks the planner with a clock of its own. Leases of budgets are
filled at each tick and when one runs low: then by the decision that left it low, or with threads by the planner soon after. A caller
whose decisions must not wait for the store sets `decider.low` to what has `fill_leases` called elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from allocator.core.decider import Decider
from allocator.core.decision_id import client_key
from allocator.core.description import Description, describe
from allocator.core.plan import coarsening
from allocator.core.record import Record
from allocator.core.summary import Row, by_bucket, summary
from allocator.engine.commands import Commands
from allocator.engine.grants import Grants
from allocator.engine.ingest import Ingest
from allocator.engine.live import Live
from allocator.engine.planner import Planned, Planner
from allocator.engine.registry import Registry
from allocator.ports import Clock, Entropy, Store


class Engine:
    """Everything between a transport and a store."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        entropy: Entropy,
        refresh_seconds: float = 1.0,
        observe: Callable[[Planned], None] | None = None,
        *,
        restarted: bool = True,
    ) -> None:
        self.store = store
        self.clock = clock
        self.entropy = entropy
        key = self._secret = store.secret()
        self.live = Live(clock)
        self.registry = Registry(store, self.live)
        self.decider = Decider(key, restarted=restarted, life=int(clock.now() * 1e6))  # later lives are larger; no two begin at once
        self.grants = Grants(store, self.live, self.decider)
        self.planner = Planner(store, self.registry, self.live, self.grants, clock, refresh_seconds, observe)
        self.ingest = Ingest(store, self.registry, key, clock, self.planner.wake)
        self.commands = Commands(self.registry, self.planner, clock, entropy)

    def start(self, *, threads: bool = True) -> None:
        """Load, plan once, and (with threads) keep planning."""
        self.registry.load()
        self.planner.tick()
        self.decider.low = self.planner.wake if threads else self.fill_leases
        if threads:
            self.planner.start()

    def issue_keys(self, count: int) -> list[tuple[int, bytes]]:
        """Numbers and keys with which deciders elsewhere make decision ids. Nothing is kept: two may have the same without harm."""
        numbers = [int.from_bytes(self.entropy.bytes(4), "big") or 1 for _ in range(count)]
        return [(number, client_key(self._secret, number)) for number in numbers]

    def lease_exposure(self, wanted: Sequence[tuple[str, int, str, int]]) -> list[tuple[int, int]]:
        """Set exposures aside for deciders elsewhere; each wanted: uid, arm, kind, how many. See `Grants.lease`. Waits for the store."""
        return [self.grants.lease(*each) for each in wanted]

    def fill_leases(self) -> None:
        """Set aside more of the budgets for this process's decider, where it needs more. Waits for the store."""
        self.grants.fill()

    def describe(self, name: str) -> Description:
        """The experiment as of now. Raises NotFound."""
        record = self.registry.get(name)
        return describe(record, self.planner.tally(record), self.clock.now())

    def statistics(self, name: str, *, buckets: bool = False) -> tuple[Record, list[Row], list[Row]]:
        """The record, its sums since the start, and with `buckets` those of each bucket of decision time. Raises NotFound."""
        record = self.registry.get(name)
        found = self.planner.tally(record)
        coarse = coarsening(record.experiment) * record.experiment.bucket_width_seconds
        return record, summary(record, found), by_bucket(record, found, coarse) if buckets else []

    def close(self) -> None:
        """Stop planning, store the last exposures, close the store."""
        self.planner.stop()
        exposures = self.decider.take()
        if exposures:
            self.ingest.report((), exposures)
        self.store.close()
