"""`allocator demo`: trains, serves, sends, shows, and sums up; within a minute from its start.

In: a seed. Out: a table that lives meanwhile (or plain lines), a summary in words, `demo.png` and the server's store
`demo.db`; an exit code.

Rounds. Requests go one by one through `Decide` to the real server; what the chosen model made of them goes back in
one report each quarter of a second; then the server plans, and describes itself. The rounds are in step with the
server (see `server.py`), so a seed fixes the models, the images and their order, every decision, weight and event,
however slow the machine is: a run that starts late sends the same requests faster. Latencies are measured and do
differ; the guardrail on them has its limit far away.

Traffic at its own pace was dropped: two runs of one seed then drain the broken candidate at different requests.
"""

from __future__ import annotations

import math
import shutil
import statistics
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np

from allocator.client import Client
from allocator.demo import table
from allocator.demo.frame import Event, Frame, events_of, frame_of
from allocator.demo.process import ServerProcess
from allocator.errors import AllocatorError, InvalidArgument
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc
from allocator.wire import spec
from allocator.wire.status import from_rpc_error

if TYPE_CHECKING:
    from allocator.demo.models import Study

LIMIT_SECONDS = 58.0  # from the call of `demo` to its return
ENDING_SECONDS = 6.0  # kept of them for stopping the server, the figure and the summary
LEAST_SECONDS = 10.0  # of traffic, however late it begins: a story without its end helps nobody
MOST_SECONDS = 3600.0
ROUND_REQUESTS = 25
ROUND_SECONDS = 0.25
CALL_SECONDS = 20.0
NEEDED = ("sklearn", "matplotlib")  # of the extra `sim`
STORE, FIGURE = "demo.db", "demo.png"
ACTOR = "demo"
WIDEST = 110  # columns of the summary


@dataclass(slots=True)
class Run:
    """What a run leaves behind. decide_seconds: how long each `Decide` took, as the caller saw it."""

    frames: list[Frame] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    decide_seconds: list[float] = field(default_factory=list)


def demo(seed: int, output: Path, seconds: float, plain: bool) -> int:
    """Run the demo. Returns the exit code: 0; 1 when the broken candidate was not caught; 130 after Ctrl-C.

    seed: 0 to 2**32 - 1. output: directory for `demo.png` and `demo.db`; made when missing, what an earlier demo left
    there is replaced. seconds: of traffic at 100 requests each, 1 to 3600. Up to 52 of them the whole demo ends
    within 60 s: where the start took long, the same requests are sent faster. (A server that needs more than 42 s to
    start breaks this.) plain: lines instead of the table, on a terminal too. Raises InvalidArgument;
    ModuleNotFoundError without the packages of the extra `sim`; AllocatorError when the server cannot start or ends by
    itself, or when `output` cannot be written.
    """
    begun = time.monotonic()
    _check(seed, seconds)
    for package in NEEDED:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _cannot_write(output, exc) from exc
    try:
        with table.screen(plain) as screen, ServerProcess(seed, output / STORE) as server:
            run = _run(seed, seconds, begun, server, screen)
        return _end(run, seed, seconds, output)
    except KeyboardInterrupt:
        print("\nstopped, and the server with it", file=sys.stderr)
        return 130


def _run(seed: int, seconds: float, begun: float, server: ServerProcess, screen: table.Screen) -> Run:
    """From the start of the server to its last answer."""
    screen.wait("starting the server and training three versions of a model")
    from allocator.demo.models import train

    study = train(seed)
    import_module("allocator.demo.figure")  # slow to import, and the server needs as long to start
    server.wait(lambda: screen.wait("waiting for the server (on a new machine it compiles its kernels first)"))
    where = f"server ready on {server.address}, metrics on http://{server.metrics}/metrics"
    screen.tell(Event(0.0, "server.ready", where))
    with _blaming(server), grpc.insecure_channel(server.address) as channel:
        operator = _Operator(channel)
        operator.begin()
        with Client(server.address, decide_timeout=CALL_SECONDS, report_timeout=CALL_SECONDS) as client:
            return _send(seed, seconds, begun, study, server, operator, client, screen)


def _send(
    seed: int,
    seconds: float,
    begun: float,
    study: Study,
    server: ServerProcess,
    operator: _Operator,
    client: Client,
    screen: table.Screen,
) -> Run:
    """The traffic, round by round."""
    run = Run([frame_of(operator.describe(), 0.0, 0)])
    chance = np.random.default_rng(seed)
    rounds = math.ceil(seconds / ROUND_SECONDS)
    screen.show(run.frames[0])
    start = time.monotonic()
    end = _end_of_traffic(seconds, begun, start)
    pause = min(seconds, end - start) / (rounds * ROUND_REQUESTS)
    for number in range(rounds):
        if time.monotonic() > end:
            break
        served = number * ROUND_REQUESTS
        reports = []
        for index in chance.integers(len(study.labels), size=ROUND_REQUESTS):
            time.sleep(max(0.0, start + served * pause - time.monotonic()))
            reports.append(_serve(study, client, operator.name, f"visitor-{served:06d}", int(index), run))
            served += 1
        refused = [answer for answer in client.report_many(reports) if answer.status != "ACCEPTED"]
        if refused:
            raise AllocatorError(f"the server did not count an outcome: {refused[0]}", reason="NOT_COUNTED")
        server.step(ROUND_SECONDS)
        frame = frame_of(operator.describe(), (number + 1) * ROUND_SECONDS, served)
        run.frames.append(frame)
        for event in events_of(operator.new_records(), frame):
            run.events.append(event)
            screen.tell(event)
        screen.show(frame)
    return run


def _end_of_traffic(seconds: float, begun: float, now: float) -> float:
    """When to stop sending (monotonic seconds), so that the whole demo keeps its limit if it can."""
    if seconds > LIMIT_SECONDS - ENDING_SECONDS:
        return math.inf
    return max(begun + LIMIT_SECONDS - ENDING_SECONDS, now + min(seconds, LEAST_SECONDS))


def _serve(
    study: Study, client: Client, experiment: str, visitor: str, index: int, run: Run
) -> tuple[str, float, dict[str, float]]:
    """One request: decide, run the version that was chosen, and say what came of it."""
    asked = time.perf_counter()
    decision = client.decide(experiment, visitor)
    decided = time.perf_counter()
    if not decision.id:
        raise AllocatorError("the server does not answer any more", reason="NO_ANSWER")
    right, failed = study.attempt(decision.arm, index)
    milliseconds = (time.perf_counter() - decided) * 1000
    run.decide_seconds.append(decided - asked)
    return decision.id, float(right), {"error": float(failed), "latency_ms": min(milliseconds, 10_000.0)}


def _end(run: Run, seed: int, seconds: float, output: Path) -> int:
    """Figure, summary, exit code."""
    from allocator.demo import figure, story

    title = f"allocator demo, seed {seed}: {story.title(run.frames, run.events)}"
    try:
        figure.draw(run.frames, run.events, output / FIGURE, title)
    except OSError as exc:
        raise _cannot_write(output / FIGURE, exc) from exc
    told = story.summary(run.frames, run.events)
    if run.frames[-1].seconds < seconds:
        told.append(f"The start took long, so only {run.frames[-1].seconds:g} of {seconds:g} s of traffic were sent.")
    milliseconds = statistics.median(run.decide_seconds) * 1000
    told.append(f"A decision took {milliseconds:.1f} ms in the median, to the server and back.")
    told.append(f"With --seed {seed} all of this comes again, except for times that were measured.")
    width = min(shutil.get_terminal_size().columns, WIDEST)
    for line in told:
        print(textwrap.fill(line, width, initial_indent="\n" if line is told[0] else "", break_long_words=False))
    print()
    for line in story.next_steps(run.frames[-1], output / FIGURE, output / STORE):
        print(line)
    return 0 if story.caught(run.frames) else 1


class _Operator:
    """What the demo asks as an operator would."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = operator_grpc.OperatorServiceStub(channel)
        self._page_token = ""
        self.name = ""

    def begin(self) -> None:
        """Apply the demo's spec and start the experiment."""
        source = resources.files("allocator.demo") / "spec.yaml"
        message = spec.load(source.read_bytes(), source.name)[0].message
        self.name = message.metadata.name
        applying = operator_pb.ApplyExperimentRequest(experiment=message, actor=ACTOR, reason="to show how it works")
        self._stub.ApplyExperiment(applying, timeout=CALL_SECONDS)
        starting = operator_pb.StartExperimentRequest(experiment=self.name, actor=ACTOR, reason="to show how it works")
        self._stub.StartExperiment(starting, timeout=CALL_SECONDS)

    def describe(self) -> operator_pb.DescribeExperimentResponse:
        """The experiment as of now."""
        return self._stub.DescribeExperiment(
            operator_pb.DescribeExperimentRequest(experiment=self.name), timeout=CALL_SECONDS
        )

    def new_records(self) -> list[operator_pb.AuditRecord]:
        """Audit records since the last call."""
        request = operator_pb.ListAuditRecordsRequest(experiment=self.name, page_token=self._page_token)
        records = list(self._stub.ListAuditRecords(request, timeout=CALL_SECONDS).records)
        if records:
            self._page_token = str(records[-1].sequence)
        return records


@contextmanager
def _blaming(server: ServerProcess) -> Iterator[None]:
    """Where a call failed because the server has ended, say so instead."""
    try:
        yield
    except AllocatorError:
        server.check(patience=1.0)
        raise
    except grpc.RpcError as exc:
        server.check(patience=1.0)
        raise from_rpc_error(exc) from exc


def _check(seed: int, seconds: float) -> None:
    if not 0 <= seed < 2**32:
        raise InvalidArgument.of_field("seed", f"got {seed}; a whole number from 0 to {2**32 - 1} is allowed")
    if not 1 <= seconds <= MOST_SECONDS:
        raise InvalidArgument.of_field("seconds", f"got {seconds}; a number from 1 to {MOST_SECONDS:g} is allowed")


def _cannot_write(path: Path, exc: OSError) -> AllocatorError:
    return AllocatorError(f"{path} cannot be written: {exc.strerror}", reason="CANNOT_WRITE", path=path)
