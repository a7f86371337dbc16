"""The overlays of cluster/kuberay, as kubectl builds them: fields, and parts that must say the same."""

import sys
import tomllib
from pathlib import Path

import pytest

from tests.cluster import fields, rayservice
from tests.cluster.manifests import KUBERAY, OVERLAYS, ROOT, Manifest, all_of, build, containers, only, pod_templates


@pytest.fixture(params=OVERLAYS, ids=lambda overlay: overlay.name)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return build(request.param)


def test_every_field_is_known(manifests: list[Manifest]) -> None:
    assert len(list(pod_templates(only(manifests, "RayService")))) >= 3
    assert fields.problems(manifests) == []


def test_parts_fit_each_other(manifests: list[Manifest]) -> None:
    assert rayservice.problems(only(manifests, "RayService"), manifests) == []


def test_secrets_are_referred_to_and_stand_in_no_manifest(manifests: list[Manifest]) -> None:
    assert list(rayservice.secret_problems(manifests)) == []


def test_disruption_budgets_protect_pods(manifests: list[Manifest]) -> None:
    assert list(rayservice.disruption_problems(manifests)) == []


def test_every_image_of_ours_has_a_registry_and_the_version(manifests: list[Manifest]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ours = {f"registry.example.com/{name}:{version}" for name in ("edits", "edits-ingress")}
    assert {c["image"] for c in containers(manifests)} == ours | {"redis:7.4"}


def test_only_editors_have_the_image_with_torch(manifests: list[Manifest]) -> None:
    for template in pod_templates(only(manifests, "RayService")):
        is_editor = template["metadata"]["labels"]["app.kubernetes.io/component"].startswith("editor-")
        [container] = template["spec"]["containers"]
        assert ("/edits:" in container["image"]) == is_editor


def confinement_problems(manifests: list[Manifest]) -> list[str]:
    """Where pods or their containers may do more than they need. The rules are checkov's CKV_K8S_6 and 14 to 40."""
    found = []
    # Ray's autoscaler, in the head's pod, creates and deletes pods.
    scaled = any(m["spec"]["rayClusterConfig"].get("enableInTreeAutoscaling") for m in all_of(manifests, "RayService"))
    with_token = {"head"} if scaled else set()
    for template in [template for template in pod_templates(manifests) if "containers" in template.get("spec", {})]:
        pod = template["spec"]
        name = template["metadata"]["labels"]["app.kubernetes.io/component"]
        context = pod["securityContext"]
        if not context.get("runAsNonRoot") or context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            found.append(f"{name}: it may run as root, or without seccomp")
        if pod.get("automountServiceAccountToken", True) and name not in with_token:
            found.append(f"{name}: it has a token for Kubernetes")
        if pod.keys() & {"hostNetwork", "hostPID", "hostIPC"} or any("hostPath" in v for v in pod.get("volumes", [])):
            found.append(f"{name}: it reaches its machine")
        for container in pod["containers"]:
            expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
            if container["securityContext"] != expected | {"capabilities": {"drop": ["ALL"]}}:
                found.append(f"{name}: {container['name']} is not confined")
            if not {"cpu", "memory"} <= container["resources"]["limits"].keys() & container["resources"]["requests"]:
                found.append(f"{name}: {container['name']} has no limits")
    return found


def test_pods_can_do_no_more_than_they_need(manifests: list[Manifest]) -> None:
    assert confinement_problems(manifests) == []
    assert confinement_problems(build(KUBERAY / "weights")) == []


# What processes of the service write, on a root file system that is read-only (docs/cluster.md).
WRITTEN = {"/tmp", "/home/edits", "/dev/shm"}


def test_rays_autoscaler_can_ask_kubernetes_for_pods(manifests: list[Manifest]) -> None:
    cluster = only(manifests, "RayService")["spec"]["rayClusterConfig"]
    pod = cluster["headGroupSpec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] == cluster.get("enableInTreeAutoscaling", False)


def test_what_is_written_lies_on_volumes(manifests: list[Manifest]) -> None:
    cluster = only(manifests, "RayService")["spec"]["rayClusterConfig"]
    for template in pod_templates(cluster):
        [container] = template["spec"]["containers"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= WRITTEN
    scaler = cluster.get("autoscalerOptions", {"volumeMounts": [{"mountPath": "/tmp"}]})
    assert "/tmp" in [mount["mountPath"] for mount in scaler["volumeMounts"]]


def test_the_job_downloads_weights_into_the_volume_of_the_editors(manifests: list[Manifest]) -> None:
    first = build(KUBERAY / "weights")
    assert fields.problems(first) == []
    assert all_of(first, "PersistentVolumeClaim")[0]["spec"] == all_of(manifests, "PersistentVolumeClaim")[0]["spec"]
    [container] = containers(first)
    settings = only(manifests, "ConfigMap")["data"]
    assert {"name": "HF_HOME", "value": settings["HF_HOME"]} in container["env"]
    assert settings["HF_HOME"] in [mount["mountPath"] for mount in container["volumeMounts"]]
    # Its command comes with the model hub's client.
    assert "hf download Qwen/Qwen-Image-Edit" in container["args"][0]
    assert (Path(sys.executable).parent / "hf").exists()


def test_two_models_have_a_group_and_a_budget_each() -> None:
    [overlay] = [path for path in OVERLAYS if path.name == "two-models"]
    cluster = only(build(overlay), "RayService")["spec"]["rayClusterConfig"]
    labels = [group["labels"] for group in cluster["workerGroupSpecs"]]
    assert labels == [{"role": "ingress"}, {"model": "qwen_image_edit"}, {"model": "qwen_image_edit_plus"}]
    assert sum(manifest["kind"] == "PodDisruptionBudget" for manifest in build(overlay)) == 3


def test_overlays_are_there() -> None:
    assert [Path(overlay).name for overlay in OVERLAYS] == [
        "card-24gb",
        "card-8gb",
        "many-gpus",
        "one-gpu",
        "production",
        "two-models",
    ]
