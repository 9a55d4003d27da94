"""Reads what was asked and answered, and what the store holds, and says which promise was broken.

In: histories (`history.py`), a dump of the store, what the experiment is. Out: a sentence for each broken promise, none when all hold. It
imports nothing of the product: decision ids are taken apart here, sums are folded in plain integers, the audit chain is hashed again.

    I1 durable  what was acknowledged is stored           I5 freeze   after its acknowledgement no candidate, whatever restarts
    I2 once     each metric of a decision counts once     I6 answer   every decision is answered, by an arm that exists
    I3 exact    the sums are the fold of what is stored   I7 same     one unit and plan version, one arm
    I4 caps     candidates' slots and grants keep limits  I9 audit    the chain fits, and each command left one record
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import redis

from tests.faults.history import calls

SLOTS = 65_536
MICRO = 1_000_000
COUNTED, FIRST = 1, 2
COUNTING = ("ACCEPTED", "DUPLICATE")  # answers that promise that the outcome is stored
COMMANDS = {"start": "experiment.start", "freeze": "experiment.freeze", "resume": "experiment.resume"}

Cell = tuple[int, int, int, str]  # bucket, arm, segment, stream


@dataclass(frozen=True)
class Subject:
    """The experiment that a history is about. guardrails: name → metric, each with a rate in [0, 1] whose mean has a `max`."""

    arms: tuple[str, ...]
    incumbent: str
    reward: str
    bucket_seconds: float
    guardrails: dict[str, str] = field(default_factory=dict)
    cap: float = 1.0  # of all candidates together
    limits: dict[str, int] = field(default_factory=dict)  # most that may ever be granted, by kind
    freeze_seconds: float = 0.0  # from the acknowledgement to the last candidate anywhere


@dataclass
class Dump:
    """What a store holds. cells: of open buckets; settled: how many others; seen: nonce → mask; states: by experiment name."""

    cells: dict[Cell, tuple[int, int, int]] = field(default_factory=dict)  # count, total, squares
    settled: int = 0
    seen: dict[int, int] = field(default_factory=dict)
    audit: list[tuple] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()  # in the order of the bits of a mask
    grants: dict[tuple[int, str], int] = field(default_factory=dict)


@dataclass(frozen=True)
class Id:
    """A decision id taken apart."""

    uid: str
    arm: int
    segment: int
    flags: int
    milliseconds: int
    nonce: int

    @staticmethod
    def of(text: str) -> Id:
        raw = base64.b64decode(text, altchars=b"-_")
        return Id(
            raw[5:13].hex(), raw[13], raw[14], raw[15], int.from_bytes(raw[22:28], "big"), int.from_bytes(raw[31:39], "big", signed=True)
        )


def of_sqlite(path: Path, experiment: str = "default/ranker") -> Dump:
    """What one experiment left in the file, read with the standard library."""
    dump = Dump()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        uids = {}
        for name, uid, document in db.execute("SELECT name, uid, document FROM records"):
            record = json.loads(document)["record"]
            dump.states[name], uids[name] = record["status"]["state"], uid
            if name == experiment:
                dump.metrics = tuple(record["metrics"])
        found = db.execute("SELECT number FROM experiments WHERE uid = ?", (uids[experiment],)).fetchone()
        if found is not None:
            rows = "SELECT bucket, arm, segment, stream, count, total, square_high, square_low FROM cells WHERE experiment = ?"
            for *key, count, total, high, low in db.execute(rows, found):
                dump.cells[tuple(key)] = count, total, high * MICRO + low
            settled = "SELECT count(*) FROM settled WHERE experiment = ? AND (stream = '_reward' OR stream NOT LIKE '\\_%' ESCAPE '\\')"
            ((dump.settled,),) = db.execute(settled, found).fetchall()
            dump.seen = dict(db.execute("SELECT nonce, metrics FROM seen WHERE experiment = ?", found))
        rows = db.execute("SELECT arm, kind, granted FROM grants WHERE uid = ?", (uids[experiment],))
        dump.grants = {(arm, kind): granted for arm, kind, granted in rows}
        columns = "sequence, seconds, actor, action, experiment, reason, before, after, digest"
        dump.audit = db.execute(f"SELECT {columns} FROM audit ORDER BY sequence").fetchall()
    return dump


def of_redis(port: int, experiment: str = "default/ranker", prefix: str = "allocator") -> Dump:
    """What one experiment left in a Redis server, read with plain commands. The audit is left to the server's own verification."""
    dump = Dump()
    with redis.Redis(port=port, socket_timeout=5, protocol=2) as db:
        uid = db.hget(f"{{{prefix}}}:names", experiment).decode()
        tag = f"{{{prefix}:{uid}}}:"
        record = json.loads(db.hget(tag + "records", f"d {experiment}"))["record"]
        dump.metrics, dump.states[experiment] = tuple(record["metrics"]), record["status"]["state"]
        sums: dict[Cell, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for name, value in db.hgetall(tag + "open").items():
            bucket, index, arm, segment, stream = name.decode().split(" ", 4)
            sums[int(bucket), int(arm), int(segment), stream][int(index)] += int(value)
        dump.cells = {key: (count, total, high * MICRO + low) for key, (count, total, high, low) in sums.items()}
        dump.settled = sum(_learned(name.decode().split(" ", 4)[4]) for name in db.hkeys(tag + "settled"))
        for key in db.scan_iter(tag + "seen:*"):
            for nonce, mask in db.hgetall(key).items():
                dump.seen[int.from_bytes(nonce, "big", signed=True)] = int(mask)
    return dump


def check(subject: Subject, dump: Dump, *histories: Path) -> list[str]:
    """A sentence for each promise that was broken."""
    told = list(calls(*histories))
    return [
        *outcomes(subject, dump, [pair for pair in told if pair[0]["op"] == "report"]),
        *decisions(subject, [pair for pair in told if pair[0]["op"] == "decide"]),
        *freezes(subject, dump, told),
        *grants(subject, dump),
        *chain(dump.audit),
        *commands(dump, told),
    ]


def figures(*histories: Path) -> dict[str, int]:
    """How much there was: outcomes acknowledged, decisions answered, calls by how they ended."""
    found: Counter[str] = Counter()
    for begun, ended in calls(*histories):
        found[f"{begun['op']} {ended['type']}"] += 1
        if ended["type"] == "ok" and begun["op"] == "report":
            found["acknowledged"] += sum(status == "ACCEPTED" for status in ended["statuses"])
        if ended["type"] == "ok" and begun["op"] == "decide":
            found["decisions"] += len(ended["arms"])
    return dict(found)


def outcomes(subject: Subject, dump: Dump, told: list[tuple[dict, dict]]) -> list[str]:
    """I1, I2, I3: of what was reported, whether what is stored is all of it, once, and exactly."""
    asked: dict[int, tuple[Id, dict[str, float]]] = {}  # by nonce: everything that was ever sent for the decision
    promised: dict[int, set[str]] = defaultdict(set)
    accepted: Counter[int] = Counter()
    for begun, ended in told:
        statuses = ended.get("statuses") or [None] * len(begun["outcomes"])
        for (text, reward, metrics), status in zip(begun["outcomes"], statuses, strict=True):
            id_ = Id.of(text)
            values = dict(metrics or {})
            if reward is not None:
                values[subject.reward] = reward
            if id_.flags & COUNTED:
                asked.setdefault(id_.nonce, (id_, {}))[1].update(values)
            if ended["type"] == "ok" and status in COUNTING:
                promised[id_.nonce] |= values.keys()
                accepted[id_.nonce] += status == "ACCEPTED"
    found = [f"the checker judges open buckets, and {dump.settled} sums are settled"] if dump.settled else []
    for nonce, names in promised.items():
        missing = [name for name in names if not _has(dump, nonce, name)]
        if missing:
            found.append(f"I1: {missing} of decision {nonce} was acknowledged and is not stored")
    for nonce, count in accepted.items():
        if count > len(asked[nonce][1]):
            found.append(f"I2: decision {nonce} was ACCEPTED {count} times for {len(asked[nonce][1])} metrics")
    foreign = dump.seen.keys() - asked.keys()
    if foreign:
        found.append(f"I2: {len(foreign)} decisions are stored that nobody reported, among them {min(foreign)}")
    expected: dict[Cell, list[int]] = defaultdict(lambda: [0, 0, 0])
    for nonce in dump.seen.keys() & asked.keys():
        _fold(subject, dump, *asked[nonce], expected)
    stored = {_named(key): sums for key, sums in dump.cells.items() if _learned(key[3])}
    for key in sorted(stored.keys() | expected.keys()):
        want, have = tuple(expected.get(key, (0, 0, 0))), stored.get(key, (0, 0, 0))
        if key[3] != "_reward":
            want, have = want[:2], have[:2]
        if want != have:
            rule = "I2" if have[0] > want[0] else "I1" if have[0] < want[0] else "I3"
            found.append(f"{rule}: bucket, arm, segment, stream {key}: stored {have}, the fold of what is stored is {want}")
    return found


def decisions(subject: Subject, told: list[tuple[dict, dict]]) -> list[str]:
    """I4, I6, I7: of what was decided, whether each was answered, by one arm per unit and version, within the cap."""
    found, arm_of = [], {}
    slots: dict[int, dict[str, int]] = defaultdict(dict)
    for begun, ended in told:
        if ended["type"] != "ok":
            if not begun.get("may_fail"):
                answer = ended.get("error", "nothing")
                found.append(f"I6: {begun['proc']} asked for {len(begun['units'])} decisions and was answered {answer}")
            continue
        if len(ended["arms"]) != len(begun["units"]):
            found.append(f"I6: {begun['proc']} asked for {len(begun['units'])} decisions and got {len(ended['arms'])}")
        for unit, arm, reason, share in zip(begun["units"], ended["arms"], ended["reasons"], ended["slots"], strict=False):
            if arm not in subject.arms:
                found.append(f"I6: unit {unit!r} was given {arm!r}, which is no arm")
            if reason != "ALLOCATED":
                continue
            version = ended["version"]
            if arm_of.setdefault((unit, version), arm) != arm:
                found.append(f"I7: unit {unit!r} was given {arm!r} and {arm_of[unit, version]!r} under version {version}")
            if slots[version].setdefault(arm, share) != share:
                found.append(f"I4: arm {arm!r} had {share} and {slots[version][arm]} slots under version {version}")
    for version, shares in slots.items():
        candidates = sum(share for arm, share in shares.items() if arm != subject.incumbent)
        if candidates > subject.cap * SLOTS:
            found.append(f"I4: candidates had {candidates} slots under version {version}, the cap allows {subject.cap * SLOTS:.0f}")
    return found


def freezes(subject: Subject, dump: Dump, told: list[tuple[dict, dict]]) -> list[str]:
    """I5: from the acknowledgement of a freeze until a resume was asked for, nobody gets a candidate; and the store says so."""
    found = []
    resumes = sorted(begun["t"] for begun, _ in told if begun["op"] == "resume")
    last = None
    for begun, ended in told:
        if begun["op"] != "freeze" or ended["type"] != "ok":
            continue
        until = next((t for t in resumes if t > begun["t"]), float("inf"))
        last = max(last or 0.0, ended["t"])
        for asked, answered in told:
            if asked["op"] != "decide" or answered["type"] != "ok":
                continue
            late = ended["t"] + subject.freeze_seconds < asked["t"] and answered["t"] < until
            wrong = [arm for arm in answered["arms"] if arm != subject.incumbent] if late else []
            if wrong:
                found.append(f"I5: {asked['t'] - ended['t']:.3f} s after a freeze was acknowledged, {asked['proc']} was given {wrong[0]!r}")
    frozen = last is not None and not any(t > last for t in resumes)
    if frozen and dump.states and "FROZEN" not in dump.states.values():
        found.append(f"I5: a freeze was acknowledged, and the store says {sorted(set(dump.states.values()))}")
    return found


def grants(subject: Subject, dump: Dump) -> list[str]:
    """I4: what was ever set aside of a budget keeps its limit."""
    return [
        f"I4: {granted} {kind} were granted to arm {arm}, the limit is {subject.limits[kind]}"
        for (arm, kind), granted in dump.grants.items()
        if kind in subject.limits and granted > subject.limits[kind]
    ]


def chain(audit: Iterable[tuple]) -> list[str]:
    """I9: each record's digest is that of the one before and of its own fields; numbers have no gap."""
    digest = "0" * 64
    for number, (*fields, sealed) in enumerate(audit, 1):
        hasher = hashlib.sha256(digest.encode())
        for text in map(str, fields):
            hasher.update(len(text.encode()).to_bytes(8, "big") + text.encode())
        digest = hasher.hexdigest()
        if fields[0] != number or digest != sealed:
            return [f"I9: audit record {fields[0]}, the {number}. there is, does not fit the one before it"]
    return []


def commands(dump: Dump, told: list[tuple[dict, dict]]) -> list[str]:
    """I9: each command that was acknowledged left one record with its actor and reason; one in doubt at most one."""
    if not dump.audit:
        return []
    recorded = Counter((actor, action, reason) for _, _, actor, action, _, reason, *_ in dump.audit)
    least: Counter[tuple] = Counter()
    most: Counter[tuple] = Counter()
    for begun, ended in told:
        if begun["op"] in COMMANDS and ended["type"] != "fail":
            what = begun["actor"], COMMANDS[begun["op"]], begun["reason"]
            most[what] += 1
            least[what] += ended["type"] == "ok"
    return [
        f"I9: {what[1]} by {what[0]!r} ({what[2]!r}) was acknowledged {least[what]} times and is on record {recorded[what]} times"
        for what in most
        if not least[what] <= recorded[what] <= most[what]
    ]


def _has(dump: Dump, nonce: int, metric: str) -> bool:
    return metric in dump.metrics and bool(dump.seen.get(nonce, 0) >> dump.metrics.index(metric) & 1)


def _fold(subject: Subject, dump: Dump, id_: Id, values: dict[str, float], into: dict[Cell, list[int]]) -> None:
    """Add what the store says it has of one decision, in integers."""
    bucket = int(id_.milliseconds / 1000 // subject.bucket_seconds)
    for name, value in values.items():
        if not _has(dump, id_.nonce, name):
            continue
        micro = round(value * MICRO)
        if name == subject.reward:
            _add(into[bucket, id_.arm, id_.segment, "_reward"], micro)
        if id_.flags & FIRST:
            for guardrail, metric in subject.guardrails.items():
                if metric == name:
                    _add(into[bucket, id_.arm, id_.segment, guardrail], micro)


def _add(sums: list[int], micro: int) -> None:
    sums[0] += 1
    sums[1] += micro
    sums[2] += micro * micro


def _learned(stream: str) -> bool:
    return stream == "_reward" or not stream.startswith("_")


def _named(key: Cell) -> Cell:
    """The key with the guardrail's own name in place of its stream's, which ends in a digest and the activation."""
    return (*key[:3], key[3].partition("@")[0])
