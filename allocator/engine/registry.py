"""The experiments as this process last read or wrote them, and the one way to write them.

In: records to save, each with the version it was made from. Out: what the store said, and for every save that went through: the record
here, its contract, and its entry in the live snapshot, in that order and under one lock. So a plan made before a freeze cannot be
published after it, and a command that has returned is in force.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from allocator.core.outcome import Contract
from allocator.core.plan import entry_of
from allocator.core.record import Record
from allocator.core.snapshot import full_name
from allocator.engine.live import Live
from allocator.errors import AllocatorError, NotFound
from allocator.ports import Save, Store

PLANS_REMEMBERED = 4096  # weights of this many past plans of an experiment with a relative guardrail

Weights = tuple[tuple[int, ...], ...]


class Registry:
    """Records by name and by uid, with what deciders and ingest need of them."""

    def __init__(self, store: Store, live: Live) -> None:
        self._store = store
        self._live = live
        self._lock = threading.RLock()
        self._records: dict[str, Record] = {}
        self._by_uid: dict[str, str] = {}
        self._contracts: dict[bytes, Contract] = {}
        self._weights: dict[bytes, OrderedDict[int, Weights]] = {}

    def load(self) -> None:
        """Read every record from the store and publish them."""
        with self._lock:
            for record in self._store.records():
                self._remember(record)
            self._live.publish(entry_of(record) for record in self._records.values())

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

    def all(self) -> list[Record]:
        """Every experiment, by name."""
        return [self._records[name] for name in sorted(self._records)]

    def contract(self, uid: bytes) -> Contract | None:
        """What outcomes of the experiment must keep to, or None for an unknown one."""
        return self._contracts.get(uid)

    def weights(self, uid: bytes, version: int) -> Weights | None:
        """Slots as served of each table under an earlier plan; None when forgotten or never needed."""
        plans = self._weights.get(uid)
        return plans.get(version) if plans is not None else None

    def write(self, saves: Sequence[Save]) -> list[AllocatorError | None]:
        """Save, remember and publish. As `Store.save`, and raises what it raises."""
        with self._lock:
            answers = self._store.save(saves)
            done = [save.record for save, error in zip(saves, answers, strict=True) if error is None]
            for record in done:
                self._remember(record)
            for save, error in zip(saves, answers, strict=True):
                if error is not None:
                    self._reread(save.record.name)
            if done:
                self._live.publish(entry_of(record) for record in done)
            return answers

    def hold_in_memory(self, record: Record) -> None:
        """Serve a safer record that could not be stored: everyone on the incumbent is right even when nothing can be written.

        The record keeps its stored version, so that the next save still fits; only the published entry is newer.
        """
        with self._lock:
            self._live.publish([replace(entry_of(record), version=self._live.snapshot.entries[record.name].version + 1)])

    def _reread(self, name: str) -> None:
        record = self._store.record(name)
        if record is not None:
            self._remember(record)
            self._live.publish([entry_of(record)])

    def _remember(self, record: Record) -> None:
        uid = bytes.fromhex(record.uid)
        before = self._records.get(record.name)
        self._records[record.name] = record
        self._by_uid[record.uid] = record.name
        same = before is not None and before.experiment == record.experiment and before.status.activation == record.status.activation
        if not same or uid not in self._contracts:
            self._contracts[uid] = Contract(record)
        if any(guardrail.relative for guardrail in record.experiment.guardrails):
            plans = self._weights.setdefault(uid, OrderedDict())
            plans[record.version] = tuple(table.served for table in entry_of(record).tables)
            while len(plans) > PLANS_REMEMBERED:
                plans.popitem(last=False)
