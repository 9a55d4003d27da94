"""What a stream's messages mean, told the time; and how a lost stream is opened anew."""

from __future__ import annotations

import threading
from dataclasses import replace

import grpc
import pytest

from allocator.client.follower import PAUSE_SECONDS, Follower, Table
from allocator.core.snapshot import Entry
from allocator.core.snapshot import Table as Slots
from allocator.errors import InvalidArgument, Unavailable
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.wire.scalars import duration
from allocator.wire.snapshots import entry_to_message
from tests.conftest import ManualClock
from tests.processes import until

ENTRY = Entry("default/a", b"uid--a--", 3, "RUNNING", True, b"salt", ("x", "y"), ("", ""), 0, (Slots((65_536,), (0,), (65_536, 0)),))


def change(*entries, age=0.0, elapsed=0.0, full=True, complete=True, removed=(), sequence=1, epoch=""):
    return service_pb.WatchSnapshotsResponse(
        change=service_pb.SnapshotChange(
            sequence=sequence,
            entries=map(entry_to_message, entries),
            removed=removed,
            full=full,
            complete=complete,
            age=duration(age),
            epoch=epoch,
        ),
        elapsed=duration(elapsed),
    )


def beat(age, elapsed):
    return service_pb.WatchSnapshotsResponse(heartbeat=service_pb.Heartbeat(age=duration(age)), elapsed=duration(elapsed))


@pytest.fixture
def table():
    table = Table()
    table.opened(100.0)
    return table


def test_a_table_in_pieces_is_believed_when_it_is_whole(table):
    assert table.hear(change(ENTRY, complete=False), 100.0) is None
    assert (table.complete, table.confirmed, dict(table.snapshot.entries)) == (False, float("-inf"), {})
    assert table.hear(beat(0.0, 0.0), 100.0) is None
    assert table.confirmed == float("-inf")
    told = table.hear(change(replace(ENTRY, experiment="default/b", uid=b"uid--b--")), 100.0)
    assert sorted(table.snapshot.entries) == ["default/a", "default/b"]
    assert (table.complete, len(told.entries), table.confirmed) == (True, 2, 100.0)


def test_pieces_of_a_stream_that_broke_off_are_forgotten(table):
    table.hear(change(ENTRY, complete=False), 100.0)
    table.opened(200.0)
    table.hear(change(replace(ENTRY, experiment="default/b")), 200.0)
    assert sorted(table.snapshot.entries) == ["default/b"]


def test_a_full_table_removes_what_it_does_not_name_and_a_change_what_it_does(table):
    table.hear(change(ENTRY, replace(ENTRY, experiment="default/b", uid=b"uid--b--")), 100.0)
    assert table.hear(change(full=False, removed=["default/b"]), 101.0).removed == ["default/b"]
    table.opened(200.0)
    assert table.hear(change(), 200.0).removed == ["default/a"]
    assert dict(table.snapshot.entries) == {}


def test_an_older_version_of_an_entry_is_left_out(table):
    table.hear(change(replace(ENTRY, version=9)), 100.0)
    table.opened(200.0)
    table.hear(change(replace(ENTRY, version=8)), 200.0)
    assert table.snapshot.entries["default/a"].version == 9


@pytest.mark.parametrize("epoch", ["life 1", ""], ids=["the same epoch", "no epoch"])
def test_a_server_that_lags_behind_is_not_believed(table, epoch):
    table.hear(change(replace(ENTRY, version=9), epoch="life 1"), 100.0)
    table.opened(200.0)
    table.hear(change(replace(ENTRY, version=8), epoch=epoch), 200.0)
    assert table.snapshot.entries["default/a"].version == 9
    assert table.confirmed == 200.0


def test_the_table_of_another_life_of_the_store_holds_as_it_is_once_it_is_whole(table):
    other = replace(ENTRY, experiment="default/b", uid=b"uid--b--")
    table.hear(change(replace(ENTRY, version=9), other, epoch="life 1"), 100.0)
    table.opened(200.0)
    assert table.hear(change(replace(ENTRY, version=3), complete=False, epoch="life 2"), 200.0) is None
    assert table.snapshot.entries["default/a"].version == 9
    third = replace(ENTRY, experiment="default/c", uid=b"uid--c--")
    told = table.hear(change(third, epoch="life 2"), 200.0)
    assert ([entry.version for entry in told.entries], told.removed) == ([3, 3], ["default/b"])
    assert {name: entry.version for name, entry in table.snapshot.entries.items()} == {"default/a": 3, "default/c": 3}
    assert set(table.snapshot.by_uid) == {ENTRY.uid, third.uid}
    table.hear(change(replace(ENTRY, version=2), full=False), 201.0)
    assert table.snapshot.entries["default/a"].version == 3


def test_a_life_of_the_store_that_was_left_is_not_believed_for_a_minute_and_the_lease_runs_out(table):
    table.hear(change(replace(ENTRY, version=9), epoch="life 1"), 100.0)
    table.opened(200.0)
    table.hear(change(replace(ENTRY, version=3, state="FROZEN"), epoch="life 2"), 200.0)
    table.opened(230.0)
    assert table.hear(change(replace(ENTRY, version=9), epoch="life 1"), 230.0) is None
    assert table.hear(change(replace(ENTRY, version=10), full=False), 231.0) is None
    table.hear(beat(0.0, 2.0), 232.0)
    assert (table.snapshot.entries["default/a"].state, table.confirmed) == ("FROZEN", 200.0)
    table.hear(change(replace(ENTRY, version=4), elapsed=3.0, epoch="life 2"), 233.0)  # the server has noticed
    assert (table.snapshot.entries["default/a"].version, table.confirmed) == (4, 233.0)


def test_a_store_to_which_an_operator_went_back_is_believed_after_a_minute(table):
    table.hear(change(replace(ENTRY, version=9), epoch="life 1"), 100.0)
    table.opened(200.0)
    table.hear(change(epoch="life 2"), 200.0)
    table.opened(240.0)
    table.hear(change(replace(ENTRY, version=9), epoch="life 1"), 240.0)
    assert table.hear(beat(0.0, 19.0), 259.0) is None
    with pytest.raises(Unavailable, match="earlier life"):
        table.hear(beat(0.0, 20.0), 260.0)
    assert table.confirmed == 200.0
    table.opened(261.0)
    assert len(table.hear(change(replace(ENTRY, version=9), epoch="life 1"), 261.0).entries) == 1
    assert table.confirmed == 261.0


@pytest.mark.parametrize(
    ("age", "elapsed", "arrived", "confirmed"),
    [(0.0, 5.0, 105.0, 105.0), (2.0, 5.0, 105.0, 103.0), (0.0, 5.0, 165.0, 105.0), (1.0, 7.0, 105.0, 104.0)],
    ids=["at once", "old at its origin", "held up for a minute", "a faster clock there"],
)
def test_a_message_counts_as_old_as_it_can_be(table, age, elapsed, arrived, confirmed):
    table.hear(change(ENTRY), 100.0)
    table.hear(beat(age, elapsed), arrived)
    assert table.confirmed == pytest.approx(confirmed)


def test_the_latest_word_holds_so_a_server_that_distrusts_its_table_is_obeyed(table):
    table.hear(change(ENTRY), 100.0)
    table.hear(beat(1e9, 1.0), 101.0)
    assert table.confirmed < 0
    table.opened(110.0)
    table.hear(change(ENTRY, age=60.0), 110.0)
    assert table.confirmed == 50.0


def test_the_lease_is_the_shortest_of_all(table):
    assert table.lease_seconds == 15.0
    table.hear(change(ENTRY, replace(ENTRY, experiment="default/b", uid=b"b", lease_seconds=5.0)), 100.0)
    assert table.lease_seconds == 5.0


class Lost(grpc.RpcError):
    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "lost"

    def trailing_metadata(self):
        return ()


class Stream:
    """A stream that says these messages, and then ends."""

    def __init__(self, messages, error=None):
        self._messages, self._error = messages, error

    def __iter__(self):
        yield from self._messages
        if self._error is not None:
            raise self._error

    def cancel(self):
        pass


class Pauses(threading.Event):
    """Does not wait, and remembers for how long it should have; says stop after as many."""

    def __init__(self, most):
        super().__init__()
        self.asked, self._most = [], most

    def wait(self, timeout=None):
        self.asked.append(timeout)
        if len(self.asked) >= self._most:
            self.set()
        return self.is_set()


def pauses(stream, most=200):
    follower = Follower(lambda *_, **__: stream(), ManualClock(), lambda _: None)
    follower._stopped = Pauses(most)
    follower.start()
    until(lambda: not follower._thread.is_alive())
    return follower._stopped.asked


def test_a_clean_end_is_followed_by_a_pause_with_full_jitter():
    asked = pauses(lambda: Stream([change(ENTRY)]))
    assert all(0 <= pause <= PAUSE_SECONDS[0] for pause in asked)
    assert min(asked) < 0.2 * PAUSE_SECONDS[0]
    assert max(asked) > 0.8 * PAUSE_SECONDS[0]


def test_pauses_grow_to_a_bound_while_nothing_is_heard():
    asked = pauses(lambda: Stream([], Lost()))
    assert max(asked[:1]) <= 2 * PAUSE_SECONDS[0]
    assert max(asked) <= PAUSE_SECONDS[1]
    assert max(asked) > 0.8 * PAUSE_SECONDS[1]


def test_a_stream_that_cannot_be_read_ends_like_any_other():
    bad = service_pb.WatchSnapshotsResponse(change=service_pb.SnapshotChange(full=True, complete=True))
    bad.change.entries.add(uid="no hexadecimal")
    assert len(pauses(lambda: Stream([bad]), 5)) == 5


def test_a_token_that_cannot_be_had_is_no_end():
    def metadata():
        raise InvalidArgument("gone")

    follower = Follower(lambda *_, **__: Stream([]), ManualClock(), lambda _: None, metadata=metadata)
    follower._stopped = Pauses(5)
    follower.start()
    until(lambda: not follower._thread.is_alive())
    assert len(follower._stopped.asked) == 5
