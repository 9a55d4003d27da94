"""The command line as its users meet it: what it prints where, with which exit code, and what it asks of the server."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import types
import urllib.request
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

import allocator.server
from allocator.cli import app, connection, output, tables
from allocator.errors import (
    AllocatorError,
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Overloaded,
    PermissionDenied,
    Refused,
    Unauthenticated,
    Unavailable,
    Violation,
)
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import operator_service_pb2 as service_pb
from allocator.wire.status import to_status

from .conftest import ALLOCATOR, Said, said

EXAMPLES = sorted(str(path) for path in (resources.files("allocator") / "assets" / "examples").iterdir() if path.is_file())
Run = Callable[..., Said]
Write = Callable[..., tuple[str, str]]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stands in for the demo itself: `demo.demo` is what the command calls."""
    module = types.SimpleNamespace(demo=None)
    monkeypatch.setitem(sys.modules, "allocator.demo", types.ModuleType("allocator.demo"))
    monkeypatch.setitem(sys.modules, "allocator.demo.run", module)
    return module


def yaml_documents(text: str) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all(text))


def document(said: Said) -> Any:
    assert (said.code, said.err) == (0, "")
    return json.loads(said.out)


# --- spec files -------------------------------------------------------------------------------------------------------

TEN_FAULTS = """\
apiVersion: allocator/v2
kind: Experiment
metadata: {name: Bad Name, labels: {team: 3}}
spec:
  arms: [{name: a, incumbent: true}, {name: a, incumbnt: true}]
  reward: {metric: click, window: 5 minutes, model: BERNOULI}
  exposure: {total: 1.5}
  guardrails:
    - {name: errors, metric: error, max: 2}
  alpha: 0.9
"""


def test_ten_faults_are_ten_lines_with_file_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(TEN_FAULTS)
    for command in ("lint", "apply"):
        told = said(command, "-f", str(path))
        first, *faults, last = told.err.splitlines()
        assert (told.code, told.out) == (2, "")
        assert first == f"error: {path} has 10 invalid fields"
        assert last.startswith("hint: ")
        found = {re.fullmatch(rf"{path}:(\d+):(\d+): (\S+): .+", line).groups() for line in faults}
        # lines and columns counted by hand in the text above
        assert found == {
            ("1", "1", "apiVersion"),
            ("3", "12", "metadata.name"),
            ("3", "37", "metadata.labels[team]"),
            ("5", "39", "spec.arms[1].name"),
            ("5", "48", "spec.arms[1].incumbnt"),
            ("6", "27", "spec.reward.window"),
            ("6", "46", "spec.reward.model"),
            ("7", "14", "spec.exposure.total"),
            ("9", "37", "spec.guardrails[0].max"),
            ("10", "3", "spec.alpha"),
        }


def test_faults_of_all_files_are_told_together_and_nothing_is_applied(run: Run, write: Write, tmp_path: Path) -> None:
    good, name = write()
    bad = tmp_path / "bad.yaml"
    bad.write_text(TEN_FAULTS)
    told = run("apply", "-f", good, "-f", str(bad), "-f", str(tmp_path / "missing.yaml"))
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("error: 11 faults in these files\n")
    assert f"{tmp_path / 'missing.yaml'}: cannot be read: No such file or directory\n" in told.err
    assert run("get", name).code == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "got an empty file"),
        ("a: [1, ", "not valid YAML"),
        ("- 1\n", "a mapping with apiVersion"),
        ("a: 1\na: 2\n", "duplicate key"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_what_is_no_spec_is_told_in_one_sentence(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    told = said("lint", "-f", str(path))
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert why in told.err


def test_a_missing_file_and_an_empty_directory_are_told(tmp_path: Path) -> None:
    assert (
        said("lint", "-f", str(tmp_path / "no.yaml")).err
        == f"error: {tmp_path}/no.yaml: cannot be read: No such file or directory\n"
    )
    (tmp_path / "notes.txt").write_text("no spec")
    told = said("lint", "-f", str(tmp_path))
    assert (told.code, told.err) == (2, f"error: {tmp_path}: got a directory without *.yaml, *.yml, *.json\n")


def test_a_directory_stands_for_every_spec_file_in_it(write: Write, tmp_path: Path) -> None:
    yaml, one = write()
    json_file, two = write()
    os.rename(json_file, tmp_path / "second.yml")
    (tmp_path / "third.json").write_text(json.dumps(yaml_documents(Path(yaml).read_text().replace(one, "third"))[0]))
    (tmp_path / "readme.md").write_text("no spec")
    told = said("lint", "-f", str(tmp_path), "-f", yaml)
    assert told.out.splitlines() == [f"experiment default/{name} valid" for name in (two, "third", one)]


def test_an_experiment_written_down_twice_is_refused(write: Write, tmp_path: Path) -> None:
    path, name = write()
    again = tmp_path / "again.yaml"
    again.write_text(Path(path).read_text())
    told = said("lint", "-f", path, "-f", str(again))
    assert told.code == 2
    assert f"{path}:4:3: metadata.name: got 'default/{name}' a second time, first in {again}:4:3: metadata.name" in (
        told.err.replace(str(again), "#").replace(path, str(again)).replace("#", path)
    )


def test_a_spec_comes_from_stdin(run: Run, write: Write) -> None:
    path, name = write()
    text = Path(path).read_text()
    assert run("apply", "-f", "-", stdin=text).out == f"experiment default/{name} created\n"
    told = run("apply", "-f", "-", stdin=text.replace("0.5}", "1.5}"))
    assert (told.code, told.out) == (2, "")
    assert "\n<stdin>:12:14: spec.exposure.total: got 1.5" in told.err


def test_apply_says_what_it_did(run: Run, write: Write) -> None:
    path, name = write()
    experiment = f"experiment default/{name}"
    assert run("apply", "-f", path, "--dry-run", "client") == Said(f"{experiment} valid (dry run)\n", "", 0)
    assert run("apply", "-f", path, "--dry-run", "server") == Said(f"{experiment} created (dry run)\n", "", 0)
    assert run("get", name).code == 3
    assert run("apply", "-f", path) == Said(f"{experiment} created\n", "", 0)
    assert run("apply", "-f", path) == Said(f"{experiment} unchanged\n", "", 0)
    Path(path).write_text(Path(path).read_text().replace("owner: search-ml", "owner: others"))
    assert run("apply", "-f", path, "--dry-run", "server").out == f"{experiment} revised (dry run)\n"
    assert run("apply", "-f", path, "-o", "name").out == f"default/{name}\n"
    assert document(run("get", name, "-o", "json"))["spec"]["owner"] == "others"


def test_what_the_server_refuses_is_told_with_line_and_column(run: Run, started: str, write: Write) -> None:
    path, name = write(replace=("name: b", "name: c"))
    text = Path(path).read_text().replace(name, started)
    Path(path).write_text(f"# moved down by a line\n{text}")
    told = run("apply", "-f", path)
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith(f"error: default/{started} is refused\n{path}:11:7: spec.arms[1]: got c for b: ")
    assert "\nhint: undo these changes" in told.err


def test_one_refused_experiment_does_not_keep_others_from_being_applied(run: Run, started: str, write: Write) -> None:
    bad, name = write(replace=("name: b", "name: c"))
    Path(bad).write_text(Path(bad).read_text().replace(name, started))
    good, other = write()
    told = run("apply", "-f", bad, "-f", good)
    assert (told.code, told.out) == (2, f"experiment default/{other} created\n")


def test_a_stale_etag_is_a_conflict_and_a_present_one_is_not(run: Run, write: Write, tmp_path: Path) -> None:
    path, name = write()
    run("apply", "-f", path)
    mine = tmp_path / "mine.yaml"
    mine.write_text(run("get", name, "-o", "yaml").out)
    Path(path).write_text(Path(path).read_text().replace("owner: search-ml", "owner: somebody-else"))
    run("apply", "-f", path)
    told = run("apply", "-f", str(mine))
    assert (told.code, told.out) == (5, "")
    assert "metadata.etag" in told.err
    mine.write_text(run("get", name, "-o", "yaml").out.replace("owner: somebody-else", "owner: me"))
    assert run("apply", "-f", str(mine)).out == f"experiment default/{name} revised\n"


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_can_be_applied_and_what_get_prints_applied_again(run: Run, path: str, tmp_path: Path) -> None:
    from allocator.wire import spec

    (example,) = spec.load_file(Path(path))
    assert run("apply", "-f", path).out == f"experiment default/{example.experiment.name} created\n"
    printed = {kind: run("get", example.experiment.name, "-o", kind).out for kind in ("yaml", "json")}
    assert yaml_documents(printed["yaml"]) == [json.loads(printed["json"])]
    for kind, text in printed.items():
        again = tmp_path / f"again.{kind}"
        again.write_text(text)
        (loaded,) = spec.load_file(again)
        assert loaded.experiment == example.experiment
        assert run("apply", "-f", str(again)).out == f"experiment default/{example.experiment.name} unchanged\n"


def test_there_are_three_examples() -> None:
    assert [Path(path).name for path in EXAMPLES] == ["minimal.yaml", "ranker.yaml", "segments.yaml"]


# --- operating --------------------------------------------------------------------------------------------------------


def test_an_experiment_is_led_through_its_life(run: Run, write: Write) -> None:
    path, name = write()
    run("apply", "-f", path)
    experiment = f"experiment default/{name}"
    shadow = "in stage 0 of 0 to 2, candidates serve nobody, requests are mirrored to them"
    assert run("start", name) == Said(f"{experiment} started, {shadow}\n", "", 0)

    told = run("advance", name)
    assert (told.code, told.out) == (6, "")
    assert told.err == (
        "error: stage 1 waits for: 2 more approvals of stage 1 (10%)\n"
        "hint: `allocator describe NAME` shows how far it is\n"
    )
    assert run("approve", name, "--actor", "ann").out == f"{experiment} approved\n"
    assert run("approve", name, "--actor", "bob", "--reason", "looks fine").out == f"{experiment} approved\n"
    assert (
        run("advance", name, "--stage", "1").out == f"{experiment} in stage 1 of 0 to 2, candidates get at most 10%\n"
    )
    assert run("advance", name, "--stage", "0", "--reason", "too early").out == f"{experiment} {shadow}\n"
    assert run("freeze", name, "--reason", "odd latency").out == f"{experiment} frozen\n"
    assert run("resume", name, "--reason", "it was the network").out.startswith(f"{experiment} resumed, in stage 0 of")
    assert run("rollback", name, "--reason", "enough").out == f"{experiment} rolled back\n"
    assert run("start", name).code == 6

    records = document(run("audit", "list", name, "-o", "json"))
    done = [(r["actor"], r["action"], r.get("reason", "")) for r in records]
    # whoever came first after the second approval: the planner advances by itself
    assert [one for one in done if one[0] != "planner" and one[1] != "experiment.advance"] == [
        ("tess", "experiment.create", ""),
        ("tess", "experiment.start", ""),
        ("ann", "stage.approve", "stage 1"),
        ("bob", "stage.approve", "looks fine"),
        ("tess", "experiment.step_back", "too early"),
        ("tess", "experiment.freeze", "odd latency"),
        ("tess", "experiment.resume", "it was the network"),
        ("tess", "experiment.rollback", "enough"),
    ]


def test_an_experiment_is_concluded_on_an_arm_or_on_the_incumbent(run: Run, write: Write) -> None:
    for arguments, winner in ((("--winner", "b"), "b"), ((), "a")):
        path, name = write()
        run("apply", "-f", path)
        run("start", name)
        told = run("conclude", name, "--reason", "answered", *arguments)
        assert told.out == f"experiment default/{name} concluded, everyone gets {winner}\n"
        assert document(run("get", name, "-o", "json"))["status"]["winner"] == winner


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("start", ()),
        ("approve", ()),
        ("advance", ("--stage", "0")),
        ("freeze", ("--reason", "r")),
        ("resume", ("--reason", "r")),
        ("conclude", ("--reason", "r")),
        ("rollback", ("--reason", "r")),
    ],
)
def test_every_verb_prints_the_experiment_in_every_format(
    verb: str, arguments: tuple[str, ...], run: Run, write: Write
) -> None:
    seen = set()
    for kind in ("json", "yaml", "name"):
        path, name = write()
        run("apply", "-f", path)
        if verb != "start":
            run("start", name)
        if verb == "resume":
            run("freeze", name, "--reason", "r")
        told = run(verb, name, *arguments, "-o", kind)
        assert (told.code, told.err) == (0, "")
        if kind == "name":
            assert told.out == f"default/{name}\n"
            continue
        (found,) = [json.loads(told.out)] if kind == "json" else yaml_documents(told.out)
        assert found["metadata"]["name"] == name
        seen.add(found["status"]["state"])
    expected = {"freeze": "FROZEN", "conclude": "CONCLUDED", "rollback": "ROLLED_BACK"}.get(verb, "RUNNING")
    assert seen == {expected}


@pytest.mark.parametrize("verb", ["freeze", "resume", "rollback", "conclude"])
def test_what_the_audit_is_read_for_needs_a_reason(run: Run, started: str, verb: str) -> None:
    told = run(verb, started)
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("error: missing option '--reason'")
    assert run(verb, started, "--reason", " ").err == "error: --reason: got nothing; say why, it goes to the audit\n"
    assert document(run("get", started, "-o", "json"))["status"]["state"] == "RUNNING"


def test_the_readme_names_the_commands_that_need_a_reason() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    told = re.search(r"moves an experiment; (.*) and whatever says `--break-glass` need `--reason`", readme)[1]
    reasons = {
        command.callback.__name__: inspect.signature(command.callback).parameters.get("reason") for command in app.registered_commands
    }
    needed = {name for name, reason in reasons.items() if reason is not None and reason.default is inspect.Parameter.empty}
    assert set(re.findall(r"`(\w+)`", told)) == needed


def test_the_actor_is_whoever_is_logged_in_unless_named(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "joan")  # where getpass looks first
    path, name = write()
    run("apply", "-f", path, ALLOCATOR_ACTOR="")
    run("start", name, "--actor", "ann")
    actors = [r["actor"] for r in document(run("audit", "list", name, "-o", "json"))]
    assert actors == ["joan", "ann"]


def test_a_user_without_a_name_still_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: {}["uid not found"])
    assert connection.login_name() == f"uid-{os.getuid()}"


# --- looking ----------------------------------------------------------------------------------------------------------


def test_lists_are_read_to_their_end(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for _ in range(3):
        path, name = write()
        run("apply", "-f", path)
        names.append(f"default/{name}")
    whole = run("get", "-o", "name").out.split()
    monkeypatch.setattr(connection, "PAGE", 2)
    assert set(names) <= set(whole)
    assert run("get", "-o", "name").out.split() == whole
    assert len(document(run("audit", "list", "-o", "json"))) > 2


def test_lists_are_filtered_by_namespace_and_labels(run: Run, write: Write) -> None:
    path, name = write(replace=("labels: {team: search}", "namespace: elsewhere\n  labels: {team: search, tier: one}"))
    run("apply", "-f", path)
    full = f"elsewhere/{name}"
    assert run("get", "-n", "elsewhere", "-o", "name").out == f"{full}\n"
    assert run("get", "-l", "team=search, tier=one", "-o", "name").out == f"{full}\n"
    assert run("get", "-n", "elsewhere", "-l", "tier=two", "-o", "name").out == ""
    assert run("get", "-n", "nowhere").err == "nothing found\n"
    assert yaml_documents(run("get", "-n", "nowhere", "-o", "yaml").out) == []
    assert document(run("get", "-n", "nowhere", "-o", "json")) == []
    assert run("get", full, "-o", "name").out == f"{full}\n"
    assert run("get", "-n", "elsewhere", "-l", "tier,team!=other,!retired", "-o", "name").out == f"{full}\n"
    assert run("get", "-n", "elsewhere", "-l", "!tier", "-o", "name").out == ""
    assert run("get", "-l", "=tier").code == 2
    assert run("get", name, "-l", "tier=one").code == 2


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("command", [("get",), ("get", "-n", "default"), ("audit", "list"), ("audit", "verify")])
def test_json_and_yaml_say_the_same(run: Run, command: tuple[str, ...]) -> None:
    found = document(run(*command, "-o", "json"))
    documents = yaml_documents(run(*command, "-o", "yaml").out)
    assert documents == (found if isinstance(found, list) else [found])
    assert documents


def test_describe_is_a_document_too(run: Run, started: str) -> None:
    found = document(run("describe", started, "-o", "json"))
    (same,) = yaml_documents(run("describe", started, "-o", "yaml").out)
    assert found.keys() == same.keys() >= {"experiment", "arms", "guardrails", "stage", "notes", "planTime"}
    assert [arm["arm"] for arm in found["arms"]] == ["a", "b"]
    assert found["arms"][1]["state"] == "SHADOW"
    assert found["guardrails"][0]["verdict"] == "HOLD"  # nothing was reported yet


def test_describe_tells_what_the_server_knows(run: Run, started: str) -> None:
    told = run("describe", started)
    lines = told.out.splitlines()
    assert (told.code, told.err) == (0, "")
    assert lines[0] == f"default/{started}  RUNNING"
    assert "ramp       [0: shadow] → 1: 10% → 2: 50%" in lines
    assert "waits for  2 more approvals of stage 1 (10%)" in lines
    assert "approvals  0, 2 needed: nobody yet" in lines
    cells = [columns_of(line) for line in lines]
    assert ["a", "INCUMBENT", "100%"] in [row[:3] for row in cells]
    assert ["b", "SHADOW", "0%"] in [row[:3] for row in cells]
    assert ["errors", "b", "all", "HOLD", "-", "at most 0.05"] in [row[:6] for row in cells]
    run("approve", started, "--actor", "ann")
    assert "approvals  1, 2 needed: ann" in run("describe", started).out.splitlines()


def description() -> service_pb.DescribeExperimentResponse:
    """As a server would send it in the middle of a rollout; names as long as they may be."""
    long = "n" * 63
    message = service_pb.DescribeExperimentResponse(
        experiment=pb.Experiment(
            metadata=pb.Metadata(name="ranker", namespace="default", revision=4),
            spec=pb.ExperimentSpec(
                arms=[pb.Arm(name="v7", incumbent=True), pb.Arm(name=long)],
                alpha=0.001,
                exposure=pb.Exposure(total=0.5),
                guardrails=[
                    pb.Guardrail(name="errors", metric="error", max=0.02),
                    pb.Guardrail(name="tail", metric="latency", quantile=0.99, max=250),
                    pb.Guardrail(name="quality", metric="thumbs", max_ratio=1.2),
                ],
                ramp=[pb.RampStage(cap=0.1), pb.RampStage(cap=0.5, approvals=2)],
            ),
            status=pb.ExperimentStatus(
                state=pb.EXPERIMENT_STATE_FROZEN, reason="errors\x1b[2J\nbreached", activation=2, winner=""
            ),
        ),
        arms=[
            service_pb.ArmDescription(
                arm="v7", state=pb.ARM_STATE_ACTIVE, weight=1, mean=0.1, interval_low=0.09, interval_high=0.11
            ),
            service_pb.ArmDescription(
                arm=long,
                state=pb.ARM_STATE_DRAINED,
                wanted_weight=0.97,
                exposure=0.05,
                exposure_cap=0.1,
                outcomes=12345,
                mean=0.125,
                interval_low=0.1,
                interval_high=0.15,
                prob_best=0.99995,
                expected_loss=0.000123,
                pending=17,
            ),
        ],
        stage=service_pb.StageDescription(index=0, count=2, cap=0.1, waiting_for=["900 s more"], approvers=["ann"]),
        notes=["the weight may not rise"],
    )
    message.guardrails.add(
        guardrail="errors", arm=long, verdict=pb.VERDICT_BREACH, limit=0.02, observed=0.2, exposed=2000
    )
    message.guardrails.add(
        guardrail="tail", arm="v7", verdict=pb.VERDICT_CLEAR, limit=250, observed=0.004, message="fine"
    )
    message.guardrails.add(
        guardrail="quality", arm=long, segment="mobile", verdict=pb.VERDICT_HOLD, limit=1.2, message="no data"
    )
    for guardrail in message.guardrails:
        guardrail.log_evidence, guardrail.log_threshold, guardrail.alpha, guardrail.events = 5.5, 11.0, 0.00002, 40
    message.past_guardrails.add(guardrail="errors", arm=long, activation=1, exposed=999, events=3, log_evidence=-2)
    return message


def columns_of(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_a_description_has_everything_in_words_that_people_use(capsys: pytest.CaptureFixture[str]) -> None:
    output.draw(tables.description(description()))
    lines = capsys.readouterr().out.splitlines()
    long = "n" * 63
    assert lines[0] == "default/ranker  FROZEN  errors [2J breached"  # what could steer a terminal is gone
    cells = [columns_of(line) for line in lines]
    assert ["approvals", "1, 2 needed: ann"] in cells
    assert ["waits for", "900 s more"] in cells
    assert any(row[0] == "alpha" and row[1].startswith("0.001 for each candidate") for row in cells)
    arms = lines.index(next(line for line in lines if line.startswith("ARM ")))
    assert cells[arms + 2] == [
        long, "DRAINED", "0%", "97%", "5% / 10%", "12,345", "0.125 [0.100, 0.150]", ">0.999", "0.000123", "17"
    ]  # fmt: skip
    assert [
        "errors",
        long,
        "all",
        "BREACH",
        "0.2",
        "at most 0.02",
        "2,000",
        "40",
        "5.50 / 11.00",
        "2e-05",
        "no",
    ] in cells
    assert ["tail", "v7", "all", "CLEAR", "0.4% bad", "99% below 250", "0", "40", "5.50 / 11.00", "2e-05", "-"] in cells
    assert [
        "quality",
        long,
        "mobile",
        "HOLD",
        "-",
        "1.2 x incumbent",
        "0",
        "40",
        "5.50 / 11.00",
        "2e-05",
        "no",
    ] in cells
    assert f"  quality on {long} in mobile: no data" in lines
    assert not any("fine" in line for line in lines)  # a guardrail that is clear has nothing to say
    assert "  the weight may not rise" in lines
    assert ["1", "errors", long, "all", "999", "3", "-2.00"] in cells
    assert not any("█" in line or "\x1b" in line for line in lines)  # a pipe gets no pictures, no colours


def test_a_wide_terminal_gets_pictures_and_colours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    output.draw(tables.description(description()))
    text = capsys.readouterr().out
    assert "\x1b[31mFROZEN" in text
    row = next(line for line in text.splitlines() if line.startswith("errors ") and "5.50 / 11.00" in line)
    assert row.count("█") == tables.BAR // 2  # evidence is half of what a breach needs
    monkeypatch.setenv("NO_COLOR", "1")
    output.draw(tables.description(description()))
    assert not re.search(r"\x1b\[[\d;]*3\d", capsys.readouterr().out)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_name_is_cut_on_a_narrow_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    message = description()
    output.draw(tables.description(message))
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= width
    start = lines.index(next(line for line in lines if line.startswith("ARM ")))
    end = lines.index("", start)
    assert sum(line.count("n") for line in lines[start + 2 : end]) >= 63
    assert not any("…" in line for line in lines)


def test_a_table_that_is_too_wide_is_taken_apart_and_no_cell_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    message = description()
    for item in (message.experiment.spec.arms[1], *message.arms, *message.guardrails):
        item.ClearField("name" if isinstance(item, pb.Arm) else "arm")
    output.draw(tables.description(message))
    text = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, text.splitlines())) <= 80
    assert len(re.findall(r"^ARM ", text, re.MULTILINE)) == 2
    assert len(re.findall(r"^GUARDRAIL  ARM  SEGMENT ", text, re.MULTILINE)) == 2
    for cell in (
        "0.125 [0.100, 0.150]",
        "5% / 10%",
        "5.50 / 11.00",
        "99% below 250",
        "1.2 x incumbent",
        "EXPECTED LOSS",
    ):
        assert cell in text


@pytest.mark.parametrize("kind", ["table", "json", "yaml"])
def test_a_terminal_without_unicode_gets_no_pictures(server: Any, run: Run, write: Write, kind: str) -> None:
    path, name = write(replace=("search-ml", "équipe"))
    run("apply", "-f", path)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [*ALLOCATOR, "describe", name, "-o", kind, "--server", server.address],
        capture_output=True,
        env=environment,
        check=True,
    )
    text = done.stdout.decode("ascii")
    assert done.stderr == b""
    if kind != "table":
        found = json.loads(text) if kind == "json" else yaml_documents(text)[0]
        assert found["experiment"]["spec"]["owner"] == "équipe"
    else:
        assert "\\xe9quipe" in text
        assert "0: shadow] \\u2192 1: 10%" in text
        assert "\\u2588" not in text  # a full block


@pytest.mark.parametrize(
    ("state", "winner", "share"),
    [
        ("RUNNING", "", 0.25),
        ("FROZEN", "", 0),
        ("DRAFT", "", 0),
        ("ROLLED_BACK", "", 0),
        ("CONCLUDED", "b", 1),
        ("CONCLUDED", "a", 0),
    ],
)
def test_the_share_of_candidates_is_what_they_get_now(state: str, winner: str, share: float) -> None:
    experiment = pb.Experiment(
        spec=pb.ExperimentSpec(arms=[pb.Arm(name="a", incumbent=True), pb.Arm(name="b"), pb.Arm(name="c")]),
        status=pb.ExperimentStatus(
            state=pb.ExperimentState.Value(f"EXPERIMENT_STATE_{state}"),
            winner=winner,
            arms=[
                pb.ArmStatus(arm="a", state=pb.ARM_STATE_ACTIVE, slots=32768),
                pb.ArmStatus(arm="b", state=pb.ARM_STATE_ACTIVE, slots=16384),
                pb.ArmStatus(arm="c", state=pb.ARM_STATE_DRAINED, slots=16384),
            ],
        ),
    )
    assert tables.served_share(experiment) == share


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1e-9, "<0.001%"), (0.01234, "1.23%"), (0.1, "10%"), (1, "100%")]
)
def test_percentages_are_short(share: float, text: str) -> None:
    assert tables.percent(share) == text


@pytest.mark.usefixtures("started")
def test_an_intact_audit_log_is_said_to_be(run: Run) -> None:
    told = run("audit", "verify")
    assert (told.code, told.err) == (0, "")
    assert re.fullmatch(r"audit log intact: \d+ records, head [0-9a-f]{64}\n", told.out)


def test_a_broken_audit_log_is_an_error(answering: Callable[..., str]) -> None:
    reply = service_pb.VerifyAuditRecordsResponse(intact=False, records=7, first_broken=4)
    address = answering(lambda *_: reply.SerializeToString())
    told = said("audit", "verify", server=address)
    assert (told.code, told.out) == (1, "")
    assert told.err == "error: the audit log is broken: record 4 of 7 does not fit the one before it\n"
    assert json.loads(said("audit", "verify", "-o", "json", server=address).out) == {
        "intact": False, "records": 7, "firstBroken": 4, "missingCheckpoint": 0
    }


def test_what_others_wrote_cannot_steer_the_terminal(answering: Callable[..., str]) -> None:
    reply = service_pb.ListAuditRecordsResponse(
        records=[pb.AuditRecord(sequence=1, actor="\x1b]0;eve\x07", reason="a\nb\x9b2J")]
    )
    told = said("audit", "list", server=answering(lambda *_: reply.SerializeToString()))
    assert told.code == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", told.out)
    assert len(told.out.splitlines()) == 2


def test_names_are_completed(server: Any, run: Run, started: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOCATOR_SERVER", server.address)
    assert started in connection.complete_name("x")
    assert f"default/{started}" in connection.complete_name("default/")
    assert connection.complete_name("zz") == []
    shell = {"_ALLOCATOR_COMPLETE": "complete_bash", "COMP_WORDS": f"allocator describe {started}", "COMP_CWORD": "2"}
    assert started in run(**shell).out.split()
    monkeypatch.setenv("ALLOCATOR_SERVER", "127.0.0.1:1")
    assert connection.complete_name("x") == []


# --- trouble ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AllocatorError("it broke"), 1),
        (InvalidArgument("it is wrong", violations=[Violation("reason", "got nothing")]), 2),
        (NotFound("it is not there"), 3),
        (Unauthenticated("who are you?"), 4),
        (PermissionDenied("you may not"), 4),
        (Conflict("somebody was first"), 5),
        (AlreadyExists("it exists"), 5),
        (Refused("it is frozen"), 6),
        (Unavailable("the store is away"), 7),
        (DeadlineExceeded("too slow"), 7),
        (Overloaded("no room", retry_after_seconds=1.5), 7),
    ],
)
@pytest.mark.parametrize("command", [("get", "x"), ("freeze", "x", "--reason", "r")])
def test_every_kind_of_error_has_its_exit_code(
    error: AllocatorError, code: int, command: tuple[str, ...], answering: Callable[..., str]
) -> None:
    told = said(
        *command, server=answering(lambda _method, _request, context: context.abort_with_status(to_status(error)))
    )
    assert (told.code, told.out) == (code, "")
    first, *rest = told.err.splitlines()
    assert first == f"error: {error.message}"
    assert [line for line in rest if not line.startswith("hint: ")] == (
        ["--reason: got nothing"] if isinstance(error, InvalidArgument) else []
    )


def test_a_server_that_is_no_allocator_is_told(answering: Callable[..., str]) -> None:
    told = said("get", server=answering(None))
    assert (told.code, told.out) == (1, "")
    assert "another version" in told.err


def test_no_server_is_told_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = said("get", server=address)
    assert (told.code, told.out) == (7, "")
    assert told.err.startswith(f"error: no server answers at {address}: Connection refused")
    assert "hint: start one with `allocator serve`" in told.err


def test_apply_stops_when_no_server_answers(write: Write) -> None:
    told = said("apply", "-f", write()[0], "-f", write()[0])
    assert told.code == 7
    assert told.err.count("error: ") == 1


def test_a_silent_server_is_waited_for_no_longer_than_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        told = said("get", "--timeout", "0.2", server=address)
    assert (told.code, told.out) == (7, "")
    assert told.err.startswith(f"error: no answer from {address} within 0.2 s\nhint: it may have happened all the same")


def test_ctrl_c_ends_a_command_without_a_word() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [*ALLOCATOR, "get", "--server", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with silent.accept()[0]:  # it waits for an answer from here on
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_ctrl_c_while_an_error_is_told_ends_it_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Exception) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("allocator.cli.tell", interrupted)
    assert said("get", server="127.0.0.1:1").code == 130


@pytest.mark.parametrize("stop", [KeyboardInterrupt, typer.Abort])
def test_whatever_stops_a_command_ends_it_with_130(demo: types.SimpleNamespace, stop: type[BaseException]) -> None:
    def stopped(**_: Any) -> None:
        raise stop

    demo.demo = stopped
    assert said("demo").code == 130


def test_nobody_reading_is_no_reason_for_a_traceback(server: Any) -> None:
    process = subprocess.Popen(
        [*ALLOCATOR, "get", "-o", "json", "--server", server.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(20) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_in_a_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*ALLOCATOR, "version"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("get", "--bogus"), "no such option: --bogus"),
        (("gett",), "no such command 'gett'. Did you mean 'get'?"),
        (("describe",), "missing argument 'NAME'"),
        (("get", "-o", "xml"), "'xml' is not one of 'table', 'wide', 'json', 'yaml', 'name'"),
        (("doctor", "-o", "name"), "'name' is not one of 'table', 'json', 'yaml'"),
        (("get", "--timeout", "0"), "greater than or equal to 0.001"),
        (("get", "--timeout", "soon"), "--timeout"),
        (("advance", "x", "--stage", "-1"), "--stage"),
        (("get", "--server", "localhost"), "--server: got 'localhost'; host:port is allowed"),
        (("apply",), "missing option '--file'"),
        (("serve", "--log-format", "xml"), "'xml' is not one of 'pretty', 'json'"),
        (("serve", "--listen", "0.0.0.0:50051"), "--listen: got '0.0.0.0:50051', which other machines can reach"),
        (("serve", "--store", "redis"), "--store: got 'redis'"),
        (("freeze", "x", "--reason", "a \udcff byte"), r"argument 4: got b'a \xff byte'; UTF-8 is allowed"),
    ],
)
def test_a_mistake_in_the_arguments_is_a_sentence_and_exit_code_2(arguments: tuple[str, ...], why: str) -> None:
    told = said(*arguments)
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert why in told.err
    assert not re.search("Traceback|Value error", told.err)


def test_several_wrong_settings_are_told_together() -> None:
    told = said("serve", "--listen", "here", "--store", "there", "--refresh", "1000")
    first, *lines = told.err.splitlines()
    assert (told.code, first) == (2, "error: 3 values are not allowed")
    assert [line.partition(":")[0] for line in lines] == ["--listen", "--store", "--refresh"]


# --- help, version, what is imported ----------------------------------------------------------------------------------

HEAVY = ("numba", "numpy", "scipy", "matplotlib", "redis", "structlog", "allocator.server", "allocator.engine")
IMPORTS = """
import sys
from allocator.cli import main
try:
    main()
finally:
    print([name for name in {names!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (("--help",), (*HEAVY, "grpc")),
        (("version",), (*HEAVY, "grpc", "rich")),
        (("lint", "-f", EXAMPLES[0]), (*HEAVY, "grpc", "rich")),
        (("apply", "-f", EXAMPLES[0]), HEAVY),
        (("get",), HEAVY),
        (("get", "-o", "yaml"), HEAVY),
        (("describe", "NAME"), HEAVY),
        (("freeze", "NAME", "--reason", "r"), HEAVY),
    ],
)
def test_commands_import_nothing_that_they_do_not_need(
    server: Any, started: str, arguments: tuple[str, ...], absent: tuple[str, ...]
) -> None:
    given = [started if argument == "NAME" else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(names=absent), *given],
        capture_output=True,
        text=True,
        env={**os.environ, "ALLOCATOR_SERVER": server.address},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout


def test_help_names_every_command() -> None:
    told = said("--help", COLUMNS="200")
    assert (told.code, told.err) == (0, "")
    for command in ("serve", "apply", "lint", "get", "describe", "start", "approve", "advance", "freeze", "resume"):
        assert re.search(rf"\b{command}\b", told.out)
    for command in ("rollback", "conclude", "audit", "demo", "version"):
        assert re.search(rf"\b{command}\b", told.out)


def test_every_flag_of_serve_has_a_variable() -> None:
    shown = said("serve", "--help", COLUMNS="200").out
    flags = re.findall(r"^│ (--[a-z-]+)", shown, re.MULTILINE)
    assert set(flags) >= {
        "--listen",
        "--metrics",
        "--store",
        "--spec",
        "--log-format",
        "--refresh",
        "--drain",
        "--grace",
        "--insecure",
    }
    for flag in set(flags) - {"--help", "--spec"}:
        assert f"ALLOCATOR_{flag[2:].replace('-', '_').upper()}" in shown
    assert "ALLOCATOR_SPECS" in shown


@pytest.mark.parametrize("arguments", [("version",), ("--version",)])
def test_the_version_is_the_installed_one(arguments: tuple[str, ...]) -> None:
    from importlib.metadata import version

    assert said(*arguments) == Said(f"allocator {version('allocator')}\n", "", 0)


def test_the_console_script_is_the_module() -> None:
    script = Path(sys.executable).with_name("allocator")
    if not script.exists():
        pytest.skip("not installed with its script")
    done = subprocess.run([script, "version"], capture_output=True, text=True, check=True)
    assert done.stdout == said("version").out


# --- serve ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that `serve` would start a server with."""
    configs: list[Any] = []
    main = types.SimpleNamespace(serve=configs.append)
    logs = types.SimpleNamespace(set_up=configs.append)
    for name, module in (("main", main), ("logs", logs)):
        monkeypatch.setitem(sys.modules, f"allocator.server.{name}", module)
        monkeypatch.setattr(allocator.server, name, module, raising=False)
    return configs


def test_serve_takes_its_settings_from_flags(served: list[Any], write: Write, tmp_path: Path) -> None:
    one, two = write()[0], write()[0]
    arguments = (
        "--listen 0.0.0.0:7 --metrics none --store memory: --log-format json --refresh 2 --drain 3 --grace 4 --insecure"
    )
    assert said("serve", *arguments.split(), "--spec", one, "--spec", str(tmp_path)).code == 0
    log_format, config = served
    assert log_format == "json"
    assert (config.listen, config.metrics, config.store, config.insecure) == ("0.0.0.0:7", "", "memory:", True)
    assert (config.refresh_seconds, config.drain_seconds, config.grace_seconds) == (2, 3, 4)
    assert config.specs == (one, two)


@pytest.mark.parametrize("separator", [":", ","])
def test_serve_takes_its_settings_from_the_environment(served: list[Any], separator: str) -> None:
    variables: Mapping[str, str] = {
        "ALLOCATOR_LISTEN": "127.0.0.1:8",
        "ALLOCATOR_METRICS": "127.0.0.1:9",
        "ALLOCATOR_STORE": "sqlite:x.db",
        "ALLOCATOR_SPECS": f"a.yaml{separator}b.yaml",
        "ALLOCATOR_LOG_FORMAT": "json",
        "ALLOCATOR_REFRESH": "0.5",
        "ALLOCATOR_DRAIN": "0",
        "ALLOCATOR_GRACE": "5",
        "ALLOCATOR_INSECURE": "true",
    }
    assert said("serve", "--grace", "6", **variables).code == 0
    config = served[-1]
    assert (config.listen, config.metrics, config.store) == ("127.0.0.1:8", "127.0.0.1:9", "sqlite:x.db")
    assert (config.specs, config.log_format, config.insecure) == (("a.yaml", "b.yaml"), "json", True)
    assert (config.refresh_seconds, config.drain_seconds, config.grace_seconds) == (0.5, 0, 6)  # a flag wins


def test_a_server_without_settings_is_reachable_from_this_machine_only(served: list[Any]) -> None:
    assert said("serve").code == 0
    config = served[-1]
    assert (config.listen, config.metrics, config.store, config.specs) == (
        "127.0.0.1:50051",
        "127.0.0.1:9464",
        "sqlite:allocator.db",
        (),
    )


def test_serve_says_where_it_listens(server: Any) -> None:
    assert re.fullmatch(r"127\.0\.0\.1:\d{2,5}", server.ready["address"])
    with urllib.request.urlopen(f"http://{server.ready['metrics']}/readyz", timeout=5) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("trouble", ["port", "store", "spec"])
def test_a_server_that_cannot_start_says_why(server: Any, trouble: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(TEN_FAULTS)
    listen, store, more = "127.0.0.1:0", "memory:", ()
    if trouble == "port":
        listen = server.address
    elif trouble == "store":
        store = f"sqlite:{server.store}"
    else:
        more = ("--spec", str(bad))
    done = subprocess.run(
        [*ALLOCATOR, "serve", "--listen", listen, "--store", store, "--metrics", "none", *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    sentence, code = {
        "port": (f"error: cannot listen on {server.address}", 7),
        "store": ("error: another process", 7),
        "spec": (f"error: {bad} has 10 invalid fields\n{bad}:", 2),
    }[trouble]
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(sentence)
    assert "\nhint: " in done.stderr


# --- demo -------------------------------------------------------------------------------------------------------------


def test_the_demo_is_called_with_what_was_asked(demo: types.SimpleNamespace) -> None:
    called = []
    demo.demo = lambda **arguments: called.append(arguments) or len(called) - 1
    assert said("demo").code == 0
    assert said("demo", "--seed", "7", "--output", "there", "--seconds", "5", "--plain").code == 1  # what it returned
    assert called == [
        {"seed": 0, "output": Path("demo-output"), "seconds": 30.0, "plain": False},
        {"seed": 7, "output": Path("there"), "seconds": 5.0, "plain": True},
    ]


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib.pyplot", "matplotlib")])
def test_a_demo_without_its_packages_says_how_to_get_them(
    demo: types.SimpleNamespace, module: str, package: str
) -> None:
    def missing(**_: Any) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    demo.demo = missing
    told = said("demo")
    assert (told.code, told.out) == (1, "")
    assert (
        told.err
        == f"error: the demo needs {package}, which is not installed\nhint: install them with: pip install '.[sim]'\n"
    )
