"""`-o`: which ways of saying each command has, what they say, and that the README tells it as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from enum import EnumType
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from ruamel.yaml import YAML

from allocator.cli import app
from tests.cli.conftest import Said, said

Run = Callable[..., Said]
Write = Callable[..., tuple[str, str]]
README = (Path(__file__).parents[2] / "README.md").read_text()


def documents(told: Said) -> list[Any]:
    assert told.code == 0, told
    return list(YAML(typ="safe", pure=True).load_all(told.out))


def commands(group: typer.Typer, path: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every command, and the forms that its `output` may have."""
    for command in group.registered_commands:
        kind = get_type_hints(command.callback).get("output")
        forms = [each for each in (kind, *get_args(kind)) if isinstance(each, EnumType)]
        yield path + (command.name or command.callback.__name__), tuple(form.value for each in forms for form in each)
    for inside in group.registered_groups:
        yield from commands(inside.typer_instance, f"{inside.name} ")


def test_the_readme_names_the_forms_of_every_command() -> None:
    section = README.split("\n### Command line\n")[1].split("\n### ")[0]
    table = re.search(r"^\| `-o` \|.*?\n\n", section, re.DOTALL | re.MULTILINE)[0]
    told = {}
    for line in table.strip().splitlines()[2:]:
        forms, names = line.strip("| ").split(" | ")
        for name in re.findall(r"`([a-z ]+)`", names):
            assert name not in told, name
            told[name] = tuple(re.findall(r"`(\w+)`", forms))
    assert told == dict(commands(app))


def test_a_list_says_names_that_other_commands_take(run: Run, started: str) -> None:
    sequences = run("audit", "list", started, "-o", "name").out.split()
    assert sequences == [str(record["sequence"]) for record in json.loads(run("audit", "list", started, "-o", "json").out)]
    (number,) = run("revisions", started, "-o", "name").out.split()
    assert run("diff", started, "--from", number, "--to", number).code == 0
    for verb in ("describe", "status"):
        assert run(verb, started, "-o", "name").out == f"default/{started}\n"
    assert run("note", started, "--text", "seen", "-o", "name").out == f"default/{started}\n"
    assert documents(run("note", started, "--text", "seen", "-o", "yaml"))[0]["metadata"]["name"] == started


def test_wide_says_what_the_table_leaves_out(run: Run, write: Write, tmp_path: Path) -> None:
    path, name = write(replace=("{name: b}", '{name: b, modelUri: "models:/ranker/8"}'))
    assert run("apply", "-f", path).code == 0
    for command, seen in {
        ("audit", "list", name): "DIGEST",
        ("revisions", name): "AUDIT RECORD",
        ("describe", name): "models:/ranker/8",
        ("assets", "list"): "BYTES",
    }.items():
        assert seen not in run(*command).out, command
        assert seen in run(*command, "-o", "wide").out, command
    assert "team=search" in run("describe", name, "-o", "wide").out
    assert run("status", name, "-o", "wide").out.startswith(f"default/{name}  DRAFT")


def test_tokens_are_listed_and_revoked_in_every_form(tmp_path: Path) -> None:
    store = ("--store", f"sqlite:{tmp_path / 'a.db'}")
    said("token", "create", "web", "--role", "decide", "--decide-rate", "77", *store)
    (name,) = said("token", "list", "-o", "name", *store).out.split()
    assert re.fullmatch("[0-9a-f]{8}", name)
    assert "DECIDE/S" in said("token", "list", "-o", "wide", *store).out
    assert documents(said("token", "list", "-o", "yaml", *store))[0]["decideRate"] == 77
    assert documents(said("token", "revoke", name, "-o", "yaml", *store))[0]["id"] == name
    assert said("token", "list", *store).err == "nothing found\n"


def test_checked_files_come_back_as_they_were_understood(write: Write) -> None:
    (one, name), (two, other) = write(), write()
    assert said("lint", "-f", one).out == f"experiment default/{name} valid\n"
    assert said("lint", "-f", one, "-f", two, "-o", "name").out.split() == [f"default/{name}", f"default/{other}"]
    assert json.loads(said("lint", "-f", one, "-o", "json").out)["metadata"]["name"] == name
    assert [each["metadata"]["name"] for each in documents(said("lint", "-f", one, "-f", two, "-o", "yaml"))] == [name, other]


def test_a_difference_is_a_document_too(run: Run, write: Write) -> None:
    path, name = write()
    told = run("diff", "-f", path, "-o", "json")
    found = json.loads(told.out)
    assert told.code == 1
    assert (found["experiment"], found["differs"]) == (f"default/{name}", True)
    assert f"+  name: {name}" in found["difference"]
    run("apply", "-f", path)
    (found,) = documents(run("diff", "-f", path, "-o", "yaml"))
    assert (found["before"], found["after"], found["differs"], found["difference"]) == ("(server)", "(file)", False, [])


def test_a_store_that_is_whole_and_one_that_is_not_are_told_as_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    said("token", "create", "web", "--role", "decide", "--store", f"sqlite:{path}")
    assert documents(said("db", "check", str(path), "-o", "yaml")) == [{"file": str(path), "whole": True, "damage": []}]
    path.write_bytes(path.read_bytes()[:-4096])
    told = said("db", "check", str(path), "-o", "json")
    assert told.code == 1
    assert json.loads(told.out)["whole"] is False
    assert json.loads(told.out)["damage"]


@pytest.mark.parametrize("command", [("version",), ("doctor",)])
def test_what_is_here_is_told_in_both_kinds_of_document(command: tuple[str, ...], run: Run) -> None:
    found = json.loads(run(*command, "-o", "json").out)
    assert [each.keys() for each in documents(run(*command, "-o", "yaml"))] == [
        each.keys() for each in (found if isinstance(found, list) else [found])
    ]


def test_files_that_come_along_are_listed_with_their_sizes() -> None:
    found = json.loads(said("assets", "list", "-o", "json").out)
    assert [each["path"] for each in found] == said("assets", "list").out.split() == said("assets", "list", "-o", "name").out.split()
    assert all(each["bytes"] > 0 for each in found)
