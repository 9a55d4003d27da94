"""What a server counted comes out as exact sums, and a decision id is read only by whoever made it."""

from __future__ import annotations

import grpc
import pytest

from allocator.core.assignment import point, unit_hash
from allocator.core.experiment import Reward, RewardModel
from allocator.core.summary import Statistic
from allocator.v1 import operator_service_pb2 as pb
from allocator.wire.convert import experiment_to_message
from tests.conftest import two_arms
from tests.engine.conftest import Rehearsal


async def served(running, units=40, **changes):
    """An experiment with `units` decisions, each reported: reward 1 for every fourth, error 0.5 for every tenth."""
    await running.operator.ApplyExperiment(pb.ApplyExperimentRequest(experiment=experiment_to_message(two_arms(**changes))))
    await running.operator.StartExperiment(pb.StartExperimentRequest(experiment="ranker"))
    made = []
    for number in range(units):
        decision = await running.client.decide("ranker", f"unit-{number}", fallback="old")
        await running.client.report(decision.id, reward=float(number % 4 == 0), metrics={"error": 0.5 * (number % 10 == 0)})
        made.append(decision)
    return made


async def test_the_sums_are_what_was_reported(running):
    made = await served(running)
    reply = await running.operator.GetStatistics(pb.GetStatisticsRequest(experiment="ranker", by_bucket=True))
    for rows in (reply.rows, reply.buckets):
        for name, expected in (
            (pb.STATISTIC_DECISIONS, lambda _: 0.0),
            (pb.STATISTIC_REWARD, lambda number: float(number % 4 == 0)),
            (pb.STATISTIC_LOSS, lambda number: 0.5 * (number % 10 == 0)),
        ):
            for arm in ("old", "new"):
                mine = [row for row in rows if row.statistic == name and row.arm == arm]
                numbers = [number for number, decision in enumerate(made) if decision.arm == arm]
                assert sum(row.count for row in mine) == len(numbers) > 0
                assert sum(row.total for row in mine) == sum(map(expected, numbers))
                assert {row.segment for row in mine} == {"other"}
    units = [(row.arm, row.count) for row in reply.rows if row.statistic == pb.STATISTIC_UNITS]
    assert sorted(units) == [(arm, sum(decision.arm == arm for decision in made)) for arm in ("new", "old")]
    assert all(row.bucket_time.seconds > 1.7e9 and row.bucket_width.seconds == 30 for row in reply.buckets)


async def test_by_default_buckets_stay_home(running):
    await served(running, 2)
    assert not (await running.operator.GetStatistics(pb.GetStatisticsRequest(experiment="ranker"))).buckets


async def test_an_experiment_that_is_not_there_has_no_statistics(running):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.operator.GetStatistics(pb.GetStatisticsRequest(experiment="nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_decision_id_is_read_and_its_unit_found(running):
    (decision,) = await served(running, 1)
    reply = await running.operator.ReadDecision(pb.ReadDecisionRequest(decision_id=decision.id, unit="unit-0"))
    record = running.engine.registry.get("ranker")
    assert (reply.experiment, reply.uid) == ("default/ranker", record.uid)
    assert reply.unit_hash == unit_hash(record.salt, b"unit-0").hex()
    assert reply.slot == point(record.salt, b"unit-0")
    reply = await running.operator.ReadDecision(pb.ReadDecisionRequest(decision_id=decision.id))
    assert (reply.unit_hash, reply.HasField("slot")) == ("", False)


async def test_a_forged_decision_id_is_refused(running):
    (decision,) = await served(running, 1)
    forged = decision.id[:30] + ("A" if decision.id[30] != "A" else "B") + decision.id[31:]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.operator.ReadDecision(pb.ReadDecisionRequest(decision_id=forged))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_with_a_value_for_missing_only_whole_cohorts_count_and_silence_counts_as_that_value():
    """10 s windows: of 100 decisions a cohort, each tenth reports 5 on a scale from 1 to 11; silence means 2."""
    rehearsal = Rehearsal()
    reward = Reward("stars", RewardModel.GAUSSIAN, window_seconds=10.0, missing=2.0, low=1.0, high=11.0)
    rehearsal.run(two_arms(reward=reward, guardrails=()))
    counter = iter(range(10_000))
    for _ in range(3):
        rehearsal.serve(100, lambda _arm: {"reward": 5.0} if next(counter) % 10 == 0 else {}, seconds=1.0)
    for _ in range(3):
        rehearsal.clock.pass_(20.0)
        rehearsal.plan()
    rehearsal.serve(100, lambda _arm: {"reward": 5.0}, seconds=0.0)  # a cohort that is still open
    _, rows, buckets = rehearsal.engine.statistics("ranker", buckets=True)
    rewards = [row for row in rows if row.statistic is Statistic.REWARD]
    assert sum(row.count for row in rewards) == 300
    assert sum(row.total for row in rewards) == pytest.approx(30 * 5.0 + 270 * 2.0, abs=1e-9)
    assert sum(row.squares for row in rewards) == pytest.approx(30 * 25.0 + 270 * 4.0, abs=1e-9)
    assert sum(row.count for row in rows if row.statistic is Statistic.DECISIONS) == 400
    assert sum(row.count for row in buckets if row.statistic is Statistic.REWARD) == 130


def test_first_decisions_of_units_are_counted_once_for_each_arm_window_and_activation_and_settle_with_their_buckets():
    rehearsal = Rehearsal()
    rehearsal.run(two_arms(reward=Reward("click", window_seconds=1800.0), guardrails=()))

    def counted() -> tuple[int, int]:
        rehearsal.engine.ingest.report((), rehearsal.engine.decider.take())
        _, rows, _ = rehearsal.engine.statistics("ranker")
        return tuple(sum(row.count for row in rows if row.statistic is which) for which in (Statistic.DECISIONS, Statistic.UNITS))

    def decide(times: int) -> None:
        for number in range(20 * times):
            rehearsal.decide(unit=f"u{number % 20}")

    decide(3)
    assert counted() == (60, 20)
    rehearsal.clock.pass_(1800.0)
    rehearsal.plan()
    decide(2)
    assert counted() == (100, 40)
    rehearsal.engine.commands.freeze("ranker", actor="ann", reason="drill")
    rehearsal.engine.commands.resume("ranker", actor="ann", reason="over")
    rehearsal.plan()
    decide(1)
    assert counted() == (120, 60)
    rehearsal.clock.pass_(10_000.0)
    rehearsal.plan()
    assert rehearsal.record().settled_through > 0
    assert counted() == (120, 60)
