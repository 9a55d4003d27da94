"""Loops that serve a batch of simulated requests: which arm each unit gets, what comes of it, and what is counted.

In: arrays of requests, a plan's slots, and the memory of one decider. Out: arms and flags of the decisions, outcomes, and the same integer
sums as a server's ingest would have stored. Every rule here is the vectorised twin of one in `core/decision.py`, `core/decider.py`,
`core/gate.py` and `core/outcome.py`; the tests feed both sides the same hashes and outcomes and ask for the same bits.

Units are whole numbers. Their hash is a Philox number instead of a keyed blake2b: both are uniform on 64 bits, and it costs 15 ns instead
of a microsecond. A decider's sets of units are stamps in arrays here, and where it keeps a sample of them by hash, a histogram says
how many the sample holds.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from allocator.core.kernels.philox import philox4x32, to_unit

FIRST, COUNTED, GATED = 1, 2, 4  # flags of a decision, as in its id
ONE = 1 << 32  # one exposure in units of a cap's credit
SLOTS = 65_536
MAX_UNITS_REMEMBERED, MAX_DRAWS_REMEMBERED, MAX_UNITS_KNOWN = 200_000, 65_536, 200_000

RATE, LOG_NORMAL, NORMAL, COUNT = range(4)  # how a value of a metric comes about
MEAN, EXCEEDANCE, SHORTFALL = range(3)  # what a guardrail calls a loss: the value, being above a limit, what is missing to the top

# counters of a decider, int64: see `decide`
REQUESTS, WINDOW, LIMIT, ENTRIES, SAMPLE, DREW, KNOWN = range(7)
# counters of a ledger, int64: see `report` and `arrive`
FREE, LATE, DUPLICATE, MISSING, ACCEPTED = range(5)
# columns of a pending outcome
BUCKET, ARM, SEGMENT, FLAGS, PLAN, NEXT = range(6)

_UNIT, _REPORT, _DUPLICATE, _VALUE = 1, 2, 3, 4  # purposes of random numbers; a metric's is _VALUE + its index
_LOW, _16, _32, _48 = np.uint64(0xFFFFFFFF), np.uint64(16), np.uint64(32), np.uint64(48)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _block(key0, key1, number, arm, purpose):
    number = np.uint64(number)
    return philox4x32(number & _LOW, number >> _32, np.uint64(arm), np.uint64(purpose), key0, key1)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def arrive_units(key0, key1, first, population, ends, sticky, units, hashes, points, segments):
    """Who asks in requests first, first + 1, ...; fills the four arrays, (n,).

    population: units that come back, each request from one of them, drawn evenly; 0: every request comes from a new unit. ends: rising
    shares of segments, (segments,), the last 1. points: the slot of each draw, in [0, 65,536); the unit's own where assignment is sticky.
    """
    for i in range(units.size):
        request = first + i
        if population:
            a, b, _, _ = _block(key0, key1, request, 0, 0)
            units[i] = np.int64(to_unit(a, b) * population)
        else:
            units[i] = request
        a, b, c, d = _block(key0, key1, units[i], 0, _UNIT)
        hashes[i] = (a << _32) | b
        u = to_unit(c, d)
        segment = 0
        while u >= ends[segment]:
            segment += 1
        segments[i] = segment
        if sticky:
            points[i] = np.int64(hashes[i] >> _48)
        else:
            a, _, _, _ = _block(key0, key1, request, 1, _UNIT)
            points[i] = np.int64(a >> _16)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def change_gate(counters, credit, seen, rates, ceiling, new_rates):
    """Other caps from the next request on, as `CapGate.change`. The last place of each array is that of all candidates together."""
    now = counters[REQUESTS]
    for place in range(credit.size):
        credit[place] = _credit(credit[place], rates[place], now - seen[place], ceiling)
        seen[place] = now
        rates[place] = new_rates[place]


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _credit(credit, rate, gap, ceiling):
    """min(ceiling, credit + rate * gap), without leaving 64 bits."""
    if rate > 0 and gap > ceiling // rate:
        return ceiling
    return min(ceiling, credit + rate * gap)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def decide(
    start, units, hashes, points, segments, owner, served, incumbent, only, stale, counted, sticky, first_only, activation, window,
    counters, credit, seen, rates, ceiling, left, marks, leased, met, met_any, met_counts, drew, drew_counts, known,
    arms, flags, exposures, drawn,
):  # fmt: skip
    """Decide requests start, start + 1, ...; returns the number after the last one decided, and whether it left a lease low.

    units, hashes, points, segments: as `arrive_units` fills them. owner: int16 (tables, 65,536); served: int64 (tables, arms). only: the
    arm that everyone gets, or -1. window: of decision time. counters: REQUESTS that the caps have seen; WINDOW and LIMIT of units
    remembered, with ENTRIES of them; SAMPLE of units that draw, DREW of them; KNOWN to budgets of units. credit, seen, rates: (arms + 1,),
    empty without strict caps. left, marks: of leases, (2, arms), requests and units; leased: bool (2,). met: int64 (population, arms),
    met_any (population,), drew (population,), known: bool (population, arms), all empty where every unit is new; met_counts (256,),
    drew_counts (65,536,). Fills arms and flags, adds to exposures (arms, segments, 2) and drawn (segments, arms).
    """
    count, strict, returning = served.shape[1], credit.size > 0, met_any.size > 0
    for i in range(start, units.size):
        unit, hashed, segment = units[i], hashes[i], segments[i]
        table = segment if owner.shape[0] > 1 else 0
        gated, low, choices, teaches = False, False, 0, counted
        if stale:
            arm, gated = incumbent, True
        elif only >= 0:
            arm = only
        else:
            teaches = True
            arm = np.int64(owner[table, points[i]])
            choices = SLOTS - served[table, incumbent]
            if strict or leased[0] or leased[1]:
                shut = False
                if strict:
                    together = _credit(credit[count], rates[count], counters[REQUESTS] + 1 - seen[count], ceiling) < ONE
                refused = np.int64(0)
                for each in range(count):
                    if each == incumbent:
                        continue
                    closed = False
                    if strict:
                        gap = counters[REQUESTS] + 1 - seen[each]
                        closed = together or _credit(credit[each], rates[each], gap, ceiling) < ONE
                    if leased[0] and left[0, each] == 0:
                        closed = True
                    if leased[1] and left[1, each] == 0 and not (returning and known[unit, each]):
                        closed = True
                    if closed:
                        refused += served[table, each]
                        shut = shut or each == arm
                if shut:
                    arm = incumbent
                if strict:
                    counters[REQUESTS] += 1
                    if arm != incumbent:
                        _spend(credit, seen, rates, arm, counters[REQUESTS], ceiling)
                        _spend(credit, seen, rates, count, counters[REQUESTS], ceiling)
                if arm != incumbent:
                    if leased[0]:
                        left[0, arm] -= 1
                        low = left[0, arm] == marks[0, arm]
                    if leased[1] and not (returning and known[unit, arm]):
                        left[1, arm] -= 1
                        low = low or left[1, arm] == marks[1, arm]
                        if counters[KNOWN] < MAX_UNITS_KNOWN:
                            counters[KNOWN] += 1
                            if returning:
                                known[unit, arm] = True
                gated = refused > 0
                choices -= refused
        arms[i], flags[i] = arm, 0
        if teaches:
            first, elsewhere = True, False
            if first_only:
                first, elsewhere = _meet(arm, unit, hashed, window, counters, met, met_any, met_counts)
            flags[i] = COUNTED | (FIRST if first else 0) | (GATED if gated or elsewhere else 0)
            exposures[arm, segment, 0] += 1
            exposures[arm, segment, 1] += first
            if choices > 0 and (not sticky or _draws_now(unit, hashed, activation, counters, drew, drew_counts)) and not gated:
                drawn[segment, arm] += 1
        if low:
            return i + 1, True
    return units.size, False


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _spend(credit, seen, rates, place, request, ceiling):
    credit[place] = _credit(credit[place], rates[place], request - seen[place], ceiling) - ONE
    seen[place] = request


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _meet(arm, unit, hashed, window, counters, met, met_any, met_counts):
    """Does the unit count for this arm in this window, and has it met another? As `Memory.meet`."""
    if window != counters[WINDOW]:
        counters[WINDOW] = window
        counters[ENTRIES] = 0
        met_counts[:] = 0
    byte = np.int64((hashed >> np.uint64(8)) & np.uint64(0xFF))
    if byte >= counters[LIMIT]:
        return False, False
    elsewhere, added = False, 2
    if met_any.size:
        if met[unit, arm] == window:
            return False, False
        elsewhere = met_any[unit] == window
        added = 1 if elsewhere else 2
        met_any[unit] = window
        met[unit, arm] = window
    met_counts[byte] += added
    counters[ENTRIES] += added
    if counters[ENTRIES] > 2 * MAX_UNITS_REMEMBERED:
        counters[LIMIT] = max(1, counters[LIMIT] // 2)
        counters[ENTRIES] = met_counts[: counters[LIMIT]].sum()
        met_counts[counters[LIMIT] :] = 0
    return True, elsewhere


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _draws_now(unit, hashed, activation, counters, drew, drew_counts):
    """Is this the unit's first draw in this activation, and is it in the sample? As `Memory.draws_now`."""
    if drew.size and drew[unit] == activation:
        return False
    place = np.int64((hashed >> _16) & np.uint64(0xFFFF))
    if place >= counters[SAMPLE]:
        return False
    if drew.size:
        drew[unit] = activation
    drew_counts[place] += 1
    counters[DREW] += 1
    while counters[DREW] > MAX_DRAWS_REMEMBERED and counters[SAMPLE] > 1:
        counters[SAMPLE] //= 2
        counters[DREW] = drew_counts[: counters[SAMPLE]].sum()
    return True


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def respond(key0, key1, first, units, segments, arms, kinds, by_unit, middle, spread, low, high, values):
    """What each request would report: fills values, float64 (n, metrics).

    kinds: int64 (metrics,), RATE, LOG_NORMAL, NORMAL or COUNT; middle: (arms, segments, metrics), the rate, median or mean now; spread:
    (metrics,), sigma of the logarithm or standard deviation. by_unit: bool (metrics,), the unit's luck is the same each time. A value is
    cut to [low, high], (metrics,). Numbers belong to (request or unit, arm, metric): every policy meets the same potential outcomes.
    """
    for i in range(units.size):
        for metric in range(kinds.size):
            number = units[i] if by_unit[metric] else first + i
            purpose = _VALUE + 2 * metric + by_unit[metric]
            a, b, c, d = _block(key0, key1, number, arms[i], purpose)
            u, centre = to_unit(a, b), middle[arms[i], segments[i], metric]
            if kinds[metric] == RATE:
                value = 1.0 if u < centre else 0.0
            elif kinds[metric] == COUNT:
                value = _poisson(u, centre)
            else:
                z = math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * to_unit(c, d))
                value = centre * math.exp(spread[metric] * z) if kinds[metric] == LOG_NORMAL else centre + spread[metric] * z
            values[i, metric] = min(max(value, low[metric]), high[metric])


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def _poisson(u, mean):
    """The smallest count with a distribution function above u. mean: up to 700."""
    chance = math.exp(-mean)
    total, count = chance, 0
    while u >= total and chance > 0.0:
        count += 1
        chance *= mean / count
        total += chance
    return float(count)


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def report(
    key0, key1, first, now, tick_seconds, tick, window_seconds, missing, duplicates, delay, bad_delay, steady, successes_only,
    bucket, plans, arms, segments, flags, values, heads, pending, pending_values, counters,
):  # fmt: skip
    """Send the outcomes of requests first, first + 1, ... into the list of the tick in which each arrives. Returns how many were sent.

    missing, duplicates: shares. delay, bad_delay: mean seconds; the second where a metric other than the reward is 1. steady: the same for
    all, not exponential. successes_only: a reward of 0 is not reported. heads: int64 (ring,), the first outcome of each coming tick, -1
    for none. pending: int64 (room, 6); pending_values: float64 (room, metrics + 1), the last the time of the decision.
    """
    metrics, sent = values.shape[1], 0
    for i in range(arms.size):
        if not flags[i] & COUNTED:
            continue
        a, b, c, d = _block(key0, key1, first + i, arms[i], _REPORT)
        if to_unit(a, b) < missing:
            counters[MISSING] += 1
            continue
        mean = delay
        for metric in range(1, metrics):
            if values[i, metric] == 1.0:
                mean = bad_delay
        seconds = mean if steady else -mean * math.log(to_unit(c, d))
        if seconds > window_seconds:
            counters[LATE] += 1
            continue
        if duplicates > 0.0:
            a, b, _, _ = _block(key0, key1, first + i, arms[i], _DUPLICATE)
            counters[DUPLICATE] += to_unit(a, b) < duplicates
        place = counters[FREE]
        counters[FREE] = pending[place, NEXT]
        line = (tick + np.int64(math.ceil(seconds / tick_seconds))) % heads.size
        pending[place, BUCKET], pending[place, ARM], pending[place, SEGMENT] = bucket, arms[i], segments[i]
        pending[place, FLAGS], pending[place, PLAN] = flags[i], plans[i]
        for metric in range(metrics):
            pending_values[place, metric] = values[i, metric]
        if successes_only and values[i, 0] == 0.0:
            pending_values[place, 0] = np.nan
        pending_values[place, metrics] = now
        pending[place, NEXT] = heads[line]
        heads[line] = place
        sent += 1
    return sent


@njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
def arrive(
    now, tick, window_seconds, settled_through, shift, unit, squares, metric_of, loss_kind, loss_low, loss_high, loss_limit, loss_window,
    relative, buckets, sums, heads, pending, pending_values, counters, labels, by_plan,
):  # fmt: skip
    """Count the outcomes whose tick has come, as `Contract.contributions` and a store do. Returns how many rows of labels were filled.

    shift, unit, squares: of the reward, metric 0. metric_of, loss_kind, loss_low, loss_high, loss_limit, loss_window, relative:
    (guardrails,). buckets: ascending, the open ones; sums: int64 (at least as many, arms, segments, 3 + guardrails, 4). labels: int64
    (room, 6): guardrail, bucket, arm, segment, plan, loss in micro-units. by_plan: int64 (plans, arms, 2), count and sum of rewards by
    plan modulo `plans`; empty where nobody asks.
    """
    line = tick % heads.size
    place = heads[line]
    heads[line] = -1
    metrics = pending_values.shape[1] - 1
    filled = 0
    while place >= 0:
        after = pending[place, NEXT]
        pending[place, NEXT] = counters[FREE]
        counters[FREE] = place
        age = now - pending_values[place, metrics]
        bucket, arm, segment, flags = pending[place, BUCKET], pending[place, ARM], pending[place, SEGMENT], pending[place, FLAGS]
        if age > window_seconds or bucket <= settled_through:
            counters[LATE] += 1
        else:
            counters[ACCEPTED] += 1
            row = buckets.size - 1
            if buckets[row] != bucket:
                row = np.searchsorted(buckets, bucket)
            reward = pending_values[place, 0]
            if not math.isnan(reward):
                micro = np.int64(np.rint((reward - shift) / unit * 1e6))
                sums[row, arm, segment, 2, 0] += 1
                sums[row, arm, segment, 2, 1] += micro
                if squares:
                    square = micro * micro
                    sums[row, arm, segment, 2, 2] += square // 1_000_000
                    sums[row, arm, segment, 2, 3] += square % 1_000_000
                if by_plan.size:
                    plan = pending[place, PLAN] % by_plan.shape[0]
                    by_plan[plan, arm, 0] += 1
                    by_plan[plan, arm, 1] += micro
            if flags & FIRST:
                for g in range(metric_of.size):
                    value = pending_values[place, metric_of[g]]
                    if math.isnan(value) or age > loss_window[g]:
                        continue
                    if loss_kind[g] == EXCEEDANCE:
                        loss = 1.0 if value > loss_limit[g] else 0.0
                    else:
                        loss = (value - loss_low[g]) / (loss_high[g] - loss_low[g])
                        if loss_kind[g] == SHORTFALL:
                            loss = 1.0 - loss
                    micro = np.int64(np.rint(loss * 1e6))
                    sums[row, arm, segment, 3 + g, 0] += 1
                    sums[row, arm, segment, 3 + g, 1] += micro
                    if relative[g] and micro != 0 and not flags & GATED:
                        labels[filled, 0], labels[filled, 1], labels[filled, 2] = g, bucket, arm
                        labels[filled, 3], labels[filled, 4], labels[filled, 5] = segment, pending[place, PLAN], micro
                        filled += 1
        place = after
    return filled
