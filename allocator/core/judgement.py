"""What the guardrails say of one candidate together: its evidence, whether it must stop, and which guardrails are to blame.

In: the `Finding` of each guardrail and stream. Out: a `Judgement`.

The idea. A candidate's stopping evidence is one weighted average of e-processes over its guardrails and segments; at 1/alpha it is a
breach, and closed testing names the guardrails to blame. HOLD and ALERT guardrails are judged each by itself, so that an alert cannot
freeze. What nobody measured is held, never clear.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from allocator.core.evidence_streams import to_blame
from allocator.core.experiment import BreachAction, Experiment, Guardrail, Per
from allocator.core.guardrail_counts import ALL
from allocator.core.lifecycle import Status

STOPPING = (BreachAction.FREEZE, BreachAction.DRAIN)


class Verdict(Enum):
    CLEAR = "CLEAR"
    WARN = "WARN"
    BREACH = "BREACH"
    HOLD = "HOLD"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one guardrail says of one arm (and segment). Logs are natural.

    observed: mean over open buckets in the metric's own units (of quantiles and ratios, the share of bad outcomes); NaN unknown.
    log_threshold: a breach by this stream alone, whose share of the error budget is `alpha`. held: data is missing.
    """

    guardrail: str
    arm: int
    segment: int
    action: BreachAction
    verdict: Verdict
    limit: float
    observed: float
    exposed: float
    events: float
    log_evidence: float
    log_threshold: float
    log_warning: float
    log_safety: float
    proven_safe: bool
    held: bool
    share: float
    alpha: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the guardrails say of one candidate together. action: None without a breach. blamed: names of guardrails."""

    arm: int
    log_evidence: float
    log_threshold: float
    action: BreachAction | None
    blamed: tuple[str, ...]
    warned: tuple[str, ...]
    held: tuple[str, ...]
    unproven: tuple[str, ...]
    message: str = ""


def judge(experiment: Experiment, alpha: float, arm: int, findings: Sequence[Finding]) -> Judgement:
    """What the findings say of one candidate. alpha: its error budget in this activation. arm: its index."""
    threshold = -math.log(alpha)
    mine = [f for f in findings if f.arm == arm]
    stops = [f for f in mine if f.action in STOPPING]
    level, action, blamed, message = 0.0, None, (), ""
    if stops:
        terms = [f.log_evidence + math.log(f.share) for f in stops]
        top = max(terms)
        level = top + math.log(math.fsum(math.exp(term - top) for term in terms))
        if level >= threshold:
            logs = np.array([f.log_evidence for f in stops])
            named = to_blame(logs, alpha)
            if not named.any():
                named = logs == logs.max()
            guilty = [f for f, is_named in zip(stops, named, strict=True) if is_named]
            blamed = _names(guilty)
            freezes = any(f.action is BreachAction.FREEZE for f in guilty)
            action = BreachAction.FREEZE if freezes else BreachAction.DRAIN
            message = _breach_message(experiment, max(guilty, key=lambda f: f.log_evidence), level, threshold)
    for kind in (BreachAction.HOLD, BreachAction.ALERT):
        guilty = [f for f in mine if f.action is kind and f.log_evidence >= threshold]
        if guilty and action is None:
            action, blamed = kind, _names(guilty)
            message = _breach_message(experiment, guilty[0], guilty[0].log_evidence, threshold)
    needed = [f for f in mine if f.action is not BreachAction.ALERT]
    return Judgement(
        arm,
        level,
        threshold,
        action,
        blamed,
        _names(f for f in mine if f.verdict is Verdict.WARN),
        _names(f for f in needed if f.held),
        _names(f for f in needed if not f.proven_safe),
        message,
    )


def alpha_of(experiment: Experiment, activation: int) -> float:
    """A candidate's error budget in an activation; over all activations they sum to `experiment.alpha`."""
    return experiment.alpha * 6 / (math.pi * activation) ** 2


def stream_share(experiment: Experiment, guardrail: Guardrail) -> float:
    """Weight of each of the guardrail's streams in a candidate's stopping evidence; 1 for guardrails that stop nothing.

    Half goes to the streams over all segments, half to those of single segments, equally within a half; all of it where there is one kind.
    """
    if guardrail.on_breach not in STOPPING:
        return 1.0
    whole, parts = 0, 0
    for g in experiment.guardrails:
        if g.on_breach in STOPPING:
            if g.per is Per.SEGMENT:
                parts += len(experiment.segments) + 1
            else:
                whole += 1
    if not whole or not parts:
        return 1.0 / (whole + parts)
    return 0.5 / (parts if guardrail.per is Per.SEGMENT else whole)


def unguarded(experiment: Experiment, status: Status, arm: int) -> Judgement:
    """The judgement of a candidate without any guardrail: no evidence, nothing to do."""
    return Judgement(arm, 0.0, -math.log(alpha_of(experiment, status.activation)), None, (), (), (), ())


def _breach_message(experiment: Experiment, f: Finding, level: float, threshold: float) -> str:
    where = "" if f.segment == ALL else f" in segment {experiment.segment_names[f.segment]}"
    return (
        f"guardrail {f.guardrail} breached by {experiment.arms[f.arm].name}{where}: {f.events:g} bad of {f.exposed:g} decisions,"
        f" limit {f.limit:g}, evidence {level:.2f} >= {threshold:.2f}"
    )


def _names(findings: Iterable[Finding]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f.guardrail for f in findings))
