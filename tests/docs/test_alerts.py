"""The alert rules ask for metrics and labels that an app exposes, and fire when they should."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from tests.docs.named_tests import ROOT

ALERTS = ROOT / "examples" / "alerts"
RULES = (ALERTS / "pyncette.rules.yml").read_text()
TESTS = (ALERTS / "pyncette.tests.yml").read_text()

OF_THE_SCRAPE = {"instance", "job"}
"""Labels that Prometheus itself adds."""


def exposed() -> dict[str, set[str]]:
    """The metrics of the library with their labels, in a process of their own."""
    program = (
        "from prometheus_client import REGISTRY\n"
        "from pyncette import Pyncette\n"
        "from pyncette import prometheus\n"
        "prometheus.use_prometheus(Pyncette())\n"
        "for collector in set(REGISTRY._collector_to_names):\n"
        "    name = getattr(collector, '_name', '')\n"
        "    if name.startswith('pyncette_'):\n"
        "        print(name, collector._type, *collector._labelnames)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        name, kind, *labels = line.split()
        match kind:
            case "counter":
                found[f"{name}_total"] = set(labels)
            case "histogram":
                found[f"{name}_bucket"] = {*labels, "le"}
                found[f"{name}_sum"] = found[f"{name}_count"] = set(labels)
            case _:
                found[name] = set(labels)
    return found


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    pytest.importorskip("prometheus_client")
    return exposed()


def rules() -> list[Any]:
    yaml = pytest.importorskip("yaml")
    [group] = yaml.safe_load(RULES)["groups"]
    return list(group["rules"])


def test_each_rule_asks_for_metrics_and_labels_that_exist(metrics: dict[str, set[str]]) -> None:
    for rule in rules():
        names = set(re.findall(r"\bpyncette_\w+", rule["expr"]))
        assert names, rule["alert"]
        assert names <= set(metrics), rule["alert"]
        for labels in re.findall(r"\bby\s*\(([^)]*)\)", rule["expr"]):
            for label in re.split(r"\s*,\s*", labels):
                assert label in OF_THE_SCRAPE or all(label in metrics[name] for name in names)
        texts = " ".join(rule["annotations"].values())
        shown = set(re.findall(r"\$labels\.(\w+)", texts))
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"\bby\s*\(([^)]*)\)", rule["expr"]))))
        assert shown <= kept, rule["alert"]


def test_each_series_of_the_tests_is_one_that_an_app_exposes(metrics: dict[str, set[str]]) -> None:
    series = re.findall(r"- series: (\w+)\{([^}]*)\}", TESTS)
    assert series
    for name, labels in series:
        given = set(re.findall(r"(\w+)=", labels))
        assert given - OF_THE_SCRAPE == metrics[name], name


def test_each_rule_is_tried() -> None:
    for rule in rules():
        assert TESTS.count(f"alertname: {rule['alert']}\n        exp_alerts:") > 0, rule["alert"]
        assert f"alertname: {rule['alert']}}}" in TESTS, rule["alert"]


def test_the_table_of_the_page_has_the_metrics_that_exist(metrics: dict[str, set[str]]) -> None:
    page = (ROOT / "docs" / "how-to" / "monitoring.md").read_text()
    told = set(re.findall(r"`(pyncette_\w+)`", page))
    base = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics}
    assert told == base


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_rules_fire_when_they_should() -> None:
    for verb, file in (("check", "pyncette.rules.yml"), ("test", "pyncette.tests.yml")):
        done = subprocess.run(
            ["promtool", verb, "rules", file],
            cwd=ALERTS,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
