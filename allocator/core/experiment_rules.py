"""What a spec must keep: every rule of an `Experiment`, and every fault found at once.

In: an `Experiment` as it was written. Out: nothing, or the violations, each with the path of its field in the spec file and what is
allowed there, so that a person mends a file once, not ten times. A rule is a generator of faults; `violations` runs them all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from allocator.core.experiment import OTHER, Experiment, Goal, PolicyKind, RewardModel
from allocator.errors import InvalidArgument, Violation

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
METRIC = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,127}")
MAX_ARMS = 64
MAX_GUARDRAILS = 32
MAX_SEGMENTS = 32
MAX_UNIT_BYTES = 256
MAX_COUNT = 10_000  # of a POISSON reward: the sums of half a billion such outcomes still fit


def checked(**values: object) -> Experiment:
    """Build an experiment and check it. values: the fields of `Experiment`. Raises InvalidArgument with every violation."""
    experiment = Experiment(**values)  # type: ignore[arg-type]
    check(experiment)
    return experiment


def check(experiment: Experiment) -> None:
    """Raise InvalidArgument with every violation of the spec, if there is any."""
    found = violations(experiment)
    if found:
        raise InvalidArgument(
            f"experiment {experiment.full_name!r} has {len(found)} invalid field{'s' if len(found) > 1 else ''}",
            violations=found,
            reason="INVALID_SPEC",
            experiment=experiment.full_name,
        )


def violations(experiment: Experiment) -> list[Violation]:
    """Every fault of the spec, each with the path of its field."""
    return [
        Violation(path, message)
        for rule in (_names, _arms, _reward, _policy, _exposure, _metrics, _guardrails, _segments, _ramp, _conclude, _rest)
        for path, message in rule(experiment)
    ]


Faults = Iterable[tuple[str, str]]


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _share(path: str, value: float) -> Faults:
    if not (_finite(value) and 0 <= value <= 1):
        yield path, f"got {value}; a share from 0 to 1 is allowed"


def _positive(path: str, value: float) -> Faults:
    if not (_finite(value) and value > 0):
        yield path, f"got {value}; a number above 0 is allowed"


def lasting(seconds: float) -> str:
    """A duration as people write it: `30d`, `90m`, `1.5s`."""
    seconds = round(seconds, 6)  # a difference of two times is no better
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def _seconds(path: str, value: float, least: float, most: float) -> Faults:
    if not (_finite(value) and least <= value <= most):
        yield path, f"got {lasting(value)}; a duration from {lasting(least)} to {lasting(most)} is allowed"


def _name(path: str, value: str) -> Faults:
    if not NAME.fullmatch(value):
        yield path, (f"got {value!r}; 1 to 63 lower-case letters, digits, '.', '_' or '-' are allowed, a letter or digit first and last")


def _names(e: Experiment) -> Faults:
    yield from _name("metadata.name", e.name)
    yield from _name("metadata.namespace", e.namespace)
    for key, value in e.labels.items():
        if len(key) > 63 or len(value) > 63 or not key:
            yield f"metadata.labels[{key}]", f"got {key!r}: {value!r}; keys of 1 to 63 and values of up to 63 characters are allowed"


def _arms(e: Experiment) -> Faults:
    if not 2 <= len(e.arms) <= MAX_ARMS:
        yield "spec.arms", f"got {len(e.arms)}; 2 to {MAX_ARMS} arms are allowed, all of them counted"
    incumbents = [arm.name for arm in e.arms if arm.incumbent]
    if len(incumbents) != 1:
        got = ", ".join(incumbents) or "none"
        yield "spec.arms", f"exactly one arm must say `incumbent: true`, got {got}"
    seen: set[str] = set()
    for index, arm in enumerate(e.arms):
        yield from _name(f"spec.arms[{index}].name", arm.name)
        if arm.name in seen:
            yield f"spec.arms[{index}].name", f"got {arm.name!r} a second time; each arm needs its own name"
        seen.add(arm.name)
        if len(arm.model_uri) > 512:
            yield f"spec.arms[{index}].modelUri", f"got {len(arm.model_uri)} characters; at most 512 are allowed"
        elif why := _can_move(arm.model_uri):
            yield f"spec.arms[{index}].modelUri", f"got {arm.model_uri!r}, {why}, which can move; an immutable version is allowed"


def _can_move(uri: str) -> str:
    """What makes the identity of a model mutable; "" when nothing known does."""
    if uri.startswith("models:/"):
        if "@" in uri:
            return "an alias"
        if not re.fullmatch(r"models:/+[^/]+/[0-9]+", uri):
            return "a stage or no version"
    return "the tag latest" if re.search(r"[:/@]latest$", uri) else ""


def _reward(e: Experiment) -> Faults:
    r = e.reward
    if not METRIC.fullmatch(r.metric):
        yield "spec.reward.metric", f"got {r.metric!r}; the name of the metric that carries the reward is needed"
    yield from _seconds("spec.reward.window", r.window_seconds, 1, 90 * 86400)
    if not _finite(r.low):
        yield "spec.reward.min", f"got {r.low}; a finite number is allowed"
    if r.model is RewardModel.GAUSSIAN and r.high is None:
        yield "spec.reward.max", "got nothing; a GAUSSIAN reward needs its range, min and max"
    elif not (_finite(r.upper) and r.upper > r.low):
        yield "spec.reward.max", f"got {r.upper}; a finite number above min ({r.low}) is allowed"
    elif r.model is RewardModel.BERNOULLI and (r.low != 0 or r.upper != 1):
        yield "spec.reward.max", f"got [{r.low:g}, {r.upper:g}]; a BERNOULLI reward lies in [0, 1]"
    elif r.model is RewardModel.POISSON and (r.low < 0 or r.upper > MAX_COUNT):
        yield "spec.reward.max", f"got [{r.low:g}, {r.upper:g}]; a POISSON reward lies in [0, {MAX_COUNT:g}]"
    elif r.missing is not None and not (_finite(r.missing) and r.low <= r.missing <= r.upper):
        yield "spec.reward.missing", f"got {r.missing}; a number from min ({r.low:g}) to max ({r.upper:g}) is allowed"
    p, model = r.prior, r.model
    allowed = {
        RewardModel.BERNOULLI: ("successes", "failures"),
        RewardModel.GAUSSIAN: ("mean", "strength", "shape", "scale"),
        RewardModel.POISSON: ("shape", "rate"),
    }[model]
    for name in ("successes", "failures", "mean", "strength", "shape", "scale", "rate"):
        value = getattr(p, name)
        if value is None:
            continue
        path = f"spec.reward.prior.{name}"
        least = {"mean": -math.inf, "shape": 1.0 if model is RewardModel.GAUSSIAN else 0.01}.get(name, 0.01)
        if name == "scale":
            least = 1e-12
        if name not in allowed:
            yield path, f"got {value}; the prior of a {model.value} reward has {', '.join(allowed)}"
        elif not (_finite(value) and value >= least):
            yield path, f"got {value}; a finite number of at least {least:g} is allowed"
    if r.warm_start is not None:
        yield from _share("spec.reward.warmStart.discount", r.warm_start.discount)
        if not r.warm_start.experiment:
            yield "spec.reward.warmStart.experiment", "got nothing; name the earlier experiment"


def _policy(e: Experiment) -> Faults:
    p = e.policy
    yield from _share("spec.policy.floor", p.floor)
    yield from _share("spec.policy.power", p.power)
    yield from _share("spec.policy.beta", p.beta)
    if p.half_life_seconds is not None:
        yield from _seconds("spec.policy.halfLife", p.half_life_seconds, 60, 3650 * 86400)
    candidates = max(len(e.arms) - 1, 1)
    if _finite(p.floor) and _finite(e.exposure.total) and p.floor * candidates > e.exposure.total + 1e-12:
        yield (
            "spec.policy.floor",
            (
                f"got {p.floor:g} for each of {candidates} candidates, more than exposure.total ({e.exposure.total:g}) allows;"
                f" at most {e.exposure.total / candidates:g} is allowed"
            ),
        )
    if _finite(p.floor) and _finite(e.exposure.per_candidate) and p.floor > e.exposure.per_candidate:
        yield "spec.policy.floor", f"got {p.floor:g}; at most exposure.perCandidate ({e.exposure.per_candidate:g}) is allowed"
    if p.kind is PolicyKind.FIXED:
        names = {arm.name for arm in e.arms}
        for name, share in p.shares.items():
            yield from _share(f"spec.policy.shares[{name}]", share)
        if set(p.shares) != names:
            yield "spec.policy.shares", f"got shares for {sorted(p.shares)}; FIXED needs one for each of {sorted(names)}"
        elif abs(sum(p.shares.values()) - 1) > 1e-9:
            yield "spec.policy.shares", f"got a sum of {sum(p.shares.values()):g}; shares must sum to 1"
    elif p.shares:
        yield "spec.policy.shares", f"got shares with kind {p.kind.value}; only FIXED has shares"


def _exposure(e: Experiment) -> Faults:
    x = e.exposure
    yield from _share("spec.exposure.perCandidate", x.per_candidate)
    yield from _share("spec.exposure.total", x.total)
    if not 1 <= x.burst <= 1_000_000:
        yield "spec.exposure.burst", f"got {x.burst}; a whole number from 1 to 1000000 is allowed"
    for name in ("requests", "units"):
        value = getattr(x.budget, name)
        if value is not None and value < 0:
            yield f"spec.exposure.budget.{name}", f"got {value}; a whole number of at least 0 is allowed"
    if x.budget.loss is not None:
        yield from _positive("spec.exposure.budget.loss", x.budget.loss)
    if x.max_loss is not None:
        if not (_finite(x.max_loss) and 0 < x.max_loss < 1):
            yield "spec.exposure.maxLoss", f"got {x.max_loss}; a share between 0 and 1 is allowed"
        if e.reward.model is not RewardModel.BERNOULLI or e.reward.goal is not Goal.MAXIMISE:
            yield "spec.exposure.maxLoss", f"needs a BERNOULLI reward that is maximised, got {e.reward.model.value}"
    if x.budget.loss is not None and e.reward.goal is not Goal.MAXIMISE:
        yield "spec.exposure.budget.loss", "needs a reward that is maximised"


def _metrics(e: Experiment) -> Faults:
    seen: set[str] = set()
    for index, metric in enumerate(e.metrics):
        path = f"spec.metrics[{index}]"
        if not METRIC.fullmatch(metric.name):
            yield f"{path}.name", f"got {metric.name!r}; letters, digits, '_', '.', ':', '/' and '-' are allowed"
        if metric.name in seen:
            yield f"{path}.name", f"got {metric.name!r} a second time"
        seen.add(metric.name)
        if not (_finite(metric.low) and _finite(metric.high) and metric.low < metric.high):
            yield f"{path}.max", f"got [{metric.low}, {metric.high}]; finite numbers with min below max are allowed"
        if metric.name == e.reward.metric:
            yield f"{path}.name", f"got {metric.name!r}, the reward; its range is spec.reward.min and spec.reward.max"


def _guardrails(e: Experiment) -> Faults:
    if len(e.guardrails) > MAX_GUARDRAILS:
        yield "spec.guardrails", f"got {len(e.guardrails)}; at most {MAX_GUARDRAILS} are allowed"
    seen: set[str] = set()
    for index, g in enumerate(e.guardrails):
        path = f"spec.guardrails[{index}]"
        yield from _name(f"{path}.name", g.name)
        if g.name in seen:
            yield f"{path}.name", f"got {g.name!r} a second time; each guardrail needs its own name"
        seen.add(g.name)
        if not METRIC.fullmatch(g.metric):
            yield f"{path}.metric", f"got {g.metric!r}; letters, digits, '_', '.', ':', '/' and '-' are allowed"
        limits = [name for name, value in (("max", g.max), ("min", g.min), ("maxRatio", g.max_ratio)) if value is not None]
        if len(limits) != 1:
            yield path, f"got {', '.join(limits) or 'no limit'}; exactly one of max, min, maxRatio is allowed"
            continue
        value = next(v for v in (g.max, g.min, g.max_ratio) if v is not None)
        where = f"{path}.{limits[0]}"
        low, high = e.metric_range(g.metric)
        if g.metric == e.reward.metric:
            low, high = e.reward.low, e.reward.upper
        if not _finite(value):
            yield where, f"got {value}; a finite number is allowed"
        elif g.quantile is not None:
            if g.max is None:
                yield f"{path}.quantile", f"got {g.quantile} with {limits[0]}; a quantile goes with max"
            if not (_finite(g.quantile) and 0 < g.quantile < 1):
                yield f"{path}.quantile", f"got {g.quantile}; a number between 0 and 1 is allowed"
        elif g.relative:
            if not 1 <= value <= 1000:
                yield where, f"got {value:g}; a ratio from 1 to 1000 is allowed"
        elif low < high and not low < value < high:
            hint = "" if (low, high) != (0.0, 1.0) else f"; if {g.metric} is no rate, declare its range in spec.metrics"
            yield where, f"got {value:g}; a number between {low:g} and {high:g}, the metric's range, is allowed{hint}"
        elif low < high and not 1e-9 <= g.loss_limit(low, high) <= 1 - 1e-6:
            yield where, f"got {value:g}, too close to the end of the metric's range [{low:g}, {high:g}]"
        if not 1 <= g.persistence <= 1000:
            yield f"{path}.persistence", f"got {g.persistence}; a whole number from 1 to 1000 is allowed"
        if g.window_seconds is not None and _finite(e.reward.window_seconds):
            yield from _seconds(f"{path}.window", g.window_seconds, 1, max(1.0, e.reward.window_seconds))
    if not (_finite(e.alpha) and 1e-12 <= e.alpha <= 0.5):
        yield "spec.alpha", f"got {e.alpha}; a number from 1e-12 to 0.5 is allowed"


def _match(path: str, match: Mapping[str, tuple[str, ...]]) -> Faults:
    for attribute, values in match.items():
        if not attribute or not values:
            yield f"{path}[{attribute}]", "an attribute needs a name and at least one value"


def _segments(e: Experiment) -> Faults:
    if len(e.segments) > MAX_SEGMENTS:
        yield "spec.segments", f"got {len(e.segments)}; at most {MAX_SEGMENTS} are allowed"
    seen = {OTHER}
    for index, segment in enumerate(e.segments):
        path = f"spec.segments[{index}]"
        yield from _name(f"{path}.name", segment.name)
        if segment.name in seen:
            yield f"{path}.name", f"got {segment.name!r}; each segment needs its own name, and {OTHER!r} is taken"
        seen.add(segment.name)
        if not segment.match:
            yield f"{path}.match", "got nothing; at least one attribute is needed"
        yield from _match(f"{path}.match", segment.match)
    yield from _match("spec.target.match", e.target)


def _ramp(e: Experiment) -> Faults:
    last = -1.0
    for index, stage in enumerate(e.ramp):
        path = f"spec.ramp[{index}]"
        yield from _share(f"{path}.cap", stage.cap)
        if stage.shadow and stage.cap != 0:
            yield f"{path}.cap", f"got {stage.cap:g} with shadow; a shadow stage has cap 0"
        if not stage.shadow and stage.cap == 0:
            yield f"{path}.cap", "got 0 without shadow; a stage either serves candidates or shadows them"
        if _finite(stage.cap) and stage.cap < last:
            yield f"{path}.cap", f"got {stage.cap:g} after {last:g}; caps must not fall from stage to stage"
        if _finite(stage.cap) and stage.cap > e.exposure.total:
            yield f"{path}.cap", f"got {stage.cap:g}; at most exposure.total ({e.exposure.total:g}) is allowed"
        last = max(last, stage.cap) if _finite(stage.cap) else last
        yield from _seconds(f"{path}.minDuration", stage.min_duration_seconds, 0, 3650 * 86400)
        if stage.min_outcomes < 0:
            yield f"{path}.minOutcomes", f"got {stage.min_outcomes}; a whole number of at least 0 is allowed"
        if not 0 <= stage.approvals <= 20:
            yield f"{path}.approvals", f"got {stage.approvals}; a whole number from 0 to 20 is allowed"


def _conclude(e: Experiment) -> Faults:
    if e.conclude is None:
        return
    if not (_finite(e.conclude.prob_best) and 0.5 < e.conclude.prob_best < 1):
        yield "spec.conclude.probBest", f"got {e.conclude.prob_best}; a number between 0.5 and 1 is allowed"
    if e.conclude.max_expected_loss is not None:
        yield from _positive("spec.conclude.maxExpectedLoss", e.conclude.max_expected_loss)


def _rest(e: Experiment) -> Faults:
    names = {arm.name for arm in e.arms}
    for unit, arm in e.pins.items():
        if arm not in names:
            yield f"spec.pins[{unit}]", f"got {arm!r}; one of {sorted(names)} is allowed"
        if not 1 <= len(unit.encode()) <= MAX_UNIT_BYTES:
            yield f"spec.pins[{unit[:20]}]", f"got a unit of {len(unit.encode())} bytes; 1 to {MAX_UNIT_BYTES} are allowed"
    if e.bucket_seconds is not None:
        yield from _seconds("spec.bucket", e.bucket_seconds, 1, max(1.0, e.reward.window_seconds))
        if _finite(e.bucket_seconds) and e.bucket_seconds != int(e.bucket_seconds):
            yield "spec.bucket", f"got {lasting(e.bucket_seconds)}; whole seconds are allowed"
    yield from _seconds("spec.lease", e.lease_seconds, 1, 3600)
    if not 0 <= e.approval.required <= 20:
        yield "spec.approval.required", f"got {e.approval.required}; a whole number from 0 to 20 is allowed"
    yield from _seconds("spec.approval.expiry", e.approval.expiry_seconds, 60, 30 * 86400)
