"""The objectives in cluster/monitoring: their rules, their alerts, and the page that explains them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.manifests import ROOT, promtool
from tests.cluster.test_monitoring import problems

SLOS = ROOT / "cluster/monitoring/slos.yaml"
PAGE = "docs/runbooks/slos.md"


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """The rules of a kind (`alert` or `record`), by name."""
    groups = yaml.safe_load(SLOS.read_text())["groups"]
    return {rule[kind]: rule for group in groups for rule in group["rules"] if kind in rule}


@pytest.mark.parametrize("name", rules("record"))
def test_a_ratio_asks_for_what_there_is(name: str) -> None:
    assert problems(rules("record")[name]["expr"]) == []


def test_an_alert_uses_ratios_that_are_recorded() -> None:
    used = {name for rule in rules("alert").values() for name in re.findall(r"edits:\w+:\w+", rule["expr"])}
    assert used == rules("record").keys()


def test_prometheus_takes_the_rules_and_alerts_fire_when_they_should() -> None:
    count = len(rules("alert")) + len(rules("record"))
    assert f"{count} rules found" in promtool("check", "rules", "--lint-fatal", SLOS)
    assert "SUCCESS" in promtool("test", "rules", Path(__file__).parent / "slos.test.yaml")


def test_each_alert_is_explained_where_it_says_so() -> None:
    page = (ROOT / PAGE).read_text()
    headings = re.findall(r"^### (Edits\w+)$", page, re.MULTILINE)
    assert headings == list(rules("alert"))
    for name, rule in rules("alert").items():
        assert rule["annotations"]["runbook"] == f"{PAGE}#{name.lower()}"
        section = page.split(f"### {name}\n")[1].split("### ")[0]
        assert f"**{rule['labels']['severity']}.**" in section


def test_prometheus_is_given_the_rules() -> None:
    folder = ROOT / "cluster/monitoring"
    assert "/etc/prometheus/slos.yaml" in yaml.safe_load((folder / "prometheus.yaml").read_text())["rule_files"]
    assert "./monitoring/slos.yaml:/etc/prometheus/slos.yaml:ro" in (folder / "compose.yaml").read_text()
