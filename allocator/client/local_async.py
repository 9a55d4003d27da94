"""The in-process client for asyncio: the one for threads, with nothing in it that a loop would wait for.

In: as `LocalClient`. Out: decisions at once; what has to wait (ready, flush, close) waits in a thread.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from allocator.client.local import LocalClient, State


class AsyncLocalClient:
    """Decides in this process; for asyncio. `decide`, `arm`, `report` and `statistics` are those of `LocalClient`, and never wait."""

    def __init__(self, address: str, **settings: Any) -> None:
        self._inner = inner = LocalClient(address, **settings)
        self.decide = inner.decide
        self.arm = inner.arm
        self.report = inner.report
        self.statistics = inner.statistics

    @property
    def state(self) -> State:
        """The state now."""
        return self._inner.state

    async def ready(self, timeout: float | None = None) -> bool:
        """Wait for the first snapshot; False when there was none in time (seconds)."""
        return self._inner.state is not State.CONNECTING or await asyncio.to_thread(self._inner.wait_ready, timeout)

    async def flush(self, timeout: float | None = None) -> bool:
        """See `LocalClient.flush`."""
        return await asyncio.to_thread(self._inner.flush, timeout)

    async def close(self, timeout: float = 5.0) -> None:
        """See `LocalClient.close`."""
        await asyncio.to_thread(self._inner.close, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
