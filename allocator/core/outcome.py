"""What an outcome adds: the contract that its values must keep, and the cells that they go to.

In: an experiment and a decision id that was read. Out: a `Contract`, made once for each version of a record, which turns the values of an
outcome into contributions or names what is wrong with them. A number outside the contract never reaches a sum.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from allocator.core.decision_id import DecisionId
from allocator.core.experiment import Assignment, Experiment, Guardrail, RewardModel
from allocator.core.guardrail_counts import key_of
from allocator.core.record import REWARD, Cell, Record
from allocator.core.statistics import MICRO, square_of
from allocator.core.tally import label_stream
from allocator.errors import Violation

new_tuple = tuple.__new__  # what a NamedTuple's own `__new__` calls, at a third of the price


class Outcome(NamedTuple):
    """What came of a decision, as reported. reward: value of the reward's metric; metrics: values of guardrail metrics, by name."""

    decision_id: str
    reward: float | None = None
    metrics: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class _Use:
    guardrail: Guardrail
    low: float
    high: float
    window_seconds: float


@dataclass(frozen=True, slots=True)
class _Rule:
    """What one metric may be, its bit in the deduplication mask, and the guardrails that look at it."""

    bit: int
    low: float
    high: float
    reward: bool
    uses: tuple[_Use, ...]


class Contract:
    """The contract of one record. Cheap to use, made anew when the record's spec or activation changes."""

    def __init__(self, record: Record) -> None:
        experiment = record.experiment
        self.uid = record.uid
        self.activation = record.status.activation
        self.bucket_seconds = experiment.bucket_width_seconds
        self.window_seconds = experiment.reward.window_seconds
        self.sticky = experiment.assignment is Assignment.STICKY
        self._reward = experiment.reward
        self._squares = experiment.reward.model is not RewardModel.POISSON  # a Gamma posterior needs none, and counts may be large
        self._arms = len(experiment.arms)
        self._segments = len(experiment.segments) + 1
        self._rules = {name: _rule(experiment, name, record.metrics.index(name)) for name in metric_names(experiment)}
        self._shift, self._unit = experiment.reward.shift, experiment.reward.unit
        self._streams: dict[tuple[str, int], str] = {}
        windows = (use.window_seconds for rule in self._rules.values() for use in rule.uses)
        self.shortest_seconds = min(windows, default=self.window_seconds)  # within it, every guardrail takes what it is given

    def violations(self, path: str, outcome: Outcome) -> list[Violation]:
        """What is wrong with the values, each with its path; empty when all may be counted."""
        metrics = outcome.metrics or {}
        found = []
        if outcome.reward is not None:
            if self._reward.metric in metrics:
                found.append(Violation(f"{path}.metrics[{self._reward.metric}]", "is the reward, which was given as well; give it once"))
            if wrong := self._wrong(self._reward.metric, outcome.reward):
                found.append(Violation(f"{path}.reward", wrong))
        elif not metrics:
            found.append(Violation(path, "got neither a reward nor a metric; at least one value is needed"))
        for name, value in metrics.items():
            if wrong := self._wrong(name, value):
                found.append(Violation(f"{path}.metrics[{name}]", wrong))
        return found

    def _wrong(self, name: str, value: float) -> str:
        rule = self._rules.get(name)
        if rule is None:
            return f"{name!r} is no metric of this experiment; its metrics are {', '.join(sorted(self._rules))}"
        return "" if rule.low <= value <= rule.high else f"got {value}; a number from {rule.low:g} to {rule.high:g} is allowed"

    def fits(self, arm: int, segment: int) -> bool:
        """Do the arm and the segment exist here?"""
        return arm < self._arms and segment < self._segments

    def contributions(
        self, decision: DecisionId, outcome: Outcome, age_seconds: float, slots: tuple[int, ...] | None
    ) -> tuple[int, list[tuple[int, Cell]]]:
        """Mask of the outcome's metrics, and (bit, cell) for what each adds.

        age_seconds: from decision to report. slots: the weights that the decision was drawn from, None when unknown or gated: then a
        relative guardrail learns nothing from it.
        """
        bucket, arm, segment = int(decision.seconds // self.bucket_seconds), decision.arm, decision.segment
        values = outcome.metrics or {}
        if outcome.reward is not None:
            values = {**values, self._reward.metric: outcome.reward}
        activation = self._activation_of(decision)
        mask, cells = 0, []
        for name, value in values.items():
            rule = self._rules[name]
            bit = rule.bit
            mask |= 1 << bit
            if rule.reward:
                micro = round((value - self._shift) / self._unit * MICRO)
                squares = square_of(micro) if self._squares else (0, 0)
                cells.append((bit, new_tuple(Cell, (bucket, arm, segment, REWARD, 1, micro, *squares))))
            if not decision.first:
                continue
            for use in rule.uses:
                if age_seconds > use.window_seconds:
                    continue
                guardrail = use.guardrail
                loss = round(guardrail.loss(value, use.low, use.high) * MICRO)
                key = self._streams.get((guardrail.name, activation)) or self._stream(guardrail, activation)
                cells.append((bit, new_tuple(Cell, (bucket, arm, segment, key, 1, loss, 0, 0))))
                if loss and slots is not None and guardrail.relative:
                    cells.append((bit, Cell(bucket, arm, segment, label_stream(key, slots), 1, loss)))
        return mask, cells

    def _stream(self, guardrail: Guardrail, activation: int) -> str:
        """`key_of`, which hashes, kept for each of the at most 32 activations that an id can mean."""
        key = self._streams[guardrail.name, activation] = key_of(guardrail, activation)
        return key

    def _activation_of(self, decision: DecisionId) -> int:
        """The latest activation, not after the present one, that the id's five bits can mean."""
        return self.activation - ((self.activation - decision.activation) & 31)


def metric_names(experiment: Experiment) -> tuple[str, ...]:
    """Every metric that an outcome may carry, the reward first."""
    names = [experiment.reward.metric, *(g.metric for g in experiment.guardrails), *(m.name for m in experiment.metrics)]
    return tuple(dict.fromkeys(names))


def _rule(experiment: Experiment, name: str, bit: int) -> _Rule:
    reward = name == experiment.reward.metric
    declared = any(metric.name == name for metric in experiment.metrics)
    users = [g for g in experiment.guardrails if g.metric == name]
    if reward:
        low, high = experiment.reward.low, experiment.reward.upper
    elif declared or any(g.quantile is None for g in users):
        low, high = experiment.metric_range(name)
    else:  # only quantiles look at it: any finite number will do
        low, high = -sys.float_info.max, sys.float_info.max
    uses = tuple(_Use(g, low, high, experiment.guardrail_window_seconds(g)) for g in users)
    return _Rule(bit, low, high, reward, uses)
