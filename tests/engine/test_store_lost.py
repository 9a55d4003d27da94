"""The store is empty, of another life, or older than known: nothing riskier happens, no freeze is forgotten, an operator puts it right."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from allocator.core.experiment import Budget, Exposure
from allocator.core.lifecycle import State
from allocator.core.token import Role
from allocator.engine.tokens import Tokens
from allocator.errors import Refused, Unavailable
from allocator.stores import sqlite_care
from allocator.stores.sqlite import SqliteStore
from tests.conftest import two_arms
from tests.engine.fleet import Fleet


@pytest.fixture
def memory_disk(tmp_path) -> Iterator[Path]:
    """A directory whose fsync costs nothing, where there is one: what is tested is the order of things, not the disk."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else tmp_path) as made:
        yield Path(made)


def running(tmp_path, names: str = "ab", seed: int = 0) -> Fleet:
    fleet = Fleet(tmp_path, seed)
    for name in names:
        fleet.start(name)
    fleet.run(names[0], two_arms())
    fleet.run(names[0], two_arms(name="frozen"))
    fleet.engines[names[0]].commands.freeze("frozen", actor="ann", reason="errors are up")
    for _ in range(3):
        fleet.tick(seconds=1)
    return fleet


def empty(fleet: Fleet) -> None:
    fleet.store = fleet.new_store()


LOSSES = ["empty", "older"]


@pytest.fixture(params=LOSSES)
def lost(request, tmp_path) -> Fleet:
    """Two servers whose store has just lost what they knew."""
    if request.param == "empty":
        fleet = running(tmp_path)
        empty(fleet)
        return fleet
    fleet = Fleet(tmp_path)
    for name in "ab":
        fleet.start(name)
    fleet.run("a", two_arms())
    fleet.run("a", two_arms(name="frozen"))
    before = fleet.kept_copy()
    fleet.engines["a"].commands.freeze("frozen", actor="ann", reason="errors are up")
    decisions = [fleet.decide("a") for _ in range(60)]
    fleet.report("a", [d for d in decisions if d.arm == "new"], reward=0.0, error=0.0)
    for _ in range(4):
        fleet.tick(seconds=1)
    fleet.store = before
    return fleet


def test_a_loss_is_noticed_at_the_next_look_and_candidates_get_nothing(lost):
    lost.tick()
    for name in "ab":
        assert lost.engines[name].keeper.lost
        assert lost.arms(name) == {"old"}
        assert lost.reasons(name) == {"STALE"}
        for _ in range(20):
            lost.tick(seconds=1)
        assert lost.arms(name) == {"old"}
    assert lost.leaders() == []


def test_outcomes_and_what_is_riskier_are_refused_and_a_freeze_is_not(lost):
    decision = lost.decide("a")
    lost.tick()
    with pytest.raises(Unavailable) as told:
        lost.report("a", [decision])
    assert told.value.reason == "STORE_LOST"
    commands = lost.engines["a"].commands
    for refused in (
        lambda: commands.apply(two_arms(name="another"), actor="ann"),
        lambda: commands.resume("frozen", actor="ann", reason="why not"),
        lambda: commands.conclude("ranker", actor="ann", reason="why not", winner="new"),
    ):
        with pytest.raises(Refused) as told:
            refused()
        assert told.value.reason == "STORE_LOST"
    assert commands.freeze("ranker", actor="ann", reason="to be sure").status.state is State.FROZEN
    lost.tick(seconds=1)
    assert lost.store.record("default/ranker").status.state is State.FROZEN


def test_freezes_are_asserted_again_into_whatever_the_store_holds(lost):
    lost.tick("b")
    stored = lost.store.record("default/frozen")
    assert stored.status.state is State.FROZEN
    assert any("asserted again" in record.entry.reason for record in lost.store.audit())
    audited = len(lost.store.audit())
    for _ in range(5):
        lost.tick(seconds=1)
    assert len(lost.store.audit()) == audited  # once


def test_reconciling_brings_everything_back_frozen_and_a_person_resumes(lost):
    decision = lost.decide("a")
    lost.tick()
    done = lost.engines["a"].commands.reconcile(actor="ann", reason="the disk was replaced")
    assert set(done.restored) == {"default/ranker", "default/frozen"}
    assert done.notes
    for _ in range(3):
        lost.tick(seconds=1)
    for name in "ab":
        assert not lost.engines[name].keeper.lost
        assert lost.engines[name].registry.get("ranker").status.state is State.FROZEN
        assert lost.reasons(name) == {"FROZEN"}
    assert lost.report("b", [decision], error=0.0) == ["ACCEPTED"]  # its key is the same
    lost.engines["b"].commands.resume("ranker", actor="ann", reason="looked at it")
    for _ in range(3):
        lost.tick(seconds=1)
    assert lost.reasons("a") == lost.reasons("b") == {"ALLOCATED"}
    assert lost.table("a") == lost.table("b")
    assert lost.actions().count("store.reconcile") == 1
    assert lost.store.record("default/frozen").status.state is State.FROZEN


def test_tokens_come_back_into_a_store_that_lost_them_and_a_lent_one_never_gets_there(tmp_path):
    fleet = running(tmp_path)
    engine = fleet.engines["a"]
    tokens = Tokens(engine.store, engine.clock, engine.entropy)
    engine.keeper.items = tokens.remembered
    tokens.lend("worker", (Role.WATCH,))
    token, _ = tokens.create("ann", (Role.VIEW,), ("default",), actor="root")
    empty(fleet)
    fleet.tick()
    assert fleet.store.items("token") == {}
    engine.keeper.reconcile("ann", "the disk died")
    tokens.refresh()
    assert tokens.all() == [token]
    assert list(fleet.store.items("token")) == [token.id]


def test_a_store_that_is_not_lost_is_not_reconciled(tmp_path):
    fleet = running(tmp_path)
    with pytest.raises(Refused) as told:
        fleet.engines["a"].commands.reconcile(actor="ann", reason="why not")
    assert told.value.reason == "NOTHING_TO_RECONCILE"


def test_a_server_that_knows_nothing_more_hears_of_the_loss_and_does_not_reconcile_unless_told(tmp_path):
    fleet = running(tmp_path, "a")
    empty(fleet)
    fleet.disk = None
    fleet.start("new")
    fleet.tick("a", seconds=1)
    fleet.tick("new", seconds=1)
    assert fleet.engines["new"].keeper.lost
    assert fleet.engines["new"].registry.get("frozen").status.state is State.FROZEN
    with pytest.raises(Refused) as told:
        fleet.engines["new"].commands.reconcile(actor="ann", reason="quick")
    assert told.value.reason == "KNOWS_NOTHING_MORE"
    fleet.engines["a"].commands.reconcile(actor="ann", reason="the disk was replaced")
    fleet.tick("a", "new", seconds=1)
    assert not fleet.engines["new"].keeper.lost
    assert fleet.engines["new"].registry.get("ranker").status.state is State.FROZEN
    assert fleet.engines["new"].ingest.key == fleet.engines["a"].ingest.key


@pytest.mark.parametrize("late", ["after the new life began", "before it said what it continues"])
def test_who_tells_of_a_loss_too_late_is_not_believed(tmp_path, late):
    fleet = running(tmp_path)
    empty(fleet)
    fleet.tick("a", seconds=1)

    def reconciled() -> None:
        fleet.engines["a"].commands.reconcile(actor="ann", reason="the disk was replaced")

    if late == "after the new life began":
        fleet.lines["b"].before["put"] = reconciled
        fleet.store._items["loss"].clear()
        fleet.tick("b")
    else:
        fleet.lines["a"].before["put"] = lambda: fleet.tick("b")
        reconciled()
    assert fleet.store._items["loss"]
    for _ in range(3):
        fleet.tick(seconds=1)
    assert not fleet.engines["a"].keeper.lost
    assert not fleet.engines["b"].keeper.lost
    assert fleet.table("a") == fleet.table("b")


def test_a_loss_that_the_news_do_not_tell_of_is_heard_of_within_a_second(lost):
    lost.tick("a")
    lost.store._news_mark += 1000  # it went on, and passed where the other server had been
    lost.store._term.beat += 1000
    lost.store._epoch = lost.engines["b"].keeper.epoch
    lost.store._items["loss"] = {lost.store._epoch: next(iter(lost.store._items["loss"].values()))}
    lost.tick("b", seconds=1)
    assert lost.engines["b"].keeper.lost


def test_a_server_that_was_stopped_before_the_loss_may_reconcile_when_the_one_that_noticed_is_gone(tmp_path):
    fleet = running(tmp_path)
    older = fleet.kept_copy()
    fleet.kill("b")
    fleet.engines["a"].commands.freeze("ranker", actor="ann", reason="errors are up")
    fleet.store = older
    fleet.tick("a", seconds=1)
    fleet.kill("a")
    fleet.start("b")
    assert fleet.engines["b"].keeper.lost
    assert fleet.engines["b"].registry.get("ranker").status.state is State.FROZEN  # asserted into the store by the other
    fleet.engines["b"].commands.reconcile(actor="ann", reason="the other machine is gone")
    fleet.tick("b", seconds=6)
    assert not fleet.engines["b"].keeper.lost


def test_what_only_another_server_knew_is_written_back_by_that_one(tmp_path):
    fleet = running(tmp_path)
    fleet.lines["a"].cut = True
    fleet.engines["b"].commands.apply(two_arms(name="late"), actor="ann")
    fleet.engines["b"].commands.start("late", actor="ann")
    fleet.engines["b"].commands.freeze("ranker", actor="ann", reason="only here")
    empty(fleet)
    fleet.lines["a"].cut = False
    fleet.tick()
    fleet.engines["a"].commands.reconcile(actor="ann", reason="the disk was replaced")
    for _ in range(3):
        fleet.tick(seconds=1)
    assert fleet.store.record("default/late").status.state is State.FROZEN
    assert fleet.store.record("default/ranker").status.state is State.FROZEN
    assert fleet.table("a") == fleet.table("b")
    assert not fleet.engines["a"].keeper.lost
    assert not fleet.engines["b"].keeper.lost


def test_budgets_come_back_at_the_largest_known(tmp_path):
    fleet = Fleet(tmp_path)
    for name in "ab":
        fleet.start(name)
    fleet.run("a", two_arms(exposure=Exposure(total=0.5, budget=Budget(requests=200)), guardrails=()))
    for _ in range(6):
        for name in "ab":
            fleet.reasons(name, 20)
        fleet.tick(seconds=1)
    uid = fleet.store.record("default/ranker").uid
    known = max(engine.keeper._granted[uid][1, "requests"] for engine in fleet.engines.values())
    assert known > 0
    for name in "ab":
        fleet.kill(name)
    empty(fleet)
    for name in "ba":
        fleet.start(name)
    fleet.tick(seconds=1)
    fleet.engines["b"].commands.reconcile(actor="ann", reason="the disk was replaced")
    fleet.tick(seconds=1)
    assert fleet.store.granted(uid)[1, "requests"] == known


def test_a_loss_is_still_known_after_a_restart_and_the_right_store_ends_it(tmp_path):
    fleet = running(tmp_path, "a")
    right = fleet.store
    empty(fleet)
    fleet.tick(seconds=1)
    fleet.kill("a")
    fleet.start("a")
    assert fleet.engines["a"].keeper.lost
    fleet.kill("a")
    fleet.store = right
    fleet.start("a")
    for _ in range(8):
        fleet.tick(seconds=1)
    assert not fleet.engines["a"].keeper.lost
    assert fleet.reasons("a") == {"ALLOCATED"}


def test_who_watches_hears_of_another_life_of_the_store_when_its_server_believes_in_it(lost):
    lives = {name: lost.engines[name].live.snapshot.epoch for name in "ab"}
    assert len(set(lives.values())) == 1
    lost.tick()
    lost.start("new")
    lost.tick(seconds=1)
    assert {name: lost.engines[name].live.snapshot.epoch for name in "ab"} == lives
    assert lost.engines["new"].live.snapshot.epoch in ("", lives["a"])
    begun = lost.engines["a"].commands.reconcile(actor="ann", reason="the disk was replaced").epoch
    for _ in range(3):
        lost.tick(seconds=1)
    assert {engine.live.snapshot.epoch for engine in lost.engines.values()} == {begun}


@pytest.mark.parametrize("remembers", [True, False], ids=["with a disk of its own", "without"])
def test_a_server_whose_file_was_restored_tells_how_to_go_on_if_it_remembers_more_and_else_just_serves(tmp_path, remembers):
    path, copy = str(tmp_path / "store.db"), str(tmp_path / "copy.db")
    fleet = Fleet(tmp_path / "disks" if remembers else None)
    fleet.store = SqliteStore(path, clock=fleet.clock)
    fleet.start("a")
    fleet.run("a", two_arms())
    fleet.run("a", two_arms(name="frozen"))
    decision = fleet.decide("a")
    sqlite_care.backup(path, copy)
    fleet.engines["a"].commands.freeze("frozen", actor="ann", reason="after the backup")
    fleet.tick(seconds=1)
    fleet.kill("a")
    fleet.store.close()
    sqlite_care.restore(copy, path, replace=True)
    fleet.store = SqliteStore(path, clock=fleet.clock)
    keeper = fleet.start("a").keeper
    for _ in range(3):
        fleet.tick(seconds=1)
    if remembers:
        assert fleet.reasons("a") == {"STALE"}
        with pytest.raises(Unavailable, match="allocator db reconcile"):
            keeper.refuse_outcomes()
        done = fleet.engines["a"].commands.reconcile(actor="ann", reason="went back to the backup")
        assert set(done.restored) == {"default/frozen", "default/ranker"}
        fleet.tick(seconds=1)
        assert fleet.reasons("a") == {"FROZEN"}
        assert fleet.engines["a"].registry.get("frozen").status.reason == "after the backup"
        fleet.engines["a"].commands.resume("ranker", actor="ann", reason="looked at it")
        fleet.tick(seconds=1)
    assert not keeper.lost
    assert fleet.reasons("a") == {"ALLOCATED"}
    assert fleet.report("a", [decision], error=0.0) == ["ACCEPTED"]
    assert keeper.epoch == fleet.engines["a"].live.snapshot.epoch == fleet.store.news(0).epoch
    fleet.kill("a")
    fleet.store.close()


def test_a_reconcile_that_was_cut_short_is_finished_by_any_server(lost):
    lost.tick()

    def cut() -> None:
        lost.lines["a"].cut = True

    lost.lines["a"].before["records"] = cut  # after the new life has begun
    with pytest.raises(Unavailable):
        lost.engines["a"].commands.reconcile(actor="ann", reason="the disk was replaced")
    for _ in range(2):
        lost.tick("b", seconds=1)
    assert not lost.engines["b"].keeper.lost
    lost.lines["a"].cut = False
    for _ in range(2):
        lost.tick(seconds=1)
    assert not lost.engines["a"].keeper.lost
    assert lost.store.record("default/ranker").status.state is State.FROZEN
    assert lost.table("a") == lost.table("b")


@pytest.mark.parametrize("block", range(4))
def test_a_freeze_is_forgotten_in_no_order_of_kills_losses_and_restarts(memory_disk, block):
    """200 orders: freeze at some server, with or without the store; kill all; the store stays, empties or goes back; start in any order."""
    for number in range(50):
        seed = 50 * block + number
        rng = random.Random(seed)
        fleet = Fleet(memory_disk / str(seed), seed)
        names = "abc"
        for name in names:
            fleet.start(name)
        fleet.run("a", two_arms())
        older = fleet.kept_copy()
        freezer = rng.choice(names)
        with_store = rng.random() < 0.6
        fleet.lines[freezer].cut = not with_store
        fleet.engines[freezer].commands.freeze("ranker", actor="ann", reason="errors are up")
        if with_store:
            fleet.tick(*rng.sample(names, rng.randrange(4)))
        fate = rng.choice(["stays", "empty", "older"])
        for name in rng.sample(names, 3):
            fleet.kill(name)
        if fate != "stays":
            fleet.store = fleet.new_store() if fate == "empty" else older
        order = rng.sample(names, 3)
        for name in order:
            if rng.random() < 0.3:
                fleet.start(name, cut=True)
                fleet.tick(seconds=rng.choice([0.0, 1.0]))
                fleet.lines[name].cut = False
            else:
                fleet.start(name)
            fleet.tick(*rng.sample(list(fleet.engines), len(fleet.engines)), seconds=rng.choice([0.0, 1.0, 6.0]))
        for _ in range(8):
            fleet.tick(*rng.sample(names, 3), seconds=1)
        told = f"seed {seed}: frozen at {freezer}, {'with' if with_store else 'without'} the store, which {fate}; started {order}"
        assert all(fleet.arms(name, 30) == {"old"} for name in names), told
        if any(engine.keeper.lost for engine in fleet.engines.values()):
            assert all(engine.keeper.lost for engine in fleet.engines.values()), told
            knows = next(name for name in order if fleet.engines[name].keeper._remembers)
            fleet.engines[knows].commands.reconcile(actor="ann", reason="looked at it")
            for _ in range(3):
                fleet.tick(seconds=1)
        assert fleet.store.record("default/ranker").status.state is State.FROZEN, told
        for name in names:
            assert not fleet.engines[name].keeper.lost, told
            assert fleet.engines[name].registry.get("ranker").status.state is State.FROZEN, told
            assert fleet.arms(name, 30) == {"old"}, told
            fleet.kill(name)
