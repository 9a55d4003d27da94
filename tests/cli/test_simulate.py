"""`allocator simulate`: scenario files, faults with their places, and what comes out."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from allocator.cli.scenarios import load_scenario
from allocator.errors import InvalidArgument
from tests.cli.conftest import said

SCENARIOS = sorted(Path(str(path)) for path in (resources.files("allocator") / "assets" / "examples" / "scenarios").iterdir())
SPEC = """apiVersion: allocator/v1
kind: Experiment
metadata: {name: small}
spec:
  arms: [{name: old, incumbent: true}, {name: new}]
  reward: {metric: click, window: 60s}
  guardrails: [{name: errors, metric: error, max: 0.1, onBreach: DRAIN}]
"""
GOOD = """apiVersion: allocator/v1
kind: Scenario
metadata: {name: tiny}
experiment: small.yaml
duration: 40s
replications: 3
policies: [SPEC, ucb1]
world:
  traffic: {rate: {level: 30, season: {amplitude: 0.1, period: 1h, phase: 5s}}}
  reports: {delay: 2s, badDelay: 1s, steady: true, missing: 0.1, duplicates: 0.1}
  metrics:
    click: {arms: {old: 0.2, new: {level: 0.3, driftPerHour: 0.1, jumps: [{at: 20s, level: 0.25}]}}}
    error: {byUnit: true, arms: {old: 0.01, new: 0.4}}
  shocks: [{start: 10s, duration: 5s, add: {click: -0.1}}]
"""


@pytest.fixture
def scenario(tmp_path):
    (tmp_path / "small.yaml").write_text(SPEC)

    def write(text: str) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", [path for path in SCENARIOS if "kind: Scenario" in path.read_text()], ids=lambda path: path.stem)
def test_every_example_loads(path):
    assert load_scenario(path).name == path.stem


def test_a_rehearsal_is_told_as_a_table(scenario):
    answer = said("simulate", str(scenario(GOOD)))
    assert answer.code == 0, answer.err
    assert "tiny: default/small, 40s of traffic, 3 replications, seed 0" in answer.out
    assert "ucb1" in answer.out


def test_a_rehearsal_is_told_as_json_and_kept_in_files(scenario, tmp_path):
    out = tmp_path / "out"
    answer = said("simulate", str(scenario(GOOD)), "--replications", "2", "--seed", "5", "--out", str(out), "-o", "json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert (found["replications"], found["seed"], found["experiment"]) == (2, 5, "default/small")
    assert [policy["policy"] for policy in found["policies"]] == ["SPEC", "ucb1"]
    assert found["policies"][0]["regret"]["runs"] == 2
    assert {"replications.parquet", "series.parquet", "regret.png"} <= {path.name for path in out.iterdir()}
    same = said("simulate", str(scenario(GOOD)), "--replications", "2", "--seed", "5", "-o", "yaml")
    assert YAML(typ="safe", pure=True).load(same.out) == found


def test_workers_change_nothing_that_is_said(scenario):
    path = str(scenario(GOOD))
    one, two = (said("simulate", path, "-o", "json", "--workers", workers, "--backend", "threading") for workers in ("1", "2"))
    assert one.out == two.out


def test_a_dask_cluster_changes_nothing_that_is_said(scenario):
    """One of its own, and one that is there already."""
    distributed = pytest.importorskip("distributed", reason="needs the package distributed")
    path = str(scenario(GOOD))
    alone = said("simulate", path, "-o", "json")
    own = said("simulate", path, "-o", "json", "--backend", "dask", "--workers", "2")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None) as there:
        other = said("simulate", path, "-o", "json", "--backend", "dask", "--scheduler", there.scheduler_address)
    assert alone.code == own.code == other.code == 0, own.err + other.err
    assert alone.out == own.out == other.out


def test_a_scheduler_goes_with_dask(scenario):
    answer = said("simulate", str(scenario(GOOD)), "--scheduler", "tcp://127.0.0.1:1")
    assert answer.code == 2
    assert answer.err == "error: --scheduler: got 'tcp://127.0.0.1:1' with --backend loky; it goes with --backend dask\n"


FAULTS = {
    "an unknown field": ("duration: 40s", "durations: 40s", "tiny.yaml:5:1: durations: is no field here"),
    "a number for a duration": ("duration: 40s", "duration: 40", "tiny.yaml:5:1: duration: got 40; a duration like"),
    "a rate above 1": ("old: 0.2, new", "old: 1.2, new", "world.metrics[click].arms[old].level: got 1.2; a number from 0 to 1"),
    "an arm that is missing": ("{old: 0.01, new: 0.4}", "{old: 0.01}", "world.metrics[error].arms: got nothing for 'new'"),
    "an arm that is not there": ("{old: 0.01, new: 0.4}", "{old: 0.01, new: 0.4, x: 1}", "world.metrics[error].arms[x]: is no arm"),
    "an unknown law": ("byUnit: true", "law: RATES", "got 'RATES'; one of RATE, LOG_NORMAL, NORMAL, COUNT is allowed. Did you mean RATE?"),
    "text for a flag": ("byUnit: true", "byUnit: si", "world.metrics[error].byUnit: got 'si'; true or false is allowed"),
    "no world": ("world:", "word:", "tiny.yaml:8:1: word: is no field here"),
    "an unknown policy": ("[SPEC, ucb1]", "[SPEC, ucb]", "policies[1]: got 'ucb'; one of SPEC"),
    "a spec that is not there": ("small.yaml", "large.yaml", "tiny.yaml:4:1: experiment:"),
    "another kind": ("kind: Scenario", "kind: Experiment", "tiny.yaml:2:1: kind: got 'Experiment'; 'Scenario' is allowed"),
    "not a number": ("missing: 0.1", "missing: .nan", "world.reports.missing: got nan; a number from 0 to 1 is allowed"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_told_with_its_place_and_what_is_allowed(case, scenario):
    before, after, message = FAULTS[case]
    assert before in GOOD
    answer = said("simulate", str(scenario(GOOD.replace(before, after, 1))))
    assert answer.code == 2
    assert message in answer.err


def test_all_faults_are_told_at_once(scenario):
    text = GOOD.replace("duration: 40s", "duration: soon").replace("missing: 0.1", "missing: lots").replace("seed", "sead")
    with pytest.raises(InvalidArgument) as caught:
        load_scenario(scenario(text))
    assert len(caught.value.violations) == 2


def test_a_file_that_is_not_there_is_said_to_be():
    answer = said("simulate", "nowhere.yaml")
    assert answer.code == 2
    assert "nowhere.yaml: cannot be read" in answer.err


CERTIFY = ("--incumbent-rate", "0.2", "--traffic", "1200/m", "--for", "1m", "--replications", "1", "--metric-rates", "error=0.02")


def test_a_certificate_is_told_as_text(scenario, tmp_path):
    scenario(GOOD)
    answer = said("certify", str(tmp_path / "small.yaml"), *CERTIFY)
    assert answer.code == 0, answer.err
    assert "Certificate of default/small" in answer.out
    assert "20 requests a second, incumbent's reward 0.2, 1 replication" in answer.out
    assert "+20%" in answer.out


def test_a_certificate_is_told_as_json(scenario, tmp_path):
    scenario(GOOD)
    answer = said("certify", str(tmp_path / "small.yaml"), *CERTIFY, "-o", "json")
    found = json.loads(answer.out)
    assert [harm["points"] for harm in found["harms"]] == [0.01, 0.02, 0.05, 0.2]
    assert found["rates"] == {"click": 0.2, "error": 0.02}
    assert found["false_stop"]["runs"] == 1
    assert YAML(typ="safe", pure=True).load(said("certify", str(tmp_path / "small.yaml"), *CERTIFY, "-o", "yaml").out) == found


def test_a_certificate_is_one_page_that_needs_nothing_else(scenario, tmp_path):
    scenario(GOOD)
    answer = said("certify", str(tmp_path / "small.yaml"), *CERTIFY, "-o", "html")
    assert answer.out.startswith("<!doctype html>")
    assert answer.out.count("data:image/png;base64,") >= 3
    assert "<script src" not in answer.out
    assert "http" not in answer.out.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--incumbent-rate", "2", "--traffic", "5/s"), "--incumbent-rate: got 2.0; a mean reward between 0 and 1 is allowed"),
        (("--incumbent-rate", "0.2", "--traffic", "many"), "--traffic: got 'many'; a rate like 50/s"),
        (("--incumbent-rate", "0.2", "--traffic", "5/s", "--metric-rates", "error"), "--metric-rates: got 'error'; NAME=NUMBER"),
        (("--incumbent-rate", "0.2", "--traffic", "5/s", "--for", "soon"), "--for: got 'soon'; a duration like"),
        (("--incumbent-rate", "0.2", "--traffic", "5/s", "--for", "0s"), "--for: got 0.0; seconds from 0.001"),
        (
            ("--incumbent-rate", "0.2", "--traffic", "5/s", "--metric-rates", "error=5"),
            "--metric-rates: got error=5; a number from 0 to 1 is allowed",
        ),
        (
            ("--incumbent-rate", "0.2", "--traffic", "5/s", "--delay", "9h"),
            "--delay: got 32400.0 seconds; from 0 to the 60 seconds of the reward's window are allowed",
        ),
        (("--incumbent-rate", "0.2", "--traffic", "5/s", "--seed", str(10**22)), f"--seed: got {10**22}; a whole number from 0 to"),
        (("--incumbent-rate", "0.2", "--traffic", "5/s", "--replications", str(10**11)), f"--replications: got {10**11}; a whole number"),
        (("--incumbent-rate", "0.2", "--traffic", "5/s", "--workers", "0"), "--workers: got 0; a whole number of at least 1, or -1"),
    ],
)
def test_a_flag_that_makes_no_sense_is_named(arguments, message, scenario, tmp_path):
    scenario(GOOD)
    answer = said("certify", str(tmp_path / "small.yaml"), *arguments)
    assert answer.code == 2
    assert answer.err.startswith(f"error: {message}")
    assert "lint" not in answer.err


@pytest.mark.parametrize(("flag", "value"), [("--seed", 10**22), ("--replications", 10**11)])
def test_what_replaces_a_value_of_the_file_is_checked_like_it(flag, value, scenario, tmp_path):
    """Before anything is rehearsed: a seed of 64 bits and more ended in a traceback, after all the work."""
    answer = said("simulate", str(scenario(GOOD)), flag, str(value), "--out", str(tmp_path / "out"))
    assert answer.code == 2
    assert answer.err.startswith(f"error: {flag}: got {value}; a whole number from")
    assert not (tmp_path / "out").exists()


def test_a_scenario_is_not_sent_to_the_linter_of_specs(scenario, tmp_path):
    answer = said("simulate", str(scenario(GOOD.replace("40s", "0s"))))
    assert "`allocator simulate FILE --replications 1` checks again" in answer.err
    scenario(GOOD)
    (tmp_path / "small.yaml").write_text(SPEC.replace("max: 0.1", "max: 7"))
    answer = said("simulate", str(tmp_path / "tiny.yaml"))
    assert "`allocator lint -f FILE` checks again" in answer.err  # it is the spec that is wrong
