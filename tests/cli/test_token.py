"""`token create --out`, `token rotate --out`: a token's file is whole or as it was, and nobody else's to read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from allocator.client import Access
from tests.cli.conftest import Said, said
from tests.processes import served


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, str]:
    return ("--store", f"sqlite:{tmp_path / 'a.db'}")


def create(*more: str) -> Said:
    return said("token", "create", "web", "--role", "admin", "-n", "*", *more)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_kept_in_a_file_for_its_owner_alone(tmp_path: Path, store: tuple[str, str]) -> None:
    file = tmp_path / "web.token"
    told = create("--out", str(file), *store)
    assert (told.code, told.out) == (0, "")
    assert told.err.endswith(f"\nwrote {file}\n")
    assert Access(token_file=str(file)).metadata()[0][1].startswith("Bearer alc_")
    assert mode(file) == 0o600
    assert file.read_text().strip() not in told.err
    document = said("token", "rotate", file.read_text().split("_")[1], "--out", str(file), "-o", "json", *store)
    assert "text" not in json.loads(document.out)
    assert json.loads(document.out)["token"]["id"] == file.read_text().split("_")[1]
    assert sorted(path.name for path in tmp_path.iterdir() if "token" in path.name) == ["web.token"], "nothing is left over"


@pytest.fixture
def rotating(tmp_path: Path, store: tuple[str, str]) -> Iterator[tuple[Path, Callable[..., Said]]]:
    """An admin's token in a file, and `token rotate` that says who it is with that file, against a server that asks."""
    file = tmp_path / "root.token"
    create("--out", str(file), *store)
    with served(store[1], "--access", "tokens", "--drain", "0") as server:
        yield file, lambda *more: said("token", "rotate", *more, "--token-file", str(file), server=server.address)
        server.stop()


def test_a_token_is_rotated_in_the_file_that_says_who_asks(rotating: tuple[Path, Callable[..., Said]]) -> None:
    file, rotate = rotating
    os.chmod(file, 0o644)
    before = file.read_text()
    assert rotate(before.split("_")[1], "--out", str(file)).code == 0
    assert file.read_text() != before
    assert mode(file) == 0o600
    assert rotate(file.read_text().split("_")[1], "--out", str(file)).code == 0, "what is there now is good"


def test_a_refused_rotation_leaves_the_file_as_it_was(rotating: tuple[Path, Callable[..., Said]]) -> None:
    file, rotate = rotating
    before, inode = file.read_text(), file.stat().st_ino
    assert rotate("00000000", "--out", str(file)).code == 3
    assert rotate(before.split("_")[1], "--overlap", "100d", "--out", str(file)).code == 2
    assert (file.read_text(), file.stat().st_ino) == (before, inode)
    assert sorted(path.name for path in file.parent.iterdir() if "token" in path.name) == ["root.token"]


def test_no_token_is_made_for_a_file_that_cannot_be_written(tmp_path: Path, store: tuple[str, str]) -> None:
    for wrong in (tmp_path / "nowhere" / "web.token", tmp_path, Path(os.devnull)):
        told = create("--out", str(wrong), *store)
        assert told.code == 2
        assert told.err.startswith("error: --out: ")
    assert Path(os.devnull).is_char_device()
    assert json.loads(said("token", "list", "-o", "json", *store).out) == []


def test_a_token_whose_text_is_lost_on_the_way_to_the_disk_is_named(
    tmp_path: Path, store: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "web.token"
    file.write_text("as it was")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("allocator.cli.token.os.fsync", full)
    told = create("--out", str(file), *store)
    monkeypatch.undo()
    (lost,) = json.loads(said("token", "list", "-o", "json", *store).out)
    assert told.code == 1
    assert f"error: token {lost['id']} was made, and {file} cannot be written: No space left on device\nhint: " in told.err
    assert "allocator token revoke" in told.err
    assert file.read_text() == "as it was"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_link_stays_a_link(tmp_path: Path, store: tuple[str, str]) -> None:
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "web.token", tmp_path / "link"
    link.symlink_to(file)
    assert create("--out", str(link), *store).code == 0
    assert link.is_symlink()
    assert file.read_text().startswith("alc_")
