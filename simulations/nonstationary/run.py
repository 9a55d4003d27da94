"""Worlds that change: the planner with and without forgetting, and policies of the literature, on the same requests.

    python simulations/nonstationary/run.py --runs 20

In: the scenario files beside this one, how many runs, a seed, a directory. Out: `results.txt` (printed too) and `nonstationary.png` in that
directory. The same seed and number of runs give the same numbers. One world alone is played by the command line:
`allocator simulate simulations/nonstationary/switching.yaml`.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from allocator.cli.scenarios import load_scenario  # noqa: E402
from allocator.simulation import Scenario, Summary, study, summarise  # noqa: E402
from allocator.simulation.replication import Replication  # noqa: E402
from allocator.simulation.world import Rates  # noqa: E402
from simulations.telling import asked, table  # noqa: E402

WORLDS = ("still", "drifting", "switching", "seasonal")
KEEPS = "SPEC, no half-life"
Found = dict[str, tuple[Replication, ...]]


def scenario(world: str, runs: int, seed: int, minutes: float) -> Scenario:
    """A scenario file, so many times, with this seed, for so long."""
    return replace(load_scenario(Path(__file__).parent / f"{world}.yaml"), replications=runs, seed=seed, duration_seconds=60 * minutes)


def forgets(chosen: Scenario) -> str:
    """What the planner that forgets is called."""
    return f"SPEC, half-life {chosen.experiment.policy.half_life_seconds / 60:g} minutes"


def play(chosen: Scenario, workers: int = 1) -> Found:
    """The replications of each policy: the planner without forgetting, as the spec says, and those of the literature."""
    spec = chosen.experiment
    kept = replace(chosen, experiment=replace(spec, policy=replace(spec.policy, half_life_seconds=None)), policies=("SPEC",))
    found = {KEEPS: study(kept, workers=workers, title=f"{chosen.name} {KEEPS}").runs["SPEC"]}
    for policy, runs in study(chosen, workers=workers, title=chosen.name).runs.items():
        found[forgets(chosen) if policy == "SPEC" else policy] = runs
    return found


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=120.0, help="of traffic (default: 120)")
    parser.add_argument("--workers", type=int, default=1, help="processes; the result is the same for any number (default: 1)")


def main() -> None:
    about = "The planner and policies of the literature in worlds that change."
    options = asked(about, 20, "of each policy in each world", 2, Path(__file__).parent, _more)
    begun, told, found = time.perf_counter(), [], {}
    for world in WORLDS:
        chosen = scenario(world, options.runs, options.seed, options.minutes)
        found[world] = play(chosen, options.workers)
        told.append(report(chosen, found[world]))
        print(f"{world}: {time.perf_counter() - begun:.0f} s", flush=True)
    told.append(f"seed {options.seed}; {time.perf_counter() - begun:.0f} s, {options.workers} at a time\n")
    print("\n" + "\n".join(told))
    (options.output / "results.txt").write_text("\n".join(told))
    draw(found, options.output / "nonstationary.png")


def report(chosen: Scenario, found: Found) -> str:
    """Regret, its paired difference to the planner without forgetting, and how often the best arm of the moment was served."""
    base = np.array([run.regret for run in found[KEEPS]])
    rows = []
    for policy, runs in found.items():
        regret = np.array([run.regret for run in runs])
        against = "-" if policy == KEEPS else _mean(summarise(regret - base))
        rows.append((policy, _mean(summarise(regret)), against, f"{np.mean([_on_best(chosen, run) for run in runs]):.1%}"))
    requests = np.mean([run.requests for run in found[KEEPS]])
    head = (
        f"{chosen.name}: {chosen.duration_seconds / 60:g} minutes, {requests:,.0f} requests on average, {len(base)} runs;"
        " means with 95 % intervals"
    )
    return table(head, ("policy", "regret", "more than without half-life, paired", "best arm of the moment"), rows)


def _on_best(chosen: Scenario, run: Replication) -> float:
    """Mean over time of the share that the best arm had."""
    rates = Rates(chosen.world, chosen.experiment)
    best = [int(rates.reward(seconds).argmax()) for seconds in run.series.seconds]
    return float(run.series.weights[np.arange(len(best)), best].mean())


def _mean(value: Summary) -> str:
    return f"{value.mean:,.0f} [{value.low:,.0f}, {value.high:,.0f}]"


def draw(found: dict[str, Found], path: Path) -> None:
    """Above: the true rates. Below: what share of decisions the new version got, mean of the runs."""
    figure, panels = plt.subplots(2, len(found), figsize=(15, 6), sharex="col", layout="constrained", height_ratios=(1, 2))
    for column, (world, of_policies) in enumerate(found.items()):
        chosen = load_scenario(Path(__file__).parent / f"{world}.yaml")
        rates, above, below = Rates(chosen.world, chosen.experiment), *panels[:, column]
        seconds = next(iter(of_policies.values()))[0].series.seconds
        truth = np.array([rates.reward(at) for at in seconds])
        for arm, name in enumerate(a.name for a in chosen.experiment.arms):
            above.plot(seconds / 60, truth[:, arm], color=("#999999", "black")[arm], label=name)
        above.set(title=world, ylim=(0.08, 0.16))
        for number, (policy, runs) in enumerate(of_policies.items()):
            share = np.mean([run.series.weights[:, 1] for run in runs], axis=0)
            below.plot(seconds / 60, share, color=f"C{number}", linewidth=2.2 if "SPEC" in policy else 1.2, label=policy)
        below.set(ylim=(-0.02, 1.02), xlabel="minutes")
    panels[0, 0].set_ylabel("rate")
    panels[1, 0].set_ylabel("share of the new version")
    panels[0, 0].legend(fontsize=8)
    panels[1, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
