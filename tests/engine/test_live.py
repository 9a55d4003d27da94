"""The snapshot in force: never older than what was published, with every change for those that watch."""

from __future__ import annotations

import threading
from dataclasses import fields, replace

import pytest

from allocator.core.snapshot import Entry, Snapshot, Table
from allocator.engine.live import Live
from tests.conftest import ManualClock


def entry(name: str, version: int, uid: int = 1) -> Entry:
    return Entry(
        experiment=f"default/{name}",
        uid=uid.to_bytes(8, "big"),
        version=version,
        state="RUNNING",
        sticky=True,
        salt=b"salt",
        arms=("old", "new"),
        model_uris=("", ""),
        incumbent=0,
        tables=(Table((32768, 65536), (0, 1), (32768, 32768)),),
    )


@pytest.fixture
def live() -> Live:
    return Live(ManualClock())


def test_an_older_entry_never_replaces_a_newer_one(live):
    live.publish([entry("a", 5)])
    live.publish([entry("a", 4)])
    assert live.snapshot.entries["default/a"].version == 5
    live.publish([entry("a", 1, uid=2)])  # another experiment under the same name
    assert live.snapshot.entries["default/a"].uid == (2).to_bytes(8, "big")


def test_a_watcher_gets_everything_once_and_then_what_changed(live):
    live.publish([entry("a", 1), entry("b", 1, 2)])
    snapshot, entries, removed, full = live.changes_since(0)
    assert full
    assert {e.experiment for e in entries} == {"default/a", "default/b"}
    live.publish([entry("b", 2, 2)])
    live.publish([], ["default/a"])
    _, entries, removed, full = live.changes_since(snapshot.sequence)
    assert not full
    assert [(e.experiment, e.version) for e in entries] == [("default/b", 2)]
    assert removed == ["default/a"]
    assert live.changes_since(live.snapshot.sequence)[1:] == ([], [], False)


def test_a_watcher_too_far_behind_gets_everything_again(live, monkeypatch):
    monkeypatch.setattr("allocator.engine.live.MAX_CHANGES_KEPT", 4)
    small = Live(ManualClock())
    for version in range(1, 10):
        small.publish([entry("a", version)])
    assert small.changes_since(2)[3]
    assert not small.changes_since(8)[3]


def test_with_another_life_of_the_store_watchers_get_everything_again_and_older_entries_hold(live):
    live.begin("life 1")
    live.publish([entry("a", 5), entry("b", 5, 2)])
    before = live.snapshot.sequence
    called = []
    live.listen(lambda: called.append(1))
    live.begin("life 1")
    assert (called, live.snapshot.sequence) == ([], before)
    live.begin("life 2", [entry("a", 3)])
    snapshot, entries, removed, full = live.changes_since(before)
    assert (snapshot.epoch, [(e.experiment, e.version) for e in entries], removed, full) == ("life 2", [("default/a", 3)], [], True)
    assert called == [1]
    live.publish([entry("a", 2), entry("c", 1, 3)])
    assert [e.experiment for e in live.changes_since(snapshot.sequence)[1]] == ["default/c"]
    assert live.snapshot.epoch == "life 2"
    live.begin("life 3")
    assert {e.experiment: e.version for e in live.changes_since(snapshot.sequence)[1]} == {"default/a": 3, "default/c": 1}


def test_publishing_wakes_the_listeners(live):
    called = []
    stop = live.listen(lambda: called.append(1))
    live.publish([entry("a", 1)])
    stop()
    live.publish([entry("a", 2)])
    assert called == [1]


def test_threads_that_publish_at_once_leave_the_newest(live):
    def publish(start: int) -> None:
        for version in range(start, 400, 4):
            live.publish([entry("a", version)])

    threads = [threading.Thread(target=publish, args=(start,)) for start in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert live.snapshot.entries["default/a"].version == 400 - 4 + 3


def test_a_reader_keeps_the_snapshot_it_took(live):
    live.publish([entry("a", 1)])
    mine: Snapshot = live.snapshot
    live.publish([entry("a", 2)])
    assert mine.entries["default/a"].version == 1


def test_any_difference_in_an_entry_changes_its_digest():
    base = entry("a", 1)
    assert base.digest() == entry("a", 1).digest()
    changes = {
        "version": 2, "state": "FROZEN", "sticky": False, "salt": b"pepper", "arms": ("old", "newer"), "model_uris": ("", "x"),
        "incumbent": 1, "tables": (Table((65536,), (0,), (65536, 0)),), "only": (0, 4), "drained": 2, "counted": False,
        "shadow_arms": (1,), "activation": 2, "segment_names": ("m", "other"), "segments": ({"d": frozenset({"i"})},),
        "target": {"c": frozenset({"fr"})}, "opt_out": "no", "pins": {b"u": 1}, "lease_seconds": 1.0, "window_seconds": 1.0,
        "bucket_seconds": 1.0, "first_only": False, "strict": True, "cap": 0.5, "cap_per_candidate": 0.5, "burst": 1,
        "leased_requests": True,
        "leased_units": True, "stage": 1,
    }  # fmt: skip
    assert set(changes) | {"experiment", "uid"} == {field.name for field in fields(Entry)}
    assert len({replace(base, **{name: value}).digest() for name, value in changes.items()} | {base.digest()}) == len(changes) + 1
