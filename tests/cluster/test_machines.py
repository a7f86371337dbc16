"""What deploys without Kubernetes: the image, the compose file, and the file of Ray's cluster launcher."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import ray.autoscaler
import yaml
from ray.autoscaler._private.local.config import prepare_local

from tests.cluster.manifests import ROOT
from tests.cluster.serve_configs import variables

CLUSTER = ROOT / "cluster"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
COMPOSE = (CLUSTER / "compose.yaml").read_text()
LAUNCHER = (CLUSTER / "ray-up.yaml").read_text()
# Which come from an account's own machine, and which `ray up` is told by whoever runs it.
NOT_SHIPPED = ("~/.ray/auth_token", "cluster/secrets/")


def dockerfile_problems(text: str) -> list[str]:
    lines = re.sub(r"\\\n", " ", text).splitlines()
    stages = re.findall(r"^FROM .* AS (\w+)$", text, re.MULTILINE)
    found = []
    for line in (line for line in lines if line and not line.startswith("#")):
        word, _, rest = line.partition(" ")
        if word == "FROM" and rest.split()[0] not in stages and not re.search(r":[\w.-]+\d[\w.-]* AS", rest):
            found.append(f"{rest} is not pinned to a version")
        if "pip install" in rest and "--require-hashes" not in rest:
            found.append(f"not pinned by hashes: {rest}")
        sources = re.findall(r"source=([^,\s]+)", rest) + (rest.split()[:-1] if word == "COPY" else [])
        found += [f"there is no {source}" for source in sources if not (ROOT / source).exists()]
        ignored = {f"!{source}" for source in sources} - set((CLUSTER / "Dockerfile.dockerignore").read_text().split())
        found += [f"{source} is not sent to the builder" for source in ignored]
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        if f"FROM {stage.splitlines()[0].split()[-1]} " in text:
            continue
        if re.findall(r"^USER (\S+)", stage, re.MULTILINE)[-1:] != ["1000:1000"]:
            found.append(f"{stage.splitlines()[0]} runs as root, or not as the manifests' user")
    return found


def compose_problems(compose: Any) -> list[str]:
    found = []
    for name, service in compose["services"].items():
        found += [f"{name}: no {key}" for key in ("healthcheck", "restart") if key not in service]
        found += [f"{name}: no secret {s}" for s in service.get("secrets", []) if s not in compose["secrets"]]
        for volume in (volume.split(":")[0] for volume in service["volumes"]):
            if volume not in compose["volumes"] and not volume.startswith("$") and not (CLUSTER / volume).exists():
                found.append(f"{name}: no volume {volume}")
        found += [
            f"{name}: waits for no {other}"
            for other in service.get("depends_on", {})
            if other not in compose["services"]
        ]
    edits = compose["services"]["edits"]
    set_here = edits["environment"].keys() | set(re.findall(r"\b([A-Z_]+)=", edits["command"][-1]))
    configs = sorted(CLUSTER.glob("serve_config.compose*.yaml"))
    wanted = set[str]().union(*(variables(config.read_text()) for config in configs))
    found += [f"edits: nothing sets {name}" for name in sorted(wanted - set_here)]
    named = re.findall(r"serve_config\.compose[\w-]*\.yaml", COMPOSE)
    return found + [f"there is no {name}" for name in named if not (CLUSTER / name).exists()]


def launcher_problems(text: str) -> list[str]:
    """By Ray's own schema, before and after `ray up` fills in what the provider `local` needs."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    if errors := list(validator.iter_errors(yaml.safe_load(text))):
        return [f"{error.json_path}: {error.message}" for error in errors]
    config, _ = prepare_local(yaml.safe_load(text))
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(config)]
    known = schema["properties"]["provider"]["properties"]
    found += [f"provider: {key} is unknown" for key in config["provider"] if key not in known]
    if config["max_workers"] != len(config["provider"]["worker_ips"]):
        found.append("max_workers leaves machines out")
    for source in config.get("file_mounts", {}).values():
        if not source.startswith(NOT_SHIPPED) and not (ROOT / source).exists():
            found.append(f"there is no {source}")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        if "RAY_AUTH_MODE=token" not in config[key][-1]:
            found.append(f"{key}: Ray's ports are open to anybody")
    return found


def test_the_dockerfile_is_right() -> None:
    assert dockerfile_problems(DOCKERFILE) == []


def test_compose_knows_every_field() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    files = [CLUSTER / "compose.yaml", CLUSTER / "monitoring/compose.yaml"]
    checked = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_compose_file_is_right() -> None:
    assert compose_problems(yaml.safe_load(COMPOSE)) == []


def test_the_launchers_file_is_right() -> None:
    assert launcher_problems(LAUNCHER) == []
