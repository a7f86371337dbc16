import copy
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import pods, rayservice
from tests.cluster.kustomize import Manifest, Unsupported, build, containers
from tests.cluster.serve_configs import OVERLAYS

BUILT = {overlay.name: build(overlay) for overlay in OVERLAYS}
HEAD = "spec.rayClusterConfig.headGroupSpec"
PATCH = "resources: [service.yaml]\npatches:\n- target: {{kind: Service, name: a}}\n  patch: '[{}]'"
GPU = "spec.rayClusterConfig.workerGroupSpecs.1"


@pytest.fixture(params=BUILT)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return copy.deepcopy(BUILT[request.param])


@pytest.fixture
def many() -> list[Manifest]:
    return copy.deepcopy(BUILT["many-gpus"])


def problems(manifests: list[Manifest]) -> list[str]:
    service = only(manifests, "RayService")
    found = rayservice.field_problems(service) + [p for manifest in manifests for p in pods.problems(manifest)]
    found += [*rayservice.secret_problems(manifests), *rayservice.disruption_problems(manifests)]
    # What the parts say to each other can be read only where the fields are as they should be.
    return found or rayservice.problems(service, manifests)


def test_every_overlay_is_right(manifests: list[Manifest]) -> None:
    assert problems(manifests) == []


def test_every_image_of_ours_has_a_registry_and_a_tag(manifests: list[Manifest]) -> None:
    assert {c["image"] for c in containers(manifests)} == {"registry.example.com/edits:0.1.0", "redis:7.4"}


def test_two_models_have_a_group_and_a_budget_each() -> None:
    service = only(BUILT["two-models"], "RayService")
    labels = [group["labels"] for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]]
    assert labels == [{"role": "ingress"}, {"model": "qwen_image_edit"}, {"model": "qwen_image_edit_plus"}]
    assert sum(manifest["kind"] == "PodDisruptionBudget" for manifest in BUILT["two-models"]) == 3


@pytest.mark.parametrize(
    ("kind", "path", "value", "complaint"),
    [
        ("RayService", "spec.serveConfig", "", "'serveConfig' was unexpected"),
        ("RayService", "spec.upgradeStrategy.type", "Rolling", "'Rolling' is not one of"),
        ("RayService", "spec.rayClusterConfig.autoscalerOptions.version", "v3", "'v3' is not one of"),
        ("RayService", "spec.rayClusterConfig.gcsFaultToleranceOptions.address", "x", "'address' was unexpected"),
        ("RayService", f"{HEAD}.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("RayService", f"{HEAD}.replicas", 2, "'replicas' was unexpected"),
        ("RayService", f"{GPU}.groupname", "x", "'groupname' was unexpected"),
        ("RayService", f"{GPU}.template.spec.nodeSelectors", {}, "nodeSelectors is no field of PodSpec"),
        ("RayService", f"{GPU}.template.spec.containers.0.readinessProbes", {}, "readinessProbes is no field"),
        ("RayService", f"{GPU}.template.spec.terminationGracePeriodSeconds", "150", "'150' is no int"),
        ("RayService", f"{GPU}.template.spec.containers.0.securityContext.runAsRoot", True, "runAsRoot is no field"),
        ("PodDisruptionBudget", "spec.minAvailableReplicas", 1, "minAvailableReplicas is no field"),
        ("StatefulSet", "spec.replica", 1, "replica is no field of StatefulSetSpec"),
        ("StatefulSet", "spec.template.spec.containers.0.ports.0.containerPort", "http", "'http' is no int"),
        ("Service", "spec.selectors", {}, "selectors is no field of ServiceSpec"),
        ("PersistentVolumeClaim", "spec.accessModes", "ReadWriteMany", "'ReadWriteMany' is no list"),
        ("ConfigMap", "data.PORT", 8000, "PORT has 8000"),
    ],
)
def test_a_wrong_field_is_found(many: list[Manifest], kind: str, path: str, value: Any, complaint: str) -> None:
    plant(only(many, kind), path, value)
    assert any(complaint in found for found in problems(many))


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("spec.rayClusterConfig.rayVersion", "2.59.0", "rayVersion is 2.59.0"),
        (f"{HEAD}.rayStartParams.num-cpus", "4", "head: it would get replicas"),
        (f"{GPU}.labels.model", "qwen_image", "0 groups have the labels"),
        (f"{GPU}.maxReplicas", 4, "on editor-qwen-image-edit of other bounds"),
        (f"{GPU}.rayStartParams.object-store-memory", "9000000000", "the object store does not fit"),
        (f"{GPU}.template.spec.containers.0.resources.limits", {"memory": "128Gi"}, "do not have its GPUs"),
        (f"{GPU}.template.spec.containers.0.env", [], "nothing sets DATABASE_URL"),
        (f"{GPU}.template.spec.containers.0.readinessProbe.httpGet.port", "http", "readinessProbe: no port http"),
        (f"{GPU}.template.spec.containers.0.volumeMounts.1.mountPath", "/cache", "on no volume with room"),
        (f"{GPU}.template.spec.containers.0.volumeMounts.2.name", "weight", "no volume weight"),
        (f"{GPU}.template.spec.volumes.0.emptyDir", {"sizeLimit": "8Gi"}, "/dev/shm is no memory"),
        (f"{GPU}.template.spec.volumes.1.emptyDir.sizeLimit", "100Gi", "on no volume with room"),
        (f"{GPU}.template.spec.terminationGracePeriodSeconds", 60, "killed before the 120 s"),
        (f"{GPU}.template.spec.securityContext", {}, "it may run as root"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_found(
    many: list[Manifest], path: str, value: Any, complaint: str
) -> None:
    plant(only(many, "RayService"), path, value)
    assert any(complaint in found for found in problems(many))


@pytest.mark.parametrize("key", ["startupProbe", "livenessProbe", "readinessProbe", "securityContext"])
def test_a_container_without_what_all_have_is_found(many: list[Manifest], key: str) -> None:
    group = only(many, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    del group["template"]["spec"]["containers"][0][key]
    assert f"editor-qwen-image-edit: no {key}" in problems(many)


def test_a_secret_that_stands_in_a_manifest_is_found(many: list[Manifest]) -> None:
    plant(only(many, "RayService"), f"{HEAD}.template.spec.containers.0.env.0", {"name": "WORD", "value": "x"})
    assert "ray-head: WORD refers to no secret" in problems(many)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("spec.minAvailable", "50%", "only a whole minAvailable works"),
        ("spec.maxUnavailable", 1, "only a whole minAvailable works"),
        ("spec.selector.matchLabels", {"app.kubernetes.io/component": "x"}, "no pod has these labels"),
    ],
)
def test_a_budget_that_protects_nothing_is_found(many: list[Manifest], path: str, value: Any, complaint: str) -> None:
    plant(only(many, "PodDisruptionBudget"), path, value)
    assert any(complaint in found for found in problems(many))


@pytest.mark.parametrize(
    ("kustomization", "error"),
    [
        ("namePrefix: x-\nresources: []", Unsupported),
        ("resources: [nowhere.yaml]", FileNotFoundError),
        ("resources: [service.yaml]\npatches: [{path: service.yaml, options: {}}]", Unsupported),
        ("resources: []\npatches: [{path: service.yaml}]", Unsupported),
        ("resources: [service.yaml]\npatches: [{path: service.yaml}]", Unsupported),
    ],
)
def test_an_overlay_beyond_what_is_understood_is_refused(tmp_path: Path, kustomization: str, error: Any) -> None:
    overlay(tmp_path, kustomization)
    with pytest.raises(error):
        build(tmp_path)


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ("{op: test, path: /kind, value: Pod}", ValueError),
        ("{op: replace, path: /spec/ports, value: []}", KeyError),
        ("{op: copy, from: /spec/ports/0, path: /spec/ports/1}", KeyError),
        ("{op: move, from: /kind, path: /spec/kind}", Unsupported),
    ],
)
def test_a_patch_that_leads_nowhere_is_refused(tmp_path: Path, operation: str, error: type[Exception]) -> None:
    overlay(tmp_path, PATCH.format(operation))
    with pytest.raises(error):
        build(tmp_path)


def overlay(folder: Path, kustomization: str) -> None:
    head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    (folder / "kustomization.yaml").write_text(head + kustomization)
    (folder / "service.yaml").write_text("{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {}}")


def only(manifests: list[Manifest], kind: str) -> Manifest:
    return next(manifest for manifest in manifests if manifest["kind"] == kind)


def plant(target: Any, path: str, value: Any) -> None:
    keys = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
