"""A real Prometheus scrapes a real server, loads the alert rules, and answers every question of the dashboards."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.assets.test_alerts import ALERTS, RULES, queries
from tests.cli.conftest import RealServer, server  # noqa: F401  (a fixture)
from tests.processes import free_address

PATIENCE_SECONDS = 60.0
pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")


@pytest.fixture
def prometheus(server: RealServer, tmp_path: Path) -> Iterator[str]:  # noqa: F811
    """A Prometheus that scrapes the server every second: its address."""
    (tmp_path / "prometheus.yaml").write_text(
        f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{RULES}"]
scrape_configs:
  - job_name: allocator
    static_configs: [{{targets: ["{server.ready["metrics"]}"]}}]
"""
    )
    address = free_address()
    command = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yaml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield address
    finally:
        process.kill()
        process.wait()


def ask(address: str, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"http://{address}{path}?{urllib.parse.urlencode(query)}", timeout=5) as reply:
        return json.load(reply)["data"]


def until(address: str, path: str, good: Any, **query: str) -> Any:
    """What Prometheus answers once it is good; it is asked ten times a second until then."""
    deadline, never, last = time.monotonic() + PATIENCE_SECONDS, threading.Event(), None
    while time.monotonic() < deadline:
        try:
            last = ask(address, path, **query)
            if good(last):
                return last
        except (urllib.error.URLError, ConnectionError):
            last = "no answer yet"
        never.wait(0.1)
    raise AssertionError(f"{path} {query}: {last}")


def test_a_real_prometheus_scrapes_the_server_and_loads_the_rules(prometheus: str) -> None:
    found = until(prometheus, "/api/v1/query", lambda data: data["result"], query="allocator_build_info")
    assert found["result"][0]["metric"]["job"] == "allocator"
    rules = ask(prometheus, "/api/v1/rules")
    loaded = {rule["name"]: rule for group in rules["groups"] for rule in group["rules"]}
    assert set(loaded) == {alert["alert"] for alert in ALERTS}
    until(
        prometheus,
        "/api/v1/rules",
        lambda data: all(rule["health"] == "ok" for group in data["groups"] for rule in group["rules"]),
    )
    up = ask(prometheus, "/api/v1/query", query="up")
    assert [sample["value"][1] for sample in up["result"]] == ["1"]
    pages = [rule for rule in loaded.values() if rule["labels"]["severity"] == "page" and rule["alerts"]]
    assert pages == [], "nobody is paged by a healthy server"
    for panel, expression in queries():
        assert "result" in ask(prometheus, "/api/v1/query", query=expression.replace("$experiment", "x")), panel
