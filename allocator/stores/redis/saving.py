"""Records, the audit chain, items and terms in Redis.

In: saves. Out: which of them were carried out. A record lives with its experiment, names and the audit chain live elsewhere, and no step
is atomic over both. So a save is announced first (an intent, which also claims a new name), then made with its audit entries in one step,
then finished: its entries sealed and moved into the chain, the save told as news, the intent taken back. What a crash leaves behind is an
intent: news name its experiments at every look, and after a while another server forbids the save that never came, and finishes it.
Nothing of it is lost or told twice, since the chain remembers the last entry that it has of each experiment.

The digest of an audit record needs the one before, and Lua has no SHA-256: it is worked out here, and the chain is only extended from where
it was supposed to end.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from allocator.core.audit import GENESIS, AuditEntry, AuditRecord
from allocator.core.record import Record
from allocator.errors import AllocatorError, Conflict, Overloaded, Unavailable
from allocator.ports import News, Save
from allocator.stores import documents, rules
from allocator.stores.redis.counting import ATTEMPTS, pack, refused
from allocator.stores.redis.keys import Keys
from allocator.stores.redis.life import Life, lost
from allocator.stores.redis.link import Call, Link

SILENT_SECONDS = 10  # after which an intent is finished by another server
CHUNK = 200  # saves announced together

log = logging.getLogger(__name__)
_json = msgspec.json.Encoder()
_entry = msgspec.json.Decoder(AuditEntry)
_record = msgspec.json.Decoder(AuditRecord)
_intent = msgspec.msgpack.Decoder(tuple[int | str, list[tuple[str, str]]])


@dataclass(slots=True)
class _Attempt:
    """A save on its way. answer: when it is decided."""

    save: Save
    document: str
    answer: AllocatorError | None = None
    decided: bool = False
    first: int = 0  # its audit entries: after this one,
    last: int = 0  # up to this one

    def decide(self, answer: AllocatorError | None) -> None:
        self.answer, self.decided = answer, True

    @property
    def name(self) -> str:
        return self.save.record.name

    @property
    def uid(self) -> str:
        return self.save.record.uid


@dataclass(slots=True)
class _Chains:
    """What to add to the audit chain. head: sequence and digest of the last record."""

    head: tuple[int, str]
    ends: dict[str, tuple[int, int]] = field(default_factory=dict)  # uid → last entry chained, before and afterwards
    entries: list[AuditEntry] = field(default_factory=list)

    def records(self) -> list[tuple[int, str, str, str]]:
        sealed = rules.chain(*self.head, self.entries)
        return [(record.sequence, record.entry.experiment, _json.encode(record).decode(), record.digest) for record in sealed]


class Saving:
    """Saves, and what stands around them. changed: told the cells that a save changed. Any thread may call."""

    def __init__(self, link: Link, keys: Keys, life: Life, writer: str, changed: Callable[[Mapping[str, int]], None]) -> None:
        self._link = link
        self._keys = keys
        self._life = life
        self._writer = writer
        self._changed = changed
        self._chaining = threading.Lock()  # of this process, that its threads do not overtake each other for nothing
        self._fenced = 0
        self._news_outages = 0

    # Records.

    def records(self) -> list[Record]:
        """As `Store.records`."""
        names = self._link.ask(Call("HGETALL", self._keys.commons("names")))
        calls = [Call("HGET", self._keys.several(uid.decode(), "records"), (b"d " + name,)) for name, uid in sorted(names.items())]
        return [documents.from_bytes(document) for document in self._link.ask_all(calls) if document is not None]

    def record(self, name: str) -> Record | None:
        """As `Store.record`."""
        uid = self._link.ask(Call("HGET", self._keys.commons("names"), (name,)))
        if uid is None:
            return None
        document = self._link.ask(Call("HGET", self._keys.several(uid.decode(), "records"), (f"d {name}",)))
        return None if document is None else documents.from_bytes(document)

    def save(self, saves: Sequence[Save], term: int | None) -> list[AllocatorError | None]:
        """As `Store.save`."""
        attempts = [_Attempt(save, documents.to_bytes(save.record).decode()) for save in saves]
        for first in range(0, len(attempts), CHUNK):
            self._save(attempts[first : first + CHUNK], term)
        if attempts and all(_cannot_write(attempt.answer) for attempt in attempts):
            raise attempts[0].answer
        return [attempt.answer for attempt in attempts]

    def _save(self, attempts: list[_Attempt], term: int | None) -> None:
        for _ in range(ATTEMPTS):
            pending = [attempt for attempt in attempts if not attempt.decided]
            if not pending:
                return
            try:
                self._attempt(pending, term)
            except AllocatorError as error:
                for attempt in pending:
                    if not attempt.decided:
                        attempt.decide(error)
                return
        raise Unavailable("others cancelled a save again and again; nothing was written", reason="STORE_CONTENDED")

    def _attempt(self, pending: list[_Attempt], term: int | None) -> None:
        """Announce, make and finish saves. Leaves undecided what is to be tried again."""
        wanted = [(attempt.name, attempt.uid, attempt.save.expected is None) for attempt in pending]
        keys = self._keys.commons("store", "names", "intents", "chained")
        what, *found = self._link.ask(Call("intend", keys, (self._life.epoch, "" if term is None else term, pack(wanted))), wait=True)
        if what == b"EPOCH":
            self._life.follow()
            return
        if what == b"TERM":
            for attempt in pending:
                attempt.decide(rules.term_refusal(term, int(found[0])))
            return
        token, latest, sequence, digest, owners, chained = found
        ends = {attempt.uid: int(end) for attempt, end in zip(pending, chained, strict=True)}
        for attempt, owner in zip(pending, owners, strict=True):
            if owner.decode() != attempt.uid:
                self._decide_foreign(attempt, owner.decode(), token)
        made = self._make([attempt for attempt in pending if not attempt.decided], token, term, int(latest), ends)
        chains = _Chains((int(sequence), digest.decode() or GENESIS))
        for attempt in made:
            start, end = chains.ends.get(attempt.uid, (ends[attempt.uid],) * 2)
            if attempt.first == end:  # else others' entries come before it
                chains.ends[attempt.uid] = (start, attempt.last)
                chains.entries += attempt.save.audit
        unknown = any(_cannot_write(attempt.answer) for attempt in pending)  # then the intent must stay
        try:
            self._finish("" if unknown else str(token), made, chains)
        except AllocatorError as error:  # they are made; others see the intent
            log.warning("%d saves are made, and not yet told to others: %s", len(made), error.message)

    def _decide_foreign(self, attempt: _Attempt, owner: str, token: int) -> None:
        """A save whose name another uid has, or nobody. Leaves it undecided when it may be tried again."""
        stored = None
        if owner:
            stored = self._link.ask(Call("HGET", self._keys.several(owner, "records"), (f"v {attempt.name}",)))
        version = None if stored is None else int(stored)
        if version is None and attempt.save.expected is None:
            # Whoever claimed the name has not written yet: that is forbidden, then the name is ours.
            self._link.ask(Call("cancel", self._keys.several(owner, "meta"), (token,)), wait=True)
            if self._link.ask(Call("HGET", self._keys.several(owner, "records"), (f"v {attempt.name}",))) is None:
                self._link.ask(Call("claim", self._keys.commons("names"), (attempt.name, owner, attempt.uid)), wait=True)
            return
        refusal = rules.refusal(attempt.save, version)
        attempt.decide(refusal or Conflict(f"experiment {attempt.name!r} is another one than it was", experiment=attempt.name))

    def _make(self, attempts: list[_Attempt], token: int, term: int | None, latest: int, ends: Mapping[str, int]) -> list[_Attempt]:
        """Carry out saves. Returns those that were."""
        made: list[_Attempt] = []
        changes: dict[str, int] = {}
        settled: dict[str, list[bytes]] = {}
        for _ in range(2):  # again after an adoption
            wanted = [attempt for attempt in attempts if not attempt.decided]
            calls = [self._call(attempt, token, term, latest, ends[attempt.uid]) for attempt in wanted]
            adopted: set[str] = set()
            for attempt, answer in zip(wanted, self._link.run(calls, wait=True), strict=True):
                if isinstance(answer, AllocatorError):
                    attempt.decide(answer)
                    continue
                what, *found = answer
                if what == b"OK":
                    attempt.first, attempt.last, changes[attempt.uid], forgotten = found
                    attempt.decide(None)
                    made.append(attempt)
                    settled[attempt.uid] = forgotten
                elif what == b"VERSION":
                    attempt.decide(rules.refusal(attempt.save, int(found[0]) if found[0] else None))
                elif what == b"TERM":
                    attempt.decide(rules.term_refusal(term, int(found[0])))
                elif what == b"REFUSED":
                    attempt.decide(refused(found[0].decode()))
                elif what == b"EPOCH" and attempt.uid not in adopted:
                    try:
                        self._life.adopt(attempt.uid, found[0].decode())
                        adopted.add(attempt.uid)
                    except AllocatorError as error:
                        attempt.decide(error)
            if not adopted:
                break
        self._changed(changes)
        self._forget(settled)
        return made

    def _call(self, attempt: _Attempt, token: int, term: int | None, latest: int, chained: int) -> Call:
        save = attempt.save
        settle = save.settle
        words = (
            attempt.name,
            "" if save.expected is None else str(save.expected),
            str(save.record.version),
            attempt.document,
            [_json.encode(entry).decode() for entry in save.audit],
            "" if settle is None else settle.through,
            0 if settle is None else settle.coarsen,
        )
        keys = self._keys.several(attempt.uid, "meta", "records", "pending", "open", "settled", "buckets")
        return Call("save", keys, (self._life.epoch, token, "" if term is None else term, latest, chained, pack(words)))

    def _forget(self, settled: Mapping[str, Sequence[bytes]]) -> None:
        """Remove the masks of settled buckets: nothing asks for them any more. What fails is removed at the next settling."""
        calls = []
        for uid, buckets in settled.items():
            if buckets:
                calls.append(Call("UNLINK", self._keys.several(uid, *(f"seen:{bucket.decode()}" for bucket in buckets))))
                calls.append(Call("ZREM", self._keys.several(uid, "buckets"), buckets))
        self._link.run(calls)

    # The chain.

    def _finish(self, token: str, made: Iterable[_Attempt], chains: _Chains) -> None:
        """Chain what was made, tell it, take back the intent."""
        made = list(made)
        told = [(attempt.name, attempt.uid) for attempt in made]
        left = {attempt.uid for attempt in made if chains.ends.get(attempt.uid, (0, 0))[1] != attempt.last and attempt.save.audit}
        with self._chaining:
            if left or not self._extend(token, chains, told):
                self._chain({attempt.uid for attempt in made})
                self._extend(token, _Chains(chains.head), told)

    def _extend(self, token: str, chains: _Chains, told: Sequence[tuple[str, str]]) -> bool:
        """One step: extend the chain, tell, take back. Returns whether the chain was where it was supposed to be."""
        ends = [(uid, str(after)) for uid, (before, after) in chains.ends.items() if before != after]
        words = (ends, chains.records(), [name for name, _ in told], [uid for _, uid in told])
        keys = self._keys.commons("store", "audit", "experiments", "chained", "saved", "intents", "uids")
        arguments = (self._life.epoch, token, chains.head[0], self._keys.common("news"), self._writer, pack(words))
        what, *found = self._link.ask(Call("finish", keys, arguments), wait=True)
        if what == b"EPOCH":
            raise lost(f"it is in epoch {found[0].decode() or 'none'}")
        return what == b"OK"

    def _chain(self, uids: Iterable[str]) -> None:
        """Move all audit entries of experiments that are not yet in the chain into it. The caller holds the lock."""
        listed = sorted(uids)
        if not listed:
            return
        for _ in range(ATTEMPTS):
            calls = [
                Call("HMGET", self._keys.commons("store"), ("sequence", "digest")),
                Call("HMGET", self._keys.commons("chained"), listed),
            ]
            (sequence, digest), ends = self._link.ask_all(calls)
            found = self._link.ask_all([Call("HGETALL", self._keys.several(uid, "pending")) for uid in listed])
            chains = _Chains((int(sequence or 0), (digest or b"").decode() or GENESIS))
            for uid, end, pending in zip(listed, ends, found, strict=True):
                before = int(end or 0)
                numbers = sorted(number for number in map(int, pending) if number > before)
                if numbers:
                    chains.ends[uid] = (before, numbers[-1])
                    chains.entries += [_entry.decode(pending[str(number).encode()]) for number in numbers]
            if not chains.ends or self._extend("", chains, ()):
                return
        raise Unavailable("others extend the audit chain all the time", reason="STORE_CONTENDED")

    def _recover(self, intents: Mapping[bytes, bytes], now: int) -> None:
        """Chain what intents left behind; finish those that have been silent for too long."""
        silent: list[tuple[int, list[tuple[str, str]]]] = []
        uids: set[str] = set()
        for token, packed in intents.items():
            since, saves = _intent.decode(packed)
            uids |= {uid for _, uid in saves}
            if now - int(since) > SILENT_SECONDS:
                silent.append((int(token), saves))
        for token, saves in silent:
            log.warning("a server announced %d saves and was not heard of again; they are finished for it", len(saves))
            self._link.ask_all([Call("cancel", self._keys.several(uid, "meta"), (token,)) for uid in {uid for _, uid in saves}], wait=True)
        with self._chaining:
            self._chain(uids)
            for token, saves in silent:
                written = self._link.ask_all([Call("HGET", self._keys.several(uid, "records"), (f"v {name}",)) for name, uid in saves])
                told = [save for save, version in zip(saves, written, strict=True) if version is not None]
                self._extend(str(token), _Chains((0, GENESIS)), told)

    def audit(self, after: int, limit: int, experiment: str | None) -> list[AuditRecord]:
        """As `Store.audit`."""
        intents, (seconds, _) = self._link.ask_all([Call("HGETALL", self._keys.commons("intents")), self._time()])
        if intents:
            self._recover(intents, int(seconds))
        after = max(after, 0)
        if limit <= 0:
            return []
        if experiment is None:
            (last,) = self._link.ask(Call("HMGET", self._keys.commons("store"), ("sequence",)))
            numbers = [str(number) for number in range(after + 1, min(int(last or 0), after + limit) + 1)]
        else:
            first, end = (f"[{experiment}\0{number:016d}" for number in (after + 1, 10**16 - 1))
            members = self._link.ask(Call("ZRANGEBYLEX", self._keys.commons("experiments"), (first, end, "LIMIT", 0, limit)))
            numbers = [str(int(member[-16:])) for member in members]
        found = self._link.ask(Call("HMGET", self._keys.commons("audit"), numbers)) if numbers else []
        try:
            return [_record.decode(document or b"") for document in found]
        except msgspec.MsgspecError as exc:
            raise Unavailable(f"an audit record in the store cannot be read: {exc}", reason="STORE_CORRUPT") from exc

    # Items.

    def items(self, kind: str) -> dict[str, str]:
        """As `Store.items`."""
        found = self._link.ask(Call("HGETALL", self._keys.commons(f"items:{kind}")))
        return {key.decode(): value.decode() for key, value in found.items()}

    def put(self, kind: str, key: str, value: str | None, expected: str | None, audit: Sequence[AuditEntry]) -> None:
        """As `Store.put`."""
        keys = self._keys.commons("store", f"items:{kind}", "kinds", "audit", "experiments")
        with self._chaining:
            for _ in range(ATTEMPTS):
                sequence, digest = self._link.ask(Call("HMGET", self._keys.commons("store"), ("sequence", "digest")))
                chains = _Chains((int(sequence or 0), (digest or b"").decode() or GENESIS), entries=list(audit))
                words = (key, [] if expected is None else [expected], [] if value is None else [value], chains.records())
                arguments = (self._life.epoch, chains.head[0], kind, self._keys.common("news"), self._writer, pack(words))
                what, *found = self._link.ask(Call("put", keys, arguments), wait=True)
                if what == b"OK":
                    return
                if what == b"IS":
                    now = found[0].decode() if found and found[0] is not None else None
                    raise rules.item_refusal(kind, key, expected, now) or Unavailable("the store contradicts itself", reason="STORE_FAILED")
                if what == b"EPOCH":
                    self._life.follow()
        raise Unavailable("others extend the audit chain all the time", reason="STORE_CONTENDED")

    # Terms and news.

    def lead(self, holder: str, seconds: float) -> int | None:
        """As `Store.lead`. Before a new holder hears its number, every experiment refuses the numbers before it."""
        keys = self._keys.commons("store", "leader")
        what, *found = self._link.ask(Call("lead", keys, (self._life.epoch, holder, max(1, round(seconds * 1e3)))), wait=True)
        if what == b"EPOCH":
            self._life.follow()
            return self.lead(holder, seconds)
        if what == b"OTHER":
            return None
        number = int(found[0])
        if number != self._fenced:
            uids, intents, (now, _) = self._link.ask_all(
                [Call("HVALS", self._keys.commons("names")), Call("HGETALL", self._keys.commons("intents")), self._time()]
            )
            self._link.ask_all([Call("fence", self._keys.several(uid.decode(), "meta"), (number,)) for uid in uids], wait=True)
            self._recover(intents, int(now))
            self._fenced = number
        return number

    def resign(self, holder: str) -> None:
        """As `Store.resign`."""
        self._link.ask(Call("resign", self._keys.commons("leader"), (holder,)))

    def news(self, since: int) -> News:
        """As `Store.news`; everything after an outage, since the store may have gone back behind the mark and passed it again."""
        self._link.look_again()
        known = self._life.epoch  # made now, if there is none
        outages = self._link.outages
        keys = self._keys.commons("store", "saved", "kinds", "intents")
        mark, names, kinds, beat, epoch, flat, now = self._link.ask(Call("news", keys, (since if outages == self._news_outages else 0,)))
        self._news_outages = outages
        if epoch and epoch.decode() != known:
            with contextlib.suppress(Unavailable):  # whoever writes is told
                self._life.follow()
        intents = dict(zip(flat[::2], flat[1::2], strict=True))
        found = {name.decode() for name in names}
        for packed in intents.values():
            found |= {name for name, _ in _intent.decode(packed)[1]}
        if any(int(now) - int(_intent.decode(packed)[0]) > SILENT_SECONDS for packed in intents.values()):
            try:
                self._recover(intents, int(now))
            except AllocatorError as error:  # a full store, say; its names are news at every look, so nothing is lost by waiting
                log.warning("saves that were never finished are not finished yet: %s", error.message)
        return News(mark, tuple(sorted(found)), tuple(kind.decode() for kind in kinds), beat, epoch.decode())

    def _time(self) -> Call:
        return Call("time", self._keys.commons("store"))


def _cannot_write(answer: AllocatorError | None) -> bool:
    """Is it the store's trouble, not the save's?"""
    return isinstance(answer, Unavailable) or (isinstance(answer, Overloaded) and answer.reason == "STORE_FULL")
