"""`WatchSnapshots`: one table, any number of watchers.

In: the live snapshot, and what a watcher asked for. Out: messages as bytes. A change is made into bytes once and sent to all. What
differs from watcher to watcher (how old the table is by now, how long its stream has run) is a tail of a few bytes behind them, since
messages of Protocol Buffers that stand one behind the other are read as one.

A watcher has one message under way, of half a megabyte at most. Whatever happens meanwhile it gets in one piece afterwards, the latest of
each entry, so a slow one holds nobody up, and one that is stuck costs no more than that message. (Tried and dropped: letting it go after
a while. gRPC cannot end a call whose last message nobody takes: neither cancelling its task nor `abort` from another one ends it, and with
keepalive pings, each 10 s, a watcher whose process stood still had its connection after a minute.)
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable

from google.protobuf.duration_pb2 import Duration

from allocator.core.snapshot import Entry
from allocator.engine.live import Live
from allocator.errors import InvalidArgument
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.wire import snapshots

HEARTBEAT_SECONDS = 1.0
CHUNK_BYTES = 512 * 1024
CHANGES_KEPT = 8  # as bytes: of the watchers that are a little behind, and of each choice of namespaces
MAX_KEYS = 1024
LARGEST_AGE = 1e9  # seconds; what a table that was never confirmed says

Keys = Callable[[int], list[tuple[int, bytes]]]
Want = tuple[int, frozenset[str]]


class Feed:
    """The watchers of one table. To be made inside the loop that serves them."""

    def __init__(self, live: Live, monotonic: Callable[[], float], keys: Keys) -> None:
        self._live = live
        self._monotonic = monotonic
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._kept: OrderedDict[tuple[int, Want], list[bytes]] = OrderedDict()
        self._stop = live.listen(lambda: self._loop.call_soon_threadsafe(self._wake))
        self.draining = False

    def close(self) -> None:
        """End every stream, and listen no more."""
        self.draining = True
        self._stop()
        self._wake()

    async def watch(self, request: service_pb.WatchSnapshotsRequest) -> AsyncGenerator[bytes, None]:
        """The messages of one watcher, until the server drains. Raises InvalidArgument for too many keys."""
        if request.keys > MAX_KEYS:
            raise InvalidArgument.of_field("keys", f"got {request.keys}; at most {MAX_KEYS} are allowed")
        begun = self._monotonic()
        namespaces = frozenset(request.namespaces)
        if request.keys:
            keys = [service_pb.DecisionKey(number=number, key=key) for number, key in self._keys(request.keys)]
            yield service_pb.WatchSnapshotsResponse(keys=service_pb.DecisionKeys(keys=keys)).SerializeToString() + self._tail(begun, "keys")
        sequence, first = 0, True
        while not self.draining:
            changed = self._changed
            now = self._live.snapshot.sequence
            if first or now != sequence:
                sequence, pieces = self._pieces((sequence, namespaces))
                first = False
                for piece in pieces:
                    yield piece + self._tail(begun, "change")
            try:
                await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
            except TimeoutError:
                beat = service_pb.WatchSnapshotsResponse(heartbeat=service_pb.Heartbeat(sequence=sequence))
                yield beat.SerializeToString() + self._tail(begun, "heartbeat")

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _pieces(self, want: Want) -> tuple[int, list[bytes]]:
        """The sequence now, and the messages that bring a watcher there; made once for all that stand where it stands."""
        now = self._live.snapshot.sequence
        kept = self._kept.get((now, want))
        if kept is not None:
            return now, kept
        snapshot, entries, removed, full = self._live.changes_since(want[0])
        told = changes(snapshot.sequence, snapshot.epoch, entries, removed, full, want[1])
        made = [message.SerializeToString() for message in told]
        for key in [key for key in self._kept if key[0] != snapshot.sequence]:
            del self._kept[key]
        self._kept[snapshot.sequence, want] = made
        if len(self._kept) > CHANGES_KEPT:
            self._kept.popitem(last=False)
        return snapshot.sequence, made

    def _tail(self, begun: float, event: str) -> bytes:
        """What only this watcher and this moment have: read as one with the message before it."""
        message = service_pb.WatchSnapshotsResponse(elapsed=_duration(self._monotonic() - begun, math.floor))
        if event == "change":
            message.change.age.CopyFrom(_duration(self._live.age()))
        elif event == "heartbeat":
            message.heartbeat.age.CopyFrom(_duration(self._live.age()))
        return message.SerializeToString()


def changes(
    sequence: int, epoch: str, entries: list[Entry], removed: list[str], full: bool, namespaces: frozenset[str]
) -> list[service_pb.WatchSnapshotsResponse]:
    """A change in pieces that no message limit minds. None where nothing of these namespaces (empty: all) changed."""
    removed = [name for name in removed if not namespaces or name.partition("/")[0] in namespaces]
    epoch = epoch if full else ""
    pieces = [service_pb.SnapshotChange(sequence=sequence, removed=removed, full=full, epoch=epoch)]
    size = 0
    for entry in entries:
        if namespaces and entry.experiment.partition("/")[0] not in namespaces:
            continue
        message = snapshots.entry_to_message(entry)
        if size and size + message.ByteSize() > CHUNK_BYTES:
            pieces.append(service_pb.SnapshotChange(sequence=sequence, full=full, epoch=epoch))
            size = 0
        size += message.ByteSize()
        pieces[-1].entries.append(message)
    pieces[-1].complete = True
    wanted = full or removed or pieces[0].entries
    return [service_pb.WatchSnapshotsResponse(change=piece) for piece in pieces] if wanted else []


def _duration(seconds: float, round_: Callable[[float], int] = math.ceil) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(round_(min(seconds, LARGEST_AGE) * 1000))
    return duration
