"""A real server that the command line talks to, one that answers what a test wants, and the command line itself."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from allocator.cli import app
from tests.processes import served

ALLOCATOR = (sys.executable, "-m", "allocator")
SPEC = """\
apiVersion: allocator/v1
kind: Experiment
metadata:
  name: {name}
  labels: {{team: search}}
spec:
  owner: search-ml
  arms:
    - {{name: a, incumbent: true}}
    - {{name: b}}
  reward: {{metric: click, window: 60s}}
  exposure: {{total: 0.5}}
  guardrails:
    - {{name: errors, metric: error, max: 0.05}}
  ramp:
    - {{cap: 0, shadow: true}}
    - {{cap: 0.1, approvals: 2}}
    - {{cap: 0.5, approvals: 2}}
"""


@dataclass(frozen=True)
class RealServer:
    """`allocator serve`, in a process of its own."""

    address: str
    store: Path
    process: subprocess.Popen[str]
    ready: dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    out: str
    err: str
    code: int


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    store = tmp_path_factory.mktemp("store") / "allocator.db"
    with served(f"sqlite:{store}", "--drain", "0", "--grace", "0") as started:
        yield RealServer(started.address, store, started.process, started.ready)
        started.stop()


@pytest.fixture
def run(server: RealServer) -> Callable[..., Said]:
    """Runs the command line inside this process, against the real server."""
    return lambda *arguments, **more: said(*arguments, server=server.address, **more)


def said(*arguments: str, server: str = "127.0.0.1:1", stdin: str | None = None, **env: str) -> Said:
    """The command line run inside this process."""
    environment = {"ALLOCATOR_SERVER": server, "ALLOCATOR_ACTOR": "tess", "COLUMNS": "80", "NO_COLOR": None, **env}
    result = CliRunner().invoke(app, list(arguments), input=stdin, env=environment, prog_name="allocator")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.stdout, result.stderr, result.exit_code)


NUMBERS = itertools.count(1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Writes a spec file with an experiment of its own: (path, name). Keywords replace text in it."""

    def write(text: str = SPEC, replace: tuple[str, str] = ("", "")) -> tuple[str, str]:
        name = f"x{next(NUMBERS)}"
        path = tmp_path / f"{name}.yaml"
        path.write_text(text.format(name=name).replace(*replace))
        return str(path), name

    return write


@pytest.fixture
def started(run: Callable[..., Said], write: Callable[..., tuple[str, str]]) -> str:
    """The name of an experiment that is in the shadow stage of its ramp."""
    path, name = write()
    assert run("apply", "-f", path).code == 0
    assert run("start", name).code == 0
    return name


class _Answering(grpc.GenericRpcHandler):
    def __init__(self, answer: Callable[[str, bytes, grpc.ServicerContext], bytes]) -> None:
        self._answer = answer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = handler_call_details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._answer(method, request, context))


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Starts a server that answers every call with what `answer(method, request, context)` returns: its address."""
    servers = []

    def start(answer: Callable[[str, bytes, grpc.ServicerContext], bytes] | None) -> str:
        made = grpc.server(ThreadPoolExecutor(2))
        if answer is not None:
            made.add_generic_rpc_handlers((_Answering(answer),))
        port = made.add_insecure_port("127.0.0.1:0")
        made.start()
        servers.append(made)
        return f"127.0.0.1:{port}"

    yield start
    for made in servers:
        made.stop(0)
