"""Bearer tokens: their text, what is known of them, and what they allow.

In: 256 random bits. Out: the text that its holder keeps, `alc_<id>_<43 characters>_<checksum>`, and a `Token`, which knows the text's
SHA-256 only: whoever reads the store cannot act with what is in it. The prefix and the checksum let scanners find a token that was
committed somewhere, and tell it from a look-alike; the server needs neither. Passwords' slow hashes were dropped: they protect what can be
guessed, and nobody guesses 256 bits.
"""

from __future__ import annotations

import hashlib
import zlib
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from enum import Enum

from allocator.core.experiment_rules import NAME, lasting
from allocator.errors import InvalidArgument, Violation

EVERYWHERE = "*"
SECRET_BYTES = 32
ID_BYTES = 4
DAY = 86_400.0
LIFETIME_SECONDS = 90 * DAY
MAX_LIFETIME_SECONDS = 3650 * DAY
MAX_PRINCIPAL = 128
DECIDE_RATE, REPORT_RATE, MAX_RATE = 5000.0, 2000.0, 1e9


class Role(Enum):
    DECIDE = "DECIDE"
    REPORT = "REPORT"
    WATCH = "WATCH"
    VIEW = "VIEW"
    OPERATE = "OPERATE"
    AUTHOR = "AUTHOR"
    APPROVE = "APPROVE"
    ADMIN = "ADMIN"  # every role, and what no other role may


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token. digest: SHA-256 of its text, hexadecimal. namespaces: where its roles hold; `*` is everywhere.

    seconds, expires_seconds: made and ended, since the epoch. decide_rate, report_rate: calls a second, on each server.
    """

    id: str
    principal: str
    roles: tuple[Role, ...]
    namespaces: tuple[str, ...]
    digest: str
    seconds: float
    expires_seconds: float
    creator: str = ""
    decide_rate: float = DECIDE_RATE
    report_rate: float = REPORT_RATE


def text_of(token_id: str, secret: bytes) -> str:
    """The text of a token. token_id: 8 hexadecimal digits. secret: 32 random bytes."""
    body = f"alc_{token_id}_{urlsafe_b64encode(secret).decode().rstrip('=')}"
    return f"{body}_{zlib.crc32(body.encode()):08x}"


def digest_of(text: str) -> str:
    """SHA-256 of a token's text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def check(token: Token) -> None:
    """Raise InvalidArgument with every fault of what was asked for."""
    found = []
    if not 1 <= len(token.principal) <= MAX_PRINCIPAL or not token.principal.isprintable():
        found.append(Violation("principal", f"got {token.principal[:40]!r}; 1 to {MAX_PRINCIPAL} printable characters are allowed"))
    if not token.roles:
        found.append(Violation("roles", f"got none; some of {', '.join(role.value.lower() for role in Role)} are needed"))
    if not token.namespaces:
        found.append(Violation("namespaces", f"got none; names of namespaces, or {EVERYWHERE} for everywhere, are needed"))
    for namespace in token.namespaces:
        if namespace != EVERYWHERE and not NAME.fullmatch(namespace):
            found.append(Violation("namespaces", f"got {namespace[:80]!r}; the name of a namespace, or {EVERYWHERE}, is allowed"))
    lifetime = token.expires_seconds - token.seconds
    if not 1 <= lifetime <= MAX_LIFETIME_SECONDS:
        found.append(Violation("lifetime", f"got {lasting(lifetime)}; 1s to {lasting(MAX_LIFETIME_SECONDS)} is allowed"))
    for name in ("decide_rate", "report_rate"):
        if not 0 < getattr(token, name) <= MAX_RATE:
            found.append(Violation(name, f"got {getattr(token, name)}; calls a second above 0 are allowed"))
    if found:
        raise InvalidArgument(violations=found, reason="INVALID_TOKEN")
