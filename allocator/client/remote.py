"""Asks the server for each decision, and sends it outcomes.

In: an address. Out: `Client` for threads and `AsyncClient` for asyncio, alike in everything else. Every call has a deadline. UNAVAILABLE
alone is retried, by gRPC's own retries and within the deadline: a decision may be made twice without harm, and an outcome counts once.

When no decision can be had in time, `decide` answers with the incumbent it last heard of (or `fallback`) and the reason STALE: serving goes
on. Such a decision has no id, and a report of it is ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc

from allocator.client import trace
from allocator.client.channel import OPEN, Access, aio_channel, channel
from allocator.core.decision import Decision, Reason
from allocator.errors import AllocatorError, DeadlineExceeded, InvalidArgument, Unavailable
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from allocator.wire.snapshots import decision_from_message
from allocator.wire.status import from_rpc_error

DECIDE_SECONDS = 0.05
REPORT_SECONDS = 2.0
RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.02s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [{"name": [{"service": "allocator.v1.AllocatorService"}], "retryPolicy": RETRY}],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
)
OPTIONS = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 64 << 20),
)
STATUSES = {number: name.removeprefix("OUTCOME_STATUS_") for name, number in pb.OutcomeStatus.items()}

Value = str | bool | int | float


class Report(NamedTuple):
    """What became of an outcome. status: ACCEPTED, DUPLICATE, LATE, REFUSED or IGNORED; reason: UPPER_SNAKE, "" when accepted."""

    status: str
    reason: str = ""
    message: str = ""


NO_DECISION = Report("IGNORED", "NO_DECISION_ID", "the decision was made without the server, so nothing can be learned from it")


class _Fallback:
    """The incumbents heard of, for when no answer comes."""

    def __init__(self) -> None:
        self._incumbents: dict[str, tuple[str, str]] = {}

    def remember(self, experiment: str, decision: Decision) -> Decision:
        if decision.arm == decision.incumbent:
            self._incumbents[experiment] = decision.incumbent, decision.model_uri
        elif experiment not in self._incumbents:
            self._incumbents[experiment] = decision.incumbent, ""
        return decision

    def instead(self, experiment: str, fallback: str | None, error: AllocatorError) -> Decision:
        """The decision without a server. Raises the error when it is the caller's fault, or no incumbent is known."""
        if isinstance(error, InvalidArgument):
            raise error
        arm, uri = (fallback, "") if fallback is not None else self._incumbents.get(experiment, (None, ""))
        if arm is None:
            raise error
        reason = Reason.STALE if isinstance(error, Unavailable | DeadlineExceeded) else Reason.UNKNOWN_EXPERIMENT
        return Decision(arm, 1.0, reason, "", 0, uri, arm)


class Client:
    """A client for threads. Use it as a context manager, or call `close`.

    address: host:port. Timeouts in seconds. access: TLS and the token.
    """

    def __init__(
        self, address: str, *, decide_timeout: float = DECIDE_SECONDS, report_timeout: float = REPORT_SECONDS, access: Access = OPEN
    ) -> None:
        self._channel = channel(address, access, OPTIONS)
        self._metadata = access.metadata
        self._stub = service_grpc.AllocatorServiceStub(self._channel)
        self._decide_timeout = _timeout("decide_timeout", decide_timeout)
        self._report_timeout = _timeout("report_timeout", report_timeout)
        self._fallback = _Fallback()

    def decide(
        self, experiment: str, unit: str, attributes: Mapping[str, Value] | None = None, *, fallback: str | None = None
    ) -> Decision:
        """Which arm serves this unit.

        experiment: "name" or "namespace/name". unit: who or what is routed, 1 to 256 bytes. attributes: for segments, targeting and
        opt-out. fallback: the arm to answer with when the server cannot be asked; else the incumbent that it last named.
        Raises InvalidArgument for bad input; what `wire/status.py` names when there is no answer and nothing to fall back on.
        """
        request = _decide_request(experiment, unit, attributes)
        metadata = (*self._metadata(), *trace.context())
        try:
            reply = self._stub.Decide(request, timeout=self._decide_timeout, metadata=metadata)
        except grpc.RpcError as exc:
            return self._fallback.instead(experiment, fallback, from_rpc_error(exc))
        return self._fallback.remember(experiment, decision_from_message(reply.decision))

    def report(
        self, decision_id: str, *, reward: float | None = None, metrics: Mapping[str, float] | None = None
    ) -> Report:
        """Report what came of a decision. May be called again with other metrics as they come: each counts once.

        Raises InvalidArgument for a value outside the experiment's contract, Unavailable or Overloaded when it could not be stored.
        """
        if not decision_id:
            return NO_DECISION
        return self.report_many([(decision_id, reward, metrics)])[0]

    def report_many(
        self, outcomes: Iterable[tuple[str, float | None, Mapping[str, float] | None]]
    ) -> list[Report]:
        """Report up to 1,000 outcomes, each (decision id, reward, metrics), in one call. All or none of the values are refused."""
        request = _report_request(outcomes)
        metadata = (*self._metadata(), *trace.context())
        try:
            return _reports(self._stub.ReportOutcomes(request, timeout=self._report_timeout, metadata=metadata))
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """A client for asyncio; create it inside a running loop. As `Client` in everything else."""

    def __init__(
        self, address: str, *, decide_timeout: float = DECIDE_SECONDS, report_timeout: float = REPORT_SECONDS, access: Access = OPEN
    ) -> None:
        self._channel = aio_channel(address, access, OPTIONS)
        self._metadata = access.metadata
        self._stub = service_grpc.AllocatorServiceStub(self._channel)
        self._decide_timeout = _timeout("decide_timeout", decide_timeout)
        self._report_timeout = _timeout("report_timeout", report_timeout)
        self._fallback = _Fallback()

    async def decide(
        self, experiment: str, unit: str, attributes: Mapping[str, Value] | None = None, *, fallback: str | None = None
    ) -> Decision:
        """See `Client.decide`."""
        request = _decide_request(experiment, unit, attributes)
        metadata = (*self._metadata(), *trace.context())
        try:
            reply = await self._stub.Decide(request, timeout=self._decide_timeout, metadata=metadata)
        except grpc.RpcError as exc:
            return self._fallback.instead(experiment, fallback, from_rpc_error(exc))
        return self._fallback.remember(experiment, decision_from_message(reply.decision))

    async def report(
        self, decision_id: str, *, reward: float | None = None, metrics: Mapping[str, float] | None = None
    ) -> Report:
        """See `Client.report`."""
        if not decision_id:
            return NO_DECISION
        return (await self.report_many([(decision_id, reward, metrics)]))[0]

    async def report_many(
        self, outcomes: Iterable[tuple[str, float | None, Mapping[str, float] | None]]
    ) -> list[Report]:
        """See `Client.report_many`."""
        request = _report_request(outcomes)
        metadata = (*self._metadata(), *trace.context())
        try:
            return _reports(await self._stub.ReportOutcomes(request, timeout=self._report_timeout, metadata=metadata))
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc

    async def close(self) -> None:
        """Let go of the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


def _decide_request(experiment: str, unit: str, attributes: Mapping[str, Value] | None) -> service_pb.DecideRequest:
    request = service_pb.DecideRequest(experiment=_text("experiment", experiment), unit=_text("unit", unit))
    for name, value in (attributes or {}).items():
        request.attributes[_text("attributes", name)] = attribute_text(name, value)
    return request


def _report_request(
    outcomes: Iterable[tuple[str, float | None, Mapping[str, float] | None]],
) -> service_pb.ReportOutcomesRequest:
    request = service_pb.ReportOutcomesRequest()
    for index, (decision_id, reward, metrics) in enumerate(outcomes):
        outcome = request.outcomes.add(decision_id=_text(f"outcomes[{index}].decision_id", decision_id))
        if reward is not None:
            outcome.reward = _number(f"outcomes[{index}].reward", reward)
        for name, value in (metrics or {}).items():
            outcome.metrics[_text(f"outcomes[{index}].metrics", name)] = _number(f"outcomes[{index}].metrics[{name}]", value)
    return request


def _reports(reply: service_pb.ReportOutcomesResponse) -> list[Report]:
    return [Report(STATUSES[result.status], result.reason, result.message) for result in reply.results]


def _text(field: str, value: Any) -> str:
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError) as exc:  # a lone surrogate is a `str` and no text
        raise InvalidArgument.of_field(field, f"got {value!r}; text is allowed") from exc
    return value


def attribute_text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return _text(f"attributes[{name}]", value)
    raise InvalidArgument.of_field(f"attributes[{name}]", f"got {value!r}; text, a number or a boolean is allowed")


def _number(field: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as exc:
        raise InvalidArgument.of_field(field, f"got {value!r}; a number is allowed") from exc


def _timeout(field: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InvalidArgument.of_field(field, f"got {value!r}; seconds above 0 are allowed")
    return value
