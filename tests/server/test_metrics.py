"""What the metrics say of an experiment is what this server serves of it, whoever planned it last, also after the end."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from allocator.core.assignment import SLOTS
from allocator.core.experiment import Arm, Exposure, RampStage
from allocator.server import metrics as module
from allocator.server.metrics import OTHER, Metrics
from allocator.v1 import operator_service_pb2 as operator_pb
from tests.conftest import two_arms
from tests.engine.conftest import Rehearsal
from tests.engine.fleet import Fleet
from tests.server.test_end_to_end import replanned, started
from tests.server.test_operations import fetch

NAME = "default/ranker"
PLANNED = ("allocator_exposure_ratio", "allocator_prob_best_ratio", "allocator_guardrail_evidence_ratio", "allocator_sample_ratio_p_value")


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Of a scrape: name and values of labels → value."""
    families = text_string_to_metric_families(text)
    return {(s.name, *(s.labels[key] for key in sorted(s.labels))): s.value for family in families for s in family.samples}


async def scraped(running) -> dict[tuple[str, ...], float]:
    return samples((await fetch(running.server.metrics_address, "/metrics"))[1])


def state(found: dict[tuple[str, ...], float], name: str = NAME) -> list[str]:
    """Those that are said to be so."""
    return [key[2] for key, value in found.items() if key[:2] == ("allocator_experiment_state", name) and value == 1]


async def test_an_experiment_that_was_frozen_and_rolled_back_is_said_to_be_frozen_no_more(running):
    await started(running)
    await running.operator.FreezeExperiment(operator_pb.FreezeExperimentRequest(experiment="ranker", actor="ann", reason="look"))
    await replanned(running)
    assert state(await scraped(running)) == ["FROZEN"]
    await running.operator.RollbackExperiment(operator_pb.RollbackExperimentRequest(experiment="ranker", actor="ann", reason="bad"))
    await replanned(running)
    assert state(await scraped(running)) == ["ROLLED_BACK"]


@pytest.mark.parametrize(("winner", "weights"), [("new", {"old": 0.0, "new": 1.0}), ("old", {"old": 1.0, "new": 0.0})])
async def test_after_a_conclusion_the_winner_has_all_the_weight_and_may_have_it(running, winner, weights):
    await started(running, exposure=Exposure(total=0.1))
    await replanned(running)
    await running.operator.ConcludeExperiment(
        operator_pb.ConcludeExperimentRequest(experiment="ranker", winner=winner, actor="ann", reason="done")
    )
    await replanned(running)
    found = await scraped(running)
    assert state(found) == ["CONCLUDED"]
    assert {arm: found["allocator_weight_ratio", arm, NAME] for arm in weights} == weights
    assert found["allocator_exposure_cap_ratio", "new", NAME] == weights["new"]


async def test_the_weight_is_the_one_that_is_served_and_not_the_one_before(running):
    await started(running, exposure=Exposure(total=0.1))
    await asyncio.to_thread(running.engine.planner.tick)  # the pass that makes the first weights is over; nothing is due after it
    found = await scraped(running)
    served = running.engine.registry.get("ranker").served
    assert served[1] > 0
    assert [found["allocator_weight_ratio", arm, NAME] for arm in ("old", "new")] == [slots / SLOTS for slots in served]


async def test_no_plan_is_told_of_an_experiment_that_has_ended(running):
    await started(running)
    await replanned(running)
    assert {key[0] for key in await scraped(running)} >= set(PLANNED)
    await running.operator.RollbackExperiment(operator_pb.RollbackExperimentRequest(experiment="ranker", actor="ann", reason="bad"))
    await replanned(running)
    assert not {key[0] for key in await scraped(running)} & set(PLANNED)
    assert running.engine.planner.last == {}


class Watched:
    """Metrics of engines that nothing runs by itself."""

    def __init__(self, *engines) -> None:
        self._registries = []
        for engine in engines:
            self._registries.append(CollectorRegistry())
            metrics = Metrics(self._registries[-1], engine.live.age)
            metrics.watch_experiments(lambda engine=engine: engine.live.snapshot, engine.planner.last)

    def read(self) -> list[dict[tuple[str, ...], float]]:
        """What each says now."""
        return [samples(generate_latest(registry).decode()) for registry in self._registries]


def test_every_server_says_the_same_of_an_experiment_whoever_plans_and_only_the_planner_tells_its_plan():
    fleet = Fleet()
    a, b = fleet.start("a"), fleet.start("b")
    watched = Watched(a, b)
    fleet.run("a", two_arms(exposure=Exposure(total=0.1)))
    for command, wanted in ((a.commands.freeze, "FROZEN"), (b.commands.resume, "RUNNING"), (b.commands.freeze, "FROZEN")):
        command("ranker", actor="ann", reason="look")
        fleet.tick(seconds=1)
        fleet.tick(seconds=1)
        first, second = watched.read()
        assert state(first) == state(second) == [wanted]
        assert set(PLANNED) & {key[0] for key in first}
        assert not set(PLANNED) & {key[0] for key in second}
    a.planner.stop()
    fleet.tick("b", seconds=1)
    b.commands.rollback("ranker", actor="ann", reason="bad")
    fleet.tick(seconds=1)
    fleet.tick(seconds=1)
    assert fleet.leaders() == ["b"]
    for found in watched.read():
        assert state(found) == ["ROLLED_BACK"]
        assert not set(PLANNED) & {key[0] for key in found}
        assert found["allocator_exposure_cap_ratio", "new", NAME] == 0


def test_a_planner_that_another_took_over_from_tells_no_plan_any_more():
    fleet = Fleet()
    a, b = fleet.start("a"), fleet.start("b")
    watched = Watched(a, b)
    fleet.run("a", two_arms())
    fleet.lines["a"].cut = True
    fleet.tick(seconds=30)
    fleet.tick(seconds=1)
    assert fleet.leaders() == ["b"]
    assert set(PLANNED) & {key[0] for key in watched.read()[0]}, "cut off, it does not know yet"
    fleet.lines["a"].cut = False
    fleet.tick(seconds=1)
    first, second = watched.read()
    assert not set(PLANNED) & {key[0] for key in first}
    assert set(PLANNED) & {key[0] for key in second}


def test_the_cap_is_what_holds_now_stage_by_stage_and_nothing_for_who_gets_nothing():
    arms = (Arm("old", incumbent=True), Arm("new"), Arm("other"))
    ramp = (RampStage(0.0, shadow=True), RampStage(0.2, approvals=1), RampStage(0.5, approvals=1))
    r = Rehearsal()
    r.engine.commands.apply(two_arms(arms=arms, ramp=ramp, exposure=Exposure(per_candidate=0.1, total=0.5)), actor="ann")
    watched = Watched(r.engine)

    def caps() -> list[float]:
        r.plan()
        (found,) = watched.read()
        return [found["allocator_exposure_cap_ratio", arm, NAME] for arm in ("new", "other")]

    assert caps() == [0, 0], "a draft"
    r.engine.commands.start("ranker", actor="ann")
    assert caps() == [0, 0], "a stage at 0 %"
    r.engine.commands.approve("ranker", actor="bob", reason="seen")
    assert caps() == [0.1, 0.1]
    assert watched.read()[0]["allocator_experiment_stage", NAME] == 1
    r.engine.commands.freeze("ranker", actor="ann", reason="look")
    assert caps() == [0, 0]
    r.engine.commands.resume("ranker", actor="ann", reason="fine")
    r.engine.commands.conclude("ranker", winner="other", actor="ann", reason="done")
    assert caps() == [0, 1]


def test_beyond_the_bound_experiments_have_no_label_and_those_that_run_are_served_first(monkeypatch):
    monkeypatch.setattr(module, "MAX_EXPERIMENTS", 6)
    monkeypatch.setattr(module, "RESTING_EXPERIMENTS", 3)
    r = Rehearsal()
    for number in range(5):
        r.engine.commands.apply(two_arms(name=f"draft{number}"), actor="ann")
    r.run(two_arms(name="first"))
    watched = Watched(r.engine)

    def shown() -> list[str]:
        r.plan()
        (found,) = watched.read()
        return sorted({key[1] for key in found if key[0] == "allocator_experiment_state"})

    assert shown() == ["default/draft0", "default/draft1", "default/first"]
    for number in range(5):
        r.run(two_arms(name=f"later{number}"))
    found = shown()
    assert len(found) == 6
    assert set(found) >= {"default/first", "default/later0", "default/later1", "default/later2"}


def test_an_experiment_beyond_the_bound_is_counted_under_a_label_of_all_the_others():
    metrics = Metrics(CollectorRegistry(), lambda: 0.0)
    assert [metrics.label(name, 2) for name in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]
