"""`allocator replay`: one decision again, from the decision log, and why it was what it was.

In: a decision id, a log, and where the log does not know the request, its unit. Out: the steps, and exit code 1 when what follows from the
snapshot is not what the id says. Only a server can tell whether an id is genuine and where a unit falls: it has the key and the salt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from allocator.cli.connection import Operator, OutputView, Timeout
from allocator.cli.output import View, say, say_values
from allocator.errors import AllocatorError, InvalidArgument, NotFound

Log = Annotated[
    Path,
    typer.Option("--log", metavar="DIR", envvar="ALLOCATOR_DECISION_LOG", help="The decision log.", exists=True, file_okay=False),
]


def replay(
    decision_id: Annotated[str, typer.Argument(metavar="DECISION_ID", help="As the decision's answer had it.", show_default=False)],
    log: Log,
    unit: Annotated[str, typer.Option("--unit", help="Whose decision it was, where the log lacks it.", show_default=False)] = "",
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", metavar="NAME=VALUE", help="Of the request. May be repeated.", show_default=False)
    ] = None,
    server: Annotated[
        str, typer.Option("--server", metavar="HOST:PORT", help="Ask it whether the id is genuine.", show_default="nobody")
    ] = "",
    output: OutputView = View.TABLE,
    timeout: Timeout = 10.0,
) -> None:
    """Decide once more, from the log, and say why step by step."""
    from google.protobuf.json_format import Parse

    from allocator.analysis import decision_log
    from allocator.analysis.replay import Request, claims
    from allocator.analysis.replay import replay as again
    from allocator.v1 import allocator_pb2 as pb
    from allocator.wire.snapshots import entry_from_message

    decision = claims(decision_id)
    told = _ask(server, timeout, decision_id, unit)
    document = decision_log.snapshot(log, decision.uid.hex(), decision.version)
    if document is None:
        raise NotFound(
            f"version {decision.version} of experiment {decision.uid.hex()} is not in the log at {log}: another server decided, or the day"
            " has been removed",
            reason="NOT_IN_THE_LOG",
        )
    entry = entry_from_message(Parse(document, pb.SnapshotEntry()))
    row = decision_log.find(log, decision_id)
    hashed = told.unit_hash if told is not None else ""
    if row is not None and hashed and row["unit_hash"] != hashed:
        raise InvalidArgument.of_field("--unit", "got another unit than the one that this decision was made for")
    request = Request(
        unit_hash=row["unit_hash"] if row is not None else hashed,
        slot=row["slot"] if row is not None else told.slot if told is not None and told.HasField("slot") else None,
        attributes=_pairs(attribute) if attribute else None,
        reason=row["reason"] if row is not None else "",
    )
    genuine = "not checked: name a --server" if told is None else f"genuine: {server} made it"
    steps = [
        f"the id is {genuine}",
        f"{entry.experiment}, version {entry.version}, stage {entry.stage}, {entry.state}, decided at {_time(decision.seconds)}",
        "in the log" if row is not None else "not in the log: replayed from what was given",
    ]
    found = again(entry, decision, request)
    steps += found.steps
    if output is View.TABLE:
        for step in steps:
            say(step)
    else:
        say_values(output, [{
            "decisionId": decision_id, "experiment": entry.experiment, "snapshotVersion": entry.version, "arm": found.arm,
            "propensity": found.slots / 65_536, "reason": found.reason.name, "agrees": found.agrees, "genuine": told is not None,
            "steps": steps,
        }], one=True)  # fmt: skip
    if not found.agrees:
        raise AllocatorError("the decision cannot be explained by the snapshot that it names", reason="REPLAY_DIFFERS")


def _ask(server: str, timeout: float, decision_id: str, unit: str) -> Any:
    """What the server says of the id, or None when there is none to ask."""
    from allocator.v1 import operator_service_pb2 as service_pb

    if not server:
        if unit:
            raise InvalidArgument.of_field("--unit", "only a server can tell where a unit falls; name it with --server")
        return None
    with Operator(server, timeout) as operator:
        return operator.call("ReadDecision", service_pb.ReadDecisionRequest(decision_id=decision_id, unit=unit))


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in given]
    if not all(name and equals for name, equals, _ in pairs):
        raise InvalidArgument.of_field("--attribute", f"got {', '.join(given)}; name=value is allowed")
    return {name: value for name, _, value in pairs}


def _time(seconds: float) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")
