"""The line to Redis: which server a call goes to, how long it may take, what is done when it fails.

In: calls of scripts and commands, each with the key that says where it belongs. Out: an answer for each, or the `AllocatorError` that says
what went wrong with it. The calls that go to one server travel together, in order, and with `wait` a WAIT behind them: it covers all that
was written before it.

No call is sent twice where that could matter: redis-py's own retries are off, since a reply that was lost tells nothing. What is sent again
at once is what a server refused without carrying it out: an unknown script, a slot that lives elsewhere. After a failure the server is left
alone: calls to it fail at once, with what was wrong, while a breaker is open; one at a time finds out whether it is back, after growing,
jittered pauses. A server that evicts keys is refused before it is used: it is looked at on every new connection, since another may answer
by then (redis-py connects again by itself, and says nothing), and every few seconds, since a person may have changed it.

Scripts that free memory, or write little, or must get through (saves, terms) are flagged `allow-oom`: a full server carries them out. Redis
before 7 knows no flags, and gets these scripts without.

Dropped: a command pipeline over a Cluster by redis-py (its retries are its own, and WAIT has no key).
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
INSPECT_SECONDS = 5.0  # between two looks at how a server is set
LOOK = ["CONFIG GET maxmemory-policy", "CONFIG GET appendonly", "INFO server", "INFO memory", "INFO persistence"]
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


def read_scripts(*, flagged: bool = True) -> dict[str, bytes]:
    """The scripts of `lua/` by name, each with the helpers before it. flagged: with their first line of flags, where they have one."""
    files = {file.name[:-4]: file.read_bytes() for file in (resources.files(__package__) / "lua").iterdir() if file.name.endswith(".lua")}
    helpers = files.pop("_common")
    found = {}
    for name, text in files.items():
        flags, _, rest = text.partition(b"\n") if text.startswith(b"#!") else (b"", b"", text)
        found[name] = b"\n".join([flags, helpers, rest] if flags and flagged else [helpers, rest])
    return found


class Breaker:
    """Keeps calls from what failed, but for one at a time that finds out whether it is back.

    refusal: makes the error of the others, where `fail` was given nothing better to say.
    """

    def __init__(self, refusal: Callable[[], Unavailable]) -> None:
        self._refusal = refusal
        self._why: AllocatorError | None = None
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
                why = self._why  # not raised itself: raising an error leaves marks on it
                raise self._refusal() if why is None else type(why)(why.message, reason=why.reason, **why.metadata)
            self._probing = threading.get_ident()

    def succeed(self) -> bool:
        """Returns whether this closed the breaker."""
        if not self._failures:
            return False
        with self._lock:
            closed, self._failures = self._failures > 0, 0
            self._probing = None
        return closed

    def fail(self, why: AllocatorError | None = None) -> None:
        """why: what those are told who are kept away meanwhile."""
        with self._lock:
            if self._failures and self._probing != threading.get_ident():
                return  # one of many that were under way
            self._probing, self._why = None, why
            self._failures = min(self._failures + 1, 16)
            least, most = PAUSE_SECONDS
            self._until = time.monotonic() + min(most, least * 2**self._failures) * random.uniform(0.5, 1.0)


class Link:
    """Connections to the servers of an `Address`; any thread may use it. Nothing is connected before the first call.

    outages: grows each time that a server came back after it had failed, or is another process than it was: it may know less.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.outages = 0
        self._scripts = _named(read_scripts())
        self._plain = _named(read_scripts(flagged=False))
        self._old: set[str] = set()  # places that know no flags of scripts
        self._lock = threading.Lock()  # of the breakers
        self._mapping = threading.Lock()
        self._breakers: dict[str, Breaker] = {}
        self._replicas: dict[str, Breaker] = {}
        self._inspected: dict[str, float] = {}  # places, and when
        self._processes: dict[str, str] = {}  # of places, as they name themselves
        self._warned: set[str] = set()
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

    def look_again(self) -> None:
        """Have the next call inspect a server whose inspection is some seconds old. For callers whom nobody waits for."""
        for place, at in list(self._inspected.items()):
            if time.monotonic() - at >= INSPECT_SECONDS:
                self._inspected.pop(place, None)

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
            except Exception as exc:
                breaker.fail(self._told(exc))
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
                "redis_connect_func": None,
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
            "redis_connect_func": self._greet,
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
                self._inspect_again(place, client)
            answers = self._exchange(place, client, calls, replicas)
            for answer in answers:
                if isinstance(answer, _UNFIT):
                    raise answer
        except AllocatorError as exc:  # it answers, and is not to be used
            breaker.fail(exc)
            return [exc] * len(calls)
        except Exception as exc:
            breaker.fail(self._told(exc))
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

    def _exchange(self, place: str, client: redis.Redis, calls: Sequence[Call], replicas: Breaker | None) -> list[Answer]:
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
                    pipe.execute_command(*self._words(call, place))
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
            self._load(place, client)
        for index, answer in enumerate(answers):
            if isinstance(answer, AskError) and not isinstance(answer, MovedError):
                answers[index] = self._ask_there(answer, calls[index])
        return answers

    def _load(self, place: str, client: redis.Redis) -> None:
        """Tell a server the scripts: with their flags, or without where it does not know such a thing."""
        with client.pipeline(transaction=False) as pipe:
            for _, text in self._scripts.values():
                pipe.execute_command("SCRIPT LOAD", text)
            answers = pipe.execute(raise_on_error=False)
        wrong = [answer for answer in answers if isinstance(answer, Exception)]
        if not wrong:
            return
        if not all(isinstance(answer, redis.ResponseError) for answer in wrong):
            raise wrong[0]
        with client.pipeline(transaction=False) as pipe:
            for _, text in self._plain.values():
                pipe.execute_command("SCRIPT LOAD", text)
            pipe.execute()
        self._old.add(place)

    def _script(self, name: str, place: str) -> tuple[str, bytes]:
        return (self._plain if place in self._old else self._scripts)[name]

    def _ask_there(self, ask: AskError, call: Call) -> Answer:
        """The answer of the server to which a slot is moving."""
        node = self._cluster.nodes_manager.get_node(ask.host, ask.port)
        if node is None:
            self._stale = True
            return unreachable(f"{ask.host}:{ask.port}", "a slot moves to it, and it is not on the map yet")
        with self._cluster.get_redis_connection(node).pipeline(transaction=False) as pipe:
            pipe.execute_command("ASKING")
            words = self._words(call, node.name)
            if words[0] == "EVALSHA":  # it may not know the script
                words = ["EVAL", self._script(call.what, node.name)[1], *words[2:]]
            pipe.execute_command(*words)
            return pipe.execute(raise_on_error=False)[1]

    def _words(self, call: Call, place: str) -> list[Any]:
        if call.what.isupper():
            return [call.what, *call.keys, *call.arguments]
        return ["EVALSHA", self._script(call.what, place)[0], len(call.keys), *call.keys, *call.arguments]

    def _greet(self, connection: Any) -> None:
        """A connection was made, and nothing was sent on it yet. Raises Unavailable for a server that is not to be used."""
        if self.address.kind == CLUSTER:  # whose client has said who we are
            self._inspect(f"{connection.host}:{connection.port}", connection)
        else:
            connection.on_connect()
            self._inspect(str(self.address), connection)

    def _inspect(self, place: str, connection: Any) -> None:
        """Raise Unavailable for a server that evicts keys; warn of one that keeps nothing on disk. Notices another process."""
        try:
            for words in LOOK:
                connection.send_command(*words.split(), check_health=False)
            policy, append, server, memory, persistence = (_settings(connection) for _ in LOOK)
            self._judge(place, policy | memory, append | persistence)
        except BaseException:
            connection.disconnect()
            raise
        process = server.get("run_id", "")
        if self._processes.setdefault(place, process) != process:
            self._processes[place] = process
            self._old.discard(place)
            self.outages += 1
            log.info("%s is another process than it was", place)
        self._inspected[place] = time.monotonic()

    def _inspect_again(self, place: str, client: redis.Redis) -> None:
        connection = client.connection_pool.get_connection()
        try:
            if place not in self._inspected:  # else the connection was new
                self._inspect(place, connection)
        finally:
            client.connection_pool.release(connection)

    def _judge(self, place: str, memory: Mapping[str, str], persistence: Mapping[str, str]) -> None:
        found = memory.get("maxmemory-policy") or memory.get("maxmemory_policy", "")
        if found and found != "noeviction":
            raise Unavailable(
                f"{place} has the maxmemory-policy {found}: it would drop counts and freezes when memory runs low; set noeviction",
                reason="STORE_EVICTS",
                policy=found,
            )
        if not found:
            self._warn(f"{place} does not tell its maxmemory-policy; make sure that it is noeviction")
        kept = persistence.get("appendonly") or ("yes" if persistence.get("aof_enabled") == "1" else "no")
        if kept != "yes":
            self._warn(f"{place} does not append to a file (appendonly {kept}): what was acknowledged is lost with its process")

    def _warn(self, text: str) -> None:
        """Once."""
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

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
        if isinstance(exc.__cause__, AllocatorError):  # a Cluster's client says that none of its nodes would have it
            return exc.__cause__
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


def _named(scripts: Mapping[str, bytes]) -> dict[str, tuple[str, bytes]]:
    """With the digest by which a server knows each."""
    return {name: (hashlib.sha1(text, usedforsecurity=False).hexdigest(), text) for name, text in scripts.items()}


def _settings(connection: Any) -> dict[str, str]:
    """The next answer on a connection, to CONFIG GET or INFO: names and values. Nothing where that is forbidden."""
    try:
        answer = connection.read_response()
    except redis.ResponseError as exc:
        if isinstance(exc, redis.ConnectionError):  # it is loading, say
            raise
        return {}
    if isinstance(answer, bytes):
        return dict(line.split(":", 1) for line in answer.decode().splitlines() if ":" in line)
    words = [_text(word) for word in answer]
    return dict(zip(words[::2], words[1::2], strict=True))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
