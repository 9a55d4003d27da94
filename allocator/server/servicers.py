"""Both services: convert, call, convert.

In: messages. Out: messages. Whatever waits for the store runs in threads, so that a slow disk never holds a decision up. `Decide`, which
waits for nothing, has a file of its own, `decide.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from allocator.core.assignment import point, unit_hash
from allocator.core.decision import check_unit, check_units
from allocator.core.experiment import Assignment
from allocator.core.lifecycle import State
from allocator.core.outcome import Outcome
from allocator.core.record import Record
from allocator.core.selector import selector
from allocator.core.snapshot import full_name
from allocator.engine import history
from allocator.engine.engine import Engine
from allocator.engine.exposures import ExposureBatch
from allocator.engine.ingest import Result, Status
from allocator.engine.tokens import Tokens
from allocator.errors import AllocatorError, InvalidArgument
from allocator.server import tracing
from allocator.server.decide import deciding, entry_of
from allocator.server.governance import Governance, actor_of, page_size
from allocator.server.intake import Intake
from allocator.server.metrics import Metrics
from allocator.server.tallies import Cell
from allocator.server.watch import Feed
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.wire import convert
from allocator.wire.description import description_to_message
from allocator.wire.exposures import KINDS, exposure_from_message, uid_from_text
from allocator.wire.governance import annotation_to_message
from allocator.wire.scalars import timestamp
from allocator.wire.statistics import rows_to_messages

if TYPE_CHECKING:  # it brings pyarrow along, which a server without a log need not have
    from allocator.server.decision_log import DecisionLog

MAX_UNITS = 10_000
MAX_LEASES = 1000
RESULTS_AT_HAND = 4096
STATUSES = dict(pb.OutcomeStatus.items())
new_tuple = tuple.__new__  # what a NamedTuple's own `__new__` calls, at a third of the price

T = TypeVar("T")


class AllocatorServicer:
    """For serving systems."""

    def __init__(
        self, engine: Engine, metrics: Metrics, threads: ThreadPoolExecutor, log: DecisionLog | None = None, max_reports: int = 256
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self.intake = Intake(engine.ingest, engine.decider, threads, metrics, engine.clock.monotonic, max_reports)
        self._threads = threads
        self._log = log
        self._live = engine.live
        self._now = engine.clock.now
        self._monotonic = engine.clock.monotonic
        self._outcomes = {status: metrics.outcomes.labels(status.value) for status in Status}
        self._told: dict[int, _Told] = {}
        self.decide = deciding(engine, metrics, log)
        self._decider = engine.decider
        self.feed = Feed(self._live, self._monotonic, engine.issue_keys)

    async def batch_decide(self, request: service_pb.BatchDecideRequest) -> service_pb.BatchDecideResponse:
        """BatchDecide."""
        entry = entry_of(self._live, request.experiment)
        if len(request.units) > MAX_UNITS:
            raise InvalidArgument.of_field(
                "units", f"got {len(request.units)}; at most {MAX_UNITS} are allowed", reason="BATCH_TOO_LARGE"
            )
        units = check_units(request.units)
        columns = self._decider.decide_batch(
            entry, units, request.attributes, self._now(), self._engine.entropy.bytes(8 * len(units)), stale=self._live.stale(entry)
        )
        for answer, count in columns.dressed:
            answer.made.count += count
        if self._log is not None:
            self._log.decided_batch(entry, columns.ids, units, request.attributes, columns.reasons)
        return service_pb.BatchDecideResponse(
            arms=entry.arms,
            arm_index=columns.arms,
            slots=columns.slots,
            reasons=columns.reasons,
            ids=columns.ids,
            snapshot_version=entry.version,
            incumbent_index=entry.incumbent,
            shadow_arms=[entry.arms[shadow] if shadow >= 0 else "" for shadow in columns.shadows] if entry.shadow_arms else (),
            segment=entry.segment_names[columns.segment] if units else "",
        )

    async def report_outcomes(self, request: service_pb.ReportOutcomesRequest) -> bytes:
        """ReportOutcomes; the bytes of a ReportOutcomesResponse."""
        outcomes = [
            new_tuple(Outcome, (o.decision_id, o.reward if o.HasField("reward") else None, dict(o.metrics.items()) or None))
            for o in request.outcomes
        ]
        batches = [
            ExposureBatch(batch.id, batch.life, tuple(exposure_from_message(count, batch.life) for count in batch.counts))
            for batch in request.exposures
        ]
        try:
            results, lost = await self.intake.report(outcomes, batches)
        except AllocatorError:
            self._metrics.outcomes.labels("ERROR").inc(len(outcomes))
            raise
        if self._log is not None:
            self._log.reported(outcomes, results)
        told = [self._told.get(id(result)) or self._tell(result) for result in results]
        for one in told:
            one.made.count += 1
        reply = b"".join([one.message for one in told])
        return reply if not lost else reply + service_pb.ReportOutcomesResponse(lost_exposures=lost).SerializeToString()

    def watch_snapshots(self, request: service_pb.WatchSnapshotsRequest) -> AsyncGenerator[bytes, None]:
        """WatchSnapshots."""
        return self.feed.watch(request)

    async def lease_exposure(self, request: service_pb.LeaseExposureRequest) -> service_pb.LeaseExposureResponse:
        """LeaseExposure."""
        if len(request.leases) > MAX_LEASES:
            raise InvalidArgument.of_field(
                "leases", f"got {len(request.leases)}; at most {MAX_LEASES} are allowed", reason="BATCH_TOO_LARGE"
            )
        wanted = [_lease(index, lease) for index, lease in enumerate(request.leases)]
        granted = await self._in_thread(self._engine.lease_exposure, wanted)
        return service_pb.LeaseExposureResponse(
            grants=[service_pb.LeaseGrant(exposures=exposures, activation=activation) for exposures, activation in granted]
        )

    def _tell(self, result: Result) -> _Told:
        """The answer for one outcome, kept: most results are the same few objects."""
        if len(self._told) >= RESULTS_AT_HAND:
            self._told.clear()
        status = STATUSES[f"OUTCOME_STATUS_{result.status.value}"]
        message = pb.OutcomeResult(status=status, reason=result.reason, message=result.message)
        whole = service_pb.ReportOutcomesResponse(results=[message]).SerializeToString()
        told = self._told[id(result)] = _Told(result, whole, self._outcomes[result.status])
        return told

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, tracing.here(function), *arguments)


class OperatorServicer(Governance):
    """For people and pipelines. Every method runs in a thread: it may wait for the store."""

    def __init__(self, engine: Engine, tokens: Tokens, threads: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._store = engine.store
        self._tokens = tokens
        self._commands = engine.commands
        self._threads = threads

    def _knows(self, name: str) -> bool:
        return self._engine.registry.find(name) is not None or super()._knows(name)  # the first also while the store is lost

    async def apply_experiment(self, request: operator_pb.ApplyExperimentRequest) -> operator_pb.ApplyExperimentResponse:
        """ApplyExperiment."""

        def apply() -> operator_pb.ApplyExperimentResponse:
            experiment = convert.experiment_from_message(request.experiment)
            record, created, changed = self._commands.apply(
                experiment,
                actor=actor_of(request.actor),
                reason=request.reason,
                etag=request.etag or None,
                request_id=request.request_id,
                validate_only=request.validate_only,
                etag_of=convert.etag,
                break_glass=request.break_glass,
            )
            pending = record.experiment != experiment
            return operator_pb.ApplyExperimentResponse(
                experiment=convert.record_to_message(record), created=created, changed=changed, pending=pending
            )

        return await self._in_thread(apply)

    async def get_experiment(self, request: operator_pb.GetExperimentRequest) -> operator_pb.GetExperimentResponse:
        """GetExperiment."""
        return operator_pb.GetExperimentResponse(experiment=convert.record_to_message(self._engine.registry.get(request.experiment)))

    async def list_experiments(self, request: operator_pb.ListExperimentsRequest) -> operator_pb.ListExperimentsResponse:
        """ListExperiments, by name; the page token is the last name of the page before."""
        size, fits = page_size(request.page_size), selector(request.selector)
        names = [
            record
            for record in self._engine.registry.all()
            if record.name > request.page_token
            and (not request.namespace or record.experiment.namespace == request.namespace)
            and fits(record.experiment.labels)
        ]
        reply = operator_pb.ListExperimentsResponse(experiments=[convert.record_to_message(record) for record in names[:size]])
        if len(names) > size:
            reply.next_page_token = names[size - 1].name
        return reply

    async def describe_experiment(self, request: operator_pb.DescribeExperimentRequest) -> operator_pb.DescribeExperimentResponse:
        """DescribeExperiment."""

        def describe() -> operator_pb.DescribeExperimentResponse:
            message = description_to_message(self._engine.describe(request.experiment))
            told = history.annotations(self._engine.store, full_name(request.experiment))
            message.annotations.extend(map(annotation_to_message, told))
            return message

        return await self._in_thread(describe)

    async def start_experiment(self, request: operator_pb.StartExperimentRequest) -> operator_pb.StartExperimentResponse:
        """StartExperiment."""
        record = await self._command(self._commands.start, request, break_glass=request.break_glass)
        pending = record.status.state is State.DRAFT
        return operator_pb.StartExperimentResponse(experiment=convert.record_to_message(record), pending=pending)

    async def approve_experiment(self, request: operator_pb.ApproveExperimentRequest) -> operator_pb.ApproveExperimentResponse:
        """ApproveExperiment."""
        seen = request.revision
        stage = not seen or self._commands.in_force(self._engine.registry.get(request.experiment), seen)
        record = await self._command(self._commands.approve if stage else self._commands.agree, request, revision=seen)
        pending = not stage and record.proposal is not None and record.proposal.digest.startswith(seen.lower())
        return operator_pb.ApproveExperimentResponse(experiment=convert.record_to_message(record), pending=pending, stage=stage)

    async def advance_experiment(self, request: operator_pb.AdvanceExperimentRequest) -> operator_pb.AdvanceExperimentResponse:
        """AdvanceExperiment."""
        stage = request.stage if request.HasField("stage") else None
        record = await self._command(self._commands.advance, request, stage=stage)
        return operator_pb.AdvanceExperimentResponse(experiment=convert.record_to_message(record))

    async def freeze_experiment(self, request: operator_pb.FreezeExperimentRequest) -> operator_pb.FreezeExperimentResponse:
        """FreezeExperiment."""
        record = await self._command(self._commands.freeze, request)
        return operator_pb.FreezeExperimentResponse(experiment=convert.record_to_message(record))

    async def resume_experiment(self, request: operator_pb.ResumeExperimentRequest) -> operator_pb.ResumeExperimentResponse:
        """ResumeExperiment."""
        record = await self._command(self._commands.resume, request, break_glass=request.break_glass)
        pending = record.status.state is State.FROZEN
        return operator_pb.ResumeExperimentResponse(experiment=convert.record_to_message(record), pending=pending)

    async def rollback_experiment(self, request: operator_pb.RollbackExperimentRequest) -> operator_pb.RollbackExperimentResponse:
        """RollbackExperiment."""
        record = await self._command(self._commands.rollback, request)
        return operator_pb.RollbackExperimentResponse(experiment=convert.record_to_message(record))

    async def conclude_experiment(self, request: operator_pb.ConcludeExperimentRequest) -> operator_pb.ConcludeExperimentResponse:
        """ConcludeExperiment."""
        record = await self._command(self._commands.conclude, request, winner=request.winner, break_glass=request.break_glass)
        pending = record.status.state is not State.CONCLUDED
        return operator_pb.ConcludeExperimentResponse(experiment=convert.record_to_message(record), pending=pending)

    async def get_statistics(self, request: operator_pb.GetStatisticsRequest) -> operator_pb.GetStatisticsResponse:
        """GetStatistics."""
        now = self._engine.clock.now()
        record, rows, buckets = await self._in_thread(lambda: self._engine.statistics(request.experiment, buckets=request.by_bucket))
        return operator_pb.GetStatisticsResponse(
            uid=record.uid,
            time=timestamp(now),
            rows=rows_to_messages(record.experiment, rows),
            buckets=rows_to_messages(record.experiment, buckets, buckets=True),
        )

    async def read_decision(self, request: operator_pb.ReadDecisionRequest) -> operator_pb.ReadDecisionResponse:
        """ReadDecision."""
        decision = self._engine.ingest.read(request.decision_id)
        uid = decision.uid.hex()
        record = self._engine.registry.of_uid(uid)
        reply = operator_pb.ReadDecisionResponse(uid=uid, experiment=record.name if record is not None else "")
        if request.unit and record is not None:
            reply.unit_hash = unit_hash(record.salt, check_unit(request.unit)).hex()
        sticky = record is not None and record.experiment.assignment is Assignment.STICKY
        if record is not None and (request.unit or not sticky):
            reply.slot = point(record.salt, check_unit(request.unit) if sticky else decision.nonce)
        return reply

    async def _command(self, command: Callable[..., Record], request: Any, **more: Any) -> Record:
        return await self._in_thread(lambda: command(request.experiment, actor=actor_of(request.actor), reason=request.reason, **more))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, tracing.here(function))


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """A ReportOutcomesResponse with this result alone, and how many such results there were. Several of them one after another are one
    response with all results. Who holds `result` keeps its `id` from coming again.
    """

    result: Result
    message: bytes
    made: Cell


def _lease(index: int, lease: service_pb.ExposureLease) -> tuple[str, int, str, int]:
    """Uid, arm, kind and exposures. Raises InvalidArgument."""
    kind = KINDS.get(lease.kind)
    if kind is None:
        raise InvalidArgument.of_field(f"leases[{index}].kind", f"got {lease.kind}; REQUESTS or UNITS is allowed")
    if lease.exposures < 0:
        raise InvalidArgument.of_field(f"leases[{index}].exposures", f"got {lease.exposures}; a number of at least 0 is allowed")
    return uid_from_text(lease.uid).hex(), lease.arm, kind, lease.exposures
