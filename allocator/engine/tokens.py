"""Tokens as the store keeps them: made, listed, revoked, rotated; and this server's copy of those that are good now.

In: what an admin asks for. Out: a token's text, once. Each change is in the store with its audit record in one step; `refresh` brings the
changes that other servers made, so that a revoked token is refused by all of them as soon as each has refreshed (every second). While the
store cannot be asked, the copy holds: whoever had access keeps it, and nobody gains any.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Mapping

import msgspec

from allocator.core.audit import AuditEntry
from allocator.core.experiment_rules import lasting
from allocator.core.token import (
    EVERYWHERE,
    ID_BYTES,
    LIFETIME_SECONDS,
    MAX_LIFETIME_SECONDS,
    MAX_RATE,
    SECRET_BYTES,
    Role,
    Token,
    check,
    digest_of,
    text_of,
)
from allocator.errors import InvalidArgument, NotFound
from allocator.ports import Clock, Entropy, Store

KIND = "token"
OVERLAP_SECONDS = 3600.0


class Tokens:
    """The tokens of one store. `by_digest` may be read without a lock from any thread; it is replaced whole."""

    def __init__(self, store: Store, clock: Clock, entropy: Entropy) -> None:
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._lock = threading.Lock()
        self._lent: dict[bytes, Token] = {}
        self.by_digest: Mapping[bytes, Token] = {}
        self.learnt = False  # was the copy ever taken?

    def find(self, digest: bytes) -> Token | None:
        """The token whose text has this SHA-256, expired or not; None for none."""
        return self.by_digest.get(digest)

    def refresh(self) -> None:
        """Take over what the store holds. Raises Unavailable; what was known then stays."""
        with self._lock:
            found = [_decoder.decode(text) for text in self._store.items(KIND).values()]
            self.by_digest = {bytes.fromhex(token.digest): token for token in found} | self._lent
            self.learnt = True

    def lend(self, principal: str, roles: tuple[Role, ...]) -> str:
        """The text of a token that holds everywhere until this process ends: no store and no list has it."""
        now = self._clock.now()
        made, text = self._made(Token("", principal, roles, (EVERYWHERE,), "", now, now + MAX_LIFETIME_SECONDS, report_rate=MAX_RATE))
        with self._lock:
            self._lent = {**self._lent, bytes.fromhex(made.digest): made}
            self.by_digest = {**self.by_digest, **self._lent}
        return text

    def remembered(self) -> dict[str, dict[str, str]]:
        """The items of the copy, by kind and key: what comes back into a store that lost them."""
        return {KIND: {token.id: msgspec.json.encode(token).decode() for token in self._stored()}}

    def all(self) -> list[Token]:
        """Every token that was not revoked, expired ones too, the oldest first."""
        self.refresh()
        return sorted(self._stored(), key=lambda token: (token.seconds, token.id))

    def create(
        self,
        principal: str,
        roles: tuple[Role, ...],
        namespaces: tuple[str, ...],
        *,
        actor: str,
        reason: str = "",
        lifetime_seconds: float = LIFETIME_SECONDS,
        **rates: float,
    ) -> tuple[Token, str]:
        """A new token and its text, which cannot be had again. rates: decide_rate, report_rate. Raises InvalidArgument."""
        now = self._clock.now()
        roles, namespaces = tuple(dict.fromkeys(roles)), tuple(dict.fromkeys(namespaces))
        made, text = self._made(Token("", principal, roles, namespaces, "", now, now + lifetime_seconds, actor, **rates))
        self._put(made, None, "token.create", actor, reason)
        return made, text

    def revoke(self, token_id: str, *, actor: str, reason: str = "") -> Token:
        """End a token now. Raises NotFound."""
        token, stored = self._find(token_id)
        entry = AuditEntry(self._clock.now(), actor, "token.revoke", "", reason, _told(token), "")
        self._store.put(KIND, token_id, None, stored, (entry,))
        self.refresh()
        return token

    def rotate(self, token_id: str, *, actor: str, reason: str = "", overlap_seconds: float = OVERLAP_SECONDS) -> tuple[Token, str]:
        """Another token with the same rights and lifetime, and its text; the old one ends after `overlap_seconds`, at most a week."""
        if not 0 <= overlap_seconds <= 7 * 86_400:
            raise InvalidArgument.of_field("overlap", f"got {lasting(overlap_seconds)}; 0s to 7d are allowed")
        old, stored = self._find(token_id)
        now = self._clock.now()
        lifetime = old.expires_seconds - old.seconds
        made, text = self._made(dataclasses.replace(old, seconds=now, expires_seconds=now + lifetime, creator=actor))
        self._put(made, None, "token.create", actor, reason or f"rotates {old.id}")
        ending = dataclasses.replace(old, expires_seconds=min(old.expires_seconds, now + overlap_seconds))
        self._put(ending, stored, "token.rotate", actor, reason or f"replaced by {made.id}", _told(old))
        return made, text

    def _stored(self) -> list[Token]:
        return [token for digest, token in self.by_digest.items() if digest not in self._lent]

    def _made(self, wanted: Token) -> tuple[Token, str]:
        check(wanted)
        token_id = self._entropy.bytes(ID_BYTES).hex()
        text = text_of(token_id, self._entropy.bytes(SECRET_BYTES))
        return dataclasses.replace(wanted, id=token_id, digest=digest_of(text)), text

    def _put(self, token: Token, expected: str | None, action: str, actor: str, reason: str, before: str = "") -> None:
        entry = AuditEntry(self._clock.now(), actor, action, "", reason, before, _told(token))
        self._store.put(KIND, token.id, msgspec.json.encode(token).decode(), expected, (entry,))
        self.refresh()

    def _find(self, token_id: str) -> tuple[Token, str]:
        stored = self._store.items(KIND).get(token_id)
        if stored is None:
            raise NotFound(f"there is no token {token_id[:40]!r}; `allocator token list` lists those that are", reason="UNKNOWN_TOKEN")
        return _decoder.decode(stored), stored


def _told(token: Token) -> str:
    """A token for the audit: all but its digest."""
    told = msgspec.to_builtins(token)
    del told["digest"]
    return json.dumps(told)


_decoder = msgspec.json.Decoder(Token)
