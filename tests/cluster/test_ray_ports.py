"""Whoever reaches Ray's dashboard, its job API or its other ports runs code: everywhere they need a token, or listen on
loopback. tests/commands/test_run.py shows the same for a service that `edits-server run` started."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.manifests import OVERLAYS, ROOT, all_of, build, only

# Ray's own: GCS, the dashboard with the job API, the client server, and the agent on each node.
RAYS_PORTS = {6379, 8265, 10001, 52365}
COMPOSE_FILES = [ROOT / "cluster/compose.yaml", ROOT / "cluster/monitoring/compose.yaml"]


def texts() -> dict[str, str]:
    """Everything that an operator may run or apply."""
    places = ["cluster/**/*", "docs/**/*.md", "samples/*.md", "*.md", "*.yaml", "Makefile"]
    files = [path for place in places for path in ROOT.glob(place) if path.is_file()]
    return {str(path.relative_to(ROOT)): path.read_text() for path in files if path.suffix in TEXTS}


TEXTS = {".md", ".yaml", ".yml", ".cfg", ".sh", ""}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_the_operator_makes_a_token_and_publishes_no_port_of_ray(overlay: Path) -> None:
    cluster = only(build(overlay), "RayService")["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"
    services = all_of(build(overlay), "Service")
    assert [service for service in services if service["spec"].get("type", "ClusterIP") != "ClusterIP"] == []
    backends = re.findall(
        r"'port': (?:\{'number': )?(\d+)", str([*all_of(build(overlay), "Ingress"), *routes(overlay)])
    )
    assert {int(port) for port in backends} & RAYS_PORTS == set()


def routes(overlay: Path) -> list[Any]:
    return all_of(build(overlay), "HTTPRoute")


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda path: path.parent.name)
def test_compose_publishes_ports_on_loopback_and_none_of_rays(file: Path) -> None:
    for name, service in yaml.safe_load(file.read_text())["services"].items():
        for published in service.get("ports", []):
            address, _, port = published.rpartition(":")[0].partition(":")
            assert address == "127.0.0.1", (name, published)
            assert int(port) not in RAYS_PORTS


def test_compose_starts_ray_by_edits_server() -> None:
    """It starts Ray on loopback, with a token."""
    command = yaml.safe_load(COMPOSE_FILES[0].read_text())["services"]["edits"]["command"][-1]
    assert "exec edits-server run" in command
    assert "--address" not in command


def open_starts(text: str) -> list[str]:
    """The commands that start Ray without a token, or open its dashboard."""
    lines = re.sub(r">-\s*\n\s*|\\\n\s*|\n\s+(?=~/|--)", " ", text).splitlines()
    starts = [line for line in lines if re.search(r"\bray start\b", line)]
    return [line for line in starts if "RAY_AUTH_MODE=token" not in line or "dashboard-host" in line]


def test_every_command_that_starts_ray_asks_for_a_token() -> None:
    found = {place: open_starts(text) for place, text in texts().items()}
    assert {place: lines for place, lines in found.items() if lines} == {}
    assert "ray start --head" in texts()["cluster/ray-up.yaml"]
    assert open_starts("  ray start --head --port=6379\n") != []
    assert open_starts("RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0") != []


def test_a_dashboard_on_every_interface_needs_a_token() -> None:
    """KubeRay's operator needs the dashboard at the pod's address."""
    wide = [place for place, text in texts().items() if re.search(r"dashboard[-_]host\W+(0\.0\.0\.0|::)", text)]
    assert wide == ["cluster/kuberay/base/rayservice.yaml"]
    assert "authOptions: {mode: token}" in texts()[wide[0]]
    # Nothing turns the token off again.
    off = [place for place, text in texts().items() if re.search(r"RAY_AUTH_MODE\W+disabled|mode: disabled", text)]
    assert off == []
