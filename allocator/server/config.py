"""Settings of a server, from flags and `ALLOCATOR_*` variables (the command line reads both), checked once and then frozen."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from allocator.errors import InvalidArgument, Violation

LOG_FORMATS = ("pretty", "json")
STORES = "sqlite:PATH, memory:, redis://HOST, redis+sentinel://HOSTS/SERVICE or redis+cluster://HOSTS"
REDIS = re.compile(r"rediss?(\+sentinel|\+cluster)?://.+")
ACCESS = ("open", "tokens")


@dataclass(frozen=True, slots=True)
class Config:
    """listen, metrics: host:port, port 0 for any free one, metrics "" for none. store: `sqlite:PATH`, `memory:`, or the URL
    of a Redis store (`stores/redis/address.py`), which may hold a password: show `shown_store`.

    specs: files to apply at the start. refresh_seconds: between two refreshes of the weights. drain_seconds: between "not serving" and
    the end of accepting calls, for load balancers to notice; grace_seconds: for calls under way after that. decision_log: folder, "" for
    none; decision_log_days: how long it is kept, 0 for ever; decision_log_context: attributes of requests to keep in it.

    tls_cert, tls_key, tls_client_ca: PEM files, "" for none. access: `open`, or `tokens` to ask each call for one. reflection: answer
    what the services look like; None: on loopback only. audit_checkpoint: a file for the heads of the audit log, "" for none.
    least_approvals: of what makes an experiment riskier, whatever its spec says.
    max_concurrent: calls that may wait, of decisions, of reports and of everything else; beyond it they are refused at once.

    state: the directory where this server remembers what it must know without its store, "" for none; None: `kept_in` decides.
    """

    listen: str = "127.0.0.1:50051"
    metrics: str = "127.0.0.1:9464"
    store: str = field(default="sqlite:allocator.db", repr=False)
    specs: tuple[str, ...] = ()
    log_format: str = "pretty"
    refresh_seconds: float = 1.0
    drain_seconds: float = 1.0
    grace_seconds: float = 10.0
    insecure: bool = False
    decision_log: str = ""
    decision_log_days: int = 30
    decision_log_context: tuple[str, ...] = ()
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    access: str = "open"
    reflection: bool | None = None
    audit_checkpoint: str = ""
    least_approvals: int = 0
    max_concurrent: int = 512
    state: str | None = None

    def __post_init__(self) -> None:
        found = [*check_address("listen", self.listen), *(check_address("metrics", self.metrics) if self.metrics else ())]
        kind, _, path = self.store.partition(":")
        if not (kind == "memory" or (kind == "sqlite" and path) or REDIS.fullmatch(self.store)):
            found.append(Violation("store", f"got {self.shown_store!r}; one of {STORES} is allowed"))
        if self.log_format not in LOG_FORMATS:
            found.append(Violation("log-format", f"got {self.log_format!r}; one of {', '.join(LOG_FORMATS)} is allowed"))
        if not 0.05 <= self.refresh_seconds <= 60:
            found.append(Violation("refresh", f"got {self.refresh_seconds}; seconds from 0.05 to 60 are allowed"))
        if not 0 <= self.decision_log_days <= 36_500:
            found.append(Violation("decision-log-days", f"got {self.decision_log_days}; days from 0 (for ever) to 36500 are allowed"))
        if not 1 <= self.max_concurrent <= 100_000:
            found.append(Violation("max-concurrent", f"got {self.max_concurrent}; a number of calls from 1 to 100000 is allowed"))
        for name in ("drain_seconds", "grace_seconds"):
            if not 0 <= getattr(self, name) <= 600:
                found.append(Violation(name.removesuffix("_seconds"), f"got {getattr(self, name)}; seconds from 0 to 600 are allowed"))
        if not 0 <= self.least_approvals <= 20:
            found.append(Violation("least-approvals", f"got {self.least_approvals}; a whole number from 0 to 20 is allowed"))
        if self.access not in ACCESS:
            found.append(Violation("access", f"got {self.access!r}; one of {', '.join(ACCESS)} is allowed"))
        found += check_pair(self.tls_cert, self.tls_key, self.tls_client_ca)
        if not found and not self.insecure:
            found += check_listener(self.listen, encrypted=bool(self.tls_cert), authenticated=self.access == "tokens")
        if found:
            raise InvalidArgument(violations=found, reason="INVALID_CONFIG")

    @property
    def insecurity(self) -> str:
        """What calls from other machines lack, "" where nothing does or none can come."""
        return lacking(self.listen, encrypted=bool(self.tls_cert), authenticated=self.access == "tokens")

    @property
    def kept_in(self) -> str:
        """The state directory, "" for none. By default only a store on other machines needs one: SQLite is on this disk itself."""
        if self.state is not None:
            return self.state
        return "allocator-state" if REDIS.fullmatch(self.store) else ""

    @property
    def shown_store(self) -> str:
        """`store` without user and password."""
        return re.sub(r"//.*@", "//", self.store)


def is_loopback(address: str) -> bool:
    """Can only this machine reach the address?"""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(name: str, value: str) -> list[Violation]:
    """What is wrong with host:port; nothing when it is one."""
    host, _, port = value.rpartition(":")
    if not host or re.fullmatch("[0-9]{1,5}", port) is None or int(port) > 65535:
        return [Violation(name, f"got {value!r}; host:port is allowed, e.g. 127.0.0.1:50051")]
    return []


def check_pair(tls_cert: str, tls_key: str, tls_client_ca: str) -> list[Violation]:
    """What is missing among the files of a listener."""
    found = []
    if bool(tls_cert) != bool(tls_key):
        found.append(Violation("tls-key" if tls_cert else "tls-cert", "got nothing; a certificate and its key go together"))
    if tls_client_ca and not tls_cert:
        found.append(Violation("tls-client-ca", "got it without --tls-cert; clients prove themselves inside TLS only"))
    return found


def lacking(listen: str, *, encrypted: bool, authenticated: bool) -> str:
    """What calls from other machines are not, in words; "" where they are both, or only this machine reaches the listener."""
    if is_loopback(listen):
        return ""
    return " and ".join(what for what, there in (("encrypted", encrypted), ("authenticated", authenticated)) if not there)


def check_listener(listen: str, *, encrypted: bool, authenticated: bool) -> list[Violation]:
    """What is wrong with a listener that other machines can reach."""
    lacks = lacking(listen, encrypted=encrypted, authenticated=authenticated)
    if not lacks:
        return []
    return [
        Violation(
            "listen",
            f"got {listen!r}, which other machines can reach, and calls are not {lacks}: give it --tls-cert, --tls-key and"
            " --access tokens, listen on 127.0.0.1, or insist with --insecure",
        )
    ]
