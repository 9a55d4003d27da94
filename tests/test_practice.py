"""The numbers of the page for practitioners are those of the code."""

from __future__ import annotations

import math
import re
from importlib.resources import files

import numpy as np
import pytest

from allocator.core.evidence_rates import log_safety, safety_grid
from allocator.core.guardrail import SAFETY_ALPHA

PAGE = files("allocator").joinpath("assets/docs/practice.md").read_text(encoding="utf-8")


def outcomes_to_prove(limit: float, rate: float) -> int:
    """The fewest outcomes that prove safety when failures come at exactly this rate."""
    n = np.arange(1, 50_000)
    return int(n[(log_safety(safety_grid(limit), n, n * rate) >= -math.log(SAFETY_ALPHA)).argmax()])


def test_the_table_says_how_many_clean_outcomes_prove_each_limit() -> None:
    head, row = (re.search(rf"^\| {name} \|(.*)\|$", PAGE, re.MULTILINE) for name in ("limit", "outcomes"))
    assert head is not None
    assert row is not None
    limits = [float(cell.strip(" %")) / 100 for cell in head[1].split("|")]
    counts = [int(cell.replace(",", "")) for cell in row[1].split("|")]
    assert [outcomes_to_prove(limit, 0.0) for limit in limits] == counts
    assert len(counts) == 6


@pytest.mark.parametrize(("share", "outcomes"), [(0.25, "965"), (0.5, "2,875"), (0.75, "15,264")])
def test_the_text_says_how_long_a_rate_near_the_limit_takes(share: float, outcomes: str) -> None:
    assert outcomes in PAGE
    assert f"{outcomes_to_prove(0.01, 0.01 * share):,}" == outcomes
