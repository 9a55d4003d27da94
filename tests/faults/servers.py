"""A serving system that keeps a history of what it heard from a server, which is killed, paused and started again beside it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import grpc

from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc
from allocator.wire.convert import experiment_to_message
from tests.conftest import two_arms
from tests.faults.checker import Subject
from tests.faults.history import History

RANKER = Subject(("old", "new"), "old", "click", 30.0, {"errors": "error"}, cap=0.5)  # `two_arms`, as the checker knows it
STATUSES = {number: name.removeprefix("OUTCOME_STATUS_") for name, number in pb.OutcomeStatus.items()}


class Caller:
    """A serving system on one address: asks, reports, and writes down what it hears. Reports of unknown fate are kept to be repeated."""

    def __init__(
        self, address: str, history: History, proc: str, unknown: dict[str, tuple] | None = None, experiment: str = "ranker"
    ) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.allocator = service_grpc.AllocatorServiceStub(self.channel)
        self.operator = operator_grpc.OperatorServiceStub(self.channel)
        self.history, self.proc, self.experiment = history, proc, experiment
        self.unknown: dict[str, tuple] = unknown if unknown is not None else {}
        self.error = ""  # status of the last call that was not answered

    async def decide(self, units: Sequence[str], seconds: float = 10.0, *, may_fail: bool = False) -> service_pb.BatchDecideResponse | None:
        """Decisions for these units; None when there was no answer. may_fail: the test takes the server away, so that is no fault."""
        call = self.history.invoke(self.proc, "decide", units=list(units), may_fail=may_fail)
        try:
            reply = await self.allocator.BatchDecide(
                service_pb.BatchDecideRequest(experiment=self.experiment, units=units), timeout=seconds
            )
        except grpc.RpcError as error:
            self.error = error.code().name
            self.history.end(call, "info", error=self.error)
            return None
        self.history.end(
            call,
            "ok",
            arms=[reply.arms[index] for index in reply.arm_index],
            reasons=[pb.Reason.Name(reason).removeprefix("REASON_") for reason in reply.reasons],
            slots=list(reply.slots),
            version=reply.snapshot_version,
        )
        return reply

    async def report(self, outcomes: dict[str, tuple[float | None, dict[str, float]]], seconds: float = 10.0) -> list[str] | None:
        """Report (reward, metrics) by decision id. The statuses, or None when nobody knows what became of it."""
        lines = [(id_, reward, metrics) for id_, (reward, metrics) in outcomes.items()]
        self.unknown.update(outcomes)
        call = self.history.invoke(self.proc, "report", outcomes=lines)
        request = service_pb.ReportOutcomesRequest(
            outcomes=[pb.Outcome(decision_id=id_, reward=reward, metrics=metrics) for id_, reward, metrics in lines]
        )
        try:
            reply = await self.allocator.ReportOutcomes(request, timeout=seconds)
        except grpc.RpcError as error:
            self.error = error.code().name
            self.history.end(call, "info", error=self.error)
            return None
        statuses = [STATUSES[result.status] for result in reply.results]
        self.history.end(call, "ok", statuses=statuses)
        for id_ in outcomes:
            self.unknown.pop(id_, None)
        return statuses

    async def report_unknown(self) -> None:
        """Repeat what nobody knows the fate of."""
        unknown = list(self.unknown.items())
        for start in range(0, len(unknown), 500):
            assert await self.report(dict(unknown[start : start + 500])) is not None, "a repeated report was not answered"

    async def serve(self, rng: random.Random, size: int, *, may_fail: bool = True) -> bool:
        """One round of a serving system: decide for `size` new units and report an outcome of each. False when it broke off."""
        reply = await self.decide([f"{self.proc}-{rng.random()}" for _ in range(size)], may_fail=may_fail)
        if reply is None:
            return False
        outcomes = {id_: (float(rng.random() < 0.3), {"error": float(rng.random() < 0.002)}) for id_ in reply.ids}
        return await self.report(outcomes) is not None

    async def command(self, op: str, reason: str = "", seconds: float = 10.0) -> bool:
        """start, freeze or resume the experiment. False when nobody knows whether it happened. Raises when it was refused."""
        call = self.history.invoke(self.proc, op, actor=self.proc, reason=reason)
        name = f"{op.title()}Experiment"
        request = getattr(operator_pb, f"{name}Request")(experiment=self.experiment, actor=self.proc, reason=reason)
        try:
            await getattr(self.operator, name)(request, timeout=seconds)
        except grpc.RpcError as error:
            unknown = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            self.history.end(call, "info" if unknown else "fail", error=error.code().name)
            if unknown:
                return False
            raise
        self.history.end(call, "ok")
        return True

    async def begin(self, **changes: object) -> None:
        """Apply `two_arms` and start it."""
        message = experiment_to_message(two_arms(**changes))
        await self.operator.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=message, actor=self.proc), timeout=10)
        assert await self.command("start")

    async def intact(self) -> bool:
        """Does the server find the audit chain whole?"""
        return (await self.operator.VerifyAuditRecords(operator_pb.VerifyAuditRecordsRequest(), timeout=10)).intact

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()


async def allocates(caller: Caller, seconds: float = 10.0) -> None:
    """Wait until the server has heard that the experiment runs: its weights decide, however little they give the candidate."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    request = service_pb.BatchDecideRequest(experiment=caller.experiment, units=[f"asked-{number}" for number in range(100)])
    while True:
        try:
            if pb.REASON_ALLOCATED in (await caller.allocator.BatchDecide(request, timeout=5)).reasons:
                return
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        assert loop.time() < end, "the server never heard that the experiment runs"
