"""A study: the same for any number of workers, paired between policies, and saved as it is."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from allocator.core.experiment import Arm, BreachAction, Exposure, Guardrail, Policy, RampStage, Reward
from allocator.core.experiment_rules import checked
from allocator.errors import InvalidArgument
from allocator.simulation import figures
from allocator.simulation import world as w
from allocator.simulation.parallel import dask_cluster
from allocator.simulation.scenario import Scenario
from allocator.simulation.study import curves, rows, save, study, summary


def scenario(**changes):
    arms = (Arm("old", incumbent=True), Arm("new"), Arm("bad"))
    values = {
        "name": "ranker",
        "arms": arms,
        "reward": Reward("click", window_seconds=30.0),
        "exposure": Exposure(total=0.6, per_candidate=0.3, strict=True, burst=5),
        "guardrails": (Guardrail("errors", "error", max=0.05, on_breach=BreachAction.DRAIN),),
        "ramp": (RampStage(0.3, min_duration_seconds=20.0, min_outcomes=50), RampStage(0.6)),
    }
    metrics = {
        "click": w.Metric({"old": w.Curve(0.3), "new": w.Curve(0.4), "bad": w.Curve(0.4)}),
        "error": w.Metric({"old": w.Curve(0.01), "new": w.Curve(0.01), "bad": w.Curve(0.3)}),
    }
    world = w.World(metrics, w.Traffic(w.Curve(100.0)), w.Reports(1.0))
    found = {"experiment": checked(**values), "world": world, "duration_seconds": 120.0, "replications": 6, "seed": 3}
    return Scenario.checked(**{**found, **changes})


@pytest.fixture(scope="module")
def found():
    return study(scenario(policies=("SPEC", "FIXED", "INCUMBENT_ONLY", "ucb1")))


@pytest.mark.parametrize(("workers", "backend"), [(2, "threading"), (3, "threading"), (2, "loky")])
def test_the_number_of_workers_and_what_carries_them_change_nothing(found, workers, backend):
    again = study(found.scenario, workers=workers, backend=backend)
    assert repr(rows(again)) == repr(rows(found))
    assert repr(curves(again)) == repr(curves(found))


def test_a_dask_cluster_gives_the_same(found):
    pytest.importorskip("distributed", reason="needs the package distributed")
    few = replace(found.scenario, replications=2, policies=("SPEC", "ucb1"))
    with dask_cluster(workers=2):
        again = study(few, workers=2, backend="dask")
    assert repr(rows(again)) == repr([row for row in rows(found) if row["policy"] in few.policies and row["replication"] < 2])


def test_another_seed_gives_another_world(found):
    assert rows(study(replace(found.scenario, seed=4, policies=("SPEC",))))[0]["regret"] != rows(found)[0]["regret"]


def test_every_policy_meets_as_many_requests(found):
    asked = {policy: [run.requests for run in runs] for policy, runs in found.runs.items()}
    assert len({tuple(requests) for requests in asked.values()}) == 1


def test_who_serves_the_incumbent_alone_gains_nothing_and_loses_every_gap(found):
    for run in found.runs["INCUMBENT_ONLY"]:
        assert run.gain == 0.0
        assert run.regret == pytest.approx(0.1 * run.requests, rel=1e-9)
        assert run.exposures[0] == run.requests


def test_regret_and_gain_are_two_sides_of_one_sum(found):
    """regret = sum of (best - served), gain = sum of (served - incumbent): together (best - incumbent) for each request."""
    for runs in found.runs.values():
        for run in runs:
            assert run.regret + run.gain == pytest.approx(0.1 * run.requests, rel=1e-9)
            assert run.exposures.sum() == run.requests


def test_harm_is_stopped_and_caps_hold(found):
    spec = summary(found)[0]
    bad = spec.arms[2]
    assert bad.stopped.share == 1.0
    assert bad.seconds.q95 < 30.0
    for run in found.runs["SPEC"]:
        assert (run.excess <= 5 + 1e-9).all()  # the burst of strict caps
        assert run.exposures[2] == run.exposed_at_stop[2]
        assert run.stages[1] >= 20.0


def test_an_always_valid_interval_covers_a_mean_that_stands_still(found):
    """95 % at every look; with 18 intervals of one study fewer than 13 covered would be a 1 in 10,000 event."""
    assert sum(run.covered.sum() for run in found.runs["SPEC"]) >= 13
    assert all(((run.width > 0) & (run.width < 1)).all() for run in found.runs["SPEC"])


@pytest.mark.parametrize("half_life", [None, 60.0])
def test_an_interval_covers_where_only_successes_are_reported(half_life):
    """What is counted is what the planner counts: whole cohorts, of which a missing report is a failure. With 24 intervals of 95 % at every
    look fewer than 18 covered would be a 1 in 10,000 event.
    """
    reward = Reward("click", window_seconds=30.0, missing=0.0)
    silent = replace(scenario().world, reports=w.Reports(5.0, duplicates=0.2, successes_only=True))
    spec = replace(scenario().experiment, reward=reward, policy=Policy(half_life_seconds=half_life))
    runs = study(scenario(experiment=spec, world=silent, replications=8)).runs["SPEC"]
    assert sum(run.covered.sum() for run in runs) >= 18
    assert all((run.width[:2] < 0.3).all() for run in runs)


def test_differences_are_paired(found):
    spec, fixed = (np.array([run.regret for run in found.runs[policy]]) for policy in ("SPEC", "FIXED"))
    assert summary(found)[1].against.mean == pytest.approx((fixed - spec).mean())
    assert summary(found)[0].against.sd == 0.0


def test_what_is_saved_is_what_was_found(found, tmp_path):
    paths = save(found, tmp_path / "out")
    assert [path.name for path in paths] == ["replications.parquet", "series.parquet"]
    table = pq.read_table(paths[0]).to_pylist()
    assert repr(table) == repr(rows(found))
    assert len(pq.read_table(paths[1])) == len(curves(found))


def test_figures_are_drawn_for_all_there_is_to_show(found, tmp_path):
    paths = figures.save(found, tmp_path)
    assert {path.stem for path in paths} == {"regret", "exposure", "weights", "evidence", "detection"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_figure_says_which_rehearsal_it_is_of(found):
    """A certificate shows several side by side."""
    titles = {name: figure.axes[0].get_title(loc="left") for name, figure in figures.figures(found).items()}
    assert titles["detection"] == "scenario\nReplications in which the guardrails had stopped a candidate"
    assert all(title.startswith("scenario\n") for title in titles.values())


def test_nothing_is_drawn_of_evidence_where_there_are_no_guardrails_and_no_share_is_below_0():
    world = scenario().world
    plain = replace(scenario().experiment, guardrails=())
    still = replace(world, metrics={"click": world.metrics["click"]})
    drawn = figures.figures(study(scenario(experiment=plain, world=still, policies=("INCUMBENT_ONLY",), replications=2)))
    assert set(drawn) == {"regret", "exposure", "weights"}
    low, high = drawn["exposure"].axes[0].get_ylim()
    assert low == 0.0
    assert high >= 0.1


def test_a_frozen_experiment_serves_the_incumbent_to_the_end():
    spec = scenario().experiment
    frozen = replace(spec, guardrails=(Guardrail("errors", "error", max=0.05),))
    for run in study(scenario(experiment=frozen, replications=3)).runs["SPEC"]:
        assert run.state == "FROZEN"
        assert run.series.weights[-1].tolist() == [1.0, 0.0, 0.0]
        assert run.requests > 11_000
        assert math.isfinite(run.stopped[2])


def test_nobody_approves_where_nobody_is_said_to():
    ramp = (RampStage(0.3, min_duration_seconds=20.0), RampStage(0.6, approvals=1))
    spec = replace(scenario().experiment, ramp=ramp)
    alone = study(scenario(experiment=spec, approve_after_seconds=None, replications=1)).runs["SPEC"][0]
    helped = study(scenario(experiment=spec, approve_after_seconds=30.0, replications=1)).runs["SPEC"][0]
    assert math.isnan(alone.stages[1])
    assert helped.stages[1] >= 30.0


def test_lag_keeps_a_stopped_candidate_in_service_for_as_long():
    """With three replicas of which the last hears ten seconds late, harm is served ten seconds longer, by about a third of requests."""
    world = scenario().world
    late = replace(world, traffic=replace(world.traffic, replicas=3, lag_seconds=10.0))
    prompt, lagging = (study(scenario(world=one, replications=4)).runs["SPEC"] for one in (world, late))
    assert all((run.exposures[2] == run.exposed_at_stop[2]) for run in prompt)
    extra = [run.exposures[2] - run.exposed_at_stop[2] for run in lagging]
    assert min(extra) > 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"duration_seconds": 0.0}, "duration"),
        ({"duration_seconds": math.nan}, "duration"),
        ({"replications": 0}, "replications"),
        ({"policies": ()}, "policies"),
        ({"policies": ("SPEC", "SPEC")}, "policies[1]"),
        ({"policies": ("ucb",)}, "policies[0]"),
        ({"tick_seconds": 1e-9}, "tick"),
    ],
)
def test_what_is_not_allowed_is_named(changes, field):
    with pytest.raises(InvalidArgument) as caught:
        scenario(**changes)
    assert [violation.field for violation in caught.value.violations] == [field]
