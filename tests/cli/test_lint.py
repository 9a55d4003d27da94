"""Thirty wrong specs: `lint` names the line, the field, what came, and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import said

GOOD = (Path(__file__).parents[2] / "allocator" / "assets" / "examples" / "ranker.yaml").read_text()

WRONG = {  # what is replaced in a good spec, by what; the field that the complaint names, and words that it must have
    "a word that no field has": ("owner: search-ml", "ownr: search-ml", "spec", "ownr"),
    "a name with a blank": ("name: ranker,", 'name: "a b",', "metadata.name", "a b"),
    "a namespace in capitals": ("namespace: default", "namespace: Default", "metadata.namespace", "Default"),
    "another kind": ("kind: Experiment", "kind: Deployment", "kind", "Deployment"),
    "another version": ("apiVersion: allocator/v1", "apiVersion: allocator/v9", "apiVersion", "allocator/v9"),
    "two incumbents": ('- {name: v8, model', '- {name: v8, incumbent: true, model', "spec.arms", "incumbent"),
    "no incumbent": ("incumbent: true, ", "", "spec.arms", "incumbent"),
    "an arm twice": ("{name: v8, modelUri", "{name: v7, modelUri", "spec.arms", "v7"),
    "an unknown assignment": ("assignment: STICKY", "assignment: GLUED", "spec.assignment", "GLUED"),
    "an unknown reward model": ("model: BERNOULLI", "model: COIN", "spec.reward.model", "COIN"),
    "a window that is no time": ("window: 1800s", "window: soon", "spec.reward.window", "soon"),
    "a window of nothing": ("window: 1800s", "window: 0s", "spec.reward.window", "0"),
    "a missing value outside the range": ("missing: 0", "missing: 7", "spec.reward.missing", "7"),
    "a policy that there is not": ("kind: THOMPSON", "kind: GREEDY", "spec.policy.kind", "GREEDY"),
    "a floor above one": ("floor: 0.005", "floor: 1.5", "spec.policy.floor", "1.5"),
    "a negative half-life": ("halfLife: 604800s", "halfLife: -1s", "spec.policy.halfLife", "-1"),
    "a cap above one": ("perCandidate: 0.5", "perCandidate: 50", "spec.exposure.perCandidate", "50"),
    "a cap that is text": ("total: 0.5", "total: half", "spec.exposure.total", "half"),
    "a budget below nothing": ("requests: 100000", "requests: -3", "spec.exposure.budget.requests", "-3"),
    "a guardrail without a limit": ("metric: error, max: 0.02,", "metric: error,", "spec.guardrails[0]", "max"),
    "a guardrail with two limits": ("max: 0.02,", "max: 0.02, min: 0.01,", "spec.guardrails[0]", "max"),
    "a limit of nothing": ("max: 0.02,", "max: 0,", "spec.guardrails[0].max", "0"),
    "a limit above the range": ("max: 0.20,", "max: 20,", "spec.guardrails[1].max", "20"),
    "a quantile above one": ("quantile: 0.99", "quantile: 99", "spec.guardrails[2].quantile", "99"),
    "a ratio of nothing": ("maxRatio: 1.2", "maxRatio: 0", "spec.guardrails[3].maxRatio", "0"),
    "an unknown action": ("onBreach: DRAIN", "onBreach: PANIC", "spec.guardrails[2].onBreach", "PANIC"),
    "a guardrail's name twice": ("{name: outage,", "{name: errors,", "spec.guardrails", "errors"),
    "an alpha that excludes nothing": ("alpha: 0.001", "alpha: 1", "spec.alpha", "1"),
    "a range upside down": ("min: 0, max: 10000", "min: 10000, max: 0", "spec.metrics[0]", "10000"),
    "a stage that narrows": ("{cap: 0.50}", "{cap: 0.05}", "spec.ramp[3]", "0.05"),
    "a shadow stage that serves": ("{cap: 0.0, shadow", "{cap: 0.2, shadow", "spec.ramp[0]", "shadow"),
    "approvals by nobody": ("approvals: 1}", "approvals: -1}", "spec.ramp[2].approvals", "-1"),
    "a probability above one": ("probBest: 0.99", "probBest: 99", "spec.conclude.probBest", "99"),
    "a key twice": ("alpha: 0.001", "alpha: 0.001\n  alpha: 0.002", "", "alpha"),
    "a bracket left open": ("labels: {team: search}}", "labels: {team: search}", "", ""),
}


def test_the_good_spec_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    assert said("lint", "-f", str(path)).code == 0
    assert len(WRONG) >= 30


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_is_told_with_its_line_its_field_and_what_came(case: str, tmp_path: Path) -> None:
    old, new, field, words = WRONG[case]
    assert GOOD.count(old) >= 1
    at = GOOD.index(old)
    path = tmp_path / "wrong.yaml"
    path.write_text(GOOD[:at] + new + GOOD[at + len(old) :])
    line = GOOD[:at].count("\n") + 1
    told = said("lint", "-f", str(path))
    assert told.code == 2
    found = re.findall(rf"{re.escape(str(path))}:(\d+)(?::\d+)?:? (.*)", told.err)
    assert found, told.err
    fitting = [(int(number), text) for number, text in found if field in text and words in text]
    assert fitting, told.err
    assert any(abs(number - line) <= LINES_AWAY.get(case, 0) for number, _ in fitting), (line, told.err)


LINES_AWAY = {  # of a list, or of what only the end of the file shows
    "two incumbents": 2,
    "no incumbent": 2,
    "a key twice": 1,
    "a bracket left open": 3,
    "a word that no field has": 1,
}
