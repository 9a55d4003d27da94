"""Outcomes, exposures and budgets in Redis.

In: rows. Out: what became of them. The rules are those of every store (`rules.count`), worked out here; a script compares what was supposed
with what is there and adds, or answers what is there. Most outcomes are new, so the first attempt supposes that all are; a batch with
known ones takes a second. A script belongs to one experiment: a batch over several is whole for each of them.

Outcomes go first. When they fail, the exposures that came along are still the caller's; afterwards they are ours (`parcels.py`).

Dropped: scripts that decide row by row (four times the time in the server, which has one thread for all); numbers in Lua, which are
exact up to 2^53 only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

import msgspec

from allocator.core.record import Cell
from allocator.errors import AllocatorError, Overloaded, Unavailable
from allocator.ports import Counted, ExposureRow, OutcomeRow, Settle, losses
from allocator.stores import rules
from allocator.stores.redis.keys import Keys
from allocator.stores.redis.life import Life
from allocator.stores.redis.link import FULL_RETRY_SECONDS, Call, Link
from allocator.stores.redis.parcels import Parcel, Parcels
from allocator.stores.rules import Batch, Decision, Sums

LIMIT = 2**63
ATTEMPTS = 50  # each after the second because somebody else counted the same decisions in between
PARCEL_SECONDS = 7 * 86_400  # how long a writer's last number is remembered

log = logging.getLogger(__name__)
pack = msgspec.msgpack.Encoder().encode
_masks = msgspec.msgpack.Decoder(list[list[str]])


class Counting:
    """Counts. writer: who tells others of changes. Any thread may call."""

    def __init__(self, link: Link, keys: Keys, life: Life, writer: str) -> None:
        self._link = link
        self._keys = keys
        self._life = life
        self._writer = writer
        self._parcels = Parcels(self._deliver)
        self._lock = threading.Lock()
        self._granting = threading.Lock()
        self._outages = 0
        self._settled: dict[str, Settle] = {}  # as last heard: a guess that saves an attempt
        self._granted: dict[tuple[str, str], str] = {}  # likewise
        self._announced: dict[str, int] = {}
        self._unannounced: dict[str, int] = {}
        self._urgent = False  # is there a loss among them?
        self._changed_outages = 0

    def add(self, outcomes: Sequence[OutcomeRow], exposures: Sequence[ExposureRow]) -> list[Counted]:
        """As `Store.add`."""
        self._forget_guesses()
        sums: dict[str, Sums] = {}
        for uid, cell, _ in exposures:
            rules.add(sums.setdefault(uid, {}), cell[:4], cell[4:])
        _check(sums)
        counted = self._count(outcomes) if outcomes else []
        if sums and not outcomes and self._link.is_open(self._keys.common("store")):
            self._link.ask(Call("HGET", self._keys.commons("store"), ("epoch",)))  # raises: the exposures stay with the caller
        self._parcels.put(sums)
        self._parcels.send()
        return counted

    def close(self) -> None:
        """A last attempt on what did not get through."""
        self._parcels.send()

    def cells(self, uid: str, name: str) -> list[Cell]:
        """The cells of the key `name` of an experiment, "open" or "settled". Raises Unavailable."""
        found = self._link.ask(Call("HGETALL", self._keys.several(uid, name)))
        sums: dict[tuple[int, int, int, str], list[int]] = {}
        try:
            for field, value in found.items():
                bucket, index, arm, segment, stream = field.decode().split(" ", 4)
                sums.setdefault((int(bucket), int(arm), int(segment), stream), [0, 0, 0, 0])[int(index)] = int(value)
        except (ValueError, IndexError) as exc:
            raise Unavailable(f"a sum of experiment {uid} cannot be read: {exc}", reason="STORE_CORRUPT") from exc
        return [Cell(*key, *values) for key, values in sums.items()]

    def changed(self, since: int) -> tuple[int, list[str]]:
        """As `Store.changed`; all experiments after an outage, since the store may have gone back behind the mark and passed it again."""
        self._parcels.send()
        self.announce({})
        outages = self._link.outages
        since = since if outages == self._changed_outages else 0
        mark, uids = self._link.ask(Call("changed", self._keys.commons("store", "changed"), (since,)))
        self._changed_outages = outages
        return mark, [uid.decode() for uid in uids]

    def grant(self, uid: str, arm: int, kind: str, amount: int, limit: int) -> int:
        """As `Store.grant`. One at a time in this process: threads that guess against each other would all ask again and again."""
        with self._granting:
            return self._grant(uid, arm, kind, amount, limit)

    def _grant(self, uid: str, arm: int, kind: str, amount: int, limit: int) -> int:
        account = f"{arm} {kind}"
        supposed = self._granted.get((uid, account), "0")
        if self._link.address.wait:  # without replicas it would be granted, and spent by nobody, again and again
            supposed = (self._link.ask(Call("HGET", self._keys.several(uid, "grants"), (account,)), wait=True) or b"0").decode()
        for _ in range(ATTEMPTS):
            granted = max(0, min(amount, limit - int(supposed)))
            after = str(int(supposed) + granted)
            keys = self._keys.several(uid, "meta", "grants")
            what, *found = self._link.ask(Call("grant", keys, (self._life.epoch, account, supposed, after)), wait=True)
            if what == b"OK":
                self._granted[uid, account] = after
                return granted
            if what == b"EPOCH":
                self._life.adopt(uid, found[0].decode())
            else:
                supposed = self._granted[uid, account] = found[0].decode()
        raise _contended()

    def granted(self, uid: str) -> dict[tuple[int, str], int]:
        """As `Store.granted`."""
        found = self._link.ask(Call("HGETALL", self._keys.several(uid, "grants")))
        accounts = {tuple(account.decode().split(" ", 1)): int(amount) for account, amount in found.items()}
        return {(int(arm), kind): amount for (arm, kind), amount in accounts.items() if amount}

    # Outcomes.

    def _count(self, outcomes: Sequence[OutcomeRow]) -> list[Counted]:
        """Count outcomes, each experiment's in one step."""
        counted = [Counted.LATE] * len(outcomes)
        places: dict[str, list[int]] = {}
        for index, row in enumerate(outcomes):
            places.setdefault(row[0], []).append(index)
        known: dict[Decision, int] = {}
        urgent = bool(losses(outcomes))
        pending = list(places)
        for _ in range(ATTEMPTS):
            batches = [self._suppose([outcomes[index] for index in places[uid]], known) for uid in pending]
            _check({uid: batch.open.get(uid, {}) for uid, batch in zip(pending, batches, strict=True)})
            answers = self._link.run([self._call(uid, batch, known) for uid, batch in zip(pending, batches, strict=True)], wait=True)
            again: list[str] = []
            changes: dict[str, int] = {}
            failure: AllocatorError | None = None
            for uid, batch, answer in zip(pending, batches, answers, strict=True):
                try:
                    if self._take(uid, batch, answer, known, changes):
                        for index, what in zip(places[uid], batch.counted, strict=True):
                            counted[index] = what
                    else:
                        again.append(uid)
                except AllocatorError as error:
                    failure = failure or error
            self.announce(changes, urgent=urgent)
            if failure is not None:
                raise failure
            if not again:
                return counted
            pending = again
        raise _contended()

    def _suppose(self, rows: list[OutcomeRow], known: Mapping[Decision, int]) -> Batch:
        return rules.count(rows, (), lambda decision: known.get(decision, 0), self._settled)

    def _call(self, uid: str, batch: Batch, known: Mapping[Decision, int]) -> Call:
        buckets: dict[int, tuple[int, list[bytes], list[str], list[str]]] = {}
        for decision, mask in batch.masks.items():
            _, nonce, bucket = decision
            of_bucket = buckets.get(bucket)
            if of_bucket is None:
                of_bucket = buckets[bucket] = (bucket, [], [], [])
            of_bucket[1].append(nonce)
            if known:
                of_bucket[2].append(str(known.get(decision) or ""))
            of_bucket[3].append(str(mask))
        listed = [(bucket, before or "", after) for bucket, _, before, after in buckets.values()]
        nonces = [b"".join(of_bucket[1]) for of_bucket in buckets.values()]
        sums = [
            (f"{bucket} {index} {arm} {segment} {stream}", str(value))
            for (bucket, arm, segment, stream), values in batch.open.get(uid, {}).items()
            for index, value in enumerate(values)
            if value or not index
        ]
        settle = self._settled.get(uid)
        keys = self._keys.several(uid, "meta", "open", "buckets", *(f"seen:{bucket}" for bucket in buckets))
        return Call("add", keys, (self._life.epoch, "" if settle is None else settle.through, pack((listed, sums)), *nonces))

    def _take(self, uid: str, batch: Batch, answer: object, known: dict[Decision, int], changes: dict[str, int]) -> bool:
        """Was it counted? Learns what the answer tells. Raises AllocatorError when another attempt does not help."""
        if isinstance(answer, AllocatorError):
            raise answer
        what, *found = answer
        if what == b"OK":
            changes[uid] = found[0]
            return True
        if what == b"EPOCH":
            self._life.adopt(uid, found[0].decode())
        elif what == b"SEEN":
            self._learn_settled(uid, found[0])
            by_bucket: dict[int, list[Decision]] = {}
            for decision in batch.masks:
                by_bucket.setdefault(decision[2], []).append(decision)
            for decisions, masks in zip(by_bucket.values(), _masks.decode(found[1]), strict=True):
                known.update((decision, int(mask or 0)) for decision, mask in zip(decisions, masks, strict=True))
        else:
            raise refused(found[0].decode())
        return False

    def _learn_settled(self, uid: str, through: bytes) -> None:
        if through:
            self._settled[uid] = Settle(int(through))
        else:
            self._settled.pop(uid, None)

    # Exposures.

    def _deliver(self, parcels: Mapping[str, Parcel]) -> set[str]:
        """Send parcels; those of which the fate is known."""
        done: set[str] = set()
        changes: dict[str, int] = {}
        pending = list(parcels)
        for _ in range(2):  # again after an adoption
            adopted = []
            try:
                answers: list = self._link.run([self._parcel_call(uid, parcels[uid]) for uid in pending], wait=True)
            except AllocatorError as error:
                answers = [error] * len(pending)
            for uid, answer in zip(pending, answers, strict=True):
                try:
                    if isinstance(answer, AllocatorError):
                        raise answer
                    what, *found = answer
                    if what == b"EPOCH":
                        self._life.adopt(uid, found[0].decode())
                        adopted.append(uid)
                    elif what == b"OK":
                        done.add(uid)
                        changes[uid] = found[0]
                    else:
                        refusal = refused(found[0].decode())
                        if refusal.reason != "SUM_OVERFLOW":  # a server without room has some later
                            raise refusal
                        done.add(uid)
                        log.error("exposures of experiment %s were refused, and are dropped: %s", uid, refusal.message)
                except AllocatorError as error:
                    log.debug("exposures of experiment %s: %s", uid, error.message)
            if not adopted:
                break
            pending = adopted
        self.announce(changes)
        return done

    def _parcel_call(self, uid: str, parcel: Parcel) -> Call:
        cells = [(bucket, f"{arm} {segment} {stream}", *map(str, values)) for (bucket, arm, segment, stream), values in parcel.sums.items()]
        keys = self._keys.several(uid, "meta", "open", "settled", f"writer:{self._writer}")
        return Call("expose", keys, (self._life.epoch, parcel.number, PARCEL_SECONDS, pack(cells)))

    # Telling.

    def announce(self, changes: Mapping[str, int], *, urgent: bool = False) -> None:
        """Note which cells changed, for whoever asks what did; urgent: and call who listens.

        What cannot be noted now is noted with the next change, or when somebody asks.
        """
        with self._lock:
            self._unannounced.update((uid, number) for uid, number in changes.items() if number and self._announced.get(uid) != number)
            told, urgent = dict(self._unannounced), urgent or self._urgent
            self._urgent = False
        if not told and not urgent:
            return
        keys = self._keys.commons("store", "changed", "announced")
        channel = self._keys.common("news") if urgent else ""
        (answer,) = self._link.run([Call("announce", keys, (self._life.epoch, channel, self._writer, pack(list(told.items()))))])
        if isinstance(answer, AllocatorError):
            with self._lock:
                self._urgent |= urgent
            log.warning("what was counted is not announced yet: %s", answer.message)
            return
        with self._lock:
            for uid, number in told.items():
                self._announced[uid] = number
                if self._unannounced.get(uid) == number:
                    del self._unannounced[uid]

    def _forget_guesses(self) -> None:
        """After an outage the store may be an older one."""
        if self._outages != self._link.outages:
            self._outages = self._link.outages
            with self._lock:
                self._settled.clear()
                self._granted.clear()
                self._announced.clear()


def refused(why: str) -> AllocatorError:
    """The error of a script that took nothing. why: Redis' own words."""
    if "overflow" in why:
        return rules.too_large()
    if why.startswith("OOM"):
        return Overloaded("the store has no room; nothing was written", reason="STORE_FULL", retry_after_seconds=FULL_RETRY_SECONDS)
    return Unavailable(f"the store failed: {why[:200]}", reason="STORE_FAILED")


def _check(sums: Mapping[str, Sums]) -> None:
    """Raise Overloaded for an addend outside 64 bits."""
    for of_uid in sums.values():
        for values in of_uid.values():
            if not all(-LIMIT <= value < LIMIT for value in values):
                raise rules.too_large()


def _contended() -> Unavailable:
    return Unavailable(f"others changed the same in the store {ATTEMPTS} times in a row; nothing was written", reason="STORE_CONTENDED")
