"""What every command is asked with: who and why, checked; another try when the planner was first; a status for the audit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from allocator.core.lifecycle import Status
from allocator.errors import Conflict, InvalidArgument

MAX_REASON = 1000
MAX_ACTOR = 128
TRIES = 5  # of a command whose record the planner changed meanwhile
T = TypeVar("T")


def who(actor: str) -> str:
    """The actor, checked: 1 to 128 characters that can be printed."""
    if not 1 <= len(actor) <= MAX_ACTOR or not actor.isprintable():
        raise InvalidArgument.of_field("actor", f"got {actor[:40]!r}; 1 to {MAX_ACTOR} printable characters are allowed")
    return actor


def why(reason: str, *, needed: bool = True) -> str:
    """The reason without space around it, checked: at most 1,000 characters, and some if it is needed."""
    reason = reason.strip()
    if needed and not reason:
        raise InvalidArgument.of_field("reason", "got nothing; say why, it goes to the audit")
    if len(reason) > MAX_REASON:
        raise InvalidArgument.of_field("reason", f"got {len(reason)} characters; at most {MAX_REASON} are allowed")
    return reason


def retried(attempt: Callable[[], T]) -> T:
    """The result of `attempt`, made anew when somebody changed the record meanwhile, but not when the caller named the version it wants."""
    for _ in range(TRIES - 1):
        try:
            return attempt()
        except Conflict as error:
            if error.reason == "STALE_ETAG":
                raise
    return attempt()


def status_text(status: Status, approvers: Sequence[str] = ()) -> str:
    """A status as JSON, for the audit."""
    text = {"state": status.state.value, "stage": status.stage, "activation": status.activation, "winner": status.winner}
    return json.dumps({**text, "approvers": approvers} if approvers else text)
