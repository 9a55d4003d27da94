"""The race of decision rules: the same streams for all, once as documented, once at equal false alarms.

    python simulations/rules/run.py --runs 1000

In: how many runs, a seed, a directory. Out: `results.txt` (also printed) and `rules.png` in that directory. The same seed and number of
runs give the same numbers. Thresholds for equal false alarms are the 99 % quantile of each statistic's largest value over A/A days;
they are drawn apart from the days on which the rules then race.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from simulations.rules import streams  # noqa: E402
from simulations.rules.rules import RULES, Rule, peak, stop  # noqa: E402
from simulations.rules.streams import SCENARIOS, SECONDS, Scenario  # noqa: E402
from simulations.rules.thompson import starved  # noqa: E402
from simulations.telling import asked, share_of, steps, table  # noqa: E402

FALSE_ALARMS = 0.01
Found = dict[tuple[str, str], np.ndarray]  # scenario, rule → stop second, requests, failures of the candidate: (runs, 3)


def main() -> None:
    about = "Decision rules on the same streams: who stops harm soonest at equal false alarms."
    options = asked(about, 1000, "A/A days that set the thresholds; races are half as many", 20, Path(__file__).parent)
    begun = time.perf_counter()
    calibrating, racing, starving = np.random.SeedSequence(options.seed).spawn(3)
    equal = thresholds(calibrating, options.runs)
    races = max(options.runs // 2, 10)
    documented, calibrated = race(racing, races, equal)
    thompson = plain_thompson(starving, max(options.runs // 100, 2))
    told = [
        as_documented(documented, races),
        failures(
            calibrated,
            thompson,
            equal,
            f"2. At equal false alarms ({FALSE_ALARMS:.0%} of A/A days): failed requests of the candidate before it is stopped, median"
            " (90 %); `never`: share of days on which it is not stopped within 24 h.",
        ),
        failures(documented, thompson, {rule.name: rule.documented for rule in RULES}, "3. The same at the documented thresholds."),
    ]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    told.append(f"seed {options.seed}; {time.perf_counter() - begun:.0f} s, one process, {os.cpu_count()} cores, load {load}\n")
    print("\n" + "\n".join(told))
    (options.output / "results.txt").write_text("\n".join(told))
    draw(calibrated, thompson, options.output / "rules.png")


def thresholds(seeds: np.random.SeedSequence, runs: int) -> dict[str, float]:
    """Of each rule, what its statistic exceeds on one A/A day in a hundred."""
    peaks: dict[str, list[float]] = {rule.name: [] for rule in RULES}
    for seed in steps(seeds.spawn(runs), runs, "thresholds, A/A"):
        for rule, looks in _looks(seed, SCENARIOS[0]):
            peaks[rule.name].append(peak(looks))
    return {name: float(np.quantile(values, 1 - FALSE_ALARMS, method="higher")) + 1e-9 for name, values in peaks.items()}


def race(seeds: np.random.SeedSequence, runs: int, equal: dict[str, float]) -> tuple[Found, Found]:
    """Every rule on every scenario: as documented, and at its threshold for equal false alarms."""
    documented: Found = {}
    calibrated: Found = {}
    for scenario, of_scenario in zip(SCENARIOS, seeds.spawn(len(SCENARIOS)), strict=True):
        for number, seed in enumerate(steps(of_scenario.spawn(runs), runs, scenario.name)):
            for rule, looks, day in _days(seed, scenario):
                for found, threshold in ((documented, rule.documented), (calibrated, equal[rule.name])):
                    rows = found.setdefault((scenario.name, rule.name), np.empty((runs, 3)))
                    at = stop(looks, threshold)
                    rows[number] = (at, *day.served_by(at))
    return documented, calibrated


def _looks(seed: np.random.SeedSequence, scenario: Scenario) -> Iterator[tuple[Rule, tuple[np.ndarray, np.ndarray]]]:
    for rule, looks, _ in _days(seed, scenario):
        yield rule, looks


def _days(seed: np.random.SeedSequence, scenario: Scenario) -> Iterator[tuple[Rule, tuple[np.ndarray, np.ndarray], streams.Day]]:
    """Every rule's looks at one day: rules that give the candidate the same share see the same one."""
    shares = sorted({rule.share for rule in RULES})
    drawn = zip(shares, map(np.random.default_rng, seed.spawn(len(shares))), strict=True)
    days = {share: streams.day(rng, scenario, share) for share, rng in drawn}
    for rule in RULES:
        yield rule, rule.looks(days[rule.share]), days[rule.share]


def plain_thompson(seeds: np.random.SeedSequence, runs: int) -> dict[str, np.ndarray]:
    """Requests and failures of a candidate that is only starved, (runs, 2) by scenario; delays are left out."""
    return {
        scenario.name: np.array(
            [starved(np.random.default_rng(seed), scenario) for seed in steps(each.spawn(runs), runs, f"Thompson, {scenario.name}")]
        )
        for scenario, each in zip(SCENARIOS, seeds.spawn(len(SCENARIOS)), strict=True)
        if scenario.harmful
    }


# ------------------------------------------------------------------------------------------------------------- telling


def as_documented(found: Found, runs: int) -> str:
    """Harmless candidates stopped, and harmful ones missed, at the documented thresholds."""
    harmless = [scenario for scenario in SCENARIOS if not scenario.harmful]
    rows = []
    for rule in RULES:
        stopped = [int(np.isfinite(found[scenario.name, rule.name][:, 0]).sum()) for scenario in harmless]
        rows.append((rule.name, *(f"{count / runs:.1%}" for count in stopped), share_of(stopped[0], runs)[2]))
    head = (
        f"1. As documented: share of days on which a harmless candidate is stopped. {streams.REQUESTS} requests a second,"
        f" {streams.SHARE:.0%} to the candidate, {streams.BASE:.1%} failures on both arms, limit {streams.LIMIT:.0%}; {runs} days of 24 h"
        " each. A shock is beyond the limit: rules with a limit are meant to stop there."
    )
    return table(head, ("rule", *(scenario.name for scenario in harmless), "95 % interval of A/A"), rows)


def failures(found: Found, thompson: dict[str, np.ndarray], thresholds: dict[str, float], head: str) -> str:
    """Failures that users saw from the candidate before the stop."""
    harmful = [scenario.name for scenario in SCENARIOS if scenario.harmful]
    rows = []
    for rule in RULES:
        cells = []
        for name in harmful:
            at, _, failed = found[name, rule.name].T
            missed = np.isinf(at).mean()
            cells.append(_spread(failed) + (f", {missed:.0%} never" if missed else ""))
        rows.append((rule.name, f"{thresholds[rule.name]:.3g}", *cells))
    rows.append(("plain Thompson sampling, never stops", "-", *(_spread(thompson[name][:, 1]) for name in harmful)))
    return table(head, ("rule", "threshold", *harmful), rows)


def _spread(values: np.ndarray) -> str:
    middle, ninth = np.quantile(values, (0.5, 0.9))
    return f"{middle:,.0f} ({ninth:,.0f})"


def draw(found: Found, thompson: dict[str, np.ndarray], path: Path) -> None:
    """Median failures before the stop, by rule and scenario."""
    harmful = [scenario for scenario in SCENARIOS if scenario.harmful]
    figure, axis = plt.subplots(figsize=(11, 6.5), layout="constrained")
    place = np.arange(len(harmful))
    for number, rule in enumerate(RULES):
        middle = [np.median(found[s.name, rule.name][:, 2]) for s in harmful]
        never = [np.isinf(found[s.name, rule.name][:, 0]).mean() > 0.5 for s in harmful]
        ours = rule.name.startswith("ours")
        marker, width, alpha = ("o", 2.5, 1.0) if ours else ("s", 1.0, 0.7)
        axis.plot(place, middle, marker=marker, linewidth=width, label=rule.name, color=f"C{number}", alpha=alpha)
        axis.scatter(place[never], np.array(middle)[never], marker="x", s=90, color="black", zorder=5)
    starving = [np.median(thompson[s.name][:, 1]) for s in harmful]
    axis.plot(place, starving, linestyle="--", color="black", label="plain Thompson sampling, never stops")
    axis.set(yscale="log", ylabel="failed requests of the candidate before the stop (median)")
    axis.set_xticks(place, [s.name.replace(", failures after 5 s, successes after 10 min", ",\ndelayed") for s in harmful])
    day = f"{FALSE_ALARMS:.0%} of A/A days of {SECONDS // 3600} h"
    axis.set_title(f"Rules, not software, at equal false alarms: {day}; x: mostly not stopped")
    figure.legend(fontsize=8, ncols=3, loc="outside lower center")
    axis.grid(visible=True, which="major", axis="y", alpha=0.3)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
