"""Who may call what: one table, and the check that every call passes.

In: a call's metadata and request. Out: the caller, or Unauthenticated, PermissionDenied or Overloaded. What the table does not name nobody
may call. Every failure to say who one is has the same text, so that it teaches nothing about which tokens exist; a right that is missing
here and a thing that does not exist there look alike too, because rights are checked first. The actor of a change is the token's
principal, whatever the request claims.

A token is found by the SHA-256 of its text in a dictionary, so the time that it takes tells at most something about digests, from which
nobody gets back to a text. What is checked is prepared when a token is first seen, and found again by the header itself while the table of
tokens is in force, half a second: two look-ups, a set and a bucket remain for each call, about a microsecond.

An edge has the same table of rights, and asks its upstream for tokens that it does not know (`server/introspection.py`): the check then
says `Unasked`, its caller waits for the answer, and checks again. A server knows all its tokens and never says so.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from allocator.core.token import EVERYWHERE, Role, Token
from allocator.errors import Overloaded, PermissionDenied, Unauthenticated
from allocator.ports import Clock

ALLOCATOR, OPERATOR = "/allocator.v1.AllocatorService/", "/allocator.v1.OperatorService/"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/"
DEFAULT_NAMESPACE = "default"
NO_TOKEN = "no valid token came with this call"
UID_CHARACTERS, UID = 20, slice(5, 13)  # the experiment's uid in a decision id, see core/decision_id.py

Scope = Callable[[Any, "Caller"], Iterable[str]]


def _of_experiment(request: Any, _caller: Caller) -> Iterable[str]:
    namespace, slash, _ = request.experiment.partition("/")
    return (namespace if slash else DEFAULT_NAMESPACE,)


def _of_spec(request: Any, _caller: Caller) -> Iterable[str]:
    """Where the spec is, and where the experiment is that it learns from."""
    yield request.experiment.metadata.namespace or DEFAULT_NAMESPACE
    if request.experiment.spec.reward.HasField("warm_start"):
        namespace, slash, _ = request.experiment.spec.reward.warm_start.experiment.partition("/")
        yield namespace if slash else DEFAULT_NAMESPACE


def _of_namespace(request: Any, caller: Caller) -> Iterable[str]:
    """Of a list: who names no namespace asks for all; who has just one, for that."""
    if not request.namespace and len(caller.namespaces) == 1:
        request.namespace = next(iter(caller.namespaces))
    return (request.namespace or EVERYWHERE,)


def _of_log(request: Any, caller: Caller) -> Iterable[str]:
    return _of_experiment(request, caller) if request.experiment else _of_namespace(request, caller)


def _of_namespaces(request: Any, caller: Caller) -> Iterable[str]:
    """Of a stream: who names no namespaces gets all of theirs."""
    if not request.namespaces:
        request.namespaces.extend(sorted(caller.namespaces))
    return list(request.namespaces)


def _of_report(request: Any, caller: Caller) -> Iterable[str]:
    """Where the decisions were made; an id that is none of ours is refused later on."""
    found = {caller.namespace_of(_uid_of(outcome.decision_id)) for outcome in request.outcomes}
    found.update(caller.namespace_of(uid) for uid in {count.uid for batch in request.exposures for count in batch.counts})
    return found - {""}


def _of_leases(request: Any, caller: Caller) -> Iterable[str]:
    return {caller.namespace_of(lease.uid) for lease in request.leases} - {""}


def _of_decision(request: Any, caller: Caller) -> Iterable[str]:
    return (caller.namespace_of(_uid_of(request.decision_id)) or EVERYWHERE,)


def _uid_of(decision_id: str) -> str:
    """The experiment's uid in a decision id, unchecked; "" in what is none."""
    try:
        return urlsafe_b64decode(decision_id[:UID_CHARACTERS])[UID].hex()
    except ValueError:
        return ""


def _anywhere(_request: Any, _caller: Caller) -> Iterable[str]:
    return ()


def _everywhere(_request: Any, _caller: Caller) -> Iterable[str]:
    return (EVERYWHERE,)


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may: any of `roles` (an admin always), in every namespace that `scope` finds in the request. No roles: anybody, without a token.

    acts: the request has an `actor`. limit: which of a token's rates holds.
    """

    roles: frozenset[Role] = frozenset()
    scope: Scope = _everywhere
    acts: bool = False
    limit: str = ""


def _may(*roles: Role, scope: Scope = _of_experiment, acts: bool = False, limit: str = "") -> Rule:
    return Rule(frozenset((*roles, Role.ADMIN)), scope, acts, limit)


_LOOK = (Role.VIEW, Role.OPERATE, Role.AUTHOR, Role.APPROVE)
RULES: Mapping[str, Rule] = {
    f"{ALLOCATOR}Decide": _may(Role.DECIDE, limit="decide_rate"),
    f"{ALLOCATOR}BatchDecide": _may(Role.DECIDE, limit="decide_rate"),
    f"{ALLOCATOR}ReportOutcomes": _may(Role.REPORT, scope=_of_report, limit="report_rate"),
    f"{ALLOCATOR}WatchSnapshots": _may(Role.WATCH, scope=_of_namespaces),
    f"{ALLOCATOR}LeaseExposure": _may(Role.WATCH, scope=_of_leases),
    f"{ALLOCATOR}IntrospectTokens": _may(Role.WATCH, scope=_anywhere),
    f"{OPERATOR}ApplyExperiment": _may(Role.AUTHOR, scope=_of_spec, acts=True),
    f"{OPERATOR}GetExperiment": _may(*_LOOK),
    f"{OPERATOR}ListExperiments": _may(*_LOOK, scope=_of_namespace),
    f"{OPERATOR}DescribeExperiment": _may(*_LOOK),
    f"{OPERATOR}StartExperiment": _may(Role.OPERATE, acts=True),
    f"{OPERATOR}ApproveExperiment": _may(Role.APPROVE, acts=True),
    f"{OPERATOR}AdvanceExperiment": _may(Role.OPERATE, acts=True),
    f"{OPERATOR}FreezeExperiment": _may(Role.OPERATE, acts=True),
    f"{OPERATOR}ResumeExperiment": _may(Role.OPERATE, acts=True),
    f"{OPERATOR}RollbackExperiment": _may(Role.OPERATE, acts=True),
    f"{OPERATOR}ConcludeExperiment": _may(Role.OPERATE, acts=True),
    f"{OPERATOR}ListAuditRecords": _may(*_LOOK, scope=_of_log),
    f"{OPERATOR}VerifyAuditRecords": _may(*_LOOK, scope=_everywhere),
    f"{OPERATOR}RejectProposal": _may(Role.OPERATE, Role.AUTHOR, Role.APPROVE, acts=True),
    f"{OPERATOR}AnnotateExperiment": _may(Role.OPERATE, Role.AUTHOR, Role.APPROVE, acts=True),
    f"{OPERATOR}ListRevisions": _may(*_LOOK),
    f"{OPERATOR}GetRevision": _may(*_LOOK),
    f"{OPERATOR}GetStatistics": _may(*_LOOK),
    f"{OPERATOR}ReadDecision": _may(*_LOOK, scope=_of_decision),
    f"{OPERATOR}CreateToken": _may(scope=_everywhere, acts=True),
    f"{OPERATOR}ListTokens": _may(scope=_everywhere),
    f"{OPERATOR}RevokeToken": _may(scope=_everywhere, acts=True),
    f"{OPERATOR}RotateToken": _may(scope=_everywhere, acts=True),
    f"{OPERATOR}ReconcileStore": _may(scope=_everywhere, acts=True),
    f"{HEALTH}Check": Rule(),
    f"{HEALTH}Watch": Rule(),
    f"{REFLECTION}ServerReflectionInfo": _may(*_LOOK),
}

class Bucket:
    """A rate of calls, with a second's worth in reserve."""

    __slots__ = ("at", "left", "most", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.most = self.left = max(rate, 1.0)
        self.at = now

    def spend(self, now: float) -> None:
        """One call. now: monotonic seconds. Raises Overloaded when there is none left."""
        left = self.left + (now - self.at) * self.rate
        self.at = now
        if left > self.most:
            left = self.most
        if left < 1:
            self.left = left
            raise Overloaded(
                f"this token may make {self.rate:g} such calls a second on each server",
                retry_after_seconds=(1 - left) / self.rate,
                reason="TOKEN_RATE",
            )
        self.left = left - 1


class Caller:
    """A token as calls see it. namespaces: where its roles hold; empty: everywhere. buckets: by the name of the token's rate."""

    __slots__ = ("buckets", "everywhere", "expires", "namespace_of", "namespaces", "principal", "roles", "token")

    def __init__(self, token: Token, namespace_of: Callable[[str], str], now: float) -> None:
        self.token = token
        self.principal = token.principal
        self.roles = frozenset(Role) if Role.ADMIN in token.roles else frozenset(token.roles)
        self.everywhere = EVERYWHERE in token.namespaces
        self.namespaces = frozenset() if self.everywhere else frozenset(token.namespaces)
        self.expires = token.expires_seconds
        self.namespace_of = namespace_of
        self.buckets = {name: Bucket(getattr(token, name), now) for name in ("decide_rate", "report_rate")}


class Table(Protocol):
    """Tokens that are known. by_digest: another object whenever what was found before must be looked up again."""

    by_digest: Mapping[bytes, Token]

    def find(self, digest: bytes) -> Token | None:
        """The token of this SHA-256, None for none. Raises Unasked when somebody else must be asked first."""


class Unasked(Unauthenticated):
    """Nothing is known of this token yet. ask: returns when there is an answer, or none can be had."""

    def __init__(self, ask: Callable[[], Awaitable[None]]) -> None:
        super().__init__(NO_TOKEN)
        self.ask = ask


class Access:
    """The check of every call, over the tokens that are good now. namespace_of: of an experiment's uid, "" for one that is not here."""

    def __init__(self, tokens: Table, namespace_of: Callable[[str], str], clock: Clock) -> None:
        self._tokens = tokens
        self._namespace_of = namespace_of
        self._now = clock.now
        self._monotonic = clock.monotonic
        self._callers: dict[bytes, Caller] = {}
        self._table = tokens.by_digest
        self._headers: dict[str | bytes, Caller] = {}  # of good tokens, for as long as the table is in force: half a second

    def gate(self, method: str) -> Gate:
        """The check of one RPC, by its full name."""
        return Gate(self, RULES.get(method), self._monotonic)

    def caller(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller:
        """Who calls. Raises Unauthenticated: always the same, whatever is wrong."""
        if self._table is not self._tokens.by_digest:
            self._table, self._headers = self._tokens.by_digest, {}
        for key, value in metadata or ():
            if key == "authorization":
                caller = self._headers.get(value) or self._look_up(value)
                if self._now() >= caller.expires:
                    break
                return caller
        raise unauthenticated()

    def _look_up(self, header: str | bytes) -> Caller:
        if not isinstance(header, str) or header[:7].lower() != "bearer ":
            raise unauthenticated()
        caller = self._headers[header] = self.of_digest(hashlib.sha256(header[7:].encode("utf-8", "replace")).digest())
        return caller

    def of_digest(self, digest: bytes) -> Caller:
        """The caller whose token has this SHA-256, while it is good."""
        token, caller = self._tokens.find(digest), self._callers.get(digest)
        if token is None:
            self._callers.pop(digest, None)
            raise unauthenticated()
        if caller is None or caller.token != token:
            caller = self._callers[digest] = Caller(token, self._namespace_of, self._monotonic())
        if self._now() >= caller.expires:
            raise unauthenticated()
        return caller


class Gate:
    """The check of one RPC: `enter` (or `admit`, which waits for what must be asked) before its request is read, `permit` after."""

    __slots__ = ("_access", "_monotonic", "_rule")

    def __init__(self, access: Access, rule: Rule | None, monotonic: Callable[[], float]) -> None:
        self._access = access
        self._rule = rule
        self._monotonic = monotonic

    async def admit(self, metadata: Sequence[tuple[str, str | bytes]] | None) -> Caller | None:
        """As `enter`, where a token may have to be asked for first."""
        try:
            return self.enter(metadata)
        except Unasked as unasked:
            await unasked.ask()
        return self.enter(metadata)

    def enter(self, metadata: Sequence[tuple[str, str | bytes]] | None) -> Caller | None:
        """Who calls, if any of their roles may. None: anybody may. Raises Unauthenticated, PermissionDenied or Overloaded."""
        rule = self._rule
        if rule is not None and not rule.roles:
            return None
        caller = self._access.caller(metadata)
        if rule is None or rule.roles.isdisjoint(caller.roles):
            raise denied()
        if rule.limit:
            caller.buckets[rule.limit].spend(self._monotonic())
        return caller

    def permit(self, caller: Caller | None, request: Any) -> None:
        """May the caller do this, here? Fills in who acts, and where a list was asked for without saying. Raises PermissionDenied."""
        rule = self._rule
        if caller is None or rule is None:
            return
        if not caller.everywhere and not caller.namespaces.issuperset(rule.scope(request, caller)):
            raise denied()
        if rule.acts:
            request.actor = caller.principal
            if Role.ADMIN not in caller.roles and getattr(request, "break_glass", False):
                raise denied()

    async def still(self, caller: Caller | None) -> None:
        """Is the caller of a stream still good? Raises Unauthenticated."""
        if caller is None:
            return
        digest = bytes.fromhex(caller.token.digest)
        try:
            self._access.of_digest(digest)
        except Unasked as unasked:
            await unasked.ask()
            self._access.of_digest(digest)


def unauthenticated() -> Unauthenticated:
    """The one answer to a token that is missing, malformed, unknown, expired or revoked."""
    return Unauthenticated(NO_TOKEN)


def denied() -> PermissionDenied:
    """The one answer to a good token that may not do this."""
    return PermissionDenied("this token may not do this here")
