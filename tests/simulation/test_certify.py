"""Certificates against what is known exactly: the fewest outcomes that prove safety, mean outcomes to a stop, and what cannot be."""

from __future__ import annotations

import pytest

from allocator.core.experiment import Arm, BreachAction, Exposure, Guardrail, Per, RampStage, Reward
from allocator.core.experiment_rules import checked
from allocator.errors import InvalidArgument
from allocator.simulation.certify import _fewest, certify
from allocator.simulation.study import rows


def experiment(**changes):
    values = {
        "name": "ranker",
        "arms": (Arm("old", incumbent=True), Arm("new")),
        "reward": Reward("click", window_seconds=60.0),
        "exposure": Exposure(total=0.5),
        "guardrails": (Guardrail("errors", "error", max=0.01),),
        "ramp": (RampStage(0.1, min_duration_seconds=300.0), RampStage(0.5)),
    }
    return checked(**{**values, **changes})


@pytest.fixture(scope="module")
def certificate():
    return certify(experiment(), 0.1, 50.0, metric_rates={"error": 0.0}, duration_seconds=900.0, replications=4, seed=1)


@pytest.mark.parametrize(("limit", "fewest"), [(0.01, 376)])
def test_the_fewest_outcomes_that_prove_safety_are_those_of_the_exact_table(limit, fewest):
    """STATISTICS.md 5.8: p0 = 1 %, alpha_s = 0.05: zero failures certify at n = 376."""
    assert _fewest(limit) == fewest


def test_harm_is_stopped_after_as_many_outcomes_as_the_exact_program_says(certificate):
    """Mean outcomes to a freeze at a limit of 1 % (STATISTICS.md 5.2, 5.3): 20 %: 22 to 24; 5 %: 215 to 231. Four runs, and up to a tick
    of outcomes too many: within a factor of two.
    """
    by_points = {harm.points: harm for harm in certificate.harms}
    assert 15 < by_points[0.20].units.mean < 48
    assert 110 < by_points[0.05].units.mean < 460
    assert by_points[0.20].stopped.share == 1.0
    assert by_points[0.20].seconds.mean < by_points[0.05].seconds.mean


def test_more_harm_is_seen_sooner_and_none_is_not_seen(certificate):
    assert certificate.false_stop.events == 0
    assert certificate.promised == 0.001
    shares = [harm.stopped.share for harm in certificate.harms]
    assert shares == sorted(shares)


def test_each_rehearsal_of_a_certificate_has_a_name_of_its_own(certificate):
    names = [study.scenario.name for study in certificate.studies.values()]
    assert names[:3] == ["a/a, every arm alike", "new 10% better", "+1% bad outcomes of new on errors"]
    assert len(set(names)) == len(names) == 6


def test_what_a_stage_can_prove_is_counted(certificate):
    """10 % of 50/s over 300 s less the window of 60 s is 1,200 outcomes of the candidate."""
    (proof,) = certificate.proofs
    assert (proof.needed, proof.given, proof.possible) == (376, 1200, True)
    assert certificate.stages[1].entered.share == 1.0
    assert certificate.stages[1].seconds.q05 >= 300.0


def test_a_stage_too_thin_to_prove_anything_is_told():
    thin = experiment(ramp=(RampStage(0.001, min_duration_seconds=300.0), RampStage(0.5)))
    found = certify(thin, 0.1, 50.0, duration_seconds=330.0, replications=1)
    assert [proof.possible for proof in found.proofs] == [False]
    assert found.stages[1].entered.share == 0.0
    assert any("proof that new is safe on errors" in reason for reason in found.waiting)


def test_without_a_guardrail_nothing_is_said_to_be_stopped():
    found = certify(experiment(guardrails=(), ramp=()), 0.1, 50.0, duration_seconds=300.0, replications=2)
    assert (found.harms, found.proofs, found.harmed) == ((), (), "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "guardrail",
    [
        Guardrail("tail", "latency_ms", quantile=0.9, max=200.0),
        Guardrail("up", "healthy", min=0.9),
        Guardrail("worse", "error", max_ratio=2.0),
        Guardrail("each", "error", max=0.05, per=Per.SEGMENT, on_breach=BreachAction.DRAIN),
    ],
    ids=lambda g: g.name,
)
def test_harm_on_any_kind_of_guardrail_is_stopped(guardrail):
    found = certify(experiment(guardrails=(guardrail,)), 0.1, 100.0, duration_seconds=900.0, replications=2)
    assert found.harms[-1].points == 0.20
    assert found.harms[-1].stopped.share == 1.0
    assert found.false_stop.events == 0


def test_workers_change_nothing():
    one, two = (
        certify(experiment(guardrails=()), 0.1, 20.0, duration_seconds=60.0, replications=3, workers=workers, backend="threading")
        for workers in (1, 2)
    )
    assert all(repr(rows(study)) == repr(rows(two.studies[name])) for name, study in one.studies.items())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"incumbent_rate": 1.2}, "incumbent-rate"),
        ({"traffic": 0.0}, "traffic"),
        ({"metric_rates": {"errors": 0.1}}, "metric-rates"),
        ({"metric_rates": {"error": float("nan")}}, "metric-rates"),
        ({"improvement": 0.0}, "improvement"),
        ({"guardrail": "x"}, "guardrail"),
    ],
)
def test_what_is_not_allowed_is_named(changes, field):
    with pytest.raises(InvalidArgument) as caught:
        certify(**{"experiment": experiment(), "incumbent_rate": 0.1, "traffic": 50.0, **changes})
    assert [violation.field for violation in caught.value.violations] == [field]
