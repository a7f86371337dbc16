"""Kubernetes' own fields: what is wrong with a manifest, by the generated models of the `lightkube` package."""

import typing
from typing import Any

import msgspec
from lightkube.core.resource_registry import resource_registry
from lightkube.models.core_v1 import EnvVarSource, PodTemplateSpec, ResourceRequirements, SecurityContext

from tests.cluster.kustomize import Manifest

# Where a RayService holds what Kubernetes defines, below spec.rayClusterConfig.
RAY_PARTS: dict[tuple[str, ...], Any] = {
    ("autoscalerOptions", "securityContext"): SecurityContext,
    ("autoscalerOptions", "resources"): ResourceRequirements,
    ("gcsFaultToleranceOptions", "redisPassword", "valueFrom"): EnvVarSource,
    ("headGroupSpec", "template"): PodTemplateSpec,
    ("workerGroupSpecs", "template"): PodTemplateSpec,
}


def problems(manifest: Manifest) -> list[str]:
    """Unknown fields, missing ones and values of the wrong type, each with its path."""
    if manifest["kind"] == "RayService":
        cluster = manifest["spec"]["rayClusterConfig"]
        return [p for keys, model in RAY_PARTS.items() for p in _at(cluster, keys, model, "rayClusterConfig")]
    model = resource_registry.load(manifest["apiVersion"], manifest["kind"])
    return list(_check(manifest, model, manifest["kind"]))


def _at(value: Any, keys: tuple[str, ...], model: Any, path: str) -> list[str]:
    if isinstance(value, list):
        return [p for at, inner in enumerate(value) for p in _at(inner, keys, model, f"{path}[{at}]")]
    if not keys:
        return _check(value, model, path)
    return _at(value[keys[0]], keys[1:], model, f"{path}.{keys[0]}") if keys[0] in value else []


def _check(value: Any, hint: Any, path: str) -> list[str]:
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.get_origin(hint) is typing.Union:
        found = [_check(value, kind, path) for kind in kinds]
        return [] if [] in found else found[0]
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            return [f"{path}: {value!r} is no list"]
        return [p for at, inner in enumerate(value) for p in _check(inner, kinds[0], f"{path}[{at}]")]
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _check_fields(value, hint, path)
    if hint is dict and isinstance(value, dict):
        # Labels, data, quantities: a number in there must be quoted, or (a quantity) may be.
        return [f"{path}: {key} has {text!r}, which is no str" for key, text in value.items() if type(text) is not str]
    if hint is Any or type(value) is hint:
        return []
    return [f"{path}: {value!r} is no {getattr(hint, '__name__', hint)}"]


def _check_fields(value: Any, model: type[msgspec.Struct], path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: {value!r} is no {model.__name__}"]
    hints = typing.get_type_hints(model)
    fields = {field.encode_name: field for field in msgspec.structs.fields(model)}
    found = [f"{path}: {key} is no field of {model.__name__}" for key in value.keys() - fields.keys()]
    found += [f"{path}: {key} is missing" for key, field in fields.items() if field.required and key not in value]
    for key in value.keys() & fields.keys():
        found += _check(value[key], hints[fields[key].name], f"{path}.{key}")
    return found
