"""The decision log: who was given what, with what chance, by which table; and what came of it. Parquet, for analysis.

In: decisions and outcomes as the servicers answer them, and the entries of the snapshot that decided. Out: three tables below one folder,
`decisions`, `outcomes` and `snapshots`, each in `date=.../experiment=...`, with the names that the Open Bandit Pipeline knows (`action`,
`pscore`, `position`, `context`) beside ours. Units appear as the keyed hash that also draws them, never by name: salts and the names of
pinned units are left out of what is logged, so whoever has the log alone cannot find a person in it. Who opted out is not in it at
all: there is no row of their decisions, nor of outcomes that were IGNORED, whose ids do not say whether that was the reason.

The idea. A decision costs its maker one append to a bounded queue. A thread empties it each second, reads the ids as columns, and adds to
an open Arrow stream, which a killed process leaves readable up to the last second. When the stream is old or large it becomes Parquet files
named after it, then is removed; a stream that another process left is taken over at the start the same way, and because names repeat,
being killed in between duplicates nothing. What the queue has no room for, or the disk refuses, is lost and counted; decisions never wait.

Dropped: Parquet files each second (a hundred thousand a day); one open Parquet file (unreadable after a kill: its index comes last);
hashing and encoding where decisions are made.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import structlog
from google.protobuf.json_format import MessageToDict

from allocator.core.assignment import SLOTS, unit_hash
from allocator.core.decision import Reason
from allocator.core.decision_columns import read_ids
from allocator.core.outcome import Outcome
from allocator.core.served_chances import chances, gates_known
from allocator.core.snapshot import Entry
from allocator.engine.ingest import Result, Status
from allocator.engine.live import Live
from allocator.engine.registry import Registry
from allocator.errors import Unavailable
from allocator.wire.snapshots import entry_to_message

MOST_WAITING = 500_000  # rows between two looks; a few hundred bytes each
FLUSH_SECONDS = 1.0
ROTATE_SECONDS = 60.0
ROTATE_ROWS = 250_000
OPEN = ".open"  # the folder of streams; readers of Parquet datasets pass over what begins with a dot
POSITION = "position"
OPTED_OUT = Reason.OPTED_OUT

log = structlog.get_logger()

Row = tuple[Entry, str | bytes, bytes, tuple[str | None, ...], Reason]


@dataclass
class Counts:
    """Rows written and lost, by table; grows only. Read by metrics."""

    written: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("decisions", "outcomes", "snapshots"), 0))
    lost: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("decisions", "outcomes", "snapshots"), 0))


class DecisionLog:
    """Writes the log below `directory`. context: attributes of requests to keep, by name. days: how long; 0 for ever.

    `decided`, `decided_batch` and `reported` belong to one thread, that of the servicers. now: seconds since the epoch.
    """

    def __init__(
        self,
        directory: Path,
        live: Live,
        registry: Registry,
        now: Callable[[], float],
        *,
        context: Sequence[str] = (),
        days: int = 30,
        flush_seconds: float = FLUSH_SECONDS,
        rotate_seconds: float = ROTATE_SECONDS,
        rotate_rows: int = ROTATE_ROWS,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self.counts = Counts()
        self._directory, self._live, self._registry, self._now = directory, live, registry, now
        self._context, self._days = tuple(context), days
        self._flush_seconds, self._most = flush_seconds, most_waiting
        self._decisions: deque[Row] = deque()
        self._outcomes: deque[tuple[float, Outcome, Result]] = deque()
        self._sequence, self._day = 0, ""
        self._logged: dict[bytes, int] = {}  # newest version of each experiment whose entry is in the log
        self._tables = {
            name: _Table(name, schema, directory, rotate_seconds, rotate_rows, self.counts) for name, schema in _schemas().items()
        }
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # one writer: the thread, or whoever flushes by hand
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take over what a process before this one left, and write from now on. Raises Unavailable when the folder cannot be written."""
        try:
            (self._directory / OPEN).mkdir(parents=True, exist_ok=True)
            for table in self._tables.values():
                table.recover()
        except OSError as exc:
            raise Unavailable(f"the decision log cannot be written to {self._directory}: {exc.strerror}", reason="DECISION_LOG") from exc
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, as Parquet, and end the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self.flush(rotate=True)

    # ------------------------------------------------------------------------------------- where decisions are made

    def decided(self, entry: Entry, decision_id: str | bytes, unit: bytes, attributes: Mapping[str, str], reason: Reason) -> None:
        """Remember a decision; its id as text, or as ASCII. Costs less than a microsecond, waits for nothing, raises nothing."""
        if reason is OPTED_OUT:
            return
        if len(self._decisions) >= self._most:
            self.counts.lost["decisions"] += 1
            return
        context = tuple(map(attributes.get, self._context)) if self._context else ()
        self._decisions.append((entry, decision_id, unit, context, reason))

    def decided_batch(
        self, entry: Entry, ids: Sequence[str], units: Sequence[bytes], attributes: Mapping[str, str], reasons: Sequence[Reason]
    ) -> None:
        """The same for many units of one request, who opted out together or not at all: the request's attributes say so."""
        if reasons and reasons[0] is OPTED_OUT:
            return
        if len(self._decisions) + len(ids) > self._most:
            self.counts.lost["decisions"] += len(ids)
            return
        context = tuple(map(attributes.get, self._context)) if self._context else ()
        self._decisions.extend((entry, one, unit, context, reason) for one, unit, reason in zip(ids, units, reasons, strict=True))

    def reported(self, outcomes: Sequence[Outcome], results: Sequence[Result]) -> None:
        """Remember what was reported and what became of it."""
        now = self._now()
        rows = [
            (now, outcome, result)
            for outcome, result in zip(outcomes, results, strict=True)
            if result.experiment and result.status is not Status.IGNORED
        ]
        if len(self._outcomes) + len(rows) > self._most:
            self.counts.lost["outcomes"] += len(rows)
            return
        self._outcomes.extend(rows)

    # ------------------------------------------------------------------------------------------------- in the thread

    def flush(self, *, rotate: bool = False) -> None:
        """Write what waits to the open streams; with `rotate`, make Parquet of them now. The thread calls it by itself."""
        with self._lock:
            decisions = [self._decisions.popleft() for _ in range(len(self._decisions))]
            outcomes = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
            self._write("snapshots", lambda schema: _batch(self._snapshot_rows(decisions), schema), 0)
            self._write("decisions", lambda schema: _decision_rows(decisions, self._context, schema), len(decisions))
            self._write("outcomes", lambda schema: _batch(self._outcome_rows(outcomes), schema), len(outcomes))
            for table in self._tables.values():
                table.rotate(self._now(), force=rotate)

    def _run(self) -> None:
        while not self._stopping.wait(self._flush_seconds):
            try:
                self.flush()
                self._expire()
            except Exception:
                log.exception("decision_log.crashed")

    def _write(self, name: str, batch: Callable[[Any], Any], waiting: int) -> None:
        table = self._tables[name]
        try:
            table.append(batch(table.schema), self._now())
        except OSError as error:
            self.counts.lost[name] += waiting
            log.warning("decision_log.not_written", table=name, rows=waiting, error=str(error))
        except Exception:  # whatever it is, the next rows deserve their chance
            self.counts.lost[name] += waiting
            log.exception("decision_log.crashed", table=name, rows=waiting)

    def _snapshot_rows(self, decisions: Sequence[Row]) -> list[dict[str, Any]]:
        """Entries that are not in the log yet: those that decided and those that changed; on a new day, every one."""
        now, today = self._now(), _day(self._now())
        fresh = {(row[0].uid, row[0].version): row[0] for row in decisions if row[0].version > self._logged.get(row[0].uid, -1)}
        snapshot, changed, _, _ = self._live.changes_since(self._sequence)
        self._sequence = snapshot.sequence
        if today != self._day:
            self._day, changed = today, list(snapshot.entries.values())
            fresh |= {(entry.uid, entry.version): entry for entry in changed}
        fresh |= {(e.uid, e.version): e for e in changed if e.version > self._logged.get(e.uid, -1)}
        for uid, version in fresh:
            self._logged[uid] = max(version, self._logged.get(uid, -1))
        return [
            {
                "date": today,
                "experiment": entry.experiment,
                "uid": entry.uid.hex(),
                "version": entry.version,
                "ts": _stamp(now),
                "stage": entry.stage,
                "state": entry.state,
                "document": without_units(entry),
                **self._silence(entry),
            }
            for entry in fresh.values()
        ]

    def _silence(self, entry: Entry) -> dict[str, float | None]:
        """What a decision means that nobody reports, in the words of the spec: outcomes say nothing of those that never came."""
        record = self._registry.of_uid(entry.uid.hex())
        if record is None:
            return {"window_seconds": None, "missing": None}
        return {"window_seconds": record.experiment.reward.window_seconds, "missing": record.experiment.reward.missing}

    def _outcome_rows(self, waiting: Sequence[tuple[float, Outcome, Result]]) -> list[dict[str, Any]]:
        rows = []
        for at, outcome, result in waiting:
            record = self._registry.find(result.experiment)
            reward = record.experiment.reward.metric if record is not None else ""
            values = {**(outcome.metrics or {}), **({reward: outcome.reward} if outcome.reward is not None else {})}
            for metric, value in values.items():
                rows.append(
                    {
                        "date": _day(at),
                        "experiment": result.experiment,
                        "decision_id": outcome.decision_id,
                        "ts": _stamp(at),
                        "metric": metric,
                        "value": float(value),
                        "is_reward": metric == reward,
                        "status": result.status.value,
                    }
                )
        return rows

    def _expire(self) -> None:
        """Remove the days that are too old. The entries in force are written anew each day, so no later decision loses its own."""
        if not self._days:
            return
        oldest = _day(self._now() - self._days * 86_400)
        for name in self._tables:
            for folder in (self._directory / name).glob("date=*"):
                if folder.name.removeprefix("date=") < oldest:
                    shutil.rmtree(folder)
                    log.info("decision_log.expired", table=name, date=folder.name.removeprefix("date="))


class _Table:
    """One table: an open stream, and the Parquet files that streams become."""

    def __init__(self, name: str, schema: Any, directory: Path, rotate_seconds: float, rotate_rows: int, counts: Counts) -> None:
        self.name, self.schema, self._directory, self._counts = name, schema, directory, counts
        self._rotate_seconds, self._rotate_rows = rotate_seconds, rotate_rows
        self._file: Any = None
        self._path = Path()
        self._writer: Any = None
        self._rows, self._since = 0, 0.0
        self._left: list[Path] = []

    def append(self, batch: Any, now: float) -> None:
        """Add a batch to the open stream; with the operating system, so safe from this process's death, when it returns. Raises OSError."""
        if not batch.num_rows:
            return
        if self._writer is None:
            self._path = self._directory / OPEN / f"{self.name}-{int(now * 1000):013d}-{secrets.token_hex(4)}.arrows"
            self._file = self._path.open("xb")
            fcntl.flock(self._file, fcntl.LOCK_EX)  # others take over only what nobody holds
            self._writer = pa.ipc.new_stream(self._file, self.schema)
            self._rows, self._since = 0, now
        try:
            self._writer.write_batch(batch)
            self._file.flush()
        except OSError:  # the batch may be there in part: the next one needs a stream of its own
            self._leave()
            raise
        self._rows += batch.num_rows
        self._counts.written[self.name] += batch.num_rows

    def rotate(self, now: float, *, force: bool) -> None:
        """Make Parquet of the stream when it is due, and of those that could not be made into it before."""
        due = force or now - self._since >= self._rotate_seconds or self._rows >= self._rotate_rows
        if self._writer is not None and due:
            self._leave()
        for path in list(self._left):
            try:
                self._to_parquet(path)
            except OSError as error:
                log.warning("decision_log.not_rotated", table=self.name, stream=str(path), error=str(error))
                return
            self._left.remove(path)

    def _leave(self) -> None:
        """End the open stream: it is to be made Parquet. Its end mark is left out, as it is when a process dies."""
        self._left.append(self._path)
        file, self._file, self._writer = self._file, None, None
        with contextlib.suppress(OSError):  # what was not flushed was reported when it was not
            file.close()

    def recover(self) -> None:
        """Make Parquet of streams that ended with their process. Raises OSError."""
        for path in sorted((self._directory / OPEN).glob(f"{self.name}-*.arrows")):
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # another server writes to the same folder
                log.info("decision_log.recovered", table=self.name, rows=self._to_parquet(path))

    def _to_parquet(self, path: Path) -> int:
        """Write each partition's file under its last name at once, then remove the stream. The same stream gives the same names."""
        table = _read_stream(path, self.schema)
        aside = path.with_suffix(".tmp")
        shutil.rmtree(aside, ignore_errors=True)
        if table.num_rows:
            partitions = ds.partitioning(pa.schema([self.schema.field("date"), self.schema.field("experiment")]), flavor="hive")
            options = ds.ParquetFileFormat().make_write_options(compression="zstd")
            ds.write_dataset(
                table, aside, format="parquet", partitioning=partitions, basename_template=path.stem + "-{i}.parquet",
                file_options=options, use_threads=False, max_partitions=100_000,
            )  # fmt: skip
            for made in sorted(aside.rglob("*.parquet")):
                target = self._directory / self.name / made.relative_to(aside)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(made, target)
            shutil.rmtree(aside)
        path.unlink()
        return table.num_rows


def without_units(entry: Entry) -> str:
    """The entry as JSON, without what could find a person: no salt, and pinned units by their hash."""
    message = entry_to_message(entry)
    message.ClearField("salt")
    message.pins.clear()
    for unit, arm in entry.pins.items():
        message.pins[unit_hash(entry.salt, unit).hex()] = entry.arms[arm]
    return json.dumps(MessageToDict(message, preserving_proto_field_name=True))


def _decision_rows(waiting: Sequence[Row], context: Sequence[str], schema: Any) -> Any:
    """A batch of decisions. What many have in common (a plan, an arm, a reason) is worked out once and then taken by index."""
    texts = [row[1] if type(row[1]) is str else row[1].decode("ascii") for row in waiting]
    ids = read_ids(texts)
    kinds: dict[tuple[Any, ...], int] = {}
    commons: list[dict[str, Any]] = []
    days: dict[int, str] = {}
    kind_of, hashes, slots_of, dates = [], [], [], []
    for (entry, _, unit, _, reason), arm, segment, day, slots, nonce, gated in zip(
        waiting, ids.arm.tolist(), ids.segment.tolist(), (ids.milliseconds // 86_400_000).tolist(), ids.slots.tolist(), ids.nonce.tolist(),
        ids.gated.tolist(), strict=True,
    ):  # fmt: skip
        key = (entry.uid, entry.version, segment, arm, slots, reason, gated)
        kind = kinds.get(key)
        if kind is None:
            kind = kinds[key] = len(commons)
            commons.append(_common(entry, segment, arm, slots, reason, gated))
        kind_of.append(kind)
        hashed = unit_hash(entry.salt, unit)
        hashes.append(hashed.hex())
        draw = hashed if entry.sticky else unit_hash(entry.salt, nonce)
        slots_of.append(draw[0] << 8 | draw[1])
        if day not in days:
            days[day] = _day(day * 86_400)
        dates.append(days[day])
    place = context.index(POSITION) if POSITION in context else -1
    of_each = {
        "date": dates,
        "decision_id": texts,
        "ts": ids.milliseconds * 1000,
        "unit_hash": hashes,
        "slot": slots_of,
        "counted": ids.counted,
        "first_exposure": ids.first,
        "position": [_whole(row[3][place]) if place >= 0 else None for row in waiting],
        "context": [[(n, v) for n, v in zip(context, row[3], strict=True) if v is not None] for row in waiting],
    }
    shared = pa.RecordBatch.from_pylist(commons, schema=pa.schema([each for each in schema if each.name not in of_each]))
    shared = shared.take(pa.array(kind_of, pa.int32()))
    columns = [pa.array(of_each[each.name], each.type) if each.name in of_each else shared.column(each.name) for each in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _common(entry: Entry, segment: int, arm: int, slots: int, reason: Reason, gated: bool) -> dict[str, Any]:
    vector = chances(entry, segment, arm, slots, reason, gated)
    return {
        "experiment": entry.experiment,
        "action": arm,
        "arm": entry.arms[arm],
        "pscore": slots / SLOTS,
        "propensity": slots / SLOTS,
        "propensities": None if vector is None else [share / SLOTS for share in vector],
        "stage": entry.stage,
        "snapshot_version": entry.version,
        "activation": entry.activation,
        "segment": entry.segment_names[segment],
        "reason": reason.name,
        "gated": gated,
        "gates_known": gates_known(entry, segment),
    }


def _batch(rows: list[dict[str, Any]], schema: Any) -> Any:
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def _schemas() -> dict[str, Any]:
    partition = [("date", pa.string()), ("experiment", pa.string())]
    return {
        "decisions": pa.schema(
            [
                *partition, ("decision_id", pa.string()), ("ts", pa.timestamp("us", "UTC")), ("unit_hash", pa.string()),
                ("action", pa.int16()), ("arm", pa.string()), ("pscore", pa.float64()), ("propensity", pa.float64()),
                ("propensities", pa.list_(pa.float64())), ("slot", pa.int32()), ("stage", pa.int16()), ("snapshot_version", pa.int64()),
                ("activation", pa.int32()), ("segment", pa.string()), ("reason", pa.string()), ("counted", pa.bool_()),
                ("first_exposure", pa.bool_()), ("gated", pa.bool_()), ("gates_known", pa.bool_()), ("position", pa.int32()),
                ("context", pa.map_(pa.string(), pa.string())),
            ]
        ),
        "outcomes": pa.schema(
            [
                *partition, ("decision_id", pa.string()), ("ts", pa.timestamp("us", "UTC")), ("metric", pa.string()),
                ("value", pa.float64()), ("is_reward", pa.bool_()), ("status", pa.string()),
            ]
        ),
        "snapshots": pa.schema(
            [
                *partition, ("uid", pa.string()), ("version", pa.int64()), ("ts", pa.timestamp("us", "UTC")), ("stage", pa.int16()),
                ("state", pa.string()), ("document", pa.string()), ("window_seconds", pa.float64()), ("missing", pa.float64()),
            ]
        ),
    }  # fmt: skip


def _read_stream(path: Path, schema: Any) -> Any:
    """All whole batches of a stream; one that was being written when its process died is left out."""
    batches = []
    with path.open("rb") as file:
        try:
            for batch in pa.ipc.open_stream(file):
                batches.append(batch)
        except (pa.ArrowInvalid, OSError, EOFError) as error:
            log.warning("decision_log.cut_short", stream=str(path), batches=len(batches), error=str(error))
    return pa.Table.from_batches(batches, schema=batches[0].schema if batches else schema)  # an earlier version's has fewer columns


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()


def _stamp(seconds: float) -> int:
    return round(seconds * 1e6)


def _whole(value: str | None) -> int | None:
    return int(value) if value is not None and value.isascii() and value.isdigit() and len(value) < 10 else None
