"""What people and callers send reaches no log, table, sheet, label or page as anything but text; units and tokens reach none at all.

A real `allocator serve` in a process of its own, with logs for machines and for people.
"""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from ruamel.yaml import YAML

from allocator.cli.audit import guarded
from allocator.client.channel import Access, channel
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import allocator_service_pb2 as service_pb
from allocator.v1 import allocator_service_pb2_grpc as service_grpc
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.v1 import operator_service_pb2_grpc as operator_grpc
from tests.cli.conftest import said
from tests.processes import Server

ALLOCATOR = (sys.executable, "-m", "allocator")
FORGED = '{"event": "forged"}'
TRIES = {
    "newline": f"a\r\n{FORGED}\n2026-01-01 [info] forged",
    "ansi": "a\x1b[2J\x1b]0;owned\x07\x9b31mb",
    "html": "</script><script>alert(1)</script><img src=x onerror=alert(1)>",
    "formula": '=cmd|"/c calc"!A1',
    "label": 'a"} 1\nallocator_forged{x="',
    "bidi": "a\u202egnp.exe\u2066\u200b",
    "separators": "a\u2028b\u2029c\x85d\x0be",
}
UNIT = "marker-unit-7f3a9c"


@dataclass
class Process:
    """A server, and what it logs."""

    folder: Path
    log_format: str
    token: str = ""

    def __enter__(self):
        store = f"sqlite:{self.folder / 'a.db'}"
        create = [*ALLOCATOR, "token", "create", "root", "--role", "admin", "-n", "*", "--store", store]
        made = subprocess.run(create, capture_output=True, text=True, check=True)
        self.token = made.stdout.strip()
        assert self.token not in made.stderr
        flags = ("--access", "tokens", "--drain", "0", "--decision-log", str(self.folder / "log"))
        self.server = Server(store, *flags, log_format=self.log_format)
        self.address, self.metrics = self.server.address, self.server.metrics
        self.channel = channel(self.address, Access(token=self.token))
        self.access = Access(token=self.token).metadata()
        self.operator = operator_grpc.OperatorServiceStub(self.channel)
        self.allocator = service_grpc.AllocatorServiceStub(self.channel)
        return self

    def ask(self, stub, method: str, request, metadata=()):
        """A call; its error's text is an answer too."""
        try:
            return getattr(stub, method)(request, metadata=(*self.access, *metadata), timeout=30)
        except grpc.RpcError as error:
            return error

    def run(self, *arguments: str):
        """A command of the command line."""
        return said(*arguments, server=self.address, ALLOCATOR_TOKEN=self.token)

    def stop(self) -> str:
        """End it; everything that it logged."""
        if self.server.process.poll() is None:
            self.channel.close()
            self.server.stop()
        return "".join(self.server.log)

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            self.server.kill()


@pytest.fixture(scope="module", params=["json", "pretty"])
def attacked(request, tmp_path_factory):
    """A server that was sent every try in every free-text field that there is."""
    with Process(tmp_path_factory.mktemp("served"), request.param) as process:
        for number, text in enumerate(TRIES.values()):
            attack(process, f"x{number}", text)
        yield process


def attack(process: Process, name: str, text: str) -> None:
    experiment = pb.Experiment(api_version="allocator/v1", kind="Experiment")
    experiment.metadata.name = name
    experiment.metadata.labels[text[:63]] = text[:63]
    spec = experiment.spec
    spec.owner, spec.hypothesis = text, text
    spec.lineage[text] = text
    spec.arms.add(name="a", incumbent=True, model_uri=text)
    spec.arms.add(name="b", model_uri=text)
    spec.reward.metric = "click"
    spec.approval.required = 1
    spec.opt_out.attribute = text
    spec.pins[text] = "a"
    for segment in (spec.segments.add(name="s").match[text], spec.target.match[text]):
        segment.extend([text])
    ask, operator = process.ask, process.operator
    ask(operator, "ApplyExperiment", operator_pb.ApplyExperimentRequest(experiment=experiment, reason=text, actor=text, request_id=text))
    ask(operator, "StartExperiment", operator_pb.StartExperimentRequest(experiment=name, reason=text, break_glass=True))
    ask(operator, "FreezeExperiment", operator_pb.FreezeExperimentRequest(experiment=name, reason=text))
    ask(operator, "ResumeExperiment", operator_pb.ResumeExperimentRequest(experiment=name, reason=text, break_glass=True))
    ask(operator, "AnnotateExperiment", operator_pb.AnnotateExperimentRequest(experiment=name, text=text))
    ask(operator, "RejectProposal", operator_pb.RejectProposalRequest(experiment=name, reason=text, revision=text))
    ask(operator, "ApproveExperiment", operator_pb.ApproveExperimentRequest(experiment=name, reason=text, revision=text))
    ask(operator, "ListExperiments", operator_pb.ListExperimentsRequest(namespace=text, selector=text, page_token=text))
    ask(operator, "CreateToken", operator_pb.CreateTokenRequest(principal=text, roles=[1], namespaces=[text], reason=text))
    ask(operator, "CreateToken", operator_pb.CreateTokenRequest(principal=clean(text), roles=[1], namespaces=["default"], reason=text))
    ask(operator, "RevokeToken", operator_pb.RevokeTokenRequest(id=text, reason=text))
    for wrong in (text, f"{text}/{text}", f"default/{name}"):
        for verb in ("Get", "Describe"):
            ask(operator, f"{verb}Experiment", getattr(operator_pb, f"{verb}ExperimentRequest")(experiment=wrong))
        ask(process.allocator, "Decide", service_pb.DecideRequest(experiment=wrong, unit=text, attributes={text: text}))
    report = service_pb.ReportOutcomesRequest(request_id=text)
    report.outcomes.add(decision_id=text).metrics[text] = 1.0
    ask(process.allocator, "ReportOutcomes", report, [("traceparent", clean(text).encode("ascii", "ignore").decode())])


def clean(text: str) -> str:
    return "".join(character for character in text if character.isprintable())


def assert_plain(text: str) -> None:
    """Only what can be printed, and line ends."""
    assert [character for character in text if not (character.isprintable() or character == "\n")] == []


def test_every_log_line_is_one_event_of_ours(attacked):
    text = "".join(attacked.server.log)
    assert_plain(text)
    assert "break_glass" in text, "the attack was logged at all"
    for line in text.splitlines():
        if attacked.log_format == "json":
            assert json.loads(line)["event"] != "forged"
        else:
            assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[\w+ *\] ", line), line
            assert not line.startswith("2026-01-01")


COMMANDS = [
    *(("get",), ("audit", "list"), ("token", "list")),
    *((verb, f"x{number}") for number in range(len(TRIES)) for verb in ("describe", "revisions", "status", "report")),
]


TABLES = [*COMMANDS, *((*command, "-o", "wide") for command in COMMANDS if command[0] != "report")]


@pytest.mark.parametrize("command", TABLES, ids=" ".join)
def test_no_table_holds_what_could_steer_a_terminal(attacked, command):
    told = attacked.run(*command)
    assert told.code == 0, told
    assert_plain(told.out + told.err)
    assert not any(line.startswith((FORGED, "2026-01-01 [info]")) for line in told.out.splitlines())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_document_says_all_that_was_written_and_holds_no_character_that_acts(attacked, command):
    told = {kind: attacked.run(*command, "-o", kind) for kind in ("json", "yaml")}
    for kind, each in told.items():
        assert each.code == 0, each
        assert_plain(each.out)
        # a line of a document begins with its own words: text that goes on stands further in, inside of its quotes
        assert not any(line.startswith((FORGED, "2026-01-01 [info]")) for line in each.out.splitlines()), kind
    found = json.loads(told["json"].out)
    documents = list(YAML(typ="safe", pure=True).load_all(told["yaml"].out))
    if command[0] not in ("report", "describe", "status"):  # these tell how old something is
        assert documents == (found if isinstance(found, list) else [found])
    number = command[-1].removeprefix("x")
    if command[0] != "token" and number.isdigit():
        text = list(TRIES.values())[int(number)]
        for document in (found, documents):
            assert text.strip() in map(str.strip, texts(document)), "nothing is lost on the way"


def texts(value: Any) -> Iterator[str]:
    """Every text in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts([*value, *value.values()])
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)


def test_a_difference_is_plain_too(attacked):
    for number in range(len(TRIES)):
        for form in ("table", "json", "yaml"):
            told = attacked.run("diff", f"x{number}", "--from", "1", "--to", "1", "-o", form)
            assert_plain(told.out + told.err)


def test_an_exported_log_has_one_record_a_line_and_no_formula(attacked):
    exported = attacked.run("audit", "export", "--format", "csv")
    assert_plain(exported.out)
    rows = list(csv.DictReader(io.StringIO(exported.out)))
    lines = attacked.run("audit", "export").out.splitlines()
    assert len(rows) == len(lines) == len(exported.out.splitlines()) - 1
    assert {row["reason"][:2] for row in rows if "cmd" in row["reason"]} == {"'="}
    for row in rows:
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row.values())
    assert TRIES["newline"].strip() in {json.loads(line)["reason"] for line in lines}, "nothing is lost on the way"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1"])
def test_a_cell_never_begins_like_a_formula(text):
    assert guarded(text).startswith("'")
    assert guarded("plain = text") == "plain = text"


def test_the_metrics_are_ours_alone(attacked):
    with urllib.request.urlopen(f"http://{attacked.metrics}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    assert_plain(text)
    assert all(line.startswith(("#", "allocator_")) and "forged" not in line for line in text.splitlines())
    assert "allocator_break_glass_total" in text


def test_a_page_shows_it_as_text(attacked, tmp_path):
    for number in range(len(TRIES)):
        page = tmp_path / f"x{number}.html"
        told = attacked.run("report", f"x{number}", "--out", str(page))
        assert told.code == 0, told
        text = page.read_text()
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert_plain(text)
        document = json.loads(re.search(r'<script type="application/json" id="report">(.*?)</script>', text)[1])
        assert document["facts"]["owner"] == list(TRIES.values())[number], "for programs, nothing is lost"


def test_units_and_tokens_are_in_no_log_label_or_record(tmp_path):
    with Process(tmp_path, "json") as process:
        experiment = pb.Experiment()
        experiment.metadata.name = "private"
        for arm in ("a", "b"):
            experiment.spec.arms.add(name=arm, incumbent=arm == "a")
        experiment.spec.reward.metric = "click"
        experiment.spec.exposure.budget.units = 1000
        experiment.spec.guardrails.add(name="errors", metric="error", max=0.1)
        assert process.ask(process.operator, "ApplyExperiment", operator_pb.ApplyExperimentRequest(experiment=experiment)).created
        process.ask(process.operator, "StartExperiment", operator_pb.StartExperimentRequest(experiment="private"))

        def decide(unit: str, name: str = "private"):
            return process.ask(process.allocator, "Decide", service_pb.DecideRequest(experiment=name, unit=unit, attributes={"u": UNIT}))

        def decide_all(*units: str):
            return process.ask(process.allocator, "BatchDecide", service_pb.BatchDecideRequest(experiment="private", units=units))

        decided = [decide(f"{UNIT}-{number}") for number in range(50)]
        batch = decide_all(*(f"{UNIT}-{number}" for number in range(50)))
        outcomes = [pb.Outcome(decision_id=answer.decision.id, reward=1.0) for answer in decided]
        process.ask(process.allocator, "ReportOutcomes", service_pb.ReportOutcomesRequest(outcomes=outcomes, request_id=UNIT))
        wrong = [decide(UNIT * 20), decide(UNIT, "nobody"), decide_all(UNIT, UNIT * 20)]
        assert all(isinstance(error, grpc.RpcError) and UNIT not in str(error.details()) for error in wrong)
        assert len(batch.ids) == 50
        assert not any(UNIT in answer.SerializeToString().decode("latin-1") for answer in decided)
        with urllib.request.urlopen(f"http://{process.metrics}/metrics", timeout=30) as reply:
            seen = {"metrics": reply.read()}
        seen["log"] = process.stop().encode()
        for path in process.folder.rglob("*"):
            if path.is_file():
                seen[path.name] = path.read_bytes()
        assert {"a.db", "log"} <= set(seen)
        assert any(name.endswith(".parquet") for name in seen), "a decision log was written"
        for name, content in seen.items():
            assert UNIT.encode() not in content, name
            assert process.token.encode() not in content, name
            assert process.token.split("_", 2)[2].encode() not in content, name
