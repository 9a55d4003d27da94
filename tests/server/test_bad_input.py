"""Whatever comes in: a clear status with one ErrorInfo, never UNKNOWN or INTERNAL, never a traceback, and nothing half-applied."""

from __future__ import annotations

import asyncio
import math
import os

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.wire.convert import experiment_to_message
from allocator.wire.spec import load
from tests.conftest import two_arms
from tests.server.test_end_to_end import started
from tests.wire.test_spec import GOOD

METHODS = [
    ("AllocatorService", "Decide"),
    ("AllocatorService", "BatchDecide"),
    ("AllocatorService", "ReportOutcomes"),
    *(("OperatorService", m.name) for m in operator_pb.DESCRIPTOR.services_by_name["OperatorService"].methods),
]


async def refused(call, code: grpc.StatusCode, reason: str) -> dict[str, str]:
    """Await the call; it must fail with this code and one ErrorInfo of this reason. Returns the field violations."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    error = caught.value
    assert error.code() == code, error.details()
    assert "Traceback" not in error.details()
    details = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    infos = [d for d in details.details if d.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    assert (info.reason, info.domain) == (reason, "allocator")
    bad = error_details_pb2.BadRequest()
    for detail in details.details:
        if detail.Is(bad.DESCRIPTOR):
            detail.Unpack(bad)
    return {v.field: v.description for v in bad.field_violations}


async def test_an_unknown_experiment_is_not_found(running):
    request = service_pb.DecideRequest(experiment="nobody", unit="u")
    await refused(running.allocator.Decide(request), grpc.StatusCode.NOT_FOUND, "UNKNOWN_EXPERIMENT")


@pytest.mark.parametrize("unit", ["", "x" * 257, "é" * 129])
async def test_a_missing_or_oversized_unit_is_refused_by_name(running, unit):
    await started(running)
    request = service_pb.DecideRequest(experiment="ranker", unit=unit)
    fields = await refused(running.allocator.Decide(request), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_UNIT")
    assert "1 to 256 bytes" in fields["unit"]


async def test_a_unit_of_256_bytes_is_fine(running):
    await started(running)
    assert (await running.client.decide("ranker", "x" * 256)).id


@pytest.mark.parametrize(("service", "method"), METHODS)
@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", os.urandom(300)])
async def test_malformed_bytes_are_invalid_argument(running, service, method, raw):
    call = running.channel.unary_unary(f"/allocator.v1.{service}/{method}")(raw)
    (answer,) = await asyncio.gather(call, return_exceptions=True)
    if isinstance(answer, bytes):  # they read as unknown fields only, and nothing that the call needs is missing
        assert method in ("VerifyAuditRecords", "ReportOutcomes", "ListExperiments", "ListAuditRecords", "ListTokens")
        return
    assert isinstance(answer, grpc.RpcError)
    assert answer.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), answer.details()
    assert "Traceback" not in answer.details()


async def test_malformed_bytes_are_told_from_a_missing_field(running):
    call = running.channel.unary_unary("/allocator.v1.AllocatorService/Decide")(b"\xff\xff\xff")
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_an_oversized_batch_is_refused(running):
    await started(running)
    outcomes = [pb.Outcome(decision_id="x", reward=1)] * 1001
    call = running.allocator.ReportOutcomes(service_pb.ReportOutcomesRequest(outcomes=outcomes))
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "BATCH_TOO_LARGE")
    call = running.allocator.BatchDecide(service_pb.BatchDecideRequest(experiment="ranker", units=["u"] * 10_001))
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "BATCH_TOO_LARGE")


async def test_a_message_beyond_four_mebibytes_is_refused(running):
    with pytest.raises(grpc.RpcError) as caught:
        await running.allocator.Decide(service_pb.DecideRequest(experiment="ranker", unit="x" * (4 << 20)))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"reward": math.nan}, "outcomes[1].reward"),
        ({"reward": math.inf}, "outcomes[1].reward"),
        ({"reward": 1.5}, "outcomes[1].reward"),
        ({"reward": -0.1}, "outcomes[1].reward"),
        ({"metrics": {"error": -math.inf}}, "outcomes[1].metrics[error]"),
        ({"metrics": {"error": 1e308}}, "outcomes[1].metrics[error]"),
        ({"metrics": {"latency": 3.0}}, "outcomes[1].metrics[latency]"),
        ({"reward": 1.0, "metrics": {"click": 1.0}}, "outcomes[1].metrics[click]"),
        ({}, "outcomes[1]"),
    ],
)
async def test_a_value_outside_the_contract_refuses_the_report_and_counts_nothing(running, values, field):
    await started(running)
    good, bad = [await running.client.decide("ranker", unit) for unit in ("a", "b")]
    outcomes = [pb.Outcome(decision_id=good.id, reward=1.0), pb.Outcome(decision_id=bad.id, **values)]
    call = running.allocator.ReportOutcomes(service_pb.ReportOutcomesRequest(outcomes=outcomes))
    fields = await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_OUTCOME")
    assert set(fields) == {field}
    described = await running.operator.DescribeExperiment(operator_pb.DescribeExperimentRequest(experiment="ranker"))
    assert sum(arm.outcomes for arm in described.arms) == 0
    again = await running.client.report(good.id, reward=1.0)
    assert again.status == "ACCEPTED"


async def test_a_spec_with_many_faults_gets_them_all(running):
    message = load(GOOD)[0].message
    message.metadata.name = "Not A Name"
    message.spec.arms[1].name = "on"
    message.spec.alpha = 7
    message.spec.exposure.total = -1
    message.spec.guardrails[0].max = math.nan
    request = operator_pb.ApplyExperimentRequest(experiment=message, actor="ann")
    fields = await refused(running.operator.ApplyExperiment(request), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SPEC")
    assert {"metadata.name", "spec.arms[1].name", "spec.alpha", "spec.exposure.total", "spec.guardrails[0].max"} <= set(fields)
    listed = await running.operator.ListExperiments(operator_pb.ListExperimentsRequest())
    assert not listed.experiments


async def test_wrong_states_are_refused_with_what_to_do(running):
    message = experiment_to_message(two_arms())
    await running.operator.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor="ann"))
    request = operator_pb.FreezeExperimentRequest(experiment="ranker", actor="ann", reason="x")
    await refused(running.operator.FreezeExperiment(request), grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE")
    resume = operator_pb.ResumeExperimentRequest(experiment="ranker", actor="ann", reason="x")
    await refused(running.operator.ResumeExperiment(resume), grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE")


async def test_a_freeze_and_a_resume_need_a_reason(running):
    await started(running)
    request = operator_pb.FreezeExperimentRequest(experiment="ranker", actor="ann", reason="  ")
    fields = await refused(running.operator.FreezeExperiment(request), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert "say why" in fields["reason"]


async def test_an_old_etag_is_aborted_and_a_reused_request_id_is_refused(running):
    message = experiment_to_message(two_arms())
    first = await running.operator.ApplyExperiment(
        operator_pb.ApplyExperimentRequest(experiment=message, actor="ann", request_id="one")
    )
    message.spec.owner = "somebody else"
    call = running.operator.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor="ann", request_id="one"))
    await refused(call, grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    etag = first.experiment.metadata.etag
    await running.operator.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor="ann", etag=etag))
    message.spec.owner = "a third"
    call = running.operator.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor="ann", etag=etag))
    await refused(call, grpc.StatusCode.ABORTED, "STALE_ETAG")


async def test_validating_changes_nothing(running):
    message = experiment_to_message(two_arms())
    reply = await running.operator.ApplyExperiment(
        operator_pb.ApplyExperimentRequest(experiment=message, actor="ann", validate_only=True)
    )
    assert reply.created
    await refused(
        running.operator.GetExperiment(operator_pb.GetExperimentRequest(experiment="ranker")),
        grpc.StatusCode.NOT_FOUND,
        "UNKNOWN_EXPERIMENT",
    )
