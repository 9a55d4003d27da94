"""Loops that integrate over independent posteriors: arrays in, arrays out.

In: the family of all arms as a number and its parameters, float64 (3, arms), checked by the caller. Out: the probability that each
arm is best, what choosing it is expected to lose, quantiles, and the chance that a better arm remains.

Every posterior is taken to a coordinate y in which it is smooth and unbounded: the log odds of a Beta, the logarithm of a Gamma,
the value itself of a Normal and a Student t. There its log density is written as an offset from its mode, a form in which nothing
cancels, so that a billion counts are as exact as ten. Panels of 16 Gauss-Legendre nodes march along y. A panel is as wide as the
narrowest posterior it meets, or up to two thirds of the way to its mode: none is stepped over, and far from all of them the
steps grow geometrically. Distribution functions are carried along by an integration matrix, so that one march gives the density and
the distribution of every arm at every node. Coordinates are kept relative to one arm near the place where things happen, because the
absolute coordinate has too few digits for posteriors a billionth wide.

Tried and dropped: densities through lgamma (six digits left at a billion counts), incomplete beta functions (slower, and another
function for each family), expected loss as a difference of means (nothing left of a loss of 1e-8), and one shared range of y (panels
wasted on arms that cannot win).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

BETA, GAMMA, GAMMA_MIRRORED, NORMAL, STUDENT = 0, 1, 2, 3, 4  # GAMMA_MIRRORED is the posterior of minus a Gamma variable

PANEL = 1.5  # width of a panel in scales of the narrowest posterior
_NODES = 16
_DEPTH = 34.0  # a posterior ends where its density has fallen by exp(-34) = 2e-15
_MEAN_DEPTH = 20.0  # and a Student t where the share of its mean beyond has fallen by exp(-20) = 2e-9
_GROWTH = 2.5  # far out, the local scale is the distance from the mode divided by this; must exceed PANEL
_WIDEST = 1.25  # scale beyond which log odds and logarithms still have features about one wide
_MOST_PANELS = 20_000
_MOST_STEPS = 200


def _rule() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1], and the matrix that takes values at the nodes to integrals from 0 to each node.

    Entry (m, k) of the matrix is the integral of the m-th Lagrange polynomial up to node k, through its Legendre expansion.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    legendre = np.polynomial.legendre.legvander(nodes, _NODES)
    degree = np.arange(_NODES)
    expansion = (2 * degree + 1) / 2 * weights[:, None] * legendre[:, :_NODES]
    upto = np.empty((_NODES, _NODES))  # integral of P_n from -1 to each node is (P_{n+1} - P_{n-1}) / (2 n + 1)
    upto[0] = nodes + 1
    for n in range(1, _NODES):
        upto[n] = (legendre[:, n + 1] - legendre[:, n - 1]) / (2 * n + 1)
    return (nodes + 1) / 2, weights / 2, np.ascontiguousarray(expansion @ upto / 2)


_U, _V, _INTEGRAL = _rule()


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def best_arm(family, parameters, panel):
    """P(best) and expected loss of each arm, largest value best.

    Returns (prob_best float64 (arms,), expected_loss float64 (arms,), the largest error found in a sum that must be one; infinite if a
    march did not end). The march goes down from the top and carries the mass above, so that 1 - (product of distribution functions), on
    which the loss rests, keeps its digits where it is tiny. Below the highest low end that end's arm is above all else, and a loss is
    a plain mean.
    """
    arms = parameters.shape[1]
    shape, scale, low, high, offset, reference = _layout(family, parameters)
    prob = np.zeros(arms)
    loss = np.zeros(arms)
    bottom = -np.inf
    y = -np.inf
    for j in range(arms):
        bottom = max(bottom, offset[j] + low[j])
        y = max(y, offset[j] + high[j])

    rivals = np.empty(arms, np.int64)  # arms that can be best to within exp(-34); the first `met` of them have been met by the march
    count = 0
    complete = True
    per_mass = np.empty(arms)
    unseen = np.ones(arms)  # mass that the common march has yet to find
    for j in range(arms):
        if offset[j] + high[j] > bottom:
            mass, mass_below, shortfall, done = _own_march(
                family, shape[j], scale[j], low[j], high[j], bottom - offset[j], reference + bottom, panel
            )
            complete = complete and done
            per_mass[j] = 1.0 / mass
            unseen[j] -= mass_below / mass
            loss[j] = shortfall / mass
            rivals[count] = j
            count += 1

    met = 0
    density = np.empty((arms, _NODES))
    above = np.empty((arms, _NODES))  # mass of each arm above each node
    above_end = np.zeros(arms)  # and above the upper end of the panel
    beaten = np.empty((arms, _NODES))  # chance that one of the rivals before this one lies above the node
    someone = np.empty(_NODES)
    weight = np.empty(_NODES)
    panels = 0
    while y > bottom:
        panels += 1
        width = np.inf
        for i in range(count):
            j = rivals[i]
            width = min(width, panel * _local_scale(family, shape[j], scale[j], y - offset[j]))
        last = y - width <= bottom
        if last:
            width = y - bottom
        if panels > _MOST_PANELS or y - width == y:
            complete = False
            break
        for i in range(met, count):
            j = rivals[i]
            if offset[j] + high[j] > y - width:
                rivals[i] = rivals[met]
                rivals[met] = j
                met += 1
        for i in range(met):
            j = rivals[i]
            _densities(family, shape[j], y - offset[j], -width, per_mass[j], density[i])
            above_end[j] = _accumulate(density[i], above_end[j], width, above[i])
        for k in range(_NODES):
            someone[k] = 0.0
            weight[k] = width * _V[k] * _slope(family, reference + y - width * _U[k])
        for i in range(met):
            for k in range(_NODES):
                beaten[i, k] = someone[k]
                someone[k] += above[i, k] * (1.0 - someone[k])
        regret = 0.0
        for k in range(_NODES):
            regret += weight[k] * someone[k]
            someone[k] = 0.0
        for i in range(met, count):
            loss[rivals[i]] += regret
        for i in range(met - 1, -1, -1):
            j = rivals[i]
            chance = 0.0
            regret = 0.0
            for k in range(_NODES):
                other = beaten[i, k] + someone[k] * (1.0 - beaten[i, k])
                chance += _V[k] * density[i, k] * (1.0 - other)
                regret += weight[k] * (1.0 - above[i, k]) * other
                someone[k] += above[i, k] * (1.0 - someone[k])
            prob[j] += width * chance
            loss[j] += regret
        y = bottom if last else y - width

    leader = rivals[0]
    for i in range(count):
        if prob[rivals[i]] > prob[leader]:
            leader = rivals[i]
    for j in range(arms):
        if offset[j] + high[j] <= bottom:
            loss[j] = loss[leader] + _mean_gap(family, parameters, leader, j)
    error = 0.0 if complete else np.inf
    total = 0.0
    for i in range(count):
        j = rivals[i]
        error = max(error, abs(unseen[j] - above_end[j]))
        total += prob[j]
    for j in range(arms):
        prob[j] /= total
    return prob, loss, max(error, abs(total - 1.0))


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def quantiles(family, parameters, tail, panel):
    """The value below which each posterior has mass `tail`, and the value above which it has that mass.

    Returns float64 (2, arms), and whether every march came to its end.
    """
    arms = parameters.shape[1]
    values = np.empty((2, arms))
    complete = True
    for j in range(arms):
        shape = _shape(family, parameters[0, j], parameters[1, j], parameters[2, j])
        scale = _scale(family, parameters[0, j], parameters[1, j])
        low = -_reach(family, shape, scale, -1.0)
        high = _reach(family, shape, scale, 1.0)
        mass, _, _, done = _own_march(family, shape, scale, low, high, low, 0.0, panel)
        complete = complete and done
        for side in range(2):
            d = _offset_at(family, shape, scale, low, high, tail * mass, 1.0 - 2.0 * side, panel)
            values[side, j] = _value(family, parameters, j, d)
    return values, complete


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def chance_of_more(family, parameters, arm, gain, mirrored, panel):
    """P(the best of the other arms is better than `arm` by more than `gain`), and the error as in `best_arm`.

    gain: a difference for a Normal and a Student t, the logarithm of a ratio for a Beta and a Gamma. mirrored: a Beta's parameters were
    swapped because small values are good. A difference, and the ratio of two Gammas, shift one arm along y. The ratio of two
    probabilities bends one log odds into the other: the march follows the larger probability and bends the arms that hold the smaller.
    """
    arms = parameters.shape[1]
    shape, scale, low, high, offset, reference = _layout(family, parameters)
    bend = -math.expm1(-gain) if family == BETA else 0.0
    start = -np.inf
    end = -np.inf
    for j in range(arms):
        start = max(start, _from_own(offset[j] + low[j], reference, gain, bend, mirrored, j == arm))
        if j != arm:
            end = max(end, _from_own(offset[j] + high[j], reference, gain, bend, mirrored, False))
    if start >= end:
        return 0.0, 0.0

    complete = True
    below = np.empty(arms)
    per_mass = np.empty(arms)
    for j in range(arms):
        own, _ = _to_own(start, reference, gain, bend, mirrored, j == arm)
        mass, mass_below, _, done = _own_march(family, shape[j], scale[j], low[j], high[j], own - offset[j], 0.0, panel)
        complete = complete and done
        per_mass[j] = 1.0 / mass
        below[j] = mass_below / mass
    chance = below[arm]

    density = np.empty(_NODES)
    mine = np.empty(_NODES)
    upto = np.empty(_NODES)
    product = np.empty(_NODES)
    y = start
    panels = 0
    while y < end:
        panels += 1
        width = np.inf
        for j in range(arms):
            own, slope = _to_own(y, reference, gain, bend, mirrored, j == arm)
            if own < offset[j] + high[j]:
                width = min(width, _local_scale(family, shape[j], scale[j], offset[j] - own) / slope)
        if bend > 0.0:  # the bend is one wide, and straight to 16 digits 40 away from its middle
            middle = math.log(bend) if mirrored else -math.log(bend)
            width = min(width, max(0.4, (abs(reference + y - middle) - 40.0) / _GROWTH))
        width *= panel
        last = y + width >= end
        if last:
            width = end - y
        if panels > _MOST_PANELS or y + width == y:
            complete = False
            break
        for k in range(_NODES):
            product[k] = 1.0
            mine[k] = 0.0
        for j in range(arms):
            own, slope = _to_own(y, reference, gain, bend, mirrored, j == arm)
            if own >= offset[j] + high[j]:
                continue
            for k in range(_NODES):
                own, slope = _to_own(y + width * _U[k], reference, gain, bend, mirrored, j == arm)
                density[k] = per_mass[j] * slope * math.exp(_log_density(family, shape[j], own - offset[j]))
                if j == arm:
                    mine[k] = density[k]
            if j != arm:
                below[j] = _accumulate(density, below[j], width, upto)
                for k in range(_NODES):
                    product[k] *= upto[k]
        for k in range(_NODES):
            chance += width * _V[k] * mine[k] * (1.0 - product[k])
        y = end if last else y + width
    error = 0.0 if complete else np.inf
    for j in range(arms):
        if j != arm:
            error = max(error, abs(below[j] - 1.0))
    return min(1.0, chance), error


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _layout(family, parameters):
    """Where the arms lie along y: shape (arms, 5), scale, low, high and offset (arms,), reference.

    low, high: ends of each arm relative to its own mode. offset: its mode relative to that of the arm whose low end is highest; reference
    is that arm's mode. Every arm that can win is at most a few of its own scales from there, so that its offset has digits enough.
    """
    arms = parameters.shape[1]
    shape = np.empty((arms, 5))
    scale = np.empty(arms)
    low = np.empty(arms)
    high = np.empty(arms)
    mode = np.empty(arms)
    base = 0
    for j in range(arms):
        shape[j] = _shape(family, parameters[0, j], parameters[1, j], parameters[2, j])
        scale[j] = _scale(family, parameters[0, j], parameters[1, j])
        low[j] = -_reach(family, shape[j], scale[j], -1.0)
        high[j] = _reach(family, shape[j], scale[j], 1.0)
        if family in (BETA, GAMMA):
            mode[j] = math.log(parameters[0, j] / parameters[1, j])
        elif family == GAMMA_MIRRORED:
            mode[j] = -math.log(parameters[0, j] / parameters[1, j])
        else:
            mode[j] = parameters[0, j]
        if mode[j] + low[j] > mode[base] + low[base]:
            base = j
    offset = np.empty(arms)
    for j in range(arms):
        if family in (NORMAL, STUDENT):
            offset[j] = mode[j] - mode[base]
        else:
            offset[j] = math.log(parameters[0, j] / parameters[0, base]) - math.log(parameters[1, j] / parameters[1, base])
            if family == GAMMA_MIRRORED:
                offset[j] = -offset[j]
    return shape, scale, low, high, offset, mode[base]


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _shape(family, p, q, r):
    """Four numbers that `_log_density` needs, and how far features one wide extend from the mode (beyond it where a count is below one).

    Parameters of a Beta: a, b; Gamma: shape, rate; Normal: mean, standard deviation; Student: mean, scale, nu.
    """
    shape = np.zeros(5)
    if family == BETA:  # seen from the rarer side, whose probability has all its digits
        shape[0] = min(p, q)
        shape[1] = min(p, q) / (p + q)
        shape[2] = p + q
        shape[3] = 1.0 if p <= q else -1.0
        shape[4] = max(0.0, -math.log(shape[0]))
    elif family in (GAMMA, GAMMA_MIRRORED):
        shape[0] = p
        shape[4] = max(0.0, 1.0 - math.log(p))
    elif family == NORMAL:
        shape[0] = 1.0 / q
    else:
        shape[0] = (r + 1.0) / 2.0
        shape[1] = 1.0 / (q * math.sqrt(r))
        shape[2] = q
    return shape


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _scale(family, p, q):
    """About one standard deviation along y."""
    if family == BETA:
        return min(_WIDEST, math.sqrt(1.0 / p + 1.0 / q))
    if family in (GAMMA, GAMMA_MIRRORED):
        return min(_WIDEST, 1.0 / math.sqrt(p))
    return q


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _log_density(family, shape, d):
    """Log density along y at the offset d from the mode, relative to the mode."""
    if family == BETA:
        e = d * shape[3]
        if e > 30.0:
            rise = math.log(shape[1]) + e + math.log1p((1.0 - shape[1]) / shape[1] * math.exp(-e))
        else:
            rise = math.log1p(shape[1] * math.expm1(e))
        return shape[0] * e - shape[2] * rise
    if family == GAMMA:
        return shape[0] * (d - math.expm1(d))
    if family == GAMMA_MIRRORED:
        return shape[0] * (-d - math.expm1(-d))
    if family == NORMAL:
        z = d * shape[0]
        return -0.5 * z * z
    z = d * shape[1]
    return -shape[0] * math.log1p(z * z)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _densities(family, shape, d, step, factor, out):
    """Fill `out` with factor * density at the nodes of the panel from the offset `d` to `d + step`."""
    for k in range(_NODES):
        out[k] = factor * math.exp(_log_density(family, shape, d + step * _U[k]))


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _local_scale(family, shape, scale, ahead):
    """Width over which a posterior changes, at the distance `ahead` before its mode; negative: behind it.

    Times a panel width of at most 1.5 it is less than the distance. The power law in the tail of a Student t bears longer steps.
    """
    far = abs(ahead)
    if family == STUDENT and far * shape[1] > 8.0:
        return far * (4.0 / 9.0) if ahead > 0.0 else far * (4.0 / 3.0)
    return max(scale, (far - shape[4]) / _GROWTH)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _reach(family, shape, scale, direction):
    """How far the posterior reaches from its mode, to a hundredth of its scale.

    A Student t reaches to where its share of the mean is spent as well as its mass: its tails are heavy enough to matter in a loss.
    """
    short = 0.0
    far = 4.0 * scale
    while not _spent(family, shape, far * direction):
        short = far
        far *= 2.0
    while far - short > 0.01 * scale and far - short > 1e-3 * far:
        middle = 0.5 * (short + far)
        if _spent(family, shape, middle * direction):
            far = middle
        else:
            short = middle
    return far


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _spent(family, shape, d):
    fall = _log_density(family, shape, d)
    if family == STUDENT and fall + 2.0 * math.log(abs(d) / shape[2]) > -_MEAN_DEPTH:
        return False
    return fall < -_DEPTH


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _own_march(family, shape, scale, low, high, cut, at, panel):
    """One arm alone, along its offset d from its mode: (mass, mass below cut, mean shortfall below cut, whether it came to its end).

    The shortfall is the integral of (value at the cut - value) over the mass below the cut; `at` is the cut in absolute y.
    """
    mass = 0.0
    mass_below = 0.0
    shortfall = 0.0
    density = np.empty(_NODES)
    d = low
    panels = 0
    while d < high:
        panels += 1
        width = panel * _local_scale(family, shape, scale, -d)
        stop = cut if d < cut < high else high
        last = d + width >= stop
        if last:
            width = stop - d
        if panels > _MOST_PANELS or d + width == d:
            return mass, mass_below, shortfall, False
        _densities(family, shape, d, width, width, density)
        part = 0.0
        for k in range(_NODES):
            part += _V[k] * density[k]
        mass += part
        if d < cut:
            mass_below += part
            for k in range(_NODES):
                shortfall += _V[k] * density[k] * _gap(family, at, cut - d - width * _U[k])
        d = stop if last else d + width
    return mass, mass_below, shortfall, True


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _accumulate(density, below, width, upto):
    """Fill `upto` with the mass passed at each node, `below` plus what the panel adds to it; return it at the panel's end."""
    total = 0.0
    for k in range(_NODES):
        upto[k] = 0.0
    for m in range(_NODES):
        height = width * density[m]
        total += _V[m] * height
        for k in range(_NODES):
            upto[k] += _INTEGRAL[m, k] * height
    for k in range(_NODES):
        upto[k] = min(1.0, max(0.0, below + upto[k]))
    return below + total


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _gap(family, at, distance):
    """How much the value falls from `at` to `at - distance` along y."""
    if family == BETA:
        return -math.expm1(-distance) / (1.0 + math.exp(-at)) / (1.0 + math.exp(at - distance))
    if family == GAMMA:
        return -math.exp(at) * math.expm1(-distance)
    if family == GAMMA_MIRRORED:
        return math.exp(-at) * math.expm1(distance)
    return distance


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _slope(family, y):
    """Change of the value along y."""
    if family == BETA:
        odds = math.exp(-abs(y))
        return odds / ((1.0 + odds) * (1.0 + odds))
    if family == GAMMA:
        return math.exp(y)
    if family == GAMMA_MIRRORED:
        return math.exp(-y)
    return 1.0


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _mean_gap(family, parameters, i, j):
    """Mean of arm i less mean of arm j."""
    if family in (NORMAL, STUDENT):
        return parameters[0, i] - parameters[0, j]
    if family == BETA:
        return parameters[0, i] / (parameters[0, i] + parameters[1, i]) - parameters[0, j] / (parameters[0, j] + parameters[1, j])
    gap = parameters[0, i] / parameters[1, i] - parameters[0, j] / parameters[1, j]
    return -gap if family == GAMMA_MIRRORED else gap


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _value(family, parameters, j, d):
    """The value of arm j at the offset d from its mode along y."""
    p = parameters[0, j]
    q = parameters[1, j]
    if family == BETA:
        return p / (p + q * math.exp(-d))
    if family == GAMMA:
        return p / q * math.exp(d)
    return p + d


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _offset_at(family, shape, scale, low, high, target, direction, panel):
    """Where the mass counted from the low end (direction 1) or from the high end (-1) reaches `target`, as an offset from the mode."""
    d = low if direction > 0 else high
    room = high - low
    while True:
        width = min(room, panel * _local_scale(family, shape, scale, -direction * d))
        mass = _mass(family, shape, d, width, direction)
        if mass >= target or width >= room:
            break
        target -= mass
        room -= width
        d += direction * width
    left = 0.0
    right = width
    step = width * min(1.0, target / mass)
    for _ in range(_MOST_STEPS):  # Newton's method inside a shrinking bracket
        short = target - _mass(family, shape, d, step, direction)
        if short > 0.0:
            left = step
        else:
            right = step
        change = short / math.exp(_log_density(family, shape, d + direction * step))
        if abs(change) <= 1e-14 * scale:
            break
        step += change
        if not left < step < right:
            step = 0.5 * (left + right)
    return d + direction * step


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _mass(family, shape, d, width, direction):
    total = 0.0
    for k in range(_NODES):
        total += _V[k] * math.exp(_log_density(family, shape, d + direction * width * _U[k]))
    return width * total


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _to_own(y, reference, gain, bend, mirrored, is_arm):
    """From the common coordinate of `chance_of_more` to the arm's own, and the slope between them."""
    if bend == 0.0:
        return (y - gain if is_arm else y), 1.0
    if is_arm and not mirrored:  # p' = exp(-gain) p
        if reference + y > 0.0:
            odds = math.exp(-reference - y)
            return -reference - gain - math.log(bend + odds), odds / (bend + odds)
        odds = bend * math.exp(reference + y)
        return y - gain - math.log1p(odds), 1.0 / (1.0 + odds)
    if mirrored and not is_arm:  # the same, of the complements
        if reference + y < 0.0:
            odds = math.exp(reference + y)
            return gain - reference + math.log(bend + odds), odds / (bend + odds)
        odds = bend * math.exp(-reference - y)
        return y + gain + math.log1p(odds), 1.0 / (1.0 + odds)
    return y, 1.0


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _from_own(own, reference, gain, bend, mirrored, is_arm):
    """The inverse of `_to_own`; infinite where no point of the common coordinate corresponds."""
    if bend == 0.0:
        return own + gain if is_arm else own
    if is_arm and not mirrored:
        odds = bend * math.exp(reference + own + gain)
        return own + gain - math.log1p(-odds) if odds < 1.0 else np.inf
    if mirrored and not is_arm:
        odds = bend * math.exp(gain - reference - own)
        return own - gain + math.log1p(-odds) if odds < 1.0 else -np.inf
    return own
