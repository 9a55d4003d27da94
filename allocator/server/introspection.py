"""Tokens at an edge: what its upstream says of them, remembered for a second. And the upstream's answer.

In: the SHA-256 of a token that came with a call. Out: the token, or none. The text never travels: who asks has seen it, who answers has its
digest. An answer, also that there is no such token, holds for a second; meanwhile all that are known are asked for again together, twice
in a second, so a caller waits once, for its first call. A token that is revoked is thus refused here half a second after the upstream
learnt of it, and at the latest when the answer is a second old.

While the upstream gives no answer the edge is as a server without its store: whoever had access keeps it until the token expires, and
nobody gains any. A token that it does not know gets UNAVAILABLE, since the next try may find the upstream. What no call has used for an
hour is forgotten, so that little is asked for in vain; until then it is asked for like the rest, lest a token that was revoked while
nobody used it be let in when the upstream is gone.

Dropped: letting the upstream push revocations along the snapshot stream (each watcher would learn of everybody's tokens); a list of all
good digests (an edge would know more than it needs).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from allocator.core.token import Token
from allocator.engine.tokens import Tokens
from allocator.errors import AllocatorError, InvalidArgument, Overloaded, Unavailable
from allocator.ports import Clock
from allocator.server.access import Unasked
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.wire.governance import token_from_message, token_to_message

REFRESH_SECONDS = 0.5
REMEMBER_SECONDS = 1.0
ASK_SECONDS = 0.8  # for an answer; with the half second between two it is there before a revocation is 2 s old
AWAY_SECONDS = 1.0  # after no answer came: nobody's call waits for another try
FORGET_SECONDS = 3600.0
MAX_DIGESTS = 1000
MAX_ASKING = 64  # callers with tokens that nobody knows are a flood that must not reach the upstream
DIGEST_BYTES = 32

Ask = Callable[[Sequence[bytes]], Awaitable[service_pb.IntrospectTokensResponse]]

log = structlog.get_logger()


def answer(
    request: service_pb.IntrospectTokensRequest, tokens: Tokens, now: float, *, checks_calls: bool
) -> service_pb.IntrospectTokensResponse:
    """What a server says of tokens. now: seconds since the epoch.

    Raises InvalidArgument for what is no digest or too many; Unavailable while the server has not learnt the tokens itself: then an edge
    must not think that there are none.
    """
    check_digests(request.digests)
    if not tokens.learnt:
        raise Unavailable("this server has not reached its store yet, and knows no tokens", reason="TOKENS_UNKNOWN")
    found = ((digest, tokens.find(digest)) for digest in request.digests)
    good = [
        service_pb.IntrospectedToken(digest=digest, token=token_to_message(token))
        for digest, token in found
        if token is not None and now < token.expires_seconds
    ]
    return service_pb.IntrospectTokensResponse(tokens=good, checks_calls=checks_calls)


def check_digests(digests: Sequence[bytes]) -> None:
    """Raise InvalidArgument for too many, or for what is no SHA-256."""
    if len(digests) > MAX_DIGESTS:
        raise InvalidArgument.of_field("digests", f"got {len(digests)}; at most {MAX_DIGESTS} are allowed", reason="BATCH_TOO_LARGE")
    for index, digest in enumerate(digests):
        if len(digest) != DIGEST_BYTES:
            raise InvalidArgument.of_field(f"digests[{index}]", f"got {len(digest)} bytes; the {DIGEST_BYTES} of a SHA-256 are allowed")


@dataclass(slots=True)
class Known:
    """An answer. token: None when there is no such one. at: when it was asked for; used: when a call last needed it; monotonic."""

    token: Token | None
    at: float
    used: float


class Introspected:
    """The tokens that an edge was told of: a `Table` of `server/access.py`. Belongs to one event loop.

    checked_upstream: does the upstream ask each call for a token itself? As its last answer said.
    """

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self._ask = ask
        self._now = clock.now
        self._monotonic = clock.monotonic
        self._known: dict[bytes, Known] = {}
        self._asking: dict[bytes, asyncio.Task[None]] = {}
        self._away_until = float("-inf")
        self.checked_upstream = False
        self.by_digest: Mapping[bytes, Token] = {}

    def find(self, digest: bytes) -> Token | None:
        """The token, None for none. Raises Unasked when the upstream must be asked first, by awaiting its `ask`; Unavailable when it has
        just given no answer and nothing is known."""
        known, at = self._known.get(digest), self._monotonic()
        if at >= self._away_until and (known is None or at - known.at > REMEMBER_SECONDS):
            raise Unasked(lambda: self._ask_once(digest))
        if known is None:
            raise Unavailable("the upstream does not answer what this token allows", reason="TOKENS_UNKNOWN")
        known.used = at
        return known.token

    async def refresh(self) -> None:
        """Ask for all tokens again, and forget those that ended or that nobody uses. To be called twice in a second."""
        at, now = self._monotonic(), self._now()
        self._known = {
            digest: known
            for digest, known in self._known.items()
            if (known.token is None and at - known.at <= REMEMBER_SECONDS)
            or (known.token is not None and now < known.token.expires_seconds and at - known.used <= FORGET_SECONDS)
        }
        self._publish()  # from here on a call looks its token up again, however long the answer takes
        wanted = [digest for digest, known in self._known.items() if known.token is not None]
        for first in range(0, len(wanted), MAX_DIGESTS):
            await self._ask_for(wanted[first : first + MAX_DIGESTS])
        self._publish()

    async def _ask_once(self, digest: bytes) -> None:
        """Ask for one, together with whoever else wants to know. Raises Overloaded when too many others are asked for."""
        task = self._asking.get(digest)
        if task is None:
            if len(self._asking) >= MAX_ASKING:
                raise Overloaded(
                    f"{len(self._asking)} tokens are being asked for upstream; no more may wait",
                    retry_after_seconds=0.1,
                    reason="TOO_MANY_TOKENS",
                )
            task = self._asking[digest] = asyncio.create_task(self._ask_for([digest]))
            task.add_done_callback(lambda _: self._asking.pop(digest))
        await asyncio.shield(task)  # a caller who goes away takes nobody's answer along

    async def _ask_for(self, digests: Sequence[bytes]) -> None:
        at = self._monotonic()
        try:
            reply = await self._ask(digests)
            found = {told.digest: token_from_message(told.token, told.digest) for told in reply.tokens}
        except AllocatorError as error:
            if self._monotonic() >= self._away_until:
                log.warning("tokens.not_asked", reason=error.reason, error=error.message)
            self._away_until = self._monotonic() + AWAY_SECONDS
            return
        self._away_until = float("-inf")
        self.checked_upstream = reply.checks_calls
        for digest in digests:
            before = self._known.get(digest)
            if before is None or before.at <= at:
                self._known[digest] = Known(found.get(digest), at, before.used if before is not None else at)

    def _publish(self) -> None:
        self.by_digest = {digest: known.token for digest, known in self._known.items() if known.token is not None}
