"""What deploys without Kubernetes: the image, the compose file, and the file of Ray's cluster launcher."""

import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.local.config import prepare_local

from tests.cluster.serve_configs import ROOT, variables

CLUSTER = ROOT / "cluster"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
COMPOSE = (CLUSTER / "compose.yaml").read_text()
LAUNCHER = (CLUSTER / "ray-up.yaml").read_text()
# Which come from an account's own machine, and which `ray up` is told by whoever runs it.
NOT_SHIPPED = ("~/.ray/auth_token", "cluster/secrets/")


def dockerfile_problems(text: str) -> list[str]:
    lines = re.sub(r"\\\n", " ", text).splitlines()
    found = []
    for line in (line for line in lines if line and not line.startswith("#")):
        word, _, rest = line.partition(" ")
        if word == "FROM" and not re.search(r":[\w.-]+\d[\w.-]*$", rest):
            found.append(f"{rest} is not pinned to a version")
        if "pip install" in rest and "--constraint" not in rest:
            found.append(f"not pinned: {rest}")
        sources = re.findall(r"source=([^,\s]+)", rest) + (rest.split()[:-1] if word == "COPY" else [])
        found += [f"there is no {source}" for source in sources if not (ROOT / source).exists()]
        ignored = {f"!{source}" for source in sources} - set((CLUSTER / "Dockerfile.dockerignore").read_text().split())
        found += [f"{source} is not sent to the builder" for source in ignored]
        extras = re.findall(r"\['optional-dependencies'\]\['(\w+)'\]", rest)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        found += [f"there is no extra {extra}" for extra in extras if extra not in project["optional-dependencies"]]
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    return found if users[-1:] == ["1000:1000"] else [*found, "it runs as root, or not as the manifests' user"]


def compose_problems(text: str) -> list[str]:
    compose = yaml.safe_load(text)
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    if errors := list(jsonschema.Draft202012Validator(schema).iter_errors(compose)):
        return [f"{error.json_path}: {error.message}" for error in errors]
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
    config = (CLUSTER / "serve_config.compose.yaml").read_text()
    return found + [f"edits: nothing sets {name}" for name in sorted(variables(config) - set_here)]


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


def test_the_files_are_right() -> None:
    assert dockerfile_problems(DOCKERFILE) == []
    assert compose_problems(COMPOSE) == []
    assert launcher_problems(LAUNCHER) == []


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("python:3.11-slim-bookworm", "python", "python is not pinned to a version"),
        ("python:3.11-slim-bookworm", "python:latest", "python:latest is not pinned"),
        ("source=constraints.txt", "source=requirements.txt", "there is no requirements.txt"),
        ("COPY serve_app ", "COPY app ", "there is no app"),
        ("COPY serve_app ", "COPY README.md ", "README.md is not sent to the builder"),
        ("--constraint /tmp/constraints.txt torch", "torch", "not pinned: "),
        ("['optional-dependencies']['s3']", "['optional-dependencies']['minio']", "there is no extra minio"),
        ("USER 1000:1000", "USER root", "it runs as root"),
    ],
)
def test_a_wrong_line_of_the_dockerfile_is_found(right: str, wrong: str, complaint: str) -> None:
    assert any(complaint in found for found in dockerfile_problems(planted(DOCKERFILE, right, wrong)))


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("stop_grace_period:", "stop_period:", "'stop_period' was unexpected"),
        ("depends_on:", "depend_on:", "'depend_on' was unexpected"),
        ("condition: service_healthy", "condition: healthy", "'healthy'"),
        ("reservations:", "reservation:", "'reservation' does not match"),
        ("healthcheck:\n      test: [CMD, pg", "x-check:\n      test: [CMD, pg", "postgres: no healthcheck"),
        ("secrets: [database_password, keys", "secrets: [password, keys", "edits: no secret password"),
        ("weights:/weights", "weight:/weights", "edits: no volume weight"),
        ("./serve_config.compose.yaml", "./serve_config.yaml", "edits: no volume ./serve_config.yaml"),
        ("postgres: {condition", "database: {condition", "edits: waits for no database"),
        ("LORA_ROOT:", "LORAS_ROOT:", "edits: nothing sets LORA_ROOT"),
        ("WEBHOOK_SECRET=", "SECRET=", "edits: nothing sets WEBHOOK_SECRET"),
    ],
)
def test_a_wrong_field_of_the_compose_file_is_found(right: str, wrong: str, complaint: str) -> None:
    assert any(complaint in found for found in compose_problems(planted(COMPOSE, right, wrong)))


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("setup_commands:", "setup_command:", "'setup_command' was unexpected"),
        ("ssh_user:", "user:", "'user' was unexpected"),
        ("cluster_name:", "name:", "'cluster_name' is a required property"),
        ("max_workers: 2", "max_workers: two", "'two' is not of type 'integer'"),
        ("max_workers: 2", "max_workers: 1", "max_workers leaves machines out"),
        ("  head_ip: 192.0.2.10", "  head_ip: 192.0.2.10\n  port: 22", "provider: port is unknown"),
        ("~/edits: .", "~/edits: ./edits", "there is no ./edits"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "Ray's ports are open"),
    ],
)
def test_a_wrong_field_of_the_launchers_file_is_found(right: str, wrong: str, complaint: str) -> None:
    assert any(complaint in found for found in launcher_problems(planted(LAUNCHER, right, wrong)))


def planted(text: str, right: str, wrong: str) -> str:
    assert right in text
    return text.replace(right, wrong, 1)
