"""Over a real gRPC channel: the split moves to the better arm inside its cap, and a freeze holds from its acknowledgement on."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from scipy.stats import binomtest

from allocator.core.assignment import SLOTS
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.wire.convert import experiment_to_message
from tests.conftest import two_arms

RATES = {"old": 0.05, "new": 0.10}


async def started(running, **changes):
    message = experiment_to_message(two_arms(**changes))
    await running.operator.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor="ann"))
    await running.operator.StartExperiment(operator_pb.StartExperimentRequest(experiment="ranker", actor="ann"))


async def replanned(running):
    """Plan now, from all that was counted, however busy the planner's own thread is."""
    running.engine.planner.replan(running.engine.registry.get("ranker").uid)
    with ThreadPoolExecutor(1) as pool:
        await asyncio.get_running_loop().run_in_executor(pool, running.engine.planner.tick)


async def test_the_split_moves_to_the_better_arm_inside_its_cap(running):
    await started(running)
    rng = random.Random(7)
    published: dict[int, tuple[int, ...]] = {}
    decided: list[tuple[int, str, float]] = []
    for round_ in range(60):
        snapshot = running.engine.live.snapshot
        published[snapshot.entries["default/ranker"].version] = snapshot.entries["default/ranker"].tables[0].served
        units = [f"unit-{round_}-{i}" for i in range(100)]
        decisions = await asyncio.gather(*(running.client.decide("ranker", unit) for unit in units))
        for version in {d.snapshot_version for d in decisions} - set(published):
            published[version] = running.engine.live.snapshot.entries["default/ranker"].tables[0].served
        decided += [(d.snapshot_version, d.arm, d.propensity) for d in decisions]
        outcomes = [(d.id, float(rng.random() < RATES[d.arm]), {"error": 0.0}) for d in decisions]
        assert {r.status for r in await running.client.report_many(outcomes)} == {"ACCEPTED"}
        await replanned(running)

    entry = running.engine.live.snapshot.entries["default/ranker"]
    assert entry.tables[0].served == (SLOTS // 2, SLOTS // 2)  # at the cap, and not a slot above it
    for version, arm, propensity in decided:
        if version in published:
            assert propensity == published[version][("old", "new").index(arm)] / SLOTS
    for version, slots in published.items():
        mine = Counter(arm for v, arm, _ in decided if v == version)
        if mine.total() >= 200:
            assert binomtest(mine["new"], mine.total(), slots[1] / SLOTS).pvalue > 1e-4
    described = await running.operator.DescribeExperiment(operator_pb.DescribeExperimentRequest(experiment="ranker"))
    new = next(arm for arm in described.arms if arm.arm == "new")
    assert new.prob_best > 0.99
    assert new.exposure <= 0.5 + 4 * (0.25 / 6000) ** 0.5
    assert sum(arm.outcomes for arm in described.arms) == 6000
    assert sum(arm.decisions for arm in described.arms) == 6000


async def test_no_decision_returns_a_candidate_from_the_acknowledgement_of_a_freeze_on(running):
    await started(running)
    acknowledged = asyncio.Event()
    after: list[pb.Decision] = []

    async def ask(worker: int) -> None:
        for i in range(400):
            late = acknowledged.is_set()  # only what was asked after the acknowledgement counts
            reply = await running.allocator.Decide(service_pb.DecideRequest(experiment="ranker", unit=f"{worker}-{i}"))
            if late:
                after.append(reply.decision)

    async def freeze() -> None:
        request = operator_pb.FreezeExperimentRequest(experiment="ranker", actor="ann", reason="a rehearsal")
        reply = await running.operator.FreezeExperiment(request)
        assert reply.experiment.status.state == pb.EXPERIMENT_STATE_FROZEN
        acknowledged.set()

    await asyncio.gather(*(ask(worker) for worker in range(8)), freeze())  # the first are asked before the freeze
    assert len(after) > 500
    assert {d.arm for d in after} == {"old"}
    assert {d.reason for d in after} == {pb.REASON_FROZEN}
    assert {d.propensity for d in after} == {1.0}


async def test_a_candidate_that_errs_is_frozen_without_anybody_asking(running):
    await started(running)
    asked = 0
    while running.engine.live.snapshot.entries["default/ranker"].state == "RUNNING":
        decision = await running.client.decide("ranker", f"unit-{asked}")
        await running.client.report(decision.id, reward=0.0, metrics={"error": float(decision.arm == "new")})
        asked += 1
        assert asked < 500
    described = await running.operator.DescribeExperiment(operator_pb.DescribeExperimentRequest(experiment="ranker"))
    new = next(arm for arm in described.arms if arm.arm == "new")
    assert new.decisions <= 20  # two failures are evidence enough at 2 %; the rest were under way
    audit = await running.operator.ListAuditRecords(operator_pb.ListAuditRecordsRequest(experiment="ranker"))
    freeze = next(record for record in audit.records if record.action == "experiment.freeze")
    assert freeze.actor == "planner"
    assert "guardrail errors breached by new" in freeze.reason
    decision = await running.client.decide("ranker", "somebody")
    assert (decision.arm, decision.reason.name) == ("old", "FROZEN")


async def test_a_resumed_experiment_begins_a_new_activation_and_keeps_the_old_evidence_on_record(running):
    await started(running)
    for i in range(60):
        decision = await running.client.decide("ranker", f"unit-{i}")
        await running.client.report(decision.id, reward=0.0, metrics={"error": 0.0})
    for request in (
        operator_pb.FreezeExperimentRequest(experiment="ranker", actor="ann", reason="look"),
        operator_pb.ResumeExperimentRequest(experiment="ranker", actor="bob", reason="it was nothing"),
    ):
        call = running.operator.FreezeExperiment if "Freeze" in type(request).__name__ else running.operator.ResumeExperiment
        await call(request)
    described = await running.operator.DescribeExperiment(operator_pb.DescribeExperimentRequest(experiment="ranker"))
    assert described.experiment.status.activation == 2
    assert all(g.exposed == 0 for g in described.guardrails)
    past = {(g.arm, g.activation): g.exposed for g in described.past_guardrails}
    assert past[("new", 1)] + past[("old", 1)] == 60
    share = 6 / (math.pi * 2) ** 2  # of alpha, for the second activation
    assert described.guardrails[0].log_threshold == pytest.approx(-math.log(0.001 * share))


async def test_watchers_get_the_table_then_changes_then_heartbeats(running):
    await started(running)
    stream = running.allocator.WatchSnapshots(service_pb.WatchSnapshotsRequest())
    first = await stream.read()
    assert first.change.full
    assert first.change.complete
    assert [entry.experiment for entry in first.change.entries] == ["default/ranker"]
    await running.operator.FreezeExperiment(operator_pb.FreezeExperimentRequest(experiment="ranker", actor="ann", reason="x"))
    while True:
        event = await stream.read()
        if event.WhichOneof("event") == "change" and event.change.entries[0].state == pb.EXPERIMENT_STATE_FROZEN:
            break
    assert not event.change.full
    while (await stream.read()).WhichOneof("event") != "heartbeat":
        pass
    stream.cancel()


async def test_a_batch_decides_as_single_calls_do(running):
    await started(running)
    units = [f"u{i}" for i in range(500)]
    batch = await running.allocator.BatchDecide(service_pb.BatchDecideRequest(experiment="ranker", units=units))
    for i, unit in enumerate(units[:50]):
        single = (await running.allocator.Decide(service_pb.DecideRequest(experiment="ranker", unit=unit))).decision
        assert batch.arms[batch.arm_index[i]] == single.arm
        assert batch.slots[i] / SLOTS == single.propensity
    assert len(set(batch.ids)) == 500
