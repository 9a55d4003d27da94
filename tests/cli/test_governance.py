"""The command line of those who share responsibility: proposals, approvals, revisions, differences, notes, exports, tokens."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said, said

Run = Callable[..., Said]
Write = Callable[..., tuple[str, str]]
APPROVED = ("  exposure: {total: 0.5}", "  exposure: {total: 0.5}\n  approval: {required: 1, expiry: 1h}")


@pytest.fixture
def approved(run: Run, write: Write) -> tuple[str, str]:
    """Path and name of a draft that asks for one approval."""
    path, name = write(replace=APPROVED)
    assert run("apply", "-f", path, "--actor", "ann").code == 0
    return path, name


def digest(told: Said) -> str:
    return re.search(r"--revision ([0-9a-f]{12})", told.out)[1]


def test_from_a_draft_to_a_conclusion_with_every_step_agreed_to(run: Run, approved: tuple[str, str], tmp_path: Path) -> None:
    path, name = approved
    told = run("start", name, "--actor", "ann", "--reason", "ready")
    assert told.out.startswith(f"experiment default/{name} unchanged: the start waits for 1 approval by other people; allocator approve")
    refused = run("approve", name, "--revision", digest(told), "--actor", "ann")
    assert refused.code == 6
    assert refused.err == "error: ann proposed this, and somebody else must agree\nhint: ask a colleague to approve it\n"
    agreed = run("approve", name, "--revision", digest(told), "--actor", "bob")
    assert agreed.out == f"experiment default/{name} approved, and it is in force\n"
    assert run("get", name, "-o", "json").out.count('"RUNNING"') == 1

    riskier = tmp_path / "riskier.yaml"
    riskier.write_text(Path(path).read_text().replace("max: 0.05", "max: 0.2"))
    dry = run("apply", "-f", str(riskier), "--dry-run=server")
    assert dry.out == f"experiment default/{name} would wait for approvals (dry run)\n"
    shown = run("diff", "-f", str(riskier))
    assert shown.code == 1
    assert re.findall(r"^[+-] .*$", shown.out, re.MULTILINE) == ["-    max: 0.05", "+    max: 0.2"]
    told = run("apply", "-f", str(riskier), "--actor", "ann", "--reason", "too strict")
    assert "the revision waits for 1 approval" in told.out
    described = run("describe", name).out
    assert "guardrail errors: max rises from 0.05 to 0.2" in described
    assert f"{digest(told)}, a revision by ann: too strict" in described
    assert run("reject", name, "--revision", digest(told), "--actor", "bob", "--reason", "no").code == 0
    assert run("approve", name, "--revision", digest(told), "--actor", "bob").code == 3
    again = run("apply", "-f", str(riskier), "--actor", "ann")
    assert run("approve", name, "--revision", digest(again), "--actor", "bob").code == 0
    assert run("diff", "-f", str(riskier)).code == 0

    assert run("freeze", name, "--reason", "errors").out == f"experiment default/{name} frozen\n"
    told = run("resume", name, "--reason", "the network", "--actor", "ann")
    assert "the resume waits" in told.out
    assert run("resume", name, "--reason", "now", "--actor", "ann", "--break-glass").out.startswith(f"experiment default/{name} resumed")
    told = run("conclude", name, "--winner", "b", "--reason", "better", "--actor", "ann")
    assert run("approve", name, "--revision", digest(told), "--actor", "bob").code == 0
    assert run("note", name, "--text", "The cache was cold.").out == f"experiment default/{name} noted\n"

    described = run("describe", name).out
    for line in ("ann  BREAK GLASS, resume: now", "ann  conclude: better", "tess  note: The cache was cold."):
        assert line in described
    kept = run("revisions", name)
    assert re.search(r"2 .* ann +bob +[0-9a-f]{12} +- +guardrails\[0\]\.max: 0\.05 -> 0\.2", kept.out)
    assert run("diff", name, "--from", "1", "--to", "2").code == 1
    assert run("diff", name, "--from", "2", "--to", "2").code == 0
    assert run("diff", name, "--from", "9").code == 3


def test_who_approves_a_stage_where_a_proposal_waits_is_told_how_to_agree_to_it(run: Run, approved: tuple[str, str]) -> None:
    path, name = approved
    told = run("approve", name)
    assert (told.code, told.err) == (
        6,
        f"error: default/{name} is DRAFT and cannot be approved\nhint: `allocator describe NAME` shows where it stands, and what waits\n",
    )
    waits = digest(run("start", name, "--actor", "ann"))
    told = run("approve", name, "--actor", "bob")
    assert told.code == 6
    assert told.err == (
        f"error: default/{name} has no stage to approve; what waits is a proposal, {waits}\n"
        "hint: `allocator describe NAME` shows what it is; `allocator approve NAME --revision DIGEST` agrees to it\n"
    )
    assert run("approve", name, "--revision", waits, "--actor", "bob").code == 0
    Path(path).write_text(Path(path).read_text().replace("max: 0.05", "max: 0.2"))
    waits = digest(run("apply", "-f", path, "--actor", "ann"))
    assert run("approve", name, "--actor", "bob").code == 0, "a running experiment has a stage to approve as well"
    assert run("reject", name, "--revision", waits, "--reason", "no").code == 0


def test_the_log_of_what_never_was_is_not_found_and_an_empty_one_is_told(run: Run, approved: tuple[str, str], tmp_path: Path) -> None:
    _, name = approved
    for command in ("list", "export"):
        told = run("audit", command, "nosuch")
        assert (told.code, told.out) == (3, "")
        assert told.err == "error: there is no experiment 'default/nosuch', and no record of one\n"
        assert run("audit", command, f"elsewhere/{name}").code == 3
        assert run("audit", command, name, "-n", "elsewhere").code == 0, "it is known; there are no records of it there"
        assert run("audit", command, "-n", "nowhere").code == 0
    store = ("--store", f"sqlite:{tmp_path / 'a.db'}")
    said("token", "create", "web", "--role", "decide", *store)
    assert said("audit", "export", "nosuch", *store).code == 3
    assert said("audit", "export", *store).code == 0


def test_what_is_in_force_and_what_is_new_is_told_before_it_is_applied(run: Run, write: Write) -> None:
    path, name = write()
    told = run("apply", "-f", path, "--diff")
    assert f"+  name: {name}" in told.out
    assert told.out.endswith(f"experiment default/{name} created\n")
    assert run("apply", "-f", path, "--diff").out == f"experiment default/{name} unchanged\n"


def test_a_stage_is_approved_of_the_spec_that_was_seen(run: Run, started: str) -> None:
    (revision,) = json.loads(run("revisions", started, "-o", "json").out)
    assert run("approve", started, "--revision", revision["digest"], "--actor", "bob").out == f"experiment default/{started} approved\n"
    other = run("approve", started, "--revision", "0" * 64, "--actor", "bob")
    assert (other.code, "no such proposal waits" in other.err) == (3, True)


def test_a_log_is_taken_along_as_lines_or_as_a_sheet(run: Run, approved: tuple[str, str]) -> None:
    _, name = approved
    lines = [json.loads(line) for line in run("audit", "export", name).out.splitlines()]
    sheet = list(csv.DictReader(io.StringIO(run("audit", "export", name, "--format", "csv").out)))
    assert [line["action"] for line in lines] == [row["action"] for row in sheet] == ["experiment.create"]
    everything = run("audit", "export", "-n", "default", "--format", "csv").out
    assert f"default/{name}" in {row["experiment"] for row in csv.DictReader(io.StringIO(everything))}
    assert run("audit", "export", "-n", "nowhere").out == ""


def test_checkpoints_are_read_from_files_and_must_be_checkpoints(run: Run, approved: tuple[str, str], tmp_path: Path) -> None:
    head = json.loads(run("audit", "export").out.splitlines()[-1])
    good, bad, wrong = (tmp_path / name for name in ("good", "bad", "wrong"))
    good.write_text(json.dumps({"time": 1.0, "sequence": head["sequence"], "digest": head["digest"]}) + "\n")
    bad.write_text("{}\n")
    wrong.write_text(json.dumps({"sequence": 1, "digest": "0" * 64}) + "\n")
    assert "holds 1 checkpoints" in run("audit", "verify", "--checkpoint", str(good)).out
    told = run("audit", "verify", "--checkpoint", str(good), "--checkpoint", str(wrong))
    assert told.code == 1
    assert told.err == "error: the audit log was cut off or written anew: it does not hold the checkpoint of record 1\n"
    assert run("audit", "verify", "--checkpoint", str(bad)).code == 2
    assert run("audit", "verify", "--checkpoint", str(tmp_path / "nowhere")).code == 2


def test_half_a_line_of_a_checkpoint_file_is_passed_over_and_said_to_be(run: Run, approved: tuple[str, str], tmp_path: Path) -> None:
    head = json.loads(run("audit", "export").out.splitlines()[-1])
    line = json.dumps({"time": 1.0, "sequence": head["sequence"], "digest": head["digest"]})
    path = tmp_path / "heads"
    path.write_text(f"{line}\n{line[:30]}\n{line}\n{line[:40]}")
    told = run("audit", "verify", "--checkpoint", str(path))
    assert told.code == 0
    assert "holds 2 checkpoints" in told.out
    assert told.err == f"{path}: lines 2, 4 are not whole (a server was killed, or had no room, while it wrote) and are passed over\n"
    path.write_text(json.dumps({"sequence": 1, "digest": "0" * 64}) + "\n" + line[:40])
    assert run("audit", "verify", "--checkpoint", str(path)).code == 1, "the lines that are whole count"


def test_tokens_are_made_listed_rotated_and_revoked_on_a_store(tmp_path: Path) -> None:
    store = ("--store", f"sqlite:{tmp_path / 'a.db'}")
    roles = ("--role", "decide", "--role", "report", "-n", "default", "-n", "shop")
    made = said("token", "create", "web", *roles, "--lifetime", "30d", *store)
    assert re.fullmatch(r"alc_[0-9a-f]{8}_[\w-]{43}_[0-9a-f]{8}\n", made.out)
    token_id = made.out.split("_")[1]
    assert f"token {token_id} of web: decide, report in default, shop" in made.err
    listed = said("token", "list", *store)
    assert re.search(rf"{token_id} +web +decide,report +default,shop .* tess\n", listed.out)
    rotated = said("token", "rotate", token_id, "--overlap", "10m", *store)
    assert rotated.out != made.out
    assert len(json.loads(said("token", "list", "-o", "json", *store).out)) == 2
    assert said("token", "revoke", token_id, *store).out == f"token {token_id} of web revoked\n"
    assert said("token", "revoke", token_id, *store).code == 3
    for wrong in (("--lifetime", "soon"), ("-n", "NO SUCH NAME"), ("--lifetime", "0s")):
        assert said("token", "create", "web", "--role", "view", *wrong, *store).code == 2
    told = said("audit", "export", *store).out
    assert [json.loads(line)["action"] for line in told.splitlines()] == ["token.create", "token.create", "token.rotate", "token.revoke"]
    assert made.out.strip().split("_", 2)[2] not in told


def test_commands_that_lack_what_they_need_say_so(run: Run, approved: tuple[str, str]) -> None:
    path, name = approved
    assert run("note", name).code == 2
    assert run("diff").code == 2
    assert run("diff", name, "-f", path).code == 2
    assert run("approve", name, "--revision", "abc").code == 2
    assert run("start", name, "--break-glass").err.startswith("error: --reason: got nothing")
