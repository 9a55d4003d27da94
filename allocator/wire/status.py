"""Error ↔ gRPC status, both ways, one to one.

In: an AllocatorError. Out: a `google.rpc.Status` with exactly one ErrorInfo (reason, domain "allocator", every dynamic part as metadata),
field violations for bad input and a RetryInfo where waiting helps. Back: the same error, so that a client raises what the server did.
"""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from allocator.errors import (
    AllocatorError,
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Overloaded,
    PermissionDenied,
    Refused,
    Unauthenticated,
    Unavailable,
    Violation,
)

DOMAIN = "allocator"
CODES: dict[type[AllocatorError], grpc.StatusCode] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    Refused: grpc.StatusCode.FAILED_PRECONDITION,
    Conflict: grpc.StatusCode.ABORTED,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
}
ERRORS = {code: error for error, code in CODES.items()}
MAX_VIOLATIONS = 100  # as many as fit well into 8 KiB of trailers
MAX_DETAIL_BYTES = 6000


def to_status(error: AllocatorError) -> grpc.Status:
    """The gRPC status of an error. An error outside the family's table is INTERNAL, told in one sentence."""
    code = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.INTERNAL)
    status = status_pb2.Status(code=code.value[0], message=error.message[:1000])
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in list(error.metadata.items())[:20]:
        info.metadata[key] = value[:200]
    _add(status, info)
    if isinstance(error, InvalidArgument) and error.violations:
        bad = error_details_pb2.BadRequest()
        size = 0
        for violation in error.violations[:MAX_VIOLATIONS]:
            size += len(violation.field) + len(violation.message)
            if size > MAX_DETAIL_BYTES:
                break
            bad.field_violations.add(field=violation.field, description=violation.message)
        _add(status, bad)
    if isinstance(error, Overloaded) and error.retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_seconds * 1e9))
        _add(status, retry)
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.RpcError) -> AllocatorError:
    """The error that the server raised, or the nearest one where the trouble was the transport's."""
    code = error.code()  # type: ignore[attr-defined]
    message = error.details() or code.name  # type: ignore[attr-defined]
    info, violations, retry = _details(error)
    reason = info.reason if info is not None else code.name
    metadata: dict[str, object] = dict(info.metadata) if info is not None else {}
    kind = ERRORS.get(code)
    if kind is InvalidArgument:
        return InvalidArgument(message, violations=violations, reason=reason, **metadata)
    if kind is Overloaded:
        return Overloaded(message, retry_after_seconds=retry, reason=reason, **metadata)
    if kind is not None:
        return kind(message, reason=reason, **metadata)
    if code is grpc.StatusCode.CANCELLED:
        return Unavailable(message, reason=reason, **metadata)
    return AllocatorError(message, reason=reason, **metadata)


def _add(status: status_pb2.Status, detail: object) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    status.details.append(packed)


def _details(
    error: grpc.RpcError,
) -> tuple[error_details_pb2.ErrorInfo | None, list[Violation], float | None]:
    info, violations, retry = None, [], None
    for key, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo()
                detail.Unpack(info)
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest()
                detail.Unpack(bad)
                violations = [Violation(v.field, v.description) for v in bad.field_violations]
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                info_retry = error_details_pb2.RetryInfo()
                detail.Unpack(info_retry)
                retry = info_retry.retry_delay.seconds + info_retry.retry_delay.nanos / 1e9
    return info, violations, retry
