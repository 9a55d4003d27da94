"""Outcomes → store. Each metric of a decision counts once.

In: outcomes as reported, exposures as counted by the decider and then made ready by `rows`. Out: what became of each outcome, once it is
durable. A value outside the contract refuses the whole report with every violation, and nothing of it is counted: the reporter mends it
and sends it again. An id that is forged, foreign or too old refuses only its own outcome, because no mending helps it. Batches of exposures
that deciders elsewhere have counted are made into rows with the batch's id for a nonce, so a batch that comes twice counts once; see
`engine/exposures.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum

from allocator.core.decider import Exposure
from allocator.core.decision_id import DecisionId, read
from allocator.core.outcome import Outcome
from allocator.engine.exposures import ExposureBatch, Lives, batch_rows, exposure_rows
from allocator.engine.registry import Registry
from allocator.errors import InvalidArgument, Violation
from allocator.ports import Clock, Contribution, Counted, ExposureRow, OutcomeRow, Store, losses

MAX_OUTCOMES = 1000
RECALLED = 4096  # outcomes in whole numbers that say the same as an earlier one are checked and turned into cells once
TOLD = 4096  # answers that are kept, one for each experiment and what became of an outcome
FUTURE_SECONDS = 60.0  # how far ahead of ours a decider's clock may be


class Status(Enum):
    """What became of one outcome."""

    ACCEPTED = "ACCEPTED"
    DUPLICATE = "DUPLICATE"
    LATE = "LATE"
    REFUSED = "REFUSED"
    IGNORED = "IGNORED"


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one outcome. experiment: its full name where the id said so. reason: UPPER_SNAKE, "" when accepted."""

    status: Status
    reason: str = ""
    message: str = ""
    experiment: str = ""


COUNTED = {
    Counted.ACCEPTED: (Status.ACCEPTED, "", ""),
    Counted.DUPLICATE: (Status.DUPLICATE, "ALREADY_COUNTED", "every metric of it had been counted before"),
    Counted.LATE: (Status.LATE, "WINDOW_CLOSED", "the window of its decision has closed"),
}


class _Unheard(Exception):
    """Only the store can tell whether an id is of an experiment, and the caller must not wait for it."""


@dataclass(slots=True)
class _Checked:
    """A report that may be counted. results: the answers so far, None where the store has the word. rows, places: what it is to count,
    and the outcomes that these are. others: rows of batches, and the decisions in each. lost: decisions that fit nothing here.
    """

    results: list[Result | None]
    rows: list[OutcomeRow]
    places: list[int]
    others: list[tuple[OutcomeRow, int]]
    lost: int
    exposures: Sequence[ExposureRow]

    @property
    def counts(self) -> list[OutcomeRow]:
        """What the store is to count once."""
        return [*self.rows, *(row for row, _ in self.others)]

    @property
    def any(self) -> bool:
        """Is there anything for the store?"""
        return bool(self.rows or self.exposures or self.others)


@dataclass(slots=True)
class Begun:
    """A report on its way to the store. counted: done when the store has counted or refused it, from any thread."""

    checked: _Checked
    counted: Future[list[Counted]]


class Ingest:
    """Reads ids, checks values, counts.

    `counted` is told after each commit of which experiments outcomes were in it, of which exposures, and of which losses that a guardrail
    looks at.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        clock: Clock,
        counted: Callable[[set[str], set[str], set[str]], None],
        refuse: Callable[[], None],
        catch_up: Callable[[], None],
    ) -> None:
        """refuse: raises Unavailable while nothing may be counted. catch_up: has the registry hear what other servers did."""
        self._store = store
        self._registry = registry
        self._clock = clock
        self._counted = counted
        self._refuse = refuse
        self._catch_up = catch_up
        self.key = b""
        self._told: dict[tuple[str, Counted], Result] = {}
        self._recalled: dict[tuple[object, ...], tuple[int, tuple[Contribution, ...]]] = {}
        self._lives = Lives()

    def report(self, outcomes: Sequence[Outcome], exposures: Sequence[Exposure] = ()) -> list[Result]:
        """As `receive`, of exposures as they were counted, without batches. A result for each outcome, in order."""
        return self.receive(outcomes, self.rows(exposures))[0]

    def rows(self, exposures: Sequence[Exposure]) -> list[ExposureRow]:
        """This process's exposures, ready to be counted by `receive` or `begin`. Waits for nothing."""
        return self._store.ready(exposure_rows(exposures))

    def receive(
        self, outcomes: Sequence[Outcome], exposures: Sequence[ExposureRow] = (), batches: Sequence[ExposureBatch] = ()
    ) -> tuple[list[Result], int]:
        """Count outcomes, this process's exposures and batches of others' in one step; durable when this returns.

        Returns a result for each outcome, in order, and how many decisions of the batches are lost: foreign ones, and those whose bucket is
        settled. Raises InvalidArgument for more than 1,000 outcomes or any value outside its contract (then nothing is counted, exposures
        neither), Unavailable or Overloaded when the store cannot write.
        """
        checked = self._check(outcomes, exposures, batches, wait=True)
        return self._answers(checked, self._store.add(checked.counts, checked.exposures) if checked.any else [])

    def begin(self, outcomes: Sequence[Outcome], exposures: Sequence[ExposureRow]) -> Begun | None:
        """The first half of `receive`, without waiting for anything; `answers` is the second, once the store has counted.

        None where only the store can tell whether an id is of an experiment: then nothing has begun, and `receive` it is. Raises alike.
        """
        try:
            checked = self._check(outcomes, exposures, (), wait=False)
        except _Unheard:
            return None
        if not checked.any:
            nothing: Future[list[Counted]] = Future()
            nothing.set_result([])
            return Begun(checked, nothing)
        return Begun(checked, self._store.add_soon(checked.counts, checked.exposures))

    def answers(self, begun: Begun) -> tuple[list[Result], int]:
        """What `receive` returns or raises, of what was begun and is done."""
        return self._answers(begun.checked, begun.counted.result())

    def read(self, decision_id: str) -> DecisionId:
        """What a decision id says, if this service made it. Raises InvalidArgument."""
        return read(self.key, decision_id)

    def _check(
        self, outcomes: Sequence[Outcome], exposures: Sequence[ExposureRow], batches: Sequence[ExposureBatch], *, wait: bool
    ) -> _Checked:
        """What is to be counted. Raises as `receive` does; without `wait` _Unheard, where only the store could tell."""
        if len(outcomes) > MAX_OUTCOMES:
            raise InvalidArgument.of_field(
                "outcomes", f"got {len(outcomes)}; at most {MAX_OUTCOMES} in one report are allowed", reason="BATCH_TOO_LARGE"
            )
        self._refuse()
        now = self._clock.now()
        results: list[Result | None] = [None] * len(outcomes)
        rows: list[OutcomeRow] = []
        places: list[int] = []
        found: list[Violation] = []
        for index, outcome in enumerate(outcomes):
            faults = _not_finite(index, outcome)
            answer = self._row(index, outcome, now, faults, wait)
            if faults:
                found += faults
            elif isinstance(answer, Result):
                results[index] = answer
            else:
                rows.append(answer)
                places.append(index)
        others, lost = batch_rows(batches, self._registry, self._lives, now + FUTURE_SECONDS, found)
        if found:
            raise InvalidArgument(
                f"{len(found)} value{'s' if len(found) > 1 else ''} outside the contract; nothing was counted",
                violations=found,
                reason="INVALID_OUTCOME",
            )
        return _Checked(results, rows, places, others, lost, exposures)

    def _answers(self, checked: _Checked, counted: Sequence[Counted]) -> tuple[list[Result], int]:
        """The answers, once the store has counted."""
        results, rows, lost = checked.results, checked.rows, checked.lost
        for place, row, what in zip(checked.places, rows, counted, strict=False):
            results[place] = self._told.get((row.uid, what)) or self._tell(row.uid, what)
        lost += sum(count for (_, count), what in zip(checked.others, counted[len(rows) :], strict=True) if what is Counted.LATE)
        exposed = {row.uid for row in checked.exposures} | {row.uid for row, _ in checked.others}
        self._counted({row.uid for row in rows}, exposed, losses(rows))
        return [result for result in results if result is not None], lost

    def _row(self, index: int, outcome: Outcome, now: float, faults: list[Violation], wait: bool) -> OutcomeRow | Result:
        """The row to count, or the answer that needs none. Adds to `faults` what breaks the contract."""
        if not outcome.decision_id:
            faults.append(Violation(f"outcomes[{index}].decision_id", "got nothing; the id of a decision is needed"))
        try:
            decision = read(self.key, outcome.decision_id)
        except InvalidArgument as error:
            return Result(Status.REFUSED, error.reason, error.violations[0].message)
        contract = self._registry.contract(decision.uid) if wait else self._registry.contracted(decision.uid)
        if contract is None or not contract.fits(decision.arm, decision.segment):
            if not wait:
                raise _Unheard
            self._catch_up()  # the id is ours: another server may have made it just now
            contract = self._registry.contract(decision.uid)
        if contract is None or not contract.fits(decision.arm, decision.segment):
            return Result(Status.REFUSED, "FOREIGN_DECISION_ID", "no experiment here made this decision")
        seconds = decision.seconds
        bucket = int(seconds // contract.bucket_seconds)
        values = (outcome.reward, *outcome.metrics.items()) if outcome.metrics else outcome.reward
        same = (contract, bucket, decision.arm, decision.segment, decision.activation, decision.first, values)
        recalled = self._recalled.get(same)
        if recalled is None and not faults:
            faults += contract.violations(f"outcomes[{index}]", outcome)
        if faults:
            return Result(Status.REFUSED, "INVALID_OUTCOME", "", self._name(contract.uid))
        age = now - seconds
        if not decision.counted:
            return Result(
                Status.IGNORED,
                "NOT_COUNTED",
                "its decision teaches nothing: not started, opted out, not targeted or pinned",
                self._name(contract.uid),
            )
        if age > contract.window_seconds:
            message = f"the decision is {age:.0f} s old, its window {contract.window_seconds:g} s"
            return Result(Status.LATE, "WINDOW_CLOSED", message, self._name(contract.uid))
        if age < -FUTURE_SECONDS:
            message = f"the decision lies {-age:.0f} s ahead of this server's clock"
            return Result(Status.REFUSED, "FUTURE_DECISION", message, self._name(contract.uid))
        weights = self._weights(decision)
        plain = weights is None and age <= contract.shortest_seconds  # what it adds rests on nothing but `same`
        if recalled is None or not plain:
            mask, cells = contract.contributions(decision, outcome, age, weights)
            recalled = mask, tuple(map(Contribution._make, cells))
            if plain and _whole(outcome):
                if len(self._recalled) >= RECALLED:
                    self._recalled.clear()
                self._recalled[same] = recalled
        return OutcomeRow(contract.uid, decision.nonce, bucket, *recalled)

    def _tell(self, uid: str, what: Counted) -> Result:
        """The answer for outcomes that the store has decided on, kept while its experiment is known: a uid never changes its name."""
        result = Result(*COUNTED[what], self._name(uid))
        if result.experiment:
            if len(self._told) >= TOLD:
                self._told.clear()
            self._told[uid, what] = result
        return result

    def _weights(self, decision: DecisionId) -> tuple[int, ...] | None:
        if decision.gated:
            return None
        tables = self._registry.weights(decision.uid, decision.version)
        if not tables:
            return None
        return tables[decision.segment if len(tables) > 1 else 0]

    def _name(self, uid: str) -> str:
        record = self._registry.of_uid(uid)
        return record.name if record is not None else ""


def _whole(outcome: Outcome) -> bool:
    """Are all values whole numbers, as clicks and errors are? Others hardly come again, and keeping them costs as much as counting them."""
    return not (outcome.reward or 0.0) % 1 and not any(value % 1 for value in (outcome.metrics or {}).values())


def _not_finite(index: int, outcome: Outcome) -> list[Violation]:
    reward, metrics = outcome.reward, outcome.metrics
    if (reward is None or math.isfinite(reward)) and (not metrics or all(map(math.isfinite, metrics.values()))):
        return []
    path = f"outcomes[{index}]"
    values = [(f"{path}.reward", outcome.reward)] if outcome.reward is not None else []
    values += [(f"{path}.metrics[{name}]", value) for name, value in (outcome.metrics or {}).items()]
    return [Violation(field, f"got {value}; a finite number is allowed") for field, value in values if not math.isfinite(value)]
