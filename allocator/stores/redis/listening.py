"""Hearing that another server changed something: one thread that listens on a channel, while anybody wants to hear.

Messages say who tells, no more; what changed is asked of the store. A connection that is silent for too long is given up, although nothing
failed: a firewall may have forgotten it. After a gap everybody is called, since something may have been missed.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

import redis

from allocator.errors import AllocatorError
from allocator.stores.redis.link import PAUSE_SECONDS, Link

PING_SECONDS = 5.0
SILENT_SECONDS = 11.0
LOOK_SECONDS = 0.5  # for the end

log = logging.getLogger(__name__)
Listener = Callable[[], None]


class Listening:
    """Calls listeners when somebody but `writer` tells something on the channel."""

    def __init__(self, link: Link, channel: str, writer: str) -> None:
        self._link = link
        self._channel = channel
        self._writer = writer.encode()
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._thread: threading.Thread | None = None
        self._hears = threading.Event()
        self._closed = threading.Event()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """As `Store.listen`. Waits until it can hear, no longer than a call may take."""
        with self._lock:
            self._listeners.append(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="redis-listener", daemon=True)
                self._thread.start()
        self._hears.wait(self._link.address.timeout_ms / 1e3)

        def stop() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        least, most = PAUSE_SECONDS
        pause = least
        heard_before = False
        while not self._closed.is_set():
            try:
                with self._link.subscriber(self._channel).pubsub() as subscription:
                    subscription.subscribe(self._channel)
                    self._hear(subscription, heard_before)
            except (AllocatorError, redis.RedisError, OSError) as exc:
                log.debug("the channel is not heard: %s", exc)
            except Exception:
                log.exception("listening failed in an unexpected way")
            heard_before |= self._hears.is_set()
            pause = least if self._hears.is_set() else min(2 * pause, most)
            self._hears.clear()
            self._closed.wait(pause * random.uniform(0.5, 1.0))

    def _hear(self, subscription: redis.client.PubSub, again: bool) -> None:
        """Until the end, or silence."""
        heard = pinged = time.monotonic()
        while not self._closed.is_set() and time.monotonic() - heard < SILENT_SECONDS:
            message = subscription.get_message(timeout=LOOK_SECONDS)
            if message is None:
                if time.monotonic() - pinged > PING_SECONDS:
                    subscription.ping()
                    pinged = time.monotonic()
                continue
            heard = time.monotonic()
            if message["type"] == "subscribe":
                self._hears.set()
                if again:
                    self._call()
            elif message["type"] == "message" and message["data"] != self._writer:
                self._call()

    def _call(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            try:
                listener()
            except Exception:
                log.exception("a listener failed")
