"""Alert rules fire when they should, name metrics that exist, and have a runbook; dashboards ask for what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from ruamel.yaml import YAML

from allocator.server.metrics import Metrics

ASSETS = Path(str(files("allocator").joinpath("assets")))
RULES = ASSETS / "alerts" / "allocator.rules.yaml"
DASHBOARDS = sorted((ASSETS / "dashboards").glob("*.json"))
ALERTS = [rule for group in YAML(typ="safe").load(RULES.read_text())["groups"] for rule in group["rules"]]
RUNBOOKS = (ASSETS / "docs" / "operations.md").read_text()
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")


def names() -> set[str]:
    """Every series that a server may expose."""
    registry = CollectorRegistry()
    Metrics(registry, lambda: 0.0)
    found = set()
    for metric in registry.collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(metric.type, ("",))
        found |= {metric.name + end for end in ends}
    return found


def asked(expression: str) -> set[str]:
    return set(re.findall(r"\ballocator_\w+", expression))


def queries() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]


@promtool
def test_the_rules_are_sound(tmp_path: Path) -> None:
    done = subprocess.run(["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_each_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    text = (Path(__file__).parent / "alerts.test.yaml").read_text()
    (tmp_path / "alerts.test.yaml").write_text(text.replace("RULES", str(RULES)))
    done = subprocess.run(["promtool", "test", "rules", str(tmp_path / "alerts.test.yaml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_the_tests_of_alerts_see_every_alert_that_never_fires(tmp_path: Path) -> None:
    yaml = YAML(typ="safe")
    rules = yaml.load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = "vector(1) == 0"
    with (tmp_path / "rules.yaml").open("w") as file:
        yaml.dump(rules, file)
    text = (Path(__file__).parent / "alerts.test.yaml").read_text()
    (tmp_path / "alerts.test.yaml").write_text(text.replace("RULES", str(tmp_path / "rules.yaml")))
    done = subprocess.run(["promtool", "test", "rules", str(tmp_path / "alerts.test.yaml")], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert [alert["alert"] for alert in ALERTS if alert["alert"] not in said] == []


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_names_metrics_that_exist_and_a_runbook(alert: dict) -> None:
    assert asked(alert["expr"]) <= names()
    assert alert["labels"]["severity"] in ("page", "ticket", "info")
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert (ASSETS.parents[1] / page).is_file()
    assert anchor == alert["alert"].lower(), "a section of its own"
    assert anchor in {title.lower() for title in re.findall(r"^### (\w+)$", RUNBOOKS, re.MULTILINE)}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["description"]


def test_every_runbook_belongs_to_an_alert() -> None:
    anchors = {alert["annotations"]["runbook_url"].partition("#")[2] for alert in ALERTS}
    assert {title.lower() for title in re.findall(r"^### (Allocator\w+)$", RUNBOOKS, re.MULTILINE)} == anchors


def test_the_page_says_which_alerts_ring_at_once_and_which_tell_a_trend() -> None:
    (at_once,) = re.findall(r"^\| at once \|(.*)\|", RUNBOOKS, re.MULTILINE)
    (trend,) = re.findall(r"^\| a trend \|(.*)\|", RUNBOOKS, re.MULTILINE)
    (lasting,) = re.findall(r"^\| a state that lasts \|(.*)\|", RUNBOOKS, re.MULTILINE)
    said = {kind: set(re.findall(r"Allocator\w+", text)) for kind, text in (("", at_once), ("trend", trend), ("for", lasting))}
    found: dict[str, set[str]] = {"": set(), "trend": set(), "for": set()}
    for alert in ALERTS:
        two_looks = "deriv(" in alert["expr"] or len(set(re.findall(r"\[(\w+)\]", alert["expr"]))) > 1
        found["" if "for" not in alert else "trend" if two_looks else "for"].add(alert["alert"])
    assert said == found


@pytest.mark.parametrize(("panel", "expression"), list(queries()))
def test_a_panel_asks_for_metrics_that_exist(panel: str, expression: str) -> None:
    assert asked(expression)
    assert asked(expression) <= names(), panel


@promtool
def test_every_query_of_a_dashboard_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"q:{number}", "expr": expression.replace("$experiment", "x")} for number, (_, expression) in enumerate(queries())]
    path = tmp_path / "queries.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump({"groups": [{"name": "q", "rules": rules}]}, file)
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboards_have_ids_of_their_own_and_panels_that_do_not_overlap() -> None:
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len(boards) >= 2
    for board in boards:
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(set(places)) == len(places)
        assert all(panel["title"] for panel in board["panels"])
