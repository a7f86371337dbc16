"""Prometheus, which scrapes a drill's service with the shipped rules, a sixtieth as patient."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from benchmarks.drill.service import ROOT
from serve_app.commands.ports import free_port

MONITORING = ROOT / "cluster/monitoring"
RULES = ("alerts.yaml", "slos.yaml")
# What Grafana puts into the dashboard's queries.
VARIABLES = {"$__rate_interval": "30s", "$model": ".*"}
SHORTER = {"m": "s", "h": "m"}
START_S = 30.0


def shortened(text: str) -> str:
    """Rules in which every duration is a sixtieth: minutes are seconds, and hours are minutes."""
    text = re.sub(r"\[(\d+)([mh])\]", lambda found: f"[{found[1]}{SHORTER[found[2]]}]", text)
    return re.sub(r"\bfor: (\d+)([mh])\b", lambda found: f"for: {found[1]}{SHORTER[found[2]]}", text)


def names_of_alerts() -> list[str]:
    """The names of all shipped alerts."""
    files = [yaml.safe_load((MONITORING / name).read_text()) for name in RULES]
    return [rule["alert"] for file in files for group in file["groups"] for rule in group["rules"] if "alert" in rule]


def queries() -> Iterator[tuple[str, str]]:
    """Where each query of the dashboard and each recording rule stands, and the query."""
    for panel in json.loads((MONITORING / "grafana/edits.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    for group in yaml.safe_load((MONITORING / "slos.yaml").read_text())["groups"]:
        yield from ((f"rule {rule['record']}", rule["record"]) for rule in group["rules"] if "record" in rule)


@dataclass
class Seen:
    """When an alert was first seen pending and firing, and last seen firing (s, monotonic)."""

    pending: float | None = None
    firing: list[tuple[float, float]] = field(default_factory=list)


class Prometheus:
    """`with Prometheus(folder) as prometheus`; call `look` regularly, and read `seen`."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the drill's, below which Ray's own session lies."""
        self._folder = folder / "prometheus"
        self._session = folder / "ray/session_latest"
        self.seen: dict[str, Seen] = {}
        self._firing: set[str] = set()

    def __enter__(self) -> Self:
        self._folder.mkdir()
        for name in RULES:
            (self._folder / name).write_text(shortened((MONITORING / name).read_text()))
        # Ray's dashboard, which a drill does not start, would list the nodes' ports in one file.
        ports = [int(file.read_text()) for file in self._session.glob("metrics_export_port_*")]
        targets = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": list(RULES),
            "scrape_configs": [{"job_name": "ray", "static_configs": targets}],
        }
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)
        command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=self._folder, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._http.close()

    def until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                if self._http.get("/-/ready").is_success:
                    return
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def look(self) -> set[str]:
        """Note the states of all alerts. Returns the names of those that fire."""
        now, firing = time.monotonic(), set()
        for alert in self._get("/api/v1/alerts")["alerts"]:
            seen = self.seen.setdefault(alert["labels"]["alertname"], Seen())
            if seen.pending is None:
                seen.pending = now
            if alert["state"] == "firing":
                firing.add(alert["labels"]["alertname"])
        for name in firing:
            spans = self.seen[name].firing
            if name in self._firing:
                spans[-1] = (spans[-1][0], now)
            else:
                spans.append((now, now))
        self._firing = firing
        return firing

    def value_of(self, query: str) -> list[dict[str, Any]]:
        """The series of a query's answer, with Grafana's variables replaced."""
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)
        return self._get("/api/v1/query", query=query)["result"]

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        answer = self._http.get(path, params=parameters)
        return answer.raise_for_status().json()["data"]
