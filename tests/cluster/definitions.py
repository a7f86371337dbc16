"""Checks what is applied against KubeRay's own resource definitions: `python -m tests.cluster.definitions FOLDER`.

FOLDER holds the operator's `ray.io_rayservices.yaml`. Done by hand, for the file is a megabyte of another project.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.cluster.manifests import COMPONENTS, KUBERAY, OVERLAYS, build, build_with, only


def schema(definition: Path) -> dict[str, Any]:
    """The definition's schema of version v1, refusing fields that it does not name, as `kubectl apply` does."""
    versions = yaml.load(definition.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    version = next(version for version in versions if version["name"] == "v1")
    return _close(version["schema"]["openAPIV3Schema"])


def _close(node: dict[str, Any]) -> dict[str, Any]:
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: value for key, value in node.items() if key not in {"format", "description"}}
    if "properties" in node:
        closed["properties"] = {name: _close(inner) for name, inner in node["properties"].items()}
        closed["additionalProperties"] = bool(node.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(node.get("additionalProperties"), dict):
        closed["additionalProperties"] = _close(node["additionalProperties"])
    if "items" in node:
        closed["items"] = _close(node["items"])
    return closed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    validator = jsonschema.Draft202012Validator(schema(parser.parse_args().folder / "ray.io_rayservices.yaml"))
    wrong = 0
    built = {overlay.name: build(overlay) for overlay in OVERLAYS}
    built |= {component.name: build_with(KUBERAY / "overlays/two-models", component) for component in COMPONENTS}
    for name, manifests in built.items():
        errors = list(validator.iter_errors(only(manifests, "RayService")))
        wrong += len(errors)
        for error in errors:
            sys.stdout.write(f"{name}: {error.json_path}: {error.message}\n")
        sys.stdout.write(f"{name}: {len(errors)} problems\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
