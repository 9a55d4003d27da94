"""One small family of errors, shared by every room; it knows no transport.

Each error carries a stable `reason` (UPPER_SNAKE, for machines), a sentence (for people) and `metadata` (every dynamic
part of the sentence, as strings). `wire/status.py` maps the family to gRPC one to one, in both directions, so that a
client raises what the server did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with one field of the input.

    field: its path as the sender wrote it, e.g. `spec.arms[1].name`. message: what came and what is allowed.
    """

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class AllocatorError(Exception):
    """The root of the family. `reason` names the cause for machines; `metadata` holds the dynamic parts as strings."""

    default_reason = "ERROR"

    def __init__(self, message: str, *, reason: str | None = None, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidArgument(AllocatorError):
    """The input is wrong whatever the state. `violations` lists every fault found, not only the first."""

    default_reason = "INVALID_ARGUMENT"

    def __init__(
        self,
        message: str | None = None,
        *,
        violations: Sequence[Violation] = (),
        reason: str | None = None,
        **metadata: object,
    ) -> None:
        self.violations = tuple(violations)
        if message is None:
            message = "; ".join(str(violation) for violation in self.violations) or "invalid argument"
        super().__init__(message, reason=reason, **metadata)

    @classmethod
    def of_field(cls, field: str, message: str, *, reason: str | None = None, **metadata: object) -> InvalidArgument:
        """The error of one field."""
        return cls(violations=(Violation(field, message),), reason=reason, field=field, **metadata)


class NotFound(AllocatorError):
    """The named thing does not exist."""

    default_reason = "NOT_FOUND"


class AlreadyExists(AllocatorError):
    """A thing of this name exists and differs."""

    default_reason = "ALREADY_EXISTS"


class Refused(AllocatorError):
    """Well-formed, but the present state, a guardrail or a missing approval forbids it."""

    default_reason = "REFUSED"


class Conflict(AllocatorError):
    """Somebody else changed it first: the etag or version that the caller saw is no longer current."""

    default_reason = "CONFLICT"


class Overloaded(AllocatorError):
    """No room now: a limit, a full disk, a spent quota. `retry_after_seconds` is a hint, or None."""

    default_reason = "OVERLOADED"

    def __init__(
        self, message: str, *, retry_after_seconds: float | None = None, reason: str | None = None, **metadata: object
    ) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message, reason=reason, **metadata)


class Unavailable(AllocatorError):
    """The service or its store cannot be reached now; the same call may succeed later."""

    default_reason = "UNAVAILABLE"


class DeadlineExceeded(AllocatorError):
    """No answer within the caller's deadline; whether it took effect is unknown."""

    default_reason = "DEADLINE_EXCEEDED"


class Unauthenticated(AllocatorError):
    """No valid credential came with the call."""

    default_reason = "UNAUTHENTICATED"


class PermissionDenied(AllocatorError):
    """The caller is known and may not do this."""

    default_reason = "PERMISSION_DENIED"
