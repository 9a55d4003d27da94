"""Every Prometheus name. The registry is handed in.

Labels never hold a unit or anything else that callers choose freely; experiments beyond the first 500 share the label `_other`.

What is said of an experiment is read when it is asked for, at each scrape: its state, stage, weights and caps off the snapshot that this
server serves, so every server says the same whoever plans, also after the end; what only the planner knows off its last plan. Gauges that
the planner sets were dropped: nobody set them once an experiment had ended or another server planned, and they cost each plan time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from allocator.core.assignment import SLOTS
from allocator.core.decision import Decision
from allocator.core.lifecycle import State
from allocator.core.snapshot import Entry, Snapshot
from allocator.engine.planner import Planned
from allocator.server.tallies import Cell, Spread, Tally

MAX_EXPERIMENTS = 500
RESTING_EXPERIMENTS = MAX_EXPERIMENTS // 2  # while so many have labels, those that do not run may take one too
OTHER = "_other"
LIVING = frozenset({State.RUNNING.value, State.FROZEN.value})
FAST = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 1.0)
SLOW = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The metrics of one server."""

    def __init__(self, registry: CollectorRegistry, age: Callable[[], float]) -> None:
        self.registry = registry
        self._labels: dict[str, str] = {}
        self._labelling = threading.Lock()  # deciders and scrapes run in threads of their own
        self._experiments = _Experiments(self.label)
        registry.register(self._experiments)
        self.decisions = Tally("allocator_decisions", "Decisions made.", ["experiment", "arm", "reason"], registry)
        self.decision_duration = Spread(
            "allocator_decision_duration_seconds", "Time from a Decide request to its answer, without transport.", FAST, registry
        )
        self.outcomes = Tally("allocator_outcomes", "Outcomes reported, by what became of them.", ["result"], registry)
        self.commit_duration = Spread(
            "allocator_ingest_commit_duration_seconds", "Time from a report to its durable commit.", SLOW, registry
        )
        self.plan_duration = Histogram(
            "allocator_plan_duration_seconds",
            "Time to plan one experiment, pauses for decisions included.",
            buckets=SLOW,
            registry=registry,
        )
        self.rpcs = Tally("allocator_rpcs", "Calls answered, by method and status code.", ["method", "code"], registry)
        self.shed = Tally("allocator_shed", "Calls refused for want of room, by method.", ["method"], registry)
        self.audit_broken = Counter(
            "allocator_audit_broken", "Audit records found not to fit, to be lost, or not to be those of a checkpoint.", registry=registry
        )
        self.break_glass = Counter("allocator_break_glass", "Riskier changes carried out without their approvals.", registry=registry)
        self.dropped = Tally("allocator_dropped", "Calls whose caller had gone when their turn came, by method.", ["method"], registry)
        self.insecure = Gauge(
            "allocator_insecure", "1 while calls from other machines are not encrypted, or not asked for tokens.", registry=registry
        )
        self.watchers = Gauge("allocator_snapshot_watchers", "Open WatchSnapshots streams.", registry=registry)
        snapshot_age = Gauge(
            "allocator_snapshot_age_seconds", "Seconds since the planner last confirmed the snapshot.", registry=registry
        )
        snapshot_age.set_function(lambda: age() if math.isfinite(age()) else -1.0)
        Gauge("allocator_build_info", "1, labelled by version.", ["version"], registry=registry).labels(_version()).set(1)

    def watch_store(
        self,
        plans: Callable[[], bool],
        lost: Callable[[], bool],
        held: Callable[[], int],
        diverged: Callable[[], int],
        crashed: Callable[[], int],
    ) -> None:
        """Say how this server stands with its store. All are asked at each scrape."""
        for name, told, ask in (
            ("allocator_planner", "1 while this server is the one that plans.", plans),
            ("allocator_store_lost", "1 while the store counts as lost: nothing is counted until an operator reconciles.", lost),
            ("allocator_freezes_pending", "Freezes and drains in force here that the store has not got yet.", held),
            ("allocator_plans_crashed", "Plans that crashed since the start; the experiment's guardrails were not judged.", crashed),
            ("allocator_snapshot_divergences", "Entries that differed from another server's under the same version.", diverged),
        ):
            Gauge(name, told, registry=self.registry).set_function(lambda ask=ask: float(ask()))

    def log_decisions(self, counts: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]]) -> None:
        """Say how many rows of the decision log were written and lost. counts: asked at each scrape."""
        self.registry.register(_DecisionLogRows(counts))

    def watch_experiments(self, snapshot: Callable[[], Snapshot], plans: Mapping[str, Planned]) -> None:
        """Say where each experiment stands. snapshot: asked at each scrape. plans: the last of each uid that this server planned."""
        self._experiments.snapshot, self._experiments.plans = snapshot, plans

    def label(self, experiment: str, most: int = MAX_EXPERIMENTS) -> str:
        """The experiment's label; the first `most` have their own."""
        known = self._labels.get(experiment)
        if known is not None:
            return known
        if len(self._labels) >= most:
            return OTHER
        with self._labelling:
            if len(self._labels) >= most:
                return OTHER
            return self._labels.setdefault(experiment, experiment)

    def decided(self, experiment: str, decision: Decision) -> Cell:
        """The count of decisions like this one."""
        return self.decisions.labels(self.label(experiment), decision.arm, decision.reason.name)


class _Experiments(Collector):
    """Gauges of experiments, made anew at each scrape.

    Those that run or are frozen take their labels first. Drafts and what has ended leave half of all labels to them, lest a store that
    holds hundreds of old experiments leave none to new ones.
    """

    def __init__(self, label: Callable[[str, int], str]) -> None:
        self._label = label
        self.snapshot: Callable[[], Snapshot] = Snapshot
        self.plans: Mapping[str, Planned] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For Prometheus."""
        state = _gauge("allocator_experiment_state", "1 for the state that an experiment is in.", "state")
        stage = _gauge("allocator_experiment_stage", "Index of the ramp stage.")
        weight = _gauge("allocator_weight_ratio", "Planned share of an arm.", "arm")
        cap = _gauge("allocator_exposure_cap_ratio", "Largest share that a candidate may receive now.", "arm")
        exposure = _gauge("allocator_exposure_ratio", "Share of an experiment's decisions that an arm received.", "arm")
        prob_best = _gauge("allocator_prob_best_ratio", "Probability that an arm is the best.", "arm")
        sample_ratio = _gauge(
            "allocator_sample_ratio_p_value",
            "How surprising the draws are, given the published weights: the least p-value of any candidate, valid at every look.",
        )
        evidence = _gauge(
            "allocator_guardrail_evidence_ratio",
            "Evidence of a guardrail (natural log) over what a breach needs; 1 or more is a breach.",
            "arm",
            "guardrail",
        )
        for label, entry in self._labelled():
            for each in State:
                state.add_metric((label, each.value), float(each.value == entry.state))
            stage.add_metric((label,), entry.stage)
            for arm, name in enumerate(entry.arms):
                weight.add_metric((label, name), weight_of(entry, arm))
                if arm != entry.incumbent:
                    cap.add_metric((label, name), cap_of(entry, arm))
            planned = self.plans.get(entry.uid.hex()) if entry.state in LIVING else None
            if planned is None:
                continue
            experiment, plan = planned.record.experiment, planned.plan
            total = max(int(plan.exposures.sum()), 1)
            for index, each_arm in enumerate(experiment.arms):
                exposure.add_metric((label, each_arm.name), plan.exposures[index] / total)
                prob_best.add_metric((label, each_arm.name), plan.learned[0].best.prob_best[index])
            sample_ratio.add_metric((label,), min(plan.sample_ratio))
            for (arm_name, guardrail), ratio in nearest(planned).items():
                evidence.add_metric((label, arm_name, guardrail), ratio)
        yield from (state, stage, weight, cap, exposure, prob_best, sample_ratio, evidence)

    def _labelled(self) -> Iterator[tuple[str, Entry]]:
        """Entries that have a label of their own."""
        for entry in sorted(self.snapshot().entries.values(), key=lambda entry: entry.state not in LIVING):
            label = self._label(entry.experiment, MAX_EXPERIMENTS if entry.state in LIVING else RESTING_EXPERIMENTS)
            if label is not OTHER:
                yield label, entry


def weight_of(entry: Entry, arm: int) -> float:
    """Share of the slots that the arm serves, of the first table; in [0, 1]."""
    if entry.only is not None:
        return float(arm == entry.only[0])
    served = entry.tables[0].served
    return served[arm] / SLOTS if arm < len(served) else 0.0


def cap_of(entry: Entry, arm: int) -> float:
    """Largest share that a candidate may receive now: all for a concluded winner, nothing where the incumbent serves alone."""
    if entry.only is not None:
        return float(arm == entry.only[0])
    return 0.0 if entry.drained >> arm & 1 else min(entry.cap, entry.cap_per_candidate)


def nearest(planned: Planned) -> dict[tuple[str, str], float]:
    """Of each candidate and guardrail, the evidence of the segment nearest to a breach, over what a breach needs."""
    experiment, worst = planned.record.experiment, dict[tuple[str, str], float]()
    for finding in planned.plan.findings:
        if finding.arm != experiment.incumbent:
            key = (experiment.arms[finding.arm].name, finding.guardrail)
            worst[key] = max(worst.get(key, -math.inf), finding.log_evidence / finding.log_threshold)
    return worst


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, labels=("experiment", *labels))


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
