"""A TCP proxy that does what networks do: delay, swallow, cut, reset, drip.

In: an address to stand in front of. Out: an address of its own, and switches that a test turns while connections are open. It runs in a
thread with an event loop of its own, so that neither a busy test nor a blocked one holds the network up.

Faults apply to bytes that come through after the switch was turned, on connections old and new:
    latency(s)       every piece arrives s later, in order           black_hole()   nothing arrives, in either direction; nobody is told
    drip(b)          b bytes a second, each way                      half_open()    requests arrive, answers do not
    cut_replies(n)   n bytes of answers more, then a reset           reset()        open connections are reset, new ones accepted
    partition()      open connections swallow, new ones are refused  heal()         all is well; what was swallowed stays lost
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

PIECE = 65_536
Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LINGER = struct.pack("ii", 1, 0)  # closing sends a reset


class Proxy:
    """In front of `target` (host:port). A context manager; nothing listens before it is entered."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.address = ""
        self.accepted = 0  # connections so far
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._open: set[_Pipe] = set()
        self._clean()

    # The switches. Any thread may turn them; they have turned when the call returns.

    def heal(self) -> None:
        """Let everything through again. A connection of which bytes were swallowed is reset: its stream has a hole."""

        def turn() -> None:
            self._clean()
            for pipe in [pipe for pipe in self._open if pipe.torn]:
                pipe.reset()

        self._turn(turn)

    def latency(self, seconds: float) -> None:
        self._turn(lambda: setattr(self, "delay", seconds))

    def drip(self, bytes_per_second: float) -> None:
        self._turn(lambda: setattr(self, "rate", bytes_per_second))

    def black_hole(self) -> None:
        self._turn(lambda: setattr(self, "swallow", frozenset(("request", "answer"))))

    def half_open(self) -> None:
        self._turn(lambda: setattr(self, "swallow", frozenset(("answer",))))

    def partition(self) -> None:
        self._turn(lambda: (setattr(self, "swallow", frozenset(("request", "answer"))), setattr(self, "refuse", True)))

    def cut_replies(self, after: int = 0) -> None:
        self._turn(lambda: setattr(self, "left", after))

    def reset(self) -> None:
        self._turn(lambda: [pipe.reset() for pipe in list(self._open)])

    def move(self, target: str) -> None:
        """New connections go to another address."""
        self._turn(lambda: setattr(self, "target", target))

    @property
    def open(self) -> int:
        """Connections open now."""
        return len(self._open)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._accept, "127.0.0.1", 0), self._loop).result()
        self.address = "{}:{}".format(*self._listener.sockets[0].getsockname())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        def end() -> None:
            self._listener.close()
            for pipe in list(self._open):
                pipe.reset()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.call_soon(self._loop.stop)

        self._loop.call_soon_threadsafe(end)
        self._thread.join()
        self._loop.close()

    # In the thread of the loop.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    def _clean(self) -> None:
        self.delay = 0.0
        self.rate = 0.0
        self.left: int | None = None  # bytes of answers until the cut
        self.swallow: frozenset[str] = frozenset()
        self.refuse = False

    def _turn(self, switch: Callable[[], object]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (switch(), done.set()))
        done.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refuse:
            _reset(writer)
            return
        host, _, port = self.target.rpartition(":")
        try:
            there = await asyncio.open_connection(host, int(port))
        except OSError:
            _reset(writer)
            return
        pipe = _Pipe(self, (reader, writer), there)
        self._open.add(pipe)
        try:
            await pipe.run()
        finally:
            self._open.discard(pipe)


class _Pipe:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, here: Side, there: Side) -> None:
        self.proxy, self.here, self.there = proxy, here, there
        self.torn = False

    def reset(self) -> None:
        _reset(self.here[1])
        _reset(self.there[1])

    async def run(self) -> None:
        """Until one side ends."""
        ways = [
            asyncio.ensure_future(self._carry("request", self.here[0], self.there[1])),
            asyncio.ensure_future(self._carry("answer", self.there[0], self.here[1])),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for writer in (self.here[1], self.there[1]):
                writer.close()

    async def _carry(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read pieces and pass them on: each so much later than it came, however many are on their way."""
        loop = asyncio.get_running_loop()
        on_their_way: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()

        async def deliver() -> None:
            while (item := await on_their_way.get()) is not None:
                due, piece = item
                await asyncio.sleep(max(due - loop.time(), 0))
                await self._deliver(way, piece, writer)

        delivery = asyncio.ensure_future(deliver())
        try:
            while piece := await reader.read(PIECE):
                on_their_way.put_nowait((loop.time() + self.proxy.delay, piece))
                if delivery.done():
                    break
            on_their_way.put_nowait(None)
            await delivery
        except OSError:
            pass  # the other side is gone: so is this connection
        finally:
            delivery.cancel()

    async def _deliver(self, way: str, piece: bytes, writer: asyncio.StreamWriter) -> None:
        proxy = self.proxy
        if way in proxy.swallow:
            self.torn = True
            return
        if way == "answer" and proxy.left is not None:
            piece, proxy.left = piece[: proxy.left], max(proxy.left - len(piece), 0)
            writer.write(piece)
            if not proxy.left:
                with contextlib.suppress(OSError):
                    await writer.drain()
                self.reset()
                return
        elif proxy.rate:
            step = max(int(proxy.rate / 20), 1)
            for start in range(0, len(piece), step):
                await asyncio.sleep(step / proxy.rate)
                writer.write(piece[start : start + step])
        else:
            writer.write(piece)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side is told that something went wrong."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    writer.transport.abort()
