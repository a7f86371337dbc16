"""Builds the overlays of cluster/kuberay as `kubectl kustomize` does, as far as they need it; else it refuses.

Understood are resources, images, merge patches of custom resources (in which lists are replaced as a whole) and
JSON patches. A key or an operation beyond that is an Unsupported, so that what is checked is what is deployed.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
HEAD = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}


class Unsupported(Exception):
    """The overlay needs more of kustomize than is written here."""


def build(folder: Path) -> list[Manifest]:
    """All manifests of an overlay. Raises Unsupported; FileNotFoundError for a resource that is not there."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if {key: kustomization.pop(key, None) for key in HEAD} != HEAD:
        raise Unsupported(f"{folder}: not a Kustomization")
    if unknown := kustomization.keys() - {"resources", "images", "patches"}:
        raise Unsupported(f"{folder}: {sorted(unknown)}")
    manifests: list[Manifest] = []
    for name in kustomization["resources"]:
        path = folder / name
        manifests += build(path) if path.is_dir() else [m for m in yaml.safe_load_all(path.read_text()) if m]
    # Anchors make one object of several: a patch to one of them must not reach the others.
    manifests = [_separate(manifest) for manifest in manifests]
    for patch in kustomization.get("patches", []):
        _patch(manifests, patch, folder)
    for image in kustomization.get("images", []):
        _name_image(manifests, image)
    return manifests


def _separate(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _separate(inner) for key, inner in value.items()}
    return [_separate(inner) for inner in value] if isinstance(value, list) else value


def _patch(manifests: list[Manifest], entry: Manifest, folder: Path) -> None:
    if unknown := entry.keys() - {"patch", "path", "target"}:
        raise Unsupported(f"{folder}: patches: {sorted(unknown)}")
    patch = yaml.safe_load(entry["patch"] if "patch" in entry else (folder / entry["path"]).read_text())
    operations = isinstance(patch, list)
    wanted = entry["target"] if operations else {"kind": patch["kind"], "name": patch["metadata"]["name"]}
    found = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (wanted["kind"], wanted["name"])]
    if len(found) != 1:
        raise Unsupported(f"{folder}: a patch for {wanted} finds {len(found)} manifests")
    if operations:
        for operation in patch:
            _operate(found[0], operation)
    elif "." in found[0]["apiVersion"].split("/")[0]:
        _merge(found[0], patch)
    else:
        raise Unsupported(f"{folder}: merging lists of Kubernetes' own kind {wanted['kind']}")


def _merge(target: Manifest, patch: Manifest) -> None:
    for key, value in patch.items():
        if key.startswith("$"):
            raise Unsupported(f"the directive {key}")
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _operate(manifest: Manifest, operation: Manifest) -> None:
    """One operation of a JSON patch. Raises KeyError, IndexError or ValueError where the path leads nowhere."""
    parent, key = _find(manifest, operation["path"])
    match operation["op"]:
        case "test":
            if parent[key] != operation["value"]:
                raise ValueError(f"{operation['path']} is {parent[key]!r}, not {operation['value']!r}")
        case "replace":
            parent[key]
            parent[key] = operation["value"]
        case "copy":
            source, at = _find(manifest, operation["from"])
            _add(parent, key, copy.deepcopy(source[at]))
        case other:
            raise Unsupported(f"the operation {other}")


def _add(parent: Any, key: Any, value: Any) -> None:
    if not isinstance(parent, list):
        parent[key] = value
    elif key <= len(parent):
        parent.insert(key, value)
    else:
        raise IndexError(key)


def _find(manifest: Manifest, pointer: str) -> tuple[Any, Any]:
    """The container of what a JSON pointer names, and the key in it."""
    keys = [part.replace("~1", "/").replace("~0", "~") for part in pointer.removeprefix("/").split("/")]
    parent: Any = manifest
    for key in keys[:-1]:
        parent = parent[int(key) if isinstance(parent, list) else key]
    return parent, int(keys[-1]) if isinstance(parent, list) else keys[-1]


def _name_image(manifests: list[Manifest], image: Manifest) -> None:
    if unknown := image.keys() - {"name", "newName", "newTag"}:
        raise Unsupported(f"images: {sorted(unknown)}")
    for container in containers(manifests):
        name, _, tag = container["image"].partition(":")
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def containers(value: Any) -> Iterator[Manifest]:
    """All containers at any depth, those of custom resources too."""
    if isinstance(value, list):
        for inner in value:
            yield from containers(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in {"containers", "initContainers"}:
                yield from inner
            else:
                yield from containers(inner)
