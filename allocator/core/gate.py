"""Caps and budgets on what candidates really received: a credit for each exposure, earned by requests, never by time.

In: caps, then one call for each decision. Out: which candidates have no credit now, and whether the one that was drawn
may serve. `CapGate` and `BudgetGate` change with every decision: the two stateful values in core. Each belongs to one
decider and one experiment, and to one thread of it. Standard library only: deciders live in other people's processes.

The idea of `CapGate`. Weights bound what a candidate receives on average; sticky units and chance make the real share
differ. So each candidate, and all of them together, hold credit: every request earns `cap` of it, an exposure costs 1,
and at most max(burst, 1) is kept. Credit starts at `burst` and never goes below 0, therefore

    exposures among the first n requests    <= sum of the caps in force at each + burst           for every n
    exposures in any window of requests     <= sum of the caps in force at each + max(burst, 1)

whatever the requests do. If each of R deciders has burst B / R, the sums add up to one bound with burst B, and no
decider needs to hear of another. Whole numbers only (units of 2**-32, caps rounded down), so the bound holds to the
last exposure.

The gate is a function of the past, asked before the draw: the propensity of candidate i is its published weight while
it has credit and 0 otherwise, and the incumbent's is the rest. A cap of `a` with burst 0 also keeps the conservative
constraint "never worse than (1 - a) of the incumbent alone" without any statistics: at most a * n of n requests went
elsewhere.

Credit is worked out when it is asked for, from the number of requests since it last changed, so a decision costs the
same for 2 arms and for 64. Dropped: adding credit to every candidate at every request (that cost grows with the arms);
a token bucket by the clock (a quiet night would save up a burst of thousands); a bound on expected exposure (broke its
promise in a fifth of simulated runs).

The idea of `BudgetGate`. An absolute budget is counted in one place, the store, which sets blocks of it aside; a decider
spends its blocks without asking. Blocks come from another thread, so they lie in a mailbox until the decider's own
thread takes them in. A lease that is half spent says so once, and more is fetched while decisions go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from allocator.errors import InvalidArgument, Violation

ONE = 1 << 32  # one exposure in units of credit
NEVER = 1 << 62

REQUESTS, UNITS = "requests", "units"  # what a lease is spent on: each exposure, or each unit's first
MAX_UNITS_KNOWN = 200_000  # for each experiment


class CapGate:
    """Strict caps of one experiment in one decider.

    incumbent: index of the arm that needs no credit. caps: share of requests for each arm, in [0, 1] (the incumbent's
    is not used). total: the same for all candidates together. burst: exposures that a decider may be ahead of its cap,
    at least 0. restarted: begin without credit, because a process before this one may have used the burst up. Raises
    InvalidArgument.
    """

    __slots__ = (
        "_burst", "_ceiling", "_credit", "_incumbent", "_mask", "_mask_until", "_opens", "_rates", "_requests", "_seen",
        "_total_credit", "_total_opens", "_total_rate", "_total_seen",
    )  # fmt: skip

    def __init__(self, incumbent: int, caps: Sequence[float], total: float, burst: float = 50.0, *, restarted: bool = False) -> None:
        violations = _shares(caps, total)
        if not 0 <= incumbent < len(caps):
            message = f"got {incumbent}; the index of one of {len(caps)} arms is allowed"
            violations.append(Violation("incumbent", message))
        if not 0.0 <= burst < 1e9:
            violations.append(Violation("burst", f"got {burst!r}; a number of exposures from 0 to 1e9 is allowed"))
        if violations:
            raise InvalidArgument(violations=violations)
        self._incumbent = incumbent
        self._burst = int(burst * ONE)
        self._ceiling = max(self._burst, ONE)
        self._requests = 0
        start = 0 if restarted else self._burst
        self._credit = [start] * len(caps)  # of each arm, right after request number _seen
        self._seen = [0] * len(caps)
        self._total_credit = start
        self._total_seen = 0
        self._rates: list[int] = []  # credit earned by each request
        self._total_rate = 0
        self._opens: list[int] = []  # the first request at which there is credit for an exposure
        self._total_opens = 0
        self._mask = 0
        self._mask_until = 0  # the first request for which _mask may be out of date
        self._set_rates(caps, total)

    def closed_mask(self) -> int:
        """The candidates without credit for the coming decision: bit i for arm i."""
        coming = self._requests + 1
        if coming >= self._mask_until:
            self._renew_mask(coming)
        return self._mask

    def admit(self, arm: int) -> bool:
        """May the drawn arm serve? To be called once for each decision, with the incumbent too: every request earns
        credit.

        arm: index; False exactly when its bit was set in `closed_mask` just before, and then the incumbent serves.
        Raises InvalidArgument, and counts no request, for an arm that has no cap here.
        """
        if not 0 <= arm < len(self._rates):
            message = f"got {arm}; the index of one of {len(self._rates)} arms is allowed"
            raise InvalidArgument.of_field("arm", message)
        request = self._requests = self._requests + 1
        if arm == self._incumbent:
            return True
        if request < self._opens[arm] or request < self._total_opens:
            return False
        rate = self._rates[arm]
        credit = self._credit[arm] + rate * (request - self._seen[arm])
        credit = (credit if credit < self._ceiling else self._ceiling) - ONE
        self._credit[arm] = credit
        self._seen[arm] = request
        if credit + rate < ONE:
            opens = self._opens[arm] = _opens(request, credit, rate)
            self._mask |= 1 << arm
            self._mask_until = min(self._mask_until, opens)
        rate = self._total_rate
        credit = self._total_credit + rate * (request - self._total_seen)
        credit = (credit if credit < self._ceiling else self._ceiling) - ONE
        self._total_credit = credit
        self._total_seen = request
        if credit + rate < ONE:
            self._total_opens = _opens(request, credit, rate)
            self._mask_until = 0
        return True

    def change(self, caps: Sequence[float], total: float) -> None:
        """Other caps from the next request on; credit earned so far stays. More caps than before: arms that joined,
        with a full burst.

        Raises InvalidArgument, also for fewer caps than before: an arm that left keeps its index.
        """
        violations = _shares(caps, total)
        if len(caps) < len(self._rates):
            violations.append(Violation("caps", f"got {len(caps)}; one for each of {len(self._rates)} arms is allowed"))
        if violations:
            raise InvalidArgument(violations=violations)
        now = self._requests
        for arm, rate in enumerate(self._rates):
            self._credit[arm] = min(self._ceiling, self._credit[arm] + rate * (now - self._seen[arm]))
        self._total_credit = min(self._ceiling, self._total_credit + self._total_rate * (now - self._total_seen))
        self._credit += [self._burst] * (len(caps) - len(self._rates))
        self._seen = [now] * len(caps)
        self._total_seen = now
        self._set_rates(caps, total)

    def _set_rates(self, caps: Sequence[float], total: float) -> None:
        """Needs every credit as of the request just past."""
        self._rates = [int(cap * ONE) for cap in caps]
        self._total_rate = int(total * ONE)
        now = self._requests
        self._opens = [_opens(now, credit, rate) for credit, rate in zip(self._credit, self._rates, strict=True)]
        self._total_opens = _opens(now, self._total_credit, self._total_rate)
        self._mask_until = 0

    def _renew_mask(self, coming: int) -> None:
        candidates = [arm for arm in range(len(self._rates)) if arm != self._incumbent]
        closed = candidates if self._total_opens > coming else [arm for arm in candidates if self._opens[arm] > coming]
        self._mask = sum(1 << arm for arm in closed)
        if self._total_opens > coming:
            self._mask_until = self._total_opens
        else:
            self._mask_until = min((self._opens[arm] for arm in closed), default=NEVER)


@dataclass(frozen=True, slots=True)
class Block:
    """Exposures of one candidate that the store set aside for one decider.

    serial: grows with each block of that decider. epoch: grows with each freeze. exposures: at least 0. Raises
    InvalidArgument.
    """

    serial: int
    epoch: int
    exposures: int

    def __post_init__(self) -> None:
        violations = [
            Violation(field, f"got {value!r}; a whole number of at least 0 is allowed")
            for field, value in (("serial", self.serial), ("epoch", self.epoch), ("exposures", self.exposures))
            if type(value) is not int or value < 0
        ]
        if violations:
            raise InvalidArgument(violations=violations)


class BudgetLease:
    """Spends blocks of an absolute budget, granted elsewhere, without asking for each exposure.

    What was set aside is spent or lost, never given back: a crash, a repeated grant and a freeze can only leave some of
    the budget unused. So if the store never sets aside more than the budget, all deciders together never pass it.
    """

    __slots__ = ("_epoch", "_left", "_serial", "_spent")

    def __init__(self) -> None:
        self._epoch = 0
        self._left = 0
        self._serial = -1
        self._spent = 0

    @property
    def left(self) -> int:
        """Exposures that may still be spent; at 0 the candidate is closed."""
        return self._left

    @property
    def spent(self) -> int:
        """Exposures spent so far, in all epochs."""
        return self._spent

    def grant(self, block: Block) -> bool:
        """Add a block. False, and nothing added, when it came before, out of turn, or is of an epoch that is over."""
        if block.serial <= self._serial or block.epoch < self._epoch:
            return False
        self.void(block.epoch)
        self._serial = block.serial
        self._left += block.exposures
        return True

    def spend(self) -> bool:
        """Take one exposure. False when none is left."""
        if self._left == 0:
            return False
        self._left -= 1
        self._spent += 1
        return True

    def void(self, epoch: int) -> None:
        """A freeze began epoch `epoch`: exposures granted before it are lost. A known epoch changes nothing."""
        if epoch > self._epoch:
            self._epoch = epoch
            self._left = 0


class BudgetGate:
    """The leases of one experiment in one decider: of requests, of units, or of both, for each candidate.

    low: called, in the decider's thread, when a lease is down to half of what it held after its last block. `post` and
    `spent` may be called from any thread, everything else from the decider's alone.

    A unit is spent once for each candidate that it meets. Those it surely met are known exactly, by their own bytes; a
    restart forgets them, and when there are too many no more are added: a unit is then spent again, which can only leave
    some of the budget unused. (A Bloom filter was dropped: it would take new units for known ones.)
    """

    __slots__ = ("_incumbent", "_known", "_low", "_mail", "_of", "_requests", "_units")

    def __init__(self, low: Callable[[], None] = lambda: None) -> None:
        self._low = low
        self._mail: deque[tuple[str, int, Block]] = deque()
        self._of = {REQUESTS: _Leases(), UNITS: _Leases()}
        self._requests: _Leases | None = None
        self._units: _Leases | None = None
        self._incumbent = 0
        self._known: set[bytes] = set()

    def post(self, kind: str, arm: int, block: Block) -> None:
        """Hand over a block of `kind` for the candidate `arm`. It counts from the next decision on."""
        self._mail.append((kind, arm, block))

    def spent(self, kind: str, arm: int) -> int:
        """Exposures of `arm` that were spent from leases of this kind so far."""
        leases = self._of[kind].leases
        return leases[arm].spent if arm < len(leases) else 0

    def change(self, arms: int, incumbent: int, epoch: int, *, requests: bool, units: bool) -> None:
        """What holds from the next decision on. epoch: what was leased in an earlier one is lost. requests, units: are they limited?"""
        self._incumbent = incumbent
        for leases in self._of.values():
            leases.change(arms, epoch)
        self._requests = self._of[REQUESTS] if requests else None
        self._units = self._of[UNITS] if units else None

    def closed_mask(self, unit: bytes) -> int:
        """The candidates that may not serve `unit` in the coming decision: bit i for arm i."""
        while self._mail:
            kind, arm, block = self._mail.popleft()
            self._of[kind].grant(arm, block)
        closed = self._requests.closed if self._requests is not None else 0
        if self._units is not None:
            doubtful = self._units.closed & ~closed
            while doubtful:
                bit = doubtful & -doubtful
                if unit + bytes((bit.bit_length() - 1,)) not in self._known:
                    closed |= bit
                doubtful ^= bit
        return closed & ~(1 << self._incumbent)

    def spend(self, arm: int, unit: bytes) -> None:
        """The candidate `arm`, which `closed_mask` left open just before, serves `unit`."""
        low = self._requests is not None and self._requests.spend(arm)
        if self._units is not None:
            met = unit + bytes((arm,))
            if met not in self._known:
                low |= self._units.spend(arm)
                if len(self._known) < MAX_UNITS_KNOWN:
                    self._known.add(met)
        if low:
            self._low()


class _Leases:
    """One lease for each arm. closed: bit i while that of arm i is empty. marks: what is left of each when it counts as low."""

    __slots__ = ("closed", "leases", "marks")

    def __init__(self) -> None:
        self.leases: list[BudgetLease] = []
        self.marks: list[int] = []
        self.closed = 0

    def change(self, arms: int, epoch: int) -> None:
        while len(self.leases) < arms:
            self.leases.append(BudgetLease())
            self.marks.append(0)
        for lease in self.leases:
            lease.void(epoch)
        self.closed = sum(1 << arm for arm, lease in enumerate(self.leases) if lease.left == 0)

    def grant(self, arm: int, block: Block) -> None:
        self.change(arm + 1, 0)
        self.leases[arm].grant(block)
        self.marks[arm] = self.leases[arm].left // 2
        self.change(arm + 1, 0)

    def spend(self, arm: int) -> bool:
        """Take one of an arm's. True when that leaves it low."""
        lease = self.leases[arm]
        lease.spend()
        if lease.left == 0:
            self.closed |= 1 << arm
        return lease.left == self.marks[arm]


def _opens(now: int, credit: int, rate: int) -> int:
    """The first request after `now` at which credit reaches 1, when `credit` is held after request `now`."""
    if credit + rate >= ONE:
        return now + 1
    return now - (credit - ONE) // rate if rate else NEVER


def _shares(caps: Sequence[float], total: float) -> list[Violation]:
    named = [(f"caps[{arm}]", cap) for arm, cap in enumerate(caps)] + [("total", total)]
    return [
        Violation(field, f"got {value!r}; a share of requests from 0 to 1 is allowed")
        for field, value in named
        if not (isinstance(value, int | float) and 0.0 <= value <= 1.0)
    ]
