"""Loops of bandit policies over one replication: arms chosen by a policy, rewards by a world of Bernoulli rates.

In: the number of a policy and its knobs, rates of each arm (constant, or a row a step), a generator for the policy's own chance, a key
for the world's. Out: regret and pulls at checkpoints, and the path itself where there is room for it.

What an arm would pay at step t is a Philox number of (key, t, arm), so every policy meets the same world, whatever it draws itself
(common random numbers). A posterior draw is the ratio of two Gamma draws by Marsaglia & Tsang: a normal, a uniform, and one logarithm in
fifty. Only the arm that was pulled has a new posterior, so the constants of the others are kept; draws are compared as odds, which
saves the division.

Dropped: Cheng's BB (two logarithms and an exponential for each draw, twice as slow); drawing from P(best) (exact, but an integral a step:
50 times as slow; it is kept as PLANNED, because that is what production does once a second).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from allocator.core.kernels.philox import philox4x32, to_unit
from allocator.core.kernels.quadrature import BETA, PANEL
from allocator.core.kernels.quadrature import best_arm as integrate

THOMPSON, TOP_TWO, PLANNED, GREEDY, EPSILON_GREEDY, UCB1, KL_UCB, EXP3, TSALLIS_INF, ORACLE, FIXED = range(11)

_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_MOST_DRAWS = 100  # for a second arm of top-two sampling; then the runner-up by mean is taken


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def uniform_of(key0, key1, t, arm, purpose):
    """The uniform number, float64 in (0, 1), that belongs to step t and an arm. The key: two uint64 below 2^32."""
    t = np.uint64(t)
    a, b, _, _ = philox4x32(t & _LOW, t >> _32, np.uint64(arm), np.uint64(purpose), key0, key1)
    return to_unit(a, b)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def set_shape(constants, arm, side, shape):
    """Prepare draws of Gamma(shape, 1) in `constants`, (arms, 6): d, c, and 1 / shape (0 for a shape of at least 1) of each side."""
    big = shape if shape >= 1.0 else shape + 1.0
    d = big - 1.0 / 3.0
    constants[arm, side] = d
    constants[arm, side + 1] = 1.0 / math.sqrt(9.0 * d)
    constants[arm, side + 2] = 0.0 if shape >= 1.0 else 1.0 / shape


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def gamma_draw(rng, d, c, boost):
    """One draw of Gamma(shape, 1). Source: Marsaglia & Tsang 2000, sec. 2, and sec. 6 for a shape below 1."""
    while True:
        x = rng.standard_normal()
        v = 1.0 + c * x
        if v <= 0.0:
            continue
        v = v * v * v
        u = rng.random()
        square = x * x
        if u < 1.0 - 0.0331 * square * square or math.log(u) < 0.5 * square + d * (1.0 - v + math.log(v)):
            if boost == 0.0:
                return d * v
            return d * v * (1.0 - rng.random()) ** boost


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def best_draw(rng, constants):
    """The arm whose Beta draw is largest. constants: `set_shape` of successes (side 0) and failures (side 3)."""
    best, up, down = -1, 0.0, 1.0
    for arm in range(constants.shape[0]):
        g = gamma_draw(rng, constants[arm, 0], constants[arm, 1], constants[arm, 2])
        b = gamma_draw(rng, constants[arm, 3], constants[arm, 4], constants[arm, 5])
        if best < 0 or g * down > up * b:
            best, up, down = arm, g, b
    return best


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def best_draws(rng, successes, failures, out):
    """Fill `out` with arms, each best in a draw of its own from the same Beta posteriors; float64 (arms,) parameters."""
    constants = np.empty((successes.size, 6))
    for arm in range(successes.size):
        set_shape(constants, arm, 0, successes[arm])
        set_shape(constants, arm, 3, failures[arm])
    for i in range(out.size):
        out[i] = best_draw(rng, constants)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def play(kind, knob, rates, rng, key, horizon, batch, prior, checkpoints, regret, rewards, pulls, path, paid):
    """One replication of `horizon` steps.

    kind, knob: the policy and its one parameter (see `allocator.simulation.bandit`). rates: (1, arms), or (horizon, arms). batch:
    outcomes become known at the end of each batch of steps. prior: successes and failures, (2, arms). checkpoints: ascending
    numbers of steps at which `regret`, `rewards` (C,) and `pulls` (C, arms) are filled. path, paid: arm and reward of each step, or empty.
    """
    arms = rates.shape[1]
    successes, failures = prior[0].copy(), prior[1].copy()
    waiting, waiting_good = np.zeros(arms, np.int64), np.zeros(arms, np.int64)
    seen, seen_good, pulled = np.zeros(arms, np.int64), np.zeros(arms, np.int64), np.zeros(arms, np.int64)
    constants = np.empty((arms, 6))
    for arm in range(arms):
        set_shape(constants, arm, 0, successes[arm])
        set_shape(constants, arm, 3, failures[arm])
    estimate, waiting_estimate = np.zeros(arms), np.zeros(arms)  # of gains (Exp3) or losses (Tsallis-INF), by inverse propensity
    share = np.full(arms, 1.0 / arms)
    if kind == PLANNED:
        _planned(successes, failures, knob, share)
    key0, key1 = key[0], key[1]
    lost, won, place = 0.0, 0, 0
    still = rates.shape[0] == 1
    best = rates[0].max()
    for t in range(horizon):
        row = 0 if still else t
        if not still:
            best = rates[t].max()
        if kind == THOMPSON:
            arm = best_draw(rng, constants)
        elif kind == ORACLE:
            arm = np.argmax(rates[row])
        else:
            arm = _choose(kind, knob, t, rng, constants, successes, failures, seen, seen_good, pulled, estimate, share)
        rate = rates[row, arm]
        won_now = uniform_of(key0, key1, t, arm, 0) < rate
        lost += best - rate
        won += won_now
        pulled[arm] += 1
        waiting[arm] += 1
        waiting_good[arm] += won_now
        if (kind == EXP3 and won_now) or (kind == TSALLIS_INF and not won_now):
            waiting_estimate[arm] += 1.0 / share[arm]
        if path.size:
            path[t], paid[t] = arm, won_now
        if batch == 1:
            _learn(arm, waiting, waiting_good, seen, seen_good, successes, failures, constants)
            estimate[arm] += waiting_estimate[arm]
            waiting_estimate[arm] = 0.0
        elif (t + 1) % batch == 0:
            for each in range(arms):
                _learn(each, waiting, waiting_good, seen, seen_good, successes, failures, constants)
            estimate += waiting_estimate
            waiting_estimate[:] = 0.0
        if kind == PLANNED and (t + 1) % batch == 0:
            _planned(successes, failures, knob, share)
        if place < checkpoints.size and t + 1 == checkpoints[place]:
            regret[place], rewards[place], pulls[place] = lost, won, pulled
            place += 1


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def replay(kind, knob, actions, paid, rng, horizon, prior, pulls):
    """Walk through a log of uniformly drawn arms: where the policy would have drawn the same, it learns. Returns (matches, successes).

    actions: int64 (n,); paid: bool (n,). kind: any but ORACLE. horizon: of matches. pulls: (arms,), filled. Source: Li, Chu, Langford &
    Wang 2011, alg. 1.
    """
    arms = prior.shape[1]
    successes, failures = prior[0].copy(), prior[1].copy()
    waiting, waiting_good = np.zeros(arms, np.int64), np.zeros(arms, np.int64)
    seen, seen_good = np.zeros(arms, np.int64), np.zeros(arms, np.int64)
    constants, estimate, share = np.empty((arms, 6)), np.zeros(arms), np.full(arms, 1.0 / arms)
    for arm in range(arms):
        set_shape(constants, arm, 0, successes[arm])
        set_shape(constants, arm, 3, failures[arm])
    if kind == PLANNED:
        _planned(successes, failures, knob, share)
    matches, won = 0, 0
    for i in range(actions.size):
        if matches == horizon:
            break
        if kind == THOMPSON:
            arm = best_draw(rng, constants)
        else:
            arm = _choose(kind, knob, matches, rng, constants, successes, failures, seen, seen_good, pulls, estimate, share)
        if arm != actions[i]:
            continue
        matches += 1
        won += paid[i]
        pulls[arm] += 1
        waiting[arm], waiting_good[arm] = 1, paid[i]
        if (kind == EXP3 and paid[i]) or (kind == TSALLIS_INF and not paid[i]):
            estimate[arm] += 1.0 / share[arm]
        _learn(arm, waiting, waiting_good, seen, seen_good, successes, failures, constants)
        if kind == PLANNED:
            _planned(successes, failures, knob, share)
    return matches, won


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def choose(kind, knob, t, rng, prior, seen, seen_good, estimate, pulled, best, share, chosen):
    """Fill `chosen` with the arms of steps t, t + 1, ..., by what is known before step t.

    prior: (2, arms). seen, seen_good: float64 (arms,), outcomes known and their sum. estimate: (arms,), gains or losses over chances.
    pulled: int64 (arms,), added to. best: what the oracle takes. share: (arms,), filled by policies that weigh arms; they do so once.
    """
    successes, failures = prior[0] + seen_good, prior[1] + np.maximum(seen - seen_good, 0.0)
    constants = np.empty((seen.size, 6))
    for arm in range(seen.size):
        set_shape(constants, arm, 0, successes[arm])
        set_shape(constants, arm, 3, failures[arm])
    weighs = True
    if kind == PLANNED:
        _planned(successes, failures, knob, share)
    elif kind == EXP3:
        _exp3(estimate, knob, share)
    elif kind == TSALLIS_INF:
        _tsallis(estimate, t, share)
    elif kind == FIXED:
        _even(share, knob)
    else:
        weighs = False
    for i in range(chosen.size):
        if weighs:
            arm = _draw(rng, share)
        elif kind == THOMPSON:
            arm = best_draw(rng, constants)
        elif kind == ORACLE:
            arm = best
        else:
            arm = _choose(kind, knob, t + i, rng, constants, successes, failures, seen, seen_good, pulled, estimate, share)
        pulled[arm] += 1
        chosen[i] = arm


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _choose(kind, knob, t, rng, constants, successes, failures, seen, seen_good, pulled, estimate, share):
    """The arm of every policy but Thompson sampling and the oracle."""
    if kind == TOP_TWO:
        return _top_two(rng, constants, successes, failures, knob)
    if kind in (GREEDY, EPSILON_GREEDY):
        explore = kind == EPSILON_GREEDY and rng.random() < knob
        return _any(rng, successes.size) if explore else _greedy(rng, successes, failures)
    if kind in (UCB1, KL_UCB):
        return _optimist(kind == KL_UCB, t, seen, seen_good, pulled, knob)
    if kind == EXP3:
        _exp3(estimate, knob, share)
    elif kind == TSALLIS_INF:
        _tsallis(estimate, t, share)
    elif kind == FIXED:
        _even(share, knob)
    return _draw(rng, share)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _learn(arm, waiting, waiting_good, seen, seen_good, successes, failures, constants):
    if waiting[arm] == 0:
        return
    count, wins = waiting[arm], waiting_good[arm]
    seen[arm] += count
    seen_good[arm] += wins
    if wins:
        successes[arm] += wins
        set_shape(constants, arm, 0, successes[arm])
    if wins < count:
        failures[arm] += count - wins
        set_shape(constants, arm, 3, failures[arm])
    waiting[arm] = 0
    waiting_good[arm] = 0


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _planned(successes, failures, cap, share):
    """P(best), with arms 1, 2, ... cut to `cap` together; arm 0 takes what they may not have."""
    parameters = np.ones((3, successes.size))
    parameters[0], parameters[1] = successes, failures
    prob, _, _ = integrate(BETA, parameters, PANEL)
    together = prob[1:].sum()
    share[:] = prob
    if together > cap:
        share[1:] *= cap / together
        share[0] = 1.0 - cap


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _any(rng, arms):
    return min(int(rng.random() * arms), arms - 1)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _draw(rng, share):
    u, last = rng.random(), 0
    for arm in range(share.size):
        if share[arm] > 0.0:
            last = arm
            u -= share[arm]
            if u < 0.0:
                return arm
    return last


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _greedy(rng, successes, failures):
    """The largest posterior mean; ties are drawn for."""
    best, arm, ties = -1.0, 0, 0
    for each in range(successes.size):
        mean = successes[each] / (successes[each] + failures[each])
        if mean > best:
            best, arm, ties = mean, each, 1
        elif mean == best:
            ties += 1
            if rng.random() * ties < 1.0:
                arm = each
    return arm


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _top_two(rng, constants, successes, failures, beta):
    """The best of one draw with chance beta, else the best of later draws in which it is another. Source: Russo 2020, sec. 3."""
    first = best_draw(rng, constants)
    if constants.shape[0] == 1 or rng.random() < beta:
        return first
    for _ in range(_MOST_DRAWS):
        second = best_draw(rng, constants)
        if second != first:
            return second
    second = 1 if first == 0 else 0
    for arm in range(constants.shape[0]):
        if arm != first and successes[arm] * failures[second] > successes[second] * failures[arm]:
            second = arm
    return second


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _optimist(kl, t, seen, seen_good, pulled, knob):
    """UCB1 (Auer, Cesa-Bianchi & Fischer 2002) or KL-UCB (Garivier & Cappé 2011); arms that were never pulled come first, in order.

    Of arms that nothing was heard of yet, and of any other tie, the one with the fewest pulls: else the order of arms would decide what a
    delay costs.
    knob: of UCB1, the width's factor in sqrt(knob ln t / n); of KL-UCB, c in ln t + c ln ln t.
    """
    best, arm = -1.0, 0
    log_t = math.log(t + 1.0)
    level = log_t + knob * math.log(max(log_t, 1.0)) if kl else knob * log_t
    for each in range(seen.size):
        if pulled[each] == 0:
            return each
        n = seen[each]
        if n == 0:
            index = np.inf
        elif kl:
            index = _kl_upper(seen_good[each] / n, level / n)
        else:
            index = seen_good[each] / n + math.sqrt(level / n)
        if index > best or (index == best and pulled[each] < pulled[arm]):
            best, arm = index, each
    return arm


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _kl_upper(mean, level):
    """The largest q with kl(mean, q) <= level, by Newton's method from above, where the divergence is convex.

    It begins at the lesser of two bounds: Pinsker's, and the root of the divergence without the part of q in mean log(mean / q), which is
    close where q is close to 1. There the divergence is steep, and from 1 itself Newton's first steps would be taken for its last.
    """
    if mean >= 1.0:
        return 1.0
    kept = mean * math.log(mean) if mean > 0.0 else 0.0
    bound = 1.0 - (1.0 - mean) * math.exp((kept - level) / (1.0 - mean))
    low, high = mean, min(bound, mean + math.sqrt(level / 2.0))
    if high >= 1.0:
        return 1.0
    q = high
    for _ in range(50):
        divergence = (1.0 - mean) * math.log((1.0 - mean) / (1.0 - q))
        if mean > 0.0:
            divergence += mean * math.log(mean / q)
        over = divergence - level
        if over > 0.0:
            high = q
        else:
            low = q
        step = over * q * (1.0 - q) / max(q - mean, 1e-300)
        after = q - step
        if not low < after < high:
            after = 0.5 * (low + high)
        if abs(after - q) < 1e-10:
            return after
        q = after
    return q


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _exp3(gain, gamma, share):
    """Exponential weights mixed with an even split. gamma: its share. Source: Auer, Cesa-Bianchi, Freund & Schapire 2002, fig. 1."""
    arms = gain.size
    top = gain.max()
    total = 0.0
    for arm in range(arms):
        share[arm] = math.exp(gamma / arms * (gain[arm] - top))
        total += share[arm]
    for arm in range(arms):
        share[arm] = (1.0 - gamma) * share[arm] / total + gamma / arms


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _tsallis(loss, t, share):
    """Tsallis-INF with alpha = 1/2 and importance weighting, eta = 2 / sqrt(t). Source: Zimmert & Seldin 2021, alg. 1 and 2.

    share = 4 / (eta (loss - x))^2, for the x below every loss at which they sum to 1. Newton's method starts where the least loss alone
    has all of it: above the root of a convex and growing sum, so that no step passes the root.
    """
    arms = loss.size
    eta = 2.0 / math.sqrt(t + 1.0)
    least = loss.min()
    x = -2.0 / eta
    total = 1.0
    for _ in range(100):
        total, slope = 0.0, 0.0
        for arm in range(arms):
            distance = eta * (loss[arm] - least - x)
            share[arm] = 4.0 / (distance * distance)
            total += share[arm]
            slope += 2.0 * eta * share[arm] / distance
        if total - 1.0 < 1e-12:
            break
        x -= (total - 1.0) / slope
    for arm in range(arms):
        share[arm] /= total


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _even(share, cap):
    """An even split, with arms 1, 2, ... cut to `cap` together."""
    arms = share.size
    together = min((arms - 1.0) / arms, cap)
    for arm in range(1, arms):
        share[arm] = together / (arms - 1.0)
    share[0] = 1.0 - together
