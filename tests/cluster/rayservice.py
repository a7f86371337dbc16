"""What is wrong with a RayService beyond its fields: parts of it that must say the same, and do not."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import jsonschema
import yaml

from tests.cluster.manifests import ROOT, Manifest, containers, pod_templates
from tests.cluster.serve_configs import deployments, variables

SCHEMA = yaml.safe_load((ROOT / "tests/cluster/rayservice.schema.yaml").read_text())
UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
# What each Ray container is asked for: a pod without one of these is found by nobody, or runs as root.
CONTAINER_KEYS = ("startupProbe", "livenessProbe", "readinessProbe", "resources", "securityContext")


def field_problems(manifest: Manifest) -> list[str]:
    """Unknown and wrong fields of KubeRay's own part."""
    return [
        f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(manifest)
    ]


def problems(manifest: Manifest, manifests: list[Manifest]) -> list[str]:
    """`manifests`: everything that is applied together."""
    cluster = manifest["spec"]["rayClusterConfig"]
    application = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"][0]
    groups = cluster["workerGroupSpecs"]
    found = [*_placement_problems(application, groups), *_cache_problems(application, groups)]
    for group in [cluster["headGroupSpec"], *groups]:
        where = group.get("groupName", "head")
        pod = group["template"]["spec"]
        found += [f"{where}: {problem}" for problem in _pod_problems(pod, group["rayStartParams"])]
        missing = variables(manifest["spec"]["serveConfigV2"]) - _environment(pod["containers"][0], manifests)
        found += [f"{where}: nothing sets {name}" for name in sorted(missing)]
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        found.append("head: it would get replicas")
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if not pinned or pinned[1] != cluster["rayVersion"]:
        found.append(f"rayVersion is {cluster['rayVersion']}, the image has {pinned and pinned[1]}")
    return found


def _placement_problems(application: dict[str, Any], groups: list[Manifest]) -> Iterator[str]:
    """Each deployment names one group, and its replicas fit into the group's pods."""
    options = {option["name"]: option for option in application["deployments"]}
    for name in deployments(application["args"]):
        actor = options.get(name, {}).get("ray_actor_options", {})
        selector = actor.get("label_selector", {})
        fitting = [g for g in groups if selector and selector.items() <= g.get("labels", {}).items()]
        if len(fitting) != 1:
            yield f"{name}: {len(fitting)} groups have the labels {selector}"
            continue
        limits = fitting[0]["template"]["spec"]["containers"][0]["resources"]["limits"]
        if int(limits.get("nvidia.com/gpu", 0)) != actor.get("num_gpus", 0):
            yield f"{name}: its group's pods do not have its GPUs"
        scaling = options[name].get("autoscaling_config")
        low, high = (
            (scaling["min_replicas"], scaling["max_replicas"]) if scaling else [options[name]["num_replicas"]] * 2
        )
        if (low, high) != (fitting[0]["minReplicas"], fitting[0]["maxReplicas"]):
            yield f"{name}: {low} to {high} replicas, a pod each, on {fitting[0]['groupName']} of other bounds"


def _cache_problems(application: dict[str, Any], groups: list[Manifest]) -> Iterator[str]:
    """An editor's disk cache lies on a volume of its pod, with room for it."""
    for model in application["args"]["models"]:
        folder = PurePosixPath(model["adapter_disk_folder"])
        for group in groups:
            if group.get("labels", {}).get("model") != model["id"]:
                continue
            pod = group["template"]["spec"]
            mounts = [m for m in pod["containers"][0]["volumeMounts"] if folder.is_relative_to(m["mountPath"])]
            volumes = [v for v in pod["volumes"] if mounts and v["name"] == mounts[0]["name"]]
            sizes = [v["emptyDir"]["sizeLimit"] for v in volumes if "emptyDir" in v]
            if not sizes or size(sizes[0]) <= model["adapter_disk_bytes"]:
                yield f"{model['id']}: {folder} is on no volume with room for {model['adapter_disk_bytes']} bytes"


def _pod_problems(pod: Manifest, start: dict[str, str]) -> Iterator[str]:
    container = pod["containers"][0]
    yield from (f"no {key}" for key in CONTAINER_KEYS if key not in container)
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        yield "it may run as root"
    volumes = {volume["name"] for volume in pod["volumes"]}
    yield from (f"no volume {m['name']}" for m in container["volumeMounts"] if m["name"] not in volumes)
    yield from _memory_problems(pod, start)
    ports = {port["name"] for port in container["ports"]}
    for key in CONTAINER_KEYS[:3]:
        port = container.get(key, {}).get("httpGet", {}).get("port", 0)
        if isinstance(port, str) and port not in ports:
            yield f"{key}: no port {port}"
    if "lifecycle" in container:
        seconds = int(container["lifecycle"]["preStop"]["exec"]["command"][-1].split("sleep ")[1])
        if pod.get("terminationGracePeriodSeconds", 30) <= seconds:
            yield f"it is killed before the {seconds} s of its preStop hook are over"


def _memory_problems(pod: Manifest, start: dict[str, str]) -> Iterator[str]:
    container = pod["containers"][0]
    shared = next((v["emptyDir"] for v in pod["volumes"] if v["name"] == "shared-memory"), {})
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    if shared.get("medium") != "Memory" or mounts.get("/dev/shm") != "shared-memory":
        yield "/dev/shm is no memory of its own"
    elif (
        not int(start["object-store-memory"])
        < size(shared["sizeLimit"])
        < size(container["resources"]["limits"]["memory"])
    ):
        yield "the object store does not fit into /dev/shm, or that into the pod"


def _environment(container: Manifest, manifests: list[Manifest]) -> set[str]:
    maps = {m["metadata"]["name"]: m["data"] for m in manifests if m["kind"] == "ConfigMap"}
    names = {entry["name"] for entry in container.get("env", [])}
    return names.union(*(maps[entry["configMapRef"]["name"]] for entry in container.get("envFrom", [])))


def secret_problems(manifests: list[Manifest]) -> Iterator[str]:
    """Secrets that stand in a manifest instead of being referred to."""
    yield from (f"{m['metadata']['name']}: a Secret" for m in manifests if m["kind"] == "Secret")
    for container in containers(manifests):
        for entry in container.get("env", []):
            if "secretKeyRef" not in entry.get("valueFrom", {}):
                yield f"{container['name']}: {entry['name']} refers to no secret"


def disruption_problems(manifests: list[Manifest]) -> Iterator[str]:
    """A budget for pods of a RayCluster, which has no scale subresource, is a whole number of pods to be left."""
    templates = [template["metadata"]["labels"] for template in pod_templates(manifests)]
    for manifest in manifests:
        if manifest["kind"] != "PodDisruptionBudget":
            continue
        name, spec = manifest["metadata"]["name"], manifest["spec"]
        if type(spec.get("minAvailable")) is not int or "maxUnavailable" in spec:
            yield f"{name}: only a whole minAvailable works for pods of a RayCluster"
        if not any(spec["selector"]["matchLabels"].items() <= labels.items() for labels in templates):
            yield f"{name}: no pod has these labels"


def pod_labels(component: str) -> dict[str, str]:
    """The labels of the pods of one component."""
    return {"app.kubernetes.io/part-of": "edits", "app.kubernetes.io/component": component}


def size(quantity: str) -> int:
    """Bytes of a Kubernetes quantity in binary units."""
    number, unit = re.fullmatch(r"(\d+)(\D*)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]
