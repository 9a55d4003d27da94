"""A policy of the literature in the rates of a scenario, for comparison with what is served.

In: a scenario, a seed, the name of a policy. Out: a `Replication` with what a baseline has: regret, gain, exposures, and their curves. It
knows no caps, no guardrails, no ramp, and no delay but a tick's; segments are pooled. Its chance is its own: what an arm pays is not
paired with the served policies' outcomes, because those belong to units, and a baseline has none.
"""

from __future__ import annotations

import numpy as np

from allocator.core.experiment import RewardModel
from allocator.errors import InvalidArgument
from allocator.simulation.bandit import simulate
from allocator.simulation.parallel import Seed, child
from allocator.simulation.replication import Replication, Series
from allocator.simulation.scenario import Scenario
from allocator.simulation.world import Rates


def baseline(seed: Seed, scenario: Scenario, policy: str) -> Replication:
    """Play a policy of the literature in the scenario's rates. policy: one of `POLICIES`.

    What a baseline cannot have (breaches, stages, intervals) is NaN or empty. Raises InvalidArgument for a reward that is not BERNOULLI,
    and when not one request comes.
    """
    rates = Rates(scenario.world, scenario.experiment)
    if scenario.experiment.reward.model is not RewardModel.BERNOULLI:
        raise InvalidArgument.of_field("policy", f"got {policy!r}, which needs a BERNOULLI reward")
    rng = np.random.Generator(np.random.PCG64(child(seed, 1)))
    seconds = np.arange(scenario.ticks) * scenario.tick_seconds
    traffic = scenario.world.traffic
    means = np.array([max(traffic.rate.at(s), 0.0) for s in seconds]) * scenario.tick_seconds
    counts = rng.poisson(means) if traffic.poisson else np.diff(np.floor(np.cumsum(means) + 1e-9), prepend=0.0).astype(np.int64)
    requests = int(counts.sum())
    arms = len(scenario.experiment.arms)
    by_tick = np.array([rates.reward(s) for s in (seconds[:1] if rates.still else seconds)])
    sign = 1.0 if scenario.experiment.reward.goal.value == "MAXIMISE" else -1.0
    by_tick = by_tick if sign > 0 else 1.0 - by_tick
    marks = np.unique(np.maximum(np.cumsum(counts)[:: max(1, scenario.ticks // scenario.points)], 1))
    if not requests:
        raise InvalidArgument.of_field("world.traffic.rate", "got no request at all; a baseline needs at least one")
    means_of = by_tick if rates.still else np.repeat(by_tick, counts, axis=0)
    marks = np.unique(np.append(marks[marks <= requests], requests))
    batch = max(1, round(requests / scenario.ticks))
    runs = simulate(means_of, requests, policy, replications=1, batch=batch, checkpoints=marks, random_state=seed)
    pulls = runs.pulls[0].astype(np.float64)
    share = np.diff(pulls, axis=0, prepend=0.0) / np.diff(marks, prepend=0)[:, None]
    at = seconds[np.minimum(np.searchsorted(np.cumsum(counts), marks), scenario.ticks - 1)]
    nothing, none = np.full(arms, np.nan), np.zeros((marks.size, arms))
    above = by_tick.max(axis=1) - by_tick[:, scenario.experiment.incumbent]  # what the best arm earns over the incumbent
    possible = float((above * counts).sum())
    return Replication(
        policy=policy,
        requests=requests,
        regret=float(runs.regret[0, -1]),
        gain=possible - float(runs.regret[0, -1]),
        exposures=runs.pulls[0, -1],
        excess=nothing,
        stopped=nothing,
        exposed_at_stop=nothing,
        breaches=(),
        stages=np.full(len(scenario.experiment.stages), np.nan),
        prob_best=nothing,
        churn=np.nan,
        covered=nothing,
        width=nothing,
        least_propensity=np.nan,
        accepted=requests,
        late=0,
        missing=0,
        duplicates=0,
        state="",
        waiting=(),
        series=Series(at, share, pulls, none, runs.regret[0], np.zeros(marks.size)),
    )
