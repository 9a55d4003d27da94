"""Off-policy estimates against worlds that can be enumerated, a plain twin, simulated logs and published values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from allocator.analysis.off_policy import Rows, effective_rows, evaluate, past_common, past_means, scores, value_sequence
from allocator.errors import InvalidArgument, Refused
from tests.analysis.open_bandit import logged, thompson

# two contexts, two actions, two rewards: everything that can happen in one row, with its probability
CONTEXT = (0.3, 0.7)
LOGGING = np.array([[0.25, 0.75], [0.6, 0.4]])
TARGET = np.array([[0.9, 0.1], [0.2, 0.8]])
RATE = np.array([[0.2, 0.5], [0.7, 0.1]])
VALUE = sum(CONTEXT[x] * TARGET[x, a] * RATE[x, a] for x in (0, 1) for a in (0, 1))


def world():
    """(probability, rows) of a log with every possible row in it once."""
    cases = list(itertools.product((0, 1), (0, 1), (0.0, 1.0)))
    chance = [CONTEXT[x] * LOGGING[x, a] * (RATE[x, a] if r else 1.0 - RATE[x, a]) for x, a, r in cases]
    x, a, r = (np.array(column) for column in zip(*cases, strict=True))
    return np.array(chance), Rows(a.astype(int), r, LOGGING[x, a], TARGET[x], LOGGING[x])


def simulated(seed, number=2000, rates=(0.3, 0.5), floor=0.1, target=(0.2, 0.8)):
    """A log of Thompson-like sampling that reacts to its own rewards, with a floor."""
    rng, won, lost = np.random.default_rng(seed), np.ones(2), np.ones(2)
    action, reward, chances = np.empty(number, int), np.empty(number), np.empty((number, 2))
    for t in range(number):
        if t % 20 == 0:
            draws = rng.beta(won, lost, (64, 2))
            second = floor + (1.0 - 2.0 * floor) * (draws[:, 1] > draws[:, 0]).mean()
        chances[t] = 1.0 - second, second
        action[t] = rng.random() < second
        reward[t] = rng.random() < rates[action[t]]
        won[action[t]] += reward[t]
        lost[action[t]] += 1.0 - reward[t]
    wanted = np.tile(target, (number, 1))
    return Rows(action, reward, chances[np.arange(number), action], wanted, chances), float(np.dot(target, rates))


@pytest.mark.parametrize("clip", [0.0, 0.3, 1.0, 5.0])
def test_scores_are_unbiased_whatever_the_model_and_the_clipping(clip):
    chance, rows = world()
    model = np.array([[0.9, 0.05], [0.4, 0.6]])[np.repeat([0, 1], 4)]
    assert chance @ scores(rows, rows.reward, model, clip) == pytest.approx(VALUE, abs=1e-12)
    assert chance @ scores(rows, 1.0 - rows.reward, 1.0 - model, clip) == pytest.approx(1.0 - VALUE, abs=1e-12)
    assert scores(rows, rows.reward, model, clip).min() >= -clip - 1e-12


def test_capping_every_action_by_the_logged_ones_weight_would_be_biased():
    chance, rows = world()
    model, clip = np.full((8, 2), 0.9), 0.5
    cap = (clip / rows.weight)[:, np.newaxis]
    wrong = rows.weight * (rows.reward - np.minimum(model, cap)[:, 0]) + (rows.target * np.minimum(model, cap)).sum(axis=1)
    assert abs(chance @ wrong - VALUE) > 0.02
    assert chance @ scores(rows, rows.reward, model, clip) == pytest.approx(VALUE, abs=1e-12)


def test_estimates_are_their_definitions():
    rows, _ = simulated(1, 400)
    found = evaluate(rows, least_effective=0).estimates
    weight = [rows.target[t, a] / rows.pscore[t] for t, a in enumerate(rows.action)]
    model = past_means(rows.action, rows.reward, 2)
    assert found["IPS"].value == pytest.approx(sum(w * r for w, r in zip(weight, rows.reward, strict=True)) / 400, abs=1e-12)
    assert found["SNIPS"].value == pytest.approx(sum(w * r for w, r in zip(weight, rows.reward, strict=True)) / sum(weight), abs=1e-12)
    direct = [sum(rows.target[t, a] * model[t, a] for a in (0, 1)) for t in range(400)]
    assert found["DM"].value == pytest.approx(np.mean(direct), abs=1e-12)
    robust = [direct[t] + weight[t] * (rows.reward[t] - model[t, a]) for t, a in enumerate(rows.action)]
    assert found["DR"].value == pytest.approx(np.mean(robust), abs=1e-12)
    assert "replay" not in found


def test_the_logging_policy_itself_earns_what_was_earned():
    rows, _ = simulated(2, 500)
    same = Rows(rows.action, rows.reward, rows.pscore, rows.propensities, rows.propensities)
    found = evaluate(same)
    assert found.estimates["IPS"].value == rows.reward.mean()
    assert found.effective == pytest.approx(500)
    assert found.mean_weight == 1.0


def test_without_a_model_doubly_robust_is_ips_and_snips_ignores_the_scale_of_weights():
    rows, _ = simulated(3, 500)
    bare = evaluate(rows, model=np.zeros((500, 2)), least_effective=0).estimates
    assert bare["DR"].value == pytest.approx(bare["IPS"].value, abs=1e-12)
    halved = Rows(rows.action, rows.reward, rows.pscore / 2, rows.target)
    assert evaluate(halved, least_effective=0).estimates["SNIPS"].value == pytest.approx(bare["SNIPS"].value, abs=1e-12)
    assert effective_rows(rows.weight) == pytest.approx(effective_rows(2.0 * rows.weight))


def test_models_know_only_earlier_rows():
    rows, _ = simulated(4, 60)
    for t in (0, 1, 17, 59):
        a, r, w = rows.action[:t], rows.reward[:t], rows.weight[:t]
        pooled = (r.sum() + 0.5) / (t + 1)
        for action in (0, 1):
            mean = (r[a == action].sum() + 10 * pooled) / ((a == action).sum() + 10)
            assert past_means(rows.action, rows.reward, 2)[t, action] == pytest.approx(mean, abs=1e-12)
        assert past_common(rows.reward, rows.weight)[t] == pytest.approx(((w * r).sum() + 0.5) / (w.sum() + 1), abs=1e-12)


def test_the_sequence_is_the_formula_row_by_row():
    rows, _ = simulated(5, 300)
    model, k, alpha = past_means(rows.action, rows.reward, 2), 2.0, 0.1
    low, high = value_sequence(rows, model, k, alpha)

    def plain(reward, q, level, near=False):
        k, most = 2.0 if q.any() else 0.0, 0.0
        best, sums, seen, out = -1.0 if near else 0.0, [0.0, 0.0, 0.0], [], []
        spread = 0.0
        for t, a in enumerate(rows.action):
            h, pi = rows.propensities[t], rows.target[t]
            w = pi[a] / h[a]
            phi = w * (reward[t] - min(q[t, a], k / w)) + sum(pi[b] * min(q[t, b], k * h[b] / pi[b]) for b in (0, 1))
            most = max(most, *(pi[b] / h[b] for b in (0, 1)))
            scale, cap = (most + 1, 0.0) if near else (k + 1, 1 / (k + 1))
            xi = -phi / scale if near else phi / scale
            guess = min(sum(seen) / len(seen), cap) if seen else 0.0
            variance = max((0.25 + spread) / (t + 1), 1e-4)
            lam = min(0.5, math.sqrt(2 * math.log(1 / level) / (variance * (t + 1) * math.log(t + 2))))
            sums[0] += lam * xi
            sums[1] += (xi - guess) ** 2 * (-math.log(1 - lam) - lam)
            sums[2] += lam / scale
            seen.append(xi)
            spread += (xi - sum(seen) / len(seen)) ** 2
            best = max(best, (sums[0] - math.log(1 / level) - sums[1]) / sums[2])
            out.append(best)
        return np.array(out)

    np.testing.assert_allclose(low, plain(rows.reward, model, alpha / 2), atol=1e-12)
    far = 1.0 - plain(1.0 - rows.reward, 1.0 - model, alpha / 4)
    close = -plain(rows.reward, model, alpha / 4, near=True)
    np.testing.assert_allclose(high, np.minimum(far, close), atol=1e-12)
    assert (far < close).any()
    assert (close < far).any()
    with_weights_of_no_bound = Rows(rows.action, rows.reward, rows.pscore, rows.target)
    low, high = value_sequence(with_weights_of_no_bound, model, 0.0, alpha)
    np.testing.assert_allclose(high, 1.0 - plain(1.0 - rows.reward, 0.0 * model, alpha / 2), atol=1e-12)


def test_intervals_hold_at_every_row_of_adaptive_logs():
    """200 logs at alpha 0.1: each side may miss with probability 0.05; the margin is the 99.99 % point of that binomial (24)."""
    missed = np.zeros(2, int)
    for seed in range(200):
        rows, value = simulated(seed, 600, rates=(0.1, 0.3))
        low, high = value_sequence(rows, past_means(rows.action, rows.reward, 2), 5.0, alpha=0.1)
        missed += ((low > value).any(), (high < value).any())
    assert missed.max() <= 24


def test_where_requests_are_draws_intervals_hold_for_these_units_which_is_not_for_all_units():
    """100 logs at alpha 0.1 of 40 units with luck of their own, 50 requests each, at random: what they would have earned is held (99.99 %
    point: 22), what units earn on average is not, as README says.
    """
    missed, missed_others = 0, 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        luck, unit = rng.beta(0.6, 1.4, 40), rng.integers(0, 40, 2000)
        action, reward = rng.integers(0, 2, 2000), (rng.random(2000) < luck[unit]).astype(float)
        even = np.full((2000, 2), 0.5)
        rows = Rows(action, reward, even[:, 0], np.tile([0.2, 0.8], (2000, 1)), even)
        low, high = value_sequence(rows, np.full((2000, 2), 0.3), 5.0, 0.1)
        missed += not low[-1] <= luck[unit].mean() <= high[-1]
        missed_others += not low[-1] <= 0.3 <= high[-1]
    print(missed, missed_others)
    assert missed <= 22 < missed_others


def test_intervals_become_short_enough_to_tell_policies_apart():
    rows, value = simulated(0, 20_000, rates=(0.1, 0.3))
    found = evaluate(rows).estimates
    for name in ("IPS", "SNIPS", "DR"):
        assert found[name].low < value < found[name].high
    assert found["DR"].low > 0.1
    assert found["DR"].high - found["DR"].low < found["IPS"].high - found["IPS"].low


def test_rewards_keep_their_own_units():
    rows, _ = simulated(6, 500)
    shifted = Rows(rows.action, 10.0 + 5.0 * rows.reward, rows.pscore, rows.target, rows.propensities)
    plain, units = evaluate(rows, least_effective=0), evaluate(shifted, low=10.0, high=15.0, least_effective=0)
    for name, estimate in plain.estimates.items():
        assert units.estimates[name].value == pytest.approx(10.0 + 5.0 * estimate.value, abs=1e-12)
        if estimate.low is not None:
            assert units.estimates[name].low == pytest.approx(10.0 + 5.0 * estimate.low, abs=1e-12)


def test_too_few_effective_rows_are_refused_in_a_sentence():
    rng = np.random.default_rng(0)
    action = (rng.random(1000) < 0.001).astype(int)
    action[0] = 1
    rows = Rows(action, np.zeros(1000), np.where(action, 0.001, 0.999), np.tile([0.0, 1.0], (1000, 1)))
    with pytest.raises(Refused, match=r"rows tell as much as .* rows of equal weight") as caught:
        evaluate(rows)
    assert caught.value.reason == "TOO_FEW_EFFECTIVE_ROWS"


def test_actions_that_the_log_never_took_are_refused_or_told_and_the_interval_still_holds():
    number = 4000
    rng = np.random.default_rng(1)
    action = (rng.random(number) < 0.5).astype(int)
    reward = (rng.random(number) < np.array([0.2, 0.4])[action]).astype(float)
    rows = Rows(
        action, reward, np.full(number, 0.5), np.tile([0.5, 0.2, 0.3], (number, 1)), np.tile([0.5, 0.5, 0.0], (number, 1))
    )
    with pytest.raises(Refused, match=r"gives 0\.3 of its decisions") as caught:
        evaluate(rows)
    assert caught.value.reason == "NO_SUPPORT"
    found = evaluate(rows, most_unsupported=0.5)
    assert found.unsupported == pytest.approx(0.3)
    least, most = 0.5 * 0.2 + 0.2 * 0.4, 0.5 * 0.2 + 0.2 * 0.4 + 0.3  # whatever the third action earns
    for name in ("IPS", "SNIPS", "DR"):
        assert found.estimates[name].low < least < most < found.estimates[name].high


def test_propensities_that_are_not_those_of_the_decisions_are_told():
    rows, _ = simulated(7, 4000)
    wrong = Rows(rows.action, rows.reward, np.minimum(1.0, rows.pscore * 2), rows.target)
    assert "the mean weight" in evaluate(wrong).warnings[0]
    swapped = rows.propensities[:, ::-1]
    wrong = Rows(rows.action, rows.reward, swapped[np.arange(4000), rows.action], rows.target, swapped)
    assert "the mean weight" in evaluate(wrong).warnings[0]
    assert evaluate(rows).warnings == ()


def test_a_warning_names_both_causes_and_a_starved_arm_whose_chances_are_logged_is_not_taken_for_the_first():
    """200 logs: 500 rows at even chances, then 4,500 in which the wanted arm has 1 in 10,000: in most of them it never comes again."""
    warned, alone = 0, []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        second = np.where(np.arange(5000) < 500, 0.5, 1e-4)
        chances = np.stack([1.0 - second, second], axis=1)
        action = (rng.random(5000) < second).astype(int)
        rows = Rows(action, np.zeros(5000), chances[np.arange(5000), action], np.tile([0.0, 1.0], (5000, 1)), chances)
        warned += len(evaluate(rows, least_effective=0).warnings)
        alone += evaluate(Rows(action, rows.reward, rows.pscore, rows.target), least_effective=0).warnings
    print("warned", warned, "by what was seen alone", len(alone))
    assert warned <= 20  # 99.9 % point of the binomial at 0.05
    assert len(alone) > 100
    assert all("Either the logged propensities" in text and "Or the log hardly ever tried" in text for text in alone)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([0.0, math.nan, math.inf], "got nan at 1, the first of 2 among 3 values that are not finite"),
        ([0.0, 1.0], r"got shape \(2,\); finite numbers of shape \(3,\) are allowed"),
    ],
)
def test_numbers_that_are_not_finite_are_said_to_be_so_with_their_place(array, message):
    with pytest.raises(InvalidArgument, match=message):
        Rows(np.zeros(3, int), array, np.full(3, 0.5), np.full((3, 2), 0.5))
    target = np.full((3, 2), 0.5)
    target[2, 1] = math.nan
    with pytest.raises(InvalidArgument, match=r"target: got nan at \(2, 1\), the first of 1 among 6"):
        Rows(np.zeros(3, int), np.zeros(3), np.full(3, 0.5), target)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"action": [0.0, 1.0]}, "action"),
        ({"action": [0, 2]}, "action"),
        ({"reward": [0.0, math.nan]}, "reward"),
        ({"pscore": [0.0, 0.5]}, "pscore"),
        ({"target": [[0.5, 0.6], [0.5, 0.5]]}, "target"),
        ({"propensities": [[0.5, 0.5], [0.4, 0.6]]}, "propensities"),
    ],
)
def test_what_cannot_be_a_log_is_refused_by_name(change, field):
    good = {
        "action": np.array([0, 1]),
        "reward": np.array([0.0, 1.0]),
        "pscore": np.array([0.5, 0.5]),
        "target": np.full((2, 2), 0.5),
        "propensities": np.full((2, 2), 0.5),
    }
    Rows(**good)
    with pytest.raises(InvalidArgument) as caught:
        Rows(**good | {name: np.array(value) for name, value in change.items()})
    assert caught.value.violations[0].field == field


def test_a_reward_outside_its_declared_range_is_refused():
    rows = Rows(np.array([0, 1]), np.array([0.0, 2.0]), np.full(2, 0.5), np.full((2, 2), 0.5))
    with pytest.raises(InvalidArgument, match="reward"):
        evaluate(rows, least_effective=0)


def bts_from_random(campaign):
    log, chances = logged("random", campaign), thompson(campaign)
    uniform = np.full((log.action.size, chances.shape[0]), 1.0 / chances.shape[0])
    return Rows(log.action, log.reward, log.pscore, chances.T[log.position], uniform), log


def test_the_published_estimate_of_the_open_bandit_dataset_comes_out():
    """Zr-obp README: 1.198126 times the random policy; the other figures: recomputed from the same wheel and data."""
    rows, log = bts_from_random("all")
    found = evaluate(rows)
    assert found.estimates["IPS"].value == pytest.approx(0.00455288, abs=5e-9)
    assert found.estimates["IPS"].value / log.reward.mean() == pytest.approx(1.198126, abs=5e-7)
    assert found.estimates["SNIPS"].value == pytest.approx(0.0047758331, abs=5e-11)
    assert found.effective == pytest.approx(1639.50, abs=5e-3)
    assert found.mean_weight == pytest.approx(0.95332, abs=5e-6)


def test_each_log_of_the_mens_campaign_says_what_the_other_policy_earned():
    """On-policy means of the small dataset: random 0.0046, bts 0.0069. Intervals hold, but backwards they are nearly all of [0, 0.69] and
    could hardly fail. What can: weighting each click by hand, the estimate is within three standard errors of the other policy's truth,
    and backwards more than three away from what the log itself earned, which is what it would be without weights.
    """
    rows, _ = bts_from_random("men")
    there = evaluate(rows).estimates
    log = logged("bts", "men")
    back = evaluate(Rows(log.action, log.reward, log.pscore, np.full((log.action.size, 34), 1 / 34))).estimates
    truth = {policy: logged(policy, "men").reward for policy in ("bts", "random")}
    for estimates, weight, reward, other in ((there, rows.weight, rows.reward, "bts"), (back, 1 / 34 / log.pscore, log.reward, "random")):
        mean, number = truth[other].mean(), reward.size
        clicks = [w for w, r in zip(weight.tolist(), reward.tolist(), strict=True) if r]
        by_hand = {"IPS": math.fsum(clicks) / number, "SNIPS": math.fsum(clicks) / math.fsum(weight.tolist())}
        errors = {
            "IPS": math.sqrt(math.fsum(w * w for w in clicks)) / number,
            "SNIPS": math.sqrt(((weight * (reward - by_hand["SNIPS"])) ** 2).sum()) / weight.sum(),
        }
        for name, error in errors.items():
            assert estimates[name].low <= mean <= estimates[name].high
            assert estimates[name].value == pytest.approx(by_hand[name], rel=1e-12)
            assert abs(estimates[name].value - mean) <= 3.0 * math.hypot(error, truth[other].std() / math.sqrt(number))
            if other == "random":
                assert truth["bts"].mean() - estimates[name].value > 3.0 * error
    assert back["SNIPS"].high > 0.5  # as README says: 69 clicks, and with the taken item's chance alone nothing bounds the other weights
    assert there["SNIPS"].high < 0.02
