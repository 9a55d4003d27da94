"""What another policy would have earned, from decisions that this one made and logged.

In: logged decisions (action, reward, the chance it had) and the chances that the policy in question gives each action. Out: an
`Evaluation`: replay, IPS, SNIPS, DM and DR with intervals that may be looked at after every row, and the diagnostics without which none of
them should be believed. When the log cannot answer (too few effective rows, actions it never tried) the answer is a refusal that says so.

The idea. A row weighs w = target / propensity. With clipping k and a model q made from earlier rows only,
`phi = w (r - min(q(A), k/w)) + sum over actions a of target(a) min(q(a), k / w(a))`, the cap of *each* action inside the sum (with the
logged action's cap there it is biased: a public implementation is). phi has the value as its mean whatever q is, and phi >= -k, so
xi = phi / (k + 1) > -1 and an empirical Bernstein process bounds its mean from below at every row; from above, the same on 1 - r and 1 - q.
No bound on the weights is needed. Where rewards are rare the bound from above is a long way off, because 1 - r is not rare; where the
weights have a bound known before each row (from the chances of every action) a second one on -phi is far nearer (0.015 instead of 0.15 for
IPS of 10,000 rows at a click rate of 0.005). Each gets half of that side's error, and the lower one counts. Where the log never tries an
action, weights add up to less than one and the interval only becomes wider: it holds, the point estimates miss that part, which is why it
is reported and by default refused. k = 0 is IPS; a common q, the SNIPS so far, gives SNIPS its interval (mean phi = IPS + q (1 - mean w));
a q for each action gives DR its own.

Here and not in the simulation: it reads logs and asks neither engine nor store; whoever simulates may call it through plain arrays.

Tried and dropped: normal intervals for SNIPS (on a log with 46 clicks, 15 of which carry all the weight, they are far too short); models
fitted on all rows (not past-only, and then phi is no longer unbiased). DM has no interval: nothing in the data bounds the error of a model.

Sources: Li, Chu, Langford & Wang 2011; Dudik, Langford & Li 2011; Swaminathan & Joachims 2015; Karampatziakis, Mineiro & Ramdas 2021;
Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allocator.core.checked import checked_alpha
from allocator.core.confidence import asymptotic_half_width, confidence_sequence
from allocator.errors import InvalidArgument, Refused

Floats = NDArray[np.float64]

CLIP = 5.0  # k: about the best when a candidate keeps a floor of 5 %
LEAST_EFFECTIVE = 100.0  # rows; below, one heavy row more or less changes the answer
STRENGTH = 10.0  # outcomes that an action needs before its own past outweighs that of all


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Logged decisions in decision order, and what the policy in question would have done.

    action: (N,) whole numbers in [0, K). reward: (N,), in [low, high] of `evaluate`. pscore: (N,) in (0, 1], the chance of the logged
    action, after caps and freezes. target: (N, K), chances of each action under the policy in question, rows sum to 1. propensities:
    (N, K), chances of each action when it was logged; None when only that of the logged action is known: then nothing can be clipped.
    Raises InvalidArgument.
    """

    action: NDArray[np.int64]
    reward: Floats
    pscore: Floats
    target: Floats
    propensities: Floats | None = None

    def __post_init__(self) -> None:
        action = np.asarray(self.action)
        if action.ndim != 1 or action.size == 0 or action.dtype.kind not in "iu":
            raise InvalidArgument.of_field("action", f"got {action.dtype} {action.shape}; whole numbers of shape (N,), N >= 1, are allowed")
        target = _numbers("target", self.target, (action.size, -1))
        if (target < 0.0).any() or not np.allclose(target.sum(axis=1), 1.0, atol=1e-6):
            raise InvalidArgument.of_field("target", "rows of chances of at least 0 that sum to 1 are allowed")
        if not 0 <= action.min() <= action.max() < target.shape[1]:
            raise InvalidArgument.of_field("action", f"spans {action.min()} to {action.max()}; 0 to {target.shape[1] - 1} are allowed")
        pscore = _numbers("pscore", self.pscore, (action.size,))
        if not ((pscore > 0.0) & (pscore <= 1.0)).all():
            raise InvalidArgument.of_field("pscore", f"spans {pscore.min()} to {pscore.max()}; above 0 and up to 1 is allowed")
        propensities = self.propensities
        if propensities is not None:
            propensities = _numbers("propensities", propensities, target.shape)
            if (propensities < 0.0).any() or not np.allclose(propensities[np.arange(action.size), action], pscore, atol=1e-9):
                raise InvalidArgument.of_field("propensities", "at least 0, and of the logged action its pscore, is allowed")
        for name, value in (
            ("action", action.astype(np.int64)),
            ("reward", _numbers("reward", self.reward, (action.size,))),
            ("pscore", pscore),
            ("target", target),
            ("propensities", propensities),
        ):
            object.__setattr__(self, name, value)

    @property
    def weight(self) -> Floats:
        """target / pscore of the logged action, (N,)."""
        return self.target[np.arange(self.action.size), self.action] / self.pscore

    @property
    def unsupported(self) -> float:
        """Mean chance that the target gives to actions which the log could not have taken; NaN when that is not known."""
        if self.propensities is None:
            return math.nan
        return float(np.where(self.propensities == 0.0, self.target, 0.0).sum(axis=1).mean())


@dataclass(frozen=True, slots=True)
class Estimate:
    """One estimate of the policy's mean reward. low, high: None where no honest interval exists; note: what to know about it."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Estimates by name ("replay" only where the log is uniform), and whether to believe them.

    effective: rows of equal weight that would tell as much, (sum w)^2 / sum w^2. mean_weight: 1 but for noise and missing support, with its
    (asymptotic) interval at every row; see `_weight_variance`. clipped: share of rows whose model was cut to k / w. unsupported: see Rows.
    alpha: of each interval.
    """

    estimates: dict[str, Estimate]
    rows: int
    effective: float
    mean_weight: float
    mean_weight_low: float
    mean_weight_high: float
    max_weight: float
    clipped: float
    unsupported: float
    alpha: float
    warnings: tuple[str, ...] = ()


def evaluate(
    rows: Rows,
    alpha: float = 0.05,
    *,
    low: float = 0.0,
    high: float = 1.0,
    clip: float = CLIP,
    model: ArrayLike | None = None,
    least_effective: float = LEAST_EFFECTIVE,
    most_unsupported: float = 0.0,
    random_state: int | None = 0,
) -> Evaluation:
    """Every estimate of the mean reward that the target policy would have had on these rows.

    alpha: each interval holds at all sample sizes at once with probability at least 1 - alpha. low, high: declared range of the reward.
    clip: k, fixed before looking. model: (N, K), expected reward of each action, made without the row's own reward; None: past means.
    random_state: of replay, where the target is not deterministic. Raises InvalidArgument; Refused with reason TOO_FEW_EFFECTIVE_ROWS below
    `least_effective`, NO_SUPPORT when the target puts more than `most_unsupported` on actions the log could not take.
    """
    checked_alpha(alpha)
    if not clip >= 0.0:
        raise InvalidArgument.of_field("clip", f"got {clip}; at least 0 is allowed")
    reward = _scaled("reward", rows.reward, low, high)
    weight, number, width = rows.weight, rows.action.size, high - low
    total, effective = float(weight.sum()), effective_rows(weight)
    unsupported = rows.unsupported
    if unsupported > most_unsupported:
        raise Refused(
            f"the policy in question gives {unsupported:.3g} of its decisions to actions that the log never could take: nothing is known of"
            f" their rewards; at most {most_unsupported:g} is accepted (most_unsupported)",
            reason="NO_SUPPORT",
            unsupported=unsupported,
        )
    if effective < least_effective:
        raise Refused(
            f"the {number} rows tell as much as {effective:.1f} rows of equal weight would (largest weight {weight.max():.3g}, mean"
            f" {total / number:.3g}); at least {least_effective:g} are needed (least_effective): any number would be noise",
            reason="TOO_FEW_EFFECTIVE_ROWS",
            effective=effective,
        )
    common = past_common(reward, weight)[:, np.newaxis] + np.zeros_like(rows.target)
    each = past_means(rows.action, reward, rows.target.shape[1]) if model is None else _scaled("model", model, low, high)
    each = _numbers("model", each, rows.target.shape)
    k = clip if rows.propensities is not None else 0.0
    note = "" if k or not clip else "only the logged action's propensity is known, so the interval is that of IPS"
    inner = np.where(rows.target > 0.0, rows.target * each, 0.0).sum(axis=1)
    residual = weight * (reward - each[np.arange(number), rows.action])
    found = {
        "IPS": Estimate("IPS", float((weight * reward).mean()), *_last(rows, reward, np.zeros_like(rows.target), 0.0, alpha)),
        "SNIPS": Estimate("SNIPS", float((weight * reward).sum()) / total, *_last(rows, reward, common, k, alpha), note),
        "DM": Estimate("DM", float(inner.mean()), note="as good as its model: no interval"),
        "DR": Estimate("DR", float((inner + residual).mean()), *_last(rows, reward, each, k, alpha), note),
    }
    if _uniform(rows):
        found["replay"] = _replay(rows, reward, alpha, random_state)
    half = float(asymptotic_half_width(number, _weight_variance(rows), alpha, best_at=number))
    warnings = []
    if total / number + half < 1.0 - (0.0 if math.isnan(unsupported) else unsupported) or total / number - half > 1.0:
        warnings.append(
            f"the mean weight is {total / number:.3g}, not 1. Either the logged propensities are not those of the decisions, or rows are"
            " missing: then nothing here can be believed. Or the log hardly ever tried an arm that the policy in question wants, as bandits"
            f" starve arms (least chance {_least_chance(rows):.2g}, largest weight {weight.max():.3g}): then the intervals hold, and the"
            " estimates rest on a few rows"
        )
    return Evaluation(
        {name: _back(estimate, low, width) for name, estimate in found.items()},
        number,
        effective,
        total / number,
        total / number - half,
        total / number + half,
        float(weight.max()),
        _clipped(rows, each, k),
        unsupported,
        alpha,
        tuple(warnings),
    )


def value_sequence(rows: Rows, model: ArrayLike, clip: float = CLIP, alpha: float = 0.05) -> tuple[Floats, Floats]:
    """(low, high) of the target's mean reward after each row, (N,) each: all of them hold together with probability at least 1 - alpha.

    rows: rewards in [0, 1]. model: (N, K) in [0, 1], each row made from earlier ones. The mean is over the rows so far, weighted by the
    stakes of the bets; where rewards do not drift it is the value. Raises InvalidArgument.
    """
    reward, model = _scaled("reward", rows.reward, 0.0, 1.0), _scaled("model", model, 0.0, 1.0)
    model = _numbers("model", model, rows.target.shape)
    half, number = checked_alpha(alpha) / 2.0, reward.size
    scale, most = np.full(number, clip + 1.0), _most_weight(rows)
    low = _lower(scores(rows, reward, model, clip), scale, 1.0 / scale, half)
    share = half if most is None else half / 2.0
    high = 1.0 - _lower(scores(rows, 1.0 - reward, 1.0 - model, clip), scale, 1.0 / scale, share)
    if most is not None:  # phi <= most weight + 1, so that -phi is bounded from below as well; what lacks support may earn 1
        missing = np.where(rows.propensities == 0.0, rows.target, 0.0).sum(axis=1)
        near = _lower(-scores(rows, reward, model, clip), most + 1.0, np.zeros(number), share)
        high = np.minimum(high, np.maximum.accumulate(missing) - near)
    return np.maximum.accumulate(np.clip(low, 0.0, 1.0)), np.minimum.accumulate(np.clip(high, 0.0, 1.0))


def scores(rows: Rows, reward: Floats, model: Floats, clip: float) -> Floats:
    """phi of each row, (N,), at least -clip: its mean given the past is the target's mean reward on that row, less what lacks support."""
    weight, at = rows.weight, np.arange(rows.action.size)
    if clip == 0.0:
        return weight * reward
    if rows.propensities is None:
        raise InvalidArgument.of_field("clip", f"got {clip}; 0 alone is allowed where only the logged action's propensity is known")
    capped = np.minimum(model, _caps(rows, clip))
    inner = np.where(rows.target > 0.0, rows.target * capped, 0.0).sum(axis=1)
    return weight * (reward - np.where(weight > 0.0, capped[at, rows.action], 0.0)) + inner


def effective_rows(weight: Floats) -> float:
    """(sum w)^2 / sum w^2: rows of equal weight that would tell as much; 0 when every weight is 0."""
    squares = float((weight**2).sum())
    return float(weight.sum()) ** 2 / squares if squares > 0.0 else 0.0


def past_means(action: NDArray[np.int64], reward: Floats, actions: int) -> Floats:
    """(N, K): mean reward of each action over earlier rows, drawn towards that of all earlier rows by STRENGTH outcomes; 0.5 at first."""
    chosen = action[:, np.newaxis] == np.arange(actions)
    count = np.cumsum(chosen, axis=0) - chosen
    total = np.cumsum(chosen * reward[:, np.newaxis], axis=0) - chosen * reward[:, np.newaxis]
    pooled = (np.cumsum(reward) - reward + 0.5) / np.arange(1.0, reward.size + 1.0)
    return np.asarray((total + STRENGTH * pooled[:, np.newaxis]) / (count + STRENGTH))


def past_common(reward: Floats, weight: Floats) -> Floats:
    """(N,): SNIPS over earlier rows, begun with half a reward of weight 1; in [0, 1] as rewards are."""
    return np.asarray((np.cumsum(weight * reward) - weight * reward + 0.5) / (np.cumsum(weight) - weight + 1.0))


# -------------------------------------------------------------------------------------------------------- helpers


def _lower(phi: Floats, scale: Floats, most_guess: Floats, alpha: float) -> Floats:
    """Lower bound, at every row at once, of the mean of phi, where phi / scale - guess >= -1 for each guess up to most_guess.

    scale, most_guess: (N,), known before each row.
    """
    xi, number = phi / scale, np.arange(1.0, phi.size + 1.0)
    mean = np.cumsum(xi) / number
    guess = np.minimum(np.concatenate(([0.0], mean[:-1])), most_guess)
    spread = np.concatenate(([0.0], np.cumsum((xi - mean) ** 2)[:-1]))
    variance = np.maximum((0.25 + spread) / number, 1e-4)
    needed = -math.log(alpha)
    stake = np.minimum(0.5, np.sqrt(2.0 * needed / (variance * number * np.log1p(number))))
    price = (-np.log1p(-stake) - stake) * (xi - guess) ** 2
    low = (np.cumsum(stake * xi) - needed - np.cumsum(price)) / np.cumsum(stake / scale)
    return np.asarray(np.maximum.accumulate(low))


def _weight_variance(rows: Rows) -> float:
    """Of one weight, as seen, or if that is more, as the chances of all actions imply it: sum of target^2 / chance, less the mean squared.

    An arm that was starved shows no spread: the heavy rows that would have made the mean 1 are those that did not come.
    """
    seen = float(rows.weight.var())
    if rows.propensities is None:
        return seen
    chance = rows.propensities > 0.0
    second = np.divide(rows.target**2, rows.propensities, out=np.zeros_like(rows.target), where=chance).sum(axis=1)
    return max(seen, float((second - np.where(chance, rows.target, 0.0).sum(axis=1) ** 2).mean()))


def _least_chance(rows: Rows) -> float:
    """That an action which the target wants had on any row."""
    if rows.propensities is None:
        return float(rows.pscore.min())
    return float(rows.propensities[(rows.target > 0.0) & (rows.propensities > 0.0)].min())


def _most_weight(rows: Rows) -> Floats | None:
    """(N,): the largest weight that any action of this row or an earlier one could have had; None when that is not known."""
    if rows.propensities is None:
        return None
    weight = np.divide(rows.target, rows.propensities, out=np.zeros_like(rows.target), where=rows.propensities > 0.0)
    return np.asarray(np.maximum.accumulate(weight.max(axis=1)))


def _last(rows: Rows, reward: Floats, model: Floats, clip: float, alpha: float) -> tuple[float, float]:
    plain = Rows(rows.action, reward, rows.pscore, rows.target, rows.propensities)
    low, high = value_sequence(plain, model, clip, alpha)
    return float(low[-1]), float(max(high[-1], low[-1]))


def _caps(rows: Rows, clip: float) -> Floats:
    """k / w(a) of every action: infinite where the target never takes it, 0 where the log never could."""
    assert rows.propensities is not None
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rows.target > 0.0, clip * rows.propensities / rows.target, np.inf)


def _clipped(rows: Rows, model: Floats, clip: float) -> float:
    if clip == 0.0:
        return 0.0
    at = np.arange(rows.action.size)
    return float((_caps(rows, clip)[at, rows.action] < model[at, rows.action]).mean())


def _uniform(rows: Rows) -> bool:
    return bool(np.allclose(rows.pscore, 1.0 / rows.target.shape[1], rtol=1e-9))


def _replay(rows: Rows, reward: Floats, alpha: float, random_state: int | None) -> Estimate:
    """Mean reward of the rows on which the target, asked independently, takes the logged action."""
    chance = rows.target[np.arange(rows.action.size), rows.action]
    taken = np.random.default_rng(random_state).random(chance.size) < chance
    number, total = int(taken.sum()), float(reward[taken].sum())
    low, high = confidence_sequence(total, float(number), alpha)
    return Estimate("replay", total / number if number else math.nan, float(low), float(high), f"{number} rows match")


def _back(estimate: Estimate, low: float, width: float) -> Estimate:
    """In the reward's own units."""
    ends = [None if end is None else low + width * end for end in (estimate.low, estimate.high)]
    return Estimate(estimate.name, low + width * estimate.value, *ends, estimate.note)


def _scaled(name: str, value: ArrayLike, low: float, high: float) -> Floats:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InvalidArgument.of_field("low", f"got {low}, high {high}; finite numbers with low < high are allowed")
    value = np.asarray(value, dtype=np.float64)
    if not ((value >= low) & (value <= high)).all():
        raise InvalidArgument.of_field(name, f"holds a value outside [{low:g}, {high:g}]; the declared range is allowed")
    return (value - low) / (high - low)


def _numbers(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Floats:
    array = np.asarray(value, dtype=np.float64)
    fits = array.ndim == len(shape) and all(wanted in (-1, got) for wanted, got in zip(shape, array.shape, strict=True))
    if not fits:
        raise InvalidArgument.of_field(name, f"got shape {array.shape}; finite numbers of shape {shape} are allowed")
    wrong = np.argwhere(~np.isfinite(array))
    if wrong.size:
        first = tuple(wrong[0].tolist())
        where = f"{array[first]} at {first[0] if len(first) == 1 else first}"
        message = f"got {where}, the first of {len(wrong)} among {array.size} values that are not finite; finite numbers are allowed"
        raise InvalidArgument.of_field(name, message)
    return array
