"""Prometheus, which scrapes a drill's service with the shipped rules, a sixtieth as patient."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
MIN_WINDOW_S = 15
START_S = 30.0


def shortened(text: str) -> str:
    """Rules in which every duration is a sixtieth: minutes are seconds, and hours are minutes.

    But no window of `increase` or `rate` is shorter than MIN_WINDOW_S: Ray reports counters every 5 s.
    """
    text = re.sub(r"\[(\d+)m\]", lambda found: f"[{max(int(found[1]), MIN_WINDOW_S)}s]", text)
    text = re.sub(r"\[(\d+)h\]", r"[\1m]", text)
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
    """When an alert was first seen at all, pending or firing, and first seen firing (s, monotonic)."""

    pending: float
    firing: float | None = None


class Prometheus:
    """`with Prometheus(folder) as prometheus`; call `look` regularly, and read `seen`, which may be cleared."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the drill's, below which Ray's own session lies."""
        self._folder = folder / "prometheus"
        self._session = folder / "ray/session_latest"
        self.seen: dict[str, Seen] = {}

    def __enter__(self) -> Self:
        self._folder.mkdir()
        for name in RULES:
            (self._folder / name).write_text(shortened((MONITORING / name).read_text()))
        # Ray's dashboard, which a drill does not start, would list the nodes' ports in one file.
        ports = [int(file.read_text()) for file in self._session.glob("metrics_export_port_*")]
        targets = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
        config = {
            # A scrape may take as long as the interval: on a busy machine, Ray's agent needs more than a second.
            "global": {"scrape_interval": "3s", "scrape_timeout": "3s", "evaluation_interval": "1s"},
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
            name = alert["labels"]["alertname"]
            seen = self.seen.setdefault(name, Seen(now))
            if alert["state"] == "firing":
                firing.add(name)
                seen.firing = seen.firing or now
        return firing

    def has_fired(self, alert: str) -> bool:
        """Whether it has been seen firing since `seen` was cleared."""
        return alert in self.seen and self.seen[alert].firing is not None

    def value_of(self, query: str) -> list[dict[str, Any]]:
        """The series of a query's answer, with Grafana's variables replaced."""
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)
        return self._get("/api/v1/query", query=query)["result"]

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        answer = self._http.get(path, params=parameters)
        return answer.raise_for_status().json()["data"]
