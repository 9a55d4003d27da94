"""`allocator simulate`: rehearse an experiment in a world of a scenario file.

In: a scenario file. Out: a table or a document on stdout; with --out, Parquet tables and figures in a directory. No server is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allocator.cli.connection import OutputView
from allocator.cli.extras import needs_extra
from allocator.cli.failures import complain
from allocator.cli.output import Column, Grid, View, draw, say_values
from allocator.errors import InvalidArgument

if TYPE_CHECKING:
    from allocator.simulation.study import PolicySummary, Study
    from allocator.simulation.summary import Proportion, Summary


class Backend(StrEnum):
    """Of joblib: what carries replications."""

    LOKY = "loky"
    THREADING = "threading"
    SEQUENTIAL = "sequential"
    DASK = "dask"


Workers = Annotated[int, typer.Option("--workers", help="Replications at a time; -1: one a core. The result is the same.")]
Carrier = Annotated[Backend, typer.Option("--backend", help="What carries them.")]
Scheduler = Annotated[
    str,
    typer.Option(
        "--scheduler", metavar="ADDRESS", help="Of a Dask cluster, tcp://HOST:PORT.", show_default="with --backend dask: --workers here"
    ),
]


def simulate(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario file.", show_default=False)],
    replications: Annotated[int | None, typer.Option("--replications", min=1, help="Instead of the file's.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Instead of the file's.", show_default=False)] = None,
    workers: Workers = 1,
    backend: Carrier = Backend.LOKY,
    scheduler: Scheduler = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Leave Parquet tables and figures there.", show_default=False)
    ] = None,
    output: OutputView = View.TABLE,
) -> None:
    """Rehearse an experiment before users see it: same core, same planner, same guardrails; only the clock and the world differ."""
    with needs_extra("simulate"):
        from allocator.cli.scenarios import load_scenario
        from allocator.simulation import figures
        from allocator.simulation.scenario import violations
        from allocator.simulation.study import save, study, summary

        loaded = load_scenario(scenario)
        loaded = replace(loaded, replications=replications or loaded.replications, seed=loaded.seed if seed is None else seed)
        faults = violations(loaded)  # of what the flags say: the file has none
        if faults:
            raise InvalidArgument(violations=faults)
        with carried(backend, scheduler, workers):
            found = study(loaded, workers=workers, backend=backend.value, title=loaded.name)
        written = [*save(found, out), *figures.save(found, out)] if out is not None else []
        said = summary(found)
    if output is View.TABLE:
        draw(_tables(found, said))
    else:
        say_values(output, [document(found, said)], one=True)
    for path in written:
        complain(f"written: {path}")


@contextmanager
def carried(backend: Backend, scheduler: str, workers: int) -> Iterator[None]:
    """What a backend needs while it works: Dask a cluster, the others nothing."""
    if backend is not Backend.DASK:
        if scheduler:
            raise InvalidArgument.of_field("scheduler", f"got {scheduler!r} with --backend {backend.value}; it goes with --backend dask")
        yield
        return
    from allocator.simulation.parallel import dask_cluster

    if workers < 1 and workers != -1:
        raise InvalidArgument.of_field("workers", f"got {workers}; a whole number of at least 1, or -1 for all cores, is allowed")
    with dask_cluster(scheduler, workers):
        yield


def document(found: Study, said: tuple[PolicySummary, ...]) -> dict[str, Any]:
    """The findings as JSON values; what is not a number becomes null."""
    scenario = found.scenario
    return {
        "scenario": scenario.name,
        "experiment": scenario.experiment.full_name,
        "replications": scenario.replications,
        "seed": scenario.seed,
        "durationSeconds": scenario.duration_seconds,
        "tickSeconds": scenario.tick_seconds,
        "policies": [finite(asdict(one)) for one in said],
    }


def finite(value: Any) -> Any:
    """`value` with null for what is not finite, as JSON needs it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def mean_of(value: Summary, digits: int = 4) -> str:
    """A mean and its interval, as text; "-" where there is none."""
    if value.runs == 0:
        return "-"
    if math.isnan(value.low):
        return f"{value.mean:.{digits}g}"
    return f"{value.mean:.{digits}g} [{value.low:.{digits}g}, {value.high:.{digits}g}]"


def share_of(value: Proportion | None) -> str:
    """A share and its interval, as text."""
    return "-" if value is None else f"{value.share:.1%} [{value.low:.1%}, {value.high:.1%}]"


def times_of(value: Summary) -> str:
    """5 %, 50 % and 95 % of some durations, as text."""
    return "-" if value.runs == 0 else " / ".join(duration(seconds) for seconds in (value.q05, value.q50, value.q95))


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.0f}s"


def _tables(found: Study, said: tuple[PolicySummary, ...]) -> list[Any]:
    scenario = found.scenario
    policies = Grid(
        [Column("policy"), *(Column(name, right=True) for name in ("regret", "against first", "gain", "requests", "stopped", "churn"))],
        [
            [
                one.policy, mean_of(one.regret), mean_of(one.against), mean_of(one.gain), f"{one.requests.mean:.0f}",
                share_of(one.frozen), mean_of(one.churn, 2),
            ]
            for one in said
        ],
    )  # fmt: skip
    arms = Grid(
        [
            Column("policy"), Column("arm"),
            *(Column(name, right=True) for name in ("share", "above cap", "stopped", "after", "served until then", "p(best)", "covered")),
        ],
        [
            [
                one.policy, arm.arm, mean_of(arm.share, 3), f"{arm.excess.q95:.0f}" if arm.excess.runs else "-", share_of(arm.stopped),
                times_of(arm.seconds), mean_of(arm.exposed), mean_of(arm.prob_best, 3), share_of(arm.covered),
            ]
            for one in said
            for arm in one.arms
        ],
        keys=2,
    )  # fmt: skip
    stages = Grid(
        [Column("policy"), Column("stage", right=True), Column("entered", right=True), Column("after", right=True)],
        [
            [one.policy, str(number), share_of(entered), times_of(when)]
            for one in said
            for number, (entered, when) in enumerate(one.stages)
        ],
        keys=2,
    )
    lines = [
        f"{scenario.name}: {scenario.experiment.full_name}, {duration(scenario.duration_seconds)} of traffic,"
        f" {scenario.replications} replications, seed {scenario.seed}",
        "Means with 95 % intervals; times as 5 % / 50 % / 95 %; above cap: 95 % quantile of the most that exposures were ahead.",
        "",
        policies, "", arms,
    ]  # fmt: skip
    return [*lines, "", stages] if len(scenario.experiment.stages) > 1 else lines
