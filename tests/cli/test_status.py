"""`status`: once, followed in a pipe, watched on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML

from tests.cli.conftest import ALLOCATOR, Said

Run = Callable[..., Said]
PATIENCE_SECONDS = 30.0


def test_status_shows_state_weights_evidence_and_the_last_records(run: Run, started: str) -> None:
    shown = run("status", started)
    assert shown.code == 0
    for word in (f"default/{started}", "RUNNING", "stage 0 of 0 to 2", "EVIDENCE / BREACH AT", "experiment.start", "tess"):
        assert word in shown.out, word


def test_status_is_a_document_too(run: Run, started: str) -> None:
    assert json.loads(run("status", started, "-o", "json").out)["experiment"]["metadata"]["name"] == started
    assert started in run("status", started, "-o", "yaml").out


def test_only_the_newest_records_are_shown(run: Run, started: str) -> None:
    for number in range(7):
        assert run("freeze", started, "--reason", f"look {number}").code == 0
    shown = run("status", started).out
    assert "look 6" in shown
    assert "look 2" in shown
    assert "look 1" not in shown


def test_following_in_a_pipe_prints_what_changed_and_ends_with_the_experiment(server: Any, run: Run, started: str) -> None:
    lines = _followed(server, run, started, "-o", "json")
    states = [json.loads(line)["experiment"]["status"]["state"] for line in lines]
    assert states[0] == "RUNNING"
    assert states[-1] == "ROLLED_BACK"
    assert len(lines) == len(set(lines)), "nothing is printed twice"


def test_following_in_yaml_is_a_document_for_each_state(server: Any, run: Run, started: str) -> None:
    text = "\n".join(_followed(server, run, started, "-o", "yaml"))
    states = [found["experiment"]["status"]["state"] for found in YAML(typ="safe", pure=True).load_all(text)]
    assert (states[0], states[-1]) == ("RUNNING", "ROLLED_BACK")


def test_following_as_text_shows_each_state(server: Any, run: Run, started: str) -> None:
    text = "\n".join(_followed(server, run, started))
    assert text.index("RUNNING") < text.index("ROLLED_BACK")


def test_an_unknown_experiment_is_told(run: Run) -> None:
    assert run("status", "nobody", "--watch").code == 3


def test_a_terminal_is_drawn_in_place_until_the_end(server: Any, run: Run, started: str) -> None:
    ours, theirs = pty.openpty()
    command = [*ALLOCATOR, "status", started, "--watch", "--interval", "0.05", "--server", server.address]
    process = subprocess.Popen(
        command, stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "50"}
    )
    os.close(theirs)
    seen = ""
    deadline = time.monotonic() + PATIENCE_SECONDS
    rolled_back = False
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        assert time.monotonic() < deadline, seen[-2000:]
        if select.select([ours], [], [], 0.2)[0]:
            try:
                seen += os.read(ours, 65536).decode(errors="replace")
            except OSError:  # the other end was closed
                break
        if not rolled_back and "RUNNING" in seen:
            assert run("rollback", started, "--reason", "enough seen").code == 0
            rolled_back = True
    os.close(ours)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert "ROLLED_BACK" in seen
    assert "\x1b[" in seen, "a terminal is drawn in place"
    assert b"the experiment is ROLLED_BACK" in said


def _followed(server: Any, run: Run, name: str, *arguments: str) -> list[str]:
    """What `--watch` prints in a pipe, of an experiment that is rolled back meanwhile."""
    command = [*ALLOCATOR, "status", name, "--watch", "--interval", "0.05", *arguments, "--server", server.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    lines = [first]
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    reader.start()
    assert run("rollback", name, "--reason", "enough seen").code == 0
    assert process.wait(PATIENCE_SECONDS) == 0
    reader.join(PATIENCE_SECONDS)
    return [line.rstrip("\n") for line in lines if line.strip()]
