"""What the engine asks of the world: a store, a clock, entropy. And the system's own clock and entropy.

Each method of `Store` is one atomic step in the engine's words; `stores/memory.py` is what they mean, and every store is held to the
same suite. Methods block until what they promise is true (for a durable store: on disk); the server calls them from threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from allocator.core.audit import AuditEntry, AuditRecord
from allocator.core.record import REWARD, Cell, Record
from allocator.errors import AllocatorError


class Clock(Protocol):
    """Time. The core is told it; only the engine and the server ask."""

    def now(self) -> float:
        """Seconds since the epoch, of the wall clock: for records and buckets."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never back: for leases and durations."""


class Entropy(Protocol):
    """Randomness that nobody can guess."""

    def bytes(self, count: int) -> bytes:
        """`count` random bytes."""


class SystemClock:
    """The machine's clocks."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


class SystemEntropy:
    """The operating system's generator."""

    bytes = staticmethod(os.urandom)


class Counted(Enum):
    """What became of an outcome in the store."""

    ACCEPTED = "ACCEPTED"
    DUPLICATE = "DUPLICATE"
    LATE = "LATE"


class Contribution(NamedTuple):
    """What one metric of an outcome adds to one stream. metric: its bit in the deduplication mask (0, 1, 2, ...)."""

    metric: int
    cell: Cell


class OutcomeRow(NamedTuple):
    """An outcome ready to be counted. nonce: of its decision; bucket: of its decision's time. metrics: mask of the metrics in it.

    A metric that adds to no stream still takes part in the deduplication.
    """

    uid: str
    nonce: bytes
    bucket: int
    metrics: int
    contributions: tuple[Contribution, ...]


def losses(rows: Iterable[OutcomeRow]) -> set[str]:
    """Uids of the experiments of which a guardrail sees a loss in these. All other outcomes can wait: what was not reported yet counts as
    harmless, so the evidence of harm rises by losses alone. Rows that say the same share their contributions, and are looked at once.
    """
    distinct = {(row.uid, id(row.contributions)): row.contributions for row in rows}
    return {
        uid
        for (uid, _), contributions in distinct.items()
        if any(cell.total > 0 and cell.stream != REWARD for _, cell in contributions)
    }


class ExposureRow(NamedTuple):
    """Decisions made, to be added: one cell of the streams EXPOSURES, UNITS or RATIO. ready: what `Store.ready` made of it, for itself."""

    uid: str
    cell: Cell
    ready: bytes = b""


@dataclass(frozen=True, slots=True)
class Settle:
    """Close buckets: open cells of buckets <= `through` move to the settled ones, their bucket ids divided by `coarsen` (floor).

    Afterwards an outcome of such a bucket is LATE, and what was known for its deduplication is forgotten. A `coarsen` of 0 puts all
    of them into bucket 0: nothing is forgotten by age, so their times no longer matter.
    """

    through: int
    coarsen: int = 0


@dataclass(frozen=True, slots=True)
class Save:
    """Write `record` if the stored version is `expected` (None: if no experiment of this name exists), with its audit entries.

    settle: applied in the same step, for this experiment.
    """

    record: Record
    expected: int | None
    audit: tuple[AuditEntry, ...] = ()
    settle: Settle | None = None


@dataclass(frozen=True, slots=True)
class News:
    """What was changed in a store since a mark. mark: to ask with next time; it grows with each save and put.

    names: experiments saved after the mark asked with, by whomever; items: kinds of items put after it.
    beat: grows with each renewal of the planner's term, so that who sees it grow knows that a planner lives. epoch: which life of the
    store's data this is; a store that lost its data has another or "", never again the one that was lost. A store that went back to an
    older state of itself keeps its epoch, and gives a smaller mark than before.
    """

    mark: int
    names: tuple[str, ...]
    items: tuple[str, ...]
    beat: int
    epoch: str


class Store(Protocol):
    """Everything that must outlive a process. Several servers may share one; each method is one atomic step for all of them.

    shared: may others count in it too?
    """

    shared: bool

    def secret(self) -> bytes:
        """32 random bytes made when the store was created: the key of its decision ids."""

    def records(self) -> list[Record]:
        """All experiments, by name."""

    def record(self, name: str) -> Record | None:
        """The experiment `namespace/name`, or None."""

    def save(self, saves: Sequence[Save], term: int | None = None) -> list[AllocatorError | None]:
        """Carry out each save whole or not at all; None for each that was, else why not (Conflict, AlreadyExists).

        term: of the planner that made these saves; None for a person's command. A save of a term older than the one that has begun since
        is refused: Conflict, reason STALE_TERM. One save's conflict does not touch the others. Durable when this returns. Raises
        Unavailable or Overloaded when the store cannot write; then none was carried out, but of a store across a network nobody knows: who
        saves again and is told Conflict looks at what is there. Where it can write some and not others, those are answered Unavailable.
        """

    def add(self, outcomes: Sequence[OutcomeRow], exposures: Sequence[ExposureRow] = ()) -> list[Counted]:
        """Count exposures, and outcomes not seen before: each metric of a decision once. Durable when this returns.

        All in one step; in a store across a network, the outcomes of each experiment in one step, and the exposures of each in another.
        LATE: the outcome's bucket is settled; nothing of it is counted. DUPLICATE: every metric in it had been counted. ACCEPTED: at
        least one was new; only the new ones' contributions are added. Exposures of settled buckets go to the settled cells.
        Raises Unavailable or Overloaded when the store cannot write; then no exposure was counted, and no outcome either, but across a
        network nobody knows: outcomes may be sent again. Exposures that were accepted and then did not get through are the store's to
        send again: they count once, as long as the process lives.
        """

    def add_soon(self, outcomes: Sequence[OutcomeRow], exposures: Sequence[ExposureRow] = ()) -> Future[list[Counted]]:
        """As `add`, for callers who must not wait: the future gets what `add` returns or raises, from any thread."""

    def ready(self, exposures: Sequence[ExposureRow]) -> list[ExposureRow]:
        """The same rows, with that done which can be done before they are added. Waits for nothing; any thread may ask.

        For who has thousands to add: a few at a time are made ready beforehand, so that adding them keeps the interpreter from nobody.
        """

    def cells(self, uid: str) -> list[Cell]:
        """Open cells of an experiment, in any order."""

    def settled(self, uid: str) -> list[Cell]:
        """Settled cells of an experiment, their buckets coarsened."""

    def changed(self, since: int) -> tuple[int, list[str]]:
        """A new mark, and the uids whose cells changed after the mark `since` (0: all that have any cell), the latest first."""

    def grant(self, uid: str, arm: int, kind: str, amount: int, limit: int) -> int:
        """Set aside up to `amount` of what was not granted before of `limit`, for this experiment, arm and kind. Return how much.

        amount, limit: at least 0. What is granted is never given back, so that all grants together never pass the largest limit.
        Durable when this returns. Raises Unavailable or Overloaded when the store cannot write; then nothing may be spent.
        """

    def granted(self, uid: str) -> dict[tuple[int, str], int]:
        """All that was ever granted of an experiment, by arm and kind; accounts without any grant are left out."""

    def audit(self, after: int = 0, limit: int = 1000, experiment: str | None = None) -> list[AuditRecord]:
        """Sealed records with sequence > `after`, oldest first, at most `limit`, of one experiment or of all."""

    def lead(self, holder: str, seconds: float) -> int | None:
        """Be the one planner for `seconds` from now: the number of the term, or None while somebody else's term lasts.

        The holder calls again to stay; its number stays the same. Each new holder's number is larger than all before, and from then on
        saves of smaller ones are refused. Raises Unavailable when the store cannot be asked: then nobody knows.
        """

    def resign(self, holder: str) -> None:
        """End the holder's term now, if it has one, so that another need not wait for it to run out."""

    def news(self, since: int) -> News:
        """What was saved and put after the mark `since` (0: everything there is). Raises Unavailable."""

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener`, from any thread, soon after another server saved something or counted a loss. Returns what stops it.

        Best effort: a call may be missed, so who listens also asks from time to time. What else was counted can wait for that: see
        `losses`.
        """

    def items(self, kind: str) -> dict[str, str]:
        """Small documents of one kind (tokens, proposals, ...), by key."""

    def put(self, kind: str, key: str, value: str | None, expected: str | None = None, audit: Sequence[AuditEntry] = ()) -> None:
        """Write the item, or remove it (None), with its audit entries in the same step. Durable when this returns.

        expected: the value that it must have now; None: there must be none. Raises Conflict when it is another, Unavailable or
        Overloaded when the store cannot write.
        """

    def begin(self, secret: bytes) -> str:
        """Begin a new life of the data: a new epoch, which is returned, with `secret` as the key of decision ids from now on.

        Records, counts, items and audit stay. For an operator who has put a store right that had lost its data. Durable when this returns.
        """

    def close(self) -> None:
        """Finish what was begun and let go of files and threads. Calling twice does nothing."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A freeze or drain in force on a server that the store could not take. record: as it holds there. entry: for the audit."""

    record: Record
    entry: AuditEntry


Granted = Mapping[tuple[int, str], int]  # by arm and kind, as `Store.granted`


@dataclass(frozen=True, slots=True)
class Kept:
    """What one server remembers of the store. epoch: which life of it, "" before the first. earlier: epochs that this one continues.

    records: as last known, by name. pending: by name. granted: by uid.
    """

    epoch: str = ""
    earlier: tuple[str, ...] = ()
    secret: bytes = b""
    records: tuple[Record, ...] = ()
    pending: tuple[Pending, ...] = ()
    granted: Mapping[str, Granted] = field(default_factory=dict)


class Keepsake(Protocol):
    """One server's own disk: what it must still know when the store is gone, empty or older. Written as things change, never read whole
    but at the start. Durable when a method returns; raises Unavailable or Overloaded when the disk does not take it."""

    def load(self) -> Kept:
        """Everything that is kept. Raises Unavailable, STORE_CORRUPT, for a damaged file."""

    def keep(
        self,
        records: Iterable[Record] = (),
        pending: Mapping[str, Pending | None] | None = None,
        granted: Mapping[str, Granted] | None = None,
    ) -> None:
        """Replace what is kept of these experiments, in one step. pending: None lets go of it. granted: never made smaller."""

    def belong(self, epoch: str, earlier: Sequence[str], secret: bytes) -> None:
        """From now on what is kept is of this life of the store."""

    def close(self) -> None:
        """Let go of the file. Calling twice does nothing."""
