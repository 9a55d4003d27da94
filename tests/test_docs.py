"""What the statistics page says of the code is true: its names import, its signatures exist, its examples run."""

from __future__ import annotations

import importlib
import inspect
import re
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = files("allocator").joinpath("assets/docs/statistics.md").read_text(encoding="utf-8")
SECTIONS = [
    *("0", "1", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7"),
    *("2", "2.1", "2.2", "2.3", "2.4", "3", "4", "4.1", "4.2", "4.3", "4.4", "4.5"),
    *("5", "5.1", "5.2", "5.3", "5.4", "5.5", "5.6", "5.7", "5.8", "5.9"),
    *("6", "6.1", "6.2", "6.3", "6.4", "7", "8", "8.1", "8.2", "8.3", "8.4", "9"),
]
FAMILIES = {
    *("Posterior and best arm", "Policy weights", "Exposure and slots", "Evidence on a rate, and when to freeze"),
    *("The label kernel: a candidate against the incumbent", "Confidence sequences", "Sample ratio", "Calibration"),
}

ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|")) for line in PAGE.splitlines() if line.startswith("| ") and line[2].isdigit()
]
NAMES = sorted(set(re.findall(r"`(allocator(?:\.\w+)+)(?:\(([\w, ]*)\))?`", PAGE)))
EXAMPLES = re.findall(r"^### ([^\n]+)\n\n```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def resolve(name: str) -> object:
    """The object of a dotted name: the longest part that is a module is imported, the rest is looked up in it."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[size:]:
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(name)


def test_every_section_has_its_row_in_order():
    assert list(dict.fromkeys(row[0] for row in ROWS)) == SECTIONS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1][:30]}")
def test_a_row_names_functions_and_tests_or_says_that_there_are_none(row):
    _, topic, functions, tested = row
    assert topic
    if functions == "not in this version":
        return
    assert re.findall(r"`allocator\.[^`]+`", functions)
    paths = re.findall(r"`(tests/[^`]+)`", tested)
    assert paths
    for path in paths:
        assert (ROOT / path).is_file(), f"{path} does not exist"


@pytest.mark.parametrize(("name", "arguments"), NAMES, ids=lambda value: value)
def test_every_name_imports_and_takes_the_arguments_that_are_shown(name, arguments):
    found = resolve(name)
    if arguments:
        assert set(arguments.split(", ")) <= set(inspect.signature(found).parameters)


def test_no_name_of_ours_is_written_in_a_way_that_is_not_checked():
    assert set(re.findall(r"allocator\.core(?:\.\w+)*", "\n".join("|".join(row) for row in ROWS))) <= {name for name, _ in NAMES}


def test_every_family_has_an_example_that_asserts_something():
    assert {title for title, _ in EXAMPLES} >= FAMILIES
    assert len(EXAMPLES) == PAGE.count("```python")
    assert all("\nassert " in code for _, code in EXAMPLES)


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example_runs_and_its_asserts_hold(title, code):
    exec(compile(code, title, "exec"), {})
