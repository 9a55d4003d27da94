"""The line to Redis: which server a call goes to, how long it may take, what is done when it fails.

In: calls of scripts and commands, each with the key that says where it belongs. Out: an answer for each, or the `AllocatorError` that says
what went wrong with it. The calls that go to one server travel together, in order, and with `wait` a WAIT behind them: it covers all that
was written before it.

No call is sent twice where that could matter: redis-py's own retries are off, since a reply that was lost tells nothing. What is sent again
at once is what a server refused without carrying it out: an unknown script, a slot that lives elsewhere. After a failure the server is left
alone: calls to it fail at once while a breaker is open, one call at a time finds out whether it is back, after growing, jittered pauses.
A server that evicts keys is refused before it is used; it is asked again after each failure, since another may answer by then.

Dropped: a command pipeline over a Cluster by redis-py (its retries are its own, and WAIT has no key).
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import suppress
from importlib import resources
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from allocator.errors import AllocatorError, Overloaded, Unavailable
from allocator.stores.redis.address import CLUSTER, SENTINEL, Address

HEALTH_CHECK_SECONDS = 10
PAUSE_SECONDS = 0.05, 1.0  # least and most between two attempts on a server that failed
FULL_RETRY_SECONDS = 5.0
ROUNDS = 4  # of sending again what a server refused unseen
TOGETHER = 500  # calls in one go

_UNFIT = (ReadOnlyError, ClusterDownError, BusyLoadingError, MasterDownError)  # what a server answers that cannot serve now

log = logging.getLogger(__name__)


class Call(NamedTuple):
    """One script (its name in `lua/`) or command (in capitals). keys: the first says where it goes."""

    what: str
    keys: Sequence[str]
    arguments: Sequence[Any] = ()


Answer = Any  # what Redis says, or an AllocatorError


def read_scripts() -> dict[str, bytes]:
    """The scripts of `lua/` by name, each with the helpers before it."""
    files = {file.name[:-4]: file.read_bytes() for file in (resources.files(__package__) / "lua").iterdir() if file.name.endswith(".lua")}
    helpers = files.pop("_common")
    return {name: helpers + b"\n" + text for name, text in files.items()}


class Breaker:
    """Keeps calls from what failed, but for one at a time that finds out whether it is back. refusal: makes the error of the others."""

    def __init__(self, refusal: Callable[[], Unavailable]) -> None:
        self._refusal = refusal
        self._lock = threading.Lock()
        self._failures = 0
        self._until = 0.0
        self._probing: int | None = None  # thread

    @property
    def is_open(self) -> bool:
        return self._failures > 0

    def enter(self) -> None:
        """Raise Unavailable unless a call may go out now. Who enters says `succeed` or `fail` afterwards."""
        if not self._failures:
            return
        with self._lock:
            if not self._failures:
                return
            if self._probing is not None or time.monotonic() < self._until:
                raise self._refusal()
            self._probing = threading.get_ident()

    def succeed(self) -> bool:
        """Returns whether this closed the breaker."""
        if not self._failures:
            return False
        with self._lock:
            closed, self._failures = self._failures > 0, 0
            self._probing = None
        return closed

    def fail(self) -> None:
        with self._lock:
            if self._failures and self._probing != threading.get_ident():
                return  # one of many that were under way
            self._probing = None
            self._failures = min(self._failures + 1, 16)
            least, most = PAUSE_SECONDS
            self._until = time.monotonic() + min(most, least * 2**self._failures) * random.uniform(0.5, 1.0)


class Link:
    """Connections to the servers of an `Address`; any thread may use it. Nothing is connected before the first call.

    outages: grows each time that a server came back after it had failed: it may be another one, or know less.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.outages = 0
        self._scripts = {name: (hashlib.sha1(text, usedforsecurity=False).hexdigest(), text) for name, text in read_scripts().items()}
        self._lock = threading.Lock()  # of the breakers
        self._mapping = threading.Lock()
        self._breakers: dict[str, Breaker] = {}
        self._replicas: dict[str, Breaker] = {}
        self._inspected: set[str] = set()
        self._cluster: RedisCluster | None = None
        self._stale = False  # is the map of the Cluster in doubt?
        self._alone = None if address.kind == CLUSTER else self._connect()

    def run(self, calls: Sequence[Call], *, wait: bool = False) -> list[Answer]:
        """The answer to each call, in order; an AllocatorError among them where one failed. Raises nothing but programming errors.

        wait: an answer counts only when as many replicas as the address asks for have what was written; else NOT_REPLICATED.
        """
        answers: list[Answer] = [None] * len(calls)
        pending = list(range(len(calls)))
        for _ in range(ROUNDS):
            again: list[int] = []
            try:
                groups = self._groups(calls, pending)
            except Exception as exc:
                for index in pending:
                    answers[index] = self._told(exc)
                return answers
            for place, client, indices in groups:
                for first in range(0, len(indices), TOGETHER):
                    part = indices[first : first + TOGETHER]
                    found = self._send(place, client, [calls[index] for index in part], wait)
                    for index, answer in zip(part, found, strict=True):
                        answers[index] = answer
                        if isinstance(answer, NoScriptError | MovedError):
                            again.append(index)
            if not again:
                break
            self._stale |= any(isinstance(answers[index], MovedError) for index in again)
            pending = sorted(again)
        return [self._told(answer) if isinstance(answer, Exception) else answer for answer in answers]

    def ask(self, call: Call, *, wait: bool = False) -> Any:
        """The answer to one call. Raises AllocatorError."""
        (answer,) = self.run([call], wait=wait)
        if isinstance(answer, AllocatorError):
            raise answer
        return answer

    def ask_all(self, calls: Sequence[Call], *, wait: bool = False) -> list[Any]:
        """The answers to all calls. Raises the first AllocatorError among them."""
        answers = self.run(calls, wait=wait)
        for answer in answers:
            if isinstance(answer, AllocatorError):
                raise answer
        return answers

    def subscriber(self, key: str) -> redis.Redis:
        """A client for listening, of the server that has the key. Raises AllocatorError."""
        try:
            ((_, client, _),) = self._groups([Call("", [key])], [0])
        except Exception as exc:
            raise self._told(exc) from exc
        return client

    def is_open(self, key: str) -> bool:
        """Would a call to the key's server fail at once?"""
        breaker = self._breakers.get(self._place(key))
        return breaker is not None and breaker.is_open

    def close(self) -> None:
        for client in (self._alone, self._cluster):
            if client is not None:
                with suppress(redis.RedisError, OSError):
                    client.close()

    # Where a call goes.

    def _groups(self, calls: Sequence[Call], pending: Sequence[int]) -> Iterator[tuple[str, redis.Redis, list[int]]]:
        if self._alone is not None:
            return iter([(str(self.address), self._alone, list(pending))])
        cluster = self._map()
        found: dict[str, tuple[str, redis.Redis, list[int]]] = {}
        for index in pending:
            node = cluster.get_node_from_key(calls[index].keys[0])
            if node is None:
                raise unreachable(str(self.address), "no server has the slot of a key")
            if node.name not in found:
                found[node.name] = (node.name, cluster.get_redis_connection(node), [])
            found[node.name][2].append(index)
        return iter(found.values())

    def _place(self, key: str) -> str:
        if self._cluster is None:
            return str(self.address)
        node = self._cluster.get_node_from_key(key)
        return node.name if node is not None else ""

    def _map(self) -> RedisCluster:
        """The Cluster, with a map of its slots that nothing speaks against."""
        if self._cluster is not None and not self._stale:
            return self._cluster
        breaker = self._breaker(str(self.address))
        if not self._mapping.acquire(blocking=self._cluster is None):
            return self._cluster  # as well as it is known: somebody is looking
        try:
            if self._cluster is not None and not self._stale:
                return self._cluster
            try:
                breaker.enter()
            except Unavailable:
                if self._cluster is None:
                    raise
                return self._cluster
            try:
                if self._cluster is None:
                    self._cluster = RedisCluster(
                        startup_nodes=[ClusterNode(host, port) for host, port in self.address.hosts],
                        require_full_coverage=False,
                        **self._options(),
                    )
                else:
                    self._cluster.nodes_manager.initialize()
                self._stale = False
            except Exception:
                breaker.fail()
                if self._cluster is None:
                    raise
            else:
                breaker.succeed()
        finally:
            self._mapping.release()
        return self._cluster

    def _connect(self) -> redis.Redis:
        if self.address.kind == SENTINEL:
            options = self._options()
            own = {
                **options,
                "username": self.address.sentinel_user or None,
                "password": self.address.sentinel_password or None,
                "socket_timeout": self.address.timeout_ms / 1e3,  # they wait for no replicas
            }
            sentinel = Sentinels(self.address.hosts, sentinel_kwargs=own, **options)
            return sentinel.master_for(self.address.service, db=self.address.db)
        ((host, port),) = self.address.hosts
        return redis.Redis(host=host, port=port, db=self.address.db, **self._options())

    def _options(self) -> dict[str, Any]:
        address = self.address
        found: dict[str, Any] = {
            "username": address.user or None,
            "password": address.password or None,
            "socket_connect_timeout": address.timeout_ms / 1e3,
            "socket_timeout": (address.timeout_ms + (address.wait_ms if address.wait else 0)) / 1e3,
            "socket_keepalive": True,
            "health_check_interval": HEALTH_CHECK_SECONDS,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        if address.tls:
            found |= {
                "ssl": True,
                "ssl_ca_certs": address.ca_file or None,
                "ssl_certfile": address.cert_file or None,
                "ssl_keyfile": address.key_file or None,
            }
        return found

    # Sending.

    def _send(self, place: str, client: redis.Redis, calls: Sequence[Call], wait: bool) -> list[Answer]:
        """The raw answers of one server; the same exception for all when it could not be asked."""
        breaker = self._breaker(place)
        replicas = self._replicas_of(place) if wait and self.address.wait else None
        try:
            breaker.enter()
        except Unavailable as exc:
            return [exc] * len(calls)
        try:
            if place not in self._inspected:
                self._inspect(place, client)
            answers = self._exchange(client, calls, replicas)
            for answer in answers:
                if isinstance(answer, _UNFIT):
                    raise answer
        except AllocatorError as exc:  # it answers, and is not to be used
            breaker.fail()
            return [exc] * len(calls)
        except Exception as exc:
            breaker.fail()
            self._inspected.discard(place)
            self._stale = self._alone is None
            if not isinstance(exc, redis.RedisError | OSError):
                log.exception("a call to %s failed in an unexpected way", place)
            with suppress(redis.RedisError, OSError):
                client.connection_pool.disconnect(inuse_connections=False)
            return [exc] * len(calls)
        if breaker.succeed():
            self.outages += 1
            log.info("%s answers again", place)
        return answers

    def _exchange(self, client: redis.Redis, calls: Sequence[Call], replicas: Breaker | None) -> list[Answer]:
        """One round trip. replicas: to wait for, if any."""
        if replicas is not None:
            try:
                replicas.enter()
            except Unavailable as exc:
                return [exc] * len(calls)
        reached = 0
        try:
            with client.pipeline(transaction=False) as pipe:
                for call in calls:
                    pipe.execute_command(*self._words(call))
                if replicas is not None:
                    pipe.execute_command("WAIT", self.address.wait, self.address.wait_ms)
                answers = pipe.execute(raise_on_error=False)
            if replicas is not None:
                reached = answers.pop()
                if isinstance(reached, Exception):
                    raise reached
        except Exception:
            if replicas is not None:
                replicas.fail()
            raise
        if replicas is not None and reached < self.address.wait:
            replicas.fail()
            missing = not_replicated(f"{reached} of {self.address.wait} have it after {self.address.wait_ms} ms")
            answers = [answer if isinstance(answer, Exception) else missing for answer in answers]
        elif replicas is not None:
            replicas.succeed()
        if any(isinstance(answer, NoScriptError) for answer in answers):
            with client.pipeline(transaction=False) as pipe:
                for _, text in self._scripts.values():
                    pipe.execute_command("SCRIPT LOAD", text)
                pipe.execute()
        for index, answer in enumerate(answers):
            if isinstance(answer, AskError) and not isinstance(answer, MovedError):
                answers[index] = self._ask_there(answer, calls[index])
        return answers

    def _ask_there(self, ask: AskError, call: Call) -> Answer:
        """The answer of the server to which a slot is moving."""
        node = self._cluster.nodes_manager.get_node(ask.host, ask.port)
        if node is None:
            self._stale = True
            return unreachable(f"{ask.host}:{ask.port}", "a slot moves to it, and it is not on the map yet")
        with self._cluster.get_redis_connection(node).pipeline(transaction=False) as pipe:
            pipe.execute_command("ASKING")
            words = self._words(call)
            if words[0] == "EVALSHA":  # it may not know the script
                words = ["EVAL", self._scripts[call.what][1], *words[2:]]
            pipe.execute_command(*words)
            return pipe.execute(raise_on_error=False)[1]

    def _words(self, call: Call) -> list[Any]:
        if call.what.isupper():
            return [call.what, *call.keys, *call.arguments]
        return ["EVALSHA", self._scripts[call.what][0], len(call.keys), *call.keys, *call.arguments]

    def _inspect(self, place: str, client: redis.Redis) -> None:
        """Raise Unavailable for a server that evicts keys; warn of one that keeps nothing on disk."""
        with client.pipeline(transaction=False) as pipe:
            for words in (
                ("CONFIG GET", "maxmemory-policy"),
                ("CONFIG GET", "appendonly"),
                ("INFO", "memory"),
                ("INFO", "persistence"),
            ):
                pipe.execute_command(*words)
            policy, append, memory, persistence = (
                answer if isinstance(answer, dict) else {} for answer in pipe.execute(raise_on_error=False)
            )
        found = _text(policy.get(b"maxmemory-policy") or policy.get("maxmemory-policy") or memory.get("maxmemory_policy") or "")
        if found and found != "noeviction":
            raise Unavailable(
                f"{place} has the maxmemory-policy {found}: it would drop counts and freezes when memory runs low; set noeviction",
                reason="STORE_EVICTS",
                policy=found,
            )
        if not found:
            log.warning("%s does not tell its maxmemory-policy; make sure that it is noeviction", place)
        kept = _text(append.get(b"appendonly") or append.get("appendonly") or ("yes" if persistence.get("aof_enabled") else "no"))
        if kept != "yes":
            log.warning("%s does not append to a file (appendonly %s): what was acknowledged is lost with its process", place, kept)
        self._inspected.add(place)

    def _breaker(self, place: str) -> Breaker:
        with self._lock:
            found = self._breakers.get(place)
            if found is None:
                found = self._breakers[place] = Breaker(lambda: unreachable(place, "it failed a moment ago"))
            return found

    def _replicas_of(self, place: str) -> Breaker:
        """Keeps from waiting for replicas again and again when there are too few."""
        with self._lock:
            found = self._replicas.get(place)
            if found is None:
                found = self._replicas[place] = Breaker(lambda: not_replicated("it had too few a moment ago; nothing was written"))
            return found

    def _told(self, exc: Exception) -> AllocatorError:
        """A failure in the words of the store."""
        if isinstance(exc, AllocatorError):
            return exc
        text = str(exc)[:200]
        for secret in (self.address.password, self.address.sentinel_password):
            if secret:
                text = text.replace(secret, "***")
        error: AllocatorError
        if isinstance(exc, OutOfMemoryError) or "OOM command" in text or "No space left" in text:
            error = Overloaded("the store has no room; nothing was written", reason="STORE_FULL", retry_after_seconds=FULL_RETRY_SECONDS)
        elif "NOREPLICAS" in text:
            error = not_replicated("it has too few replicas to take writes")
        elif isinstance(exc, TryAgainError):
            error = Unavailable("the experiment is moving to another server of the store", reason="STORE_MOVING")
        elif isinstance(exc, AuthenticationError | NoPermissionError):
            error = Unavailable(f"the store refuses this server: {text}", reason="STORE_REFUSED")
        elif isinstance(exc, redis.ConnectionError | redis.TimeoutError | RedisClusterException | OSError):
            error = unreachable(str(self.address), text or type(exc).__name__)
        elif "WRONGTYPE" in text:
            error = Unavailable(f"the keys of this prefix belong to another program: {text}", reason="STORE_FOREIGN")
        else:
            error = Unavailable(f"the store failed: {text or type(exc).__name__}", reason="STORE_FAILED")
        error.__cause__ = exc
        return error


class Sentinels(Sentinel):
    """Asks all Sentinels at once: one after another, those that are silent would take a timeout each."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """The first answer that names a master in force. Raises MasterNotFoundError when there is none within one timeout."""
        asking = [self._ask(sentinel) for sentinel in self.sentinels]
        faults = []
        try:
            for done in as_completed(asking, self.sentinel_kwargs["socket_timeout"]):
                if done.exception() is not None:
                    faults.append(repr(done.exception()))
                    continue
                state = done.result().get(service_name)
                if state and self.check_master_state(state, service_name):
                    return state["ip"], state["port"]
                faults.append(f"one of them knows no master {service_name!r} in force")
        except TimeoutError:
            faults.append(f"{sum(not done.done() for done in asking)} of {len(asking)} Sentinels are silent")
        raise MasterNotFoundError(f"no master found for {service_name!r}: {'; '.join(faults)}")

    def _ask(self, sentinel: redis.Redis) -> Future[dict[str, Any]]:
        """In a thread of its own, which ends with the connection's timeouts at the latest."""
        answer: Future[dict[str, Any]] = Future()

        def ask() -> None:
            try:
                answer.set_result(sentinel.sentinel_masters())
            except Exception as exc:
                answer.set_exception(exc)

        threading.Thread(target=ask, name="redis-sentinel", daemon=True).start()
        return answer


def unreachable(place: str, why: str) -> Unavailable:
    """The answer while a server cannot be asked. Whether a call that was sent to it took effect is unknown."""
    return Unavailable(f"the store at {place} cannot be reached: {why}", reason="STORE_UNREACHABLE", store=place)


def not_replicated(why: str) -> Unavailable:
    return Unavailable(f"the store cannot get it to enough replicas: {why}; sending it again is safe", reason="NOT_REPLICATED")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
