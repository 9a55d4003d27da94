"""Outcomes as networks and hostile callers deliver them: twice, in any order, late, forged, not a number. The sums are the plain fold."""

from __future__ import annotations

import base64
import math
import random
from contextlib import closing

import pytest

from allocator.core.outcome import Outcome
from allocator.errors import InvalidArgument
from allocator.stores.sqlite import SqliteStore
from tests.conftest import ManualClock, SeededEntropy, two_arms
from tests.engine.conftest import Rehearsal
from tests.faults import checker
from tests.faults.history import History
from tests.faults.servers import RANKER

HOSTILE = (math.nan, math.inf, -math.inf, 1e308, -1e308, 2.0, -0.5, 1.0000001)
ODD = (-0.0, 5e-324, 1.0, 0.3, 1 / 3)  # allowed all the same


def delivered(tmp_path, count: int, seed: int) -> dict[str, int]:
    """So many decisions; their outcomes with 30 % sent twice, in random order, a tenth too late, as many forged."""
    rng = random.Random(seed)
    rehearsal = Rehearsal(SqliteStore(tmp_path / "store.db"), ManualClock())
    rehearsal.run(two_arms())
    foreign = Rehearsal(seed=99)
    foreign.run(two_arms())
    answers: dict[str, int] = {}

    def value() -> float:
        return rng.choice(ODD) if rng.random() < 0.05 else float(rng.random() < 0.3)

    late = [(rehearsal.decide().id, value(), {"error": 0.0}) for _ in range(count // 10)]
    rehearsal.clock.pass_(1801)
    good = [(rehearsal.decide().id, value(), {"error": rng.random() / 100}) for _ in range(count)]
    forged = []
    for id_, _, _ in rng.sample(good, count // 10):
        raw = bytearray(base64.urlsafe_b64decode(id_))
        raw[rng.randrange(1, len(raw))] ^= 1 << rng.randrange(8)  # another arm, experiment, time, nonce or code
        forged.append((base64.urlsafe_b64encode(raw).decode(), 1.0, {"error": 0.0}))
    forged += [(foreign.decide().id, 1.0, {"error": 0.0}) for _ in range(count // 20)]
    forged += [(id_[:-2], 1.0, {}) for id_, _, _ in good[:10]]
    sent = good + rng.sample(good, int(count * 0.3)) + late + late[:50] + forged
    rng.shuffle(sent)
    expected = {**dict.fromkeys((id_ for id_, _, _ in late), "LATE"), **dict.fromkeys((id_ for id_, _, _ in forged), "REFUSED")}
    counted: set[str] = set()
    with History(tmp_path / "history.jsonl") as history:
        start = 0
        while start < len(sent):
            batch = sent[start : start + rng.randint(1, 500)]
            start += len(batch)
            told = [outcome for outcome in batch if len(outcome[0]) == 68 and outcome[0] not in expected]
            call = history.invoke("client", "report", outcomes=told)
            results = rehearsal.report([Outcome(*outcome) for outcome in batch])
            statuses = {}
            for (id_, _, _), result in zip(batch, results, strict=True):
                want = expected.get(id_) or ("DUPLICATE" if id_ in counted else "ACCEPTED")
                assert result.status.value == want, (id_, result)
                if id_ not in expected:
                    counted.add(id_)
                answers[want] = answers.get(want, 0) + 1
                statuses[id_] = want
            history.end(call, "ok", statuses=[statuses[id_] for id_, _, _ in told])
    rehearsal.engine.close()
    dump = checker.of_sqlite(tmp_path / "store.db")
    assert len(dump.seen) == count
    assert checker.check(RANKER, dump, history.path) == []
    print(f"\n{len(sent):,} outcomes delivered: {answers}; the sums are the fold of {count:,}")
    return answers


def test_outcomes_twice_in_any_order_late_and_forged_come_to_the_plain_fold(tmp_path):
    answers = delivered(tmp_path, 8_000, seed=14)
    assert answers == {"ACCEPTED": 8_000, "DUPLICATE": 2_400, "LATE": 850, "REFUSED": 1_210}


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_million_outcomes_delivered_badly_come_to_the_plain_fold(tmp_path):
    assert delivered(tmp_path, 700_000, seed=15)["ACCEPTED"] == 700_000


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_outside_the_contract_refuses_its_report_and_counts_nothing_of_it(tmp_path, value):
    with closing(SqliteStore(tmp_path / "store.db", SeededEntropy())) as store:
        rehearsal = Rehearsal(store, ManualClock())
        rehearsal.run(two_arms())
        uid = rehearsal.record().uid
        ids = [rehearsal.decide().id for _ in range(6)]
        rehearsal.engine.ingest.report((), rehearsal.engine.decider.take())
        before = sorted(store.cells(uid))
        good = [Outcome(id_, 1.0, {"error": 0.0}) for id_ in ids[:5]]
        for bad in (Outcome(ids[5], value, {"error": 0.0}), Outcome(ids[5], 1.0, {"error": value}), Outcome("forged", value)):
            if bad.decision_id == "forged" and math.isfinite(value):
                continue  # refused by its id alone
            with pytest.raises(InvalidArgument) as caught:
                rehearsal.engine.ingest.report([*good, bad])
            assert caught.value.violations[0].field.startswith("outcomes[5].")
        assert sorted(store.cells(uid)) == before
        assert {result.status.value for result in rehearsal.engine.ingest.report(good)} == {"ACCEPTED"}
