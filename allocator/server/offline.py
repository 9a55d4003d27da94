"""Tokens and the audit log of a store, without a server: for the first token, and for a log that a server is not to be trusted with.

In: a store's address. Out: an object with the `call` and `pages` of a connection to a server.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from allocator.engine.tokens import Tokens
from allocator.ports import SystemClock, SystemEntropy
from allocator.server.governance import MAX_PAGE, Governance
from allocator.server.main import open_store

T = TypeVar("T")


class Offline(Governance):
    """A store as its server's operators see it. Use it as a context manager. Raises Unavailable while another process has the store."""

    def __init__(self, address: str) -> None:
        self._store = open_store(address, SystemEntropy())
        self._tokens = Tokens(self._store, SystemClock(), SystemEntropy())

    def call(self, method: str, request: Any) -> Any:
        """What the server's method of this name answers."""
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()
        return asyncio.run(getattr(self, words)(request))

    def pages(self, method: str, request: Any, field: str) -> list[Any]:
        """Everything that a paged list holds."""
        request.page_size = MAX_PAGE
        found: list[Any] = []
        while True:
            reply = self.call(method, request)
            found += getattr(reply, field)
            if not reply.next_page_token:
                return found
            request.page_token = reply.next_page_token

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return function()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._store.close()
