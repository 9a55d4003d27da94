"""Outcomes find home by their decision's id, and only so: forged, foreign, expired and repeated ones change nothing."""

from __future__ import annotations

import base64

import pytest

from allocator.client import AsyncClient
from allocator.core.decision_id import COUNTED, FIRST, mint, read
from allocator.server.config import Config
from allocator.server.main import Server
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.wire.convert import experiment_to_message
from tests.conftest import ManualClock, two_arms
from tests.server.test_end_to_end import started


async def counted(running) -> int:
    reply = await running.operator.DescribeExperiment(operator_pb.DescribeExperimentRequest(experiment="ranker"))
    return sum(arm.outcomes for arm in reply.arms)


async def test_an_outcome_counts_once_metric_by_metric(running):
    await started(running)
    decision = await running.client.decide("ranker", "u")
    assert (await running.client.report(decision.id, reward=1.0)).status == "ACCEPTED"
    assert (await running.client.report(decision.id, reward=1.0)).status == "DUPLICATE"
    assert (await running.client.report(decision.id, reward=0.0)).status == "DUPLICATE"
    assert (await running.client.report(decision.id, metrics={"error": 0.0})).status == "ACCEPTED"
    assert (await running.client.report(decision.id, reward=1.0, metrics={"error": 0.0})).status == "DUPLICATE"
    assert await counted(running) == 1


async def test_any_altered_byte_makes_an_id_forged(running):
    await started(running)
    decision = await running.client.decide("ranker", "u")
    raw = bytearray(base64.urlsafe_b64decode(decision.id))
    for index in range(1, len(raw)):
        altered = bytes(raw[:index]) + bytes([raw[index] ^ 1]) + bytes(raw[index + 1 :])
        report = await running.client.report(base64.urlsafe_b64encode(altered).decode(), reward=1.0)
        assert (report.status, report.reason) == ("REFUSED", "FORGED_DECISION_ID")
    assert await counted(running) == 0


@pytest.mark.parametrize("text", ["x", "!" * 68, "A" * 68, "é" * 68, " " + "A" * 67, "A" * 1000])
async def test_text_that_is_no_id_is_refused(running, text):
    await started(running)
    report = await running.client.report(text, reward=1.0)
    assert (report.status, report.reason) == ("REFUSED", "MALFORMED_DECISION_ID")


async def test_an_id_of_an_experiment_that_is_not_here_is_foreign(running):
    await started(running)
    key = running.engine.store.secret()
    now = int(running.engine.clock.now() * 1000)
    foreign = mint(key, b"elsewher", 0, 0, 1, now, 65536, b"nonce---", COUNTED | FIRST)
    beyond = mint(key, bytes.fromhex(running.engine.registry.get("ranker").uid), 9, 0, 1, now, 65536, b"nonce---", COUNTED | FIRST)
    for text in (foreign, beyond):
        report = await running.client.report(text, reward=1.0)
        assert (report.status, report.reason) == ("REFUSED", "FOREIGN_DECISION_ID")
    assert await counted(running) == 0


async def test_an_outcome_after_its_window_is_late_and_one_from_the_future_is_refused():
    clock = ManualClock()
    server = Server(Config(listen="127.0.0.1:0", metrics="", store="memory:", drain_seconds=0), clock=clock)
    await server.start()
    async with AsyncClient(server.address, decide_timeout=5) as client:
        server.engine.commands.apply(two_arms(), actor="ann")
        server.engine.commands.start("ranker", actor="ann")
        early, late = [await client.decide("ranker", unit) for unit in ("a", "b")]
        clock.pass_(1799)
        server.engine.live.confirm(clock.monotonic())
        assert (await client.report(early.id, reward=1.0)).status == "ACCEPTED"
        clock.pass_(2)
        report = await client.report(late.id, reward=1.0)
        assert (report.status, report.reason) == ("LATE", "WINDOW_CLOSED")
        server.engine.live.confirm(clock.monotonic())
        ahead = await client.decide("ranker", "c")
        clock.pass_(-3600)
        report = await client.report(ahead.id, reward=1.0)
        assert (report.status, report.reason) == ("REFUSED", "FUTURE_DECISION")
    await server.stop()


async def test_decisions_that_teach_nothing_are_ignored(running):
    message = experiment_to_message(two_arms(opt_out="no_experiments", pins={"tester": "new"}, target={"country": ("fr",)}))
    await running.operator.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor="ann"))
    draft = await running.client.decide("ranker", "u", {"country": "fr"})
    await running.operator.StartExperiment(operator_pb.StartExperimentRequest(experiment="ranker", actor="ann"))
    opted_out = await running.client.decide("ranker", "u", {"country": "fr", "no_experiments": True})
    elsewhere = await running.client.decide("ranker", "u", {"country": "de"})
    pinned = await running.client.decide("ranker", "tester", {"country": "fr"})
    reasons = [d.reason.name for d in (draft, opted_out, elsewhere, pinned)]
    assert reasons == ["INCUMBENT_ONLY", "OPTED_OUT", "NOT_TARGETED", "PINNED"]
    assert [d.arm for d in (draft, opted_out, elsewhere, pinned)] == ["old", "old", "old", "new"]
    for decision in (draft, opted_out, elsewhere, pinned):
        assert (await running.client.report(decision.id, reward=1.0)).status == "IGNORED"
    assert await counted(running) == 0


async def test_the_id_says_what_was_decided(running):
    await started(running)
    decision = await running.client.decide("ranker", "u")
    said = read(running.engine.store.secret(), decision.id)
    assert said.slots / 65536 == decision.propensity
    assert said.version == decision.snapshot_version
    assert ("old", "new")[said.arm] == decision.arm
    assert abs(said.seconds - running.engine.clock.now()) < 5
