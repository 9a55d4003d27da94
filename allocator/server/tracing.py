"""The caller's trace context, passed through: every event that a call logs carries its trace.

In: the metadata of a call (`traceparent`, W3C Trace Context, level 1). Out: `trace_id` and `span_id` in the events logged while the call is
answered, also from the threads that work for it. Nothing is traced here: no spans are made or exported, and a context that is malformed is
left aside, as the recommendation asks. `Decide` and `ReportOutcomes` log nothing of their own, and do not look unless they crash.
"""

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import structlog

TRACEPARENT = "traceparent"
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")

T = TypeVar("T")


def bind(metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
    """Have the events of this call carry its trace; call it once, at the call's beginning."""
    for key, value in metadata or ():
        if key == TRACEPARENT and isinstance(value, str):
            form = _FORM.fullmatch(value)
            if form is not None and (form[3] is None or value[:2] != "00"):
                structlog.contextvars.bind_contextvars(trace_id=form[1], span_id=form[2])
            return


def here(function: Callable[..., T]) -> Callable[..., T]:
    """The function, to be run in another thread with what is bound here."""
    context = contextvars.copy_context()

    def run(*arguments: Any) -> T:
        return context.run(function, *arguments)

    return run
