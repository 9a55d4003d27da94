"""Every Prometheus name. The registry is handed in.

Labels never hold a unit or anything else that callers choose freely; experiments beyond the first 500 share the label `_other`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from allocator.core.assignment import SLOTS
from allocator.core.decision import Decision
from allocator.core.entry import entry_of
from allocator.core.lifecycle import State
from allocator.core.record import Record
from allocator.engine.planner import Planned
from allocator.server.tallies import Cell, Spread, Tally

MAX_EXPERIMENTS = 500
OTHER = "_other"
FAST = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 1.0)
SLOW = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The metrics of one server."""

    def __init__(self, registry: CollectorRegistry, age: Callable[[], float]) -> None:
        self.registry = registry
        self._experiments: dict[str, str] = {}
        self.decisions = Tally("allocator_decisions", "Decisions made.", ["experiment", "arm", "reason"], registry)
        self.decision_duration = Spread(
            "allocator_decision_duration_seconds", "Time from a Decide request to its answer, without transport.", FAST, registry
        )
        self.outcomes = Counter("allocator_outcomes", "Outcomes reported, by what became of them.", ["result"], registry=registry)
        self.commit_duration = Histogram(
            "allocator_ingest_commit_duration_seconds",
            "Time from a report to its durable commit.",
            buckets=SLOW,
            registry=registry,
        )
        self.exposure = Gauge(
            "allocator_exposure_ratio", "Share of an experiment's decisions that an arm received.", ["experiment", "arm"], registry=registry
        )
        self.exposure_cap = Gauge(
            "allocator_exposure_cap_ratio", "Largest share that a candidate may receive now.", ["experiment", "arm"], registry=registry
        )
        self.weight = Gauge("allocator_weight_ratio", "Planned share of an arm.", ["experiment", "arm"], registry=registry)
        self.prob_best = Gauge(
            "allocator_prob_best_ratio", "Probability that an arm is the best.", ["experiment", "arm"], registry=registry
        )
        self.evidence = Gauge(
            "allocator_guardrail_evidence_ratio",
            "Evidence of a guardrail (natural log) over what a breach needs; 1 or more is a breach.",
            ["experiment", "arm", "guardrail"],
            registry=registry,
        )
        self.state = Gauge(
            "allocator_experiment_state", "1 for the state that an experiment is in.", ["experiment", "state"], registry=registry
        )
        self.stage = Gauge("allocator_experiment_stage", "Index of the ramp stage.", ["experiment"], registry=registry)
        self.sample_ratio = Gauge(
            "allocator_sample_ratio_p_value",
            "How surprising the draws are, given the published weights: the least p-value of any candidate, valid at every look.",
            ["experiment"],
            registry=registry,
        )
        self.plan_duration = Histogram(
            "allocator_plan_duration_seconds", "Time to plan one experiment.", buckets=SLOW, registry=registry
        )
        self.rpcs = Tally("allocator_rpcs", "Calls answered, by method and status code.", ["method", "code"], registry)
        self.shed = Tally("allocator_shed", "Calls refused for want of room, by method.", ["method"], registry)
        self.audit_broken = Counter("allocator_audit_broken", "Audit records found not to fit the one before.", registry=registry)
        self.break_glass = Counter("allocator_break_glass", "Riskier changes carried out without their approvals.", registry=registry)
        self.dropped = Tally("allocator_dropped", "Calls whose caller had gone when their turn came, by method.", ["method"], registry)
        self.watchers = Gauge("allocator_snapshot_watchers", "Open WatchSnapshots streams.", registry=registry)
        snapshot_age = Gauge(
            "allocator_snapshot_age_seconds", "Seconds since the planner last confirmed the snapshot.", registry=registry
        )
        snapshot_age.set_function(lambda: age() if math.isfinite(age()) else -1.0)
        Gauge("allocator_build_info", "1, labelled by version.", ["version"], registry=registry).labels(_version()).set(1)

    def watch_store(
        self, plans: Callable[[], bool], lost: Callable[[], bool], held: Callable[[], int], diverged: Callable[[], int]
    ) -> None:
        """Say how this server stands with its store. All are asked at each scrape."""
        for name, told, ask in (
            ("allocator_planner", "1 while this server is the one that plans.", plans),
            ("allocator_store_lost", "1 while the store counts as lost: nothing is counted until an operator reconciles.", lost),
            ("allocator_freezes_pending", "Freezes and drains in force here that the store has not got yet.", held),
            ("allocator_snapshot_divergences", "Entries that differed from another server's under the same version.", diverged),
        ):
            Gauge(name, told, registry=self.registry).set_function(lambda ask=ask: float(ask()))

    def log_decisions(self, counts: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]]) -> None:
        """Say how many rows of the decision log were written and lost. counts: asked at each scrape."""
        self.registry.register(_DecisionLogRows(counts))

    def label(self, experiment: str) -> str:
        """The experiment's label; the first 500 have their own."""
        known = self._experiments.get(experiment)
        if known is None:
            known = experiment if len(self._experiments) < MAX_EXPERIMENTS else OTHER
            if known is not OTHER:
                self._experiments[experiment] = known
        return known

    def decided(self, experiment: str, decision: Decision) -> Cell:
        """The count of decisions like this one."""
        return self.decisions.labels(self.label(experiment), decision.arm, decision.reason.name)

    def planned(self, planned: Planned) -> None:
        """Take over what a plan says."""
        record, plan = planned.record, planned.plan
        self.plan_duration.observe(planned.duration_seconds)
        label = self.label(record.name)
        if label is OTHER:
            return
        experiment = record.experiment
        self._record_state(label, plan.status.state, plan.status.stage)
        total = max(int(plan.exposures.sum()), 1)
        entry = entry_of(record)
        cap = min(entry.cap, entry.cap_per_candidate)
        for index, arm in enumerate(experiment.arms):
            self.exposure.labels(label, arm.name).set(plan.exposures[index] / total)
            if index != experiment.incumbent:
                self.exposure_cap.labels(label, arm.name).set(cap)
            self.prob_best.labels(label, arm.name).set(plan.learned[0].best.prob_best[index])
            if entry.only is not None:
                self.weight.labels(label, arm.name).set(float(index == entry.only[0]))
            elif entry.tables:
                served = entry.tables[0].served
                self.weight.labels(label, arm.name).set(served[index] / SLOTS if index < len(served) else 0.0)
        self.sample_ratio.labels(label).set(min(plan.sample_ratio))
        worst: dict[tuple[str, str], float] = {}
        for finding in plan.findings:
            if finding.arm != experiment.incumbent:
                key = (experiment.arms[finding.arm].name, finding.guardrail)
                worst[key] = max(worst.get(key, -math.inf), finding.log_evidence / finding.log_threshold)
        for (arm_name, guardrail), ratio in worst.items():
            self.evidence.labels(label, arm_name, guardrail).set(ratio)

    def written(self, record: Record) -> None:
        """A record was stored: its state."""
        label = self.label(record.name)
        if label is not OTHER:
            self._record_state(label, record.status.state, record.status.stage)

    def _record_state(self, label: str, state: State, stage: int) -> None:
        for each in State:
            self.state.labels(label, each.value).set(float(each is state))
        self.stage.labels(label).set(stage)


class _DecisionLogRows(Collector):
    """Counters that somebody else counts."""

    def __init__(self, counts: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        written, lost = self._counts()
        for name, text, rows in (
            ("allocator_decision_log_rows", "Rows of the decision log written.", written),
            ("allocator_decision_log_lost", "Rows of the decision log lost: no room, or no disk.", lost),
        ):
            family = CounterMetricFamily(name, text, labels=["table"])
            for table, count in rows.items():
                family.add_metric([table], count)
            yield family


def _version() -> str:
    try:
        return version("allocator")
    except PackageNotFoundError:
        return "unknown"
