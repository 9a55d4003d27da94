"""The README's rollout, from an empty directory to a concluded experiment, run as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import free_address

ROOT = Path(__file__).parent.parent


def blocks() -> list[str]:
    """The shell blocks of the section, in order."""
    section = (ROOT / "README.md").read_text().split("\n## A rollout from beginning to end\n")[1].split("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.timeout(180)
def test_the_rollout_of_the_readme_runs_as_written(tmp_path: Path) -> None:
    found = blocks()
    assert len(found) >= 7
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("allocator", "-m allocator"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    address = free_address()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "ALLOCATOR_LISTEN": address,
        "ALLOCATOR_SERVER": address,
        "ALLOCATOR_METRICS": "none",
    }
    # A reader waits for the server's first lines before going on; the script, for the head of the audit log that comes after them.
    ready = "for i in $(seq 300); do [ -f heads.txt ] && break; sleep 0.2; done\n"
    told = (block + (ready if block.startswith("allocator serve") else "") for block in found)
    script = "set -e -m\ntrap 'kill $(jobs -p)' EXIT\n" + "".join(told)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    shown = done.stdout
    assert "FROZEN  guardrail errors breached by v8" in shown
    assert shown.count("and it is in force") == 3, "start, resume and conclusion were approved"
    actions = re.findall(r"(?:ana|ben|planner) +((?:experiment|stage|proposal)\.\w+)", shown)
    expected = [
        *("experiment.create", "proposal.create", "proposal.approve", "experiment.start", "stage.approve", "experiment.advance"),
        *("experiment.freeze", "proposal.create", "proposal.approve", "experiment.resume"),
        *("proposal.create", "proposal.approve", "experiment.conclude", "experiment.note"),
    ]
    assert actions[-len(expected) :] == expected
    assert "audit log intact" in shown
    page = (tmp_path / "rollout" / "report.html").read_text()
    for word in ("INC-7", "three times the clicks", "CONCLUDED", "data:image/png"):
        assert word in page, word
    written = [path for path in (tmp_path / "rollout").rglob("*") if path.is_file() and path.name != "traffic.py"]
    assert not [path for path in written if b"user-7-0.01" in path.read_bytes()], "no unit id is written anywhere"
