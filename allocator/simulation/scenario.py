"""A scenario: an experiment, the world it meets, and how often and how long to rehearse it.

In: plain values (from a scenario file, or straight from Python). Out: a frozen `Scenario`, checked whole. Policies are named as in a spec
(`SPEC`: as the experiment says) or as in the literature; those of production go through the whole core, those of the literature meet the
same world without caps and guardrails (`baseline.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from allocator.core.experiment import Experiment, Policy, PolicyKind, RewardModel
from allocator.core.experiment_rules import violations as spec_violations
from allocator.errors import InvalidArgument, Violation
from allocator.simulation.bandit import POLICIES
from allocator.simulation.world import World
from allocator.simulation.world import violations as world_violations

SPEC, INCUMBENT_ONLY = "SPEC", "INCUMBENT_ONLY"
SERVED = (SPEC, "THOMPSON", "TOP_TWO", "EXPLORATION", "FIXED", INCUMBENT_ONLY)  # through the whole core
MAX_REPLICATIONS = 1_000_000
MAX_TICKS = 10_000_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to rehearse. duration_seconds: of traffic. tick_seconds: requests come in batches this far apart, and a plan follows each.

    policies: of `SERVED` or `POLICIES`. approve_after_seconds: people approve the next stage this long after a stage began; None: nobody
    ever does. points: of time at which series are kept.
    """

    experiment: Experiment
    world: World
    duration_seconds: float
    name: str = "scenario"
    tick_seconds: float = 1.0
    replications: int = 20
    seed: int = 0
    policies: tuple[str, ...] = (SPEC,)
    approve_after_seconds: float | None = 0.0
    points: int = 200

    @classmethod
    def checked(cls, **values: object) -> Scenario:
        """Build and check. Raises InvalidArgument with every violation."""
        scenario = cls(**values)  # type: ignore[arg-type]
        found = violations(scenario)
        if found:
            raise InvalidArgument(f"the scenario has {len(found)} invalid values", violations=found, reason="INVALID_SCENARIO")
        return scenario

    @property
    def ticks(self) -> int:
        """How many batches of requests."""
        return max(1, round(self.duration_seconds / self.tick_seconds))

    def under(self, policy: str) -> Scenario:
        """The same scenario with the experiment's policy replaced. policy: one of `SERVED`."""
        spec = self.experiment
        if policy == SPEC:
            return self
        if policy in ("FIXED", INCUMBENT_ONLY):
            share = {arm.name: 1.0 / len(spec.arms) if policy == "FIXED" else float(arm.incumbent) for arm in spec.arms}
            chosen = replace(Policy(), kind=PolicyKind.FIXED, shares=share)
        else:
            chosen = replace(spec.policy, kind=PolicyKind(policy), shares={})
        return replace(self, experiment=replace(spec, policy=chosen))


def violations(scenario: Scenario) -> list[Violation]:
    """Every fault, each with the path of its field."""
    found = spec_violations(scenario.experiment)
    found += [Violation(path, message) for path, message in _own(scenario)]
    return found or world_violations(scenario.world, scenario.experiment)


def _own(scenario: Scenario) -> Iterable[tuple[str, str]]:
    for path, value, low, high in (
        ("duration", scenario.duration_seconds, 1e-3, 1e9),
        ("tick", scenario.tick_seconds, 1e-3, 3600.0),
        ("approveAfter", scenario.approve_after_seconds or 0.0, 0.0, 1e9),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            yield path, f"got {value!r}; seconds from {low:g} to {high:g} are allowed"
            return
    if scenario.ticks > MAX_TICKS:
        yield "duration", f"got {scenario.ticks} ticks; at most {MAX_TICKS} are allowed"
    for path, whole, least, most in (
        ("replications", scenario.replications, 1, MAX_REPLICATIONS),
        ("seed", scenario.seed, 0, 2**63 - 1),
        ("points", scenario.points, 2, 100_000),
    ):
        if type(whole) is not int or not least <= whole <= most:
            yield path, f"got {whole!r}; a whole number from {least} to {most} is allowed"
    if not scenario.policies:
        yield "policies", f"got none; at least one of {', '.join((*SERVED, *POLICIES))} is needed"
    for place, policy in enumerate(scenario.policies):
        if policy not in SERVED and policy not in POLICIES:
            yield f"policies[{place}]", f"got {policy!r}; one of {', '.join((*SERVED, *POLICIES))} is allowed"
        elif policy in scenario.policies[:place]:
            yield f"policies[{place}]", f"got {policy!r} a second time"
        elif policy in POLICIES and scenario.experiment.reward.model is not RewardModel.BERNOULLI:
            yield f"policies[{place}]", f"got {policy!r}, which needs a BERNOULLI reward"
        elif policy in POLICIES and scenario.world.traffic.lag_seconds:
            yield f"policies[{place}]", f"got {policy!r}, which decides in one place: world.traffic.lag cannot be given to it"
