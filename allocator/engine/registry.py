"""The experiments as this process last read or wrote them, and the one way to write them.

In: records to save, each with the version it was made from; names of those that others saved. Out: what the store said, and for every
record that is newer: the record here, its contract, and its entry in the live snapshot, in that order and under one lock. So a plan made
before a freeze cannot be published after it, and a command that has returned is in force.

A freeze that the store could not take is *held*: the record here is frozen, still under its stored version, until the store has it. What
would undo it without having seen it is refused.

Each record carries the digest of the entry that its writer made of it. A server that makes another entry of the same record, or reads
another record under the same version, believes neither: everyone gets the incumbent there until the next version.
"""

from __future__ import annotations

import threading
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from allocator.core.budget import leases_requests, leases_units
from allocator.core.decision import Reason
from allocator.core.entry import entry_of
from allocator.core.lifecycle import Event, State, Status, step
from allocator.core.outcome import Contract
from allocator.core.record import Record
from allocator.core.snapshot import Entry, full_name
from allocator.engine.live import Live
from allocator.errors import AllocatorError, Conflict, NotFound
from allocator.ports import Pending, Save, Store

READ_ONE_BY_ONE = 64  # records; more of them, and more than a quarter of all, are read with all the others
PLANS_REMEMBERED = 4096  # weights of this many past plans of an experiment with a relative guardrail

Weights = tuple[tuple[int, ...], ...]

log = structlog.get_logger()


@dataclass(slots=True)
class Read:
    """What reading the store again came to. changed: newer than what was known; older: names of which it knows less than this server."""

    changed: list[Record] = field(default_factory=list)
    older: list[str] = field(default_factory=list)


class Registry:
    """Records by name and by uid, with what deciders and ingest need of them."""

    def __init__(self, store: Store, live: Live) -> None:
        self._store = store
        self._live = live
        self._lock = threading.RLock()
        self._records: dict[str, Record] = {}
        self._names: list[str] = []
        self._by_uid: dict[str, str] = {}
        self._contracts: dict[bytes, Contract] = {}
        self._weights: dict[bytes, OrderedDict[int, Weights]] = {}
        self._stored: dict[str, Record] = {}  # of what is held: as the store has it
        self._written: set[str] = set()  # since `take_written`
        self.held: dict[str, Pending] = {}
        self.leased: set[str] = set()  # uids of those that run and whose candidates need leases
        self.divergences = 0
        self.changed: Callable[[Sequence[Record]], None] | None = None  # told, outside the lock, of what is newly known
        self.released: Callable[[Sequence[str]], None] | None = None  # and of what is held no more

    def get(self, name: str) -> Record:
        """The experiment of this name, with or without its namespace. Raises NotFound."""
        name = full_name(name)
        record = self._records.get(name)
        if record is None:
            raise NotFound(
                f"there is no experiment {name!r}; `allocator get` lists those that are", reason="UNKNOWN_EXPERIMENT", experiment=name
            )
        return record

    def find(self, name: str) -> Record | None:
        """The experiment of this full name, or None."""
        return self._records.get(name)

    def of_uid(self, uid: str) -> Record | None:
        """The experiment with this uid, or None."""
        name = self._by_uid.get(uid)
        return self._records.get(name) if name is not None else None

    def namespace_of(self, uid: str) -> str:
        """Where the experiment with this uid is; "" when it is not here."""
        record = self.of_uid(uid)
        return record.experiment.namespace if record is not None else ""

    def all(self) -> list[Record]:
        """Every experiment, by name."""
        with self._lock:
            return [self._records[name] for name in self._names]

    def uids(self) -> list[str]:
        """Of every experiment, by name."""
        return [record.uid for record in self.all()]

    def contract(self, uid: bytes) -> Contract | None:
        """What outcomes of the experiment must keep to, or None for an unknown one."""
        contract = self._contracts.get(uid)
        if contract is None:
            with self._lock:
                record = self.of_uid(uid.hex())
                if record is not None:
                    contract = self._contracts[uid] = Contract(record)
        return contract

    def contracted(self, uid: bytes) -> Contract | None:
        """The same, where one was made already: for callers who must not wait for a lock."""
        return self._contracts.get(uid)

    def weights(self, uid: bytes, version: int) -> Weights | None:
        """Slots as served of each table under an earlier plan; None when forgotten or never needed."""
        plans = self._weights.get(uid)
        return plans.get(version) if plans is not None else None

    def write(self, saves: Sequence[Save], term: int | None = None) -> list[AllocatorError | None]:
        """Save, remember and publish. As `Store.save`, and raises what it raises."""
        with self._lock:
            saves = [self._sealed(save) for save in saves]
            answers: list[AllocatorError | None] = [self._undoes(save) for save in saves]
            allowed = [index for index, answer in enumerate(answers) if answer is None]
            for index, answer in zip(allowed, self._store.save([saves[index] for index in allowed], term), strict=True):
                answers[index] = answer
            done = [save.record for save, error in zip(saves, answers, strict=True) if error is None]
            self._written.update(record.name for record in done)
            released = [record.name for record in done if self.held.pop(record.name, None) is not None]
            for name in released:
                del self._stored[name]
            self._take(done)
            found = Read()
            self._read([save.record.name for save, error in zip(saves, answers, strict=True) if error is not None], found)
        if released and self.released is not None:
            self.released(released)
        self._tell([*done, *found.changed])
        return answers

    def read(self, names: Iterable[str] | None = None) -> Read:
        """Read these experiments from the store again, or all, and publish those that are newer. Raises Unavailable."""
        found = Read()
        with self._lock:
            self._read(names, found)
        self._tell(found.changed)
        return found

    def take_written(self) -> set[str]:
        """Names written here since the last call: news asked for from now on must tell of them."""
        with self._lock:
            written, self._written = self._written, set()
            return written

    def restore(self, records: Iterable[Record], pending: Iterable[Pending] = ()) -> None:
        """Take over what this server's own disk remembers: served as soon as a planner confirms it."""
        with self._lock:
            for held in pending:
                self.held[held.record.name] = held
            self._take(list(records))

    def accept(self, names: Iterable[str]) -> None:
        """Take what the store has of these, also where it is older: an operator said so."""
        accepted = []
        with self._lock:
            for name in names:
                record = self._store.record(name)
                if record is not None:
                    self._take([record])
                    accepted.append(record)
        self._tell(accepted)

    def hold(self, pending: Pending) -> Record:
        """A freeze or drain that could not be stored is in force from now on. The record as it now is here."""
        with self._lock:
            name = pending.record.name
            self.held[name] = pending
            self._take([self._stored.get(name) or self._records[name]])
            return self._records[name]

    def release(self, pending: Pending) -> bool:
        """The store has it, or it applies no more. False when another freeze is held by now: that one stays."""
        name = pending.record.name
        with self._lock:
            if self.held.get(name) is not pending:
                return False
            del self.held[name]
            self._stored.pop(name, None)
        if self.released is not None:
            self.released([name])
        return True

    def stored(self, name: str) -> Record | None:
        """The experiment as the store was last known to have it."""
        return self._stored.get(name) or self._records.get(name)

    def _tell(self, records: Sequence[Record]) -> None:
        if records and self.changed is not None:
            self.changed(records)

    def _sealed(self, save: Save) -> Save:
        """With the digest of its entry; and what is written of a held experiment goes above what is served of it."""
        record, served = save.record, self._live.snapshot.entries.get(save.record.name)
        if record.name in self.held and served is not None:
            record = replace(record, version=max(record.version, served.version + 1))
        return replace(save, record=replace(record, digest=entry_of(record).digest()))

    def _undoes(self, save: Save) -> Conflict | None:
        """Would the save undo a freeze that the store has not got yet, without its maker having seen it?"""
        held = self.held.get(save.record.name)
        if held is None or save.record.status.resume_epoch > held.record.status.freeze_epoch or latched(save.record, held) == save.record:
            return None
        return Conflict(f"{save.record.name} was frozen or drained here meanwhile", reason="HELD", experiment=save.record.name)

    def _read(self, names: Iterable[str] | None, found: Read) -> None:
        names = None if names is None else list(names)
        if names is None or len(names) > max(READ_ONE_BY_ONE, len(self._names) // 4):
            records = {record.name: record for record in self._store.records()}
            found.older += [name for name in self._names if name not in records]
        else:
            read = [(name, self._store.record(name)) for name in names]
            found.older += [name for name, record in read if record is None and name in self._records]
            records = {name: record for name, record in read if record is not None}
        newer = []
        for name, record in records.items():
            known = self.stored(name)
            if known is None or (known.uid == record.uid and known.version < record.version):
                newer.append(record)
            elif known.uid != record.uid or known.version > record.version:
                found.older.append(name)
            elif known != record:
                self._doubt(record, "another record under the same version")
        self._take(newer)
        found.changed += newer

    def _take(self, records: Sequence[Record]) -> None:
        """Remember and publish."""
        entries = []
        for stored in records:
            record = stored
            held = self.held.get(record.name)
            if held is not None:
                self._stored[record.name] = stored
                record = latched(stored, held)
            self._remember(record)
            entry = entry_of(record)
            if stored.digest and held is None and entry.digest() != stored.digest:
                entry = self._doubted(entry, "another entry than its writer made of it")
            entries.append(self._above(entry) if held is not None else entry)
        if entries:
            self._live.publish(entries)

    def _above(self, entry: Entry) -> Entry:
        """What is served under no stored version of its own gets the next one."""
        served = self._live.snapshot.entries.get(entry.experiment)
        if served is None or served.uid != entry.uid or replace(served, version=entry.version) == entry:
            return entry
        return replace(entry, version=max(entry.version, served.version + 1))

    def _doubt(self, record: Record, why: str) -> None:
        self._live.publish([self._above(self._doubted(entry_of(record), why))])

    def _doubted(self, entry: Entry, why: str) -> Entry:
        self.divergences += 1
        log.error("snapshot.diverged", experiment=entry.experiment, version=entry.version, error=why)
        return replace(entry, only=(entry.incumbent, Reason.STALE), pins={}, shadow_arms=())

    def _remember(self, record: Record) -> None:
        uid = bytes.fromhex(record.uid)
        before = self._records.get(record.name)
        if before is None:
            insort(self._names, record.name)
        elif before.uid != record.uid:
            self._by_uid.pop(before.uid, None)
        self._records[record.name] = record
        self._by_uid[record.uid] = record.name
        if before is None or before.experiment != record.experiment or before.status.activation != record.status.activation:
            self._contracts.pop(uid, None)
        leases = leases_requests(record.experiment) or leases_units(record.experiment)
        (self.leased.add if leases and record.status.state is State.RUNNING else self.leased.discard)(record.uid)
        if any(guardrail.relative for guardrail in record.experiment.guardrails):
            plans = self._weights.setdefault(uid, OrderedDict())
            plans[record.version] = tuple(table.served for table in entry_of(record).tables)
            while len(plans) > PLANS_REMEMBERED:
                plans.popitem(last=False)


def latched(record: Record, pending: Pending) -> Record:
    """The record with the freeze and the drains of `pending` carried out, as far as they still apply to it."""
    theirs, status = pending.record.status, record.status
    if pending.record.uid != record.uid or status.state not in (State.RUNNING, State.FROZEN):
        return record
    if theirs.state is State.FROZEN and status.state is State.RUNNING:
        status = step(status, Event.FROZEN, reason=theirs.reason, now=theirs.since_seconds)
    if theirs.activation == status.activation:
        status = _drained(status, theirs.drained)
    return replace(record, status=status)


def _drained(status: Status, arms: Iterable[str]) -> Status:
    return replace(status, drained=(*status.drained, *(arm for arm in arms if arm not in status.drained)))
