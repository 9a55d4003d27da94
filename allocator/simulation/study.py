"""A scenario rehearsed many times, under each of its policies, and what the runs say together.

In: a scenario. Out: a `Study`: the replications of each policy, their summaries with intervals, a table with a row a replication, and both
as Parquet. Every policy meets replication i with the same seed, hence the same world, so policies are compared by paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from allocator.simulation.bandit import POLICIES
from allocator.simulation.parallel import replicate
from allocator.simulation.replication import Replication
from allocator.simulation.run import rehearse
from allocator.simulation.scenario import Scenario
from allocator.simulation.summary import Proportion, Summary, proportion, summarise

NUMBERS = ("requests", "regret", "gain", "churn", "least_propensity", "accepted", "late", "missing", "duplicates")
BY_ARM = ("exposures", "excess", "stopped", "exposed_at_stop", "prob_best", "covered", "width")


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """scenario, and the replications of each policy, in the order of their seeds."""

    scenario: Scenario
    runs: Mapping[str, tuple[Replication, ...]]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, in the order of every (arms,) array."""
        return tuple(arm.name for arm in self.scenario.experiment.arms)


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm under one policy. stopped: runs in which it was frozen or drained, by `seconds` after the start, having served `exposed`.

    share: of all decisions. excess: most that its exposures were ahead of the sum of its caps. covered: runs in which the always-valid
    interval held its mean at every look.
    """

    arm: str
    exposures: Summary
    share: Summary
    excess: Summary
    stopped: Proportion | None
    seconds: Summary
    exposed: Summary
    prob_best: Summary
    covered: Proportion | None


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """One policy. against: paired difference of regret to the first policy. stages: entered in how many runs, and when, seconds.

    frozen: runs that ended frozen or with a drained arm; None for a policy of the literature, which has no guardrails.
    """

    policy: str
    regret: Summary
    against: Summary
    gain: Summary
    requests: Summary
    churn: Summary
    least_propensity: Summary
    frozen: Proportion | None
    stages: tuple[tuple[Proportion, Summary], ...]
    arms: tuple[ArmSummary, ...]


def study(scenario: Scenario, *, workers: int = 1, backend: str = "loky", title: str = "") -> Study:
    """Rehearse the scenario. workers, backend, title: see `replicate`; the result depends on none of them."""
    runs = {}
    for policy in scenario.policies:
        one = partial(rehearse, scenario=scenario, policy=policy)
        shown = f"{title} {policy}".strip() if title else ""
        runs[policy] = tuple(replicate(one, scenario.replications, scenario.seed, workers=workers, backend=backend, title=shown))
    return Study(scenario, runs)


def summary(of: Study) -> tuple[PolicySummary, ...]:
    """What each policy's replications say together."""
    first = np.array([run.regret for run in next(iter(of.runs.values()))])
    return tuple(_policy(of, policy, runs, first) for policy, runs in of.runs.items())


def rows(of: Study) -> list[dict[str, Any]]:
    """A flat row for each replication: `regret`, `exposures[new]`, `stage[1]`, ..., NaN where something did not happen."""
    table = []
    for policy, runs in of.runs.items():
        for number, run in enumerate(runs):
            row: dict[str, Any] = {"policy": policy, "replication": number, "seed": of.scenario.seed, "state": run.state}
            row |= {name: getattr(run, name) for name in NUMBERS}
            row |= {f"{name}[{arm}]": float(value) for name in BY_ARM for arm, value in zip(of.arms, getattr(run, name), strict=True)}
            row |= {f"stage[{stage}]": float(seconds) for stage, seconds in enumerate(run.stages)}
            row["breaches"] = "; ".join(run.breaches)
            table.append(row)
    return table


def curves(of: Study) -> list[dict[str, Any]]:
    """A flat row for each replication, point of time and arm: seconds, weight, exposures, evidence, regret, stage."""
    table = []
    for policy, runs in of.runs.items():
        for number, run in enumerate(runs):
            s = run.series
            for place, seconds in enumerate(s.seconds.tolist()):
                for index, arm in enumerate(of.arms):
                    table.append(
                        {
                            "policy": policy, "replication": number, "seconds": seconds, "arm": arm,
                            "weight": float(s.weights[place, index]), "exposures": float(s.exposures[place, index]),
                            "evidence": float(s.evidence[place, index]), "regret": float(s.regret[place]), "stage": float(s.stage[place]),
                        }
                    )  # fmt: skip
    return table


def save(of: Study, directory: Path) -> list[Path]:
    """Write `replications.parquet` and `series.parquet` into the directory, made where it is missing. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in (("replications", rows(of)), ("series", curves(of))):
        path = directory / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(table), path)
        written.append(path)
    return written


def _policy(of: Study, policy: str, runs: Sequence[Replication], first: np.ndarray) -> PolicySummary:
    served = policy not in POLICIES
    regret = np.array([run.regret for run in runs])
    stages = np.array([run.stages for run in runs])
    return PolicySummary(
        policy=policy,
        regret=summarise(regret),
        against=summarise(regret - first),
        gain=summarise([run.gain for run in runs]),
        requests=summarise([run.requests for run in runs]),
        churn=summarise([run.churn for run in runs]),
        least_propensity=summarise([run.least_propensity for run in runs]),
        frozen=proportion(bool(run.breaches) for run in runs) if served else None,
        stages=tuple((proportion(~np.isnan(column)), summarise(column)) for column in stages.T) if served else (),
        arms=tuple(_arm(of, index, runs, served) for index in range(len(of.arms))),
    )


def _arm(of: Study, index: int, runs: Sequence[Replication], served: bool) -> ArmSummary:
    def column(name: str) -> np.ndarray:
        return np.array([float(getattr(run, name)[index]) for run in runs])

    candidate = index != of.scenario.experiment.incumbent
    covered = column("covered")
    return ArmSummary(
        arm=of.arms[index],
        exposures=summarise(column("exposures")),
        share=summarise(column("exposures") / np.maximum([run.requests for run in runs], 1)),
        excess=summarise(column("excess")),
        stopped=proportion(~np.isnan(column("stopped"))) if served and candidate else None,
        seconds=summarise(column("stopped")),
        exposed=summarise(column("exposed_at_stop")),
        prob_best=summarise(column("prob_best")),
        covered=None if np.isnan(covered).any() else proportion(covered > 0),
    )
