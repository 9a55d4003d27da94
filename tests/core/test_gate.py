"""The gate: caps and budgets on realised exposure.

Expectations come from the bounds themselves, checked at every prefix and in every window; from a plain twin that adds
credit to every arm at every request; and from the reflected random walk.
"""

from __future__ import annotations

import copy
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.core.assignment import SLOTS, first_layout, pick
from allocator.core.decision import Reason, choose
from allocator.core.gate import ONE, REQUESTS, UNITS, Block, BudgetGate, BudgetLease, CapGate
from allocator.core.snapshot import Entry, Table
from allocator.errors import InvalidArgument

CAP = st.one_of(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]), st.floats(0.0, 1.0))
BURST = st.sampled_from([0.0, 0.5, 1.0, 2.5, 10.0, 50.0])


class Twin:
    """Credit of every arm, renewed at every request."""

    def __init__(self, incumbent, caps, total, burst, restarted):
        self.incumbent, self.burst = incumbent, int(burst * ONE)
        self.most = max(self.burst, ONE)
        self.credit = [0 if restarted else self.burst] * len(caps)
        self.total = 0 if restarted else self.burst
        self.change(caps, total)

    def change(self, caps, total):
        self.credit += [self.burst] * (len(caps) - len(self.credit))
        self.rates, self.total_rate = [int(cap * ONE) for cap in caps], int(total * ONE)

    def decide(self, arm):
        """(closed mask, admitted)"""
        self.credit = [min(self.most, credit + rate) for credit, rate in zip(self.credit, self.rates, strict=True)]
        self.total = min(self.most, self.total + self.total_rate)
        mask = sum(1 << index for index, credit in enumerate(self.credit) if index != self.incumbent and (credit < ONE or self.total < ONE))
        if mask >> arm & 1:
            return mask, False
        if arm != self.incumbent:
            self.credit[arm] -= ONE
            self.total -= ONE
        return mask, True


@st.composite
def histories(draw):
    """(incumbent, burst, restarted, [(caps, total, [arms asked for])]); the number of arms never falls."""
    arms = draw(st.integers(2, 5))
    phases = []
    for _ in range(draw(st.integers(1, 4))):
        arms += draw(st.sampled_from([0, 0, 1]))
        caps = draw(st.lists(CAP, min_size=arms, max_size=arms))
        runs = draw(st.lists(st.tuples(st.integers(0, arms - 1), st.integers(1, 120)), min_size=1, max_size=6))
        asked = [arm for arm, length in runs for _ in range(length)]  # long runs: the worst case for a credit
        phases.append((caps, draw(CAP), asked))
    return draw(st.integers(0, 1)), draw(BURST), draw(st.booleans()), phases


def served(history):
    """(arm served, cap of each arm, total cap) at every request, from a gate driven through `history`."""
    incumbent, burst, restarted, phases = history
    gate = None
    for caps, total, asked in phases:
        if gate is None:
            gate = CapGate(incumbent, caps, total, burst, restarted=restarted)
        else:
            gate.change(caps, total)
        for arm in asked:
            yield (arm if gate.admit(arm) else incumbent), caps, total


# ---- caps


@given(histories())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_prefix_and_no_window_passes_a_cap_whatever_is_asked(history):
    incumbent, burst, restarted, phases = history
    arms = len(phases[-1][0])
    trail = list(served(history))
    groups = [({arm}, lambda caps, _, arm=arm: caps[arm] if arm < len(caps) else 0.0) for arm in range(arms)]
    groups.append((set(range(arms)), lambda _, total: total))
    for group, cap in groups:
        group = group - {incumbent}
        over = lowest = 0.0  # exposures less caps so far, and its least value so far
        joined = len(group) > 1 or all(arm < len(phases[0][0]) for arm in group)
        start = 0.0 if restarted and joined else burst
        for arm, caps, total in trail:
            over += (arm in group) - cap(caps, total)
            assert over <= start + 1e-6  # prefix
            assert over - lowest <= max(burst, 1.0) + 1e-6  # every window that ends here
            lowest = min(lowest, over)


@given(histories(), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_gate_does_what_a_twin_does_that_renews_every_credit_at_every_request(history, chance):
    incumbent, burst, restarted, phases = history
    caps, total, _ = phases[0]
    gate = CapGate(incumbent, caps, total, burst, restarted=restarted)
    twin = Twin(incumbent, caps, total, burst, restarted)
    for index, (caps, total, asked) in enumerate(phases):
        if index:
            gate.change(caps, total)
            twin.change(caps, total)
        for arm in asked:
            mask = gate.closed_mask() if chance.random() < 0.7 else None  # asking changes nothing
            expected_mask, expected = twin.decide(arm)
            assert mask in (None, expected_mask)
            assert gate.admit(arm) is expected


@pytest.mark.parametrize(("cap", "burst"), [(0.125, 0), (0.125, 4), (0.5, 1), (1.0, 0), (0.0, 3)])
def test_the_bound_is_reached_by_who_always_asks(cap, burst):
    """The gate refuses nothing that the bound allows, but what the first request earns: a full purse takes no more."""
    gate = CapGate(0, [0.0, cap], 1.0, burst)
    exposures = 0
    for request in range(1, 401):
        exposures += gate.admit(1)
        earning = request - 1 if burst >= 1 else request
        assert exposures == min(math.floor(cap * earning + burst), request)


def test_a_quiet_time_saves_up_the_burst_and_no_more():
    gate = CapGate(0, [0.0, 0.125], 1.0, 5)
    for _ in range(10_000):
        gate.admit(0)
    assert [gate.admit(1) for _ in range(6)] == [True] * 5 + [False]


def test_all_candidates_together_stay_below_the_total_cap():
    gate = CapGate(0, [0.0] + [1.0] * 63, 0.25, 2)
    admitted = sum(gate.admit(1 + request % 63) for request in range(4_000))
    assert admitted == math.floor(0.25 * 3_999 + 2)


def test_a_total_without_credit_closes_every_candidate_and_never_the_incumbent():
    gate = CapGate(1, [1.0, 0.0, 1.0], 0.0, 1)
    assert gate.closed_mask() == 0
    assert gate.admit(0)
    assert gate.closed_mask() == 0b101
    assert gate.admit(1)
    assert not gate.admit(2)


def test_a_restarted_gate_has_no_burst_to_spend_again():
    first, second = CapGate(0, [0.0, 0.125], 1.0, 50), CapGate(0, [0.0, 0.125], 1.0, 50, restarted=True)
    assert sum(first.admit(1) for _ in range(1_001)) == 0.125 * 1_000 + 50
    assert sum(second.admit(1) for _ in range(1_000)) == 0.125 * 1_000


def test_replicas_that_share_the_burst_keep_one_bound_between_them():
    rng = random.Random(5)
    gates = [CapGate(0, [0.0, 0.2, 0.2], 0.3, 50 / 8) for _ in range(8)]
    exposures = 0
    for request in range(1, 20_001):
        exposures += gates[min(rng.randrange(8), rng.randrange(8))].admit(arm := rng.randrange(3)) and arm > 0
        assert exposures <= 0.3 * request + 50


def test_a_lower_cap_binds_at_once_and_earned_credit_stays():
    gate = CapGate(0, [0.0, 1.0], 1.0, 3)
    gate.change([0.0, 0.0], 1.0)
    assert [gate.admit(1) for _ in range(5)] == [True] * 3 + [False] * 2
    gate.change([0.0, 0.5], 1.0)
    assert [gate.admit(1) for _ in range(4)] == [False, True, False, True]


@pytest.mark.parametrize("burst", [10, 50])
def test_at_weight_equal_to_cap_the_gate_closes_as_often_as_the_reflected_walk_says(burst):
    """Credit is a walk of variance c(1 - c) a step, kept inside [0, burst]: of its falls (1 - c) / (2 burst) are
    refused.

    That is the local time of a reflected Brownian motion at one end of its interval, for each candidate that was drawn.
    """
    rng = random.Random(burst)
    cap, requests = 0.1, 400_000
    gate = CapGate(0, [0.0, cap], 1.0, burst)
    asked = refused = 0
    for _ in range(requests):
        if rng.random() < cap:
            asked += 1
            refused += not gate.admit(1)
        else:
            gate.admit(0)
    assert refused / asked == pytest.approx((1 - cap) / (2 * burst), rel=0.35)


def test_at_95_percent_of_the_cap_the_gate_hardly_ever_closes():
    rng = random.Random(95)
    gate = CapGate(0, [0.0, 0.1], 1.0, 50)
    refused = sum(not gate.admit(int(rng.random() < 0.095)) for _ in range(300_000))
    assert refused <= 30  # 5e-5 of some 28,500 asked is 1.4


def test_the_mask_before_the_draw_gives_the_propensity_of_every_outcome_of_the_draw():
    slots = (SLOTS - 60, 20, 30, 10)
    layout = first_layout(slots)
    gate = CapGate(0, [0.0, 0.0, 0.5, 0.0], 1.0, 1)
    gate.admit(1)  # arm 1 has spent its only credit
    mask = gate.closed_mask()
    open_slots = [0 if arm and mask >> arm & 1 else count for arm, count in enumerate(slots)]
    open_slots[0] = SLOTS - sum(open_slots[1:])
    assert open_slots == [SLOTS - 40, 0, 30, 10]
    seen = [0] * 4
    for slot in range(SLOTS - 60, SLOTS):  # below, the incumbent is drawn
        arm, _ = pick(layout, slots, slot)
        seen[arm if copy.deepcopy(gate).admit(arm) else 0] += 1
    seen[0] += SLOTS - 60
    assert seen == open_slots


def test_a_total_cap_without_burst_keeps_reward_near_the_incumbents_at_every_request():
    """The conservative constraint: for every n, n decisions earn at least (1 - a) of what the incumbent would have."""
    rng = random.Random(4)
    a, means = 0.05, (0.10, 0.05, 0.0)
    gate = CapGate(0, [0.0, 1.0, 1.0], a, 0)
    reward, least = 0.0, 1.0
    for request in range(1, 20_001):
        arm = rng.choice([1, 2, 2])
        reward += means[arm if gate.admit(arm) else 0]
        least = min(least, reward / (means[0] * request))
    assert 1 - a - 1e-9 <= least < 1 - a / 2


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"caps": [0.0, math.nan]}, "caps[1]"),
        ({"caps": [0.0, 1.1]}, "caps[1]"),
        ({"caps": [-0.1, 1.0]}, "caps[0]"),
        ({"total": math.inf}, "total"),
        ({"total": None}, "total"),
        ({"burst": -1.0}, "burst"),
        ({"burst": math.nan}, "burst"),
        ({"incumbent": 2}, "incumbent"),
        ({"incumbent": -1}, "incumbent"),
    ],
)
def test_caps_that_mean_nothing_are_refused(arguments, field):
    good = {"incumbent": 0, "caps": [0.0, 0.1], "total": 1.0, "burst": 50.0}
    with pytest.raises(InvalidArgument) as caught:
        CapGate(**(good | arguments))
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_gate_never_forgets_an_arm_and_knows_no_other():
    gate = CapGate(0, [0.0, 0.1], 1.0)
    with pytest.raises(InvalidArgument, match="caps"):
        gate.change([0.0], 1.0)
    with pytest.raises(InvalidArgument, match="total"):
        gate.change([0.0, 0.1], math.nan)
    for arm in (2, -1):
        with pytest.raises(InvalidArgument, match="arm"):
            gate.admit(arm)


# ---- budgets


def test_a_lease_spends_what_was_granted_and_no_more():
    lease = BudgetLease()
    assert not lease.spend()
    assert lease.grant(Block(serial=0, epoch=0, exposures=2))
    assert lease.left == 2
    assert [lease.spend() for _ in range(3)] == [True, True, False]


def test_a_block_counts_once_and_never_out_of_turn():
    lease = BudgetLease()
    assert lease.grant(Block(1, 0, 5))
    assert not lease.grant(Block(1, 0, 5))
    assert not lease.grant(Block(0, 0, 5))
    assert lease.left == 5


def test_a_freeze_voids_what_was_granted_before_it():
    lease = BudgetLease()
    lease.grant(Block(0, 0, 5))
    lease.void(1)
    assert lease.left == 0
    assert not lease.grant(Block(1, 0, 5))
    assert lease.grant(Block(2, 1, 3))
    lease.void(1)
    assert lease.left == 3
    assert lease.grant(Block(3, 2, 4))  # its epoch is news of another freeze
    assert lease.left == 4


@pytest.mark.parametrize("values", [(-1, 0, 1), (0, -1, 1), (0, 0, -1), (0, 0, 1.5), (0, 0, True), (None, 0, 1)])
def test_a_block_that_means_nothing_is_refused(values):
    with pytest.raises(InvalidArgument):
        Block(*values)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["lease", "spend", "deliver", "again", "crash", "freeze"]),
        st.integers(0, 2),
        st.integers(0, 30),
    ),
    max_size=120,
)


@given(EVENTS, st.integers(0, 60))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_budget_is_never_passed_through_crashes_freezes_and_repeated_or_reordered_grants(events, budget):
    leases = [BudgetLease() for _ in range(3)]
    serials, sent = [0, 0, 0], [[], [], []]
    leased = spent = epoch = 0
    for kind, decider, number in events:
        if kind == "lease":  # the store sets aside; the message may arrive late, twice or never
            size = min(number, budget - leased)
            leased += size
            sent[decider].append(Block(serials[decider], epoch, size))
            serials[decider] += 1
        elif kind == "deliver" and sent[decider]:
            leases[decider].grant(sent[decider][number % len(sent[decider])])
        elif kind == "again" and sent[decider]:
            assert not (leases[decider].grant(sent[decider][-1]) and leases[decider].grant(sent[decider][-1]))
        elif kind == "spend":
            spent += sum(leases[decider].spend() for _ in range(number))
        elif kind == "crash":  # a new process is a new decider: it never sees the old one's messages
            leases[decider], sent[decider] = BudgetLease(), []
        elif kind == "freeze":
            epoch += 1
            leases[decider].void(epoch)
            assert not leases[decider].spend()
        assert spent <= leased <= budget


# ---- the leases of one decider


def leased(*blocks, arms=3, requests=True, units=False, low=lambda: None):
    """A gate that holds blocks (kind, arm, exposures) of epoch 1."""
    gate = BudgetGate(low)
    gate.change(arms, 0, 1, requests=requests, units=units)
    for serial, (kind, arm, exposures) in enumerate(blocks):
        gate.post(kind, arm, Block(serial, 1, exposures))
    return gate


def serve(gate, arm, unit=b"unit"):
    """Does the candidate serve the unit?"""
    if gate.closed_mask(unit) >> arm & 1:
        return False
    gate.spend(arm, unit)
    return True


def test_without_a_lease_every_candidate_is_closed_and_never_the_incumbent():
    assert leased().closed_mask(b"unit") == 0b110
    assert leased(requests=False, units=True).closed_mask(b"unit") == 0b110
    assert leased(requests=False).closed_mask(b"unit") == 0


def test_a_candidate_serves_what_was_posted_for_it_and_no_more():
    gate = leased((REQUESTS, 1, 2), (REQUESTS, 2, 1))
    assert [serve(gate, 1) for _ in range(4)] == [True, True, False, False]
    assert gate.closed_mask(b"unit") == 0b010
    assert [serve(gate, 2) for _ in range(2)] == [True, False]
    assert (gate.spent(REQUESTS, 1), gate.spent(REQUESTS, 2), gate.spent(REQUESTS, 9)) == (2, 1, 0)


def test_a_unit_is_spent_once_for_each_candidate_and_comes_back_when_all_is_spent():
    gate = leased((UNITS, 1, 2), (UNITS, 2, 1), requests=False, units=True)
    assert [serve(gate, 1, unit) for unit in (b"a", b"a", b"b", b"a", b"c", b"b")] == [True, True, True, True, False, True]
    assert serve(gate, 2, b"a")
    assert (gate.closed_mask(b"a"), gate.closed_mask(b"b"), gate.closed_mask(b"c")) == (0b000, 0b100, 0b110)


def test_units_whose_bytes_run_on_are_told_apart():
    gate = leased((UNITS, 1, 1), arms=99, requests=False, units=True)
    assert serve(gate, 1, b"a")
    assert gate.closed_mask(b"a\x01") >> 1 & 1
    assert gate.closed_mask(b"") >> ord("a") & 1


def test_a_unit_that_could_not_be_remembered_is_spent_again(monkeypatch):
    monkeypatch.setattr("allocator.core.gate.MAX_UNITS_KNOWN", 1)
    gate = leased((UNITS, 1, 4), requests=False, units=True)
    assert [serve(gate, 1, unit) for unit in (b"a", b"b", b"b", b"b", b"b", b"a")] == [True, True, True, True, False, True]


def test_both_kinds_of_lease_bind_together():
    gate = leased((REQUESTS, 1, 3), (UNITS, 1, 2), units=True)
    assert [serve(gate, 1, unit) for unit in (b"a", b"b", b"c", b"a", b"a")] == [True, True, False, True, False]


def test_another_epoch_voids_what_was_leased_but_not_what_is_known_of_units():
    gate = leased((REQUESTS, 1, 5), (UNITS, 1, 5), units=True)
    assert serve(gate, 1, b"a")
    gate.change(3, 0, 2, requests=True, units=True)
    assert gate.closed_mask(b"a") == 0b110
    gate.post(REQUESTS, 1, Block(7, 1, 5))  # granted before the freeze, and late
    assert gate.closed_mask(b"a") == 0b110
    gate.post(REQUESTS, 1, Block(8, 2, 5))
    assert (gate.closed_mask(b"a"), gate.closed_mask(b"b")) == (0b100, 0b110)


def test_a_lease_says_once_that_it_is_low_and_again_after_the_next_block():
    said = []
    gate = leased((REQUESTS, 1, 10), low=lambda: said.append(gate.spent(REQUESTS, 1)))
    while serve(gate, 1):
        pass
    assert said == [5]
    gate.post(REQUESTS, 1, Block(5, 1, 1))
    assert serve(gate, 1)
    assert said == [5, 11]


def test_an_arm_that_joins_has_nothing_until_it_is_granted():
    gate = leased((REQUESTS, 1, 2), arms=2)
    gate.change(3, 0, 1, requests=True, units=False)
    assert gate.closed_mask(b"unit") == 0b100
    gate.post(REQUESTS, 2, Block(3, 1, 1))
    assert serve(gate, 2)
    assert serve(gate, 1)


def entry_of(*slots, sticky=True):
    """An experiment whose arms own these slots, the incumbent first."""
    layout, arms = first_layout(slots), tuple("abc"[: len(slots)])
    return Entry("default/x", b"u" * 8, 1, "RUNNING", sticky, b"salt", arms, arms, 0, (Table(layout.ends, layout.owners, slots),))


def strict_and_leased(decisions, deciders, seed):
    """(requests so far, exposures so far of each arm, what was granted), at every decision of any of the deciders."""
    rng = random.Random(seed)
    cap, total, burst, budget = 0.1, 0.15, 20.0, decisions // 20
    entry = entry_of(SLOTS - 16_000, 8_000, 8_000, sticky=False)  # more than the caps, so that both bind
    gates = [CapGate(0, [0.0, cap, cap], total, burst / deciders) for _ in range(deciders)]
    budgets = [leased() for _ in range(deciders)]
    granted, exposed, serial = [0, 0, 0], [0, 0, 0], 0
    for request in range(1, decisions + 1):
        decider = rng.randrange(deciders) if deciders > 1 else 0
        if request % 50 == 0:  # somebody asks the store for more, in vain at last
            for arm in (1, 2):
                block = min(rng.randrange(12), budget - granted[arm])
                granted[arm] += block
                serial += 1
                budgets[decider].post(REQUESTS, arm, Block(serial, 1, block))
        choice = choose(entry, b"unit", {}, request.to_bytes(8, "big"), gate=gates[decider], budgets=budgets[decider])
        exposed[choice.arm] += 1
        yield request, exposed, granted, budget, choice


def check_strict_and_leased(decisions, deciders):
    reasons = {}
    for request, exposed, granted, budget, choice in strict_and_leased(decisions, deciders, 7):
        one, other = exposed[1], exposed[2]
        assert one <= 0.1 * request + 20
        assert other <= 0.1 * request + 20
        assert one + other <= 0.15 * request + 20
        assert one <= granted[1] <= budget
        assert other <= granted[2] <= budget
        reasons[choice.reason] = reasons.get(choice.reason, 0) + 1
    assert exposed[1] > 0.9 * budget  # the budget was there to be spent
    assert reasons[Reason.CAPPED] > 0


@pytest.mark.parametrize("deciders", [1, 4])
def test_strict_caps_and_budgets_hold_together_at_every_decision(deciders):
    check_strict_and_leased(60_000, deciders)


@pytest.mark.slow
@pytest.mark.parametrize("deciders", [1, 4])
def test_strict_caps_and_budgets_hold_together_at_every_one_of_a_million_decisions(deciders):
    check_strict_and_leased(1_000_000, deciders)


def test_a_budget_that_closes_sends_the_unit_to_the_incumbent_at_the_propensity_after_the_gate():
    entry = entry_of(SLOTS - 30_000, 20_000, 10_000)
    units = {arm: next(u for u in (b"%d" % n for n in range(1000)) if choose(entry, u, {}, b"").arm == arm) for arm in range(3)}
    gate = CapGate(0, [0.0, 1.0, 1.0], 1.0, 50)
    budgets = leased((REQUESTS, 1, 1), (REQUESTS, 2, 5))
    first = choose(entry, units[1], {}, b"", gate=gate, budgets=budgets)
    assert (first.arm, first.slots, first.reason, first.gated) == (1, 20_000, Reason.ALLOCATED, False)
    again = choose(entry, units[1], {}, b"", gate=gate, budgets=budgets)
    assert (again.arm, again.slots, again.reason, again.gated) == (0, SLOTS - 10_000, Reason.CAPPED, True)
    other = choose(entry, units[2], {}, b"", gate=gate, budgets=budgets)
    assert (other.arm, other.slots, other.reason, other.gated) == (2, 10_000, Reason.ALLOCATED, True)
    incumbent = choose(entry, units[0], {}, b"", gate=gate, budgets=budgets)
    assert (incumbent.arm, incumbent.slots, incumbent.reason) == (0, SLOTS - 10_000, Reason.ALLOCATED)


def test_a_decision_that_a_budget_refuses_earns_credit_and_spends_none():
    entry = entry_of(0, SLOTS)
    gate, budgets = CapGate(0, [0.0, 0.25], 1.0, 1), leased(arms=2)
    assert [choose(entry, b"u", {}, b"", gate=gate, budgets=budgets).arm for _ in range(8)] == [0] * 8
    budgets.post(REQUESTS, 1, Block(0, 1, 9))
    assert [choose(entry, b"u", {}, b"", gate=gate, budgets=budgets).arm for _ in range(5)] == [1, 0, 0, 0, 1]


def test_a_closed_candidate_that_nobody_would_draw_does_not_gate_the_others():
    entry = entry_of(SLOTS - 10_000, 10_000, 0)
    budgets = leased((REQUESTS, 1, 100))
    choices = [choose(entry, b"%d" % n, {}, b"", budgets=budgets) for n in range(50)]
    assert not any(choice.gated for choice in choices)
    assert {choice.slots for choice in choices} == {SLOTS - 10_000, 10_000}
