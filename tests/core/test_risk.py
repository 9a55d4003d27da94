"""What makes a revision riskier: a row for every field of the spec, both ways, and none left out."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import pytest

from allocator.core import experiment as e
from allocator.core.experiment import Experiment
from allocator.core.risk import RULES, riskier
from tests.conftest import two_arms

BASE = two_arms(
    arms=(e.Arm("old", True, "models:/r/1"), e.Arm("new", False, "models:/r/2")),
    policy=e.Policy(kind=e.PolicyKind.FIXED, shares={"old": 0.9, "new": 0.1}),
    exposure=e.Exposure(0.3, 0.5, True, 50, e.Budget(1000, 100, 50.0), 0.1),
    guardrails=(
        e.Guardrail("high", "error", max=0.02, persistence=2, window_seconds=60.0),
        e.Guardrail("low", "quality", min=0.5),
        e.Guardrail("tail", "latency", quantile=0.99, max=250.0, on_breach=e.BreachAction.DRAIN),
        e.Guardrail("ratio", "error", max_ratio=1.2),
    ),
    segments=(e.Segment("mobile", {"device": ("ios",)}),),
    opt_out="no_experiments",
    ramp=(e.RampStage(0.0, True, 60.0), e.RampStage(0.1, False, 3600.0, 100, 1), e.RampStage(0.5, False, 0.0, 0, 1)),
    conclude=e.Conclude(0.99, 0.01, e.ConcludeAction.PROMOTE),
    metrics=(e.Metric("latency", 0.0, 1000.0),),
    target={"country": ("fr", "de")},
    pins={"t1": "old", "t2": "new"},
    approval=e.Approval(2, 3600.0),
)
POOLED = replace(BASE, policy=e.Policy())


def of(part: str, index: int | None = None, base: Experiment = BASE, **values: object) -> tuple[Experiment, Experiment]:
    """The base, and the base with some values of one part changed."""
    found = getattr(base, part)
    if index is None:
        return base, replace(base, **{part: replace(found, **values)})
    return base, replace(base, **{part: (*found[:index], replace(found[index], **values), *found[index + 1 :])})


def whole(base: Experiment = BASE, **values: object) -> tuple[Experiment, Experiment]:
    return base, replace(base, **values)


def budget(**values: object) -> tuple[Experiment, Experiment]:
    return of("exposure", budget=replace(BASE.exposure.budget, **values))


RISKY, SAFE = True, False
ROWS = {  # the field: the pair of specs that differ in it, and whether the second is riskier
    "Experiment.name": [(whole(name="x"), RISKY)],
    "Experiment.namespace": [(whole(namespace="x"), RISKY)],
    "Experiment.labels": [(whole(labels={"a": "b"}), SAFE)],
    "Experiment.owner": [(whole(owner="x"), SAFE)],
    "Experiment.hypothesis": [(whole(hypothesis="x"), SAFE)],
    "Experiment.lineage": [(whole(lineage={"a": "b"}), SAFE)],
    "Experiment.arms": [(whole(arms=(*BASE.arms, e.Arm("newer"))), RISKY), (whole(arms=BASE.arms[:1]), RISKY)],
    "Experiment.reward": [(whole(reward=e.Reward("other")), RISKY)],
    "Experiment.assignment": [(whole(assignment=e.Assignment.PER_REQUEST), RISKY)],
    "Experiment.policy": [(whole(policy=e.Policy()), RISKY)],
    "Experiment.exposure": [(whole(exposure=e.Exposure()), RISKY)],
    "Experiment.guardrails": [
        (whole(guardrails=BASE.guardrails[1:]), RISKY),
        (whole(guardrails=(*BASE.guardrails, e.Guardrail("more", "error", max=0.5))), SAFE),
        (whole(guardrails=BASE.guardrails[::-1]), SAFE),
    ],
    "Experiment.alpha": [(whole(alpha=0.0005), RISKY), (whole(alpha=0.01), SAFE)],
    "Experiment.segments": [(whole(segments=()), RISKY)],
    "Experiment.opt_out": [
        (whole(opt_out=""), RISKY),
        (whole(opt_out="other"), RISKY),
        (whole(replace(BASE, opt_out=""), opt_out="no_experiments"), SAFE),
    ],
    "Experiment.ramp": [
        (whole(ramp=BASE.ramp[:2]), SAFE),
        (whole(ramp=BASE.ramp[1:]), RISKY),
        (whole(ramp=()), RISKY),
        (whole(ramp=(*BASE.ramp, e.RampStage(0.5))), SAFE),
        (whole(replace(BASE, ramp=BASE.ramp[:2]), ramp=BASE.ramp), RISKY),
    ],
    "Experiment.conclude": [(whole(conclude=None), SAFE), (whole(replace(BASE, conclude=None), conclude=BASE.conclude), RISKY)],
    "Experiment.metrics": [(whole(metrics=()), RISKY), (whole(metrics=(*BASE.metrics, e.Metric("unused", 0.0, 9.0))), SAFE)],
    "Experiment.target": [
        (whole(target={}), RISKY),
        (whole(target={"country": ("fr", "de", "it")}), RISKY),
        (whole(target={"country": ("fr",)}), SAFE),
        (whole(target={"country": ("fr", "de"), "device": ("ios",)}), SAFE),
        (whole(replace(BASE, target={}), target={"country": ("fr",)}), SAFE),
    ],
    "Experiment.pins": [
        (whole(pins={"t1": "old"}), SAFE),
        (whole(pins={"t2": "new"}), RISKY),
        (whole(pins={**BASE.pins, "t3": "new"}), RISKY),
        (whole(pins={**BASE.pins, "t3": "old"}), SAFE),
        (whole(pins={"t1": "old", "t2": "old"}), SAFE),
    ],
    "Experiment.unit_contribution": [(whole(unit_contribution=e.UnitContribution.ALL), RISKY)],
    "Experiment.bucket_seconds": [(whole(bucket_seconds=7.0), RISKY)],
    "Experiment.lease_seconds": [(whole(lease_seconds=60.0), RISKY), (whole(lease_seconds=5.0), SAFE)],
    "Experiment.approval": [(whole(approval=e.Approval()), RISKY)],
    "Approval.required": [(of("approval", required=1), RISKY), (of("approval", required=3), SAFE)],
    "Approval.expiry_seconds": [(of("approval", expiry_seconds=7200.0), RISKY), (of("approval", expiry_seconds=60.0), SAFE)],
    "Arm.name": [(of("arms", 1, name="x"), RISKY)],
    "Arm.incumbent": [(of("arms", 1, incumbent=True), RISKY)],
    "Arm.model_uri": [(of("arms", 1, model_uri="models:/r/3"), RISKY)],
    "Prior.successes": [(whole(reward=replace(BASE.reward, prior=e.Prior(successes=9.0))), RISKY)],
    "Prior.failures": [(whole(reward=replace(BASE.reward, prior=e.Prior(failures=9.0))), RISKY)],
    "Prior.mean": [(whole(reward=replace(BASE.reward, prior=e.Prior(mean=9.0))), RISKY)],
    "Prior.strength": [(whole(reward=replace(BASE.reward, prior=e.Prior(strength=9.0))), RISKY)],
    "Prior.shape": [(whole(reward=replace(BASE.reward, prior=e.Prior(shape=9.0))), RISKY)],
    "Prior.scale": [(whole(reward=replace(BASE.reward, prior=e.Prior(scale=9.0))), RISKY)],
    "Prior.rate": [(whole(reward=replace(BASE.reward, prior=e.Prior(rate=9.0))), RISKY)],
    "WarmStart.experiment": [(of("reward", warm_start=e.WarmStart("x")), RISKY)],
    "WarmStart.discount": [(of("reward", warm_start=e.WarmStart("x", 0.1)), RISKY)],
    "Reward.metric": [(of("reward", metric="x"), RISKY)],
    "Reward.model": [(of("reward", model=e.RewardModel.POISSON), RISKY)],
    "Reward.window_seconds": [(of("reward", window_seconds=9.0), RISKY)],
    "Reward.missing": [(of("reward", missing=0.0), RISKY)],
    "Reward.goal": [(of("reward", goal=e.Goal.MINIMISE), RISKY)],
    "Reward.low": [(of("reward", low=0.1), RISKY)],
    "Reward.high": [(of("reward", high=9.0), RISKY)],
    "Reward.prior": [(of("reward", prior=e.Prior(successes=2.0)), RISKY)],
    "Reward.warm_start": [(of("reward", warm_start=e.WarmStart("x")), RISKY)],
    "Policy.kind": [(of("policy", kind=e.PolicyKind.TOP_TWO), RISKY)],
    "Policy.floor": [
        (of("policy", base=POOLED, floor=0.05), RISKY),
        (of("policy", base=of("policy", base=POOLED, floor=0.05)[1], floor=0.0), SAFE),
    ],
    "Policy.half_life_seconds": [(of("policy", base=POOLED, half_life_seconds=60.0), RISKY)],
    "Policy.power": [
        (of("policy", base=POOLED, power=0.5), RISKY),
        (of("policy", base=of("policy", base=POOLED, power=0.5)[1], power=1.0), RISKY),  # the leader gets more
    ],
    "Policy.beta": [(of("policy", base=POOLED, beta=0.4), RISKY), (of("policy", base=POOLED, beta=0.6), RISKY)],
    "Policy.floor_schedule": [(of("policy", base=POOLED, floor_schedule=True), RISKY)],
    "Policy.shares": [(of("policy", shares={"old": 0.8, "new": 0.2}), RISKY), (of("policy", shares={"old": 0.95, "new": 0.05}), SAFE)],
    "Policy.pooling": [(of("policy", base=POOLED, pooling=e.Pooling.PER_SEGMENT), RISKY)],
    "Exposure.per_candidate": [(of("exposure", per_candidate=0.4), RISKY), (of("exposure", per_candidate=0.2), SAFE)],
    "Exposure.total": [(of("exposure", total=0.6), RISKY), (of("exposure", total=0.5), SAFE)],
    "Exposure.strict": [(of("exposure", strict=False), RISKY)],
    "Exposure.burst": [(of("exposure", burst=51), RISKY), (of("exposure", burst=10), SAFE)],
    "Exposure.budget": [(of("exposure", budget=e.Budget()), RISKY)],
    "Exposure.max_loss": [
        (of("exposure", max_loss=None), RISKY),
        (of("exposure", max_loss=0.2), RISKY),
        (of("exposure", max_loss=0.05), SAFE),
    ],
    "Budget.requests": [(budget(requests=2000), RISKY), (budget(requests=None), RISKY), (budget(requests=10), SAFE)],
    "Budget.units": [(budget(units=200), RISKY), (budget(units=None), RISKY), (budget(units=10), SAFE)],
    "Budget.loss": [(budget(loss=60.0), RISKY), (budget(loss=None), RISKY), (budget(loss=1.0), SAFE)],
    "Guardrail.name": [(of("guardrails", 0, name="renamed"), RISKY)],
    "Guardrail.metric": [(of("guardrails", 0, metric="x"), RISKY)],
    "Guardrail.max": [
        (of("guardrails", 0, max=0.03), RISKY),
        (of("guardrails", 0, max=0.01), SAFE),
        (of("guardrails", 0, max=None, min=0.1), RISKY),
    ],
    "Guardrail.min": [(of("guardrails", 1, min=0.4), RISKY), (of("guardrails", 1, min=0.6), SAFE)],
    "Guardrail.quantile": [
        (of("guardrails", 2, quantile=0.9), RISKY),
        (of("guardrails", 2, quantile=0.999), SAFE),
        (of("guardrails", 2, quantile=None), RISKY),
    ],
    "Guardrail.max_ratio": [(of("guardrails", 3, max_ratio=1.3), RISKY), (of("guardrails", 3, max_ratio=1.1), SAFE)],
    "Guardrail.on_breach": [
        (of("guardrails", 0, on_breach=e.BreachAction.DRAIN), RISKY),
        (of("guardrails", 2, on_breach=e.BreachAction.HOLD), RISKY),
        (of("guardrails", 2, on_breach=e.BreachAction.ALERT), RISKY),
        (of("guardrails", 2, on_breach=e.BreachAction.FREEZE), SAFE),
    ],
    "Guardrail.per": [(of("guardrails", 0, per=e.Per.SEGMENT), RISKY)],
    "Guardrail.persistence": [(of("guardrails", 0, persistence=3), RISKY), (of("guardrails", 0, persistence=1), SAFE)],
    "Guardrail.window_seconds": [(of("guardrails", 0, window_seconds=30.0), RISKY)],
    "Metric.name": [(of("metrics", 0, name="x"), RISKY)],
    "Metric.low": [(of("metrics", 0, low=-1.0), RISKY)],
    "Metric.high": [(of("metrics", 0, high=2000.0), RISKY)],
    "Segment.name": [(of("segments", 0, name="x"), RISKY)],
    "Segment.match": [(of("segments", 0, match={}), RISKY)],
    "RampStage.cap": [(of("ramp", 1, cap=0.2), RISKY), (of("ramp", 1, cap=0.05), SAFE)],
    "RampStage.shadow": [
        (of("ramp", 0, shadow=False, cap=0.01), RISKY),
        (of("ramp", 1, shadow=True, cap=0.0), RISKY),  # and the next stage needs no proof
        (of("ramp", 2, shadow=True, cap=0.0), SAFE),
    ],
    "RampStage.min_duration_seconds": [
        (of("ramp", 1, min_duration_seconds=60.0), RISKY),
        (of("ramp", 1, min_duration_seconds=7200.0), SAFE),
    ],
    "RampStage.min_outcomes": [(of("ramp", 1, min_outcomes=10), RISKY), (of("ramp", 1, min_outcomes=1000), SAFE)],
    "RampStage.approvals": [(of("ramp", 1, approvals=0), RISKY), (of("ramp", 1, approvals=2), SAFE)],
    "Conclude.prob_best": [(of("conclude", prob_best=0.9), RISKY), (of("conclude", prob_best=0.999), SAFE)],
    "Conclude.max_expected_loss": [
        (of("conclude", max_expected_loss=0.1), RISKY),
        (of("conclude", max_expected_loss=None), RISKY),
        (of("conclude", max_expected_loss=0.001), SAFE),
    ],
    "Conclude.action": [
        (of("conclude", action=e.ConcludeAction.RECOMMEND), SAFE),
        (of("conclude", base=of("conclude", action=e.ConcludeAction.RECOMMEND)[1], action=e.ConcludeAction.PROMOTE), RISKY),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("before", "after", "expected"), [(*pair, risky) for rows in ROWS.values() for pair, risky in rows])
def test_a_change_of_each_field_is_judged_as_the_row_says(before, after, expected):
    found = riskier(before, after)
    assert bool(found) is expected, found


def test_every_field_of_the_spec_has_a_row_and_a_rule():
    parts = [kind for kind in vars(e).values() if is_dataclass(kind) and kind.__module__ == e.__name__]
    assert {f"{kind.__name__}.{field.name}" for kind in parts for field in fields(kind)} == set(ROWS)
    assert set(RULES) == {field.name for field in fields(Experiment)}


def test_nothing_changes_nothing_is_riskier():
    assert riskier(BASE, replace(BASE)) == []


def test_the_sentences_say_what_and_by_how_much_and_name_no_unit():
    after = replace(
        BASE, exposure=replace(BASE.exposure, total=0.7), guardrails=BASE.guardrails[1:], pins={"unit-of-jane": "new"}, alpha=0.0001
    )
    told = riskier(BASE, after)
    assert told[:2] == ["exposure.total rises from 0.5 to 0.7", "guardrail high is dropped"]
    assert told[2].startswith("alpha falls from 0.001 to 0.0001")
    assert told[3:] == ["1 more pinned to candidates", "1 no longer pinned to the incumbent"]
    assert "jane" not in " ".join(told)


def ramps(*stages: tuple) -> Experiment:
    return replace(BASE, ramp=tuple(e.RampStage(*stage) for stage in stages))


HOUR, DAY = 3600.0, 86_400.0
FIRST, SECOND, THIRD = (0.01, False, HOUR, 1000), (0.1, False, DAY, 5000, 1), (0.5, False, 0.0, 0, 2)
GATED = ramps(FIRST, SECOND, THIRD)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        # what asks for more, or leads less far
        ([(0.001, False, HOUR), FIRST, SECOND, THIRD], []),
        ([FIRST, (0.05, False, 0.0, 0, 1), SECOND, THIRD], []),
        ([(0.0, True, DAY), FIRST, SECOND, THIRD], []),
        ([FIRST, SECOND], []),
        ([FIRST, (0.1, False, DAY, 5000, 2), (0.4, False, 0.0, 0, 2)], []),
        # the approvals stay, the step that they were for does not
        ([FIRST, (0.01, False, DAY, 5000, 2), (0.5,)], "beyond 0.01: approvals falls from 1 to 0"),
        ([FIRST, SECOND, (0.1, False, 0.0, 0, 2), (0.5,)], "beyond 0.1: approvals falls from 2 to 0"),
        # the time stays, but at less exposure
        (
            [(0.01, False, DAY + HOUR, 6000), (0.1, False, 0.0, 0, 1), (0.1,), THIRD],
            "beyond 0.1: seconds spent at 0.1 or more falls from 86400 to 0",
        ),
        # a stage goes, or proves nothing any more
        ([SECOND, THIRD], "beyond 0.01: no guardrail need be proven safe first"),
        ([FIRST, (0.0, True, DAY, 5000, 1), THIRD], "beyond 0.1: no guardrail need be proven safe first"),
        ([(0.0, True, HOUR, 1000), SECOND, THIRD], "beyond 0.01: no guardrail need be proven safe first"),
        ([FIRST, (0.5, False, DAY, 5000, 2)], "beyond 0.1: outcomes at 0.1 or more falls from 5000 to 0"),
        ([FIRST, SECOND, THIRD, (0.6,)], "beyond 0.5: candidates may get 0.6 in the end, not 0.5"),
    ],
)
def test_a_ramp_is_judged_by_what_it_takes_to_get_further(stages, expected):
    found = riskier(GATED, ramps(*stages))
    assert expected in found if expected else not found, found


def test_a_stage_that_is_skipped_by_the_revision_itself_is_riskier():
    before, after = ramps((0.0, True), (0.1,), (0.5,)), ramps((0.1,), (0.5,))
    assert riskier(before, after) == []  # from the beginning nothing was asked for at 0 %
    told = riskier(before, after, stage=1)
    assert told[0] == "stage 1, which is in force: cap rises from 0.1 to 0.5"


def test_one_riskier_part_makes_the_whole_revision_riskier():
    safer_and_riskier = replace(BASE, exposure=replace(BASE.exposure, total=0.1, per_candidate=0.9))
    assert riskier(BASE, safer_and_riskier) == ["exposure.perCandidate rises from 0.3 to 0.9"]
