"""`assets`: what is written is what comes along, and nobody's edits are lost."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import said

ASSETS = Path(__file__).parents[2] / "allocator" / "assets"


def test_every_file_is_listed_and_exported_as_it_is(tmp_path: Path) -> None:
    listed = said("assets", "list").out.splitlines()
    assert {Path(line) for line in listed} == {path.relative_to(ASSETS) for path in ASSETS.rglob("*") if path.is_file()}
    shown = said("assets", "export", str(tmp_path / "new"))
    assert shown.code == 0
    assert f"{len(listed)} files written" in shown.err
    for line in listed:
        assert (tmp_path / "new" / line).read_bytes() == (ASSETS / line).read_bytes()


def test_an_edited_file_is_not_overwritten_unless_insisted(tmp_path: Path) -> None:
    assert said("assets", "export", str(tmp_path), "--only", "examples").code == 0
    edited = tmp_path / "examples" / "minimal.yaml"
    edited.write_text("mine")
    refused = said("assets", "export", str(tmp_path), "--only", "examples")
    assert refused.code == 5
    assert "--force" in refused.err
    assert edited.read_text() == "mine"
    assert said("assets", "export", str(tmp_path), "--only", "examples", "--force").code == 0
    assert edited.read_text() != "mine"


def test_exporting_again_changes_nothing(tmp_path: Path) -> None:
    assert [said("assets", "export", str(tmp_path)).code for _ in range(2)] == [0, 0]


def test_an_unknown_directory_is_told(tmp_path: Path) -> None:
    told = said("assets", "export", str(tmp_path), "--only", "pictures")
    assert told.code == 2
    assert "--only: got 'pictures'" in told.err
    assert not list(tmp_path.iterdir())
