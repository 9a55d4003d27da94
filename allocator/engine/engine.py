"""The engine whole: store, snapshot, planner, ingest and commands, joined once.

In: the ports. Out: an object that the server, the tests and the simulator drive. `start` loads what the store holds and plans once before
anyone asks; with `threads` off nothing runs by itself, and the caller ticks the planner with a clock of its own. Leases of budgets are
filled at each tick and when one runs low: then by the decision that left it low, or with threads by the planner soon after. A caller
whose decisions must not wait for the store sets `decider.low` to what has `fill_leases` called elsewhere.

Without its store it starts all the same, from what its own disk remembers, and joins when the store comes: decisions never ask the store.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

import structlog

from allocator.core.decider import Decider
from allocator.core.decision_id import client_key
from allocator.core.description import Description, describe
from allocator.core.record import Record
from allocator.core.settling import coarsening
from allocator.core.summary import Row, by_bucket, summary
from allocator.engine.commands import Commands
from allocator.engine.grants import Grants
from allocator.engine.ingest import Ingest
from allocator.engine.keeper import Keeper
from allocator.engine.live import Live
from allocator.engine.planner import PASS_EXPERIMENTS, Planned, Planner
from allocator.engine.registry import Registry
from allocator.engine.term import Term
from allocator.errors import AllocatorError, Overloaded, Unavailable
from allocator.ports import Clock, Entropy, Keepsake, Store

DAMAGED = {"STORE_CORRUPT", "STORE_TOO_NEW", "STORE_FOREIGN", "STORE_LOCKED"}  # waiting does not mend these

log = structlog.get_logger()


class Engine:
    """Everything between a transport and a store. keepsake: this server's own disk. holder: what it is called beside other servers."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        entropy: Entropy,
        refresh_seconds: float = 1.0,
        observe: Callable[[Planned], None] | None = None,
        *,
        restarted: bool = True,
        keepsake: Keepsake | None = None,
        holder: str | None = None,
    ) -> None:
        self.store = store
        self.clock = clock
        self.entropy = entropy
        holder = holder or uuid.uuid4().hex
        self.live = Live(clock)
        self.registry = Registry(store, self.live)
        life = int(clock.now() * 1e6) + uuid.uuid4().int % 1000  # later lives are larger; no two are the same
        self.decider = Decider(b"", restarted=restarted, life=life)
        self.grants = Grants(store, self.live, self.decider)
        self.keeper = Keeper(store, self.registry, self.live, clock, holder, keepsake)
        self.term = Term(store, clock, holder)
        self.planner = Planner(
            store, self.registry, self.live, self.grants, self.keeper, self.term, clock, refresh_seconds, observe
        )
        self.ingest = Ingest(store, self.registry, clock, self.planner.counted, self.keeper.refuse_outcomes, self.planner.catch_up)
        self.commands = Commands(self.registry, self.planner, self.keeper, clock, entropy)
        self.keeper.learned = self._learned
        self.grants.observe = self.keeper.note_granted
        self._keepsake = keepsake
        self.started = False

    def start(self, *, threads: bool = True, most: int = PASS_EXPERIMENTS) -> None:
        """Load, plan once (at most so many experiments), and with threads keep planning.

        A store that is gone is waited for; a damaged one raises Unavailable.
        """
        self.keeper.recall()
        try:
            self.planner.tick(most)
        except (Unavailable, Overloaded) as error:
            if error.reason in DAMAGED:
                raise
            log.warning("store.gone", reason=error.reason, error=error.message, remembered=len(self.live.snapshot.entries))
        self.started = True
        self.decider.low = self.planner.wake if threads else self.fill_leases
        if threads:
            self.planner.start()

    def issue_keys(self, count: int) -> list[tuple[int, bytes]]:
        """Numbers and keys with which deciders elsewhere make decision ids. Nothing is kept: two may have the same without harm.

        Raises Unavailable while the store is lost, or was never reached.
        """
        self.keeper.refuse_outcomes()
        numbers = [int.from_bytes(self.entropy.bytes(4), "big") or 1 for _ in range(count)]
        return [(number, client_key(self.keeper.secret, number)) for number in numbers]

    def lease_exposure(self, wanted: Sequence[tuple[str, int, str, int]]) -> list[tuple[int, int]]:
        """Set exposures aside for deciders elsewhere; each wanted: uid, arm, kind, how many. See `Grants.lease`. Waits for the store."""
        self.keeper.refuse_outcomes()
        return [self.grants.lease(*each) for each in wanted]

    def fill_leases(self) -> None:
        """Set aside more of the budgets for this process's decider, where it needs more. Waits for the store."""
        if not self.keeper.lost:
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
        while exposures := self.decider.take():
            try:
                self.ingest.report((), exposures)
            except AllocatorError as error:
                log.warning("exposures.lost", reason=error.reason, error=error.message, cells=len(exposures))
        self.store.close()
        if self._keepsake is not None:
            self._keepsake.close()

    def _learned(self, secret: bytes) -> None:
        if secret != self.ingest.key:
            self.decider.rekey(secret, 0)
            self.ingest.key = secret
