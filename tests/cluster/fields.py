"""Fields of manifests that nobody knows: by Kubernetes' schemas, KubeRay's, and those of other projects' kinds."""

from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.cluster import rayservice
from tests.cluster.manifests import ROOT, Manifest, pod_templates

KUBERNETES = kubernetes_validate.latest_version()
# The kinds of Gateway API and of the External Secrets Operator that our manifests use.
OTHERS: dict[str, Any] = yaml.safe_load((ROOT / "tests/cluster/other_kinds.schema.yaml").read_text())


def problems(manifests: list[Manifest]) -> list[str]:
    """One line per unknown or wrong field."""
    return [problem for manifest in manifests for problem in _manifest_problems(manifest)]


def _manifest_problems(manifest: Manifest) -> list[str]:
    kind = manifest["kind"]
    if kind == "RayService":
        pods = [{"apiVersion": "v1", "kind": "Pod"} | template for template in pod_templates(manifest)]
        return [*rayservice.field_problems(manifest), *(problem for pod in pods for problem in _kubernetes(pod))]
    if kind not in OTHERS["properties"]:
        return _kubernetes(manifest)
    errors = jsonschema.Draft202012Validator(OTHERS).iter_errors({kind: manifest})
    return [f"{kind}: {error.json_path}: {error.message}" for error in errors]


def _kubernetes(manifest: Manifest) -> list[str]:
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{manifest['kind']}: {error}"]
    return []
