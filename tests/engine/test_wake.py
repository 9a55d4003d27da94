"""When the planner looks at once, and that nothing is missed by not looking."""

from __future__ import annotations

import pytest

from allocator.core.experiment import Exposure, Guardrail, Metric, Per, Segment
from allocator.core.outcome import Outcome
from tests.conftest import two_arms

GUARDRAILS = (
    Guardrail("errors", "error", max=0.02),
    Guardrail("tail", "latency", quantile=0.9, max=250.0),
    Guardrail("quality", "thumbs", min=0.5, per=Per.SEGMENT),
    Guardrail("slower", "cost", max_ratio=1.2),
)
HARMLESS = {"error": 0.0, "latency": 250.0, "thumbs": 1.0, "cost": 0.0}
WATCHED = two_arms(
    exposure=Exposure(),
    guardrails=GUARDRAILS,
    metrics=(Metric("latency", 0.0, 1000.0), Metric("cost", 0.0, 10.0)),
    segments=(Segment("mobile", {"device": ("ios",)}),),
)


@pytest.mark.parametrize(
    ("outcome", "woken"),
    [
        ({"reward": 0.0}, False),
        ({"reward": 1.0}, False),
        ({"metrics": HARMLESS}, False),
        ({"metrics": {"error": 1.0}}, True),
        ({"metrics": {**HARMLESS, "error": 0.001}}, True),
        ({"metrics": {"latency": 250.1}}, True),
        ({"metrics": {"thumbs": 0.0}}, True),
        ({"metrics": {"cost": 0.5}}, True),
    ],
)
def test_only_a_loss_that_a_guardrail_looks_at_wakes_the_planner(rehearsal, outcome, woken):
    engine = rehearsal.run(WATCHED)
    decision = rehearsal.decide()
    engine.planner._woken.clear()
    rehearsal.report([Outcome(decision.id, **outcome)])
    assert engine.planner._woken.is_set() is woken
    rehearsal.plan()
    assert sum(arm.outcomes for arm in engine.describe("ranker").arms) == ("reward" in outcome)


@pytest.mark.parametrize("seed", range(5))
def test_outcomes_without_a_loss_never_raise_evidence_of_harm(rehearsal, seed):
    rehearsal.rng.seed(seed)
    engine = rehearsal.run(WATCHED)

    def evidence():
        return {(f.guardrail, f.arm, f.segment): f.log_evidence for f in engine.describe("ranker").findings}

    def values(_arm):
        chance = rehearsal.chance
        return {"error": chance(0.03), "latency": 200 + 100 * chance(0.1), "thumbs": chance(0.6), "cost": 5 * chance(0.2)}

    for _ in range(6):
        rehearsal.serve(200, values, attributes={"device": "ios"} if rehearsal.chance(0.5) else None)
        decisions = [rehearsal.decide() for _ in range(300)]
        rehearsal.report([])
        before = evidence()
        assert len(before) == 9  # of the incumbent too, where a guardrail is no comparison with it
        rehearsal.report([Outcome(decision.id, 0.0, HARMLESS) for decision in decisions])
        after = evidence()
        assert all(after[stream] <= told for stream, told in before.items()), (before, after)
        rehearsal.clock.pass_(700.0)
