"""`doctor`: what is well is said to be, what is not comes with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from allocator.cli import doctor
from tests.cli.conftest import Said, said
from tests.processes import served

Run = Callable[..., Said]


def test_a_healthy_server_and_machine_are_well(server: Any, run: Run, started: str) -> None:
    found = _findings(run("doctor", "-o", "json"))
    assert found["server"]["state"] == "ok"
    assert found["audit"]["state"] == "ok"
    assert found["packages"]["state"] == "ok"
    assert not [name for name, finding in found.items() if finding["state"] == "fail"]


def test_a_table_names_everything_looked_at(run: Run) -> None:
    shown = run("doctor")
    assert shown.code == 0
    for word in ("python", "kernel cache", "open files", "audit", "experiments"):
        assert word in shown.out


def test_a_server_that_is_away_fails_and_says_what_to_do() -> None:
    shown = said("doctor")
    assert shown.code == 1
    assert "allocator serve" in shown.out
    assert "not well: server" in shown.err


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Callable[..., Said]]:
    """Runs the command line with a token of these roles and namespaces, against a server that asks for tokens."""
    store = f"sqlite:{tmp_path / 'a.db'}"
    texts = {}
    for asked in ("view default", "view *", "decide default", "view default other"):
        role, *namespaces = asked.split()
        more = [word for namespace in namespaces for word in ("-n", namespace)]
        texts[asked] = said("token", "create", "who", "--role", role, *more, "--store", store).out.strip()
    with served(store, "--access", "tokens", "--drain", "0") as server:
        yield lambda asked, *arguments: said(*arguments, server=server.address, ALLOCATOR_TOKEN=texts.get(asked, asked))
        server.stop()


def test_what_a_token_may_not_is_a_warning_that_names_what_is_needed(guarded: Callable[..., Said]) -> None:
    shown = guarded("view default", "doctor", "-o", "json")
    found = _findings(shown)
    assert (shown.code, shown.err) == (0, "")
    assert found["server"]["state"] == "ok"
    assert found["audit"]["state"] == "warn"
    assert "view in every namespace" in found["audit"]["hint"]
    assert "experiments" in found, "it goes on"
    assert _findings(guarded("view *", "doctor", "-o", "json"))["audit"]["state"] == "ok"
    for asked in ("decide default", "view default other"):
        shown = guarded(asked, "doctor", "-o", "json")
        assert shown.code == 0
        assert _findings(shown)["server"]["state"] == "warn"
        assert "answers" in _findings(shown)["server"]["found"]
        assert "a token that may" in _findings(shown)["server"]["hint"]


def test_a_failure_comes_with_the_hint_of_its_own_error(guarded: Callable[..., Said]) -> None:
    shown = guarded("alc_no_token", "doctor", "-o", "json")
    assert shown.code == 1
    assert "--token-file" in _findings(shown)["server"]["hint"]
    assert "allocator serve" in _findings(said("doctor", "-o", "json"))["server"]["hint"]


def test_a_frozen_experiment_is_a_warning(run: Run, started: str) -> None:
    assert run("freeze", started, "--reason", "a look").code == 0
    shown = run("doctor", "-o", "json")
    assert shown.code == 0
    assert started in _findings(shown)["frozen"]["found"]


def test_the_store_file_of_a_running_server_is_intact(server: Any, run: Run) -> None:
    found = _findings(run("doctor", "-o", "json", "--store", f"sqlite:{server.store}"))
    assert found["store file"]["state"] == "ok"
    assert "intact" in found["store file"]["found"]


def test_a_broken_store_file_fails(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "broken.db"
    path.write_bytes(b"SQLite format 3\0" + b"nonsense" * 1000)
    shown = run("doctor", "-o", "json", "--store", f"sqlite:{path}")
    assert shown.code == 1
    assert _findings(shown)["store file"]["state"] == "fail"


def test_a_store_file_that_is_not_there_is_a_warning(run: Run, tmp_path: Path) -> None:
    shown = run("doctor", "-o", "json", "--store", f"sqlite:{tmp_path / 'none.db'}")
    assert _findings(shown)["store file"]["state"] == "warn"
    assert not (tmp_path / "none.db").exists()


def test_a_missing_package_fails_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "numba" else "1")
    found = {finding.what: finding for finding in doctor.machine()}
    assert found["packages"].state is doctor.State.FAIL
    assert "numba" in found["packages"].found


def _findings(shown: Said) -> dict[str, Any]:
    return {finding["what"]: finding for finding in json.loads(shown.out)}
