"""The overlays of cluster/kuberay, as kubectl builds them: fields, and parts that must say the same."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.cluster import rayservice
from tests.cluster.manifests import OVERLAYS, Manifest, build, containers, only, pod_templates

KUBERNETES = kubernetes_validate.latest_version()


@pytest.fixture(params=OVERLAYS, ids=lambda overlay: overlay.name)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return build(request.param)


def test_kubernetes_knows_every_field(manifests: list[Manifest]) -> None:
    """Kubernetes' own kinds, and the pods that a RayService holds."""
    pods = [_pod(template) for template in pod_templates(only(manifests, "RayService"))]
    assert len(pods) >= 3
    for manifest in [*(m for m in manifests if m["kind"] != "RayService"), *pods]:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def _pod(template: Manifest) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod"} | template


def test_kuberay_knows_every_field(manifests: list[Manifest]) -> None:
    assert rayservice.field_problems(only(manifests, "RayService")) == []


def test_parts_fit_each_other(manifests: list[Manifest]) -> None:
    assert rayservice.problems(only(manifests, "RayService"), manifests) == []


def test_secrets_are_referred_to_and_stand_in_no_manifest(manifests: list[Manifest]) -> None:
    assert list(rayservice.secret_problems(manifests)) == []


def test_disruption_budgets_protect_pods(manifests: list[Manifest]) -> None:
    assert list(rayservice.disruption_problems(manifests)) == []


def test_every_image_of_ours_has_a_registry_and_a_tag(manifests: list[Manifest]) -> None:
    assert {c["image"] for c in containers(manifests)} == {"registry.example.com/edits:0.1.0", "redis:7.4"}


def test_two_models_have_a_group_and_a_budget_each() -> None:
    [overlay] = [path for path in OVERLAYS if path.name == "two-models"]
    cluster = only(build(overlay), "RayService")["spec"]["rayClusterConfig"]
    labels = [group["labels"] for group in cluster["workerGroupSpecs"]]
    assert labels == [{"role": "ingress"}, {"model": "qwen_image_edit"}, {"model": "qwen_image_edit_plus"}]
    assert sum(manifest["kind"] == "PodDisruptionBudget" for manifest in build(overlay)) == 3


def test_overlays_are_there() -> None:
    assert [Path(overlay).name for overlay in OVERLAYS] == ["many-gpus", "one-gpu", "two-models"]
