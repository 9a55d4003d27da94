"""An error, told to a person: one sentence, a line for each violation, what to do next; and its exit code.

In: an AllocatorError. Out: text on stderr and a number for scripts: 2 usage and invalid input, 3 not found, 4
credentials, 5 somebody else was first, 6 refused by state or evidence, 7 no server, no answer or no room, 130
interrupted, 1 anything else.
"""

from __future__ import annotations

import sys

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
)

INTERRUPTED = 130
EXIT_CODES: dict[type[AllocatorError], int] = {
    InvalidArgument: 2,
    NotFound: 3,
    Unauthenticated: 4,
    PermissionDenied: 4,
    Conflict: 5,
    AlreadyExists: 5,
    Refused: 6,
    Unavailable: 7,
    DeadlineExceeded: 7,
    Overloaded: 7,
}
HINTS_BY_REASON = {
    "NO_SERVER": "start one with `allocator serve`, or name it with --server or ALLOCATOR_SERVER",
    "NOT_ENCRYPTED": "if it asks for TLS, say --tls, or --tls-ca FILE where the authority is your own; if it asks who you are, --tls-cert"
    " and --tls-key as well",
    "NO_CERTIFICATE": "if it asks who you are, name a certificate of the authority that it trusts with --tls-cert and --tls-key",
    "NOT_TRUSTED": "name the authority of its certificate with --tls-ca FILE, and the server as the certificate does",
    "NO_TLS": "take --tls, --tls-ca, --tls-cert and --tls-key away, and ALLOCATOR_TLS and the like, or name another server with --server",
    "NO_ANSWER": "it may have happened all the same: look with `allocator describe`, or wait longer with --timeout",
    "UNIMPLEMENTED": "what listens there is no allocator, or one of another version",
    "STALE_ETAG": "get it again with `allocator get NAME -o yaml`, or overwrite it: take metadata.etag out of the file",
    "STAGE_NOT_READY": "`allocator describe NAME` shows how far it is",
    "ADDRESS_IN_USE": "stop the other process, or listen elsewhere with --listen or --metrics (port 0: any free one)",
    "STORE_EXISTS": "say --yes to replace it",
    "STORE_LOCKED": "stop the other process, or name another file with --store sqlite:PATH",
    "CANNOT_REVISE": "undo these changes, or apply them under another metadata.name",
    "SELF_APPROVAL": "ask a colleague to approve it",
    "PROPOSAL_WAITS": "`allocator describe NAME` shows what it is; `allocator approve NAME --revision DIGEST` agrees to it",
    "WRONG_STATE": "`allocator describe NAME` shows where it stands, and what waits",
    "UNKNOWN_PROPOSAL": "`allocator describe NAME` shows what waits",
    "PROPOSAL_EXPIRED": "apply it again, and ask for approvals again",
    "TOKEN_LOST": "nobody has its text: end it with `allocator token revoke ID`, make room, and make another",
    "TOKEN_RATE": "call less often, or ask for a token with a higher rate",
    "INVALID_SPEC": "mend these fields; `allocator lint -f FILE` checks again without a server",
    "INVALID_SCENARIO": "mend these fields; `allocator simulate FILE --replications 1` checks again, and rehearses once",
    "MISSING_PACKAGES": "install them with: pip install '.[sim]'",
    "MISSING_DASK": "install it with: pip install distributed",
}
HINTS: dict[type[AllocatorError], str] = {
    Unauthenticated: "name your token with --token-file or ALLOCATOR_TOKEN; those who run the server make one",
    PermissionDenied: "ask those who run the server for a token that may",
    Overloaded: "try again in a moment",
}
CALL_FLAGS = (
    *("actor", "reason", "stage", "winner", "server", "selector", "revision", "text", "lifetime", "overlap", "store", "out"),
    *("tls-ca", "tls-cert", "tls-key", "token-file"),
)
SERVE_FLAGS = (
    *("listen", "metrics", "store", "log-format", "refresh", "drain", "grace", "decision-log-days"),
    *("tls-client-ca", "access", "audit-checkpoint", "least-approvals", "max-concurrent"),
)
DEMO_FLAGS = ("seed", "seconds", "only")
BENCH_FLAGS = ("rate", "duration", "connections")
CERTIFY_FLAGS = ("incumbent-rate", "traffic", "metric-rates", "guardrail", "improvement", "for", "delay")
REHEARSE_FLAGS = ("replications", "workers", "scheduler")
# fields that the user wrote as a flag of the same name
FLAGS = frozenset((*CALL_FLAGS, *SERVE_FLAGS, *DEMO_FLAGS, *BENCH_FLAGS, *CERTIFY_FLAGS, *REHEARSE_FLAGS))


def tell(error: AllocatorError) -> int:
    """Print the error to stderr. Return its exit code."""
    violations = error.violations if isinstance(error, InvalidArgument) else ()
    lines = [f"{'--' if v.field in FLAGS else ''}{v.field}: {v.message}" for v in violations]
    sentence = error.message
    if sentence == "; ".join(map(str, violations)):
        sentence = lines.pop() if len(lines) == 1 else f"{len(lines)} values are not allowed"
    complain(f"error: {sentence}")
    for line in lines:
        complain(line)
    hint(hint_of(error))
    return exit_code(error)


def exit_code(error: AllocatorError) -> int:
    """The exit code of an error; 1 for what the table does not name."""
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), 1)


def hint_of(error: AllocatorError) -> str:
    """What to do next about an error; "" where nothing is known."""
    return HINTS_BY_REASON.get(error.reason) or next((HINTS[kind] for kind in type(error).__mro__ if kind in HINTS), "")


def hint(text: str) -> None:
    """What to do next, on stderr; nothing for empty text."""
    if text:
        complain(f"hint: {text}")


def complain(text: str) -> None:
    """A line on stderr."""
    print(clean(text), file=sys.stderr)


def clean(text: str) -> str:
    """The text on one line, without what could steer a terminal: it may come from anybody."""
    return text if text.isprintable() else "".join(character if character.isprintable() else " " for character in text)
