"""The alerts and the dashboard: that they ask for metrics and tags that there are, in PromQL."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from serve_app.telemetry.metrics import ATTEMPTS, METRICS, PREDICTIONS, REQUESTS, SUBMISSIONS, Kind, Metric
from tests.cluster.manifests import OVERLAYS, ROOT, build, only, promtool
from tests.cluster.serve_configs import SHIPPED, shipped
from tests.cluster.test_machines import COMPOSE, compose_problems

MONITORING = ROOT / "cluster/monitoring"
ALERTS = (MONITORING / "alerts.yaml").read_text()
DASHBOARD = (MONITORING / "grafana/edits.json").read_text()
# Histograms are several series.
SERIES = {Kind.HISTOGRAM: ("_bucket", "_count", "_sum")}
OURS = {f"ray_{metric.name}{end}": metric for metric in METRICS for end in SERIES.get(metric.kind, ("",))}
# Ray's own, which tests/service/test_telemetry.py finds at its endpoint.
RAYS = {"ray_serve_http_request_latency_ms_bucket"}
# What Serve adds to ours.
ADDED = {"application", "deployment", "replica", "le"}
# What Grafana puts into a query before Prometheus sees it.
VARIABLES = {"$__rate_interval": "5m", "$model": ".*"}


def problems(query: str) -> list[str]:
    """What of a query would never give anything."""
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    try:
        expression = promql_parser.parse(query)
    except ValueError as error:
        return [f"{query}: {error}"]
    return [problem for selector in selectors(expression) for problem in selector_problems(selector)]


def selectors(expression: promql_parser.Expr) -> Iterator[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []
    promql_parser.walk(expression, lambda node: found.append(node) if is_selector(node) else None)
    return iter(found)


def is_selector(node: object) -> bool:
    return isinstance(node, promql_parser.VectorSelector)


def selector_problems(selector: promql_parser.VectorSelector) -> Iterator[str]:
    if selector.name in RAYS:
        return
    metric = OURS.get(selector.name)
    if metric is None:
        yield f"there is no metric {selector.name}"
        return
    for matcher in selector.matchers.matchers:
        if matcher.name not in metric.tags | dict.fromkeys(ADDED):
            yield f"{metric.name} has no tag {matcher.name}"
            continue
        known = metric.tags.get(matcher.name)
        words = [] if matcher.value == ".*" else matcher.value.split("|")
        yield from (f"{metric.name}: {matcher.name} is never {word}" for word in words if known and word not in known)


def alerts(text: str) -> dict[str, str]:
    return {rule["alert"]: rule["expr"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"]}


def queries(text: str) -> list[str]:
    return [target["expr"] for panel in json.loads(text)["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("query", [*alerts(ALERTS).values(), *queries(DASHBOARD)])
def test_a_query_asks_for_what_there_is(query: str) -> None:
    assert problems(query) == []


@pytest.mark.parametrize("query", alerts(ALERTS).values(), ids=alerts(ALERTS))
def test_the_first_event_that_an_alert_asks_for_is_an_increase(query: str) -> None:
    for selector in selectors(promql_parser.parse(query)):
        metric = OURS[selector.name]
        if metric.kind != Kind.COUNTER:
            continue
        started = list(metric.series_at_zero({"model": ["a"], "group": ["a"], "loop": ["sweeper"]}))
        assert started, metric.name
        for matcher in selector.matchers.matchers:
            assert set(matcher.value.split("|")) <= {tags[matcher.name] for tags in started}, metric.name


@pytest.mark.parametrize(
    ("metric", "started"), [(SUBMISSIONS, {"a"}), (REQUESTS, {"a"}), (PREDICTIONS, {"a"}), (ATTEMPTS, {"a", "a-fast"})]
)
def test_a_counter_of_requests_starts_for_models_and_one_of_attempts_for_editor_groups(
    metric: Metric, started: set[str]
) -> None:
    values = {"model": ["a"], "group": ["a", "a-fast"]}
    assert {tags["model"] for tags in metric.series_at_zero(values)} == started


def test_prometheus_takes_the_rules() -> None:
    said = promtool("check", "rules", "--lint-fatal", MONITORING / "alerts.yaml")
    assert f"{len(alerts(ALERTS))} rules found" in said


def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    path = Path(__file__).parent / "alerts.test.yaml"
    assert "SUCCESS" in promtool("test", "rules", path)
    quiet, away, loud, *_ = yaml.safe_load(path.read_text())["tests"]
    firing = [sample["labels"] for sample in loud["promql_expr_test"][0]["exp_samples"]]
    fired = set(re.findall(r'alertname="(\w+)"', str([away["promql_expr_test"], firing])))
    assert {case["alertname"] for case in quiet["alert_rule_test"]} == alerts(ALERTS).keys()
    assert fired == alerts(ALERTS).keys()


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {selector.name for query in queries(DASHBOARD) for selector in selectors(promql_parser.parse(plain(query)))}
    assert {metric.name for metric in METRICS} == {OURS[name].name for name in shown - RAYS}


def plain(query: str) -> str:
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    return query


def test_every_metric_and_every_alert_is_explained() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    assert [name for name in alerts(ALERTS) if f"`{name}`" not in page] == []
    assert [metric.name for metric in METRICS if f"`{metric.name}`" not in page] == []
    named = set(re.findall(r"\b(?:ray_)?edits_\w+", page))
    assert named <= {metric.name for metric in METRICS} | OURS.keys()


def test_the_monitor_finds_the_metrics_of_every_pod_of_rays() -> None:
    monitor = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text())["spec"]
    [port] = [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]]
    for overlay in OVERLAYS:
        cluster = only(build(overlay), "RayService")["spec"]["rayClusterConfig"]
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            labels, [container] = group["template"]["metadata"]["labels"], group["template"]["spec"]["containers"]
            assert monitor["selector"]["matchLabels"].items() <= labels.items()
            assert port in [each["name"] for each in container["ports"]]


def merged(first: Any, second: Any) -> Any:
    """As `docker compose --file A --file B` does it, for what these files have."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first | {key: merged(first[key], value) if key in first else value for key, value in second.items()}
    return [*first, *second] if isinstance(first, list) else second


def test_the_compose_file_fits_the_one_it_adds_to() -> None:
    added = yaml.safe_load((MONITORING / "compose.yaml").read_text())
    assert compose_problems(merged(yaml.safe_load(COMPOSE), added)) == []


def log_problems(text: str) -> list[str]:
    """Whose lines a serve config leaves in another form than JSON, or without the name of their logger."""
    config, lines = yaml.safe_load(text), {"encoding": "JSON", "additional_log_standard_attrs": ["name"]}
    named = {d["name"]: d for app in config["applications"] for d in app.get("deployments", [])}
    # The code has a logging_config of its own for the ingress, which wins over the config's.
    parts = {"all": config.get("logging_config", {}), "Ingress": named.get("Ingress", {}).get("logging_config", {})}
    return [part for part, logging in parts.items() if not lines.items() <= logging.items()]


@pytest.mark.parametrize("place", [place for place in SHIPPED if place.startswith("cluster/")])
def test_what_is_deployed_logs_json(place: str) -> None:
    assert log_problems(shipped(place)) == []
