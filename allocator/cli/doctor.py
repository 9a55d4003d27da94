"""`allocator doctor`: is everything as it should be, here and on the server?

In: an address, and a store file if one is named. Out: a row for each thing looked at, with what to do where it is not well; exit
code 1 when something fails. It looks and changes nothing: no file is written, no experiment touched.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any

import typer

from allocator.cli.connection import DEFAULT_SERVER, Operator, OutputView, Server, Timeout
from allocator.cli.failures import hint_of
from allocator.cli.output import Column, Grid, View, draw, say_values
from allocator.errors import AllocatorError, PermissionDenied

FILES = 4096  # that may be open at once: every connection is one
FREE_BYTES = 1 << 30
SLOW_SECONDS = 0.25
WAL_RACE_FIXED = (3, 51, 3)
NEEDED = ("numpy", "numba", "grpcio", "protobuf", "redis", "prometheus-client", "uvloop", "typer", "ruamel.yaml", "structlog", "msgspec")
EXTRA = {"scipy": "scipy", "scikit-learn": "sklearn", "matplotlib": "matplotlib", "pyarrow": "pyarrow", "joblib": "joblib"}


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. hint: what to do, "" when all is well."""

    what: str
    state: State
    found: str
    hint: str = ""


def doctor(
    store: Annotated[
        str,
        typer.Option(
            "--store", metavar="sqlite:PATH", envvar="ALLOCATOR_STORE", help="A store file to look at as well.", show_default=False
        ),
    ] = "",
    output: OutputView = View.TABLE,
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = 10.0,
) -> None:
    """Look for what is wrong with this machine, the store file and the server, and say what to do."""
    found = [*machine(), *(store_file(store) if store else ()), *_server(server, timeout)]
    if output is not View.TABLE:
        say_values(output, [asdict(finding) for finding in found], one=False)
    else:
        from rich.text import Text

        style = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}
        columns = (Column("what"), Column(""), Column("found", text=True), Column("do", text=True))
        draw([Grid(columns, [(f.what, Text(f.state, style[f.state]), f.found, f.hint) for f in found])])
    failed = [finding.what for finding in found if finding.state is State.FAIL]
    if failed:
        raise AllocatorError(f"not well: {', '.join(failed)}", reason="DOCTOR")


def machine() -> Iterator[Finding]:
    """This interpreter, its packages, and what the system allows it."""
    import resource

    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(
        "python",
        State.OK if sys.version_info >= (3, 11) else State.FAIL,
        version,
        "" if sys.version_info >= (3, 11) else "3.11 or newer is needed",
    )
    missing = [name for name in NEEDED if _version(name) is None]
    versions = ", ".join(f"{name} {_version(name)}" for name in ("grpcio", "protobuf", "numba") if name not in missing)
    yield Finding(
        "packages",
        State.FAIL if missing else State.OK,
        f"missing: {', '.join(missing)}" if missing else versions,
        "pip install ." if missing else "",
    )
    absent = [name for name, module in EXTRA.items() if util.find_spec(module) is None]
    yield Finding(
        "extra packages",
        State.WARN if absent else State.OK,
        f"missing: {', '.join(absent)}" if absent else "all there",
        "pip install '.[sim]' for the demo, simulation and reports" if absent else "",
    )
    cache = Path(os.environ.get("NUMBA_CACHE_DIR") or _kernels())
    kept = os.access(cache, os.W_OK) or any(cache.rglob("*.nbi"))
    yield Finding(
        "kernel cache",
        State.OK if kept else State.WARN,
        str(cache) if kept else f"{cache} cannot be written",
        "" if kept else "set NUMBA_CACHE_DIR to a directory that the server may write, or every start compiles for half a minute",
    )
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Finding(
        "open files",
        State.OK if files >= FILES else State.WARN,
        f"{files} allowed",
        "" if files >= FILES else f"ulimit -n {FILES}: every connection is one",
    )
    fixed = sqlite3.sqlite_version_info >= WAL_RACE_FIXED
    yield Finding(
        "sqlite", State.OK, f"{sqlite3.sqlite_version}{'' if fixed else '; one connection writes, so its WAL race cannot happen'}"
    )


def store_file(address: str) -> Iterator[Finding]:
    """A store file as it lies on the disk. It is read only, beside the server that may have it open."""
    kind, _, name = address.partition(":")
    if kind != "sqlite" or not name:
        return
    path = Path(name)
    if not path.exists():
        yield Finding("store file", State.WARN, f"{path} does not exist", "a server makes it when it starts; is this its directory?")
        return
    usage = os.statvfs(path.parent or Path())
    free = usage.f_bavail * usage.f_frsize
    yield Finding(
        "disk",
        State.OK if free >= FREE_BYTES else State.WARN,
        f"{free / 1e9:.1f} GB free",
        "" if free >= FREE_BYTES else "make room: a full disk refuses outcomes",
    )
    try:
        with sqlite3.connect(f"file:{path.resolve()}?mode=ro", uri=True) as connection:
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        connection.close()
    except sqlite3.Error as error:
        answer = str(error)
    yield Finding(
        "store file",
        State.OK if answer == "ok" else State.FAIL,
        f"{path.stat().st_size / 1e6:.1f} MB, {'intact' if answer == 'ok' else answer}",
        "" if answer == "ok" else "restore a backup with `allocator db restore`; do not start a server on it",
    )


def _server(address: str, timeout: float) -> Iterator[Finding]:
    from allocator.v1 import operator_service_pb2 as pb

    with Operator(address, timeout) as operator:
        try:
            seconds, experiments = _timed(lambda: operator.pages("ListExperiments", pb.ListExperimentsRequest(), "experiments"))
        except AllocatorError as error:
            answers = isinstance(error, PermissionDenied)
            found = f"{address} answers: {error.message}" if answers else error.message
            yield Finding("server", State.WARN if answers else State.FAIL, found, hint_of(error))
            return
        slow = seconds > SLOW_SECONDS
        found = f"{address} answers, {1000 * seconds:.0f} ms"
        yield Finding("server", State.WARN if slow else State.OK, found, "it is busy or far away" if slow else "")
        yield _audit(operator)
    yield from _experiments(experiments)


def _audit(operator: Operator) -> Finding:
    """The chain runs through the records of every namespace, so not everybody who may look at experiments may verify it."""
    from allocator.v1 import operator_service_pb2 as pb

    try:
        audit = operator.call("VerifyAuditRecords", pb.VerifyAuditRecordsRequest())
    except PermissionDenied:
        needed = "a token with view in every namespace (`--namespace '*'`) may: `allocator audit verify`, from a schedule"
        return Finding("audit", State.WARN, "not verified: this token may not look at every namespace", needed)
    except AllocatorError as error:
        return Finding("audit", State.FAIL, error.message, hint_of(error))
    return Finding(
        "audit",
        State.OK if audit.intact else State.FAIL,
        f"{audit.records} records, {'intact' if audit.intact else f'record {audit.first_broken} does not fit'}",
        "" if audit.intact else "somebody changed the store: compare with the last checkpoint and a backup",
    )


def _experiments(found: list[Any]) -> Iterator[Finding]:
    from allocator.cli import tables

    states = [tables.state(e) for e in found]
    frozen = [tables.full_name(e) for e, state in zip(found, states, strict=True) if state == "FROZEN"]
    orphans = [tables.full_name(e) for e, state in zip(found, states, strict=True) if state in ("RUNNING", "FROZEN") and not e.spec.owner]
    bare = [tables.full_name(e) for e, state in zip(found, states, strict=True) if state == "RUNNING" and not e.spec.guardrails]
    yield Finding("experiments", State.OK, f"{len(found)}, {states.count('RUNNING')} running")
    for what, names, hint in (
        ("frozen", frozen, "`allocator describe NAME` says why; resume or roll back"),
        ("without owner", orphans, "write spec.owner: somebody must answer for it"),
        ("without guardrail", bare, "nothing but a person stops a candidate there; write spec.guardrails"),
    ):
        if names:
            yield Finding(what, State.WARN, f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}", hint)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = call()
    return time.perf_counter() - started, answer


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _kernels() -> Path:
    """Where the compiled kernels lie when no other directory is named: beside their source."""
    found = util.find_spec("allocator")
    assert found is not None, "this is it"
    assert found.origin is not None, "it has an __init__"
    return Path(found.origin).parent / "core" / "kernels"
