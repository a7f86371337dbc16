"""The manifests as `kubectl apply -k` sends them, and where the tools for checking them come from."""

import copy
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.programs import missing

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "cluster/kuberay"
OVERLAYS = sorted(path.parent for path in KUBERAY.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent for path in KUBERAY.glob("components/*/kustomization.yaml"))

Manifest = dict[str, Any]


@cache
def build(overlay: Path) -> list[Manifest]:
    """All manifests of an overlay, by `kubectl kustomize`."""
    if not _has_kustomize():
        missing("kubectl 1.26 or newer is not installed (Debian 13: kubernetes-client)")
    built = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


@cache
def build_with(overlay: Path, component: Path) -> list[Manifest]:
    """All manifests of an overlay with a component, as a kustomization of somebody else would name both."""
    with tempfile.TemporaryDirectory() as folder:
        # Kustomize takes no absolute paths.
        named = {"resources": [os.path.relpath(overlay, folder)], "components": [os.path.relpath(component, folder)]}
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(named))
        return build(Path(folder))


@cache
def _has_kustomize() -> bool:
    if shutil.which("kubectl") is None:
        return False
    command = ["kubectl", "version", "--client", "--output=json"]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # Older ones do not say a version; theirs is kustomize 2, which knows no `patches`.
    return "kustomizeVersion" in said


def promtool(*arguments: str | Path) -> str:
    """The output of a promtool command. Fails with it if the command fails."""
    if shutil.which("promtool") is None:
        missing("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """A copy of the manifest of this kind."""
    [found] = [manifest for manifest in manifests if manifest["kind"] == kind]
    return copy.deepcopy(found)


def all_of(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def containers(value: Any) -> Iterator[Manifest]:
    """All containers at any depth, those of custom resources too."""
    for inner in _values(value, {"containers", "initContainers"}):
        yield from inner


def pod_templates(value: Any) -> Iterator[Manifest]:
    """All pod templates at any depth."""
    return _values(value, {"template"})


def _values(value: Any, keys: set[str]) -> Iterator[Any]:
    """What stands under any of these keys, at any depth; nothing is looked for in what was found."""
    if isinstance(value, list):
        for inner in value:
            yield from _values(inner, keys)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in keys:
                yield inner
            else:
                yield from _values(inner, keys)
