"""Batches of exposures that deciders elsewhere have counted: each counts once, and only what can be true."""

from __future__ import annotations

import pytest

from allocator.core.decider import Exposure
from allocator.core.experiment import Budget
from allocator.core.experiment import Exposure as Limits
from allocator.core.tally import tally
from allocator.engine.agenda import QUIET_SECONDS
from allocator.engine.engine import Engine
from allocator.engine.exposures import MAX_COUNTS, MAX_LIVES, ExposureBatch
from allocator.errors import InvalidArgument
from allocator.stores.memory import MemoryStore
from tests.conftest import two_arms


@pytest.fixture
def engine(clock, entropy):
    engine = Engine(MemoryStore(entropy), clock, entropy)
    engine.start(threads=False)
    engine.commands.apply(two_arms(), actor="ann")
    engine.commands.start("ranker", actor="ann")
    engine.planner.tick()
    yield engine
    engine.close()


def batch(engine, number=1, life=7, **changes):
    record = engine.registry.get("ranker")
    values = {"uid": bytes.fromhex(record.uid), "activation": record.status.activation, "arm": 1, "segment": 0, "count": 10, "units": 8}
    values["bucket"] = record.experiment.bucket(engine.clock.now())
    return ExposureBatch(number.to_bytes(8, "big"), life, (Exposure(**{**values, **changes}),))


def counted(engine):
    record = engine.registry.get("ranker")
    return sum(cell.count for cell in engine.store.cells(record.uid) if cell.stream == "_exposures")


def lives(engine):
    record = engine.registry.get("ranker")
    return len(tally(record, engine.store.cells(record.uid), ()).draws)


def test_a_batch_counts_once_however_often_it_arrives(engine):
    assert engine.ingest.receive((), (), [batch(engine)]) == ([], 0)
    assert engine.ingest.receive((), (), [batch(engine), batch(engine)]) == ([], 0)
    assert counted(engine) == 10
    engine.ingest.receive((), (), [batch(engine, 2)])
    assert counted(engine) == 20


def test_a_batch_adds_what_the_same_exposures_of_this_process_would(engine, clock, entropy):
    exposure = batch(engine, drawn=5, expected=327_680, variance=3 << 30).counts[0]._replace(life=7)
    engine.ingest.receive((), (), [ExposureBatch(bytes(8), 7, (exposure,))])
    there = sorted(engine.store.cells(engine.registry.get("ranker").uid))
    other = Engine(MemoryStore(entropy), clock, entropy)
    other.start(threads=False)
    other.commands.apply(two_arms(), actor="ann")
    own = other.registry.get("ranker")
    other.ingest.report((), [exposure._replace(uid=bytes.fromhex(own.uid))])
    assert sorted(other.store.cells(own.uid)) == there


@pytest.mark.parametrize(
    "changes", [{"uid": b"nobody!!"}, {"uid": b""}, {"arm": 2}, {"segment": 1}, {"activation": 99}, {"bucket": 1 << 39}], ids=str
)
def test_what_fits_no_experiment_here_is_told_as_lost_and_holds_up_nothing_else(engine, changes):
    both = batch(engine).counts + batch(engine, **changes).counts
    assert engine.ingest.receive((), (), [ExposureBatch(bytes(8), 7, both)]) == ([], 10)
    assert counted(engine) == 10


def test_what_comes_after_its_bucket_is_settled_is_told_as_lost(engine, clock):
    late = batch(engine)
    engine.ingest.receive((), (), [batch(engine, 2)])
    clock.pass_(3 * 3600)
    engine.planner.tick()
    clock.pass_(QUIET_SECONDS)
    engine.planner.tick()
    assert engine.ingest.receive((), (), [late]) == ([], 10)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"count": -1}, "count"), ({"units": 11}, "units"), ({"drawn": -1}, "drawn"), ({"expected": -1}, "expected"),
     ({"variance": 1 << 62}, "variance"), ({"bucket": -1}, "bucket"), ({"count": 10**10}, "count")],
    ids=str,
)  # fmt: skip
def test_a_count_that_cannot_be_true_refuses_the_report_by_name(engine, changes, field):
    with pytest.raises(InvalidArgument) as caught:
        engine.ingest.receive((), (), [batch(engine, 1), batch(engine, 2, **changes)])
    assert caught.value.violations[0].field == f"exposures[1].counts[0].{field}"
    assert counted(engine) == 0


def test_a_batch_has_an_id_of_eight_bytes_and_a_report_a_bounded_number_of_counts(engine):
    counts = batch(engine).counts * (MAX_COUNTS + 1)
    for changes, field in (({"id": b"short"}, "exposures[0].id"), ({"life": -1}, "exposures[0].life"), ({"counts": counts}, "exposures")):
        with pytest.raises(InvalidArgument) as caught:
            engine.ingest.receive((), (), [batch(engine)._replace(**changes)])
        assert caught.value.violations[0].field == field


def test_draws_are_kept_of_a_bounded_number_of_lives_and_exposures_of_all(engine):
    for life in range(MAX_LIVES + 10):
        engine.ingest.receive((), (), [batch(engine, life, life=life + 1, drawn=5, expected=5 << 16)])
    engine.ingest.receive((), (), [batch(engine, 999, life=1, drawn=5, expected=5 << 16)])
    assert lives(engine) == MAX_LIVES
    assert counted(engine) == 10 * (MAX_LIVES + 11)


def test_leases_of_other_deciders_come_out_of_the_same_budget(clock, entropy):
    engine = Engine(MemoryStore(entropy), clock, entropy)
    engine.start(threads=False)
    engine.commands.apply(two_arms(exposure=Limits(budget=Budget(requests=1000))), actor="ann")
    engine.commands.start("ranker", actor="ann")
    engine.planner.tick()
    uid = engine.registry.get("ranker").uid
    own = engine.store.granted(uid).get((1, "requests"), 0)
    got = 0
    while granted := engine.lease_exposure([(uid, 1, "requests", 300)])[0][0]:
        got += granted
    assert own + got == 1000 == engine.store.granted(uid)[1, "requests"]
    assert engine.lease_exposure([(uid, 0, "requests", 5), (uid, 1, "units", 5), (uid, 9, "requests", 5)]) == [(0, 1)] * 3
    assert engine.lease_exposure([("00" * 8, 1, "requests", 5)]) == [(0, 0)]
