"""What this server still knows when the store does not: kept on its own disk, held against the store, asserted again.

In: records as they change, what was granted, and the store's news. Out: is the store the one that this server knew? If it is empty, of
another life or older than known, it is *lost*: candidates get nothing, nothing is counted, nothing riskier than a freeze is allowed, and
every freeze known here is asserted again into whatever the store holds, until an operator reconciles. The loss is written into the store
too, so that servers that had not noticed (their own memory was no newer) go the same way.

Reconciling writes back what this server knew: running experiments come back FROZEN, evidence and budgets as last known here, under a new
epoch that names those it continues. Other servers accept it by that, and write back in turn what only they knew. Counts that were in the
store alone are gone.

The freeze is a latch: merged by the larger of each epoch, a tie is frozen. A freeze that the store could not take is pending: it is
carried out on whatever the store holds later, also after a resume by somebody who could not know of it.

What is kept is written in proportion to what changes: where somebody is frozen, drained, resumed or started at once, before the command
returns; the rest (weights, evidence, grants) together, once a second.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from allocator.core.audit import AuditEntry
from allocator.core.lifecycle import Event, State, Status, merge_latch, step
from allocator.core.record import Record
from allocator.core.settling import coarsening
from allocator.engine.live import Live
from allocator.engine.registry import Registry, latched
from allocator.errors import AllocatorError, Conflict, Overloaded, Refused, Unavailable
from allocator.ports import Clock, Granted, Keepsake, News, Pending, Save, Settle, Store

ACTOR = "server"
FLUSH_SECONDS = 1.0
LOOK_SECONDS = 1.0  # between two looks whether others found the store lost; the news of an older store may not tell
TRIES = 5
LIVES, LOSSES = "epoch", "loss"  # kinds of items

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What reconciling came to. epoch: of the new life. restored: experiments written back; notes: what cannot be known, in sentences."""

    epoch: str
    restored: tuple[str, ...]
    notes: tuple[str, ...]


class Keeper:
    """One server's memory beside the store's. `check` and what follows belong to the planner's passes; any thread may note and hold."""

    def __init__(self, store: Store, registry: Registry, live: Live, clock: Clock, holder: str, keepsake: Keepsake | None) -> None:
        self._store = store
        self._registry = registry
        self._live = live
        self._clock = clock
        self._holder = holder
        self._keepsake = keepsake
        self._lock = threading.Lock()
        self._dirty: dict[str, Record] = {}
        self._kept: dict[str, Record] = {}  # as on disk
        self._trouble = ""  # why the disk did not take it, the last time
        self._granted: dict[str, dict[tuple[int, str], int]] = {}
        self._dirty_grants: set[str] = set()
        self._release: set[str] = set()
        self._flush_at = self._ask_at = -math.inf
        self._asserted: dict[str, int] = {}
        self._earlier: tuple[str, ...] = ()
        self._remembers = False  # more than the store may hold: its disk did, or it noticed the loss itself
        self._seen = ""  # the epoch that the store had at the last look
        self.epoch = ""
        self.secret = b""
        self.lost = ""  # why the store counts as lost, a sentence
        self.learned: Callable[[bytes], None] | None = None  # told of the key of decision ids
        self.items: Callable[[], Mapping[str, Mapping[str, str]]] | None = None  # what others remember, by kind and key
        registry.changed = self.note
        registry.released = self._let_go

    # Starting.

    def recall(self) -> None:
        """Publish what this server's disk remembers. Raises Unavailable when that is damaged."""
        if self._keepsake is None:
            return
        kept = self._keepsake.load()
        if not kept.epoch:
            return
        self.epoch, self._earlier, self._remembers = kept.epoch, kept.earlier, True
        self._granted = {uid: dict(sums) for uid, sums in kept.granted.items()}
        self._kept = {record.name: record for record in kept.records}
        self._learn(kept.secret)
        self._live.begin(self.epoch)
        self._registry.restore(kept.records, kept.pending)

    # Is the store the one that was known?

    def check(self, news: News) -> bool:
        """Judge the store by its news. True: all that is known must be compared with it. Raises Unavailable."""
        continued = False
        if not self.epoch:
            secret = self._store.secret()
            self._belong(news.epoch or self._store.news(0).epoch, (), secret)
        elif news.epoch != self.epoch:
            continued = self._continued(news)
            if not continued:
                self.lose("its data are of another life than those that this server knew" if news.epoch else "its data are gone")
        at = self._clock.monotonic()
        if not self.lost and (LOSSES in news.items or at >= self._ask_at):
            self._ask_at = at + LOOK_SECONDS
            text = self._store.items(LOSSES).get(news.epoch or "none")
            told = None if text is None else json.loads(text)
            if told is not None and told["knew"] not in self._earlier_than(news.epoch):
                self.lost = told["why"]
                log.error("store.lost", error=self.lost, noticed_by=told["server"])
        self._seen = news.epoch
        if not self.lost:
            self._live.begin(self.epoch)  # not before: who watches would leave a life to which the store may yet be put back
        return continued

    def lose(self, why: str) -> None:
        """The store has lost what this server knows: read-only until somebody reconciles."""
        if not self.lost:
            log.error("store.lost", error=why, advice="look what became of the store, then run: allocator db reconcile --reason ...")
        self.lost, self._remembers = self.lost or why, True

    def older(self, names: Sequence[str]) -> None:
        """The store knows less of these than this server."""
        shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        self.lose(f"it holds an older state than this server knew, of {shown}")

    def refuse_if_lost(self) -> None:
        """Raise Refused, STORE_LOST, for what would make things riskier."""
        if self.lost:
            raise Refused(f"{_told(self.lost)}; only freezing is allowed until then", reason="STORE_LOST")

    def refuse_outcomes(self) -> None:
        """Raise Unavailable when nothing may be counted: the sender keeps its outcomes."""
        if self.lost:
            raise Unavailable(f"{_told(self.lost)}; keep the outcomes and send them again", reason="STORE_LOST")
        if not self.secret:
            raise Unavailable("the store has not been reached since this server started", reason="STORE_UNREACHED")

    # Keeping.

    def note(self, records: Sequence[Record]) -> None:
        """These records are now known. Where somebody froze, drained, resumed or started, on disk when this returns, if the disk takes it.

        Threads may tell of two versions in either order: the newer one stays.
        """
        if self._keepsake is None:
            return
        with self._lock:
            newer = [record for record in records if not _newer(self._dirty.get(record.name) or self._kept.get(record.name), record)]
            self._dirty.update((record.name, record) for record in newer)
            urgent = any(record.name not in self._kept or _latch(self._kept[record.name]) != _latch(record) for record in newer)
        if urgent:
            self.flush(now=True)

    def refuse_unkept(self, record: Record) -> None:
        """Raise Unavailable, FREEZE_NOT_KEPT, when the store has this freeze and this server's own disk did not take it."""
        if self._keepsake is None:
            return
        with self._lock:
            kept = self._kept.get(record.name)
            if _newer(kept, record) or (kept is not None and _latch(kept) == _latch(record)):
                return
            trouble = self._trouble or "it has not been written yet"
        raise Unavailable(
            f"{record.name} is frozen, and the store has it, but this server cannot remember it for a store that loses it: {trouble}."
            " It tries again each second; freeze again to be told when it can",
            reason="FREEZE_NOT_KEPT",
            experiment=record.name,
        )

    def note_granted(self, uid: str, granted: Granted) -> None:
        """What is known to have been granted of an experiment, by whomever."""
        with self._lock:
            known = self._granted.setdefault(uid, {})
            for account, amount in granted.items():
                if amount > known.get(account, 0):
                    known[account] = amount
                    self._dirty_grants.add(uid)

    def flush(self, *, now: bool = False) -> None:
        """Write down what changed, once a second or now. A disk that does not take it is told of in the log, and tried again."""
        at = self._clock.monotonic()
        if self._keepsake is None or not self.epoch or (not now and at < self._flush_at):
            return
        with self._lock:
            self._flush_at = at + FLUSH_SECONDS
            dirty, self._dirty = self._dirty, {}
            grants, self._dirty_grants = self._dirty_grants, set()
            release = {name for name in self._release if name not in self._registry.held}  # what is held again meanwhile stays
            self._release = set()
            if not (dirty or grants or release):
                return
            try:
                self._keepsake.keep(dirty.values(), dict.fromkeys(release), {uid: dict(self._granted[uid]) for uid in grants})
            except AllocatorError as error:
                log.warning("keepsake.not_written", reason=error.reason, error=error.message)
                self._trouble = error.message
                self._dirty, self._dirty_grants, self._release = dirty, grants, release  # all of it stood under the lock
                return
            self._kept.update(dirty)

    def freeze(self, before: Record, actor: str, reason: str, why: str) -> Record:
        """Freeze an experiment without the store, as a person asked. why: not with it. As `hold`; raises Refused in a state that cannot."""
        told = f"{reason} (kept on this server's disk until the store has it; {why})"
        status = step(before.status, Event.FROZEN, reason=told, now=self._clock.now())
        entry = AuditEntry(self._clock.now(), actor, "experiment.freeze", before.name, told)
        return self.hold(Pending(replace(before, status=status), entry))

    def hold(self, pending: Pending) -> Record:
        """In force here from now on, and remembered; stored when the store takes it. Returns the record as it now is here.

        Raises Unavailable, FREEZE_NOT_KEPT, when this server's disk cannot remember it: it is in force all the same.
        """
        record = self._registry.hold(pending)
        if self._keepsake is None:
            raise Unavailable(
                f"{record.name} is frozen on this server from now on, but neither the store nor a disk of its own remembers it (--state):"
                " do not stop the server, and freeze again when the store is back",
                reason="FREEZE_NOT_KEPT",
                experiment=record.name,
            )
        try:
            with self._lock:  # behind any `flush` that lets go of an earlier one
                self._keepsake.keep(pending={record.name: pending})
        except AllocatorError as error:
            raise Unavailable(
                f"{record.name} is frozen on this server from now on, but it cannot be remembered: {error.message}",
                reason="FREEZE_NOT_KEPT",
                experiment=record.name,
            ) from error
        return record

    # Asserting.

    def push(self) -> None:
        """Store what is held, if the store can be written now."""
        for name, pending in list(self._registry.held.items()):
            stored = self._registry.stored(name)
            after = None if stored is None else latched(stored, pending)
            if after is None or after == stored:
                self._registry.release(pending)
                continue
            try:
                refused = self._write(after, stored, pending.entry)
            except (Unavailable, Overloaded) as error:
                log.warning("freeze.not_stored", experiment=name, reason=error.reason, error=error.message)
                return
            if refused is None:
                log.info("freeze.stored", experiment=name, reason=pending.entry.reason)

    def reassert(self) -> None:
        """Freeze in the lost store what is known to be frozen, where it can be written. Some stores refuse all writes until reconciled."""
        try:
            self._reassert()
        except (Unavailable, Overloaded) as error:
            log.warning("freeze.not_asserted", reason=error.reason, error=error.message)

    def _reassert(self) -> None:
        if self._remembers:
            key = self._seen or "none"
            if key not in self._store.items(LOSSES):
                told = json.dumps({"why": self.lost, "server": self._holder, "knew": self.epoch, "seconds": self._clock.now()})
                try:
                    self._store.put(LOSSES, key, told)
                except Conflict:
                    log.info("store.loss_known", epoch=key)
        for record in self._registry.all():
            epoch, frozen = record.status.freeze_epoch, record.status.frozen and record.status.state in (State.RUNNING, State.FROZEN)
            if frozen and self._asserted.get(record.name) != epoch and self._assert(record):
                self._asserted[record.name] = epoch

    def _assert(self, record: Record) -> bool:
        stored = self._store.record(record.name)
        reason = f"{record.status.reason} (asserted again: the store had lost it)"
        entry = AuditEntry(self._clock.now(), ACTOR, "experiment.freeze", record.name, reason)
        if stored is None:
            answer = self._store.save([_whole(record, None, entry)])[0]
        else:
            status = merge_latch(stored.status, record.status)
            if status == stored.status:
                return True
            after = replace(stored, status=status, version=stored.version + 1, updated_seconds=entry.seconds)
            answer = self._store.save([Save(after, stored.version, (entry,))])[0]
        if answer is None:
            log.info("freeze.asserted", experiment=record.name)
        return answer is None

    # Reconciling.

    def reconcile(self, actor: str, reason: str, *, force: bool = False) -> Reconciled:
        """Write back what this server knows, begin a new life of the store, and go on. For an operator who knows what became of it.

        Raises Refused when the store is not lost, or when another server noticed it and knows more (unless `force`).
        """
        if not self.lost:
            raise Refused("the store is not lost; there is nothing to reconcile", reason="NOTHING_TO_RECONCILE")
        if not self._remembers and not force:
            raise Refused(
                "this server knows nothing that the store does not hold; reconcile at one that noticed the loss, or insist with --force",
                reason="KNOWS_NOTHING_MORE",
            )
        before = self._store.news(0).epoch
        epoch = self._store.begin(self.secret)
        earlier = tuple(dict.fromkeys((*self._earlier, self.epoch, *((before,) if before else ()))))
        told = json.dumps({"earlier": earlier, "actor": actor, "reason": reason})
        lives = [json.dumps({"epoch": life}) for life in (before, epoch)]
        audit = AuditEntry(self._clock.now(), actor, "store.reconcile", "", reason, *lives)
        self._store.put(LIVES, epoch, told, None, (audit,))  # from now on any server carries on where this one stops
        names = self._put_back(actor, "experiment.restore", reason)
        self._put_back_items()
        self._belong(epoch, earlier, self.secret)
        self._found_again()
        notes = (
            "what only the store had counted (outcomes, exposures) is gone where the store lost it: rewards are learned again",
            "evidence is what was folded into the records as this server last knew them",
            "what other servers were granted of budgets since this one last looked is not known, nor held against them",
        )
        return Reconciled(epoch, tuple(names), notes)

    def _continued(self, news: News) -> bool:
        """Does the new life continue the one that this server knew? Then it is accepted, and what only this server knew is written back."""
        earlier = self._earlier_than(news.epoch)
        if self.epoch not in earlier:
            return False
        log.warning("store.reconciled", epoch=news.epoch)
        self._put_back(ACTOR, "experiment.restore", "this server knew more than the one that reconciled", accept=True)
        self._belong(news.epoch, earlier, self._store.secret())
        self._found_again()
        return True

    def _earlier_than(self, epoch: str) -> tuple[str, ...]:
        """The lives that this one continues. Who noticed a loss in one of those, and told of it too late, is not believed."""
        told = self._store.items(LIVES).get(epoch) if epoch else None
        return () if told is None else tuple(json.loads(told)["earlier"])

    def _put_back(self, actor: str, action: str, reason: str, *, accept: bool = False) -> list[str]:
        """Write back every record of which the store knows less, what runs FROZEN; and what was granted. The names of those written.

        accept: another server reconciled; what it wrote stays where it knew as much. Raises what the store raises.
        """
        done = []
        stored = {record.name: record for record in self._store.records()}
        for known in self._registry.all():
            theirs = stored.get(known.name)
            for _ in range(TRIES):
                after = self._returning(known, theirs, reason, accept=accept)
                if after is None:
                    self._registry.accept([known.name])
                    break
                entry = AuditEntry(self._clock.now(), actor, action, known.name, reason)
                error = self._registry.write([_whole(after, None if theirs is None else theirs.version, entry)])[0]
                if error is None:
                    done.append(known.name)
                    break
                log.info("restore.again", experiment=known.name, error=error.message)
                theirs = self._store.record(known.name)
            else:
                raise Unavailable(f"{known.name} is written by others all the time; try again", reason="STORE_CONTENDED")
        for uid, sums in self._granted.items():
            have = self._store.granted(uid)
            for (arm, kind), amount in sums.items():
                if amount > have.get((arm, kind), 0):
                    self._store.grant(uid, arm, kind, amount - have.get((arm, kind), 0), amount)
        return done

    def _put_back_items(self) -> None:
        for kind, items in (self.items() if self.items is not None else {}).items():
            have = self._store.items(kind)
            for key, value in items.items():
                if key not in have:
                    self._store.put(kind, key, value)

    def _returning(self, known: Record, theirs: Record | None, reason: str, *, accept: bool) -> Record | None:
        """What to write over `theirs`, or None where that stays."""
        served = self._live.snapshot.entries.get(known.name)
        seen = max(known.version, 0 if served is None else served.version)
        newer = theirs is not None and theirs.uid == known.uid and theirs.version >= known.version
        if accept and theirs is not None and (newer or theirs.uid != known.uid):
            status = merge_latch(theirs.status, known.status) if newer else theirs.status
            if status == theirs.status and (not newer or theirs == known or theirs.version > seen):
                return None
            base = theirs
        else:
            base = theirs if theirs is not None and newer else known
            status = _frozen(base.status, (known, theirs), reason, self._clock.now())
        version = max(seen, 0 if theirs is None else theirs.version) + 1
        return replace(base, status=status, version=version, updated_seconds=self._clock.now())

    def _belong(self, epoch: str, earlier: Iterable[str], secret: bytes) -> None:
        self.epoch, self._earlier = epoch, tuple(earlier)
        if self._keepsake is not None:
            self._keepsake.belong(epoch, self._earlier, secret)
        self._learn(secret)

    def _learn(self, secret: bytes) -> None:
        self.secret = secret
        if self.learned is not None:
            self.learned(secret)

    def _found_again(self) -> None:
        self.lost = ""
        self._live.begin(self.epoch)
        self._asserted.clear()

    def _let_go(self, names: Sequence[str]) -> None:
        with self._lock:
            self._release.update(names)

    def _write(self, after: Record, stored: Record, entry: AuditEntry) -> AllocatorError | None:
        served = self._live.snapshot.entries.get(after.name)
        version = max(stored.version, 0 if served is None else served.version) + 1
        return self._registry.write([Save(replace(after, version=version, updated_seconds=self._clock.now()), stored.version, (entry,))])[0]


def _whole(record: Record, expected: int | None, entry: AuditEntry) -> Save:
    """A save into a store that may not know which buckets are closed."""
    settle = Settle(record.settled_through, coarsening(record.experiment)) if record.settled_through >= 0 else None
    return Save(record, expected, (entry,), settle)


def _frozen(status: Status, others: Iterable[Record | None], reason: str, now: float) -> Status:
    """The status that comes back: latches merged, and what ran is FROZEN, for a person to resume."""
    for other in others:
        if other is not None:
            status = merge_latch(status, other.status)
    if status.state is State.RUNNING:
        return step(status, Event.FROZEN, reason=f"the store was lost and reconciled: {reason}", now=now)
    return status


def _latch(record: Record) -> tuple[object, ...]:
    status = record.status
    return record.uid, status.state, status.freeze_epoch, status.resume_epoch, status.activation, status.drained


def _newer(known: Record | None, record: Record) -> bool:
    """Is what is known a later version of the same experiment?"""
    return known is not None and known.uid == record.uid and known.version > record.version


def _told(why: str) -> str:
    return f"the store is lost ({why}) until an operator reconciles it with `allocator db reconcile`"
